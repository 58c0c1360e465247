/** Requests that are refused: usage does not count them, whichever limit it was, and what they say is right. */
import { expect, it, describe } from 'vitest'
import { duration, limitHeaders, refusal } from '../../../gateway/limits/limit-headers.ts'
import { fakeBackend } from '../fake-backend.ts'
import { chat, get, json, newTenant, until } from '../tenant-client.ts'

const backend = fakeBackend()

const requests = async (key: string): Promise<number> => {
  const { data } = await json<{ data: { requests: number }[] }>(get(key, '/v1/usage?group_by=key'))
  return data[0]?.requests ?? 0
}

describe('usage counts no request that was refused', () => {
  it.each<[string, object, object, number]>([
    ['requests per minute', { requests_per_minute: 1 }, {}, 429],
    ['tokens per minute', { tokens_per_minute: 60 }, { max_tokens: 30 }, 429],
    ['tokens of a day', { tokens_per_day: 60 }, { max_tokens: 30 }, 429],
    ['tokens of a month', { tokens_per_month: 60 }, { max_tokens: 30 }, 429],
    ['more than a whole limit', { tokens_per_minute: 60 }, { max_tokens: 1_000 }, 400],
  ])('by %s', async (_, limits, body, status) => {
    backend.answer = ({ sampling }) => ({ tokens: Array<number>(sampling.max_tokens ?? 0).fill(1000) })
    const { key } = await newTenant({ limits })
    expect((await chat(key, { max_tokens: 30 })).status).toBe(200)
    await until(
      'counted',
      () => requests(key),
      (count) => count === 1,
    )
    for (let i = 0; i < 3; i++) expect((await chat(key, body)).status).toBe(status)
    await scheduler.wait(700)
    expect(await requests(key)).toBe(1)
  })

  it('by the number of generations at once, nor by a full queue', async () => {
    const { key } = await newTenant({ limits: { concurrent: 1 } })
    const gate = Promise.withResolvers<undefined>()
    backend.answer = () => ({ hold: gate.promise })
    const first = await chat(key, { stream: true })
    expect((await chat(key)).status).toBe(429)
    gate.resolve(undefined)
    await first.text()
    backend.answer = () => ({ status: 503, code: 'queue_full' })
    const full = await until(
      'a free slot',
      () => chat(key),
      ({ status }) => status !== 429,
    )
    expect(await full.json()).toMatchObject({ error: { code: 'queue_full' } })
    // What fails for another reason was let in.
    backend.answer = () => ({ status: 500 })
    await until(
      'a free slot again',
      () => chat(key),
      ({ status }) => status !== 429,
    )
    await scheduler.wait(700)
    expect(await requests(key)).toBe(2)
  })
})

describe('a refusal', () => {
  const denied = { limit: 'requests_per_minute', scope: 'tenant', value: 1, retry_after_ms: 61_200 } as const

  it('speaks of one request, or of several', () => {
    expect(refusal(denied).message).toContain('1 request per minute for')
    expect(refusal({ ...denied, value: 3 }).message).toContain('3 requests per minute for')
    expect(refusal({ ...denied, limit: 'concurrent' }).message).toContain('1 concurrent generation for')
  })

  it('never asks to wait for longer than its window', () => {
    expect(refusal(denied).headers).toMatchObject({ 'retry-after': '60', 'retry-after-ms': '60000' })
    expect(refusal(denied).message).toContain(`Try again in ${duration(60_000)}.`)
    const day = refusal({ ...denied, limit: 'tokens_per_day', retry_after_ms: 80_000_000 })
    expect(day.headers['retry-after']).toBe('80000')
    const state = { limit: 1, remaining: 0, reset_ms: 61_200 }
    const headers = limitHeaders({ requests: state, tokens: null })
    expect([headers['x-ratelimit-reset-requests'], headers['ratelimit']]).toEqual([
      '1m0s',
      '"requests";r=0;t=60',
    ])
  })
})
