#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cache/prefix_cache.h"
#include "scheduler/sequence.h"

namespace qe {

/** Consecutive tokens of one sequence to compute in this step. */
struct Slice {
  Sequence* sequence;
  std::size_t first;  // position
  std::size_t count;
  std::size_t draft = 0;                     // of them guesses, at the end
  std::size_t logit_row = 0, logit_rows = 0;  // in the batch: after the last token and each guess, where it is complete
  /** Whether the slice reaches the sequence's last token, so that its logits give the next one. */
  [[nodiscard]] bool complete() const { return first + count - draft == sequence->length(); }
};

struct SchedulerLimits {
  std::size_t batch = 64;         // sequences running at once
  std::size_t chunk = 512;        // prefill tokens in a step with nothing else to do
  std::size_t chunk_beside = 64;  // prefill tokens in a step that also decodes, at most
  std::size_t draft_rows = 6;     // rows of a step that decodes and guesses; 0: never guess

  /** Rows of the largest step. */
  [[nodiscard]] std::size_t rows_max() const { return std::max({chunk, batch + chunk_beside, draft_rows}); }
};

/**
 * Decides what each step computes: continuous batching with chunked prefill.
 *
 * A step first takes one token of every running sequence that decodes, so decode never waits for a prefill; then
 * chunks of prefill in order of priority and arrival, within a budget that is small while anybody decodes. A waiting
 * sequence is admitted when a place is free and the cache can give blocks for its whole prompt. Before each chunk the
 * prefix cache is asked again, and nobody computes a block that another one fills in the same step, so a prompt that
 * starts like one under way follows it instead of computing twice.
 * Few sequences that decode alone leave the arithmetic idle while weights stream: then each also carries a draft of
 * what may follow (prompt_lookup.h), verified in the same step. Guessing pauses, longer each time, while it fails.
 * When blocks run out, the sequence that is last in order gives up all of its blocks and waits again (preemption by
 * recompute); its full blocks stay cached until somebody needs them. A sequence of higher priority also takes the
 * place of a running one when the batch is full.
 *
 * While a step is under way the next one may be scheduled ahead: sequences whose next token that step chooses say so
 * (Sequence::awaits) and are scheduled as if it were here. It takes part in no name of a block, and in no guess.
 *
 * Limits: one thread; sequences belong to the caller and must be removed before they die. A sequence whose room
 * exceeds the pool must be refused before: fits() tells. With one sequence left nothing can be preempted, and then
 * everything it needs fits, so a step always makes progress.
 */
class Scheduler {
 public:
  Scheduler(PrefixCache& cache, SchedulerLimits limits)
      : cache_(cache), limits_(limits), chunk_beside_(limits.chunk_beside) {}

  [[nodiscard]] bool fits(std::size_t tokens) const { return div_up(tokens, kBlockSize) <= cache_.total(); }
  void add(Sequence& sequence);
  /** Takes the sequence out, wherever it is, and releases its blocks. */
  void remove(Sequence& sequence);
  /** Forgets every sequence and leaves their blocks as they are, for an engine that ends. */
  void abandon() { waiting_.clear(), running_.clear(); }

  /** What to compute now; empty when there is nothing to do. Blocks for it are allocated. */
  std::vector<Slice> schedule();
  /** The next `count` of its tokens are computed, or will be before anything that is launched from now on: advances, and
      publishes full blocks as far as their tokens are known. */
  void commit(Sequence& sequence, std::size_t count);
  /** Whether a guess might follow a token that is awaited, so that it is worth waiting for. */
  [[nodiscard]] bool would_guess() const;
  /** What the sequence's draft came to. */
  static void judge_draft(Sequence& sequence, std::size_t right);
  void set_chunk_beside(std::size_t tokens) { chunk_beside_ = tokens; }

  /** Keeps the full blocks of its prompt, as far as they are computed. */
  void pin(Sequence& sequence, Clock::time_point until);

  [[nodiscard]] std::size_t waiting() const { return waiting_.size(); }
  [[nodiscard]] std::size_t running() const { return running_.size(); }
  [[nodiscard]] std::uint64_t preemptions() const { return preemptions_; }
  /** Throws Error(integrity); see PrefixCache::check_integrity. */
  void check_integrity() const;

 private:
  bool admit();
  std::size_t adopt_cached(Sequence& sequence);
  void draft(Sequence& sequence, std::size_t decoding);
  [[nodiscard]] std::size_t draft_rows(std::size_t decoding) const;
  static bool fills_block(const Sequence& sequence);
  bool reserve(Sequence& sequence, std::size_t tokens, std::vector<Slice>& plan);
  void preempt(Sequence& sequence, std::vector<Slice>& plan);
  void release_blocks(Sequence& sequence);
  const Hash& name_of(Sequence& sequence, std::size_t block);
  [[nodiscard]] Hash parent_of(const Sequence& sequence, std::size_t block) const;

  PrefixCache& cache_;
  SchedulerLimits limits_;
  std::size_t chunk_beside_;
  std::vector<Sequence*> waiting_, running_;  // each in order: higher priority first, then earlier arrival
  std::uint64_t preemptions_ = 0;
};

}  // namespace qe
