/** The service behind a real socket, and a caller of it, as the gateway is one. */
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { serve } from '@hono/node-server'
import type { Engine } from '../../gpu-backend/engine.ts'
import { createService, type Service, type ServiceOptions } from '../../gpu-backend/service.ts'
import { isFinish, type FinishEvent, type GenerateEvent, type ModelCard } from '../../src/protocol.ts'
import { readSse } from '../../src/sse.ts'

export const secret = 'the secret of these tests'

export interface Served extends Service {
  url: string
  post(path: string, body?: unknown, init?: RequestInit): Promise<Response>
  cancel(request_id: string): Promise<unknown>
  metric(name: string): Promise<number>
  close(): Promise<void>
}

export async function served(
  engine: Engine | null,
  card: ModelCard,
  options: Partial<ServiceOptions> = {},
): Promise<Served> {
  const service = createService({ model: card.id, secret, ...options })
  if (engine !== null) service.attach(engine, card)
  const server = serve({ fetch: service.app.fetch, port: 0, hostname: '127.0.0.1' })
  await once(server, 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const post = (path: string, body?: unknown, init: RequestInit = {}) =>
    fetch(url + path, {
      method: 'POST',
      body: typeof body === 'string' ? body : JSON.stringify(body ?? {}),
      headers: { authorization: `Bearer ${secret}` },
      ...init,
    })
  return {
    ...service,
    url,
    post,
    cancel: async (request_id) => (await post(`/v1/generate/${request_id}/cancel`)).json(),
    async metric(name) {
      const page = await (await fetch(`${url}/metrics`)).text()
      const lines = page
        .split('\n')
        .filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`))
      return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0)
    },
    async close() {
      await service.drain(0)
      if ('closeAllConnections' in server) server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

export interface Answer {
  tokens: number[]
  events: number
  finish: FinishEvent | null
  error: { error: { code: string; message: string } } | null
}

export async function read(response: Response): Promise<Answer> {
  const answer: Answer = { tokens: [], events: 0, finish: null, error: null }
  for await (const events of readSse(response.body!))
    for (const { event, data } of events) {
      answer.events++
      if (event === 'error') answer.error = JSON.parse(data) as Answer['error']
      else {
        const parsed = JSON.parse(data) as GenerateEvent
        if (isFinish(parsed)) answer.finish = parsed
        else answer.tokens.push(...parsed.token_ids)
      }
    }
  return answer
}

export async function until(done: () => boolean | Promise<boolean>, limit_ms = 5000): Promise<void> {
  const end = Date.now() + limit_ms
  while (!(await done())) {
    if (Date.now() > end) throw new Error(`not within ${limit_ms} ms: ${done.toString()}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
