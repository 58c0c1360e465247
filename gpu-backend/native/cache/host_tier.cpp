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
  std::list<Entry> fresh;  // until it is whole: a copy that fails leaves nothing behind
  if (entries_.size() < capacity_) {
    fresh.push_back({content, std::make_unique_for_overwrite<std::byte[]>(block_bytes_)});
  } else {
    by_name_.erase(entries_.front().content.name);
    fresh.splice(fresh.end(), entries_, entries_.begin());  // its memory is used again
    fresh.back().content = content;
  }
  copies_.save(block, fresh.back().data.get());
  by_name_.emplace(content.name, fresh.begin());
  entries_.splice(entries_.end(), fresh);
}

bool HostTier::has(const Hash& name, const Hash& parent, std::span<const TokenId, kBlockSize> tokens) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return false;
  const BlockContent& content = found->second->content;
  return content.parent == parent && std::ranges::equal(content.tokens, tokens);
}

Tenant HostTier::load(const Hash& name, BlockId block) {
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
