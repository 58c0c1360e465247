/**
 * The backend's HTTP face (src/protocol.ts): token ids in, token ids out. Everything under /v1 wants the secret;
 * /health, /ready and /metrics are for the private network. It answers before the weights are loaded: alive, not ready.
 */
import { createHash, timingSafeEqual } from 'node:crypto'
import { Hono, type MiddlewareHandler } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import { ApiError } from '../src/errors.ts'
import { parse, parseJson } from '../src/json-body.ts'
import { GenerateRequest, PrefixRequest, type CancelResponse, type ModelCard } from '../src/protocol.ts'
import { resolveSampling, type ResolvedSampling } from '../src/sampling.ts'
import type { Engine } from './engine.ts'
import { eventStream } from './event-queue.ts'
import { Generations, type Outcome } from './generations.ts'
import type { Constraint } from './grammars.ts'
import { createMetrics } from './metrics.ts'
import { warmPrefix } from './prefixes.ts'

const body_bytes_max = 4 * 1024 ** 2
const retry_after_s = 2
/** nginx's word for a client that left before its answer; nobody reads it but the log. */
const status_client_gone = 499

export interface ServiceOptions {
  model: string
  secret: string
  heartbeat_ms?: number
  onOutcome?: (outcome: Outcome) => void
}

export interface Service {
  app: Hono
  /** From here on it is ready. */
  attach(engine: Engine, card: ModelCard): void
  /** It cannot compute any more: not healthy, and what comes is refused with the reason. */
  fail(reason: string): void
  /** Takes no more; resolves when what runs has ended, or was cancelled because `grace_ms` was over. */
  drain(grace_ms: number): Promise<void>
}

export function createService(options: ServiceOptions): Service {
  let loaded: { engine: Engine; card: ModelCard } | null = null
  let failure: string | null = null
  let draining = false
  let asleep = false
  /** Sleeping and waking, one after the other. */
  let turn = Promise.resolve()
  const inTurn = (work: () => Promise<void>) => (turn = turn.then(work, work))
  const metrics = createMetrics(options.model, () => loaded?.engine ?? null)
  const generations = new Generations({
    ...metrics,
    ended(outcome) {
      metrics.ended(outcome)
      options.onOutcome?.(outcome)
    },
  })

  const running = () => {
    if (loaded !== null) return loaded
    throw new ApiError('backend_unavailable', 'The model is still loading', { retryAfterS: retry_after_s })
  }
  const alive = () => {
    if (failure !== null)
      throw new ApiError('backend_unavailable', `The engine has failed: ${failure}`, {
        retryAfterS: retry_after_s,
      })
  }
  const accepting = () => {
    alive()
    if (asleep)
      throw new ApiError('backend_unavailable', 'This backend sleeps: POST /v1/wake', {
        retryAfterS: retry_after_s,
      })
    if (!draining) return running()
    throw new ApiError('backend_unavailable', 'This backend is draining', { retryAfterS: retry_after_s })
  }

  const app = new Hono()
    .get('/health', (c) => {
      alive()
      return c.json({ status: 'ok' })
    })
    .get('/ready', (c) => c.json({ status: 'ready', model: accepting().card.id }))
    .get('/metrics', async (c) => c.body(await metrics.text(), 200, { 'content-type': metrics.contentType }))
    .use('/v1/*', secretRequired(options.secret))
    .get('/v1/model', (c) => c.json(running().card))
    .post('/v1/generate', limitBody, async (c) => {
      const { engine, card } = accepting()
      const request = parse(GenerateRequest, parseJson(await c.req.text()))
      const signal = c.req.raw.signal
      const resolved = sampling(request, card, engine.model.contextLength)
      const generation = generations.start(
        engine,
        request,
        resolved,
        await constraints(engine, resolved, request.cache?.salt ?? ''),
      )
      if (!(await generation.events.waited({ signal }))) {
        generation.cancel()
        return new Response(null, { status: status_client_gone })
      }
      const failure = generation.events.failure()
      if (failure !== null) throw new ApiError(failure.error.code, failure.error.message)
      const body = eventStream(generation.events, options.heartbeat_ms ?? 10_000, generation.cancel)
      return c.body(body, 200, {
        'content-type': 'text/event-stream',
        'cache-control': 'no-store',
        'x-accel-buffering': 'no',
      })
    })
    .post('/v1/generate/:request_id/cancel', async (c) => {
      const request_id = c.req.param('request_id')
      const index = c.req.query('index')
      const cancelled = await generations.cancel(request_id, index === undefined ? null : Number(index))
      const answer: CancelResponse = { request_id, ...cancelled }
      return c.json(answer)
    })
    .post('/v1/prefixes', limitBody, async (c) => {
      const { engine } = accepting()
      const request = parse(PrefixRequest, parseJson(await c.req.text()))
      if (request.token_ids.length > engine.model.contextLength)
        throw new ApiError(
          'context_length_exceeded',
          `The context holds ${engine.model.contextLength} tokens; the prefix has ${request.token_ids.length}`,
          { param: 'token_ids' },
        )
      return c.json(await warmPrefix(engine, request, c.req.raw.signal))
    })
    .post('/v1/sleep', async (c) => {
      const { engine } = running()
      await inTurn(async () => {
        asleep = true
        await generations.idle()
        await engine.sleep()
      })
      return c.json({ asleep: true })
    })
    .post('/v1/wake', async (c) => {
      const { engine } = running()
      await inTurn(async () => {
        await engine.wake()
        asleep = false
      })
      return c.json({ asleep: false })
    })
    .post('/v1/drain', (c) => {
      draining = true
      return c.json({ draining, running: generations.running })
    })
    .delete('/v1/drain', (c) => {
      draining = false
      return c.json({ draining, running: generations.running })
    })

  app.notFound((c) => render(new ApiError('not_found', `No route ${c.req.method} ${c.req.path}`)))
  app.onError((error, c) => {
    if (error instanceof ApiError) return render(error)
    process.stderr.write(`${c.req.method} ${c.req.path}: ${error.stack ?? String(error)}\n`)
    return render(new ApiError('internal_error', 'The backend failed; its log says why'))
  })

  return {
    app,
    attach(engine, card) {
      loaded = { engine, card }
    },
    fail(reason) {
      failure = reason
    },
    async drain(grace_ms) {
      draining = true
      const timer = setTimeout(() => generations.cancelAll(), grace_ms)
      await generations.idle()
      clearTimeout(timer)
    },
  }
}

const render = (error: ApiError): Response =>
  Response.json(error.body(), { status: error.status, headers: error.headers })

const limitBody = bodyLimit({
  maxSize: body_bytes_max,
  onError() {
    throw new ApiError('body_too_large', `A request body may have ${body_bytes_max} bytes`)
  },
})

/** Digests are compared, so neither the secret's length nor its beginning shows in the time taken. */
function secretRequired(secret: string): MiddlewareHandler {
  const digest = (text: string) => createHash('sha256').update(text).digest()
  const expected = digest(secret)
  return async function secretRequired(c, next) {
    const given = /^Bearer (.+)$/.exec(c.req.header('authorization') ?? '')?.[1]
    if (given === undefined)
      throw new ApiError('missing_api_key', 'Send the backend secret as authorization: Bearer SECRET')
    if (!timingSafeEqual(digest(given), expected))
      throw new ApiError('invalid_api_key', 'The backend secret is wrong')
    await next()
  }
}

/** @param context tokens: what the engine's memory holds, at most what the model knows. */
function sampling(request: GenerateRequest, card: ModelCard, context: number): ResolvedSampling {
  if (request.model !== card.id)
    throw new ApiError('model_not_found', `This backend runs ${card.id}, not ${request.model}`, {
      param: 'model',
    })
  const prompt = request.token_ids.length
  const room = context - prompt
  const { max_tokens = 1 } = request.sampling
  // All that the model's context holds is how a gateway says 'until it ends': here until the memory ends.
  const asked = max_tokens === card.context_length - prompt ? 1 : max_tokens
  if (asked > room)
    throw new ApiError(
      'context_length_exceeded',
      `The context holds ${context} tokens; the prompt has ${prompt}, ${asked} more do not fit`,
      { param: prompt >= context ? 'token_ids' : 'sampling.max_tokens' },
    )
  const resolved = resolveSampling(request.sampling, card.generation, room)
  return { ...resolved, max_tokens: Math.min(resolved.max_tokens, room) }
}

/** One for each answer, all of one grammar; none where it is free. */
async function constraints(engine: Engine, sampling: ResolvedSampling, salt: string): Promise<Constraint[]> {
  const { grammar, n } = sampling
  if (grammar === null) return []
  const opened = await Promise.allSettled(
    Array.from({ length: n }, () => engine.constrain(grammar, sampling, salt)),
  )
  const failed = opened.find(({ status }) => status === 'rejected')
  if (failed?.status !== 'rejected')
    return opened.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
  for (const one of opened) if (one.status === 'fulfilled') one.value.close()
  throw failed.reason
}
