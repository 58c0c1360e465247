/** `npm start` as a supervisor: what dies comes back, what stops is gone, mistakes get one line. */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { descendants, pidOf, processes } from './processes.ts'
import { freePort } from '../../gpu-backend/free-port.ts'
import { startStack, until, type Stack } from './stack.ts'

const restart_ms_max = 2000
const stop_ms_max = 2000
/** What the restarted program itself takes, on a machine that does other things as well. */
const ready_ms_max = 15_000

const isReady = async (stack: Stack): Promise<boolean> =>
  fetch(`${stack.gateway}/readyz`, { signal: AbortSignal.timeout(500) }).then(
    async (answer) => {
      await answer.body?.cancel()
      return answer.ok
    },
    () => false,
  )

async function gone(pids: number[], limit_ms: number): Promise<void> {
  await until(
    `the end of ${pids.join(', ')}`,
    async () => !processes().some(({ pid }) => pids.includes(pid)),
    limit_ms,
  )
}

/** Runs the supervisor to its end; resolves with what it said. */
async function failedStart(env: Record<string, string>): Promise<{ code: number | null; said: string[] }> {
  const child = spawn('node', ['gateway/local/main.ts'], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => {
      said += chunk.toString()
    })
  const [code] = (await once(child, 'close')) as [number | null]
  return { code, said: said.trim().split('\n') }
}

describe('npm start', () => {
  let stack: Stack
  beforeAll(async () => {
    stack = await startStack()
  })
  afterAll(() => stack?.stop())

  it('prints the key before it is ready, and keeps its secrets to its owner', () => {
    const output = stack.output()
    expect(output.indexOf(stack.key)).toBeGreaterThan(0)
    expect(output.indexOf(stack.key)).toBeLessThan(output.search(/^ready/m))
    expect(output).toContain(`${stack.gateway.replace('127.0.0.1', 'localhost')}/v1`)
    expect(statSync(join(stack.state, 'secrets.json')).mode & 0o077).toBe(0)
  })

  it.each([
    ['the backend', 'gpu-backend/main.ts'],
    ['workerd', 'workerd serve'],
    ['the gateway host', 'gateway/local/worker-host.ts'],
  ])('starts %s again after a kill -9', async (_, what) => {
    const killed = pidOf(stack, what)
    const lines = stack.output().split('starting it again').length
    process.kill(killed, 'SIGKILL')
    await gone([killed], restart_ms_max)
    await until(
      'its successor',
      async () => descendants(stack.pid).some(({ args }) => args.includes(what)),
      restart_ms_max,
    )
    await until('ready again', () => isReady(stack), ready_ms_max)
    expect(pidOf(stack, what)).not.toBe(killed)
    expect(pidOf(stack, 'workerd serve')).toBeGreaterThan(0)
    expect(stack.output().split('starting it again').length).toBe(lines + 1)
  })

  it('refuses a second start on the same state folder, naming the holder and the way out', async () => {
    const { code, said } = await failedStart({
      QWEN_EDGE_STATE: stack.state,
      GATEWAY_PORT: String(await freePort()),
      BACKEND_PORT: String(await freePort()),
    })
    expect(code).toBe(1)
    expect(said).toHaveLength(1)
    expect(said[0]).toContain(`process ${stack.pid}`)
    expect(said[0]).toContain('QWEN_EDGE_STATE')
    expect(await isReady(stack)).toBe(true)
  })

  it('ends everything within two seconds of Ctrl-C', async () => {
    const pids = descendants(stack.pid).map(({ pid }) => pid)
    expect(pids.length).toBeGreaterThanOrEqual(4)
    process.kill(stack.pid, 'SIGINT')
    await gone(pids, stop_ms_max)
  })
})

describe('a supervisor that is killed', () => {
  it('takes its children along, and the next start takes over its folder', async () => {
    const first = await startStack()
    const pids = descendants(first.pid).map(({ pid }) => pid)
    process.kill(first.pid, 'SIGKILL')
    await gone(pids, stop_ms_max)

    const second = await startStack({ QWEN_EDGE_STATE: first.state })
    const host = pidOf(second, 'gateway/local/worker-host.ts')
    const workerd = pidOf(second, 'workerd serve')
    process.kill(second.pid, 'SIGKILL')
    process.kill(host, 'SIGKILL')
    if (process.platform === 'linux') await gone([workerd], stop_ms_max)
    await Promise.all([first.stop(), second.stop()])
    expect(descendants(second.pid)).toEqual([])
  })
})

describe('a start that cannot succeed', () => {
  const state = mkdtempSync(join(tmpdir(), 'qwen-edge-start-'))
  afterAll(() => rmSync(state, { recursive: true }))
  const ports = async () => ({
    QWEN_EDGE_STATE: state,
    GATEWAY_PORT: String(await freePort()),
    BACKEND_PORT: String(await freePort()),
  })

  it.each(['GATEWAY_PORT', 'BACKEND_PORT'])('names a busy %s and the variable', async (variable) => {
    const env = await ports()
    const server = createServer().listen(Number(env[variable as 'GATEWAY_PORT']), '127.0.0.1')
    await once(server, 'listening')
    const { code, said } = await failedStart(env)
    server.close()
    expect(code).toBe(1)
    expect(said).toEqual([
      `Port ${env[variable as 'GATEWAY_PORT']} is in use: set ${variable} to another one`,
    ])
  })

  it('says what is wrong with MODEL', async () => {
    const { code, said } = await failedStart({ ...(await ports()), MODEL: join(state, 'nowhere') })
    expect(code).toBe(1)
    expect(said.join('\n')).toContain('is no folder here')
  })

  it('gives up on a checkpoint that cannot be loaded, in words, leaving nothing', async () => {
    const model = join(state, 'broken')
    execFileSync('cp', ['-r', 'gpu-backend/models/tiny', model])
    writeFileSync(join(model, 'model.safetensors'), 'no tensors here')
    const { code, said } = await failedStart({ ...(await ports()), MODEL: model })
    expect(code).toBe(1)
    expect(said.join('\n')).toContain('model.safetensors')
    expect(said.join('\n')).not.toMatch(/^\s+at /m)
    expect(processes().filter(({ args }) => args.includes(state))).toEqual([])
  })

  it.each([
    [{ GATEWAY_PORT: 'http' }, 'GATEWAY_PORT=http is no port'],
    [{ GATEWAY_PORT: '9000', BACKEND_PORT: '9000' }, 'both 9000'],
    [{ QWEN_EDGE_DEV_KEY: 'two words' }, 'QWEN_EDGE_DEV_KEY'],
    [{ QWEN_EDGE_DEV_REQUESTS_PER_MINUTE: 'many' }, 'QWEN_EDGE_DEV_REQUESTS_PER_MINUTE=many'],
  ])('refuses %j', async (env, text) => {
    const { code, said } = await failedStart({ ...(await ports()), ...env })
    expect(code).toBe(1)
    expect(said).toHaveLength(1)
    expect(said[0]).toContain(text)
  })
})

it('npm start -- --help lists the variables', () => {
  const text = execFileSync('node', ['gateway/local/main.ts', '--help'], { encoding: 'utf8' })
  const names = 'MODEL DEVICE GATEWAY_PORT BACKEND_PORT QWEN_EDGE_DEV_KEY QWEN_EDGE_DEV_REQUESTS_PER_MINUTE'
  for (const name of [...names.split(' '), 'QWEN_EDGE_ADMIN_TOKEN', 'HF_ENDPOINT'])
    expect(text).toContain(name)
})
