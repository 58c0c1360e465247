#pragma once

#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "ops/ops.h"

namespace qe {

/**
 * Qwen2, dense: pre-norm blocks of grouped-query attention (bias on Q, K, V only; rotate-half RoPE) and SwiGLU.
 * Source of the arithmetic: transformers' modeling_qwen2.py, computed in fp32 from the weights as stored.
 */
class Qwen2 {
 public:
  /** Binds every weight; throws Error(checkpoint) for one that is missing or misshapen. Both must outlive the model.
      @param rows_max the most rows one batch may have */
  Qwen2(const ModelConfig& config, const Checkpoint& checkpoint, Ops& ops, std::size_t rows_max);

  /** Computes the batch, writes its keys and values, and returns logits: [batch.logit_rows][vocab], valid until the
      next call. */
  std::span<const float> forward(const Batch& batch);

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] AttentionShape attention_shape() const;

 private:
  struct Layer {
    Buffer input_norm, post_norm;   // [hidden]
    Weight q, k, v, o;              // [heads * dim][hidden], [kv * dim][hidden] twice, [hidden][heads * dim]
    Buffer q_bias, k_bias, v_bias;  // [out]
    Weight gate, up, down;          // [intermediate][hidden] twice, [hidden][intermediate]
  };

  void attention_block(std::size_t index, std::size_t rows);
  void feed_forward(const Layer& layer, std::size_t rows);

  ModelConfig config_;
  Ops& ops_;
  std::size_t rows_max_;
  Weight embedding_, head_;  // [vocab][hidden]
  Buffer final_norm_;        // [hidden]
  std::vector<Layer> layers_;
  Buffer x_, normed_;    // [rows_max][hidden]
  Buffer q_, attended_;  // [rows_max][heads * dim]
  Buffer k_, v_;         // [rows_max][kv * dim]
  Buffer gate_, up_;     // [rows_max][intermediate]
  Buffer logits_;        // [rows that want logits, grown on demand][vocab]
  std::size_t logit_rows_ = 0;
};

}  // namespace qe
