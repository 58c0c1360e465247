/** What the real engine cannot be made to do on purpose. */
import { afterEach, describe, expect, it, vi } from 'vitest'
import type { ModelCard } from '../../src/protocol.ts'
import { counting, scriptedEngine, type Run } from './scripted-engine.ts'
import { read, secret, served, until, type Served } from './service-client.ts'

const card: ModelCard = {
  id: 'tiny',
  revision: 'r',
  created: 0,
  context_length: 8192,
  tokenizer: 't',
  default_system: '',
  generation: { temperature: 1, top_p: 1, top_k: 0, repetition_penalty: 1 },
  eos_token_ids: [],
}
const request = (more: object = {}) => ({
  request_id: 'r1',
  model: 'tiny',
  token_ids: [1, 2, 3],
  sampling: { max_tokens: 3 },
  ...more,
})

let service: Served
afterEach(async () => {
  vi.useRealTimers()
  await service.close()
})

describe('before the weights are loaded', () => {
  it('is alive, not ready, and asks to come back', async () => {
    service = await served(null, card)
    expect((await fetch(`${service.url}/health`)).status).toBe(200)
    expect((await fetch(`${service.url}/metrics`)).status).toBe(200)
    for (const response of [
      await fetch(`${service.url}/ready`),
      await service.post('/v1/generate', request()),
      await fetch(`${service.url}/v1/model`, { headers: { authorization: `Bearer ${secret}` } }),
    ]) {
      expect(response.status).toBe(503)
      expect(response.headers.get('retry-after')).not.toBeNull()
    }
    service.attach(scriptedEngine(), card)
    expect((await fetch(`${service.url}/ready`)).status).toBe(200)
  })
})

describe('an engine that fails', () => {
  const throwing = (name: string) => () => {
    throw Object.assign(new Error('why'), { name })
  }

  it.each([
    ['QueueFullError', 503, 'queue_full'],
    ['InvalidRequestError', 400, 'invalid_value'],
    ['Error', 500, 'engine_error'],
  ])('throwing %s at submission', async (name, status, code) => {
    service = await served(scriptedEngine(throwing(name)), card)
    const response = await service.post('/v1/generate', request())
    expect(response.status).toBe(status)
    expect(response.headers.has('retry-after')).toBe(status === 503)
    expect(await response.json()).toMatchObject({ error: { code } })
    expect(await service.cancel('r1')).toMatchObject({ usage: null })
  })

  it('for good, while nobody asks: it is not healthy, and refuses with the reason', async () => {
    service = await served(scriptedEngine(), card)
    expect((await fetch(`${service.url}/health`)).status).toBe(200)
    service.fail('block 7 is free twice')
    const answers = [
      await fetch(`${service.url}/health`),
      await fetch(`${service.url}/ready`),
      await service.post('/v1/generate', request()),
    ]
    for (const answer of answers) {
      expect(answer.status).toBe(503)
      expect(await answer.json()).toMatchObject({
        error: { code: 'backend_unavailable', message: expect.stringContaining('block 7 is free twice') },
      })
    }
  })

  it('before its first token: a status, not a stream', async () => {
    const engine = scriptedEngine((run) =>
      setTimeout(
        () => run.emit({ type: 'error', code: 'engine_error', message: 'no blocks', retryable: false }),
        5,
      ),
    )
    service = await served(engine, card)
    const response = await service.post('/v1/generate', request())
    expect(response.status).toBe(500)
    expect(await response.json()).toMatchObject({ error: { code: 'engine_error', message: 'no blocks' } })
  })

  it('after its first token: an event named error, and what was sent is billed', async () => {
    let run!: Run
    const engine = scriptedEngine((started) => {
      run = started
      setTimeout(() => started.tokens(7, 8), 1)
    })
    service = await served(engine, card)
    const response = await service.post('/v1/generate', request())
    expect(response.status).toBe(200)
    run.emit({ type: 'error', code: 'unheard_of', message: 'broke', retryable: true })
    const answer = await read(response)
    expect(answer).toMatchObject({
      tokens: [7, 8],
      finish: null,
      error: { error: { code: 'engine_error', message: 'broke' } },
    })
    expect(await service.cancel('r1')).toMatchObject({ usage: { prompt: 3, cached: 0, completion: 2 } })
    expect(await service.metric('vllm:request_success_total')).toBe(1)
  })
})

describe('silence', () => {
  it('sends no byte before the first event', async () => {
    let run!: Run
    service = await served(
      scriptedEngine((started) => {
        run = started
      }),
      card,
      { heartbeat_ms: 5 },
    )
    let answered = false
    const response = service.post('/v1/generate', request()).finally(() => {
      answered = true
    })
    await new Promise((resolve) => setTimeout(resolve, 100))
    expect(answered).toBe(false)
    run.finish('stop')
    expect((await read(await response)).finish).toMatchObject({ finish_reason: 'stop' })
  })

  it('is filled with comments, which readers skip', async () => {
    let run!: Run
    service = await served(
      scriptedEngine((started) => {
        run = started
        setTimeout(() => started.tokens(1), 1)
      }),
      card,
      { heartbeat_ms: 10 },
    )
    const response = await service.post('/v1/generate', request())
    setTimeout(() => run.finish('stop'), 100)
    const text = await response.text()
    expect(text.match(/^: ping$/gm)?.length).toBeGreaterThanOrEqual(3)
    expect(text).toMatch(/^data: \{"index":0,"token_ids":\[1\]\}\n\n/)
  })

  it('of a caller that left before the first event stops the engine', async () => {
    const engine = scriptedEngine(() => undefined)
    service = await served(engine, card)
    const caller = new AbortController()
    const response = service.post('/v1/generate', request(), {
      signal: caller.signal,
      headers: { authorization: `Bearer ${secret}` },
    })
    await until(() => engine.runs.length === 1)
    caller.abort()
    await expect(response).rejects.toThrow('aborted')
    await until(() => engine.cancels > 0 && engine.runs[0]!.over, 1000)
    expect(await service.cancel('r1')).toMatchObject({ usage: { completion: 0 } })
  })
})

describe('a caller that does not read', () => {
  it('is sent few, large events once it does, with every token in order', async () => {
    const total = 300_000
    let run!: Run
    service = await served(
      scriptedEngine((started) => {
        run = started
        setTimeout(() => started.tokens(0), 1)
      }, 1_000_000),
      card,
    )
    const response = await service.post('/v1/generate', request({ sampling: { max_tokens: total } }))
    for (let token = 1; token < total; token++) {
      run.tokens(token)
      if (token % 100 === 0) await new Promise((resolve) => setImmediate(resolve))
    }
    run.finish('length')
    const { tokens, events, finish } = await read(response)
    expect(tokens).toEqual(Array.from({ length: total }, (_, i) => i))
    expect(finish).toMatchObject({ usage: { completion: total } })
    // Some megabytes fit into the sockets of one machine; the rest waited as one event.
    expect(events).toBeLessThan(total / 2)
  })
})

describe('what was used', () => {
  it('is remembered for ten minutes', async () => {
    service = await served(scriptedEngine(counting), card)
    await read(await service.post('/v1/generate', request()))
    vi.useFakeTimers({ toFake: ['Date'] })
    vi.setSystemTime(Date.now() + 9.9 * 60 * 1000)
    expect(await service.cancel('r1')).toMatchObject({ usage: { completion: 3 } })
    vi.setSystemTime(Date.now() + 0.2 * 60 * 1000)
    expect(await service.cancel('r1')).toMatchObject({ usage: null })
  })
})

describe('shutdown', () => {
  it('waits for what runs, then cancels what is left', async () => {
    const engine = scriptedEngine((run) => setTimeout(() => run.tokens(1), 1))
    service = await served(engine, card)
    const answer = read(await service.post('/v1/generate', request()))
    const started = Date.now()
    await service.drain(50)
    expect(Date.now() - started).toBeGreaterThanOrEqual(45)
    expect((await answer).finish).toMatchObject({ finish_reason: 'cancelled' })
  })
})

describe('the log', () => {
  it('has figures and ids, never tokens', async () => {
    const outcomes: unknown[] = []
    service = await served(scriptedEngine(), card, { onOutcome: (outcome) => outcomes.push(outcome) })
    await read(await service.post('/v1/generate', request()))
    expect(outcomes).toEqual([
      {
        request_id: 'r1',
        finish: 'length',
        code: null,
        usage: { prompt: 3, cached: 0, completion: 3 },
        timing: { queue_ms: 1, prefill_ms: 2, decode_ms: 3 },
        ttft_ms: expect.any(Number),
        total_ms: expect.any(Number),
      },
    ])
  })
})
