/**
 * Between the engine, which never waits, and a client that may read slowly. While the reader keeps up it gets one event
 * per engine step; while its socket is full, tokens gather in one pending event. So what waits is at most the answer's
 * own tokens, never a growing list of encoded events.
 */
import type { ErrorBody } from '../src/errors.ts'
import { isFinish, type FinishEvent, type GenerateEvent, type TokensEvent } from '../src/protocol.ts'
import { encodeSse, sse_ping } from '../src/sse.ts'

export class EventQueue {
  #tokens: TokensEvent | null = null
  #end: FinishEvent | ErrorBody | null = null
  #ended = false
  #wake: (() => void) | null = null

  /** What comes after the last event is dropped: it can only be the echo of a cancellation. */
  push(event: GenerateEvent | ErrorBody): void {
    if (this.#ended) return
    if ('error' in event || isFinish(event)) {
      this.#end = event
      this.#ended = true
    } else if (this.#tokens === null) this.#tokens = event
    else this.#tokens = joined(this.#tokens, event)
    this.#wake?.()
  }

  /** Resolves when there is something to take; false when `signal` fired or `limit_ms` passed before. */
  async waited(options: { signal?: AbortSignal; limit_ms?: number } = {}): Promise<boolean> {
    const { signal, limit_ms } = options
    if (this.#hasEvent()) return true
    if (signal?.aborted === true) return false
    let timer: NodeJS.Timeout | undefined
    await new Promise<void>((resolve) => {
      this.#wake = resolve
      signal?.addEventListener('abort', () => resolve(), { once: true })
      if (limit_ms !== undefined) timer = setTimeout(resolve, limit_ms)
    })
    clearTimeout(timer)
    this.#wake = null
    return this.#hasEvent()
  }

  take(): TokensEvent | FinishEvent | ErrorBody | null {
    const event = this.#tokens ?? this.#end
    if (this.#tokens !== null) this.#tokens = null
    else this.#end = null
    return event
  }

  /** The error that came before any token, if one did: the answer's status can still tell it. */
  failure(): ErrorBody | null {
    return this.#tokens === null && this.#end !== null && 'error' in this.#end ? this.#end : null
  }

  #hasEvent(): boolean {
    return this.#tokens !== null || this.#end !== null
  }
}

const joined = (first: TokensEvent, next: TokensEvent): TokensEvent => {
  for (const id of next.token_ids) first.token_ids.push(id)
  if (next.logprobs !== undefined) (first.logprobs ??= []).push(...next.logprobs)
  return first
}

/** The queue as the body of an answer: pulled by the socket, a comment whenever it was silent for `heartbeat_ms`. */
export function eventStream(
  queue: EventQueue,
  heartbeat_ms: number,
  onGone: () => void,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        if (!(await queue.waited({ limit_ms: heartbeat_ms }))) {
          controller.enqueue(encoder.encode(sse_ping))
          return
        }
        const event = queue.take()
        if (event === null) return
        const data = JSON.stringify(event)
        controller.enqueue(
          encoder.encode('error' in event ? encodeSse({ event: 'error', data }) : `data: ${data}\n\n`),
        )
        if ('error' in event || isFinish(event)) controller.close()
      },
      cancel: onGone,
    },
    { highWaterMark: 0 },
  )
}
