#include "cache/prefix_cache.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace qe {

PrefixCache::PrefixCache(std::size_t blocks, std::string_view identity)
    : pool_(blocks),
      root_(Sha256().update("qwen2-edge kv 1").update(std::uint64_t{identity.size()}).update(identity).finish()),
      slots_(blocks) {}

Hash PrefixCache::salted(const Hash& parent, std::string_view salt) {
  return Sha256().update("salt").update(parent).update(std::uint64_t{salt.size()}).update(salt).finish();
}

Hash PrefixCache::chain(const Hash& parent, BlockTokens tokens) {
  std::array<std::uint8_t, kBlockSize * 4> bytes{};
  for (std::size_t i = 0; i < kBlockSize; ++i)
    for (std::size_t b = 0; b < 4; ++b) bytes[4 * i + b] = static_cast<std::uint8_t>(tokens[i] >> (8 * b));
  return Sha256().update("next").update(parent).update(bytes).finish();
}

std::optional<BlockId> PrefixCache::acquire(const Hash& name, const Hash& parent, BlockTokens tokens) {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return from_host(name, parent, tokens);
  const BlockId block = found->second;
  Slot& slot = slots_[block];
  if (slot.content->parent != parent || !std::ranges::equal(slot.content->tokens, tokens)) return std::nullopt;
  if (slot.idle) {
    idle_.erase(slot.idle_at);
    slot.idle = false;
  }
  pool_.hold(block);
  return block;
}

std::optional<BlockId> PrefixCache::from_host(const Hash& name, const Hash& parent, BlockTokens tokens) {
  if (!host_ || !host_->has(name, parent, tokens)) return std::nullopt;
  const auto block = allocate();
  // Taking the block may have evicted another one, and that one may have taken this one's place in the host.
  if (!block) return std::nullopt;
  if (!host_->has(name, parent, tokens)) {
    release(*block);
    return std::nullopt;
  }
  try {
    publish(*block, name, parent, tokens, host_->load(name, *block));
  } catch (...) {
    release(*block);
    throw;
  }
  return block;
}

std::optional<BlockId> PrefixCache::allocate() {
  if (const auto block = pool_.take()) return block;
  if (idle_.empty()) return std::nullopt;
  if (host_) host_->put(*slots_[idle_.front()].content, idle_.front());
  ++counters_.evictions;
  ++tenants_.of(slots_[idle_.front()].content->owner).evictions;
  forget(idle_.front());
  return pool_.take();
}

void PrefixCache::publish(BlockId block, const Hash& name, const Hash& parent, BlockTokens tokens, Tenant owner) {
  Slot& slot = slots_.at(block);
  if (slot.content.has_value() || by_name_.contains(name)) return;
  by_name_.emplace(name, block);
  slot.content.emplace(BlockContent{name, parent, {}, owner});
  std::ranges::copy(tokens, slot.content->tokens.begin());
}

void PrefixCache::release(BlockId block) {
  if (!pool_.drop(block)) return;
  Slot& slot = slots_[block];
  if (!slot.content) return pool_.put_back(block);
  slot.idle_at = idle_.insert(idle_.end(), block);
  slot.idle = true;
}

void PrefixCache::forget(BlockId block) {
  Slot& slot = slots_[block];
  by_name_.erase(slot.content->name);
  slot.content.reset();
  if (!slot.idle) return;
  idle_.erase(slot.idle_at);
  slot.idle = false;
  pool_.put_back(block);
}

void PrefixCache::clear() {
  if (host_) host_->clear();
  for (std::size_t block = 0; block < slots_.size(); ++block)
    if (slots_[block].content) forget(static_cast<BlockId>(block));
}

void PrefixCache::pin(std::span<const BlockId> blocks, Clock::time_point until) {
  if (blocks.empty() || blocks.size() > total() / 2) return;
  for (Pin& pin : pins_)
    if (std::ranges::equal(pin.blocks, blocks)) {
      pin.until = std::max(pin.until, until);
      return;
    }
  while (pinned_ + blocks.size() > total() / 2) unpin_one();
  for (const BlockId block : blocks) pool_.hold(block);
  pinned_ += blocks.size();
  pins_.push_back({{blocks.begin(), blocks.end()}, until});
}

void PrefixCache::unpin(Clock::time_point now) {
  while (!pins_.empty() && std::ranges::min(pins_, {}, &Pin::until).until <= now) unpin_one();
}

bool PrefixCache::unpin_one() {
  if (pins_.empty()) return false;
  const auto first = std::ranges::min_element(pins_, {}, &Pin::until);
  pinned_ -= first->blocks.size();
  for (std::size_t i = first->blocks.size(); i > 0; --i) release(first->blocks[i - 1]);  // tail first
  pins_.erase(first);
  return true;
}

void PrefixCache::check_integrity(std::span<const std::uint32_t> by_sequences) const {
  const auto want = [](bool holds, const std::string& what) {
    if (!holds) throw Error(ErrorCode::integrity, what);
  };
  want(by_sequences.size() == total(), "a holder count for every block is wanted");
  std::vector<std::uint32_t> holders(by_sequences.begin(), by_sequences.end());
  std::size_t pins = 0;
  for (const Pin& pin : pins_)
    for (const BlockId block : pin.blocks) ++holders.at(block), ++pins;
  want(pins == pinned_, "pins hold another number of blocks than is counted");
  std::vector<bool> is_free(total(), false);
  for (const BlockId block : pool_.free_blocks()) {
    want(!is_free[block], concat("block ", block, " is free twice"));
    is_free[block] = true;
  }
  std::size_t held = 0, idle = 0, named = 0;
  for (std::size_t i = 0; i < total(); ++i) {
    const auto block = static_cast<BlockId>(i);
    const Slot& slot = slots_[i];
    want(pool_.holders(block) == holders[i],
         concat("block ", i, " counts ", pool_.holders(block), " holders, sequences hold it ", holders[i], " times"));
    if (holders[i] > 0) ++held;
    if (slot.idle) ++idle;
    const int states = int{is_free[i]} + int{slot.idle} + int{holders[i] > 0};
    want(states == 1, concat("block ", i, " is in ", states, " states of free, cached and used"));
    want(!slot.idle || slot.content, concat("block ", i, " is cached without content"));
    want(!is_free[i] || !slot.content, concat("block ", i, " is free but keeps its name"));
    if (!slot.content) continue;
    ++named;
    const auto found = by_name_.find(slot.content->name);
    want(found != by_name_.end() && found->second == block, concat("block ", i, " is not found under its name"));
    want(chain(slot.content->parent, slot.content->tokens) == slot.content->name,
         concat("block ", i, " has a name that its tokens do not give"));
  }
  want(named == by_name_.size(), "a name points to no block");
  want(idle == idle_.size(), "the list of idle blocks has another length than there are idle blocks");
  want(free() + cached() + held == total(),
       concat("free ", free(), " + cached ", cached(), " + used ", held, " != total ", total()));
}

}  // namespace qe
