/** What must survive on the real stack: a killed gateway under a stream, warmed prefixes, identical retries. */
import type OpenAI from 'openai'
import { beforeAll, describe, expect, it } from 'vitest'
import { resumingFetch } from '../../src/resuming-fetch.ts'
import { answerOf } from './answer-of.ts'
import { pidOf } from './processes.ts'
import { metric, newTenant, until } from './stack.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile()

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
type Whole = { usage: OpenAI.CompletionUsage }
const fresh = { 'cache-control': 'no-store' }
const isReady = () =>
  fetch(`${stack.gateway}/readyz`).then(
    ({ ok }) => ok,
    () => false,
  )
const again = () => until('the gateway is back', isReady)
const kill = () => process.kill(pidOf(stack, 'workerd serve'), 'SIGKILL')

const weather: OpenAI.ChatCompletionTool = {
  type: 'function',
  function: {
    name: 'weather',
    parameters: {
      type: 'object',
      properties: { city: { enum: ['Paris', 'Rome'] }, days: { type: 'integer', minimum: 1, maximum: 9 } },
      required: ['city', 'days'],
      additionalProperties: false,
    },
  },
}

const forms = {
  plain: long,
  several: { ...long, n: 3, max_tokens: 500 },
  held: { ...long, ignore_eos: false, structured_outputs: { regex: '([0-9]+, ){150}' } },
  penalised: { ...long, frequency_penalty: 0.2, max_tokens: 900 },
}

/** @param onBegun called once in the middle of the stream */
async function readStream({ body, headers }: Response, onBegun: () => void) {
  const pieces: Uint8Array<ArrayBuffer>[] = []
  let bytes = 0
  for await (const piece of body as ReadableStream<Uint8Array<ArrayBuffer>>) {
    pieces.push(piece)
    if (bytes < 30_000 && (bytes += piece.length) >= 30_000) onBegun()
  }
  return answerOf(new Response(new Blob(pieces), { headers }))
}

let uncut: Awaited<ReturnType<typeof answerOf>>[]
beforeAll(async () => {
  uncut = await Promise.all(Object.values(forms).map(async (form) => answerOf(await post(form, fresh))))
})

describe('a backend that is killed', () => {
  it('is gone on without by what may be resumed, whatever its form: no client notices', async () => {
    let begun = 0
    const headers = { ...fresh, 'x-resumable': 'true' }
    const cut = Object.values(forms).map(async (form) =>
      readStream(await post({ ...form, stream: true }, headers), () => begun++),
    )
    await until('all are under way', async () => begun === cut.length)
    process.kill(pidOf(stack, 'gpu-backend/main.ts'), 'SIGKILL')
    expect(await Promise.all(cut)).toEqual(uncut)
  })
})

describe('a gateway that is killed', () => {
  interface Used {
    key: string
    prompt_tokens: number
    completion_tokens: number
  }
  /** Of the tenant whose streams it cuts: one key sent the plain one, another the rest. */
  let usage: () => Promise<Used[]>
  let generated = 0
  let prompt_tokens = 0

  it('goes on with its streams when it is back, whatever their form, and knows their idempotency keys', async () => {
    const issue = await newTenant(stack)
    const keys = [await issue(), await issue()]
    const sender = (name: string) => ({
      ...fresh,
      authorization: `Bearer ${keys[name === 'plain' ? 0 : 1]}`,
      'idempotency-key': name,
    })
    usage = async () => {
      const path = `${stack.gateway}/v1/usage?group_by=key`
      const response = await fetch(path, { headers: { authorization: `Bearer ${keys[0]}` } })
      return ((await response.json()) as { data: Used[] }).data
    }
    const before = await metric(stack, 'vllm:generation_tokens_total')
    const send = resumingFetch({ attempts: 100, delay_ms: 50 })
    let begun = 0
    const cut = Object.entries(forms).map(async ([name, form]) => {
      const response = await post({ ...form, stream: true }, sender(name), send)
      return readStream(response, () => begun++)
    })
    await until('all are under way', async () => begun === cut.length)
    kill()
    expect(await Promise.all(cut)).toEqual(uncut)
    generated = (await metric(stack, 'vllm:generation_tokens_total')) - before

    for (const [at, [name, form]] of Object.entries(forms).entries()) {
      const headers = sender(name)
      for (const stream of [false, true]) {
        const retried = await post({ ...form, stream }, headers)
        expect(retried.headers.get('cache-status')).toMatch(/^qwen-edge; hit/)
        expect(await answerOf(retried)).toEqual(uncut[at])
      }
      expect((await post({ ...form, seed: 6 }, headers)).status).toBe(422)
    }
    expect((await metric(stack, 'vllm:generation_tokens_total')) - before).toBe(generated)
    prompt_tokens = ((await (await post(long, sender('plain'))).json()) as Whole).usage.prompt_tokens
  })

  // Before the next kill: what a tenant's object heard in its last second would be billed by its alarm, half a minute later.
  it('bills all that was generated, once', async () => {
    const billed = async () => (await usage()).reduce((sum, row) => sum + row.completion_tokens, 0)
    await until('it is billed', async () => (await billed()) >= generated)
    expect(await billed()).toBe(generated)
    // The plain one went on from its tokens.
    const plain = (await usage()).toSorted((a, b) => a.prompt_tokens - b.prompt_tokens)[0]
    expect(plain?.prompt_tokens).toBe(prompt_tokens)
  })

  it('has kept answers of every form under their keys: as a stream or JSON, whichever came first', async () => {
    const short = { ...long, ignore_eos: false, max_tokens: 120 }
    const forms = {
      calls: { ...short, tools: [weather], tool_choice: 'required' },
      pair: { ...short, tools: [weather], tool_choice: 'required', n: 2 },
      several: { ...short, n: 3, logprobs: true, top_logprobs: 2 },
      object: { ...short, response_format: { type: 'json_object' } },
    }
    const ask = async (name: string, form: object, stream: boolean) =>
      post({ ...form, stream }, { ...fresh, 'idempotency-key': name })
    const first = await Promise.all(
      Object.entries(forms).map(async ([name, form], at) => answerOf(await ask(name, form, at % 2 === 0))),
    )
    expect(first[1]?.flatMap(({ calls }) => calls.map(({ name }) => name))).toEqual(
      expect.arrayContaining(['weather', 'weather']),
    )
    kill()
    await again()
    for (const [at, [name, form]] of Object.entries(forms).entries()) {
      for (const stream of [true, false])
        expect(await answerOf(await ask(name, form, stream))).toEqual(first[at])
      expect((await ask(name, { ...form, max_tokens: 121 }, true)).status).toBe(422)
    }
  })
})

describe('a reader that leaves a flight', () => {
  it.each([true, false])('stops the engine, stream: %s', async (stream) => {
    await again()
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
    await again()
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
    const messages = [system, { role: 'user', content: 'Where?' }]
    const { usage } = (await (await post({ model: 'tiny', messages, max_tokens: 1 })).json()) as Whole
    expect(usage.prompt_tokens_details?.cached_tokens).toBe(cached_tokens)
  })
})
