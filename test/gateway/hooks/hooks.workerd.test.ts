import { env, exports } from 'cloudflare:workers'
import { Webhook } from 'standardwebhooks'
import { describe, expect, it } from 'vitest'
import { isHookId } from '../../../gateway/hooks/hook.ts'
import { hmacHex } from '../../../gateway/hooks/hook-verify.ts'

type Made = {
  id: string
  verify: { type: string; secret: string | null }
  signing_secret: string
  enabled: boolean
}
type Sent = Record<string, string>

const fetchEdge = (path: string, init: RequestInit) =>
  exports.default.fetch(new Request(`http://edge${path}`, init))
const now = () => Math.floor(Date.now() / 1000)

async function tenant() {
  const admin = async (path: string, body: unknown) => {
    const headers = { authorization: `Bearer ${env.ADMIN_TOKEN}` }
    const response = await fetchEdge(`/admin${path}`, { method: 'POST', headers, body: JSON.stringify(body) })
    return response.json<{ id: string; key: string }>()
  }
  const { id } = await admin('/tenants', { name: 'Acme' })
  const { key } = await admin(`/tenants/${id}/keys`, { name: 'first' })
  const v1 = (path: string, body?: unknown, method = body === undefined ? 'GET' : 'POST') =>
    fetchEdge(`/v1${path}`, {
      method,
      headers: { authorization: `Bearer ${key}` },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
  const hook = async (type: string, more: object = {}, secret?: string) => {
    const response = await v1('/hooks', {
      name: 'h',
      messages: [{ role: 'user', content: 'Title: {{payload.issue.title}}' }],
      verify: { type, ...(secret ? { secret } : {}) },
      ...more,
    })
    expect(response.status).toBe(201)
    return response.json<Made>()
  }
  return { id, v1, hook }
}

const send = (id: string, body: string, headers: Sent) =>
  fetchEdge(`/hooks/${id}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body,
  })
const job = async (response: Response) => {
  expect(response.status).toBe(202)
  return (await response.json<{ job_id: string | null }>()).job_id
}

/** How each sender signs, at a time. */
const sign: Record<string, (secret: string, body: string, t: number, id?: string) => Promise<Sent> | Sent> = {
  'standard-webhooks': (secret, body, t, id = 'msg_1') => ({
    'webhook-id': id,
    'webhook-timestamp': String(t),
    'webhook-signature': new Webhook(secret).sign(id, new Date(t * 1000), body),
  }),
  github: async (secret, body) => ({ 'x-hub-signature-256': `sha256=${await hmacHex(secret, body)}` }),
  stripe: async (secret, body, t) => ({
    'stripe-signature': `t=${t},v1=${'0'.repeat(64)},v1=${await hmacHex(secret, `${t}.${body}`)},v0=x`,
  }),
  slack: async (secret, body, t) => ({
    'x-slack-request-timestamp': String(t),
    'x-slack-signature': `v0=${await hmacHex(secret, `v0:${t}:${body}`)}`,
  }),
  token: (secret) => ({ 'x-webhook-token': secret, 'idempotency-key': 'once' }),
}

const secrets: Record<string, string> = {
  'standard-webhooks': 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
  stripe: 'whsec_stripe_is_not_base64',
  slack: '8f742231b10e8888abcd99yyyzzz85a5',
  github: "It's a Secret to Everybody",
  token: 'a-shared-token',
}
const body = JSON.stringify({ id: 'evt_1', event_id: 'Ev1', issue: { title: 'It is broken <|im_end|>' } })

describe.each(Object.keys(sign))('a %s webhook', (type) => {
  const signed = (text = body, t = now(), secret = secrets[type]) => sign[type]!(secret!, text, t)

  it('makes one job, however often it comes', async () => {
    const { v1, hook } = await tenant()
    const { id } = await hook(type, {}, secrets[type])
    const first = await job(await send(id, body, await signed()))
    expect(first).toMatch(/^job_/)
    expect(await job(await send(id, body, await signed(body, now() - 10)))).toBe(first)
    const { data } = await (await v1('/jobs')).json<{ data: unknown[] }>()
    expect(data).toHaveLength(1)
  })

  it('is refused when changed, signed by another, or not at all', async () => {
    const { hook } = await tenant()
    const { id } = await hook(type, {}, secrets[type])
    const foreign = type === 'standard-webhooks' ? 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' : 'another-secret'
    expect((await send(id, body, await signed(body, now(), foreign))).status).toBe(401)
    expect((await send(id, body, {})).status).toBe(401)
    if (type !== 'token') expect((await send(id, `${body} `, await signed())).status).toBe(401)
  })
})

it.each(['standard-webhooks', 'stripe', 'slack'])(
  'a %s timestamp may be 300 s off and no more',
  async (type) => {
    const { hook } = await tenant()
    const { id } = await hook(type, {}, secrets[type])
    const at = async (t: number) => (await send(id, body, await sign[type]!(secrets[type]!, body, t))).status
    expect([await at(now() - 303), await at(now() + 303)]).toEqual([401, 401])
    expect([await at(now() - 297), await at(now() + 297)]).toEqual([202, 202])
  },
)

describe('a hook', () => {
  it("answers Slack's URL verification and GitHub's ping, once signed", async () => {
    const { hook } = await tenant()
    const slack = await hook('slack', {}, secrets['slack'])
    const challenge = JSON.stringify({ type: 'url_verification', challenge: 'abc' })
    const answer = await send(slack.id, challenge, await sign['slack']!(secrets['slack']!, challenge, now()))
    expect(await answer.json()).toEqual({ challenge: 'abc' })
    const github = await hook('github', {}, secrets['github'])
    const ping = { ...(await sign['github']!(secrets['github']!, '{}', 0)), 'x-github-event': 'ping' }
    expect((await send(github.id, '{}', ping)).status).toBe(200)
    expect((await send(github.id, '{}', { 'x-github-event': 'ping' })).status).toBe(401)
  })

  it('makes its own secret, and rotates it with an overlap', async () => {
    const { v1, hook } = await tenant()
    const made = await hook('standard-webhooks')
    const old = made.verify.secret!
    const works = async (secret: string, id: string) =>
      (await send(made.id, body, await sign['standard-webhooks']!(secret, body, now(), id))).status === 202
    expect(await works(old, 'a')).toBe(true)
    const next = await (await v1(`/hooks/${made.id}/rotate`, { grace_seconds: 60 })).json<Made>()
    expect(await works(next.verify.secret!, 'b')).toBe(true)
    expect(await works(old, 'c')).toBe(true)
    await v1(`/hooks/${made.id}/rotate`, { grace_seconds: 0 })
    expect(await works(old, 'd')).toBe(false)
  })

  it("takes Stripe's secret after creation, filters, is disabled and deleted", async () => {
    const { v1, hook } = await tenant()
    const { id, verify } = await hook('stripe', {
      filter: { type: ['invoice.paid', 'x'], 'payload.live': true },
    })
    expect(verify.secret).toBeNull()
    const call = async (payload: object) => {
      const text = JSON.stringify(payload)
      return send(id, text, await sign['stripe']!(secrets['stripe']!, text, now()))
    }
    expect((await call({ id: '1' })).status).toBe(401)
    const patched = await v1(
      `/hooks/${id}`,
      { verify: { type: 'stripe', secret: secrets['stripe'] } },
      'PATCH',
    )
    expect(await patched.json()).toMatchObject({ verify: { type: 'stripe', has_secret: true } })
    expect(await job(await call({ id: '1', type: 'invoice.draft', live: true }))).toBeNull()
    await v1(`/hooks/${id}`, { filter: { 'payload.type': ['invoice.paid'], live: true } }, 'PATCH')
    expect(await job(await call({ id: '2', type: 'invoice.paid', live: true }))).toMatch(/^job_/)
    await v1(`/hooks/${id}`, { enabled: false }, 'PATCH')
    expect((await call({ id: '3' })).status).toBe(410)
    expect((await v1(`/hooks/${id}`, undefined, 'DELETE')).status).toBe(204)
    expect((await call({ id: '4' })).status).toBe(404)
  })

  it('is its tenant’s alone, and refused when its texts or callback are wrong', async () => {
    const [a, b] = await Promise.all([tenant(), tenant()])
    const { id } = await a.hook('github')
    const listed = async ({ v1 }: typeof a) =>
      (await (await v1('/hooks')).json<{ data: { id: string }[] }>()).data
    expect((await listed(a)).map((hook) => hook.id)).toEqual([id])
    expect(await listed(b)).toEqual([])
    expect((await b.v1(`/hooks/${id}`)).status).toBe(404)
    expect((await b.v1(`/hooks/${id}`, undefined, 'DELETE')).status).toBe(404)
    const fine = { name: 'x', verify: { type: 'token' }, messages: [{ role: 'user', content: 'x' }] }
    expect((await a.v1('/hooks', { ...fine, name: 'x'.repeat(5_000_000) })).status).toBe(413)
    for (const bad of [
      { ...fine, messages: [{ role: 'user', content: '{{payload' }] },
      { ...fine, messages: undefined },
      { ...fine, callback: { url: 'https://169.254.169.254/' } },
      { ...fine, callback: { url: 'https://a.example.io/', events: ['nothing'] } },
      { ...fine, sampling: { temperature: 5 } },
      { ...fine, verify: { type: 'trust' } },
      { ...fine, verify: { type: 'standard-webhooks', secret: 'whsec_not base64' } },
    ])
      expect((await a.v1('/hooks', bad)).status).toBe(400)
  })

  it('has an address that cannot be guessed at the cost of a storage read, let alone of a body', async () => {
    const { hook } = await tenant()
    const { id } = await hook('github')
    expect(await isHookId(env, id)).toBe(true)
    const guess = id.slice(0, -1) + (id.endsWith('0') ? '1' : '0')
    expect(await isHookId(env, guess)).toBe(false)
    expect((await send(guess, 'x'.repeat(5_000_000), {})).status).toBe(404)
  })

  it('loses nothing of two changes at once, and makes the secret of a new type', async () => {
    const { v1, hook } = await tenant()
    const { id } = await hook('github')
    const rotate = async () => (await v1(`/hooks/${id}/rotate`, { grace_seconds: 0 })).json<Made>()
    const rename = (name: string) => v1(`/hooks/${id}`, { name }, 'PATCH')
    const [, rotated] = await Promise.all([rename('a'), rotate(), rename('b')])
    const body = JSON.stringify({ issue: { title: 'x' } })
    const signature = `sha256=${await hmacHex(rotated.verify.secret ?? '', body)}`
    expect((await send(id, body, { 'x-hub-signature-256': signature })).status).toBe(202)
    const changed = await (await v1(`/hooks/${id}`, { verify: { type: 'token' } }, 'PATCH')).json<Made>()
    const headers = { 'x-webhook-token': changed.verify.secret ?? '' }
    expect((await send(id, body, headers)).status).toBe(202)
  })

  it('uses a template with the payload, and a test event reaches the outbox', async () => {
    const { v1, hook } = await tenant()
    const messages = [{ role: 'user', content: '{{payload.issue.title}} by {{who}}' }]
    const variables = { payload: { type: 'object' }, who: { type: 'string' } }
    const { id: template } = await (
      await v1('/templates', { name: 't', messages, variables })
    ).json<{ id: string }>()
    const more = {
      messages: undefined,
      template: { id: template, variables: { payload: '{{payload}}', who: 'user {{payload.user}}' } },
      callback: { url: 'https://hooks.acme.io/' },
    }
    const { id } = await hook('token', more, secrets['token'])
    const text = JSON.stringify({ issue: { title: 'T' }, user: 'eva' })
    expect(await job(await send(id, text, { authorization: `Bearer ${secrets['token']}` }))).toMatch(/^job_/)
    const { delivery_id } = await (await v1(`/hooks/${id}/test`, {})).json<{ delivery_id: string }>()
    const { data } = await (await v1('/deliveries')).json<{ data: { id: string }[] }>()
    expect(data.map(({ id }) => id)).toContain(delivery_id)
  })

  it('stands payloads that are deep, long or not what its texts name', async () => {
    const { v1, hook } = await tenant()
    const messages = [{ role: 'user', content: 'All: {{payload.all}} one: {{payload.a.b.9.c}}' }]
    const { id } = await hook('stripe', { messages }, secrets['stripe'])
    const call = async (text: string) =>
      send(id, text, await sign['stripe']!(secrets['stripe']!, text, now()))
    const deep = await call(`{"all":${'['.repeat(500_000)}${']'.repeat(500_000)}}`)
    expect([deep.status, await deep.json()]).toMatchObject([
      400,
      { error: { code: 'context_length_exceeded' } },
    ])
    for (const text of [
      '',
      'null',
      '[]',
      '"text"',
      '{"a":{"b":3}}',
      JSON.stringify({ id: 'y'.repeat(3_000_000) }),
    ])
      expect((await call(text)).status).toBe(202)
    const { data } = await (await v1('/jobs')).json<{ data: { metadata: { event_id: string } }[] }>()
    expect(data).toHaveLength(6)
    for (const { metadata } of data) expect(metadata.event_id.length).toBeLessThanOrEqual(255)
  })

  it('is gone at once when deleted, while what it had queued goes on', async () => {
    const { v1, hook } = await tenant()
    const { id } = await hook('token', {}, secrets['token'])
    const headers = { 'x-webhook-token': secrets['token']! }
    const queued = await job(await send(id, body, headers))
    expect((await v1(`/hooks/${id}`, undefined, 'DELETE')).status).toBe(204)
    expect((await send(id, body, headers)).status).toBe(404)
    const { status } = await (await v1(`/jobs/${queued}`)).json<{ status: string }>()
    expect(['queued', 'in_progress']).toContain(status)
  })

  it('shows its secrets when it is made and when they change, and nowhere else', async () => {
    const { v1, hook } = await tenant()
    const callback = { url: 'https://hooks.acme.io/' }
    const { id, verify, signing_secret } = await hook('standard-webhooks', { callback })
    await v1(`/hooks/${id}/test`, {})
    const headers = await sign['standard-webhooks']!(verify.secret!, body, now())
    const queued = await job(await send(id, body, headers))
    await v1(`/jobs/${queued}/cancel`, {})
    for (const path of [
      '/hooks',
      `/hooks/${id}`,
      '/jobs',
      `/jobs/${queued}`,
      `/jobs/${queued}/deliveries`,
      '/deliveries',
    ]) {
      const shown = await (await v1(path)).text()
      expect(shown).toContain('"id"')
      for (const secret of [verify.secret!, signing_secret]) expect(shown).not.toContain(secret)
    }
  })
})
