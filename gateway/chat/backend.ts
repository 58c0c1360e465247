/**
 * The gateway's side of src/protocol.ts. Every failure becomes an ApiError that says whether trying again helps:
 * a backend that cannot be reached, refuses our secret or ends early is `backend_unavailable` (503, Retry-After).
 */
import { ApiError, isErrorCode } from '../../src/errors.ts'
import {
  isFinish,
  type CancelResponse,
  type GenerateEvent,
  type GenerateRequest,
  type ModelCard,
  type PrefixRequest,
  type PrefixResponse,
  type TokenUsage,
  type WireError,
} from '../../src/protocol.ts'
import { readSse } from '../../src/sse.ts'

const retry_after_s = 1
/** Three of the backend's heartbeats: whoever is silent longer has vanished or hangs. */
const silence_ms_max = 30_000
const probe_ms = 2_000

/** Runs one generation; each item is what one read of the stream held. Ends after each answer's finish event. */
export async function* generate(
  env: Env,
  request: GenerateRequest,
  signal: AbortSignal,
): AsyncGenerator<GenerateEvent[]> {
  const silent = new AbortController()
  const response = await call(
    env,
    '/v1/generate',
    { method: 'POST', body: JSON.stringify(request) },
    AbortSignal.any([signal, silent.signal]),
    firstTokenMs(env),
  )
  if (response.body === null) throw unavailable('answered without a body')
  let open = request.sampling.n ?? 1
  let heard_ms = Date.now()
  const watch = setInterval(() => {
    if (Date.now() - heard_ms > silence_ms_max) silent.abort()
  }, 1_000)
  try {
    for await (const events of readSse(response.body)) {
      heard_ms = Date.now()
      if (events.length === 0) continue
      const batch: GenerateEvent[] = []
      for (const { event, data } of events) {
        if (event === 'error') throw fromWire(data, 500)
        batch.push(JSON.parse(data) as GenerateEvent)
      }
      open -= batch.filter(isFinish).length
      yield batch
      if (open === 0) return
    }
  } catch (cause) {
    if (silent.signal.aborted) throw unavailable('fell silent', cause)
    throw asApiError(cause, signal)
  } finally {
    clearInterval(watch)
  }
  throw unavailable('ended its answer early')
}

/** Longest wait for a first token: a full queue and a long prefill before it. */
const firstTokenMs = (env: Env) => Number(env.FIRST_TOKEN_SECONDS) * 1000

/**
 * Stops a generation and says what it has used; null when the backend knows nothing of it.
 * @param index one of its answers, the others go on; null: all of it
 */
export async function cancel(
  env: Env,
  requestId: string,
  index: number | null = null,
): Promise<TokenUsage | null> {
  const signal = new AbortController().signal
  const response = await call(
    env,
    `/v1/generate/${encodeURIComponent(requestId)}/cancel${index === null ? '' : `?index=${index}`}`,
    { method: 'POST' },
    signal,
    probe_ms,
  )
  return (await response.json<CancelResponse>()).usage
}

/** Computes a prompt into the prefix cache; answers when it is there. */
export async function warmPrefix(
  env: Env,
  request: PrefixRequest,
  signal: AbortSignal,
): Promise<PrefixResponse> {
  const body = JSON.stringify(request)
  return (await call(env, '/v1/prefixes', { method: 'POST', body }, signal, firstTokenMs(env))).json()
}

/** Whether generations would be served, and by the model whose tokens this gateway speaks. */
export async function backendState(
  env: Env,
  card: ModelCard,
): Promise<'ready' | 'unreachable' | 'loading' | 'other model'> {
  const signal = new AbortController().signal
  try {
    const running = await (await call(env, '/v1/model', {}, signal, probe_ms)).json<ModelCard>()
    const ready = await fetch(`${env.BACKEND_URL}/ready`, { signal: AbortSignal.timeout(probe_ms) })
    await ready.body?.cancel()
    if (!ready.ok) return 'loading'
    return running.revision === card.revision ? 'ready' : 'other model'
  } catch (error) {
    return error instanceof ApiError && error.message.includes('refused') ? 'loading' : 'unreachable'
  }
}

async function call(
  env: Env,
  path: string,
  init: RequestInit,
  signal: AbortSignal,
  wait_ms: number,
): Promise<Response> {
  const waiting = new AbortController()
  const timer = setTimeout(() => waiting.abort(), wait_ms)
  let response: Response
  try {
    response = await fetch(env.BACKEND_URL + path, {
      ...init,
      headers: { authorization: `Bearer ${env.BACKEND_SECRET}`, 'content-type': 'application/json' },
      signal: AbortSignal.any([signal, waiting.signal]),
      redirect: 'manual',
    })
  } catch (cause) {
    if (waiting.signal.aborted) throw unavailable('did not answer in time', cause)
    throw asApiError(cause, signal)
  } finally {
    clearTimeout(timer)
  }
  if (response.ok) return response
  const text = await response.text()
  if (response.status === 401) throw unavailable("refused the gateway's secret")
  throw fromWire(text, response.status, response.headers.get('retry-after'))
}

const unavailable = (what: string, cause?: unknown) =>
  new ApiError('backend_unavailable', `The model's backend ${what}. Try again shortly.`, {
    retryAfterS: retry_after_s,
    cause,
  })

function asApiError(cause: unknown, signal: AbortSignal): ApiError {
  if (cause instanceof ApiError) return cause
  if (signal.aborted) return new ApiError('request_cancelled', 'The caller went away.', { cause })
  return unavailable('cannot be reached', cause)
}

function fromWire(text: string, status: number, retryAfter: string | null = null): ApiError {
  try {
    const { error } = JSON.parse(text) as WireError
    if (isErrorCode(error.code)) {
      const retryAfterS = retryAfter === null ? {} : { retryAfterS: Number(retryAfter) }
      return new ApiError(error.code, error.message, {
        ...retryAfterS,
        ...(error.param === null ? {} : { param: error.param }),
      })
    }
  } catch {
    // Not one of ours: something between the gateway and the backend answered.
  }
  return unavailable(`answered ${status}`)
}
