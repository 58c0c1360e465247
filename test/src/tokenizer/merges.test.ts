import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { createMergeWord, FIRST_MERGE } from '../../../src/tokenizer/merges.ts'
import { buildPairTable, IDS_MAX, NO_RANK, rankOf } from '../../../src/tokenizer/pair-table.ts'

const LETTERS = 3

/** Merges over ids 0..2, each of two ids that exist by then. */
const merges = fc.array(fc.tuple(fc.nat(1000), fc.nat(1000)), { maxLength: 40 }).map((wishes) => {
  const usable = [0, 1, 2]
  const pairs: (readonly [number, number])[] = []
  for (const [a, b] of wishes) {
    const pair = [usable[a % usable.length]!, usable[b % usable.length]!] as const
    if (pairs.some(([x, y]) => x === pair[0] && y === pair[1])) continue
    usable.push(FIRST_MERGE + pairs.length)
    pairs.push(pair)
  }
  return pairs
})

/** Byte-pair encoding by its definition. */
function byDefinition(pairs: readonly (readonly [number, number])[], word: readonly number[]): number[] {
  const ids = [...word]
  for (;;) {
    let best = Infinity
    let at = -1
    for (let i = 0; i + 1 < ids.length; i++) {
      const rank = pairs.findIndex(([a, b]) => a === ids[i] && b === ids[i + 1])
      if (rank >= 0 && rank < best) [best, at] = [rank, i]
    }
    if (at < 0) return ids
    ids.splice(at, 2, FIRST_MERGE + best)
  }
}

function merger(pairs: readonly (readonly [number, number])[], onWork: () => void = () => undefined) {
  const lengths: number[] = []
  const lengthOf = (id: number): number => (id < FIRST_MERGE ? 1 : lengths[id - FIRST_MERGE]!)
  for (const [a, b] of pairs) lengths.push(lengthOf(a) + lengthOf(b))
  const table = buildPairTable(
    Uint32Array.from(pairs, ([a]) => a),
    Uint32Array.from(pairs, ([, b]) => b),
  )
  const counted = (id: number): number => {
    onWork()
    return lengthOf(id)
  }
  const mergeWord = createMergeWord(table, counted, pairs.length)
  return (word: readonly number[]): number[] => {
    const ids = Int32Array.from(word)
    return [...ids.subarray(0, mergeWord(ids, ids.length))]
  }
}

describe('merging a word', () => {
  test.each([
    ['short', 0, 40],
    ['long', 41, 150],
  ])('%s words follow the definition', (_name, minLength, maxLength) => {
    const words = fc.array(fc.nat(LETTERS - 1), { minLength, maxLength })
    fc.assert(
      fc.property(merges, fc.array(words, { minLength: 1, maxLength: 4 }), (pairs, several) => {
        const merge = merger(pairs)
        for (const word of several) expect(merge(word)).toEqual(byDefinition(pairs, word))
      }),
      { numRuns: 400 },
    )
  })

  test('overlapping pairs merge from the left', () => {
    const merge = merger([
      [0, 0],
      [1, FIRST_MERGE],
      [FIRST_MERGE, FIRST_MERGE],
    ])
    for (let length = 0; length < 200; length++) {
      const word = Array.from({ length }, (_, i) => (i % 17 === 0 ? 1 : 0))
      expect(merge(word)).toEqual(
        byDefinition(
          [
            [0, 0],
            [1, FIRST_MERGE],
            [FIRST_MERGE, FIRST_MERGE],
          ],
          word,
        ),
      )
    }
  })

  test('work grows with the length, not with its square', () => {
    const doubling = Array.from(
      { length: 12 },
      (_, i) => [i === 0 ? 0 : 255 + i, i === 0 ? 0 : 255 + i] as const,
    )
    const workOf = (length: number): number => {
      let work = 0
      merger(doubling, () => work++)(Array.from({ length }, () => 0))
      return work
    }
    expect(workOf(200_000)).toBeLessThan(6 * 200_000)
    expect(workOf(200_000) / workOf(20_000)).toBeLessThan(11)
  })
})

describe('the pair table', () => {
  test('tells ids apart that differ in their high bits only', () => {
    for (let right = 0; right < 64; right++) {
      const table = buildPairTable(Uint32Array.of(7), Uint32Array.of(right))
      for (let high = 1; high < 16; high++) expect(rankOf(table, 7, right + (high << 14))).toBe(NO_RANK)
    }
  })

  test('knows every pair and no other', () => {
    const id = fc.integer({ min: 0, max: IDS_MAX - 1 })
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.tuple(id, id), { selector: String, maxLength: 300 }),
        fc.tuple(id, id),
        (pairs, other) => {
          const table = buildPairTable(
            Uint32Array.from(pairs, ([a]) => a),
            Uint32Array.from(pairs, ([, b]) => b),
          )
          for (const [rank, [a, b]] of pairs.entries()) expect(rankOf(table, a, b)).toBe(rank)
          const known = pairs.findIndex((pair) => String(pair) === String(other))
          expect(rankOf(table, ...other)).toBe(known < 0 ? NO_RANK : known)
        },
      ),
    )
  })
})
