#include "model/qwen2.h"

#include <array>
#include <cmath>

#include "base/error.h"

namespace qe {

Qwen2::Qwen2(const ModelConfig& config, const Checkpoint& checkpoint, Ops& ops, std::size_t rows_max)
    : config_(config), ops_(ops), rows_max_(rows_max) {
  const std::size_t hidden = config.hidden, wide = config.heads * config.head_dim;
  const std::size_t narrow = config.kv_heads * config.head_dim, inner = config.intermediate;
  const auto matrix = [&](const std::string& name, std::size_t out, std::size_t in) {
    return ops.upload_matrix(checkpoint.tensor(name, {out, in}));
  };
  const auto vector = [&](const std::string& name, std::size_t count) {
    return ops.upload_vector(checkpoint.tensor(name, {count}));
  };

  embedding_ = matrix("model.embed_tokens.weight", config.vocab, hidden);
  head_ = config.tied ? embedding_ : matrix("lm_head.weight", config.vocab, hidden);
  final_norm_ = vector("model.norm.weight", hidden);
  for (std::size_t i = 0; i < config.layers; ++i) {
    const std::string at = concat("model.layers.", i, ".");
    Layer layer;
    layer.input_norm = vector(at + "input_layernorm.weight", hidden);
    layer.q = matrix(at + "self_attn.q_proj.weight", wide, hidden);
    layer.k = matrix(at + "self_attn.k_proj.weight", narrow, hidden);
    layer.v = matrix(at + "self_attn.v_proj.weight", narrow, hidden);
    layer.o = matrix(at + "self_attn.o_proj.weight", hidden, wide);
    layer.q_bias = vector(at + "self_attn.q_proj.bias", wide);
    layer.k_bias = vector(at + "self_attn.k_proj.bias", narrow);
    layer.v_bias = vector(at + "self_attn.v_proj.bias", narrow);
    layer.post_norm = vector(at + "post_attention_layernorm.weight", hidden);
    layer.gate = matrix(at + "mlp.gate_proj.weight", inner, hidden);
    layer.up = matrix(at + "mlp.up_proj.weight", inner, hidden);
    layer.down = matrix(at + "mlp.down_proj.weight", hidden, inner);
    layers_.push_back(std::move(layer));
  }

  x_ = ops.allocate(rows_max * hidden);
  normed_ = ops.allocate(rows_max * hidden);
  q_ = ops.allocate(rows_max * wide);
  attended_ = ops.allocate(rows_max * wide);
  k_ = ops.allocate(rows_max * narrow);
  v_ = ops.allocate(rows_max * narrow);
  gate_ = ops.allocate(rows_max * inner);
  up_ = ops.allocate(rows_max * inner);
}

AttentionShape Qwen2::attention_shape() const {
  AttentionShape shape;
  shape.layers = config_.layers;
  shape.heads = config_.heads;
  shape.kv_heads = config_.kv_heads;
  shape.head_dim = config_.head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  shape.frequencies = config_.rope_frequencies();
  return shape;
}

std::span<const float> Qwen2::forward(const Batch& batch) {
  const std::size_t rows = batch.rows(), wanted = batch.logit_rows.size();
  if (rows > rows_max_) throw Error(ErrorCode::internal, concat("a batch of ", rows, " rows, room for ", rows_max_));
  if (wanted > logit_rows_) {
    logits_ = ops_.allocate(wanted * config_.vocab);
    logit_rows_ = wanted;
  }

  ops_.begin(batch);
  ops_.embed(embedding_, x_.get());
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    attention_block(i, rows);
    feed_forward(layers_[i], rows);
  }
  if (wanted == 0) return ops_.read(nullptr, 0);
  ops_.gather_logit_rows(x_.get(), config_.hidden, normed_.get());
  ops_.rms_norm(normed_.get(), final_norm_, config_.rms_norm_eps, wanted, config_.hidden, normed_.get());
  ops_.linear(normed_.get(), wanted, std::array{Linear{&head_, nullptr, logits_.get()}});
  return ops_.read(logits_.get(), wanted * config_.vocab);
}

void Qwen2::attention_block(std::size_t index, std::size_t rows) {
  const Layer& layer = layers_[index];
  ops_.rms_norm(x_.get(), layer.input_norm, config_.rms_norm_eps, rows, config_.hidden, normed_.get());
  ops_.linear(normed_.get(), rows,
              std::array{Linear{&layer.q, layer.q_bias.get(), q_.get()}, Linear{&layer.k, layer.k_bias.get(), k_.get()},
                         Linear{&layer.v, layer.v_bias.get(), v_.get()}});
  ops_.rope_and_store(index, q_.get(), k_.get(), v_.get());
  ops_.attention(index, q_.get(), attended_.get());
  ops_.linear(attended_.get(), rows, std::array{Linear{&layer.o, nullptr, x_.get(), true}});
}

void Qwen2::feed_forward(const Layer& layer, std::size_t rows) {
  ops_.rms_norm(x_.get(), layer.post_norm, config_.rms_norm_eps, rows, config_.hidden, normed_.get());
  ops_.linear(normed_.get(), rows,
              std::array{Linear{&layer.gate, nullptr, gate_.get()}, Linear{&layer.up, nullptr, up_.get()}});
  ops_.silu_mul(gate_.get(), up_.get(), rows * config_.intermediate, gate_.get());
  ops_.linear(gate_.get(), rows, std::array{Linear{&layer.down, nullptr, x_.get(), true}});
}

}  // namespace qe
