/** Several answers to one prompt, prefixes warmed and pinned, statistics by tenant, sleep: over a socket, with a model. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openEngine, type Engine } from '../../gpu-backend/engine.ts'
import { isFinish, type FinishEvent, type GenerateEvent, type ModelCard } from '../../src/protocol.ts'
import { readSse } from '../../src/sse.ts'
import { generate, loadFixture, random, submit } from './engine-fixtures.ts'
import { scriptedEngine } from './scripted-engine.ts'
import { read, served, until, type Served } from './service-client.ts'

const fixture = loadFixture('dense-gqa-tied')
const options = {
  modelDir: fixture.modelDir,
  device: 'cpu',
  kvMemoryMb: 4, // 122 blocks, 1,950 tokens
  tokenizerVocabSize: fixture.tokens,
  checkWhenIdle: true,
} as const
const card = {
  id: 'fixture',
  context_length: 4096,
  generation: { temperature: 1, top_p: 1, top_k: 0, repetition_penalty: 1 },
} as ModelCard

let engine: Engine
let service: Served
let requests = 0
beforeAll(async () => {
  engine = await openEngine(options)
  service = await served(engine, card)
})
afterAll(async () => {
  await service.close()
  await engine.close()
})

const request = (token_ids: number[], sampling: object, more: object = {}) => ({
  request_id: `req-${requests++}`,
  model: 'fixture',
  token_ids,
  sampling: { max_tokens: 12, ignore_eos: true, ...sampling },
  ...more,
})
const prompt = (seed: number, length: number): number[] => {
  const next = random(seed)
  return Array.from({ length }, () => Math.floor(next() * fixture.tokens))
}

async function answers(response: Response): Promise<{ tokens: number[][]; ends: FinishEvent[] }> {
  const tokens: number[][] = []
  const ends: FinishEvent[] = []
  for await (const events of readSse(response.body!))
    for (const { data } of events) {
      const event = JSON.parse(data) as GenerateEvent
      if (isFinish(event)) ends.push(event)
      else (tokens[event.index] ??= []).push(...event.token_ids)
    }
  return { tokens, ends }
}

describe('n answers to one prompt', () => {
  it('carry their index, share the prompt, and are those of seed, seed + 1, ...', async () => {
    const ids = prompt(1, 100)
    const { tokens, ends } = await answers(
      await service.post('/v1/generate', request(ids, { n: 4, seed: 50, temperature: 1 })),
    )
    expect(ends.map(({ index }) => index).toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3])
    for (const { usage } of ends) expect(usage).toMatchObject({ prompt: 100, completion: 12 })
    // The first computed the prompt, the others followed it through the cache.
    expect(ends.map(({ usage }) => usage.cached).toSorted((a, b) => a - b)).toEqual([0, 96, 96, 96])
    expect(new Set(tokens.map((each) => each.join())).size).toBe(4)
    for (const [i, each] of tokens.entries()) {
      const sampling = { temperature: 1, seed: 50 + i, max_tokens: 12 }
      expect((await generate(engine, ids, { salt: 'alone', sampling })).tokens).toEqual(each)
    }
  })

  it('are billed as one prompt and all completions, also when cancelled', async () => {
    const body = request(prompt(2, 40), { n: 3, max_tokens: 1000, seed: 1 })
    const response = await service.post('/v1/generate', body)
    await new Promise((resolve) => setTimeout(resolve, 30))
    const { usage } = (await service.cancel(body.request_id)) as { usage: FinishEvent['usage'] }
    const { tokens, ends } = await answers(response)
    expect(ends).toHaveLength(3)
    expect(usage.prompt).toBe(40)
    expect(usage.completion).toBe(tokens.flat().length)
    expect(await service.cancel(body.request_id)).toMatchObject({ usage })
  })

  it('that do not all fit the queue start none', async () => {
    const small = await openEngine({ ...options, maxBatch: 1, maxQueue: 3 })
    const crowded = await served(small, card)
    const running = submit(small, [1, 2, 3], { sampling: { max_tokens: 1000 } })
    await until(() => small.stats().running === 1)
    const response = await crowded.post('/v1/generate', request([4, 5, 6], { n: 8 }))
    expect(response.status).toBe(503)
    small.cancel(running.handle)
    await running.answer
    await until(() => small.stats().running + small.stats().waiting === 0)
    expect(await crowded.metric('vllm:request_success_total')).toBe(0)
    await crowded.close()
    await small.close()
  })

  it('of which one fails end in one error', async () => {
    const failing = scriptedEngine((run) => {
      if (failing.runs.length === 1)
        run.emit({ type: 'error', code: 'engine_error', message: 'a step failed', retryable: true })
      else run.tokens(7)
    })
    const broken = await served(failing, card)
    const { error, finish } = await read(await broken.post('/v1/generate', request([1], { n: 3 })))
    expect(error?.error.code).toBe('engine_error')
    expect(finish).toBeNull()
    await until(() => failing.runs.every(({ over }) => over))
    await broken.close()
  })

  it.each([0, 17, 1.5])('n = %d is refused', async (n) => {
    const response = await service.post('/v1/generate', request([1], { n }))
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { param: 'sampling.n' } })
  })
})

describe('POST /v1/prefixes', () => {
  const cached = async (token_ids: number[], salt: string): Promise<number> => {
    const response = await service.post(
      '/v1/generate',
      request(token_ids, { max_tokens: 1 }, { cache: { salt } }),
    )
    return (await read(response)).finish!.usage.cached
  }

  it('answers when the blocks are there, for whoever may use them', async () => {
    const ids = prompt(3, 200)
    const body = { token_ids: ids, salt: 'a', shared_prefix_tokens: 64 }
    const response = await service.post('/v1/prefixes', body)
    const usage = { prompt: 200, cached: 0, completion: 0 }
    expect(await response.json()).toEqual({ cached_tokens: 192, until: null, usage })
    const again = await (await service.post('/v1/prefixes', body)).json()
    expect(again).toEqual({
      cached_tokens: 192,
      until: null,
      usage: { ...usage, cached: 192 },
    })
    const ask = { cache: { salt: 'b', shared_prefix_tokens: 64 } }
    const other = await read(await service.post('/v1/generate', request(ids, { max_tokens: 1 }, ask)))
    expect(other.finish!.usage.cached).toBe(64)
    expect(await cached(ids, 'c')).toBe(0)
  })

  it('pins against eviction until the time is over', async () => {
    const pin = async (ids: number[], pin_seconds: number): Promise<unknown> =>
      (await service.post('/v1/prefixes', { token_ids: ids, salt: 'p', pin_seconds })).json()
    const soon = Math.floor(Date.now() / 1000)
    const [kept, lapsed] = [prompt(4, 320), prompt(5, 320)]
    expect(await pin(kept, 3600)).toMatchObject({ cached_tokens: 320, until: expect.any(Number) })
    expect((await pin(kept, 1800)) as { until: number }).toHaveProperty('until', expect.any(Number))
    await pin(lapsed, 0.02)
    await new Promise((resolve) => setTimeout(resolve, 50))
    for (let i = 0; i < 4; i++) await cached(prompt(100 + i, 600), `flood ${i}`)
    expect(engine.stats().blocksPinned).toBe(20)
    expect(await cached(kept, 'p')).toBe(304)
    expect(await cached(lapsed, 'p')).toBe(0)
    expect(((await pin(kept, 3600)) as { until: number }).until).toBeGreaterThanOrEqual(soon + 3600)
    engine.checkIntegrity()
  })

  it('pins yield before a request that fits the memory would fail', async () => {
    await service.post('/v1/prefixes', { token_ids: prompt(15, 900), pin_seconds: 3600 })
    expect(engine.stats().blocksPinned).toBe(56)
    const { tokens } = await generate(engine, prompt(6, 1500), { sampling: { max_tokens: 300 } })
    expect(tokens).toHaveLength(300)
    expect(engine.stats()).toMatchObject({ blocksPinned: 0, blocksUsed: 0 })
  })

  it.each([
    [{ token_ids: [] }, 'invalid_value'],
    [{ token_ids: [1], pin_seconds: -1 }, 'invalid_value'],
    [{ token_ids: [fixture.tokens] }, 'invalid_value'],
    [{ token_ids: prompt(7, 1200), pin_seconds: 1 }, 'invalid_value'], // more than half of the memory
    [{ token_ids: prompt(7, 3000) }, 'context_length_exceeded'],
  ])('refuses by name what it cannot do', async (body, code) => {
    const response = await service.post('/v1/prefixes', body)
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { code } })
  })

  it('wants the secret', async () => {
    expect((await service.post('/v1/prefixes', {}, { headers: {} })).status).toBe(401)
  })
})

it('counts queries and hits of the prefix cache by tenant, and one tenant learns nothing of another', async () => {
  const ids = prompt(8, 160)
  for (const salt of ['red', 'red', 'blue'])
    await read(await service.post('/v1/generate', request(ids, { max_tokens: 1 }, { cache: { salt } })))
  const page = await (await fetch(`${service.url}/metrics`)).text()
  const count = (what: string, salt: string): number =>
    Number(new RegExp(`prefix_cache_${what}_total\\{salt="${salt}".*\\} (\\d+)`).exec(page)?.[1])
  expect([count('queries', 'red'), count('hits', 'red')]).toEqual([320, 144])
  expect([count('queries', 'blue'), count('hits', 'blue')]).toEqual([160, 0])
})

it("a tenant's cached prompt makes no other tenant's quicker", async () => {
  const prefill = async (seed: number, salt: string): Promise<number> =>
    (await generate(engine, prompt(seed, 900), { salt, sampling: { max_tokens: 1 } })).finish.timing
      .prefill_ms
  const least = { cold: Infinity, foreign: Infinity, own: Infinity }
  for (let seed = 300; seed < 305; seed++) {
    least.cold = Math.min(least.cold, await prefill(seed, 'x'))
    least.own = Math.min(least.own, await prefill(seed, 'x'))
    least.foreign = Math.min(least.foreign, await prefill(seed, 'y'))
  }
  expect(least.own).toBeLessThan(least.cold / 3)
  expect(least.foreign).toBeGreaterThan(least.cold / 2)
})

it("ends with the memory an answer that may fill the model's context, which memory does not hold", async () => {
  const small = await openEngine({ ...options, kvMemoryMb: 1 })
  const tight = await served(small, card)
  const ids = prompt(8, 10)
  const room = small.model.contextLength - ids.length
  expect(room).toBeLessThan(card.context_length - ids.length)
  const whole = await answers(
    await tight.post('/v1/generate', request(ids, { max_tokens: card.context_length - ids.length })),
  )
  expect(whole.ends).toMatchObject([{ finish_reason: 'length', usage: { completion: room } }])
  expect((await tight.post('/v1/generate', request(ids, { max_tokens: room + 1 }))).status).toBe(400)
  await tight.close()
  await small.close()
})

it('sleeps without weights and KV, and wakes to the same answers', async () => {
  const before = await generate(engine, prompt(9, 50))
  expect((await service.post('/v1/sleep')).status).toBe(200)
  expect((await service.post('/v1/sleep')).status).toBe(200)
  expect((await fetch(`${service.url}/ready`)).status).toBe(503)
  const refused = await service.post('/v1/generate', request([1], {}))
  expect(refused.status).toBe(503)
  expect(refused.headers.get('retry-after')).not.toBeNull()
  expect(() => submit(engine, [1])).toThrow('closed')
  expect((await fetch(`${service.url}/metrics`)).status).toBe(200)
  expect((await service.post('/v1/wake')).status).toBe(200)
  expect((await service.post('/v1/wake')).status).toBe(200)
  expect((await fetch(`${service.url}/ready`)).status).toBe(200)
  const after = await generate(engine, prompt(9, 50))
  expect(after.tokens).toEqual(before.tokens)
  expect(after.finish.usage.cached).toBe(0)
})

it('sleeps and wakes in turn, however often both are asked for at once', async () => {
  const asked = ['sleep', 'wake', 'wake', 'sleep', 'sleep', 'wake', 'wake']
  const answers = await Promise.all(asked.map((what) => service.post(`/v1/${what}`)))
  expect(answers.map(({ status }) => status)).toEqual(asked.map(() => 200))
  expect((await generate(engine, prompt(9, 50))).tokens).not.toHaveLength(0)
  await Promise.all([engine.sleep(), engine.wake(), engine.wake()])
  await engine.wake()
  const waves = await Promise.all([1, 2, 3].map((seed) => generate(engine, prompt(seed, 20))))
  expect(waves.every(({ tokens }) => tokens.length > 0)).toBe(true)
})
