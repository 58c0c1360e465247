/** Generations under their ids: read again from where a stream broke, or cancelled. */
import { ApiError } from '../../src/errors.ts'
import { lastEventId } from '../chat/answer-form.ts'
import { factory } from '../app-env.ts'
import { stop } from '../chat/backend.ts'
import { whileListening } from '../chat/chat.ts'
import { attachToFlight } from './flight-client.ts'
import { flightsOf, shardOf, wireId } from './flight-names.ts'
import type { Cancelled } from './flights.ts'
import { respond } from '../chat/respond.ts'

const notFound = (id: string) =>
  new ApiError(
    'not_found',
    `There is no generation '${id}' to read: it is over, or was not sent as resumable.`,
  )

/** GET /v1/generations/{id}/events, with Last-Event-ID: what came after it, live or stored. */
export const events = factory.createHandlers(async function events(c) {
  const id = c.req.param('id') ?? ''
  const after = lastEventId(c)
  const { signal, leave } = whileListening(c)
  const found = await attachToFlight(c.env, c.var.caller.tenantId, id, signal)
  if (found === null) throw notFound(id)
  const form = { ...found.ticket, generationId: id, stream: true, after }
  return respond(c, form, found.deltas, leave)
})

/**
 * DELETE /v1/generations/{id}: stops it for its caller, and the engine when nobody else reads it. One that was over is
 * left as it is and said to be `completed`, as OpenAI's responses.cancel gives the final state of what it cannot stop.
 */
export const cancelGeneration = factory.createHandlers(async function cancelGeneration(c) {
  const id = c.req.param('id') ?? ''
  const { tenantId } = c.var.caller
  const shard = shardOf(id)
  if (shard === undefined) throw notFound(id)
  const cancelled =
    shard === null ? await direct(c.env, tenantId, id) : await flightsOf(c.env, tenantId, shard).cancel(id)
  if (cancelled === null) throw notFound(id)
  return c.json({ id, object: 'generation', ...cancelled })
})

/** Without an object: the backend knows it, or nobody. */
async function direct(env: Env, tenantId: string, id: string): Promise<Cancelled | null> {
  const { usage, finish_reason } = await stop(env, wireId(tenantId, id))
  const status = finish_reason === 'stop' || finish_reason === 'length' ? 'completed' : 'cancelled'
  return usage === null ? null : { status, usage }
}
