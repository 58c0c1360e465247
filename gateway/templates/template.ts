/**
 * A prompt template: messages with {{variables}}, a JSON Schema for those, defaults for sampling. Message structure is
 * the template's alone: a value is text inside one message and is tokenized as text, so it can start no turn and take
 * no role. What the operator wrote up to the first variable is a prefix that all tenants share.
 */
import { Validator, type Schema } from '@cfworker/json-schema'
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { parse } from '../../src/json-body.ts'
import { parseChatRequest } from '../chat/chat-request.ts'
import { unsupported } from './schema-keywords.ts'
import { asText, fill, lookUp, parseText } from './template-text.ts'

export interface TemplateMessage {
  role: 'system' | 'user' | 'assistant'
  content: string
}

/** What one version holds; it never changes. */
export interface TemplateBody {
  messages: TemplateMessage[]
  variables: Schema & { properties: Record<string, Schema> }
  /** Fields of a chat request that hold where the request says nothing. */
  defaults: Record<string, unknown>
}

export interface Rendered {
  messages: TemplateMessage[]
  /** Leading messages without any variable, and the text before the first variable in the next one. */
  literal: { messages: number; text: string }
}

const value_chars_max = 256 * 1024
const schema_chars_max = 64 * 1024

const Body = z.object({
  messages: z
    .array(
      z.strictObject({
        role: z.enum(['system', 'developer', 'user', 'assistant'], {
          error: 'unknown role; use system, developer, user or assistant',
        }),
        content: z.string(),
      }),
    )
    .check(z.minLength(1, 'must hold at least one message'), z.maxLength(100)),
  variables: z.optional(z.nullable(z.record(z.string(), z.unknown()))),
  defaults: z.optional(z.nullable(z.record(z.string(), z.unknown()))),
})

export function parseTemplate(json: unknown): TemplateBody {
  const parsed = parse(Body, json)
  const messages = parsed.messages.map(({ role, content }) => ({
    role: role === 'developer' ? ('system' as const) : role,
    content,
  }))
  const used = messages.flatMap(({ content }, at) =>
    parseText(content, `messages[${at}].content`).flatMap((span) => ('path' in span ? [span.path] : [])),
  )
  const variables = readSchema(
    parsed.variables ?? null,
    used.map((path) => path[0] ?? ''),
  )
  return { messages, variables, defaults: readDefaults(parsed.defaults ?? {}) }
}

/** A whole JSON Schema, or only its `properties`, which are then all required; nothing: each variable is a text. */
function readSchema(given: Record<string, unknown> | null, used: string[]): TemplateBody['variables'] {
  const whole = given !== null && (given['type'] === 'object' || isObject(given['properties']))
  const properties = (whole ? (given['properties'] ?? {}) : (given ?? {})) as Record<string, Schema>
  if (given === null) for (const name of used) properties[name] = { type: ['string', 'number', 'boolean'] }
  for (const name of used) {
    if (!Object.hasOwn(properties, name))
      throw invalidAt('variables', `the messages use {{${name}}}, which the schema does not have`)
  }
  const required = Object.keys(properties).filter(
    (name) => !isObject(properties[name]) || !('default' in properties[name]),
  )
  const schema = whole ? { ...given, properties } : { type: 'object' as const, properties, required }
  if (JSON.stringify(schema).length > schema_chars_max)
    throw invalidAt('variables', `the schema is larger than ${schema_chars_max} characters`)
  const wrong = unsupported(schema)
  if (wrong !== null) throw invalidAt(`variables.${wrong.where}`, wrong.why)
  validate(schema, {})
  return schema
}

/** A keyword with a value that it cannot have throws inside. */
function validate(schema: Schema, values: Record<string, unknown>) {
  try {
    return new Validator(schema).validate(values)
  } catch (cause) {
    throw invalidAt(
      'variables',
      `not a JSON Schema: ${cause instanceof Error ? cause.message : 'not understood'}`,
    )
  }
}

/** Defaults are held to the same rules as the request they end up in. */
function readDefaults(defaults: Record<string, unknown>): Record<string, unknown> {
  for (const field of ['messages', 'template', 'stream', 'stream_options', 'background', 'webhook']) {
    if (Object.hasOwn(defaults, field)) throw invalidAt(`defaults.${field}`, 'is no setting of a template')
  }
  try {
    parseChatRequest({ model: '', ...defaults, messages: [{ role: 'user', content: '' }] })
  } catch (error) {
    if (!(error instanceof ApiError) || error.param === null) throw error
    throw new ApiError(error.code, `defaults: ${error.message}`, { param: `defaults.${error.param}` })
  }
  return defaults
}

export function renderTemplate(template: TemplateBody, given: Record<string, unknown>): Rendered {
  const values = checkVariables(template.variables, given)
  const valueOf = (path: readonly string[]): string => {
    const value = lookUp(values, path)
    if (value === undefined) throw invalidAt(`template.variables.${path.join('.')}`, 'is missing')
    return asText(value)
  }
  const literal = { messages: 0, text: '' }
  let open = true
  const messages = template.messages.map(({ role, content }, at) => {
    const filled = fill(parseText(content, `messages[${at}].content`), valueOf)
    if (open && filled.hasVariable) literal.text = filled.literal
    if (open && !filled.hasVariable) literal.messages++
    open &&= !filled.hasVariable
    return { role, content: filled.text }
  })
  return { messages, literal }
}

function checkVariables(
  schema: TemplateBody['variables'],
  given: Record<string, unknown>,
): Record<string, unknown> {
  const values: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(given)) {
    const at = `template.variables.${name}`
    if (!Object.hasOwn(schema.properties, name))
      throw invalidAt(
        at,
        `the template has no such variable; it has: ${Object.keys(schema.properties).join(', ') || 'none'}`,
      )
    const size = asText(value).length
    if (size > value_chars_max)
      throw invalidAt(at, `${size} characters, and a value may have ${value_chars_max}`)
    values[name] = value
  }
  for (const [name, property] of Object.entries(schema.properties)) {
    if (Object.hasOwn(values, name)) continue
    if (isObject(property) && 'default' in property) values[name] = property['default']
    else if (schema.required?.includes(name) === true)
      throw invalidAt(`template.variables.${name}`, 'is missing')
  }
  const result = validate(schema, values)
  if (!result.valid) {
    // The innermost error says most.
    const error = result.errors.at(-1)
    const where = (error?.instanceLocation ?? '#').slice(2).replaceAll('/', '.')
    throw invalidAt(
      where === '' ? 'template.variables' : `template.variables.${where}`,
      error?.error ?? 'not valid',
    )
  }
  return values
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const invalidAt = (param: string, why: string) =>
  new ApiError('invalid_value', `Invalid value for '${param}': ${why}.`, { param })
