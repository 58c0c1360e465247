/**
 * Sampling options, as sent and as used. What a caller leaves out follows the checkpoint's generation_config.json;
 * temperature 0 is pure greedy: then no default penalty applies, only one that was asked for.
 */
import * as z from 'zod/mini'
import { GrammarSpec } from './grammar/grammar.ts'

const int32 = z.int().check(z.gte(-2147483648), z.lte(2147483647))

export const Sampling = z.object({
  temperature: z.optional(z.number().check(z.gte(0), z.lte(2))),
  top_p: z.optional(z.number().check(z.gte(0), z.lte(1))),
  /** 0 or -1: no limit. */
  top_k: z.optional(z.int().check(z.gte(-1), z.lte(1_000_000))),
  min_p: z.optional(z.number().check(z.gte(0), z.lte(1))),
  repetition_penalty: z.optional(z.number().check(z.gt(0), z.lte(10))),
  presence_penalty: z.optional(z.number().check(z.gte(-2), z.lte(2))),
  frequency_penalty: z.optional(z.number().check(z.gte(-2), z.lte(2))),
  seed: z.optional(z.int()),
  max_tokens: z.optional(z.int().check(z.gte(1))),
  min_tokens: z.optional(z.int().check(z.gte(0))),
  stop_token_ids: z.optional(z.array(int32).check(z.maxLength(64))),
  ignore_eos: z.optional(z.boolean()),
  /** Token id -> bias added to its logit. */
  logit_bias: z.optional(
    z.record(z.string().check(z.regex(/^\d{1,7}$/)), z.number().check(z.gte(-100), z.lte(100))),
  ),
  /** How many alternatives to report with each token; 0 reports the chosen one alone. */
  logprobs: z.optional(z.int().check(z.gte(0), z.lte(20))),
  /** Answers to one prompt, each with its `index`; answer i is sampled with seed + i. */
  n: z.optional(z.int().check(z.gte(1), z.lte(16))),
  /** What the answer must look like. Its log-probabilities are then those among what is allowed. */
  grammar: z.optional(GrammarSpec),
})
export type Sampling = z.infer<typeof Sampling>

/** The part of generation_config.json that sampling follows. */
export interface GenerationDefaults {
  temperature: number
  top_p: number
  top_k: number
  repetition_penalty: number
}

export interface ResolvedSampling {
  temperature: number
  top_p: number
  /** 0: no limit. */
  top_k: number
  min_p: number
  repetition_penalty: number
  presence_penalty: number
  frequency_penalty: number
  /** null: the engine draws one. */
  seed: number | null
  max_tokens: number
  min_tokens: number
  stop_token_ids: number[]
  ignore_eos: boolean
  logit_bias: Record<string, number>
  logprobs: number | null
  n: number
  grammar: GrammarSpec | null
}

/** Below it a logit divided by the temperature may overflow; it is greedy then, as in vLLM. */
const temperature_min = 1e-5

/** @param room how many tokens the context still holds after the prompt; the limit when the caller sets none. */
export function resolveSampling(
  asked: Sampling,
  defaults: GenerationDefaults,
  room: number,
): ResolvedSampling {
  const temperature = asked.temperature ?? defaults.temperature
  const greedy = temperature < temperature_min
  const top_p = asked.top_p ?? defaults.top_p
  const top_k = top_p === 0 ? 1 : (asked.top_k ?? defaults.top_k)
  return {
    temperature: greedy ? 0 : temperature,
    top_p: greedy || top_p === 0 ? 1 : top_p,
    top_k: greedy || top_k < 0 ? 0 : top_k,
    min_p: greedy ? 0 : (asked.min_p ?? 0),
    repetition_penalty: asked.repetition_penalty ?? (greedy ? 1 : defaults.repetition_penalty),
    presence_penalty: asked.presence_penalty ?? 0,
    frequency_penalty: asked.frequency_penalty ?? 0,
    seed: greedy ? null : (asked.seed ?? null),
    max_tokens: asked.max_tokens ?? room,
    min_tokens: asked.min_tokens ?? 0,
    stop_token_ids: [...new Set(asked.stop_token_ids ?? [])].toSorted((a, b) => a - b),
    ignore_eos: asked.ignore_eos ?? false,
    logit_bias: asked.logit_bias ?? {},
    logprobs: asked.logprobs ?? null,
    n: asked.n ?? 1,
    grammar: asked.grammar ?? null,
  }
}

/** Whether the same request must give the same tokens, so that its answer may be kept. */
export const isDeterministic = (sampling: ResolvedSampling): boolean =>
  sampling.temperature === 0 || sampling.seed !== null
