import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { classOf, LETTER, MARK, NEWLINE, NUMBER, OTHER, SPACE } from '../../../src/tokenizer/characters.ts'
import { QWEN2_PATTERN, wordEnd } from '../../../src/tokenizer/split.ts'
import { oddWellFormedText } from './odd-text.ts'

/** Qwen2's pattern in JavaScript: White_Space for \s, and the contractions fold ASCII only. */
const pattern = new RegExp(
  QWEN2_PATTERN.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?:[sStTmMdD]|[rRvV][eE]|[lL][lL])")
    .replaceAll('\\s', '\\p{White_Space}')
    .replaceAll('\\S', '\\P{White_Space}'),
  'gu',
)

function words(text: string): string[] {
  const list: string[] = []
  for (let start = 0; start < text.length;) {
    const end = wordEnd(text, start)
    list.push(text.slice(start, end))
    start = end
  }
  return list
}

test('splits as the pattern does', () => {
  fc.assert(
    fc.property(oddWellFormedText(100), (text) => {
      expect(words(text)).toEqual(text.match(pattern) ?? [])
    }),
    { numRuns: 3000 },
  )
})

test('splits every short string of the characters that matter as the pattern does', () => {
  const characters = [
    "'",
    's',
    'L',
    'e',
    'r',
    ' ',
    '\t',
    '\n',
    '\r',
    '7',
    '!',
    '\u0085',
    '\ufeff',
    '\u0301',
    '𝔘',
    '🙂',
    '𝟘',
  ]
  const check = (text: string, left: number): void => {
    expect(words(text).join('|')).toBe((text.match(pattern) ?? []).join('|'))
    if (left > 0) for (const character of characters) check(text + character, left - 1)
  }
  check('', 3)
})

test('classes follow Unicode', () => {
  const classes: [RegExp, number][] = [
    [/[\r\n]/, NEWLINE],
    [/\p{White_Space}/u, SPACE],
    [/\p{L}/u, LETTER],
    [/\p{N}/u, NUMBER],
    [/\p{M}/u, MARK],
  ]
  let wrong = 0
  for (let code = 0; code < 0x110000; code++) {
    const character = String.fromCodePoint(code)
    const expected = classes.find(([regex]) => regex.test(character))?.[1] ?? OTHER
    if (classOf(code) !== expected) wrong++
  }
  expect(wrong).toBe(0)
})

test.each(['a', ' ', '\n ', ' \n', "'", '!', '7', ' a', '\t!', "'s"])(
  '%j repeated is read a fixed number of times',
  (piece) => {
    const text = piece.repeat(10_000)
    let reads = 0
    const counting = {
      length: text.length,
      charCodeAt: (i: number) => (reads++, text.charCodeAt(i)),
    } as unknown as string
    for (let start = 0; start < text.length;) start = wordEnd(counting, start)
    expect(reads).toBeLessThan(12 * text.length)
  },
)
