/**
 * Last on the line: nothing kept answers this request, so the engine does. What others may share or take up again runs
 * as a flight, in an object of the tenant; anything else runs right here, without the way there.
 */
import type { Context } from 'hono'
import { ApiError } from '../../src/errors.ts'
import { factory, type AppEnv } from '../app-env.ts'
import { joinFlight } from '../flights/flight-client.ts'
import { fitsLog } from '../flights/flight.ts'
import { generationId, wireId } from '../flights/flight-names.ts'
import { type Deltas } from './answers.ts'
import { startGeneration } from './generation.ts'
import type { Prompt } from './prompt.ts'
import { respond } from './respond.ts'
import { keep, storeNear } from '../cache/result-store.ts'

/** How long after its start a resumable answer can be read. */
const resumable_ms = 10 * 60 * 1000
const idempotent_ms = 24 * 60 * 60 * 1000

export const chat = factory.createHandlers(async function chat(c) {
  const { cache, prompt, resumable } = c.var
  const shared = cache.key !== null && !cache.fresh && fitsLog(prompt)
  return shared || resumable ? flight(c, shared) : direct(c)
})

async function direct(c: Context<AppEnv>): Promise<Response> {
  const { caller, prompt, cache } = c.var
  const form = { ...c.var.form, generationId: generationId(null) }
  if (form.after >= 0) {
    throw new ApiError('invalid_value', 'Nothing is known of an earlier answer to this request.', {
      param: 'last-event-id',
    })
  }
  const { signal, leave } = whileListening(c)
  const { deltas, headers, capped } = await startGeneration(prompt, {
    env: c.env,
    requestId: wireId(caller.tenantId, form.generationId),
    caller,
    signal,
    defer: (work) => c.executionCtx.waitUntil(work),
  })
  setHeaders(c, headers)
  c.set('cache', { ...cache, stored: cache.key !== null && !capped })
  const answer = cache.key === null ? deltas : kept(c, deltas, cache.key)
  return respond(c, form, answer, leave)
}

async function flight(c: Context<AppEnv>, shared: boolean): Promise<Response> {
  const { form, cache, resumable, idempotent } = c.var
  const { generationId: id, created, includeUsage, logprobs, n, toolCalls } = form
  const { signal, leave } = whileListening(c)
  const request = {
    ticket: { id, created, includeUsage, logprobs, n, toolCalls },
    key: shared ? cache.key : null,
    ttl_s: cache.ttl_s,
    oldest_ms: cache.oldest_s * 1000,
    resumable,
    expires: Date.now() + (idempotent ? idempotent_ms : resumable_ms),
    prompt: seeded(c.var.prompt),
    caller: c.var.caller,
    lines: [],
  }
  const { deltas, started, capped, headers } = await joinFlight(c.env, request, signal)
  setHeaders(c, headers)
  c.set('cache', {
    ...cache,
    ...(!started && shared
      ? { status: 'qwen-edge; fwd=miss; collapsed' as const }
      : { stored: cache.key !== null && !capped }),
  })
  const answer = started && cache.key !== null ? kept(c, deltas, cache.key) : deltas
  return respond(c, form, answer, leave)
}

/** Aborted by the platform, or by `leave` when writing to the caller shows that nobody is there. */
export function whileListening(c: Context<AppEnv>): { signal: AbortSignal; leave: () => void } {
  const gone = new AbortController()
  const leave = () => gone.abort()
  c.req.raw.signal.addEventListener('abort', leave)
  if (c.req.raw.signal.aborted) leave()
  return { signal: gone.signal, leave }
}

const kept = (c: Context<AppEnv>, deltas: Deltas, key: string): Deltas =>
  keep(deltas, c.var.cache.ttl_s, (entry) => {
    if (entry.finish.cut_short) return
    storeNear(key, entry, (work) => c.executionCtx.waitUntil(work))
  })

/** With a seed of its own a sampled answer that must be taken up again comes out the same. */
function seeded(prompt: Prompt): Prompt {
  const { sampling } = prompt
  if (sampling.temperature === 0 || sampling.seed !== null) return prompt
  const [seed = 0] = crypto.getRandomValues(new Uint32Array(1))
  return { ...prompt, sampling: { ...sampling, seed } }
}

function setHeaders(c: Context<AppEnv>, headers: Record<string, string>): void {
  for (const [name, value] of Object.entries(headers)) c.header(name, value)
}
