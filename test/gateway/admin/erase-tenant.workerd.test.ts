import { env } from 'cloudflare:workers'
import { runDurableObjectAlarm, runInDurableObject } from 'cloudflare:test'
import { afterEach, expect, it } from 'vitest'
import { flightsOf } from '../../../gateway/flights/flight-names.ts'
import { hookOf } from '../../../gateway/hooks/hook.ts'
import { hashKey } from '../../../gateway/keys/identify.ts'
import { admin, fetchEdge } from '../edge-client.ts'
import { fakeBackend } from '../fake-backend.ts'
import { chat, get, json, newTenant, until } from '../tenant-client.ts'

const backend = fakeBackend()
const { FILES } = env
afterEach(() => Object.assign(env, { FILES }))

/** Stands in everything that the tenant says. */
const secret = 'the-tenants-own-words'

async function used() {
  const tenant = await newTenant({ name: secret })
  const { id, key } = tenant
  const post = (path: string, body: object, headers: object = {}) =>
    fetchEdge(`/v1${path}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key}`, ...headers },
      body: JSON.stringify(body),
    })
  const messages = [{ role: 'user', content: secret }]
  const request = { model: 'tiny', messages }
  await post('/templates', { name: secret, messages })
  const hook = await json<{ id: string }>(
    post('/hooks', { name: secret, messages, verify: { type: 'token' } }),
  )
  const form = new FormData()
  form.set('purpose', 'batch')
  const line = { custom_id: 'a', method: 'POST', url: '/v1/chat/completions', body: request }
  form.set('file', new File([`${JSON.stringify(line)}\n`], `${secret}.jsonl`))
  const headers = { authorization: `Bearer ${key}` }
  const file = await json<{ id: string }>(fetchEdge('/v1/files', { method: 'POST', headers, body: form }))
  const window = { endpoint: '/v1/chat/completions', completion_window: '24h' }
  await post('/batches', { input_file_id: file.id, ...window })
  await post('/jobs', { request })
  await fetchEdge('/v1/cache', { method: 'PATCH', headers, body: JSON.stringify({ ttl_seconds: 600 }) })
  const cached = { ...request, temperature: 0 }
  await (await post('/chat/completions', cached, { 'idempotency-key': secret })).text()
  // Asked for again: KV has it.
  await until(
    'the answer is in KV',
    async () => {
      await (await post('/chat/completions', cached)).text()
      return env.RESULTS.list({ prefix: `result:${id}/` })
    },
    ({ keys }) => keys.length > 0,
  )
  return { ...tenant, hook: hook.id }
}

/** Every row and value of an object, but what names no text: the counts of usage. */
const kept = (stub: DurableObjectStub) =>
  runInDurableObject(stub, (_, { storage }) => {
    const tables = storage.sql.exec<{ name: string }>(
      "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '\\_cf%' ESCAPE '\\'",
    )
    const rows = [...tables]
      .filter(({ name }) => name !== 'usage' && name !== 'taken')
      .flatMap(({ name }) => [...storage.sql.exec(`SELECT * FROM ${name}`)])
    return JSON.stringify([
      ...rows,
      ...[...storage.kv.list({})].filter(([name]) => !/^(record$|schema:)/.test(name)),
    ])
  })

async function everything(id: string, hook: string): Promise<string[]> {
  const objects = [
    env.TENANT.getByName(id),
    env.JOBS.getByName(id),
    env.BATCHES.getByName(id),
    env.TEMPLATES.getByName(`tenant:${id}`),
    hookOf(env, hook),
    ...Array.from({ length: 8 }, (_, shard) => flightsOf(env, id, shard)),
  ]
  const stored = await Promise.all(objects.map((stub) => kept(stub as unknown as DurableObjectStub)))
  const values = await env.RESULTS.list()
  const names = values.keys.filter(({ name }) => name.includes(id)).map(({ name }) => name)
  const files = (await FILES.list({ prefix: `${id}/` })).objects.map(({ key }) => key)
  return [...stored.filter((text) => text !== '[]'), ...names, ...files]
}

/** The second pass, without waiting for it. */
async function finished(id: string): Promise<void> {
  const tenant = env.TENANT.getByName(id)
  const state = () => runInDurableObject(tenant, (_, { storage }) => storage.kv.get('erasing') ?? null)
  await until('the first pass', state, (pass) => pass === 2)
  await runDurableObjectAlarm(tenant)
  expect(await state()).toBeNull()
}

/** A lease may let generations in for a second. */
const refused = (key: string) =>
  until(
    'refused',
    async () => (await chat(key)).status,
    (status) => status === 401,
  )

it('a deleted tenant has no access from then on, and soon nothing of it is kept anywhere', async () => {
  const { id, key, hook } = await used()
  const before = await everything(id, hook)
  expect(before.join('')).toContain(secret)
  expect(before.length).toBeGreaterThan(6)
  backend.answer = () => ({ hold: new Promise(() => undefined) })
  const running = await chat(key, { stream: true })

  expect((await admin(`/tenants/${id}`, undefined, 'DELETE')).status).toBe(204)
  expect((await get(key, '/v1/models')).status).toBe(401)
  await refused(key)
  expect((await admin(`/tenants/${id}`)).status).toBe(404)
  await finished(id)
  expect(backend.cancelled.length).toBeGreaterThan(0)
  expect(await everything(id, hook)).toEqual([])
  expect((await fetchEdge(`/hooks/${hook}`, { method: 'POST', body: '{}' })).status).toBe(404)
  const hash = await hashKey(env.KEY_PEPPER, key)
  expect(await env.DIRECTORY.getByName(`keys-${hash.charAt(0)}`).get(hash)).toBeNull()
  const { data } = await json<{ data: { id: string }[] }>(admin('/tenants?limit=100'))
  expect(data.map((tenant) => tenant.id)).not.toContain(id)
  const record = await runInDurableObject(env.TENANT.getByName(id), (_, { storage }) =>
    storage.kv.get('record'),
  )
  expect(record).toMatchObject({ id, status: 'deleted', name: '' })
  await running.body?.cancel()
})

it('a deletion that was cut off goes on where it was', async () => {
  const { id, key, hook } = await used()
  const cut = Promise.withResolvers<undefined>()
  const list = () => {
    cut.resolve(undefined)
    return Promise.reject(new Error('R2 is away'))
  }
  Object.assign(env, { FILES: { list } })
  await admin(`/tenants/${id}`, undefined, 'DELETE')
  await cut.promise
  expect((await everything(id, hook)).length).toBeGreaterThan(0)
  await refused(key)
  const tenant = env.TENANT.getByName(id)
  Object.assign(env, { FILES })
  await runDurableObjectAlarm(tenant)
  await finished(id)
  expect(await everything(id, hook)).toEqual([])
  const { data } = await json<{ data: { action: string }[] }>(admin(`/audit?tenant=${id}`))
  expect(data[0]?.action).toBe('tenant.delete')
})
