#pragma once

// A random Qwen2 of a few thousand weights, written to a temporary file as the checkpoint reader wants it.

#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include <unistd.h>

#include "checkpoint/checkpoint.h"
#include "model/config.h"

struct TinyModel {
  qe::ModelConfig config;
  std::string path;
  std::vector<qe::TableEntry> table;

  explicit TinyModel(unsigned seed = 1, bool tied = true) {
    config.hidden = 48, config.layers = 2, config.heads = 3, config.kv_heads = 1, config.head_dim = 16;
    config.intermediate = 80, config.vocab = 101, config.tokenizer_vocab = 97, config.context = 1024;
    config.tied = tied;
    static int counter = 0;
    path = std::filesystem::temp_directory_path() /
           ("qe-tiny-" + std::to_string(getpid()) + "-" + std::to_string(counter++));

    std::vector<float> data;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 1);
    const auto add = [&](const std::string& name, std::vector<std::uint64_t> shape, float mean, float scale) {
      std::uint64_t count = 1;
      for (const std::uint64_t dim : shape) count *= dim;
      const std::uint64_t begin = data.size() * sizeof(float);
      for (std::uint64_t i = 0; i < count; ++i) data.push_back(mean + scale * normal(random));
      table.push_back({name, "F32", std::move(shape), 0, begin, data.size() * sizeof(float)});
    };
    const std::uint64_t h = config.hidden, wide = config.heads * config.head_dim,
                        narrow = config.kv_heads * config.head_dim;
    add("model.embed_tokens.weight", {config.vocab, h}, 0, 0.3f);
    for (std::size_t i = 0; i < config.layers; ++i) {
      const std::string at = "model.layers." + std::to_string(i) + ".";
      add(at + "input_layernorm.weight", {h}, 1, 0.2f);
      add(at + "self_attn.q_proj.weight", {wide, h}, 0, 0.3f);
      add(at + "self_attn.q_proj.bias", {wide}, 0, 0.5f);
      for (const char* part : {"k", "v"}) {
        add(at + "self_attn." + part + "_proj.weight", {narrow, h}, 0, 0.3f);
        add(at + "self_attn." + part + "_proj.bias", {narrow}, 0, 0.5f);
      }
      add(at + "self_attn.o_proj.weight", {h, wide}, 0, 0.4f);
      add(at + "post_attention_layernorm.weight", {h}, 1, 0.2f);
      for (const char* part : {"gate", "up"})
        add(at + "mlp." + part + "_proj.weight", {config.intermediate, h}, 0, 0.2f);
      add(at + "mlp.down_proj.weight", {h, config.intermediate}, 0, 0.3f);
    }
    add("model.norm.weight", {h}, 1, 0.2f);
    if (!tied) add("lm_head.weight", {config.vocab, h}, 0, 0.3f);

    std::FILE* file = std::fopen(path.c_str(), "wb");
    std::fwrite(data.data(), sizeof(float), data.size(), file);
    std::fclose(file);
  }
  ~TinyModel() { std::filesystem::remove(path); }
  TinyModel(const TinyModel&) = delete;
  TinyModel& operator=(const TinyModel&) = delete;

  [[nodiscard]] std::unique_ptr<qe::Checkpoint> open() const {
    return std::make_unique<qe::Checkpoint>(std::vector<std::string>{path}, table);
  }
};
