/**
 * Character classes, as the pre-tokenizer's pattern and the normalizer need them, in pages of 256 code points that are
 * filled from the engine's own Unicode tables when first met (a page costs some 20 us, all of CJK 2 ms, once an isolate).
 *
 * SPACE is Unicode's White_Space, which JavaScript's \s is not: \s lacks U+0085 and adds U+FEFF.
 * Every white space and newline is one UTF-16 unit.
 */
export const OTHER = 0
export const LETTER = 1
export const NUMBER = 2
/** White space other than CR and LF. */
export const SPACE = 3
/** CR or LF. */
export const NEWLINE = 4
/** \p{M}: to the pattern the same as OTHER, to the normalizer what makes long runs slow. */
export const MARK = 5

const classes: readonly (readonly [pattern: RegExp, value: number])[] = [
  [/\p{L}+/gu, LETTER],
  [/\p{N}+/gu, NUMBER],
  [/\p{M}+/gu, MARK],
  [/\p{White_Space}+/gu, SPACE],
  [/[\r\n]+/gu, NEWLINE],
]
const SURROGATES_FIRST = 0xd8
const SURROGATES_LAST = 0xdf
const pages: (Uint8Array | undefined)[] = Array.from({ length: 0x1100 }, () => undefined)

export function classOf(codePoint: number): number {
  const page = pages[codePoint >> 8] ?? fillPage(codePoint >> 8)
  return page[codePoint & 255] as number
}

/** Classes of U+0000..U+00FF, for loops that meet little else. */
export const latin: Uint8Array = fillPage(0)

function fillPage(number: number): Uint8Array {
  const page = new Uint8Array(256)
  pages[number] = page
  if (number >= SURROGATES_FIRST && number <= SURROGATES_LAST) return page
  const first = number << 8
  const text = String.fromCodePoint(...Array.from({ length: 256 }, (_, i) => first + i))
  const unitsEach = text.length / 256
  for (const [pattern, value] of classes) {
    for (const match of text.matchAll(pattern)) {
      const from = match.index / unitsEach
      page.fill(value, from, from + match[0].length / unitsEach)
    }
  }
  return page
}
