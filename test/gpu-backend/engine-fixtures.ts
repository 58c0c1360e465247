/** What the engine's tests share: the oracle's files, sampling that is plain greedy, and a request as a promise. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Engine, EngineEvent, EngineRequest } from '../../gpu-backend/engine.ts'
import type { TokenLogprobs } from '../../src/protocol.ts'
import { resolveSampling, type ResolvedSampling } from '../../src/sampling.ts'

const root = join(import.meta.dirname, '../..')
const golden = join(root, 'test/golden/engine')

export interface Fixture {
  name: string
  /** Absolute. */
  modelDir: string
  tokens: number
  vocabRows: number
  prompts: { name: string; token_ids: number[]; positions: number[]; offset: number; greedy: number[] }[]
  logits: Float32Array
}

export function loadFixture(name: string): Fixture {
  const { model, tokens, vocab_rows, prompts } = JSON.parse(
    readFileSync(join(golden, `${name}.json`), 'utf8'),
  ) as { model: string; tokens: number; vocab_rows: number; prompts: Fixture['prompts'] }
  const bytes = readFileSync(join(golden, `${name}.logits.bin`))
  const logits = new Float32Array(Uint8Array.from(bytes).buffer)
  return { name, modelDir: join(root, model), tokens, vocabRows: vocab_rows, prompts, logits }
}

export const fixtureNames = readdirSync(golden)
  .filter((file) => file.endsWith('.logits.bin'))
  .map((file) => file.slice(0, -'.logits.bin'.length))

/** ||got - want|| / ||want|| */
export function relativeError(got: Float32Array, want: Float32Array): number {
  let difference = 0
  let norm = 0
  for (const [i, value] of want.entries()) {
    difference += (got[i]! - value) ** 2
    norm += value ** 2
  }
  return Math.sqrt(difference / norm)
}

/** Means over rows: the divergence KL(want || got) in nats, and the share of rows with the same most likely token. */
export function loss(got: Float32Array, want: Float32Array, width: number): { kl: number; sameTop: number } {
  const rows = want.length / width
  let kl = 0
  let same = 0
  for (let row = 0; row < rows; row++) {
    const [a, b] = [want, got].map((all) => all.subarray(row * width, (row + 1) * width)) as [
      Float32Array,
      Float32Array,
    ]
    const norm = (x: Float32Array): number => {
      const top = x.reduce((m, v) => Math.max(m, v))
      return top + Math.log(x.reduce((sum, v) => sum + Math.exp(v - top), 0))
    }
    const [normA, normB] = [norm(a), norm(b)]
    for (let i = 0; i < width; i++) kl += Math.exp(a[i]! - normA) * (a[i]! - normA - (b[i]! - normB))
    const top = (x: Float32Array): number => x.reduce((best, v, i) => (v > x[best]! ? i : best), 0)
    if (top(a) === top(b)) same++
  }
  return { kl: kl / rows, sameTop: same / rows }
}

/** All of a model's own defaults left out, and no end but max_tokens. */
export const greedy: ResolvedSampling = resolveSampling(
  { temperature: 0, ignore_eos: true },
  { temperature: 0, top_p: 1, top_k: 0, repetition_penalty: 1 },
  64,
)

export type Finish = Extract<EngineEvent, { type: 'finish' }>

export interface Answer {
  tokens: number[]
  logprobs: TokenLogprobs[]
  finish: Finish
}

export type Ask = Partial<Omit<EngineRequest, 'sampling' | 'tokenIds'>> & {
  sampling?: Partial<ResolvedSampling>
}

export function submit(
  engine: Engine,
  prompt: readonly number[],
  ask: Ask = {},
): { handle: number; answer: Promise<Answer> } {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>()
  const tokens: number[] = []
  const logprobs: TokenLogprobs[] = []
  const request = {
    salt: '',
    sharedPrefixTokens: 0,
    priority: 0,
    ...ask,
    tokenIds: Uint32Array.from(prompt),
    sampling: { ...greedy, ...ask.sampling },
  }
  const handle = engine.submit(request, (event) => {
    if (event.type === 'error') reject(new Error(event.message))
    else if (event.type === 'finish') resolve({ tokens, logprobs, finish: event })
    else {
      tokens.push(...event.tokenIds)
      logprobs.push(...(event.logprobs ?? []))
    }
  })
  return { handle, answer: promise }
}

export const generate = (engine: Engine, prompt: readonly number[], ask: Ask = {}): Promise<Answer> =>
  submit(engine, prompt, ask).answer

/** Deterministic numbers in [0, 1): mulberry32. */
export function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}
