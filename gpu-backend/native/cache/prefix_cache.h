#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/sha256.h"
#include "base/types.h"
#include "cache/block_pool.h"
#include "cache/host_tier.h"
#include "cache/tenant_statistics.h"

namespace qe {

/**
 * Remembers which KV block holds which tokens, so that a prompt's known beginning need not be computed again.
 *
 * Algorithm: a full block is named by a chain hash, SHA-256(parent's hash, its 16 token ids). The root holds whatever
 * the numbers depend on (model, dtype, RoPE settings). A tenant's salt enters the chain at the first block that is not
 * wholly operator text: blocks before it are shared by everybody, blocks after it only within the salt. As hashes
 * chain, equal hashes mean equal whole prefixes; the token ids and the parent are compared all the same, so that a bug
 * in the hash can cost a miss but never a wrong answer.
 * Blocks nobody holds stay, in order of release, and are evicted from the oldest; sequences release their tail first,
 * so an evicted block never leaves a reachable child behind for long.
 * With a host tier an evicted block is copied to the host's memory and comes back from there.
 * A pin holds a prefix's blocks until a time, as a sequence would. Pins hold half of the blocks at most (those that
 * lapse first yield), and all of them yield before a lone sequence would fail for want of memory. Two sequences may
 * compute the same block at once; the first to publish it keeps the name, the second's copy is freed with its sequence.
 *
 * Limits: one thread. Threads of conversation that share no leading 16 tokens share nothing.
 */
class PrefixCache {
 public:
  using BlockTokens = std::span<const TokenId, kBlockSize>;

  using Clock = std::chrono::steady_clock;

  /** @param identity everything but tokens and salt that the cached numbers depend on */
  PrefixCache(std::size_t blocks, std::string_view identity);

  /** The chain's start: shared by all, or a tenant's. */
  [[nodiscard]] const Hash& root() const { return root_; }
  /** Where the chain leaves the operator's text for the tenant's. */
  [[nodiscard]] static Hash salted(const Hash& parent, std::string_view salt);
  [[nodiscard]] static Hash chain(const Hash& parent, BlockTokens tokens);

  /** Memory for what is evicted; to be set before the first block is. */
  void set_host_tier(std::unique_ptr<HostTier> host) { host_ = std::move(host); }
  [[nodiscard]] std::size_t host_blocks() const { return host_ ? host_->blocks() : 0; }
  [[nodiscard]] std::uint64_t host_loads() const { return host_ ? host_->loads() : 0; }

  /** The block of that name, held once more, from the host's memory if it was evicted there, or nothing. */
  std::optional<BlockId> acquire(const Hash& name, const Hash& parent, BlockTokens tokens);
  /** An empty block held once: a free one, else the longest idle one, evicted; nothing when every block is used. */
  std::optional<BlockId> allocate();
  /** Gives a fully computed block, held by the caller, its name. */
  void publish(BlockId block, const Hash& name, const Hash& parent, BlockTokens tokens,
               Tenant owner = TenantStatistics::kOperator);
  /** Drops one hold. */
  void release(BlockId block);
  /** Forgets every idle block and the names of the used ones (the weights changed, or an operator asked). */
  void clear();

  /** Holds the blocks until then; the same blocks again: until the later of the two. */
  void pin(std::span<const BlockId> blocks, Clock::time_point until);
  /** Drops the pins that lapsed. */
  void unpin(Clock::time_point now);
  /** Drops the pin that would lapse first; false when there is none. */
  bool unpin_one();
  /** Blocks held by pins, one held by two of them counted twice. */
  [[nodiscard]] std::size_t pinned() const { return pinned_; }

  [[nodiscard]] std::size_t total() const { return pool_.total(); }
  [[nodiscard]] std::size_t free() const { return pool_.free(); }
  [[nodiscard]] std::size_t cached() const { return idle_.size(); }
  [[nodiscard]] std::size_t used() const { return total() - free() - cached(); }
  /** Blocks allocate() can still give. */
  [[nodiscard]] std::size_t available() const { return free() + cached(); }
  [[nodiscard]] const CacheCounters& counters() const { return counters_; }
  [[nodiscard]] TenantStatistics& tenants() { return tenants_; }
  void count_query(Tenant tenant, std::size_t tokens) {
    counters_.queries += tokens, tenants_.of(tenant).queries += tokens;
  }
  void count_hits(Tenant tenant, std::size_t tokens) { counters_.hits += tokens, tenants_.of(tenant).hits += tokens; }

  /** Throws Error(integrity) unless free + cached + used == total and every index agrees.
      @param by_sequences how many sequences hold each block, [total] */
  void check_integrity(std::span<const std::uint32_t> by_sequences) const;

 private:
  struct Pin {
    std::vector<BlockId> blocks;
    Clock::time_point until;
  };
  struct Slot {
    std::optional<BlockContent> content;   // set: published under content->name
    std::list<BlockId>::iterator idle_at;  // valid while `idle`
    bool idle = false;
  };

  void forget(BlockId block);
  std::optional<BlockId> from_host(const Hash& name, const Hash& parent, BlockTokens tokens);

  BlockPool pool_;
  Hash root_;
  std::vector<Slot> slots_;  // [blocks]
  std::unordered_map<Hash, BlockId, HashOfHash> by_name_;
  std::list<BlockId> idle_;  // longest idle first
  std::list<Pin> pins_;      // in no order: they are few
  std::size_t pinned_ = 0;
  TenantStatistics tenants_;
  CacheCounters counters_;
  std::unique_ptr<HostTier> host_;  // null: none
};

}  // namespace qe
