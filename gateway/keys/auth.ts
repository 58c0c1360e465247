import { ApiError } from '../../src/errors.ts'
import type { KeyScope } from '../admin/admin-bodies.ts'
import { factory } from '../app-env.ts'
import { identify, sameText, type Caller } from './identify.ts'

/** RFC 6750: the scheme is case-insensitive. */
function bearer(header: string | undefined): string {
  const token = /^bearer +(\S+) *$/i.exec(header ?? '')?.[1]
  if (token === undefined) {
    throw new ApiError('missing_api_key', 'No API key was sent. Send it as "Authorization: Bearer <key>".', {
      headers: { 'www-authenticate': 'Bearer' },
    })
  }
  return token
}

export const auth = factory.createMiddleware(async function auth(c, next) {
  const key = bearer(c.req.header('authorization'))
  c.set('caller', await identify(c.env, key, (work) => c.executionCtx.waitUntil(work)))
  await next()
})

export const adminAuth = factory.createMiddleware(async function adminAuth(c, next) {
  const token = bearer(c.req.header('authorization'))
  if (c.env.ADMIN_TOKEN === '' || !sameText(token, c.env.ADMIN_TOKEN)) {
    throw new ApiError('invalid_api_key', 'This is not the admin token.')
  }
  await next()
})

/** Behind auth: whether this key may do what the route does. */
export const scope = (wanted: KeyScope) =>
  factory.createMiddleware(async function scope(c, next) {
    requireScope(c.var.caller, wanted)
    await next()
  })

export function requireScope({ scopes }: Caller, wanted: KeyScope): void {
  if (scopes === null || scopes.includes(wanted)) return
  throw new ApiError(
    'insufficient_scope',
    `This key may not do that: it lacks the scope '${wanted}' (it has: ${scopes.join(', ') || 'none'}).`,
  )
}
