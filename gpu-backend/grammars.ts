/**
 * What answers may be. Grammars that count characters take the compiler some 40 ms for each step with Qwen2's vocabulary,
 * and others' own EBNF any time at all: these have a thread to themselves, in which they wait for each other, and
 * everybody else's a second one, in which nothing takes long. Either is started when it is first needed, and ends when
 * it was not needed for ten minutes or the engine sleeps.
 */
import { GrammarError } from '../src/grammar/ebnf.ts'
import { writeGrammar, type GrammarSpec } from '../src/grammar/grammar.ts'
import { GrammarThread, refusal, type Constraint, type GrammarLimits } from './grammar-thread.ts'
import type { WorkerSettings } from './grammar-worker.ts'

export type { Constraint, Mask } from './grammar-thread.ts'

/** Steps that are compiled among the quick ones. */
const counted_quick_max = 8
const quick: GrammarLimits = {
  compile_ms_max: 3_000,
  mask_ms_max: 1_000,
  waiting_max: 1_024,
  tenant_waiting_max: 256,
  refused_ms: 60_000,
  idle_ms: 600_000,
}
const slow: GrammarLimits = {
  compile_ms_max: 30_000,
  mask_ms_max: 1_000,
  waiting_max: 256,
  tenant_waiting_max: 32,
  refused_ms: 60_000,
  idle_ms: 600_000,
}

export class Grammars {
  readonly #quick: GrammarThread
  readonly #slow: GrammarThread

  constructor(settings: WorkerSettings) {
    this.#quick = new GrammarThread(settings, quick)
    this.#slow = new GrammarThread(settings, slow)
  }

  /** For one answer. @param stop ids that end it @param tenant takes turns with others. Rejects with ApiError. */
  async open(spec: GrammarSpec, stop: number[], tenant: string): Promise<Constraint> {
    const { text, counted } = written(spec)
    return (counted > counted_quick_max ? this.#slow : this.#quick).open(text, stop, tenant)
  }

  async rest(): Promise<void> {
    await Promise.all([this.#quick.rest(), this.#slow.rest()])
  }

  async close(): Promise<void> {
    await Promise.all([this.#quick.close(), this.#slow.close()])
  }
}

function written(spec: GrammarSpec) {
  try {
    return writeGrammar(spec)
  } catch (cause) {
    throw cause instanceof GrammarError ? refusal(cause.message) : cause
  }
}
