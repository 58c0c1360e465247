/** Jobs where no backend is: what waits, what is refused, what their deliveries are signed with. */
import { env, exports } from 'cloudflare:workers'
import { afterEach, expect, it } from 'vitest'

const usual = env.QUEUED_JOBS_MAX
const setMost = (n: string) => Object.assign(env, { QUEUED_JOBS_MAX: n })
afterEach(() => setMost(usual))

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
  const v1 = async (path: string, body?: unknown, headers = {}): Promise<Answer> => {
    const response = await fetchEdge(`/v1${path}`, {
      method: body === undefined ? 'GET' : 'POST',
      headers: { authorization: `Bearer ${key}`, ...headers },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    return { status: response.status, json: await response.json() }
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
