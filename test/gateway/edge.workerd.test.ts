import { env, exports } from 'cloudflare:workers'
import { describe, expect, it } from 'vitest'
import { makeKey } from '../../src/keys.ts'
import { identify } from '../../gateway/keys/identify.ts'

const fetchEdge = (path: string, init: RequestInit = {}) =>
  exports.default.fetch(new Request(`http://edge${path}`, init))
const admin = (path: string, body?: unknown, method = body === undefined ? 'GET' : 'POST') =>
  fetchEdge(`/admin${path}`, {
    method,
    headers: { authorization: `Bearer ${env.ADMIN_TOKEN}`, 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
const json = async <T>(response: Response | Promise<Response>) => (await (await response).json()) as T

async function newTenant(limits = {}) {
  const { id } = await json<{ id: string }>(admin('/tenants', { name: 'Acme', limits }))
  const created = await json<{ key: string; id: string }>(admin(`/tenants/${id}/keys`, { name: 'first' }))
  return { id, key: created.key, keyId: created.id }
}

const models = (key: string) => fetchEdge('/v1/models', { headers: { authorization: `Bearer ${key}` } })
const chat = (
  key: string,
  body: unknown = { model: 'tiny', messages: [{ role: 'user', content: 'Hello' }] },
) =>
  fetchEdge('/v1/chat/completions', {
    method: 'POST',
    headers: { authorization: `Bearer ${key}` },
    body: JSON.stringify(body),
  })

describe('keys', () => {
  it('work at once and stop working when revoked', async () => {
    const { id, key, keyId } = await newTenant()
    expect((await models(key)).status).toBe(200)
    expect((await admin(`/tenants/${id}/keys/${keyId}`, undefined, 'DELETE')).status).toBe(204)
    const again = await newTenant()
    expect((await admin(`/tenants/${again.id}/keys/${again.keyId}`, undefined, 'DELETE')).status).toBe(204)
    expect((await models(again.key)).status).toBe(401)
  })

  it('are refused with 401 when missing, mistyped, foreign or unknown', async () => {
    expect((await fetchEdge('/v1/models')).status).toBe(401)
    for (const key of ['sk-foreign', makeKey('test'), makeKey('test').slice(0, -1) + '!']) {
      const response = await models(key)
      expect(response.status).toBe(401)
      expect(await response.json()).toMatchObject({
        error: { code: 'invalid_api_key', type: 'authentication_error' },
      })
    }
  })

  it('cost no storage read when the checksum is wrong', async () => {
    const untouchable = new Proxy({}, { get: () => expect.fail('storage was read') })
    const key = makeKey('test')
    const wrong = key.slice(0, -1) + (key.endsWith('0') ? '1' : '0')
    const noStorage = { ...env, KEYS: untouchable, DIRECTORY: untouchable } as unknown as Env
    await expect(identify(noStorage, wrong, () => undefined)).rejects.toMatchObject({ status: 401 })
  })

  it('are never called wrong because storage fails: that is a 503', async () => {
    const failing = { get: () => Promise.reject(new Error('down')) }
    const broken = { ...env, KEYS: failing, DIRECTORY: { getByName: () => failing } } as unknown as Env
    await expect(identify(broken, makeKey('test'), () => undefined)).rejects.toMatchObject({
      status: 503,
      headers: { 'retry-after': '1' },
    })
  })

  it('the development key opens nothing outside development', async () => {
    const caller = await identify({ ...env, DEV_KEY: 'dev' }, 'dev', () => undefined)
    expect(caller.tenantId).toBe('dev')
    const production = { ...env, ENVIRONMENT: 'production', DEV_KEY: 'dev' }
    await expect(identify(production, 'dev', () => undefined)).rejects.toMatchObject({ status: 401 })
  })
})

describe('requests per minute', () => {
  it('lets exactly three of five concurrent requests through a limit of three', async () => {
    for (let round = 0; round < 20; round++) {
      const { key } = await newTenant({ requests_per_minute: 3 })
      const statuses = await Promise.all(Array.from({ length: 5 }, async () => (await chat(key)).status))
      // 503: passed the limit and found no backend.
      expect(statuses.toSorted((a, b) => a - b)).toEqual([429, 429, 503, 503, 503])
    }
  })

  it('says what is left and when to come back', async () => {
    const { key } = await newTenant({ requests_per_minute: 2 })
    const first = await chat(key)
    expect(first.headers.get('x-ratelimit-limit-requests')).toBe('2')
    expect(first.headers.get('x-ratelimit-remaining-requests')).toBe('1')
    expect(first.headers.get('ratelimit-policy')).toBe('"requests";q=2;w=60')
    await chat(key)
    const refused = await chat(key)
    expect(refused.status).toBe(429)
    expect(refused.headers.get('x-ratelimit-remaining-requests')).toBe('0')
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(55)
    expect(await refused.json()).toMatchObject({
      error: { code: 'rate_limit_exceeded', type: 'rate_limit_error' },
    })
  })

  it('does not count what is refused before it could be generated', async () => {
    const { key } = await newTenant({ requests_per_minute: 1 })
    expect((await chat(key, { model: 'tiny', messages: [] })).status).toBe(400)
    expect((await chat(key)).status).toBe(503)
  })

  it('changes at once when the operator changes it', async () => {
    const { id, key } = await newTenant({ requests_per_minute: 1 })
    expect((await chat(key)).status).toBe(503)
    expect((await chat(key)).status).toBe(429)
    expect((await admin(`/tenants/${id}`, { limits: { requests_per_minute: 5 } }, 'PATCH')).status).toBe(200)
    expect((await chat(key)).status).toBe(503)
  })
})

describe('the admin API', () => {
  it('wants its own token', async () => {
    const { key } = await newTenant()
    for (const headers of [{}, { authorization: `Bearer ${key}` }, { authorization: 'Bearer wrong' }]) {
      expect((await fetchEdge('/admin/tenants/x', { headers })).status).toBe(401)
    }
  })

  it('names what is wrong with a body', async () => {
    const response = await admin('/tenants', { name: 'Acme', limits: { requests_per_minute: -1 } })
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { param: 'limits.requests_per_minute' } })
    expect((await admin('/tenants/ten_unknown')).status).toBe(404)
  })
})

describe('bad input', () => {
  const cases: [string, unknown, number, string | null][] = [
    ['no model', { messages: [{ role: 'user', content: 'x' }] }, 400, 'model'],
    ['an unknown model', { model: 'gpt-9', messages: [{ role: 'user', content: 'x' }] }, 404, 'model'],
    ['empty messages', { model: 'tiny', messages: [] }, 400, 'messages'],
    ['messages of another type', { model: 'tiny', messages: 'hello' }, 400, 'messages'],
    [
      'an unknown role',
      { model: 'tiny', messages: [{ role: 'wizard', content: 'x' }] },
      400,
      'messages[0].role',
    ],
    [
      'an image',
      { model: 'tiny', messages: [{ role: 'user', content: [{ type: 'image_url' }] }] },
      400,
      'messages[0].content',
    ],
    [
      'a temperature above 2',
      { model: 'tiny', messages: [{ role: 'user', content: 'x' }], temperature: 3 },
      400,
      'temperature',
    ],
    [
      'max_tokens of zero',
      { model: 'tiny', messages: [{ role: 'user', content: 'x' }], max_tokens: 0 },
      400,
      'max_tokens',
    ],
    [
      'max_tokens beyond the context',
      { model: 'tiny', messages: [{ role: 'user', content: 'x' }], max_tokens: 9000 },
      400,
      'max_tokens',
    ],
    [
      'an empty stop string',
      { model: 'tiny', messages: [{ role: 'user', content: 'x' }], stop: '' },
      400,
      'stop',
    ],
    [
      'tools',
      { model: 'tiny', messages: [{ role: 'user', content: 'x' }], tools: [{}] },
      400,
      'tools[0].type',
    ],
    [
      'a prompt longer than the context',
      { model: 'tiny', messages: [{ role: 'user', content: 'a b '.repeat(9000) }] },
      400,
      'messages',
    ],
    [
      'a bias of a token that is not there',
      { model: 'tiny', messages: [{ role: 'user', content: 'x' }], logit_bias: { 9999999: 1 } },
      400,
      'logit_bias',
    ],
    [
      'a stop token that is not there',
      { model: 'tiny', messages: [{ role: 'user', content: 'x' }], stop_token_ids: [5, -1] },
      400,
      'stop_token_ids',
    ],
    ['a body that is no object', [1], 400, null],
  ]
  it.each(cases)('%s is refused by name', async (_, body, status, param) => {
    const { key } = await newTenant()
    const response = await chat(key, body)
    expect(response.status).toBe(status)
    expect(response.headers.get('x-request-id')).toMatch(/^req_/)
    expect(await response.json()).toMatchObject({
      error: { param, type: 'invalid_request_error', message: expect.any(String) },
    })
  })

  it('malformed JSON, a body over 4 MB and a wrong method have their own status', async () => {
    const { key } = await newTenant()
    const headers = { authorization: `Bearer ${key}` }
    const post = (body: string) => fetchEdge('/v1/chat/completions', { method: 'POST', headers, body })
    expect((await post('{"model":')).status).toBe(400)
    expect((await post('')).status).toBe(400)
    expect((await post(`{"x":"${'a'.repeat(4 * 1024 * 1024)}"}`)).status).toBe(413)
    expect((await post('{')).headers.get('content-type')).toBe('application/json')
    expect((await fetchEdge('/v1/models', { method: 'POST', headers })).status).toBe(405)
    const get = await fetchEdge('/v1/chat/completions', { headers })
    expect([get.status, get.headers.get('allow')]).toEqual([405, 'POST'])
    expect((await fetchEdge('/v1/nothing', { headers })).status).toBe(404)
  })

  it('a backend that is down is a 503 that says when to try again', async () => {
    const { key } = await newTenant()
    const response = await chat(key)
    expect(response.status).toBe(503)
    expect(response.headers.get('retry-after')).toBe('1')
    expect(await response.json()).toMatchObject({ error: { code: 'backend_unavailable' } })
    expect((await fetchEdge('/readyz')).status).toBe(503)
    expect((await fetchEdge('/healthz')).status).toBe(200)
  })
})
