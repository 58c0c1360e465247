/**
 * The engine alone, without HTTP: decode and prefill speed of the shipped model and of Qwen2-0.5B's shape with random
 * weights, against what this machine's memory can give. Every figure is a median of several runs.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openEngine, type Engine, type EngineEvent } from '../../gpu-backend/engine.ts'
import { loadAddon } from '../../gpu-backend/native-addon.ts'
import { randomCheckpoint, shapes } from './_random-checkpoint.ts'
import type { BenchOptions, BenchResult } from './main.ts'

type Finish = Extract<EngineEvent, { type: 'finish' }>

export async function run({ quick }: BenchOptions): Promise<BenchResult[]> {
  const runs = quick ? 3 : 7
  const bandwidth = loadAddon().readBandwidth(0, 1 << 30)
  const results: BenchResult[] = [{ name: 'memory_read', value: bandwidth / 1e9, unit: 'GB/s' }]

  const tiny = join(import.meta.dirname, '../../gpu-backend/models/tiny')
  if (existsSync(join(tiny, 'model.safetensors'))) {
    const engine = await openEngine({ modelDir: tiny, device: 'cpu' })
    results.push(
      { name: 'tiny.decode_b1', value: await decode(engine, 1, 128, runs), unit: 'tok/s' },
      { name: 'tiny.decode_b8', value: await decode(engine, 8, 128, runs), unit: 'tok/s' },
      { name: 'tiny.prefill_512', value: 512 / (await prefill(engine, 512, runs)), unit: 'tok/s' },
    )
    await engine.close()
  }

  const engine = await openEngine({ modelDir: await randomCheckpoint('0.5b'), device: 'cpu' })
  const shape = shapes['0.5b']
  const opened = engine.model
  process.stderr.write(`${opened.kernelLevel}, ${opened.threads} threads\n`)
  const [b1, share] = await decodeAndShare(engine, runs)
  const b8 = await decode(engine, 8, 32, runs)
  const prefill_s = await prefill(engine, 512, quick ? 2 : 5)
  const layerWeights = opened.parameters - shape.vocab * shape.hidden
  const tflops = (2 * layerWeights * 512) / prefill_s / 1e12
  const [cold_s, warm_s] = await coldAndWarm(engine, quick ? 1024 : 2048)
  results.push(
    { name: '0.5b.decode_b1_bf16', value: b1, unit: 'tok/s' },
    {
      name: 'decode_b1_bf16.share_of_bandwidth',
      value: (b1 * opened.weightBytes) / 1e9,
      unit: 'GB/s',
      peer: 'memory_read beside it',
      ratio: share,
      goal: 0.85,
    },
    { name: '0.5b.decode_b8_bf16', value: b8, unit: 'tok/s' },
    { name: 'decode_b8_over_b1', value: b8, unit: 'tok/s', peer: 'batch 1', ratio: b8 / b1, goal: 4 },
    { name: '0.5b.prefill_512', value: 512 / prefill_s, unit: 'tok/s' },
    { name: 'prefill_512.tflops', value: tflops, unit: 'TFLOP/s' },
    { name: '0.5b.ttft_cold', value: cold_s * 1000, unit: 'ms' },
    { name: '0.5b.ttft_warm', value: warm_s * 1000, unit: 'ms' },
    {
      name: 'prefix.cold_over_warm_prefill',
      value: warm_s * 1000,
      unit: 'ms',
      peer: 'cold',
      ratio: cold_s / warm_s,
      goal: 5,
    },
  )
  await engine.close()
  return results
}

let salt = 0

/** Tokens that no earlier prompt had, unless the same salt is used again. */
function submit(
  engine: Engine,
  length: number,
  max_tokens: number,
  reuse?: { salt: string; last: number },
): Promise<Finish> {
  const tokenIds = Uint32Array.from({ length }, (_, i) => (i * 7919 + 13) % 2000)
  if (reuse) tokenIds[length - 1] = reuse.last
  return new Promise((resolve, reject) => {
    engine.submit(
      {
        tokenIds,
        salt: reuse?.salt ?? `bench ${salt++}`,
        sharedPrefixTokens: 0,
        priority: 0,
        sampling: {
          temperature: 0,
          top_p: 1,
          top_k: 0,
          min_p: 0,
          repetition_penalty: 1,
          presence_penalty: 0,
          frequency_penalty: 0,
          seed: null,
          max_tokens,
          min_tokens: 0,
          stop_token_ids: [],
          ignore_eos: true,
          logit_bias: {},
          logprobs: null,
        },
      },
      (event) => {
        if (event.type === 'finish') resolve(event)
        if (event.type === 'error') reject(new Error(event.message))
      },
    )
  })
}

const median = (values: number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? NaN

/** Tokens per second over all of a batch, after its first tokens. */
async function decode(engine: Engine, batch: number, tokens: number, runs: number): Promise<number> {
  const rates: number[] = []
  for (let i = 0; i < runs; i++) {
    const ends = await Promise.all(Array.from({ length: batch }, () => submit(engine, 16, tokens)))
    const seconds = Math.max(...ends.map(({ timing }) => timing.decode_ms)) / 1000
    rates.push((batch * (tokens - 1)) / seconds)
  }
  return median(rates)
}

/**
 * Tokens per second of one sequence, and the share of the read bandwidth that its weights need: bandwidth is measured
 * right before and after each run, because on a shared machine it moves by a factor of two within minutes.
 */
async function decodeAndShare(engine: Engine, runs: number): Promise<[rate: number, share: number]> {
  const measured: { rate: number; share: number }[] = []
  const read = (): number => loadAddon().readBandwidth(0, 1 << 28)
  for (let i = 0; i < runs; i++) {
    const before = read()
    const rate = await decode(engine, 1, 16, 1)
    measured.push({ rate, share: (2 * rate * engine.model.weightBytes) / (before + read()) })
  }
  return [median(measured.map(({ rate }) => rate)), median(measured.map(({ share }) => share))]
}

/** Seconds. */
async function prefill(engine: Engine, length: number, runs: number): Promise<number> {
  const seconds: number[] = []
  for (let i = 0; i < runs; i++) seconds.push((await submit(engine, length, 1)).timing.prefill_ms / 1000)
  return median(seconds)
}

/** Seconds of prefill of a prompt nobody sent before, and of the same with another last token. */
async function coldAndWarm(engine: Engine, length: number): Promise<[cold: number, warm: number]> {
  const salt = 'cold and warm'
  const cold = (await submit(engine, length, 1, { salt, last: 1 })).timing.prefill_ms / 1000
  const warm: number[] = []
  for (let last = 2; last < 7; last++)
    warm.push((await submit(engine, length, 1, { salt, last })).timing.prefill_ms / 1000)
  return [cold, median(warm)]
}
