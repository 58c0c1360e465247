/** Generations under their ids: read again from where a stream broke, or cancelled. */
import { ApiError } from '../../src/errors.ts'
import type { TokenUsage } from '../../src/protocol.ts'
import { lastEventId } from '../chat/answer-form.ts'
import { factory } from '../app-env.ts'
import { cancel } from '../chat/backend.ts'
import { whileListening } from '../chat/chat.ts'
import { attachToFlight } from './flight-client.ts'
import { flightsOf, shardOf, wireId } from './flight-names.ts'
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

/** DELETE /v1/generations/{id}: stops it for its caller, and the engine when nobody else reads it. */
export const cancelGeneration = factory.createHandlers(async function cancelGeneration(c) {
  const id = c.req.param('id') ?? ''
  const { tenantId } = c.var.caller
  const shard = shardOf(id)
  if (shard === undefined) throw notFound(id)
  const cancelled =
    shard === null ? await direct(c.env, tenantId, id) : await flightsOf(c.env, tenantId, shard).cancel(id)
  if (cancelled === null) throw notFound(id)
  const { usage } = cancelled
  return c.json({ id, object: 'generation', status: 'cancelled', usage })
})

/** Without an object: the backend knows it, or nobody. */
async function direct(env: Env, tenantId: string, id: string): Promise<{ usage: TokenUsage } | null> {
  const usage = await cancel(env, wireId(tenantId, id))
  return usage === null ? null : { usage }
}
