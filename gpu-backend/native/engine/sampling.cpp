// What sequences make of a step's rows: their next tokens.

#include <algorithm>
#include <utility>

#include "engine/engine.h"

namespace qe {
namespace {

bool allows_any(const TokenMask& mask) {
  return std::ranges::any_of(mask, [](std::uint32_t word) { return word != 0; });
}

}  // namespace

/** Samples after the last token, and after each guess as long as the guess is what was sampled before it: exactly what
    the steps one by one would sample, since neither bits nor noise depend on the step. */
void Engine::append_sampled(const Step& step, const Slice& slice) {
  Sequence& sequence = *slice.sequence;
  Generation& generation = *generations_.at(sequence.handle);
  const Sampler& sampler = generation.sampler;
  if (sequence.generated() == 0) sequence.first_token = Clock::now();
  if (sampler.params().max_tokens == 0) {
    if (sequence.pin_until) scheduler_.pin(sequence, *sequence.pin_until);
    return finish(sequence, FinishReason::length);
  }
  counters_.drafted_tokens += slice.draft;
  for (std::size_t right = 0;; ++right) {
    const std::size_t row = slice.logit_row + right;
    const TokenId chosen = results_.chosen(row);
    generation.left_to_host = step.chosen && chosen == kUndecided;
    if (generation.left_to_host) take_back(sequence);
    const std::span<const float> logits = chosen == kUndecided ? results_.of(row) : std::span<const float>{};
    if (sequence.constrained && !generation.mask) return generation.logits.assign(logits.begin(), logits.end());
    if (!sample(generation, logits, chosen)) return;
    scheduler_.commit(sequence, 0);  // a step ahead may have filled a block whose last token is known only now
    if (right == slice.draft || sequence.draft[right] != sequence.tokens.back())
      return Scheduler::judge_draft(sequence, right);
    scheduler_.commit(sequence, 1);
    ++counters_.accepted_tokens;
  }
}

/** The next token of a sequence, if its mask lets one come; @returns whether it goes on. logits: [vocab] */
bool Engine::sample(Generation& generation, std::span<const float> logits, TokenId chosen) {
  Sequence& sequence = generation.sequence;
  Sampler& sampler = generation.sampler;
  const std::optional<TokenMask> mask = std::exchange(generation.mask, std::nullopt);
  generation.logits.clear();
  const auto end = [&](FinishReason reason) { return finish(sequence, reason), false; };
  if (mask && !allows_any(*mask)) return end(FinishReason::stop);
  Sampled sampled = chosen == kUndecided ? sampler.next(logits, sequence.tokens.size(), mask ? *mask : TokenMask{})
                                         : sampler.accept(chosen);
  ++counters_.generated_tokens;
  const std::vector<TokenId>& stop = sampler.params().stop;
  if (std::ranges::find(stop, sampled.token) != stop.end()) return end(FinishReason::stop);
  sequence.tokens.push_back(sampled.token);
  events_.emplace_back(TokenEvent{sequence.handle, sampler.params().logprobs >= 0, std::move(sampled)});
  return sequence.generated() < sampler.params().max_tokens || end(FinishReason::length);
}

}  // namespace qe
