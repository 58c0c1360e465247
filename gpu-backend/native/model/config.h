#pragma once

#include <cstddef>
#include <vector>

#include "checkpoint/tensor.h"

namespace qe {

/** YaRN's stretching of RoPE (Peng et al., 2023); a factor of 1 is none. */
struct YarnConfig {
  float factor = 1;
  std::size_t original = 0;  // context the model was trained with
  float beta_fast = 32, beta_slow = 1;
  float attention_factor = 0;  // of cos and sin; 0: 0.1 ln(factor) + 1
};

/** A sparse feed-forward layer; no experts: every layer is dense. */
struct MoeConfig {
  std::size_t experts = 0;
  std::size_t top_k = 0;
  std::size_t inner = 0;   // of a routed expert
  std::size_t shared = 0;  // of the shared expert
  bool renormalise = false;
};

/** The shape of a Qwen2 model, as config.json gives it. */
struct ModelConfig {
  std::size_t hidden = 0;
  std::size_t layers = 0;
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;
  std::size_t intermediate = 0;
  std::size_t vocab = 0;            // rows of the embedding
  std::size_t tokenizer_vocab = 0;  // tokens that exist; the rows above are padding and are never sampled
  std::size_t context = 0;          // tokens
  float rms_norm_eps = 1e-6f;
  float rope_theta = 1e6f;
  bool tied = false;
  YarnConfig yarn;
  MoeConfig moe;
  WeightFormat weights = WeightFormat::stored;
  std::size_t quant_group = 0;  // of gptq and awq

  /** Throws Error(checkpoint) naming the field that makes no sense. */
  void check() const;
  /** Radians per position for each pair of channels, [head_dim / 2]. */
  [[nodiscard]] std::vector<float> rope_frequencies() const;
  /** Factor of cos and sin. */
  [[nodiscard]] float rope_magnitude() const;
};

}  // namespace qe
