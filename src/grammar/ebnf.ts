/**
 * Context-free grammars over Unicode text: built as expressions and named rules, written in the EBNF that xgrammar reads
 * (https://xgrammar.mlc.ai/docs/tutorials/ebnf_guided_generation.html). What can never end is taken out before, so that
 * no generation is led where it cannot come back from.
 */
export type Expr =
  | { type: 'literal'; text: string }
  /** One code point of sorted ranges that do not touch, both ends included. */
  | { type: 'characters'; ranges: Range[] }
  | { type: 'sequence'; items: Expr[] }
  /** Of no items: nothing matches. */
  | { type: 'choice'; items: Expr[] }
  /** @property max null: without end. */
  | { type: 'repeat'; item: Expr; min: number; max: number | null }
  | { type: 'rule'; name: string }
  /** Any text; after each trigger its rule. */
  | { type: 'dispatch'; triggers: { text: string; rule: string }[]; again: boolean }

export type Range = [first: number, last: number]

export interface WrittenGrammar {
  /** EBNF. */
  text: string
  /** What compiling it costs beyond the usual: for each, a look at the whole vocabulary. */
  counted: number
}

/** A grammar that cannot be served; the message names what is in the way and where. */
export class GrammarError extends Error {
  override name = 'GrammarError'
}

export const literal = (text: string): Expr => ({ type: 'literal', text })
export const characters = (ranges: Range[]): Expr => ({ type: 'characters', ranges })
export const sequence = (...items: Expr[]): Expr => ({ type: 'sequence', items })
export const choice = (...items: Expr[]): Expr =>
  items.length === 1 && items[0] !== undefined ? items[0] : { type: 'choice', items }
export const repeat = (item: Expr, min: number, max: number | null): Expr => ({
  type: 'repeat',
  item,
  min,
  max,
})
export const optional = (item: Expr): Expr => repeat(item, 0, 1)
export const rule = (name: string): Expr => ({ type: 'rule', name })
export const never: Expr = { type: 'choice', items: [] }
export const empty: Expr = literal('')

const text_max = 1024 * 1024
/** Repetitions multiply; each costs the compiler a state. */
const states_max = 20_000
const last_ascii = 0x7f
/** Code points above, surrogates left out. */
const characters_beyond = 0x110000 - 0x80 - 0x800
const written_out_max = 256

export class Grammar {
  readonly rules = new Map<string, Expr>()

  /** A new rule; its name is made from `hint`. */
  add(hint: string, expr: Expr): Expr {
    const name = this.reserve(hint)
    this.rules.set(name, expr)
    return rule(name)
  }

  /** A name whose rule is set later: a rule may mention itself. */
  reserve(hint: string): string {
    const name = `r${this.rules.size}_${hint.replaceAll(/\W/g, '_').slice(0, 32)}`
    this.rules.set(name, never)
    return name
  }

  /** EBNF with `root`; throws GrammarError where nothing that ends can match, or where it is too large. */
  write(root: Expr): WrittenGrammar {
    const rules = new Map([...this.rules, ['root', root]])
    const states = [...rules.values()].reduce((sum, expr) => sum + statesOf(expr), 0)
    if (states > states_max)
      throw new GrammarError(`its repetitions unfold to ${states} parts; ${states_max} are served`)
    const ending = rulesThatEnd(rules)
    if (!ending.has('root')) throw new GrammarError('no finite text can satisfy it')
    const lines: string[] = []
    for (const [name, expr] of rules)
      if (ending.has(name)) lines.push(`${name} ::= ${print(pruned(expr, ending))}`)
    const text = `${lines.join('\n')}\n`
    if (text.length > text_max) throw new GrammarError('it is too large once written out')
    const counted = [...rules.values()].reduce((sum, expr) => sum + countedOf(expr, 1), 0)
    return { text, counted }
  }
}

/** Steps of repetitions that count characters of nearly any kind, such as a string's length. */
function countedOf(expr: Expr, times: number): number {
  switch (expr.type) {
    case 'sequence':
    case 'choice':
      return expr.items.reduce((sum, item) => sum + countedOf(item, times), 0)
    case 'repeat':
      return countedOf(expr.item, times * Math.max(1, expr.max ?? expr.min))
    case 'characters':
      return times > 1 && expr.ranges.some(([, last]) => last > last_ascii) ? times : 0
    case 'literal':
    case 'rule':
    case 'dispatch':
      return 0
  }
}

function statesOf(expr: Expr): number {
  switch (expr.type) {
    case 'sequence':
    case 'choice':
      return expr.items.reduce((sum, item) => sum + statesOf(item), 1)
    case 'repeat':
      return 1 + statesOf(expr.item) * Math.max(1, expr.max ?? expr.min + 1)
    case 'literal':
    case 'characters':
    case 'rule':
    case 'dispatch':
      return 1
  }
}

/** The least fixed point: a rule ends if it can do so by rules that end. */
function rulesThatEnd(rules: Map<string, Expr>): Set<string> {
  const ending = new Set<string>()
  for (let before = -1; before !== ending.size;) {
    before = ending.size
    for (const [name, expr] of rules) if (!ending.has(name) && ends(expr, ending)) ending.add(name)
  }
  return ending
}

function ends(expr: Expr, ending: Set<string>): boolean {
  switch (expr.type) {
    case 'literal':
    case 'dispatch':
      return true
    case 'characters':
      return expr.ranges.length > 0
    case 'sequence':
      return expr.items.every((item) => ends(item, ending))
    case 'choice':
      return expr.items.some((item) => ends(item, ending))
    case 'repeat':
      return expr.min === 0 || (expr.max !== 0 && ends(expr.item, ending))
    case 'rule':
      return ending.has(expr.name)
  }
}

function pruned(expr: Expr, ending: Set<string>): Expr {
  switch (expr.type) {
    case 'sequence':
      return sequence(...expr.items.map((item) => pruned(item, ending)))
    case 'choice':
      return choice(...expr.items.filter((item) => ends(item, ending)).map((item) => pruned(item, ending)))
    case 'repeat':
      return ends(expr.item, ending) ? { ...expr, item: pruned(expr.item, ending) } : empty
    case 'dispatch': {
      const triggers = expr.triggers.filter((trigger) => ending.has(trigger.rule))
      return { ...expr, triggers }
    }
    case 'literal':
    case 'characters':
    case 'rule':
      return expr
  }
}

function print(expr: Expr): string {
  switch (expr.type) {
    case 'literal':
      return quoted(expr.text)
    case 'characters':
      return oneOf(expr.ranges)
    case 'sequence':
      return expr.items.length === 0 ? '""' : expr.items.map(grouped).join(' ')
    case 'choice':
      return expr.items.map(grouped).join(' | ')
    case 'repeat':
      return `${grouped(expr.item)}${times(expr.min, expr.max)}`
    case 'rule':
      return expr.name
    case 'dispatch': {
      const tags = expr.triggers.map(({ text, rule }) => `(${quoted(text)}, ${rule})`)
      return `TagDispatch(${tags.join(', ')}, stop_eos=true, stop_str=(), loop_after_dispatch=${expr.again})`
    }
  }
}

const grouped = (expr: Expr): string =>
  (expr.type === 'sequence' || expr.type === 'choice') && expr.items.length > 1
    ? `(${print(expr)})`
    : expr.type === 'repeat'
      ? `(${print(expr)})`
      : print(expr)

/**
 * The compiler reads classes by bytes: within one, only ASCII counts, and a negated one takes in all beyond it
 * (0.1.27, measured). So a few characters beyond ASCII are written out, and of nearly all of them none.
 */
function oneOf(ranges: readonly Range[]): string {
  const ascii = ranges
    .filter(([first]) => first <= last_ascii)
    .map(([first, last]): Range => [first, Math.min(last, last_ascii)])
  const beyond = ranges
    .filter(([, last]) => last > last_ascii)
    .map(([first, last]): Range => [Math.max(first, last_ascii + 1), last])
  const size = beyond.reduce((sum, [first, last]) => sum + last - first + 1, 0)
  if (size === 0) return bracketed(ascii)
  if (size === characters_beyond) {
    const without = gaps(ascii)
    return without.length === 0 ? '[^\\u0000]' : `[^${without.map(written).join('')}]`
  }
  if (size <= written_out_max) {
    const each = beyond.flatMap(([first, last]) =>
      Array.from({ length: last - first + 1 }, (_, at) => `"${unit(first + at)}"`),
    )
    return `(${[...(ascii.length === 0 ? [] : [bracketed(ascii)]), ...each].join(' | ')})`
  }
  if (characters_beyond - size <= written_out_max && ascii.length > 0) return bracketed(ascii)
  throw new GrammarError(`of characters beyond ASCII, sets of up to ${written_out_max} are served`)
}

const bracketed = (ranges: readonly Range[]): string => `[${ranges.map(written).join('')}]`
const written = ([first, last]: Range): string =>
  first === last ? unit(first) : `${unit(first)}-${unit(last)}`

/** What of ASCII is in none of the ranges. */
function gaps(ascii: readonly Range[]): Range[] {
  const all: Range[] = [[-1, -1], ...ascii, [last_ascii + 1, last_ascii + 1]]
  return all
    .slice(1)
    .map(([first], at): Range => [(all[at]?.[1] ?? 0) + 1, first - 1])
    .filter(([first, last]) => first <= last)
}

const times = (min: number, max: number | null): string =>
  min === 0 && max === null ? '*' : min === 0 && max === 1 ? '?' : `{${min},${max ?? ''}}`

const quoted = (text: string): string => `"${Array.from(text, (c) => unit(c.codePointAt(0) ?? 0)).join('')}"`

/** Letters and digits as they are, the rest as an escape: nothing then means anything in EBNF. */
function unit(codePoint: number): string {
  const character = String.fromCodePoint(codePoint)
  if (/[0-9A-Za-z _]/.test(character)) return character
  return codePoint <= 0xffff
    ? `\\u${codePoint.toString(16).padStart(4, '0')}`
    : `\\U${codePoint.toString(16).padStart(8, '0')}`
}
