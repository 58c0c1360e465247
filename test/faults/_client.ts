/** What the webhook scenarios do with the gateway: submit, wait, count; and a pool of workers. */
import type { Received } from '../e2e/receiver.ts'
import type { Stack } from '../e2e/stack.ts'

export interface Attempt {
  id: string
  webhook_id: string
  attempt: number
  status_code: number | null
  at: number | null
  next_at: number | null
}

export class Client {
  readonly stack: Stack
  constructor(stack: Stack) {
    this.stack = stack
  }

  call(path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Response> {
    return fetch(`${this.stack.gateway}/v1${path}`, {
      method: body === undefined ? 'GET' : 'POST',
      headers: { authorization: `Bearer ${this.stack.key}`, ...headers },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
  }

  async json<T>(path: string, body?: unknown): Promise<T> {
    return (await (await this.call(path, body)).json()) as T
  }

  /** Tries until it is accepted; the key makes that one job. */
  async submit(n: number, url: string, more: object = {}): Promise<{ id: string; signing_secret: string }> {
    const request = {
      model: 'tiny',
      messages: [{ role: 'user', content: `What is ${n} + ${n % 7}?` }],
      temperature: 0,
      max_tokens: 1,
      ...more,
    }
    const body = { request, webhook: { url }, metadata: { n } }
    for (;;) {
      try {
        const response = await this.call('/jobs', body, { 'idempotency-key': `${url}#${n}` })
        if (response.status === 202) return (await response.json()) as { id: string; signing_secret: string }
        await response.body?.cancel()
      } catch {
        // The gateway is being killed; it will be back.
      }
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
  }
}

/** Runs `work` for 0 ... n-1, `width` at a time. */
export async function pool<T>(n: number, width: number, work: (i: number) => Promise<T>): Promise<T[]> {
  const results: T[] = []
  let next = 0
  const worker = async () => {
    for (let i = next++; i < n; i = next++) results[i] = await work(i)
  }
  await Promise.all(Array.from({ length: Math.min(width, n) }, worker))
  return results
}

/** Whether it came true in time. */
export async function eventually(
  done: () => boolean | Promise<boolean>,
  limit_ms: number,
  every_ms = 100,
): Promise<boolean> {
  const end = Date.now() + limit_ms
  while (Date.now() < end) {
    if (await done()) return true
    await new Promise((resolve) => setTimeout(resolve, every_ms))
  }
  return false
}

/** How many different webhook-ids came, how many came for one job, and for how many jobs none did. */
export function effects(received: readonly Received[], jobs: readonly string[]) {
  const ofJob = new Map<string, Set<string>>(jobs.map((id) => [id, new Set()]))
  let foreign = 0
  for (const { body, headers } of received) {
    const { data } = JSON.parse(body) as { data: { job_id: string } }
    const ids = ofJob.get(data.job_id)
    if (ids === undefined) foreign++
    else ids.add(String(headers['webhook-id']))
  }
  const counts = [...ofJob.values()].map((ids) => ids.size)
  return { lost: counts.filter((n) => n === 0).length, doubled: counts.filter((n) => n > 1).length, foreign }
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return Math.round((sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? 0) * 10) / 10
}
