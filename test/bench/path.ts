/**
 * What a client sees of the whole path, on the real stack with the shipped model: time to the first token of a prompt of some
 * 1,500 tokens, cold and with its prefix cached, and of a repeat that the edge answers; each less a bare /healthz.
 */
import { startStack, type Stack } from '../e2e/stack.ts'
import type { BenchOptions, BenchResult } from './main.ts'

export async function run({ quick }: BenchOptions): Promise<BenchResult[]> {
  const stack = await startStack()
  try {
    const rounds = quick ? 5 : 21
    await first(stack, long('warm the path up', 'What is the code word?'))
    const floor = median(await repeat(rounds, () => health(stack)))
    const cold: Seen[] = []
    const warm: Seen[] = []
    const hit: Seen[] = []
    for (let round = 0; round < rounds; round++) {
      const prompt = `${round} ${Date.now()}`
      cold.push(await first(stack, long(prompt, 'What is the code word?')))
      warm.push(await first(stack, long(prompt, 'Tell me the code word.')))
      hit.push(await first(stack, long(prompt, 'Tell me the code word.')))
    }
    /** Never below a tenth of a millisecond: the floor is itself a measurement. */
    const ttft = (seen: Seen[]) => Math.max(0.1, median(seen.map(({ ttft_ms }) => ttft_ms)) - floor)
    const prefill = (seen: Seen[]) => median(seen.map(({ prefill_ms }) => prefill_ms ?? NaN))
    return [
      { name: 'healthz', value: floor, unit: 'ms' },
      { name: 'prefill_cold', value: prefill(cold), unit: 'ms' },
      {
        name: 'prefill_warm',
        value: prefill(warm),
        unit: 'ms',
        peer: 'cold',
        ratio: prefill(cold) / prefill(warm),
        goal: 5,
      },
      {
        name: 'cached_tokens',
        value: Math.min(...warm.map(({ cached }) => cached)),
        unit: 'tokens',
        goal: 1400,
      },
      { name: 'ttft_cold', value: ttft(cold), unit: 'ms' },
      {
        name: 'ttft_warm',
        value: ttft(warm),
        unit: 'ms',
        peer: 'cold',
        ratio: ttft(cold) / ttft(warm),
        goal: 3,
      },
      { name: 'ttft_hit', value: ttft(hit), unit: 'ms', peer: 'cold', ratio: ttft(cold) / ttft(hit) },
    ]
  } finally {
    await stack.stop()
  }
}

interface Seen {
  ttft_ms: number
  /** null: the edge answered. */
  prefill_ms: number | null
  cached: number
}

/** Different from its first tokens on, so that nothing of another round is cached. */
const long = (mark: string, question: string): string => {
  const lines = Array.from(
    { length: 72 },
    (_, i) => `Line ${i + 1}: the river runs past the old mill and the garden.`,
  )
  return [
    `Note ${mark}.`,
    ...lines.slice(0, 40),
    'The code word is falcon.',
    ...lines.slice(40),
    question,
  ].join(' ')
}

async function first({ gateway, key }: Stack, content: string): Promise<Seen> {
  const started = performance.now()
  const response = await fetch(`${gateway}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    body: JSON.stringify({
      model: 'tiny',
      messages: [{ role: 'user', content }],
      temperature: 0,
      max_tokens: 8,
      stream: true,
      stream_options: { include_usage: true },
    }),
  })
  if (!response.ok || response.body === null) throw new Error(`${response.status}: ${await response.text()}`)
  let ttft_ms: number | null = null
  let text = ''
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    ttft_ms ??= performance.now() - started
    text += chunk
  }
  const last = text.split('\n\n').findLast((event) => event.includes('"prompt_tokens"')) ?? ''
  const { usage, timing } = JSON.parse(last.slice(last.indexOf('{'))) as {
    usage: { prompt_tokens_details: { cached_tokens: number } }
    timing?: { prefill_ms: number }
  }
  return {
    ttft_ms: ttft_ms ?? NaN,
    prefill_ms: timing?.prefill_ms ?? null,
    cached: usage.prompt_tokens_details.cached_tokens,
  }
}

async function health({ gateway }: Stack): Promise<number> {
  const started = performance.now()
  await (await fetch(`${gateway}/healthz`)).text()
  return performance.now() - started
}

async function repeat<T>(times: number, work: () => Promise<T>): Promise<T[]> {
  const results: T[] = []
  for (let i = 0; i < times; i++) results.push(await work())
  return results
}

const median = (values: number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN
