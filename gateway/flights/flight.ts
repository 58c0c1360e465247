/**
 * One generation and everybody who reads it. Its deltas are appended to one log; each reader walks that log at its own
 * pace from the first line, so a slow one holds back nobody and costs a position, not a buffer. The log is bounded:
 * requests that may outgrow it do not share a flight, one that does although it wants to be resumable fails by name.
 *
 * A reader belongs to a ticket: the id under which one request may be resumed or cancelled. When no reader is left the
 * generation is cancelled: at once, or after `grace_ms` where a ticket may come back. workerd notices a reader that has
 * gone when it writes to it, so a silent flight writes an empty line each `beat_ms`.
 */
import { ApiError, type ErrorBody } from '../../src/errors.ts'
import type { TokenUsage } from '../../src/protocol.ts'
import { isFinishDelta, type Delta } from '../chat/answers.ts'
import type { Prompt } from '../chat/prompt.ts'
import { within } from '../within.ts'

export const grace_ms = 30_000
/** Of one log: an isolate holds 128 MB, for many of them. */
export const log_chars_max = 8 * 1024 * 1024
const beat_ms = 1_000
const lines_max_per_read = 512

export interface Ticket {
  id: string
  /** May be read again after its reader went away. */
  resumable: boolean
  cancelled: boolean
  readers: number
}

/** The last line of a flight that failed. */
export interface ErrorLine {
  type: 'error'
  error: ErrorBody['error']
  headers: Record<string, string>
}

export type Line = Delta | ErrorLine

export const errorLine = (error: ApiError): ErrorLine => ({
  type: 'error',
  error: error.body().error,
  headers: error.headers,
})

/** Whether the longest answer to this fits the log: a line a token, each alternative of a token beside it. */
export function fitsLog({ sampling: { n, max_tokens, logprobs } }: Prompt): boolean {
  const token_chars = 128 + (logprobs === null ? 0 : 64 * (1 + logprobs))
  return n * max_tokens * token_chars <= log_chars_max
}

export class Flight {
  readonly key: string | null
  readonly tickets = new Map<string, Ticket>()
  readonly #abort = new AbortController()
  readonly #lines: string[] = []
  readonly #onGone: (ticket: string) => void
  #chars = 0
  #state: 'running' | 'done' | 'failed' = 'running'
  #changed = Promise.withResolvers<void>()
  #grace: number | null = null

  /** @param onGone called with a ticket that will not be read again. */
  constructor(key: string | null, lines: string[], onGone: (ticket: string) => void) {
    this.key = key
    this.#lines.push(...lines)
    this.#chars = lines.reduce((sum, line) => sum + line.length, 0)
    this.#onGone = onGone
  }

  get state(): 'running' | 'done' | 'failed' {
    return this.#state
  }

  get signal(): AbortSignal {
    return this.#abort.signal
  }

  get length(): number {
    return this.#lines.length
  }

  linesFrom(at: number): string[] {
    return this.#lines.slice(at)
  }

  /** null: it has not reached its end. */
  usage(): TokenUsage | null {
    const last = this.#state === 'done' ? (JSON.parse(this.#lines.at(-1) ?? 'null') as Line | null) : null
    return last?.type === 'finish' ? last.usage : null
  }

  push(deltas: Delta[]): void {
    for (const delta of deltas) {
      const line = JSON.stringify(delta)
      this.#lines.push(line)
      this.#chars += line.length
    }
    if (this.#chars > log_chars_max) return this.stop(tooLarge())
    if (deltas.some(isFinishDelta)) this.finish()
    this.#wake()
  }

  /** No more lines will come: the last one holds the finish. */
  finish(): void {
    this.#state = 'done'
    this.#stopGrace()
    this.#wake()
  }

  fail(error: ApiError): void {
    if (this.#state !== 'running') return
    this.#lines.push(JSON.stringify(errorLine(error)))
    this.#state = 'failed'
    this.#stopGrace()
    this.#wake()
  }

  ticket(id: string, resumable: boolean): Ticket {
    const known = this.tickets.get(id)
    if (known !== undefined) return known
    const ticket = { id, resumable, cancelled: false, readers: 0 }
    this.tickets.set(id, ticket)
    return ticket
  }

  /** Takes one ticket out; the generation stops when no other reads it, or may come back to it. */
  cancel(ticket: Ticket): void {
    ticket.cancelled = true
    this.#wake()
    this.#unread()
  }

  stop(why = cancelled()): void {
    if (this.#state !== 'running') return
    this.#abort.abort()
    this.fail(why)
  }

  /** NDJSON from the first line to the last. */
  read(ticket: Ticket): ReadableStream<Uint8Array> {
    const encoder = new TextEncoder()
    let at = 0
    let reading = true
    ticket.readers++
    this.#stopGrace()
    const leave = () => {
      if (!reading) return
      reading = false
      ticket.readers--
      this.#left(ticket)
    }
    return new ReadableStream<Uint8Array>(
      {
        pull: async (controller) => {
          const more = () => at < this.#lines.length || this.#state !== 'running' || ticket.cancelled
          if (!more()) await within(this.#changed.promise, beat_ms)
          if (ticket.cancelled && this.#state !== 'done') {
            controller.enqueue(encoder.encode(`${JSON.stringify(errorLine(cancelled()))}\n`))
            controller.close()
            return leave()
          }
          const lines = this.#lines.slice(at, at + lines_max_per_read)
          at += lines.length
          controller.enqueue(encoder.encode(`${lines.join('\n')}\n`))
          if (this.#state !== 'running' && at === this.#lines.length) {
            controller.close()
            leave()
          }
        },
        cancel: leave,
      },
      { highWaterMark: 0 },
    )
  }

  #left(ticket: Ticket): void {
    if (ticket.readers === 0 && !ticket.resumable) {
      this.tickets.delete(ticket.id)
      this.#onGone(ticket.id)
    }
    this.#unread()
  }

  /** Where nobody reads any more: stops, at once or when nobody has come back in time. */
  #unread(): void {
    if (this.#state !== 'running') return
    const tickets = [...this.tickets.values()].filter(({ cancelled }) => !cancelled)
    if (tickets.some(({ readers }) => readers > 0)) return
    if (tickets.length === 0) this.stop()
    else this.#grace ??= setTimeout(() => this.stop(), grace_ms)
  }

  #stopGrace(): void {
    if (this.#grace !== null) clearTimeout(this.#grace)
    this.#grace = null
  }

  #wake(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers<void>()
  }
}

const tooLarge = () =>
  new ApiError('response_too_large', `An answer that can be resumed may take ${log_chars_max} characters.`)
const cancelled = () => new ApiError('request_cancelled', 'The generation was cancelled.')
