#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "base/types.h"

namespace qe {

/**
 * Guesses the next tokens from the text itself (Saxena, "Prompt lookup decoding", 2023): where the last three tokens, or
 * else the last two, stood before, what followed then may follow again. Verified by the model in one step, so that a
 * wrong guess costs a few rows and a right one a whole step.
 */
inline void look_up(std::span<const TokenId> tokens, std::size_t most, std::vector<TokenId>& draft) {
  constexpr std::size_t kWindow = 8192;
  draft.clear();
  if (most == 0) return;
  const std::span<const TokenId> text = tokens.last(std::min(tokens.size(), kWindow));
  for (std::size_t length = 3; length >= 2; --length) {
    if (text.size() <= length) continue;
    const std::span<const TokenId> tail = text.last(length);
    for (std::size_t end = text.size() - 1; end >= length; --end) {
      if (!std::ranges::equal(text.subspan(end - length, length), tail)) continue;
      const std::span<const TokenId> after = text.subspan(end, std::min(most, text.size() - end));
      draft.assign(after.begin(), after.end());
      return;
    }
  }
}

}  // namespace qe
