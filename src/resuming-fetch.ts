/**
 * A `fetch` for clients that stream from qwen2-edge: a stream that breaks goes on where it broke, so that the client
 * above it, such as OpenAI's, never notices. It has no dependency; copy it, or import it:
 *
 *     new OpenAI({ baseURL, apiKey, fetch: resumingFetch() })
 *
 * A streaming POST is sent with an Idempotency-Key, so that repeating it never starts a second generation. Whole events
 * are passed on, never a part of one; after a break it asks GET /v1/generations/{id}/events with Last-Event-ID for what
 * follows, and where that is not kept (an answer from the cache) it repeats the POST with Last-Event-ID. It gives up
 * after `attempts` breaks in a row without a new event, and passes everything that is no event stream through untouched.
 */
export interface ResumingFetchOptions {
  fetch?: typeof fetch
  /** Breaks in a row without a new event; 8 unless told. */
  attempts?: number
  /** Milliseconds before the second attempt, doubled for each one after; 50 unless told. */
  delay_ms?: number
}

const delay_ms_max = 2_000

export function resumingFetch(options: ResumingFetchOptions = {}): typeof fetch {
  const { attempts = 8, delay_ms = 50 } = options
  const send = options.fetch ?? ((input: RequestInfo | URL, init?: RequestInit) => fetch(input, init))

  return async function resumingFetch(input, init = {}) {
    if (!isStreaming(init)) return send(input, init)
    const headers = new Headers(init.headers)
    if (!headers.has('idempotency-key')) headers.set('idempotency-key', crypto.randomUUID())
    const url = input instanceof Request ? input.url : String(input)
    const stream: Stream = { url, init: { ...init, headers }, id: null, last: null }
    const pause = async (failures: number) => {
      if (failures > 1) await sleep(Math.min(delay_ms_max, delay_ms * 2 ** (failures - 2)))
    }

    let failures = 0
    for (;;) {
      let response: Response
      try {
        response = await send(url, stream.init)
      } catch (cause) {
        if (init.signal?.aborted === true || ++failures >= attempts) throw cause
        await pause(failures)
        continue
      }
      if (!isEventStream(response)) return response
      stream.id = response.headers.get('x-generation-id')
      const { status, statusText, headers: answered } = response
      const body = resumed(stream, response, { send, attempts, pause })
      return new Response(body, { status, statusText, headers: answered })
    }
  }
}

interface Stream {
  url: string
  init: RequestInit
  /** x-generation-id */
  id: string | null
  /** The id of the last event that was passed on. */
  last: string | null
}

interface Retries {
  send: typeof fetch
  attempts: number
  pause: (failures: number) => Promise<void>
}

function resumed(
  stream: Stream,
  first: Response,
  { send, attempts, pause }: Retries,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  let events: AsyncGenerator<string> | null = blocks(first)
  let failures = 0

  /** The next whole event. */
  async function next(): Promise<string> {
    for (;;) {
      try {
        events ??= blocks(await again(stream, send))
        const { done, value } = await events.next()
        if (done === true) throw new Error('The stream ended before its end.')
        failures = 0
        stream.last = /^id: ?(.*)$/m.exec(value)?.[1] ?? stream.last
        return value
      } catch (cause) {
        events = null
        const final = cause instanceof Refused || stream.init.signal?.aborted === true
        if (final || ++failures >= attempts) throw cause
        await pause(failures)
      }
    }
  }

  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const event = await next()
        controller.enqueue(encoder.encode(event))
        if (/^data: ?\[DONE\]$/m.test(event) || /^event: ?error$/m.test(event)) {
          await events?.return(undefined)
          controller.close()
        }
      },
      async cancel() {
        await events?.return(undefined)
      },
    },
    { highWaterMark: 0 },
  )
}

/** The server has answered, and trying again will not change it. */
class Refused extends Error {}

async function again({ url, init, id, last }: Stream, send: typeof fetch): Promise<Response> {
  const headers = new Headers(init.headers)
  if (last !== null) headers.set('last-event-id', last)
  const signal = init.signal === undefined ? {} : { signal: init.signal }
  if (id !== null) {
    headers.delete('content-type')
    headers.delete('content-length')
    const events = url.replace(/\/chat\/completions(?=$|\?)/, `/generations/${id}/events`)
    const response = await send(events, { headers, ...signal })
    if (isEventStream(response)) return response
    await response.body?.cancel()
    if (response.status !== 404) throw refusal(response.status)
  }
  const repeated = new Headers(init.headers)
  if (last !== null) repeated.set('last-event-id', last)
  const response = await send(url, { ...init, headers: repeated })
  if (isEventStream(response)) return response
  await response.body?.cancel()
  throw refusal(response.status)
}

function refusal(status: number): Error {
  const why = `The server answered ${status}.`
  return status < 500 && status !== 429 ? new Refused(why) : new Error(why)
}

/** Each event with its blank line, as it came; what a broken stream leaves of one is dropped. */
async function* blocks(response: Response): AsyncGenerator<string> {
  if (response.body === null) return
  const reader = response.body.getReader()
  const decoder = new TextDecoder()
  let rest = ''
  let ended = false
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) {
        ended = true
        return
      }
      const parts = (rest + decoder.decode(value, { stream: true })).split('\n\n')
      rest = parts.pop() ?? ''
      for (const part of parts) yield `${part}\n\n`
    }
  } finally {
    if (!ended) await reader.cancel().catch(() => undefined)
  }
}

const isStreaming = ({ method, body }: RequestInit) =>
  method?.toUpperCase() === 'POST' && typeof body === 'string' && /"stream"\s*:\s*true/.test(body)

const isEventStream = (response: Response) =>
  response.ok && (response.headers.get('content-type') ?? '').startsWith('text/event-stream')

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))
