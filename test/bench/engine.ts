/**
 * The engine alone, without HTTP: decode and prefill speed of the shipped model and of Qwen2-0.5B's shape with random
 * weights, against what this machine's memory can give. Every figure is a median of several runs; each part (`--only`)
 * takes a minute at most, so that it fits where a machine is quiet.
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openEngine, type Engine, type EngineOptions } from '../../gpu-backend/engine.ts'
import { loadAddon } from '../../gpu-backend/native-addon.ts'
import { ask, decode, gaps, median } from './_engine-load.ts'
import { llamaCpp } from './_llama-cpp.ts'
import { randomCheckpoint, shapes } from './_random-checkpoint.ts'
import type { BenchOptions, BenchResult } from './main.ts'

interface Run {
  runs: number
  quick: boolean
  modelDir: string
  /** Guessing ahead would flatter every figure of decode: what it gives is measured by itself. */
  open: (options?: Partial<EngineOptions>) => Promise<Engine>
}

const parts: Record<string, (run: Run) => Promise<BenchResult[]>> = {
  memory_read: () =>
    Promise.resolve([
      { name: 'memory_read', value: loadAddon().readBandwidth(0, 1 << 30) / 1e9, unit: 'GB/s' },
    ]),
  tiny,
  decode: decodeSpeed,
  prefill: prefillSpeed,
  prefix,
  gaps: gapsBesidePrefill,
  guessing,
  int8,
  memory,
}
const peerParts: Record<string, (run: Run) => Promise<BenchResult[]>> = {
  peer_bf16: (run) => besideLlamaCpp(run, 'bf16'),
  peer_int8: (run) => besideLlamaCpp(run, 'int8'),
}

export async function run({ quick, peer, only, say }: BenchOptions): Promise<BenchResult[]> {
  if (peer !== undefined && peer !== 'llama.cpp')
    throw new Error(`no peer '${peer}' here; there is llama.cpp`)
  const all = { ...parts, ...(peer === undefined ? {} : peerParts) }
  const modelDir = await randomCheckpoint('0.5b')
  const open = (options: Partial<EngineOptions> = {}): Promise<Engine> =>
    openEngine({ modelDir, device: 'cpu', speculate: false, ...options })
  const results: BenchResult[] = []
  for (const name of only ?? Object.keys(all)) {
    const part = all[name]
    if (part === undefined) throw new Error(`no part '${name}'; there are: ${Object.keys(all).join(', ')}`)
    say(name)
    results.push(...(await part({ runs: quick ? 3 : 7, quick, modelDir, open })))
  }
  return results
}

async function tiny({ runs }: Run): Promise<BenchResult[]> {
  const modelDir = join(import.meta.dirname, '../../gpu-backend/models/tiny')
  if (!existsSync(join(modelDir, 'model.safetensors'))) return []
  const engine = await openEngine({ modelDir, device: 'cpu' })
  const results = [
    { name: 'tiny.decode_b1', value: await decode(engine, 1, 128, runs), unit: 'tok/s' },
    { name: 'tiny.decode_b8', value: await decode(engine, 8, 128, runs), unit: 'tok/s' },
    { name: 'tiny.prefill_512', value: median(await prefills(engine, runs)), unit: 'tok/s' },
  ]
  await engine.close()
  return results
}

async function decodeSpeed({ open, runs }: Run): Promise<BenchResult[]> {
  const engine = await open()
  const { kernelLevel, threads, weightBytes } = engine.model
  process.stderr.write(`${kernelLevel}, ${threads} threads\n`)
  const [b1, share] = await decodeAndShare(engine, runs, weightBytes)
  const pairs: { b8: number; over: number }[] = []
  for (let i = 0; i < runs; i++) {
    const one = await decode(engine, 1, 16, 1)
    const b8 = await decode(engine, 8, 16, 1)
    pairs.push({ b8, over: b8 / one })
  }
  await engine.close()
  const b8 = median(pairs.map((pair) => pair.b8))
  return [
    { name: '0.5b.decode_b1_bf16', value: b1, unit: 'tok/s' },
    shareResult('bf16', b1 * weightBytes, share, 0.85),
    { name: '0.5b.decode_b8_bf16', value: b8, unit: 'tok/s' },
    {
      name: 'decode_b8_over_b1',
      value: b8,
      unit: 'tok/s',
      peer: 'batch 1',
      ratio: median(pairs.map(({ over }) => over)),
      goal: 4,
    },
  ]
}

/**
 * With activations rounded to bf16, where this machine has AMX, as others compute bf16; and as it comes, which is exact.
 * In little KV memory that was all written before, so that no run pays for pages that the kernel clears.
 */
async function prefillSpeed({ open, runs }: Run): Promise<BenchResult[]> {
  const rounds = loadAddon().kernelLevels().includes('amx-bf16')
  const measure = async (suffix: string, options: Partial<EngineOptions>): Promise<BenchResult[]> => {
    const engine = await open({ ...options, kvMemoryMb: 32 })
    await prefills(engine, 4)
    const rate = median(await prefills(engine, runs))
    const layerWeights = engine.model.parameters - shapes['0.5b'].vocab * shapes['0.5b'].hidden
    await engine.close()
    const tflops = { value: (2 * layerWeights * rate) / 1e12, unit: 'TFLOP/s' }
    return [
      { name: `0.5b.prefill_512${suffix}`, value: rate, unit: 'tok/s' },
      { name: `prefill_512.tflops${suffix}`, ...tflops, ...(suffix === '' ? { goal: 1 } : {}) },
    ]
  }
  if (!rounds) return measure('', {})
  return [...(await measure('', { kernels: 'amx-bf16' })), ...(await measure('_exact', {}))]
}

/** Prefill of a prompt nobody sent before, and of the same with another last token. */
async function prefix({ open, quick }: Run): Promise<BenchResult[]> {
  const engine = await open()
  const length = quick ? 1024 : 2048
  const cold = await prefillMs(engine, length, 1)
  const warm: number[] = []
  for (let last = 2; last < 7; last++) warm.push(await prefillMs(engine, length, last))
  await engine.close()
  const value = median(warm)
  return [
    { name: '0.5b.ttft_cold', value: cold, unit: 'ms' },
    { name: '0.5b.ttft_warm', value, unit: 'ms' },
    { name: 'prefix.cold_over_warm_prefill', value, unit: 'ms', peer: 'cold', ratio: cold / value, goal: 5 },
  ]
}

async function gapsBesidePrefill({ open, quick }: Run): Promise<BenchResult[]> {
  const engine = await open()
  const { idle, beside } = await gaps(engine, quick ? 1000 : 4000)
  await engine.close()
  return [
    {
      name: 'itl_p99_beside_prefill',
      value: beside,
      unit: 'ms',
      peer: `idle, ${idle.toFixed(0)} ms`,
      ratio: idle / beside,
      goal: 1 / 2.5,
    },
  ]
}

/** A long greedy answer, which repeats itself as random weights do, with and without guessing ahead. */
async function guessing({ open }: Run): Promise<BenchResult[]> {
  const rates: number[] = []
  for (const speculate of [false, true]) {
    const engine = await open({ speculate })
    rates.push(await decode(engine, 1, 64, 3))
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

async function int8({ open, runs }: Run): Promise<BenchResult[]> {
  const engine = await open({ weights: 'int8' })
  // A byte a weight and four for the scale of each 128 of them; the tied embedding is read as the head.
  const bytes = engine.model.parameters * (1 + 4 / 128)
  const [rate, share] = await decodeAndShare(engine, runs, bytes)
  const prefillRate = median(await prefills(engine, runs))
  await engine.close()
  return [
    { name: '0.5b.decode_b1_int8', value: rate, unit: 'tok/s' },
    { name: '0.5b.prefill_512_int8', value: prefillRate, unit: 'tok/s' },
    shareResult('int8', rate * bytes, share, 0.75),
  ]
}

/** What a process with one engine holds beyond its weights and a KV cache that is full, Node's own part included. */
function memory({ modelDir }: Run): Promise<BenchResult[]> {
  const results = (['stored', 'int8'] as const).map((weights): BenchResult => {
    const script = join(import.meta.dirname, '_engine-memory.ts')
    const value = Number(execFileSync(process.execPath, [script, modelDir, weights], { encoding: 'utf8' }))
    const suffix = weights === 'stored' ? '' : '_int8'
    const result = { name: `memory.over_weights_and_kv_mb${suffix}`, value, unit: 'MB', peer: '200 MB' }
    return { ...result, ratio: 200 / value, goal: 1 }
  })
  return Promise.resolve(results)
}

/** The same weights in both, turn by turn, so that what else the machine does meets both alike. */
async function besideLlamaCpp(
  { open, runs, quick, modelDir }: Run,
  format: 'bf16' | 'int8',
): Promise<BenchResult[]> {
  const length = quick ? 1024 : 2048
  const engine = await open(format === 'int8' ? { weights: 'int8' } : {})
  const peer = await llamaCpp(modelDir, format === 'int8' ? 'q8_0' : 'bf16', engine.model.threads, length)
  const turns: Record<string, [ours: number, theirs: number][]> = { decode: [], prefill: [], warm_ttft: [] }
  await prefillMs(engine, length, 0)
  for (let i = 0; i < runs; i++) {
    turns['decode']?.push([await decode(engine, 1, 17, 1), await peer.decode()])
    turns['prefill']?.push([median(await prefills(engine, 1)), await peer.prefill()])
    turns['warm_ttft']?.push([await prefillMs(engine, length, i + 1), (await peer.warmTtft()) * 1000])
  }
  await peer.close()
  await engine.close()
  return Object.entries(turns)
    .filter(([name]) => format === 'bf16' || name !== 'warm_ttft')
    .map(([name, pairs]) => {
      const isTime = name === 'warm_ttft'
      const theirs = median(pairs.map((pair) => pair[1]))
      return {
        name: `vs_llama_cpp.${isTime ? name : `${name}_${format}`}`,
        value: median(pairs.map((pair) => pair[0])),
        unit: isTime ? 'ms' : 'tok/s',
        peer: `llama.cpp, ${theirs.toPrecision(3)}`,
        ratio: median(pairs.map(([ours, other]) => (isTime ? other / ours : ours / other))),
        goal: 1,
      }
    })
}

const shareResult = (format: string, bytesPerSecond: number, ratio: number, goal: number): BenchResult => ({
  name: `decode_b1_${format}.share_of_bandwidth`,
  value: bytesPerSecond / 1e9,
  unit: 'GB/s',
  peer: 'memory_read beside it',
  ratio,
  goal,
})

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

/** Tokens per second of prompts of 512 that nobody sent before. */
async function prefills(engine: Engine, runs: number): Promise<number[]> {
  const rates: number[] = []
  for (let i = 0; i < runs; i++) rates.push(512 / ((await ask(engine, 512, 1)).timing.prefill_ms / 1000))
  return rates
}

/** Of a prompt that is the same but for its last token. */
const prefillMs = async (engine: Engine, length: number, last: number): Promise<number> =>
  (await ask(engine, length, 1, { salt: 'warm', last })).timing.prefill_ms
