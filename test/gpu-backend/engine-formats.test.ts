/** WEIGHTS=int8 and KERNELS=amx-bf16: how much is lost, and that it is the same engine otherwise. */
import { expect, it } from 'vitest'
import { openEngine, type EngineOptions } from '../../gpu-backend/engine.ts'
import { loadAddon } from '../../gpu-backend/native-addon.ts'
import { generate, loadFixture, loss, random, relativeError } from './engine-fixtures.ts'

const open = (name: string, options: Partial<EngineOptions> = {}) => {
  const { modelDir, tokens } = loadFixture(name)
  return openEngine({ modelDir, device: 'cpu', kvMemoryMb: 16, tokenizerVocabSize: tokens, ...options })
}
const next = random(1)
const prompt = Array.from({ length: 400 }, () => Math.floor(next() * 190))

// Random weights with peaked attention magnify a rounding far more than trained ones do; where a router flips, most.
it.each([
  ['dense-gqa-tied', 0.01, 0.92],
  ['dense-gqa-untied', 0.01, 0.92],
  ['moe', 0.1, 0.8],
  ['yarn', 0.015, 0.9],
])(
  'int8 weights of %s lose less than %d nats and keep the likeliest token of %d of the rows',
  async (name, kl_max, same_min) => {
    const exact = await open(name)
    const rounded = await open(name, { weights: 'int8' })
    const tokens = Uint32Array.from(prompt)
    const { kl, sameTop } = loss(rounded.logits(tokens), exact.logits(tokens), exact.model.vocabSize)
    expect(kl).toBeGreaterThan(1e-9)
    expect(kl).toBeLessThan(kl_max)
    expect(sameTop).toBeGreaterThan(same_min)
    expect(rounded.logits(tokens, 7)).toEqual(rounded.logits(tokens))
    await Promise.all([exact.close(), rounded.close()])
  },
)

it.runIf(loadAddon().kernelLevels().includes('amx-bf16'))(
  'activations rounded to bf16 lose less than 0.002 nats, alike however the prompt is cut',
  async () => {
    const exact = await open('dense-gqa-untied')
    const rounded = await open('dense-gqa-untied', { kernels: 'amx-bf16' })
    const tokens = Uint32Array.from(prompt)
    const { kl, sameTop } = loss(rounded.logits(tokens), exact.logits(tokens), exact.model.vocabSize)
    expect(kl).toBeGreaterThan(1e-9)
    expect(kl).toBeLessThan(0.002)
    expect(sameTop).toBeGreaterThan(0.95)
    expect(rounded.logits(tokens, 7)).toEqual(rounded.logits(tokens))
    await Promise.all([exact.close(), rounded.close()])
  },
)

it.each(['dense-gqa-untied', 'gptq'])('%s on every exact kernel level: near each other', async (name) => {
  const all: Float32Array[] = []
  for (const kernels of loadAddon().kernelLevels()) {
    if (kernels === 'amx-bf16') continue
    const engine = await open(name, { kernels, ...(name === 'gptq' ? {} : { weights: 'int8' }) })
    all.push(engine.logits(Uint32Array.from(prompt)))
    await engine.close()
  }
  for (const each of all) expect(relativeError(each, all[0]!)).toBeLessThan(1e-5)
})

it('int8 answers alike alone and in a batch', async () => {
  const engine = await open('dense-gqa-untied', { weights: 'int8' })
  const prompts = [3, 40, 100].map((length) => prompt.slice(0, length))
  const batch = await Promise.all(prompts.map((each) => generate(engine, each)))
  for (const [i, each] of prompts.entries())
    expect((await generate(engine, each, { salt: 'alone' })).tokens).toEqual(batch[i]!.tokens)
  await engine.close()
})

it('int8 of weights that have four bits already is refused', async () => {
  await expect(open('gptq', { weights: 'int8' })).rejects.toThrow('leave WEIGHTS unset')
})
