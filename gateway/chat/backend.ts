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
  type WireError,
} from '../../src/protocol.ts'
import { readSse, type SseEvent } from '../../src/sse.ts'

const retry_after_s = 1
/** Three of the backend's heartbeats: whoever is silent longer has vanished or hangs. */
const silence_ms_max = 30_000
const probe_ms = 2_000

/** The connection broke in the middle of an answer: whoever has what came can go on from there. */
export class Broken extends ApiError {
  constructor(what: string, cause?: unknown) {
    super('backend_unavailable', message(what), { retryAfterS: retry_after_s, cause })
  }
}

/**
 * Runs one generation; each item is what one read of the stream held. Ends after each answer's finish event.
 * @param defer work that outlives the generation
 */
export async function* generate(
  env: Env,
  request: GenerateRequest,
  signal: AbortSignal,
  defer: (work: Promise<unknown>) => void,
): AsyncGenerator<GenerateEvent[]> {
  const watch = new Watch(signal, firstTokenMs(env))
  let reads: AsyncGenerator<SseEvent[]> | null = null
  let open = request.sampling.n ?? 1
  try {
    const response = await call(env, '/v1/generate', { method: 'POST', body: JSON.stringify(request) }, watch)
    if (response.body === null) throw unavailable('answered without a body')
    watch.answered(silence_ms_max)
    reads = readSse(response.body)
    while (open > 0) {
      const { done, value } = await reads.next()
      if (done === true) throw new Broken('ended its answer early')
      watch.heard()
      const batch: GenerateEvent[] = []
      for (const { event, data } of value) {
        if (event === 'error') throw fromWire(data, 500)
        const parsed = JSON.parse(data) as GenerateEvent
        if (isFinish(parsed)) open--
        batch.push(parsed)
      }
      if (batch.length > 0) yield batch
    }
  } catch (cause) {
    throw watch.asApiError(cause, reads !== null)
  } finally {
    if (open === 0 && reads !== null) defer(drain(reads, watch))
    else {
      watch.end()
      await reads?.return(undefined)
    }
  }
}

/** Read to its end a connection serves again; one that is cancelled is closed. */
async function drain(reads: AsyncGenerator<SseEvent[]>, watch: Watch): Promise<void> {
  try {
    if ((await reads.next()).done !== true) await reads.return(undefined)
  } catch {
    // It broke, or its caller left: it is closed either way.
  } finally {
    watch.end()
  }
}

/** One signal and one timer for a call: aborted when its caller leaves, or when the backend is silent for too long. */
class Watch {
  readonly #signal: AbortSignal
  readonly #abort = new AbortController()
  readonly #leave = () => this.#abort.abort()
  #timer: number
  #heard_ms = Date.now()
  #silence_ms_max: number
  #what = 'did not answer in time'
  #silent = false

  constructor(signal: AbortSignal, silence_ms_max: number) {
    this.#signal = signal
    this.#silence_ms_max = silence_ms_max
    signal.addEventListener('abort', this.#leave)
    if (signal.aborted) this.#leave()
    this.#timer = this.#wake(silence_ms_max)
  }

  get signal(): AbortSignal {
    return this.#abort.signal
  }

  heard(): void {
    this.#heard_ms = Date.now()
  }

  /** It has answered; from now on it may be silent so long. */
  answered(silence_ms_max: number): void {
    this.heard()
    this.#what = 'fell silent'
    this.#silence_ms_max = silence_ms_max
    clearTimeout(this.#timer)
    this.#timer = this.#wake(silence_ms_max)
  }

  end(): void {
    clearTimeout(this.#timer)
    this.#signal.removeEventListener('abort', this.#leave)
  }

  /** What a failed call means. @param isBegun it broke in the middle of its answer */
  asApiError(cause: unknown, isBegun = false): ApiError {
    if (cause instanceof ApiError) return cause
    if (this.#silent) return unavailable(this.#what, cause)
    if (this.#signal.aborted) return new ApiError('request_cancelled', 'The caller went away.', { cause })
    return isBegun ? new Broken('cannot be reached', cause) : unavailable('cannot be reached', cause)
  }

  /** Being heard moves no timer; one that ends goes on, a second at most. */
  #wake(wait_ms: number): number {
    return setTimeout(
      () => {
        const rest_ms = this.#heard_ms + this.#silence_ms_max - Date.now()
        if (rest_ms > 0) this.#timer = this.#wake(rest_ms)
        else {
          this.#silent = true
          this.#abort.abort()
        }
      },
      Math.min(wait_ms, 1_000),
    )
  }
}

/** Longest wait for a first token: a full queue and a long prefill before it. */
const firstTokenMs = (env: Env) => Number(env.FIRST_TOKEN_SECONDS) * 1000

/** Stops a generation and says what it has used; null when the backend knows nothing of it. */
export const cancel = async (env: Env, requestId: string, index: number | null = null) =>
  (await stop(env, requestId, index)).usage

/**
 * The same, and how it ended: it may have been over.
 * @param index one of its answers, the others go on; null: all of it
 */
export async function stop(
  env: Env,
  requestId: string,
  index: number | null = null,
): Promise<CancelResponse> {
  const path = `/v1/generate/${encodeURIComponent(requestId)}/cancel${index === null ? '' : `?index=${index}`}`
  return ask<CancelResponse>(env, path, { method: 'POST' }, probe_ms)
}

/** Computes a prompt into the prefix cache; answers when it is there. */
export async function warmPrefix(
  env: Env,
  request: PrefixRequest,
  signal: AbortSignal,
): Promise<PrefixResponse> {
  const body = JSON.stringify(request)
  return ask(env, '/v1/prefixes', { method: 'POST', body }, firstTokenMs(env), signal)
}

/** Whether generations would be served, and by the model whose tokens this gateway speaks. */
export async function backendState(
  env: Env,
  card: ModelCard,
): Promise<'ready' | 'unreachable' | 'loading' | 'other model'> {
  try {
    const running = await ask<ModelCard>(env, '/v1/model', {}, probe_ms)
    const ready = await fetch(`${env.BACKEND_URL}/ready`, { signal: AbortSignal.timeout(probe_ms) })
    await ready.body?.cancel()
    if (!ready.ok) return 'loading'
    return running.revision === card.revision ? 'ready' : 'other model'
  } catch (error) {
    return error instanceof ApiError && error.message.includes('refused') ? 'loading' : 'unreachable'
  }
}

async function call(env: Env, path: string, init: RequestInit, watch: Watch): Promise<Response> {
  const response = await fetch(env.BACKEND_URL + path, {
    ...init,
    headers: { authorization: `Bearer ${env.BACKEND_SECRET}`, 'content-type': 'application/json' },
    signal: watch.signal,
    redirect: 'manual',
  })
  if (response.ok) return response
  const text = await response.text()
  if (response.status === 401) throw unavailable("refused the gateway's secret")
  throw fromWire(text, response.status, response.headers.get('retry-after'))
}

/** Calls and reads the JSON answer. */
async function ask<T>(
  env: Env,
  path: string,
  init: RequestInit,
  wait_ms: number,
  signal: AbortSignal = new AbortController().signal,
): Promise<T> {
  const watch = new Watch(signal, wait_ms)
  try {
    return await (await call(env, path, init, watch)).json<T>()
  } catch (cause) {
    throw watch.asApiError(cause)
  } finally {
    watch.end()
  }
}

const message = (what: string) => `The model's backend ${what}. Try again shortly.`

const unavailable = (what: string, cause?: unknown) =>
  new ApiError('backend_unavailable', message(what), { retryAfterS: retry_after_s, cause })

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
