/**
 * `npm start`: builds what must be built, then keeps the backend and the gateway running until it is told to stop. A
 * supervisor only: it knows the other programs by their scripts, not by their code.
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { keepRunning, runStep, stopAll, type Phase, type Program } from './child.ts'
import { help, readSettings, StartError, type Settings } from './settings.ts'
import { lockState, readSecrets, type Secrets } from './state.ts'

const poll_ms = 50
const parent_check_ms = 500

const say = (line: string) => process.stdout.write(`${line}\n`)
/** Whoever read the output has gone; that is no reason to stop serving. */
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined)

if (process.argv.includes('--help') || process.argv.includes('-h')) {
  process.stdout.write(help)
  process.exit(0)
}

const started = performance.now()
let phase: Phase = 'starting'
let unlock = () => {}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => void stop(0))
/** npm passes signals on, but cannot when it is killed itself. */
if (process.env['npm_lifecycle_event'] !== undefined) {
  const parent = process.ppid
  setInterval(() => {
    if (process.ppid !== parent) void stop(1)
  }, parent_check_ms).unref()
}

try {
  await start(readSettings(process.env))
} catch (error) {
  if (!isStopping()) {
    process.stderr.write(`${error instanceof StartError ? error.message : String(error)}\n`)
    await stop(1)
  }
}

/** A function: the phase changes while others wait, which narrowing does not see. */
function isStopping(): boolean {
  return phase === 'stopping'
}

async function stop(code: number): Promise<void> {
  if (isStopping()) return
  phase = 'stopping'
  await stopAll()
  unlock()
  if (code === 0) say('\nstopped')
  process.exit(code)
}

async function start(settings: Settings): Promise<void> {
  const { stateDir, gatewayPort, backendPort } = settings
  unlock = lockState(stateDir)
  await assertFree(gatewayPort, 'GATEWAY_PORT')
  await assertFree(backendPort, 'BACKEND_PORT')
  const secrets = readSecrets(settings)
  const modelDir = join(stateDir, 'model')
  const workerDir = join(stateDir, 'worker')

  say(`qwen2-edge, model ${settings.model}`)
  await runStep({ name: 'building the native engine', script: 'gpu-backend/build-native.ts' })
  await runStep({
    name: `preparing the model ${settings.model}`,
    script: 'gpu-backend/model-card.ts',
    args: ['--out', modelDir],
    env: { MODEL: settings.model },
  })
  const backend = keepRunning(backendProgram(settings, secrets), say, () => phase)
  const bundled = runStep({
    name: 'bundling the gateway',
    script: 'gateway/local/build-worker.ts',
    args: [modelDir, workerDir],
    env: { WRANGLER_SEND_METRICS: 'false', WRANGLER_LOG: 'error' },
  })
  await Promise.race([backend, bundled])
  banner(settings, secrets, join(modelDir, 'card.json'))
  const gateway = keepRunning(gatewayProgram(settings, secrets, workerDir), say, () => phase)
  await Promise.race([backend, gateway, ready(gatewayPort)])
  if (isStopping()) return
  phase = 'ready'
  say(`ready after ${((performance.now() - started) / 1000).toFixed(1)} s; Ctrl-C stops it`)
  await Promise.race([backend, gateway])
}

function backendProgram({ model, backendPort }: Settings, { BACKEND_SECRET }: Secrets): Program {
  return {
    name: 'backend',
    script: 'gpu-backend/main.ts',
    env: { MODEL: model, BACKEND_PORT: String(backendPort), BACKEND_HOST: '127.0.0.1', BACKEND_SECRET },
  }
}

function gatewayProgram(settings: Settings, secrets: Secrets, workerDir: string): Program {
  const vars = {
    ...secrets,
    ENVIRONMENT: 'development',
    BACKEND_URL: `http://127.0.0.1:${settings.backendPort}`,
    QWEN_EDGE_TIME_SCALE: String(settings.timeScale),
    EGRESS_PROXY: settings.egressProxy,
    ...(settings.devRequestsPerMinute === null
      ? {}
      : { DEV_REQUESTS_PER_MINUTE: String(settings.devRequestsPerMinute) }),
  }
  return {
    name: 'gateway',
    script: 'gateway/local/worker-host.ts',
    args: [workerDir, settings.stateDir],
    env: {
      GATEWAY_PORT: String(settings.gatewayPort),
      WORKER_VARS: JSON.stringify(vars),
      // A host that was killed leaves its scraps where the next one clears them away.
      TMPDIR: join(settings.stateDir, 'tmp'),
    },
  }
}

function banner({ gatewayPort }: Settings, { DEV_KEY, ADMIN_TOKEN }: Secrets, cardFile: string): void {
  const { id } = JSON.parse(readFileSync(cardFile, 'utf8')) as { id: string }
  const url = `http://localhost:${gatewayPort}/v1`
  const body = JSON.stringify({
    model: id,
    messages: [{ role: 'user', content: 'What is 17 + 25?' }],
    stream: true,
  })
  say(`
  base URL     ${url}
  API key      ${DEV_KEY}
  admin token  ${ADMIN_TOKEN}

  curl -N ${url}/chat/completions -H 'authorization: Bearer ${DEV_KEY}' -H 'content-type: application/json' -d '${body}'
`)
}

async function assertFree(port: number, variable: string): Promise<void> {
  const server = createServer().listen(port, '127.0.0.1')
  try {
    await once(server, 'listening')
  } catch (error) {
    const busy = error instanceof Error && 'code' in error && error.code === 'EADDRINUSE'
    throw new StartError(
      `Port ${port} ${busy ? 'is in use' : 'cannot be opened'}: set ${variable} to another one`,
      { cause: error },
    )
  }
  server.close()
  await once(server, 'close')
}

async function ready(port: number): Promise<void> {
  for (;;) {
    try {
      const answer = await fetch(`http://127.0.0.1:${port}/readyz`)
      await answer.body?.cancel()
      if (answer.ok) return
    } catch {
      // Not up yet.
    }
    await sleep(poll_ms)
  }
}
