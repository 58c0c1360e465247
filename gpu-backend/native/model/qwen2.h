#pragma once

#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "ops/ops.h"

namespace qe {

/**
 * Qwen2: pre-norm blocks of grouped-query attention (bias on Q, K, V; rotate-half RoPE) and SwiGLU, dense or as a
 * mixture of routed experts beside one shared expert behind a sigmoid gate. Source of the arithmetic: transformers'
 * modeling_qwen2.py and modeling_qwen2_moe.py, computed in fp32 from the weights as stored.
 */
class Qwen2 {
 public:
  /** Binds every weight; throws Error(checkpoint) for one that is missing or misshapen. Both must outlive the model.
      @param rows_max the most rows one batch may have */
  Qwen2(const ModelConfig& config, const Checkpoint& checkpoint, Ops& ops, std::size_t rows_max);

  /** Computes the batch, writes its keys and values, and leaves its logits where they are until its turn comes again.
      Need not wait. */
  void launch(const Batch& batch);
  /** The same, and the device chooses a token for each logit row. */
  void launch(const Batch& batch, std::span<const Choice> choices);
  /** Waits for the step of that turn: the tokens, or kUndecided, [logit rows]. */
  std::vector<TokenId> tokens(unsigned turn) { return ops_.take_tokens(turn); }
  /** Waits for all: [rows][vocab], until the next call. */
  std::span<const float> logits(unsigned turn, std::size_t first_row, std::size_t rows);

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] AttentionShape attention_shape() const;

 private:
  /** A matrix and, where the checkpoint has one, its bias. */
  struct Projected {
    Weight weight;  // [out][in]
    Buffer bias;    // [out] or null
    [[nodiscard]] Linear to(float* y, bool add = false) const { return {&weight, bias.get(), y, add}; }
  };
  struct FeedForward {
    Projected gate, up, down;  // [inner][hidden] twice, [hidden][inner]
    std::size_t inner = 0;
  };
  struct Layer {
    Buffer input_norm, post_norm;  // [hidden]
    Projected q, k, v, o;          // [heads * dim][hidden], [kv * dim][hidden] twice, [hidden][heads * dim]
    FeedForward dense;             // the shared expert of a sparse layer
    Experts experts;               // of a sparse layer
    Weight router, shared_gate;    // of a sparse layer: [experts][hidden], [1][hidden]
  };
  class Loader;

  void attention_block(std::size_t index, std::size_t rows);
  void feed_forward(const Layer& layer, std::size_t rows);
  /** down(silu(gate x) * up x) of the normalised rows, into y or added to it. */
  void swiglu(const FeedForward& part, std::size_t rows, float* y, bool add);

  ModelConfig config_;
  Ops& ops_;
  std::size_t rows_max_;
  Weight embedding_, head_;  // [vocab][hidden]; the embedding is always as stored
  Buffer final_norm_;        // [hidden]
  std::vector<Layer> layers_;
  Buffer x_, normed_;    // [rows_max][hidden]
  Buffer q_, attended_;  // [rows_max][heads * dim]
  Buffer k_, v_;         // [rows_max][kv * dim]
  Buffer gate_, up_;     // [rows_max][intermediate]
  Buffer router_;        // [rows_max][experts + 1]: the router's logits, then the shared expert's gate
  Buffer shared_;        // [rows_max][hidden]
  struct Logits {
    Buffer rows;  // [rows that want logits, grown on demand][vocab]
    std::size_t count = 0;
  };
  Logits logits_[2];  // by turn; the second only where two steps are ever under way
};

}  // namespace qe
