/**
 * Ranges of numbers as digits. At most 15 digits, so that what is generated is exact in a double. With a fraction in a
 * bound the range is covered as far as its own number of decimals: never a number outside, though not each one inside.
 */
import {
  characters,
  choice,
  GrammarError,
  literal,
  never,
  optional,
  repeat,
  sequence,
  type Expr,
} from './ebnf.ts'

export interface Bounds {
  min?: number
  max?: number
  /** The bound itself is outside. */
  minOpen?: boolean
  maxOpen?: boolean
}

const digits_max = 15
const decimals_max = 9
const number_max = 10 ** digits_max - 1

const digit = characters([[0x30, 0x39]])
const nonZero = characters([[0x31, 0x39]])
const anyNatural = choice(literal('0'), sequence(nonZero, repeat(digit, 0, digits_max - 1)))
const anyFraction = sequence(literal('.'), repeat(digit, 1, digits_max))
const minus = literal('-')

export const anyInteger = sequence(optional(minus), anyNatural)
export const anyNumber = sequence(
  optional(minus),
  anyNatural,
  optional(anyFraction),
  optional(
    sequence(
      characters([
        [0x45, 0x45],
        [0x65, 0x65],
      ]),
      optional(
        characters([
          [0x2b, 0x2b],
          [0x2d, 0x2d],
        ]),
      ),
      repeat(digit, 1, 2),
    ),
  ),
)

export function integerRange({ min, max, minOpen = false, maxOpen = false }: Bounds): Expr {
  const low = min === undefined ? -number_max : minOpen ? Math.floor(min) + 1 : Math.ceil(min)
  const high = max === undefined ? number_max : maxOpen ? Math.ceil(max) - 1 : Math.floor(max)
  refuseLarge(low, high)
  return signed(low, high, naturals)
}

export function numberRange(bounds: Bounds): Expr {
  const { min = -number_max, max = number_max, minOpen = false, maxOpen = false } = bounds
  refuseLarge(min, max)
  const parts: Expr[] = []
  if (max > 0 || (max === 0 && !maxOpen))
    parts.push(
      magnitudes(
        min > 0 ? { min, max, minOpen, maxOpen } : { min: 0, max, minOpen: min === 0 && minOpen, maxOpen },
      ),
    )
  if (min < 0)
    parts.push(
      sequence(
        minus,
        magnitudes({ min: Math.max(0, -max), max: -min, minOpen: max >= 0 || maxOpen, maxOpen: minOpen }),
      ),
    )
  return choice(...parts)
}

function refuseLarge(low: number, high: number): void {
  for (const bound of [low, high])
    if (Math.abs(bound) > number_max)
      throw new GrammarError(`bounds beyond ${digits_max} digits are not served`)
}

/** [low, high] of whole numbers, from what writes those that are not negative. */
function signed(low: number, high: number, natural: (low: number, high: number) => Expr): Expr {
  const parts: Expr[] = []
  if (low < 0 && low <= high) parts.push(sequence(minus, natural(Math.max(1, -high), -low)))
  if (high >= 0) parts.push(natural(Math.max(0, low), high))
  return choice(...parts)
}

/**
 * 0 <= low; without leading zeros. All numbers of the lengths between are one part: of a handful of parts that begin
 * alike, one a length, the compiler makes an automaton that takes more than they say (0.1.27, measured).
 */
function naturals(low: number, high: number): Expr {
  if (low > high) return never
  const [shortest, longest] = [String(low).length, String(high).length]
  if (shortest === longest) return sameLength(String(low), String(high))
  const parts: Expr[] = []
  const isWhole = (from: number, length: number) => from === (length === 1 ? 1 : 10 ** (length - 1))
  const first = isWhole(low, shortest) ? shortest : shortest + 1
  const last = high === 10 ** longest - 1 ? longest : longest - 1
  if (first !== shortest) parts.push(sameLength(String(low), '9'.repeat(shortest)))
  if (first <= last) parts.push(sequence(nonZero, repeat(digit, first - 1, last - 1)))
  if (last !== longest) parts.push(sameLength(String(10 ** (longest - 1)), String(high)))
  return choice(...parts)
}

/** All strings of digits between two of one length. */
function sameLength(from: string, to: string): Expr {
  if (from === to) return literal(from)
  const first = from[0] ?? '0'
  const last = to[0] ?? '0'
  const rest = from.length - 1
  if (first === last) return sequence(literal(first), sameLength(from.slice(1), to.slice(1)))
  if (rest === 0) return between(first, last)
  const parts: Expr[] = []
  const low = /^0*$/.test(from.slice(1)) ? first : next(first, 1)
  const high = /^9*$/.test(to.slice(1)) ? last : next(last, -1)
  if (low !== first) parts.push(sequence(literal(first), sameLength(from.slice(1), '9'.repeat(rest))))
  if (low <= high) parts.push(sequence(between(low, high), repeat(digit, rest, rest)))
  if (high !== last) parts.push(sequence(literal(last), sameLength('0'.repeat(rest), to.slice(1))))
  return choice(...parts)
}

const next = (character: string, by: number) => String.fromCharCode(character.charCodeAt(0) + by)
const between = (first: string, last: string): Expr => characters([[first.charCodeAt(0), last.charCodeAt(0)]])

/** Numbers that are not negative: the whole ones with any fraction, and at the two ends fractions that stay inside. */
function magnitudes({ min, max, minOpen, maxOpen }: Required<Bounds>): Expr {
  if (min > max || (min === max && (minOpen || maxOpen))) return never
  const parts: Expr[] = []
  const low = Math.ceil(min)
  const high = Math.floor(max)
  // Whole numbers that a fraction does not lead out of the range.
  const lowWhole = low === min && minOpen ? low + 1 : low
  const highWhole = high - 1
  if (lowWhole <= highWhole) parts.push(sequence(naturals(lowWhole, highWhole), optional(anyFraction)))
  if (high >= lowWhole && !(high === max && maxOpen)) parts.push(naturals(high, high))

  const scale = 10 ** Math.max(1, decimals(min), decimals(max))
  const unit = (value: number) => Math.round(value * scale)
  const places = String(scale).length - 1
  const from = unit(min) + (minOpen ? 1 : 0)
  const to = unit(max) - (maxOpen ? 1 : 0)
  for (const whole of new Set([Math.floor(min), high])) {
    // Covered above where its fractions are free.
    if (whole >= lowWhole && whole <= highWhole) continue
    const first = Math.max(from, whole * scale) - whole * scale
    const last = Math.min(to, whole * scale + scale - 1) - whole * scale
    if (first > last) continue
    const pad = (value: number) => String(value).padStart(places, '0')
    parts.push(sequence(literal(`${whole}.`), sameLength(pad(first), pad(last))))
  }
  return parts.length === 0 ? never : choice(...parts)
}

function decimals(value: number): number {
  const text = String(value)
  if (text.includes('e')) throw new GrammarError(`the bound ${text} has too many decimals`)
  const count = text.split('.')[1]?.length ?? 0
  if (count > decimals_max) throw new GrammarError(`the bound ${text} has too many decimals`)
  return count
}
