/**
 * Are limits exact? Over HTTP, against workerd: five at once against a limit for three, a thousand times; and for two
 * minutes 0.9, 1, 2 and 5 times a limit of requests and of tokens a minute, from one gateway and from four that share
 * their tenants' objects.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../e2e/stack.ts'
import { startGateways, startProgram, type Gateways } from './_gateways.ts'
import { Connection, request } from './_load.ts'
import type { BenchOptions, BenchResult } from './main.ts'

const window_ms = 60_000
/** Answers reach us a little later than they were counted. */
const blur_ms = 50
const requests_per_minute = 240
const generations_per_minute = 60
const hold_ms = 20

const body = (max_tokens: number) =>
  JSON.stringify({
    model: 'tiny',
    temperature: 0,
    max_tokens,
    messages: [{ role: 'user', content: 'What is 17 + 25?' }],
  })
const ask = (key: string, max_tokens: number, fresh: boolean) =>
  request({
    port: 0,
    path: '/v1/chat/completions',
    headers: { authorization: `Bearer ${key}`, ...(fresh ? { 'cache-control': 'no-store' } : {}) },
    body: body(max_tokens),
  })

export async function run({ quick }: BenchOptions): Promise<BenchResult[]> {
  const upstream = await freePort()
  const stopUpstream = await startProgram(['test/bench/_mock-upstream.ts', String(upstream), String(hold_ms)])
  const gateways = await startGateways(4, `http://127.0.0.1:${upstream}`)
  try {
    const rounds = quick ? 50 : 1000
    const results = await Promise.all([
      threeOfFive(gateways, 'concurrent', rounds),
      threeOfFive(gateways, 'requests_per_minute', rounds),
      atLoads(gateways, quick ? 70 : 130),
    ])
    return results.flat()
  } finally {
    await gateways.stop()
    await stopUpstream()
  }
}

async function threeOfFive(
  { ports, newKey }: Gateways,
  limit: string,
  rounds: number,
): Promise<BenchResult[]> {
  const connections = Array.from({ length: 5 }, (_, i) => new Connection(ports[i % ports.length] ?? 0))
  let exact = 0
  for (let round = 0; round < rounds; round++) {
    const bytes = ask(await newKey({ [limit]: 3 }), 16, true)
    for (const [at, { open }] of connections.entries())
      if (!open) connections[at] = new Connection(ports[at % ports.length] ?? 0)
    const answers = await Promise.all(connections.map((connection) => connection.exchange(bytes)))
    const passed = answers.filter(({ status }) => status === 200).length
    const refused = answers.filter(({ status }) => status === 429).length
    if (passed === 3 && refused === 2) exact++
  }
  for (const connection of connections) connection.close()
  return [{ name: `5 at once, ${limit} 3: exactly 3`, value: exact / rounds, unit: `of ${rounds}`, goal: 1 }]
}

async function atLoads(gateways: Gateways, seconds: number): Promise<BenchResult[]> {
  const cases = [1, 4].flatMap((count) =>
    ['requests', 'tokens'].flatMap((kind) => [0.9, 1, 2, 5].map((times) => ({ count, kind, times }))),
  )
  const results = await Promise.all(
    cases.map(async ({ count, kind, times }, at): Promise<BenchResult[]> => {
      // So that they do not all begin in the same instant.
      await sleep(at * 37)
      const tokens = kind === 'tokens'
      const prompt = tokens ? await promptTokens(gateways) : 0
      const limit = tokens ? generations_per_minute : requests_per_minute
      const key = await gateways.newKey(
        tokens ? { tokens_per_minute: limit * (prompt + 16) } : { requests_per_minute: limit },
      )
      const bytes = ask(key, 16, tokens)
      const { admitted, refused, failed } = await pace(
        gateways.ports.slice(0, count),
        bytes,
        limit * times,
        seconds,
      )
      const most = mostInAWindow(admitted) / limit
      const last = admitted.filter((at) => at > seconds * 1000 - window_ms).length / limit
      const name = `${kind} ${times}x, ${count} gateway${count > 1 ? 's' : ''}`
      const rows: BenchResult[] = [
        { name: `${name}: most in a minute`, value: most, unit: 'of the limit' },
        times < 1
          ? { name: `${name}: refused`, value: refused, unit: 'requests' }
          : { name: `${name}: in the last minute`, value: last, unit: 'of the limit', goal: 0.95 },
      ]
      if (failed > 0) rows.push({ name: `${name}: failed`, value: failed, unit: 'requests' })
      return rows
    }),
  )
  return results.flat()
}

async function promptTokens({ ports, newKey }: Gateways): Promise<number> {
  const connection = new Connection(ports[0] ?? 0)
  const { text } = await connection.exchange(ask(await newKey({}), 16, true))
  connection.close()
  return Number(/"prompt_tokens":(\d+)/.exec(text)?.[1])
}

/** Evenly, whatever the answers; gives when the admitted ones were answered. */
async function pace(ports: number[], bytes: Buffer, per_minute: number, seconds: number) {
  const idle = ports.map(() => [] as Connection[])
  const admitted: number[] = []
  let [refused, failed] = [0, 0]
  const started = performance.now()
  const pending: Promise<void>[] = []
  async function one(connection: Connection, at: number): Promise<void> {
    const { status } = await connection.exchange(bytes).catch(() => ({ status: 0 }))
    if (status === 200) admitted.push(performance.now() - started)
    else if (status === 429) refused++
    else failed++
    if (status !== 0) idle[at]?.push(connection)
  }
  for (let sent = 0; sent < (per_minute / 60) * seconds; sent++) {
    const due = started + (sent * window_ms) / per_minute
    const early = due - performance.now()
    if (early > 1) await sleep(early)
    const at = sent % ports.length
    const kept = idle[at]?.pop()
    const connection = kept?.open === true ? kept : new Connection(ports[at] ?? 0)
    pending.push(one(connection, at))
  }
  await Promise.all(pending)
  for (const connection of idle.flat()) connection.close()
  return { admitted: admitted.toSorted((a, b) => a - b), refused, failed }
}

function mostInAWindow(times: number[]): number {
  let [most, first] = [0, 0]
  for (const [last, at] of times.entries()) {
    while ((times[first] ?? at) <= at - (window_ms - blur_ms)) first++
    most = Math.max(most, last - first + 1)
  }
  return most
}
