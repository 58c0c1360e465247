#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

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
  want(std::isfinite(yarn.factor) && yarn.factor >= 1 && yarn.factor <= 1024, "YaRN's factor must lie in [1, 1024]");
  if (yarn.factor > 1) {
    want(yarn.original >= 1 && yarn.original <= context, "YaRN's original length must lie in [1, context]");
    want(yarn.beta_slow > 0 && yarn.beta_fast >= yarn.beta_slow && std::isfinite(yarn.beta_fast),
         "YaRN wants beta_fast >= beta_slow > 0");
    want(std::isfinite(yarn.attention_factor) && yarn.attention_factor >= 0, "YaRN's attention_factor is negative");
  }
  if (moe.experts > 0) {
    want(moe.experts <= 4096, "num_experts must lie in [1, 4096]");
    want(moe.top_k >= 1 && moe.top_k <= moe.experts, "num_experts_per_tok must lie in [1, num_experts]");
    want(moe.inner >= 1 && moe.inner <= 1048576, "moe_intermediate_size must lie in [1, 1048576]");
    want(moe.shared >= 1 && moe.shared <= 1048576, "shared_expert_intermediate_size must lie in [1, 1048576]");
  }
  if (weights == WeightFormat::gptq || weights == WeightFormat::awq)
    want(quant_group >= 32 && quant_group % 32 == 0, "group_size must be a multiple of 32");
}

float ModelConfig::rope_magnitude() const {
  if (yarn.factor <= 1) return 1;
  if (yarn.attention_factor > 0) return yarn.attention_factor;
  return static_cast<float>(0.1 * std::log(static_cast<double>(yarn.factor)) + 1);
}

std::vector<float> ModelConfig::rope_frequencies() const {
  // transformers: 1 / theta ** (arange(0, dim, 2).float() / dim), every step rounded to fp32.
  const std::size_t half = head_dim / 2;
  std::vector<float> frequencies(half);
  std::vector<float> period(half);
  for (std::size_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    period[i] = static_cast<float>(std::pow(static_cast<double>(rope_theta), static_cast<double>(exponent)));
    frequencies[i] = 1.0f / period[i];
  }
  if (yarn.factor <= 1) return frequencies;

  // YaRN: pairs that turn often within the original context stay, those that turn less than once are slowed by the
  // factor, and a ramp joins the two (transformers' _compute_yarn_parameters).
  const auto pair_turning = [&](double turns) {
    return static_cast<double>(head_dim) *
           std::log(static_cast<double>(yarn.original) / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(static_cast<double>(rope_theta)));
  };
  const double low = std::max(std::floor(pair_turning(static_cast<double>(yarn.beta_fast))), 0.0);
  double high =
      std::min(std::ceil(pair_turning(static_cast<double>(yarn.beta_slow))), static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < half; ++i) {
    const auto slowed = std::clamp(static_cast<float>((static_cast<double>(i) - low) / (high - low)), 0.0f, 1.0f);
    const float kept = 1.0f - slowed;
    frequencies[i] = 1.0f / (yarn.factor * period[i]) * (1.0f - kept) + frequencies[i] * kept;
  }
  return frequencies;
}

}  // namespace qe
