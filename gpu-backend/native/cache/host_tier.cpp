#include "cache/host_tier.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace qe {

std::size_t HashOfHash::operator()(const Hash& hash) const {
  std::size_t word = 0;
  std::memcpy(&word, hash.data(), sizeof word);
  return word;
}

HostTier::HostTier(std::size_t bytes, std::size_t block_bytes, Copies copies)
    : capacity_(bytes / block_bytes), block_bytes_(block_bytes), copies_(std::move(copies)) {}

void HostTier::put(const BlockContent& content, BlockId block) {
  if (capacity_ == 0) return;
  if (const auto found = by_name_.find(content.name); found != by_name_.end()) {
    entries_.splice(entries_.end(), entries_, found->second);
    return;
  }
  if (entries_.size() < capacity_) {
    entries_.push_back({content, std::make_unique_for_overwrite<std::byte[]>(block_bytes_)});
  } else {
    by_name_.erase(entries_.front().content.name);
    entries_.splice(entries_.end(), entries_, entries_.begin());  // its memory is used again
    entries_.back().content = content;
  }
  copies_.save(block, entries_.back().data.get());
  by_name_.emplace(content.name, std::prev(entries_.end()));
}

bool HostTier::has(const Hash& name, const Hash& parent, std::span<const TokenId, kBlockSize> tokens) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return false;
  const BlockContent& content = found->second->content;
  return content.parent == parent && std::ranges::equal(content.tokens, tokens);
}

std::uint32_t HostTier::load(const Hash& name, BlockId block) {
  const auto entry = by_name_.at(name);
  entries_.splice(entries_.end(), entries_, entry);
  copies_.load(block, entry->data.get());
  ++loads_;
  return entry->content.owner;
}

void HostTier::clear() {
  by_name_.clear();
  entries_.clear();
}

}  // namespace qe
