/**
 * What holds for a tenant's kept answers: how long they live, and an epoch in every key. Purging changes the epoch, so
 * nothing has to be found to be forgotten. One Flights object of the tenant holds the truth (policy-book.ts); KV carries
 * it to every data centre and this isolate remembers it for five seconds. A purge is seen at once by the isolate that
 * made it, within 10 s in its data centre, within 60 s (KV) elsewhere. KV may say for a while what was true before: an
 * isolate that knows better goes by the revision.
 */
import { Breaker } from '../breaker.ts'

export interface Policy {
  epoch: string
  /** null: RESULT_TTL_SECONDS. */
  ttl_s: number | null
}

export interface CachePolicy extends Policy {
  /** How many changes led to it. */
  revision: number
  templates: Record<string, Policy>
}

export type PolicyChange = { template: string | null } & ({ purge: true } | { ttl_s: number | null })

const memory_ms = 5_000
const memory_entries_max = 10_000
const memory = new Map<string, { policy: CachePolicy; until: number }>()

/** Every isolate reads all of it every few seconds. */
export const templates_max = 500

export const noPolicy: CachePolicy = { revision: 0, epoch: '', ttl_s: null, templates: {} }
export const policyKey = (tenantId: string) => `policy:${tenantId}`

/** The namespace RESULTS, for policies and answers alike. */
export const resultsKv = new Breaker(1_000)

/** null: KV does not say. */
export async function cachePolicy(env: Env, tenantId: string): Promise<CachePolicy | null> {
  const known = memory.get(tenantId)
  if (known && known.until > Date.now()) return known.policy
  const [read, failed] = await resultsKv.attempt(async () =>
    env.RESULTS.get<CachePolicy>(policyKey(tenantId), 'json'),
  )
  return failed ? null : rememberPolicy(tenantId, { ...noPolicy, ...read })
}

/** @returns the newest that is known. */
export function rememberPolicy(tenantId: string, read: CachePolicy): CachePolicy {
  const known = memory.get(tenantId)?.policy
  const policy = known !== undefined && known.revision > read.revision ? known : read
  if (memory.size >= memory_entries_max) memory.clear()
  memory.set(tenantId, { policy, until: Date.now() + memory_ms })
  return policy
}

/** The one for answers of this template, where one was used. */
export function policyFor(policy: CachePolicy, template: string | undefined): Policy {
  const own = template === undefined ? undefined : policy.templates[template]
  return {
    epoch: `${policy.epoch}/${own?.epoch ?? ''}`,
    ttl_s: own?.ttl_s ?? policy.ttl_s,
  }
}

/** @returns null where too many templates have a lifetime of their own already. */
export function changed(policy: CachePolicy, change: PolicyChange, epoch: string): CachePolicy | null {
  const part = 'purge' in change ? { epoch } : { ttl_s: change.ttl_s }
  const revision = policy.revision + 1
  if (change.template === null) return { ...policy, ...part, revision }
  const own = policy.templates[change.template] ?? { epoch: '', ttl_s: null }
  const templates = { ...policy.templates, [change.template]: { ...own, ...part } }
  if (Object.keys(templates).length <= templates_max) return { ...policy, revision, templates }
  // Those that were only purged are forgotten, which is safe where everything is purged.
  const lasting = Object.fromEntries(Object.entries(templates).filter(([, { ttl_s }]) => ttl_s !== null))
  if (Object.keys(lasting).length > templates_max) return null
  return { ...policy, revision, epoch, templates: lasting }
}
