#pragma once

// Qwen2's published shapes, what a step of each must read and compute, and how long a benchmark's prompts are.

#include <cstddef>
#include <vector>

namespace qe::bench {

struct Shape {
  const char* name;
  std::size_t hidden, layers, heads, kv_heads, head_dim, inner, vocab;
  bool tied, int4;

  /** Weights of all layers' matrices. */
  [[nodiscard]] std::size_t layer_weights() const {
    const std::size_t wide = heads * head_dim, narrow = kv_heads * head_dim;
    return layers * (hidden * (2 * wide + 2 * narrow) + 3 * hidden * inner);
  }
  [[nodiscard]] std::size_t head_weights() const { return vocab * hidden; }
  /** Bytes of weights that a step reads: of a checkpoint of `file` bytes all but an embedding that is no head, too. */
  [[nodiscard]] std::size_t step_bytes(std::size_t file) const { return tied ? file : file - head_weights() * 2; }
  /** Bytes of bf16 keys and values of a token. */
  [[nodiscard]] std::size_t kv_bytes() const { return layers * kv_heads * head_dim * 2 * 2; }
  /** Multiplications and additions for `rows` tokens, of which `heads_of` want logits, and each sees `context` others.
   */
  [[nodiscard]] double flops(double rows, double heads_of, double context) const {
    const double products =
        rows * static_cast<double>(layer_weights()) + heads_of * static_cast<double>(head_weights());
    return 2 * (products + 2 * rows * context * static_cast<double>(layers * heads * head_dim));
  }
};

inline constexpr Shape kShapes[] = {
    {"tiny", 128, 2, 2, 1, 64, 256, 512, true, false},  // for trying the benchmark itself
    {"0.5B", 896, 24, 14, 2, 64, 4864, 151936, true, false},
    {"1.5B", 1536, 28, 12, 2, 128, 8960, 151936, true, false},
    {"7B", 3584, 28, 28, 4, 128, 18944, 152064, false, false},
    {"72B-Int4", 8192, 80, 64, 8, 128, 29696, 152064, false, true},
};

/** Tokens. */
struct Lengths {
  std::vector<std::size_t> batches;
  std::size_t prompt, output;  // of each sequence that decodes
  std::size_t prefill, prefix, compared;
};

inline Lengths lengths_of(const Shape& shape) {
  if (shape.vocab < 10000) return {{1, 2}, 16, 4, 32, 48, 24};
  if (shape.int4) return {{1, 8, 64}, 128, 128, 4096, 8192, 0};
  return {{1, 8, 64, 256}, 128, 128, 4096, 8192, 256};
}

}  // namespace qe::bench
