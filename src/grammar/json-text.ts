/**
 * JSON as it is generated: on one line, `, ` and `: ` between things, as Python's json.dumps writes it and models have
 * seen most. One form for one value: no tokens go into layout, and a model cannot fill its answer with white space.
 */
import { complement, single, subtract } from './character-set.ts'
import {
  characters,
  choice,
  literal,
  optional,
  repeat,
  rule,
  sequence,
  type Expr,
  type Grammar,
} from './ebnf.ts'
import { anyNumber } from './json-numbers.ts'

const plain = characters(subtract(complement([]), [[0, 0x1f], single('"'), single('\\')]))
const escape = sequence(
  literal('\\'),
  characters(Array.from('"/\\bfnrt', single).toSorted((a, b) => a[0] - b[0])),
)
const quote = literal('"')

/** One loop of characters in one rule: what each token may do is then known when the grammar is compiled. */
export const anyString: Expr = sequence(quote, repeat(choice(plain, escape), 0, null), quote)

/** @param min, max Unicode characters; null: no limit. */
export const stringOfLength = (min: number, max: number | null): Expr =>
  sequence(quote, repeat(choice(plain, escape), min, max), quote)

export const quotedText = (content: Expr): Expr => sequence(quote, content, quote)

/** A value as a literal. */
export function dumps(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(dumps).join(', ')}]`
  if (typeof value === 'object' && value !== null) {
    const pairs = Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${dumps(each)}`)
    return `{${pairs.join(', ')}}`
  }
  return JSON.stringify(value)
}

export const list = (item: Expr): Expr =>
  sequence(
    literal('['),
    optional(sequence(item, repeat(sequence(literal(', '), item), 0, null))),
    literal(']'),
  )

export const pair = (key: Expr, value: Expr): Expr => sequence(key, literal(': '), value)

/** Rules for any JSON value, made once in a grammar. */
export function anyJson(grammar: Grammar): { value: Expr; object: Expr; array: Expr } {
  const name = 'json_value'
  const value = rule(name)
  if (!grammar.rules.has(name)) {
    const entry = pair(anyString, value)
    grammar.rules.set(
      'json_object',
      sequence(
        literal('{'),
        optional(sequence(entry, repeat(sequence(literal(', '), entry), 0, null))),
        literal('}'),
      ),
    )
    grammar.rules.set('json_array', list(value))
    grammar.rules.set('json_string', anyString)
    grammar.rules.set('json_number', anyNumber)
    grammar.rules.set(
      name,
      choice(
        rule('json_object'),
        rule('json_array'),
        rule('json_string'),
        rule('json_number'),
        literal('true'),
        literal('false'),
        literal('null'),
      ),
    )
  }
  return { value, object: rule('json_object'), array: rule('json_array') }
}
