/**
 * The engine alone, without HTTP: decode and prefill speed of the shipped model and of Qwen2-0.5B's shape with random
 * weights, against what this machine's memory can give. Every figure is a median of several runs.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openEngine, type Engine } from '../../gpu-backend/engine.ts'
import { loadAddon } from '../../gpu-backend/native-addon.ts'
import { ask, decode, gaps, median } from './_engine-load.ts'
import { llamaCpp } from './_llama-cpp.ts'
import { randomCheckpoint, shapes } from './_random-checkpoint.ts'
import type { BenchOptions, BenchResult } from './main.ts'

export async function run({ quick, peer }: BenchOptions): Promise<BenchResult[]> {
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

  // Guessing ahead would flatter every figure of decode: what it gives is measured by itself.
  const modelDir = await randomCheckpoint('0.5b')
  const engine = await openEngine({ modelDir, device: 'cpu', speculate: false })
  const shape = shapes['0.5b']
  const opened = engine.model
  process.stderr.write(`${opened.kernelLevel}, ${opened.threads} threads\n`)
  const [b1, share] = await decodeAndShare(engine, runs, engine.model.weightBytes)
  const b8 = await decode(engine, 8, 32, runs)
  const prefill_s = await prefill(engine, 512, quick ? 2 : 5)
  const layerWeights = opened.parameters - shape.vocab * shape.hidden
  const tflops = (2 * layerWeights * 512) / prefill_s / 1e12
  const { idle, beside } = await gaps(engine, quick ? 1000 : 4000)
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
  results.push({
    name: 'itl_p99_beside_prefill',
    value: beside,
    unit: 'ms',
    peer: `idle, ${idle.toFixed(0)} ms`,
    ratio: idle / beside,
    goal: 1 / 2.5,
  })
  await engine.close()
  results.push(...(await guessing(modelDir, runs)))
  const int8 = await eightBits(modelDir, runs)
  results.push(...int8.results)
  if (peer === undefined) return results
  if (peer !== 'llama.cpp') throw new Error(`no peer '${peer}' here; there is llama.cpp`)
  const { threads } = opened
  const length = quick ? 1024 : 2048
  const theirs = await llamaCpp(modelDir, 'bf16', threads, length, quick ? 2 : 5)
  const rounded = await llamaCpp(modelDir, 'q8_0', threads, length, quick ? 2 : 5)
  const against = (name: string, value: number, unit: string, other: number, ratio: number): BenchResult => ({
    name: `vs_llama_cpp.${name}`,
    value,
    unit,
    peer: `llama.cpp, ${other.toPrecision(3)}`,
    ratio,
    goal: 1,
  })
  const rate = (name: string, ours: number, other: number): BenchResult =>
    against(name, ours, 'tok/s', other, ours / other)
  return [
    ...results,
    rate('decode_bf16', b1, theirs.decode),
    rate('decode_int8', int8.decode, rounded.decode),
    rate('prefill_bf16', 512 / prefill_s, theirs.prefill),
    rate('prefill_int8', int8.prefill, rounded.prefill),
    against('warm_ttft', warm_s * 1000, 'ms', theirs.warmTtft * 1000, theirs.warmTtft / warm_s),
  ]
}

/** A long greedy answer, which repeats itself as random weights do, with and without guessing ahead. */
async function guessing(modelDir: string, runs: number): Promise<BenchResult[]> {
  const rates: number[] = []
  for (const speculate of [false, true]) {
    const engine = await openEngine({ modelDir, device: 'cpu', speculate })
    rates.push(await decode(engine, 1, 64, Math.min(runs, 3)))
    await engine.close()
  }
  const [steady = NaN, guessed = NaN] = rates
  return [
    {
      name: '0.5b.decode_b1_guessing',
      value: guessed,
      unit: 'tok/s',
      peer: 'without',
      ratio: guessed / steady,
    },
  ]
}

async function eightBits(
  modelDir: string,
  runs: number,
): Promise<{ results: BenchResult[]; decode: number; prefill: number }> {
  const engine = await openEngine({ modelDir, device: 'cpu', speculate: false, weights: 'int8' })
  // A byte a weight and four for the scale of each 128 of them; the tied embedding is read as the head.
  const bytes = engine.model.parameters * (1 + 4 / 128)
  const [rate, share] = await decodeAndShare(engine, runs, bytes)
  const prefillRate = 512 / (await prefill(engine, 512, 2))
  await engine.close()
  const results = [
    { name: '0.5b.decode_b1_int8', value: rate, unit: 'tok/s' },
    { name: '0.5b.prefill_512_int8', value: prefillRate, unit: 'tok/s' },
    {
      name: 'decode_b1_int8.share_of_bandwidth',
      value: (rate * bytes) / 1e9,
      unit: 'GB/s',
      peer: 'memory_read beside it',
      ratio: share,
      goal: 0.75,
    },
  ]
  return { results, decode: rate, prefill: prefillRate }
}

/**
 * Tokens per second of one sequence, and the share of the read bandwidth that its weights need: bandwidth is measured
 * right before and after each run, because on a shared machine it moves by a factor of two within minutes.
 */
async function decodeAndShare(
  engine: Engine,
  runs: number,
  bytesPerToken: number,
): Promise<[rate: number, share: number]> {
  const measured: { rate: number; share: number }[] = []
  const read = (): number => loadAddon().readBandwidth(0, 1 << 28)
  for (let i = 0; i < runs; i++) {
    const before = read()
    const rate = await decode(engine, 1, 16, 1)
    measured.push({ rate, share: (2 * rate * bytesPerToken) / (before + read()) })
  }
  return [median(measured.map(({ rate }) => rate)), median(measured.map(({ share }) => share))]
}

/** Seconds. */
async function prefill(engine: Engine, length: number, runs: number): Promise<number> {
  const seconds: number[] = []
  for (let i = 0; i < runs; i++) seconds.push((await ask(engine, length, 1)).timing.prefill_ms / 1000)
  return median(seconds)
}

/** Seconds of prefill of a prompt nobody sent before, and of the same with another last token. */
async function coldAndWarm(engine: Engine, length: number): Promise<[cold: number, warm: number]> {
  const salt = 'cold and warm'
  const cold = (await ask(engine, length, 1, { salt, last: 1 })).timing.prefill_ms / 1000
  const warm: number[] = []
  for (let last = 2; last < 7; last++)
    warm.push((await ask(engine, length, 1, { salt, last })).timing.prefill_ms / 1000)
  return [cold, median(warm)]
}
