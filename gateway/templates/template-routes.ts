/**
 * Templates over HTTP: the tenant's own under /v1/templates, and under /admin/templates those that the operator
 * publishes to every tenant. A version never changes; `pin` and `rollback` choose which one is used.
 */
import { Hono, type Context } from 'hono'
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { bodyText } from '../body-text.ts'
import type { AppEnv } from '../app-env.ts'
import { found } from '../found.ts'
import { cursorOf, pageSize } from '../list-query.ts'
import { auth, scope } from '../keys/auth.ts'
import { parse, parseJson } from '../../src/json-body.ts'
import { standing } from '../limits/count.ts'
import { limitedBody } from '../chat/limited-body.ts'
import { parseTemplate, type TemplateBody } from './template.ts'
import { differences } from './template-diff.ts'
import { published_prefix, templatesOf } from './template-use.ts'
import { warm } from './template-warming.ts'
import type { Templates } from './templates.ts'

const Name = z.object({ name: z.string().check(z.minLength(1), z.maxLength(200)) })
const Pin = z.object({ version: z.nullable(z.int().check(z.gte(1))) })
const Rollback = z.object({ version: z.optional(z.int().check(z.gte(1))) })

type Held = DurableObjectStub<Templates>

/** @param held whose templates these are; null: read-only for this caller. */
function routes(
  prefix: string,
  read: (c: Context<AppEnv>, id: string) => Held,
  held: (c: Context<AppEnv>) => Held,
): Hono<AppEnv> {
  /** A path's id, and that it may be changed here. */
  const own = (c: Context<AppEnv>): string => {
    const id = c.req.param('id') ?? ''
    if (id.startsWith(published_prefix) && prefix !== published_prefix)
      throw new ApiError(
        'insufficient_scope',
        'The operator publishes this template; only they can change it.',
      )
    return id
  }
  return new Hono<AppEnv>()
    .post('/', async (c) => {
      const json = parseJson(await bodyText(c.req))
      const { name } = parse(Name, json)
      const body = parseTemplate(json)
      const id = `${prefix}${crypto.randomUUID().replaceAll('-', '')}`
      const made = found(await held(c).create(id, name, JSON.stringify(body)))
      warm(c, id, body)
      return c.json(made, 201)
    })
    .get('/', async (c) => {
      const limit = pageSize(c)
      const data = await held(c).list(cursorOf(c, /^tpl_\w+$/), limit + 1)
      const page = data.slice(0, limit)
      const next = data.length > limit ? (page.at(-1)?.id ?? null) : null
      return c.json({ object: 'list', data: page, next_cursor: next, has_more: next !== null })
    })
    .get('/:id', async (c) => {
      const id = c.req.param('id')
      const object = read(c, id)
      const [info, version] = await Promise.all([object.get(id), object.version(id)])
      return c.json({ ...found(info), ...bodyOf(version) })
    })
    .delete('/:id', async (c) => {
      if (!(await held(c).delete(own(c)))) found(null)
      return c.body(null, 204)
    })
    .post('/:id/versions', async (c) => {
      const body = parseTemplate(parseJson(await bodyText(c.req)))
      const id = own(c)
      const info = found(await held(c).addVersion(id, JSON.stringify(body)))
      warm(c, id, body)
      return c.json({ ...info, version: info.latest_version, active_version: info.version }, 201)
    })
    .get('/:id/versions', async (c) => {
      const id = c.req.param('id')
      const object = read(c, id)
      found(await object.get(id))
      return c.json({ object: 'list', data: await object.versions(id) })
    })
    .get('/:id/versions/:version', async (c) => {
      const id = c.req.param('id')
      const { body, ...version } = found(
        await read(c, id).version(id, number(c.req.param('version'), 'version')),
      )
      return c.json({ ...version, ...bodyOf({ body }) })
    })
    .get('/:id/diff', async (c) => {
      const id = c.req.param('id')
      const object = read(c, id)
      const { latest_version } = found(await object.get(id))
      const to = number(c.req.query('to') ?? String(latest_version), 'to')
      const from = number(c.req.query('from') ?? String(Math.max(1, to - 1)), 'from')
      const [before, after] = await Promise.all([object.version(id, from), object.version(id, to)])
      return c.json({ id, from, to, changes: differences(bodyOf(before), bodyOf(after)) })
    })
    .post('/:id/pin', async (c) => {
      const id = own(c)
      const { version } = parse(Pin, parseJson(await bodyText(c.req)))
      const { latest_version } = found(await held(c).get(id))
      return c.json(found(await held(c).use(id, version ?? latest_version, version !== null)))
    })
    .post('/:id/rollback', async (c) => {
      const id = own(c)
      const text = await bodyText(c.req)
      const asked = parse(Rollback, text === '' ? {} : parseJson(text))
      const { version } = found(await held(c).get(id))
      const to = asked.version ?? version - 1
      if (to < 1)
        throw new ApiError('invalid_value', 'There is no version before the first one.', { param: 'version' })
      return c.json(found(await held(c).use(id, to, false)))
    })
}

export const templates: Hono<AppEnv> = new Hono<AppEnv>()
  .use(auth, scope('templates'), standing, limitedBody)
  .route(
    '/',
    routes(
      'tpl_',
      (c, id) => templatesOf(c.env, c.var.caller.tenantId, id),
      (c) => templatesOf(c.env, c.var.caller.tenantId, ''),
    ),
  )

const operators = (c: Context<AppEnv>) => templatesOf(c.env, '', published_prefix)

export const operatorTemplates = routes(published_prefix, operators, operators)

const bodyOf = (version: { body: string } | null) => JSON.parse(found(version).body) as TemplateBody

function number(text: string, param: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text)
  throw new ApiError('invalid_value', `'${param}' must be the number of a version.`, { param })
}
