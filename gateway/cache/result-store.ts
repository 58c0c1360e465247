/**
 * Where answers are kept: this isolate's memory, the Cache API of its data centre, and behind them KV for all of them.
 * KV gets what is asked for a second time, since most answers never are and a write there is the dearest part of a miss;
 * what only KV has is copied nearer on its way. Storage that fails or is slow costs a deadline, never the answer, and
 * one that keeps hanging not even that.
 *
 * An entry holds the deltas of a whole answer with the moments at which they came, at most `entry_chars_max`; a longer
 * one is not kept. A corrupt entry, or one of another version, is a miss.
 */
import { hex } from '../../src/hex.ts'
import {
  isFinishDelta,
  type Delta,
  type Deltas,
  type FinishDelta,
  type AnswerDelta,
} from '../chat/answers.ts'
import { Breaker } from '../breaker.ts'
import { policyKey, resultsKv } from './cache-policy.ts'
import { recall, remember } from './result-memory.ts'

export interface Entry {
  version: typeof entry_version
  /** Milliseconds since the epoch. */
  stored_at: number
  ttl_s: number
  texts: AnswerDelta[]
  /** Milliseconds from the start, one for each of `texts` and one for the finish. */
  times: number[]
  finish: FinishDelta
}

export interface Lookup {
  entry: Entry | null
  /** Storage did not do its work; what it holds is not known. */
  failed: boolean
}

type Defer = (work: Promise<unknown>) => void

const entry_version = 4
const checksum_chars = 16
const entry_chars_max = 4 * 1024 * 1024
const cacheApi = new Breaker(250)
/** Its caller gets the end of the answer first. */
const put_after_ms = 20
/** KV takes no shorter life. */
const kv_ttl_s_min = 60

export async function lookup(env: Env, key: string, defer: Defer): Promise<Lookup> {
  const here = recall(key)
  if (here !== null) {
    if (!here.far) defer(storeFar(env, key, here.entry))
    here.far = true
    return { entry: here.entry, failed: false }
  }
  const [near, nearFailed] = await cacheApi.attempt(async () => readCache(key))
  if (near !== null) {
    remember(key, near.entry, near.chars, true)
    defer(storeFar(env, key, near.entry))
    return { entry: near.entry, failed: false }
  }
  const [far, farFailed] = await resultsKv.attempt(async () => readKv(env, key))
  if (far === null) return { entry: null, failed: nearFailed || farFailed }
  const { entry, chars } = far
  remember(key, entry, chars, true)
  const rest_s = Math.floor(entry.ttl_s - (Date.now() - entry.stored_at) / 1000)
  if (!nearFailed && rest_s >= 1)
    defer(cacheApi.attempt(async () => writeCache(key, JSON.stringify(entry), rest_s)))
  return { entry, failed: false }
}

/** For this isolate at once, for its data centre soon. */
export function storeNear(key: string, entry: Entry, defer: Defer): void {
  const text = JSON.stringify(entry)
  if (text.length > entry_chars_max) return
  remember(key, entry, text.length, false)
  defer(
    scheduler.wait(put_after_ms).then(() => cacheApi.attempt(async () => writeCache(key, text, entry.ttl_s))),
  )
}

export async function storeFar(env: Env, key: string, entry: Entry): Promise<void> {
  const text = JSON.stringify(entry)
  if (text.length > entry_chars_max) return
  const expirationTtl = Math.max(kv_ttl_s_min, entry.ttl_s)
  const whole = await sealed(text)
  await resultsKv.attempt(async () => env.RESULTS.put(kvKey(key), whole, { expirationTtl }))
}

/** All that KV holds of a tenant's; the Cache API lists nothing. */
export async function eraseResults(env: Env, tenantId: string): Promise<void> {
  await env.RESULTS.delete(policyKey(tenantId))
  for (let cursor: string | null = ''; cursor !== null;) {
    const listed: KVNamespaceListResult<unknown> = await env.RESULTS.list({
      prefix: kvKey(`${tenantId}/`),
      ...(cursor === '' ? {} : { cursor }),
    })
    for (const { name } of listed.keys) await env.RESULTS.delete(name)
    cursor = listed.list_complete ? null : listed.cursor
  }
}

/** Passes an answer through; before its finish goes out, `store` gets all of it. */
export async function* keep(deltas: Deltas, ttl_s: number, store: (entry: Entry) => void): Deltas {
  const recorder = new Recorder()
  for await (const batch of deltas) {
    recorder.push(batch)
    const entry = recorder.entry(ttl_s)
    if (entry !== null) store(entry)
    yield batch
  }
}

export class Recorder {
  readonly #started = Date.now()
  readonly #texts: AnswerDelta[] = []
  readonly #times: number[] = []
  #finish: FinishDelta | null = null
  /** About as many as in JSON. */
  #chars = 0

  push(batch: Delta[]): void {
    for (const delta of batch) {
      this.#times.push(Date.now() - this.#started)
      if (isFinishDelta(delta)) this.#finish = { ...delta, timing: null }
      else this.#keep(delta)
    }
  }

  /** What is too large to be kept is not held either. */
  #keep(delta: AnswerDelta): void {
    const logprobs = delta.type === 'text' ? (delta.logprobs ?? []) : []
    this.#chars += 64 + delta.text.length + logprobs.reduce((sum, { top }) => sum + 50 * (1 + top.length), 0)
    if (this.#chars <= entry_chars_max) this.#texts.push(delta)
    else this.#texts.length = 0
  }

  /** null: the answer has not reached its end, or is too large. */
  entry(ttl_s: number): Entry | null {
    if (this.#finish === null || this.#chars > entry_chars_max) return null
    const version = entry_version
    return {
      version,
      stored_at: Date.now(),
      ttl_s,
      texts: this.#texts,
      times: this.#times,
      finish: this.#finish,
    }
  }
}

/** @param timed as the engine gave it, instead of at once. */
export async function* replay({ texts, times, finish }: Entry, timed: boolean): Deltas {
  if (!timed) {
    yield [...texts, finish]
    return
  }
  const started = Date.now()
  for (const [at, delta] of [...texts, finish].entries()) {
    const wait_ms = (times[at] ?? 0) - (Date.now() - started)
    if (wait_ms > 0) await scheduler.wait(wait_ms)
    yield [delta]
  }
}

const cacheUrl = (key: string) => `https://results.invalid/${key}`
const kvKey = (key: string) => `result:${key}`

interface Read {
  entry: Entry
  chars: number
}

async function readCache(key: string): Promise<Read | null> {
  const response = await (await caches.open('results')).match(cacheUrl(key))
  return response === undefined ? null : unsealed(await response.text())
}

async function writeCache(key: string, json: string, ttl_s: number): Promise<void> {
  const headers = { 'content-type': 'application/json', 'cache-control': `max-age=${ttl_s}` }
  await (await caches.open('results')).put(cacheUrl(key), new Response(await sealed(json), { headers }))
}

async function readKv(env: Env, key: string): Promise<Read | null> {
  const text = await env.RESULTS.get(kvKey(key))
  return text === null ? null : unsealed(text)
}

/** With a checksum in front: what changed on its way is not the engine's answer any more, whatever it still parses to. */
async function sealed(json: string): Promise<string> {
  return (await checksum(json)) + json
}

async function unsealed(text: string): Promise<Read | null> {
  const json = text.slice(checksum_chars)
  if (text.slice(0, checksum_chars) !== (await checksum(json))) return null
  const entry = JSON.parse(json) as { version: number }
  return entry.version === entry_version ? { entry: entry as Entry, chars: json.length } : null
}

async function checksum(json: string): Promise<string> {
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(json))
  return hex(digest).slice(0, checksum_chars)
}
