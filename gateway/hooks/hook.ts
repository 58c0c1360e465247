/** One inbound webhook: whose it is, how its caller proves itself, and what is asked of the model when it is called. */
import { DurableObject } from 'cloudflare:workers'
import type { Caller } from '../keys/identify.ts'
import type { Endpoint } from '../jobs/job.ts'

export const verifications = ['standard-webhooks', 'github', 'stripe', 'slack', 'token'] as const
export type Verification = (typeof verifications)[number]

/** A secret that was replaced holds until then (milliseconds since the epoch); null: for good. */
export interface HeldSecret {
  secret: string
  until: number | null
}

export interface HookRecord {
  id: string
  name: string
  caller: Caller
  enabled: boolean
  mode: 'async' | 'sync'
  /** A chat request's body whose texts may hold {{payload.path}}, or `template` with variables that may. */
  request: Record<string, unknown>
  filter: Record<string, unknown> | null
  verify: { type: Verification; secrets: HeldSecret[] }
  callback: Pick<Endpoint, 'url' | 'events'> | null
  signing: HeldSecret[]
  /** Milliseconds since the epoch. */
  created_at: number
}

/** Secrets that hold now, the newest first. */
export const holding = (secrets: readonly HeldSecret[], now_ms: number): string[] =>
  secrets.filter(({ until }) => until === null || until > now_ms).map(({ secret }) => secret)

/** The new one first; the others hold for the grace period alone. */
export const rotated = (secrets: readonly HeldSecret[], secret: string, until: number): HeldSecret[] => [
  { secret, until: null },
  ...secrets.map((old) => ({ ...old, until: Math.min(old.until ?? Infinity, until) })).slice(0, 4),
]

/** The record is kept as JSON: it is written rarely and read whole. */
export class Hook extends DurableObject<Env> {
  read(): string | null {
    return this.ctx.storage.kv.get<string>('record') ?? null
  }

  write(record: string): void {
    this.ctx.storage.kv.put('record', record)
  }

  async remove(): Promise<void> {
    await this.ctx.storage.deleteAll()
  }
}

export const hookOf = (env: Env, id: string) => env.HOOK.getByName(id)

export async function readHook(env: Env, id: string): Promise<HookRecord | null> {
  if (!/^hook_[0-9a-f]{32}$/.test(id)) return null
  const text = await hookOf(env, id).read()
  return text === null ? null : (JSON.parse(text) as HookRecord)
}
