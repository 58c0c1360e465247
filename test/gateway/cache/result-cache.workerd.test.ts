import { env } from 'cloudflare:workers'
import fc from 'fast-check'
import { afterEach, describe, expect, it } from 'vitest'
import { lookup, storeFar, storeNear, type Entry } from '../../../gateway/cache/result-store.ts'
import { admin, ask, fetchEdge, newTenant } from '../edge-client.ts'
import { saying, scriptedBackend, type ScriptedBackend } from '../scripted-backend.ts'

let backend: ScriptedBackend
afterEach(() => backend.restore())

const entry = (text: string, more: Partial<Entry> = {}): Entry => ({
  version: 4,
  stored_at: Date.now(),
  ttl_s: 100,
  texts: [
    { type: 'text', index: 0, text, token_ids: [1] },
    { type: 'end', index: 0, text: '', token_ids: [], reason: 'stop' },
  ],
  times: [0, 1, 1],
  finish: { type: 'finish', usage: { prompt: 1, cached: 0, completion: 1 }, timing: null, cut_short: false },
  ...more,
})

describe('kept answers', () => {
  it('serve a stream and JSON alike, whichever came first', async () => {
    backend = scriptedBackend(saying('forty-two'))
    const { key } = await newTenant()
    for (const [first, then] of [
      [true, false],
      [false, true],
    ]) {
      const text = `first ${String(first)}`
      expect(await ask(key, text, { stream: first })).toMatchObject({
        text: 'forty-two',
        cacheStatus: 'qwen-edge; fwd=miss; stored',
      })
      const again = await ask(key, text, { stream: then })
      expect(again.text).toBe('forty-two')
      expect(again.cacheStatus).toMatch(/^qwen-edge; hit; ttl=8(6400|6399)$/)
    }
    expect(backend.runs).toHaveLength(2)
  })

  it('are never shared between tenants', async () => {
    backend = scriptedBackend((run) => saying(`for ${run.request.cache?.salt ?? ''}`)(run))
    const tenants = [await newTenant(), await newTenant()]
    for (let i = 0; i < 20; i++) {
      for (const { id, key } of tenants) {
        const { text, cacheStatus } = await ask(key, `prompt ${i}`)
        expect(text).toBe(`for ${id}`)
        expect(cacheStatus).toContain('fwd=miss')
      }
    }
  })

  it('replay chunk by chunk, at the pace of the engine when asked', async () => {
    backend = scriptedBackend(async (run) => {
      for (const id of [40, 41, 42]) {
        run.tokens(id)
        await scheduler.wait(100)
      }
      run.finish()
    })
    const { key } = await newTenant()
    const live = await ask(key, 'slowly', { stream: true })
    const started = Date.now()
    const instant = await ask(key, 'slowly', { stream: true })
    expect(Date.now() - started).toBeLessThan(150)
    expect(instant.events).toHaveLength(live.events.length)
    const timed = await ask(key, 'slowly', { stream: true }, { 'x-replay': 'timed' })
    expect(Date.now() - started).toBeGreaterThan(250)
    expect([timed.text, instant.text]).toEqual([live.text, live.text])
  })

  it('are kept for what is sampled only when asked, for as long as asked', async () => {
    backend = scriptedBackend(saying('dice'))
    const { key } = await newTenant()
    const sampled = { temperature: 1 }
    const status = async (headers = {}) => (await ask(key, 'roll', sampled, headers)).cacheStatus
    expect(await status()).toBe('qwen-edge; fwd=bypass; detail=not-deterministic')
    expect(await status({ 'x-cache': 'ttl=60' })).toBe('qwen-edge; fwd=miss; stored')
    expect(await status({ 'x-cache': 'ttl=60' })).toMatch(/hit; ttl=(60|59)$/)
    expect(await status()).toBe('qwen-edge; fwd=bypass; detail=not-deterministic')
    expect(await status({ 'x-cache': 'ttl=60', 'cache-control': 'no-store' })).toContain('no-store')
    expect((await ask(key, 'roll', sampled, { 'x-cache': 'yes' })).error).toBe('invalid_value')
  })

  it('obey max-age and no-cache', async () => {
    backend = scriptedBackend(saying('news'))
    const { key } = await newTenant()
    const status = async (control: string) =>
      (await ask(key, 'today', {}, { 'cache-control': control })).cacheStatus
    await ask(key, 'today')
    expect(await status('max-age=60')).toContain('hit')
    expect(await status('max-age=0')).toContain('fwd=miss')
    expect(await status('no-cache')).toContain('fwd=miss')
    expect(backend.runs).toHaveLength(3)
    // Older than it may be, though its flight is still at hand.
    await scheduler.wait(1_300)
    expect(await status('max-age=1')).toBe('qwen-edge; fwd=miss; stored')
    expect(backend.runs).toHaveLength(4)
  })

  it('are gone for the tenant that purges, and for the one the operator purges', async () => {
    backend = scriptedBackend(saying('secret'))
    const [a, b] = [await newTenant(), await newTenant()]
    const status = async ({ key }: { key: string }) => (await ask(key, 'tell')).cacheStatus
    await Promise.all([status(a), status(b)])
    const headers = { authorization: `Bearer ${a.key}` }
    expect((await fetchEdge('/v1/cache?template=all', { method: 'DELETE', headers })).status).toBe(204)
    expect(await status(a)).toContain('fwd=miss')
    expect(await status(b)).toContain('hit')
    expect((await admin(`/cache?tenant=${b.id}`, undefined, 'DELETE')).status).toBe(204)
    expect(await status(b)).toContain('fwd=miss')
    expect((await admin('/cache', undefined, 'DELETE')).status).toBe(400)
  })

  it('live as long as the tenant says', async () => {
    backend = scriptedBackend(saying('short'))
    const { key } = await newTenant()
    const lifetime = (ttl_seconds: unknown) =>
      fetchEdge('/v1/cache', {
        method: 'PATCH',
        headers: { authorization: `Bearer ${key}` },
        body: JSON.stringify({ ttl_seconds }),
      })
    expect((await lifetime(-1)).status).toBe(400)
    await lifetime(120)
    await ask(key, 'a')
    expect((await ask(key, 'a')).cacheStatus).toMatch(/ttl=1(20|19)$/)
    await lifetime(0)
    expect((await ask(key, 'b')).cacheStatus).toBe('qwen-edge; fwd=bypass; detail=ttl')
  })

  it('of a template live and are purged by themselves', async () => {
    backend = scriptedBackend(saying('shaped'))
    const { key } = await newTenant()
    const headers = { authorization: `Bearer ${key}` }
    const call = (method: string, path: string, body?: object) =>
      fetchEdge(path, { method, headers, ...(body ? { body: JSON.stringify(body) } : {}) })
    const made = await call('POST', '/v1/templates', {
      name: 'greet',
      messages: [{ role: 'user', content: 'Greet {{who}}.' }],
    })
    const { id } = await made.json<{ id: string }>()
    const template = { messages: undefined, template: { id, variables: { who: 'Ada' } } }
    const status = async (more: object) => (await ask(key, 'plain', more)).cacheStatus
    await call('PATCH', '/v1/cache', { ttl_seconds: 600, template: id })
    for (const more of [template, {}]) expect(await status(more)).toContain('fwd=miss')
    expect(await status(template)).toMatch(/hit; ttl=(600|599)$/)
    expect(await status({})).toMatch(/hit; ttl=8(6400|6399)$/)
    expect((await call('DELETE', `/v1/cache?template=${id}`)).status).toBe(204)
    expect(await status(template)).toContain('fwd=miss')
    expect(await status({})).toContain('hit')
  })

  it('nothing is kept of an answer that broke off', async () => {
    backend = scriptedBackend((run) => {
      run.tokens(40, 41)
      run.crash()
    })
    const { key } = await newTenant()
    expect((await ask(key, 'half', { stream: true })).error).toBe('backend_unavailable')
    backend.restore()
    backend = scriptedBackend(saying('whole'))
    expect(await ask(key, 'half')).toMatchObject({
      text: 'whole',
      cacheStatus: 'qwen-edge; fwd=miss; stored',
    })
  })
})

describe('the store', () => {
  const deferred: Promise<unknown>[] = []
  const defer = (work: Promise<unknown>) => void deferred.push(work)
  const found = async (key: string, at = env) => (await lookup(at, key, defer)).entry
  const put = async (key: string, text: string) =>
    (await caches.open('results')).put(
      `https://results.invalid/${key}`,
      new Response(text, { headers: { 'cache-control': 'max-age=60' } }),
    )

  it('takes what is truncated, changed in any way or of another version for absent', async () => {
    backend = scriptedBackend(saying(''))
    const stored = async (name: string, more: object = {}) => {
      storeNear(name, entry('x', more), defer)
      await Promise.all(deferred)
      return (await (await caches.open('results')).match(`https://results.invalid/${name}`))!.text()
    }
    const whole = await stored('whole')
    const [seal, json] = [whole.slice(0, 16), whole.slice(16)]
    expect(json).toBe(JSON.stringify(entry('x', JSON.parse(json) as Entry)))
    let n = 0
    const isFound = async (text: string) => {
      // Under a key that this isolate has not seen.
      await put(`copy-${++n}`, text)
      return (await found(`copy-${n}`)) !== null
    }
    expect(await isFound(whole)).toBe(true)
    for (const text of ['', 'null', '{', json, `${'0'.repeat(16)}${json}`, `${seal}${json}`.repeat(2)])
      expect(await isFound(text)).toBe(false)
    for (const version of [3, 5, '4', undefined])
      expect(await isFound(await stored(`v${version}`, { version }))).toBe(false)
    const place = fc.nat(whole.length - 1)
    await fc.assert(
      fc.asyncProperty(place, fc.nat(12), fc.string({ maxLength: 3 }), async (at, length, other) => {
        const text = whole.slice(0, at) + other + whole.slice(at + length)
        expect(await isFound(text)).toBe(text === whole)
      }),
      { numRuns: 300 },
    )
  })

  it('fetches from KV what this data centre lacks, and keeps it here', async () => {
    backend = scriptedBackend(saying(''))
    await storeFar(env, 'far', entry('far'))
    expect(await found('far')).toMatchObject({ texts: [{ text: 'far' }, { type: 'end' }] })
    await Promise.all(deferred)
    const near = await (await caches.open('results')).match('https://results.invalid/far')
    expect(await near?.text()).toContain('"text":"far"')
  })

  it('puts into KV what is asked for a second time', async () => {
    backend = scriptedBackend(saying(''))
    const far = async () => {
      await Promise.all(deferred)
      return env.RESULTS.get('result:twice')
    }
    storeNear('twice', entry('again'), defer)
    expect(await far()).toBeNull()
    expect(await found('twice')).toMatchObject({ texts: [{ text: 'again' }, { type: 'end' }] })
    expect(await far()).toContain('again')
  })

  it('says that storage failed, and does not wait for it', async () => {
    backend = scriptedBackend(saying(''))
    const broken = (get: () => Promise<unknown>) => ({ ...env, RESULTS: { get } }) as unknown as Env
    const down = broken(() => Promise.reject(new Error('down')))
    expect(await lookup(down, 'none', defer)).toEqual({ entry: null, failed: true })
    const started = Date.now()
    const hanging = broken(() => new Promise(() => undefined))
    expect(await lookup(hanging, 'none', defer)).toEqual({ entry: null, failed: true })
    expect(Date.now() - started).toBeLessThan(2_000)
  })

  it('keeps nothing larger than 4 Mi characters', async () => {
    backend = scriptedBackend(saying(''))
    storeNear('large', entry('x'.repeat(4 * 1024 * 1024)), defer)
    await Promise.all(deferred)
    expect(await found('large')).toBeNull()
  })
})
