/** `template: {id, version?, variables}` in a chat request: its messages come first, the request's own follow. */
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { parse } from '../../src/json-body.ts'
import { renderTemplate, type Rendered, type TemplateBody } from './template.ts'

/** Ids of the operator's templates start so; they serve every tenant. */
export const published_prefix = 'tpl_pub_'

/** Whose object holds a template. */
export const templatesOf = (env: Env, tenantId: string, id: string) =>
  env.TEMPLATES.getByName(id.startsWith(published_prefix) ? 'operator' : `tenant:${tenantId}`)

const Use = z.object({
  template: z.strictObject({
    id: z.string().check(z.regex(/^tpl_\w{1,100}$/, 'is no id of a template')),
    version: z.optional(z.nullable(z.int().check(z.gte(1)))),
    variables: z.optional(z.nullable(z.record(z.string(), z.unknown()))),
  }),
  messages: z.optional(z.nullable(z.array(z.unknown()))),
})

export interface TemplateUse {
  id: string
  version: number
  /** What the operator wrote; null where a tenant did. */
  shared: Rendered['literal'] | null
}

/** The same request without a template, and what was used; a request that names none is given back as it is. */
export async function useTemplate(
  env: Env,
  tenantId: string,
  json: unknown,
): Promise<{ json: unknown; used: TemplateUse | null }> {
  if (typeof json !== 'object' || json === null || !('template' in json) || json.template === null)
    return { json, used: null }
  const parsed = parse(Use, json)
  const { id, version, variables } = parsed.template
  const found = await read(env, tenantId, id, version ?? undefined)
  const body = JSON.parse(found.body) as TemplateBody
  const { messages, literal } = renderTemplate(body, variables ?? {})
  const { template: _, ...rest } = json
  return {
    json: {
      ...defaultsBeside(body.defaults, rest),
      ...rest,
      messages: [...messages, ...(parsed.messages ?? [])],
    },
    used: { id, version: found.version, shared: id.startsWith(published_prefix) ? literal : null },
  }
}

/** What the request says under another name holds, too. */
function defaultsBeside(defaults: Record<string, unknown>, asked: Record<string, unknown>) {
  const overruled = new Set<string>()
  if (asked['max_tokens'] !== undefined) overruled.add('max_completion_tokens')
  if (asked['max_completion_tokens'] !== undefined) overruled.add('max_tokens')
  if (asked['logprobs'] === false) overruled.add('top_logprobs')
  return Object.fromEntries(Object.entries(defaults).filter(([field]) => !overruled.has(field)))
}

async function read(env: Env, tenantId: string, id: string, version: number | undefined) {
  let found
  try {
    found = await templatesOf(env, tenantId, id).version(id, version)
  } catch (cause) {
    throw new ApiError('storage_unavailable', 'Templates cannot be read at the moment. Try again.', {
      retryAfterS: 1,
      cause,
    })
  }
  if (found !== null) return found
  const what = version === undefined ? `template '${id}'` : `version ${version} of template '${id}'`
  throw new ApiError('not_found', `There is no ${what} here.`, { param: 'template' })
}
