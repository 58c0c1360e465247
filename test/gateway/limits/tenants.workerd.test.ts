import { env } from 'cloudflare:workers'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { admin } from '../edge-client.ts'
import { fakeBackend } from '../fake-backend.ts'
import { chat, get, json, newTenant, until } from '../tenant-client.ts'

const backend = fakeBackend()
afterEach(() => vi.useRealTimers())

interface Key {
  id: string
  key: string
}
interface Usage {
  data: Record<string, string | number>[]
}

describe('tenants', () => {
  it('are listed page by page, changed, suspended and deleted', async () => {
    const made = [await newTenant(), await newTenant(), await newTenant()]
    const listed: string[] = []
    for (let cursor: string | null = '0'; cursor !== null;) {
      const page: { data: { id: string }[]; next_cursor: string | null } = await json(
        admin(`/tenants?limit=2&cursor=${cursor}`),
      )
      listed.push(...page.data.map(({ id }) => id))
      cursor = page.next_cursor
    }
    expect(listed.slice(-3)).toEqual(made.map(({ id }) => id))

    const { id, key } = made[0]!
    expect((await get(key, '/v1/models')).status).toBe(200)
    await admin(`/tenants/${id}`, { status: 'suspended' }, 'PATCH')
    for (const answer of [await get(key, '/v1/models'), await chat(key)]) {
      expect(answer.status).toBe(403)
      expect(await answer.json()).toMatchObject({ error: { code: 'tenant_suspended' } })
    }
    await admin(`/tenants/${id}`, { status: 'active' }, 'PATCH')
    expect((await chat(key)).status).toBe(200)
    expect((await admin(`/tenants/${id}`, undefined, 'DELETE')).status).toBe(204)
    expect([(await get(key, '/v1/models')).status, (await chat(key)).status]).toEqual([401, 401])
    expect((await admin(`/tenants/${id}`)).status).toBe(404)
  })

  it('every write is in the audit log, without the key', async () => {
    const { id, keyId, key } = await newTenant()
    await admin(`/tenants/${id}`, { limits: { concurrent: 2 } }, 'PATCH')
    await admin(`/tenants/${id}/keys/${keyId}/rotate`, { grace_seconds: 60 })
    await admin(`/tenants/${id}/keys/${keyId}`, undefined, 'DELETE')
    await admin(`/cache?tenant=${id}`, undefined, 'DELETE')
    await admin(`/tenants/${id}`, undefined, 'DELETE')
    const log = await (await admin(`/audit?tenant=${id}`)).text()
    const { data } = JSON.parse(log) as { data: { action: string; target: string }[] }
    expect(data.map(({ action }) => action)).toEqual(
      [
        'tenant.create',
        'key.create',
        'tenant.update',
        'key.rotate',
        'key.revoke',
        'cache.delete',
        'tenant.delete',
      ].toReversed(),
    )
    expect(data[3]?.target).toBe(keyId)
    expect(log).not.toContain(key)
  })

  it('limits of one model hold beside the rest', async () => {
    const { id, key } = await newTenant({ model_limits: { tiny: { requests_per_minute: 1 }, other: {} } })
    expect((await chat(key)).status).toBe(200)
    const refused = await chat(key)
    expect((await json<{ error: { message: string } }>(refused)).error.message).toContain('use of this model')
    await admin(`/tenants/${id}`, { model_limits: { tiny: null } }, 'PATCH')
    expect((await chat(key)).status).toBe(200)
  })
})

describe('keys', () => {
  it('do what their scopes say and no more', async () => {
    const generate = await newTenant({}, { scopes: ['generate'] })
    const read = await newTenant({}, { scopes: ['read'] })
    expect([(await chat(generate.key)).status, (await get(generate.key, '/v1/usage')).status]).toEqual([
      200, 403,
    ])
    expect([(await chat(read.key)).status, (await get(read.key, '/v1/usage')).status]).toEqual([403, 200])
    const unknown = await admin(`/tenants/${read.id}/keys`, { name: 'x', scopes: ['everything'] })
    expect(await unknown.json()).toMatchObject({ error: { param: 'scopes[0]' } })
  })

  it('reach the models that they are for, until they expire', async () => {
    const other = await newTenant({}, { models: ['other'] })
    const own = await newTenant({}, { models: ['tiny'] })
    for (const answer of [await chat(other.key), await get(other.key, '/v1/models/tiny')]) {
      expect(answer.status).toBe(404)
      expect(await answer.json()).toMatchObject({ error: { code: 'model_not_found', param: 'model' } })
    }
    const listed = async (key: string) =>
      (await json<{ data: { id: string }[] }>(get(key, '/v1/models'))).data.map(({ id }) => id)
    expect([await listed(other.key), await listed(own.key)]).toEqual([[], ['tiny']])
    expect((await get(own.key, '/v1/models/tiny')).status).toBe(200)
    const brief = await newTenant({}, { expires_at: Math.floor(Date.now() / 1000) + 100 })
    expect((await chat(brief.key)).status).toBe(200)
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 101_000 })
    expect((await chat(brief.key)).status).toBe(401)
  })

  it('have limits of their own', async () => {
    const { id, key } = await newTenant(
      { limits: { requests_per_minute: 50 } },
      { limits: { requests_per_minute: 1 } },
    )
    const { key: second } = await json<Key>(admin(`/tenants/${id}/keys`, { name: 'second' }))
    expect([(await chat(key)).status, (await chat(key)).status, (await chat(second)).status]).toEqual([
      200, 429, 200,
    ])
  })

  it('rotate: the old one lives for its grace, and both share one budget', async () => {
    const { id, key, keyId } = await newTenant({}, { limits: { requests_per_minute: 2 } })
    const made = await json<Key & { replaces: { id: string } }>(
      admin(`/tenants/${id}/keys/${keyId}/rotate`, { grace_seconds: 60 }),
    )
    expect(made.replaces.id).toBe(keyId)
    expect([(await chat(key)).status, (await chat(made.key)).status, (await chat(made.key)).status]).toEqual([
      200, 200, 429,
    ])
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 66_000 })
    expect([(await chat(key)).status, (await chat(made.key)).status]).toEqual([401, 200])
  })

  it('are not made for a time that has passed, nor made anew once they have expired', async () => {
    const { id } = await newTenant()
    const now_s = Math.floor(Date.now() / 1000)
    const past = await admin(`/tenants/${id}/keys`, { name: 'late', expires_at: now_s - 1 })
    expect(past.status).toBe(400)
    expect(await past.json()).toMatchObject({ error: { param: 'expires_at' } })
    const brief = await json<Key>(admin(`/tenants/${id}/keys`, { name: 'brief', expires_at: now_s + 60 }))
    const rotate = () => admin(`/tenants/${id}/keys/${brief.id}/rotate`, { grace_seconds: 60 })
    expect((await rotate()).status).toBe(201)
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 61_000 })
    const late = await rotate()
    expect([late.status, await late.json()]).toMatchObject([409, { error: { code: 'conflict' } }])
  })

  it('that are revoked stop at once for generations, and elsewhere too', async () => {
    const { id, key, keyId } = await newTenant()
    expect((await chat(key)).status).toBe(200)
    await admin(`/tenants/${id}/keys/${keyId}`, undefined, 'DELETE')
    expect([(await chat(key)).status, (await get(key, '/v1/models')).status]).toEqual([401, 401])
  })
})

describe('a tenant whose object does not answer', () => {
  const { TENANT } = env
  afterEach(() => Object.assign(env, { TENANT }))

  it('is told to come back, and not that its key is wrong', async () => {
    const { key } = await newTenant()
    const down = () => Promise.reject(new Error('down'))
    Object.assign(env, { TENANT: { getByName: () => ({ count: down, look: down, admit: down }) } })
    for (const answer of [await chat(key), await get(key, '/v1/models')]) {
      expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
      expect(await answer.json()).toMatchObject({ error: { code: 'storage_unavailable' } })
    }
  })
})

describe('leases', () => {
  it('let a busy key through without asking, and never above its limit', async () => {
    const { id, key } = await newTenant({ limits: { requests_per_minute: 100 } })
    await chat(key)
    const tenant = env.TENANT.getByName(id)
    const statuses: number[] = []
    const left: number[] = []
    for (let i = 0; i < 110; i++) {
      const answer = await get429(key)
      statuses.push(answer.status)
      left.push(Number(answer.headers.get('x-ratelimit-remaining-requests')))
    }
    expect(statuses.filter((status) => status === 200).length).toBeLessThanOrEqual(99)
    expect(statuses.filter((status) => status === 200).length).toBeGreaterThanOrEqual(89)
    expect(left).toEqual(left.toSorted((a, b) => b - a))
    await until(
      'unused units are back',
      () => tenant.look('x'),
      ({ snapshot }) => snapshot.requests?.remaining === 0,
    )
  })
  const get429 = (key: string) => chat(key, { max_tokens: 1 })
})

describe('usage', () => {
  it('is exact within 2 s, by hour, key, model and template, as JSON and CSV, for tenant and operator', async () => {
    const { id, key, keyId } = await newTenant()
    backend.answer = ({ token_ids }) => ({ usage: { prompt: token_ids.length, cached: 4, completion: 3 } })
    const cached = { 'cache-control': 'max-age=60' }
    for (let i = 0; i < 3; i++) await (await chat(key, { temperature: 0 }, cached)).text()
    const prompt = backend.requests[0]!.token_ids.length
    expect(backend.requests).toHaveLength(1)
    const row = {
      requests: 3,
      hits: 2,
      prompt_tokens: prompt,
      cached_tokens: 4,
      completion_tokens: 3,
      cost: 0,
    }
    const read = () => json<Usage>(get(key, '/v1/usage?group_by=key'))
    const { data } = await until('counted', read, ({ data }) => data[0]?.['requests'] === 3)
    expect(data).toEqual([{ key: keyId, ...row }])
    expect((await json<Usage>(get(key, '/v1/usage'))).data[0]?.['hour']).toBe(
      Math.floor(Date.now() / 3_600_000) * 3600,
    )
    expect((await json<Usage>(get(key, '/v1/usage?group_by=model'))).data).toEqual([
      { model: 'tiny', ...row },
    ])
    const csv = await get(key, '/v1/usage?group_by=template&format=csv')
    expect(await csv.text()).toBe(
      `template,requests,hits,prompt_tokens,cached_tokens,completion_tokens,cost\r\n,3,2,${prompt},4,3,0\r\n`,
    )
    const head = ',requests,hits,prompt_tokens,cached_tokens,completion_tokens,cost\r\n'
    const none = await get(key, '/v1/usage?from=0&to=1&group_by=model&format=csv')
    expect(await none.text()).toBe(`model${head}`)
    const nobody = await admin(`/usage?tenant=${id}&from=0&to=1&format=csv`)
    expect(await nobody.text()).toBe(`tenant,hour${head}`)
    expect((await json<Usage>(admin(`/usage?tenant=${id}`))).data[0]).toMatchObject({ tenant: id, ...row })
    const everyone = await json<Usage>(admin('/usage?limit=100'))
    expect(everyone.data.find(({ tenant }) => tenant === id)).toEqual({ tenant: id, ...row })
    expect((await get(key, '/v1/usage?group_by=nothing')).status).toBe(400)
    expect((await get(key, '/v1/usage?from=2026-02-01&to=2026-01-01')).status).toBe(400)
  })
})
