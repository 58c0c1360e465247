/** What the operator may send, and how it is read. */
import type { HonoRequest } from 'hono'
import * as z from 'zod/mini'
import { parse, parseJson } from '../../src/json-body.ts'
import { bodyText } from '../body-text.ts'

export const scopes = ['generate', 'jobs', 'hooks', 'templates', 'read'] as const
export type KeyScope = (typeof scopes)[number]

const optional = <T extends z.core.SomeType>(schema: T) => z.optional(z.nullable(schema))
const limit = optional(z.int().check(z.gte(1)))

const Name = z.string().check(z.minLength(1), z.maxLength(200))
const Limits = z.strictObject({
  requests_per_minute: limit,
  tokens_per_minute: limit,
  concurrent: limit,
  tokens_per_day: limit,
  tokens_per_month: limit,
})
const Weight = z.number().check(z.gte(0), z.lte(1))

const tenantFields = {
  limits: z.optional(Limits),
  /** By model; null takes a model's limits away. */
  model_limits: z.optional(z.record(z.string(), z.nullable(Limits))),
  cached_token_weight: z.optional(Weight),
}
export const NewTenant = z.strictObject({ name: Name, ...tenantFields })
export const TenantChange = z.strictObject({
  name: z.optional(Name),
  status: z.optional(z.enum(['active', 'suspended'], { error: 'must be active or suspended' })),
  ...tenantFields,
})

export const NewKey = z.strictObject({
  name: Name,
  scopes: optional(z.array(z.enum(scopes, { error: `must be a scope: ${scopes.join(', ')}` }))),
  models: optional(z.array(z.string())),
  /** Unix seconds. */
  expires_at: optional(z.int().check(z.gte(1))),
  limits: optional(Limits),
})
export const Rotation = z.strictObject({
  grace_seconds: z.optional(z.int().check(z.gte(0), z.lte(31_536_000))),
})

export async function readBody<T extends z.core.$ZodType>(
  req: HonoRequest,
  schema: T,
): Promise<z.core.output<T>> {
  const text = await bodyText(req)
  return parse(schema, text === '' ? {} : parseJson(text))
}

/** What was sent, without what was left out: `undefined` would overwrite. */
export const given = <T extends object>(value: T): { [K in keyof T]: Exclude<T[K], undefined> } =>
  Object.fromEntries(Object.entries(value).filter(([, v]) => v !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>
  }
