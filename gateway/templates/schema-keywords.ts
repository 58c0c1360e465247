/**
 * The part of JSON Schema that template variables may use. Everything in it is checked in time that grows with schema
 * times value: `$ref` can double the work at every level and `pattern` at every letter, and one tenant's check runs on
 * the thread that serves all.
 */

/** What a keyword holds: nothing to look into, a schema, a list of schemas, or schemas by name. */
const keywords: Record<string, 'plain' | 'schema' | 'list' | 'named'> = {
  type: 'plain',
  enum: 'plain',
  const: 'plain',
  default: 'plain',
  required: 'plain',
  title: 'plain',
  description: 'plain',
  examples: 'plain',
  $schema: 'plain',
  $comment: 'plain',
  minLength: 'plain',
  maxLength: 'plain',
  minimum: 'plain',
  maximum: 'plain',
  exclusiveMinimum: 'plain',
  exclusiveMaximum: 'plain',
  multipleOf: 'plain',
  minItems: 'plain',
  maxItems: 'plain',
  minProperties: 'plain',
  maxProperties: 'plain',
  properties: 'named',
  additionalProperties: 'schema',
  items: 'schema',
  not: 'schema',
  anyOf: 'list',
  oneOf: 'list',
  allOf: 'list',
}
const depth_max = 32

/** @returns what is wrong, or null: `where` is a dotted path into the schema. */
export function unsupported(schema: unknown, where = '', depth = 0): { where: string; why: string } | null {
  if (typeof schema === 'boolean') return null
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema))
    return { where, why: 'is not a schema' }
  if (depth > depth_max) return { where, why: `is nested more than ${depth_max} deep` }
  for (const [keyword, value] of Object.entries(schema)) {
    const at = where === '' ? keyword : `${where}.${keyword}`
    const kind = Object.hasOwn(keywords, keyword) ? keywords[keyword] : undefined
    if (kind === undefined)
      return { where: at, why: `is not supported; there are: ${Object.keys(keywords).join(', ')}` }
    if (kind === 'plain') continue
    const inner: [string, unknown][] =
      kind === 'schema'
        ? [[at, value]]
        : Object.entries((value ?? {}) as object).map(([name, one]) => [`${at}.${name}`, one])
    for (const [path, one] of inner) {
      const wrong = unsupported(one, path, depth + 1)
      if (wrong !== null) return wrong
    }
  }
  return null
}
