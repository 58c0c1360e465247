#pragma once

// A checkpoint folder (config.json, model.safetensors) read the short way, for tests without Node. The files are ours.

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"

struct FolderModel {
  qe::ModelConfig config;
  std::string path;
  std::vector<qe::TableEntry> table;

  explicit FolderModel(const std::string& folder) : path(folder + "/model.safetensors") {
    const std::string json = text_of(folder + "/config.json");
    const auto number = [&](const char* name) {
      const std::size_t at = json.find(qe::concat("\"", name, "\":"));
      if (at == std::string::npos) throw qe::Error(qe::ErrorCode::checkpoint, qe::concat(folder, " has no ", name));
      return std::strtod(json.c_str() + json.find(':', at) + 1, nullptr);
    };
    const auto count = [&](const char* name) { return static_cast<std::size_t>(number(name)); };
    config.hidden = count("hidden_size"), config.layers = count("num_hidden_layers");
    config.heads = count("num_attention_heads"), config.kv_heads = count("num_key_value_heads");
    config.head_dim = config.hidden / config.heads, config.intermediate = count("intermediate_size");
    config.vocab = config.tokenizer_vocab = count("vocab_size"), config.context = count("max_position_embeddings");
    config.rms_norm_eps = static_cast<float>(number("rms_norm_eps")), config.rope_theta = static_cast<float>(number("rope_theta"));
    config.tied = json.find("\"tie_word_embeddings\": true") != std::string::npos;

    if (json.find("\"num_experts\":") != std::string::npos) {
      config.moe = {count("num_experts"), count("num_experts_per_tok"), count("moe_intermediate_size"),
                    count("shared_expert_intermediate_size"), json.find("\"norm_topk_prob\": true") != std::string::npos};
    }
    for (const auto& [name, format] : {std::pair{"gptq", qe::WeightFormat::gptq}, {"awq", qe::WeightFormat::awq}})
      if (json.find(qe::concat("\"quant_method\": \"", name, "\"")) != std::string::npos)
        config.weights = format, config.quant_group = count("group_size");

    const std::string file = text_of(path);
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    const std::string header = file.substr(8, length);
    // "name":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}, one after the other
    for (std::size_t dtype = header.find("\":{\"dtype\":\""); dtype != std::string::npos; dtype = header.find("\":{\"dtype\":\"", dtype + 1)) {
      qe::TableEntry entry;
      const std::size_t name = header.rfind('"', dtype - 1) + 1, value = dtype + 12;
      entry.name = header.substr(name, dtype - name), entry.dtype = header.substr(value, header.find('"', value) - value);
      for (const std::uint64_t dim : numbers(header, header.find("\"shape\":[", dtype))) entry.shape.push_back(dim);
      const auto offsets = numbers(header, header.find("\"data_offsets\":[", dtype));
      entry.begin = 8 + length + offsets.at(0), entry.end = 8 + length + offsets.at(1);
      table.push_back(entry);
    }
  }

  [[nodiscard]] std::unique_ptr<qe::Checkpoint> open() const {
    return std::make_unique<qe::Checkpoint>(std::vector<std::string>{path}, table);
  }

 private:
  /** Those of the list that opens behind `at`. */
  static std::vector<std::uint64_t> numbers(const std::string& text, std::size_t at) {
    std::vector<std::uint64_t> all;
    for (at = text.find('[', at) + 1; text[at] != ']'; at += text[at] == ',') {
      char* end = nullptr;
      all.push_back(std::strtoull(text.c_str() + at, &end, 10));
      at = static_cast<std::size_t>(end - text.c_str());
    }
    return all;
  }
  static std::string text_of(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    if (!in) throw qe::Error(qe::ErrorCode::checkpoint, "cannot read " + file);
    return {std::istreambuf_iterator<char>(in), {}};
  }
};
