#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>

#include "base/sha256.h"
#include "base/types.h"
#include "cache/tenant_statistics.h"

namespace qe {

/** One block as the prefix cache knows it. */
struct BlockContent {
  Hash name{}, parent{};
  std::array<TokenId, kBlockSize> tokens{};
  Tenant owner = TenantStatistics::kOperator;
};

struct HashOfHash {
  std::size_t operator()(const Hash& hash) const;
};

/**
 * Host memory behind the device's: a block that the prefix cache evicts is copied here, and copied back when a prompt
 * wants it, which costs a transfer where computing it again would cost a prefill. A block given back also stays, so
 * evicting it a second time copies nothing. The block longest untouched makes room.
 *
 * Limits: one thread; a copy is made and waited for between two steps.
 */
class HostTier {
 public:
  struct Copies {
    std::function<void(BlockId, std::byte* to)> save;
    std::function<void(BlockId, const std::byte* from)> load;
  };

  /** @param bytes of memory, of which a block takes `block_bytes`; it is taken as blocks come. */
  HostTier(std::size_t bytes, std::size_t block_bytes, Copies copies);

  void put(const BlockContent& content, BlockId block);
  /** Whether the block of that name, with that parent and those tokens, is here. */
  [[nodiscard]] bool has(const Hash& name, const Hash& parent, std::span<const TokenId, kBlockSize> tokens) const;
  /** Copies it to the device; it must be here. @returns its owner */
  Tenant load(const Hash& name, BlockId block);
  void clear();

  [[nodiscard]] std::size_t blocks() const { return entries_.size(); }
  [[nodiscard]] std::uint64_t loads() const { return loads_; }

 private:
  struct Entry {
    BlockContent content;
    std::unique_ptr<std::byte[]> data;  // [block_bytes]
  };

  std::size_t capacity_, block_bytes_;
  Copies copies_;
  std::list<Entry> entries_;  // longest untouched first
  std::unordered_map<Hash, std::list<Entry>::iterator, HashOfHash> by_name_;
  std::uint64_t loads_ = 0;
};

}  // namespace qe
