/**
 * The tokenizer of the edge: Qwen2's byte-level BPE out of a packed vocabulary (format.ts), equal to the reference token for
 * token. Loads in some 10 ms with 6 MB; the work is linear in the text (merges.ts), and nothing grows with use: words seen before
 * come from a cache of fixed size.
 */
import { readVocabulary, type Vocabulary } from './format.ts'
import { createMergeWord, FIRST_MERGE } from './merges.ts'
import { buildPairTable } from './pair-table.ts'
import { normalize } from './normalize.ts'
import { wordEnd } from './split.ts'
import { decoding, unknownId, type Tokenizer } from './tokenizer.ts'
import { createWordCache } from './word-cache.ts'

export { packTokenizer } from './pack.ts'

/** Words up to this many UTF-8 bytes share one scratch array. */
const SCRATCH_IDS = 4096

export function loadTokenizer(file: ArrayBuffer | Uint8Array): Tokenizer {
  const vocabulary = readVocabulary(file instanceof Uint8Array ? file : new Uint8Array(file))
  const { added, hash } = vocabulary
  const firstAdded = FIRST_MERGE + vocabulary.left.length
  const vocabSize = firstAdded + added.length
  const { blob, offsets } = spellTokens(vocabulary)
  const names = added.map((token) => new TextEncoder().encode(token.text))

  const tokenBytes = (id: number): Uint8Array => {
    if (id >= 0 && id < firstAdded && Number.isInteger(id)) return blob.subarray(offsets[id], offsets[id + 1])
    const name = names[id - firstAdded]
    if (name === undefined) throw unknownId(id, vocabSize)
    return name
  }

  const mergeWord = createMergeWord(
    buildPairTable(vocabulary.left, vocabulary.right),
    (id) => (offsets[id + 1] as number) - (offsets[id] as number),
    vocabulary.left.length,
  )
  const idOfByte = new Int32Array(256)
  for (const [id, byte] of vocabulary.bytes.entries()) idOfByte[byte] = id
  const scratch = new Int32Array(SCRATCH_IDS)
  const cache = createWordCache()

  const encodeWord = (text: string, start: number, end: number, out: number[]): void => {
    // A UTF-16 unit is at most three bytes.
    const most = (end - start) * 3
    const ids = most <= SCRATCH_IDS ? scratch : new Int32Array(utf8Length(text, start, end))
    const count = mergeWord(ids, byteIds(text, start, end, idOfByte, ids))
    for (let i = 0; i < count; i++) out.push(ids[i] as number)
    cache.put(text, start, end, ids, count)
  }

  return {
    vocabSize,
    hash,
    tokenBytes,
    ...decoding(added, tokenBytes),
    encode(text) {
      const normal = normalize(text)
      const out: number[] = []
      for (let start = 0; start < normal.length;) {
        const end = wordEnd(normal, start)
        if (!cache.get(normal, start, end, out)) encodeWord(normal, start, end, out)
        start = end
      }
      return out
    },
  }
}

/** Every token's bytes, one after the other; token id's are blob[offsets[id] .. offsets[id + 1]). */
function spellTokens(vocabulary: Vocabulary): { blob: Uint8Array; offsets: Uint32Array } {
  const { bytes, left, right } = vocabulary
  const offsets = new Uint32Array(FIRST_MERGE + left.length + 1)
  const length = (id: number): number => (offsets[id + 1] as number) - (offsets[id] as number)
  for (let id = 0; id < FIRST_MERGE; id++) offsets[id + 1] = id + 1
  for (let i = 0; i < left.length; i++) {
    const id = FIRST_MERGE + i
    const end = (offsets[id] as number) + length(left[i] as number) + length(right[i] as number)
    if (end > BLOB_MAX)
      throw new Error(`packed vocabulary: its tokens are longer than ${BLOB_MAX} bytes in all`)
    offsets[id + 1] = end
  }
  const blob = new Uint8Array(offsets.at(-1) ?? 0)
  blob.set(bytes)
  for (let i = 0; i < left.length; i++) {
    let to = offsets[FIRST_MERGE + i] as number
    for (const part of [left[i] as number, right[i] as number]) {
      const end = offsets[part + 1] as number
      for (let from = offsets[part] as number; from < end; from++) blob[to++] = blob[from] as number
    }
  }
  return { blob, offsets }
}

/** A file whose merges double a token 30 times must not take the isolate's memory. */
const BLOB_MAX = 1 << 26

function utf8Length(text: string, start: number, end: number): number {
  let length = 0
  for (let i = start; i < end; i++) {
    const unit = text.charCodeAt(i)
    // A surrogate is half of four bytes.
    length += unit < 0x80 ? 1 : unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 2 : 3
  }
  return length
}

/** UTF-8 of text[start..end), as the ids of its bytes; returns their number. */
function byteIds(text: string, start: number, end: number, idOfByte: Int32Array, ids: Int32Array): number {
  let n = 0
  for (let i = start; i < end; i++) {
    let code = text.charCodeAt(i)
    if (code < 0x80) {
      ids[n++] = idOfByte[code] as number
      continue
    }
    if (code < 0x800) ids[n++] = idOfByte[0xc0 | (code >> 6)] as number
    else {
      if (code >= 0xd800 && code < 0xdc00) {
        code = 0x10000 + ((code & 0x3ff) << 10) + (text.charCodeAt(++i) & 0x3ff)
        ids[n++] = idOfByte[0xf0 | (code >> 18)] as number
        ids[n++] = idOfByte[0x80 | ((code >> 12) & 63)] as number
      } else ids[n++] = idOfByte[0xe0 | (code >> 12)] as number
      ids[n++] = idOfByte[0x80 | ((code >> 6) & 63)] as number
    }
    ids[n++] = idOfByte[0x80 | (code & 63)] as number
  }
  return n
}
