/** A purge that was answered holds, whatever KV does: it takes one write a second, in any order, and reads are old. */
import { env } from 'cloudflare:workers'
import { runDurableObjectAlarm } from 'cloudflare:test'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { changed, noPolicy, policyKey, templates_max } from '../../../gateway/cache/cache-policy.ts'
import { flightsOf } from '../../../gateway/flights/flight-names.ts'
import { admin, ask, fetchEdge, newTenant } from '../edge-client.ts'
import { saying, scriptedBackend, type ScriptedBackend } from '../scripted-backend.ts'

let backend: ScriptedBackend | undefined
const { RESULTS } = env
afterEach(() => {
  backend?.restore()
  vi.useRealTimers()
  Object.assign(env, { RESULTS })
})

type Put = (key: string, text: string) => Promise<void>
const results = (put: Put) =>
  Object.assign(env, {
    RESULTS: {
      get: (key: string, type: 'json') => RESULTS.get(key, type),
      put: (key: string, text: string, options?: object) =>
        key.startsWith('policy:') ? put(key, text) : RESULTS.put(key, text, options),
    },
  })
const call = (key: string, method: string, path: string, body?: object) =>
  fetchEdge(path, {
    method,
    headers: { authorization: `Bearer ${key}` },
    ...(body ? { body: JSON.stringify(body) } : {}),
  })
const purge = async (key: string, query = '') => (await call(key, 'DELETE', `/v1/cache${query}`)).status
const kept = async (id: string) => RESULTS.get<{ epoch: string; ttl_s: number | null }>(policyKey(id), 'json')

describe('changes of the policy', () => {
  it('at once all hold: KV refuses a second write within a second, and the older one takes longer', async () => {
    const { id, key } = await newTenant()
    let last = 0
    let [refused, slowness] = [0, 200]
    results(async (name, text) => {
      const now = Date.now()
      if (now - last < 1_000) {
        refused++
        throw new Error('KV PUT failed: 429 Too Many Requests')
      }
      last = now
      await scheduler.wait((slowness /= 2))
      await RESULTS.put(name, text)
    })
    const lifetime = async () => (await call(key, 'PATCH', '/v1/cache', { ttl_seconds: 777 })).status
    expect(await Promise.all([purge(key), lifetime(), purge(key), purge(key)])).toEqual([204, 200, 204, 204])
    const before = await kept(id)
    expect(before?.ttl_s).toBe(777)
    expect(await purge(key)).toBe(204)
    const after = await kept(id)
    expect(after?.ttl_s).toBe(777)
    expect(after?.epoch).not.toBe(before?.epoch)
    expect(refused).toBe(0)
  })

  it('are tried again where KV refuses, and by an alarm where it keeps refusing', async () => {
    const { id, key } = await newTenant()
    let well = 1
    results(async (name, text) => {
      if (well-- > 0) throw new Error('KV PUT failed: 500')
      await RESULTS.put(name, text)
    })
    expect(await purge(key)).toBe(204)
    well = Infinity
    expect(await purge(key)).toBe(503)
    const before = await kept(id)
    well = 0
    expect(await runDurableObjectAlarm(flightsOf(env, id, 0))).toBe(true)
    expect((await kept(id))?.epoch).not.toBe(before?.epoch)
  })

  it('are not undone by a KV that still says what was true before', async () => {
    backend = scriptedBackend(saying('secret'))
    const { id, key } = await newTenant()
    await ask(key, 'tell')
    expect((await ask(key, 'tell')).cacheStatus).toContain('hit')
    const old = await RESULTS.get(policyKey(id))
    expect(await purge(key)).toBe(204)
    await (old === null ? RESULTS.delete(policyKey(id)) : RESULTS.put(policyKey(id), old))
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 6_000 })
    expect((await ask(key, 'tell')).cacheStatus).toBe('qwen-edge; fwd=miss; stored')
  })
})

describe('what may be purged', () => {
  it('is a template that there is, and a tenant that there is', async () => {
    const { id, key } = await newTenant()
    const other = await newTenant()
    const made = await call(other.key, 'POST', '/v1/templates', {
      name: 'theirs',
      messages: [{ role: 'user', content: 'x' }],
    })
    const { id: theirs } = await made.json<{ id: string }>()
    for (const name of ['typo', 'ALL', '', 'tpl_none', theirs, 'x'.repeat(5_000)]) {
      expect(await purge(key, `?template=${name}`)).toBe(404)
      const patched = await call(key, 'PATCH', '/v1/cache', { ttl_seconds: 1, template: name })
      expect(patched.status).toBe(404)
    }
    expect(await kept(id)).toBeNull()
    const unknown = `ten_${'0'.repeat(32)}`
    for (const [tenant, status] of [
      ['', 400],
      ['acme', 400],
      [`${id}/0`, 400],
      [unknown, 404],
      [id, 204],
    ] as const) {
      expect((await admin(`/cache?tenant=${tenant}`, undefined, 'DELETE')).status).toBe(status)
    }
    expect(await kept(unknown)).toBeNull()
  })

  it('stays bounded: beyond so many templates, purging one purges all; lifetimes have an end', () => {
    let policy = noPolicy
    for (let i = 0; i < templates_max; i++)
      policy = changed(policy, { template: `tpl_${i}`, purge: true }, `${i}`) ?? noPolicy
    expect(policy).toMatchObject({ epoch: '', revision: templates_max, templates: { tpl_0: { epoch: '0' } } })
    policy = changed(policy, { template: 'tpl_new', purge: true }, 'new') ?? noPolicy
    expect(policy).toMatchObject({ epoch: 'new', templates: {} })
    for (let i = 0; i < templates_max; i++)
      policy = changed(policy, { template: `tpl_${i}`, ttl_s: i }, '') ?? noPolicy
    expect(changed(policy, { template: 'tpl_new', ttl_s: 1 }, '')).toBeNull()
    expect(changed(policy, { template: 'tpl_7', ttl_s: 1 }, '')).not.toBeNull()
    expect(changed(policy, { template: 'tpl_new', purge: true }, 'all')).toMatchObject({ epoch: 'all' })
  })
})
