/** Stores that hang: a few requests wait for them, the others go on without. */
import { env } from 'cloudflare:workers'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { Breaker } from '../../gateway/breaker.ts'
import { ask, newTenant, type Answered } from './edge-client.ts'
import { saying, scriptedBackend, type ScriptedBackend } from './scripted-backend.ts'
import { get } from './tenant-client.ts'

let backend: ScriptedBackend | undefined
const { RESULTS, KEYS } = env
afterEach(() => {
  backend?.restore()
  vi.useRealTimers()
  Object.assign(env, { RESULTS, KEYS })
})

const forward = (ms: number) => vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + ms })
const hangs = () => new Promise<never>(() => undefined)

describe('a breaker', () => {
  const timesOut = [null, true]

  it('asks no more after three timeouts in a row, until one request has found that it answers again', async () => {
    const breaker = new Breaker(5)
    let asked = 0
    let work: () => Promise<string> = hangs
    const attempt = () =>
      breaker.attempt(async () => {
        asked++
        return work()
      })
    for (let i = 0; i < 6; i++) expect(await attempt()).toEqual(timesOut)
    expect(asked).toBe(3)
    forward(5_001)
    expect(await Promise.all([attempt(), attempt(), attempt()])).toEqual([timesOut, timesOut, timesOut])
    expect([asked, await attempt()]).toEqual([4, timesOut])
    forward(5_001)
    work = async () => Promise.resolve('well')
    expect(await Promise.all([attempt(), attempt()])).toEqual([['well', false], timesOut])
    expect([await attempt(), asked]).toEqual([['well', false], 6])
  })

  it('goes on asking what answers in between, or refuses at once', async () => {
    const breaker = new Breaker(5)
    let asked = 0
    const works = [
      hangs,
      hangs,
      async () => Promise.reject(new Error('no')),
      hangs,
      hangs,
      async () => 'x',
      hangs,
    ]
    for (const work of works)
      await breaker.attempt(async () => {
        asked++
        return work()
      })
    expect(asked).toBe(works.length)
  })
})

it('a KV that hangs costs three requests its deadline, not each', async () => {
  backend = scriptedBackend(saying('as ever'))
  const { key } = await newTenant()
  expect((await ask(key, 'before')).cacheStatus).toContain('stored')
  let asked = 0
  const hanging = async () => {
    asked++
    return hangs()
  }
  Object.assign(env, { RESULTS: { get: hanging, put: hanging } })
  const miss = async (text: string): Promise<[ms: number, Answered]> => {
    const started = performance.now()
    const answer = await ask(key, text)
    return [performance.now() - started, answer]
  }
  await Promise.all(['a', 'b', 'c'].map(miss))
  const before = asked
  for (const text of ['d', 'e', 'f']) {
    const [ms, { text: said, cacheStatus }] = await miss(text)
    expect([said, cacheStatus]).toEqual(['as ever', 'qwen-edge; fwd=bypass; detail=storage-unavailable'])
    expect(ms).toBeLessThan(500)
  }
  expect(asked).toBe(before)
  expect((await ask(key, 'before')).cacheStatus).toContain('hit')
  Object.assign(env, { RESULTS })
  forward(5_001)
  await ask(key, 'g')
  expect((await ask(key, 'h')).cacheStatus).toBe('qwen-edge; fwd=miss; stored')
})

it('keys are read from their directory where KV hangs or fails', async () => {
  let asked = 0
  const hanging = async () => {
    asked++
    return hangs()
  }
  const tenants = await Promise.all(Array.from({ length: 6 }, newTenant))
  Object.assign(env, { KEYS: { get: hanging, put: hanging, delete: hanging } })
  for (const { key } of tenants) expect((await get(key, '/v1/models')).status).toBe(200)
  expect(asked).toBe(3)
  expect((await get(`${tenants[0]!.key}x`, '/v1/models')).status).toBe(401)
})
