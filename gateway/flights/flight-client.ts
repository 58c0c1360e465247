/** The gateway's side of a flight: joins it, reads its lines as deltas, and joins again when the object restarts. */
import { ApiError } from '../../src/errors.ts'
import { flightsOf, shardOf } from './flight-names.ts'
import type { TicketRecord } from './flight-store.ts'
import type { Flight, Line } from './flight.ts'
import { isFinishDelta, type Delta, type Deltas } from '../chat/answers.ts'
import type { Caller } from '../keys/identify.ts'
import type { Prompt } from '../chat/prompt.ts'

export interface FlightRequest {
  ticket: TicketRecord
  /** Requests of the same key share a flight; null: of this ticket alone. */
  key: string | null
  /** Of the answer kept under the key. */
  ttl_s: number
  /** How long ago a flight of the same key may have ended. */
  oldest_ms: number
  resumable: boolean
  /** Milliseconds since the epoch: until then it may be read again, where it is resumable. */
  expires: number
  prompt: Prompt
  caller: Caller
  /** What is known already of the answer, where an object has lost it. */
  lines: string[]
}

export interface Joined {
  deltas: Deltas
  /** This request is the one that started it. */
  started: boolean
  /** This request's limits hold less than it asked for. */
  capped: boolean
  headers: Record<string, string>
}

const rejoins_max = 3

/** @param signal aborted when this reader goes away. */
export async function joinFlight(env: Env, request: FlightRequest, signal: AbortSignal): Promise<Joined> {
  const open = async (lines: string[]) =>
    call(env, request.caller.tenantId, request.ticket.id, '/open', JSON.stringify({ ...request, lines }))
  const response = await open(request.lines)
  const started = response.headers.get('x-flight') === 'started'
  const headers = JSON.parse(response.headers.get('x-flight-headers') ?? '{}') as Record<string, string>
  const capped = response.headers.get('x-flight-capped') !== null
  return { deltas: read(response, open, signal), started, capped, headers }
}

export interface Attached {
  deltas: Deltas
  ticket: TicketRecord
  state: Flight['state']
}

/** An earlier request's answer from its start; null where there is none (any more). */
export async function attachToFlight(
  env: Env,
  tenantId: string,
  id: string,
  signal: AbortSignal,
): Promise<Attached | null> {
  const attach = async () => call(env, tenantId, id, `/attach?id=${id}`, null)
  const response = await attach()
  const ticket = response.headers.get('x-ticket')
  if (ticket !== null) {
    const state = response.headers.get('x-flight') as Flight['state']
    return { deltas: read(response, attach, signal), ticket: JSON.parse(ticket) as TicketRecord, state }
  }
  await response.body?.cancel()
  return null
}

async function call(
  env: Env,
  tenantId: string,
  id: string,
  path: string,
  body: string | null,
): Promise<Response> {
  const flights = flightsOf(env, tenantId, shardOf(id) ?? 0)
  try {
    return await flights.fetch(`http://flights${path}`, { method: body === null ? 'GET' : 'POST', body })
  } catch (cause) {
    throw lost(cause)
  }
}

/** @param again joins once more, with the lines that came. */
async function* read(
  first: Response,
  again: (lines: string[]) => Promise<Response>,
  signal: AbortSignal,
): Deltas {
  const known: Delta[] = []
  let response = first
  for (let rejoins = 0; ; rejoins++) {
    let at = 0
    try {
      for await (const batch of lines(response, signal)) {
        const fresh = batch.slice(Math.max(0, known.length - at))
        at += batch.length
        known.push(...fresh)
        if (fresh.length > 0) yield fresh
        if (fresh.some(isFinishDelta)) return
      }
    } catch (cause) {
      if (signal.aborted) throw new ApiError('request_cancelled', 'The caller went away.', { cause })
      if (!(cause instanceof Lost)) throw cause
      if (rejoins === rejoins_max) throw lost(cause)
    }
    response = await again(known.map((delta) => JSON.stringify(delta)))
  }
}

/** The object went away in the middle; what a flight itself says of its failure is no such case. */
class Lost extends Error {}

const lost = (cause: unknown) =>
  new ApiError('backend_unavailable', 'The answer was interrupted. Try again shortly.', {
    retryAfterS: 1,
    cause,
  })

async function* lines({ body }: Response, signal: AbortSignal): Deltas {
  if (body === null) throw new Lost('the object has no such answer')
  const reader = body.getReader()
  const decoder = new TextDecoder()
  let rest = ''
  let ended = false
  const leave = () => void reader.cancel().catch(() => undefined)
  signal.addEventListener('abort', leave)
  if (signal.aborted) leave()
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((cause: unknown) => {
        ended = true
        throw new Lost('the object went away', { cause })
      })
      if (done) {
        ended = true
        throw new Lost('the object ended its answer early')
      }
      const texts = (rest + decoder.decode(value, { stream: true })).split('\n')
      rest = texts.pop() ?? ''
      const batch: Delta[] = []
      for (const text of texts) {
        if (text === '') continue
        const line = JSON.parse(text) as Line
        if (line.type === 'error') {
          if (batch.length > 0) yield batch
          const { code, message, param } = line.error
          throw new ApiError(code, message, { headers: line.headers, ...(param === null ? {} : { param }) })
        }
        batch.push(line)
      }
      if (batch.length > 0) yield batch
      if (batch.some(isFinishDelta)) return
    }
  } finally {
    signal.removeEventListener('abort', leave)
    if (!ended) await reader.cancel().catch(() => undefined)
  }
}
