/**
 * The engine as the service sees it: open a checkpoint, submit token ids, get token ids back as events.
 *
 * Events of one engine step arrive together, at most one token event per request and wake-up, on the event loop's own
 * turn; a handler that throws is reported as an uncaught exception and harms no other request. Node stays alive while
 * a request is under way and exits otherwise, even without close().
 */
import { randomInt } from 'node:crypto'
import { totalmem } from 'node:os'
import type { GrammarSpec } from '../src/grammar/grammar.ts'
import type { GenerationDefaults, ResolvedSampling } from '../src/sampling.ts'
import { CheckpointError, readCheckpoint, type Checkpoint } from './checkpoint.ts'
import { engine_handle, readEvents, type EngineEvent } from './engine-events.ts'
import { Grammars, type Constraint } from './grammars.ts'
import {
  loadAddon,
  type EngineStats,
  type NativeEngine,
  type NativeRequest,
  type TenantStats,
} from './native-addon.ts'

export { CheckpointError }
export type { EngineEvent, EngineStats, TenantStats }

export interface EngineOptions {
  modelDir: string
  /** 'auto': a GPU where there is one, else the CPU. */
  device: 'auto' | 'cpu' | 'cuda'
  /** On a GPU: the same tokens alone or batched, cached or not. The CPU is always so. Default false. */
  deterministic?: boolean
  /** Default: one per physical core. */
  threads?: number
  /** Keys and values. Default: 512 MB or one full context, whichever is more, but at most a quarter of the memory. */
  kvMemoryMb?: number
  /** Memory for evicted blocks of the prefix cache, from where they come back. Default 0: none. */
  prefixHostMb?: number
  /** Sequences that run at once. Default 64. */
  maxBatch?: number
  /** Prompt tokens per step while nothing decodes. Default 512. */
  prefillChunk?: number
  /** Prompt tokens per step beside decoding sequences, at most; fewer keep their pace. Default 256. */
  prefillChunkBeside?: number
  /** Guesses ahead from repeated text while few sequences decode; answers are the same. Default true. */
  speculate?: boolean
  /** On a GPU: launches each step before the tokens of the one before are read; answers are the same. Default true. */
  runAhead?: boolean
  /** Requests that may wait. Default 256. */
  maxQueue?: number
  /** Forces a kernel level: 'amx', 'amx-bf16', 'avx512', 'avx2' or 'base'. Default: the best exact one here. */
  kernels?: string
  /** Tokens that exist; the rows above are never sampled. Default: what tokenizer.json says, else all rows. */
  tokenizerVocabSize?: number
  /** 'int8' rounds the matrices when they are loaded: half the memory of bf16 and up to twice the speed of decode. */
  weights?: 'stored' | 'int8'
  /** Checks the block accounting whenever the last request ends. Default false. */
  checkWhenIdle?: boolean
  /** The GPU failed, or the accounting of blocks: what ran has ended with errors, and only a new process can compute again. */
  onFailed?: (message: string) => void
}

export interface ModelInfo {
  revision: string
  /** Tokens a request may use: the model's context, or less where the KV memory holds less. */
  contextLength: number
  vocabSize: number
  tokenizerVocabSize: number
  eosTokenIds: number[]
  generationDefaults: GenerationDefaults
  dtype: string
  device: 'cpu' | 'cuda'
  /** Why there is no GPU, where one was looked for. */
  cudaMissing?: string
  threads: number
  kernelLevel: string
  blockSize: number
  blocksTotal: number
  weightBytes: number
  parameters: number
}

export interface EngineRequest {
  tokenIds: Uint32Array
  /** max_tokens 0 computes the prompt and finishes with 'length': it warms the prefix cache. */
  sampling: ResolvedSampling
  /** Who may reuse the blocks. */
  salt: string
  /** Leading tokens that are operator text, shared by every salt. */
  sharedPrefixTokens: number
  /** Higher runs first. */
  priority: number
  /** From now. */
  deadlineMs?: number
  /** With max_tokens 0: how long the prompt's blocks stay, whatever else wants memory. */
  pinMs?: number
  /** What the answer may be; made by constrain(), closed when the answer ends. */
  constraint?: Constraint
}

export interface Engine {
  readonly model: ModelInfo
  /** @returns a handle for cancel(). Throws InvalidRequestError, QueueFullError or EngineClosedError. */
  submit(request: EngineRequest, onEvent: (event: EngineEvent) => void): number
  /** For one answer of the tenant with that salt. Rejects with ApiError where the grammar cannot be served. */
  constrain(grammar: GrammarSpec, sampling: ResolvedSampling, salt: string): Promise<Constraint>
  /** Idempotent; the request still gets its final 'finish' with exact usage. */
  cancel(handle: number): void
  /** After close(): the last ones. */
  stats(): EngineStats
  /** The prefix cache's counters by tenant, a second old at most. */
  tenants(): TenantStats[]
  /** Gives back weights and KV; what runs is cancelled, and until wake() submit() throws EngineClosedError. */
  sleep(): Promise<void>
  /** Loads the same weights again; rejects with CheckpointError when the folder holds others by now. */
  wake(): Promise<void>
  /** Throws IntegrityError when a block of the prefix cache is lost; waits for the step under way. */
  checkIntegrity(): void
  /** Logits of every token, [tokens][vocabSize], prefilled in chunks; for oracles, it holds up the event loop. */
  logits(tokenIds: Uint32Array, chunk?: number): Float32Array
  /** Cancels what runs, hands out the last events, gives back all memory, then resolves. */
  close(): Promise<void>
}

export class EngineError extends Error {}
/** The request can never be served: change it. */
export class InvalidRequestError extends EngineError {
  override name = 'InvalidRequestError'
}
/** Too many requests wait: try again later. */
export class QueueFullError extends EngineError {
  override name = 'QueueFullError'
}
export class EngineClosedError extends EngineError {
  override name = 'EngineClosedError'
}
export class IntegrityError extends EngineError {
  override name = 'IntegrityError'
}

interface Handler {
  onEvent: (event: EngineEvent) => void
  constraint: Constraint | undefined
}

const errors = { CheckpointError, InvalidRequestError, QueueFullError, EngineClosedError, IntegrityError }

/** Native errors carry a name; here they become the class of that name. */
function typed(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  const known = Object.hasOwn(errors, error.name) ? errors[error.name as keyof typeof errors] : EngineError
  return new known(error.message, { cause: error })
}

function attempt<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw typed(error)
  }
}

/** Rejects with CheckpointError: one clear line. */
export async function openEngine(options: EngineOptions): Promise<Engine> {
  const checkpoint = await readCheckpoint(options.modelDir)
  checkpoint.config.tokenizerVocab = options.tokenizerVocabSize ?? checkpoint.config.tokenizerVocab
  const revision = weightsAsAsked(options, checkpoint)
  const chosen = deviceOf(options)
  const { device } = chosen
  const handlers = new Map<number, Handler>()
  const grammars = new Grammars({
    modelDir: options.modelDir,
    vocabSize: checkpoint.config.tokenizerVocab,
    eosTokenIds: checkpoint.eosTokenIds,
  })
  const load = (): Promise<NativeEngine> =>
    openNative({ ...options, revision, device }, checkpoint, () => deliver()).catch((error: unknown) => {
      throw typed(error)
    })

  function deliver(): void {
    for (const [handle, event] of readEvents(native)) {
      if (handle === engine_handle) {
        if (event.type === 'error') options.onFailed?.(event.message)
        continue
      }
      const handler = handlers.get(handle)
      if (event.type === 'tokens') ask(handle, event.tokenIds)
      else forget(handle)
      try {
        handler?.onEvent(event)
      } catch (error) {
        queueMicrotask(() => {
          throw error
        })
      }
    }
    if (handlers.size === 0) native.keepAlive(false)
  }

  /** A constrained answer comes one token at a time: the engine waits for the mask of the next. */
  function ask(handle: number, tokenIds: number[]): void {
    const handler = handlers.get(handle)
    for (const token of tokenIds)
      handler?.constraint?.accept(
        token,
        (mask) => {
          if (closing === undefined) native.mask(handle, mask ?? nothing)
        },
        ({ code, message }) => {
          forget(handle)
          if (closing === undefined) native.cancel(handle)
          handler.onEvent({ type: 'error', code, message, retryable: false })
        },
      )
  }

  function forget(handle: number): void {
    handlers.get(handle)?.constraint?.close()
    handlers.delete(handle)
  }

  let native = await load()
  let closing: Promise<void> | undefined
  let waking: Promise<void> | undefined
  let closed = false
  let stats = native.stats()
  let tenants = native.tenants()
  const close = (): Promise<void> => {
    if (closing === undefined) {
      stats = native.stats()
      tenants = native.tenants()
      closing = native.close().then(deliver)
    }
    return closing
  }
  async function reopen(slept: Promise<void>): Promise<void> {
    await slept
    if (closed) throw new EngineClosedError('the engine is closed')
    if ((await readCheckpoint(options.modelDir)).revision !== checkpoint.revision)
      throw new CheckpointError(`${options.modelDir}: holds other weights than before the sleep`)
    native = await load()
    // close() waits for this, and then closes what was opened.
    closing = undefined
  }

  return {
    model: describe(checkpoint, native, chosen),
    submit(request, onEvent) {
      const handle = attempt(() => native.submit(toNative(request, checkpoint.eosTokenIds)))
      if (handlers.size === 0) native.keepAlive(true)
      handlers.set(handle, { onEvent, constraint: request.constraint })
      return handle
    },
    constrain: (grammar, sampling, salt) =>
      grammars.open(grammar, stopIds(sampling, checkpoint.eosTokenIds), salt),
    cancel(handle) {
      if (closing === undefined) native.cancel(handle)
    },
    stats: () => (closing === undefined ? (stats = native.stats()) : stats),
    tenants: () => (closing === undefined ? (tenants = native.tenants()) : tenants),
    checkIntegrity: () => attempt(() => native.checkIntegrity()),
    logits: (tokenIds, chunk = 512) => attempt(() => native.logits(tokenIds, chunk)),
    async sleep() {
      await Promise.all([close(), grammars.rest()])
    },
    async wake() {
      if (closing === undefined) return
      waking ??= reopen(closing).finally(() => (waking = undefined))
      await waking
    },
    async close() {
      closed = true
      await waking?.catch(() => undefined)
      await Promise.all([close(), grammars.close()])
    },
  }
}

function openNative(
  options: EngineOptions & { revision: string; device: 'cpu' | 'cuda' },
  checkpoint: Checkpoint,
  wake: () => void,
): Promise<NativeEngine> {
  return loadAddon().open(
    {
      files: checkpoint.files,
      tensors: checkpoint.tensors,
      config: checkpoint.config,
      revision: options.revision,
      threads: options.threads ?? 0,
      kernels: options.kernels ?? '',
      device: options.device,
      deterministic: options.deterministic ?? false,
      kvBytes: kvBytes(options, checkpoint),
      hostBytes: Math.floor((options.prefixHostMb ?? 0) * 1e6),
      maxQueue: options.maxQueue ?? 256,
      maxBatch: options.maxBatch ?? 64,
      prefillChunk: options.prefillChunk ?? 512,
      prefillChunkBeside: options.prefillChunkBeside ?? 256,
      draftRows: options.speculate === false ? 0 : 6,
      runAhead: options.runAhead ?? true,
      checkWhenIdle: options.checkWhenIdle ?? false,
    },
    wake,
  )
}

/** Throws InvalidRequestError, one line, when a GPU is asked for and cannot be used. */
function deviceOf({ device }: EngineOptions): Pick<ModelInfo, 'device' | 'cudaMissing'> {
  if (device === 'cpu') return { device }
  const missing = loadAddon().cudaMissing()
  if (missing === null) return { device: 'cuda' }
  if (device === 'cuda') throw new InvalidRequestError(`DEVICE=cuda: ${missing}`)
  return { device: 'cpu', cudaMissing: missing }
}

/** @returns what names the cached blocks: other weights give other numbers. */
function weightsAsAsked({ weights = 'stored' }: EngineOptions, { config, revision }: Checkpoint): string {
  if (weights === 'stored') return revision
  if (config.weights !== 'stored')
    throw new CheckpointError(`${config.weights} weights have four bits already: leave WEIGHTS unset`)
  config.weights = weights
  return `${revision} ${weights}`
}

/** Bytes of keys and values per token: fp32, two per layer and KV head; values are padded to 16 channels. */
function kvBytesPerToken({ layers, kvHeads, headDim }: Checkpoint['config']): number {
  return layers * kvHeads * (headDim + Math.ceil(headDim / 16) * 16) * 4
}

function kvBytes({ kvMemoryMb, device }: EngineOptions, { config }: Checkpoint): number {
  if (kvMemoryMb !== undefined) return Math.floor(kvMemoryMb * 1e6)
  if (device === 'cuda') return 0
  const context = (config.context + 16) * kvBytesPerToken(config)
  return Math.floor(Math.min(Math.max(512e6, context), totalmem() / 4))
}

function describe(
  checkpoint: Checkpoint,
  native: NativeEngine,
  device: Pick<ModelInfo, 'device' | 'cudaMissing'>,
): ModelInfo {
  const { threads, kernelLevel, blockSize, blocksTotal } = native.info()
  return {
    revision: checkpoint.revision,
    contextLength: Math.min(checkpoint.config.context, blocksTotal * blockSize),
    vocabSize: checkpoint.config.vocab,
    tokenizerVocabSize: checkpoint.config.tokenizerVocab,
    eosTokenIds: checkpoint.eosTokenIds,
    generationDefaults: checkpoint.generationDefaults,
    dtype: checkpoint.dtype,
    ...device,
    threads,
    kernelLevel,
    blockSize,
    blocksTotal,
    weightBytes: checkpoint.weightBytes,
    parameters: checkpoint.parameters,
  }
}

function toNative(
  { tokenIds, sampling, constraint, ...request }: EngineRequest,
  eos: number[],
): NativeRequest {
  const biases = Object.entries(sampling.logit_bias)
  return {
    tokenIds,
    salt: request.salt,
    sharedPrefixTokens: request.sharedPrefixTokens,
    priority: request.priority,
    deadlineMs: request.deadlineMs ?? 0,
    pinMs: request.pinMs ?? 0,
    temperature: sampling.temperature,
    topP: sampling.top_p,
    topK: sampling.top_k,
    minP: sampling.min_p,
    repetitionPenalty: sampling.repetition_penalty,
    presencePenalty: sampling.presence_penalty,
    frequencyPenalty: sampling.frequency_penalty,
    seed: sampling.seed ?? randomInt(2 ** 48 - 1),
    maxTokens: sampling.max_tokens,
    minTokens: sampling.min_tokens,
    stop: Uint32Array.from(stopIds(sampling, eos)),
    logprobs: sampling.logprobs ?? -1,
    biasedTokens: Uint32Array.from(biases, ([id]) => Number(id)),
    biases: biases.map(([, bias]) => bias),
    constrained: constraint !== undefined,
    mask: constraint?.first ?? nothing,
  }
}

const nothing = new Uint32Array()

const stopIds = ({ stop_token_ids, ignore_eos }: ResolvedSampling, eos: number[]): number[] => [
  ...stop_token_ids,
  ...(ignore_eos ? [] : eos),
]
