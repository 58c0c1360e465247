import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openEngine, type Engine } from '../../gpu-backend/engine.ts'
import { loadAddon } from '../../gpu-backend/native-addon.ts'
import { fixtureNames, generate, loadFixture, relativeError } from './engine-fixtures.ts'

it('has fixtures of the whole family', () => {
  expect(fixtureNames).toEqual(
    expect.arrayContaining(['dense-gqa-tied', 'dense-gqa-untied', 'moe', 'yarn', 'gptq', 'awq']),
  )
})

describe.each(fixtureNames)('%s answers as transformers does in fp32', (name) => {
  const fixture = loadFixture(name)
  let engine: Engine
  beforeAll(async () => {
    engine = await openEngine({
      modelDir: fixture.modelDir,
      device: 'cpu',
      kvMemoryMb: 64,
      tokenizerVocabSize: fixture.tokens,
      checkWhenIdle: true,
    })
  })
  afterAll(() => engine.close())

  it.each(fixture.prompts)('logits of $name: relative error < 1e-3', ({ token_ids, positions, offset }) => {
    const all = engine.logits(Uint32Array.from(token_ids))
    const rows = fixture.vocabRows
    for (const [i, position] of positions.entries()) {
      const got = all.subarray(position * rows, (position + 1) * rows)
      const want = fixture.logits.subarray(offset + i * rows, offset + (i + 1) * rows)
      expect(want).toHaveLength(rows)
      expect(relativeError(got, want)).toBeLessThan(1e-3)
      // What is reached in fact; a hundred times looser than seen.
      expect(relativeError(got, want)).toBeLessThan(1e-4)
    }
  })

  it.each(fixture.prompts)(
    '64 greedy tokens of $name, uncached and cached',
    async ({ token_ids, greedy }) => {
      const first = await generate(engine, token_ids, { salt: 'oracle' })
      expect(first.tokens).toEqual(greedy)
      const again = await generate(engine, token_ids, { salt: 'oracle' })
      expect(again.tokens).toEqual(greedy)
      expect(again.finish.usage.cached).toBe(Math.floor((token_ids.length - 1) / 16) * 16)
    },
  )

  it('gives the same logits bit for bit, however the prompt is cut into chunks', () => {
    const longest = fixture.prompts.reduce((a, b) => (a.token_ids.length >= b.token_ids.length ? a : b))
    const prompt = Uint32Array.from(longest.token_ids.slice(0, 300))
    const whole = engine.logits(prompt)
    for (const chunk of [1, 7, 16, 64]) expect(engine.logits(prompt, chunk)).toEqual(whole)
  })
})

const exactLevels = loadAddon()
  .kernelLevels()
  .filter((level) => level !== 'amx-bf16')
it.each(exactLevels)('kernels for %s agree with transformers', async (kernels) => {
  const fixture = loadFixture('dense-gqa-untied')
  const engine = await openEngine({ modelDir: fixture.modelDir, device: 'cpu', kvMemoryMb: 64, kernels })
  expect(engine.model.kernelLevel).toBe(kernels)
  for (const { token_ids, greedy } of fixture.prompts)
    expect((await generate(engine, token_ids)).tokens).toEqual(greedy)
  await engine.close()
})
