/** From an event to a chat request: {{payload.path}} in texts, a filter, template variables. An absent path is empty text. */
import { ApiError } from '../../src/errors.ts'
import { asText, fill, lookUp, parseText } from '../templates/template-text.ts'

/** What texts may name: `payload`, the event's `type` where a header says it, its `id`. */
export interface Event {
  payload: unknown
  type: string | null
  id: string | null
}

/** JSON, a form, or else the text itself. */
export function readPayload(body: string, contentType: string): unknown {
  if (contentType.startsWith('application/x-www-form-urlencoded')) {
    const form = Object.fromEntries(new URLSearchParams(body))
    // Slack's interactions and GitHub's form type put JSON into one field.
    return form['payload'] === undefined ? form : parsed(form['payload'])
  }
  return parsed(body)
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

/** Each path must have its value, or one of its values; `{exists: false}` asks that there be none. */
export const passes = (filter: Record<string, unknown> | null, event: Event): boolean =>
  Object.entries(filter ?? {}).every(([path, wanted]) => {
    const value = valueAt(event, path.split('.'))
    if (Array.isArray(wanted)) return wanted.includes(value)
    if (typeof wanted === 'object' && wanted !== null && 'exists' in wanted)
      return (value !== undefined) === wanted.exists
    return value === wanted
  })

/** `payload.` may be left out in front. */
function valueAt(event: Event, path: readonly string[]): unknown {
  const root = path[0] ?? ''
  return lookUp(['payload', 'type', 'id'].includes(root) ? event : event.payload, path)
}

/** Throws where a text is not well-formed; so hooks are checked when they are made. */
export function renderRequest(request: Record<string, unknown>, event: Event): Record<string, unknown> {
  const text = (content: string, param: string) =>
    fill(parseText(content, param), (path) => {
      const value = valueAt(event, path)
      return value === undefined || value === null ? '' : asText(value)
    }).text
  const { messages, template } = request as { messages?: unknown; template?: { variables?: unknown } }
  return {
    ...request,
    ...(Array.isArray(messages)
      ? { messages: messages.map((message, at) => renderMessage(message, at, text)) }
      : {}),
    ...(template ? { template: { ...template, variables: renderVariables(template.variables, event) } } : {}),
  }
}

function renderMessage(
  message: unknown,
  at: number,
  text: (content: string, param: string) => string,
): unknown {
  const { content } = message as { content?: unknown }
  if (typeof content !== 'string')
    throw new ApiError('invalid_value', "A hook's messages have texts as content.", {
      param: `messages[${at}].content`,
    })
  return { ...(message as object), content: text(content, `messages[${at}].content`) }
}

/** None: the template's one variable is `payload`. A variable that is one {{path}} alone keeps its type. */
function renderVariables(variables: unknown, event: Event): Record<string, unknown> {
  if (typeof variables !== 'object' || variables === null) return { payload: event.payload }
  return Object.fromEntries(
    Object.entries(variables).map(([name, value]) => {
      if (typeof value !== 'string') return [name, value]
      const spans = parseText(value, `template.variables.${name}`)
      const [only] = spans
      if (spans.length === 1 && only !== undefined && 'path' in only)
        return [name, valueAt(event, only.path) ?? '']
      return [name, fill(spans, (path) => asText(valueAt(event, path) ?? '')).text]
    }),
  )
}
