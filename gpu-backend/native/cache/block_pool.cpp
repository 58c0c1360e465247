#include "cache/block_pool.h"

#include "base/error.h"

namespace qe {

BlockPool::BlockPool(std::size_t blocks) : holders_(blocks, 0) {
  free_.reserve(blocks);
  for (std::size_t i = blocks; i > 0; --i) free_.push_back(static_cast<BlockId>(i - 1));
}

std::optional<BlockId> BlockPool::take() {
  if (free_.empty()) return std::nullopt;
  const BlockId block = free_.back();
  free_.pop_back();
  holders_[block] = 1;
  return block;
}

bool BlockPool::drop(BlockId block) {
  if (holders_.at(block) == 0) throw Error(ErrorCode::integrity, concat("block ", block, " was released twice"));
  return --holders_[block] == 0;
}

void BlockPool::put_back(BlockId block) {
  if (holders_.at(block) != 0) throw Error(ErrorCode::integrity, concat("block ", block, " is freed while held"));
  free_.push_back(block);
}

}  // namespace qe
