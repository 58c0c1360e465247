/** The real thing for end-to-end tests: `npm start` on free ports with a state folder of its own. */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freePort } from '../../gpu-backend/free-port.ts'

export interface Stack {
  gateway: string
  backend: string
  key: string
  adminToken: string
  backendSecret: string
  /** Of the supervisor. */
  pid: number
  state: string
  output: () => string
  stop: () => Promise<void>
}

const ready_ms = 200_000

export async function startStack(env: Record<string, string> = {}): Promise<Stack> {
  const state = env['QWEN_EDGE_STATE'] ?? mkdtempSync(join(tmpdir(), 'qwen-edge-e2e-'))
  const [gatewayPort, backendPort] = await Promise.all([freePort(), freePort()])
  const key = 'dev-key-of-the-tests'
  const adminToken = 'admin-token-of-the-tests'
  const child = spawn('node', ['gateway/local/main.ts'], {
    env: {
      ...process.env,
      GATEWAY_PORT: String(gatewayPort),
      BACKEND_PORT: String(backendPort),
      QWEN_EDGE_STATE: state,
      QWEN_EDGE_DEV_KEY: key,
      QWEN_EDGE_ADMIN_TOKEN: adminToken,
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()))
  const stop = async () => {
    child.kill('SIGINT')
    await closed
    rmSync(state, { recursive: true, force: true })
  }
  await new Promise<void>((resolve, reject) => {
    const fail = (why: string) => reject(new Error(`${why}; it said:\n${output}`))
    const timer = setTimeout(() => fail('npm start was not ready in time'), ready_ms)
    const read = (chunk: Buffer) => {
      output += chunk.toString()
      if (!/^\s*ready\b/m.test(output)) return
      clearTimeout(timer)
      resolve()
    }
    child.stdout.on('data', read)
    child.stderr.on('data', read)
    child.once('close', (code) => fail(`npm start ended with ${code}`))
  }).catch(async (error: unknown) => {
    await stop()
    throw error
  })
  const { BACKEND_SECRET: backendSecret } = JSON.parse(readFileSync(join(state, 'secrets.json'), 'utf8')) as {
    BACKEND_SECRET: string
  }
  return {
    gateway: `http://127.0.0.1:${gatewayPort}`,
    backend: `http://127.0.0.1:${backendPort}`,
    key,
    adminToken,
    backendSecret,
    pid: child.pid ?? 0,
    state,
    output: () => output,
    stop,
  }
}

/** One sample of the backend's Prometheus page, labels added up. */
export async function metric({ backend }: Stack, name: string): Promise<number> {
  const page = await (await fetch(`${backend}/metrics`)).text()
  const samples = page
    .split('\n')
    .filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`))
  if (samples.length === 0) throw new Error(`no metric ${name} in:\n${page}`)
  return samples.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0)
}

export async function until(what: string, done: () => Promise<boolean>, limit_ms = 10_000): Promise<void> {
  const end = Date.now() + limit_ms
  while (!(await done())) {
    if (Date.now() > end) throw new Error(`not within ${limit_ms} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

/** A new tenant; gives out its keys. @param limits as the admin API takes them */
export async function newTenant(
  stack: Stack,
  limits: object = {},
): Promise<(key?: object) => Promise<string>> {
  const post = async <T>(path: string, body: object) => {
    const response = await fetch(`${stack.gateway}/admin${path}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${stack.adminToken}` },
      body: JSON.stringify(body),
    })
    if (response.status !== 201) throw new Error(`${path}: ${response.status} ${await response.text()}`)
    return (await response.json()) as T
  }
  const { id } = await post<{ id: string }>('/tenants', { name: 't', limits })
  return async (key = {}) => (await post<{ key: string }>(`/tenants/${id}/keys`, { name: 'k', ...key })).key
}
