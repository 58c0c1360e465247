/**
 * The backend as a process. It listens before it loads the weights, so whoever runs it can tell a slow start from a
 * dead one; a checkpoint that cannot be loaded ends it with one line, an engine that fails (its GPU, its accounting) with status 1. SIGTERM drains. As a child with an IPC channel
 * it ends with its parent, at once: nothing here outlives `npm start`.
 */
import { once } from 'node:events'
import { createAdaptorServer } from '@hono/node-server'
import { openEngine, type Engine } from './engine.ts'
import type { Outcome } from './generations.ts'
import { modelCard } from './model-card.ts'
import { modelId, resolveModel } from './model-source.ts'
import { endWithParent } from './parent.ts'
import { createService } from './service.ts'
import { readSettings, type Settings } from './settings.ts'

const close_ms_max = 2000
/** Longer than any client keeps an idle connection (workerd: 5 s), so that it is never closed under a request. */
const keep_alive_ms = 65_000

endWithParent()

const settings = readSettings(process.argv)
const service = createService({
  model: modelId(settings.model),
  secret: settings.secret,
  ...(settings.log === 'info' ? { onOutcome: logOutcome } : {}),
})
const server = createAdaptorServer({
  fetch: service.app.fetch,
  hostname: settings.host,
  serverOptions: { keepAliveTimeout: keep_alive_ms },
})
let engine: Engine | null = null
let stopping = false

try {
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
  await listen(settings)
  engine = await load(settings)
} catch (error) {
  fail(error)
}

async function listen({ port, host }: Settings): Promise<void> {
  server.listen(port, host)
  await once(server, 'listening')
}

async function load({ model, ...options }: Settings): Promise<Engine> {
  const started = performance.now()
  const source = await resolveModel(model)
  const card = await modelCard(source)
  const engine = await openEngine({ modelDir: source.dir, ...options, onFailed })
  service.attach(engine, card)
  const { dtype, device, cudaMissing, kernelLevel, threads } = engine.model
  const why = cudaMissing === undefined ? '' : ` (no GPU: ${cudaMissing})`
  say(
    `${card.id} (${card.revision.slice(0, 8)}) ready in ${((performance.now() - started) / 1000).toFixed(1)} s: ` +
      `${dtype} on ${device}${why}, ${kernelLevel}, ${threads} threads`,
  )
  return engine
}

function stop(): void {
  if (stopping) process.exit(1)
  stopping = true
  void (async () => {
    await service.drain(settings.drainSeconds * 1000)
    setTimeout(() => process.exit(0), close_ms_max).unref()
    server.close()
    await engine?.close()
    process.exit(0)
  })()
}

/** What ran has failed; its last events leave, then whoever runs this process starts it again. */
function onFailed(message: string): void {
  service.fail(message)
  if (stopping) process.exit(1)
  stopping = true
  say(`${message}: this process ends, to be started again`)
  setTimeout(() => process.exit(1), close_ms_max).unref()
  void service.drain(0).then(() => server.close(() => process.exit(1)))
}

/** One line a request; token ids and text are nobody's business. */
function logOutcome(outcome: Outcome): void {
  const { request_id, finish, code, usage, timing, ttft_ms, total_ms } = outcome
  const rounded = (ms: number | null) => (ms === null ? null : Math.round(ms * 10) / 10)
  process.stderr.write(
    `${JSON.stringify({
      time: new Date().toISOString(),
      request_id,
      finish,
      ...(code === null ? {} : { code }),
      ...usage,
      ...timing,
      ttft_ms: rounded(ttft_ms),
      total_ms: rounded(total_ms),
    })}\n`,
  )
}

function say(line: string): void {
  process.stderr.write(`${line}\n`)
}

function fail(error: unknown): never {
  const busy = error instanceof Error && 'code' in error && error.code === 'EADDRINUSE'
  say(
    busy
      ? `Port ${settings.port} is in use: set BACKEND_PORT to another one`
      : error instanceof Error
        ? error.message
        : String(error),
  )
  process.exit(1)
}
