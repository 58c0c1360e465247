/** A JSON body and what a schema makes of it; what is wrong is said as OpenAI says it, by the field's name. */
import * as z from 'zod/mini'
import { ApiError } from './errors.ts'

export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new ApiError(
      'invalid_json',
      'The body is not valid JSON. Send a JSON object with content-type: application/json.',
      { cause },
    )
  }
}

/** Throws ApiError for the first thing that is wrong. */
export function parse<T extends z.core.$ZodType>(schema: T, value: unknown): z.core.output<T> {
  const parsed = z.safeParse(schema, value, { reportInput: true })
  if (parsed.success) return parsed.data
  throw invalid(parsed.error.issues[0])
}

function invalid(issue: z.core.$ZodIssue | undefined): ApiError {
  const keys = issue?.code === 'unrecognized_keys' ? issue.keys.slice(0, 1) : []
  const param = [...(issue?.path ?? []), ...keys].reduce<string>(
    (path, part) =>
      typeof part === 'number' ? `${path}[${part}]` : path === '' ? String(part) : `${path}.${String(part)}`,
    '',
  )
  const where = param === '' ? 'The body' : `'${param}'`
  if (issue === undefined) return new ApiError('invalid_value', `${where} is not understood.`)
  const missing = param !== '' && given(issue) === undefined && keys.length === 0
  const what = wrong(issue)
  const message = missing ? `${where} is missing: it ${what}.` : `${where} ${what}${instead(issue)}.`
  return new ApiError('invalid_value', message, param === '' ? {} : { param })
}

/** What stood there; of objects that are told apart by one of their fields, what stood in that. */
function given({ code, input, ...issue }: z.core.$ZodIssue): unknown {
  const field = code === 'invalid_union' && 'discriminator' in issue ? issue.discriminator : undefined
  return typeof field === 'string' ? (input as Record<string, unknown>)[field] : input
}

const shown_chars_max = 40

/** `, not 17`, where one value was wanted and another stood there. */
function instead(issue: z.core.$ZodIssue): string {
  const isBound = issue.code === 'too_small' || issue.code === 'too_big'
  const isChoice = issue.code === 'invalid_union' && 'discriminator' in issue
  if (isBound ? typeof issue.input !== 'number' : !isChoice && !/^invalid_(type|value)$/.test(issue.code))
    return ''
  const value = given(issue)
  if (Array.isArray(value)) return ', not a list'
  if (typeof value === 'object' && value !== null) return ', not an object'
  const text = JSON.stringify(value)
  return `, not ${text.length > shown_chars_max ? `${text.slice(0, shown_chars_max)}..."` : text}`
}

/** zod's own words where no schema has set others. */
const unsaid = 'Invalid input'

function wrong(issue: z.core.$ZodIssue): string {
  if (issue.message !== unsaid && issue.message !== '') return issue.message
  switch (issue.code) {
    case 'invalid_type':
      return `must be ${types[issue.expected] ?? `a ${issue.expected}`}`
    case 'too_small':
      return bound(issue.origin, issue.inclusive === false ? 'more than' : 'at least', issue.minimum)
    case 'too_big':
      return bound(issue.origin, issue.inclusive === false ? 'less than' : 'at most', issue.maximum)
    case 'invalid_value':
      return `must be ${issue.values.length > 1 ? 'one of ' : ''}${issue.values.map((value) => JSON.stringify(value)).join(', ')}`
    case 'unrecognized_keys':
      return 'is unknown here'
    case 'invalid_format':
      return 'has not the form that is wanted'
    case 'invalid_key':
      return 'has a key that is not wanted'
    case 'invalid_union':
      return 'has none of the forms that are wanted'
    case 'not_multiple_of':
      return `must be a multiple of ${issue.divisor}`
    case 'invalid_element':
    case 'custom':
      return 'is not understood'
  }
}

const types: Readonly<Record<string, string>> = {
  array: 'a list',
  int: 'an integer',
  object: 'an object',
  record: 'an object',
}

function bound(origin: string, relation: string, limit: number | bigint): string {
  const unit = origin === 'string' ? 'character' : origin === 'array' || origin === 'set' ? 'item' : null
  if (unit === null) return `must be ${relation} ${limit}`
  return `must have ${relation} ${limit} ${unit}${Number(limit) === 1 ? '' : 's'}`
}
