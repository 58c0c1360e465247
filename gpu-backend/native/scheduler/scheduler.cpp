#include "scheduler/scheduler.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "scheduler/prompt_lookup.h"

namespace qe {
namespace {

bool before(const Sequence* a, const Sequence* b) {
  return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
}

void insert_ordered(std::vector<Sequence*>& list, Sequence& sequence) {
  list.insert(std::ranges::upper_bound(list, &sequence, before), &sequence);
}

PrefixCache::BlockTokens tokens_of(const Sequence& sequence, std::size_t block) {
  return PrefixCache::BlockTokens(sequence.tokens.data() + block * kBlockSize, kBlockSize);
}

}  // namespace

void Scheduler::add(Sequence& sequence) {
  sequence.tenant = cache_.tenants().arrived(sequence.salt);
  insert_ordered(waiting_, sequence);
}

void Scheduler::pin(Sequence& sequence, Clock::time_point until) {
  // The blocks that carry the names: its own copy of a block may be the second one, which nobody finds.
  std::vector<BlockId> blocks;
  for (std::size_t at = 0; at < sequence.prompt / kBlockSize; ++at) {
    const Hash name = name_of(sequence, at);
    const auto block = cache_.acquire(name, parent_of(sequence, at), tokens_of(sequence, at));
    if (!block) break;
    blocks.push_back(*block);
  }
  cache_.pin(blocks, until);
  for (std::size_t i = blocks.size(); i > 0; --i) cache_.release(blocks[i - 1]);
}

void Scheduler::remove(Sequence& sequence) {
  release_blocks(sequence);
  std::erase(waiting_, &sequence);
  std::erase(running_, &sequence);
}

std::vector<Slice> Scheduler::schedule() {
  std::vector<Slice> plan;
  while (admit()) {
  }

  const std::vector<Sequence*> order = running_;
  const auto still_running = [this](const Sequence* s) { return std::ranges::find(running_, s) != running_.end(); };
  const auto decodes = [](const Sequence* s) { return s->remaining() == 1; };
  const auto decoding = static_cast<std::size_t>(std::ranges::count_if(order, decodes));
  // Who waits for a mask has nothing to compute.
  const auto busy =
      static_cast<std::size_t>(std::ranges::count_if(order, [](const Sequence* s) { return s->remaining() > 0; }));
  for (Sequence* sequence : order) {
    if (!decodes(sequence) || !still_running(sequence)) continue;
    sequence->draft.clear();
    if (decoding == busy) draft(*sequence, decoding);
    if (reserve(*sequence, 1 + sequence->draft.size(), plan))
      plan.push_back({sequence, sequence->computed, 1 + sequence->draft.size(), sequence->draft.size()});
  }

  std::size_t budget = plan.empty() ? limits_.chunk : chunk_beside_;
  std::set<Hash> under_way;  // blocks that this step fills
  for (Sequence* sequence : order) {
    if (budget == 0) break;
    if (sequence->remaining() <= 1 || !still_running(sequence)) continue;
    const std::size_t adopted = adopt_cached(*sequence);
    if (!sequence->preempted) {
      *sequence->cached += adopted;
      cache_.count_hits(sequence->tenant, adopted);
    }
    // Who would compute what this step computes anyway waits, and finds it in the cache.
    if (fills_block(*sequence) && under_way.contains(name_of(*sequence, sequence->computed / kBlockSize))) continue;
    std::size_t count = std::min(budget, sequence->remaining());
    // A chunk that is not the last ends on a block's edge, where the next one may go on from the cache.
    if (const std::size_t over = (sequence->computed + count) % kBlockSize;
        count < sequence->remaining() && over < count)
      count -= over;
    if (!reserve(*sequence, count, plan)) continue;
    plan.push_back({sequence, sequence->computed, count});
    budget -= count;
    const std::size_t known = std::min(sequence->computed + count, sequence->tokens.size());
    for (std::size_t at = sequence->computed / kBlockSize; (at + 1) * kBlockSize <= known; ++at)
      under_way.insert(name_of(*sequence, at));
  }
  return plan;
}

/** Guesses as many tokens as the step has rows for, if that takes no block from anybody. */
void Scheduler::draft(Sequence& sequence, std::size_t decoding) {
  if (sequence.constrained) return;
  if (sequence.draft_pause > 0) {
    --sequence.draft_pause;
    return;
  }
  if (sequence.awaits) return;
  const std::size_t rows = draft_rows(decoding);
  const std::size_t left = sequence.room - std::min(sequence.room, sequence.tokens.size() + 1);
  look_up(sequence.tokens, std::min(rows, left), sequence.draft);
  const std::size_t wanted = div_up(sequence.tokens.size() + sequence.draft.size(), kBlockSize);
  if (wanted > sequence.blocks.size() && cache_.available() < running_.size() + 1) sequence.draft.clear();
}

/** Of guesses, for each of so many sequences that decode. */
std::size_t Scheduler::draft_rows(std::size_t decoding) const {
  return limits_.draft_rows > decoding ? (limits_.draft_rows - decoding) / decoding : 0;
}

bool Scheduler::would_guess() const {
  const auto awaiting = static_cast<std::size_t>(std::ranges::count_if(running_, [](const Sequence* s) { return s->awaits.has_value(); }));
  const bool decode_alone = std::ranges::all_of(running_, [](const Sequence* s) { return s->awaits || s->remaining() == 0; });
  if (awaiting == 0 || !decode_alone || draft_rows(awaiting) == 0) return false;
  std::vector<TokenId> guess;
  return std::ranges::any_of(running_, [&](const Sequence* s) {
    if (!s->awaits || s->draft_pause > 0) return false;
    look_up(s->tokens, 1, guess);
    return !guess.empty();
  });
}

void Scheduler::judge_draft(Sequence& sequence, std::size_t right) {
  constexpr unsigned kPauseMost = 64;
  if (sequence.draft.empty()) return;
  sequence.draft_misses = right > 0 ? 0 : sequence.draft_misses + 1;
  sequence.draft_pause = right > 0 ? 0 : std::min(kPauseMost, 1u << std::min(sequence.draft_misses, 6u));
}

/** Whether the next thing it computes is a whole block that the cache could give it. */
bool Scheduler::fills_block(const Sequence& sequence) {
  return sequence.computed % kBlockSize == 0 && sequence.remaining() > kBlockSize &&
         sequence.computed / kBlockSize == sequence.blocks.size();
}

/** Moves the first waiting sequence into the batch, if there is a place and memory for its prompt. */
bool Scheduler::admit() {
  if (waiting_.empty()) return false;
  Sequence& next = *waiting_.front();
  std::vector<Slice> no_plan;
  const std::size_t adopted = adopt_cached(next);
  const std::size_t wanted = div_up(next.length(), kBlockSize) - next.blocks.size();
  // One block to spare for each sequence that runs: admitting must not lead straight to preempting.
  while (running_.size() >= limits_.batch || (!running_.empty() && wanted + running_.size() > cache_.available())) {
    if (running_.back()->priority >= next.priority) {
      release_blocks(next);
      return false;
    }
    preempt(*running_.back(), no_plan);
  }
  if (!next.cached) {
    next.cached = adopted;
    next.admitted = Clock::now();
    cache_.count_query(next.tenant, next.prompt);
    cache_.count_hits(next.tenant, adopted);
  }
  waiting_.erase(waiting_.begin());
  insert_ordered(running_, next);
  return true;
}

/** Takes over the cached blocks that continue what is computed, but never the last token's; @returns tokens found. */
std::size_t Scheduler::adopt_cached(Sequence& sequence) {
  const std::size_t before_it = sequence.computed;
  while (sequence.computed % kBlockSize == 0 && sequence.remaining() > kBlockSize) {
    const std::size_t at = sequence.computed / kBlockSize;
    if (at < sequence.blocks.size()) break;
    const Hash name = name_of(sequence, at);
    const auto block = cache_.acquire(name, parent_of(sequence, at), tokens_of(sequence, at));
    if (!block) break;
    sequence.blocks.push_back(*block);
    sequence.computed += kBlockSize;
    sequence.published = sequence.blocks.size();
  }
  return sequence.computed - before_it;
}

/** Makes room for `tokens` more; may preempt others, or the sequence itself (then false). */
bool Scheduler::reserve(Sequence& sequence, std::size_t tokens, std::vector<Slice>& plan) {
  const std::size_t wanted = div_up(sequence.computed + tokens, kBlockSize);
  while (sequence.blocks.size() < wanted) {
    if (const auto block = cache_.allocate()) {
      sequence.blocks.push_back(*block);
      continue;
    }
    if (running_.size() == 1 && cache_.unpin_one()) continue;
    Sequence& victim = *running_.back();
    preempt(victim, plan);
    if (&victim == &sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence& sequence, std::vector<Slice>& plan) {
  ++preemptions_;
  sequence.preempted = true;
  release_blocks(sequence);
  std::erase(running_, &sequence);
  std::erase_if(plan, [&](const Slice& slice) { return slice.sequence == &sequence; });
  insert_ordered(waiting_, sequence);
}

/** Tail first, so that the end of a conversation is evicted before its beginning. */
void Scheduler::release_blocks(Sequence& sequence) {
  for (std::size_t i = sequence.blocks.size(); i > 0; --i) cache_.release(sequence.blocks[i - 1]);
  sequence.blocks.clear();
  sequence.computed = sequence.published = 0;
}

void Scheduler::commit(Sequence& sequence, std::size_t count) {
  sequence.computed += count;
  const std::size_t known = std::min(sequence.computed, sequence.tokens.size());
  for (; (sequence.published + 1) * kBlockSize <= known; ++sequence.published) {
    const std::size_t at = sequence.published;
    const Hash name = name_of(sequence, at);
    const auto owner = at < sequence.shared_prefix / kBlockSize ? TenantStatistics::kOperator : sequence.tenant;
    cache_.publish(sequence.blocks[at], name, parent_of(sequence, at), tokens_of(sequence, at), owner);
  }
}

const Hash& Scheduler::name_of(Sequence& sequence, std::size_t block) {
  while (sequence.names.size() <= block) {
    const std::size_t at = sequence.names.size();
    sequence.names.push_back(PrefixCache::chain(parent_of(sequence, at), tokens_of(sequence, at)));
  }
  return sequence.names[block];
}

Hash Scheduler::parent_of(const Sequence& sequence, std::size_t block) const {
  const Hash parent = block == 0 ? cache_.root() : sequence.names[block - 1];
  // The first block that is not wholly operator text: from here on the chain is the tenant's own.
  return block == sequence.shared_prefix / kBlockSize ? PrefixCache::salted(parent, sequence.salt) : parent;
}

void Scheduler::check_integrity() const {
  std::vector<std::uint32_t> holders(cache_.total(), 0);
  for (const auto* list : {&waiting_, &running_})
    for (const Sequence* sequence : *list)
      for (const BlockId block : sequence->blocks) ++holders.at(block);
  for (const Sequence* sequence : waiting_)
    if (!sequence->blocks.empty()) throw Error(ErrorCode::integrity, "a waiting sequence holds blocks");
  for (const Sequence* sequence : running_)
    if (sequence->blocks.size() < div_up(sequence->computed, kBlockSize))
      throw Error(ErrorCode::integrity, "a sequence computed more than its blocks hold");
  cache_.check_integrity(holders);
}

}  // namespace qe
