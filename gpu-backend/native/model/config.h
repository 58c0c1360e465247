#pragma once

#include <cstddef>
#include <vector>

namespace qe {

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

  /** Throws Error(checkpoint) naming the field that makes no sense. */
  void check() const;
  /** Radians per position for each pair of channels, [head_dim / 2]. */
  [[nodiscard]] std::vector<float> rope_frequencies() const;
};

}  // namespace qe
