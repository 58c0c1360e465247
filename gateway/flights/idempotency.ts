/**
 * Idempotency-Key: the first request with a key claims it for a day; a repeat gets the same answer, live or stored, and
 * never a second generation. The body is what it renders to, and `stream` no part of it, so
 * a retry may switch from a stream to JSON. Another body under the key is a 422. Only success is kept: after a failure a
 * repeat starts anew, under the same id, so that repeats at the same time still share one generation.
 */
import { ApiError } from '../../src/errors.ts'
import { factory } from '../app-env.ts'
import { whileListening } from '../chat/chat.ts'
import { attachToFlight } from './flight-client.ts'
import { flightsOf, shardOfText } from './flight-names.ts'
import { cacheKey, type CacheStatus } from '../cache/result-cache.ts'
import { respond } from '../chat/respond.ts'

const kept_ms = 24 * 60 * 60 * 1000

export const idempotency = factory.createMiddleware(async function idempotency(c, next) {
  const key = c.req.header('idempotency-key')
  if (key === undefined) return next()
  if (!/^[\x21-\x7e]{1,255}$/.test(key)) {
    throw new ApiError('invalid_value', 'Idempotency-Key takes 1 to 255 visible ASCII characters.', {
      param: 'idempotency-key',
    })
  }
  const { form, prompt } = c.var
  const { tenantId } = c.var.caller
  const body = await cacheKey(tenantId, '', prompt)
  const claimed = await flightsOf(c.env, tenantId, shardOfText(key))
    .claim(key, body, form.generationId, Date.now() + kept_ms)
    .catch((cause: unknown) => {
      throw new ApiError('storage_unavailable', 'Idempotency keys cannot be read at the moment. Try again.', {
        retryAfterS: 1,
        cause,
      })
    })
  if (claimed.body !== body) {
    throw new ApiError(
      'idempotency_conflict',
      'This Idempotency-Key was used with another body. Use a new key for a new request.',
      { param: 'idempotency-key' },
    )
  }
  const generationId = claimed.generation
  c.set('form', { ...form, generationId })
  c.set('resumable', true)
  c.set('idempotent', true)
  if (generationId === form.generationId) return next()

  const { signal, leave } = whileListening(c)
  const found = await attachToFlight(c.env, tenantId, generationId, signal)
  if (found === null || found.state === 'failed') {
    await found?.deltas.return(undefined)
    return next()
  }
  const { created } = found.ticket
  const rest_s = Math.max(0, Math.floor(created + kept_ms / 1000 - Date.now() / 1000))
  const status: CacheStatus =
    found.state === 'done' ? `qwen-edge; hit; ttl=${rest_s}` : 'qwen-edge; fwd=miss; collapsed'
  c.set('cache', { key: null, ttl_s: 0, oldest_s: 0, fresh: false, status })
  return respond(c, { ...c.var.form, created }, found.deltas, leave)
})
