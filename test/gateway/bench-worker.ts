/**
 * The edge, and beside it in the same isolate what it is measured against: the same route without auth, limits and
 * admission, a proxy that passes a stream on unread, and one that only reads each chunk and writes it.
 */
import { Hono } from 'hono'
import { form } from '../../gateway/chat/answer-form.ts'
import type { AppEnv } from '../../gateway/app-env.ts'
import { chat } from '../../gateway/chat/chat.ts'
import edge from '../../gateway/index.ts'
import { prompt } from '../../gateway/chat/prompt.ts'
import { cache } from '../../gateway/cache/result-cache.ts'

export * from '../../gateway/index.ts'

/** Lets everything in. */
const noLimits = {
  getByName: () => ({
    admit: (_: string, __: object, ask: { max_tokens: number | null; room_tokens: number }) =>
      Promise.resolve({
        standing: 'active',
        denial: null,
        too_large: false,
        max_tokens: ask.max_tokens ?? ask.room_tokens,
        snapshot: { requests: null, tokens: null },
        lease: null,
      }),
    settle: () => Promise.resolve(),
    renew: () => Promise.resolve(),
  }),
} as unknown as Env['TENANT']

const app = new Hono<AppEnv>()
  .use('/bare/*', async function anybody(c, next) {
    c.set('requestId', `req_${crypto.randomUUID().replaceAll('-', '')}`)
    c.set('caller', { tenantId: 'dev', keyId: 'dev', models: null, scopes: null })
    c.env = { ...c.env, TENANT: noLimits }
    await next()
  })
  .post('/bare/v1/chat/completions', prompt, form, cache, ...chat)
  .post('/proxy/*', (c) => {
    const { pathname } = new URL(c.req.url)
    return fetch(c.env.BACKEND_URL + pathname.slice('/proxy'.length), {
      method: 'POST',
      body: c.req.raw.body,
    })
  })
  // The least that a gateway can cost which looks at what it passes on.
  .post('/relay/*', async (c) => {
    const { pathname } = new URL(c.req.url)
    const body = await c.req.text()
    const answer = await fetch(c.env.BACKEND_URL + pathname.slice('/relay'.length), { method: 'POST', body })
    const { readable, writable } = new IdentityTransformStream()
    if (answer.body !== null) c.executionCtx.waitUntil(relay(answer.body, writable))
    return new Response(readable, answer)
  })
  // The least that an answer from the Cache API can cost.
  .post('/cached', async (c) => {
    const results = await caches.open('results')
    const kept = await results.match('https://results.invalid/bench')
    if (kept !== undefined) return kept
    const headers = { 'content-type': 'application/json', 'cache-control': 'max-age=3600' }
    await results.put('https://results.invalid/bench', new Response(await c.req.text(), { headers }))
    return c.json({ stored: true })
  })
  .route('/', edge)

async function relay(from: ReadableStream<Uint8Array>, to: WritableStream<Uint8Array>): Promise<void> {
  const reader = from.getReader()
  const writer = to.getWriter()
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return writer.close()
    await writer.write(value)
  }
}

export default app
