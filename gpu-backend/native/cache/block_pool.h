#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/types.h"

namespace qe {

/**
 * Counts who holds which KV block. A block is free (nobody, no content), used (one or more sequences), or idle: held
 * by nobody, but kept by the prefix cache for its content. The pool knows numbers only, no tokens and no memory.
 */
class BlockPool {
 public:
  explicit BlockPool(std::size_t blocks);

  /** A free block with one holder, or nothing when none is free. */
  std::optional<BlockId> take();
  void hold(BlockId block) { ++holders_.at(block); }
  /** @returns whether that was the last holder; the block is then neither free nor used until put_back() or hold(). */
  bool drop(BlockId block);
  void put_back(BlockId block);

  [[nodiscard]] std::size_t total() const { return holders_.size(); }
  [[nodiscard]] std::size_t free() const { return free_.size(); }
  [[nodiscard]] std::uint32_t holders(BlockId block) const { return holders_.at(block); }
  [[nodiscard]] const std::vector<BlockId>& free_blocks() const { return free_; }

 private:
  std::vector<std::uint32_t> holders_;  // [blocks]
  std::vector<BlockId> free_;           // a stack: the most recently freed is warm in the CPU's caches
};

}  // namespace qe
