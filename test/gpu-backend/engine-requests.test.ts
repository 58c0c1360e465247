import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { execFileSync } from 'node:child_process'
import { InvalidRequestError, openEngine, QueueFullError, type Engine } from '../../gpu-backend/engine.ts'
import { generate, greedy, loadFixture, submit } from './engine-fixtures.ts'

const fixture = loadFixture('dense-gqa-tied')
const options = {
  modelDir: fixture.modelDir,
  device: 'cpu',
  kvMemoryMb: 8, // 3,900 tokens
  tokenizerVocabSize: fixture.tokens,
  checkWhenIdle: true,
} as const
const prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
let engine: Engine
beforeAll(async () => {
  engine = await openEngine(options)
})
afterAll(() => engine.close())

describe('a request that cannot be served is refused by name', () => {
  it.each([
    ['an empty prompt', [], {}, 'empty'],
    ['an id outside the vocabulary', [1, 437], {}, 'token id 437 is outside the vocabulary of 437'],
    ['an id far outside', [0xffffffff], {}, 'outside the vocabulary'],
    ['more than the context', prompt, { max_tokens: 8180 }, 'exceeds the context of 8192'],
    ['more than the KV memory', prompt, { max_tokens: 4000 }, 'exceed the KV memory'],
    ['an endless max_tokens', prompt, { max_tokens: Infinity }, 'maxTokens must be a finite number'],
    ['a negative max_tokens', prompt, { max_tokens: -1 }, 'maxTokens must be a whole number'],
    ['a temperature that is no number', prompt, { temperature: NaN }, 'temperature must be a finite number'],
  ])('%s', (_, ids, sampling, message) => {
    const ask = (): unknown => submit(engine, ids, { sampling })
    expect(ask).toThrow(InvalidRequestError)
    expect(ask).toThrow(message)
  })

  it('and the engine goes on', async () => {
    expect((await generate(engine, prompt, { sampling: { max_tokens: 5 } })).tokens).toHaveLength(5)
  })
})

describe('a generation ends', () => {
  it('at max_tokens', async () => {
    const { finish, tokens } = await generate(engine, prompt, { sampling: { max_tokens: 3 } })
    expect(finish).toMatchObject({ reason: 'length', usage: { prompt: 20, completion: 3 } })
    expect(tokens).toHaveLength(3)
  })

  it('before a stop token, which is neither emitted nor counted', async () => {
    const free = (await generate(engine, prompt)).tokens
    const stop = free.find((token, i) => i > 3 && !free.slice(0, i).includes(token))!
    const at = free.indexOf(stop)
    const { tokens, finish } = await generate(engine, prompt, { sampling: { stop_token_ids: [stop] } })
    expect(tokens).toEqual(free.slice(0, at))
    expect(finish).toMatchObject({ reason: 'stop', usage: { completion: at } })
    const longer = await generate(engine, prompt, {
      sampling: { stop_token_ids: [stop], min_tokens: at + 5, max_tokens: at + 5 },
    })
    expect(longer.tokens).toHaveLength(at + 5)
    expect(longer.tokens).not.toContain(stop)
  })

  it("at the model's own end token unless it is ignored", async () => {
    const bias = { logit_bias: { '1': 100 } } // generation_config.json: eos 1 and 0
    const stopped = await generate(engine, prompt, { sampling: { ...bias, ignore_eos: false } })
    expect(stopped.finish).toMatchObject({ reason: 'stop', usage: { completion: 0 } })
    const ignored = await generate(engine, prompt, { sampling: { ...bias, max_tokens: 4 } })
    expect(ignored.tokens).toEqual([1, 1, 1, 1])
  })

  it('with max_tokens 0 once the prompt is cached', async () => {
    const salt = 'warm'
    const { tokens, finish } = await generate(engine, prompt, { salt, sampling: { max_tokens: 0 } })
    expect(tokens).toEqual([])
    expect(finish).toMatchObject({ reason: 'length', usage: { prompt: 20, cached: 0, completion: 0 } })
    expect((await generate(engine, prompt, { salt })).finish.usage.cached).toBe(16)
  })

  it('when cancelled, within a step, with exact usage', async () => {
    const { handle, answer } = submit(engine, prompt, { sampling: { max_tokens: 1500 } })
    await new Promise((resolve) => setTimeout(resolve, 20))
    engine.cancel(handle)
    engine.cancel(handle)
    const { finish, tokens } = await answer
    expect(finish.reason).toBe('cancelled')
    expect(finish.usage.completion).toBe(tokens.length)
    expect(tokens.length).toBeLessThan(1500)
    engine.cancel(handle)
    engine.cancel(123456)
    expect(engine.stats()).toMatchObject({ running: 0, blocksUsed: 0 })
  })

  it('at its deadline', async () => {
    const { finish } = await generate(engine, prompt, { deadlineMs: 30, sampling: { max_tokens: 1500 } })
    expect(finish.reason).toBe('deadline')
  })

  it('with timings that add up', async () => {
    const started = performance.now()
    const { finish } = await generate(engine, prompt, { salt: 'timing' })
    const { queue_ms, prefill_ms, decode_ms } = finish.timing
    for (const part of [queue_ms, prefill_ms, decode_ms]) expect(part).toBeGreaterThanOrEqual(0)
    expect(queue_ms + prefill_ms + decode_ms).toBeLessThanOrEqual(performance.now() - started + 1)
  })
})

it('refuses by QueueFullError what exceeds the queue, and serves what was taken', async () => {
  const small = await openEngine({ ...options, maxBatch: 1, maxQueue: 3 })
  const taken: Promise<unknown>[] = []
  const flood = (): void => {
    for (let i = 0; i < 50; i++) taken.push(generate(small, prompt, { sampling: { max_tokens: 20 } }))
  }
  expect(flood).toThrow(QueueFullError)
  expect(taken.length).toBeGreaterThanOrEqual(3)
  await Promise.all(taken)
  expect((await generate(small, prompt)).tokens).toHaveLength(64)
  await small.close()
})

it('runs the higher priority first', async () => {
  const small = await openEngine({ ...options, maxBatch: 1 })
  const order: number[] = []
  const ask = (priority: number): Promise<unknown> =>
    generate(small, [...prompt, priority], { priority, sampling: { max_tokens: 10 } }).then(() =>
      order.push(priority),
    )
  // While this one runs, the others are there to choose from.
  const first = submit(small, prompt, { priority: 9, sampling: { max_tokens: 1000 } })
  const others = Promise.all([ask(0), ask(1), ask(5), ask(3)])
  small.cancel(first.handle)
  await others
  expect(order).toEqual([5, 3, 1, 0])
  await small.close()
})

describe('close()', () => {
  it('ends what runs as cancelled and refuses what comes', async () => {
    const closing = await openEngine(options)
    const { answer } = submit(closing, prompt, { sampling: { max_tokens: 1500 } })
    await closing.close()
    expect((await answer).finish.reason).toBe('cancelled')
    expect(() => submit(closing, prompt)).toThrow('closed')
    closing.cancel(1)
    expect(closing.stats().blocksTotal).toBeGreaterThan(0)
    expect(() => closing.checkIntegrity()).toThrow('closed')
    await Promise.all([closing.close(), closing.close()])
  })

  it('is not needed for Node to exit, and a request under way keeps it alive', () => {
    const script = `
      import { openEngine } from '${import.meta.dirname}/../../gpu-backend/engine.ts'
      const engine = await openEngine(${JSON.stringify(options)})
      const request = { tokenIds: Uint32Array.from([1, 2, 3]), salt: '', sharedPrefixTokens: 0, priority: 0,
        sampling: ${JSON.stringify({ ...greedy, max_tokens: 30 })} }
      engine.submit(request, (event) => { if (event.type === 'finish') console.log(event.usage.completion) })`
    const out = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
      timeout: 20_000,
    })
    expect(out.trim()).toBe('30')
  })
})
