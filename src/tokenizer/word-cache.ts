/**
 * Words and their ids, direct-mapped: a new word takes the place of whichever word shares its slot, so memory is fixed (0.9 MB) and
 * a hit allocates nothing. Longer words are simply not kept.
 */
const SLOTS = 8192
const UNITS_MAX = 23
const IDS_MAX = 15

export interface WordCache {
  /** Appends the ids of text[start..end) to `out`, or says that it does not know them. */
  get: (text: string, start: number, end: number, out: number[]) => boolean
  put: (text: string, start: number, end: number, ids: Int32Array, count: number) => void
}

export function createWordCache(): WordCache {
  // A row is the length (0: empty), then the units or ids.
  const words = new Uint16Array(SLOTS * (UNITS_MAX + 1))
  const idRows = new Int32Array(SLOTS * (IDS_MAX + 1))

  return {
    get(text, start, end, out) {
      const length = end - start
      if (length > UNITS_MAX) return false
      const slot = slotOf(text, start, end)
      const row = slot * (UNITS_MAX + 1)
      if (words[row] !== length) return false
      for (let i = 0; i < length; i++) if (words[row + 1 + i] !== text.charCodeAt(start + i)) return false
      const ids = slot * (IDS_MAX + 1)
      const count = idRows[ids] as number
      for (let i = 1; i <= count; i++) out.push(idRows[ids + i] as number)
      return true
    },
    put(text, start, end, ids, count) {
      const length = end - start
      if (length > UNITS_MAX || count > IDS_MAX) return
      const slot = slotOf(text, start, end)
      const row = slot * (UNITS_MAX + 1)
      words[row] = length
      for (let i = 0; i < length; i++) words[row + 1 + i] = text.charCodeAt(start + i)
      const to = slot * (IDS_MAX + 1)
      idRows[to] = count
      for (let i = 0; i < count; i++) idRows[to + 1 + i] = ids[i] as number
    },
  }
}

function slotOf(text: string, start: number, end: number): number {
  let h = end - start
  for (let i = start; i < end; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x9e3779b1)
  return (h ^ (h >>> 15)) & (SLOTS - 1)
}
