/** Chat requests answered later: /v1/jobs, and `background: true` on a chat request. */
import { Hono, type Context } from 'hono'
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { bodyText } from '../body-text.ts'
import { factory, type AppEnv } from '../app-env.ts'
import { auth, requireScope, scope } from '../keys/auth.ts'
import { checkCallbackUrl } from './callback-url.ts'
import { parse, parseJson } from '../../src/json-body.ts'
import { requireStanding, standing } from '../limits/count.ts'
import { limitedBody } from '../chat/limited-body.ts'
import { found } from '../found.ts'
import { numberedCursor, pageSize, statusOf, wholeNumber } from '../list-query.ts'
import { events, isTerminal, jobStatuses, jobView, type Endpoint, type JobEvent } from './job.ts'
import { prepare } from '../chat/prompt.ts'

/** A row of SQLite holds 2 MB. */
const request_bytes_max = 1_000_000
const metadata_chars_max = 16_384
const wait_s_max = 60

const Url = z.string()
const Secret = z
  .string()
  .check(z.regex(/^whsec_[A-Za-z0-9+/]{32,100}={0,2}$/, 'must be whsec_ and at least 24 bytes base64'))
const Metadata = z.optional(z.nullable(z.record(z.string().check(z.maxLength(64)), z.unknown())))
export const WebhookFields = {
  webhook: z.optional(
    z.nullable(z.strictObject({ url: Url, secret: z.optional(Secret), ed25519: z.optional(z.boolean()) })),
  ),
  webhook_events_filter: z.optional(z.nullable(z.array(z.string()).check(z.minLength(1)))),
  metadata: Metadata,
}
const NewJob = z.strictObject({ request: z.record(z.string(), z.unknown()), ...WebhookFields })
const Background = z.object({ background: z.literal(true), ...WebhookFields })
type Webhook = Pick<z.infer<typeof NewJob>, 'webhook' | 'webhook_events_filter'>

export const jobsOf = (env: Env, tenantId: string) => env.JOBS.getByName(tenantId)
const own = (c: Context<AppEnv>) => jobsOf(c.env, c.var.caller.tenantId)

/** `background: true`: the same body, answered with a job, for keys that may make jobs. */
export const background = factory.createMiddleware(async function background(c, next) {
  const text = await bodyText(c.req)
  if (!text.includes('"background"')) return next()
  const json = parseJson(text)
  const parsed = z.safeParse(Background, json)
  if (!parsed.success) {
    const asked =
      typeof json === 'object' && json !== null && 'background' in json && json.background === true
    if (asked) parse(Background, json)
    return next()
  }
  requireScope(c.var.caller, 'jobs')
  await requireStanding(c)
  const { background: _, webhook: __, webhook_events_filter: ___, metadata: ____, ...request } = parsed.data
  const body = { ...(json as object), ...request } as Record<string, unknown>
  for (const field of ['background', 'webhook', 'webhook_events_filter', 'metadata']) delete body[field]
  return accept(c, body, parsed.data)
})

export const jobs: Hono<AppEnv> = new Hono<AppEnv>()
  .use(auth, scope('jobs'), standing, limitedBody)
  .post('/', async (c) => {
    const parsed = parse(NewJob, parseJson(await bodyText(c.req)))
    return accept(c, parsed.request, parsed)
  })
  .get('/', async (c) => {
    const limit = pageSize(c)
    const before = numberedCursor(c) ?? Number.MAX_SAFE_INTEGER
    const rows = await own(c).list(statusOf(c, jobStatuses), before, limit + 1)
    const page = rows.slice(0, limit)
    const next = rows.length > limit ? String(page.at(-1)?.seq) : null
    return c.json({ object: 'list', data: page.map(jobView), next_cursor: next, has_more: next !== null })
  })
  .get('/:id', async (c) => {
    const wait_s = Math.min(wholeNumber(c, 'wait') ?? 0, wait_s_max)
    return c.json(jobView(found(await own(c).get(c.req.param('id'), wait_s * 1_000))))
  })
  .post('/:id/cancel', async (c) => c.json(jobView(found(await own(c).cancel(c.req.param('id'))))))
  .post('/:id/retry', async (c) => {
    const id = c.req.param('id')
    const { status } = found(await own(c).get(id, 0))
    if (!isTerminal(status) || status === 'completed')
      throw new ApiError('conflict', `This job is ${status}; only a failed or cancelled one is run again.`)
    return c.json(jobView(found(await own(c).retry(id, c.var.caller))))
  })
  .get('/:id/deliveries', async (c) => {
    const id = c.req.param('id')
    found(await own(c).get(id, 0))
    const attempts = await own(c).attempts(id)
    return c.json({
      object: 'list',
      data: attempts.map((row) => ({ ...row, at: seconds(row.at), next_at: seconds(row.next_at) })),
    })
  })

/** Checked before it is accepted, as far as that can be done without asking anyone. */
async function accept(
  c: Context<AppEnv>,
  request: Record<string, unknown>,
  webhook: Webhook & { metadata?: unknown },
) {
  const { caller } = c.var
  await prepare(c.env, caller, request)
  const text = requestText(request)
  const metadata = webhook.metadata === undefined ? null : JSON.stringify(webhook.metadata)
  if ((metadata ?? '').length > metadata_chars_max)
    throw new ApiError('invalid_value', `'metadata' is larger than ${metadata_chars_max} characters.`, {
      param: 'metadata',
    })
  const endpoint = await endpointOf(c, webhook)
  const { id, status, isSame } = accepted(
    await stored(
      own(c).create({
        id: newJobId(),
        caller,
        request: text,
        endpoints: endpoint === null ? [] : [endpoint],
        metadata,
        dedupe: idempotency(c),
      }),
    ),
  )
  if (!isSame)
    throw new ApiError('idempotency_conflict', 'This Idempotency-Key was sent before with another request.')
  const signing_secret = endpoint === null ? {} : { signing_secret: endpoint.secrets[0] }
  return c.json({ id, object: 'job', status, ...signing_secret }, 202)
}

/** The tenant's own object could not be asked, or not write: nothing was accepted. */
export async function stored<T>(work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (cause) {
    console.error('a job could not be stored', cause)
    const message = 'This could not be stored and was not accepted. Try again.'
    throw new ApiError('storage_unavailable', message, { retryAfterS: 1, cause })
  }
}

export function accepted<T>(made: T | null): T {
  if (made !== null) return made
  throw new ApiError(
    'rate_limit_exceeded',
    'Too many of your jobs wait already; send more when these are done.',
    {
      param: 'queued_jobs',
      retryAfterS: 10,
    },
  )
}

export function requestText(request: Record<string, unknown>): string {
  const text = JSON.stringify(request)
  if (new TextEncoder().encode(text).byteLength > request_bytes_max)
    throw new ApiError(
      'body_too_large',
      "A job's request may have 1 MB; send larger ones to /v1/chat/completions.",
    )
  return text
}

export async function endpointOf(
  c: Context<AppEnv>,
  { webhook, webhook_events_filter: filter }: Webhook,
): Promise<Endpoint | null> {
  if (!webhook) return null
  checkCallbackUrl(webhook.url, c.env.ENVIRONMENT, 'webhook.url')
  const jobs = own(c)
  const { secret } = webhook
  const secrets = secret === undefined ? await stored(jobs.signingSecrets()) : [secret]
  return {
    url: webhook.url,
    ...(secret === undefined ? { signer: 'tenant' } : {}),
    secrets:
      webhook.ed25519 === true ? [...secrets, (await stored(jobs.signingPair())).private_key] : secrets,
    events: chosenEvents(filter ?? null, 'webhook_events_filter'),
  }
}

/** `completed` says the same as `response.completed`. */
export function chosenEvents(asked: readonly string[] | null, param: string): readonly JobEvent[] {
  if (asked === null) return events
  return asked.map((name) => {
    const event = events.find((known) => known === name || known === `response.${name}`)
    if (event !== undefined) return event
    throw new ApiError('invalid_value', `'${param}' has '${name}'; there are: ${events.join(', ')}.`, {
      param,
    })
  })
}

export const newJobId = () => `job_${crypto.randomUUID().replaceAll('-', '')}`

function idempotency(c: Context<AppEnv>): string | null {
  const key = c.req.header('idempotency-key')
  if (key === undefined) return null
  if (key.length > 255) throw new ApiError('invalid_value', 'An Idempotency-Key has at most 255 characters.')
  return `key:${c.var.caller.keyId}:${key}`
}

/** Unix seconds, to the millisecond. */
export const seconds = (ms: number | null) => (ms === null ? null : ms / 1000)
