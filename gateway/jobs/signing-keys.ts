/**
 * What a tenant's deliveries are signed with, made when first asked for: secrets for v1, which rotate with an overlap,
 * and one Ed25519 pair for v1a, so that a receiver can verify without being able to sign.
 */
import { holding, rotated, storedHook, type HeldSecret } from '../hooks/hook.ts'
import { makeSigningPair, makeSigningSecret, type SigningPair } from './signature.ts'

/** Those that hold, the newest first. */
export function signingSecrets(kv: SyncKvStorage): string[] {
  return holding(held(kv), Date.now())
}

/** @returns those that hold from now on, the new one first; the others do for `grace_ms`. */
export function rotateSigningSecret(kv: SyncKvStorage, grace_ms: number): string[] {
  kv.put('signing', rotated(held(kv), makeSigningSecret(), Date.now() + grace_ms))
  return signingSecrets(kv)
}

/** What signs now. A pair never rotates; a hook that is gone leaves what it had when the event was accepted. */
export async function secretsNow(
  env: Env,
  kv: SyncKvStorage,
  { signer, secrets }: { signer: string | null; secrets: string[] },
): Promise<string[]> {
  if (signer === null) return secrets
  const signing = signer === 'tenant' ? held(kv) : (await storedHook(env, signer))?.signing
  if (signing === undefined) return secrets
  return [...holding(signing, Date.now()), ...secrets.filter((secret) => secret.startsWith('whsk_'))]
}

export async function signingPair(kv: SyncKvStorage): Promise<SigningPair> {
  const known = () => kv.get<SigningPair>('signing_pair')
  const made = known() ?? (await makeSigningPair())
  // Another caller may have been first meanwhile.
  const first = known()
  if (first !== undefined) return first
  kv.put('signing_pair', made)
  return made
}

function held(kv: SyncKvStorage): HeldSecret[] {
  const known = kv.get<HeldSecret[]>('signing')
  if (known !== undefined) return known
  // Where tenants from before rotation have theirs.
  const secret = kv.get<string>('signing_secret') ?? makeSigningSecret()
  const made = [{ secret, until: null }]
  kv.put('signing', made)
  return made
}
