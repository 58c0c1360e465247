import * as fc from 'fast-check'
import { afterEach, expect, test, vi } from 'vitest'
import { MARKS_MAX, normalize } from '../../../src/tokenizer/normalize.ts'
import { oddText } from './odd-text.ts'

afterEach(() => void vi.restoreAllMocks())

test('is NFC of the well-formed text', () => {
  fc.assert(
    fc.property(oddText(100), (text) => {
      expect(normalize(text)).toBe(text.toWellFormed().normalize('NFC'))
    }),
    { numRuns: 1000 },
  )
})

const marks = fc.array(fc.constantFrom('\u0301', '\u0316', '\u0345', '\u0334', '\u093c', '\u{1d165}'), {
  minLength: MARKS_MAX - 10,
  maxLength: MARKS_MAX * 3,
})

test('runs up to the limit are exact, longer ones stay canonically equivalent', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('a', 'é', '각', '', '👋'),
      marks,
      fc.constantFrom('', 'z', '\u1161'),
      (base, run, after) => {
        const text = base + run.join('') + after
        const nfc = text.normalize('NFC')
        expect(normalize(text) === nfc || run.length > MARKS_MAX).toBe(true)
        expect(normalize(text).normalize('NFC')).toBe(nfc)
      },
    ),
  )
})

test('never hands a longer run to the engine, whose work is its square', () => {
  let longest = 0
  vi.spyOn(String.prototype, 'normalize').mockImplementation(function (this: string) {
    for (const [run] of this.matchAll(/\p{M}+/gu)) longest = Math.max(longest, Array.from(run).length)
    return ''
  })
  for (const run of ['\u0301\u0316', '\u{1d165}', '\u0344', '\u0301 ', '\u0301a\u0316'])
    normalize(`a${run.repeat(5000)}`)
  expect(longest).toBe(MARKS_MAX)
})
