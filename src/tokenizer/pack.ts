/**
 * tokenizer.json -> the packed vocabulary. Whatever Qwen2's structure does not say is refused by name, so that a packed
 * vocabulary never means something else than its JSON.
 */
import { byteCharacters } from './byte-alphabet.ts'
import { writeVocabulary } from './format.ts'
import { FIRST_MERGE } from './merges.ts'
import { IDS_MAX } from './pair-table.ts'
import { QWEN2_PATTERN } from './split.ts'
import type { AddedToken } from './tokenizer.ts'

type Json = Readonly<Record<string, unknown>>

export function packTokenizer(tokenizerJson: unknown): Uint8Array {
  const json = object(tokenizerJson, 'tokenizer.json')
  const model = object(json['model'], 'model')
  checkPipeline(json)
  checkModel(model)
  const vocab = new Map(Object.entries(object(model['vocab'], 'model.vocab')))
  const merges = mergesOf(model['merges'], vocab)
  const bytes = bytesOf(vocab)
  const ids = FIRST_MERGE + merges.left.length
  const added = addedOf(json['added_tokens'], ids)
  // Some exporters list the added tokens in the vocabulary as well.
  for (const token of added) if (vocab.get(token.text) === token.id) vocab.delete(token.text)
  if (vocab.size !== ids)
    throw refuse(
      `model.vocab has ${vocab.size} tokens; 256 bytes and ${ids - FIRST_MERGE} merges make ${ids}`,
    )
  if (ids + added.length > IDS_MAX) throw refuse(`${ids + added.length} tokens; at most ${IDS_MAX}`)
  return writeVocabulary({ bytes, ...merges, added })
}

function checkPipeline(json: Json): void {
  expect(json, 'truncation', [null, undefined])
  expect(json, 'padding', [null, undefined])
  expect(object(json['normalizer'], 'normalizer'), 'type', ['NFC'], 'normalizer.')

  const sequence = object(json['pre_tokenizer'], 'pre_tokenizer')
  expect(sequence, 'type', ['Sequence'], 'pre_tokenizer.')
  const steps = array(sequence['pretokenizers'], 'pre_tokenizer.pretokenizers')
  if (steps.length !== 2) throw refuse(`pre_tokenizer has ${steps.length} steps, not Split and ByteLevel`)
  const split = object(steps[0], 'pre_tokenizer[0]')
  expect(split, 'type', ['Split'], 'pre_tokenizer[0].')
  expect(split, 'behavior', ['Isolated'], 'pre_tokenizer[0].')
  expect(split, 'invert', [false, undefined], 'pre_tokenizer[0].')
  expect(
    object(split['pattern'], 'pre_tokenizer[0].pattern'),
    'Regex',
    [QWEN2_PATTERN],
    'pre_tokenizer[0].pattern.',
  )
  const byteLevel = object(steps[1], 'pre_tokenizer[1]')
  expect(byteLevel, 'type', ['ByteLevel'], 'pre_tokenizer[1].')
  expect(byteLevel, 'add_prefix_space', [false], 'pre_tokenizer[1].')
  expect(byteLevel, 'use_regex', [false], 'pre_tokenizer[1].')

  expect(object(json['decoder'], 'decoder'), 'type', ['ByteLevel'], 'decoder.')
  if (json['post_processor'] !== null && json['post_processor'] !== undefined) {
    expect(object(json['post_processor'], 'post_processor'), 'type', ['ByteLevel'], 'post_processor.')
  }
}

function checkModel(model: Json): void {
  expect(model, 'type', ['BPE'], 'model.')
  for (const name of ['dropout', 'unk_token']) expect(model, name, [null, undefined], 'model.')
  for (const name of ['continuing_subword_prefix', 'end_of_word_suffix'])
    expect(model, name, ['', null, undefined], 'model.')
  for (const name of ['byte_fallback', 'ignore_merges']) expect(model, name, [false, undefined], 'model.')
}

function bytesOf(vocab: ReadonlyMap<string, unknown>): Uint8Array {
  const bytes = new Uint8Array(256)
  const seen = new Set<number>()
  for (const [byte, character] of byteCharacters.entries()) {
    const id = vocab.get(character)
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= 256) {
      throw refuse(`byte ${byte} ("${character}") has id ${String(id)}, not one below 256`)
    }
    bytes[id] = byte
    seen.add(id)
  }
  if (seen.size !== 256) throw refuse('two bytes share an id')
  return bytes
}

function mergesOf(
  value: unknown,
  vocab: ReadonlyMap<string, unknown>,
): { left: Uint32Array; right: Uint32Array } {
  const merges = array(value, 'model.merges')
  const left = new Uint32Array(merges.length)
  const right = new Uint32Array(merges.length)
  for (const [i, merge] of merges.entries()) {
    const parts: unknown[] = typeof merge === 'string' ? merge.split(' ') : array(merge, `model.merges[${i}]`)
    const [a, b] = parts
    if (typeof a !== 'string' || typeof b !== 'string' || parts.length !== 2)
      throw refuse(`merge ${i} is not a pair`)
    const made = vocab.get(a + b)
    if (made !== FIRST_MERGE + i)
      throw refuse(`merge ${i} (${a} ${b}) makes id ${String(made)}, not ${FIRST_MERGE + i}`)
    for (const [side, part] of [
      [left, a],
      [right, b],
    ] as const) {
      const id = vocab.get(part)
      if (typeof id !== 'number' || !(id < FIRST_MERGE + i))
        throw refuse(`merge ${i} uses "${part}" before it is made`)
      side[i] = id
    }
  }
  return { left, right }
}

function addedOf(value: unknown, firstId: number): AddedToken[] {
  const entries = array(value ?? [], 'added_tokens').map((entry, i) => object(entry, `added_tokens[${i}]`))
  const added = entries.map((entry, i): AddedToken => {
    for (const name of ['single_word', 'lstrip', 'rstrip', 'normalized'])
      expect(entry, name, [false], `added_tokens[${i}].`)
    const { id, content, special } = entry
    if (typeof id !== 'number' || typeof content !== 'string' || content === '')
      throw refuse(`added_tokens[${i}] has no id or content`)
    return { id, text: content, special: special === true }
  })
  added.sort((a, b) => a.id - b.id)
  for (const [i, token] of added.entries()) {
    if (token.id !== firstId + i)
      throw refuse(`added token ${token.text} has id ${token.id}, not ${firstId + i}`)
  }
  return added
}

function expect(holder: Json, name: string, allowed: readonly unknown[], path = ''): void {
  if (allowed.includes(holder[name])) return
  throw refuse(`${path}${name} is ${JSON.stringify(holder[name])}, not ${JSON.stringify(allowed[0])}`)
}

function object(value: unknown, name: string): Json {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw refuse(`${name} is not an object`)
  return Object.fromEntries(Object.entries(value))
}

function array(value: unknown, name: string): unknown[] {
  if (!Array.isArray(value)) throw refuse(`${name} is not a list`)
  return value
}

const refuse = (what: string): Error => new Error(`tokenizer.json cannot be packed: ${what}`)
