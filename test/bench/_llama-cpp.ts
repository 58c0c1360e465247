/**
 * llama.cpp through node-llama-cpp, on the CPU, with the same weights as GGUF: what the engine is measured against.
 * Fetched on demand into a git-ignored folder; no dependency of this package.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { arch, platform } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { toGguf, type GgufFormat } from './_gguf.ts'

const folder = join(import.meta.dirname, '../../.qwen-edge/peers/llama.cpp')

/** What is used of its surface. */
interface Sequence {
  evaluate(tokens: number[], options: { temperature: number }): AsyncIterable<number>
  evaluateWithoutGeneratingNewTokens(tokens: number[]): Promise<void>
  clearHistory(): Promise<void>
}
interface Context {
  getSequence(): Sequence
  dispose(): Promise<void>
}
interface Model {
  createContext(options: object): Promise<Context>
  dispose(): Promise<void>
}
interface Package {
  getLlama: (options: object) => Promise<{ loadModel(options: object): Promise<Model> }>
}

async function fetched(): Promise<Package> {
  if (!existsSync(join(folder, 'node_modules/node-llama-cpp'))) {
    mkdirSync(folder, { recursive: true })
    writeFileSync(join(folder, 'package.json'), '{ "private": true }\n')
    const binaries = `@node-llama-cpp/${platform() === 'darwin' ? 'mac' : platform()}-${arch()}`
    const flags = ['--omit=optional', '--ignore-scripts', '--no-audit', '--no-fund']
    execFileSync('npm', ['install', ...flags, 'node-llama-cpp@3', `${binaries}@3`], {
      cwd: folder,
      stdio: ['ignore', 2, 2],
    })
  }
  const path = createRequire(join(folder, 'package.json')).resolve('node-llama-cpp')
  return (await import(pathToFileURL(path).href)) as Package
}

export interface Peer {
  /** Tokens per second, one sequence. */
  decode(): Promise<number>
  /** Tokens per second of a prompt of 512. */
  prefill(): Promise<number>
  /** Seconds to the first token of a prompt that is cached but for its last token. */
  warmTtft(): Promise<number>
  close(): Promise<void>
}

/** @param prompt tokens of the warm prompt */
export async function llamaCpp(
  modelDir: string,
  format: GgufFormat,
  threads: number,
  prompt: number,
): Promise<Peer> {
  const { getLlama } = await fetched()
  const llama = await getLlama({ gpu: false, build: 'never', maxThreads: threads, logLevel: 'error' })
  const model = await llama.loadModel({ modelPath: await toGguf(modelDir, format) })
  const contextOf = (length: number): Promise<Context> =>
    model.createContext({ contextSize: length + 64, batchSize: 512, threads })
  const context = await contextOf(512)
  const sequence = context.getSequence()
  const warmContext = await contextOf(prompt)
  const warm = warmContext.getSequence()
  const tokens = (length: number): number[] => Array.from({ length }, (_, i) => (i * 7919 + 13) % 2000)
  let warmed = 0
  return {
    async decode() {
      await sequence.clearHistory()
      return decodeRate(sequence, tokens(16), 16)
    },
    async prefill() {
      await sequence.clearHistory()
      const start = performance.now()
      await sequence.evaluateWithoutGeneratingNewTokens(tokens(512))
      return 512 / ((performance.now() - start) / 1000)
    },
    async warmTtft() {
      if (warmed === 0) await warm.evaluateWithoutGeneratingNewTokens(tokens(prompt - 1))
      const start = performance.now()
      for await (const _ of warm.evaluate([++warmed], { temperature: 0 })) break
      return (performance.now() - start) / 1000
    },
    async close() {
      await context.dispose()
      await warmContext.dispose()
      await model.dispose()
    },
  }
}

async function decodeRate(sequence: Sequence, prompt: number[], count: number): Promise<number> {
  let seen = 0
  let first = 0
  for await (const _ of sequence.evaluate(prompt, { temperature: 0 })) {
    if (seen++ === 0) first = performance.now()
    if (seen > count) break
  }
  return count / ((performance.now() - first) / 1000)
}
