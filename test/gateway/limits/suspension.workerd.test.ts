/** A tenant that is suspended while it works: what runs ends within moments and says why; nothing new is taken. */
import { env } from 'cloudflare:workers'
import { afterEach, describe, expect, it } from 'vitest'
import { admin, fetchEdge, post, question, read } from '../edge-client.ts'
import { idsOf, scriptedBackend, type Run, type ScriptedBackend } from '../scripted-backend.ts'
import { get, json, newTenant, until } from '../tenant-client.ts'

let backend: ScriptedBackend
afterEach(() => backend.restore())

const endless = async (run: Run): Promise<void> => {
  for (const [id = 40] = idsOf('word'); !run.ended; await scheduler.wait(10)) run.tokens(id)
}
const become = (id: string, status: 'suspended' | 'active') => admin(`/tenants/${id}`, { status }, 'PATCH')
const noToken = () => undefined

describe.each<[string, object, Record<string, string>, object]>([
  ['alone, under no limit', { temperature: 1 }, {}, {}],
  ['alone, reserved', { temperature: 1 }, {}, { concurrent: 5 }],
  ['shared', {}, {}, { tokens_per_minute: 50_000 }],
  ['resumable', { temperature: 1 }, { 'x-resumable': 'true' }, {}],
])('an answer that runs %s', (_, more, headers, limits) => {
  it('ends with an error event, and as JSON with a 403', async () => {
    const { id, key } = await newTenant({ limits })
    backend = scriptedBackend(endless)
    const stream = await post(key, { ...question('go on'), stream: true, ...more }, headers)
    await until(
      'it runs',
      async () => backend.live(),
      (live) => live === 1,
    )
    await scheduler.wait(50)
    const begun = Date.now()
    expect((await become(id, 'suspended')).status).toBe(200)
    expect((await read(stream)).error).toBe('tenant_suspended')
    expect(Date.now() - begun).toBeLessThan(2_000)
    backend.restore()

    await become(id, 'active')
    backend = scriptedBackend(noToken)
    const whole = post(key, { ...question('wait'), ...more }, headers)
    await until(
      'it waits',
      async () => backend.live(),
      (live) => live === 1,
    )
    await scheduler.wait(50)
    await become(id, 'suspended')
    const refused = await whole
    expect([refused.status, (await read(refused)).error]).toEqual([403, 'tenant_suspended'])
    await until(
      'nothing runs',
      async () => backend.live(),
      (live) => live === 0,
    )
  })
})

it('what its tenant hears of only then is stopped too', async () => {
  const { id, keyId } = await newTenant()
  backend = scriptedBackend(endless)
  const body = JSON.stringify({ request_id: 'req_leased', token_ids: [1], sampling: {} })
  await fetch(`${env.BACKEND_URL}/v1/generate`, { method: 'POST', body })
  await become(id, 'suspended')
  const use = { key_id: keyId, model: 'tiny', template: '' }
  await env.TENANT.getByName(id).note('late', [{ requestId: 'req_leased', use, prompt_tokens: 1 }], [])
  await until(
    'it is stopped',
    async () => backend.live(),
    (live) => live === 0,
  )
  expect(backend.runs.map(({ cancelled }) => cancelled)).toEqual([true])
})

it('its hooks take no event', async () => {
  const { id, key } = await newTenant()
  backend = scriptedBackend(noToken)
  const headers = { authorization: `Bearer ${key}` }
  const hook = {
    name: 'h',
    verify: { type: 'token' },
    messages: [{ role: 'user', content: '{{payload.x}}' }],
  }
  const made = await json<{ id: string; verify: { secret: string } }>(
    fetchEdge('/v1/hooks', { method: 'POST', headers, body: JSON.stringify(hook) }),
  )
  const event = async (secret = made.verify.secret) => {
    const headers = { 'x-webhook-token': secret }
    return (await fetchEdge(`/hooks/${made.id}`, { method: 'POST', headers, body: '{"x": "y"}' })).status
  }
  expect(await event()).toBe(202)
  await become(id, 'suspended')
  expect([await event(), await event('wrong')]).toEqual([403, 401])
  await become(id, 'active')
  expect(await event()).toBe(202)
  expect((await get(key, '/v1/jobs')).status).toBe(200)
})
