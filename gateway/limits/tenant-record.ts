/** What is kept of a tenant and its keys, and what its object answers. */
import type { Denial, Limits, Remaining } from './limits.ts'

/** Asking for an object under any other name would make one. */
export const isTenantId = (text: string): boolean => /^(ten_[0-9a-f]{32}|dev)$/.test(text)

export type Standing = 'active' | 'suspended' | 'unknown'

export interface TenantRecord {
  id: string
  name: string
  status: 'active' | 'suspended' | 'deleted'
  limits: Limits
  /** For this tenant's use of one model, beside its own limits. */
  model_limits: Record<string, Limits>
  /** What a cached prompt token costs under the limits, of a token. */
  cached_token_weight: number
  /** Unix seconds. */
  created: number
}

export interface TenantChange {
  name?: string
  status?: TenantRecord['status']
  limits?: Partial<Limits>
  model_limits?: Record<string, Partial<Limits> | null>
  cached_token_weight?: number
}

export interface TenantKey {
  id: string
  hash: string
  prefix: string
  name: string
  /** null: all. */
  scopes: string[] | null
  models: string[] | null
  limits: Limits
  /** Unix seconds; null: never. */
  expires_at: number | null
  created: number
  /** Whose counters it uses: its own, or those of the key that it was rotated from. */
  budget_id: string
}

/** What the headers need. */
export interface Snapshot {
  requests: Remaining | null
  tokens: Remaining | null
}

/** Requests, or tokens. */
export interface LeaseGrant {
  id: string
  units: number
}

/** What a generation reserved out of a lease of tokens. */
export interface Taken {
  lease: string
  tokens: number
}

export type CountResult =
  | { standing: 'suspended' | 'unknown' }
  | {
      standing: 'active'
      denial: Denial | null
      snapshot: Snapshot
      lease: LeaseGrant | null
      /** No limit of tokens or concurrency holds this use: its generations need no leave. */
      unmetered: boolean
    }

export type AdmitResult =
  | { standing: 'suspended' | 'unknown' }
  | {
      standing: 'active'
      denial: Denial | null
      /** Whether waiting would not help. */
      too_large: boolean
      max_tokens: number
      snapshot: Snapshot
      /** Tokens for the generations to come. */
      lease: LeaseGrant | null
    }

/** Whose generation it is. */
export interface Use {
  key_id: string
  model: string
  /** Empty: none. */
  template: string
}
