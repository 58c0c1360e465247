/** What a caller reads when a body is wrong: the field by its name, and what it must be. */
import { expect, it } from 'vitest'
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { parse, parseJson } from '../../src/json-body.ts'

const Schema = z.strictObject({
  model: z.string(),
  n: z.optional(z.int().check(z.gte(1), z.lte(16))),
  temperature: z.optional(z.number().check(z.gt(0))),
  mode: z.optional(z.enum(['a', 'b'])),
  messages: z.optional(
    z.array(z.object({ content: z.string().check(z.minLength(1)) })).check(z.maxLength(2)),
  ),
  id: z.optional(z.string().check(z.regex(/^x/, 'must begin with x'))),
  tag: z.optional(z.string().check(z.regex(/^x/))),
  either: z.optional(z.union([z.string(), z.number()])),
  kind: z.optional(
    z.discriminatedUnion('type', [z.object({ type: z.literal('x') }), z.object({ type: z.literal('y') })], {
      error: ({ code }) => (code === 'invalid_union' ? 'must be x or y' : null),
    }),
  ),
})

it.each<[unknown, string | null, string]>([
  [5, null, 'The body must be an object, not 5.'],
  [{}, 'model', "'model' is missing: it must be a string."],
  [{ model: null }, 'model', "'model' must be a string, not null."],
  [{ model: 'm', n: 1.5 }, 'n', "'n' must be an integer, not 1.5."],
  [{ model: 'm', n: 0 }, 'n', "'n' must be at least 1, not 0."],
  [{ model: 'm', n: 17 }, 'n', "'n' must be at most 16, not 17."],
  [{ model: 'm', temperature: 0 }, 'temperature', "'temperature' must be more than 0, not 0."],
  [{ model: 'm', mode: 'c' }, 'mode', '\'mode\' must be one of "a", "b", not "c".'],
  [{ model: 'm', messages: {} }, 'messages', "'messages' must be a list, not an object."],
  [
    { model: 'm', messages: [{}] },
    'messages[0].content',
    "'messages[0].content' is missing: it must be a string.",
  ],
  [
    { model: 'm', messages: [{ content: '' }] },
    'messages[0].content',
    "'messages[0].content' must have at least 1 character.",
  ],
  [{ model: 'm', messages: [1, 2, 3] }, 'messages', "'messages' must have at most 2 items."],
  [{ model: 'm', messages: [1] }, 'messages[0]', "'messages[0]' must be an object, not 1."],
  [{ model: 'm', id: 'y' }, 'id', "'id' must begin with x."],
  [{ model: 'm', tag: 'y' }, 'tag', "'tag' has not the form that is wanted."],
  [{ model: 'm', either: true }, 'either', "'either' has none of the forms that are wanted."],
  [{ model: 'm', kind: { type: 'z' } }, 'kind.type', '\'kind.type\' must be x or y, not "z".'],
  [{ model: 'm', kind: {} }, 'kind.type', "'kind.type' is missing: it must be x or y."],
  [{ model: 'm', kind: [] }, 'kind', "'kind' must be an object, not a list."],
  [{ model: ['m'] }, 'model', "'model' must be a string, not a list."],
  [{ model: 'm', n: 'x'.repeat(99) }, 'n', `'n' must be a number, not "${'x'.repeat(39)}...".`],
  [{ model: 'm', other: 1 }, 'other', "'other' is unknown here."],
])('%j', (body, param, message) => {
  const read = () => parse(Schema, body)
  expect(read).toThrow(ApiError)
  expect(read).toThrow(expect.objectContaining({ param, message, code: 'invalid_value' }))
})

it('gives back what the schema makes of a good one', () => {
  expect(parse(Schema, { model: 'm', n: 2 })).toEqual({ model: 'm', n: 2 })
})

it('refuses what is no JSON', () => {
  expect(() => parseJson('{')).toThrow(expect.objectContaining({ code: 'invalid_json' }))
})
