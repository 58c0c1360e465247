/** Sets of code points as sorted ranges. Surrogates, which no text holds, are in none of them. */
import type { Range } from './ebnf.ts'

const last_code_point = 0x10ffff
const surrogates: Range = [0xd800, 0xdfff]

export const single = (character: string): Range => {
  const codePoint = character.codePointAt(0) ?? 0
  return [codePoint, codePoint]
}

export function union(ranges: readonly Range[]): Range[] {
  const out: Range[] = []
  for (const [first, last] of ranges.toSorted((a, b) => a[0] - b[0])) {
    const before = out.at(-1)
    if (before !== undefined && first <= before[1] + 1) before[1] = Math.max(before[1], last)
    else out.push([first, last])
  }
  return withoutSurrogates(out)
}

export function complement(ranges: readonly Range[]): Range[] {
  const out: Range[] = []
  let next = 0
  for (const [first, last] of union(ranges)) {
    if (first > next) out.push([next, first - 1])
    next = last + 1
  }
  if (next <= last_code_point) out.push([next, last_code_point])
  return withoutSurrogates(out)
}

export const subtract = (from: readonly Range[], what: readonly Range[]): Range[] =>
  complement([...complement(from), ...what])

export const contains = (ranges: readonly Range[], character: string): boolean => {
  const [codePoint] = single(character)
  return ranges.some(([first, last]) => first <= codePoint && codePoint <= last)
}

function withoutSurrogates(ranges: Range[]): Range[] {
  return ranges.flatMap(([first, last]): Range[] => {
    const parts: Range[] = [
      [first, Math.min(last, surrogates[0] - 1)],
      [Math.max(first, surrogates[1] + 1), last],
    ]
    return parts.filter(([from, to]) => from <= to)
  })
}
