#include "model/config.h"

#include <cmath>

#include "base/error.h"

namespace qe {

void ModelConfig::check() const {
  const auto want = [](bool holds, const char* what) {
    if (!holds) throw Error(ErrorCode::checkpoint, concat("config.json: ", what));
  };
  // Generous limits: ten times the largest Qwen2. They keep every later product of sizes inside 64 bits.
  want(hidden >= 1 && hidden <= 131072, "hidden_size must lie in [1, 131072]");
  want(layers >= 1 && layers <= 1024, "num_hidden_layers must lie in [1, 1024]");
  want(heads >= 1 && heads <= 1024, "num_attention_heads must lie in [1, 1024]");
  want(kv_heads >= 1 && heads % kv_heads == 0, "num_attention_heads must be a multiple of num_key_value_heads");
  want(heads / kv_heads <= 64, "at most 64 query heads may share a KV head");
  want(head_dim >= 2 && head_dim <= 1024 && head_dim % 2 == 0, "head_dim must be even and lie in [2, 1024]");
  want(intermediate >= 1 && intermediate <= 1048576, "intermediate_size must lie in [1, 1048576]");
  want(vocab >= 1 && vocab <= 4194304, "vocab_size must lie in [1, 4194304]");
  want(tokenizer_vocab >= 1 && tokenizer_vocab <= vocab, "the tokenizer has more tokens than vocab_size");
  want(context >= 1 && context <= 16777216, "max_position_embeddings must lie in [1, 16777216]");
  want(std::isfinite(rms_norm_eps) && rms_norm_eps >= 0, "rms_norm_eps must be a small positive number");
  want(std::isfinite(rope_theta) && rope_theta > 1, "rope_theta must be above 1");
}

std::vector<float> ModelConfig::rope_frequencies() const {
  // transformers: 1 / theta ** (arange(0, dim, 2).float() / dim), every step rounded to fp32.
  std::vector<float> frequencies(head_dim / 2);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    frequencies[i] =
        1.0f / static_cast<float>(std::pow(static_cast<double>(rope_theta), static_cast<double>(exponent)));
  }
  return frequencies;
}

}  // namespace qe
