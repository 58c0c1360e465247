#pragma once

// A checkpoint of one of Qwen2's shapes with random weights: a folder that we and transformers can open.

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/types.h"
#include "bench/shapes.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace qe::bench {

/** Weights are never zero: matrices normal around 0 and as large as keeps a product the size of its input, so that
   every part counts in the logits; norms around 1; four-bit words any bits, with scales to match. */
class RandomModel {
 public:
  /** Writes model.safetensors and config.json into the folder, which must exist. */
  RandomModel(const Shape& shape, const std::string& folder) : path_(folder + "/model.safetensors") {
    config.hidden = shape.hidden, config.layers = shape.layers, config.heads = shape.heads;
    config.kv_heads = shape.kv_heads, config.head_dim = shape.head_dim, config.intermediate = shape.inner;
    config.tied = shape.tied, config.vocab = config.tokenizer_vocab = shape.vocab, config.context = 32768;
    if (shape.int4) config.weights = WeightFormat::gptq, config.quant_group = 128;
    list(shape);
    write();
    write_config(folder + "/config.json");
  }

  [[nodiscard]] std::unique_ptr<Checkpoint> open() const {
    return std::make_unique<Checkpoint>(std::vector<std::string>{path_}, table_);
  }
  /** Of the tensors. */
  [[nodiscard]] std::size_t bytes() const { return end_; }

  ModelConfig config;

 private:
  enum class Kind : std::uint8_t { matrix, norm, words, scales };

  void list(const Shape& shape) {
    const std::size_t h = shape.hidden, wide = shape.heads * shape.head_dim, narrow = shape.kv_heads * shape.head_dim;
    add("model.embed_tokens.weight", {shape.vocab, h}, Kind::matrix);
    for (std::size_t i = 0; i < shape.layers; ++i) {
      const std::string at = concat("model.layers.", i, ".");
      add(at + "input_layernorm.weight", {h}, Kind::norm);
      add(at + "post_attention_layernorm.weight", {h}, Kind::norm);
      for (const auto& [name, size] : {std::pair{"q", wide}, {"k", narrow}, {"v", narrow}}) {
        product(concat(at, "self_attn.", name, "_proj."), size, h);
        add(concat(at, "self_attn.", name, "_proj.bias"), {size}, Kind::matrix);
      }
      product(at + "self_attn.o_proj.", h, wide);
      product(at + "mlp.gate_proj.", shape.inner, h);
      product(at + "mlp.up_proj.", shape.inner, h);
      product(at + "mlp.down_proj.", h, shape.inner);
    }
    add("model.norm.weight", {h}, Kind::norm);
    if (!shape.tied) add("lm_head.weight", {shape.vocab, h}, Kind::matrix);
  }

  void product(const std::string& at, std::size_t out, std::size_t in) {
    if (config.weights == WeightFormat::stored) return add(at + "weight", {out, in}, Kind::matrix);
    add(at + "qweight", {in / 8, out}, Kind::words);
    add(at + "qzeros", {in / config.quant_group, out / 8}, Kind::words);
    add(at + "scales", {in / config.quant_group, out}, Kind::scales);
  }

  void add(const std::string& name, std::vector<std::uint64_t> shape, Kind kind) {
    std::uint64_t bytes = kind == Kind::words ? 4 : 2;
    for (const std::uint64_t dim : shape) bytes *= dim;
    const char* dtype = kind == Kind::words ? "I32" : kind == Kind::scales ? "F16" : "BF16";
    table_.push_back({name, dtype, std::move(shape), 0, end_, end_ + bytes});
    kinds_.push_back(kind);
    end_ += bytes;
  }

  [[nodiscard]] std::vector<std::uint16_t> noise_of(Kind kind) const {
    std::vector<std::uint16_t> noise(std::size_t{1} << 22);
    std::mt19937 random(static_cast<unsigned>(kind) + 1);
    std::normal_distribution<float> normal(0, 1);
    const float size = 1 / std::sqrt(static_cast<float>(config.hidden));
    for (std::uint16_t& bits : noise) {
      const float unit = normal(random), value = kind == Kind::norm ? 1 + 0.1f * unit : size * unit;
      if (kind == Kind::words)
        bits = static_cast<std::uint16_t>(random());
      else if (kind == Kind::scales)
        bits = static_cast<std::uint16_t>(0x1800 + random() % 0x400);  // halves from 0.002 to 0.004
      else
        bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16 | 1);
    }
    return noise;
  }

  void write() {
    std::string header = R"({"__metadata__": {"format": "pt"})";
    for (const TableEntry& each : table_) {
      std::string shape;
      for (const std::uint64_t dim : each.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(dim);
      header += concat(",\n\"", each.name, R"(": {"dtype": ")", each.dtype, R"(", "shape": [)", shape,
                       R"(], "data_offsets": [)", each.begin, ", ", each.end, "]}");
    }
    header += "}";
    header.resize(round_up(header.size(), 8), ' ');
    const std::uint64_t length = header.size();
    std::ofstream out(path_, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out << header;
    std::array<std::vector<std::uint16_t>, 4> noise;
    for (std::size_t i = 0; i < table_.size(); ++i) {
      std::vector<std::uint16_t>& from = noise.at(static_cast<std::size_t>(kinds_[i]));
      if (from.empty()) from = noise_of(kinds_[i]);
      std::uint64_t left = table_[i].end - table_[i].begin;
      for (std::size_t skip = i * 977 % 4096; left > 0; skip = 0) {
        const std::uint64_t count = std::min<std::uint64_t>(left, (from.size() - skip) * 2);
        out.write(reinterpret_cast<const char*>(from.data() + skip), static_cast<std::streamsize>(count));
        left -= count;
      }
      table_[i].begin += sizeof length + length, table_[i].end += sizeof length + length;
    }
    if (!out.flush()) throw Error(ErrorCode::internal, concat("no room for the ", end_, " bytes of ", path_));
  }

  /** For transformers; our own configuration is `config`. */
  void write_config(const std::string& path) const {
    std::ofstream out(path);
    out << R"({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "torch_dtype": "bfloat16",)"
        << "\n \"hidden_size\": " << config.hidden << ", \"intermediate_size\": " << config.intermediate
        << ", \"num_hidden_layers\": " << config.layers << ", \"num_attention_heads\": " << config.heads
        << ", \"num_key_value_heads\": " << config.kv_heads << ",\n \"vocab_size\": " << config.vocab
        << ", \"max_position_embeddings\": " << config.context << ", \"rms_norm_eps\": " << config.rms_norm_eps
        << ", \"rope_theta\": " << config.rope_theta
        << ", \"tie_word_embeddings\": " << (config.tied ? "true" : "false") << "}\n";
  }

  std::string path_;
  std::vector<TableEntry> table_;
  std::vector<Kind> kinds_;
  std::uint64_t end_ = 0;
};

}  // namespace qe::bench
