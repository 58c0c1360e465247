/**
 * An answer as a response, JSON or SSE (its form: openai-answer.ts). The first delta is awaited before the 200 is
 * committed, so a failure until then has its status; after it a failure is a last SSE event named `error`.
 *
 * workerd learns that a client has gone only by writing to it. So nobody waits long in silence: a stream whose first
 * token takes longer than `stream_patience_ms` begins with comments, a JSON answer that takes longer than
 * `json_patience_ms` (at most twice that) after its first token, or whose first takes longer than `json_first_ms`, begins with white space,
 * which JSON allows in front. What fails after that can no longer have a status: a stream gets its `error` event, a
 * JSON answer's connection breaks, which clients retry.
 */
import type { Context } from 'hono'
import { ApiError } from '../../src/errors.ts'
import { encodeSse, sse_ping } from '../../src/sse.ts'
import type { AnswerForm } from './answer-form.ts'
import type { AppEnv } from '../app-env.ts'
import { late, within } from '../within.ts'
import { isFinishDelta, type Delta, type Deltas } from './answers.ts'
import { ChunkWriter, completion } from './openai-answer.ts'
import { PacedWriter } from './paced-writer.ts'

const heartbeat_ms = 10_000
const stream_patience_ms = 1_000
const json_first_ms = 5_000
const json_patience_ms = 1_000
/** While a client waits for a first token, or for JSON. */
const beat_ms = 500

/** @param abort called when the caller goes away before the end. */
export async function respond(
  c: Context<AppEnv>,
  form: AnswerForm,
  deltas: Deltas,
  abort: () => void = () => undefined,
): Promise<Response> {
  const { cache } = c.var as Partial<typeof c.var>
  if (cache !== undefined) c.header('cache-status', cache.status)
  const begun = () => {
    if (cache?.stored === true) c.header('cache-status', `${cache.status}; stored`)
  }
  c.header('x-generation-id', form.generationId)
  const first = deltas.next()
  if (!form.stream) {
    const answer = first.then((item) => completion(form, item, deltas))
    const soon = c.var.unattended === true ? await answer : await patiently(first, answer)
    begun()
    if (soon !== late) return c.json(soon)
    return c.body(patientJson(answer, abort), 200, { 'content-type': 'application/json' })
  }
  const writer = new ChunkWriter(form)
  const opening = open(writer, first, deltas)
  const opened = await within(opening, stream_patience_ms)
  begun()
  // To a browser's EventSource any other end is a reason to come back.
  if (opened !== late && opened.text === '') return c.body(null, 204)
  c.header('content-type', 'text/event-stream; charset=utf-8')
  c.header('cache-control', 'no-cache, no-transform')
  c.header('x-accel-buffering', 'no')
  const out = new PacedWriter(abort)
  c.executionCtx.waitUntil(writeEvents(out, writer, { opening, deltas, silent: opened === late }))
  return c.body(out.readable, 200)
}

/** Most answers come before the first timer ends. */
async function patiently<T>(first: Promise<unknown>, answer: Promise<T>): Promise<T | typeof late> {
  const soon = await within(answer, json_patience_ms)
  if (soon !== late) return soon
  await within(first, json_first_ms - json_patience_ms)
  return within(answer, json_patience_ms)
}

function patientJson(answer: Promise<unknown>, abort: () => void): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const done = await within(answer, beat_ms)
        controller.enqueue(encoder.encode(done === late ? ' ' : JSON.stringify(done)))
        if (done !== late) controller.close()
      },
      cancel: abort,
    },
    { highWaterMark: 0 },
  )
}

interface Opening {
  /** Empty: the caller has all of the answer already. */
  text: string
  isOver: boolean
}

/** Up to the first event that the caller has not. Throws where it cannot have what it says it has. */
async function open(
  writer: ChunkWriter,
  first: Promise<IteratorResult<Delta[]>>,
  deltas: Deltas,
): Promise<Opening> {
  try {
    for (let item = first; ; item = deltas.next()) {
      const { done, value } = await item
      if (done === true) throw endedEarly()
      const text = writer.chunks(value)
      const isOver = value.some(isFinishDelta)
      if (isOver && text === '') await deltas.return(undefined)
      if (isOver || text !== '') return { text, isOver }
    }
  } catch (cause) {
    await deltas.return(undefined)
    throw cause
  }
}

/** @param silent what comes first is late: the client hears of it. */
async function writeEvents(
  out: PacedWriter,
  writer: ChunkWriter,
  { opening, deltas, silent }: { opening: Promise<Opening>; deltas: Deltas; silent: boolean },
): Promise<void> {
  if (silent) out.beat(sse_ping, beat_ms)
  try {
    let { text, isOver } = await opening
    out.beat(sse_ping, heartbeat_ms)
    for (;;) {
      out.add(text)
      if (out.gone || isOver) break
      if (out.full) await out.room()
      const { done, value } = await deltas.next()
      if (done === true) throw endedEarly()
      text = writer.chunks(value)
      isOver = value.some(isFinishDelta)
    }
    await deltas.return(undefined)
  } catch (cause) {
    const error =
      cause instanceof ApiError ? cause : new ApiError('internal_error', 'The answer broke off.', { cause })
    out.add(encodeSse({ event: 'error', data: JSON.stringify(error.body()) }))
  }
  await out.end()
}

const endedEarly = () => new ApiError('internal_error', 'The answer ended without a finish.')
