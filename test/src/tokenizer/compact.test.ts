import { readFileSync } from 'node:fs'
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { texts } from '../../golden/tokenizer/texts.ts'
import { loadTokenizer, packTokenizer } from '../../../src/tokenizer/compact.ts'
import { writeVocabulary } from '../../../src/tokenizer/format.ts'
import type { TokenizerJson } from '../../../src/tokenizer/reference.ts'
import { oddText } from './odd-text.ts'
import { madeVocabulary, qwen2Json } from './vocabularies.ts'

const packed = packTokenizer(qwen2Json())
const qwen2 = loadTokenizer(packed)
/** ab, abc, aa */
const threeMerges = [
  [0, 1],
  [3, 2],
  [0, 0],
] as const
const golden = JSON.parse(
  readFileSync(new URL('../../golden/tokenizer/qwen2.json', import.meta.url), 'utf8'),
) as Record<string, number[]>

describe("Qwen2's vocabulary", () => {
  test.each(Object.entries(texts))('golden: %s', (name, text) => {
    expect(qwen2.encode(text)).toEqual(golden[name])
    expect(qwen2.decode(golden[name]!)).toBe(text.normalize('NFC'))
  })

  test('has the size and ids of the model', () => {
    expect(packed.length).toBeLessThan(910_000)
    expect(qwen2.vocabSize).toBe(151_646)
    expect(['<|endoftext|>', '<|im_start|>', '<|im_end|>'].map((name) => qwen2.specialId(name))).toEqual([
      151_643, 151_644, 151_645,
    ])
    expect(qwen2.encode('<|im_start|>')).toEqual([27, 91, 318, 4906, 91, 29])
    expect(qwen2.encode('<|im_end|>')).toEqual([27, 91, 318, 6213, 91, 29])
  })

  test('agrees with the untouched library on text without control tokens', () => {
    const library = new HuggingFaceTokenizer(qwen2Json(), {})
    fc.assert(
      fc.property(oddText(100), (text) => {
        fc.pre(text !== '' && !/<\|(im_start|im_end|endoftext)\|>/.test(text))
        const { ids } = library.encode(text.toWellFormed())
        expect(qwen2.encode(text)).toEqual(ids)
        expect(qwen2.decode(ids)).toBe(library.decode(ids, { clean_up_tokenization_spaces: false }))
      }),
      { numRuns: 1000 },
    )
  })

  test('gives the same whether a word is new, cached or displaced from the cache', () => {
    const words = Array.from({ length: 30_000 }, (_, i) => ` w${((i * 7919) % 30_011).toString(36)}`)
    const tokenizer = loadTokenizer(packed)
    const fresh = words.map((word) => tokenizer.encode(word))
    const again = words.toReversed().map((word) => tokenizer.encode(word))
    expect(again.toReversed()).toEqual(fresh)
    expect(fresh.map((ids) => tokenizer.decode(ids))).toEqual(words)
  })
})

describe('hostile text comes back whole', () => {
  test.each([
    ['one letter', 'a'.repeat(1_000_000)],
    ['letters without sense', nonsense(1_000_000)],
    ['spaces', ' '.repeat(1_000_000)],
    ['newlines and spaces', '\n '.repeat(500_000)],
    ['apostrophes', "'".repeat(1_000_000)],
    ['digits', '7'.repeat(1_000_000)],
    ['one ideograph', '你'.repeat(300_000)],
    ['emoji', '👨‍👩‍👧'.repeat(50_000)],
    ['lone surrogates', '\ud83d'.repeat(300_000)],
  ])('%s', (_name, text) => {
    expect(qwen2.decode(qwen2.encode(text)) === text.toWellFormed()).toBe(true)
  })

  test('combining marks, put in order 256 at a time', () => {
    const ordered = (marks: number): string => '\u0316'.repeat(marks / 2) + '\u0301'.repeat(marks / 2)
    const decoded = qwen2.decode(qwen2.encode(`x${'\u0301\u0316'.repeat(250_000)}`))
    expect(decoded === `x${ordered(256).repeat(1953)}${ordered(32)}`).toBe(true)
  })
})

function nonsense(length: number): string {
  let state = 1
  return Array.from({ length }, () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
    return String.fromCharCode(97 + ((state >> 16) % 26))
  }).join('')
}

describe('a tokenizer.json of another structure is refused by name', () => {
  const base = (): TokenizerJson => structuredClone(madeVocabulary('abc', threeMerges).json)
  const cases: [path: string, value: unknown, says: string][] = [
    ['normalizer.type', 'NFKC', 'normalizer.type is "NFKC", not "NFC"'],
    ['normalizer', null, 'normalizer is not an object'],
    ['pre_tokenizer.type', 'Split', 'pre_tokenizer.type is "Split"'],
    ['pre_tokenizer.pretokenizers.0.pattern.Regex', '\\p{N}{1,3}', 'pattern.Regex is "\\\\p{N}{1,3}"'],
    ['pre_tokenizer.pretokenizers.0.behavior', 'Removed', 'behavior is "Removed"'],
    ['pre_tokenizer.pretokenizers.1', { type: 'Digits' }, 'pre_tokenizer[1].type is "Digits"'],
    ['pre_tokenizer.pretokenizers.2', { type: 'Digits' }, '3 steps'],
    ['decoder', { type: 'Metaspace' }, 'decoder.type is "Metaspace"'],
    ['post_processor', { type: 'TemplateProcessing' }, 'post_processor.type is "TemplateProcessing"'],
    ['truncation', { max_length: 5 }, 'truncation is {"max_length":5}'],
    ['model.type', 'Unigram', 'model.type is "Unigram"'],
    ['model.ignore_merges', true, 'model.ignore_merges is true'],
    ['model.dropout', 0.1, 'model.dropout is 0.1'],
    ['model.merges.0', 'b c', 'merge 0 (b c) makes id undefined, not 256'],
    ['model.merges.1', 'c ab', 'merge 1 (c ab) makes id undefined, not 257'],
    ['model.merges.2', 'a b c', 'merge 2 is not a pair'],
    ['model.vocab.zz', 999, 'model.vocab has 260 tokens'],
    ['model.vocab.x', 256, 'byte 120 ("x") has id 256'],
    ['model.vocab.x', 255, 'two bytes share an id'],
    ['added_tokens.2.id', 262, '<|im_end|> has id 262, not 261'],
    ['added_tokens.1.rstrip', true, 'added_tokens[1].rstrip is true'],
    ['added_tokens.1.content', '', 'added_tokens[1] has no id or content'],
  ]
  test.each(cases)('%s = %j', (path, value, says) => {
    expect(() => packTokenizer(changed(base(), path, value))).toThrow(says)
  })

  test.each([null, 1, [], '{}'])('%j', (json) => expect(() => packTokenizer(json)).toThrow('tokenizer.json'))

  test('merges as pairs mean the same as merges as strings', () => {
    const pairs = madeVocabulary('abc', threeMerges).merges
    expect(packTokenizer(changed(base(), 'model.merges', pairs))).toEqual(packTokenizer(base()))
  })

  test('added tokens that the vocabulary lists too change nothing', () => {
    const json = base()
    for (const { content, id } of json.added_tokens ?? []) json.model.vocab[content] = id
    expect(packTokenizer(json)).toEqual(packTokenizer(base()))
  })
})

/** `json` with the value at a dotted path replaced. */
function changed(json: TokenizerJson, path: string, value: unknown): unknown {
  const names = path.split('.')
  const last = names.pop()!
  const holder = names.reduce<unknown>((at, name) => (at as Record<string, unknown>)[name], json)
  ;(holder as Record<string, unknown>)[last] = value
  return json
}

describe('a packed vocabulary', () => {
  const small = packTokenizer(madeVocabulary('abc', threeMerges).json)

  test('loads from any view of its bytes', () => {
    const shifted = new Uint8Array(small.length + 3)
    shifted.set(small, 3)
    for (const form of [small, small.slice().buffer, shifted.subarray(3)]) {
      expect(loadTokenizer(form).encode('abc aa')).toEqual(loadTokenizer(small).encode('abc aa'))
    }
  })

  test('has a hash that follows its content', () => {
    const other = packTokenizer(
      madeVocabulary('abc', [
        [0, 1],
        [3, 2],
        [1, 1],
      ]).json,
    )
    expect(loadTokenizer(small).hash).toMatch(/^[0-9a-f]{16}$/)
    expect(loadTokenizer(small.slice()).hash).toBe(loadTokenizer(small).hash)
    expect(loadTokenizer(other).hash).not.toBe(loadTokenizer(small).hash)
  })

  test('is refused with any byte changed', () => {
    for (let at = 0; at < small.length; at++) {
      const damaged = small.slice()
      damaged[at]! ^= 0x40
      expect(() => loadTokenizer(damaged), `byte ${at}`).toThrow('packed vocabulary')
    }
  })

  test('is refused cut short or with bytes added', () => {
    for (let length = 0; length < small.length; length++) {
      expect(() => loadTokenizer(small.subarray(0, length)), `${length} bytes`).toThrow('packed vocabulary')
    }
    expect(() => loadTokenizer(new Uint8Array([...small, 0]))).toThrow('packed vocabulary')
  })

  const bytes = Uint8Array.from({ length: 256 }, (_, i) => i)
  const doubling = Uint32Array.from({ length: 40 }, (_, i) => 255 + i)
  test.each([
    ['an id that is not made yet', bytes, Uint32Array.of(256), Uint32Array.of(0), 'merge 0 uses an id'],
    ['an id that never is', bytes, Uint32Array.of(0), Uint32Array.of(0xffffff), 'merge 0 uses an id'],
    ['a byte twice', bytes.with(1, 0), Uint32Array.of(0), Uint32Array.of(0), 'do not cover the 256 bytes'],
    ['tokens of terabytes', bytes, doubling, doubling, 'tokens are longer than'],
  ])('is refused with %s, though its checksum is right', (_name, bytes, left, right, says) => {
    const file = writeVocabulary({ bytes, left, right, added: [] })
    expect(() => loadTokenizer(file)).toThrow(says)
  })
})
