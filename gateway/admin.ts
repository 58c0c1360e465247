/** The operator's API: tenants and their keys. Its own token, never a tenant's key. */
import { Hono } from 'hono'
import * as z from 'zod/mini'
import { ApiError } from '../src/errors.ts'
import { keyPrefix, makeKey } from '../src/keys.ts'
import type { AppEnv } from './app-env.ts'
import { adminAuth } from './auth.ts'
import { invalid, parseJson } from './chat-request.ts'
import { directoryOf, hashKey } from './identify.ts'
import { operatorTemplates } from './template-routes.ts'

const Limits = z.object({ requests_per_minute: z.optional(z.nullable(z.int().check(z.gte(1)))) })
const Name = z.string().check(z.minLength(1), z.maxLength(200))
const NewTenant = z.strictObject({ name: Name, limits: z.optional(Limits) })
const TenantChange = z.strictObject({ name: z.optional(Name), limits: z.optional(Limits) })
const NewKey = z.strictObject({
  name: Name,
  scopes: z.optional(z.nullable(z.array(z.string()))),
  models: z.optional(z.nullable(z.array(z.string()))),
  expires_at: z.optional(z.nullable(z.int())),
})

export const admin = new Hono<AppEnv>()
  .use(adminAuth)
  .route('/templates', operatorTemplates)
  .post('/tenants', async (c) => {
    const asked = await body(c.req, NewTenant)
    const id = `ten_${crypto.randomUUID().replaceAll('-', '')}`
    const limits = { requests_per_minute: asked.limits?.requests_per_minute ?? null }
    return c.json(
      await c.env.TENANT.getByName(id).create({ id, name: asked.name, limits, created: nowS() }),
      201,
    )
  })
  .get('/tenants/:id', async (c) => c.json(found(await c.env.TENANT.getByName(c.req.param('id')).get())))
  .patch('/tenants/:id', async (c) => {
    const { name, limits } = await body(c.req, TenantChange)
    const change = {
      ...(name === undefined ? {} : { name }),
      ...(limits?.requests_per_minute === undefined
        ? {}
        : { limits: { requests_per_minute: limits.requests_per_minute } }),
    }
    return c.json(found(await c.env.TENANT.getByName(c.req.param('id')).update(change)))
  })
  .post('/tenants/:id/keys', async (c) => {
    const asked = await body(c.req, NewKey)
    const tenant = c.env.TENANT.getByName(c.req.param('id'))
    const { id: tenant_id } = found(await tenant.get())
    const key = makeKey(c.env.ENVIRONMENT === 'production' ? 'live' : 'test')
    const hash = await hashKey(c.env.KEY_PEPPER, key)
    const id = `key_${crypto.randomUUID().replaceAll('-', '')}`
    const { name, scopes = null, models = null, expires_at = null } = asked
    await tenant.addKey({ id, hash, prefix: keyPrefix(key), name, created: nowS() })
    await directoryOf(c.env, hash).put(hash, { id, tenant_id, name, scopes, models, expires_at })
    return c.json({ id, key, prefix: keyPrefix(key), name, tenant_id, scopes, models, expires_at }, 201)
  })
  .get('/tenants/:id/keys', async (c) => {
    const tenant = c.env.TENANT.getByName(c.req.param('id'))
    found(await tenant.get())
    const keys = await tenant.keys()
    return c.json({ data: keys.map(({ id, prefix, name, created }) => ({ id, prefix, name, created })) })
  })
  .delete('/tenants/:id/keys/:key', async (c) => {
    const key = found(await c.env.TENANT.getByName(c.req.param('id')).removeKey(c.req.param('key')))
    await Promise.all([directoryOf(c.env, key.hash).delete(key.hash), c.env.KEYS.delete(key.hash)])
    return c.body(null, 204)
  })

const nowS = () => Math.floor(Date.now() / 1000)

async function body<T extends z.core.$ZodType>(
  req: { text(): Promise<string> },
  schema: T,
): Promise<z.core.output<T>> {
  const parsed = z.safeParse(schema, parseJson(await req.text()))
  if (!parsed.success) throw invalid(parsed.error.issues[0])
  return parsed.data
}

function found<T>(value: T | null): T {
  if (value === null) throw new ApiError('not_found', 'There is nothing under this id.')
  return value
}
