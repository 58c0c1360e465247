/** What a gateway must bear, at any size: small in `npm test`, large in `npm run faults -- edge`. Each throws or counts. */
import OpenAI from 'openai'
import { resumingFetch } from '../../src/resuming-fetch.ts'
import { answerOf } from './answer-of.ts'
import { cuttingProxy } from './cutting-proxy.ts'
import { metric, newTenant, until, type Stack } from './stack.ts'

const words = ['river', 'stone', 'apple', 'cloud', 'lamp', 'wheel', 'garden', 'paper']
export const question = (i: number) =>
  [
    `What is ${i % 97} + ${(i * 7) % 89}?`,
    `Count from ${i % 50} to ${(i % 50) + 12}.`,
    `Repeat after me: ${Array.from({ length: 6 }, (_, k) => words[(i * (k + 3) + k) % words.length]).join(' ')}`,
  ][i % 3] ?? ''

const fresh = { 'cache-control': 'no-store' }

export interface Sampling {
  temperature: number
  seed?: number
  top_p?: number
  top_k?: number
  min_p?: number
  repetition_penalty?: number
  presence_penalty?: number
  frequency_penalty?: number
  min_tokens?: number
  max_tokens: number
  stop?: string[]
  logit_bias?: Record<string, number>
  logprobs?: boolean
  top_logprobs?: number
  n?: number
  response_format?: OpenAI.ResponseFormatJSONSchema | OpenAI.ResponseFormatJSONObject
  structured_outputs?: object
  tools?: OpenAI.ChatCompletionTool[]
  tool_choice?: 'required'
  parallel_tool_calls?: boolean
}

const parameters = {
  type: 'object',
  properties: { city: { enum: ['Paris', 'Rome'] }, days: { type: 'integer', minimum: 1, maximum: 9 } },
  required: ['city', 'days'],
  additionalProperties: false,
}
const tools: OpenAI.ChatCompletionTool[] = [{ type: 'function', function: { name: 'weather', parameters } }]
/** Half are free text. */
export const forms: Partial<Sampling>[] = [
  ...Array.from({ length: 5 }, () => ({})),
  { tools, tool_choice: 'required', parallel_tool_calls: false },
  { tools },
  {
    response_format: { type: 'json_schema', json_schema: { name: 'trip', strict: true, schema: parameters } },
  },
  { response_format: { type: 'json_object' } },
  { structured_outputs: { regex: '(yes|no), [0-9]{3}' } },
]

const body = (text: string, sampling: Sampling) => ({
  model: 'tiny',
  messages: [{ role: 'user' as const, content: text }],
  ...sampling,
})

/** Runs `work` for 0 ... count - 1, `width` at a time. */
export async function pool(count: number, width: number, work: (i: number) => Promise<void>): Promise<void> {
  let next = 0
  await Promise.all(
    Array.from({ length: width }, async () => {
      while (next < count) await work(next++)
    }),
  )
}

/** A seeded generator: a failing run can be run again. */
export function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

async function streamed(openai: OpenAI, text: string, sampling: Sampling, headers: Record<string, string>) {
  const stream = await openai.chat.completions.create({ ...body(text, sampling), stream: true }, { headers })
  let answer = ''
  for await (const chunk of stream) answer += chunk.choices[0]?.delta.content ?? ''
  return answer
}

/** The official client over a proxy that cuts every stream at a random byte: each text must equal the uncut one. */
export async function cutStreams(stack: Stack, count: number): Promise<{ cuts: number; wrong: string[] }> {
  const dice = random(1)
  const proxy = await cuttingProxy(stack.gateway, (path) =>
    path.endsWith('/events') && dice() < 0.5 ? Infinity : Math.floor(dice() * 3_000),
  )
  const client = (baseURL: string, more: object) =>
    new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: stack.key, maxRetries: 0, ...more })
  const plain = client(stack.gateway, {})
  const resuming = client(proxy.url, { fetch: resumingFetch({ attempts: 20 }) })
  const wrong: string[] = []
  try {
    await pool(count, 6, async (i) => {
      const sampling =
        i % 2 === 0 ? { temperature: 0, max_tokens: 48 } : { temperature: 1, seed: i, max_tokens: 48 }
      const [uncut, cut] = await Promise.all([
        streamed(plain, question(i), sampling, fresh),
        streamed(resuming, question(i), sampling, i % 4 < 2 ? fresh : {}).catch(String),
      ])
      if (cut !== uncut) wrong.push(`${i}: ${JSON.stringify({ uncut, cut })}`)
    })
    return { cuts: proxy.cuts(), wrong }
  } finally {
    await proxy.close()
  }
}

/** Readers that leave at random points, shared or not, resumable or not: the engine must be idle again soon after. */
export async function aborts(stack: Stack, count: number): Promise<{ aborted: number }> {
  const dice = random(2)
  let aborted = 0
  await pool(count, 16, async (i) => {
    const abort = new AbortController()
    const timer = setTimeout(() => abort.abort(), dice() * 60)
    try {
      const response = await fetch(`${stack.gateway}/v1/chat/completions`, {
        method: 'POST',
        headers: {
          authorization: `Bearer ${stack.key}`,
          ...(i % 5 === 0 ? { 'cache-control': 'no-store' } : {}),
        },
        body: JSON.stringify({
          ...body(`Count from ${Math.floor(i / 4) % 200} to 900.`, { temperature: 0, max_tokens: 400 }),
          ignore_eos: true,
          stream: i % 3 !== 0,
        }),
        signal: abort.signal,
      })
      await response.text()
    } catch {
      aborted++
    } finally {
      clearTimeout(timer)
    }
  })
  await idle(stack)
  return { aborted }
}

export async function idle(stack: Stack, limit_ms = 300_000): Promise<void> {
  const waiting = async (name: string) => (await metric(stack, name)) === 0
  await until(
    'the engine runs nothing',
    async () => (await waiting('vllm:num_requests_running')) && (await waiting('vllm:num_requests_waiting')),
    limit_ms,
  )
}

/** Identical requests all at once: one generation for all. */
export async function identical(
  stack: Stack,
  count: number,
  text: string,
): Promise<{ texts: Set<string>; failed: number; promptTokens: number; perPrompt: number }> {
  const before = await metric(stack, 'vllm:prompt_tokens_total')
  const texts = new Set<string>()
  let failed = 0
  let perPrompt = 0
  await Promise.all(
    Array.from({ length: count }, async () => {
      const response = await fetch(`${stack.gateway}/v1/chat/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${stack.key}` },
        body: JSON.stringify(body(text, { temperature: 0, max_tokens: 100 })),
      })
      const answer = (await response.json()) as OpenAI.ChatCompletion
      if (!response.ok) {
        failed++
        return
      }
      texts.add(answer.choices[0]?.message.content ?? '')
      perPrompt = answer.usage?.prompt_tokens ?? 0
    }),
  )
  const promptTokens = (await metric(stack, 'vllm:prompt_tokens_total')) - before
  return { texts, failed, promptTokens, perPrompt }
}

/** Every option that leaves an answer eligible, at random: cached must equal uncached. */
export async function cachedEqualsUncached(
  stack: Stack,
  count: number,
): Promise<{ hits: number; wrong: string[] }> {
  const dice = random(3)
  const maybe = (option: () => Partial<Sampling>) => (dice() < 0.4 ? option() : {})
  const wrong: string[] = []
  let hits = 0
  await pool(count, 4, async (i) => {
    const greedy = dice() < 0.4
    const sampling: Sampling = {
      ...(greedy ? { temperature: 0 } : { temperature: 0.3 + dice(), seed: Math.floor(dice() * 1e6) }),
      max_tokens: 1 + Math.floor(dice() * 40),
      ...maybe(() => ({ top_p: 0.5 + dice() / 2 })),
      ...maybe(() => ({ top_k: Math.floor(dice() * 50) })),
      ...maybe(() => ({ min_p: dice() / 10 })),
      ...maybe(() => ({ repetition_penalty: 1 + dice() / 5 })),
      ...maybe(() => ({ presence_penalty: dice() })),
      ...maybe(() => ({ frequency_penalty: dice() })),
      ...maybe(() => ({ stop: [['e', '1', 'river', '. '][i % 4] ?? 'x'] })),
      ...maybe(() => ({ logit_bias: { [String(100 + i)]: dice() * 10 - 5 } })),
      ...maybe(() => ({ logprobs: true, top_logprobs: Math.floor(dice() * 6) })),
      ...maybe(() => ({ n: 2 + Math.floor(dice() * 3) })),
      ...forms[Math.floor(dice() * forms.length)],
    }
    const text = `${question(i)} (${i})`
    const ask = async (headers: Record<string, string>, stream: boolean) => {
      const response = await fetch(`${stack.gateway}/v1/chat/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${stack.key}`, ...headers },
        body: JSON.stringify({ ...body(text, sampling), stream }),
      })
      const status = response.headers.get('cache-status') ?? ''
      return { status, answer: JSON.stringify(await answerOf(response)) }
    }
    const uncached = await ask(fresh, false)
    await ask({}, i % 2 === 0)
    for (const stream of [true, false]) {
      const cached = await ask({}, stream)
      if (cached.status.includes('hit')) hits++
      if (cached.answer !== uncached.answer)
        wrong.push(`${i}: ${JSON.stringify({ sampling, cached, uncached })}`)
    }
  })
  return { hits, wrong }
}

/** Two tenants ask the same: nobody may see the other's entry. */
export async function crossHits(stack: Stack, count: number): Promise<number> {
  const keys = [await (await newTenant(stack))(), await (await newTenant(stack))()]
  let crossed = 0
  const statuses = async (key: string, i: number) => {
    const response = await fetch(`${stack.gateway}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key}` },
      body: JSON.stringify(body(`${question(i)} [${i}]`, { temperature: 0, max_tokens: 2 })),
    })
    await response.text()
    return response.headers.get('cache-status') ?? `status ${response.status}`
  }
  await pool(count, 8, async (i) => {
    for (const key of keys) if ((await statuses(key, i)) !== 'qwen-edge; fwd=miss; stored') crossed++
  })
  return crossed
}
