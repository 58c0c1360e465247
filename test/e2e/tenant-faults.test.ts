/** What a tenant used and may use, when callers leave, the backend dies and the gateway is killed. */
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { pidOf } from './processes.ts'
import { metric, startStack, until, type Stack } from './stack.ts'

let stack: Stack
beforeAll(async () => {
  stack = await startStack()
})
afterAll(() => stack?.stop())

const call = (token: string, path: string, body?: unknown, method = body === undefined ? 'GET' : 'POST') =>
  fetch(stack.gateway + path, {
    method,
    headers: { authorization: `Bearer ${token}` },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
const json = async <T>(answer: Promise<Response>) => (await (await answer).json()) as T

async function tenant(limits: object = {}, keyLimits: object = {}) {
  const admin = <T>(path: string, body: object) => json<T>(call(stack.adminToken, `/admin${path}`, body))
  const { id } = await admin<{ id: string }>('/tenants', { name: 't', limits })
  const { key } = await admin<{ key: string }>(`/tenants/${id}/keys`, { name: 'k', limits: keyLimits })
  return { id, key }
}

const counting = { model: 'tiny', messages: [{ role: 'user', content: 'Count' }] }
const ask = (key: string, body: object, init: RequestInit = {}) =>
  fetch(`${stack.gateway}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'cache-control': 'no-store' },
    body: JSON.stringify({ ...counting, ...body }),
    ...init,
  })
/** Answered out of the cache from the second time on: it costs a request and no tokens. */
const cheap = async (key: string) =>
  (await call(key, '/v1/chat/completions', { model: 'tiny', temperature: 0, max_tokens: 1, messages })).status
const messages = [{ role: 'user', content: 'Say 5' }]

interface Used {
  requests: number
  prompt_tokens: number
  cached_tokens: number
  completion_tokens: number
}
const none = { requests: 0, prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0 }
const used = async (key: string): Promise<Used> =>
  (await json<{ data: Used[] }>(call(key, '/v1/usage?group_by=model'))).data[0] ?? none

const isBack = () =>
  until(
    'the stack is back',
    async () => (await fetch(`${stack.gateway}/readyz`).catch(() => null))?.ok === true,
    20_000,
  )

it('usage is exact for callers who leave before the first token, in the middle, and when the backend dies', async () => {
  const { key } = await tenant()
  const long = { stream: true, ignore_eos: true, max_tokens: 8000, logprobs: true }
  const generated = () => metric(stack, 'vllm:generation_tokens_total')
  const idle = () => until('idle', async () => (await metric(stack, 'vllm:num_requests_running')) === 0)
  const before = await generated()

  const gone = new AbortController()
  const unheard = ask(key, long, { signal: gone.signal })
  await until('it runs', async () => (await metric(stack, 'vllm:num_requests_running')) === 1)
  gone.abort()
  await expect(unheard.then((answer) => answer.text())).rejects.toThrow('aborted')
  await idle()
  const reader = (await ask(key, long)).body!.getReader()
  await reader.read()
  await reader.cancel()
  await idle()
  const cut = (await generated()) - before
  await until('both are billed', async () => (await used(key)).completion_tokens === cut)
  const { prompt_tokens } = await used(key)

  const dying = (await ask(key, long)).body!.pipeThrough(new TextDecoderStream()).getReader()
  let text = (await dying.read()).value ?? ''
  process.kill(pidOf(stack, 'gpu-backend/main.ts'), 'SIGKILL')
  for (let { done, value } = await dying.read(); !done; { done, value } = await dying.read()) text += value
  expect(text).toContain('backend_unavailable')
  // One entry a token: what came through is what anybody knows.
  const through = text.match(/"top_logprobs":/g)?.length ?? 0
  expect(through).toBeGreaterThan(0)
  await until('billed', async () => (await used(key)).prompt_tokens === (prompt_tokens / 2) * 3)
  expect((await used(key)).completion_tokens).toBe(cut + through)
  await isBack()
})

it('a caller who leaves before its JSON answer gives its slot and its tokens back', async () => {
  const { key } = await tenant({ concurrent: 1 })
  const running = async () => metric(stack, 'vllm:num_requests_running')
  const body = JSON.stringify({ ...counting, temperature: 1, ignore_eos: true, max_tokens: 7000 })
  const { hostname, port } = new URL(stack.gateway)
  const socket = connect(Number(port), hostname)
  socket.write(
    `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${key}\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  )
  await until('it runs', async () => (await running()) === 1)
  await sleep(300)
  socket.end()
  const again = async () => (await ask(key, { temperature: 1, max_tokens: 5 })).status
  await until('its slot is free', async () => (await again()) === 200, 10_000)
  expect(await running()).toBe(0)
})

it('a gateway that is killed admits again what it had not written, at most, and forgets nothing else', async () => {
  const [limit, written, unwritten] = [100, 50, 30]
  const { key } = await tenant({ requests_per_minute: limit })
  const spent = await tenant({}, { tokens_per_day: 60 })
  const most = { max_tokens: 25, ignore_eos: true }
  const templates = async () => (await json<{ data: { id: string }[] }>(call(key, '/v1/templates'))).data
  // Nothing before its first variable: none is warmed, which would be a request.
  await call(key, '/v1/templates', { name: 'kept', messages: [{ role: 'user', content: '{{text}}' }] })
  expect((await ask(spent.key, most)).status).toBe(200)
  const admitted = async (most: number) => {
    let count = 0
    for (let i = 0; i < most; i++) if ((await cheap(key)) === 200) count++
    return count
  }
  const started = Date.now()
  expect(await admitted(written)).toBe(written)
  await until('written', async () => (await used(key)).requests === written)
  await until('spent', async () => (await ask(spent.key, most)).status === 429)
  const usedBefore = [await used(key), await used(spent.key)]
  await new Promise((resolve) => setTimeout(resolve, 1_100))
  expect(await admitted(unwritten)).toBe(unwritten)
  process.kill(pidOf(stack, 'workerd serve'), 'SIGKILL')
  await isBack()
  const again = await admitted(limit)
  expect(Date.now() - started).toBeLessThan(60_000)
  expect(again).toBeLessThanOrEqual(limit - written)
  // An isolate that died withholds its lease: a tenth of the limit at most.
  expect(again).toBeGreaterThanOrEqual(limit - written - unwritten - limit / 10)

  const { data } = await json<{ data: { key: string }[] }>(call(key, '/v1/usage?group_by=key'))
  expect(data).toHaveLength(1)
  const usedAfter = [await used(key), await used(spent.key)]
  expect(usedAfter[0]!.requests).toBeGreaterThanOrEqual(usedBefore[0]!.requests)
  // Reading writes, so what was read is kept; counts of refused requests may still have been on their way.
  expect({ ...usedAfter[1], requests: 0 }).toEqual({ ...usedBefore[1], requests: 0 })
  expect(usedAfter[1]!.requests).toBeGreaterThanOrEqual(usedBefore[1]!.requests)
  expect((await call(key, '/v1/models')).headers.get('x-ratelimit-limit-requests')).toBe(String(limit))
  expect(await templates()).toHaveLength(1)
  const refused = await ask(spent.key, most)
  expect(await refused.json()).toMatchObject({ error: { param: 'tokens_per_day' } })
})

it('a deletion goes on after the gateway was killed in the midst of it', async () => {
  const { id, key } = await tenant()
  const verify = { type: 'token' }
  const hook = await json<{ id: string }>(call(key, '/v1/hooks', { name: 'h', messages, verify }))
  const event = async () => (await call('', `/hooks/${hook.id}`, {})).status
  expect(await event()).toBe(401)
  expect((await call(stack.adminToken, `/admin/tenants/${id}`, undefined, 'DELETE')).status).toBe(204)
  process.kill(pidOf(stack, 'workerd serve'), 'SIGKILL')
  await isBack()
  expect((await call(key, '/v1/models')).status).toBe(401)
  await until('its hook is gone', async () => (await event()) === 404, 20_000)
  const audit = await json<{ data: { action: string }[] }>(
    call(stack.adminToken, `/admin/audit?tenant=${id}`),
  )
  expect(audit.data[0]?.action).toBe('tenant.delete')
})
