/**
 * The generations under way, by request id, and the exact usage of those that ended in the last ten minutes: a caller
 * whose stream broke asks for it by cancelling, as often as it likes.
 */
import { performance } from 'node:perf_hooks'
import { ApiError, type ErrorBody, type ErrorCode } from '../src/errors.ts'
import type {
  CancelResponse,
  FinishReason,
  GenerateEvent,
  GenerateRequest,
  Timing,
  TokenUsage,
} from '../src/protocol.ts'
import type { ResolvedSampling } from '../src/sampling.ts'
import type { Engine, EngineEvent } from './engine.ts'
import { errorCode, submitted } from './engine-errors.ts'
import { EventQueue } from './event-queue.ts'
import type { Constraint } from './grammars.ts'

const usage_kept_ms = 10 * 60 * 1000
const usages_max = 50_000

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
  ended: Promise<Outcome>
  /** What its answers have used up to now. */
  usage: () => TokenUsage
  cancelOne: (index: number) => void
}

export class Generations {
  #live = new Map<string, Live>()
  /** Oldest first. */
  #past = new Map<string, { outcome: Outcome; forgottenAt: number }>()
  #observer: Observer
  #idle: (() => void)[] = []

  constructor(observer: Observer) {
    this.#observer = observer
  }

  get running(): number {
    return this.#live.size
  }

  /** Throws ApiError when the engine does not take it. @param constraints of its answers, by index; closed with them. */
  start(
    engine: Engine,
    request: GenerateRequest,
    sampling: ResolvedSampling,
    constraints: Constraint[] = [],
  ): Generation {
    try {
      return this.#start(engine, request, sampling, constraints)
    } catch (error) {
      for (const constraint of constraints) constraint.close()
      throw error
    }
  }

  #start(
    engine: Engine,
    request: GenerateRequest,
    sampling: ResolvedSampling,
    constraints: Constraint[],
  ): Generation {
    const { request_id } = request
    if (this.#live.has(request_id))
      throw new ApiError('conflict', `A generation with request_id ${request_id} is under way`, {
        param: 'request_id',
      })
    const count = sampling.n
    const events = new EventQueue(count)
    const ended = Promise.withResolvers<Outcome>()
    const watch = new Stopwatch(request.token_ids.length, count, this.#observer)
    const handles: number[] = []
    let open = count
    /** Only while it runs: an engine that slept gives out the same handles again. */
    const cancel = (): void => {
      if (open > 0) handles.forEach((handle) => engine.cancel(handle))
    }
    let given = true
    let failed = false
    const take = (event: EngineEvent, index: number): void => {
      if (!given) return
      if (event.type === 'tokens') watch.tokens(event.tokenIds.length, index)
      else {
        const outcome = watch.end(request_id, event)
        open--
        if (event.type === 'error') {
          failed = true
          cancel()
        }
        if (open === 0) {
          this.#end(request_id, outcome)
          this.#observer.ended(outcome)
          ended.resolve(outcome)
        }
      }
      events.push(onWire(event, index))
    }
    const native = {
      tokenIds: Uint32Array.from(request.token_ids),
      salt: request.cache?.salt ?? '',
      sharedPrefixTokens: request.cache?.shared_prefix_tokens ?? 0,
      priority: request.priority ?? 0,
      ...(request.deadline_ms === undefined ? {} : { deadlineMs: request.deadline_ms }),
    }
    try {
      for (let index = 0; index < count; index++) {
        const seed = sampling.seed === null ? null : sampling.seed + index
        const constraint = constraints[index]
        const one = { ...native, sampling: { ...sampling, seed }, ...(constraint && { constraint }) }
        handles.push(submitted(() => engine.submit(one, (event) => take(event, index))))
      }
    } catch (error) {
      given = false
      cancel()
      throw error
    }
    if (failed) cancel()
    const live: Live = {
      events,
      cancel,
      ended: ended.promise,
      usage: () => watch.usage,
      cancelOne: (index) => handles.slice(index, index + 1).forEach((handle) => engine.cancel(handle)),
    }
    if (open > 0) this.#live.set(request_id, live)
    return live
  }

  /**
   * Stops it if it runs; its exact usage and how it ended, or nulls where nothing is known under the id.
   * @param index one of its answers, the others go on; null: all of it
   */
  async cancel(request_id: string, index: number | null = null): Promise<Omit<CancelResponse, 'request_id'>> {
    const live = this.#live.get(request_id)
    if (live !== undefined && index !== null) {
      live.cancelOne(index)
      return { usage: live.usage(), finish_reason: null }
    }
    if (live !== undefined) {
      live.cancel()
      return told(await live.ended)
    }
    this.#forget()
    return told(this.#past.get(request_id)?.outcome)
  }

  cancelAll(): void {
    for (const live of this.#live.values()) live.cancel()
  }

  /** Resolves when nothing runs any more. */
  async idle(): Promise<void> {
    if (this.#live.size > 0) await new Promise<void>((resolve) => this.#idle.push(resolve))
  }

  #end(request_id: string, outcome: Outcome): void {
    this.#live.delete(request_id)
    this.#past.delete(request_id)
    this.#past.set(request_id, { outcome, forgottenAt: Date.now() + usage_kept_ms })
    this.#forget()
    if (this.#live.size === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }

  #forget(): void {
    const now = Date.now()
    for (const [id, { forgottenAt }] of this.#past) {
      if (forgottenAt > now && this.#past.size <= usages_max) return
      this.#past.delete(id)
    }
  }
}

const told = (outcome?: Outcome) => ({
  usage: outcome?.usage ?? null,
  finish_reason: outcome?.finish ?? null,
})

/** Times one request and adds up what its answers used; the prompt counts once, cached as its first answer found it. */
class Stopwatch {
  #started = performance.now()
  #first: number | null = null
  /** By answer: when its last tokens came. */
  #last: (number | null)[]
  #usage: TokenUsage
  #failed: Extract<EngineEvent, { type: 'error' }> | null = null
  #observer: Observer

  constructor(prompt: number, answers: number, observer: Observer) {
    this.#usage = { prompt, cached: 0, completion: 0 }
    this.#last = Array.from({ length: answers }, () => null)
    this.#observer = observer
  }

  get usage(): TokenUsage {
    return { ...this.#usage }
  }

  tokens(count: number, index: number): void {
    const now = performance.now()
    const last = this.#last[index] ?? null
    if (last === null) {
      this.#first ??= now - this.#started
      this.#observer.firstTokens((now - this.#started) / 1000, count)
    } else this.#observer.nextTokens((now - last) / 1000, count)
    this.#last[index] = now
    this.#usage.completion += count
  }

  /** Called for each answer; the last call's outcome is the request's. */
  end(request_id: string, event: Exclude<EngineEvent, { type: 'tokens' }>): Outcome {
    const common = { request_id, ttft_ms: this.#first, total_ms: performance.now() - this.#started }
    if (event.type === 'error') this.#failed ??= event
    else if (this.#usage.cached === 0) this.#usage.cached = event.usage.cached
    const usage = { ...this.#usage }
    if (event.type === 'finish' && this.#failed === null)
      return { ...common, finish: event.reason, code: null, usage, timing: event.timing }
    const code = errorCode(this.#failed?.code ?? 'engine_error')
    return { ...common, finish: 'error', code, usage: { ...usage, cached: 0 }, timing: null }
  }
}

function onWire(event: EngineEvent, index: number): GenerateEvent | ErrorBody {
  if (event.type === 'finish')
    return { index, finish_reason: event.reason, usage: event.usage, timing: event.timing }
  if (event.type === 'error') return new ApiError(errorCode(event.code), event.message).body()
  const { tokenIds: token_ids, logprobs } = event
  return logprobs === undefined ? { index, token_ids } : { index, token_ids, logprobs }
}
