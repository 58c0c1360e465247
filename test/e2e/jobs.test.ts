/** Jobs from acceptance to a signed delivery: workerd, the native engine, a receiver that verifies as users' libraries do. */
import { createServer, type AddressInfo } from 'node:net'
import OpenAI from 'openai'
import { Webhook } from 'standardwebhooks'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { startReceiver, type Receiver } from './receiver.ts'
import { newTenant, until } from './stack.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile({ QWEN_EDGE_TIME_SCALE: '100000' })
let receiver: Receiver

/** A receiver that answers a byte a second; how long it was listened to, in ms. Under way while the other tests run. */
let dripped: { id: string; ms: Promise<number>; close: () => void }

beforeAll(async () => {
  receiver = await startReceiver()
  const drip = createServer((socket) => {
    const begun = performance.now()
    socket.once('data', () => socket.write('HTTP/1.1 200 OK\r\nx-drip: '))
    const timer = setInterval(() => socket.write('x'), 1_000)
    socket.on('error', () => undefined)
    socket.on('close', () => {
      clearInterval(timer)
      ended.resolve(performance.now() - begun)
    })
  })
  const ended = Promise.withResolvers<number>()
  await new Promise<void>((resolve) => drip.listen(0, '127.0.0.1', resolve))
  const { port } = drip.address() as AddressInfo
  const { id } = await submit({ webhook: { url: `http://127.0.0.1:${port}/` } })
  dripped = { id, ms: ended.promise, close: () => drip.close() }
})
afterAll(async () => {
  dripped?.close()
  await receiver?.close()
})
beforeEach(() => {
  receiver.received.length = 0
  receiver.answer = (response) => response.writeHead(204).end()
})

interface Job {
  id: string
  status: string
  signing_secret?: string
  response?: OpenAI.ChatCompletion
  usage?: OpenAI.CompletionUsage
  error?: { code: string }
  metadata?: unknown
}
interface Attempt {
  id: string
  webhook_id: string
  attempt: number
  status_code: number | null
  at: number
  next_at: number | null
}

const call = (path: string, body?: unknown, headers = {}) =>
  fetch(`${stack.gateway}/v1${path}`, {
    method: body === undefined ? 'GET' : 'POST',
    headers: { authorization: `Bearer ${stack.key}`, ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
const json = async <T>(response: Promise<Response>) => (await (await response).json()) as T
const request = (content = 'What is 17 + 25?') => ({
  model: 'tiny',
  messages: [{ role: 'user', content }],
  temperature: 0,
  max_tokens: 20,
})
const submit = (more: object = {}, content?: string) =>
  json<Job>(call('/jobs', { request: request(content), ...more }))
const finished = (id: string) => json<Job>(call(`/jobs/${id}?wait=30`))

describe('a job', () => {
  it('is accepted at once and answers what the chat endpoint answers', async () => {
    const accepted = await call('/jobs', { request: request(), metadata: { ticket: 7 } })
    expect(accepted.status).toBe(202)
    const { id, status } = (await accepted.json()) as Job
    expect(status).toBe('queued')
    const job = await finished(id)
    expect(job).toMatchObject({ status: 'completed', metadata: { ticket: 7 } })
    const direct = await json<OpenAI.ChatCompletion>(call('/chat/completions', request()))
    expect(job.response?.choices).toEqual(direct.choices)
    expect(job.usage?.prompt_tokens).toBe(direct.usage?.prompt_tokens)
    expect(await json(call('/jobs?status=completed&limit=1'))).toMatchObject({ data: [{ id }] })
  })

  it('is also what `background: true` makes', async () => {
    const accepted = await call('/chat/completions', {
      ...request(),
      background: true,
      webhook: { url: receiver.url },
    })
    expect(accepted.status).toBe(202)
    const { id } = (await accepted.json()) as Job
    expect((await finished(id)).status).toBe('completed')
  })

  it('waits for the limit of its own key, and not for that of another', async () => {
    const issue = await newTenant(stack)
    const [tight, free] = [await issue({ limits: { requests_per_minute: 1 } }), await issue()]
    const made = async (key: string) =>
      json<Job>(call('/jobs', { request: request(crypto.randomUUID()) }, { authorization: `Bearer ${key}` }))
    const end = async (key: string, id: string, wait: number) =>
      (await json<Job>(call(`/jobs/${id}?wait=${wait}`, undefined, { authorization: `Bearer ${key}` })))
        .status
    const first = await made(tight)
    expect(await end(tight, first.id, 30)).toBe('completed')
    const held = await made(tight)
    await until('the limit holds it', async () => (await end(tight, held.id, 1)) === 'queued')
    const other = await made(free)
    expect(await end(free, other.id, 10)).toBe('completed')
    expect(await end(tight, held.id, 0)).toBe('queued')
  })

  it('is one for an Idempotency-Key, which says the same every time', async () => {
    const headers = { 'idempotency-key': crypto.randomUUID() }
    const [first, again] = [
      await json<Job>(call('/jobs', { request: request() }, headers)),
      await json<Job>(call('/jobs', { request: request() }, headers)),
    ]
    expect(again.id).toBe(first.id)
    expect((await call('/jobs', { request: request('other') }, headers)).status).toBe(422)
  })

  it('is made by keys with the scope for it alone, asked for as a chat or not', async () => {
    const key = await (await newTenant(stack))({ scopes: ['generate'] })
    for (const [path, body] of [
      ['/jobs', { request: request() }],
      ['/chat/completions', { ...request(), background: true, webhook: { url: receiver.url } }],
    ] as const) {
      const refused = await call(path, body, { authorization: `Bearer ${key}` })
      expect(refused.status).toBe(403)
      expect(await refused.json()).toMatchObject({ error: { code: 'insufficient_scope' } })
    }
  })

  it('is refused at once where its request is wrong', async () => {
    for (const [bad, code] of [
      [{ request: { ...request(), temperature: 9 } }, 'invalid_value'],
      [{ request: { ...request(), model: 'other' } }, 'model_not_found'],
      [{ request: request(), webhook: { url: 'http://10.0.0.1:80/' } }, 'invalid_value'],
      [{ request: request(), webhook: { url: receiver.url }, webhook_events_filter: ['x'] }, 'invalid_value'],
      [{}, 'invalid_value'],
    ] as const) {
      const response = await call('/jobs', bad)
      expect(response.status).toBeGreaterThanOrEqual(400)
      expect(await response.json()).toMatchObject({ error: { code } })
    }
  })

  it('is one for one Idempotency-Key', async () => {
    const header = { 'idempotency-key': 'order-1' }
    const first = await json<Job>(call('/jobs', { request: request() }, header))
    const second = await json<Job>(call('/jobs', { request: request() }, header))
    expect(second.id).toBe(first.id)
  })

  it('can be cancelled while it runs, and run again', async () => {
    const long = { ...request('Count.'), ignore_eos: true, max_tokens: 2000, temperature: 1 }
    const { id } = await json<Job>(call('/jobs', { request: long }))
    await until('it runs', async () => (await json<Job>(call(`/jobs/${id}`))).status === 'in_progress')
    expect(await json(call(`/jobs/${id}/cancel`, {}))).toMatchObject({ status: 'cancelled' })
    expect(await json(call(`/jobs/${id}/retry`, {}))).toMatchObject({ status: 'queued' })
    expect((await call(`/jobs/${id}/retry`, {})).status).toBe(409)
    await call(`/jobs/${id}/cancel`, {})
  })
})

describe('a delivery', () => {
  it("is signed so that standardwebhooks and openai's client accept it", async () => {
    const { id, signing_secret } = await submit(
      { webhook: { url: receiver.url }, metadata: { order: 'a' } },
      'Hello',
    )
    await until('it arrives', async () => receiver.received.length === 1)
    const [{ body, headers }] = receiver.received as [(typeof receiver.received)[0]]
    const flat = headers as Record<string, string>
    const verified = new Webhook(signing_secret ?? '').verify(body, flat) as { data: unknown }
    expect(verified.data).toMatchObject({ job_id: id, metadata: { order: 'a' } })
    const openai = new OpenAI({ apiKey: 'x', webhookSecret: signing_secret ?? '' })
    const event = await openai.webhooks.unwrap(body, flat)
    expect(event).toMatchObject({ id: flat['webhook-id'], object: 'event', type: 'response.completed' })
    expect(() => new Webhook(signing_secret ?? '').verify(`${body} `, flat)).toThrow('signature')
    await until('it is noted', async () => {
      const { data } = await json<{ data: Attempt[] }>(call(`/jobs/${id}/deliveries`))
      return data[0]?.status_code === 204
    })
  })

  it('is tried again with the same id until it is taken', async () => {
    let left = 3
    receiver.answer = (response) => response.writeHead(left-- > 0 ? 500 : 200).end()
    const { id } = await submit({ webhook: { url: `${receiver.url}again` } })
    await until('it is taken', async () => receiver.received.length === 4)
    expect(new Set(receiver.received.map(({ headers }) => headers['webhook-id'])).size).toBe(1)
    await until('it is noted', async () => {
      const { data } = await json<{ data: Attempt[] }>(call(`/jobs/${id}/deliveries`))
      return data.map(({ status_code }) => status_code).join() === '500,500,500,200'
    })
  })

  it('is a dead letter after ten attempts, and can be replayed', async () => {
    receiver.answer = (response) => response.writeHead(500).end()
    const { id } = await submit({ webhook: { url: `${receiver.url}dead` } })
    type Dead = { data: { id: string; job_id: string; attempts: number }[] }
    const dead = async () =>
      (await json<Dead>(call('/deliveries?status=dead'))).data.find(({ job_id }) => job_id === id)
    await until('it is given up', async () => (await dead()) !== undefined, 60_000)
    expect((await dead())?.attempts).toBe(10)
    receiver.answer = (response) => response.writeHead(200).end()
    const before = receiver.received.length
    expect((await call(`/deliveries/${(await dead())?.id}/replay`, {})).status).toBe(202)
    await until('it arrives', async () => receiver.received.length > before)
    expect(receiver.received.at(-1)?.headers['webhook-id']).toBe(receiver.received[0]?.headers['webhook-id'])
  })

  it('follows no redirect, and 410 ends it', async () => {
    receiver.answer = (response, { path }) =>
      path === '/gone'
        ? response.writeHead(410).end()
        : response.writeHead(302, { location: `${receiver.url}canary` }).end()
    const moved = await submit({ webhook: { url: `${receiver.url}moved` } })
    const gone = await submit({ webhook: { url: `${receiver.url}gone` } })
    await until('it is given up', async () => {
      const { data } = await json<{ data: Attempt[] }>(call(`/jobs/${gone.id}/deliveries`))
      return data.length === 1 && data[0]?.status_code === 410 && data[0].next_at === null
    })
    await until('it is tried', async () => {
      const { data } = await json<{ data: Attempt[] }>(call(`/jobs/${moved.id}/deliveries`))
      return data.some(({ status_code }) => status_code === 302)
    })
    expect(receiver.received.some(({ path }) => path === '/canary')).toBe(false)
  })

  it('to a receiver that drips its answer ends after 15 s', async () => {
    const ms = await dripped.ms
    expect(ms).toBeGreaterThan(14_500)
    expect(ms).toBeLessThan(17_000)
    const { data } = await json<{ data: Attempt[] }>(call(`/jobs/${dripped.id}/deliveries`))
    expect(data[0]).toMatchObject({ attempt: 1, status_code: null, error: 'no answer within 15 s' })
  })
})
