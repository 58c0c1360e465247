/**
 * What holds for a tenant's kept answers: how long they live, and an epoch in every key. Purging changes the epoch, so
 * nothing has to be found to be forgotten. One Flights object of the tenant holds the truth; KV carries it to every
 * data centre and this isolate remembers it for five seconds. A purge is seen at once by the isolate that made it,
 * within 10 s in its data centre, within 60 s (KV) elsewhere.
 */
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { factory } from '../app-env.ts'
import { parse, parseJson } from '../../src/json-body.ts'
import { flightsOf } from '../flights/flight-names.ts'

export interface Policy {
  epoch: string
  /** null: RESULT_TTL_SECONDS. */
  ttl_s: number | null
}

export interface CachePolicy extends Policy {
  templates: Record<string, Policy>
}

export type PolicyChange = { template: string | null } & ({ purge: true } | { ttl_s: number | null })

const memory_ms = 5_000
const memory_entries_max = 10_000
const memory = new Map<string, { policy: CachePolicy; until: number }>()

export const noPolicy: CachePolicy = { epoch: '', ttl_s: null, templates: {} }
export const policyKey = (tenantId: string) => `policy:${tenantId}`

/** Throws what KV throws. */
export async function cachePolicy(env: Env, tenantId: string): Promise<CachePolicy> {
  const known = memory.get(tenantId)
  if (known && known.until > Date.now()) return known.policy
  const policy = (await env.RESULTS.get<CachePolicy>(policyKey(tenantId), 'json')) ?? noPolicy
  remember(tenantId, policy)
  return policy
}

/** The one for answers of this template, where one was used. */
export function policyFor(policy: CachePolicy, template: string | undefined): Policy {
  const own = template === undefined ? undefined : policy.templates[template]
  return {
    epoch: `${policy.epoch}/${own?.epoch ?? ''}`,
    ttl_s: own?.ttl_s ?? policy.ttl_s,
  }
}

export function changed(policy: CachePolicy, change: PolicyChange, epoch: string): CachePolicy {
  const part = 'purge' in change ? { epoch } : { ttl_s: change.ttl_s }
  if (change.template === null) return { ...policy, ...part }
  const own = policy.templates[change.template] ?? { epoch: '', ttl_s: null }
  return { ...policy, templates: { ...policy.templates, [change.template]: { ...own, ...part } } }
}

async function change(env: Env, tenantId: string, change: PolicyChange): Promise<void> {
  try {
    remember(tenantId, await flightsOf(env, tenantId, 0).changePolicy(tenantId, change))
  } catch (cause) {
    throw new ApiError('storage_unavailable', 'The cache cannot be changed at the moment. Try again.', {
      retryAfterS: 1,
      cause,
    })
  }
}

function remember(tenantId: string, policy: CachePolicy): void {
  if (memory.size >= memory_entries_max) memory.clear()
  memory.set(tenantId, { policy, until: Date.now() + memory_ms })
}

/** DELETE /v1/cache?template=ID|all */
export const purge = factory.createHandlers(async function purge(c) {
  const template = c.req.query('template') ?? 'all'
  await change(c.env, c.var.caller.tenantId, { template: template === 'all' ? null : template, purge: true })
  return c.body(null, 204)
})

const PolicyBody = z.strictObject({
  ttl_seconds: z.nullable(z.int().check(z.gte(0), z.lte(30 * 86_400))),
  template: z.optional(z.nullable(z.string().check(z.minLength(1), z.maxLength(128)))),
})

/** PATCH /v1/cache {ttl_seconds, template?}: for what is kept from now on; 0 keeps nothing, null the gateway's default. */
export const setLifetime = factory.createHandlers(async function setLifetime(c) {
  const { ttl_seconds: ttl_s, template = null } = parse(PolicyBody, parseJson(await c.req.text()))
  await change(c.env, c.var.caller.tenantId, { template, ttl_s })
  return c.json({ ttl_seconds: ttl_s, template })
})

/** DELETE /admin/cache?tenant=ID */
export const purgeTenant = factory.createHandlers(async function purgeTenant(c) {
  const tenant = c.req.query('tenant') ?? ''
  if (tenant === '') {
    throw new ApiError('invalid_value', 'Name the tenant: DELETE /admin/cache?tenant=ID.', {
      param: 'tenant',
    })
  }
  await change(c.env, tenant, { template: null, purge: true })
  return c.body(null, 204)
})
