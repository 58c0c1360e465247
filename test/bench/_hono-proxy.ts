/** The least that a gateway on Node can be. Usage: _hono-proxy.ts PORT UPSTREAM */
import { serve } from '@hono/node-server'
import { Hono } from 'hono'

const [port = '0', upstream = ''] = process.argv.slice(2)
const app = new Hono().post('*', async (c) => {
  const { pathname } = new URL(c.req.url)
  const answer = await fetch(upstream + pathname, { method: 'POST', body: await c.req.text() })
  return new Response(answer.body, { status: answer.status, headers: answer.headers })
})
serve({ fetch: app.fetch, port: Number(port), hostname: '127.0.0.1' })
