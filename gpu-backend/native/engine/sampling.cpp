// From a step's plan to its tokens: who chooses each row's, and what the sequences make of them.

#include <algorithm>
#include <utility>

#include "engine/engine.h"

namespace qe {
namespace {

bool allows_any(const TokenMask& mask) {
  return std::ranges::any_of(mask, [](std::uint32_t word) { return word != 0; });
}

}  // namespace

void Engine::run(const std::vector<Slice>& plan) {
  const Batch& batch = batch_of(plan);
  const std::vector<Choice> choices = choices_of(plan);
  if (std::ranges::all_of(choices, &Choice::on_host))
    model_.launch(batch), results_.logits(model_.logits(batch.turn, 0, batch.logit_rows.size()));
  else
    model_.launch(batch, choices), results_.tokens(batch.turn, model_.tokens(batch.turn));
}

/** For each logit row; none where the device does not choose. */
std::vector<Choice> Engine::choices_of(const std::vector<Slice>& plan) const {
  std::vector<Choice> choices;
  if (!ops_->chooses()) return choices;
  for (const Slice& slice : plan) {
    if (!slice.complete()) continue;
    const Sequence& sequence = *slice.sequence;
    const Sampler& sampler = generations_.at(sequence.handle)->sampler;
    for (std::size_t i = 0; i <= slice.draft; ++i) {
      const auto assumed = std::span(sequence.draft).first(i);
      if (sequence.constrained || sampler.params().max_tokens == 0)
        choices.push_back({.on_host = true});
      else
        choices.push_back(sampler.choice(sequence.tokens.size() + i, assumed));
    }
  }
  return choices;
}

void Engine::postprocess(const std::vector<Slice>& plan) {
  std::size_t row = 0;
  for (const Slice& slice : plan) {
    scheduler_.commit(*slice.sequence, slice.count - slice.draft);
    if (slice.sequence->generated() == 0) counters_.prompt_tokens += slice.count;
    if (!slice.complete()) continue;
    append_sampled(slice, row);
    row += slice.draft + 1;
  }
}

/** Samples after the last token, and after each guess as long as the guess is what was sampled before it: exactly what
    the steps one by one would sample, since neither bits nor noise depend on the step. @param row the first of draft + 1 logit rows */
void Engine::append_sampled(const Slice& slice, std::size_t row) {
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
    const TokenId chosen = results_.chosen(row + right);
    const std::span<const float> logits = chosen == kUndecided ? results_.of(row + right) : std::span<const float>{};
    if (sequence.constrained && !generation.mask) return generation.logits.assign(logits.begin(), logits.end());
    if (!sample(generation, logits, chosen)) return;
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
