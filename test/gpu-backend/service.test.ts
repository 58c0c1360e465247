/** What the gateway may rely on, over a real socket, with the scripted engine and the real one alike. */
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { openEngine, type Engine } from '../../gpu-backend/engine.ts'
import { modelCard } from '../../gpu-backend/model-card.ts'
import type { FinishEvent, ModelCard } from '../../src/protocol.ts'
import { scriptedEngine } from './scripted-engine.ts'
import { read, secret, served, until, type Served } from './service-client.ts'

const dir = join(import.meta.dirname, '../../gpu-backend/models/tiny')

describe.each<[string, () => Promise<Engine>]>([
  ['the scripted engine', async () => scriptedEngine()],
  ['the native engine', () => openEngine({ modelDir: dir, device: 'cpu', threads: 1, kvMemoryMb: 64 })],
])('the service over %s', (_, open) => {
  let engine: Engine
  let card: ModelCard
  let service: Served
  let requests = 0
  let id: string

  const request = (more: object = {}, sampling: object = {}) => ({
    request_id: id,
    model: 'tiny',
    token_ids: [10, 20, 30, 40],
    sampling: { temperature: 0, max_tokens: 20, ignore_eos: true, ...sampling },
    ...more,
  })
  const endless = { max_tokens: 8000 }
  const idle = () => engine.stats().running === 0

  beforeAll(async () => {
    engine = await open()
    card = await modelCard({ id: 'tiny', dir })
    service = await served(engine, card)
  })
  afterAll(async () => {
    await service.close()
    await engine.close()
  })
  beforeEach(() => {
    id = `req-${requests++}`
  })

  it('streams token ids and ends with exact usage', async () => {
    const response = await service.post('/v1/generate', request())
    expect(response.status).toBe(200)
    expect(response.headers.get('content-type')).toContain('text/event-stream')
    const { tokens, finish, error } = await read(response)
    expect(error).toBeNull()
    expect(tokens).toHaveLength(20)
    expect(finish).toMatchObject({
      index: 0,
      finish_reason: 'length',
      usage: { prompt: 4, completion: 20 },
      timing: { queue_ms: expect.any(Number), prefill_ms: expect.any(Number), decode_ms: expect.any(Number) },
    })
  })

  it('serves the card it was given', async () => {
    const headers = { authorization: `Bearer ${secret}` }
    expect(await (await fetch(`${service.url}/v1/model`, { headers })).json()).toEqual(card)
  })

  it.each([
    [undefined, 'missing_api_key'],
    ['Basic abc', 'missing_api_key'],
    ['Bearer wrong', 'invalid_api_key'],
    [`Bearer ${secret}x`, 'invalid_api_key'],
  ])('refuses %j under /v1 with 401', async (authorization, code) => {
    const headers: Record<string, string> = authorization === undefined ? {} : { authorization }
    for (const path of [
      '/v1/generate',
      '/v1/model',
      `/v1/generate/${id}/cancel`,
      '/v1/drain',
      '/v1/nothing',
    ]) {
      const method = path === '/v1/model' ? 'GET' : 'POST'
      const body = method === 'GET' ? null : JSON.stringify(request())
      const response = await fetch(service.url + path, { method, body, headers })
      expect([path, response.status]).toEqual([path, 401])
      expect(await response.json()).toMatchObject({ error: { code, type: 'authentication_error' } })
    }
    expect(idle()).toBe(true)
  })

  it.each<[string, () => unknown, number, string, string | null]>([
    ['no JSON', () => '{"model":', 400, 'invalid_json', null],
    ['a list', () => [], 400, 'invalid_value', null],
    ['no request_id', () => request({ request_id: undefined }), 400, 'invalid_value', 'request_id'],
    ['a request_id with a slash', () => request({ request_id: 'a/b' }), 400, 'invalid_value', 'request_id'],
    ['no tokens', () => request({ token_ids: [] }), 400, 'invalid_value', 'token_ids'],
    ['a token of text', () => request({ token_ids: [1, 'x'] }), 400, 'invalid_value', 'token_ids'],
    ['a token below zero', () => request({ token_ids: [-1] }), 400, 'invalid_value', 'token_ids'],
    [
      'a hot temperature',
      () => request({}, { temperature: 3 }),
      400,
      'invalid_value',
      'sampling.temperature',
    ],
    [
      'no max_tokens at all',
      () => request({}, { max_tokens: 0 }),
      400,
      'invalid_value',
      'sampling.max_tokens',
    ],
    ['another model', () => request({ model: 'gpt' }), 404, 'model_not_found', 'model'],
    [
      'a prompt that fills the context',
      () => request({ token_ids: Array.from({ length: 8192 }, () => 1) }),
      400,
      'context_length_exceeded',
      'token_ids',
    ],
    [
      'an answer beyond the context',
      () => request({}, { max_tokens: 8189 }),
      400,
      'context_length_exceeded',
      'sampling.max_tokens',
    ],
    ['five megabytes', () => `"${'x'.repeat(5 * 1024 ** 2)}"`, 413, 'body_too_large', null],
  ])('answers %s by name', async (_, body, status, code, param) => {
    const response = await service.post('/v1/generate', body())
    expect(response.status).toBe(status)
    expect(await response.json()).toMatchObject({
      error: { code, param, message: expect.any(String), type: 'invalid_request_error' },
    })
    expect(idle()).toBe(true)
  })

  it('stops reading a body that never ends', async () => {
    const endless = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.enqueue(new Uint8Array(64 * 1024).fill(0x20)),
    })
    const sent = service.post('/v1/generate', undefined, {
      body: endless,
      duplex: 'half',
      headers: { authorization: `Bearer ${secret}` },
    })
    const outcome = await sent.then(
      (response) => response.status,
      () => 'cut off',
    )
    expect([413, 'cut off']).toContain(outcome)
    expect(idle()).toBe(true)
  })

  it('answers unknown routes with 404', async () => {
    const response = await service.post('/v1/nothing')
    expect(response.status).toBe(404)
    expect(await response.json()).toMatchObject({ error: { code: 'not_found' } })
    expect((await fetch(`${service.url}/`)).status).toBe(404)
  })

  it('stops the engine when the caller goes away, and still knows what it used', async () => {
    const caller = new AbortController()
    const response = await service.post('/v1/generate', request({}, endless), {
      signal: caller.signal,
      headers: { authorization: `Bearer ${secret}` },
    })
    const reader = response.body!.getReader()
    await reader.read()
    expect(idle()).toBe(false)
    caller.abort()
    await until(idle, 1000)
    const first = await service.cancel(id)
    expect(first).toMatchObject({ request_id: id, usage: { prompt: 4 }, finish_reason: 'cancelled' })
    const { completion } = (first as { usage: { completion: number } }).usage
    expect(completion).toBeGreaterThan(0)
    expect(completion).toBeLessThan(8000)
    expect(await service.cancel(id)).toEqual(first)
  })

  it('cancels by request_id: the stream ends with the usage that the canceller is told', async () => {
    const response = await service.post('/v1/generate', request({}, endless))
    const answer = read(response)
    const told = (await service.cancel(id)) as { usage: FinishEvent['usage'] }
    const { finish, tokens } = await answer
    expect(finish).toMatchObject({ finish_reason: 'cancelled', usage: told.usage })
    expect(tokens).toHaveLength(told.usage.completion)
    expect(await service.cancel(id)).toEqual(told)
  })

  it('says of one that was over how it had ended', async () => {
    const { finish } = await read(await service.post('/v1/generate', request()))
    expect(await service.cancel(id)).toMatchObject({ finish_reason: finish?.finish_reason })
  })

  it('says null for a request it does not know', async () => {
    const unknown = { request_id: 'never-seen', usage: null, finish_reason: null }
    expect(await service.cancel('never-seen')).toEqual(unknown)
  })

  it('refuses a request_id that is under way, and takes it again afterwards', async () => {
    const answer = read(await service.post('/v1/generate', request({}, endless)))
    const second = await service.post('/v1/generate', request())
    expect(second.status).toBe(409)
    expect(await second.json()).toMatchObject({ error: { code: 'conflict', param: 'request_id' } })
    await service.cancel(id)
    await answer
    expect((await read(await service.post('/v1/generate', request()))).tokens).toHaveLength(20)
  })

  it('drains: finishes what runs, takes nothing new, and can be undone', async () => {
    const answer = read(await service.post('/v1/generate', request({}, { max_tokens: 200 })))
    expect(await (await service.post('/v1/drain')).json()).toEqual({ draining: true, running: 1 })
    const ready = await fetch(`${service.url}/ready`)
    expect(ready.status).toBe(503)
    expect(ready.headers.get('retry-after')).not.toBeNull()
    expect((await fetch(`${service.url}/health`)).status).toBe(200)
    const refused = await service.post('/v1/generate', request({ request_id: `${id}-b` }))
    expect(refused.status).toBe(503)
    expect(await refused.json()).toMatchObject({ error: { code: 'backend_unavailable' } })
    expect((await answer).tokens).toHaveLength(200)
    await fetch(`${service.url}/v1/drain`, {
      method: 'DELETE',
      headers: { authorization: `Bearer ${secret}` },
    })
    expect((await fetch(`${service.url}/ready`)).status).toBe(200)
  })

  it('counts for Prometheus under the names of vLLM', async () => {
    const names = [
      'vllm:prompt_tokens_total',
      'vllm:generation_tokens_total',
      'vllm:request_success_total',
      'vllm:time_to_first_token_seconds_count',
      'vllm:inter_token_latency_seconds_count',
    ] as const
    const before = await Promise.all(names.map((name) => service.metric(name)))
    await read(await service.post('/v1/generate', request()))
    const after = await Promise.all(names.map((name) => service.metric(name)))
    expect(after.map((value, i) => value - before[i]!)).toEqual([4, 20, 1, 1, 19])

    const response = await fetch(`${service.url}/metrics`)
    expect(response.headers.get('content-type')).toContain('text/plain; version=0.0.4')
    const page = await response.text()
    for (const line of page.split('\n').filter((line) => line !== '' && !line.startsWith('#')))
      expect(line).toMatch(/^[a-zA-Z_:][\w:]*\{[^}]*model_name="tiny"[^}]*\} [\d.e+-]+$/)
    for (const gauge of ['num_requests_running', 'num_requests_waiting', 'kv_cache_usage_perc'])
      expect(page).toContain(`vllm:${gauge}{`)
  })
})
