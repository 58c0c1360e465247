/**
 * How far the engine is from its oracle: the worst relative error of each fixture's logits (test/golden/engine), and
 * what WEIGHTS=int8 loses. Small is good, so nothing here has a ratio.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openEngine } from '../../gpu-backend/engine.ts'
import { fixtureNames, loadFixture, loss, relativeError } from '../gpu-backend/engine-fixtures.ts'
import type { BenchResult } from './main.ts'

export async function run(): Promise<BenchResult[]> {
  const results: BenchResult[] = []
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
    const int8 = ['gptq', 'awq'].includes(name) ? null : await openEngine({ ...options, weights: 'int8' })
    const rows = fixture.vocabRows
    let worst = 0
    let kl = 0
    let sameTop = 0
    let tokens = 0
    for (const { token_ids, positions, offset } of fixture.prompts) {
      const all = engine.logits(Uint32Array.from(token_ids))
      for (const [i, position] of positions.entries()) {
        const want = fixture.logits.subarray(offset + i * rows, offset + (i + 1) * rows)
        worst = Math.max(worst, relativeError(all.subarray(position * rows, (position + 1) * rows), want))
      }
      if (int8 === null) continue
      const lost = loss(int8.logits(Uint32Array.from(token_ids)), all, rows)
      kl += lost.kl * token_ids.length
      sameTop += lost.sameTop * token_ids.length
      tokens += token_ids.length
    }
    results.push({ name: `${name}.worst_relative_error`, value: worst * 1e6, unit: 'ppm' })
    if (int8 !== null)
      results.push(
        { name: `${name}.int8.kl`, value: kl / tokens, unit: 'nats' },
        { name: `${name}.int8.same_top_token`, value: (100 * sameTop) / tokens, unit: '%' },
      )
    await engine.close()
    await int8?.close()
  }
  return results
}
