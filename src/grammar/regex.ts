/**
 * A regular expression (ECMAScript) as a grammar of the texts that match it whole. Within a JSON string each character
 * is written as JSON wants it: quotes and backslashes escaped, control characters only where the pattern names them.
 * Refused by name: look-around, back references, Unicode properties, anchors in the middle.
 */
import { RegExpParser, type AST } from '@eslint-community/regexpp'
import { complement, contains, single, subtract, union } from './character-set.ts'
import {
  characters,
  choice,
  empty,
  GrammarError,
  literal,
  never,
  repeat,
  sequence,
  type Expr,
  type Range,
} from './ebnf.ts'

const pattern_chars_max = 4096
const repeat_max = 1000
const depth_max = 50

const digits: Range[] = [[0x30, 0x39]]
const word = union([...digits, [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]])
/** What is white space everywhere; JavaScript's \s has some twenty rarer ones, which are not generated. */
const space = union(Array.from('\t\n\r ', single))
const newline = union(Array.from('\n\r', single))
const control: Range = [0, 0x1f]

/** JSON's short escapes, by what they stand for. */
const escapes = new Map([
  ['"', '\\"'],
  ['\\', '\\\\'],
  ['\b', '\\b'],
  ['\f', '\\f'],
  ['\n', '\\n'],
  ['\r', '\\r'],
  ['\t', '\\t'],
])

/** @param inJson the text stands between the quotes of a JSON string. */
export function regexGrammar(pattern: string, inJson: boolean): Expr {
  if (pattern.length > pattern_chars_max)
    throw new GrammarError(`the pattern has ${pattern.length} characters; ${pattern_chars_max} are served`)
  return alternatives(parse(pattern).alternatives, { inJson, start: true, end: true, depth: 0 })
}

/** Characters of a JSON string other than these, one each. */
export const jsonCharacters = (ranges: readonly Range[], named = true): Expr => {
  const plain = subtract(ranges, [control, single('"'), single('\\')])
  const escaped = [...escapes].filter(
    ([character]) => contains(ranges, character) && (named || character === '"' || character === '\\'),
  )
  const parts = escaped.map(([, escape]) => literal(escape))
  return plain.length === 0 ? choice(...parts) : choice(characters(plain), ...parts)
}

interface Place {
  inJson: boolean
  /** Nothing comes before, or after: an anchor says nothing new. */
  start: boolean
  end: boolean
  depth: number
}

function parse(pattern: string): AST.Pattern {
  const parser = new RegExpParser({ ecmaVersion: 2025 })
  try {
    return parser.parsePattern(pattern, 0, pattern.length, { unicode: true })
  } catch (strict) {
    // Without the u flag more is allowed, such as `\-`.
    try {
      return parser.parsePattern(pattern, 0, pattern.length, { unicode: false })
    } catch {
      throw new GrammarError(strict instanceof Error ? strict.message : 'the pattern cannot be read')
    }
  }
}

function alternatives(all: readonly AST.Alternative[], place: Place): Expr {
  if (place.depth > depth_max) throw new GrammarError(`the pattern nests deeper than ${depth_max} levels`)
  return choice(
    ...all.map(({ elements }) => {
      const of = (element: AST.Element, at: number) =>
        converted(element, {
          ...place,
          start: place.start && elements.slice(0, at).every(isAnchor),
          end: place.end && elements.slice(at + 1).every(isAnchor),
          depth: place.depth + 1,
        })
      return sequence(...elements.map(of))
    }),
  )
}

const isAnchor = (element: AST.Element) => element.type === 'Assertion'

function converted(element: AST.Element, place: Place): Expr {
  switch (element.type) {
    case 'Character':
      return one([[element.value, element.value]], true, place)
    case 'CharacterSet':
      return one(setOf(element), !isOpen(element), place)
    case 'CharacterClass': {
      const ranges = element.elements.flatMap(memberRanges)
      return one(element.negate ? complement(ranges) : union(ranges), !element.negate, place)
    }
    case 'Group':
      if (element.modifiers) throw new GrammarError(`'${element.raw}': modifiers are not served`)
      return alternatives(element.alternatives, place)
    case 'CapturingGroup':
      return alternatives(element.alternatives, place)
    case 'Quantifier': {
      const { min } = element
      const max = Number.isFinite(element.max) ? element.max : null
      if (Math.max(min, max ?? 0) > repeat_max)
        throw new GrammarError(`'${element.raw}' repeats more than ${repeat_max} times`)
      const inner = { ...place, start: false, end: false }
      return max === 0 ? empty : repeat(converted(element.element, inner), min, max)
    }
    case 'Assertion':
      if (element.kind === 'start' && place.start) return empty
      if (element.kind === 'end' && place.end) return empty
      throw new GrammarError(
        element.kind === 'start' || element.kind === 'end'
          ? `'${element.raw}' within the pattern is not served`
          : `'${element.raw}': look-around and word boundaries are not served`,
      )
    case 'Backreference':
    case 'ExpressionCharacterClass':
      throw new GrammarError(`'${element.raw}' is not served`)
  }
}

/** @param named the pattern spells these out, so control characters among them are meant. */
function one(ranges: Range[], named: boolean, { inJson }: Place): Expr {
  if (ranges.length === 0) return never
  if (inJson) return jsonCharacters(ranges, named)
  const usual = named
    ? ranges
    : subtract(ranges, [
        [0, 8],
        [0xb, 0xc],
        [0xe, 0x1f],
        [0x7f, 0x7f],
      ])
  return usual.length === 0 ? never : characters(usual)
}

/** `.` and negated sets: nearly everything, so what they would rarely mean is left out. */
const isOpen = (set: AST.CharacterSet) => set.kind === 'any' || set.negate

function setOf(set: AST.CharacterSet): Range[] {
  if (set.kind === 'any') return complement(newline)
  if (set.kind === 'property') throw new GrammarError(`'${set.raw}': Unicode properties are not served`)
  const ranges = set.kind === 'digit' ? digits : set.kind === 'word' ? word : space
  return set.negate ? complement(ranges) : ranges
}

function memberRanges(member: AST.CharacterClassElement): Range[] {
  switch (member.type) {
    case 'Character':
      return [[member.value, member.value]]
    case 'CharacterClassRange':
      return [[member.min.value, member.max.value]]
    case 'CharacterSet':
      return setOf(member)
    case 'CharacterClass':
    case 'ClassStringDisjunction':
    case 'ExpressionCharacterClass':
      throw new GrammarError(`'${member.raw}' is not served`)
  }
}
