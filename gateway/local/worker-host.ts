/**
 * Runs the bundled worker in Miniflare's workerd. Requests go to workerd's own socket: Miniflare's entry worker in
 * front of it would cost 60% of the throughput. Miniflare starts a workerd that died again by itself.
 * Usage: worker-host.ts WORKER_FOLDER STATE_FOLDER; vars that differ from wrangler.toml come in WORKER_VARS as JSON.
 */
import { createRequire } from 'node:module'
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { convertV4MiniflareOptions, Log, LogLevel, Miniflare, type V4WorkerOptions } from 'miniflare'
import { egress } from './egress.ts'
import { endWithParent } from './parent.ts'

const [workerDir = '', stateDir = ''] = process.argv.slice(2)
const port = Number(process.env['GATEWAY_PORT'])
const vars = JSON.parse(process.env['WORKER_VARS'] ?? '{}') as Record<string, string>
const { workerOptions, externalWorkers } = JSON.parse(
  readFileSync(join(workerDir, 'options.json'), 'utf8'),
) as { workerOptions: V4WorkerOptions; externalWorkers: V4WorkerOptions[] }

/** The workerd that this Miniflare was made for. */
const { default: workerd } = createRequire(import.meta.resolve('miniflare'))('workerd') as { default: string }
process.env['MINIFLARE_WORKERD_PATH'] = join(import.meta.dirname, 'workerd.sh')

const tmp = join(stateDir, 'tmp')
rmSync(tmp, { recursive: true, force: true })
mkdirSync(tmp, { recursive: true })

const text = (name: string) => readFileSync(join(workerDir, name), 'utf8')
const worker = {
  ...workerOptions,
  name: 'gateway',
  rootPath: workerDir,
  modulesRoot: workerDir,
  modules: [
    { type: 'ESModule', path: join(workerDir, 'index.js'), contents: text('index.js') },
    ...readdirSync(workerDir)
      .filter((name) => name.endsWith('.bin'))
      .map((name) => ({
        type: 'Data',
        path: join(workerDir, name),
        contents: readFileSync(join(workerDir, name)),
      })),
  ],
  bindings: { ...workerOptions.bindings, ...vars },
  serviceBindings: { ...workerOptions.serviceBindings, EGRESS: egress },
  unsafeDirectSockets: [{ host: '127.0.0.1', port }],
} as V4WorkerOptions

/** workerd's and the worker's own lines go to our streams, where the supervisor names their source. */
class RuntimeLog extends Log {
  override error(error: Error): void {
    process.stderr.write(`${error.message}\n`)
    // Without a runtime this process is of no use; the supervisor starts another.
    if (error.message.includes('failed to restart')) process.exit(1)
  }
  override warn(message: string): void {
    if (message.includes('crashed unexpectedly')) process.stderr.write('workerd died; starting it again\n')
    else super.warn(message)
  }
}

const miniflare = new Miniflare(
  convertV4MiniflareOptions({
    workers: [worker, ...externalWorkers],
    host: '127.0.0.1',
    cf: false,
    telemetry: { enabled: false },
    log: new RuntimeLog(LogLevel.WARN),
    resourcePersistencePath: join(stateDir, 'objects'),
    resourceTmpPath: tmp,
    unsafeRuntimeEnv: { WORKERD: workerd },
    handleStructuredLogs: ({ level, message }) =>
      (level === 'error' || level === 'warn' ? process.stderr : process.stdout).write(`${message}\n`),
  }),
)
endWithParent(() => miniflare.dispose())

try {
  await miniflare.ready
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
  process.exit(1)
}
