/** What must survive on the real stack: a killed gateway under a stream, warmed prefixes, identical retries. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { resumingFetch } from '../../src/resuming-fetch.ts'
import { pidOf } from './processes.ts'
import { metric, startStack, until, type Stack } from './stack.ts'

let stack: Stack
beforeAll(async () => {
  stack = await startStack()
})
afterAll(() => stack?.stop())

const long = {
  model: 'tiny',
  messages: [{ role: 'user', content: 'Count from 1 to 900.' }],
  temperature: 1,
  seed: 5,
  ignore_eos: true,
  max_tokens: 1_500,
}
const post = (body: object, headers: Record<string, string> = {}, send = fetch) =>
  send(`${stack.gateway}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${stack.key}`, ...headers },
    body: JSON.stringify(body),
  })
type Whole = {
  choices: { message: { content: string } }[]
  usage: { prompt_tokens_details: { cached_tokens: number }; completion_tokens: number }
}
const whole = async (response: Response) => (await response.json()) as Whole
const contents = (sse: string) =>
  sse
    .split('\n')
    .filter((line) => line.startsWith('data: {'))
    .map((line) => (JSON.parse(line.slice(6)) as { choices: { delta?: { content?: string } }[] }).choices[0])
    .map((choice) => choice?.delta?.content ?? '')
    .join('')

describe('a gateway that is killed', () => {
  it('goes on with its streams when it is back, token by token, and knows its idempotency keys', async () => {
    const uncut = await whole(await post(long, { 'cache-control': 'no-store' }))
    const key = { 'idempotency-key': 'survivor', 'cache-control': 'no-store' }
    const stream = { ...long, stream: true }
    const response = await post(stream, key, resumingFetch({ attempts: 100, delay_ms: 50 }))
    const reader = response.body?.getReader()
    const decoder = new TextDecoder()
    let text = ''
    while (text.length < 60_000) text += decoder.decode((await reader?.read())?.value, { stream: true })
    process.kill(pidOf(stack, 'workerd serve'), 'SIGKILL')
    for (;;) {
      const { done = true, value } = (await reader?.read()) ?? {}
      if (done) break
      text += decoder.decode(value, { stream: true })
    }
    expect(contents(text)).toBe(uncut.choices[0]?.message.content)
    expect(text).toContain('data: [DONE]')
    const retried = await post(long, key)
    expect(retried.headers.get('cache-status')).toMatch(/^qwen-edge; hit/)
    expect(await whole(retried)).toMatchObject({ choices: uncut.choices })
    expect((await post({ ...long, seed: 6 }, key)).status).toBe(422)
  })
})

describe('a reader that leaves a flight', () => {
  it.each([true, false])('stops the engine, stream: %s', async (stream) => {
    await until('the gateway is back', async () => (await fetch(`${stack.gateway}/readyz`)).ok)
    const running = () => metric(stack, 'vllm:num_requests_running')
    const abort = new AbortController()
    const answer = fetch(`${stack.gateway}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${stack.key}` },
      body: JSON.stringify({ ...long, temperature: 0, max_tokens: 7_000, stream }),
      signal: abort.signal,
    }).then(async (response) => response.text())
    await until('the engine runs', async () => (await running()) === 1)
    await new Promise((resolve) => setTimeout(resolve, 300))
    abort.abort()
    await expect(answer).rejects.toThrow('aborted')
    await until('the engine has stopped', async () => (await running()) === 0, 4_000)
  })
})

describe('a warmed prefix', () => {
  it('is there for the first prompt that begins with it', async () => {
    await until('the gateway is back', async () => (await fetch(`${stack.gateway}/readyz`)).ok)
    const system = { role: 'system', content: 'You know the mill by the river. '.repeat(40) }
    const warmed = await fetch(`${stack.gateway}/v1/prefixes`, {
      method: 'POST',
      headers: { authorization: `Bearer ${stack.key}` },
      body: JSON.stringify({ model: 'tiny', messages: [system], pin_seconds: 60 }),
    })
    expect(warmed.status).toBe(200)
    const { cached_tokens, until: pinned } = (await warmed.json()) as { cached_tokens: number; until: number }
    expect(cached_tokens).toBeGreaterThan(200)
    expect(pinned).toBeGreaterThan(Date.now() / 1000 + 30)
    const { usage } = await whole(
      await post({ model: 'tiny', messages: [system, { role: 'user', content: 'Where?' }], max_tokens: 1 }),
    )
    expect(usage.prompt_tokens_details.cached_tokens).toBe(cached_tokens)
  })
})
