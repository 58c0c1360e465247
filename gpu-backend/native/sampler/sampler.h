#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/choice.h"
#include "base/types.h"

namespace qe {

/** How tokens are chosen. Defaults are pure greedy. */
struct SamplingParams {
  double temperature = 0;         // 0: the most likely token, the lowest id among equals
  double top_p = 1;               // (0, 1]
  std::size_t top_k = 0;          // 0: no limit
  double min_p = 0;               // [0, 1], relative to the most likely token
  double repetition_penalty = 1;  // over prompt and output
  double presence_penalty = 0;    // over output
  double frequency_penalty = 0;   // over output
  std::uint64_t seed = 0;
  std::size_t max_tokens = 1;
  std::size_t min_tokens = 0;  // stop ids are impossible before so many
  std::vector<TokenId> stop;   // ids that end the answer
  std::vector<std::pair<TokenId, float>> logit_bias;
  int logprobs = -1;  // -1: none; else how many alternatives
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;  // natural logarithm
};

struct Sampled {
  TokenId token = 0;
  float logprob = 0;              // set when asked for
  std::vector<TokenLogprob> top;  // best first
};

/**
 * Chooses one sequence's next tokens.
 *
 * Order: the mask (what it leaves out is impossible); logit bias; repetition penalty (divides positive, multiplies negative logits of tokens seen); presence and
 * frequency penalties; stop ids out while fewer than min_tokens; temperature; top_k; top_p (the smallest set of most
 * likely tokens whose mass reaches it, renormalised after top_k); min_p; then one draw by inverse distribution (most
 * likely first; by id when neither top_k nor top_p cuts) with the uniform number of (seed, position). That is the order
 * of transformers' processors. Log-probabilities are those of the model, before all of it but the mask (as vLLM's). Equal logits rank by id, so
 * a draw is reproducible. The sum over the vocabulary is in double precision and skips tokens below e^-40 of the best.
 */
class Sampler {
 public:
  /** @param vocab tokens that exist; logits beyond are padding and never chosen */
  Sampler(SamplingParams params, std::size_t vocab, std::span<const TokenId> prompt);

  /**
   * @param logits [rows of the embedding] @param position absolute, of the token to choose
   * @param mask one bit a token, in words from id 0 up, at least one of them set; empty: every token may come
   */
  Sampled next(std::span<const float> logits, std::size_t position, std::span<const std::uint32_t> mask = {});

  /** What next() would do, for a device to do it. @param assumed tokens taken for chosen before that one */
  [[nodiscard]] Choice choice(std::size_t position, std::span<const TokenId> assumed) const;
  /** Instead of next(), for a token that was chosen by choice(). */
  Sampled accept(TokenId token);

  [[nodiscard]] const SamplingParams& params() const { return params_; }
  /** Whether a choice depends on which tokens came before it, beyond their logits. */
  [[nodiscard]] bool penalises() const;

 private:
  [[nodiscard]] bool adjusts() const;
  void adjust(std::span<float> logits) const;
  [[nodiscard]] TokenId draw(std::span<const float> logits, std::size_t position) const;

  SamplingParams params_;
  std::size_t vocab_;
  std::size_t generated_ = 0;
  std::unordered_map<TokenId, std::uint32_t> output_counts_;  // every token of prompt and output; prompt counts 0
  std::vector<float> allowed_, adjusted_;                     // [vocab], scratch
};

/** The index of the largest number, the lowest among equals. */
TokenId argmax(std::span<const float> logits);

}  // namespace qe
