/** What a checkpoint's generation_config.json says, which config.json may say too: where answers end, sampling's defaults. */
import * as z from 'zod/mini'
import type { GenerationDefaults } from '../src/sampling.ts'

const id = z.int().check(z.gte(0))
export const ids = z.union([id, z.array(id).check(z.maxLength(64))])

export const GenerationConfig = z.object({
  eos_token_id: z.nullish(ids),
  do_sample: z.nullish(z.boolean()),
  temperature: z.nullish(z.number().check(z.gte(0))),
  top_p: z.nullish(z.number().check(z.gt(0), z.lte(1))),
  top_k: z.nullish(z.int().check(z.gte(0))),
  repetition_penalty: z.nullish(z.number().check(z.gt(0))),
})
type GenerationConfig = z.infer<typeof GenerationConfig>

export const generationDefaults = (generation: GenerationConfig): GenerationDefaults => ({
  temperature: generation.do_sample === false ? 0 : (generation.temperature ?? 1),
  top_p: generation.top_p ?? 1,
  top_k: generation.top_k ?? 0,
  repetition_penalty: generation.repetition_penalty ?? 1,
})

export const eosTokenIds = (
  generation: GenerationConfig,
  config: Pick<GenerationConfig, 'eos_token_id'>,
): number[] => [generation.eos_token_id ?? config.eos_token_id ?? []].flat()
