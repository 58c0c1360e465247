#pragma once

#include <span>
#include <utility>
#include <vector>

#include "model/qwen2.h"

namespace qe {

/** What the logit rows of a step came to: on the CPU their logits, on a device that chooses mostly tokens. */
class RowResults {
 public:
  explicit RowResults(Qwen2& model) : model_(model) {}

  void logits(std::span<const float> all) { all_ = all, tokens_.clear(); }
  void tokens(unsigned turn, std::vector<TokenId> chosen) { turn_ = turn, tokens_ = std::move(chosen); }

  /** What the device chose for the row, or kUndecided. */
  [[nodiscard]] TokenId chosen(std::size_t row) const { return tokens_.empty() ? kUndecided : tokens_[row]; }
  /** [vocab], until the next call. */
  [[nodiscard]] std::span<const float> of(std::size_t row) const {
    const std::size_t vocab = model_.config().vocab;
    return tokens_.empty() ? all_.subspan(row * vocab, vocab) : model_.logits(turn_, row, 1);
  }

 private:
  Qwen2& model_;
  std::span<const float> all_;   // [rows][vocab], where nothing was chosen
  std::vector<TokenId> tokens_;  // [rows]
  unsigned turn_ = 0;
};

}  // namespace qe
