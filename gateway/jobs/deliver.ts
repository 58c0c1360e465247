/** One attempt to deliver a webhook, signed as Standard Webhooks says: https://www.standardwebhooks.com */
import { isLoopback, refusal } from '../../src/callback-url.ts'
import { retryAfter } from './delivery-schedule.ts'
import { signature } from './signature.ts'

export interface Message {
  webhook_id: string
  url: string
  /** Each signs; more than one while a secret is being changed. */
  secrets: string[]
  body: string
}

export type Outcome =
  | { type: 'delivered'; status_code: number }
  | { type: 'failed'; status_code: number | null; error: string; retryAfterMs: number }
  /** The receiver wants no more (410), or nothing may be sent there. */
  | { type: 'refused'; status_code: number | null; error: string }

const attempt_ms = 15_000

type Fetch = (url: string, init: RequestInit) => Promise<Response>

export async function deliver(
  env: Env,
  message: Message,
  fetch: Fetch = sender(env, message.url),
): Promise<Outcome> {
  const why = refusal(message.url, env.ENVIRONMENT)
  if (why !== null) return { type: 'refused', status_code: null, error: why }
  try {
    const response = await fetch(message.url, {
      method: 'POST',
      headers: await signedHeaders(message, new Date()),
      body: message.body,
      redirect: 'manual',
      signal: AbortSignal.timeout(attempt_ms),
    })
    await response.body?.cancel()
    const { status } = response
    if (response.ok) return { type: 'delivered', status_code: status }
    if (status === 410) return { type: 'refused', status_code: status, error: 'the receiver wants no more' }
    const redirect = status >= 300 && status < 400
    return {
      type: 'failed',
      status_code: status,
      error: redirect ? 'redirects are not followed' : `answered ${status}`,
      retryAfterMs: retryAfter(response.headers.get('retry-after'), Date.now()),
    }
  } catch (cause) {
    const late = cause instanceof Error && cause.name === 'TimeoutError'
    const error = late ? `no answer within ${attempt_ms / 1000} s` : 'the connection failed'
    return { type: 'failed', status_code: null, error, retryAfterMs: 0 }
  }
}

async function signedHeaders(
  { webhook_id, secrets, body }: Message,
  now: Date,
): Promise<Record<string, string>> {
  const signatures = secrets.map((secret) => signature(secret, webhook_id, now, body))
  return {
    'content-type': 'application/json',
    'user-agent': 'qwen2-edge-webhooks/1',
    'webhook-id': webhook_id,
    'webhook-timestamp': String(Math.floor(now.getTime() / 1000)),
    'webhook-signature': (await Promise.all(signatures)).join(' '),
  }
}

/**
 * A strict site sets EGRESS_PROXY (gateway/local/egress-proxy.ts): it resolves a name once, checks and pins the address.
 * Otherwise, locally, a network service that reaches public addresses alone stands in for `global_fetch_strictly_public`.
 */
function sender(env: Env, url: string): Fetch {
  const { EGRESS } = env as { EGRESS?: Fetcher }
  if (env.EGRESS_PROXY !== '')
    return (to, init) => {
      const headers = {
        ...(init.headers as Record<string, string>),
        'x-egress-url': to,
        authorization: `Bearer ${env.BACKEND_SECRET}`,
      }
      return fetch(env.EGRESS_PROXY, { ...init, headers })
    }
  return EGRESS === undefined || isLoopback(url)
    ? (to, init) => fetch(to, init)
    : (to, init) => EGRESS.fetch(to, init)
}
