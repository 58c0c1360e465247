/** The tenant's side of hooks: create, read, change, rotate, try out, delete. */
import { Hono, type Context } from 'hono'
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { bodyText } from '../body-text.ts'
import type { AppEnv } from '../app-env.ts'
import { auth, scope } from '../keys/auth.ts'
import { checkCallbackUrl } from '../jobs/callback-url.ts'
import { parse, parseJson } from '../../src/json-body.ts'
import { parseChatRequest } from '../chat/chat-request.ts'
import { standing } from '../limits/count.ts'
import { limitedBody } from '../chat/limited-body.ts'
import { GraceSeconds, grace_s_default } from '../jobs/delivery-routes.ts'
import { makeSigningSecret } from '../jobs/signature.ts'
import {
  changeHook,
  hookOf,
  hookText,
  newHookId,
  readHook,
  rotated,
  signingOf,
  verifications,
  type HookRecord,
  type Verification,
} from './hook.ts'
import { renderRequest } from './hook-request.ts'
import { chosenEvents, jobsOf } from '../jobs/job-routes.ts'
import { found } from '../found.ts'
import { cursorOf, pageSize } from '../list-query.ts'
import { model } from '../model.ts'

const Secret = z.string().check(z.minLength(8), z.maxLength(512))
const Fields = z.strictObject({
  name: z.string().check(z.minLength(1), z.maxLength(200)),
  template: z.optional(z.nullable(z.record(z.string(), z.unknown()))),
  messages: z.optional(z.nullable(z.array(z.record(z.string(), z.unknown())).check(z.minLength(1)))),
  model: z.optional(z.string()),
  sampling: z.optional(z.record(z.string(), z.unknown())),
  filter: z.optional(z.nullable(z.record(z.string(), z.unknown()))),
  verify: z.strictObject({ type: z.enum(verifications), secret: z.optional(z.nullable(Secret)) }),
  callback: z.optional(
    z.nullable(
      z.strictObject({
        url: z.string(),
        events: z.optional(z.nullable(z.array(z.string()))),
        ed25519: z.optional(z.boolean()),
      }),
    ),
  ),
  mode: z.optional(z.enum(['async', 'sync'])),
  enabled: z.optional(z.boolean()),
})
const Change = z.partial(Fields)
const Rotate = z.strictObject({
  /** Which secret: that of callers, or that of our own deliveries. */
  target: z.optional(z.enum(['verify', 'signing'])),
  secret: z.optional(Secret),
  grace_seconds: GraceSeconds,
})

export const hooks: Hono<AppEnv> = new Hono<AppEnv>()
  .use(auth, scope('hooks'), standing, limitedBody)
  .post('/', async (c) => {
    const asked = parse(Fields, parseJson(await bodyText(c.req)))
    const { type, secret } = asked.verify
    const record: HookRecord = {
      id: await newHookId(c.env),
      name: asked.name,
      caller: c.var.caller,
      enabled: asked.enabled ?? true,
      mode: asked.mode ?? 'async',
      request: requestOf(asked),
      filter: asked.filter ?? null,
      verify: { type, secrets: heldSecret(type, secret ?? madeSecret(type)) },
      callback: callbackOf(c, asked.callback ?? null),
      signing: [{ secret: makeSigningSecret(), until: null }],
      created_at: Date.now(),
    }
    const text = hookText(record)
    // Its tenant knows of it first: one that nobody could find would outlive its tenant.
    await jobsOf(c.env, c.var.caller.tenantId).addHook(record.id)
    await hookOf(c.env, record.id).replace(null, text)
    return c.json({ ...view(c, record), ...secretsOf(record) }, 201)
  })
  .get('/', async (c) => {
    const limit = pageSize(c)
    const ids = await jobsOf(c.env, c.var.caller.tenantId).hooks(
      cursorOf(c, /^hook_[0-9a-f]{32}$/),
      limit + 1,
    )
    const page = ids.slice(0, limit)
    const next = ids.length > limit ? (page.at(-1) ?? null) : null
    const records = await Promise.all(page.map((id) => readHook(c.env, id)))
    const data = records.flatMap((record) => (record === null ? [] : [view(c, record)]))
    return c.json({ object: 'list', data, next_cursor: next, has_more: next !== null })
  })
  .get('/:id', async (c) => c.json(view(c, await own(c))))
  .patch('/:id', async (c) => {
    const record = await own(c)
    const asked = parse(Change, parseJson(await bodyText(c.req)))
    const asksElse = ['template', 'messages', 'model', 'sampling'].some((field) => field in asked)
    const after = await changeHook(c.env, record, (before) => ({
      ...before,
      // Whoever changes a hook answers for it from then on: so it outlives the key that made it.
      caller: c.var.caller,
      name: asked.name ?? before.name,
      enabled: asked.enabled ?? before.enabled,
      mode: asked.mode ?? before.mode,
      request: asksElse ? requestOf(asked, before.request) : before.request,
      filter: asked.filter === undefined ? before.filter : asked.filter,
      verify: changedVerify(before.verify, asked.verify),
      callback: asked.callback === undefined ? before.callback : callbackOf(c, asked.callback),
    }))
    // A secret that nobody has seen is shown this once.
    const isMade = after.verify.type !== record.verify.type && !asked.verify?.secret
    return c.json({ ...view(c, after), ...(isMade ? { verify: secretsOf(after).verify } : {}) })
  })
  .delete('/:id', async (c) => {
    const { id } = await own(c)
    await hookOf(c.env, id).remove()
    await jobsOf(c.env, c.var.caller.tenantId).removeHook(id)
    return c.body(null, 204)
  })
  .post('/:id/rotate', async (c) => {
    const record = await own(c)
    const text = await bodyText(c.req)
    const {
      target = 'verify',
      secret,
      grace_seconds = grace_s_default,
    } = parse(Rotate, text === '' ? {} : parseJson(text))
    const until = Date.now() + grace_seconds * 1_000
    const after = await changeHook(c.env, record, (before) => {
      if (target === 'signing')
        return { ...before, signing: rotated(before.signing, makeSigningSecret(), until) }
      const { type, secrets } = before.verify
      const made = secret ?? madeSecret(type)
      if (made === null)
        throw new ApiError('invalid_value', `A ${type} secret is made by ${type}: send it as 'secret'.`, {
          param: 'secret',
        })
      const held = heldSecret(type, made)[0]?.secret ?? made
      return { ...before, verify: { type, secrets: rotated(secrets, held, until) } }
    })
    return c.json({ ...view(c, after), ...secretsOf(after) })
  })
  .post('/:id/test', async (c) => {
    const hook = await own(c)
    const { id, callback } = hook
    if (callback === null)
      throw new ApiError('conflict', 'This hook has no callback to send a test event to.')
    const webhook_id = `evt_${crypto.randomUUID().replaceAll('-', '')}`
    const data = { id, hook_id: id, message: 'A test: your endpoint was reached and this body is signed.' }
    const body = {
      id: webhook_id,
      object: 'event',
      created_at: Math.floor(Date.now() / 1000),
      type: 'hook.test',
      data,
    }
    const delivery_id = await jobsOf(c.env, c.var.caller.tenantId).tell({
      webhook_id,
      url: callback.url,
      secrets: await signingOf(c.env, hook),
      signer: id,
      body: JSON.stringify(body),
    })
    return c.json({ webhook_id, delivery_id }, 202)
  })

type Asked = z.infer<typeof Change>

/** Checked by rendering it once for an event that holds nothing. */
function requestOf(asked: Asked, before: Record<string, unknown> = {}): Record<string, unknown> {
  const { messages: oldMessages, template: oldTemplate, model: oldModel, ...oldSampling } = before
  const source = (asked.template ?? asked.messages) ? asked : { messages: oldMessages, template: oldTemplate }
  const request: Record<string, unknown> = {
    ...(asked.sampling ?? oldSampling),
    model: asked.model ?? oldModel ?? model.id,
    ...(source.template ? { template: source.template } : {}),
    ...(source.messages ? { messages: source.messages } : {}),
  }
  if (!source.template && !source.messages)
    throw new ApiError('invalid_value', "A hook needs 'messages' or a 'template'.", { param: 'messages' })
  const { template, ...rendered } = renderRequest(request, { payload: {}, type: null, id: null })
  parseChatRequest({ ...rendered, messages: rendered['messages'] ?? [{ role: 'user', content: '' }] })
  return template === undefined ? request : { ...request, template: source.template }
}

function callbackOf(c: Context<AppEnv>, asked: Asked['callback'] | null): HookRecord['callback'] {
  if (!asked) return null
  checkCallbackUrl(asked.url, c.env.ENVIRONMENT, 'callback.url')
  const events = chosenEvents(asked.events ?? null, 'callback.events')
  return { url: asked.url, events, ...(asked.ed25519 === true ? { ed25519: true } : {}) }
}

/** Stripe and Slack make their own, which arrives by PATCH; until then every call is a 401. */
function madeSecret(type: Verification): string | null {
  if (type === 'stripe' || type === 'slack') return null
  return type === 'standard-webhooks' ? makeSigningSecret() : makeSigningSecret().slice('whsec_'.length)
}

function heldSecret(type: Verification, secret: string | null) {
  if (secret === null) return []
  const key = secret.replace(/^whsec_/, '')
  if (type === 'standard-webhooks' && !/^[A-Za-z0-9+/]{22,}={0,2}$/.test(key))
    throw new ApiError('invalid_value', 'A Standard Webhooks secret is whsec_ and base64.', {
      param: 'verify.secret',
    })
  return [{ secret, until: null }]
}

/** Another type without a secret gets one made, as a new hook does. */
function changedVerify(before: HookRecord['verify'], asked: Asked['verify']): HookRecord['verify'] {
  if (asked === undefined) return before
  const { type, secret } = asked
  if (!secret && type === before.type) return before
  return { type, secrets: heldSecret(type, secret ?? madeSecret(type)) }
}

async function own(c: Context<AppEnv>): Promise<HookRecord> {
  const record = found(await readHook(c.env, c.req.param('id') ?? ''))
  return found(record.caller.tenantId === c.var.caller.tenantId ? record : null)
}

const view = (c: Context<AppEnv>, record: HookRecord) => ({
  id: record.id,
  object: 'hook' as const,
  name: record.name,
  url: `${new URL(c.req.url).origin}/hooks/${record.id}`,
  enabled: record.enabled,
  mode: record.mode,
  request: record.request,
  filter: record.filter,
  verify: { type: record.verify.type, has_secret: record.verify.secrets.length > 0 },
  callback: record.callback,
  created_at: Math.floor(record.created_at / 1000),
})

/** Shown when made, and never again. */
const secretsOf = ({ verify, signing }: HookRecord) => ({
  verify: { type: verify.type, secret: verify.secrets[0]?.secret ?? null },
  signing_secret: signing[0]?.secret,
})
