/** The edge worker: every route in one table; a request runs along its line from left to right. */
import { Hono } from 'hono'
import { cors } from 'hono/cors'
import { ApiError } from '../src/errors.ts'
import { admin, audited } from './admin/admin.ts'
import type { AppEnv } from './app-env.ts'
import { purge, purgeTenant, setLifetime } from './cache/cache-routes.ts'
import { prefixes } from './cache/prefixes.ts'
import { backendState } from './chat/backend.ts'
import { limitedBody } from './chat/limited-body.ts'
import { line } from './chat/line.ts'
import { prompt } from './chat/prompt.ts'
import { cancelGeneration, events } from './flights/generations.ts'
import { inbound } from './hooks/hook-inbound.ts'
import { hooks } from './hooks/hook-routes.ts'
import { batches } from './jobs/batch-routes.ts'
import { deliveries } from './jobs/delivery-routes.ts'
import { files } from './jobs/file-routes.ts'
import { background, jobs } from './jobs/job-routes.ts'
import { adminAuth, auth, scope } from './keys/auth.ts'
import { count, standing } from './limits/count.ts'
import { tenantUsage } from './limits/usage.ts'
import { mayUse, requireModel } from './keys/models.ts'
import { model } from './model.ts'
import { templates } from './templates/template-routes.ts'

export { Registry } from './admin/registry.ts'
export { Flights } from './flights/flights.ts'
export { Hook } from './hooks/hook.ts'
export { Batches } from './jobs/batches.ts'
export { Jobs } from './jobs/jobs.ts'
export { Directory } from './keys/directory.ts'
export { Tenant } from './limits/tenant.ts'
export { Templates } from './templates/templates.ts'

const exposed = [
  'x-request-id',
  'x-generation-id',
  'cache-status',
  'retry-after',
  'retry-after-ms',
  'ratelimit',
  'ratelimit-policy',
  'x-ratelimit-limit-requests',
  'x-ratelimit-remaining-requests',
  'x-ratelimit-reset-requests',
  'x-ratelimit-limit-tokens',
  'x-ratelimit-remaining-tokens',
  'x-ratelimit-reset-tokens',
]

const modelObject = {
  id: model.id,
  object: 'model',
  created: model.created,
  owned_by: 'qwen2-edge',
  context_length: model.context_length,
}

const wrongMethod = (allow: string) => () => {
  throw new ApiError('method_not_allowed', `Use ${allow} here.`, { headers: { allow } })
}

const app = new Hono<AppEnv>()
  .use(async function identity(c, next) {
    c.set('requestId', `req_${crypto.randomUUID().replaceAll('-', '')}`)
    c.header('x-request-id', c.var.requestId)
    await next()
  })
  .use('/v1/*', async function crossOrigin(c, next) {
    // What no browser asked for needs no such headers, and is spared a second Response.
    if (c.req.header('origin') === undefined && c.req.method !== 'OPTIONS') return next()
    const origin = c.env.CORS_ORIGINS === '*' ? '*' : c.env.CORS_ORIGINS.split(',')
    return cors({ origin, exposeHeaders: exposed, maxAge: 86_400 })(c, next)
  })
  .post('/v1/chat/completions', auth, scope('generate'), limitedBody, background, ...line)
  .all('/v1/chat/completions', wrongMethod('POST'))
  .post('/v1/prefixes', auth, scope('generate'), limitedBody, prompt, count, ...prefixes)
  .get('/v1/generations/:id/events', auth, scope('generate'), standing, ...events)
  .delete('/v1/generations/:id', auth, scope('generate'), standing, ...cancelGeneration)
  .delete('/v1/cache', auth, scope('generate'), standing, ...purge)
  .patch('/v1/cache', auth, scope('generate'), standing, limitedBody, ...setLifetime)
  .delete('/admin/cache', adminAuth, audited('cache'), ...purgeTenant)
  .get('/v1/models', auth, scope('read'), standing, (c) =>
    c.json({ object: 'list', data: mayUse(c.var.caller, model.id) ? [modelObject] : [] }),
  )
  .get('/v1/models/:id{.+}', auth, scope('read'), standing, (c) => {
    requireModel(c.var.caller, c.req.param('id'))
    return c.json(modelObject)
  })
  .on(
    ['POST', 'PUT', 'PATCH', 'DELETE'],
    ['/v1/models', '/v1/models/*', '/healthz', '/readyz'],
    wrongMethod('GET'),
  )
  .get('/v1/usage', auth, scope('read'), standing, ...tenantUsage)
  .route('/v1/templates', templates)
  .route('/v1/jobs', jobs)
  .route('/v1/deliveries', deliveries)
  .route('/v1/files', files)
  .route('/v1/batches', batches)
  .route('/v1/hooks', hooks)
  .post('/hooks/:id', ...inbound)
  .route('/admin', admin)
  .get('/healthz', (c) => c.json({ status: 'ok' }))
  .get('/readyz', async (c) => {
    const backend = await backendState(c.env, model)
    return c.json(
      { status: backend === 'ready' ? 'ready' : 'not ready', backend, model: model.id },
      backend === 'ready' ? 200 : 503,
    )
  })
  .notFound((c) => {
    throw new ApiError('not_found', `There is no ${c.req.method} ${c.req.path} here.`)
  })
  .onError((cause, c) => {
    if (!(cause instanceof ApiError)) console.error(c.var.requestId, cause)
    const error =
      cause instanceof ApiError
        ? cause
        : new ApiError('internal_error', 'Something failed here. It was logged under this x-request-id.')
    for (const [name, value] of Object.entries(error.headers)) c.header(name, value)
    c.header('content-type', 'application/json')
    return new Response(JSON.stringify(error.body()), { status: error.status, headers: c.res.headers })
  })

export default app
