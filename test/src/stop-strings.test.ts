import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { StopMatcher } from '../../src/stop-strings.ts'
import { cutText, oddWellFormedText } from './tokenizer/odd-text.ts'

/** The stop string that is complete first; of several that end together, the longest. */
function wholeTextSearch(text: string, stops: readonly string[]): { text: string; stop: string | undefined } {
  let best: { start: number; stop: string } | undefined
  for (const stop of stops) {
    const start = text.indexOf(stop)
    if (start < 0) continue
    const end = start + stop.length
    const bestEnd = best === undefined ? Infinity : best.start + best.stop.length
    if (end < bestEnd || (end === bestEnd && best !== undefined && start < best.start)) best = { start, stop }
  }
  return best === undefined ? { text, stop: undefined } : { text: text.slice(0, best.start), stop: best.stop }
}

const dense = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 60 })
const denseStops = fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 8 }), {
  maxLength: 4,
})
const odd = oddWellFormedText(30)
const oddStops = fc.array(
  oddWellFormedText(3).filter((stop) => stop !== ''),
  { maxLength: 4 },
)

test.each([
  ['few letters', dense, denseStops],
  ['odd text', odd, oddStops],
])('%s: any cutting gives what a search of the whole text gives', (_name, texts, stopLists) => {
  fc.assert(
    fc.property(cutText(texts), stopLists, (increments, stops) => {
      const matcher = new StopMatcher(stops)
      const given = increments.map((increment) => matcher.push(increment)).join('')
      const rest = matcher.flush()
      const expected = wholeTextSearch(increments.join(''), stops)
      expect(matcher.stop).toBe(expected.stop)
      expect(matcher.matched).toBe(expected.stop !== undefined)
      expect(given + rest).toBe(expected.text)
      expect(matcher.matched ? rest : '').toBe('')
    }),
    { numRuns: 3000 },
  )
})

test('a stop string from the text itself is found', () => {
  fc.assert(
    fc.property(
      odd,
      odd.filter((stop) => stop !== ''),
      odd,
      (before, stop, after) => {
        const matcher = new StopMatcher([stop])
        matcher.push(before + stop + after)
        expect(matcher.stop).toBe(stop)
      },
    ),
  )
})

test('holds back the longest end that could begin a stop string, and no more', () => {
  fc.assert(
    fc.property(cutText(dense), denseStops, (increments, stops) => {
      const matcher = new StopMatcher(stops)
      let given = ''
      let seen = ''
      for (const increment of increments) {
        given += matcher.push(increment)
        seen += increment
        if (matcher.matched) return
        const open = stops.flatMap((stop) =>
          Array.from({ length: stop.length }, (_, n) => (seen.endsWith(stop.slice(0, n)) ? n : 0)),
        )
        expect(seen.length - given.length).toBe(Math.max(0, ...open))
      }
    }),
    { numRuns: 2000 },
  )
})

test.each([
  [['\n\n'], ['one', '\n', 'two\n', '\nthree'], 'one\ntwo', '\n\n'],
  [['END'], ['E', 'N', 'E', 'N', 'D', 'E'], 'EN', 'END'],
  [['aab'], ['aaa', 'ab'], 'aa', 'aab'],
  [['abcd', 'bc'], ['abcd'], 'a', 'bc'],
  [['cd', 'bcd', 'abcd'], ['xab', 'cd'], 'x', 'abcd'],
  [['Zebra'], ['no stripes'], 'no stripes', undefined],
])('%j in %j', (stops, increments, text, stop) => {
  const matcher = new StopMatcher(stops)
  expect(increments.map((increment) => matcher.push(increment)).join('') + matcher.flush()).toBe(text)
  expect(matcher.stop).toBe(stop)
})

test('gives nothing after a match', () => {
  const matcher = new StopMatcher(['x'])
  expect([matcher.push('axb'), matcher.push('c'), matcher.flush()]).toEqual(['a', '', ''])
})

test('without stop strings nothing is held back', () => {
  const matcher = new StopMatcher([])
  expect([matcher.push('abc'), matcher.flush()]).toEqual(['abc', ''])
})

test('half a character is no stop string', () => {
  const matcher = new StopMatcher(['\ud83d'])
  expect(matcher.push('a👋')).toBe('a👋')
  expect(() => new StopMatcher([''])).toThrow(RangeError)
})

test('a stop string that almost repeats costs a fixed number of steps a character', () => {
  const matcher = new StopMatcher([`${'a'.repeat(50_000)}b`])
  const text = 'a'.repeat(200_000)
  expect(matcher.push(text) + matcher.flush() === text).toBe(true)
})
