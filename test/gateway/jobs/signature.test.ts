import OpenAI from 'openai'
import { Webhook } from 'standardwebhooks'
import { expect, it } from 'vitest'
import { makeSigningPair, makeSigningSecret, signature } from '../../../gateway/jobs/signature.ts'

it('v1a is Ed25519 over id, time and body, and verifies by the public key alone', async () => {
  const { private_key, public_key } = await makeSigningPair()
  const now = new Date()
  const bytes = (base64: string) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0))
  const [version, signed = ''] = (await signature(private_key, 'evt_1', now, '{"a":1}')).split(',')
  expect(version).toBe('v1a')
  expect(public_key).toMatch(/^whpk_/)
  const key = await crypto.subtle.importKey('raw', bytes(public_key.slice(5)), 'Ed25519', true, ['verify'])
  const verify = (body: string) =>
    crypto.subtle.verify(
      'Ed25519',
      key,
      bytes(signed),
      new TextEncoder().encode(`evt_1.${Math.floor(now.getTime() / 1000)}.${body}`),
    )
  expect(await verify('{"a":1}')).toBe(true)
  expect(await verify('{"a":2}')).toBe(false)
})

it('libraries that know v1 alone take it beside a v1a, wherever it stands', async () => {
  const [secret, other] = [makeSigningSecret(), makeSigningSecret()]
  const { private_key } = await makeSigningPair()
  const [now, body] = [new Date(), '{"type":"response.completed"}']
  for (const order of [
    [secret, private_key],
    [private_key, other, secret],
  ]) {
    const signatures = await Promise.all(order.map((key) => signature(key, 'evt_1', now, body)))
    const headers = {
      'webhook-id': 'evt_1',
      'webhook-timestamp': String(Math.floor(now.getTime() / 1000)),
      'webhook-signature': signatures.join(' '),
    }
    expect(new Webhook(secret).verify(body, headers)).toEqual(JSON.parse(body))
    const openai = new OpenAI({ apiKey: 'x', webhookSecret: secret })
    expect(await openai.webhooks.unwrap(body, headers)).toEqual(JSON.parse(body))
    expect(() => new Webhook(makeSigningSecret()).verify(body, headers)).toThrow('signature')
  }
})
