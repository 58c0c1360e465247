/** Four gateways that share their tenants' objects: `npm run bench -- limits` does this for minutes. */
import { afterAll, beforeAll, expect, it } from 'vitest'
import { startGateways, type Gateways } from '../bench/_gateways.ts'
import { load } from '../bench/_load.ts'
import { startProgram } from '../bench/_programs.ts'
import { freePort } from '../../gpu-backend/free-port.ts'

const hold_ms = 10
let gateways: Gateways
let upstream: number
let stopUpstream: () => Promise<void>
beforeAll(async () => {
  upstream = await freePort()
  const args = ['test/bench/_mock-upstream.ts', String(upstream), String(hold_ms)]
  stopUpstream = await startProgram(upstream, args)
  gateways = await startGateways(4, `http://127.0.0.1:${upstream}`)
})
afterAll(async () => {
  await gateways?.stop()
  await stopUpstream?.()
})

const messages = [{ role: 'user', content: 'Hello' }]
const body = JSON.stringify({ model: 'tiny', temperature: 0, max_tokens: 16, messages })
const fresh = { 'cache-control': 'no-store' }

/** From all gateways at once, each connection as fast as it is answered. */
async function passed(limits: Record<string, number>, seconds: number, headers: Record<string, string> = {}) {
  const authorization = `Bearer ${await gateways.newKey(limits)}`
  const target = { path: '/v1/chat/completions', headers: { authorization, ...headers }, body }
  const loads = await Promise.all(gateways.ports.map((port) => load({ ...target, port }, 3, seconds)))
  const count = (status: number) => loads.reduce((sum, { statuses }) => sum + (statuses[status] ?? 0), 0)
  return { admitted: count(200), refused: count(429) }
}

it('leased by four isolates, requests never pass their limit, and reach it', async () => {
  const limit = 300
  const { admitted, refused } = await passed({ requests_per_minute: limit }, 4)
  expect(refused).toBeGreaterThan(0)
  expect(admitted).toBeLessThanOrEqual(limit)
  expect(admitted).toBeGreaterThanOrEqual(0.95 * limit)
})

it('leased by four isolates, tokens never pass their limit, and reach it', async () => {
  const headers = { authorization: `Bearer ${await gateways.newKey({})}`, ...fresh }
  const url = `http://127.0.0.1:${gateways.ports[0]}/v1/chat/completions`
  const answer = await fetch(url, { method: 'POST', headers, body })
  const { usage } = (await answer.json()) as { usage: { total_tokens: number } }
  const limit = 80 * usage.total_tokens
  const { admitted, refused } = await passed({ tokens_per_minute: limit }, 4, fresh)
  expect(refused).toBeGreaterThan(0)
  const used = admitted * usage.total_tokens
  expect(used).toBeLessThanOrEqual(limit)
  expect(used).toBeGreaterThanOrEqual(0.95 * limit)
})

it('no more generations run than there are slots, whoever asks', async () => {
  const peak = async () =>
    ((await (await fetch(`http://127.0.0.1:${upstream}/peak`)).json()) as { peak: number }).peak
  await peak()
  const { admitted, refused } = await passed({ concurrent: 3 }, 2, fresh)
  expect(refused).toBeGreaterThan(0)
  expect(admitted).toBeGreaterThan(3)
  expect(await peak()).toBe(3)
})
