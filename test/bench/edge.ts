/**
 * What the edge costs: auth and limits on their own, and the whole of it beside Portkey's gateway and bare proxies, all on
 * the same mock upstream, on workerd's own socket. Peers are fetched once into .qwen-edge/bench.
 */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { freePort } from '../../gpu-backend/free-port.ts'
import { startGateways } from './_gateways.ts'
import { Connection, load, quantile, request, type Figures, type Target } from './_load.ts'
import type { BenchOptions, BenchResult } from './main.ts'
import { runProgram, startProgram } from './_programs.ts'

const root = join(import.meta.dirname, '../..')
const portkey_version = '1.15.2'
const connections = 16
const fetch_ms_max = 180_000
const turns_per_second = 4

export async function run({ quick, say }: BenchOptions): Promise<BenchResult[]> {
  const portkeyDir = await fetchPortkey(say)
  const [upstream, hono, portkey] = await Promise.all([freePort(), freePort(), freePort()])
  const url = `http://127.0.0.1:${upstream}`
  const stops: (() => Promise<void>)[] = []
  try {
    say('starting the upstream, the peers and the gateway')
    stops.push(await startProgram(upstream, ['test/bench/_mock-upstream.ts', String(upstream)]))
    stops.push(await startProgram(hono, ['test/bench/_hono-proxy.ts', String(hono), url]))
    const portkeyArgs = [
      'node_modules/@portkey-ai/gateway/build/start-server.js',
      `--port=${portkey}`,
      '--headless',
    ]
    stops.push(await startProgram(portkey, portkeyArgs, portkeyDir))
    const gateways = await startGateways(1, url)
    stops.push(gateways.stop)
    const edge = gateways.ports[0] ?? 0
    const key = await gateways.newKey({ requests_per_minute: 100_000_000 })
    return await measure({ edge, hono, portkey }, key, url, quick ? 2 : 6, say)
  } finally {
    for (const stop of stops.toReversed()) await stop()
  }
}

interface Ports {
  edge: number
  hono: number
  portkey: number
}

async function measure(
  ports: Ports,
  key: string,
  url: string,
  seconds: number,
  say: BenchOptions['say'],
): Promise<BenchResult[]> {
  const body = (stream: boolean) =>
    JSON.stringify({
      model: 'tiny',
      temperature: 0,
      // The mock writes 20 tokens one by one, any other number at once.
      max_tokens: stream ? 20 : 16,
      stream,
      messages: [{ role: 'user', content: 'What is 17 + 25?' }],
    })
  const chat = '/v1/chat/completions'
  const fresh = { 'cache-control': 'no-store' }
  const ours = { authorization: `Bearer ${key}` }
  const theirs = {
    authorization: 'Bearer sk-test',
    'x-portkey-provider': 'openai',
    'x-portkey-custom-host': `${url}/v1`,
  }
  const at = (port: number, path: string, headers: Record<string, string>, stream = false): Target => ({
    port,
    path,
    headers,
    body: body(stream),
  })
  const hit = at(ports.edge, chat, ours)
  const bareHit = at(ports.edge, `/bare${chat}`, {})
  const miss = at(ports.edge, chat, { ...ours, ...fresh })
  const bareMiss = at(ports.edge, `/bare${chat}`, fresh)

  say('auth, limits and admission beside the same route without them')
  // Every path once, so that nothing is measured cold.
  for (const target of [hit, bareHit, miss, bareMiss]) await load(target, 4, 1)
  const alone = {
    hit: await paired(hit, bareHit, seconds),
    miss: await paired(miss, bareMiss, seconds),
  }
  const busy = async (target: Target): Promise<Figures> => {
    await load(target, connections, 1)
    return load(target, connections, seconds)
  }
  say(`JSON, ${connections} connections: hits, misses, Hono on Node, Portkey`)
  const json = {
    hit: await busy(hit),
    miss: await busy(miss),
    hono: await busy(at(ports.hono, chat, {})),
    portkey: await busy(at(ports.portkey, chat, theirs)),
  }
  say('SSE of 20 chunks: the edge, what reading and writing alone costs, a bare workerd proxy, Hono on Node')
  const streams = {
    edge: await busy(at(ports.edge, chat, { ...ours, ...fresh }, true)),
    relay: await busy(at(ports.edge, `/relay${chat}`, {}, true)),
    workerd: await busy(at(ports.edge, `/proxy${chat}`, {}, true)),
    hono: await busy(at(ports.hono, chat, {}, true)),
  }
  for (const [name, { statuses }] of Object.entries({ ...json, ...streams })) {
    if (Object.keys(statuses).join() !== '200') throw new Error(`${name}: ${JSON.stringify(statuses)}`)
  }

  const rate = (
    name: string,
    { per_second: value }: Figures,
    peer?: string,
    of?: Figures,
    goal?: number,
  ) => ({
    name,
    value,
    unit: 'requests/s',
    ...(peer === undefined || of === undefined ? {} : { peer, ratio: value / of.per_second }),
    ...(goal === undefined ? {} : { goal }),
  })
  return [
    ...added('auth + limits, a hit', alone.hit),
    ...added('auth + limits + admission, a miss', alone.miss),
    rate('JSON, hit', json.hit, 'portkey', json.portkey, 2),
    rate('JSON, miss', json.miss, 'portkey', json.portkey, 1),
    rate('JSON, miss', json.miss, 'hono on node', json.hono),
    rate('JSON, portkey', json.portkey),
    rate('JSON, hono on node', json.hono),
    rate('SSE of 20 chunks', streams.edge, 'bare workerd proxy', streams.workerd, 0.25),
    rate(
      'SSE of 20 chunks, only read and written in JavaScript',
      streams.relay,
      'bare workerd proxy',
      streams.workerd,
    ),
    rate('SSE of 20 chunks, hono on node', streams.hono),
  ]
}

/**
 * Two routes by short turns, one request at a time on one connection each, whose order changes: whatever else the
 * machine does falls on both. Quantiles are those of all turns together: one turn holds too few requests for a p99 of
 * its own. Turns are much longer than what a request leaves to be done after its answer, so each side bears its own.
 */
async function paired(full: Target, bare: Target, seconds: number) {
  const side = (target: Target) => ({
    bytes: request(target),
    connection: new Connection(target.port),
    times: [] as number[],
  })
  const sides = { full: side(full), bare: side(bare) }
  for (let turn = 0; turn < seconds * turns_per_second; turn++) {
    const order = [sides.full, sides.bare]
    for (const { bytes, connection, times } of turn % 2 === 0 ? order : order.toReversed()) {
      const end = performance.now() + 1000 / turns_per_second
      for (let sent = performance.now(); sent < end; sent = performance.now()) {
        const { status, text } = await connection.exchange(bytes)
        if (status !== 200) throw new Error(text)
        times.push(performance.now() - sent)
      }
    }
  }
  for (const { connection } of Object.values(sides)) connection.close()
  const added = (share: number) => quantile(sides.full.times, share) - quantile(sides.bare.times, share)
  return { p50_ms: added(0.5), p99_ms: added(0.99), whole_ms: quantile(sides.full.times, 0.5) }
}

/** The ratio is how far below what is allowed: 0.5 ms at p50, 2 ms at p99. */
const added = (
  name: string,
  figures: { p50_ms: number; p99_ms: number; whole_ms: number },
): BenchResult[] => [
  { name: `${name}: whole answer, p50`, value: figures.whole_ms, unit: 'ms' },
  {
    name: `${name}: added, p50`,
    value: figures.p50_ms,
    unit: 'ms',
    peer: '0.5 ms',
    ratio: below(0.5, figures.p50_ms),
    goal: 1,
  },
  {
    name: `${name}: added, p99`,
    value: figures.p99_ms,
    unit: 'ms',
    peer: '2 ms',
    ratio: below(2, figures.p99_ms),
    goal: 1,
  },
]

/** A difference below nothing is noise. */
const below = (allowed_ms: number, added_ms: number) => allowed_ms / Math.max(0.01, added_ms)

/** No dependency of ours. Its own choice of @hono/node-server cannot stream on a current Node. */
async function fetchPortkey(say: BenchOptions['say']): Promise<string> {
  const folder = join(root, '.qwen-edge/bench/portkey')
  // npm writes it last.
  if (existsSync(join(folder, 'package-lock.json'))) return folder
  say(`fetching @portkey-ai/gateway ${portkey_version}`)
  mkdirSync(folder, { recursive: true })
  const wanted = {
    private: true,
    dependencies: { '@portkey-ai/gateway': portkey_version },
    overrides: { '@hono/node-server': '1.13.8' },
  }
  writeFileSync(join(folder, 'package.json'), JSON.stringify(wanted))
  await runProgram('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts'], folder, fetch_ms_max)
  return folder
}
