import type { Context } from 'hono'
import { ApiError, type ErrorCode } from '../../src/errors.ts'
import { factory, type AppEnv } from '../app-env.ts'
import { countRequest, noteRequest } from './lease.ts'
import { limitHeaders, noLimits, notActive, refusal } from './limit-headers.ts'
import type { CountResult, Use } from './tenant-record.ts'

/**
 * Counts the request under requests/min; a refusal is a 429 that names the limit. Hits and followers count too. Usage
 * counts no request that was refused: by this limit, by others further on, or because a queue was full.
 */
export const count = factory.createMiddleware(async function count(c, next) {
  const { tenantId, keyId } = c.var.caller
  const tenant = c.env.TENANT.getByName(tenantId)
  const use: Use = { key_id: keyId, model: c.var.chat.model, template: c.var.prompt.template?.id ?? '' }
  let counted: CountResult
  try {
    counted = await countRequest(tenantId, tenant, use)
  } catch (cause) {
    throw noLimits(cause)
  }
  if (counted.standing !== 'active') throw notActive(counted.standing)
  for (const [name, value] of Object.entries(limitHeaders(counted.snapshot))) c.header(name, value)
  if (counted.denial !== null) throw refusal(counted.denial)
  await next()
  if (c.error instanceof ApiError && refusals.has(c.error.code)) return
  const hit = c.var.cache?.status.startsWith('qwen-edge; hit') ?? false
  noteRequest(tenantId, tenant, use, hit, (work) => c.executionCtx.waitUntil(work))
})

const refusals: ReadonlySet<ErrorCode> = new Set([
  'rate_limit_exceeded',
  'limit_below_request',
  'queue_full',
  'tenant_suspended',
  'invalid_api_key',
])

/** For routes that count nothing: whether key and tenant still stand, and what is left. */
export const standing = factory.createMiddleware(async function standing(c, next) {
  await requireStanding(c)
  await next()
})

export async function requireStanding(c: Context<AppEnv>): Promise<void> {
  const { tenantId, keyId } = c.var.caller
  const tenant = c.env.TENANT.getByName(tenantId)
  let found
  try {
    found = await tenant.look(keyId)
  } catch (cause) {
    throw noLimits(cause)
  }
  if (found.standing !== 'active') throw notActive(found.standing)
  for (const [name, value] of Object.entries(limitHeaders(found.snapshot))) c.header(name, value)
}
