/** What every reader of a JSON Schema needs to know of one. */
import { GrammarError } from './ebnf.ts'

export type Schema = Record<string, unknown>
const type_names = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null'] as const
export type TypeName = (typeof type_names)[number]

export const isObject = (value: unknown): value is Schema =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

export const depth_max = 64

/** Counted without recursion: what comes from outside may nest deeper than a stack. */
export function isShallow(value: unknown): boolean {
  let level = [value]
  for (let depth = 0; depth <= depth_max; depth++) {
    level = level.flatMap((each) => (typeof each === 'object' && each !== null ? Object.values(each) : []))
    if (level.length === 0) return true
  }
  return false
}

/** What a local `$ref` points to; undefined: nothing. */
export function pointed(root: unknown, ref: string): unknown {
  if (ref === '#') return root
  if (!ref.startsWith('#/')) return undefined
  let at = root
  for (const part of ref.slice(2).split('/')) {
    const key = unescaped(part)
    if (typeof at !== 'object' || at === null || !Object.hasOwn(at, key)) return undefined
    at = (at as Schema)[key]
  }
  return at
}

function unescaped(part: string): string {
  const text = part.replaceAll('~1', '/').replaceAll('~0', '~')
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

/** The types a value may have: those it names, else those that its keywords speak of, else all. */
export function typesOf(schema: Schema, path: string): TypeName[] {
  const { type } = schema
  if (type === undefined) return impliedTypes(schema)
  const types = Array.isArray(type) ? type : [type]
  for (const each of types)
    if (!type_names.includes(each))
      throw new GrammarError(`${path}: 'type' ${JSON.stringify(each)} does not exist`)
  const named = new Set(types as TypeName[])
  if (named.has('number')) named.delete('integer')
  return [...named]
}

const implying: [TypeName, string[]][] = [
  ['object', ['properties', 'required', 'additionalProperties', 'propertyNames']],
  ['array', ['items', 'prefixItems', 'minItems', 'maxItems']],
  ['string', ['minLength', 'maxLength', 'pattern', 'format']],
  ['number', ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf']],
]

/** Keywords without a type bind values of theirs alone; who writes them means such values. */
function impliedTypes(schema: Schema): TypeName[] {
  const implied = implying
    .filter(([, keys]) => keys.some((key) => schema[key] !== undefined))
    .map(([type]) => type)
  return implied.length > 0 ? implied : ['object', 'array', 'string', 'number', 'boolean', 'null']
}
