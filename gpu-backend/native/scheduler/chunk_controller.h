#pragma once

#include <algorithm>
#include <cstddef>

namespace qe {

/**
 * How many prompt tokens a step may compute beside decoding sequences, so that a step takes about `kStretch` times what
 * it takes without them: whoever reads an answer must not feel somebody else's long prompt.
 *
 * Two running estimates, of a step that only decodes and of what each prompt token adds, are taken from the steps
 * themselves, so the budget follows the machine, the batch and the growing cost of attention. Until both are known it
 * is small, and it never falls below `kLeast`, so that a prefill always gets on. Bits do not depend on chunks.
 */
class ChunkController {
 public:
  static constexpr double kStretch = 1.9;
  static constexpr std::size_t kLeast = 4, kUnknown = 16;

  explicit ChunkController(std::size_t most) : most_(most) {}

  void observe(std::size_t decoding, std::size_t prefilling, double ms) {
    if (decoding == 0) return;
    if (prefilling == 0) {
      idle_ms_ = idle_ms_ == 0 ? ms : idle_ms_ + 0.2 * (ms - idle_ms_);
    } else if (idle_ms_ > 0) {
      const double each = std::max(ms - idle_ms_, 0.02 * ms) / static_cast<double>(prefilling);
      // Quick to believe that it got dearer, slow that it got cheaper.
      token_ms_ = token_ms_ == 0 ? each : token_ms_ + (each > token_ms_ ? 0.5 : 0.1) * (each - token_ms_);
    }
  }

  [[nodiscard]] std::size_t budget() const {
    if (idle_ms_ == 0 || token_ms_ == 0) return std::min(most_, kUnknown);
    const double tokens = (kStretch - 1) * idle_ms_ / token_ms_;
    return tokens >= static_cast<double>(most_) ? most_ : std::min(most_, std::max(kLeast, static_cast<std::size_t>(tokens)));
  }

 private:
  std::size_t most_;
  double idle_ms_ = 0, token_ms_ = 0;
};

}  // namespace qe
