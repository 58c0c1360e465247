/**
 * An upstream that costs next to nothing, in two languages: our wire protocol (/v1/generate) and OpenAI's (/v1/chat/completions).
 * A stream is 20 chunks, each written by itself; a generation of another length than 20 tokens is written at once, and
 * takes HOLD_MS first. An answer ends at `min_tokens`, where there are some. /peak says how many generations were held at
 * the same time since it was asked last. Usage: _mock-upstream.ts PORT [HOLD_MS]
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'

const [port = '0', hold_ms = '0'] = process.argv.slice(2)
const chunks = 20
let [held, peak] = [0, 0]

const server = createServer((request, response) => void answer(request, response))
server.keepAliveTimeout = 60_000
server.listen(Number(port), '127.0.0.1')

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const parts: Buffer[] = []
  for await (const part of request) parts.push(part as Buffer)
  const text = Buffer.concat(parts).toString()
  if (request.url?.endsWith('/cancel') === true) return json(response, { request_id: '', usage: null })
  if (request.url === '/peak') {
    json(response, { peak })
    peak = held
    return
  }
  if (request.url === '/v1/generate') return generate(response, JSON.parse(text) as Wire)
  const { stream } = JSON.parse(text === '' ? '{}' : text) as { stream?: boolean }
  if (stream !== true) return json(response, completion)
  await write(response, [...Array.from({ length: chunks }, () => chunk), 'data: [DONE]\n\n'])
}

interface Wire {
  token_ids: number[]
  sampling: { max_tokens: number; min_tokens?: number }
}

async function generate(response: ServerResponse, { token_ids, sampling }: Wire): Promise<void> {
  const count = sampling.min_tokens || sampling.max_tokens
  const event = (data: unknown) => `data: ${JSON.stringify(data)}\n\n`
  const token = (i: number) => 1000 + i
  const usage = { prompt: token_ids.length, cached: 0, completion: count }
  const timing = { queue_ms: 0, prefill_ms: 0, decode_ms: 0 }
  const finish = event({
    index: 0,
    finish_reason: count < sampling.max_tokens ? 'stop' : 'length',
    usage,
    timing,
  })
  if (count === chunks) {
    const tokens = Array.from({ length: count }, (_, i) => event({ index: 0, token_ids: [token(i)] }))
    return write(response, [...tokens, finish])
  }
  peak = Math.max(peak, ++held)
  if (hold_ms !== '0') await sleep(Number(hold_ms))
  held--
  return write(response, [
    event({ index: 0, token_ids: Array.from({ length: count }, (_, i) => token(i)) }) + finish,
  ])
}

async function write(response: ServerResponse, texts: string[]): Promise<void> {
  response.writeHead(200, { 'content-type': 'text/event-stream' })
  for (const text of texts) {
    response.write(text)
    await new Promise(setImmediate)
  }
  response.end()
}

function json(response: ServerResponse, body: object): void {
  const text = JSON.stringify(body)
  response.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) })
  response.end(text)
}

const head = { id: 'chatcmpl-1', created: 1, model: 'tiny' }
const completion = {
  ...head,
  object: 'chat.completion',
  choices: [
    {
      index: 0,
      message: { role: 'assistant', content: 'word '.repeat(16) },
      logprobs: null,
      finish_reason: 'stop',
    },
  ],
  usage: { prompt_tokens: 20, completion_tokens: 16, total_tokens: 36 },
}
const chunk = `data: ${JSON.stringify({
  ...head,
  object: 'chat.completion.chunk',
  choices: [{ index: 0, delta: { content: 'word ' }, logprobs: null, finish_reason: null }],
})}\n\n`
