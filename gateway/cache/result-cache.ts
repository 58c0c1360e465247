/**
 * Answers kept at the edge (result-store.ts says where).
 *
 * The key is SHA-256 over tenant, epoch, model revision, prompt token ids, sampling (grammar included) and stop strings: two bodies that
 * render to the same tokens share an entry, a stream and a JSON answer too, two tenants never do. Kept is what must
 * come out the same again (temperature 0, or a seed), and what the caller asks to keep with `x-cache: ttl=N`. Obeyed on
 * the request: Cache-Control no-store, no-cache, max-age=N; `x-replay: timed` replays a stream at the engine's pace.
 */
import { ApiError } from '../../src/errors.ts'
import { writeGrammar } from '../../src/grammar/grammar.ts'
import { hex } from '../../src/hex.ts'
import { isDeterministic } from '../../src/sampling.ts'
import { factory } from '../app-env.ts'
import { cachePolicy, policyFor } from './cache-policy.ts'
import { model } from '../model.ts'
import type { Prompt } from '../chat/prompt.ts'
import { respond } from '../chat/respond.ts'
import { lookup, replay } from './result-store.ts'

/** RFC 9211. */
export type CacheStatus =
  | `qwen-edge; hit; ttl=${number}`
  | 'qwen-edge; fwd=miss'
  | 'qwen-edge; fwd=miss; collapsed'
  | `qwen-edge; fwd=bypass; detail=${string}`

export interface CachePlan {
  status: CacheStatus
  /** The answer is kept; said of it once it has begun, since a failure is not. */
  stored?: boolean
  /** Under which the answer is to be kept; null: it is not. */
  key: string | null
  ttl_s: number
  /** How old an answer may be. */
  oldest_s: number
  /** The caller wants an answer made for this request. */
  fresh: boolean
}

export const cache = factory.createMiddleware(async function cache(c, next) {
  const { prompt, caller } = c.var
  const asked = cacheControl(c.req.header('cache-control'))
  const optIn_s = askedTtl(c.req.header('x-cache'))
  const bypass = (detail: string) => {
    const status = `qwen-edge; fwd=bypass; detail=${detail}` as const
    c.set('cache', { key: null, ttl_s: 0, oldest_s: 0, fresh: true, status })
    return next()
  }
  if (asked.noStore) return bypass('no-store')
  if (optIn_s === null && !isDeterministic(prompt.sampling)) return bypass('not-deterministic')
  const policies = await cachePolicy(c.env, caller.tenantId)
  if (policies === null) return bypass('storage-unavailable')
  const policy = policyFor(policies, prompt.template?.id)
  const ttl_s = optIn_s ?? policy.ttl_s ?? Number(c.env.RESULT_TTL_SECONDS)
  if (ttl_s === 0) return bypass('ttl')

  const oldest_s = Math.min(ttl_s, asked.maxAgeS)
  const key = await cacheKey(caller.tenantId, policy.epoch, prompt)
  const fresh = asked.noCache || asked.maxAgeS === 0
  if (!fresh) {
    const { entry, failed } = await lookup(c.env, key, (work) => c.executionCtx.waitUntil(work))
    if (failed) return bypass('storage-unavailable')
    const age_s = entry === null ? 0 : Math.max(0, Math.floor((Date.now() - entry.stored_at) / 1000))
    if (entry !== null && age_s < Math.min(entry.ttl_s, asked.maxAgeS)) {
      const status = `qwen-edge; hit; ttl=${entry.ttl_s - age_s}` as const
      c.set('cache', { key: null, ttl_s, oldest_s, fresh, status })
      return respond(c, c.var.form, replay(entry, c.req.header('x-replay') === 'timed'))
    }
  }
  c.set('cache', { key, ttl_s, oldest_s, fresh, status: 'qwen-edge; fwd=miss' })
  return next()
})

export async function cacheKey(
  tenantId: string,
  epoch: string,
  { tokenIds, sampling, stop }: Prompt,
): Promise<string> {
  // By what it allows, not by how it was said.
  const grammar = sampling.grammar === null ? null : writeGrammar(sampling.grammar).text
  const parts = [tenantId, epoch, model.revision, { ...sampling, grammar }, stop]
  const settings = new TextEncoder().encode(JSON.stringify(parts))
  const bytes = new Uint8Array(4 + settings.byteLength + tokenIds.length * 4)
  new DataView(bytes.buffer).setUint32(0, settings.byteLength)
  bytes.set(settings, 4)
  bytes.set(new Uint8Array(Uint32Array.from(tokenIds).buffer), 4 + settings.byteLength)
  // The tenant's name stands in front so that all that is kept for it can be found and removed.
  return `${tenantId}/${hex(await crypto.subtle.digest('SHA-256', bytes))}`
}

export function cacheControl(header = ''): { noStore: boolean; noCache: boolean; maxAgeS: number } {
  const directives = header
    .toLowerCase()
    .split(',')
    .map((directive) => directive.trim())
  const maxAge = directives.find((directive) => /^max-age=\d+$/.test(directive))
  return {
    noStore: directives.includes('no-store'),
    noCache: directives.includes('no-cache'),
    maxAgeS: maxAge === undefined ? Infinity : Number(maxAge.slice('max-age='.length)),
  }
}

/** Seconds; null: not asked for. */
function askedTtl(header: string | undefined): number | null {
  if (header === undefined) return null
  const ttl = /^ttl=(\d{1,7})$/.exec(header.trim())?.[1]
  if (ttl !== undefined) return Number(ttl)
  throw new ApiError('invalid_value', "Send 'x-cache: ttl=SECONDS', or leave the header out.", {
    param: 'x-cache',
  })
}
