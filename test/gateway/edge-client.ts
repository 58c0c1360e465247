/** The worker under test, called as a client would. */
import { env, exports } from 'cloudflare:workers'
import { SseParser, type SseEvent } from '../../src/sse.ts'

export const fetchEdge = (path: string, init: RequestInit = {}) =>
  exports.default.fetch(new Request(`http://edge${path}`, init))

export const admin = (path: string, body?: unknown, method = body === undefined ? 'GET' : 'POST') =>
  fetchEdge(`/admin${path}`, {
    method,
    headers: { authorization: `Bearer ${env.ADMIN_TOKEN}`, 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })

export async function newTenant(): Promise<{ id: string; key: string }> {
  const { id } = await (await admin('/tenants', { name: 'Acme' })).json<{ id: string }>()
  const { key } = await (await admin(`/tenants/${id}/keys`, { name: 'first' })).json<{ key: string }>()
  return { id, key }
}

export interface Answered {
  status: number
  cacheStatus: string
  generationId: string
  text: string
  finish: string | null
  events: SseEvent[]
  /** The answer's or the last event's error code. */
  error: string | null
}

export const post = (key: string, body: object, headers: Record<string, string> = {}, signal?: AbortSignal) =>
  fetchEdge('/v1/chat/completions', {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, ...headers },
    body: JSON.stringify({ model: 'tiny', temperature: 0, max_tokens: 100, ...body }),
    ...(signal ? { signal } : {}),
  })

export const question = (text: string) => ({ messages: [{ role: 'user', content: text }] })

export async function ask(
  key: string,
  text: string,
  more: object = {},
  headers: Record<string, string> = {},
): Promise<Answered> {
  return read(await post(key, { ...question(text), ...more }, headers))
}

type Chunk = { choices: { delta: { content?: string }; finish_reason: string | null }[] }
type Whole = { choices: { message: { content: string }; finish_reason: string }[] }
type Failed = { error: { code: string } }

export async function read(response: Response): Promise<Answered> {
  const answered: Answered = {
    status: response.status,
    cacheStatus: response.headers.get('cache-status') ?? '',
    generationId: response.headers.get('x-generation-id') ?? '',
    text: '',
    finish: null,
    events: [],
    error: null,
  }
  const body = await response.text()
  if (!(response.headers.get('content-type') ?? '').includes('event-stream')) {
    const json = JSON.parse(body) as Whole | Failed
    if ('error' in json) return { ...answered, error: json.error.code }
    const [choice] = json.choices
    return { ...answered, text: choice?.message.content ?? '', finish: choice?.finish_reason ?? null }
  }
  answered.events = new SseParser().pushText(body)
  for (const { event, data } of answered.events) {
    if (event === 'error') answered.error = (JSON.parse(data) as Failed).error.code
    else if (data !== '[DONE]') {
      const [choice] = (JSON.parse(data) as Chunk).choices
      answered.text += choice?.delta.content ?? ''
      answered.finish = choice?.finish_reason ?? answered.finish
    }
  }
  return answered
}
