import { env } from 'cloudflare:workers'
import { abortAllDurableObjects } from 'cloudflare:test'
import { afterEach, describe, expect, it } from 'vitest'
import { flight_objects, flightsOf } from '../../../gateway/flights/flight-names.ts'
import { admin, ask, fetchEdge, newTenant, post, question, read } from '../edge-client.ts'
import { idsOf, saying, scriptedBackend, type Run, type ScriptedBackend } from '../scripted-backend.ts'

let backend: ScriptedBackend
afterEach(() => backend.restore())

const words = 'one two three four five six seven eight nine ten'

/** A token each few milliseconds. */
const slowly =
  (text: string, ms = 5) =>
  async (run: Run): Promise<void> => {
    const given = run.request.token_ids.length
    for (const id of idsOf(text)) {
      if (run.ended) return
      run.tokens(id)
      await scheduler.wait(ms)
    }
    expect(given).toBeGreaterThan(0)
    run.finish('stop')
  }

/** Tokens of `words`, after what was emitted, which stands at the end of the prompt. */
const goingOn =
  (ms: number) =>
  async (run: Run): Promise<void> => {
    const first = backend.runs[0]?.request.token_ids.length ?? 0
    for (const id of idsOf(words).slice(run.request.token_ids.length - first)) {
      if (run.ended) return
      run.tokens(id)
      await scheduler.wait(ms)
    }
    run.finish('stop')
  }

const shards = (tenant: string) =>
  Array.from({ length: flight_objects }, (_, shard) => flightsOf(env, tenant, shard))
const running = async (tenant: string) => {
  const all = await Promise.all(shards(tenant).map((flights) => flights.stats()))
  return all.reduce((sum, { flights, readers }) => sum + flights + readers, 0)
}

async function until(done: () => boolean | Promise<boolean>, limit_ms = 5_000): Promise<void> {
  const end = Date.now() + limit_ms
  while (!(await done())) {
    if (Date.now() > end) throw new Error('not in time')
    await scheduler.wait(10)
  }
}

const resumable = { 'x-resumable': 'true' }
const sampled = { temperature: 1 }
const eventsOf = (key: string, id: string, after?: number) =>
  fetchEdge(`/v1/generations/${id}/events`, {
    headers: {
      authorization: `Bearer ${key}`,
      ...(after === undefined ? {} : { 'last-event-id': `${after}` }),
    },
  })
const cancel = (key: string, id: string) =>
  fetchEdge(`/v1/generations/${id}`, { method: 'DELETE', headers: { authorization: `Bearer ${key}` } })

/** The first events of a stream, whose reader then goes away. */
async function begin(key: string, text: string, more: object, headers: Record<string, string>, pieces = 3) {
  const response = await post(key, { ...question(text), stream: true, ...more }, headers)
  const reader = response.body?.getReader()
  for (let i = 0; i < pieces; i++) await reader?.read()
  return { id: response.headers.get('x-generation-id') ?? '', leave: async () => reader?.cancel() }
}

describe('flights', () => {
  it('let identical requests share one generation, each from its first token', async () => {
    backend = scriptedBackend(slowly(words))
    const { id, key } = await newTenant()
    const first = ask(key, 'count', { stream: true })
    await until(() => backend.runs.length === 1)
    await scheduler.wait(20)
    const others = await Promise.all(
      Array.from({ length: 40 }, (_, i) => ask(key, 'count', { stream: i % 2 === 0 })),
    )
    const { cacheStatus, text } = await first
    expect([cacheStatus, text]).toEqual(['qwen-edge; fwd=miss; stored', words])
    for (const other of others) {
      expect(other.text).toBe(words)
      expect(other.cacheStatus).toBe('qwen-edge; fwd=miss; collapsed')
    }
    expect(backend.runs).toHaveLength(1)
    expect(await running(id)).toBe(0)
    expect((await ask(key, 'count')).cacheStatus).toContain('hit')
  })

  it('are not shared between tenants, nor by requests that differ', async () => {
    backend = scriptedBackend(slowly('x y'))
    const [a, b] = [await newTenant(), await newTenant()]
    await Promise.all([
      ask(a.key, 'same'),
      ask(b.key, 'same'),
      ask(a.key, 'same', { max_tokens: 7 }),
      ask(a.key, 'same', {}, { 'cache-control': 'no-store' }),
      ask(a.key, 'same', sampled),
    ])
    expect(backend.runs).toHaveLength(5)
  })

  it('go on while somebody reads, and stop when the last one leaves', async () => {
    backend = scriptedBackend(slowly('word '.repeat(2_000)))
    const { id, key } = await newTenant()
    const readers = [await begin(key, 'long', {}, {}), await begin(key, 'long', {}, {})]
    await readers[0]?.leave()
    await scheduler.wait(100)
    expect(backend.live()).toBe(1)
    await readers[1]?.leave()
    await until(async () => backend.live() === 0 && (await running(id)) === 0)
    expect(backend.runs).toHaveLength(1)
    const again = await begin(key, 'long', {}, {})
    expect(backend.runs).toHaveLength(2)
    await again.leave()
    await until(() => backend.live() === 0)
  })

  it('are not shared where the limits of whoever began refuse, or cut short', async () => {
    backend = scriptedBackend(slowly(words))
    const { id, key } = await newTenant()
    const limited = async (tokens_per_day: number) => {
      const made = await admin(`/tenants/${id}/keys`, { name: 'small', limits: { tokens_per_day } })
      return (await made.json<{ key: string }>()).key
    }
    const open = { max_tokens: undefined }
    const cut = ask(await limited(45), 'count', open)
    await until(() => backend.runs.length === 1)
    expect(await ask(key, 'count', open)).toMatchObject({ text: words, error: null })
    expect((await cut).error).toBeNull()
    expect(backend.runs).toHaveLength(2)
    expect(backend.runs[0]?.request.sampling.max_tokens).toBeLessThan(45)

    const [, whole] = await Promise.all([ask(await limited(1), 'other', open), ask(key, 'other', open)])
    expect(whole).toMatchObject({ text: words, error: null })
  })

  it('stop when a client leaves before the first token', async () => {
    backend = scriptedBackend(() => undefined)
    const { key } = await newTenant()
    for (const more of [sampled, {}]) {
      const response = await post(key, { ...question('wait'), stream: true, ...more })
      const reader = response.body?.getReader()
      expect(new TextDecoder().decode((await reader?.read())?.value)).toBe(': ping\n\n')
      await reader?.cancel()
      await until(() => backend.live() === 0, 3_000)
    }
    expect(backend.runs.map(({ cancelled }) => cancelled)).toEqual([true, true])
  })

  it('fail alike for all who read them, and keep nothing', async () => {
    backend = scriptedBackend(async (run) => {
      run.tokens(40, 41)
      await scheduler.wait(100)
      run.crash()
    })
    const { id, key } = await newTenant()
    const answers = await Promise.all(Array.from({ length: 5 }, () => ask(key, 'doomed', { stream: true })))
    expect(new Set(answers.map(({ error }) => error))).toEqual(new Set(['backend_unavailable']))
    expect(new Set(answers.map(({ events }) => JSON.stringify(events.at(-1)))).size).toBe(1)
    expect(backend.runs).toHaveLength(1)
    expect(await running(id)).toBe(0)
    backend.restore()
    backend = scriptedBackend(saying('well again'))
    expect(await ask(key, 'doomed')).toMatchObject({
      text: 'well again',
      cacheStatus: 'qwen-edge; fwd=miss; stored',
    })
  })
})

describe('a dropped stream', () => {
  it('goes on after any event, live and when it is over', async () => {
    backend = scriptedBackend(slowly(words))
    const { key } = await newTenant()
    const { id, leave } = await begin(key, 'count', sampled, resumable)
    await leave()
    const live = await read(await eventsOf(key, id))
    expect([live.text, live.finish, live.error]).toEqual([words, 'stop', null])
    expect(backend.runs).toHaveLength(1)
    const ids = live.events.map((event) => Number(event.id))
    expect(ids).toEqual([...new Set(ids)].toSorted((a, b) => a - b))
    const last = ids.at(-1) ?? 0
    for (const after of ids.slice(0, -1)) {
      const rest = await read(await eventsOf(key, id, after))
      expect(rest.events).toEqual(live.events.filter(({ id }) => Number(id) > after))
    }
    const whole = await eventsOf(key, id, last)
    expect([whole.status, await whole.text()]).toEqual([204, ''])
    const beyond = await eventsOf(key, id, last + 1)
    expect(beyond.status).toBe(400)
    expect(await beyond.json()).toMatchObject({ error: { param: 'last-event-id' } })
  })

  it('that runs says at its end that its caller cannot have had more', async () => {
    backend = scriptedBackend(slowly(words, 150))
    const { key } = await newTenant()
    const { id, leave } = await begin(key, 'count', sampled, resumable)
    await leave()
    const beyond = await read(await eventsOf(key, id, 1_000))
    expect([beyond.status, beyond.error, beyond.text]).toEqual([200, 'invalid_value', ''])
  })

  it('goes on when the request is repeated', async () => {
    backend = scriptedBackend(slowly(words))
    const { key } = await newTenant()
    const whole = await ask(key, 'count', { stream: true })
    const after = Number(whole.events[4]?.id)
    const rest = await ask(key, 'count', { stream: true }, { 'last-event-id': `${after}` })
    expect(rest.events.map(({ id }) => id)).toEqual(whole.events.slice(5).map(({ id }) => id))
    const last = Number(whole.events.at(-1)?.id)
    const after_ = (id: number) =>
      post(key, { ...question('count'), stream: true }, { 'last-event-id': `${id}` })
    expect([(await after_(last)).status, (await after_(last + 1)).status]).toEqual([204, 400])
    expect((await ask(key, 'count', sampled, { 'last-event-id': '3' })).error).toBe('invalid_value')
    expect((await ask(key, 'count', {}, { 'last-event-id': 'x' })).error).toBe('invalid_value')
  })

  it('goes on from its tokens when the object was lost', async () => {
    backend = scriptedBackend(goingOn(60))
    const { id: tenant, key } = await newTenant()
    const { id, leave } = await begin(key, 'count', sampled, resumable, 6)
    await scheduler.wait(300)
    await abortAllDurableObjects()
    await leave()
    const rest = await read(await eventsOf(key, id))
    expect([rest.text, rest.finish]).toEqual([words, 'stop'])
    expect(backend.runs).toHaveLength(2)
    const [before, after] = backend.runs.map(({ request }) => request)
    expect(after?.token_ids.length).toBeGreaterThan(before?.token_ids.length ?? 0)
    expect(after?.sampling.seed).toBe(before?.sampling.seed)
    expect(after?.sampling.max_tokens).toBeLessThan(before?.sampling.max_tokens ?? 0)
    expect(await env.TENANT.getByName(tenant).settled()).toMatchObject({ takeover: 1, alarm: 0 })
  })

  it.each([{}, resumable])(
    'does not even drop when only the object was lost: %j',
    async (headers: Record<string, string>) => {
      backend = scriptedBackend(goingOn(30))
      const { key } = await newTenant()
      const answer = ask(key, 'count', { stream: true }, headers)
      await scheduler.wait(250)
      await abortAllDurableObjects()
      const { text, finish, error } = await answer
      expect([text, finish, error]).toEqual([words, 'stop', null])
    },
  )

  it('belongs to its tenant, and to a request that asked for it', async () => {
    backend = scriptedBackend(slowly(words))
    const [a, b] = [await newTenant(), await newTenant()]
    const { id, leave } = await begin(a.key, 'count', sampled, resumable)
    expect((await eventsOf(b.key, id)).status).toBe(404)
    expect((await cancel(b.key, id)).status).toBe(404)
    await leave()
    expect((await eventsOf(a.key, 'gen_nonsense')).status).toBe(404)
    const direct = await ask(a.key, 'count', sampled)
    expect((await eventsOf(a.key, direct.generationId)).status).toBe(404)
    expect((await eventsOf(a.key, id)).status).toBe(200)
  })
})

describe('cancelling', () => {
  it('stops a generation, resumable or not, shared or not', async () => {
    backend = scriptedBackend(slowly('word '.repeat(2_000)))
    const { id: tenant, key } = await newTenant()
    for (const [more, headers] of [
      [sampled, {}],
      [sampled, resumable],
      [{}, {}],
      [{}, resumable],
    ] as const) {
      const response = await post(key, { ...question('long'), stream: true, ...more }, headers)
      const id = response.headers.get('x-generation-id') ?? ''
      const cancelled = await cancel(key, id)
      expect(cancelled.status).toBe(200)
      expect(await cancelled.json()).toMatchObject({ id, status: 'cancelled' })
      expect((await read(response)).error).toBe('request_cancelled')
      await until(async () => backend.live() === 0 && (await running(tenant)) === 0)
    }
  })

  it('leaves a generation to a reader who may still come back', async () => {
    backend = scriptedBackend(slowly(words, 30))
    const { key } = await newTenant()
    const first = await begin(key, 'both', {}, resumable)
    const second = await begin(key, 'both', {}, resumable)
    await second.leave()
    await cancel(key, first.id)
    const rest = await read(await eventsOf(key, second.id))
    expect(rest).toMatchObject({ text: words, error: null })
    expect(backend.runs).toHaveLength(1)
  })

  it('finds nothing to stop in what was over, which stays to be read', async () => {
    backend = scriptedBackend(saying(words))
    const { key } = await newTenant()
    for (const [more, headers] of [
      [sampled, {}],
      [sampled, resumable],
      [{}, resumable],
    ] as const) {
      const { generationId } = await ask(key, 'over', more, headers)
      for (let i = 0; i < 2; i++) {
        const told = await (await cancel(key, generationId)).json()
        expect(told).toMatchObject({ status: 'completed', usage: { completion: idsOf(words).length } })
      }
      const readable = (await eventsOf(key, generationId)).status
      expect(readable).toBe(headers === resumable ? 200 : 404)
    }
    await abortAllDurableObjects()
    const stored = (await ask(key, 'kept', sampled, resumable)).generationId
    await abortAllDurableObjects()
    expect(await (await cancel(key, stored)).json()).toMatchObject({ status: 'completed' })
  })

  it('takes up nothing in order to stop it', async () => {
    backend = scriptedBackend(slowly(words, 30))
    const { key } = await newTenant()
    const { id, leave } = await begin(key, 'lost', sampled, resumable)
    await leave()
    await abortAllDurableObjects()
    expect((await cancel(key, id)).status).toBe(200)
    expect((await eventsOf(key, id)).status).toBe(404)
    expect(backend.runs).toHaveLength(1)
  })

  it('takes one reader out of a flight that others read', async () => {
    backend = scriptedBackend(slowly(words, 20))
    const { key } = await newTenant()
    const stays = ask(key, 'count')
    const { id } = await begin(key, 'count', {}, {})
    expect((await cancel(key, id)).status).toBe(200)
    expect((await stays).text).toBe(words)
    expect(backend.runs).toHaveLength(1)
  })
})

describe('an idempotency key', () => {
  const idempotent = (key: string) => ({ 'idempotency-key': key })

  it('gives the one answer again, live and stored, as a stream or JSON', async () => {
    backend = scriptedBackend(slowly(words))
    const { key } = await newTenant()
    const answers = await Promise.all(
      [true, false, true].map((stream) => ask(key, 'count', { ...sampled, stream }, idempotent('k'))),
    )
    const later = await ask(key, 'count', sampled, idempotent('k'))
    for (const { text, generationId } of [...answers, later]) {
      expect([text, generationId]).toEqual([words, later.generationId])
    }
    expect(later.cacheStatus).toMatch(/^qwen-edge; hit; ttl=86\d{3}$/)
    expect(backend.runs).toHaveLength(1)
  })

  it('survives its object', async () => {
    backend = scriptedBackend(slowly(words))
    const { key } = await newTenant()
    await ask(key, 'count', sampled, idempotent('k'))
    await abortAllDurableObjects()
    expect((await ask(key, 'count', sampled, idempotent('k'))).text).toBe(words)
    expect(backend.runs).toHaveLength(1)
  })

  it('is refused with another body, and is each tenant its own', async () => {
    backend = scriptedBackend(saying('x'))
    const [a, b] = [await newTenant(), await newTenant()]
    await ask(a.key, 'one', sampled, idempotent('k'))
    expect(await ask(a.key, 'two', sampled, idempotent('k'))).toMatchObject({
      status: 422,
      error: 'idempotency_conflict',
    })
    expect((await ask(b.key, 'two', sampled, idempotent('k'))).status).toBe(200)
    expect((await ask(a.key, 'one', sampled, idempotent(' '))).status).toBe(400)
  })

  it('keeps success alone: after a failure or a cancel it starts anew, once', async () => {
    backend = scriptedBackend((run) => run.crash())
    const { key } = await newTenant()
    expect((await ask(key, 'count', sampled, idempotent('k'))).status).toBe(503)
    backend.restore()
    backend = scriptedBackend(slowly(words))
    const { id } = await begin(key, 'count', sampled, idempotent('k'))
    await cancel(key, id)
    await until(() => backend.live() === 0)
    const again = await Promise.all([1, 2, 3].map(() => ask(key, 'count', sampled, idempotent('k'))))
    expect(again.map(({ text }) => text)).toEqual([words, words, words])
    expect(backend.runs).toHaveLength(2)
  })
})
