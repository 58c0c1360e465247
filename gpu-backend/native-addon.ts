/** The whole surface of the native addon (native/addon); engine.ts is the only user. */
import { createRequire } from 'node:module'
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'

/** One tensor as a safetensors header describes it; native code checks every number again. */
export interface TensorEntry {
  name: string
  dtype: string
  shape: number[]
  /** Index into `files`. */
  file: number
  /** Bytes from the start of the file. */
  begin: number
  end: number
}

export interface NativeModelConfig {
  hidden: number
  layers: number
  heads: number
  kvHeads: number
  headDim: number
  intermediate: number
  /** Rows of the embedding. */
  vocab: number
  /** Tokens that exist; rows above are padding and are never sampled. */
  tokenizerVocab: number
  context: number
  rmsNormEps: number
  ropeTheta: number
  /** 1: no YaRN. */
  yarnFactor: number
  /** Tokens of the context that was trained. */
  yarnOriginal: number
  yarnBetaFast: number
  yarnBetaSlow: number
  /** Of cos and sin; 0: 0.1 ln(factor) + 1. */
  yarnAttentionFactor: number
  tied: boolean
  /** 0: dense. */
  experts: number
  topK: number
  /** Inner width of a routed expert, and of the shared one. */
  expertInner: number
  sharedInner: number
  renormalise: boolean
  /** How matrices are stored; 'int8' is rounded when loaded. */
  weights: 'stored' | 'int8' | 'gptq' | 'awq'
  /** Inputs that share a scale; gptq and awq alone. */
  quantGroup: number
}

export interface NativeOptions {
  files: string[]
  tensors: TensorEntry[]
  config: NativeModelConfig
  revision: string
  /** 0: one per physical core. */
  threads: number
  /** '': the best this machine has; else 'avx512', 'avx2' or 'base'. */
  kernels: string
  device: 'cpu' | 'cuda'
  /** On CUDA: one kernel for every batch and both phases; the CPU is always so. */
  deterministic: boolean
  /** 0, on CUDA alone: what the weights leave. */
  kvBytes: number
  /** Host memory for evicted blocks; 0: none. */
  hostBytes: number
  maxQueue: number
  maxBatch: number
  prefillChunk: number
  prefillChunkBeside: number
  /** Rows of a step that decodes and guesses ahead; 0: never. */
  draftRows: number
  /** Where the device chooses tokens: launch a step before the tokens of the one before are read. */
  runAhead: boolean
  checkWhenIdle: boolean
}

export interface NativeRequest {
  tokenIds: Uint32Array
  salt: string
  sharedPrefixTokens: number
  priority: number
  /** 0: none. */
  deadlineMs: number
  /** With maxTokens 0: how long the prompt's blocks stay. */
  pinMs: number
  temperature: number
  topP: number
  topK: number
  minP: number
  repetitionPenalty: number
  presencePenalty: number
  frequencyPenalty: number
  seed: number
  maxTokens: number
  minTokens: number
  stop: Uint32Array
  /** -1: none. */
  logprobs: number
  biasedTokens: Uint32Array
  biases: number[]
  /** Each token needs a mask: the first one's is `mask`, later ones come by mask(). */
  constrained: boolean
  /** One bit a token, in words from id 0 up; empty: nothing may come. */
  mask: Uint32Array
}

export interface EngineStats {
  blocksTotal: number
  blocksFree: number
  blocksCached: number
  blocksUsed: number
  /** Of those used: held by pinned prefixes. */
  blocksPinned: number
  running: number
  waiting: number
  /** Prompt tokens looked up in the prefix cache, and found there. */
  prefixQueries: number
  prefixHits: number
  /** Blocks. */
  evictions: number
  /** Evicted blocks kept in host memory, and how often one came back from there. */
  hostBlocks: number
  hostLoads: number
  preemptions: number
  /** Prompt tokens computed (not found in the cache). */
  promptTokens: number
  generatedTokens: number
  requests: number
  steps: number
  /** Of them launched before the tokens of the step before were read. */
  stepsAhead: number
  /** Tokens guessed ahead, and those of them that were right. */
  draftedTokens: number
  acceptedTokens: number
}

/** The prefix cache's counters of one tenant: tokens looked up, tokens found, blocks evicted. */
export interface TenantStats {
  /** '': the operator, whose text every tenant shares. */
  salt: string
  queries: number
  hits: number
  evictions: number
}

export interface NativeInfo {
  threads: number
  kernelLevel: string
  blockSize: number
  blocksTotal: number
}

/** Methods throw an Error whose `name` is one of ErrorName. */
export interface NativeEngine {
  submit(request: NativeRequest): number
  cancel(handle: number): void
  /** For the next token of a constrained request; copied. A handle that is done is ignored. */
  mask(handle: number, mask: Uint32Array): void
  /** What happened since the last call; the layout is written in addon/mailbox.h. */
  drain(): { records: Float64Array; messages: string[] }
  /** Whether Node must stay alive for the engine. */
  keepAlive(yes: boolean): void
  stats(): EngineStats
  tenants(): TenantStats[]
  info(): NativeInfo
  /** [tokens][vocab] */
  logits(tokenIds: Uint32Array, chunk: number): Float32Array
  checkIntegrity(): void
  close(): Promise<void>
}

export type ErrorName =
  | 'CheckpointError'
  | 'InvalidRequestError'
  | 'QueueFullError'
  | 'EngineClosedError'
  | 'IntegrityError'
  | 'EngineError'

export interface NativeAddon {
  /** @param wake called when drain() has something, once until it is drained */
  open(options: NativeOptions, wake: () => void): Promise<NativeEngine>
  /** The kernel levels this machine can run, best first. */
  kernelLevels(): string[]
  /** Why a GPU cannot be used here, in one line. */
  cudaMissing(): string | null
  /** Bytes per second that `threads` (0: all cores) threads read from `bytes` of memory. */
  readBandwidth(threads: number, bytes: number): number
}

let loaded: NativeAddon | undefined

/** Of the builds with CUDA and without that are there, the later one. Throws when the addon was not built. */
export function loadAddon(): NativeAddon {
  const [path] = ['build', 'build-cuda']
    .map((folder) => join(import.meta.dirname, 'native', folder, 'qwen2_edge.node'))
    .filter((file) => existsSync(file))
    .toSorted((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)
  if (path === undefined) throw new Error('the native engine is missing: run `npm run build:native`')
  return (loaded ??= createRequire(import.meta.url)(path) as NativeAddon)
}
