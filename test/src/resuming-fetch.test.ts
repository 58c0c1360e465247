import { describe, expect, it } from 'vitest'
import { resumingFetch } from '../../src/resuming-fetch.ts'

const url = 'http://edge/v1/chat/completions'
const body = JSON.stringify({ model: 'tiny', stream: true })
const events = [
  ...Array.from({ length: 6 }, (_, id) => `id: ${id}\ndata: {"word": "wört ${id}"}\n\n`),
  'id: 6\ndata: [DONE]\n\n',
]
const whole = events.join('')
const headers = { 'content-type': 'text/event-stream; charset=utf-8', 'x-generation-id': 'gen_1' }

/** Breaks off after so many bytes, if the text is longer. */
function broken(text: string, cut: number): Response {
  const bytes = new TextEncoder().encode(text)
  let sent = false
  const stream = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (sent && cut < bytes.length) return controller.error(new TypeError('terminated'))
      if (sent) return controller.close()
      sent = true
      controller.enqueue(bytes.slice(0, cut))
    },
  })
  return new Response(stream, { headers })
}

interface Call {
  method: string
  url: string
  after: number
  key: string | null
}

function server(answer: (call: Call, nth: number) => Response | Promise<Response>) {
  const calls: Call[] = []
  const fetch = async (input: unknown, init: RequestInit = {}) => {
    const headers = new Headers(init.headers)
    const call = {
      method: init.method ?? 'GET',
      url: input as string,
      after: Number(headers.get('last-event-id') ?? -1),
      key: headers.get('idempotency-key'),
    }
    calls.push(call)
    return answer(call, calls.length - 1)
  }
  return { calls, fetch: resumingFetch({ fetch, delay_ms: 0 }) }
}

const rest = ({ after }: Call) => events.slice(after + 1).join('')
const post = (fetch: typeof globalThis.fetch, init: RequestInit = {}) =>
  fetch(url, { method: 'POST', body, ...init })

describe('resumingFetch', () => {
  it('gives the whole stream wherever it breaks', async () => {
    const bytes = new TextEncoder().encode(whole).length
    for (let cut = 0; cut <= bytes; cut++) {
      const { calls, fetch } = server((call, nth) => broken(rest(call), nth === 0 ? cut : Infinity))
      expect(await (await post(fetch)).text()).toBe(whole)
      expect(calls.slice(1)).toEqual(
        cut < bytes
          ? [expect.objectContaining({ method: 'GET', url: 'http://edge/v1/generations/gen_1/events' })]
          : [],
      )
    }
  })

  it('goes on through break after break while each brings an event', async () => {
    const { calls, fetch } = server((call) => broken(rest(call), 60))
    expect(await (await post(fetch)).text()).toBe(whole)
    expect(calls.length).toBeGreaterThan(3)
  })

  it('repeats the request, under the same key, where the answer is not kept or never began', async () => {
    const { calls, fetch } = server((call, nth) => {
      if (nth === 0) throw new TypeError('fetch failed')
      if (call.method === 'GET') return new Response('{}', { status: 404 })
      return broken(rest(call), nth === 1 ? 70 : Infinity)
    })
    expect(await (await post(fetch)).text()).toBe(whole)
    expect(calls.map(({ method }) => method)).toEqual(['POST', 'POST', 'GET', 'POST'])
    expect(new Set(calls.map(({ key }) => key)).size).toBe(1)
    expect(calls[0]?.key).not.toBeNull()
  })

  it('gives up when nothing new comes, and at once when the caller aborts or is refused', async () => {
    const stuck = server(() => broken(whole, 5))
    await expect((await post(stuck.fetch)).text()).rejects.toThrow('terminated')
    expect(stuck.calls).toHaveLength(8)

    const abort = new AbortController()
    const left = server(() => broken(whole, 5))
    const response = await post(left.fetch, { signal: abort.signal })
    abort.abort()
    await expect(response.text()).rejects.toThrow('terminated')
    expect(left.calls).toHaveLength(1)

    const refused = server((_, nth) =>
      nth === 0 ? broken(whole, 5) : new Response('{}', { status: nth === 1 ? 404 : 401 }),
    )
    await expect((await post(refused.fetch)).text()).rejects.toThrow('401')
    expect(refused.calls).toHaveLength(3)
  })

  it('leaves everything else alone', async () => {
    const { calls, fetch } = server(() => Response.json({ error: 'no' }, { status: 400 }))
    expect((await post(fetch)).status).toBe(400)
    await fetch(url, { method: 'POST', body: '{"stream": false}' })
    await fetch('http://edge/v1/models')
    expect(calls.map(({ key }) => key === null)).toEqual([false, true, true])
  })
})
