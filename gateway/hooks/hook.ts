/** One inbound webhook: whose it is, how its caller proves itself, and what is asked of the model when it is called. */
import { DurableObject } from 'cloudflare:workers'
import { ApiError } from '../../src/errors.ts'
import { hex } from '../../src/hex.ts'
import { hashKey, sameText, type Caller } from '../keys/identify.ts'
import type { Endpoint } from '../jobs/job.ts'

const record_chars_max = 256 * 1024

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
  callback: (Pick<Endpoint, 'url' | 'events'> & { ed25519?: boolean }) | null
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

/** What its deliveries are signed with now. */
export async function signingOf(env: Env, { callback, caller, signing }: HookRecord): Promise<string[]> {
  const secrets = holding(signing, Date.now())
  if (callback?.ed25519 !== true) return secrets
  return [...secrets, (await env.JOBS.getByName(caller.tenantId).signingPair()).private_key]
}

/** The record is kept as JSON: it is written rarely and read whole. */
export class Hook extends DurableObject<Env> {
  read(): string | null {
    return this.ctx.storage.kv.get<string>('record') ?? null
  }

  /** @returns false, and changes nothing, where it is not `before` any more. @param before null: there was none. */
  replace(before: string | null, record: string): boolean {
    if (this.read() !== before) return false
    this.ctx.storage.kv.put('record', record)
    return true
  }

  async remove(): Promise<void> {
    await this.ctx.storage.deleteAll()
  }
}

export const hookOf = (env: Env, id: string) => env.HOOK.getByName(id)

/** 80 random bits and a tag over them, so that a guess is known as one without asking any storage. */
export async function newHookId(env: Env): Promise<string> {
  const random = hex(crypto.getRandomValues(new Uint8Array(10)).buffer)
  return `hook_${random}${await tag(env, random)}`
}

export async function isHookId(env: Env, id: string): Promise<boolean> {
  const [, random, given] = /^hook_([0-9a-f]{20})([0-9a-f]{12})$/.exec(id) ?? []
  return random !== undefined && given !== undefined && sameText(given, await tag(env, random))
}

const tag = async (env: Env, random: string) => (await hashKey(env.KEY_PEPPER, `hook:${random}`)).slice(0, 12)

export async function readHook(env: Env, id: string): Promise<HookRecord | null> {
  return (await isHookId(env, id)) ? storedHook(env, id) : null
}

/** @param id one that isHookId knows. */
export async function storedHook(env: Env, id: string): Promise<HookRecord | null> {
  const text = await hookOf(env, id).read()
  return text === null ? null : (JSON.parse(text) as HookRecord)
}

/** Changes a hook; again on what another changed meanwhile. */
export async function changeHook(
  env: Env,
  record: HookRecord,
  change: (record: HookRecord) => HookRecord,
): Promise<HookRecord> {
  for (let before: HookRecord | null = record; before !== null; before = await readHook(env, record.id)) {
    const after = change(before)
    if (await hookOf(env, record.id).replace(JSON.stringify(before), hookText(after))) return after
  }
  throw new ApiError('not_found', 'This hook was deleted.')
}

export function hookText(record: HookRecord): string {
  const text = JSON.stringify(record)
  if (text.length <= record_chars_max) return text
  throw new ApiError('body_too_large', `A hook may have ${record_chars_max} characters in all.`)
}
