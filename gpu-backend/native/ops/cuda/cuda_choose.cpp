// Sampling where the logits lie: only token ids come back.

#include <algorithm>
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

void CudaOps::launch_choose(float* logits, std::size_t width, std::size_t vocab, std::span<const Choice> choices) {
  flush();
  Turn& turn = turns_[turn_];
  turn.choices = choices.size();
  turn.rows.clear();
  std::vector<RowChoice> rows;
  std::vector<Adjustment> adjustments;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const Choice& c = choices[i];
    if (!fits(c, vocab)) continue;
    const auto of = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
    turn.rows.push_back(of(i));
    rows.push_back({c.temperature == 0 ? 0 : 1 / c.temperature, c.top_p, c.min_p, c.noise, c.repetition_penalty, c.presence_penalty,
                    c.frequency_penalty, of(i), of(c.top_k >= vocab ? 0 : c.top_k), of(c.biases.size()), of(c.seen.size()),
                    of(c.forbidden.size()), of(adjustments.size())});
    for (const auto& [token, bias] : c.biases) adjustments.push_back({token, Adjustment::kBias, bias});
    for (const auto& [token, count] : c.seen) adjustments.push_back({token, count, 0});
    for (const TokenId token : c.forbidden) adjustments.push_back({token, Adjustment::kForbidden, 0});
  }
  if (rows.empty()) return record(turn.done, stream_);

  // One copy there: rows, adjustments. Behind them on the device: what the adjusted logits were.
  const std::size_t head = rows.size() * sizeof(RowChoice), sent = head + adjustments.size() * sizeof(Adjustment);
  const std::size_t saved = round_up(sent, sizeof(float)), bytes = choices.size() * sizeof(std::uint32_t);
  grow(sampling_, sampling_bytes_, saved + adjustments.size() * sizeof(float));
  if (bytes > chosen_bytes_) {
    grow(chosen_, chosen_bytes_, std::max(bytes, options_.rows_max * sizeof(std::uint32_t)));
    zero_device(stream_, chosen_.get(), chosen_bytes_);
  }
  std::byte* const host = turn.sampling.room_for(sent);
  std::memcpy(host, rows.data(), head);
  if (!adjustments.empty()) std::memcpy(host + head, adjustments.data(), sent - head);
  copy_to_device(stream_, sampling_.get(), host, sent);
  std::byte* const there = sampling_.get();
  auto* chosen = reinterpret_cast<std::uint32_t*>(chosen_.get());
  cuda::choose(stream_, logits, width, vocab, reinterpret_cast<const RowChoice*>(there), rows.size(),
               reinterpret_cast<const Adjustment*>(there + head), reinterpret_cast<float*>(there + saved), chosen);
  copy_to_host(stream_, turn.chosen.room_for(bytes), chosen, bytes);
  record(turn.done, stream_);
}

std::vector<TokenId> CudaOps::take_tokens(unsigned which) {
  const Turn& turn = turns_[which];
  wait(turn.done);
  std::vector<TokenId> tokens(turn.choices, kUndecided);
  for (const std::uint32_t row : turn.rows)
    std::memcpy(&tokens[row], turn.chosen.memory.get() + row * sizeof(TokenId), sizeof(TokenId));
  return tokens;
}

}  // namespace qe::cuda
