/** A tenant's object that ends in the middle of a window, and isolates that got no answer from it. */
import { env } from 'cloudflare:workers'
import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from 'cloudflare:test'
import { afterEach, expect, it, vi } from 'vitest'
import type { Tenant } from '../../../gateway/limits/tenant.ts'
import { keys_max } from '../../../gateway/limits/tenant.ts'
import type { TenantKey } from '../../../gateway/limits/tenant-record.ts'
import { fakeBackend } from '../fake-backend.ts'
import { get, json, newTenant } from '../tenant-client.ts'

const backend = fakeBackend()
afterEach(() => vi.useRealTimers())

const use = (key_id: string) => ({ key_id, model: 'tiny', template: '' })
const ask = { prompt_tokens: 100, max_tokens: 400, room_tokens: 400, least_tokens: 1 }
const usage = { prompt: 100, cached: 0, completion: 5 }
const flush_ms = 1_100

interface Used {
  requests: number
  completion_tokens: number
}
const used = async (key: string): Promise<Used | undefined> =>
  (await json<{ data: Used[] }>(get(key, '/v1/usage?group_by=key'))).data[0]

it('admits again at most what was not yet written, and never forgets the rest', async () => {
  const { id, keyId } = await newTenant({ limits: { requests_per_minute: 100 } })
  const tenant = env.TENANT.getByName(id)
  const admitted = async (most: number) => {
    let count = 0
    for (let i = 0; i < most; i++) {
      const counted = await tenant.count(use(keyId), 0)
      if (counted.standing === 'active' && counted.denial === null) count++
    }
    return count
  }
  expect(await admitted(60)).toBe(60)
  await scheduler.wait(flush_ms)
  expect(await admitted(25)).toBe(25)
  await evictDurableObject(tenant)
  const after = await admitted(100)
  expect(after).toBeGreaterThanOrEqual(100 - 60 - 25)
  expect(after).toBeLessThanOrEqual(100 - 60)
})

it('what was read as used is not billed again after a restart', async () => {
  const { id, key, keyId } = await newTenant()
  const tenant = env.TENANT.getByName(id)
  await tenant.admit('req_read', use(keyId), ask)
  await scheduler.wait(flush_ms)
  await tenant.settle('req_read', use(keyId), usage)
  expect(await used(key)).toMatchObject({ completion_tokens: 5 })
  await evictDurableObject(tenant)
  backend.usage = usage
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 31_000 })
  await runDurableObjectAlarm(tenant)
  expect(await used(key)).toMatchObject({ completion_tokens: 5 })
  expect(backend.cancelled).toEqual([])
})

it('a report or a batch that comes again counts once, after a restart too', async () => {
  const { id, key, keyId } = await newTenant()
  const tenant = env.TENANT.getByName(id)
  const report = () => tenant.report('report-1', [{ ...use(keyId), requests: 3, hits: 1 }], [])
  const note = () => tenant.note('batch-1', [], [{ requestId: 'req_1', use: use(keyId), usage }])
  for (let i = 0; i < 2; i++) await Promise.all([report(), note()])
  await scheduler.wait(flush_ms)
  await evictDurableObject(tenant)
  await Promise.all([report(), note()])
  expect(await used(key)).toMatchObject({ requests: 3, completion_tokens: 5 })
})

it('expired keys make room for new ones, and those that still work do not', async () => {
  const { id } = await newTenant()
  const tenant = env.TENANT.getByName(id)
  const now_s = Math.floor(Date.now() / 1000)
  const made = (i: number, expires_at: number | null) =>
    ({ id: `key_${i}`, hash: `hash_${i}`, expires_at, created: now_s, budget_id: `key_${i}` }) as TenantKey
  await runInDurableObject<Tenant, void>(tenant, (object) => {
    for (let i = 1; i < keys_max; i++) object.putKey(made(i, i <= 2 ? now_s - 1 : null))
  })
  expect(await tenant.putKey(made(5000, null))).toEqual({ kept: true, dropped: ['hash_1', 'hash_2'] })
  expect(await tenant.putKey(made(5001, null))).toEqual({ kept: true, dropped: [] })
  expect(await tenant.putKey(made(5002, null))).toEqual({ kept: false, dropped: [] })
  expect(await tenant.putKey(made(5001, now_s - 1))).toMatchObject({ kept: true })
})
