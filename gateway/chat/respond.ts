/**
 * An answer as a response, JSON or SSE (its form: openai-answer.ts). The first delta is awaited before the 200 is
 * committed, so a failure until then has its status; after it a failure is a last SSE event named `error`.
 *
 * workerd learns that a client has gone only by writing to it. So nobody waits long in silence: a stream whose first
 * token takes longer than `stream_patience_ms` begins with comments, a JSON answer that takes longer than
 * `json_patience_ms` after its first token, or whose first takes longer than `json_first_ms`, begins with white space,
 * which JSON allows in front. What fails after that can no longer have a status: a stream gets its `error` event, a
 * JSON answer's connection breaks, which clients retry.
 */
import type { Context } from 'hono'
import { ApiError } from '../../src/errors.ts'
import { encodeSse, sse_ping } from '../../src/sse.ts'
import type { AnswerForm } from './answer-form.ts'
import type { AppEnv } from '../app-env.ts'
import { isFinishDelta, type Delta, type Deltas } from './answers.ts'
import { ChunkWriter, completion } from './openai-answer.ts'

const heartbeat_ms = 10_000
const stream_patience_ms = 1_000
const json_first_ms = 5_000
const json_patience_ms = 1_000
/** While a client waits for a first token, or for JSON. */
const beat_ms = 500
/** A write costs more than all that leads to it: what comes this soon after one goes into the next. */
const write_gap_ms = 2

/** @param abort called when the caller goes away before the end. */
export async function respond(
  c: Context<AppEnv>,
  form: AnswerForm,
  deltas: Deltas,
  abort: () => void = () => undefined,
): Promise<Response> {
  const { cache } = c.var as Partial<typeof c.var>
  if (cache !== undefined) c.header('cache-status', cache.status)
  c.header('x-generation-id', form.generationId)
  const first = deltas.next()
  if (!form.stream) {
    await within(first, json_first_ms)
    const answer = first.then((item) => completion(form, item, deltas))
    const soon = c.var.unattended === true ? await answer : await within(answer, json_patience_ms)
    if (soon !== 'silent') return c.json(soon)
    return c.body(patientJson(answer, abort), 200, { 'content-type': 'application/json' })
  }
  await within(first, stream_patience_ms)
  c.header('content-type', 'text/event-stream; charset=utf-8')
  c.header('cache-control', 'no-cache, no-transform')
  c.header('x-accel-buffering', 'no')
  return c.body(eventStream(new ChunkWriter(form), first, deltas, abort), 200)
}

function patientJson(answer: Promise<unknown>, abort: () => void): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const done = await within(answer, beat_ms)
        controller.enqueue(encoder.encode(done === 'silent' ? ' ' : JSON.stringify(done)))
        if (done !== 'silent') controller.close()
      },
      cancel: abort,
    },
    { highWaterMark: 0 },
  )
}

function eventStream(
  writer: ChunkWriter,
  first: Promise<IteratorResult<Delta[]>>,
  deltas: Deltas,
  abort: () => void,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  let next: Promise<IteratorResult<Delta[]>> | null = first

  /** Resolves when the next piece may be written. */
  let gap: Promise<unknown> = Promise.resolve()

  /** The next piece of the body that is not empty: what came since the last one. */
  async function piece(): Promise<{ text: string; last: boolean }> {
    let text = ''
    try {
      for (;;) {
        next ??= deltas.next()
        const item = await (text === ''
          ? within(next, next === first ? beat_ms : heartbeat_ms)
          : Promise.race([next, gap.then(due)]))
        if (item === 'due') break
        if (item === 'silent') return { text: sse_ping, last: false }
        if (item.done === true) throw new ApiError('internal_error', 'The answer ended without a finish.')
        next = null
        text += writer.chunks(item.value)
        if (item.value.some(isFinishDelta)) return { text, last: true }
      }
    } catch (cause) {
      // What came before a failure is written first.
      if (text === '') throw cause
    }
    gap = scheduler.wait(write_gap_ms)
    return { text, last: false }
  }

  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { text, last } = await piece()
          controller.enqueue(encoder.encode(text))
          if (!last) return
          await deltas.return(undefined)
        } catch (cause) {
          const error =
            cause instanceof ApiError
              ? cause
              : new ApiError('internal_error', 'The answer broke off.', { cause })
          controller.enqueue(
            encoder.encode(encodeSse({ event: 'error', data: JSON.stringify(error.body()) })),
          )
        }
        controller.close()
      },
      async cancel() {
        abort()
        await deltas.return(undefined)
      },
    },
    { highWaterMark: 0 },
  )
}

const due = () => 'due' as const

async function within<T>(work: Promise<T>, ms: number): Promise<T | 'silent'> {
  let timer: number | null = null
  const silence = new Promise<'silent'>((resolve) => {
    timer = setTimeout(() => resolve('silent'), ms)
  })
  try {
    return await Promise.race([work, silence])
  } finally {
    clearTimeout(timer)
  }
}
