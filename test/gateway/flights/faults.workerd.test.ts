/** What a caller sees when something under the edge fails or falls silent. */
import { env } from 'cloudflare:workers'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { Flight } from '../../../gateway/flights/flight.ts'
import { ask, newTenant, post, question, read } from '../edge-client.ts'
import { saying, scriptedBackend, type ScriptedBackend } from '../scripted-backend.ts'

let backend: ScriptedBackend
const usual = { RESULTS: env.RESULTS, FIRST_TOKEN_SECONDS: env.FIRST_TOKEN_SECONDS }
afterEach(() => {
  vi.useRealTimers()
  vi.restoreAllMocks()
  Object.assign(env, usual)
})

describe('storage that fails', () => {
  const failing = () => Promise.reject(new Error('storage is down'))
  const brokenKv = (method: 'get' | 'put') => {
    const { RESULTS } = usual
    const kv = { get: RESULTS.get.bind(RESULTS), put: RESULTS.put.bind(RESULTS), [method]: failing }
    Object.assign(env, { RESULTS: kv })
  }
  const brokenCache = async (method: 'match' | 'put') => {
    const cache = await caches.open('results')
    const whole = { match: cache.match.bind(cache), put: cache.put.bind(cache) }
    vi.spyOn(caches, 'open').mockResolvedValue({ ...whole, [method]: failing } as unknown as Cache)
  }
  const bypass = 'qwen-edge; fwd=bypass; detail=storage-unavailable'

  it.each<[string, () => unknown, string]>([
    ['KV, read', () => brokenKv('get'), bypass],
    ['KV, written', () => brokenKv('put'), 'qwen-edge; fwd=miss; stored'],
    ['the Cache API, read', () => brokenCache('match'), bypass],
    ['the Cache API, written', () => brokenCache('put'), 'qwen-edge; fwd=miss; stored'],
  ])('costs no answer: %s', async (_, broken, cacheStatus) => {
    backend = scriptedBackend(saying('as ever'))
    const { key } = await newTenant()
    await ask(key, 'before')
    await broken()
    for (const stream of [true, false]) {
      const answer = await ask(key, `while ${String(stream)}`, { stream })
      expect(answer).toMatchObject({ status: 200, text: 'as ever', error: null, cacheStatus })
    }
    expect((await ask(key, 'before')).text).toBe('as ever')
    // Of a tenant that this isolate has not seen, not even the policy is known.
    const fresh = await ask((await newTenant()).key, 'new')
    expect(fresh).toMatchObject({ text: 'as ever', cacheStatus })
  })
})

describe('a backend that is silent', () => {
  /** As a real connection: it ends when its caller lets go. */
  const hanging = () =>
    vi.spyOn(globalThis, 'fetch').mockImplementation(async (_, init) => {
      const gone = Promise.withResolvers<never>()
      init?.signal?.addEventListener('abort', () => gone.reject(init.signal?.reason))
      return gone.promise
    })

  it('before its first token, is given up after FIRST_TOKEN_SECONDS: a 503 that says when to come back', async () => {
    Object.assign(env, { FIRST_TOKEN_SECONDS: '0.3' })
    hanging()
    const { key } = await newTenant()
    for (const more of [{}, { temperature: 1 }]) {
      const started = Date.now()
      const response = await post(key, { ...question('?'), ...more })
      expect([response.status, response.headers.get('retry-after')]).toEqual([503, '1'])
      expect((await read(response)).error).toBe('backend_unavailable')
      const waited = Date.now() - started
      expect(waited).toBeGreaterThan(280)
      expect(waited).toBeLessThan(2_000)
    }
  })

  it('after it, is given up after 30 s: an error event, and the engine is told to stop', async () => {
    vi.useFakeTimers({ toFake: ['Date'] })
    backend = scriptedBackend((run) => run.tokens(40, 41))
    const { key } = await newTenant()
    let over = 0
    const begin = async (more: object) => {
      const response = await post(key, { ...question('?'), stream: true, ...more })
      return read(response).finally(() => over++)
    }
    const answers = Promise.all([begin({}), begin({ temperature: 1 })])
    await expect.poll(() => backend.live()).toBe(2)
    await scheduler.wait(100)
    vi.setSystemTime(Date.now() + 29_900)
    await scheduler.wait(1_100)
    expect([over, backend.live()]).toEqual([0, 2])
    vi.setSystemTime(Date.now() + 200)
    for (const { events, error } of await answers) {
      expect([events.length, error]).toEqual([4, 'backend_unavailable'])
      expect(events.at(-1)?.data).toContain('fell silent')
    }
    expect(backend.live()).toBe(0)
  })
})

describe('the log of a flight', () => {
  const line = (id: number, text = ' word') => ({ type: 'text' as const, index: 0, text, token_ids: [id] })
  const finish = { type: 'finish' as const, timing: null, cut_short: false }
  const decoder = new TextDecoder()
  const linesOf = (value: Uint8Array | undefined) => decoder.decode(value).trim().split('\n').length
  const rest = async (reader: ReadableStreamDefaultReader<Uint8Array>) => {
    let lines = 0
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return lines
      lines += linesOf(value)
    }
  }

  it('is one for all: a hundred readers that stop reading hold back nobody and hold a chunk each', async () => {
    const tokens = 20_000
    const flight = new Flight(null, [], () => undefined)
    const reader = (id: string) => flight.read(flight.ticket(id, false)).getReader()
    const slow = Array.from({ length: 100 }, (_, i) => reader(`slow ${i}`))
    const first = slow.map(async (one) => linesOf((await one.read()).value))
    flight.push([line(0)])
    expect(await Promise.all(first)).toEqual(Array.from({ length: 100 }, () => 1))
    const fast = rest(reader('fast'))
    for (let i = 1; i < tokens; i++) flight.push([line(i)])
    flight.push([{ ...finish, usage: { prompt: 1, cached: 0, completion: tokens } }])
    expect(await fast).toBe(tokens + 1)
    for (const one of slow) expect(linesOf((await one.read()).value)).toBe(512)
    expect(await rest(slow[42]!)).toBe(tokens + 1 - 1 - 512)
    const chars = flight.linesFrom(0).reduce((sum, text) => sum + text.length, 0)
    expect(chars / tokens).toBeLessThan(64)
  })

  it('ends by name where it would be more than 8 Mi characters', async () => {
    const flight = new Flight(null, [], () => undefined)
    const reader = flight.read(flight.ticket('t', true)).getReader()
    const text = 'x'.repeat(100_000)
    let pushed = 0
    while (flight.state === 'running' && pushed < 1_000) flight.push([line(pushed++, text)])
    expect([flight.state, pushed]).toEqual(['failed', 84])
    expect(flight.signal.aborted).toBe(true)
    let last = ''
    for (let item = await reader.read(); !item.done; item = await reader.read())
      last = decoder.decode(item.value)
    expect(last).toContain('"code":"response_too_large"')
  })

  it('is not shared by answers that may outgrow it', async () => {
    backend = scriptedBackend(saying('x'))
    const { key } = await newTenant()
    const runs = async (more: object) => {
      const before = backend.runs.length
      const answers = await Promise.all([
        ask(key, JSON.stringify(more), more),
        ask(key, JSON.stringify(more), more),
      ])
      expect(answers.map(({ text }) => text)).toEqual(['x', 'x'])
      return backend.runs.length - before
    }
    expect(await runs({ max_tokens: 2_000 })).toBe(1)
    expect(await runs({ max_tokens: 2_000, logprobs: true, top_logprobs: 20 })).toBe(1)
    expect(await runs({ max_tokens: 6_000, logprobs: true, top_logprobs: 20 })).toBe(2)
  })
})
