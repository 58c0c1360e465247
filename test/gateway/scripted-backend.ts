/**
 * A backend within the test's own workerd: answers /v1/generate as a script says, step by step, and counts what it is
 * asked. Where a status, tokens and a usage are all that matters: fake-backend.ts.
 */
import { env } from 'cloudflare:workers'
import { vi } from 'vitest'
import type { CancelResponse, FinishReason, GenerateRequest } from '../../src/protocol.ts'
import { model, tokenizer } from '../../gateway/model.ts'

export interface Run {
  request: GenerateRequest
  /** The gateway let go of the stream, or asked to cancel. */
  cancelled: boolean
  ended: boolean
  tokens(...ids: number[]): void
  finish(reason?: FinishReason): void
  /** The connection breaks. */
  crash(): void
  /** The gateway asks for it. */
  cancel(): void
  /** What it tells who asks. */
  told: () => Pick<CancelResponse, 'usage' | 'finish_reason'>
}

export interface ScriptedBackend {
  runs: Run[]
  /** Whether it takes generations, as it says itself. */
  isReady: boolean
  live: () => number
  restore: () => void
}

export const idsOf = (text: string) => [...tokenizer.encode(text)]

/** Answers with these tokens at once. */
export const saying =
  (text: string) =>
  (run: Run): void => {
    run.tokens(...idsOf(text))
    run.finish('stop')
  }

export function scriptedBackend(script: (run: Run) => void | Promise<void>): ScriptedBackend {
  const runs: Run[] = []
  const backend: ScriptedBackend = {
    runs,
    isReady: true,
    live: () => runs.filter(({ ended, cancelled }) => !ended && !cancelled).length,
    restore: () => spy.mockRestore(),
  }
  const spy = vi.spyOn(globalThis, 'fetch').mockImplementation(async (input, init) => {
    const url = new URL(input instanceof Request ? input.url : String(input))
    if (url.origin !== new URL(env.BACKEND_URL).origin) throw new Error(`unexpected call: ${url.href}`)
    const cancelled = /^\/v1\/generate\/(.+)\/cancel$/.exec(url.pathname)?.[1]
    if (cancelled !== undefined) {
      const run = runs.find(({ request }) => request.request_id === decodeURIComponent(cancelled))
      if (run !== undefined && !run.ended) run.cancel()
      return Response.json({
        request_id: cancelled,
        ...(run?.told() ?? { usage: null, finish_reason: null }),
      })
    }
    if (url.pathname === '/v1/model') return Response.json(model)
    if (url.pathname === '/ready') return new Response(null, { status: backend.isReady ? 200 : 503 })
    if (url.pathname !== '/v1/generate') return new Response('not found', { status: 404 })
    const { run, body } = start(JSON.parse(init?.body as string) as GenerateRequest)
    init?.signal?.addEventListener('abort', () => {
      run.crash()
      run.cancelled = true
    })
    runs.push(run)
    void script(run)
    return new Response(body, { headers: { 'content-type': 'text/event-stream' } })
  })
  return backend
}

function start(request: GenerateRequest): { run: Run; body: ReadableStream<Uint8Array> } {
  let controller: ReadableStreamDefaultController<Uint8Array> | undefined
  let completion = 0
  let ended: FinishReason | null = null
  const usage = () => ({ prompt: request.token_ids.length, cached: 0, completion })
  const send = (event: object) =>
    controller?.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(event)}\n\n`))
  const run: Run = {
    request,
    cancelled: false,
    ended: false,
    tokens(...ids) {
      if (run.ended) return
      completion += ids.length
      send({ index: 0, token_ids: ids })
    },
    finish(reason = 'stop') {
      if (run.ended) return
      run.ended = true
      ended = reason
      send({
        index: 0,
        finish_reason: reason,
        usage: usage(),
        timing: { queue_ms: 1, prefill_ms: 2, decode_ms: 3 },
      })
      controller?.close()
    },
    crash() {
      run.ended = true
      controller?.error(new Error('connection reset'))
    },
    cancel: () => void (run.cancelled = true),
    told: () => ({ usage: usage(), finish_reason: ended ?? 'cancelled' }),
  }
  // Ends where its stream belongs: to whoever asks, it may be that of another object, or of one that is gone.
  const watch = setInterval(() => {
    if (!run.cancelled && !run.ended) return
    clearInterval(watch)
    run.finish('cancelled')
  }, 5)
  const body = new ReadableStream<Uint8Array>({
    start: (c) => void (controller = c),
    cancel: () => void (run.cancelled = run.ended = true),
  })
  return { run, body }
}
