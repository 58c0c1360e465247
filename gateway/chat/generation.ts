/**
 * One generation as the edge sees it: admitted, asked of the backend, its tokens made answers (answers.ts), and settled
 * however it ends. Whatever the source, backend or cache, what comes out is a stream of Deltas.
 */
import { ApiError } from '../../src/errors.ts'
import type { TokenUsage } from '../../src/protocol.ts'
import { admit } from '../limits/admission.ts'
import { Answers, isFinishDelta, type Deltas, type FinishDelta } from './answers.ts'
import * as backend from './backend.ts'
import type { Caller } from '../keys/identify.ts'
import { notActive } from '../limits/limit-headers.ts'
import { model } from '../model.ts'
import type { Prompt } from './prompt.ts'

export interface GenerationContext {
  env: Env
  /** Under which the backend knows the generation. */
  requestId: string
  caller: Caller
  signal: AbortSignal
  /** Work that outlives the answer. */
  defer: (work: Promise<unknown>) => void
  /** Tokens of the answer that an earlier attempt has given out already: it goes on after them. */
  emitted?: number[]
}

export interface Generation {
  deltas: Deltas
  /** For the answer of whoever started it. */
  headers: Record<string, string>
  /** Its starter's limits hold less than was asked for. */
  capped: boolean
}

/**
 * The one place where the engine is set to work: a request that nothing kept answers, or a flight for its first
 * subscriber. Throws ApiError when the caller may not start one.
 */
export async function startGeneration(asked: Prompt, context: GenerationContext): Promise<Generation> {
  const { prompt, headers, settle } = await admit(asked, context)
  const answers = new Answers(asked, context.emitted ?? [])
  // From the start: the platform ends a request whose caller has left, unless it knows of work that is not done.
  const settled = Promise.withResolvers<void>()
  context.defer(settled.promise)
  return {
    deltas: generate(prompt, answers, context, (usage) => settled.resolve(usage.then(settle))),
    headers,
    capped: prompt.sampling.max_tokens < asked.sampling.max_tokens,
  }
}

/** @param settle called once, as soon as it is known how what was used will be known. */
async function* generate(
  prompt: Prompt,
  answers: Answers,
  context: GenerationContext,
  settle: (usage: Promise<TokenUsage | null>) => void,
): Deltas {
  const { emitted = [] } = context
  const request = wireRequest(continued(prompt, emitted), context)
  const events = backend.generate(context.env, request, context.signal, context.defer)
  let running = true
  try {
    for await (const batch of events) {
      const deltas = answers.push(batch)
      const stopping = answers.newlyStopped()
      if (answers.over && !deltas.some(isFinishDelta)) deltas.push(await endAtStop(context, answers))
      else for (const index of stopping) context.defer(stopOne(context, index))
      const finish = deltas.find(isFinishDelta)
      if (finish !== undefined) {
        running = false
        settle(Promise.resolve(ownShare(finish.usage, emitted.length)))
      }
      yield deltas
      if (!running) return
    }
  } catch (cause) {
    throw await whyEnded(cause, context)
  } finally {
    // The stream is closed by now, which cancels at the backend; asking by name as well covers a proxy that keeps it
    // open, and says what was used.
    if (running) settle(usedSoFar(prompt, context, answers.tokens - emitted.length))
  }
}

/** One that neither its caller nor anyone here stopped may be its tenant's, which was suspended or deleted meanwhile. */
async function whyEnded(cause: unknown, { env, caller, signal }: GenerationContext): Promise<unknown> {
  const wasStopped = cause instanceof ApiError && cause.code === 'request_cancelled' && !signal.aborted
  if (!wasStopped) return cause
  const tenant = env.TENANT.getByName(caller.tenantId)
  const found = await tenant.look(caller.keyId).catch(() => null)
  return found === null || found.standing === 'active' ? cause : notActive(found.standing)
}

/** After an abort or a failure: what the backend says it took, else what came through; null: nothing did. */
async function usedSoFar(
  prompt: Prompt,
  context: GenerationContext,
  completion: number,
): Promise<TokenUsage | null> {
  const used = await backend.cancel(context.env, context.requestId).catch(() => null)
  if (context.emitted?.length) return { prompt: 0, cached: 0, completion: used?.completion ?? completion }
  return used ?? (completion === 0 ? null : { prompt: prompt.tokenIds.length, cached: 0, completion })
}

/** An earlier attempt has paid for the prompt and for what it gave out. */
const ownShare = (usage: TokenUsage, emitted: number): TokenUsage =>
  emitted === 0 ? usage : { prompt: 0, cached: 0, completion: usage.completion - emitted }

/** Stop strings ended the answers: the engine is stopped; they cost what was read until then. */
async function endAtStop(context: GenerationContext, answers: Answers): Promise<FinishDelta> {
  const used = await backend.cancel(context.env, context.requestId).catch(() => null)
  return answers.endedByStop(used?.cached ?? 0)
}

/** The others go on; where it cannot be said, that one runs to its end for nobody. */
const stopOne = async ({ env, requestId }: GenerationContext, index: number) =>
  backend.cancel(env, requestId, index).catch(() => null)

/** What was given out is prompt now; noise and penalties that go by absolute position or over all tokens stay the same. */
function continued(prompt: Prompt, emitted: number[]): Prompt {
  if (emitted.length === 0) return prompt
  const { tokenIds, sampling } = prompt
  const max_tokens = sampling.max_tokens - emitted.length
  const min_tokens = Math.max(0, sampling.min_tokens - emitted.length)
  return {
    ...prompt,
    tokenIds: [...tokenIds, ...emitted],
    sampling: { ...sampling, max_tokens, min_tokens },
  }
}

const wireRequest = (prompt: Prompt, context: GenerationContext) => ({
  request_id: context.requestId,
  model: model.id,
  token_ids: prompt.tokenIds,
  sampling: wireSampling(prompt),
  cache: { salt: context.caller.tenantId, shared_prefix_tokens: prompt.sharedPrefixTokens },
  priority: prompt.priority ?? 0,
})

function wireSampling({ sampling: { seed, logprobs, grammar, ...rest } }: Prompt) {
  return {
    ...rest,
    ...(seed === null ? {} : { seed }),
    ...(logprobs === null ? {} : { logprobs }),
    ...(grammar === null ? {} : { grammar }),
  }
}
