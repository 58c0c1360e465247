#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/types.h"

namespace qe {

/** In a token's place: the device leaves the row to the host's sampler. */
inline constexpr TokenId kUndecided = 0xffffffff;

/** In a batch's tokens, plus a logit row of the step before: the token that the device chose there, and whatever it
    likes where it left the row to the host. */
inline constexpr TokenId kChosenBefore = 0x80000000;

/** How the token of one row of logits is chosen where the logits lie; sampler.h says in which order all of it applies. */
struct Choice {
  bool on_host = false;  // the row wants what only the host has: a mask, log-probabilities
  double temperature = 0;
  double top_p = 1;
  double min_p = 0;
  std::size_t top_k = 0;
  double noise = 0;  // in [0, 1): the number of (seed, position)
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::vector<std::pair<TokenId, float>> biases{};        // each token once
  std::vector<std::pair<TokenId, std::uint32_t>> seen{};  // each token once, with its count in the output
  std::vector<TokenId> forbidden{};                       // each token once
};

}  // namespace qe
