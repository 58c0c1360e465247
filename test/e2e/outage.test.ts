/** The backend dies under load: every caller is told when to come back, and coming back works. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { pidOf } from './processes.ts'
import { newTenant, until } from './stack.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile()

const ask = (body: object) =>
  fetch(`${stack.gateway}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${stack.key}`, 'cache-control': 'no-store' },
    body: JSON.stringify({
      model: 'tiny',
      temperature: 0,
      messages: [{ role: 'user', content: 'Hello' }],
      ...body,
    }),
  })

describe('a backend that dies', () => {
  it('ends a stream under way with an error event, answers 503 with Retry-After, then works again', async () => {
    const streaming = await ask({ stream: true, ignore_eos: true, max_tokens: 8000 })
    expect([streaming.status, streaming.ok ? '' : await streaming.text()]).toEqual([200, ''])
    process.kill(pidOf(stack, 'gpu-backend/main.ts'), 'SIGKILL')
    const refused = await ask({ max_tokens: 4 })
    expect(refused.status).toBe(503)
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(0)
    expect(await refused.json()).toMatchObject({
      error: { code: 'backend_unavailable', type: 'server_error' },
    })

    const events = (await streaming.text()).trimEnd().split('\n\n')
    expect(events.at(-1)).toMatch(/event: error\ndata: .*"code":"backend_unavailable"/)

    await until('an answer', async () => (await ask({ max_tokens: 4 })).status === 200, 20_000)
    const answer = (await (await ask({ max_tokens: 4 })).json()) as { usage: { completion_tokens: number } }
    expect(answer.usage.completion_tokens).toBeGreaterThan(0)
  })
})

it('logs nothing that is secret or was said, whatever fails', async () => {
  const before = stack.output().length
  const said = `quince-${crypto.randomUUID()}`
  const issue = await newTenant(stack)
  const key = await issue()
  const call = (path: string, body?: unknown, headers: Record<string, string> = {}, method = 'POST') =>
    fetch(`${stack.gateway}${path}`, {
      method,
      headers: { authorization: `Bearer ${key}`, ...headers },
      ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
    })
  const chat = { model: 'tiny', messages: [{ role: 'user', content: said }], max_tokens: 5 }
  const whsec = `whsec_${btoa(crypto.randomUUID())}`
  const made = await call('/v1/hooks', {
    name: 'h',
    messages: [{ role: 'user', content: `${said} {{payload}}` }],
    verify: { type: 'token', secret: `token-${said}` },
    callback: { url: 'http://127.0.0.1:1/' },
  })
  const hook = (await made.json()) as { id: string; signing_secret: string }
  const inbound = (token: string) => call(`/hooks/${hook.id}`, said, { 'x-webhook-token': token })
  const job = () =>
    call('/v1/jobs', { request: chat, webhook: { url: 'http://127.0.0.1:1/', secret: whsec } })
  const backendCall = (secret: string, body: string) =>
    fetch(`${stack.backend}/v1/generate`, {
      method: 'POST',
      headers: { authorization: `Bearer ${secret}` },
      body,
    })

  const streaming = await call('/v1/chat/completions', {
    ...chat,
    stream: true,
    ignore_eos: true,
    max_tokens: 8_000,
  })
  const statuses = await Promise.all(
    [
      call('/v1/chat/completions', chat),
      call('/v1/chat/completions', chat, { authorization: `Bearer ${key.slice(0, -1)}` }),
      call(`/v1/nothing?api_key=${key}&prompt=${said}`),
      call('/v1/chat/completions', `{"model": "${said}`),
      call('/v1/chat/completions', { ...chat, temperature: said }),
      call('/v1/chat/completions', { ...chat, response_format: { type: said } }),
      call(`/v1/generations/${said}`, undefined, {}, 'DELETE'),
      call('/admin/tenants', { name: said, surprise: said }, { authorization: `Bearer ${stack.adminToken}` }),
      call('/admin/tenants', {}, { authorization: `Bearer ${stack.adminToken}${said}` }),
      inbound(`token-${said}`),
      inbound(`other-${said}`),
      job(),
      backendCall(said, '{}'),
      backendCall(stack.backendSecret, `{"token_ids": "${said}`),
      backendCall(stack.backendSecret, JSON.stringify({ model: said, token_ids: [1], request_id: said })),
    ].map(async (response) => (await response).status),
  )
  expect(statuses).toEqual([200, 401, 404, 400, 400, 400, 404, 400, 401, 202, 401, 202, 401, 400, 400])
  process.kill(pidOf(stack, 'gpu-backend/main.ts'), 'SIGKILL')
  await Promise.all([job(), call('/v1/chat/completions', chat), streaming.text(), inbound(`token-${said}`)])
  await until('an answer', async () => (await ask({ max_tokens: 4 })).status === 200, 20_000)
  process.kill(pidOf(stack, 'workerd serve'), 'SIGKILL')
  await until(
    'the gateway',
    () =>
      call('/v1/jobs', undefined, {}, 'GET').then(
        ({ ok }) => ok,
        () => false,
      ),
    20_000,
  )

  const logged = stack.output().slice(before)
  expect(logged).toContain('backend')
  const { KEY_PEPPER } = JSON.parse(readFileSync(join(stack.state, 'secrets.json'), 'utf8')) as Record<
    string,
    string
  >
  const secrets = [
    key,
    stack.key,
    stack.adminToken,
    stack.backendSecret,
    KEY_PEPPER,
    whsec,
    hook.signing_secret,
  ]
  for (const secret of [said, ...secrets]) {
    expect(secret).toMatch(/.{12,}/)
    expect(logged).not.toContain(secret)
  }
})
