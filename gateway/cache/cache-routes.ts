/** Purging what is kept, and for how long it is: by the tenant over /v1/cache, by the operator over /admin/cache. */
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { parse, parseJson } from '../../src/json-body.ts'
import { bodyText } from '../body-text.ts'
import { factory } from '../app-env.ts'
import { flightsOf } from '../flights/flight-names.ts'
import { found } from '../found.ts'
import { isTenantId } from '../limits/tenant-record.ts'
import { templatesOf } from '../templates/template-use.ts'
import { late, within } from '../within.ts'
import { rememberPolicy, templates_max, type CachePolicy, type PolicyChange } from './cache-policy.ts'

/** KV may refuse a few times before it takes a write. */
const change_ms_max = 6_000

async function change(env: Env, tenantId: string, change: PolicyChange): Promise<void> {
  const work: Promise<CachePolicy | 'full' | 'late'> = flightsOf(env, tenantId, 0).changePolicy(
    tenantId,
    change,
  )
  const policy = await within(work, change_ms_max).catch((): typeof late => late)
  if (policy === late || policy === 'late')
    throw new ApiError('storage_unavailable', 'The cache could not be changed everywhere. Try again.', {
      retryAfterS: 1,
    })
  if (policy === 'full')
    throw new ApiError('conflict', `${templates_max} templates have a lifetime of their own; take one back.`)
  rememberPolicy(tenantId, policy)
}

/** A name that is no template's would be kept for nothing, and a typo purge nothing. */
async function known(env: Env, tenantId: string, template: string): Promise<string> {
  const there = async () => (await templatesOf(env, tenantId, template).get(template)) !== null
  if (/^tpl_\w{1,100}$/.test(template) && (await there())) return template
  throw new ApiError('not_found', 'There is no such template here.', { param: 'template' })
}

/** DELETE /v1/cache?template=ID|all, all where nothing is said. */
export const purge = factory.createHandlers(async function purge(c) {
  const { tenantId } = c.var.caller
  for (const param of Object.keys(c.req.query()))
    if (param !== 'template' && param !== 'all')
      throw new ApiError('invalid_value', 'Say ?template=ID, or ?template=all.', { param })
  const asked = c.req.query('template') ?? 'all'
  const template = asked === 'all' ? null : await known(c.env, tenantId, asked)
  await change(c.env, tenantId, { template, purge: true })
  return c.body(null, 204)
})

const Lifetime = z.strictObject({
  ttl_seconds: z.nullable(z.int().check(z.gte(0), z.lte(30 * 86_400))),
  template: z.optional(z.nullable(z.string())),
})

/** PATCH /v1/cache {ttl_seconds, template?}: for what is kept from now on; 0 keeps nothing, null the gateway's default. */
export const setLifetime = factory.createHandlers(async function setLifetime(c) {
  const { tenantId } = c.var.caller
  const { ttl_seconds: ttl_s, template: asked = null } = parse(Lifetime, parseJson(await bodyText(c.req)))
  const template = asked === null ? null : await known(c.env, tenantId, asked)
  await change(c.env, tenantId, { template, ttl_s })
  return c.json({ ttl_seconds: ttl_s, template })
})

/** DELETE /admin/cache?tenant=ID */
export const purgeTenant = factory.createHandlers(async function purgeTenant(c) {
  const tenant = c.req.query('tenant') ?? ''
  if (!isTenantId(tenant))
    throw new ApiError('invalid_value', 'Name the tenant by its id: DELETE /admin/cache?tenant=ten_....', {
      param: 'tenant',
    })
  found(await c.env.TENANT.getByName(tenant).get(), `There is no tenant '${tenant}'.`)
  await change(c.env, tenant, { template: null, purge: true })
  return c.body(null, 204)
})
