/**
 * A JSON Schema as a grammar of JSON texts, each of which is valid by it. Where a schema says more than a grammar can
 * (`not`, `uniqueItems`, `multipleOf` ...) a strict one is refused by name; of another the rest is enforced and that
 * part left to the model. Objects list their properties in the schema's order; where `additionalProperties` is not said,
 * those with `properties` get no others. The library's own converter is not used: see README, Decisions.
 */
import {
  choice,
  GrammarError,
  type Grammar,
  literal,
  never,
  repeat,
  rule,
  sequence,
  type Expr,
} from './ebnf.ts'
import { anyInteger, anyNumber, integerRange, numberRange, type Bounds } from './json-numbers.ts'
import { objectOf, type Property } from './json-object.ts'
import { anyJson, anyString, dumps, list, quotedText, stringOfLength } from './json-text.ts'
import { regexGrammar } from './regex.ts'
import { formats } from './string-formats.ts'
import { depth_max, isObject, isShallow, pointed, typesOf, type Schema, type TypeName } from './schema.ts'
import { disjoint, merged } from './schema-union.ts'

const chars_max = 256 * 1024
const length_max = 10_000

const annotations = new Set(
  (
    'title description default examples example deprecated readOnly writeOnly $schema $id $comment $defs definitions ' +
    'contentMediaType contentEncoding discriminator $anchor'
  ).split(' '),
)
const byType: Record<TypeName, string[]> = {
  string: ['minLength', 'maxLength', 'pattern', 'format'],
  number: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf'],
  integer: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf'],
  array: ['items', 'prefixItems', 'minItems', 'maxItems'],
  object: ['properties', 'required', 'additionalProperties', 'propertyNames'],
  boolean: [],
  null: [],
}
const everywhere = new Set([
  'type',
  'enum',
  'const',
  'anyOf',
  'oneOf',
  'allOf',
  '$ref',
  ...Object.values(byType).flat(),
])

/** Adds the schema's rules to a grammar. Throws GrammarError, naming the keyword and where it stands. */
export function schemaGrammar(grammar: Grammar, schema: unknown, strict: boolean): Expr {
  if (!isShallow(schema)) throw new GrammarError(`it nests deeper than ${depth_max} levels`)
  const size = JSON.stringify(schema).length
  if (size > chars_max) throw new GrammarError(`it has ${size} characters; ${chars_max} are served`)
  try {
    return new Converter(grammar, schema, strict).convert(schema, '#')
  } catch (cause) {
    // References may lead deeper than what holds them.
    if (cause instanceof RangeError) throw new GrammarError('its references lead too deep')
    throw cause
  }
}

class Converter {
  readonly #grammar: Grammar
  readonly #root: unknown
  readonly #strict: boolean
  /** One rule for one place of the schema, however often it is referred to: a schema may hold itself. */
  readonly #known = new Map<Schema, string>()

  constructor(grammar: Grammar, root: unknown, strict: boolean) {
    this.#grammar = grammar
    this.#root = root
    this.#strict = strict
  }

  convert(schema: unknown, path: string): Expr {
    if (schema === true) return anyJson(this.#grammar).value
    if (schema === false) return never
    if (!isObject(schema)) throw new GrammarError(`${path} is no schema: an object or a boolean is wanted`)
    const unknown = Object.keys(schema).find((key) => !annotations.has(key) && !everywhere.has(key))
    if (unknown !== undefined) this.#leave(path, unknown)
    const known = this.#known.get(schema)
    if (known !== undefined) return rule(known)
    const name = this.#grammar.reserve(path.split('/').at(-1) ?? 'schema')
    this.#known.set(schema, name)
    this.#grammar.rules.set(name, this.#convert(schema, path))
    return rule(name)
  }

  #convert(schema: Schema, path: string): Expr {
    if (schema['$ref'] !== undefined) return this.#reference(schema, path)
    if (schema['enum'] !== undefined || schema['const'] !== undefined) return this.#constants(schema, path)
    for (const key of ['allOf', 'anyOf', 'oneOf'] as const) {
      if (schema[key] === undefined) continue
      const parts = schema[key]
      if (!Array.isArray(parts) || parts.length === 0)
        throw new GrammarError(`${path}: '${key}' must be a list of schemas`)
      const { [key]: _, ...rest } = schema
      return this.#combined(key, parts, rest, path)
    }
    return choice(...typesOf(schema, path).map((type) => this.#ofType(type, schema, path)))
  }

  #reference(schema: Schema, path: string): Expr {
    const { $ref: ref, ...rest } = schema
    if (typeof ref !== 'string') throw new GrammarError(`${path}: '$ref' must be a string`)
    const beside = Object.keys(rest).find((key) => !annotations.has(key))
    if (beside !== undefined) this.#leave(path, beside, `'${beside}' beside '$ref'`)
    const target = pointed(this.#root, ref)
    if (target !== undefined) return this.convert(target, ref)
    const shown = JSON.stringify(ref.slice(0, 80))
    throw new GrammarError(`${path}: '$ref' to ${shown} points to nothing in this schema`)
  }

  #constants(schema: Schema, path: string): Expr {
    const { enum: listed, const: only, ...rest } = schema
    if (listed !== undefined && !Array.isArray(listed))
      throw new GrammarError(`${path}: 'enum' must be a list`)
    const values = only === undefined ? (listed ?? []) : [only]
    const types = rest['type'] === undefined ? null : typesOf(rest, path)
    const beside = Object.keys(rest).find((key) => key !== 'type' && !annotations.has(key))
    if (beside !== undefined) this.#leave(path, beside, `'${beside}' beside 'enum' or 'const'`)
    const fitting = values.filter((value) => types === null || types.some((type) => isOfType(value, type)))
    if (fitting.length === 0) throw new GrammarError(`${path}: 'enum' allows no value`)
    return choice(...fitting.map((value) => literal(dumps(value))))
  }

  #combined(key: 'allOf' | 'anyOf' | 'oneOf', parts: unknown[], rest: Schema, path: string): Expr {
    if (key === 'oneOf' && !disjoint(parts, this.#root))
      this.#leave(
        path,
        key,
        "'oneOf' of schemas that may hold at once (use 'anyOf', or a property with a 'const' of its own in each)",
      )
    const plain = Object.keys(rest).every((name) => annotations.has(name))
    if (key !== 'allOf' && plain)
      return choice(...parts.map((part, at) => this.convert(part, `${path}/${key}/${at}`)))
    const sets = key === 'allOf' ? [parts] : parts.map((part) => [part])
    const alternatives = sets.map((set, at) => {
      const one = merged([rest, ...set], this.#root)
      if (one !== null) return this.convert(one, `${path}/${key}/${at}`)
      this.#leave(path, key, `'${key}' of schemas that say the same keyword differently`)
      return this.convert(plain ? (set[0] ?? true) : rest, `${path}/${key}/${at}`)
    })
    return choice(...alternatives)
  }

  #ofType(type: TypeName, schema: Schema, path: string): Expr {
    switch (type) {
      case 'null':
        return literal('null')
      case 'boolean':
        return choice(literal('true'), literal('false'))
      case 'string':
        return this.#string(schema, path)
      case 'integer':
      case 'number':
        return this.#number(type, schema, path)
      case 'array':
        return this.#array(schema, path)
      case 'object':
        return this.#object(schema, path)
    }
  }

  #string(schema: Schema, path: string): Expr {
    const min = count(schema, 'minLength', path) ?? 0
    const max = count(schema, 'maxLength', path)
    const { pattern, format } = schema
    const known = typeof format === 'string' ? formats[format] : undefined
    if (pattern !== undefined || known !== undefined) {
      for (const key of ['minLength', 'maxLength'])
        if (schema[key] !== undefined) this.#leave(path, key, `'${key}' beside 'pattern' or 'format'`)
    }
    if (pattern !== undefined) {
      if (typeof pattern !== 'string') throw new GrammarError(`${path}: 'pattern' must be a string`)
      try {
        return quotedText(this.#grammar.add('pattern', regexGrammar(pattern, true)))
      } catch (cause) {
        if (!(cause instanceof GrammarError)) throw cause
        // Generators of schemas often say both; the format is the same in terms that are served.
        if (known === undefined) this.#leave(path, 'pattern', `'pattern': ${cause.message}`)
      }
    }
    if (known !== undefined) return quotedText(this.#grammar.add('format', regexGrammar(known, true)))
    if (format !== undefined) this.#leave(path, 'format', `'format' ${JSON.stringify(format)}`)
    if (max !== null && min > max) return never
    return min === 0 && max === null ? anyString : stringOfLength(min, max)
  }

  #number(type: 'integer' | 'number', schema: Schema, path: string): Expr {
    const bounds: Bounds = {}
    const take = (key: string): number | undefined => {
      const value = schema[key]
      if (value === undefined) return undefined
      if (typeof value === 'number') return value
      throw new GrammarError(`${path}: '${key}' must be a number`)
    }
    const [min, max] = [take('minimum'), take('maximum')]
    const [above, below] = [take('exclusiveMinimum'), take('exclusiveMaximum')]
    if (min !== undefined) bounds.min = min
    if (max !== undefined) bounds.max = max
    if (above !== undefined && above >= (min ?? -Infinity))
      Object.assign(bounds, { min: above, minOpen: true })
    if (below !== undefined && below <= (max ?? Infinity))
      Object.assign(bounds, { max: below, maxOpen: true })
    const step = take('multipleOf')
    if (step !== undefined && !(type === 'integer' && step === 1)) this.#leave(path, 'multipleOf')
    if (bounds.min === undefined && bounds.max === undefined)
      return type === 'integer' ? anyInteger : anyNumber
    // A safe integer's own limits say nothing that 15 digits do not.
    if ((bounds.min ?? 0) <= Number.MIN_SAFE_INTEGER) delete bounds.min
    if ((bounds.max ?? 0) >= Number.MAX_SAFE_INTEGER) delete bounds.max
    return type === 'integer' ? integerRange(bounds) : numberRange(bounds)
  }

  #array(schema: Schema, path: string): Expr {
    const prefix = schema['prefixItems'] ?? (Array.isArray(schema['items']) ? schema['items'] : [])
    if (!Array.isArray(prefix)) throw new GrammarError(`${path}: 'prefixItems' must be a list of schemas`)
    const min = count(schema, 'minItems', path) ?? 0
    const max = count(schema, 'maxItems', path)
    const rest = Array.isArray(schema['items']) ? false : (schema['items'] ?? prefix.length === 0)
    const item = rest === false ? never : this.convert(rest, `${path}/items`)
    if (prefix.length === 0 && min === 0 && max === null) return rest === false ? literal('[]') : list(item)
    const first = prefix
      .slice(0, max ?? undefined)
      .map((each, at) => this.convert(each, `${path}/prefixItems/${at}`))
    const more = {
      min: Math.max(0, min - first.length),
      max: max === null ? null : Math.max(0, max - first.length),
    }
    if (more.max !== null && more.min > more.max) return never
    const comma = literal(', ')
    if (first.length > 0) {
      const listed = first.flatMap((each, at) => (at === 0 ? [each] : [comma, each]))
      return sequence(
        literal('['),
        ...listed,
        repeat(sequence(comma, item), more.min, more.max),
        literal(']'),
      )
    }
    if (more.max === 0) return literal('[]')
    const some = sequence(
      literal('['),
      item,
      repeat(sequence(comma, item), Math.max(0, more.min - 1), more.max === null ? null : more.max - 1),
      literal(']'),
    )
    return more.min === 0 ? choice(literal('[]'), some) : some
  }

  #object(schema: Schema, path: string): Expr {
    const { properties = {}, required = [], additionalProperties, propertyNames } = schema
    if (!isObject(properties)) throw new GrammarError(`${path}: 'properties' must be an object`)
    if (!Array.isArray(required)) throw new GrammarError(`${path}: 'required' must be a list`)
    if (propertyNames !== undefined && !isAnyString(propertyNames)) this.#leave(path, 'propertyNames')
    const names = Object.keys(properties)
    const rest = additionalProperties ?? names.length === 0
    const undeclared = required.filter(
      (name): name is string => typeof name === 'string' && !Object.hasOwn(properties, name),
    )
    const others =
      rest === false && undeclared.length === 0
        ? null
        : this.convert(additionalProperties ?? true, `${path}/additionalProperties`)
    const declared: Property[] = names.map((name) => ({
      name,
      value: this.convert(properties[name], `${path}/properties/${name}`),
      required: required.includes(name),
    }))
    const extra = [...new Set(undeclared)].map((name): Property => ({
      name,
      value: others ?? never,
      required: true,
    }))
    return objectOf(
      this.#grammar,
      path.split('/').at(-1) || 'object',
      [...declared, ...extra],
      rest === false ? null : others,
    )
  }

  /** Something that the grammar does not say. */
  #leave(path: string, keyword: string, what = `'${keyword}'`): void {
    if (this.#strict) throw new GrammarError(`${path}: ${what} is not supported`)
  }
}

function count(schema: Schema, key: string, path: string): number | null {
  const value = schema[key]
  if (value === undefined) return null
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0)
    throw new GrammarError(`${path}: '${key}' must be a whole number, 0 or more`)
  if (value > length_max) throw new GrammarError(`${path}: '${key}' is larger than ${length_max}`)
  return value
}

const isAnyString = (schema: unknown) =>
  schema === true ||
  (isObject(schema) && Object.keys(schema).every((key) => key === 'type' && schema[key] === 'string'))

function isOfType(value: unknown, type: TypeName): boolean {
  switch (type) {
    case 'null':
      return value === null
    case 'array':
      return Array.isArray(value)
    case 'object':
      return isObject(value)
    case 'integer':
      return Number.isInteger(value)
    case 'string':
    case 'number':
    case 'boolean':
      return typeof value === type
  }
}
