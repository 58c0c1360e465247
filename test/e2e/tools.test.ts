/**
 * Structured output, tools and several answers, through the official client. The shipped model knows none of it: that
 * its answers are valid all the same is what a grammar is for.
 */
import type OpenAI from 'openai'
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod'
import { describe, expect, it } from 'vitest'
import * as z from 'zod'
import { metric, until } from './stack.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile()

type Body = Partial<OpenAI.ChatCompletionCreateParamsNonStreaming> & Record<string, unknown>
const fresh = { headers: { 'cache-control': 'no-store' } }
const question = (content = 'What is 17 + 25?') => ({
  model: 'tiny',
  messages: [{ role: 'user' as const, content }],
})
const ask = (body: Body, options: object = fresh) =>
  stack.openai.chat.completions.create(
    { ...question(), temperature: 1, seed: 1, max_tokens: 150, ...body, stream: false },
    options,
  )
const refusal = async (body: Body) =>
  ask(body).then(
    () => expect.fail('it was not refused'),
    ({ status, type, param, message }: InstanceType<typeof OpenAI.APIError>) => ({
      status,
      type,
      param,
      message,
    }),
  )

const Sum = z.object({
  verdict: z.enum(['right', 'wrong']),
  parts: z.array(z.int().min(0).max(99)).min(2).max(2),
  note: z.union([z.string().max(8), z.null()]),
})
const weather: OpenAI.ChatCompletionTool = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'The weather in a city',
    parameters: {
      type: 'object',
      properties: {
        city: { type: 'string', enum: ['Paris', 'Rome'] },
        days: { type: 'integer', minimum: 1, maximum: 9 },
      },
      required: ['city', 'days'],
      additionalProperties: false,
    },
    strict: true,
  },
}
const add: OpenAI.ChatCompletionTool = {
  type: 'function',
  function: {
    name: 'add',
    parameters: { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'] },
  },
}
const isWeather = (text: string) => /^\{"city": "(Paris|Rome)", "days": [1-9]\}$/.test(text)

describe('response_format', () => {
  it('parses into a zod type', async () => {
    const answer = await stack.openai.chat.completions.parse({
      ...question(),
      temperature: 1,
      seed: 3,
      max_tokens: 150,
      response_format: zodResponseFormat(Sum, 'sum'),
    })
    const [choice] = answer.choices
    expect(choice?.finish_reason).toBe('stop')
    expect(Sum.safeParse(choice?.message.parsed)).toMatchObject({ success: true })
  })

  it('holds for a stream, chunk by chunk the same text', async () => {
    const body = { response_format: zodResponseFormat(Sum, 'sum'), seed: 4 }
    const whole = await ask(body)
    const stream = stack.openai.chat.completions.stream(
      { ...question(), temperature: 1, max_tokens: 150, ...body },
      fresh,
    )
    let chunks = 0
    for await (const _ of stream) chunks++
    expect((await stream.finalChatCompletion()).choices[0]?.message.content).toBe(
      whole.choices[0]?.message.content,
    )
    expect(chunks).toBeGreaterThan(10)
  })

  it('json_object is an object, without the word being said', async () => {
    const { choices } = await ask({ response_format: { type: 'json_object' }, max_tokens: 400, seed: 6 })
    const [choice] = choices
    if (choice?.finish_reason === 'stop')
      expect(JSON.parse(choice.message.content ?? '')).toBeTypeOf('object')
    expect(choice?.message.content).toMatch(/^\{/)
  })

  it('vLLM’s structured_outputs: a choice and a pattern', async () => {
    const choice = await ask({ structured_outputs: { choice: ['yes', 'no'] } })
    expect(['yes', 'no']).toContain(choice.choices[0]?.message.content)
    const pattern = await ask({ guided_regex: '[a-f]{3}\\d' })
    expect(pattern.choices[0]?.message.content).toMatch(/^[a-f]{3}\d$/)
  })

  it('is part of what the cache goes by, and not how it was said', async () => {
    const schema = { type: 'object', properties: { a: { enum: [1, 2, 3] } }, required: ['a'] }
    const asked = async (more: object, schemaOfIt: object = schema) => {
      const { response, data } = await stack.openai.chat.completions
        .create({
          ...question('What is 1 + 2?'),
          temperature: 0,
          response_format: {
            type: 'json_schema',
            json_schema: { name: 'x', schema: { ...schemaOfIt, ...more } },
          },
        })
        .withResponse()
      return { status: response.headers.get('cache-status'), text: data.choices[0]?.message.content }
    }
    const first = await asked({})
    expect(first.status).toContain('stored')
    expect(await asked({ title: 'said otherwise' })).toEqual({
      text: first.text,
      status: expect.stringContaining('hit'),
    })
    expect((await asked({}, { ...schema, properties: { a: { enum: [4, 5] } } })).status).toContain('miss')
    expect(
      (await ask({ ...question('What is 1 + 2?'), temperature: 0, seed: null }, {})).choices[0]?.message
        .content,
    ).not.toBe(first.text)
  })
})

describe('tools', () => {
  it('a named one is called, with arguments of its schema', async () => {
    const answer = await ask({
      tools: [weather, add],
      tool_choice: { type: 'function', function: { name: 'get_weather' } },
    })
    const [choice] = answer.choices
    expect(choice?.finish_reason).toBe('tool_calls')
    expect(choice?.message.content).toBeNull()
    expect(choice?.message.tool_calls).toEqual([
      {
        id: expect.stringMatching(/^call_\w+$/),
        type: 'function',
        function: { name: 'get_weather', arguments: expect.toSatisfy(isWeather) },
      },
    ])
  })

  it('required: one or more of them; without parallel calls exactly one', async () => {
    for (const [seed, parallel_tool_calls] of [
      [1, true],
      [2, true],
      [3, false],
      [4, false],
    ] as const) {
      const { choices } = await ask({
        tools: [weather, add],
        tool_choice: 'required',
        parallel_tool_calls,
        seed,
        max_tokens: 400,
      })
      const calls = choices[0]?.message.tool_calls ?? []
      if (choices[0]?.finish_reason === 'tool_calls')
        for (const call of calls) if (call.type === 'function') JSON.parse(call.function.arguments)
      expect(calls.length).toBeGreaterThan(0)
      if (!parallel_tool_calls) expect(calls).toHaveLength(1)
    }
  })

  it('a stream gives name and id first, then the arguments in pieces', async () => {
    const body = { tools: [weather], tool_choice: 'required' as const, parallel_tool_calls: false, seed: 5 }
    const stream = stack.openai.chat.completions.stream(
      { ...question(), temperature: 1, max_tokens: 150, ...body },
      fresh,
    )
    const pieces: { id?: string | undefined; name?: string | undefined; text: string }[] = []
    for await (const chunk of stream)
      for (const call of chunk.choices[0]?.delta.tool_calls ?? [])
        pieces.push({ id: call.id, name: call.function?.name, text: call.function?.arguments ?? '' })
    expect(pieces[0]).toMatchObject({ id: expect.stringMatching(/^call_/), name: 'get_weather' })
    expect(pieces.slice(1).every(({ id, name }) => id === undefined && name === undefined)).toBe(true)
    expect(pieces.length).toBeGreaterThan(4)
    const whole = await ask(body)
    const final = await stream.finalChatCompletion()
    expect(final.choices[0]?.finish_reason).toBe('tool_calls')
    const made = (answer: OpenAI.ChatCompletion) =>
      answer.choices[0]?.message.tool_calls?.map(
        (call) => call.type === 'function' && call.function.arguments,
      )
    expect(made(final)).toEqual(made(whole))
    expect(pieces.map(({ text }) => text).join('')).toBe(made(whole)?.[0])
  })

  it('runTools calls our function with what was generated', async () => {
    const seen: unknown[] = []
    const runner = stack.openai.chat.completions.runTools({
      ...question(),
      temperature: 1,
      seed: 8,
      max_tokens: 150,
      tool_choice: { type: 'function', function: { name: 'double' } },
      tools: [
        zodFunction({
          name: 'double',
          parameters: z.object({ value: z.int().min(0).max(99) }),
          function: ({ value }) => {
            seen.push(value)
            return value * 2
          },
        }),
      ],
    })
    await runner.done()
    expect(seen).toEqual([expect.any(Number)])
    expect(runner.messages.at(-1)).toMatchObject({ role: 'tool', content: String(Number(seen[0]) * 2) })
  })

  it('auto: text stays text, and a conversation with calls and results goes on', async () => {
    const text = await ask({ tools: [weather], temperature: 0 })
    expect(text.choices[0]).toMatchObject({ message: { content: expect.any(String) } })
    const call = {
      id: 'call_1',
      type: 'function' as const,
      function: { name: 'get_weather', arguments: '{"city":"Rome","days":1}' },
    }
    const answer = await ask({
      tools: [weather],
      tool_choice: 'none',
      messages: [
        { role: 'user', content: 'Weather in Rome?' },
        { role: 'assistant', content: null, tool_calls: [call] },
        { role: 'tool', tool_call_id: 'call_1', content: 'sunny' },
      ],
    })
    expect(answer.choices[0]?.message.tool_calls).toBeUndefined()
    expect(answer.usage?.prompt_tokens).toBeGreaterThan(text.usage?.prompt_tokens ?? 0)
  })

  it('are a hit when asked again, with calls as before', async () => {
    const body = { tools: [weather], tool_choice: 'required' as const, parallel_tool_calls: false, seed: 21 }
    const first = await ask(body, {})
    const { data, response } = await stack.openai.chat.completions
      .create({ ...question(), temperature: 1, max_tokens: 150, ...body })
      .withResponse()
    expect(response.headers.get('cache-status')).toContain('hit')
    const calls = (answer: OpenAI.ChatCompletion) =>
      answer.choices[0]?.message.tool_calls?.map((call) => ({ ...call, id: '' }))
    expect(calls(data)).toEqual(calls(first))
    expect(data.choices[0]?.finish_reason).toBe('tool_calls')
  })
})

describe('several answers', () => {
  it('as JSON: different ones, each at its index, and the prompt paid once', async () => {
    const wild = { temperature: 2, top_p: 1, top_k: 0, max_tokens: 20, ignore_eos: true }
    const one = await ask(wild)
    const answer = await ask({ ...wild, n: 3 })
    expect(answer.choices.map(({ index }) => index)).toEqual([0, 1, 2])
    expect(answer.choices[0]?.message.content).toBe(one.choices[0]?.message.content)
    expect(new Set(answer.choices.map(({ message }) => message.content)).size).toBe(3)
    expect(answer.usage).toMatchObject({ prompt_tokens: one.usage?.prompt_tokens, completion_tokens: 60 })
  })

  it('as a stream: interleaved, the same texts, and from the cache once more', async () => {
    const body = { n: 3, max_tokens: 20, seed: 31, logprobs: true } as const
    const whole = await ask(body)
    const read = async (options: object) => {
      const stream = await stack.openai.chat.completions.create(
        { ...question(), temperature: 1, ...body, stream: true },
        options,
      )
      const chunks: OpenAI.ChatCompletionChunk[] = []
      for await (const chunk of stream) chunks.push(chunk)
      const texts = [0, 1, 2].map((index) =>
        chunks
          .map(({ choices }) => (choices[0]?.index === index ? (choices[0].delta.content ?? '') : ''))
          .join(''),
      )
      return { texts, order: chunks.map(({ choices }) => choices[0]?.index) }
    }
    const live = await read({})
    expect(live.texts).toEqual(whole.choices.map(({ message }) => message.content))
    expect(live.order.slice(0, 9)).toEqual([0, 1, 2, 0, 1, 2, 0, 1, 2])
    expect(await read({})).toEqual(live)
  })

  it('a stop string ends its own answer alone, and the engine with the last', async () => {
    const free = await ask({ n: 3, max_tokens: 30, seed: 41, ignore_eos: true })
    const stop = free.choices[1]?.message.content?.slice(6, 9) ?? ''
    const answer = await ask({ n: 3, max_tokens: 30, seed: 41, ignore_eos: true, stop: [stop] })
    expect(answer.choices[1]).toMatchObject({
      finish_reason: 'stop',
      message: {
        content: free.choices[1]?.message.content?.slice(0, free.choices[1].message.content.indexOf(stop)),
      },
    })
    for (const { message, index } of answer.choices) {
      expect(message.content).not.toContain(stop)
      expect(free.choices[index]?.message.content?.startsWith(message.content ?? '?')).toBe(true)
    }
    await until('idle', async () => (await metric(stack, 'vllm:num_requests_running')) === 0)
  })

  it('a broken stream of calls goes on where it was', async () => {
    const body = {
      ...question(),
      n: 2,
      temperature: 1,
      seed: 51,
      max_tokens: 80,
      stream: true,
      tools: [weather],
      tool_choice: 'required',
      parallel_tool_calls: false,
    }
    const headers = {
      authorization: `Bearer ${stack.key}`,
      'cache-control': 'no-store',
      'x-resumable': 'true',
    }
    const response = await fetch(`${stack.gateway}/v1/chat/completions`, {
      method: 'POST',
      headers,
      body: JSON.stringify(body),
    })
    const id = response.headers.get('x-generation-id') ?? ''
    const events = (await response.text()).split('\n\n').filter((event) => event !== '')
    expect(events.length).toBeGreaterThan(20)
    for (const after of [0, 1, 7, events.length - 2]) {
      const last = /^id: (\d+)/.exec(events[after] ?? '')?.[1] ?? ''
      const rest = await fetch(`${stack.gateway}/v1/generations/${id}/events`, {
        headers: { ...headers, 'last-event-id': last },
      })
      expect((await rest.text()).split('\n\n').filter((event) => event !== '')).toEqual(
        events.slice(after + 1),
      )
    }
  })

  it('a job answers with calls', async () => {
    const request = {
      ...question(),
      temperature: 1,
      seed: 61,
      max_tokens: 80,
      n: 2,
      tools: [weather],
      tool_choice: 'required',
    }
    const headers = { authorization: `Bearer ${stack.key}` }
    const made = await fetch(`${stack.gateway}/v1/jobs`, {
      method: 'POST',
      headers,
      body: JSON.stringify({ request }),
    })
    const { id } = (await made.json()) as { id: string }
    const job = await (await fetch(`${stack.gateway}/v1/jobs/${id}?wait=20`, { headers })).json()
    const message = { message: { tool_calls: expect.any(Array) } }
    expect(job).toMatchObject({ status: 'completed', response: { choices: [message, message] } })
    expect(JSON.stringify(job)).toContain('get_weather')
    const wrong = await fetch(`${stack.gateway}/v1/jobs`, {
      method: 'POST',
      headers,
      body: JSON.stringify({ request: { ...request, tool_choice: 'sometimes' } }),
    })
    expect(wrong.status).toBe(400)
  })

  it('reserves for all of them', async () => {
    expect(await refusal({ n: 17 })).toMatchObject({ status: 400, param: 'n' })
  })
})

describe('what cannot be is refused by name', () => {
  const schema = (value: object, strict = true) => ({
    response_format: {
      type: 'json_schema' as const,
      json_schema: { name: 'x', strict, schema: value as Record<string, unknown> },
    },
  })
  it.each<[string, Body, string, string]>([
    [
      'a keyword that strict cannot keep',
      schema({ type: 'array', items: { not: {} } }),
      'response_format.json_schema.schema',
      "#/items: 'not' is not supported",
    ],
    [
      'a schema that nothing satisfies',
      schema({ type: 'string', minLength: 5, maxLength: 2 }, false),
      'response_format.json_schema.schema',
      'no finite text',
    ],
    ['a format without a type', { response_format: {} as never }, 'response_format.type', '"json_schema"'],
    [
      'a choice without tools',
      { tool_choice: 'required' },
      'tool_choice',
      "only allowed when 'tools' are given",
    ],
    [
      'an unknown function',
      { tools: [add], tool_choice: { type: 'function', function: { name: 'sub' } } },
      'tool_choice',
      "names 'sub'",
    ],
    ['two of one name', { tools: [add, add], tool_choice: 'auto' }, 'tools', "two functions named 'add'"],
    ['tools and a pattern', { tools: [add], guided_regex: 'a' }, 'guided_regex', 'cannot hold at once'],
    ['two structures', { guided_regex: 'a', guided_choice: ['a'] }, 'guided_choice', 'cannot hold at once'],
    [
      'arguments that are no JSON',
      {
        messages: [
          {
            role: 'assistant',
            tool_calls: [{ id: 'a', type: 'function', function: { name: 'f', arguments: '{' } }],
          },
        ],
      },
      'messages[0].tool_calls[0].function.arguments',
      'must be JSON',
    ],
    ['look-around', { structured_outputs: { regex: '(?!a)b' } }, 'structured_outputs.regex', 'look-around'],
  ])('%s', async (_, body, param, message) => {
    expect(await refusal(body)).toMatchObject({
      status: 400,
      type: 'invalid_request_error',
      param,
      message: expect.stringContaining(message),
    })
  })

  it('a grammar that only the backend finds wrong', async () => {
    const { status, message } = await refusal({ structured_outputs: { grammar: 'root ::= (' } })
    expect([status, message]).toEqual([400, expect.stringContaining('EBNF')])
  })

  it('10,000 levels', async () => {
    const deep = `${'{"items":'.repeat(10_000)}{}${'}'.repeat(10_000)}`
    const body = JSON.stringify({
      ...question(),
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema: '?' } },
    })
    const response = await fetch(`${stack.gateway}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${stack.key}` },
      body: body.replace('"?"', deep),
    })
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { message: expect.stringContaining('64 levels') } })
  })
})
