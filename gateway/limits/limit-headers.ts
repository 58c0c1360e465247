/**
 * What an answer says of its caller's limits: x-ratelimit-* as OpenAI writes them, and RateLimit/RateLimit-Policy
 * (draft-ietf-httpapi-ratelimit-headers). A refusal names the limit that fired and when the same request would fit.
 */
import { ApiError } from '../../src/errors.ts'
import type { Denial, LimitName } from './limits.ts'
import type { Snapshot } from './tenant-record.ts'

export function limitHeaders({ requests, tokens }: Snapshot): Record<string, string> {
  const headers: Record<string, string> = {}
  const policies: string[] = []
  const states: string[] = []
  for (const [name, state] of [
    ['requests', requests],
    ['tokens', tokens],
  ] as const) {
    if (state === null) continue
    headers[`x-ratelimit-limit-${name}`] = String(state.limit)
    headers[`x-ratelimit-remaining-${name}`] = String(state.remaining)
    const reset_ms = Math.min(state.reset_ms, minute_ms)
    headers[`x-ratelimit-reset-${name}`] = duration(reset_ms)
    policies.push(`"${name}";q=${state.limit};w=60`)
    states.push(`"${name}";r=${state.remaining};t=${Math.ceil(reset_ms / 1000)}`)
  }
  if (policies.length === 0) return headers
  return { ...headers, 'ratelimit-policy': policies.join(', '), ratelimit: states.join(', ') }
}

const wording: Record<LimitName, { one: string; many: string }> = {
  requests_per_minute: { one: 'request per minute', many: 'requests per minute' },
  tokens_per_minute: { one: 'token per minute', many: 'tokens per minute' },
  concurrent: { one: 'concurrent generation', many: 'concurrent generations' },
  tokens_per_day: { one: 'token per day', many: 'tokens per day' },
  tokens_per_month: { one: 'token per month', many: 'tokens per month' },
}
const worded = ({ limit, value }: Denial) => `${value} ${wording[limit][value === 1 ? 'one' : 'many']}`

const minute_ms = 60_000
/** The window forgets in whole slots, and leases lie a second ahead in it: until it is sure to fit may take a little more than a minute. */
const wait = ({ limit, retry_after_ms }: Denial) =>
  limit.endsWith('_per_minute') ? Math.min(retry_after_ms, minute_ms) : retry_after_ms

const owner: Record<Denial['scope'], string> = {
  tenant: 'tenant',
  key: 'key',
  model: "tenant's use of this model",
}

export function refusal(denial: Denial): ApiError {
  const { limit, scope } = denial
  const retry_after_ms = wait(denial)
  const again = `Try again in ${duration(retry_after_ms)}.`
  return new ApiError(
    'rate_limit_exceeded',
    `Rate limit reached: ${worded(denial)} for this ${owner[scope]} (${limit}). ${again}`,
    {
      param: limit,
      retryAfterS: retry_after_ms / 1000,
      headers: { 'retry-after-ms': String(Math.ceil(retry_after_ms)) },
    },
  )
}

export const tooLarge = (denial: Denial, asked: number): ApiError =>
  new ApiError(
    'limit_below_request',
    `Prompt and max_tokens are ${asked} tokens; this ${owner[denial.scope]} may use ${worded(denial)} (${denial.limit}). Ask for less.`,
    { param: 'max_tokens' },
  )

export const noLimits = (cause: unknown): ApiError =>
  new ApiError('storage_unavailable', 'Limits cannot be checked at the moment. Try again.', {
    retryAfterS: 1,
    cause,
  })

export const notActive = (standing: 'suspended' | 'unknown'): ApiError =>
  standing === 'suspended'
    ? new ApiError('tenant_suspended', 'This tenant is suspended: ask your operator.')
    : new ApiError('invalid_api_key', 'This API key, or its tenant, no longer exists.')

/** As OpenAI writes them: 250ms, 1.5s, 1m0s, 3h0m0s. */
export function duration(ms: number): string {
  if (ms < 1000) return `${Math.ceil(ms)}ms`
  const s = Math.ceil(ms / 100) / 10
  if (s < 60) return `${s}s`
  const minutes = `${Math.floor(s / 60) % 60}m${Math.round((s % 60) * 10) / 10}s`
  return s < 3600 ? minutes : `${Math.floor(s / 3600)}h${minutes}`
}
