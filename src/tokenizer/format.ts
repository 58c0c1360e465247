/**
 * The packed vocabulary, little endian: what a byte-level BPE needs to run and nothing more (Qwen2's: 909 kB of a 7 MB JSON).
 *
 *     0   char[4]  "QBPE"
 *     4   u32      version, 1
 *     8   u32[2]   checksum of everything from byte 16 on; its 16 hex digits are the tokenizer's hash
 *    16   u32      merges M
 *    20   u32      added tokens A
 *    24   u8[256]  the byte that id i stands for, i < 256
 *   280   u8[6][M] merge i makes id 256 + i out of two smaller ids. Six planes: the low, middle and high bytes of the left ids,
 *                  then those of the right ones (which gzips to 540 kB; one merge after the other, to 605 kB)
 *         A times  u8 flags (1: special), u8 length, UTF-8 text; the ids go on from 256 + M
 *
 * A reader refuses a bad magic, version, length, checksum or id by an Error that says which; it never reads out of bounds.
 */
import { FIRST_MERGE } from './merges.ts'
import { IDS_MAX } from './pair-table.ts'
import type { AddedToken } from './tokenizer.ts'

export interface Vocabulary {
  hash: string
  bytes: Uint8Array
  left: Uint32Array
  right: Uint32Array
  added: AddedToken[]
}

const MAGIC = 'QBPE'
const VERSION = 1
const HEADER_BYTES = 24
const MERGE_BYTES = 6
const SPECIAL = 1

export function writeVocabulary(vocabulary: Omit<Vocabulary, 'hash'>): Uint8Array {
  const { bytes, left, right, added } = vocabulary
  const names = added.map((token) => new TextEncoder().encode(token.text))
  const namesLength = names.reduce((sum, name) => sum + name.length + 2, 0)
  const file = new Uint8Array(HEADER_BYTES + 256 + left.length * MERGE_BYTES + namesLength)
  const view = new DataView(file.buffer)
  file.set(new TextEncoder().encode(MAGIC))
  view.setUint32(4, VERSION, true)
  view.setUint32(16, left.length, true)
  view.setUint32(20, added.length, true)
  file.set(bytes, HEADER_BYTES)
  let at = HEADER_BYTES + 256
  for (const ids of [left, right]) {
    for (const shift of [0, 8, 16]) {
      for (const id of ids) file[at++] = id >> shift
    }
  }
  for (const [i, name] of names.entries()) {
    if (name.length > 255) throw new Error(`tokenizer: an added token of ${name.length} bytes; at most 255`)
    file.set([added[i]?.special === true ? SPECIAL : 0, name.length], at)
    file.set(name, at + 2)
    at += name.length + 2
  }
  const [low, high] = checksum(view)
  view.setUint32(8, low, true)
  view.setUint32(12, high, true)
  return file
}

export function readVocabulary(file: Uint8Array): Vocabulary {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  if (file.length < HEADER_BYTES + 256) throw bad(`${file.length} bytes are too few`)
  if (String.fromCharCode(...file.subarray(0, 4)) !== MAGIC) throw bad('not a packed vocabulary')
  if (view.getUint32(4, true) !== VERSION)
    throw bad(`version ${view.getUint32(4, true)}, expected ${VERSION}; pack it again`)
  const [low, high] = checksum(view)
  if (view.getUint32(8, true) !== low || view.getUint32(12, true) !== high)
    throw bad('wrong checksum: the file is damaged or cut short')

  const merges = view.getUint32(16, true)
  const addedCount = view.getUint32(20, true)
  const mergesAt = HEADER_BYTES + 256
  const mergesEnd = mergesAt + merges * MERGE_BYTES
  if (mergesEnd > file.length) throw bad(`${merges} merges do not fit`)
  if (FIRST_MERGE + merges + addedCount > IDS_MAX) throw bad(`more than ${IDS_MAX} ids`)
  const bytes = file.slice(HEADER_BYTES, mergesAt)
  if (new Set(bytes).size !== 256) throw bad('the first 256 ids do not cover the 256 bytes')

  const left = new Uint32Array(merges)
  const right = new Uint32Array(merges)
  const idAt = (at: number): number =>
    view.getUint8(at) | (view.getUint8(at + merges) << 8) | (view.getUint8(at + 2 * merges) << 16)
  for (let i = 0; i < merges; i++) {
    const a = idAt(mergesAt + i)
    const b = idAt(mergesAt + 3 * merges + i)
    if (a >= FIRST_MERGE + i || b >= FIRST_MERGE + i) throw bad(`merge ${i} uses an id that is not made yet`)
    left[i] = a
    right[i] = b
  }
  return {
    hash: hex(high) + hex(low),
    bytes,
    left,
    right,
    added: readAdded(file.subarray(mergesEnd), addedCount, FIRST_MERGE + merges),
  }
}

function readAdded(section: Uint8Array, count: number, firstId: number): AddedToken[] {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  let at = 0
  const added = Array.from({ length: count }, (_, i): AddedToken => {
    const [flags, length] = [section[at], section[at + 1]]
    const end = at + 2 + (length ?? 0)
    if (flags === undefined || length === undefined || end > section.length)
      throw bad('the added tokens are cut short')
    const text = decoder.decode(section.subarray(at + 2, end))
    at = end
    return { id: firstId + i, text, special: (flags & SPECIAL) !== 0 }
  })
  if (at !== section.length) throw bad(`${section.length - at} bytes too many`)
  return added
}

/** Two lanes in the manner of MurmurHash3 over 32-bit words: finds damage, does not resist an attacker. */
function checksum(view: DataView): [low: number, high: number] {
  let a = view.byteLength | 0
  let b = ~view.byteLength
  let at = 16
  for (; at + 4 <= view.byteLength; at += 4) {
    const word = view.getUint32(at, true)
    a = Math.imul(a ^ word, 0xcc9e2d51)
    a = (a << 13) | (a >>> 19)
    b = Math.imul(b ^ word, 0x1b873593)
    b = (b << 15) | (b >>> 17)
  }
  for (; at < view.byteLength; at++) {
    a = Math.imul(a ^ view.getUint8(at), 0x85ebca6b)
    b = Math.imul(b ^ view.getUint8(at), 0xc2b2ae35)
  }
  return [finish(a), finish(b)]
}

function finish(h: number): number {
  let x = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return (x ^ (x >>> 16)) >>> 0
}

const hex = (word: number): string => word.toString(16).padStart(8, '0')

const bad = (what: string): Error => new Error(`packed vocabulary: ${what}`)
