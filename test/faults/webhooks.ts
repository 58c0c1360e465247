/** Webhooks and jobs while their backend, gateway and receivers fail; and what an attacker would try. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import OpenAI from 'openai'
import { Webhook } from 'standardwebhooks'
import { pidOf } from '../e2e/processes.ts'
import { startReceiver, type Received } from '../e2e/receiver.ts'
import { startStack, type Stack } from '../e2e/stack.ts'
import { Client, effects, eventually, pool, quantile, type Attempt } from './_client.ts'
import { fairness } from './_fairness.ts'
import { hostileUrls } from './_hostile-urls.ts'
import { largeBatch } from './_large-batch.ts'
import type { Finding } from './main.ts'

type Tell = (finding: Finding) => void
type Scenario = (client: Client, scale: number, tell: Tell) => Promise<void>

const patience_ms = 900_000
const sizes = {
  backendJobs: 10_000,
  gatewayJobs: 5_000,
  faultyReceiver: 400,
  payloads: 10_000,
  ingest: 3_000,
}

const scenarios: Record<string, Scenario> = {
  backend: (client, scale, tell) =>
    killed(client, Math.ceil(sizes.backendJobs * scale), 'gpu-backend/main.ts', 5_000, 'backend', tell),
  gateway: (client, scale, tell) =>
    killed(client, Math.ceil(sizes.gatewayJobs * scale), 'workerd serve', 10_000, 'gateway', tell),
  receiver: faultyReceiver,
  signatures,
  ssrf,
  ingest,
  fairness,
  batch: largeBatch,
}

export async function run(
  { scale, only }: { scale: number; only: string | undefined },
  tell: Tell,
): Promise<void> {
  const stack = await startStack({
    QWEN_EDGE_TIME_SCALE: '1000',
    QWEN_EDGE_DEV_REQUESTS_PER_MINUTE: '0',
    LOG: 'warn',
  })
  try {
    for (const [name, scenario] of Object.entries(scenarios))
      if (only === undefined || only === name) await scenario(new Client(stack), scale, tell)
  } finally {
    await stack.stop()
  }
}

async function killed(
  client: Client,
  n: number,
  program: string,
  every_ms: number,
  name: string,
  tell: Tell,
) {
  const receiver = await startReceiver()
  const started = Date.now()
  const killer = startKiller(client.stack, program, every_ms)
  const jobs = await pool(n, 16, (i) => client.submit(i, receiver.url))
  const ids = jobs.map(({ id }) => id)
  await eventually(() => effects(receiver.received, ids).lost === 0, patience_ms, 1_000)
  const kills = await killer()
  // Whatever would come twice has time to.
  await new Promise((resolve) => setTimeout(resolve, 3_000))
  const { lost, doubled, foreign } = effects(receiver.received, ids)
  const seconds = (Date.now() - started) / 1000 - 3
  tell({ name: `${name} killed -9 after every ${every_ms / 1000} s of service: jobs`, value: n })
  tell({ name: `${name} killed: kills`, value: kills })
  tell({ name: `${name} killed: lost`, value: lost, must: 0 })
  tell({ name: `${name} killed: jobs with two webhook-ids`, value: doubled, must: 0 })
  tell({ name: `${name} killed: events of no such job`, value: foreign, must: 0 })
  tell({ name: `${name} killed: jobs a second`, value: (n / seconds).toFixed(1) })
  await receiver.close()
}

/** Kills a program each time it has served for so long; the function that stops it says how often that was. */
function startKiller(stack: Stack, program: string, every_ms: number): () => Promise<number> {
  let stopped = false
  const killing = (async () => {
    for (let kills = 0; ; kills++) {
      await eventually(async () => stopped || (await isServing(stack)), patience_ms)
      await eventually(() => stopped, every_ms)
      if (stopped) return kills
      process.kill(pidOf(stack, program), 'SIGKILL')
    }
  })()
  return () => {
    stopped = true
    return killing
  }
}

const isServing = (stack: Stack) =>
  fetch(`${stack.gateway}/readyz`).then(
    async (response) => {
      await response.body?.cancel()
      return response.ok
    },
    () => false,
  )

/** 30% 500, 10% never answered, 5% reset, 5% 429 with Retry-After, the rest taken. */
async function faultyReceiver(client: Client, scale: number, tell: Tell) {
  const n = Math.max(20, Math.ceil(sizes.faultyReceiver * scale))
  const begun = Date.now()
  const receiver = await startReceiver()
  receiver.answer = (response) => {
    const chance = Math.random()
    if (chance < 0.3) response.writeHead(500).end()
    else if (chance < 0.4) return
    else if (chance < 0.45) response.socket?.resetAndDestroy()
    else if (chance < 0.5) response.writeHead(429, { 'retry-after': '10' }).end()
    else response.writeHead(204).end()
  }
  const jobs = await pool(n, 16, (i) => client.submit(i, receiver.url))
  const open = async () => {
    const counts = await Promise.all(
      ['pending', 'sending'].map((status) =>
        client.json<{ data: unknown[] }>(`/deliveries?status=${status}`),
      ),
    )
    return counts.reduce((sum, { data }) => sum + data.length, 0)
  }
  const settled = await eventually(
    async () => (await ended(client, jobs)) && (await open()) === 0,
    patience_ms,
  )
  tell({ name: `faulty receiver: all of ${n} delivered or dead`, value: String(settled), must: 'true' })
  const gaps: { gap: number; planned: number }[] = []
  for (const { id } of jobs) {
    const { data } = await client.json<{ data: Attempt[] }>(`/jobs/${id}/deliveries`)
    for (const { attempt, at, next_at, status_code } of data)
      if (at !== null && next_at !== null && status_code !== 429)
        gaps.push({ gap: (next_at - at) * 1000, planned: planned_s[attempt] ?? 1 })
  }
  // Milliseconds both, at a thousandth of the schedule; a time is rounded up to the next one.
  const off = gaps.filter(
    ({ gap, planned }) => gap < 0.8 * planned - 0.01 || gap > 1.2 * planned + 1.01,
  ).length
  tell({ name: 'faulty receiver: retries planned', value: gaps.length })
  tell({ name: 'faulty receiver: gaps off by more than 20%', value: off, must: 0 })
  receiver.answer = (response) => response.writeHead(204).end()
  const before = new Set(receiver.received.map(({ headers }) => headers['webhook-id']))
  const from = receiver.received.length
  const since = { since: begun / 1000, status: 'delivered' }
  const { replayed } = await client.json<{ replayed: number }>('/deliveries/replay', since)
  const { replayed: dead } = await client.json<{ replayed: number }>('/deliveries/replay', {
    since: begun / 1000,
  })
  await eventually(() => receiver.received.length - from >= replayed + dead, 60_000)
  const unknown = receiver.received
    .slice(from)
    .filter(({ headers }) => !before.has(headers['webhook-id'])).length
  tell({ name: 'replay: sent again', value: receiver.received.length - from, must: replayed + dead })
  tell({ name: 'replay: under an id that was not sent before', value: unknown, must: 0 })
  await receiver.close()
}

/** Seconds before each attempt. */
const planned_s = [0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400]

async function ended(client: Client, jobs: readonly { id: string }[]): Promise<boolean> {
  for (const { id } of jobs) {
    const { status } = await client.json<{ status: string }>(`/jobs/${id}?wait=10`)
    if (status !== 'completed') return false
  }
  return true
}

/** Each payload is verified as it comes, as a receiver does: both libraries want a timestamp within 300 s. */
async function signatures(client: Client, scale: number, tell: Tell) {
  const n = Math.ceil(sizes.payloads * scale)
  const { signing_secret: secret } = await client.json<{ signing_secret: string }>(
    '/deliveries/signing_secret',
  )
  const openai = new OpenAI({ apiKey: 'x', webhookSecret: secret })
  const webhook = new Webhook(secret)
  type Signed = Pick<Received, 'body' | 'headers'>
  const takes = async ({ body, headers }: Signed): Promise<[boolean, boolean]> => {
    const flat = headers as Record<string, string>
    const unwrapped = await openai.webhooks.unwrap(body, flat, secret).then(
      () => true,
      () => false,
    )
    try {
      webhook.verify(body, flat)
      return [true, unwrapped]
    } catch {
      return [false, unwrapped]
    }
  }
  let [accepted, unwrapped, mutated, old] = [0, 0, 0, 0]
  const judged: Promise<void>[] = []
  const receiver = await startReceiver()
  receiver.answer = (response, one) => {
    response.writeHead(204).end()
    const judge = async () => {
      const [byLibrary, byOpenai] = await takes(one)
      accepted += Number(byLibrary)
      unwrapped += Number(byOpenai)
      mutated += Number((await takes(mutate(one))).some(Boolean))
    }
    judged.push(judge())
  }
  await pool(n, 16, (i) => client.submit(i, receiver.url))
  await eventually(() => receiver.received.length >= n, patience_ms)
  await Promise.all(judged)
  const received = judged.length
  for (const { body } of receiver.received.slice(0, 100))
    for (const shift_s of [-301, 301]) {
      const at = new Date(Date.now() + shift_s * 1000)
      const headers = {
        'webhook-id': 'm',
        'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
        'webhook-signature': webhook.sign('m', at, body),
      }
      old += Number((await takes({ body, headers })).some(Boolean))
    }
  tell({ name: 'signatures: payloads received', value: received })
  tell({ name: 'signatures: accepted by standardwebhooks', value: accepted, must: received })
  tell({ name: "signatures: accepted by openai's webhooks.unwrap", value: unwrapped, must: received })
  tell({ name: 'signatures: mutations accepted', value: mutated, must: 0 })
  tell({ name: 'signatures: 301 s off accepted', value: old, must: 0 })
  await receiver.close()
}

/** One bit of the body, the id, the time or the signature. */
function mutate({ body, headers }: Received): Pick<Received, 'body' | 'headers'> {
  const flip = (text: string) => {
    const at = Math.floor(Math.random() * text.length)
    const other = text[at] === 'A' ? 'B' : text[at] === '1' ? '2' : text[at] === 'B' ? 'A' : '1'
    return text.slice(0, at) + other + text.slice(at + 1)
  }
  const what = Math.floor(Math.random() * 3)
  if (what === 0) return { body: flip(body), headers }
  const name = what === 1 ? 'webhook-id' : 'webhook-timestamp'
  const value = String(headers[name])
  return {
    body,
    headers: { ...headers, [name]: name === 'webhook-id' ? flip(value) : String(Number(value) + 1) },
  }
}

async function ssrf(client: Client, _scale: number, tell: Tell) {
  let touched = 0
  const canary = createServer((_, response) => {
    touched++
    response.end()
  }).listen(0)
  await once(canary, 'listening')
  canary.on('connection', () => touched++)
  const port = (canary.address() as AddressInfo).port
  const redirecting = await startReceiver()
  redirecting.answer = (response) => response.writeHead(307, { location: `http://127.0.0.1:${port}/` }).end()
  await client.submit(0, redirecting.url)
  await eventually(() => redirecting.received.length > 0, 10_000)
  const urls = hostileUrls(port)
  const refused = await pool(urls.length, 8, async (i) => {
    const request = { model: 'tiny', messages: [{ role: 'user', content: 'x' }], max_tokens: 1 }
    return (await client.call('/jobs', { request, webhook: { url: urls[i] } })).status === 400
  })
  await new Promise((resolve) => setTimeout(resolve, 3_000))
  tell({ name: 'hostile URLs', value: urls.length })
  tell({ name: 'hostile URLs: accepted', value: refused.filter((ok) => !ok).length, must: 0 })
  tell({ name: 'hostile URLs: connections to the canary', value: touched, must: 0 })
  canary.close()
  await redirecting.close()
}

async function ingest(client: Client, scale: number, tell: Tell) {
  const n = Math.ceil(sizes.ingest * scale)
  const receiver = await startReceiver()
  const hook = await client.json<{ url: string; verify: { secret: string } }>('/hooks', {
    name: 'ingest',
    messages: [{ role: 'user', content: 'What is {{payload.n}} + 1?' }],
    sampling: { max_tokens: 4, temperature: 0 },
    verify: { type: 'standard-webhooks' },
    callback: { url: receiver.url },
  })
  const webhook = new Webhook(hook.verify.secret)
  const sentAt = new Map<string, number>()
  const post = async (i: number, spoil: boolean) => {
    const body = JSON.stringify({ n: i })
    const now = new Date()
    const headers = {
      'webhook-id': `ingest-${i}`,
      'webhook-timestamp': String(Math.floor(now.getTime() / 1000)),
      'webhook-signature': webhook.sign(`ingest-${i}`, now, body),
    }
    const begun = performance.now()
    const response = await fetch(hook.url, {
      method: 'POST',
      headers,
      body: spoil ? body.replace(':', ': ') : body,
    })
    const { job_id } = (await response.json()) as { job_id?: string }
    if (job_id) sentAt.set(job_id, Date.now() - (performance.now() - begun))
    return { ms: performance.now() - begun, status: response.status }
  }
  const begun = performance.now()
  const answers = await pool(n, 16, (i) => post(i, false))
  const seconds = (performance.now() - begun) / 1000
  await eventually(() => receiver.received.length >= n, patience_ms)
  const waits = receiver.received.map(
    ({ body, at }) => at - (sentAt.get((JSON.parse(body) as { data: { job_id: string } }).data.job_id) ?? at),
  )
  const again = await pool(n, 16, (i) => post(i, false))
  const spoiled = await pool(n, 16, (i) => post(i, true))
  tell({
    name: 'ingest: signed webhooks accepted',
    value: answers.filter(({ status }) => status === 202).length,
    must: n,
  })
  tell({ name: 'ingest: a second', value: Math.round(n / seconds) })
  tell({
    name: 'ingest: p50 ms to 202, 16 at once',
    value: quantile(
      answers.map(({ ms }) => ms),
      0.5,
    ),
  })
  tell({
    name: 'ingest: p99 ms to 202, 16 at once',
    value: quantile(
      answers.map(({ ms }) => ms),
      0.99,
    ),
  })
  tell({ name: 'ingest: p50 ms to a delivered result, the whole burst queued', value: quantile(waits, 0.5) })
  tell({
    name: 'ingest: duplicates answered 202',
    value: again.filter(({ status }) => status === 202).length,
    must: n,
  })
  await new Promise((resolve) => setTimeout(resolve, 2_000))
  tell({ name: 'ingest: results, duplicates sent too', value: receiver.received.length, must: n })
  tell({
    name: 'ingest: changed bodies refused',
    value: spoiled.filter(({ status }) => status === 401).length,
    must: n,
  })
  const alone = await pool(Math.min(50, n), 1, async (i) => {
    const arrived = receiver.received.length
    const start = performance.now()
    await post(1_000_000 + i, false)
    while (receiver.received.length === arrived) await new Promise((resolve) => setTimeout(resolve, 1))
    return performance.now() - start
  })
  tell({
    name: 'ingest: p50 ms from webhook to delivered result, one at a time',
    value: quantile(alone, 0.5),
  })
  tell({
    name: 'ingest: p99 ms from webhook to delivered result, one at a time',
    value: quantile(alone, 0.99),
  })
  await receiver.close()
}
