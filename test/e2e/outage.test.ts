/** The backend dies under load: every caller is told when to come back, and coming back works. */
import { describe, expect, it } from 'vitest'
import { pidOf } from './processes.ts'
import { until } from './stack.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile()

const ask = (body: object) =>
  fetch(`${stack.gateway}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${stack.key}`, 'cache-control': 'no-store' },
    body: JSON.stringify({
      model: 'tiny',
      temperature: 0,
      messages: [{ role: 'user', content: 'Hello' }],
      ...body,
    }),
  })

describe('a backend that dies', () => {
  it('ends a stream under way with an error event, answers 503 with Retry-After, then works again', async () => {
    const streaming = await ask({ stream: true, ignore_eos: true, max_tokens: 8000 })
    expect([streaming.status, streaming.ok ? '' : await streaming.text()]).toEqual([200, ''])
    process.kill(pidOf(stack, 'gpu-backend/main.ts'), 'SIGKILL')
    const refused = await ask({ max_tokens: 4 })
    expect(refused.status).toBe(503)
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(0)
    expect(await refused.json()).toMatchObject({
      error: { code: 'backend_unavailable', type: 'server_error' },
    })

    const events = (await streaming.text()).trimEnd().split('\n\n')
    expect(events.at(-1)).toMatch(/event: error\ndata: .*"code":"backend_unavailable"/)

    await until('an answer', async () => (await ask({ max_tokens: 4 })).status === 200, 20_000)
    const answer = (await (await ask({ max_tokens: 4 })).json()) as { usage: { completion_tokens: number } }
    expect(answer.usage.completion_tokens).toBeGreaterThan(0)
  })
})
