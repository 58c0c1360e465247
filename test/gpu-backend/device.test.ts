/** Where the backend computes, as a process: what it says where no GPU can be used, and what a GPU that fails does. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterEach, expect, it } from 'vitest'
import { freePort } from '../../gpu-backend/free-port.ts'

const root = join(import.meta.dirname, '../..')
const started: ChildProcess[] = []
afterEach(() => started.splice(0).forEach((child) => child.kill('SIGKILL')))

async function start(device: string, args: string[] = []) {
  const port = await freePort()
  const child = spawn(process.execPath, [...args, 'gpu-backend/main.ts'], {
    cwd: root,
    env: {
      ...process.env,
      DEVICE: device,
      MODEL: 'tiny',
      BACKEND_HOST: '127.0.0.1',
      BACKEND_PORT: String(port),
      BACKEND_SECRET: 'a secret of the tests',
      LOG: 'info',
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  started.push(child)
  const ended = once(child, 'exit').then(([code]) => code as number)
  return { url: `http://127.0.0.1:${port}`, ended, said: text(child.stderr), child }
}

async function ready(url: string): Promise<void> {
  for (;;) {
    const answer = await fetch(`${url}/ready`).catch(() => null)
    if (answer?.ok === true) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

const generate = (url: string, max_tokens: number) =>
  fetch(`${url}/v1/generate`, {
    method: 'POST',
    headers: { authorization: 'Bearer a secret of the tests', 'content-type': 'application/json' },
    body: JSON.stringify({
      request_id: crypto.randomUUID(),
      model: 'tiny',
      token_ids: [1, 2, 3],
      sampling: { max_tokens, ignore_eos: true },
      cache: { salt: 'x', shared_prefix_tokens: 0 },
    }),
  })

it('DEVICE=cuda where no GPU can be used ends the process with one line and status 1', async () => {
  const { ended, said } = await start('cuda')
  expect(await ended).toBe(1)
  expect(await said).toMatch(/^DEVICE=cuda: .*CUDA.*\n$/)
})

it('DEVICE=auto computes on the CPU there, says so and why, and SIGTERM drains what runs', async () => {
  const { url, ended, said, child } = await start('auto')
  await ready(url)
  const answer = await generate(url, 200)
  expect(answer.status).toBe(200)
  child.kill('SIGTERM')
  const events = await answer.text()
  expect(events).toContain('"finish_reason":"length"')
  expect(await ended).toBe(0)
  expect(await said).toMatch(/ready in .* on cpu \(no GPU: .*CUDA.*\)/)
})

it('a GPU that fails ends what runs with an error and the process with status 1', async () => {
  const { url, ended, said } = await start('auto', ['--import', './test/gpu-backend/failing-device.ts'])
  await ready(url)
  const answers = await Promise.all([generate(url, 100), generate(url, 100)])
  for (const answer of answers) {
    expect(answer.status).toBe(500)
    expect(await answer.json()).toMatchObject({
      error: { code: 'engine_error', message: expect.stringMatching('illegal memory') },
    })
  }
  expect(await ended).toBe(1)
  expect(await said).toContain('illegal memory access was encountered: this process ends')
})
