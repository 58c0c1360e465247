/**
 * Between the engine, which never waits, and a client that may read slowly. While the reader keeps up it gets one event
 * per engine step and answer; while its socket is full, tokens gather in one pending event an answer. So what waits is
 * at most the answers' own tokens, never a growing list of encoded events.
 */
import type { ErrorBody } from '../src/errors.ts'
import { isFinish, type FinishEvent, type GenerateEvent, type TokensEvent } from '../src/protocol.ts'
import { encodeSse, sse_ping } from '../src/sse.ts'

export class EventQueue {
  /** By answer. */
  #tokens = new Map<number, TokensEvent>()
  #ends: (FinishEvent | ErrorBody)[] = []
  #open: number
  #wake: (() => void) | null = null

  /** @param answers finish events to come; an error ends all of them. */
  constructor(answers = 1) {
    this.#open = answers
  }

  /** What comes after the last event is dropped: it can only be the echo of a cancellation. */
  push(event: GenerateEvent | ErrorBody): void {
    if (this.#open === 0) return
    if ('error' in event || isFinish(event)) {
      this.#ends.push(event)
      this.#open = 'error' in event ? 0 : this.#open - 1
    } else {
      const before = this.#tokens.get(event.index)
      this.#tokens.set(event.index, before === undefined ? event : joined(before, event))
    }
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
    for (const [index, tokens] of this.#tokens) {
      this.#tokens.delete(index)
      return tokens
    }
    return this.#ends.shift() ?? null
  }

  /** Whether everything that will ever come was taken. */
  over(): boolean {
    return this.#open === 0 && !this.#hasEvent()
  }

  /** The error that came before any token, if one did: the answer's status can still tell it. */
  failure(): ErrorBody | null {
    const first = this.#ends[0]
    return this.#tokens.size === 0 && first !== undefined && 'error' in first ? first : null
  }

  #hasEvent(): boolean {
    return this.#tokens.size > 0 || this.#ends.length > 0
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
        if (queue.over()) controller.close()
      },
      cancel: onGone,
    },
    { highWaterMark: 0 },
  )
}
