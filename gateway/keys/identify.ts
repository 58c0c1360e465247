/**
 * Who calls: an API key -> a Caller. The truth is the directory object; in front of it stand this isolate's memory
 * (5 s, by the key itself: a busy key is not even hashed) and KV (60 s, the platform's own staleness), which is done without where it fails or hangs. A key with a wrong checksum costs no storage read. An absent key
 * is remembered by the isolate alone: a key's 256 random bits are never guessed before they are made, so a cached
 * absence cannot hide a new key. When storage fails the answer is 503, never 401.
 */
import { hex } from '../../src/hex.ts'
import { ApiError } from '../../src/errors.ts'
import { isWellFormedKey } from '../../src/keys.ts'
import { Breaker } from '../breaker.ts'
import type { KeyRecord } from './directory.ts'

export interface Caller {
  tenantId: string
  keyId: string
  /** null: all. */
  models: string[] | null
  scopes: string[] | null
}

const memory_ms = 5_000
const kv_ttl_s = 60
const keysKv = new Breaker(250)
const memory_entries_max = 10_000
const memory = new Map<string, { record: KeyRecord | null; until: number }>()

export async function identify(
  env: Env,
  key: string,
  defer: (work: Promise<unknown>) => void,
): Promise<Caller> {
  if (env.ENVIRONMENT === 'development' && env.DEV_KEY !== '' && sameText(key, env.DEV_KEY)) {
    return { tenantId: 'dev', keyId: 'dev', models: null, scopes: null }
  }
  if (!memory.has(key) && !isWellFormedKey(key)) throw refused()
  const record = await lookup(env, key, defer)
  if (record === null || (record.expires_at !== null && record.expires_at * 1000 <= Date.now()))
    throw refused()
  return { tenantId: record.tenant_id, keyId: record.id, models: record.models, scopes: record.scopes }
}

const refused = () =>
  new ApiError(
    'invalid_api_key',
    'This API key is not valid here: check for a typing error, or ask your operator for a new one.',
  )

async function lookup(
  env: Env,
  key: string,
  defer: (work: Promise<unknown>) => void,
): Promise<KeyRecord | null> {
  const known = memory.get(key)
  if (known && known.until > Date.now()) return known.record
  const hash = await hashKey(env.KEY_PEPPER, key)
  try {
    let [record, failed] = await keysKv.attempt(async () => env.KEYS.get<KeyRecord>(hash, 'json'))
    if (record === null) {
      record = await directoryOf(env, hash).get(hash)
      // A put that crosses a revocation must not outlive it: KV forgets by itself.
      if (record !== null && !failed)
        defer(env.KEYS.put(hash, JSON.stringify(record), { expirationTtl: kv_ttl_s }))
    }
    remember(key, record)
    return record
  } catch (cause) {
    throw new ApiError('storage_unavailable', 'Keys cannot be read at the moment. Try again.', {
      retryAfterS: 1,
      cause,
    })
  }
}

function remember(key: string, record: KeyRecord | null): void {
  if (memory.size >= memory_entries_max) for (const oldest of memory.keys()) if (memory.delete(oldest)) break
  memory.set(key, { record, until: Date.now() + memory_ms })
}

/** 16 directory objects share the keys by the first digit of their hash. */
export const directoryOf = (env: Env, hash: string) => env.DIRECTORY.getByName(`keys-${hash.charAt(0)}`)

/** Nobody finds it any more, but for what isolates and KV remember for a moment. */
export async function forgetKey(env: Env, hash: string): Promise<void> {
  await Promise.all([directoryOf(env, hash).delete(hash), env.KEYS.delete(hash)])
}

let hmacKey: { pepper: string; key: CryptoKey } | undefined

/** Hex of HMAC-SHA256 under the operator's pepper: a stolen directory gives no keys, and nobody else makes a hook's id. */
export async function hashKey(pepper: string, key: string): Promise<string> {
  if (hmacKey?.pepper !== pepper) {
    const algorithm = { name: 'HMAC', hash: 'SHA-256' }
    hmacKey = {
      pepper,
      key: await crypto.subtle.importKey('raw', new TextEncoder().encode(pepper), algorithm, false, ['sign']),
    }
  }
  const mac = await crypto.subtle.sign('HMAC', hmacKey.key, new TextEncoder().encode(key))
  return hex(mac)
}

/** Constant time in the content; the length may show. */
export function sameText(a: string, b: string): boolean {
  const left = new TextEncoder().encode(a)
  const right = new TextEncoder().encode(b)
  return left.byteLength === right.byteLength && crypto.subtle.timingSafeEqual(left, right)
}
