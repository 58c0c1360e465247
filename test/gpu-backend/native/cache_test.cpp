#include <algorithm>
#include <map>
#include <random>

#include "base/error.h"
#include "cache/prefix_cache.h"
#include "check.h"

namespace {

using qe::BlockId;
using qe::Hash;
using qe::PrefixCache;
using Tokens = std::array<qe::TokenId, qe::kBlockSize>;

Tokens tokens_of(unsigned seed) {
  Tokens tokens{};
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = seed * 16 + static_cast<unsigned>(i);
  return tokens;
}

TEST("prefix cache: names depend on tokens, order, parent, salt and identity") {
  const PrefixCache a(4, "model a"), b(4, "model b");
  const Tokens one = tokens_of(1), two = tokens_of(2);
  CHECK(a.root() != b.root());
  CHECK(PrefixCache::chain(a.root(), one) != PrefixCache::chain(b.root(), one));
  CHECK(PrefixCache::chain(a.root(), one) != PrefixCache::chain(a.root(), two));
  CHECK(PrefixCache::chain(PrefixCache::chain(a.root(), one), two) !=
        PrefixCache::chain(PrefixCache::chain(a.root(), two), one));
  CHECK(PrefixCache::salted(a.root(), "x") != PrefixCache::salted(a.root(), "y"));
  CHECK(PrefixCache::salted(a.root(), "") != a.root());
}

TEST("prefix cache: the longest idle block is evicted first, a used one never") {
  PrefixCache cache(3, "");
  std::vector<BlockId> blocks;
  std::vector<Hash> names;
  for (unsigned i = 0; i < 3; ++i) {
    const BlockId block = *cache.allocate();
    names.push_back(PrefixCache::chain(cache.root(), tokens_of(i)));
    cache.publish(block, names.back(), cache.root(), tokens_of(i));
    blocks.push_back(block);
  }
  CHECK(!cache.allocate());
  for (const BlockId block : blocks) cache.release(block);
  CHECK(cache.cached() == 3 && cache.free() == 0 && cache.used() == 0);
  CHECK(cache.acquire(names[0], cache.root(), tokens_of(0)) == blocks[0]);
  CHECK(cache.allocate() == blocks[1]);
  CHECK(cache.allocate() == blocks[2]);
  CHECK(!cache.allocate());
  CHECK(cache.counters().evictions == 2);
  CHECK(!cache.acquire(names[1], cache.root(), tokens_of(1)));
}

TEST("prefix cache: a name with other tokens or another parent is a miss") {
  PrefixCache cache(2, "");
  const Tokens mine = tokens_of(1);
  const Hash name = PrefixCache::chain(cache.root(), mine);
  cache.publish(*cache.allocate(), name, cache.root(), mine);
  CHECK(cache.acquire(name, cache.root(), mine));
  CHECK(!cache.acquire(name, cache.root(), tokens_of(2)));
  CHECK(!cache.acquire(name, name, mine));
}

TEST("prefix cache: clear() forgets what is idle and unnames what is used") {
  PrefixCache cache(4, "");
  const Tokens one = tokens_of(1), two = tokens_of(2);
  const Hash first = PrefixCache::chain(cache.root(), one), second = PrefixCache::chain(cache.root(), two);
  const BlockId used = *cache.allocate(), idle = *cache.allocate();
  cache.publish(used, first, cache.root(), one);
  cache.publish(idle, second, cache.root(), two);
  cache.release(idle);
  cache.clear();
  CHECK(cache.free() == 3 && cache.cached() == 0 && cache.used() == 1);
  CHECK(!cache.acquire(first, cache.root(), one) && !cache.acquire(second, cache.root(), two));
  cache.release(used);
  cache.check_integrity(std::vector<std::uint32_t>(4, 0));
  CHECK(cache.free() == 4);
}

TEST("prefix cache: integrity notices a lost block, a second release and a wrong count") {
  PrefixCache cache(2, "");
  const BlockId block = *cache.allocate();
  std::vector<std::uint32_t> holders(2, 0);
  CHECK_THROWS("holders", cache.check_integrity(holders));
  holders[block] = 2;
  CHECK_THROWS("holders", cache.check_integrity(holders));
  holders[block] = 1;
  cache.check_integrity(holders);
  cache.release(block);
  CHECK_THROWS("released twice", cache.release(block));
}

TEST("prefix cache: random work against a plain model") {
  std::mt19937 random(7);
  constexpr std::size_t kBlocks = 12;
  PrefixCache cache(kBlocks, "");
  std::vector<std::uint32_t> holders(kBlocks, 0);
  std::map<unsigned, BlockId> named;  // content -> block
  std::vector<BlockId> idle;          // longest idle first
  const auto content_of = [&](BlockId block) {
    return std::ranges::find_if(named, [&](const auto& pair) { return pair.second == block; });
  };
  for (int step = 0; step < 20000; ++step) {
    const auto content = static_cast<unsigned>(random() % 30);
    const Tokens tokens = tokens_of(content);
    const Hash name = PrefixCache::chain(cache.root(), tokens);
    switch (random() % 3) {
      case 0: {
        const auto got = cache.acquire(name, cache.root(), tokens);
        const auto want = named.find(content);
        CHECK(got.has_value() == (want != named.end()));
        if (!got) break;
        CHECK(*got == want->second);
        ++holders[*got];
        std::erase(idle, *got);
        break;
      }
      case 1: {
        const std::size_t used = static_cast<std::size_t>(std::ranges::count_if(holders, [](auto n) { return n > 0; }));
        const std::size_t free = kBlocks - used - idle.size();
        const auto got = cache.allocate();
        CHECK(got.has_value() == (used < kBlocks));
        if (!got) break;
        CHECK(holders[*got] == 0);
        if (free == 0) {
          CHECK(*got == idle.front());
          named.erase(content_of(*got));
          idle.erase(idle.begin());
        }
        holders[*got] = 1;
        if (random() % 4 != 0) {
          cache.publish(*got, name, cache.root(), tokens);
          named.emplace(content, *got);
        }
        break;
      }
      case 2: {
        const auto block = static_cast<BlockId>(random() % kBlocks);
        if (holders[block] == 0) break;
        cache.release(block);
        if (--holders[block] == 0 && content_of(block) != named.end()) idle.push_back(block);
        break;
      }
    }
    CHECK(cache.cached() == idle.size());
    if (step % 16 == 0) cache.check_integrity(holders);
  }
  CHECK(cache.counters().evictions > 100);
}

}  // namespace
