/**
 * A worker thread of grammars (grammar-worker.ts), seen from outside: the mask for a token depends on the one before, so
 * after each token the thread is asked for the next mask, while the engine computes the logits it is for.
 *
 * Grammars come from callers. One that takes too long to compile, or a mask that does, costs the thread its life and the
 * caller an error; everybody else's state is rebuilt in a new thread by feeding it the tokens they have. One grammar is
 * begun at a time, tenants in turn, so that nobody waits behind all that another one brings. A thread that nobody has
 * needed for a while ends, and its memory with it.
 */
import { Worker } from 'node:worker_threads'
import { ApiError } from '../src/errors.ts'
import { FairQueue } from './fair-queue.ts'
import type { FromWorker, ToWorker, WorkerSettings } from './grammar-worker.ts'

export interface GrammarLimits {
  /** From when its turn comes to its first mask. */
  compile_ms_max: number
  mask_ms_max: number
  /** Answers that may wait to begin, and of them one tenant's. */
  waiting_max: number
  tenant_waiting_max: number
  /** How long the thread stays when no answer needs it. */
  idle_ms: number
  /** How long a refusal holds: a machine that stood still may have been to blame. */
  refused_ms: number
}

/** One bit a token, in words from id 0 up; null: nothing may follow. */
export type Mask = Uint32Array | null

/** What one answer may be. */
export interface Constraint {
  /** Of the first token. */
  first: Mask
  /** After a token of the answer: the mask of the next one, or why there is none. */
  accept: (token: number, give: (mask: Mask) => void, fail: (error: ApiError) => void) => void
  close: () => void
}

const start_ms_max = 60_000
const refused_max = 256

interface State {
  id: number
  grammar: string
  stop: number[]
  tokens: number[]
  /** Who waits for a mask: null while nobody does. */
  waiter: { give: (mask: Mask) => void; fail: (error: ApiError) => void } | null
}

interface Question {
  state: State
  limit_ms: number
  /** Its answer is what `waiter` waits for: not where a new thread is only told what the old one knew. */
  awaited: boolean
}

export class GrammarThread {
  readonly #settings: WorkerSettings
  readonly #limits: GrammarLimits
  /** Those begun. */
  readonly #states = new Map<number, State>()
  /** Those that wait to begin. */
  readonly #waiting: FairQueue<State>
  /** What the thread has been asked and not answered, in its order. */
  #asked: Question[] = []
  #worker: Worker | null = null
  #ready = false
  #watch: NodeJS.Timeout | null = null
  #idle: NodeJS.Timeout | null = null
  #next = 0
  #closed = false
  /** Refusals by grammar: each cost a thread, or its time. Oldest first. */
  readonly #refused = new Map<string, { why: string; until: number }>()

  constructor(settings: WorkerSettings, limits: GrammarLimits) {
    this.#settings = settings
    this.#limits = limits
    this.#waiting = new FairQueue(limits.waiting_max, limits.tenant_waiting_max)
  }

  /** Whether it holds memory. */
  get running(): boolean {
    return this.#worker !== null
  }

  /**
   * @param grammar EBNF @param stop ids that end the answer @param tenant who waits behind itself.
   * Rejects with ApiError where it cannot be served.
   */
  async open(grammar: string, stop: number[], tenant: string): Promise<Constraint> {
    if (this.#closed) throw closed()
    const refused = this.#refused.get(grammar)
    if (refused !== undefined && performance.now() < refused.until) throw refusal(refused.why)
    const state: State = { id: this.#next++, grammar, stop, tokens: [], waiter: null }
    const first = await new Promise<Mask>((give, fail) => {
      state.waiter = { give, fail }
      const full = this.#waiting.push(tenant, state)
      if (full !== null) fail(tooMany(full))
      else this.#begin()
    })
    if (first?.some((word) => word !== 0) !== true) {
      this.#forget(state)
      throw refusal('no text can satisfy it')
    }
    return {
      first,
      accept: (token, give, fail) => {
        if (!this.#states.has(state.id)) return fail(new ApiError('engine_error', 'The grammar was given up'))
        state.tokens.push(token)
        state.waiter = { give, fail }
        this.#ask(state, { type: 'accept', id: state.id, token })
      },
      close: () => this.#forget(state),
    }
  }

  /** Gives the thread's memory back, unless an answer needs it; the next one starts it again. */
  async rest(): Promise<void> {
    if (this.#states.size > 0 || this.#waiting.size > 0) return
    const worker = this.#worker
    this.#leaveWorker()
    await worker?.terminate()
  }

  async close(): Promise<void> {
    this.#closed = true
    const worker = this.#worker
    this.#leaveWorker()
    this.#failAll(closed())
    await worker?.terminate()
  }

  #failAll(error: ApiError): void {
    const states = [...this.#states.values(), ...this.#waiting.remove(() => true)]
    this.#states.clear()
    for (const { waiter } of states) waiter?.fail(error)
  }

  /** The next that waits, once the one before has its first mask. */
  #begin(): void {
    if (this.#asked.some(({ state }) => state.waiter !== null && state.tokens.length === 0)) return
    const state = this.#waiting.shift()
    if (state === undefined) return this.#settle()
    const { id, grammar, stop } = state
    this.#states.set(id, state)
    this.#ask(state, { type: 'open', id, grammar, tokens: [], stop })
  }

  /** From when no answer needs the thread, it stays a while. */
  #settle(): void {
    if (this.#idle !== null) clearTimeout(this.#idle)
    this.#idle = null
    if (this.#worker === null || this.#states.size > 0 || this.#waiting.size > 0) return
    this.#idle = setTimeout(() => void this.rest(), this.#limits.idle_ms)
    this.#idle.unref()
  }

  #ask(state: State, message: ToWorker): void {
    const { compile_ms_max, mask_ms_max } = this.#limits
    this.#asked.push({
      state,
      limit_ms: message.type === 'open' ? compile_ms_max : mask_ms_max,
      awaited: true,
    })
    if (this.#worker === null) return this.#start()
    this.#worker.postMessage(message)
    if (this.#asked.length === 1) this.#watchHead()
  }

  /** A new one is told all that is open: first what is waited for, and of that first the answers under way. */
  #start(): void {
    const worker = new Worker(new URL('./grammar-worker.ts', import.meta.url), {
      workerData: this.#settings,
      stderr: true,
    })
    worker.unref()
    worker.stderr.resume()
    worker.on('message', (message: FromWorker) => {
      if (worker === this.#worker) this.#answered(message)
    })
    worker.on('error', (error) => this.#lost(worker, error.message))
    worker.on('exit', () => this.#lost(worker, 'the grammar thread ended'))
    this.#worker = worker
    this.#ready = false
    const limit_ms = this.#limits.compile_ms_max
    const began = ({ state }: Question) => Number(state.tokens.length > 0)
    const waiting = this.#asked
      .filter(({ state, awaited }) => awaited && this.#states.has(state.id))
      .toSorted((a, b) => began(b) - began(a))
    const asking = new Set(waiting.map(({ state }) => state))
    const quiet = [...this.#states.values()].filter((state) => !asking.has(state))
    this.#asked = [
      ...waiting.map(({ state }) => ({ state, limit_ms, awaited: true })),
      ...quiet.map((state) => ({ state, limit_ms, awaited: false })),
    ]
    for (const { state } of this.#asked) {
      const { id, grammar, tokens, stop } = state
      worker.postMessage({ type: 'open', id, grammar, tokens, stop } satisfies ToWorker)
    }
    this.#watchHead()
  }

  #answered(message: FromWorker): void {
    if (message.type === 'broken') return this.#restart(message.message)
    if (message.type === 'ready') {
      this.#ready = true
      return this.#watchHead()
    }
    const question = this.#asked.shift()
    this.#watchHead()
    if (question?.awaited !== true) return
    const { state } = question
    const { waiter } = state
    state.waiter = null
    waiter?.give(message.mask)
    this.#begin()
  }

  /** The thread answers in order, so what takes too long is always the first that it was asked. */
  #watchHead(): void {
    this.#stopWatching()
    const head = this.#asked[0]
    if (head === undefined || this.#closed) return
    if (!this.#ready) {
      const worker = this.#worker
      this.#watch = setTimeout(() => worker && this.#lost(worker, 'it did not start'), start_ms_max)
    } else {
      const late = `it took longer than ${head.limit_ms / 1000} s; make it simpler, above all its length limits`
      this.#watch = setTimeout(() => this.#restart(late), head.limit_ms)
    }
    this.#watch.unref()
  }

  #stopWatching(): void {
    if (this.#watch !== null) clearTimeout(this.#watch)
    this.#watch = null
  }

  /** The thread came to grief over the first that it was asked: that one is refused, for the others there is a new one. */
  #restart(why: string): void {
    const culprit = this.#asked.shift()?.state
    if (culprit !== undefined) {
      this.#refuse(culprit, why)
      if (culprit.tokens.length === 0) {
        this.#remember(culprit.grammar, why)
        // Whoever waits to begin with the same grammar would only cost the next thread.
        const alike = this.#waiting.remove(({ grammar }) => grammar === culprit.grammar)
        for (const state of alike) this.#refuse(state, why)
      }
    }
    this.#leaveWorker()
    if (this.#states.size > 0) this.#start()
    this.#begin()
  }

  /** It ended by itself: before it was ready, another one would fare no better. */
  #lost(worker: Worker, why: string): void {
    if (worker !== this.#worker || this.#closed) return
    if (this.#ready) return this.#restart(why)
    this.#leaveWorker()
    this.#failAll(new ApiError('engine_error', `Grammars cannot be served: ${why}`))
    this.#asked = []
  }

  #leaveWorker(): void {
    const worker = this.#worker
    this.#worker = null
    this.#stopWatching()
    if (this.#states.size === 0) this.#asked = []
    void worker?.terminate()
  }

  #refuse(state: State, why: string): void {
    this.#states.delete(state.id)
    const { waiter } = state
    state.waiter = null
    waiter?.fail(refusal(why))
  }

  #remember(grammar: string, why: string): void {
    this.#refused.delete(grammar)
    this.#refused.set(grammar, { why, until: performance.now() + this.#limits.refused_ms })
    for (const oldest of this.#refused.keys()) {
      if (this.#refused.size <= refused_max) break
      this.#refused.delete(oldest)
    }
  }

  #forget(state: State): void {
    state.waiter = null
    if (this.#states.delete(state.id))
      this.#worker?.postMessage({ type: 'close', id: state.id } satisfies ToWorker)
    this.#settle()
  }
}

const closed = (): ApiError => new ApiError('backend_unavailable', 'The engine is closed', { retryAfterS: 1 })

const tooMany = (full: 'owner' | 'queue'): ApiError =>
  full === 'owner'
    ? new ApiError('rate_limit_exceeded', 'Too many of your grammars wait; try again when some have begun', {
        retryAfterS: 1,
      })
    : new ApiError('queue_full', 'Too many grammars wait; try again shortly', { retryAfterS: 1 })

export const refusal = (why: string): ApiError =>
  new ApiError('unsupported_value', `The grammar cannot be served: ${why}`, { param: 'sampling.grammar' })
