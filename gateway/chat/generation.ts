/**
 * One generation as the edge sees it: token ids from the backend become text, stop strings end it, and an answer that
 * went through to its end can be kept and replayed. Whatever the source, backend or cache, it is a stream of Deltas.
 */
import { ApiError } from '../../src/errors.ts'
import {
  isFinish,
  type FinishEvent,
  type GenerateEvent,
  type Timing,
  type TokenLogprobs,
  type TokenUsage,
  type TokensEvent,
} from '../../src/protocol.ts'
import { StopMatcher } from '../../src/stop-strings.ts'
import { Detokenizer } from '../../src/tokenizer/detokenizer.ts'
import { admit } from '../limits/admission.ts'
import * as backend from './backend.ts'
import type { Caller } from '../keys/identify.ts'
import { model, tokenizer } from '../model.ts'
import type { Prompt } from './prompt.ts'

export interface TextDelta {
  type: 'text'
  text: string
  token_ids: number[]
  logprobs?: TokenLogprobs[]
}

export interface FinishDelta {
  type: 'finish'
  reason: 'stop' | 'length'
  usage: TokenUsage
  /** null: nothing ran for this answer. */
  timing: Timing | null
}

export type Delta = TextDelta | FinishDelta
export const isFinishDelta = (delta: Delta): delta is FinishDelta => delta.type === 'finish'

/** Each item is what one read gave, in order; the last holds the finish. */
export type Deltas = AsyncGenerator<Delta[]>

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
}

/**
 * The one place where the engine is set to work: a request that nothing kept answers, or a flight for its first
 * subscriber. Throws ApiError when the caller may not start one.
 */
export async function startGeneration(asked: Prompt, context: GenerationContext): Promise<Generation> {
  const { prompt, headers, settle } = await admit(asked, context)
  return { deltas: generate(prompt, context, (usage) => context.defer(usage.then(settle))), headers }
}

/** @param settle called once, as soon as it is known how what was used will be known. */
async function* generate(
  prompt: Prompt,
  context: GenerationContext,
  settle: (usage: Promise<TokenUsage | null>) => void,
): Deltas {
  const stopped = new AbortController()
  const { emitted = [] } = context
  const events = backend.generate(
    context.env,
    wireRequest(continued(prompt, emitted), context),
    AbortSignal.any([context.signal, stopped.signal]),
  )
  const text = new TextStage(prompt, emitted)
  let running = true
  try {
    for await (const batch of events) {
      const deltas = text.push(batch)
      if (text.stopped && !deltas.some(isFinishDelta))
        deltas.push(await endAtStop(prompt, context, text, stopped))
      const finish = deltas.find(isFinishDelta)
      if (finish !== undefined) {
        running = false
        settle(Promise.resolve(ownShare(finish.usage, emitted.length)))
      }
      yield deltas
      if (!running) return
    }
  } finally {
    // An abort closes the stream, which cancels at the backend; asking by name as well covers a proxy that keeps it open,
    // and says what was used.
    if (running) {
      stopped.abort()
      settle(usedSoFar(prompt, context, text.tokens - emitted.length))
    }
  }
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

/** A stop string came up: the engine is stopped; the answer costs what was read until then. */
async function endAtStop(
  prompt: Prompt,
  context: GenerationContext,
  text: TextStage,
  stopped: AbortController,
): Promise<FinishDelta> {
  const used = await backend.cancel(context.env, context.requestId).catch(() => null)
  stopped.abort()
  return {
    type: 'finish',
    reason: 'stop',
    usage: { prompt: prompt.tokenIds.length, cached: used?.cached ?? 0, completion: text.tokens },
    timing: null,
  }
}

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

/** Tokens to text: never half a character, nothing of a stop string. */
class TextStage {
  tokens = 0
  readonly #detokenizer = new Detokenizer(tokenizer)
  readonly #matcher: StopMatcher
  readonly #emitted: number

  constructor(prompt: Prompt, emitted: number[]) {
    this.#matcher = new StopMatcher(prompt.stop)
    this.#emitted = emitted.length
    this.#tokens({ index: 0, token_ids: emitted })
  }

  get stopped(): boolean {
    return this.#matcher.matched
  }

  push(events: GenerateEvent[]): Delta[] {
    return events.flatMap((event) => (isFinish(event) ? this.#finish(event) : this.#tokens(event)))
  }

  /** One delta a token, however the engine's steps were read: so a position in an answer means the same everywhere. */
  #tokens(event: TokensEvent): TextDelta[] {
    const deltas: TextDelta[] = []
    for (const [at, id] of event.token_ids.entries()) {
      if (this.stopped) break
      this.tokens++
      const text = this.#matcher.push(this.#detokenizer.push([id]))
      const logprobs = event.logprobs?.[at]
      deltas.push({ type: 'text', text, token_ids: [id], ...(logprobs ? { logprobs: [logprobs] } : {}) })
    }
    return deltas
  }

  #finish(event: FinishEvent): Delta[] {
    const { finish_reason, usage, timing } = event
    if (finish_reason === 'deadline')
      throw new ApiError('deadline_exceeded', 'The generation took longer than its deadline.')
    if (finish_reason === 'cancelled')
      throw new ApiError('request_cancelled', 'The generation was cancelled.')
    const tail = this.#matcher.push(this.#detokenizer.flush()) + this.#matcher.flush()
    const finish: FinishDelta = {
      type: 'finish',
      reason: this.stopped ? 'stop' : finish_reason,
      usage: {
        prompt: usage.prompt - this.#emitted,
        cached: Math.min(usage.cached, usage.prompt - this.#emitted),
        completion: usage.completion + this.#emitted,
      },
      timing,
    }
    return tail === '' ? [finish] : [{ type: 'text', text: tail, token_ids: [] }, finish]
  }
}
