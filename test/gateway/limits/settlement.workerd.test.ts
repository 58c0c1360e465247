import { env } from 'cloudflare:workers'
import { runDurableObjectAlarm } from 'cloudflare:test'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { admin } from '../edge-client.ts'
import { chat, get, json, newTenant, until } from '../tenant-client.ts'
import { fakeBackend } from '../fake-backend.ts'

const backend = fakeBackend()
afterEach(() => vi.useRealTimers())

/** "Hello" in the chat template. */
const prompt_tokens = async (key: string) => {
  const answer = await json<{ usage: { prompt_tokens: number } }>(chat(key, { max_tokens: 1 }))
  return answer.usage.prompt_tokens
}
const tokensLeft = async (key: string) =>
  Number((await get(key, '/v1/models')).headers.get('x-ratelimit-remaining-tokens'))

const deferred = () => Promise.withResolvers<undefined>()

describe('concurrent generations', () => {
  it('five against a limit of three: exactly three, over and over', async () => {
    const { key } = await newTenant({ limits: { concurrent: 3 } })
    for (let round = 0; round < 25; round++) {
      const gate = deferred()
      backend.answer = () => ({ hold: gate.promise })
      const answers = Array.from({ length: 5 }, () => chat(key, { max_tokens: 8, stream: true }))
      const statuses = (await Promise.all(answers)).map(({ status }) => status)
      expect(statuses.toSorted((a, b) => a - b)).toEqual([200, 200, 200, 429, 429])
      gate.resolve(undefined)
      await Promise.all(answers.map(async (answer) => (await answer).text()))
      await until(
        'free',
        async () => (await chat(key, { max_tokens: 1 })).status,
        (status) => status === 200,
      )
    }
  })

  it('a refusal names the limit and when to come back', async () => {
    const { key } = await newTenant({ limits: { concurrent: 1 } })
    const gate = deferred()
    backend.answer = () => ({ hold: gate.promise })
    const first = await chat(key, { stream: true })
    const refused = await chat(key)
    expect(refused.headers.get('retry-after-ms')).toBe('1000')
    expect(await refused.json()).toMatchObject({
      error: { param: 'concurrent', code: 'rate_limit_exceeded' },
    })
    gate.resolve(undefined)
    await first.text()
  })
})

describe('tokens', () => {
  it('are reserved whole and given back but for what was used', async () => {
    const { key } = await newTenant({ limits: { tokens_per_minute: 1000 } })
    const gate = deferred()
    backend.answer = () => ({ hold: gate.promise, tokens: [1000, 1001, 1002] })
    const answer = await chat(key, { max_tokens: 500, stream: true })
    const prompt = backend.requests[0]!.token_ids.length
    expect(answer.headers.get('x-ratelimit-limit-tokens')).toBe('1000')
    expect(answer.headers.get('x-ratelimit-remaining-tokens')).toBe(String(1000 - prompt - 500))
    gate.resolve(undefined)
    await answer.text()
    await until(
      'settled',
      () => tokensLeft(key),
      (left) => left === 1000 - prompt - 3,
    )
  })

  it('that were cached cost their weight, and an answer from the edge costs none', async () => {
    const { key } = await newTenant({ limits: { tokens_per_minute: 1000 }, cached_token_weight: 0.5 })
    backend.answer = ({ token_ids }) => ({ usage: { prompt: token_ids.length, cached: 10, completion: 2 } })
    const body = { max_tokens: 20, temperature: 0 }
    await (await chat(key, body, { 'cache-control': 'max-age=60' })).text()
    const left = 1000 - backend.requests[0]!.token_ids.length - 2 + 5
    await until(
      'settled',
      () => tokensLeft(key),
      (now) => now === left,
    )
    const again = await until(
      'hit',
      () => chat(key, body, { 'cache-control': 'max-age=60' }),
      (answer) => answer.headers.get('cache-status')?.includes('hit') === true,
    )
    expect(again.headers.get('x-ratelimit-remaining-tokens')).toBe(String(left))
  })

  it('are given back whole when nothing ran', async () => {
    const { key } = await newTenant({ limits: { tokens_per_minute: 1000, concurrent: 1 } })
    backend.answer = () => ({ status: 500 })
    expect((await chat(key, { max_tokens: 900 })).status).toBe(503)
    await until(
      'given back',
      () => tokensLeft(key),
      (left) => left === 1000,
    )
    backend.answer = () => ({})
    expect((await chat(key, { max_tokens: 900 })).status).toBe(200)
  })

  it('cost what came through when the backend dies and forgets', async () => {
    const { key } = await newTenant({ limits: { tokens_per_minute: 1000 } })
    const prompt = await prompt_tokens((await newTenant()).key)
    backend.answer = () => ({ tokens: [1000, 1001, 1002, 1003], broken: true })
    expect(await (await chat(key, { max_tokens: 400, stream: true })).text()).toContain('backend_unavailable')
    await until(
      'settled',
      () => tokensLeft(key),
      (left) => left === 1000 - prompt - 4,
    )
  })

  it('cost what the backend says when the caller goes away', async () => {
    const { key } = await newTenant({ limits: { tokens_per_minute: 1000 } })
    backend.usage = { prompt: 30, cached: 0, completion: 7 }
    backend.answer = () => ({ hold: new Promise(() => undefined) })
    const answer = await chat(key, { max_tokens: 400, stream: true })
    const reader = answer.body!.getReader()
    await reader.read()
    await reader.cancel()
    await until(
      'settled',
      () => tokensLeft(key),
      (left) => left === 1000 - 37,
    )
    expect(backend.cancelled).toHaveLength(1)
  })

  it('cap an answer whose caller set no max_tokens, and refuse one that no waiting would let in', async () => {
    const { key } = await newTenant({ limits: { tokens_per_minute: 100 } })
    expect((await chat(key)).status).toBe(200)
    const { token_ids, sampling } = backend.requests[0]!
    expect(token_ids.length + sampling.max_tokens!).toBe(100)
    const never = await chat(key, { max_tokens: 101 })
    expect(never.status).toBe(400)
    expect(await never.json()).toMatchObject({ error: { code: 'limit_below_request' } })
  })

  it('a capped answer is not kept for when there is more room', async () => {
    const { id, key } = await newTenant({ limits: { tokens_per_minute: 100 } })
    const keep = { 'cache-control': 'max-age=60' }
    backend.answer = ({ sampling }) => ({ tokens: Array<number>(sampling.max_tokens ?? 0).fill(1000) })
    await (await chat(key, { temperature: 0 }, keep)).text()
    await admin(`/tenants/${id}`, { limits: { tokens_per_minute: null } }, 'PATCH')
    const again = await chat(key, { temperature: 0 }, keep)
    expect(again.headers.get('cache-status')).toContain('fwd=miss')
    expect(backend.requests[1]!.sampling.max_tokens).toBeGreaterThan(100)
  })

  it('of a day and a month are budgets', async () => {
    const { key } = await newTenant({ limits: { tokens_per_day: 60 } })
    expect((await chat(key, { max_tokens: 10 })).status).toBe(200)
    const refused = await until(
      'spent',
      () => chat(key, { max_tokens: 35 }),
      ({ status }) => status === 429,
    )
    expect(await refused.json()).toMatchObject({ error: { param: 'tokens_per_day' } })
    expect(Number(refused.headers.get('retry-after'))).toBeLessThanOrEqual(86_400)
  })
})

describe('a generation that no limit could refuse', () => {
  const use = (key_id: string) => ({ key_id, model: 'tiny', template: '' })
  const usage = { prompt: 10, cached: 0, completion: 5 }
  const used = async (key: string) =>
    (await json<{ data: { completion_tokens: number }[] }>(get(key, '/v1/usage?group_by=key'))).data[0]
      ?.completion_tokens

  it('begins without asking and is counted once, however often its end is told', async () => {
    const { id, key, keyId } = await newTenant()
    const tenant = env.TENANT.getByName(id)
    const ended = { requestId: 'req_1', use: use(keyId), usage }
    for (let i = 0; i < 3; i++) await tenant.note('batch', [], [ended])
    expect(await used(key)).toBe(5)
    expect(await tenant.settled()).toMatchObject({ notes: 1, alarm: 0 })
  })

  it('is settled by its tenant when its gateway falls silent', async () => {
    const { id, key, keyId } = await newTenant()
    const tenant = env.TENANT.getByName(id)
    await tenant.note('batch', [{ requestId: 'req_gone', use: use(keyId), prompt_tokens: 10 }], [])
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 31_000 })
    backend.usage = usage
    await scheduler.wait(1_100)
    expect(await runDurableObjectAlarm(tenant)).toBe(true)
    expect(backend.cancelled).toEqual(['req_gone'])
    await tenant.note('late', [], [{ requestId: 'req_gone', use: use(keyId), usage }])
    expect(await used(key)).toBe(5)
  })

  it('asks again a second after a limit was set', async () => {
    const { id, key } = await newTenant()
    expect((await chat(key, { max_tokens: 50 })).status).toBe(200)
    await admin(`/tenants/${id}`, { limits: { tokens_per_minute: 20 } }, 'PATCH')
    await scheduler.wait(1_050)
    expect((await chat(key, { max_tokens: 50 })).status).toBe(400)
  })
})

describe('an orphaned generation', () => {
  const use = (key_id: string) => ({ key_id, model: 'tiny', template: '' })
  const ask = { prompt_tokens: 100, max_tokens: 400, room_tokens: 400, least_tokens: 1 }

  it('is stopped and settled by the alarm, and a late settle does nothing', async () => {
    const { id, key, keyId } = await newTenant({ limits: { tokens_per_minute: 1000, concurrent: 1 } })
    const tenant = env.TENANT.getByName(id)
    await tenant.admit('req_lost', use(keyId), ask)
    expect(await tokensLeft(key)).toBe(500)
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 31_000 })
    backend.usage = { prompt: 100, cached: 0, completion: 11 }
    await scheduler.wait(1_100)
    expect(await runDurableObjectAlarm(tenant)).toBe(true)
    expect(backend.cancelled).toEqual(['req_lost'])
    expect(await tokensLeft(key)).toBe(1000 - 111)
    await tenant.settle('req_lost', use(keyId), { prompt: 100, cached: 0, completion: 400 })
    expect(await tokensLeft(key)).toBe(1000 - 111)
    const { settled } = await json<{ settled: object }>(admin(`/tenants/${id}`))
    expect(settled).toEqual({ gateway: 0, notes: 0, takeover: 0, alarm: 1, deletion: 0 })
  })

  it('that its gateway settles while the alarm stops it is billed once', async () => {
    const { id, key, keyId } = await newTenant({ limits: { tokens_per_minute: 1000 } })
    const tenant = env.TENANT.getByName(id)
    await tenant.admit('req_both', use(keyId), ask)
    const usage = { prompt: 100, cached: 0, completion: 11 }
    const settle = () => tenant.settle('req_both', use(keyId), usage)
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 31_000 })
    await scheduler.wait(1_100)
    // Being stopped ends the gateway's stream.
    vi.stubGlobal('fetch', async () => {
      await settle()
      return Response.json({ usage })
    })
    expect(await runDurableObjectAlarm(tenant)).toBe(true)
    await settle()
    expect(await tokensLeft(key)).toBe(1000 - 111)
  })

  it('of the same id gives its slot back when another begins', async () => {
    const { id, keyId } = await newTenant({ limits: { concurrent: 1 } })
    const tenant = env.TENANT.getByName(id)
    await tenant.admit('req_twice', use(keyId), ask)
    await tenant.note('again', [{ requestId: 'req_twice', use: use(keyId), prompt_tokens: 1 }], [])
    await tenant.settle('req_twice', use(keyId), null)
    expect(await tenant.admit('req_next', use(keyId), ask)).toMatchObject({ denial: null })
  })

  it('is left alone while its gateway renews it', async () => {
    const { id, keyId } = await newTenant({ limits: { concurrent: 1 } })
    const tenant = env.TENANT.getByName(id)
    await tenant.admit('req_alive', use(keyId), ask)
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 25_000 })
    await tenant.renew(['req_alive'])
    vi.setSystemTime(Date.now() + 25_000)
    await scheduler.wait(1_100)
    await runDurableObjectAlarm(tenant)
    expect(backend.cancelled).toEqual([])
  })
})
