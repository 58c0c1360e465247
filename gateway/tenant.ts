/**
 * One object a tenant: its record, its keys' ids and its requests/min window.
 *
 * Counting happens in memory; the window is written once a second while it changes, so an object that is moved or
 * killed forgets at most the last second of counts. The clock is the object's own: gateways need not agree on time.
 */
import { DurableObject } from 'cloudflare:workers'
import { SlidingWindow, type Verdict, type WindowState } from './sliding-window.ts'

export interface TenantLimits {
  /** null: unlimited. */
  requests_per_minute: number | null
}

export interface TenantRecord {
  id: string
  name: string
  limits: TenantLimits
  /** Unix seconds. */
  created: number
}

/** What a tenant knows of one of its keys. */
export interface TenantKey {
  id: string
  hash: string
  prefix: string
  name: string
  created: number
}

export type CountResult = { known: false } | { known: true; limit: number | null; verdict: Verdict | null }

const minute_ms = 60_000
const flush_ms = 1_000

export class Tenant extends DurableObject<Env> {
  #record: TenantRecord | null
  #requests: SlidingWindow
  #flushing = false

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env)
    this.#record = ctx.storage.kv.get<TenantRecord>('record') ?? developmentTenant(ctx, env)
    this.#requests = new SlidingWindow(minute_ms, ctx.storage.kv.get<WindowState>('requests'))
  }

  /** Counts one request against requests/min. */
  count(): CountResult {
    if (this.#record === null) return { known: false }
    const limit = this.#record.limits.requests_per_minute
    if (limit === null) return { known: true, limit, verdict: null }
    const verdict = this.#requests.take(limit, 1, Date.now())
    if (verdict.allowed) this.#flushSoon()
    return { known: true, limit, verdict }
  }

  get(): TenantRecord | null {
    return this.#record
  }

  create(record: TenantRecord): TenantRecord {
    this.#record = record
    this.ctx.storage.kv.put('record', record)
    return record
  }

  update(change: { name?: string; limits?: Partial<TenantLimits> }): TenantRecord | null {
    if (this.#record === null) return null
    const limits = { ...this.#record.limits, ...change.limits }
    return this.create({
      ...this.#record,
      ...(change.name === undefined ? {} : { name: change.name }),
      limits,
    })
  }

  keys(): TenantKey[] {
    return [...this.ctx.storage.kv.list<TenantKey>({ prefix: 'key:' })].map(([, key]) => key)
  }

  addKey(key: TenantKey): void {
    this.ctx.storage.kv.put(`key:${key.id}`, key)
  }

  removeKey(id: string): TenantKey | null {
    const key = this.ctx.storage.kv.get<TenantKey>(`key:${id}`) ?? null
    if (key !== null) this.ctx.storage.kv.delete(`key:${id}`)
    return key
  }

  #flushSoon(): void {
    if (this.#flushing) return
    this.#flushing = true
    setTimeout(() => {
      this.#flushing = false
      this.ctx.storage.kv.put('requests', this.#requests.state())
    }, flush_ms)
  }
}

/** `npm start` makes no tenant through the admin API: the one named "dev" is simply there, in development alone. */
function developmentTenant(ctx: DurableObjectState, env: Env): TenantRecord | null {
  if (env.ENVIRONMENT !== 'development' || ctx.id.name !== 'dev') return null
  const asked = Number(env.DEV_REQUESTS_PER_MINUTE)
  return {
    id: 'dev',
    name: 'Development',
    limits: { requests_per_minute: asked > 0 ? asked : null },
    created: 0,
  }
}
