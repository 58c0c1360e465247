/** Generations that begin on tokens which their isolate has leased. */
import { env } from 'cloudflare:workers'
import { evictDurableObject, runDurableObjectAlarm } from 'cloudflare:test'
import { afterEach, expect, it, vi } from 'vitest'
import type { Tenant } from '../../../gateway/limits/tenant.ts'
import { fakeBackend } from '../fake-backend.ts'
import { chat, get, json, newTenant, until } from '../tenant-client.ts'

const backend = fakeBackend()
const { TENANT } = env
afterEach(() => {
  Object.assign(env, { TENANT })
  vi.useRealTimers()
})

const use = (key_id: string) => ({ key_id, model: 'tiny', template: '' })
const usage = { prompt: 10, cached: 0, completion: 5 }
const ask = { prompt_tokens: 10, max_tokens: 30, room_tokens: 30, least_tokens: 1 }
const left = async (tenant: DurableObjectStub<Tenant>) => (await tenant.look('x')).snapshot.tokens?.remaining
const used = async (key: string) =>
  (await json<{ data: { completion_tokens: number }[] }>(get(key, '/v1/usage?group_by=key'))).data[0]
    ?.completion_tokens

/** A lease of 200 tokens beside a generation that has ended. */
async function leased(limits: object) {
  const { id, key, keyId } = await newTenant({ limits })
  const tenant = TENANT.getByName(id)
  const admitted = await tenant.admit('req_asked', use(keyId), ask, 200)
  await tenant.settle('req_asked', use(keyId), null)
  if (admitted.standing !== 'active') throw new Error(admitted.standing)
  return { id, key, keyId, tenant, lease: admitted.lease }
}

it('a busy key asks seldom, never passes its limit, and gets back what it did not use', async () => {
  const limit = 4000
  const { id, key } = await newTenant({ limits: { tokens_per_minute: limit } })
  const asked: string[] = []
  type Methods = Record<string, (...args: unknown[]) => unknown>
  const counted = (name: string) => {
    const stub = TENANT.getByName(name) as unknown as Methods
    return new Proxy<Methods>(
      {},
      {
        get: (_, method: string) => {
          asked.push(method)
          return (...args: unknown[]) => stub[method]!(...args)
        },
      },
    )
  }
  Object.assign(env, { TENANT: { getByName: counted } })
  backend.answer = ({ token_ids }) => ({ usage: { prompt: token_ids.length, cached: 0, completion: 2 } })
  let passed = 0
  const remaining: number[] = []
  for (let i = 0; i < 60; i++) {
    const answer = await chat(key, { max_tokens: 8 })
    if (answer.status === 200) passed++
    remaining.push(Number(answer.headers.get('x-ratelimit-remaining-tokens')))
    await answer.text()
    // For its object to hear of it.
    await scheduler.wait(10)
  }
  const prompt = backend.requests[0]!.token_ids.length
  expect(passed).toBe(60)
  const asks = asked.filter((method) => method === 'admit').length
  expect(asks).toBeLessThan(30)
  expect(remaining.at(-1)).toBeLessThan(remaining[0]!)
  const spent = 60 * (prompt + 2)
  await until(
    'all is settled',
    () => left(TENANT.getByName(id)),
    (tokens) => tokens === limit - spent,
  )

  for (let i = 0; i < 200; i++) {
    const answer = await chat(key, { max_tokens: 8 })
    if (answer.status === 200) passed++
    await answer.text()
  }
  expect(passed * (prompt + 2)).toBeLessThanOrEqual(limit)
  expect(passed * (prompt + 2)).toBeGreaterThan(0.9 * limit)
})

it('is told once and billed once, in whatever order its beginning, its end and its lease come back', async () => {
  for (const order of [
    'begun ended returned',
    'returned begun ended',
    'ended returned begun',
    'both returned',
  ]) {
    const { key, keyId, tenant, lease } = await leased({ tokens_per_minute: 4000 })
    const taken = { lease: lease!.id, tokens: 40 }
    const of = { requestId: 'req_1', use: use(keyId) }
    const tell: Record<string, () => Promise<void>> = {
      begun: () => tenant.note('b', [{ ...of, prompt_tokens: 10, taken }], []),
      ended: () => tenant.note('e', [], [{ ...of, usage }]),
      both: () => tenant.note('be', [], [{ ...of, usage, taken }]),
      returned: () => tenant.report('r', [], [{ id: lease!.id, used: 40 }]),
    }
    for (const what of order.split(' ')) await tell[what]!()
    expect([order, await left(tenant), await used(key)]).toEqual([order, 4000 - 15, 5])
    const { standing, ...again } = await tenant.admit('req_2', use(keyId), { ...ask, max_tokens: 3975 })
    expect([standing, again]).toMatchObject(['active', { denial: null }])
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 31_000 })
    backend.usage = usage
    await tenant.settle('req_2', use(keyId), null)
    await runDurableObjectAlarm(tenant)
    expect(await used(key)).toBe(5)
    vi.useRealTimers()
  }
})

it('of an isolate that died is settled by its tenant, and a budget of a day gets the rest of its lease back', async () => {
  const { key, keyId, tenant, lease } = await leased({ tokens_per_day: 4000 })
  const taken = { lease: lease!.id, tokens: 40 }
  await tenant.note('b', [{ requestId: 'req_1', use: use(keyId), prompt_tokens: 10, taken }], [])
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 31_000 })
  backend.usage = usage
  await scheduler.wait(1_100)
  await runDurableObjectAlarm(tenant)
  expect(backend.cancelled).toEqual(['req_1'])
  expect(await used(key)).toBe(5)
  await tenant.report('later', [], [])
  const room = async (max_tokens: number) =>
    tenant.admit(`req_${max_tokens}`, use(keyId), { ...ask, max_tokens, room_tokens: max_tokens })
  expect(await room(4000 - 15 - 10 + 1)).toMatchObject({ denial: { limit: 'tokens_per_day' } })
  expect(await room(4000 - 15 - 10)).toMatchObject({ denial: null })
})

it('is charged for what it used when its tenant restarted and has forgotten the lease', async () => {
  const { key, keyId, tenant, lease } = await leased({ tokens_per_minute: 4000 })
  await scheduler.wait(1_100)
  await evictDurableObject(tenant)
  const taken = { lease: lease!.id, tokens: 40 }
  await tenant.note('be', [], [{ requestId: 'req_1', use: use(keyId), usage, taken }])
  expect(await used(key)).toBe(5)
  expect(await left(tenant)).toBeLessThanOrEqual(4000 - 15)
})

it('is not leased where slots are limited', async () => {
  expect((await leased({ tokens_per_minute: 4000, concurrent: 5 })).lease).toBeNull()
})
