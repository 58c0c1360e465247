/**
 * Stands where the backend would, and answers each request by one value: what is admitted and billed needs no more. What
 * happens step by step, while others look on, is told by a script: scripted-backend.ts.
 */
import { afterEach, beforeEach, vi } from 'vitest'
import { ApiError, type ErrorCode } from '../../src/errors.ts'
import type { GenerateRequest, TokenUsage } from '../../src/protocol.ts'

export interface FakeBackend {
  requests: GenerateRequest[]
  cancelled: string[]
  /** What a generation answers; its usage is also what a later cancel says. */
  answer: (request: GenerateRequest) => Answer
  /** What cancel says; undefined: the usage of the finish, if there was one. */
  usage: TokenUsage | null | undefined
}

export interface Answer {
  status?: number
  /** Said with the status. */
  code?: ErrorCode
  tokens?: number[]
  usage?: TokenUsage
  /** Awaited before the first token, and before the finish. */
  before?: Promise<unknown>
  hold?: Promise<unknown>
  /** How it ends: by a finish, or the stream breaks. */
  broken?: boolean
}

export function fakeBackend(): FakeBackend {
  const fake: FakeBackend = { requests: [], cancelled: [], answer: () => ({}), usage: undefined }
  const finished = new Map<string, TokenUsage>()
  beforeEach(() => {
    Object.assign(fake, { requests: [], cancelled: [], answer: () => ({}), usage: undefined })
    vi.stubGlobal('fetch', async (url: string, init: RequestInit) => {
      const cancelled = /generate\/([^/]+)\/cancel$/.exec(url)?.[1]
      if (cancelled !== undefined) {
        fake.cancelled.push(cancelled)
        const usage = fake.usage === undefined ? (finished.get(cancelled) ?? null) : fake.usage
        return Response.json({ request_id: cancelled, usage })
      }
      const request = JSON.parse(init.body as string) as GenerateRequest
      fake.requests.push(request)
      const { status = 200, code, tokens = [1000, 1001], usage, before, hold, broken } = fake.answer(request)
      await before
      if (code !== undefined) return Response.json(new ApiError(code, 'refused').body(), { status })
      if (status !== 200) return new Response('broken', { status })
      const used = usage ?? { prompt: request.token_ids.length, cached: 0, completion: tokens.length }
      const reason = tokens.length < (request.sampling.max_tokens ?? Infinity) ? 'stop' : 'length'
      const signal = init.signal ?? new AbortController().signal
      return new Response(body(request.request_id, tokens, reason, used, signal, hold, broken))
    })
  })
  afterEach(() => vi.unstubAllGlobals())

  function body(
    id: string,
    tokens: number[],
    finish_reason: string,
    usage: TokenUsage,
    signal: AbortSignal,
    hold?: Promise<unknown>,
    broken?: boolean,
  ) {
    const event = (data: unknown) => new TextEncoder().encode(`data: ${JSON.stringify(data)}\n\n`)
    const timing = { queue_ms: 0, prefill_ms: 0, decode_ms: 0 }
    return new ReadableStream({
      async start(controller) {
        signal.addEventListener('abort', () => controller.error(signal.reason))
        for (const token of tokens) controller.enqueue(event({ index: 0, token_ids: [token] }))
        await hold
        if (signal.aborted) return
        // An error overtakes what waits in the queue.
        if (broken === true) await scheduler.wait(50)
        if (broken === true) return controller.error(new Error('the backend died'))
        finished.set(id, usage)
        controller.enqueue(event({ index: 0, finish_reason, usage, timing }))
        controller.close()
      },
    })
  }
  return fake
}
