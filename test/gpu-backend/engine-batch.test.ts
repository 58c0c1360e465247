import { afterEach, describe, expect, it } from 'vitest'
import { openEngine, type Engine, type EngineOptions } from '../../gpu-backend/engine.ts'
import { generate, loadFixture, random, submit } from './engine-fixtures.ts'

const fixture = loadFixture('dense-gqa-tied')
let engine: Engine
const open = async (options: Partial<EngineOptions> = {}): Promise<Engine> =>
  (engine = await openEngine({
    modelDir: fixture.modelDir,
    device: 'cpu',
    kvMemoryMb: 32,
    tokenizerVocabSize: fixture.tokens,
    checkWhenIdle: true,
    ...options,
  }))
/** Memory for exactly so many blocks: two layers, two KV heads, keys and values of 64 fp32 channels, 16 tokens. */
const blocks = (count: number): { kvMemoryMb: number } => ({ kvMemoryMb: (count * 16 * 2048 + 1) / 1e6 })
afterEach(() => engine.close())

const prompts = Array.from({ length: 8 }, (_, i) => {
  const next = random(i + 1)
  return Array.from({ length: [1, 16, 33, 70, 120, 200, 257, 300][i]! }, () => Math.floor(next() * 437))
})
const sampled = { temperature: 0.9, top_p: 0.9, top_k: 40, seed: 7, max_tokens: 24 }
const texts = (answers: { tokens: number[] }[]): number[][] => answers.map(({ tokens }) => tokens)

describe('one answer, whatever else happens', () => {
  it('is the same alone, in a batch of eight, cached, and in chunks of any size', async () => {
    await open({ maxBatch: 1 })
    const alone = []
    for (const prompt of prompts) alone.push(await generate(engine, prompt, { sampling: sampled }))
    await engine.close()
    for (const options of [{ prefillChunk: 1 }, { prefillChunk: 50, prefillChunkBeside: 3 }, {}]) {
      await open(options)
      for (let round = 0; round < 2; round++) {
        // the second one is cached
        const batch = await Promise.all(prompts.map((p) => generate(engine, p, { sampling: sampled })))
        expect(texts(batch)).toEqual(texts(alone))
      }
      expect(engine.stats().prefixHits).toBeGreaterThan(0)
      await engine.close()
    }
  })

  it('is the same on one thread and on three', async () => {
    await open({ threads: 1 })
    const one = engine.logits(Uint32Array.from(prompts[7]!))
    await engine.close()
    await open({ threads: 3 })
    expect(engine.logits(Uint32Array.from(prompts[7]!))).toEqual(one)
  })

  it('is the same when a chat goes on from generated tokens that are cached', async () => {
    await open()
    const first = await generate(engine, prompts[3]!, { sampling: { max_tokens: 60 } })
    const chat = [...prompts[3]!, ...first.tokens, 5, 6, 7]
    const warm = await generate(engine, chat)
    expect(warm.finish.usage.cached).toBeGreaterThan(prompts[3]!.length + 16)
    const cold = await generate(engine, chat, { salt: 'somebody else' })
    expect(cold.finish.usage.cached).toBe(0)
    expect(warm.tokens).toEqual(cold.tokens)
  })

  it('is the same after preemption for want of KV memory', async () => {
    await open()
    const want = await Promise.all(prompts.map((p) => generate(engine, p, { sampling: sampled })))
    await engine.close()
    // The longest sequence alone takes 21 blocks.
    await open(blocks(30))
    const got = await Promise.all(
      [...prompts.keys()].map((i) => generate(engine, prompts[i]!, { sampling: sampled, priority: i })),
    )
    expect(texts(got)).toEqual(texts(want))
    engine.checkIntegrity()
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, blocksUsed: 0, blocksTotal: 30 })
    expect(engine.stats().preemptions).toBeGreaterThan(0)
  })
})

describe('interleavings', () => {
  it.each([1, 2, 3])(
    'of submit, cancel, evict and preempt lose no block and change no answer (seed %i)',
    async (seed) => {
      await open({ ...blocks(40), maxBatch: 5, prefillChunk: 48, prefillChunkBeside: 20 })
      const next = random(seed)
      const pick = (n: number): number => Math.floor(next() * n)
      const answers: { prompt: number[]; tokens: number[] }[] = []
      const work: Promise<void>[] = []
      for (let i = 0; i < 150; i++) {
        const base = prompts[pick(prompts.length)]!
        const prompt = base.slice(0, 1 + pick(base.length))
        const max_tokens = 1 + pick(30)
        const { handle, answer } = submit(engine, prompt, {
          salt: `tenant ${pick(3)}`,
          priority: pick(3),
          sampling: { ...sampled, max_tokens },
        })
        const kept = async (): Promise<void> => {
          const { tokens, finish } = await answer
          expect(finish.usage.completion).toBe(tokens.length)
          expect(tokens.length === max_tokens).toBe(finish.reason === 'length')
          answers.push({ prompt, tokens })
        }
        work.push(kept())
        if (next() < 0.3) setTimeout(() => engine.cancel(handle), pick(20))
        if (next() < 0.5) await new Promise((resolve) => setTimeout(resolve, pick(4)))
        if (i % 40 === 39) engine.checkIntegrity()
      }
      await Promise.all(work)
      engine.checkIntegrity()
      const stats = engine.stats()
      expect(stats).toMatchObject({ running: 0, waiting: 0, blocksUsed: 0 })
      expect(stats.blocksFree + stats.blocksCached).toBe(stats.blocksTotal)
      expect(stats.evictions).toBeGreaterThan(0)
      await engine.close()
      await open()
      for (const { prompt, tokens } of answers) {
        const lone = await generate(engine, prompt, { sampling: { ...sampled, max_tokens: tokens.length } })
        expect(lone.tokens).toEqual(tokens)
      }
    },
  )
})

describe('the prefix cache between tenants', () => {
  it("shares what the operator published and nothing of a tenant's", async () => {
    await open()
    const prompt = prompts[7]! // 300 tokens: 18 full blocks
    const ask = { sharedPrefixTokens: 100, sampling: { max_tokens: 1 } } // 6 full blocks of operator text
    const cached = async (salt: string): Promise<number> =>
      (await generate(engine, prompt, { ...ask, salt })).finish.usage.cached
    expect(await cached('a')).toBe(0)
    expect(await cached('a')).toBe(288)
    expect(await cached('b')).toBe(96)
    expect(await cached('b')).toBe(288)
  })

  it('evicts the end of a conversation before its beginning', async () => {
    await open(blocks(24))
    await generate(engine, prompts[7]!, { sampling: { max_tokens: 1 } }) // 19 blocks, 18 stay cached
    await generate(engine, prompts[4]!, { sampling: { max_tokens: 1 } }) // 8 of 24: 2 must go
    const again = await generate(engine, prompts[7]!, { sampling: { max_tokens: 1 } })
    expect(again.finish.usage.cached).toBe((18 - 2) * 16)
  })
})
