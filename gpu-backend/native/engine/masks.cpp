// Constrained generations: the mask of each token comes from outside, after the token before it.

#include <algorithm>
#include <utility>

#include "engine/engine.h"

namespace qe {

void Engine::mask(std::uint32_t handle, TokenMask mask) {
  const std::scoped_lock lock(mutex_);
  masks_.emplace_back(handle, std::move(mask));
  wake_.notify_one();
}

void Engine::take_masks() {
  std::vector<std::pair<std::uint32_t, TokenMask>> masks;
  {
    const std::scoped_lock lock(mutex_);
    masks.swap(masks_);
  }
  for (auto& [handle, mask] : masks)
    if (const auto found = generations_.find(handle); found != generations_.end())
      found->second->mask = std::move(mask);
}

/** Goes on with those whose mask came after their logits; but who was preempted meanwhile and is computed again by a step
    under way goes on with that. */
void Engine::sample_kept() {
  take_masks();
  const auto computed_again = [this](const Sequence& sequence) {
    return std::ranges::any_of(steps_, [&](const Step& step) {
      return std::ranges::any_of(step.plan, [&](const Slice& slice) { return slice.sequence == &sequence && slice.logit_rows > 0; });
    });
  };
  std::vector<Generation*> ready;
  for (const auto& [handle, generation] : generations_)
    if (generation->mask && !generation->logits.empty() && !computed_again(generation->sequence)) ready.push_back(generation.get());
  for (Generation* generation : ready) {
    const std::vector<float> logits = std::exchange(generation->logits, {});
    sample(*generation, logits);
  }
}

}  // namespace qe
