// Sampling where the logits lie: only token ids come back.

#include <bit>
#include <cmath>
#include <cstring>

#include "ops/cuda/cuda_ops.h"

namespace qe::cuda {
namespace {

/** Beyond it the host does better than many passes over the row would. */
bool fits(const Choice& choice, std::size_t vocab) {
  const bool finite = choice.temperature == 0 || std::isfinite(1 / choice.temperature);
  return !choice.on_host && finite && (choice.top_k <= kTopKMax || choice.top_k >= vocab);
}

}  // namespace

std::vector<TokenId> CudaOps::choose_tokens(float* logits, std::size_t width, std::size_t vocab, std::span<const Choice> choices) {
  std::vector<TokenId> tokens(choices.size(), kUndecided);
  std::vector<RowChoice> rows;
  std::vector<Adjustment> adjustments;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const Choice& c = choices[i];
    if (!fits(c, vocab)) continue;
    const auto of = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
    rows.push_back({c.temperature == 0 ? 0 : 1 / c.temperature, c.top_p, c.min_p, c.noise, c.repetition_penalty, c.presence_penalty,
                    c.frequency_penalty, of(i), of(c.top_k >= vocab ? 0 : c.top_k), of(c.biases.size()), of(c.seen.size()),
                    of(c.forbidden.size()), of(adjustments.size())});
    for (const auto& [token, bias] : c.biases) adjustments.push_back({token, Adjustment::kBias, bias});
    for (const auto& [token, count] : c.seen) adjustments.push_back({token, count, 0});
    for (const TokenId token : c.forbidden) adjustments.push_back({token, Adjustment::kForbidden, 0});
  }
  if (rows.empty()) return tokens;

  // One copy there: rows, adjustments. Behind them on the device: what the adjusted logits were, the tokens.
  const std::size_t head = rows.size() * sizeof(RowChoice), sent = head + adjustments.size() * sizeof(Adjustment);
  const std::size_t saved = round_up(sent, sizeof(float)), chosen = saved + adjustments.size() * sizeof(float);
  grow(sampling_, sampling_bytes_, chosen + rows.size() * sizeof(std::uint32_t));
  if (sent > sampling_host_bytes_) {
    sampling_host_bytes_ = std::bit_ceil(sent);
    sampling_host_ = pinned_memory(sampling_host_bytes_);
  }
  std::memcpy(sampling_host_.get(), rows.data(), head);
  if (!adjustments.empty()) std::memcpy(sampling_host_.get() + head, adjustments.data(), sent - head);
  copy_to_device(stream_, sampling_.get(), sampling_host_.get(), sent);
  std::byte* const there = sampling_.get();
  cuda::choose(stream_, logits, width, vocab, reinterpret_cast<const RowChoice*>(there), rows.size(),
               reinterpret_cast<const Adjustment*>(there + head), reinterpret_cast<float*>(there + saved),
               reinterpret_cast<std::uint32_t*>(there + chosen));
  const std::span<const float> words = read(reinterpret_cast<const float*>(there + chosen), rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) std::memcpy(&tokens[rows[i].row], &words[i], sizeof(TokenId));
  return tokens;
}

}  // namespace qe::cuda
