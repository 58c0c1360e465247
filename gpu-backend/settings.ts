/** The backend's settings: a flag or its environment variable, checked once, in one place. */
import { Command, InvalidArgumentError, Option } from 'commander'

export interface Settings {
  model: string
  device: 'auto' | 'cpu' | 'cuda'
  deterministic: boolean
  host: string
  port: number
  secret: string
  threads?: number
  kvMemoryMb?: number
  prefixHostMb?: number
  speculate: boolean
  runAhead: boolean
  maxBatch?: number
  prefillChunk?: number
  maxQueue?: number
  weights: 'stored' | 'int8'
  kernels?: string
  drainSeconds: number
  log: 'warn' | 'info'
}

const integer = (min: number, max: number) => (text: string) => {
  const value = Number(text)
  if (text.trim() !== '' && Number.isInteger(value) && value >= min && value <= max) return value
  throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`)
}

export function readSettings(argv: readonly string[]): Settings {
  const option = (flags: string, env: string, text: string) => new Option(flags, text).env(env)
  const count = (flags: string, env: string, text: string, min: number, max: number) =>
    option(flags, env, text).argParser(integer(min, max))
  const command = new Command('backend')
    .description('Runs a Qwen2 checkpoint and serves it to the gateway: token ids in, token ids out.')
    .addOption(option('--model <model>', 'MODEL', 'tiny, a folder, or a hub id').default('tiny'))
    .addOption(
      option('--device <device>', 'DEVICE', 'what computes').choices(['auto', 'cpu', 'cuda']).default('auto'),
    )
    .addOption(
      option('--deterministic <0|1>', 'DETERMINISTIC', '1: a GPU gives the same tokens alone or batched')
        .choices(['0', '1'])
        .default('0'),
    )
    .addOption(option('--host <address>', 'BACKEND_HOST', 'address to listen on').default('127.0.0.1'))
    .addOption(count('--port <port>', 'BACKEND_PORT', 'port to listen on', 0, 65_535).default(8788))
    .addOption(
      option('--secret <text>', 'BACKEND_SECRET', 'what callers of /v1 must send; prefer the variable'),
    )
    .addOption(
      count('--threads <n>', 'THREADS', 'CPU threads of the engine; one per core unless set', 1, 1024),
    )
    .addOption(count('--kv-memory <MiB>', 'KV_MEMORY_MB', 'memory for the prefix cache', 1, 16_777_216))
    .addOption(
      count('--prefix-host <MB>', 'PREFIX_HOST_MB', 'memory for evicted prefixes; 0: none', 0, 16_777_216),
    )
    .addOption(
      option('--speculation <on>', 'SPECULATION', 'guess ahead from repeated text; answers are the same')
        .choices(['on', 'off'])
        .default('on'),
    )
    .addOption(
      option(
        '--run-ahead <on>',
        'RUN_AHEAD',
        'launch a step before the one before is read; answers are the same',
      )
        .choices(['on', 'off'])
        .default('on'),
    )
    .addOption(count('--max-batch <n>', 'MAX_BATCH', 'sequences computed together', 1, 4096))
    .addOption(count('--prefill-chunk <tokens>', 'PREFILL_CHUNK', 'prompt tokens a step takes', 16, 65_536))
    .addOption(count('--max-queue <n>', 'MAX_QUEUE', 'requests that may wait', 1, 1_000_000))
    .addOption(
      option('--weights <form>', 'WEIGHTS', 'int8 rounds the matrices when they are loaded')
        .choices(['stored', 'int8'])
        .default('stored'),
    )
    .addOption(
      option(
        '--kernels <level>',
        'KERNELS',
        'CPU instructions: amx, amx-bf16 (rounds as bf16 arithmetic does), avx512, avx2, base; the best exact ones unless set',
      ),
    )
    .addOption(
      count('--drain <seconds>', 'DRAIN_SECONDS', 'on SIGTERM, for running requests', 0, 3600).default(25),
    )
    .addOption(
      option('--log <level>', 'LOG', 'info: a line for each request')
        .choices(['warn', 'info'])
        .default('warn'),
    )
    .parse(argv)
  const given = command.opts<{
    model: string
    device: 'auto' | 'cpu' | 'cuda'
    deterministic: '0' | '1'
    host: string
    port: number
    secret?: string
    threads?: number
    kvMemory?: number
    prefixHost?: number
    speculation: 'on' | 'off'
    runAhead: 'on' | 'off'
    maxBatch?: number
    prefillChunk?: number
    maxQueue?: number
    weights: 'stored' | 'int8'
    kernels?: string
    drain: number
    log: 'warn' | 'info'
  }>()
  if (given.secret === undefined || given.secret === '')
    command.error(
      'error: BACKEND_SECRET is not set; the gateway sends it, for example $(openssl rand -hex 32)',
    )
  const { threads, kvMemory, prefixHost, maxBatch, prefillChunk, maxQueue, kernels } = given
  return {
    model: given.model,
    device: given.device,
    deterministic: given.deterministic === '1',
    host: given.host,
    port: given.port,
    secret: given.secret ?? '',
    ...(threads === undefined ? {} : { threads }),
    ...(kvMemory === undefined ? {} : { kvMemoryMb: kvMemory }),
    ...(prefixHost === undefined ? {} : { prefixHostMb: prefixHost }),
    speculate: given.speculation === 'on',
    runAhead: given.runAhead === 'on',
    ...(maxBatch === undefined ? {} : { maxBatch }),
    ...(prefillChunk === undefined ? {} : { prefillChunk }),
    ...(maxQueue === undefined ? {} : { maxQueue }),
    weights: given.weights,
    ...(kernels === undefined ? {} : { kernels }),
    drainSeconds: given.drain,
    log: given.log,
  }
}
