import { ApiError } from '../src/errors.ts'
import { factory } from './app-env.ts'
import type { CountResult } from './tenant.ts'

/** Counts the request against the tenant's requests/min; a refusal is a 429 that names the limit. */
export const count = factory.createMiddleware(async function count(c, next) {
  const { tenantId } = c.var.caller
  let counted: CountResult
  try {
    counted = await c.env.TENANT.getByName(tenantId).count()
  } catch (cause) {
    throw new ApiError('storage_unavailable', 'Limits cannot be checked at the moment. Try again.', {
      retryAfterS: 1,
      cause,
    })
  }
  if (!counted.known) throw new ApiError('invalid_api_key', "This key's tenant no longer exists.")
  if (counted.verdict === null || counted.limit === null) return next()

  const { limit, verdict } = counted
  c.header('x-ratelimit-limit-requests', String(limit))
  c.header('x-ratelimit-remaining-requests', String(verdict.remaining))
  c.header('x-ratelimit-reset-requests', duration(verdict.reset_ms))
  c.header('ratelimit-policy', `"requests";q=${limit};w=60`)
  c.header('ratelimit', `"requests";r=${verdict.remaining};t=${Math.ceil(verdict.reset_ms / 1000)}`)
  if (!verdict.allowed) {
    const message = `Rate limit reached: ${limit} requests per minute. Try again in ${duration(verdict.retry_after_ms)}.`
    const headers = { 'retry-after-ms': String(Math.ceil(verdict.retry_after_ms)) }
    throw new ApiError('rate_limit_exceeded', message, {
      retryAfterS: verdict.retry_after_ms / 1000,
      headers,
    })
  }
  return next()
})

/** As OpenAI writes them: 250ms, 1.5s, 1m0s. */
export function duration(ms: number): string {
  if (ms < 1000) return `${Math.ceil(ms)}ms`
  const s = Math.ceil(ms / 100) / 10
  return s < 60 ? `${s}s` : `${Math.floor(s / 60)}m${Math.round((s % 60) * 10) / 10}s`
}
