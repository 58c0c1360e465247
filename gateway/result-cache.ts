/**
 * Answers kept at the edge, in the Cache API of the data centre (it does nothing on workers.dev).
 *
 * The key is SHA-256 over tenant, model revision, prompt token ids, sampling and stop strings: two bodies that render
 * to the same tokens share an entry, two tenants never do. An entry holds the answer's deltas as they were generated,
 * so it replays as a stream or sums up to a JSON answer, whichever asks. Only answers that reached their end are kept,
 * and only where the same request must give the same tokens (temperature 0, or a seed). A corrupt entry or one of
 * another version is a miss; a cache that fails is a bypass. Request Cache-Control is obeyed: no-store, no-cache, max-age.
 */
import { isDeterministic } from '../src/sampling.ts'
import { factory } from './app-env.ts'
import { isFinishDelta, type Deltas, type FinishDelta, type TextDelta } from './generation.ts'
import { model } from './model.ts'
import type { Prompt } from './prompt.ts'
import { respond } from './respond.ts'

/** RFC 9211. */
export type CacheStatus =
  `qwen-edge; hit; ttl=${number}` | 'qwen-edge; fwd=miss; stored' | `qwen-edge; fwd=bypass; detail=${string}`

interface Entry {
  version: 1
  /** Milliseconds since the epoch. */
  stored_at: number
  texts: TextDelta[]
  finish: FinishDelta
}

const entry_version = 1
const entry_chars_max = 4 * 1024 * 1024

export const cache = factory.createMiddleware(async function cache(c, next) {
  const { prompt, caller } = c.var
  const asked = cacheControl(c.req.header('cache-control'))
  const bypass = asked.noStore ? 'no-store' : isDeterministic(prompt.sampling) ? null : 'not-deterministic'
  if (bypass !== null) {
    c.set('cache', { key: null, status: `qwen-edge; fwd=bypass; detail=${bypass}` })
    return next()
  }
  const key = await cacheKey(caller.tenantId, prompt)
  const ttl_s = Number(c.env.RESULT_TTL_SECONDS)
  const entry = asked.noCache ? null : await read(key)
  const age_s = entry === null ? 0 : Math.floor((Date.now() - entry.stored_at) / 1000)
  if (entry !== null && age_s <= Math.min(ttl_s, asked.maxAgeS)) {
    c.set('cache', { key: null, status: `qwen-edge; hit; ttl=${ttl_s - age_s}` })
    return respond(c, replay(entry))
  }
  c.set('cache', { key, status: 'qwen-edge; fwd=miss; stored' })
  return next()
})

/** Passes an answer through and, once it has reached its end, stores it. */
export async function* keep(
  deltas: Deltas,
  store: (texts: TextDelta[], finish: FinishDelta) => void,
): Deltas {
  const texts: TextDelta[] = []
  for await (const batch of deltas) {
    for (const delta of batch) {
      if (isFinishDelta(delta)) store(texts, delta)
      else texts.push(delta)
    }
    yield batch
  }
}

export async function write(
  key: string,
  texts: TextDelta[],
  finish: FinishDelta,
  ttl_s: number,
): Promise<void> {
  const entry: Entry = {
    version: entry_version,
    stored_at: Date.now(),
    texts,
    finish: { ...finish, timing: null },
  }
  const body = JSON.stringify(entry)
  if (body.length > entry_chars_max) return
  const headers = { 'content-type': 'application/json', 'cache-control': `max-age=${ttl_s}` }
  await (await results()).put(url(key), new Response(body, { headers }))
}

async function read(key: string): Promise<Entry | null> {
  try {
    const response = await (await results()).match(url(key))
    if (response === undefined) return null
    const entry = await response.json<Partial<Entry> | null>()
    return entry?.version === entry_version && entry.texts && entry.finish ? (entry as Entry) : null
  } catch {
    return null
  }
}

async function* replay(entry: Entry): Deltas {
  yield [...entry.texts, entry.finish]
}

const results = () => caches.open('results')
const url = (key: string) => `https://results.invalid/${key}`

export async function cacheKey(tenantId: string, { tokenIds, sampling, stop }: Prompt): Promise<string> {
  const settings = new TextEncoder().encode(JSON.stringify([tenantId, model.revision, sampling, stop]))
  const bytes = new Uint8Array(4 + settings.byteLength + tokenIds.length * 4)
  new DataView(bytes.buffer).setUint32(0, settings.byteLength)
  bytes.set(settings, 4)
  bytes.set(new Uint8Array(Uint32Array.from(tokenIds).buffer), 4 + settings.byteLength)
  const digest = await crypto.subtle.digest('SHA-256', bytes)
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, '0')).join('')
}

export function cacheControl(header = ''): { noStore: boolean; noCache: boolean; maxAgeS: number } {
  const directives = header
    .toLowerCase()
    .split(',')
    .map((directive) => directive.trim())
  const maxAge = directives.find((directive) => /^max-age=\d+$/.test(directive))
  return {
    noStore: directives.includes('no-store'),
    noCache: directives.includes('no-cache'),
    maxAgeS: maxAge === undefined ? Infinity : Number(maxAge.slice('max-age='.length)),
  }
}
