/**
 * Are limits exact? Over HTTP, against workerd, from gateways that share their tenants' objects: five at once against a
 * limit for three, a thousand times; slots under more load than they hold, counted where generations run; and for two
 * minutes 0.9, 1, 2 and 5 times a limit of requests and of tokens a minute, from one gateway and from four.
 *
 * The parts: concurrent, requests, one, four, and admission: what asking for leave costs a generation, and a lease saves.
 * Limits a minute are high enough for leases to be at work.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../../gpu-backend/free-port.ts'
import { startGateways, type Gateways } from './_gateways.ts'
import { Connection, load, request } from './_load.ts'
import type { BenchOptions, BenchResult } from './main.ts'
import { startProgram } from './_programs.ts'

const window_ms = 60_000
/** More than a busy machine can serve at 5 times would measure its queues. */
const in_flight_max = 200
const requests_per_minute = 600
const generations_per_minute = 120
const hold_ms = 20
const [reserved_tokens, answered_tokens] = [64, 16]
/** Taken in turn, so that each has settled when it is asked again. */
const tenants_in_turn = 10

const body = (max_tokens: number, min_tokens = 0) =>
  JSON.stringify({
    model: 'tiny',
    temperature: 0,
    max_tokens,
    min_tokens,
    messages: [{ role: 'user', content: 'What is 17 + 25?' }],
  })
const ask = (key: string, fresh: boolean) =>
  request({
    port: 0,
    path: '/v1/chat/completions',
    headers: { authorization: `Bearer ${key}`, ...(fresh ? { 'cache-control': 'no-store' } : {}) },
    body: fresh ? body(reserved_tokens, answered_tokens) : body(answered_tokens),
  })

export async function run({ quick, only, say }: BenchOptions): Promise<BenchResult[]> {
  const upstream = await freePort()
  say('starting the upstream and four gateways')
  const stopUpstream = await startProgram(upstream, [
    'test/bench/_mock-upstream.ts',
    String(upstream),
    String(hold_ms),
  ])
  const gateways = await startGateways(4, `http://127.0.0.1:${upstream}`)
  const peak = async () => {
    const answer = await fetch(`http://127.0.0.1:${upstream}/peak`)
    return ((await answer.json()) as { peak: number }).peak
  }
  const rounds = quick ? 50 : 1000
  const minutes = quick ? 1 : 2
  const loads: Record<string, () => Promise<BenchResult[]>> = {
    one: () => atLoads(gateways, 1, minutes),
    four: () => atLoads(gateways, 4, minutes),
  }
  const parts: typeof loads = {
    concurrent: async () => [
      ...(await threeOfFive(gateways, 'concurrent', rounds, tenants_in_turn)),
      ...(await slotsUnderLoad(gateways, peak, quick ? 3 : 20)),
    ],
    requests: () => threeOfFive(gateways, 'requests_per_minute', rounds, rounds),
    ...loads,
    admission: () => admissionAdds(gateways, quick ? 4 : 12),
  }
  try {
    const results: BenchResult[] = []
    for (const [name, part] of Object.entries(parts)) {
      if (only !== undefined && !only.includes(name)) continue
      say(name in loads ? `loads from ${name}: ${minutes} min` : `${name}: ${rounds} rounds`)
      results.push(...(await part()))
    }
    return results
  } finally {
    await gateways.stop()
    await stopUpstream()
  }
}

/** Five connections, over all gateways. @param tenants each with a limit of its own */
async function threeOfFive(
  { ports, newKey }: Gateways,
  limit: string,
  rounds: number,
  tenants: number,
): Promise<BenchResult[]> {
  const connections = Array.from({ length: 5 }, (_, i) => new Connection(ports[i % ports.length] ?? 0))
  const keys: string[] = []
  let exact = 0
  for (let round = 0; round < rounds; round++) {
    const key = (keys[round % tenants] ??= await newKey({ [limit]: 3 }))
    const bytes = ask(key, true)
    for (const [at, { open }] of connections.entries())
      if (!open) connections[at] = new Connection(ports[at % ports.length] ?? 0)
    const answers = await Promise.all(connections.map((connection) => connection.exchange(bytes)))
    const passed = answers.filter(({ status }) => status === 200).length
    const refused = answers.filter(({ status }) => status === 429).length
    if (passed === 3 && refused === 2) exact++
  }
  for (const connection of connections) connection.close()
  return [
    {
      name: `5 at once, ${ports.length} gateways, ${limit} 3: exactly 3`,
      value: exact / rounds,
      unit: `of ${rounds}`,
      goal: 1,
    },
  ]
}

/** Many more callers than slots, each asking again at once. What runs is counted by the upstream. */
async function slotsUnderLoad(
  { ports, newKey }: Gateways,
  peak: () => Promise<number>,
  seconds: number,
): Promise<BenchResult[]> {
  const headers = { authorization: `Bearer ${await newKey({ concurrent: 3 })}`, 'cache-control': 'no-store' }
  const target = { path: '/v1/chat/completions', headers, body: body(reserved_tokens, answered_tokens) }
  await peak()
  const loads = await Promise.all(ports.map((port) => load({ ...target, port }, 3, seconds)))
  const most = await peak()
  const passed = loads.reduce((sum, { statuses }) => sum + (statuses[200] ?? 0), 0)
  const name = `${3 * ports.length} callers, ${ports.length} gateways, concurrent 3`
  return [
    { name: `${name}: most at once`, value: most, unit: 'generations', peer: '3', ratio: 3 / most, goal: 1 },
    {
      name: `${name}: slots in use`,
      value: (passed * hold_ms) / (3 * seconds * 1000),
      unit: 'of the time',
    },
  ]
}

/** From the second second on, when leases are held. Turn by turn, so that what else the machine does meets all alike. */
async function admissionAdds({ ports, newKey }: Gateways, seconds: number): Promise<BenchResult[]> {
  const kinds = {
    'no limit of tokens': {},
    'leased tokens': { tokens_per_minute: 1e9 },
    'asks each time': { tokens_per_minute: 1e9, concurrent: 1000 },
  }
  const connection = new Connection(ports[0] ?? 0)
  const runs = await Promise.all(
    Object.entries(kinds).map(async ([name, limits]) => ({
      name,
      bytes: ask(await newKey(limits), true),
      times: [] as number[],
    })),
  )
  const started = performance.now()
  while (performance.now() - started < seconds * 1000)
    for (const { bytes, times } of runs) {
      const sent = performance.now()
      await connection.exchange(bytes)
      if (sent - started > 2_000) times.push(performance.now() - sent)
    }
  connection.close()
  return runs.map(({ name, times }) => ({
    name: `a generation of ${hold_ms} ms, ${name}: p50`,
    value: times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)] ?? NaN,
    unit: 'ms',
  }))
}

async function atLoads(gateways: Gateways, count: number, minutes: number): Promise<BenchResult[]> {
  const cases = ['requests', 'tokens'].flatMap((kind) => [0.9, 1, 2, 5].map((times) => ({ kind, times })))
  // A service is loaded with its first request.
  const warm = { path: '/v1/chat/completions', body: body(answered_tokens) }
  const headers = { authorization: `Bearer ${await gateways.newKey({})}` }
  for (const port of gateways.ports) await load({ ...warm, port, headers }, 2, 2)
  const prompt = await promptTokens(gateways)
  const results = await Promise.all(
    cases.map(async ({ kind, times }, at): Promise<BenchResult[]> => {
      // So that they do not all begin in the same instant.
      await sleep(at * 37)
      const isTokens = kind === 'tokens'
      const limit = isTokens ? generations_per_minute : requests_per_minute
      const used = prompt + answered_tokens
      const key = await gateways.newKey(
        isTokens ? { tokens_per_minute: limit * used } : { requests_per_minute: limit },
      )
      const ports = gateways.ports.slice(0, count)
      const paced = await pace(ports, ask(key, isTokens), limit * times, minutes * 60)
      const { admitted, refused, failed, inFlight } = paced
      const name = `${kind} ${times}x, ${count} gateway${count > 1 ? 's' : ''}`
      const most = mostInAMinute(admitted) / limit
      const rows: BenchResult[] = [
        {
          name: `${name}: most in a minute`,
          value: most,
          unit: 'of the limit',
          peer: 'the limit',
          ratio: 1 / most,
          goal: 1,
        },
      ]
      if (times < 1) {
        const sent = admitted.length + refused + failed
        rows.push({ name: `${name}: passed`, value: admitted.length / sent, unit: `of ${sent}`, goal: 1 })
        const reserved = (inFlight * (isTokens ? (prompt + reserved_tokens) / used : 1)) / limit
        rows.push({
          name: `${name}: in flight at most`,
          value: reserved,
          unit: 'of the limit',
          peer: '5%',
          ratio: 0.05 / reserved,
        })
      } else {
        const share = admitted.length / limit / minutes
        rows.push({ name: `${name}: admitted`, value: share, unit: 'of the limit', goal: 0.95 })
      }
      if (failed > 0) rows.push({ name: `${name}: failed`, value: -failed, unit: 'requests', goal: 0 })
      return rows
    }),
  )
  return results.flat()
}

async function promptTokens({ ports, newKey }: Gateways): Promise<number> {
  const connection = new Connection(ports[0] ?? 0)
  const { text } = await connection.exchange(ask(await newKey({}), true))
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
  let [refused, failed, inFlight, most] = [0, 0, 0, 0]
  const started = performance.now()
  const pending: Promise<void>[] = []
  async function one(connection: Connection, at: number): Promise<void> {
    most = Math.max(most, ++inFlight)
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
  return { admitted, refused, failed, inFlight: most }
}

/** Decided between sending and answer: only what has both in one minute is known to have been admitted within one. */
function mostInAMinute(admitted: Answered[]): number {
  const bySent = admitted.toSorted((a, b) => a.sent_ms - b.sent_ms)
  const within = ({ sent_ms }: Answered, at: number) => {
    let count = 0
    for (let i = at; (bySent[i]?.sent_ms ?? Infinity) <= sent_ms + window_ms; i++)
      if ((bySent[i]?.answered_ms ?? 0) <= sent_ms + window_ms) count++
    return count
  }
  return Math.max(0, ...bySent.map(within))
}
