import type { Context } from 'hono'
import { factory, type AppEnv } from '../app-env.ts'
import { countRequest, noteRequest } from './lease.ts'
import { limitHeaders, noLimits, notActive, refusal } from './limit-headers.ts'
import type { CountResult, Use } from './tenant-record.ts'

/** Counts the request under requests/min; a refusal is a 429 that names the limit. Hits and followers count too. */
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
  try {
    await next()
  } finally {
    const hit = c.var.cache?.status.startsWith('qwen-edge; hit') ?? false
    noteRequest(tenantId, tenant, use, hit, (work) => c.executionCtx.waitUntil(work))
  }
})

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
