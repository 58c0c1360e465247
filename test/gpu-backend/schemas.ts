/** JSON Schemas of every keyword that is served, and a few that are not, at random. */
import * as fc from 'fast-check'

const name = fc.constantFrom('a', 'b', 'name', 'né', 'with "quotes"', '')
const small = fc.integer({ min: -1200, max: 1200 })
const half = small.map((value) => value / 8)
const length = fc.integer({ min: 0, max: 6 })

/** Only those of the keys that chance keeps. */
const some = (keys: Record<string, fc.Arbitrary<unknown>>): fc.Arbitrary<Record<string, unknown>> =>
  fc.record(keys, { requiredKeys: [] })

const constant = fc.oneof(
  fc.constantFrom<unknown>(null, true, 'x', 'é"\\', 7, -2.5),
  fc.constant([1, { a: 'b' }]),
)

const leaf: fc.Arbitrary<unknown> = fc.oneof(
  some({ minLength: length, maxLength: length.map((n) => n + 3) }).map((more) => ({
    type: 'string',
    ...more,
  })),
  fc
    .constantFrom('^[a-f]+$', 'a.c', '^(\\d{2}|x\\.y)$', '[^a-z]{2}', '"\\\\', '\\s[\\t!]', '^\\w*$')
    .map((pattern) => ({ type: 'string', pattern })),
  fc
    .constantFrom('date', 'date-time', 'time', 'uuid', 'ipv4', 'email')
    .map((format) => ({ type: 'string', format })),
  some({ minimum: small, maximum: small, exclusiveMinimum: small }).map((more) => ({
    type: 'integer',
    ...more,
  })),
  some({ minimum: half, maximum: half, exclusiveMaximum: half }).map((more) => ({ type: 'number', ...more })),
  fc.array(constant, { minLength: 1, maxLength: 3 }).map((values) => ({ enum: values })),
  constant.map((value) => ({ const: value })),
  fc.constantFrom<unknown>(
    { type: 'boolean' },
    { type: 'null' },
    { type: ['string', 'null'] },
    { type: 'array', uniqueItems: true },
  ),
  fc.constant({ $ref: '#/$defs/shared' }),
)

const { schema } = fc.letrec<{ schema: unknown; object: unknown; array: unknown; union: unknown }>((tie) => ({
  schema: fc.oneof({ maxDepth: 3, depthSize: 'small' }, leaf, tie('object'), tie('array'), tie('union')),
  object: fc
    .record({
      properties: fc.dictionary(name, tie('schema'), { maxKeys: 4, noNullPrototype: true }),
      required: fc.subarray(['a', 'b', 'name', 'extra']),
      more: some({ additionalProperties: fc.oneof(fc.boolean(), leaf) }),
    })
    .map(({ properties, required, more }) => ({ type: 'object', properties, required, ...more })),
  array: fc
    .record({
      items: tie('schema'),
      more: some({
        minItems: fc.integer({ min: 0, max: 3 }),
        maxItems: fc.integer({ min: 1, max: 4 }),
        prefixItems: fc.array(leaf, { minLength: 1, maxLength: 2 }),
      }),
    })
    .map(({ items, more }) => ({ type: 'array', items, ...more })),
  union: fc
    .record({
      key: fc.constantFrom('anyOf', 'anyOf', 'oneOf', 'allOf'),
      parts: fc.array(tie('schema'), { minLength: 1, maxLength: 3 }),
    })
    .map(({ key, parts }) => ({ [key]: parts })),
}))

export const anySchema = fc
  .tuple(schema, leaf)
  .map(([root, shared]) =>
    typeof root === 'object' && root !== null
      ? { ...root, $defs: { shared: isShared(shared) ? { type: 'integer' } : shared } }
      : root,
  )

const isShared = (schema: unknown) => typeof schema === 'object' && schema !== null && '$ref' in schema
