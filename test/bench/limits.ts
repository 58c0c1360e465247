/**
 * Are limits exact? Over HTTP, against workerd: five at once against a limit for three, a thousand times; and for two
 * minutes 0.9, 1, 2 and 5 times a limit of requests and of tokens a minute, from one gateway and from four that share
 * their tenants' objects.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../e2e/stack.ts'
import { startGateways, type Gateways } from './_gateways.ts'
import { Connection, load, request } from './_load.ts'
import type { BenchOptions, BenchResult } from './main.ts'
import { startProgram } from './_programs.ts'

const window_ms = 60_000
/** More than a busy machine can serve at 5 times would measure its queues. */
const in_flight_max = 200
const requests_per_minute = 120
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

export async function run({ quick, say }: BenchOptions): Promise<BenchResult[]> {
  const upstream = await freePort()
  say('starting the upstream and four gateways')
  const stopUpstream = await startProgram(upstream, [
    'test/bench/_mock-upstream.ts',
    String(upstream),
    String(hold_ms),
  ])
  const gateways = await startGateways(4, `http://127.0.0.1:${upstream}`)
  try {
    const rounds = quick ? 50 : 1000
    say(`five at once against a limit for three, ${rounds} times over, of two kinds`)
    const exact = [
      ...(await threeOfFive(gateways, 'concurrent', rounds)),
      ...(await threeOfFive(gateways, 'requests_per_minute', rounds)),
    ]
    const minutes = quick ? 1 : 2
    say(`0.9 to 5 times a limit from one gateway and from four: ${minutes} min`)
    return [...exact, ...(await atLoads(gateways, minutes))]
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

async function atLoads(gateways: Gateways, minutes: number): Promise<BenchResult[]> {
  const cases = [1, 4].flatMap((count) =>
    ['requests', 'tokens'].flatMap((kind) => [0.9, 1, 2, 5].map((times) => ({ count, kind, times }))),
  )
  // A service is loaded with its first request.
  for (const port of gateways.ports) await load({ ...warm, port, headers: await bearer(gateways) }, 2, 2)
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
        minutes * 60,
      )
      const most = mostInAMinute(admitted) / limit
      const name = `${kind} ${times}x, ${count} gateway${count > 1 ? 's' : ''}`
      const rows: BenchResult[] = [
        {
          name: `${name}: most in a minute`,
          value: most,
          unit: 'of the limit',
          peer: 'the limit',
          ratio: 1 / most,
          goal: 1,
        },
        times < 1
          ? { name: `${name}: refused`, value: refused, unit: 'requests' }
          : {
              name: `${name}: admitted`,
              value: admitted.length / limit / minutes,
              unit: 'of the limit',
              goal: 0.95,
            },
      ]
      if (failed > 0) rows.push({ name: `${name}: failed`, value: failed, unit: 'requests' })
      return rows
    }),
  )
  return results.flat()
}

const warm = { path: '/v1/chat/completions', body: body(16) }
const bearer = async ({ newKey }: Gateways) => ({ authorization: `Bearer ${await newKey({})}` })

async function promptTokens({ ports, newKey }: Gateways): Promise<number> {
  const connection = new Connection(ports[0] ?? 0)
  const { text } = await connection.exchange(ask(await newKey({}), 16, true))
  connection.close()
  return Number(/"prompt_tokens":(\d+)/.exec(text)?.[1])
}

interface Answered {
  sent_ms: number
  answered_ms: number
}

/** Evenly, whatever the answers. */
async function pace(ports: number[], bytes: Buffer, per_minute: number, seconds: number) {
  const idle = ports.map(() => [] as Connection[])
  const admitted: Answered[] = []
  let [refused, failed, inFlight] = [0, 0, 0]
  const started = performance.now()
  const pending: Promise<void>[] = []
  async function one(connection: Connection, at: number): Promise<void> {
    inFlight++
    const sent_ms = performance.now()
    const { status } = await connection.exchange(bytes).catch(() => ({ status: 0 }))
    inFlight--
    if (status === 200) admitted.push({ sent_ms, answered_ms: performance.now() })
    else if (status === 429) refused++
    else failed++
    if (status !== 0) idle[at]?.push(connection)
  }
  for (let sent = 0; sent < (per_minute / 60) * seconds; sent++) {
    const due = started + (sent * window_ms) / per_minute
    const early = due - performance.now()
    if (early > 1) await sleep(early)
    const at = sent % ports.length
    if (inFlight > in_flight_max) throw new Error('this machine is too busy: it falls behind the load')
    const kept = idle[at]?.pop()
    const connection = kept?.open === true ? kept : new Connection(ports[at] ?? 0)
    pending.push(one(connection, at))
  }
  await Promise.all(pending)
  for (const connection of idle.flat()) connection.close()
  return { admitted, refused, failed }
}

/** Decided between sending and answer: only what has both in one minute is known to have been admitted within one. */
function mostInAMinute(admitted: Answered[]): number {
  const within = ({ sent_ms }: Answered) =>
    admitted.filter((other) => other.sent_ms >= sent_ms && other.answered_ms <= sent_ms + window_ms).length
  return Math.max(0, ...admitted.map(within))
}
