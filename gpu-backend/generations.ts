/**
 * The generations under way, by request id, and the exact usage of those that ended in the last ten minutes: a caller
 * whose stream broke asks for it by cancelling, as often as it likes.
 */
import { performance } from 'node:perf_hooks'
import { ApiError, isErrorCode, type ErrorBody, type ErrorCode } from '../src/errors.ts'
import type { FinishReason, GenerateEvent, GenerateRequest, Timing, TokenUsage } from '../src/protocol.ts'
import type { ResolvedSampling } from '../src/sampling.ts'
import type { Engine, EngineEvent } from './engine.ts'
import { EventQueue } from './event-queue.ts'

const usage_kept_ms = 10 * 60 * 1000
const usages_max = 50_000
const retry_after_s = 1

/** One finished generation, for metrics and the log. */
export interface Outcome {
  request_id: string
  finish: FinishReason | 'error'
  code: ErrorCode | null
  usage: TokenUsage
  timing: Timing | null
  ttft_ms: number | null
  total_ms: number
}

export interface Observer {
  /** More than one where the engine was faster than the event loop. */
  firstTokens(seconds: number, count: number): void
  nextTokens(seconds: number, count: number): void
  ended(outcome: Outcome): void
}

export interface Generation {
  events: EventQueue
  cancel: () => void
}

interface Live extends Generation {
  ended: Promise<TokenUsage>
}

export class Generations {
  #live = new Map<string, Live>()
  /** Oldest first. */
  #usages = new Map<string, { usage: TokenUsage; forgottenAt: number }>()
  #observer: Observer
  #idle: (() => void)[] = []

  constructor(observer: Observer) {
    this.#observer = observer
  }

  get running(): number {
    return this.#live.size
  }

  /** Throws ApiError when the engine does not take it. */
  start(engine: Engine, request: GenerateRequest, sampling: ResolvedSampling): Generation {
    const { request_id } = request
    if (this.#live.has(request_id))
      throw new ApiError('conflict', `A generation with request_id ${request_id} is under way`, {
        param: 'request_id',
      })
    const events = new EventQueue()
    const ended = Promise.withResolvers<TokenUsage>()
    let over = false
    const watch = new Stopwatch(request.token_ids.length, this.#observer)
    const handle = submitted(() =>
      engine.submit(
        {
          tokenIds: Uint32Array.from(request.token_ids),
          sampling,
          salt: request.cache?.salt ?? '',
          sharedPrefixTokens: request.cache?.shared_prefix_tokens ?? 0,
          priority: request.priority ?? 0,
          ...(request.deadline_ms === undefined ? {} : { deadlineMs: request.deadline_ms }),
        },
        (event) => {
          if (event.type === 'tokens') watch.tokens(event.tokenIds.length)
          else {
            over = true
            const outcome = watch.end(request_id, event)
            this.#end(request_id, outcome.usage)
            this.#observer.ended(outcome)
            ended.resolve(outcome.usage)
          }
          events.push(onWire(event))
        },
      ),
    )
    const live = { events, cancel: () => engine.cancel(handle), ended: ended.promise }
    if (!over) this.#live.set(request_id, live)
    return live
  }

  /** Stops it if it runs; its exact usage, or null where nothing is known under the id. */
  async cancel(request_id: string): Promise<TokenUsage | null> {
    const live = this.#live.get(request_id)
    if (live !== undefined) {
      live.cancel()
      return live.ended
    }
    this.#forget()
    return this.#usages.get(request_id)?.usage ?? null
  }

  cancelAll(): void {
    for (const live of this.#live.values()) live.cancel()
  }

  /** Resolves when nothing runs any more. */
  async idle(): Promise<void> {
    if (this.#live.size > 0) await new Promise<void>((resolve) => this.#idle.push(resolve))
  }

  #end(request_id: string, usage: TokenUsage): void {
    this.#live.delete(request_id)
    this.#usages.delete(request_id)
    this.#usages.set(request_id, { usage, forgottenAt: Date.now() + usage_kept_ms })
    this.#forget()
    if (this.#live.size === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }

  #forget(): void {
    const now = Date.now()
    for (const [id, { forgottenAt }] of this.#usages) {
      if (forgottenAt > now && this.#usages.size <= usages_max) return
      this.#usages.delete(id)
    }
  }
}

class Stopwatch {
  #started = performance.now()
  #last = this.#started
  #first: number | null = null
  #completion = 0
  #prompt: number
  #observer: Observer

  constructor(prompt: number, observer: Observer) {
    this.#prompt = prompt
    this.#observer = observer
  }

  tokens(count: number): void {
    const now = performance.now()
    if (this.#first === null) {
      this.#first = now - this.#started
      this.#observer.firstTokens(this.#first / 1000, count)
    } else this.#observer.nextTokens((now - this.#last) / 1000, count)
    this.#last = now
    this.#completion += count
  }

  end(request_id: string, event: Exclude<EngineEvent, { type: 'tokens' }>): Outcome {
    const common = { request_id, ttft_ms: this.#first, total_ms: performance.now() - this.#started }
    if (event.type === 'finish')
      return { ...common, finish: event.reason, code: null, usage: event.usage, timing: event.timing }
    return {
      ...common,
      finish: 'error',
      code: errorCode(event.code),
      usage: { prompt: this.#prompt, cached: 0, completion: this.#completion },
      timing: null,
    }
  }
}

const errorCode = (code: string): ErrorCode => (isErrorCode(code) ? code : 'engine_error')

function onWire(event: EngineEvent): GenerateEvent | ErrorBody {
  if (event.type === 'finish')
    return { index: 0, finish_reason: event.reason, usage: event.usage, timing: event.timing }
  if (event.type === 'error') return new ApiError(errorCode(event.code), event.message).body()
  const { tokenIds: token_ids, logprobs } = event
  return logprobs === undefined ? { index: 0, token_ids } : { index: 0, token_ids, logprobs }
}

/** The engine's own errors, as answers. */
function submitted(submit: () => number): number {
  try {
    return submit()
  } catch (error) {
    if (!(error instanceof Error)) throw error
    if (error.name === 'QueueFullError')
      throw new ApiError('queue_full', 'The queue is full; try again shortly', {
        retryAfterS: retry_after_s,
        cause: error,
      })
    if (error.name === 'InvalidRequestError')
      throw new ApiError('invalid_value', error.message, { cause: error })
    throw new ApiError('engine_error', error.message, { cause: error })
  }
}
