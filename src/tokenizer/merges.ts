/**
 * Byte-pair merging over one word: of all adjacent pairs the one with the lowest rank merges, leftmost first, until no pair has a
 * rank. Merge `rank` makes id FIRST_MERGE + rank out of two smaller ids.
 *
 * Short words search their few pairs again after each merge. Long ones (hostile input, mostly: a megabyte of one letter) rest on
 * this: a pair made by a merge contains its id and therefore has a higher rank. So ranks come up in rising order, and when one
 * comes up all its places are known. Places wait in one doubly linked list a rank, and a heap holds the ranks that wait:
 * O(n + r log r) for n bytes and r ranks met, 16 bytes of memory a byte of text.
 */
import { NO_RANK, rankOf, type PairTable } from './pair-table.ts'

export const FIRST_MERGE = 256
const SHORT_MAX = 80

/** `ids[0..count)`, one a byte, merged in place; returns how many remain. */
export type MergeWord = (ids: Int32Array, count: number) => number

export function createMergeWord(
  table: PairTable,
  idLengths: (id: number) => number,
  ranks: number,
): MergeWord {
  const shortRanks = new Int32Array(SHORT_MAX)
  let heads: Int32Array | undefined

  return (ids, count) => {
    if (count <= SHORT_MAX) return mergeShort(table, shortRanks, ids, count)
    heads ??= new Int32Array(ranks).fill(NONE)
    return mergeLong(table, idLengths, heads, ids, count)
  }
}

function mergeShort(table: PairTable, ranks: Int32Array, ids: Int32Array, count: number): number {
  let n = count
  for (let i = 0; i + 1 < n; i++) ranks[i] = rankOf(table, ids[i] as number, ids[i + 1] as number)
  for (;;) {
    let best = NO_RANK
    let at = 0
    for (let i = 0; i + 1 < n; i++) {
      const rank = ranks[i] as number
      if (rank < best) {
        best = rank
        at = i
      }
    }
    if (best === NO_RANK) return n
    ids[at] = FIRST_MERGE + best
    n--
    for (let i = at + 1; i < n; i++) {
      ids[i] = ids[i + 1] as number
      ranks[i] = ranks[i + 1] as number
    }
    if (at > 0) ranks[at - 1] = rankOf(table, ids[at - 1] as number, ids[at] as number)
    if (at + 1 < n) ranks[at] = rankOf(table, ids[at] as number, ids[at + 1] as number)
  }
}

/** Ends a list; as a head: no list, and the rank does not wait. */
const NONE = -1
/** As a head: the list is empty by now, but its rank still waits and must not be pushed again. */
const EMPTY = -2
/** In `before`: the place is in no list. */
const UNLISTED = 0x3fffffff

/**
 * A token of n bytes owns n cells of `ids`: the first holds its id, the last (where n > 1) holds -n, so that both neighbours are
 * found without further arrays. A place is the first cell of a pair's left token. `before` of a list's head holds ~rank.
 */
function mergeLong(
  table: PairTable,
  idLength: (id: number) => number,
  heads: Int32Array,
  ids: Int32Array,
  count: number,
): number {
  const after = new Int32Array(count)
  const before = new Int32Array(count).fill(UNLISTED)
  const waiting = createRankHeap()

  const list = (place: number, right: number): void => {
    if (right >= count) return
    const rank = rankOf(table, ids[place] as number, ids[right] as number)
    if (rank === NO_RANK) return
    const head = heads[rank] as number
    if (head === NONE) waiting.push(rank)
    if (head >= 0) before[head] = place
    after[place] = head >= 0 ? head : NONE
    before[place] = ~rank
    heads[rank] = place
  }
  const unlist = (place: number): void => {
    const previous = before[place] as number
    if (previous === UNLISTED) return
    const next = after[place] as number
    if (previous < 0) heads[~previous] = next === NONE ? EMPTY : next
    else after[previous] = next
    if (next !== NONE) before[next] = previous
    before[place] = UNLISTED
  }
  const merge = (place: number, rank: number): void => {
    const right = place + idLength(ids[place] as number)
    const end = right + idLength(ids[right] as number)
    unlist(place)
    unlist(right)
    ids[end - 1] = place - end
    ids[place] = FIRST_MERGE + rank
    if (place > 0) {
      const cell = ids[place - 1] as number
      const left = cell < 0 ? place + cell : place - 1
      unlist(left)
      list(left, place)
    }
    list(place, end)
  }

  for (let i = 0; i + 1 < count; i++) list(i, i + 1)
  for (let rank = waiting.pop(); rank !== undefined; rank = waiting.pop()) {
    const head = heads[rank] as number
    if (head >= 0 && ids[head] === ids[head + idLength(ids[head] as number)]) {
      // Places may overlap ("aaa"): leftmost first, and a place whose token was merged away has left its list.
      for (const place of risingPlaces(head, after)) if (before[place] !== UNLISTED) merge(place, rank)
    } else {
      for (let place = head; place >= 0; place = heads[rank] as number) merge(place, rank)
    }
    heads[rank] = NONE
  }

  let n = 0
  for (let at = 0; at < count;) {
    const id = ids[at] as number
    ids[n++] = id
    at += idLength(id)
  }
  return n
}

/** A list's places from left to right; mostly it has them from right to left. */
function risingPlaces(head: number, after: Int32Array): Int32Array {
  let length = 0
  for (let place = head; place >= 0; place = after[place] as number) length++
  const places = new Int32Array(length)
  let rising = true
  for (let place = head, i = length - 1; place >= 0; place = after[place] as number, i--) {
    places[i] = place
    if (i + 1 < length && place > (places[i + 1] as number)) rising = false
  }
  if (!rising) places.sort()
  return places
}

function createRankHeap(): { push: (rank: number) => void; pop: () => number | undefined } {
  const heap: number[] = []
  return {
    push(rank) {
      let at = heap.length
      heap.push(rank)
      while (at > 0) {
        const parent = (at - 1) >> 1
        if ((heap[parent] as number) <= rank) break
        heap[at] = heap[parent] as number
        at = parent
      }
      heap[at] = rank
    },
    pop() {
      const top = heap[0]
      const last = heap.pop()
      if (last === undefined || heap.length === 0) return top
      let at = 0
      for (;;) {
        let child = at * 2 + 1
        if (child >= heap.length) break
        if (child + 1 < heap.length && (heap[child + 1] as number) < (heap[child] as number)) child++
        if ((heap[child] as number) >= last) break
        heap[at] = heap[child] as number
        at = child
      }
      heap[at] = last
      return top
    },
  }
}
