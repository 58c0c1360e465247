/** One chat request answered without a client: the same line as over HTTP, walked for a caller who was known before. */
import { Hono } from 'hono'
import { ApiError } from '../../src/errors.ts'
import type { AppEnv } from '../app-env.ts'
import type { Caller } from '../keys/identify.ts'
import { line } from './line.ts'

export interface Ask {
  requestId: string
  caller: Caller
  /** A chat request's body, as it came. */
  body: object
  signal: AbortSignal
  /** Higher runs first; 0 is what a client's request has. */
  priority?: number
}

export type Answer =
  | { ok: true; response: ChatCompletion }
  | { ok: false; error: ApiError; retryAfterS: number | null }
  /** The connection broke after the answer had begun. */
  | { ok: false; error: null }

/** What jobs read of an answer; the rest passes through. */
export interface ChatCompletion {
  id: string
  model: string
  choices: { message: { role: string; content: string | null }; finish_reason: string }[]
  usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number }
}

type Work = Pick<ExecutionContext, 'waitUntil'>

export async function answer(env: Env, work: Work, ask: Ask): Promise<Answer> {
  const app = new Hono<AppEnv>()
    .use(async (c, next) => {
      c.set('requestId', ask.requestId)
      c.set('caller', ask.caller)
      c.set('priority', ask.priority ?? 0)
      c.set('unattended', true)
      await next()
    })
    .post('/', ...line)
    .onError((cause, c) => {
      failure = cause instanceof ApiError ? cause : unexpected(ask.requestId, cause)
      return c.body(null, 500)
    })
  let failure: ApiError | null = null
  const request = new Request('http://line/', {
    method: 'POST',
    body: JSON.stringify({ ...ask.body, stream: false }),
    signal: ask.signal,
  })
  const context = {
    waitUntil: (promise: Promise<unknown>) => work.waitUntil(promise),
    passThroughOnException: () => undefined,
    props: {},
  } as unknown as ExecutionContext
  const response = await app.fetch(request, env, context)
  const error = failure as ApiError | null
  if (error !== null) return { ok: false, error, retryAfterS: seconds(error.headers['retry-after']) }
  try {
    return { ok: true, response: await response.json<ChatCompletion>() }
  } catch {
    return { ok: false, error: null }
  }
}

const seconds = (header: string | undefined) => (header === undefined ? null : Number(header))

function unexpected(requestId: string, cause: unknown): ApiError {
  console.error(requestId, cause)
  return new ApiError('internal_error', 'Something failed here. It was logged under this request id.', {
    cause,
  })
}
