/**
 * What the answer's text must be: OpenAI's `response_format`, or vLLM's `structured_outputs` ({json, regex, choice,
 * grammar, json_object}) with its older names `guided_json`, `guided_regex`, `guided_choice` and `guided_grammar`.
 * https://platform.openai.com/docs/guides/structured-outputs, https://docs.vllm.ai/en/latest/features/structured_outputs
 */
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { GrammarError } from '../../src/grammar/ebnf.ts'
import { writeGrammar, type GrammarSpec, type JsonGrammar } from '../../src/grammar/grammar.ts'
import { isShallow } from '../../src/grammar/schema.ts'

const nullish = <T extends z.core.SomeType>(schema: T) => z.optional(z.nullable(schema))

const Schema = z.record(z.string(), z.unknown()).check(z.refine(isShallow, 'nests deeper than 64 levels'))
const Json = z.union([Schema, z.string()], { error: 'must be a JSON Schema, as an object or its text' })
const Choices = z.array(z.string()).check(z.minLength(1), z.maxLength(1000))

/** Fields of a chat request's body. */
export const formatFields = {
  response_format: nullish(
    z.discriminatedUnion(
      'type',
      [
        z.object({ type: z.literal('text') }),
        z.object({ type: z.literal('json_object') }),
        z.object({
          type: z.literal('json_schema'),
          json_schema: z.object({
            name: z.string().check(z.regex(/^[\w-]{1,64}$/, 'must have 1 to 64 letters, digits, _ and -')),
            description: nullish(z.string()),
            schema: nullish(Schema),
            strict: nullish(z.boolean()),
          }),
        }),
      ],
      { error: 'must have a type: "text", "json_object" or "json_schema"' },
    ),
  ),
  structured_outputs: nullish(
    z.strictObject({
      json: nullish(Json),
      regex: nullish(z.string()),
      choice: nullish(Choices),
      grammar: nullish(z.string()),
      json_object: nullish(z.boolean()),
    }),
  ),
  guided_json: nullish(Json),
  guided_regex: nullish(z.string()),
  guided_choice: nullish(Choices),
  guided_grammar: nullish(z.string()),
}

const Fields = z.object(formatFields)
type Fields = z.infer<typeof Fields>

export interface Asked<Spec extends GrammarSpec = GrammarSpec> {
  spec: Spec
  /** The field that says so. */
  param: string
}

/** OpenAI's way; null: any text. */
export function responseFormat({ response_format: format }: Fields): Asked<JsonGrammar> | null {
  if (format === undefined || format === null || format.type === 'text') return null
  if (format.type === 'json_object') return { spec: { type: 'json_object' }, param: 'response_format' }
  const { schema, strict } = format.json_schema
  return {
    spec: { type: 'json_schema', schema: schema ?? { type: 'object' }, strict: strict ?? false },
    param: 'response_format.json_schema.schema',
  }
}

/** vLLM's way; null: not used. */
export function structuredOutput(fields: Fields): Asked | null {
  const { json, regex, choice, grammar, json_object } = fields.structured_outputs ?? {}
  const asked: Asked[] = []
  const add = <T>(param: string, value: T | null | undefined, spec: (value: T) => GrammarSpec) => {
    if (value !== undefined && value !== null) asked.push({ param, spec: spec(value) })
  }
  const asSchema =
    (param: string) =>
    (value: string | object): GrammarSpec => ({
      type: 'json_schema',
      schema: typeof value === 'string' ? parsed(value, param) : value,
      strict: false,
    })
  for (const [param, value] of [
    ['structured_outputs.json', json],
    ['guided_json', fields.guided_json],
  ] as const)
    add(param, value, asSchema(param))
  for (const [param, value] of [
    ['structured_outputs.regex', regex],
    ['guided_regex', fields.guided_regex],
  ] as const)
    add(param, value, (pattern) => ({ type: 'regex', pattern }))
  for (const [param, value] of [
    ['structured_outputs.choice', choice],
    ['guided_choice', fields.guided_choice],
  ] as const)
    add(param, value, (choices) => ({ type: 'choice', choices }))
  for (const [param, value] of [
    ['structured_outputs.grammar', grammar],
    ['guided_grammar', fields.guided_grammar],
  ] as const)
    add(param, value, (text) => ({ type: 'ebnf', grammar: text }))
  if (json_object === true)
    asked.push({ param: 'structured_outputs.json_object', spec: { type: 'json_object' } })
  const [first, second] = asked
  if (second !== undefined)
    throw new ApiError('invalid_value', `'${first?.param}' and '${second.param}' cannot hold at once.`, {
      param: second.param,
    })
  return first ?? null
}

/** What is wrong with a schema or pattern is said before anybody is asked for anything. */
export function checkGrammar({ spec, param }: Asked): GrammarSpec {
  try {
    writeGrammar(spec)
    return spec
  } catch (cause) {
    if (!(cause instanceof GrammarError)) throw cause
    throw new ApiError('unsupported_value', `'${param}' cannot be served: ${cause.message}.`, {
      param,
      cause,
    })
  }
}

function parsed(text: string, param: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new ApiError('invalid_value', `'${param}' is not valid JSON.`, { param, cause })
  }
}
