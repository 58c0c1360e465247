/**
 * What an answer from the edge's memory costs, and what looking for one adds to a miss, on workerd's own socket with a
 * backend that takes no time. Hits are asked for at a steady rate, whatever the last one took; a miss is measured
 * against the same call made to the backend itself, turn by turn.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../../gpu-backend/free-port.ts'
import { startGateways } from './_gateways.ts'
import { Connection, load, quantile, request, type Target } from './_load.ts'
import type { BenchOptions, BenchResult } from './main.ts'
import { startProgram } from './_programs.ts'

const hits_per_second = 200
const hit_p50_ms_max = 3
const hit_p99_ms_max = 10
const added_p50_ms_max = 2

export async function run({ quick, say }: BenchOptions): Promise<BenchResult[]> {
  const upstream = await freePort()
  const url = `http://127.0.0.1:${upstream}`
  say('starting the upstream and the gateway')
  const stopUpstream = await startProgram(upstream, ['test/bench/_mock-upstream.ts', String(upstream)])
  const gateways = await startGateways(1, url)
  const edge = gateways.ports[0] ?? 0
  const key = await gateways.newKey({ requests_per_minute: 100_000_000 })
  try {
    const results: BenchResult[] = []
    say(`hits at ${hits_per_second} a second`)
    results.push(...(await hits(edge, key, quick ? 3 : 20)))
    say('hits as fast as they go, beside a bare route')
    results.push(...(await throughput(edge, key, quick ? 2 : 6)))
    say('misses, beside the same call to the backend')
    results.push(...(await misses(edge, upstream, key, quick ? 200 : 1_000)))
    return results
  } finally {
    await gateways.stop()
    await stopUpstream()
  }
}

const question = (text: string, more: object = {}) =>
  JSON.stringify({
    model: 'tiny',
    temperature: 0,
    // The mock writes 16 tokens at once.
    max_tokens: 16,
    messages: [{ role: 'user', content: text }],
    ...more,
  })
const chat = (port: number, key: string, body: string): Target => ({
  port,
  path: '/v1/chat/completions',
  headers: { authorization: `Bearer ${key}` },
  body,
})

async function hits(edge: number, key: string, seconds: number): Promise<BenchResult[]> {
  const bytes = request(chat(edge, key, question('What is 17 + 25?')))
  const idle = Array.from({ length: 8 }, () => new Connection(edge))
  for (const connection of idle) for (let i = 0; i < 20; i++) await connection.exchange(bytes)
  const times: number[] = []
  const work: Promise<void>[] = []
  const count = seconds * hits_per_second
  const started = performance.now()
  for (let i = 0; i < count; i++) {
    const due = started + (i * 1000) / hits_per_second
    while (performance.now() < due) await sleep(due - performance.now())
    const connection = idle.pop() ?? new Connection(edge)
    const sent = performance.now()
    work.push(
      connection.exchange(bytes).then(({ status, text }) => {
        times.push(performance.now() - sent)
        idle.push(connection)
        if (status !== 200 || !/cache-status: qwen-edge; hit/i.test(text)) throw new Error(text)
        return undefined
      }),
    )
  }
  await Promise.all(work)
  for (const connection of idle) connection.close()
  return [
    atMost(`a hit at ${hits_per_second}/s, p50`, quantile(times, 0.5), hit_p50_ms_max),
    atMost(`a hit at ${hits_per_second}/s, p99`, quantile(times, 0.99), hit_p99_ms_max),
  ]
}

async function throughput(edge: number, key: string, seconds: number): Promise<BenchResult[]> {
  const bare: Target = { port: edge, path: '/cached', body: question('What is 17 + 25?') }
  const hit = chat(edge, key, bare.body)
  for (const target of [bare, hit]) await load(target, 16, 1)
  const figures = { bare: { per_second: 0, cpu_ms: 0 }, hit: { per_second: 0, cpu_ms: 0 } }
  for (let round = 0; round < 2; round++) {
    for (const [name, target] of [
      ['bare', bare],
      ['hit', hit],
    ] as const) {
      const before = workerdCpuMs()
      const { per_second } = await load(target, 16, seconds / 2)
      figures[name].cpu_ms += (workerdCpuMs() - before) / (per_second * (seconds / 2)) / 2
      figures[name].per_second += per_second / 2
    }
  }
  const peer = 'the bare route'
  const { bare: least, hit: ours } = figures
  return [
    { name: 'a bare Hono route with one Cache API read', value: least.per_second, unit: 'req/s' },
    {
      name: 'hits, 16 connections',
      value: ours.per_second,
      unit: 'req/s',
      peer,
      ratio: ours.per_second / least.per_second,
      goal: 0.5,
    },
    // What a busy machine does not change.
    { name: 'CPU of a hit', value: ours.cpu_ms, unit: 'ms', peer, ratio: least.cpu_ms / ours.cpu_ms },
  ]
}

/** Of this process's workerd, user and system (Linux; NaN elsewhere). */
function workerdCpuMs(): number {
  if (process.platform !== 'linux') return NaN
  let ticks = 0
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      if (Number(fields[1]) === process.pid && stat.includes('(workerd)'))
        ticks += Number(fields[11]) + Number(fields[12])
    } catch {
      // It has ended.
    }
  }
  return ticks * 10
}

async function misses(edge: number, upstream: number, key: string, count: number): Promise<BenchResult[]> {
  const wire = {
    request_id: 'bench',
    model: 'tiny',
    token_ids: Array.from({ length: 30 }, (_, i) => i + 100),
    sampling: { temperature: 0, max_tokens: 16 },
  }
  const backend = request({ port: upstream, path: '/v1/generate', body: JSON.stringify(wire) })
  const through = new Connection(edge)
  const straight = new Connection(upstream)
  const times = { backend: [] as number[], shared: [] as number[], direct: [] as number[] }
  const timed = async (connection: Connection, bytes: Buffer, into: number[]) => {
    const sent = performance.now()
    await connection.exchange(bytes)
    into.push(performance.now() - sent)
  }
  for (let i = 0; i < count; i++) {
    await timed(straight, backend, times.backend)
    await timed(through, request(chat(edge, key, question(`What is ${i} + 25?`))), times.shared)
    await timed(
      through,
      request(chat(edge, key, question(`What is ${i}?`, { temperature: 1 }))),
      times.direct,
    )
  }
  through.close()
  straight.close()
  const base = quantile(times.backend, 0.5)
  return [
    { name: 'the backend itself, p50', value: base, unit: 'ms' },
    atMost('a miss that others may share adds, p50', quantile(times.shared, 0.5) - base, added_p50_ms_max),
    atMost('a miss that is not shared adds, p50', quantile(times.direct, 0.5) - base, added_p50_ms_max),
  ]
}

/** As a ratio of which more is better. */
const atMost = (name: string, value: number, limit: number): BenchResult => ({
  name,
  value,
  unit: 'ms',
  peer: `at most ${limit} ms`,
  ratio: limit / value,
  goal: 1,
})
