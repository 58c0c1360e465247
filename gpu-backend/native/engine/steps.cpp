// A step's way to the device and back, and the step that runs ahead of it.
//
// While step N is under way its tokens are unknown, but the device has them: a row of step N + 1 names, in place of its
// token, the row of step N that chooses it. So N + 1 can be scheduled, launched and queued behind N, and what the host
// does with N's tokens is hidden behind N + 1. Everything the host then counts on is in the stream's order:
// - A launched step's blocks are published at once. Whoever reads them is launched later.
// - A sequence that turns out to have ended at N, or is cancelled, gives up its blocks at once, too. Its row of N + 1 is
//   computed and dropped: it writes one key and value, behind the last token that is known, in a block that has no name.
// - Nothing is named by a token that is not known: a block that N + 1 fills is published when N is settled.
// - The noise of a draw belongs to (seed, position), and min_tokens counts tokens: neither asks which they are.
// Not run ahead of: a step with a row that the host samples (a mask, log-probabilities, one the device left undecided
// the time before), with penalties (they count the unknown token), with guesses or where the text so far repeats, so
// that guesses may follow; and while a command waits. That step is settled first, as on a device that does not choose.

#include <algorithm>
#include <exception>
#include <utility>

#include "engine/engine.h"

namespace qe {

/** @returns whether there was anything to do */
bool Engine::step() {
  if (steps_.empty() && !launch()) return false;
  std::exception_ptr failed;
  if (await_tokens()) {
    try {
      launch();
    } catch (...) {
      failed = std::current_exception();
    }
    stop_awaiting();
  }
  settle();
  if (failed) std::rethrow_exception(failed);  // behind the tokens of the step before
  return true;
}

/** Puts the next step on its way; @returns false when there is nothing to compute. */
bool Engine::launch() {
  scheduler_.set_chunk_beside(chunks_.budget());
  Step step;
  step.plan = scheduler_.schedule();
  if (step.plan.empty()) return false;
  step.ahead = !steps_.empty();
  step.turn = step.ahead ? 1 - steps_.back().turn : 0;
  fill_batch(step);
  step.choices = choices_of(step.plan);
  step.chosen = ops_->chooses() && (step.choices.empty() || !std::ranges::all_of(step.choices, &Choice::on_host));
  step.launched = Clock::now();
  if (step.chosen)
    model_.launch(batch_, step.choices);
  else
    model_.launch(batch_);
  for (const Slice& slice : step.plan) scheduler_.commit(*slice.sequence, slice.count - slice.draft);
  steps_.push_back(std::move(step));
  return true;
}

void Engine::fill_batch(Step& step) {
  batch_.clear();
  batch_.turn = step.turn;
  for (Slice& slice : step.plan) {
    const Sequence& sequence = *slice.sequence;
    const bool decodes = slice.count - slice.draft == 1 && (sequence.generated() > 0 || sequence.awaits);
    (decodes ? step.decoding : step.prefilling) += slice.count;
    batch_.slices.push_back({batch_.rows(), slice.count, slice.first, sequence.blocks});
    for (std::size_t at = slice.first; at < slice.first + slice.count; ++at) {
      const std::size_t known = sequence.tokens.size();
      batch_.tokens.push_back(at < known         ? sequence.tokens[at]
                              : sequence.awaits ? kChosenBefore + static_cast<TokenId>(*sequence.awaits)
                                                : sequence.draft[at - known]);
      batch_.positions.push_back(at);
    }
    if (!slice.complete()) continue;
    slice.logit_row = batch_.logit_rows.size(), slice.logit_rows = slice.draft + 1;
    for (std::size_t i = slice.logit_rows; i > 0; --i) batch_.logit_rows.push_back(batch_.rows() - i);
  }
  step.logit_rows = batch_.logit_rows.size();
}

/** For each logit row; none where the device does not choose. */
std::vector<Choice> Engine::choices_of(const std::vector<Slice>& plan) const {
  constexpr TokenId kAny = 0;
  std::vector<Choice> choices;
  if (!ops_->chooses()) return choices;
  for (const Slice& slice : plan) {
    const Sequence& sequence = *slice.sequence;
    const Sampler& sampler = generations_.at(sequence.handle)->sampler;
    for (std::size_t i = 0; i < slice.logit_rows; ++i) {
      const auto assumed = sequence.awaits ? std::span(&kAny, 1) : std::span(sequence.draft).first(i);
      if (sequence.constrained || sampler.params().max_tokens == 0)
        choices.push_back({.on_host = true});
      else
        choices.push_back(sampler.choice(sequence.tokens.size() + assumed.size(), assumed));
    }
  }
  return choices;
}

/** Lets everybody whose token the step under way chooses be scheduled as if it were here, if all of them may be and
    it pays; @returns whether. */
bool Engine::await_tokens() {
  const Step& step = steps_.back();
  if (!options_.run_ahead || !step.chosen) return false;
  {
    const std::scoped_lock lock(mutex_);
    if (!commands_.empty()) return false;
  }
  const auto goes_on = [](const Slice& slice) {
    return slice.sequence != nullptr && slice.logit_rows > 0 && slice.sequence->tokens.size() + 1 < slice.sequence->room;
  };
  for (const Slice& slice : step.plan) {
    if (!goes_on(slice)) continue;
    const Generation& generation = *generations_.at(slice.sequence->handle);
    if (slice.draft > 0 || step.choices[slice.logit_row].on_host || generation.left_to_host || generation.sampler.penalises()) return false;
  }
  for (const Slice& slice : step.plan)
    if (goes_on(slice)) slice.sequence->awaits = slice.logit_row;
  if (!scheduler_.would_guess()) return true;
  stop_awaiting();
  return false;
}

void Engine::stop_awaiting() {
  for (const Slice& slice : steps_.front().plan)
    if (slice.sequence != nullptr) slice.sequence->awaits.reset();
}

/** The device chose no token for the sequence: a step ahead took another in its place, and that is undone. */
void Engine::take_back(Sequence& sequence) {
  for (Step& step : steps_)
    for (Slice& slice : step.plan)
      if (slice.sequence == &sequence && slice.logit_rows > 0) slice.sequence = nullptr, --sequence.computed;
}

/** Waits for the oldest step, and gives its tokens to whoever of its sequences is still there. */
void Engine::settle() {
  const Step step = std::move(steps_.front());
  steps_.pop_front();
  if (step.chosen)
    results_.tokens(step.turn, model_.tokens(step.turn));
  else
    results_.logits(model_.logits(step.turn, 0, step.logit_rows));
  const Clock::time_point now = Clock::now();
  const std::chrono::duration<double, std::milli> took = now - std::max(step.launched, settled_);
  settled_ = now;
  chunks_.observe(step.decoding, step.prefilling, took.count());
  take_masks();
  bool wanted = false;
  for (const Slice& slice : step.plan) {
    if (slice.sequence == nullptr) continue;
    wanted = true;
    if (slice.sequence->generated() == 0) counters_.prompt_tokens += slice.count;
    if (slice.logit_rows > 0) append_sampled(step, slice);
  }
  counters_.steps += wanted ? 1 : 0;
  counters_.steps_ahead += wanted && step.ahead ? 1 : 0;
}

}  // namespace qe
