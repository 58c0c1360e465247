#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "base/types.h"

namespace qe {

using Clock = std::chrono::steady_clock;

/** One request's tokens and where their keys and values lie. */
struct Sequence {
  std::uint32_t handle = 0;
  std::vector<TokenId> tokens;  // prompt, then what was generated
  std::size_t prompt = 0;       // tokens of the prompt
  std::size_t room = 0;         // most tokens it may ever have: prompt + max_tokens

  std::string salt;
  Tenant tenant = TenantStatistics::kOperator;  // set when it is added
  std::size_t shared_prefix = 0;                // leading tokens that are operator text
  int priority = 0;                             // higher runs first
  std::uint64_t arrival = 0;                    // breaks ties
  std::optional<Clock::time_point> deadline;
  std::optional<Clock::time_point> pin_until;  // its prompt's blocks stay until then

  std::size_t computed = 0;           // tokens whose keys and values are in `blocks`
  std::size_t published = 0;          // leading blocks offered to the prefix cache
  std::vector<BlockId> blocks;        // [ceil(computed / 16)] or more
  std::vector<Hash> names;            // chain hashes of the leading full blocks, filled as needed
  std::optional<std::size_t> cached;  // prompt tokens found in the cache before any preemption
  bool preempted = false;
  bool constrained = false;  // each token waits for its mask, so nothing is guessed ahead

  /** While a step is scheduled ahead: the logit row of the step under way that chooses this sequence's next token. */
  std::optional<std::size_t> awaits;

  std::vector<TokenId> draft;  // guesses that the step under way verifies
  unsigned draft_misses = 0;   // drafts in a row of which nothing was right
  unsigned draft_pause = 0;    // steps to wait before the next guess

  Clock::time_point submitted, admitted, first_token;

  /** Its tokens, with the one it awaits. */
  [[nodiscard]] std::size_t length() const { return tokens.size() + (awaits ? 1 : 0); }
  [[nodiscard]] std::size_t remaining() const { return length() - computed; }
  [[nodiscard]] std::size_t generated() const { return tokens.size() - prompt; }
};

}  // namespace qe
