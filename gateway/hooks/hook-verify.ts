/**
 * Whether a webhook was sent by whoever holds the secret, in the sender's own form:
 *
 *   standard-webhooks  webhook-id, webhook-timestamp, webhook-signature      https://www.standardwebhooks.com
 *   github             X-Hub-Signature-256: sha256=HEX over the body         https://docs.github.com/webhooks
 *   stripe             Stripe-Signature: t=..,v1=HEX over "t.body"           https://docs.stripe.com/webhooks/signature
 *   slack              X-Slack-Signature: v0=HEX over "v0:timestamp:body"    https://api.slack.com/authentication/verifying-requests-from-slack
 *   token              X-Webhook-Token, X-Gitlab-Token or a bearer token
 *
 * A signed timestamp may be 300 s off. What must run once is known by an id that the signature covers.
 */
import { hex } from '../../src/hex.ts'
import { Webhook } from 'standardwebhooks'
import type { Verification } from './hook.ts'
import { sameText } from '../keys/identify.ts'

const tolerance_s = 300
/** A longer one is nobody's: the body's hash stands for it. */
const event_id_chars_max = 255

export interface Signed {
  headers: Headers
  body: string
}

/** @param secrets any of these will do. */
export async function isGenuine(
  type: Verification,
  secrets: readonly string[],
  signed: Signed,
  now_ms: number,
): Promise<boolean> {
  for (const secret of secrets) if (await checks[type](secret, signed, now_ms / 1000)) return true
  return false
}

type Check = (secret: string, signed: Signed, now_s: number) => Promise<boolean> | boolean

const checks: Record<Verification, Check> = {
  'standard-webhooks': (secret, { headers, body }) => {
    try {
      new Webhook(secret).verify(body, Object.fromEntries(headers), { jsonParse: false })
      return true
    } catch {
      return false
    }
  },
  github: async (secret, { headers, body }) =>
    sameText(headers.get('x-hub-signature-256') ?? '', `sha256=${await hmacHex(secret, body)}`),
  stripe: async (secret, { headers, body }, now_s) => {
    const parts = (headers.get('stripe-signature') ?? '').split(',').map((part) => part.split('='))
    const t = parts.find(([name]) => name === 't')?.[1] ?? ''
    if (!isRecent(t, now_s)) return false
    const expected = await hmacHex(secret, `${t}.${body}`)
    return parts.some(([name, value]) => name === 'v1' && sameText(value ?? '', expected))
  },
  slack: async (secret, { headers, body }, now_s) => {
    const t = headers.get('x-slack-request-timestamp') ?? ''
    if (!isRecent(t, now_s)) return false
    return sameText(headers.get('x-slack-signature') ?? '', `v0=${await hmacHex(secret, `v0:${t}:${body}`)}`)
  },
  token: (secret, { headers }) => {
    const bearer = /^bearer +(\S+) *$/i.exec(headers.get('authorization') ?? '')?.[1]
    const sent = headers.get('x-webhook-token') ?? headers.get('x-gitlab-token') ?? bearer
    return sent !== null && sent !== undefined && sameText(sent, secret)
  },
}

const isRecent = (timestamp: string, now_s: number) =>
  /^\d{1,12}$/.test(timestamp) && Math.abs(now_s - Number(timestamp)) <= tolerance_s

/** null: nothing tells this event from another one. */
export async function eventId(
  type: Verification,
  { headers, body }: Signed,
  payload: unknown,
): Promise<string | null> {
  const field = (name: string) => {
    const value =
      typeof payload === 'object' && payload !== null ? (payload as Record<string, unknown>)[name] : null
    return typeof value === 'string' && value !== '' ? value : null
  }
  if (type === 'standard-webhooks') return headers.get('webhook-id')
  if (type === 'token') return headers.get('idempotency-key') ?? headers.get('webhook-id')
  // GitHub's delivery id is not signed: whoever replays the body could choose another.
  const inside = type === 'stripe' ? field('id') : type === 'slack' ? field('event_id') : null
  return inside !== null && inside.length <= event_id_chars_max ? inside : sha256Hex(body)
}

const utf8 = new TextEncoder()

export async function hmacHex(secret: string, text: string): Promise<string> {
  const algorithm = { name: 'HMAC', hash: 'SHA-256' }
  const key = await crypto.subtle.importKey('raw', utf8.encode(secret), algorithm, false, ['sign'])
  return hex(await crypto.subtle.sign('HMAC', key, utf8.encode(text)))
}

const sha256Hex = async (text: string) => hex(await crypto.subtle.digest('SHA-256', utf8.encode(text)))
