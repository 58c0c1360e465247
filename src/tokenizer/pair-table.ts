/**
 * Which merge joins two ids: a hash table, as every byte of a new word asks it. Open addressing with linear probing, two int32 a
 * slot (left | right << 18, then right >> 14 | (rank + 1) << 4; 0 there means empty), so that a probe touches one cache line
 * and Qwen2's 151,387 merges take 2 MB.
 */

/** Ids must fit 18 bits: two of them and a rank share 64. */
export const IDS_MAX = 1 << 18

export interface PairTable {
  slots: Int32Array
  mask: number
}

export function buildPairTable(left: Uint32Array, right: Uint32Array): PairTable {
  let capacity = 16
  while (capacity < left.length * 1.7) capacity *= 2
  const slots = new Int32Array(capacity * 2)
  const mask = capacity - 1
  for (let rank = 0; rank < left.length; rank++) {
    const a = left[rank] as number
    const b = right[rank] as number
    let slot = pairHash(a, b) & mask
    while (slots[slot * 2 + 1] !== 0) slot = (slot + 1) & mask
    slots[slot * 2] = a | (b << 18)
    slots[slot * 2 + 1] = (b >>> 14) | ((rank + 1) << 4)
  }
  return { slots, mask }
}

function pairHash(left: number, right: number): number {
  const h = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)
  return h ^ (h >>> 15)
}

/** Above every rank, and small enough to need no heap number. */
export const NO_RANK = 0x3fffffff

/** The rank of the merge of these two ids, or NO_RANK. */
export function rankOf(table: PairTable, left: number, right: number): number {
  const { slots, mask } = table
  const low = left | (right << 18)
  const high = right >>> 14
  let slot = pairHash(left, right) & mask
  for (;;) {
    const second = slots[slot * 2 + 1] as number
    if (second === 0) return NO_RANK
    if (slots[slot * 2] === low && (second & 15) === high) return (second >>> 4) - 1
    slot = (slot + 1) & mask
  }
}
