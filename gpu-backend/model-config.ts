/**
 * config.json of a Qwen2 checkpoint, dense or a mixture of experts, as the native side wants it. What the engine does
 * not compute is refused by name here, before any weight is read.
 */
import * as z from 'zod/mini'
import { ids } from './generation-config.ts'
import type { NativeModelConfig } from './native-addon.ts'
import { CheckpointError } from './safetensors.ts'

const positive = z.int().check(z.gte(1))

const Rope = z.looseObject({
  rope_type: z.optional(z.string()),
  type: z.optional(z.string()),
  rope_theta: z.optional(z.number()),
  factor: z.optional(z.number()),
  original_max_position_embeddings: z.nullish(positive),
  beta_fast: z.nullish(z.number()),
  beta_slow: z.nullish(z.number()),
  attention_factor: z.nullish(z.number()),
})

const Quantization = z.looseObject({
  quant_method: z.string(),
  bits: z.optional(z.int()),
  group_size: z.optional(z.int()),
  desc_act: z.nullish(z.boolean()),
  version: z.nullish(z.string()),
})

export const Config = z.object({
  model_type: z.enum(['qwen2', 'qwen2_moe']),
  hidden_act: z.optional(z.literal('silu')),
  hidden_size: positive,
  num_hidden_layers: positive,
  num_attention_heads: positive,
  num_key_value_heads: z.optional(positive),
  head_dim: z.nullish(positive),
  intermediate_size: positive,
  vocab_size: positive,
  max_position_embeddings: positive,
  rms_norm_eps: z.optional(z.number()),
  rope_theta: z.optional(z.number()),
  rope_scaling: z.nullish(Rope),
  rope_parameters: z.nullish(Rope),
  tie_word_embeddings: z.optional(z.boolean()),
  use_sliding_window: z.optional(z.boolean()),
  eos_token_id: z.nullish(ids),
  quantization_config: z.nullish(Quantization),
  num_experts: z.optional(positive),
  num_experts_per_tok: z.optional(positive),
  moe_intermediate_size: z.optional(positive),
  shared_expert_intermediate_size: z.optional(positive),
  norm_topk_prob: z.optional(z.boolean()),
  decoder_sparse_step: z.optional(z.int()),
  mlp_only_layers: z.nullish(z.array(z.int())),
})
type Config = z.infer<typeof Config>
type Refuse = (what: string) => CheckpointError

/** @param tokens tokens that exist; undefined: as many as the embedding has rows */
export function modelConfig(path: string, config: Config, tokens: number | undefined): NativeModelConfig {
  const refuse: Refuse = (what) => new CheckpointError(`${path}: ${what}`)
  if (config.use_sliding_window === true) throw refuse('use_sliding_window is not supported')
  const headDim = config.head_dim ?? config.hidden_size / config.num_attention_heads
  if (!Number.isInteger(headDim)) throw refuse('hidden_size is not a multiple of num_attention_heads')
  const rope = yarn(config, refuse)
  return {
    hidden: config.hidden_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    kvHeads: config.num_key_value_heads ?? config.num_attention_heads,
    headDim,
    intermediate: config.intermediate_size,
    vocab: config.vocab_size,
    tokenizerVocab: Math.min(tokens ?? config.vocab_size, config.vocab_size),
    context: Math.max(config.max_position_embeddings, Math.floor(rope.yarnFactor * rope.yarnOriginal)),
    rmsNormEps: config.rms_norm_eps ?? 1e-6,
    // transformers' defaults for a Qwen2 configuration that leaves them out
    ropeTheta: config.rope_theta ?? config.rope_parameters?.rope_theta ?? 10000,
    tied: config.tie_word_embeddings ?? false,
    ...rope,
    ...experts(config, refuse),
    ...format(config, refuse),
  }
}

/** Stretched to factor * original tokens; as in vLLM, the factor counts and not what max_position_embeddings says. */
function yarn(
  { rope_scaling, rope_parameters, max_position_embeddings }: Config,
  refuse: Refuse,
): Pick<
  NativeModelConfig,
  'yarnFactor' | 'yarnOriginal' | 'yarnBetaFast' | 'yarnBetaSlow' | 'yarnAttentionFactor'
> {
  const rope = rope_scaling ?? rope_parameters ?? {}
  const type = rope.rope_type ?? rope.type ?? 'default'
  if (type !== 'default' && type !== 'yarn')
    throw refuse(`RoPE of type ${JSON.stringify(type)} is not supported`)
  if (type === 'yarn' && rope.factor === undefined) throw refuse('RoPE of type "yarn" wants a factor')
  return {
    yarnFactor: type === 'yarn' ? (rope.factor ?? 1) : 1,
    yarnOriginal: type === 'yarn' ? (rope.original_max_position_embeddings ?? max_position_embeddings) : 0,
    yarnBetaFast: rope.beta_fast ?? 32,
    yarnBetaSlow: rope.beta_slow ?? 1,
    yarnAttentionFactor: rope.attention_factor ?? 0,
  }
}

function experts(
  config: Config,
  refuse: Refuse,
): Pick<NativeModelConfig, 'experts' | 'topK' | 'expertInner' | 'sharedInner' | 'renormalise'> {
  if (config.model_type === 'qwen2')
    return { experts: 0, topK: 0, expertInner: 0, sharedInner: 0, renormalise: false }
  if ((config.decoder_sparse_step ?? 1) !== 1 || (config.mlp_only_layers ?? []).length > 0)
    throw refuse('a mixture of experts with dense layers between is not supported')
  const want = (name: keyof Config): number => {
    const value = config[name]
    if (typeof value !== 'number') throw refuse(`${name}: a mixture of experts wants it`)
    return value
  }
  return {
    experts: want('num_experts'),
    topK: want('num_experts_per_tok'),
    expertInner: want('moe_intermediate_size'),
    sharedInner: want('shared_expert_intermediate_size'),
    renormalise: config.norm_topk_prob ?? false,
  }
}

function format(
  { quantization_config: quantised }: Config,
  refuse: Refuse,
): Pick<NativeModelConfig, 'weights' | 'quantGroup'> {
  if (!quantised) return { weights: 'stored', quantGroup: 0 }
  const { quant_method: weights, bits, group_size: quantGroup, desc_act, version } = quantised
  if (weights !== 'gptq' && weights !== 'awq')
    throw refuse(`weights quantised by ${JSON.stringify(weights)} are not supported; gptq and awq are`)
  if (bits !== 4) throw refuse(`${weights} of ${bits} bits is not supported; 4 are`)
  if (desc_act === true) throw refuse('gptq with desc_act is not supported')
  if (weights === 'awq' && (version ?? 'gemm').toLowerCase() !== 'gemm')
    throw refuse(`awq of version ${JSON.stringify(version)} is not supported; gemm is`)
  if (quantGroup === undefined || quantGroup < 32 || quantGroup % 32 !== 0)
    throw refuse(`a group_size of ${quantGroup} is not supported; multiples of 32 are`)
  return { weights, quantGroup }
}
