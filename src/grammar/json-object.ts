/** Objects whose properties come in the order of their schema, each at most once, with others behind them. */
import { complement, single, subtract } from './character-set.ts'
import {
  characters,
  choice,
  empty,
  literal,
  optional,
  repeat,
  sequence,
  type Expr,
  type Grammar,
  type Range,
} from './ebnf.ts'
import { pair } from './json-text.ts'

export interface Property {
  name: string
  value: Expr
  required: boolean
}

/** @param others what further properties hold; null: there are none. */
export function objectOf(grammar: Grammar, hint: string, properties: Property[], others: Expr | null): Expr {
  const comma = literal(', ')
  // What may follow property i; `begun` when another one stands before.
  const further =
    others === null
      ? null
      : pair(
          otherKey(
            grammar,
            properties.map(({ name }) => name),
          ),
          others,
        )
  let begun: Expr = further === null ? empty : repeat(sequence(comma, further), 0, null)
  let first: Expr = further === null ? empty : optional(sequence(further, begun))
  for (const { name, value, required } of properties.toReversed()) {
    const entry = pair(literal(JSON.stringify(name)), value)
    const rest = grammar.add(`${hint}_rest`, begun)
    const withIt = sequence(entry, rest)
    first = required ? withIt : choice(withIt, grammar.add(`${hint}_first`, first))
    begun = required ? sequence(comma, withIt) : choice(sequence(comma, withIt), rest)
  }
  return sequence(literal('{'), first, literal('}'))
}

const keyRanges = subtract(complement([]), [[0, 0x1f], single('"'), single('\\')])

/** A key that is none of `names`: a property given twice would undo the first. Written without escapes, so that equal keys look equal. */
function otherKey(grammar: Grammar, names: string[]): Expr {
  const anything = repeat(characters(keyRanges), 0, null)
  /** What may follow a beginning that some of `names` share, given what is left of each. */
  const differs = (rests: string[][]): Expr => {
    const byFirst = new Map<string, string[][]>()
    for (const [character = '', ...rest] of rests.filter(({ length }) => length > 0))
      byFirst.set(character, [...(byFirst.get(character) ?? []), rest])
    const known: Range[] = [...byFirst.keys()].map(single)
    const parts: Expr[] = [sequence(characters(subtract(keyRanges, known)), anything)]
    for (const [character, further] of byFirst)
      parts.push(sequence(literal(character), grammar.add('other_key', differs(further))))
    const isName = rests.some(({ length }) => length === 0)
    return isName ? choice(...parts) : choice(empty, ...parts)
  }
  // A name that needs an escape cannot be written by a key that has none.
  const plain = names.filter((name) => JSON.stringify(name) === `"${name}"`)
  return sequence(literal('"'), differs(plain.map((name) => Array.from(name))), literal('"'))
}
