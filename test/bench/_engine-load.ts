/** What the engine's bench does to an engine: requests of random tokens, their rates, the gaps between tokens. */
import type { Engine, EngineEvent } from '../../gpu-backend/engine.ts'
import type { GrammarSpec } from '../../src/grammar/grammar.ts'
import type { ResolvedSampling } from '../../src/sampling.ts'
import { greedy } from '../gpu-backend/engine-fixtures.ts'

export type Finish = Extract<EngineEvent, { type: 'finish' }>

export const median = (values: number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? NaN

let salt = 0

export interface Ask {
  /** The same salt again may find its prompt cached; left out: nobody's. */
  salt?: string
  /** Replaces the prompt's last token. */
  last?: number
  /** Called with each step's tokens. */
  onTokens?: (count: number) => void
  signal?: AbortSignal
  /** What the answer must be. */
  grammar?: GrammarSpec
}

export async function ask(
  engine: Engine,
  length: number,
  max_tokens: number,
  options: Ask = {},
): Promise<Finish> {
  const tokenIds = Uint32Array.from({ length }, (_, i) => (i * 7919 + 13) % 2000)
  if (options.last !== undefined) tokenIds[length - 1] = options.last
  const sampling: ResolvedSampling = { ...greedy, max_tokens }
  const constraint = options.grammar && (await engine.constrain(options.grammar, sampling, ''))
  return new Promise((resolve, reject) => {
    const handle = engine.submit(
      {
        tokenIds,
        salt: options.salt ?? `bench ${salt++}`,
        sharedPrefixTokens: 0,
        priority: 0,
        sampling,
        ...(constraint ? { constraint } : {}),
      },
      (event) => {
        if (event.type === 'tokens') options.onTokens?.(event.tokenIds.length)
        if (event.type === 'finish') resolve(event)
        if (event.type === 'error') reject(new Error(event.message))
      },
    )
    options.signal?.addEventListener('abort', () => engine.cancel(handle), { once: true })
  })
}

/** Tokens per second over all of a batch, after its first tokens. */
export async function decode(engine: Engine, batch: number, tokens: number, runs: number): Promise<number> {
  const rates: number[] = []
  for (let i = 0; i < runs; i++) {
    const ends = await Promise.all(Array.from({ length: batch }, () => ask(engine, 16, tokens)))
    const seconds = Math.max(...ends.map(({ timing }) => timing.decode_ms)) / 1000
    rates.push((batch * (tokens - 1)) / seconds)
  }
  return median(rates)
}

/** The 99th percentile of the gaps between tokens of one answer, alone and while a long prompt is computed; ms. */
export async function gaps(engine: Engine, prompt: number): Promise<{ idle: number; beside: number }> {
  const all: { at: number; gap: number }[] = []
  const reader = new AbortController()
  let last = performance.now()
  const reading = ask(engine, 16, engine.model.contextLength - 16, {
    signal: reader.signal,
    onTokens() {
      const at = performance.now()
      all.push({ at, gap: at - last })
      last = at
    },
  })
  while (all.length < 60) await new Promise((resolve) => setTimeout(resolve, 10))
  const start = performance.now()
  await ask(engine, prompt, 1)
  const end = performance.now()
  reader.abort()
  await reading
  const p99 = (some: typeof all): number => {
    const sorted = some.map(({ gap }) => gap).toSorted((a, b) => a - b)
    return sorted[Math.ceil(sorted.length * 0.99) - 1] ?? NaN
  }
  return {
    idle: p99(all.slice(5).filter(({ at }) => at < start)),
    beside: p99(all.filter(({ at, gap }) => at - gap >= start && at <= end)),
  }
}
