/** What `npm start` can be told; the same variables reach the backend, whose --help lists the rest. */
import { join, resolve } from 'node:path'

export const root = join(import.meta.dirname, '../..')

export interface Settings {
  model: string
  gatewayPort: number
  backendPort: number
  /** Keys, Durable Objects, KV, the bundled worker. */
  stateDir: string
  /** null: the one in the state folder, made on the first start. */
  devKey: string | null
  /** null: likewise. */
  adminToken: string | null
  /** Of the development tenant; 0: none. null: what wrangler.toml says. */
  devRequestsPerMinute: number | null
  /** Divides the waits between deliveries. */
  timeScale: number
  /** Through which webhooks leave; '': directly. */
  egressProxy: string
}

export const help = `npm start: the whole of qwen2-edge on this machine, gateway and backend.

  MODEL                  tiny (shipped), a folder, or a hub id such as Qwen/Qwen2-0.5B-Instruct   [tiny]
  DEVICE                 auto, cpu or cuda                                                        [auto]
  GATEWAY_PORT           the API: http://localhost:8787/v1                                        [8787]
  BACKEND_PORT           the backend, for the gateway alone                                       [8788]
  QWEN_EDGE_DEV_KEY      the API key                                              [made once, then kept]
  QWEN_EDGE_DEV_REQUESTS_PER_MINUTE
                         that key's limit; 0: none                                                [6000]
  QWEN_EDGE_ADMIN_TOKEN  for /admin: tenants and keys                             [made once, then kept]
  QWEN_EDGE_STATE        folder for keys, limits and caches                                 [.qwen-edge]
  QWEN_EDGE_TIME_SCALE   divides the waits between webhook deliveries, for trying them out         [1]
  EGRESS_PROXY           webhooks leave through it (gateway/local/egress-proxy.ts)              [none]
  MODELS_DIR             folder for models fetched from the hub                      [.qwen-edge/models]
  HF_ENDPOINT            where they are fetched                                 [https://huggingface.co]
  HF_TOKEN               for private and gated models
  LOG                    info: a line for each generation                                         [warn]

The backend also reads THREADS, KV_MEMORY_MB, MAX_BATCH, PREFILL_CHUNK and MAX_QUEUE:
npx node gpu-backend/main.ts --help explains them.
`

/** A mistake of whoever started it; the message is one line for them. */
export class StartError extends Error {
  override readonly name = 'StartError'
}

export function readSettings(env: NodeJS.ProcessEnv): Settings {
  const given = (name: string) => (env[name] === '' ? undefined : env[name])
  const settings = {
    model: given('MODEL') ?? 'tiny',
    gatewayPort: port(env, 'GATEWAY_PORT', 8787),
    backendPort: port(env, 'BACKEND_PORT', 8788),
    stateDir: resolve(root, given('QWEN_EDGE_STATE') ?? '.qwen-edge'),
    devKey: given('QWEN_EDGE_DEV_KEY') ?? null,
    adminToken: given('QWEN_EDGE_ADMIN_TOKEN') ?? null,
    devRequestsPerMinute: requestsPerMinute(given('QWEN_EDGE_DEV_REQUESTS_PER_MINUTE')),
    timeScale: timeScale(given('QWEN_EDGE_TIME_SCALE')),
    egressProxy: given('EGRESS_PROXY') ?? '',
  }
  if (settings.gatewayPort === settings.backendPort)
    throw new StartError(`GATEWAY_PORT and BACKEND_PORT are both ${settings.gatewayPort}: change one`)
  const { devKey, adminToken } = settings
  for (const [name, text] of Object.entries({ QWEN_EDGE_DEV_KEY: devKey, QWEN_EDGE_ADMIN_TOKEN: adminToken }))
    if (text !== null && !/^[\w.~+/=-]{1,256}$/.test(text))
      throw new StartError(`${name} must be 1 to 256 characters that a bearer token may have (RFC 6750)`)
  return settings
}

function requestsPerMinute(text: string | undefined): number | null {
  if (text === undefined) return null
  if (/^\d{1,9}$/.test(text)) return Number(text)
  throw new StartError(`QWEN_EDGE_DEV_REQUESTS_PER_MINUTE=${text} is no whole number from 0 (no limit)`)
}

function timeScale(text = '1'): number {
  if (/^\d{1,6}$/.test(text) && Number(text) > 0) return Number(text)
  throw new StartError(`QWEN_EDGE_TIME_SCALE=${text} is no whole number from 1`)
}

function port(env: NodeJS.ProcessEnv, name: string, fallback: number): number {
  const text = env[name]
  if (text === undefined || text === '') return fallback
  const value = Number(text)
  if (Number.isInteger(value) && value >= 1 && value <= 65_535) return value
  throw new StartError(`${name}=${text} is no port: a whole number from 1 to 65535`)
}
