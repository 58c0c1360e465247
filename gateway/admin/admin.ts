/**
 * The operator's API: tenants and their keys. Its own token, never a tenant's key. Every write is in the audit log, of
 * which it is part: it is written before the answer.
 */
import { Hono, type Context } from 'hono'
import { ApiError } from '../../src/errors.ts'
import { keyPrefix, makeKey } from '../../src/keys.ts'
import { found } from '../found.ts'
import { numberedCursor, pageSize } from '../list-query.ts'
import { given, NewKey, NewTenant, readBody, Rotation, TenantChange } from './admin-bodies.ts'
import { factory, type AppEnv } from '../app-env.ts'
import { adminAuth } from '../keys/auth.ts'
import { directoryOf, forgetKey, hashKey } from '../keys/identify.ts'
import { unlimited, type Limits } from '../limits/limits.ts'
import { hasExpired, keys_max, new_tenant } from '../limits/tenant.ts'
import { operatorTemplates } from '../templates/template-routes.ts'
import { isTenantId, type TenantKey } from '../limits/tenant-record.ts'
import { operatorUsage } from '../limits/usage.ts'

type C = Context<AppEnv>

export const admin = new Hono<AppEnv>()
  .use(adminAuth)
  .use('/templates/*', audited('template'))
  .route('/templates', operatorTemplates)
  .post('/tenants', async (c) => {
    const asked = await readBody(c.req, NewTenant)
    const { model_limits = {}, limits = {}, ...rest } = given(asked)
    const record = {
      ...new_tenant,
      ...rest,
      id: `ten_${randomId()}`,
      limits: { ...unlimited, ...given(limits) },
      model_limits: modelLimits(model_limits),
      created: nowS(),
    }
    await registryOf(c).add(record.id)
    await c.env.TENANT.getByName(record.id).create(record)
    await audit(c, 'tenant.create', record.id, '', asked)
    return c.json(record, 201)
  })
  .get('/tenants', async (c) => {
    const { data, next_cursor } = await registryOf(c).tenants(numberedCursor(c) ?? 0, pageSize(c))
    const records = await Promise.all(data.map((id) => c.env.TENANT.getByName(id).get()))
    return c.json({ data: records.filter((record) => record !== null), next_cursor })
  })
  .get('/tenants/:id', async (c) => {
    const record = found(await tenantOf(c).get())
    return c.json({ ...record, settled: await tenantOf(c).settled() })
  })
  .patch('/tenants/:id', async (c) => {
    const asked = await readBody(c.req, TenantChange)
    const { limits, model_limits, ...rest } = given(asked)
    const record = found(
      await tenantOf(c).update({
        ...rest,
        ...(limits === undefined ? {} : { limits: given(limits) }),
        ...(model_limits === undefined ? {} : { model_limits: withoutGaps(model_limits) }),
      }),
    )
    await audit(c, 'tenant.update', record.id, '', asked)
    return c.json(record)
  })
  .delete('/tenants/:id', async (c) => {
    const tenant = tenantOf(c)
    const { id } = found(await tenant.get())
    // First: what follows goes on by itself, whatever happens to this request.
    await audit(c, 'tenant.delete', id, '', {})
    await tenant.delete()
    return c.body(null, 204)
  })
  .post('/tenants/:id/keys', async (c) => {
    const asked = await readBody(c.req, NewKey)
    const { id: tenantId } = found(await tenantOf(c).get())
    const { name, scopes = null, models = null, expires_at = null, limits } = asked
    if (hasExpired({ expires_at }))
      throw new ApiError('invalid_value', "'expires_at' has passed already.", { param: 'expires_at' })
    const id = `key_${randomId()}`
    const settings = { name, scopes, models, expires_at, limits: { ...unlimited, ...given(limits ?? {}) } }
    const made = await makeFor(c, tenantId, { ...settings, id, budget_id: id })
    await audit(c, 'key.create', tenantId, id, asked)
    return c.json(made, 201)
  })
  .get('/tenants/:id/keys', async (c) => {
    const tenant = tenantOf(c)
    found(await tenant.get())
    return c.json({ data: (await tenant.keys()).map(shown) })
  })
  .delete('/tenants/:id/keys/:key', async (c) => {
    const key = found(await tenantOf(c).removeKey(c.req.param('key')))
    await forgetKey(c.env, key.hash)
    await audit(c, 'key.revoke', c.req.param('id'), key.id, {})
    return c.body(null, 204)
  })
  .post('/tenants/:id/keys/:key/rotate', async (c) => {
    const { grace_seconds = 0 } = await readBody(c.req, Rotation)
    const tenant = tenantOf(c)
    const { id: tenantId } = found(await tenant.get())
    const old = found(await tenant.key(c.req.param('key')))
    const { name, scopes, models, limits, budget_id, expires_at } = old
    if (hasExpired(old)) throw new ApiError('conflict', 'This key has expired: issue a new one.')
    const id = `key_${randomId()}`
    const made = await makeFor(c, tenantId, { id, name, scopes, models, limits, budget_id, expires_at })
    const until = Math.min(nowS() + grace_seconds, old.expires_at ?? Infinity)
    await store(c, tenantId, { ...old, expires_at: until })
    await audit(c, 'key.rotate', tenantId, old.id, { grace_seconds, new_key: id })
    return c.json({ ...made, replaces: { id: old.id, expires_at: until } }, 201)
  })
  .get('/audit', async (c) => {
    const { data, next_cursor } = await registryOf(c).audit(
      numberedCursor(c),
      pageSize(c),
      c.req.query('tenant') ?? null,
    )
    return c.json({
      data: data.map((row) => ({ ...row, detail: JSON.parse(row.detail) as unknown })),
      next_cursor,
    })
  })
  .get('/usage', ...operatorUsage)

/** The key itself is in this answer alone. */
async function makeFor(c: C, tenantId: string, settings: Omit<TenantKey, 'hash' | 'prefix' | 'created'>) {
  const key = makeKey(c.env.ENVIRONMENT === 'production' ? 'live' : 'test')
  const hash = await hashKey(c.env.KEY_PEPPER, key)
  const made: TenantKey = { ...settings, hash, prefix: keyPrefix(key), created: nowS() }
  await store(c, tenantId, made)
  return { ...shown(made), key, tenant_id: tenantId }
}

/** The tenant's object first: a key that the directory knows and the tenant does not is refused, never let through. */
async function store(c: C, tenantId: string, key: TenantKey): Promise<void> {
  const { kept, dropped } = await tenantOf(c).putKey(key)
  for (const hashOfExpired of dropped) await forgetKey(c.env, hashOfExpired)
  if (!kept) throw new ApiError('conflict', `A tenant has ${keys_max} keys at most: revoke one first.`)
  const { id, name, scopes, models, expires_at, hash } = key
  await directoryOf(c.env, hash).put(hash, { id, tenant_id: tenantId, name, scopes, models, expires_at })
  await c.env.KEYS.delete(hash)
}

const shown = ({ id, prefix, name, scopes, models, limits, expires_at, created }: TenantKey) => {
  return { id, prefix, name, scopes, models, limits, expires_at, created }
}

const audit = (c: C, action: string, tenant_id: string, target: string, detail: unknown) =>
  registryOf(c).record({ action, tenant_id, target, request_id: c.var.requestId, detail })

/** For writes whose routes stand elsewhere. */
export function audited(kind: string) {
  return factory.createMiddleware(async function audited(c, next) {
    await next()
    if (c.req.method === 'GET' || !c.res.ok) return
    const { pathname, search } = new URL(c.req.url)
    await audit(
      c,
      `${kind}.${c.req.method.toLowerCase()}`,
      c.req.query('tenant') ?? '',
      pathname + search,
      {},
    )
  })
}

/** An object under a name that is no tenant's would be made by asking it. */
function tenantOf(c: C) {
  const id = c.req.param('id') ?? ''
  return c.env.TENANT.getByName(found(isTenantId(id) ? id : null))
}

type LooseLimits = { [K in keyof Limits]?: Limits[K] | undefined }
const withoutGaps = (models: Record<string, LooseLimits | null>): Record<string, Partial<Limits> | null> =>
  Object.fromEntries(
    Object.entries(models).map(([model, limits]) => [model, limits === null ? null : given(limits)]),
  )
const modelLimits = (models: Record<string, LooseLimits | null>): Record<string, Limits> =>
  Object.fromEntries(
    Object.entries(withoutGaps(models)).flatMap(([model, limits]) =>
      limits === null ? [] : [[model, { ...unlimited, ...limits }]],
    ),
  )

const registryOf = (c: C) => c.env.REGISTRY.getByName('registry')
const randomId = () => crypto.randomUUID().replaceAll('-', '')
const nowS = () => Math.floor(Date.now() / 1000)
