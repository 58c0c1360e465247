/**
 * Signatures as Standard Webhooks has them: v1 is an HMAC under `whsec_...`, v1a is Ed25519 under a private key (`whsk_...`,
 * never shown) whose public half is `whpk_...`. Libraries for v1 alone pass over a v1a.
 * https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
 */
import { Webhook } from 'standardwebhooks'

export interface SigningPair {
  private_key: string
  public_key: string
}

export async function signature(secret: string, id: string, now: Date, body: string): Promise<string> {
  if (!secret.startsWith('whsk_')) return new Webhook(secret).sign(id, now, body)
  const pkcs8 = Uint8Array.from(atob(secret.slice('whsk_'.length)), (char) => char.charCodeAt(0))
  const key = await crypto.subtle.importKey('pkcs8', pkcs8, 'Ed25519', false, ['sign'])
  const signed = new TextEncoder().encode(`${id}.${Math.floor(now.getTime() / 1000)}.${body}`)
  return `v1a,${base64(await crypto.subtle.sign('Ed25519', key, signed))}`
}

export const makeSigningSecret = (): string =>
  `whsec_${base64(crypto.getRandomValues(new Uint8Array(32)).buffer)}`

export async function makeSigningPair(): Promise<SigningPair> {
  const pair = (await crypto.subtle.generateKey('Ed25519', true, ['sign', 'verify'])) as CryptoKeyPair
  const [secret, open] = await Promise.all([
    crypto.subtle.exportKey('pkcs8', pair.privateKey) as Promise<ArrayBuffer>,
    crypto.subtle.exportKey('raw', pair.publicKey) as Promise<ArrayBuffer>,
  ])
  return { private_key: `whsk_${base64(secret)}`, public_key: `whpk_${base64(open)}` }
}

const base64 = (bytes: ArrayBuffer) => btoa(String.fromCharCode(...new Uint8Array(bytes)))
