/** Gateways in one workerd, on its own sockets: several services that share one set of tenant objects. */
import { createRequire } from 'node:module'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build, type Plugin } from 'esbuild'
import { convertV4MiniflareOptions, Log, LogLevel, Miniflare, type V4WorkerOptions } from 'miniflare'
import { unstable_getMiniflareWorkerOptions } from 'wrangler'
import { freePort } from '../../gpu-backend/free-port.ts'

const root = join(import.meta.dirname, '../..')
const adminToken = 'admin-token-of-the-bench'
/** The workerd that this Miniflare was made for; it ends with this process, even when that is killed. */
const { default: workerd } = createRequire(import.meta.resolve('miniflare'))('workerd') as { default: string }
process.env['MINIFLARE_WORKERD_PATH'] = join(root, 'gateway/local/workerd.sh')

export interface Gateways {
  ports: number[]
  newKey: (limits: Record<string, number>) => Promise<string>
  stop: () => Promise<void>
}

export async function startGateways(count: number, upstream: string): Promise<Gateways> {
  const out = mkdtempSync(join(tmpdir(), 'qwen-edge-bench-'))
  const model = join(root, 'gateway/model')
  const binary: Plugin = {
    name: 'model',
    setup(build) {
      build.onResolve({ filter: /\.bin$/ }, ({ path }) => ({
        path: `./${path.split('/').at(-1)}`,
        external: true,
      }))
    },
  }
  await build({
    entryPoints: [join(root, 'test/gateway/bench-worker.ts')],
    outfile: join(out, 'index.js'),
    bundle: true,
    format: 'esm',
    target: 'es2024',
    conditions: ['workerd', 'worker', 'browser'],
    mainFields: ['browser', 'module', 'main'],
    external: ['cloudflare:*', 'node:*'],
    plugins: [binary],
  })
  // wrangler asks for them.
  for (const name of ['KEY_PEPPER', 'BACKEND_SECRET', 'ADMIN_TOKEN']) process.env[name] ??= 'bench'
  const workerOptions = unstable_getMiniflareWorkerOptions(join(root, 'wrangler.toml'))
    .workerOptions as V4WorkerOptions
  const ports = await Promise.all(Array.from({ length: count }, () => freePort()))
  const data = readdirSync(model).filter((name) => name.endsWith('.bin'))
  const worker = (at: number) =>
    ({
      ...workerOptions,
      name: `gateway-${at}`,
      rootPath: out,
      modulesRoot: out,
      modules: [
        {
          type: 'ESModule',
          path: join(out, 'index.js'),
          contents: readFileSync(join(out, 'index.js'), 'utf8'),
        },
        ...data.map((name) => ({
          type: 'Data',
          path: join(out, name),
          contents: readFileSync(join(model, name)),
        })),
      ],
      durableObjects: objectsOf(workerOptions.durableObjects ?? {}, at),
      bindings: {
        ...workerOptions.bindings,
        ENVIRONMENT: 'development',
        BACKEND_URL: upstream,
        BACKEND_SECRET: 'bench',
        KEY_PEPPER: 'bench',
        ADMIN_TOKEN: adminToken,
      },
      unsafeDirectSockets: [{ host: '127.0.0.1', port: ports[at] }],
    }) as V4WorkerOptions
  const miniflare = new Miniflare(
    convertV4MiniflareOptions({
      workers: ports.map((_, at) => worker(at)),
      host: '127.0.0.1',
      cf: false,
      telemetry: { enabled: false },
      log: new Log(LogLevel.ERROR),
      resourcePersistencePath: join(out, 'objects'),
      unsafeRuntimeEnv: { WORKERD: workerd },
    }),
  )
  await miniflare.ready

  async function admin<T>(path: string, body: unknown): Promise<T> {
    const response = await fetch(`http://127.0.0.1:${ports[0]}/admin${path}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${adminToken}` },
      body: JSON.stringify(body),
    })
    if (!response.ok) throw new Error(await response.text())
    return (await response.json()) as T
  }
  return {
    ports,
    newKey: async (limits) => {
      const { id } = await admin<{ id: string }>('/tenants', { name: 'bench', limits })
      return (await admin<{ key: string }>(`/tenants/${id}/keys`, { name: 'bench' })).key
    },
    stop: async () => {
      await miniflare.dispose()
      rmSync(out, { recursive: true, force: true })
    },
  }
}

/** The first service has the objects; the others call them there. */
function objectsOf(objects: object, at: number): object {
  if (at === 0) return objects
  return Object.fromEntries(
    Object.entries(objects as Record<string, string | { className: string }>).map(([name, object]) => [
      name,
      { ...(typeof object === 'string' ? { className: object } : object), scriptName: 'gateway-0' },
    ]),
  )
}
