/** What was or must be delivered: the log, the dead letters, and sending again; and the tenant's signing secret. */
import { Hono } from 'hono'
import * as z from 'zod/mini'
import { bodyText } from '../body-text.ts'
import type { AppEnv } from '../app-env.ts'
import { auth, scope } from '../keys/auth.ts'
import { parse, parseJson } from '../../src/json-body.ts'
import { standing } from '../limits/count.ts'
import { limitedBody } from '../chat/limited-body.ts'
import { jobsOf, seconds } from './job-routes.ts'
import { found } from '../found.ts'
import { cursorOf, pageSize, statusOf } from '../list-query.ts'
import type { DeliveryRow } from './outbox.ts'

const statuses = ['pending', 'sending', 'delivered', 'dead'] as const

/** For how long what was replaced still signs beside the new one. */
export const GraceSeconds = z.optional(z.int().check(z.gte(0), z.lte(30 * 24 * 3600)))
export const grace_s_default = 24 * 3600
const Rotate = z.strictObject({ grace_seconds: GraceSeconds })

const Replay = z.strictObject({
  /** Unix seconds. */
  since: z.number().check(z.gte(0)),
  status: z.optional(z.enum(['dead', 'delivered'])),
})

export const deliveries: Hono<AppEnv> = new Hono<AppEnv>()
  .use(auth, scope('jobs'), standing, limitedBody)
  .get('/', async (c) => {
    const limit = pageSize(c)
    const cursor = cursorOf(c, /^dlv_\w+$/)
    const { tenantId } = c.var.caller
    const rows = await jobsOf(c.env, tenantId).deliveries(statusOf(c, statuses), cursor, limit + 1)
    const page = rows.slice(0, limit)
    const next = rows.length > limit ? (page.at(-1)?.id ?? null) : null
    return c.json({ object: 'list', data: page.map(view), next_cursor: next, has_more: next !== null })
  })
  .get('/signing_secret', async (c) => {
    const jobs = jobsOf(c.env, c.var.caller.tenantId)
    const [secrets, { public_key }] = await Promise.all([jobs.signingSecrets(), jobs.signingPair()])
    return c.json({ signing_secret: secrets[0], public_key })
  })
  .post('/signing_secret/rotate', async (c) => {
    const text = await bodyText(c.req)
    const { grace_seconds = grace_s_default } = parse(Rotate, text === '' ? {} : parseJson(text))
    const secrets = await jobsOf(c.env, c.var.caller.tenantId).rotateSigningSecret(grace_seconds * 1_000)
    return c.json({ signing_secret: secrets[0] })
  })
  .post('/replay', async (c) => {
    const { since, status = 'dead' } = parse(Replay, parseJson(await bodyText(c.req)))
    const replayed = await jobsOf(c.env, c.var.caller.tenantId).replaySince(since * 1_000, status)
    return c.json({ replayed }, 202)
  })
  .post('/:id/replay', async (c) => {
    const row = await jobsOf(c.env, c.var.caller.tenantId).replay(c.req.param('id'))
    return c.json(view(found(row)), 202)
  })

const view = ({
  id,
  webhook_id,
  job_id,
  url,
  status,
  attempt,
  next_at,
  created_at,
  status_code,
  error,
}: DeliveryRow) => ({
  id,
  object: 'delivery',
  webhook_id,
  job_id,
  url,
  status,
  attempts: attempt,
  status_code,
  error,
  created_at: seconds(created_at),
  next_at: seconds(next_at),
})
