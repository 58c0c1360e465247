/** Text as nobody writes it: every script, marks, white space of all kinds, runs, lone surrogates, names of control tokens. */
import * as fc from 'fast-check'

const pools = [
  'abcdefghij ABC',
  "'stremvdlSTREMVDL'",
  '\t\n\r  \u0085\u00a0\ufeff\u180e\u2028\u3000\u000b\u000c\u001c',
  '0123٣४Ⅷ½五１',
  '你好世界、。한국어ㄱㅏ각\u1100\u1161\u11a8',
  'a\u0301\u0316\u0345\u093c\u09be\u200d\ufe0f\u20e3\u0344',
  'éЖяאָעשׁلَّกำ\u212b\u1e9b',
  '👨\u200d👩🏳️🌈🇩🇪𝔘𝟘𐐷𠮷',
  '{}[]();//==\\"<|>_-',
  'ſK\u212a\u0131ßŉ',
]
const pieces = [
  '<|im_start|>',
  '<|im_end|>',
  '<|endoftext|>',
  'system\n',
  '\n\n',
  "'re",
  ' the',
  'a'.repeat(70),
  'ab'.repeat(40),
  '\ud83d',
  '\udc00',
]

const unit = fc.oneof(
  ...pools.map((pool) => fc.constantFrom(...Array.from(pool))),
  fc.constantFrom(...pieces),
  fc.integer({ min: 0, max: 0x10ffff }).map((code) => String.fromCodePoint(code)),
)
const run = fc.tuple(unit, fc.integer({ min: 1, max: 60 })).map(([text, times]) => text.repeat(times))

export const oddText = (maxLength = 60): fc.Arbitrary<string> =>
  fc
    .array(fc.oneof({ weight: 12, arbitrary: unit }, { weight: 1, arbitrary: run }), { maxLength })
    .map((list) => list.join(''))

/** The same without lone surrogates. */
export const oddWellFormedText = (maxLength?: number): fc.Arbitrary<string> =>
  oddText(maxLength).map((text) => text.toWellFormed())

/** A text cut at random places between UTF-16 units. */
export const cutText = (text: fc.Arbitrary<string>): fc.Arbitrary<string[]> =>
  text.chain((whole) =>
    fc.array(fc.integer({ min: 0, max: whole.length }), { maxLength: 12 }).map((places) => {
      const cuts = [0, ...places.toSorted((a, b) => a - b), whole.length]
      return cuts.slice(1).map((to, i) => whole.slice(cuts[i], to))
    }),
  )
