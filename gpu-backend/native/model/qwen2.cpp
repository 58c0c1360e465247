#include "model/qwen2.h"

#include <array>
#include <cmath>

#include "base/error.h"
#include "checkpoint/int4.h"

namespace qe {

/** Binds tensors by name, in whichever format the checkpoint (or the operator) wants the matrices. */
class Qwen2::Loader {
 public:
  Loader(const ModelConfig& config, const Checkpoint& checkpoint, Ops& ops)
      : config_(config), checkpoint_(checkpoint), ops_(ops) {}

  [[nodiscard]] Buffer vector(const std::string& name, std::size_t count) const {
    Buffer buffer = ops_.upload_vector(checkpoint_.tensor(name, {count}));
    checkpoint_.forget(name);
    return buffer;
  }
  /** @param head where it is the same tensor */
  [[nodiscard]] Weight table(const std::string& name, const Weight* head) const {
    const Weight table = ops_.upload_table(checkpoint_.tensor(name, {config_.vocab, config_.hidden}), head);
    checkpoint_.release_pages(name);
    return table;
  }
  /** As stored, whatever the format of the rest. */
  [[nodiscard]] Weight stored(const std::string& name, std::size_t out, std::size_t in) const {
    const Weight weight = ops_.upload_matrix(checkpoint_.tensor(name, {out, in}));
    checkpoint_.forget(name);
    return weight;
  }
  [[nodiscard]] Weight head(const std::string& name) const {
    return plain_or_rounded(name, config_.vocab, config_.hidden);
  }
  /** `at` ends in a dot: the layer's name without ".weight". */
  [[nodiscard]] Weight matrix(const std::string& at, std::size_t out, std::size_t in) const {
    if (config_.weights != WeightFormat::gptq && config_.weights != WeightFormat::awq)
      return plain_or_rounded(at + "weight", out, in);
    const Weight packed = ops_.upload_int4(read_int4(checkpoint_, at, config_.weights, out, in, config_.quant_group));
    for (const char* part : {"qweight", "qzeros", "scales"}) checkpoint_.forget(at + part);
    return packed;
  }
  /** AutoGPTQ writes a bias beside every matrix; Q, K and V have one in every checkpoint. */
  [[nodiscard]] Projected projected(const std::string& at, std::size_t out, std::size_t in, bool bias = false) const {
    Projected part{matrix(at, out, in), nullptr};
    if (bias || checkpoint_.has(at + "bias")) part.bias = vector(at + "bias", out);
    return part;
  }
  [[nodiscard]] FeedForward feed_forward(const std::string& at, std::size_t inner) const {
    const std::size_t hidden = config_.hidden;
    return {projected(at + "gate_proj.", inner, hidden), projected(at + "up_proj.", inner, hidden),
            projected(at + "down_proj.", hidden, inner), inner};
  }
  [[nodiscard]] Experts experts(const std::string& at) const {
    const std::size_t hidden = config_.hidden, inner = config_.moe.inner;
    Experts all;
    all.top_k = config_.moe.top_k, all.renormalise = config_.moe.renormalise;
    for (std::size_t e = 0; e < config_.moe.experts; ++e) {
      const std::string expert = concat(at, e, ".");
      all.gate.push_back(matrix(expert + "gate_proj.", inner, hidden));
      all.up.push_back(matrix(expert + "up_proj.", inner, hidden));
      all.down.push_back(matrix(expert + "down_proj.", hidden, inner));
    }
    ops_.accept(all);
    return all;
  }

 private:
  [[nodiscard]] Weight plain_or_rounded(const std::string& name, std::size_t out, std::size_t in) const {
    if (config_.weights != WeightFormat::int8) return stored(name, out, in);
    const Weight rounded = ops_.upload_int8(checkpoint_.tensor(name, {out, in}));
    checkpoint_.forget(name);
    return rounded;
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  Ops& ops_;
};

Qwen2::Qwen2(const ModelConfig& config, const Checkpoint& checkpoint, Ops& ops, std::size_t rows_max)
    : config_(config), ops_(ops), rows_max_(rows_max) {
  const std::size_t hidden = config.hidden, wide = config.heads * config.head_dim;
  const std::size_t narrow = config.kv_heads * config.head_dim;
  const MoeConfig& moe = config.moe;
  const Loader load(config, checkpoint, ops);

  head_ = load.head(config.tied ? "model.embed_tokens.weight" : "lm_head.weight");
  embedding_ = load.table("model.embed_tokens.weight", config.tied ? &head_ : nullptr);
  final_norm_ = load.vector("model.norm.weight", hidden);
  for (std::size_t i = 0; i < config.layers; ++i) {
    const std::string at = concat("model.layers.", i, ".");
    Layer layer;
    layer.input_norm = load.vector(at + "input_layernorm.weight", hidden);
    layer.q = load.projected(at + "self_attn.q_proj.", wide, hidden, true);
    layer.k = load.projected(at + "self_attn.k_proj.", narrow, hidden, true);
    layer.v = load.projected(at + "self_attn.v_proj.", narrow, hidden, true);
    layer.o = load.projected(at + "self_attn.o_proj.", hidden, wide);
    layer.post_norm = load.vector(at + "post_attention_layernorm.weight", hidden);
    if (moe.experts == 0) {
      layer.dense = load.feed_forward(at + "mlp.", config.intermediate);
    } else {
      layer.router = load.stored(at + "mlp.gate.weight", moe.experts, hidden);
      layer.experts = load.experts(at + "mlp.experts.");
      layer.dense = load.feed_forward(at + "mlp.shared_expert.", moe.shared);
      layer.shared_gate = load.stored(at + "mlp.shared_expert_gate.weight", 1, hidden);
    }
    layers_.push_back(std::move(layer));
  }

  const std::size_t inner = moe.experts == 0 ? config.intermediate : moe.shared;
  x_ = ops.allocate(rows_max * hidden);
  normed_ = ops.allocate(rows_max * hidden);
  q_ = ops.allocate(rows_max * wide);
  attended_ = ops.allocate(rows_max * wide);
  k_ = ops.allocate(rows_max * narrow);
  v_ = ops.allocate(rows_max * narrow);
  gate_ = ops.allocate(rows_max * inner);
  up_ = ops.allocate(rows_max * inner);
  if (moe.experts == 0) return;
  router_ = ops.allocate(rows_max * (moe.experts + 1));
  shared_ = ops.allocate(rows_max * hidden);
}

AttentionShape Qwen2::attention_shape() const {
  AttentionShape shape;
  shape.layers = config_.layers;
  shape.heads = config_.heads;
  shape.kv_heads = config_.kv_heads;
  shape.head_dim = config_.head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  shape.frequencies = config_.rope_frequencies();
  shape.rope_magnitude = config_.rope_magnitude();
  return shape;
}

std::span<const float> Qwen2::logits(unsigned turn, std::size_t first_row, std::size_t rows) {
  return ops_.read(logits_[turn].rows.get() + first_row * config_.vocab, rows * config_.vocab);
}

void Qwen2::launch(const Batch& batch, std::span<const Choice> choices) {
  launch(batch);
  ops_.launch_choose(logits_[batch.turn].rows.get(), config_.vocab, config_.tokenizer_vocab, choices);
}

void Qwen2::launch(const Batch& batch) {
  const std::size_t rows = batch.rows(), wanted = batch.logit_rows.size();
  if (rows > rows_max_) throw Error(ErrorCode::internal, concat("a batch of ", rows, " rows, room for ", rows_max_));
  Logits& logits = logits_[batch.turn];
  if (wanted > logits.count) logits = {ops_.allocate(wanted * config_.vocab), wanted};

  ops_.begin(batch);
  ops_.embed(embedding_, x_.get());
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    attention_block(i, rows);
    feed_forward(layers_[i], rows);
  }
  if (wanted == 0) return;
  ops_.gather_logit_rows(x_.get(), config_.hidden, normed_.get());
  ops_.rms_norm(normed_.get(), final_norm_, config_.rms_norm_eps, wanted, config_.hidden, normed_.get());
  ops_.linear(normed_.get(), wanted, std::array{Linear{&head_, nullptr, logits.rows.get()}});
}

void Qwen2::attention_block(std::size_t index, std::size_t rows) {
  const Layer& layer = layers_[index];
  ops_.rms_norm(x_.get(), layer.input_norm, config_.rms_norm_eps, rows, config_.hidden, normed_.get());
  ops_.linear(normed_.get(), rows, std::array{layer.q.to(q_.get()), layer.k.to(k_.get()), layer.v.to(v_.get())});
  ops_.rope_and_store(index, q_.get(), k_.get(), v_.get());
  ops_.attention(index, q_.get(), attended_.get());
  ops_.linear(attended_.get(), rows, std::array{layer.o.to(x_.get(), true)});
}

void Qwen2::feed_forward(const Layer& layer, std::size_t rows) {
  ops_.rms_norm(x_.get(), layer.post_norm, config_.rms_norm_eps, rows, config_.hidden, normed_.get());
  if (layer.experts.gate.empty()) return swiglu(layer.dense, rows, x_.get(), true);

  float* gate = router_.get() + rows_max_ * config_.moe.experts;
  ops_.linear(normed_.get(), rows,
              std::array{Linear{&layer.router, nullptr, router_.get()}, Linear{&layer.shared_gate, nullptr, gate}});
  ops_.experts(normed_.get(), router_.get(), rows, layer.experts, x_.get());
  swiglu(layer.dense, rows, shared_.get(), false);
  ops_.add_gated(gate, shared_.get(), rows, config_.hidden, x_.get());
}

void Qwen2::swiglu(const FeedForward& part, std::size_t rows, float* y, bool add) {
  ops_.gated(normed_.get(), rows, part.gate.to(gate_.get()), part.up.to(up_.get()));
  ops_.linear(gate_.get(), rows, std::array{part.down.to(y, add)});
}

}  // namespace qe
