/**
 * How far the engine is from its oracle: the worst relative error of each fixture's logits (test/golden/engine), and
 * what WEIGHTS=int8 and KERNELS=amx-bf16 lose beside it. Small is good, so nothing here has a ratio.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openEngine, type EngineOptions } from '../../gpu-backend/engine.ts'
import { loadAddon } from '../../gpu-backend/native-addon.ts'
import { fixtureNames, loadFixture, loss, relativeError } from '../gpu-backend/engine-fixtures.ts'
import type { BenchResult } from './main.ts'

export async function run(): Promise<BenchResult[]> {
  const results: BenchResult[] = []
  const bf16Level = loadAddon().kernelLevels().includes('amx-bf16')
  for (const name of fixtureNames) {
    const fixture = loadFixture(name)
    const options = {
      modelDir: fixture.modelDir,
      device: 'cpu',
      kvMemoryMb: 64,
      tokenizerVocabSize: fixture.tokens,
    } as const
    if (!existsSync(join(fixture.modelDir, 'model.safetensors'))) continue
    const engine = await openEngine(options)
    const four = ['gptq', 'awq'].includes(name)
    const others = await Promise.all([
      ...(four ? [] : [open('int8', { ...options, weights: 'int8' })]),
      ...(bf16Level && !four ? [open('amx-bf16', { ...options, kernels: 'amx-bf16' })] : []),
    ])
    const rows = fixture.vocabRows
    let worst = 0
    let tokens = 0
    for (const { token_ids, positions, offset } of fixture.prompts) {
      const all = engine.logits(Uint32Array.from(token_ids))
      for (const [i, position] of positions.entries()) {
        const want = fixture.logits.subarray(offset + i * rows, offset + (i + 1) * rows)
        worst = Math.max(worst, relativeError(all.subarray(position * rows, (position + 1) * rows), want))
      }
      tokens += token_ids.length
      for (const other of others) {
        const lost = loss(other.engine.logits(Uint32Array.from(token_ids)), all, rows)
        other.kl += lost.kl * token_ids.length
        other.sameTop += lost.sameTop * token_ids.length
      }
    }
    results.push({ name: `${name}.worst_relative_error`, value: worst * 1e6, unit: 'ppm' })
    for (const { form, kl, sameTop } of others)
      results.push(
        { name: `${name}.${form}.kl`, value: kl / tokens, unit: 'nats' },
        { name: `${name}.${form}.same_top_token`, value: (100 * sameTop) / tokens, unit: '%' },
      )
    await Promise.all([engine, ...others.map((other) => other.engine)].map((each) => each.close()))
  }
  return results
}

const open = async (form: string, options: EngineOptions) => ({
  form,
  engine: await openEngine(options),
  kl: 0,
  sameTop: 0,
})
