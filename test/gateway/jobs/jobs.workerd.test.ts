/** Jobs where no backend is: what waits, what is refused, what their deliveries are signed with. */
import { env, exports } from 'cloudflare:workers'
import { abortAllDurableObjects, runDurableObjectAlarm } from 'cloudflare:test'
import { Webhook } from 'standardwebhooks'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { saying, scriptedBackend } from '../scripted-backend.ts'

const usual = { QUEUED_JOBS_MAX: env.QUEUED_JOBS_MAX, QWEN_EDGE_TIME_SCALE: env.QWEN_EDGE_TIME_SCALE }
const setMost = (n: string) => Object.assign(env, { QUEUED_JOBS_MAX: n })
afterEach(() => {
  vi.restoreAllMocks()
  Object.assign(env, usual)
})

type Answer = {
  status: number
  json: {
    id: string
    status: string
    signing_secret: string
    public_key: string
    error?: { code: string; param: string }
    data: { id: string }[]
  }
}

const fetchEdge = (path: string, init: RequestInit) =>
  exports.default.fetch(new Request(`http://edge${path}`, init))

async function tenant() {
  const admin = async (path: string, body: unknown, method = 'POST') => {
    const headers = { authorization: `Bearer ${env.ADMIN_TOKEN}` }
    const response = await fetchEdge(`/admin${path}`, { method, headers, body: JSON.stringify(body) })
    return response.json<{ id: string; key: string }>()
  }
  const { id } = await admin('/tenants', { name: 'Acme' })
  const { key } = await admin(`/tenants/${id}/keys`, { name: 'first' })
  const v1 = async (
    path: string,
    body?: unknown,
    headers = {},
    method = body === undefined ? 'GET' : 'POST',
  ): Promise<Answer> => {
    const response = await fetchEdge(`/v1${path}`, {
      method,
      headers: { authorization: `Bearer ${key}`, ...headers },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    return { status: response.status, json: JSON.parse((await response.text()) || '{}') as Answer['json'] }
  }
  return { id, v1, suspend: () => admin(`/tenants/${id}`, { status: 'suspended' }, 'PATCH') }
}

const job = (more: object = {}) => ({
  request: { model: 'tiny', messages: [{ role: 'user', content: crypto.randomUUID() }], max_tokens: 1 },
  ...more,
})

it('a queue that is full says so, still knows its duplicates, and takes again when some are gone', async () => {
  const { v1 } = await tenant()
  const once = job()
  const first = await v1('/jobs', once, { 'idempotency-key': 'a' })
  setMost('3')
  const answers: Answer[] = []
  for (let n = 0; n < 20; n++) answers.push(await v1('/jobs', job()))
  const taken = answers.filter(({ status }) => status === 202)
  const refused = answers.filter(({ status }) => status !== 202)
  // Three wait, and eight may be under way.
  expect(taken.length).toBeLessThanOrEqual(11)
  for (const { status, json } of refused)
    expect([status, json.error]).toMatchObject([429, { code: 'rate_limit_exceeded', param: 'queued_jobs' }])
  expect((await v1('/jobs', once, { 'idempotency-key': 'a' })).json.id).toBe(first.json.id)
  for (const { json } of [first, ...taken]) await v1(`/jobs/${json.id}/cancel`, {})
  expect((await v1('/jobs', job())).status).toBe(202)
})

it("the tenant's secret rotates with an overlap, and its public key stays", async () => {
  const { v1 } = await tenant()
  const webhook = { url: 'https://hooks.acme.io/in', ed25519: true }
  const before = await v1('/deliveries/signing_secret')
  expect((await v1('/jobs', job({ webhook }))).json.signing_secret).toBe(before.json.signing_secret)
  const { json } = await v1('/deliveries/signing_secret/rotate', { grace_seconds: 3600 })
  expect(json.signing_secret).not.toBe(before.json.signing_secret)
  expect((await v1('/jobs', job({ webhook }))).json.signing_secret).toBe(json.signing_secret)
  const after = await v1('/deliveries/signing_secret')
  expect(after.json).toEqual({ ...before.json, signing_secret: json.signing_secret })
  expect(await env.JOBS.getByName((await tenant()).id).signingSecrets()).toHaveLength(1)
  expect((await v1('/deliveries/signing_secret/rotate', { grace_seconds: -1 })).status).toBe(400)
})

it('a suspended tenant has its waiting jobs failed by name, not run and not lost', async () => {
  const { id, v1, suspend } = await tenant()
  const { json } = await v1('/jobs', job())
  await suspend()
  const row = await env.JOBS.getByName(id).get(json.id, 10_000)
  expect([row?.status, row?.error]).toEqual(['failed', expect.stringContaining('tenant_suspended')])
})

it('a job that cannot be stored is a 503 and was not accepted', async () => {
  const { v1 } = await tenant()
  const { JOBS } = env
  const full = () => Promise.reject(new Error('database or disk is full: SQLITE_FULL'))
  Object.assign(env, { JOBS: { getByName: () => ({ create: full }) } })
  const { status, json } = await v1('/jobs', job())
  Object.assign(env, { JOBS })
  expect([status, json.error?.code]).toEqual([503, 'storage_unavailable'])
  expect((await v1('/jobs')).json.data).toEqual([])
})

it('a job that takes its object down ends by name; those beside it are answered', async () => {
  const { id, v1 } = await tenant()
  let [deadly, deaths] = [false, 0]
  scriptedBackend(async (run) => {
    if (run.request.sampling.seed === 666) return void (deadly = true)
    await scheduler.wait(30)
    saying('fine')(run)
  })
  const make = async (seed: number) => {
    const { request } = job()
    return (await v1('/jobs', { request: { ...request, max_tokens: 50, temperature: 1, seed } })).json.id
  }
  const ids = [await make(1), await make(666), await make(2), await make(3)]
  // A stub breaks with its object.
  const jobs = () => env.JOBS.getByName(id)
  const states = async () => {
    const rows = await Promise.all(ids.map((one) => jobs().get(one, 0)))
    return rows.map((row) => (row?.error ? (JSON.parse(row.error) as { code: string }).code : row?.status))
  }
  const wanted = ['completed', 'job_interrupted', 'completed', 'completed']
  for (let round = 0; (await states()).join() !== wanted.join(); round++) {
    if (round > 300) expect(await states()).toEqual(wanted)
    await scheduler.wait(20)
    if (deadly) {
      deaths++
      deadly = false
      await abortAllDurableObjects()
    }
    await runDurableObjectAlarm(jobs())
  }
  expect(deaths).toBe(5)
  const again = await v1(`/jobs/${ids[1]}/retry`, {})
  expect(again.json.status).toBe('queued')
  await v1(`/jobs/${ids[1]}/cancel`, {})
})

describe('a delivery is signed when it is sent', () => {
  interface Sent {
    id: string
    timestamp: number
    verifies: (secret: string) => boolean
  }

  /** Refuses the first attempt, after what happens meanwhile. */
  function receiver(meanwhile: () => Promise<unknown>): Sent[] {
    // The first gap is 5 s: 1.25 s here.
    Object.assign(env, { QWEN_EDGE_TIME_SCALE: '4' })
    const sent: Sent[] = []
    vi.spyOn(globalThis, 'fetch').mockImplementation(async (url, init) => {
      if (url !== 'http://localhost:9000/') return new Response('no backend', { status: 502 })
      const headers = init?.headers as Record<string, string>
      const verifies = (secret: string) => {
        try {
          return new Webhook(secret).verify(init?.body as string, headers) !== undefined
        } catch {
          return false
        }
      }
      sent.push({ id: headers['webhook-id']!, timestamp: Number(headers['webhook-timestamp']), verifies })
      if (sent.length > 1) return new Response(null, { status: 204 })
      await meanwhile()
      return new Response(null, { status: 500 })
    })
    return sent
  }
  const message = (secrets: string[], signer?: string) => ({
    webhook_id: `evt_${crypto.randomUUID()}`,
    url: 'http://localhost:9000/',
    body: '{"type":"response.completed"}',
    secrets,
    ...(signer === undefined ? {} : { signer }),
  })

  it('with the secret that the tenant has by then, under the same id and a new time', async () => {
    const { id, v1 } = await tenant()
    const before = (await v1('/deliveries/signing_secret')).json.signing_secret
    let after = ''
    const sent = receiver(async () => {
      after = (await v1('/deliveries/signing_secret/rotate', { grace_seconds: 0 })).json.signing_secret
    })
    await env.JOBS.getByName(id).tell(message([before], 'tenant'))
    await expect.poll(() => sent.length, { timeout: 5_000 }).toBe(2)
    expect(sent.map(({ verifies }) => [verifies(before), verifies(after)])).toEqual([
      [true, false],
      [false, true],
    ])
    expect(sent[1]?.id).toBe(sent[0]?.id)
    expect(sent[1]?.timestamp).toBeGreaterThan(sent[0]?.timestamp ?? Infinity)
  })

  it("with its hook's, with the last that it had when it is gone, and with one of the request's own", async () => {
    const { id, v1 } = await tenant()
    const made = await v1('/hooks', {
      name: 'h',
      messages: [{ role: 'user', content: 'x' }],
      verify: { type: 'token' },
      callback: { url: 'http://localhost:9000/' },
    })
    const { id: hook, signing_secret: before } = made.json
    const jobs = env.JOBS.getByName(id)
    let after = ''
    const sent = receiver(async () => {
      const rotate = { target: 'signing', grace_seconds: 0 }
      after = (await v1(`/hooks/${hook}/rotate`, rotate)).json.signing_secret
    })
    await v1(`/hooks/${hook}/test`, {})
    await expect.poll(() => sent.length, { timeout: 5_000 }).toBe(2)
    expect(sent.map(({ verifies }) => [verifies(before), verifies(after)])).toEqual([
      [true, false],
      [false, true],
    ])
    await v1(`/hooks/${hook}`, undefined, {}, 'DELETE')
    await jobs.tell(message([after], hook))
    await expect.poll(() => sent.length, { timeout: 5_000 }).toBe(3)
    const own = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'
    await jobs.tell(message([own]))
    await expect.poll(() => sent.length, { timeout: 5_000 }).toBe(4)
    expect(sent.slice(2).map(({ verifies }) => [verifies(after), verifies(own)])).toEqual([
      [true, false],
      [false, true],
    ])
  })
})
