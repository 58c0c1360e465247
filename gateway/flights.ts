/** One of a tenant's eight objects. */
import { DurableObject } from 'cloudflare:workers'
import { changed, noPolicy, policyKey, type CachePolicy, type PolicyChange } from './cache-policy.ts'

export class Flights extends DurableObject<Env> {
  /** Object 0 holds the tenant's cache policy. */
  async changePolicy(tenantId: string, change: PolicyChange): Promise<CachePolicy> {
    const before = this.ctx.storage.kv.get<CachePolicy>('policy') ?? noPolicy
    const policy = changed(before, change, crypto.randomUUID().slice(0, 8))
    this.ctx.storage.kv.put('policy', policy)
    await this.env.RESULTS.put(policyKey(tenantId), JSON.stringify(policy))
    return policy
  }
}
