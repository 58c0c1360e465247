#pragma once

// Models of Qwen2's published shapes with random weights, for benchmarks: written once as one file of raw tensors.

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace qe::bench {

struct Shape {
  const char* name;
  std::size_t hidden, layers, heads, kv_heads, head_dim, inner, vocab;
  bool tied, int4;
};

inline constexpr Shape kShapes[] = {
    {"tiny", 256, 4, 4, 2, 64, 512, 2304, true, false},
    {"0.5B", 896, 24, 14, 2, 64, 4864, 151936, true, false},
    {"1.5B", 1536, 28, 12, 2, 128, 8960, 151936, true, false},
    {"7B", 3584, 28, 28, 4, 128, 18944, 152064, false, false},
    {"72B-Int4", 8192, 80, 64, 8, 128, 29696, 152064, false, true},
};

/** A checkpoint of that shape on disk, deleted with the object. Weights are never zero: normal, bf16. */
class RandomModel {
 public:
  RandomModel(const Shape& shape, std::string file) : path_(std::move(file)) {
    config.hidden = shape.hidden, config.layers = shape.layers, config.heads = shape.heads, config.kv_heads = shape.kv_heads;
    config.head_dim = shape.head_dim, config.intermediate = shape.inner, config.tied = shape.tied;
    config.vocab = config.tokenizer_vocab = shape.vocab, config.context = 32768;
    if (shape.int4) config.weights = WeightFormat::gptq, config.quant_group = 128;
    out_ = std::fopen(path_.c_str(), "wb");
    if (out_ == nullptr) throw Error(ErrorCode::internal, "cannot write " + path_);
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 0.02f);
    noise_.resize(std::size_t{1} << 22);
    for (auto& bits : noise_) {
      const float value = normal(random);
      std::uint32_t word = 0;
      std::memcpy(&word, &value, 4);
      bits = static_cast<std::uint16_t>(word >> 16);
    }
    const std::size_t h = shape.hidden, wide = shape.heads * shape.head_dim, narrow = shape.kv_heads * shape.head_dim;
    add("model.embed_tokens.weight", {shape.vocab, h});
    for (std::size_t i = 0; i < shape.layers; ++i) {
      const std::string at = concat("model.layers.", i, ".");
      add(at + "input_layernorm.weight", {h});
      add(at + "post_attention_layernorm.weight", {h});
      for (const auto& [name, size] : {std::pair{"q", wide}, {"k", narrow}, {"v", narrow}}) {
        matrix(concat(at, "self_attn.", name, "_proj."), size, h);
        add(concat(at, "self_attn.", name, "_proj.bias"), {size});
      }
      matrix(at + "self_attn.o_proj.", h, wide);
      matrix(at + "mlp.gate_proj.", shape.inner, h);
      matrix(at + "mlp.up_proj.", shape.inner, h);
      matrix(at + "mlp.down_proj.", h, shape.inner);
    }
    add("model.norm.weight", {h});
    if (!shape.tied) add("lm_head.weight", {shape.vocab, h});
    std::fclose(out_);
  }
  ~RandomModel() { std::remove(path_.c_str()); }
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;

  [[nodiscard]] std::unique_ptr<Checkpoint> open() const {
    return std::make_unique<Checkpoint>(std::vector<std::string>{path_}, table_);
  }
  /** Of the file. */
  [[nodiscard]] std::size_t bytes() const { return end_; }

  ModelConfig config;

 private:
  void matrix(const std::string& at, std::size_t out, std::size_t in) {
    if (config.weights == WeightFormat::stored) return add(at + "weight", {out, in});
    add(at + "qweight", {in / 8, out}, "I32", 4);
    add(at + "qzeros", {in / config.quant_group, out / 8}, "I32", 4);
    add(at + "scales", {in / config.quant_group, out}, "F16");
  }
  void add(const std::string& name, std::vector<std::uint64_t> shape, const char* dtype = "BF16", std::size_t size = 2) {
    std::uint64_t left = size;
    for (const std::uint64_t dim : shape) left *= dim;
    table_.push_back({name, dtype, std::move(shape), 0, end_, end_ + left});
    end_ += left;
    for (std::size_t skip = table_.size() * 977 % 4096; left > 0; skip = 0) {
      const std::size_t count = std::min<std::size_t>(left, (noise_.size() - skip) * 2);
      if (std::fwrite(noise_.data() + skip, 1, count, out_) != count) throw Error(ErrorCode::internal, "no room for " + path_);
      left -= count;
    }
  }

  std::string path_;
  std::FILE* out_ = nullptr;
  std::vector<std::uint16_t> noise_;
  std::vector<TableEntry> table_;
  std::uint64_t end_ = 0;
};

}  // namespace qe::bench
