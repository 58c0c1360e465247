/** Webhooks in, answers out; a job over its limit waits; one tenant's flood leaves the others alone. */
import { Webhook } from 'standardwebhooks'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { startReceiver, type Receiver } from './receiver.ts'
import { newTenant, until } from './stack.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile({ QWEN_EDGE_TIME_SCALE: '1000' })
let receiver: Receiver

beforeAll(async () => {
  receiver = await startReceiver()
})
afterAll(() => receiver?.close())

async function post<T>(path: string, body: unknown, token: string): Promise<T> {
  const headers = { authorization: `Bearer ${token}` }
  const response = await fetch(stack.gateway + path, { method: 'POST', headers, body: JSON.stringify(body) })
  return (await response.json()) as T
}
const tenant = async (limits: object) => (await newTenant(stack, limits))()
const job = (content: string, max_tokens: number) => ({
  request: {
    model: 'tiny',
    messages: [{ role: 'user', content }],
    temperature: 0,
    max_tokens,
    ignore_eos: true,
  },
})
async function ended(id: string, key: string) {
  const headers = { authorization: `Bearer ${key}` }
  const response = await fetch(`${stack.gateway}/v1/jobs/${id}?wait=30`, { headers })
  return (await response.json()) as { status: string; attempts: number; finished_at: number }
}

it('an event becomes an answer: at once where the hook is sync, and signed at the callback', async () => {
  const hook = await post<{ url: string; verify: { secret: string }; signing_secret: string }>(
    '/v1/hooks',
    {
      name: 'sums',
      messages: [{ role: 'user', content: 'What is {{payload.a}} + {{payload.b}}?' }],
      sampling: { temperature: 0 },
      verify: { type: 'standard-webhooks' },
      callback: { url: receiver.url },
      mode: 'sync',
    },
    stack.key,
  )
  const body = JSON.stringify({ a: 17, b: 25 })
  const send = async (status: number) => {
    const at = new Date()
    const headers = {
      'webhook-id': 'msg_1',
      'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
      'webhook-signature': new Webhook(hook.verify.secret).sign('msg_1', at, body),
    }
    const response = await fetch(hook.url, { method: 'POST', headers, body })
    expect(response.status).toBe(status)
    return (await response.json()) as { job_id: string; output_text: string }
  }
  const answer = await send(200)
  expect(answer.output_text.length).toBeGreaterThan(0)
  expect(await send(202)).toEqual({ ...answer, duplicate: true })
  await until('it arrives', async () => receiver.received.length > 0)
  const { body: sent, headers } = receiver.received[0]!
  const event = new Webhook(hook.signing_secret).verify(sent, headers as Record<string, string>) as {
    data: { job_id: string; output_text: string }
  }
  expect(event.data).toMatchObject({ job_id: answer.job_id, output_text: answer.output_text })
})

it('a job over a limit waits for it, and none fails', async () => {
  const key = await tenant({ concurrent: 1 })
  const jobs = await Promise.all(
    [1, 2, 3, 4, 5].map((n) => post<{ id: string }>('/v1/jobs', job(`Say ${n}`, 40), key)),
  )
  const ends = await Promise.all(jobs.map(({ id }) => ended(id, key)))
  expect(ends.map(({ status }) => status)).toEqual(Array.from({ length: 5 }, () => 'completed'))
})

it("one tenant's flood leaves another's job a place", async () => {
  const [flooding, other] = [await tenant({}), await tenant({})]
  const flood = await Promise.all(
    Array.from({ length: 60 }, (_, n) => post<{ id: string }>('/v1/jobs', job(`Flood ${n}`, 100), flooding)),
  )
  const { id } = await post<{ id: string }>('/v1/jobs', job('Only one', 10), other)
  expect((await ended(id, other)).status).toBe('completed')
  const headers = { authorization: `Bearer ${flooding}` }
  const left = await fetch(`${stack.gateway}/v1/jobs?status=queued&limit=100`, { headers })
  expect(((await left.json()) as { data: unknown[] }).data.length).toBeGreaterThan(20)
  expect(flood.length).toBe(60)
})
