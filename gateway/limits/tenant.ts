/**
 * One object a tenant: its record, its keys, its counters and what it used. Limits and standing are decided here alone,
 * by this object's clock: gateways need not agree on time.
 */
import { DurableObject } from 'cloudflare:workers'
import type { TokenUsage } from '../../src/protocol.ts'
import { eraseTenant } from '../admin/erase-tenant.ts'
import * as backend from '../chat/backend.ts'
import { Ledger } from './ledger.ts'
import {
  countRequest,
  isUnmetered,
  remaining,
  unlimited,
  type Ask,
  type Limits,
  type Scope,
} from './limits.ts'
import type {
  AdmitResult,
  CountResult,
  Snapshot,
  Standing,
  TenantChange,
  TenantKey,
  TenantRecord,
  Use,
} from './tenant-record.ts'
import type { Begun, Ended } from './notes.ts'
import { Settled, type SettledCounts, type Way } from './settled.ts'
import { Taken } from './taken.ts'
import { parsePrices, UsageBook, type GroupBy, type RequestCounts, type UsageRow } from './usage-book.ts'

const flush_ms = 1_000
/** How often an orphan is asked for where the backend does not answer. */
const orphan_retry_ms = 5_000
/** After this the backend has forgotten what it used. */
const orphan_ms_max = 600_000
const orphans_at_once = 6
/** Longer than notes.ts tells a batch again; and for reports, as long as an isolate may wait for somebody to send it. */
const batch_kept_ms = 30_000
const report_kept_ms = 600_000
const erase_retry_ms = 5_000
/** What was still under way when a tenant was deleted has ended by then; it is removed by a second pass. */
const second_pass_ms = 60_000
export const keys_max = 1_000

export class Tenant extends DurableObject<Env> {
  #record: TenantRecord | null
  readonly #keys: Map<string, TenantKey>
  #ledger: Ledger
  readonly #usage: UsageBook
  readonly #taken: Taken
  #settled: Settled
  #flushing = false

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env)
    const kept = ctx.storage.kv.get<TenantRecord>('record')
    this.#record =
      kept === undefined
        ? developmentTenant(ctx, env)
        : { ...new_tenant, ...kept, limits: { ...unlimited, ...kept.limits } }
    this.#keys = new Map(
      [...ctx.storage.kv.list<TenantKey>({ prefix: 'key:' })].map(([, key]) => [key.id, key]),
    )
    this.#ledger = new Ledger(ctx.storage)
    this.#usage = new UsageBook(ctx.storage)
    this.#taken = new Taken(ctx.storage, Date.now())
    this.#settled = new Settled(ctx.storage.kv)
  }

  /** Counts one request; with `wanted` also asks for request units ahead of use. */
  count(use: Use, wanted: number, returned: { id: string; used: number }[] = []): CountResult {
    const now = Date.now()
    this.#ledger.returnLeases(returned, now)
    const standing = this.standing(use.key_id)
    if (standing !== 'active') return { standing }
    const scopes = this.#scopes(use)
    const denial = countRequest(scopes, now)
    if (denial === null) this.#ledger.touch(scopes)
    const lease = denial === null ? this.#ledger.lease(scopes, wanted, now) : null
    this.#flushSoon()
    return { standing, denial, snapshot: snapshot(scopes), lease, unmetered: isUnmetered(scopes) }
  }

  /** Reserves tokens and a slot for one generation; with `wanted` also asks for tokens ahead of use. */
  admit(requestId: string, use: Use, ask: Ask, wanted = 0): AdmitResult {
    const standing = this.standing(use.key_id)
    if (standing !== 'active') return { standing }
    const scopes = this.#scopes(use)
    const now = Date.now()
    const result = this.#ledger.admit(requestId, use, scopes, ask, now)
    const admitted = result.kind === 'admitted'
    const least = ask.prompt_tokens + ask.room_tokens
    const lease = admitted ? this.#ledger.leaseTokens(scopes, wanted, least, now) : null
    this.#flushSoon()
    return {
      standing,
      denial: admitted ? null : result.denial,
      too_large: result.kind === 'too_large',
      max_tokens: admitted ? result.max_tokens : 0,
      snapshot: snapshot(scopes),
      lease,
    }
  }

  /** Ends a generation's reservation; usage null: it never ran. Twice is once. */
  settle(requestId: string, use: Use, usage: TokenUsage | null): void {
    this.#settle('gateway', requestId, use, usage)
  }

  #settle(way: Way, requestId: string, use: Use, usage: TokenUsage | null): void {
    const now = Date.now()
    const weight = this.#record?.cached_token_weight ?? new_tenant.cached_token_weight
    const first = this.#ledger.settle(requestId, this.#scopes(use), usage, weight, now)
    if (first) this.#settled.add(way)
    if (first && usage !== null) this.#usage.addTokens(use, usage, parsePrices(this.env.PRICES), now)
    this.#flushSoon()
  }

  /** Generations that began without asking, and what such used. A batch that comes again was taken before. */
  note(batch: string, begun: Begun[], ended: Ended[]): void {
    const now = Date.now()
    if (!this.#taken.take(batch, now + batch_kept_ms)) return
    for (const { requestId, use, prompt_tokens, taken } of begun)
      this.#ledger.begin(requestId, use, this.#scopes(use), prompt_tokens, now, taken)
    for (const { requestId, use, usage, taken } of ended) {
      if (taken !== undefined) this.#ledger.begin(requestId, use, this.#scopes(use), 0, now, taken)
      this.#settle('notes', requestId, use, usage)
    }
    // Out of a lease, or before it was heard of.
    if (this.#record?.status === 'suspended')
      this.ctx.waitUntil(this.#stop(begun.map(({ requestId }) => requestId)))
    this.#flushSoon()
  }

  /** What was begun under this id by an isolate that died is stopped and billed: another goes on with it. */
  async takeOver(requestId: string, use: Use): Promise<void> {
    await this.#settleOrphan('takeover', requestId, use, null)
    this.#flushSoon()
  }

  settled(): SettledCounts {
    return this.#settled.counts
  }

  renew(requestIds: string[]): void {
    this.#ledger.renew(requestIds, Date.now())
    this.#flushSoon()
  }

  /** What an isolate counted by itself, and leases that it is done with. A report that comes again was taken before. */
  report(id: string, counts: RequestCounts[], returned: { id: string; used: number }[]): void {
    const now = Date.now()
    if (!this.#taken.take(id, now + report_kept_ms)) return
    this.#ledger.returnLeases(returned, now)
    for (const { requests, hits, ...use } of counts) this.#usage.addRequests(use, requests, hits, now)
    this.#flushSoon()
  }

  /** Usage is never written without the ledger: what is billed has no reservation that could be billed again. */
  usage(from_s: number, to_s: number, group: GroupBy): UsageRow[] {
    this.#flush()
    return this.#usage.read(from_s, to_s, group)
  }

  standing(keyId: string): Standing {
    const status = this.#record?.status ?? 'deleted'
    if (status === 'deleted') return 'unknown'
    const key = this.#keys.get(keyId)
    if (key === undefined && this.#record?.id !== 'dev') return 'unknown'
    if (key !== undefined && hasExpired(key)) return 'unknown'
    return status
  }

  look(keyId: string): { standing: Standing; snapshot: Snapshot } {
    const scopes = this.#scopes({ key_id: keyId, model: '', template: '' })
    for (const { meter } of scopes) meter.advance(Date.now())
    return { standing: this.standing(keyId), snapshot: snapshot(scopes) }
  }

  get(): TenantRecord | null {
    return this.#record?.status === 'deleted' ? null : this.#record
  }

  create(record: TenantRecord): TenantRecord {
    this.#record = record
    this.ctx.storage.kv.put('record', record)
    return record
  }

  update({ limits, model_limits, ...change }: TenantChange): TenantRecord | null {
    const record = this.get()
    if (record === null) return null
    const models = { ...record.model_limits }
    for (const [model, given] of Object.entries(model_limits ?? {})) {
      if (given === null) delete models[model]
      else models[model] = { ...unlimited, ...models[model], ...given }
    }
    if (change.status === 'suspended') this.ctx.waitUntil(this.#stop(this.#ledger.openIds()))
    return this.create({
      ...record,
      ...change,
      limits: { ...record.limits, ...limits },
      model_limits: models,
    })
  }

  /** Ends all access at once. What it leaves behind is removed by the alarm, which begins again where it was cut off. */
  async delete(): Promise<void> {
    const record = this.get()
    if (record === null) return
    this.create({ ...record, status: 'deleted' })
    this.ctx.storage.kv.put('erasing', 1)
    await this.ctx.storage.setAlarm(Date.now())
  }

  keys(): TenantKey[] {
    return [...this.#keys.values()].toSorted((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1))
  }

  key(id: string): TenantKey | null {
    return this.#keys.get(id) ?? null
  }

  /** @returns whether there was room, and the hashes of expired keys that made some. */
  putKey(key: TenantKey): { kept: boolean; dropped: string[] } {
    const isFull = () => !this.#keys.has(key.id) && this.#keys.size >= keys_max
    const dropped = isFull() ? [...this.#keys.values()].filter(hasExpired) : []
    for (const { id } of dropped) this.removeKey(id)
    const kept = !isFull()
    if (kept) {
      this.#keys.set(key.id, key)
      this.ctx.storage.kv.put(`key:${key.id}`, key)
    }
    return { kept, dropped: dropped.map(({ hash }) => hash) }
  }

  removeKey(id: string): TenantKey | null {
    const key = this.key(id)
    this.#keys.delete(id)
    this.ctx.storage.kv.delete(`key:${id}`)
    return key
  }

  /** Settles orphans, or removes a deleted tenant's data. Schedules itself again before it works, and never throws: six failures would end it for good. */
  override async alarm(): Promise<void> {
    try {
      const pass = this.ctx.storage.kv.get<number>('erasing')
      if (pass !== undefined) return await this.#erase(pass)
      const now = Date.now()
      await this.ctx.storage.setAlarm(now + orphan_retry_ms)
      const orphans = this.#ledger.orphans(now).slice(0, orphans_at_once)
      await Promise.all(
        orphans.map(([requestId, { use, deadline_ms, prompt_tokens }]) => {
          const isLast = now - deadline_ms > orphan_ms_max
          return this.#settleOrphan('alarm', requestId, use, isLast ? prompt_tokens : null)
        }),
      )
      this.#flush()
      const next = this.#ledger.nextDeadline()
      if (next === null) await this.ctx.storage.deleteAlarm()
      else await this.ctx.storage.setAlarm(Math.max(next, Date.now() + orphan_retry_ms))
    } catch (cause) {
      console.error("a tenant's due work is left for later", cause)
    }
  }

  /** Stops what runs, then removes everything but the counts of usage. */
  async #erase(pass: number): Promise<void> {
    const { kv } = this.ctx.storage
    await this.ctx.storage.setAlarm(Date.now() + erase_retry_ms)
    for (let open = this.#ledger.open(orphans_at_once); open.length > 0;) {
      await Promise.all(
        open.map(([id, { use, prompt_tokens }]) => this.#settleOrphan('deletion', id, use, prompt_tokens)),
      )
      open = this.#ledger.open(orphans_at_once)
    }
    const { id, created } = this.#record ?? { id: this.ctx.id.name ?? '', created: 0 }
    await eraseTenant(
      this.env,
      id,
      this.keys().map(({ hash }) => hash),
    )
    this.#flush()
    for (const prefix of ['key:', 'meter:', 'open:', 'settled'])
      for (const [name] of kv.list({ prefix })) kv.delete(name)
    this.#keys.clear()
    this.#ledger = new Ledger(this.ctx.storage)
    this.#settled = new Settled(kv)
    this.create({ ...new_tenant, id, name: '', status: 'deleted', created })
    if (pass === 1) {
      kv.put('erasing', 2)
      await this.ctx.storage.setAlarm(Date.now() + second_pass_ms)
    } else {
      kv.delete('erasing')
      await this.ctx.storage.deleteAlarm()
    }
  }

  /** @param prompt its tokens, billed where the backend does not say what was used; null: it is left for later then. */
  async #settleOrphan(way: Way, requestId: string, use: Use, prompt: number | null): Promise<void> {
    let usage: TokenUsage | null
    try {
      usage = await backend.cancel(this.env, requestId)
    } catch {
      if (prompt === null) return
      // Nobody will ever know what it generated; its prompt was very likely read.
      usage = { prompt, cached: 0, completion: 0 }
    }
    // Being stopped may have made its gateway settle it meanwhile: then this does nothing.
    this.#settle(way, requestId, use, usage)
    this.#ledger.remember(requestId, Date.now())
  }

  /** Their gateways settle them, and say why to whom they answer (generation.ts). */
  async #stop(requestIds: string[]): Promise<void> {
    for (let at = 0; at < requestIds.length; at += orphans_at_once) {
      const some = requestIds.slice(at, at + orphans_at_once)
      await Promise.allSettled(some.map((id) => backend.cancel(this.env, id)))
    }
  }

  /** The tenant, the key and the tenant's use of the model; a key that is gone is held by its tenant's limits alone. */
  #scopes({ key_id, model }: Use): Scope[] {
    const key = this.#keys.get(key_id)
    const scope = (kind: Scope['kind'], id: string, limits: Limits | undefined): Scope[] =>
      limits === undefined ? [] : [{ kind, id, limits, meter: this.#ledger.meter(id) }]
    return [
      ...scope('tenant', 'tenant', this.#record?.limits ?? unlimited),
      ...scope('key', `key:${key?.budget_id}`, isLimited(key?.limits)),
      ...scope('model', `model:${model}`, isLimited(this.#record?.model_limits[model])),
    ]
  }

  #flushSoon(): void {
    if (this.#flushing || !(this.#ledger.changed || this.#usage.changed)) return
    this.#flushing = true
    setTimeout(() => {
      this.#flushing = false
      this.#flush()
    }, flush_ms)
  }

  #flush(): void {
    this.#ledger.flush()
    this.#usage.flush()
    this.#settled.flush()
    this.#taken.flush(Date.now())
    const next = this.#ledger.nextDeadline()
    if (next !== null) this.ctx.waitUntil(this.#wakeAt(next))
  }

  async #wakeAt(deadline_ms: number): Promise<void> {
    const set = await this.ctx.storage.getAlarm()
    if (set === null || set > deadline_ms) await this.ctx.storage.setAlarm(deadline_ms)
  }
}

const snapshot = (scopes: Scope[]): Snapshot => ({
  requests: remaining(scopes, 'requests'),
  tokens: remaining(scopes, 'tokens'),
})

export const hasExpired = ({ expires_at }: Pick<TenantKey, 'expires_at'>): boolean =>
  (expires_at ?? Infinity) * 1000 <= Date.now()

const isLimited = (limits: Limits | undefined): Limits | undefined =>
  limits !== undefined && Object.values(limits).some((value) => value !== null) ? limits : undefined

export const new_tenant = {
  status: 'active' as const,
  limits: unlimited,
  model_limits: {},
  cached_token_weight: 0.1,
}

/** `npm start` makes no tenant through the admin API: the one named "dev" is simply there, in development alone. */
function developmentTenant(ctx: DurableObjectState, env: Env): TenantRecord | null {
  if (env.ENVIRONMENT !== 'development' || ctx.id.name !== 'dev') return null
  const asked = Number(env.DEV_REQUESTS_PER_MINUTE)
  const limits = { ...unlimited, requests_per_minute: asked > 0 ? asked : null }
  return { ...new_tenant, id: 'dev', name: 'Development', limits, created: 0 }
}
