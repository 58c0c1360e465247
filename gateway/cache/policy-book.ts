/**
 * The truth of a tenant's cache policy, in one object, and its way to KV: which takes one write a second to a key, and
 * promises no order between two that are under way. So they go one by one, each of the newest policy, until one has
 * succeeded. What KV lacks is noted durably, for an alarm to take up after a restart. A change is over once KV has it,
 * or a later one: what was answered holds.
 */
import { changed, noPolicy, policyKey, type CachePolicy, type PolicyChange } from './cache-policy.ts'

const write_gap_ms = 1_050
const tries_max = 3
const again_ms = 10_000

export class PolicyBook {
  readonly #kv: SyncKvStorage
  readonly #env: Env
  readonly #wakeAt: (time: number) => Promise<void>
  /** The newest revision that KV is known to have. */
  #written = 0
  #writing: Promise<boolean> | null = null
  #writableAt = 0

  /** @param wakeAt sees to it that `publishDue` is called then, also by an object that begins anew. */
  constructor(kv: SyncKvStorage, env: Env, wakeAt: (time: number) => Promise<void>) {
    this.#kv = kv
    this.#env = env
    this.#wakeAt = wakeAt
  }

  /** @returns the policy now; `full`: the change finds no room; `late`: it is made, but KV does not take it yet. */
  async change(tenantId: string, change: PolicyChange): Promise<CachePolicy | 'full' | 'late'> {
    const policy = changed(this.#newest(), change, crypto.randomUUID().slice(0, 8))
    if (policy === null) return 'full'
    this.#kv.put('policy', policy)
    this.#kv.put('policy_due', tenantId)
    await this.#wakeAt(Date.now() + again_ms)
    return (await this.#published(policy.revision)) ? this.#newest() : 'late'
  }

  /** @returns when to come back (milliseconds since the epoch); null: KV has it all. */
  async publishDue(): Promise<number | null> {
    const isDue = this.#kv.get('policy_due') !== undefined
    return isDue && !(await this.#published(this.#newest().revision)) ? Date.now() + again_ms : null
  }

  #newest = (): CachePolicy => ({ ...noPolicy, ...this.#kv.get<CachePolicy>('policy') })

  /** Waits until KV has this revision or a later one; false: it refused time and again. */
  async #published(revision: number): Promise<boolean> {
    while (this.#written < revision) {
      this.#writing ??= this.#write().finally(() => (this.#writing = null))
      if (!(await this.#writing)) return false
    }
    return true
  }

  async #write(): Promise<boolean> {
    for (let tried = 1; tried <= tries_max; tried++) {
      await scheduler.wait(Math.max(0, this.#writableAt - Date.now()))
      const tenantId = this.#kv.get<string>('policy_due')
      const policy = this.#newest()
      try {
        if (tenantId !== undefined) await this.#env.RESULTS.put(policyKey(tenantId), JSON.stringify(policy))
        this.#written = policy.revision
        if (this.#newest().revision === policy.revision) this.#kv.delete('policy_due')
        return true
      } catch (cause) {
        console.error('KV did not take a cache policy', cause)
      } finally {
        this.#writableAt = Date.now() + write_gap_ms
      }
    }
    return false
  }
}
