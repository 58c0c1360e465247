#include <algorithm>
#include <map>
#include <memory>
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

/** A cache of two blocks before a host of two, whose copies fail on demand. */
struct FailingHost {
  bool fails = false;
  PrefixCache cache{2, ""};

  FailingHost() {
    const auto copy = [this] {
      if (fails) throw qe::Error(qe::ErrorCode::internal, "the copy failed");
    };
    cache.set_host_tier(std::make_unique<qe::HostTier>(
        32, 16,
        qe::HostTier::Copies{[=](BlockId, std::byte*) { copy(); }, [=](BlockId, const std::byte*) { copy(); }}));
  }

  /** Computes the block and lets go of it. */
  void fill(unsigned seed) {
    const BlockId block = *cache.allocate();
    cache.publish(block, name(seed), cache.root(), tokens_of(seed));
    cache.release(block);
  }
  std::optional<BlockId> acquire(unsigned seed) { return cache.acquire(name(seed), cache.root(), tokens_of(seed)); }
  Hash name(unsigned seed) { return PrefixCache::chain(cache.root(), tokens_of(seed)); }
  void check() { cache.check_integrity(std::vector<std::uint32_t>(2, 0)); }
};

TEST("prefix cache: a copy to the host that fails loses no block and leaves nothing half there") {
  for (const unsigned kept : {0u, 2u}) {  // into fresh memory, and in place of another block
    FailingHost host;
    for (unsigned seed = 0; seed < 2 + kept; ++seed) host.fill(seed);
    host.fails = true;
    CHECK_THROWS("the copy failed", host.fill(10));
    host.check();
    CHECK(host.cache.host_blocks() < 2 && host.cache.counters().evictions == kept);
    host.fails = false;
    for (unsigned seed = 10; seed < 14; ++seed) host.fill(seed);
    CHECK(host.cache.host_blocks() == 2);
    const auto back = host.acquire(11);
    CHECK(back && host.cache.host_loads() == 1);
    host.cache.release(*back);
    host.check();
  }
}

TEST("prefix cache: a copy from the host that fails gives its block back") {
  FailingHost host;
  for (unsigned seed = 0; seed < 3; ++seed) host.fill(seed);
  CHECK(host.cache.host_blocks() == 1);
  const BlockId held = *host.acquire(1);
  host.cache.release(*host.cache.allocate());  // one is free, so that nothing need be evicted
  host.fails = true;
  CHECK_THROWS("the copy failed", host.acquire(0));
  host.cache.release(held);
  host.check();
  CHECK(host.cache.free() == 1 && host.cache.cached() == 1);
  host.fails = false;
  const auto back = host.acquire(0);
  CHECK(back.has_value());
  host.cache.release(*back);
  host.check();
}

TEST("tenant statistics: who has not asked for longest goes into the sum, and nothing is counted twice or lost") {
  qe::TenantStatistics statistics(2);
  const auto asks = [&](const std::string& salt, unsigned tokens) {
    const qe::Tenant tenant = statistics.arrived(salt);
    statistics.of(tenant).queries += tokens;
    return tenant;
  };
  const auto seen = [&] {
    std::map<std::string, std::uint64_t> queries;
    for (const qe::TenantCounters& each : statistics.all()) queries[each.salt] = each.queries;
    return queries;
  };
  using Seen = std::map<std::string, std::uint64_t>;
  CHECK(asks("", 1) == qe::TenantStatistics::kOperator);
  const qe::Tenant a = asks("a", 10);
  asks("b", 20);
  CHECK(asks("a", 100) == a);
  asks("c", 30);
  CHECK(seen() == (Seen{{"", 1}, {"(others)", 20}, {"a", 110}, {"c", 30}}));
  asks("b", 2);
  CHECK(seen() == (Seen{{"", 1}, {"(others)", 130}, {"b", 2}, {"c", 30}}));
  statistics.of(a).queries += 5;  // of blocks it left
  CHECK(asks("a", 1) != a);
  CHECK(seen() == (Seen{{"", 1}, {"(others)", 165}, {"a", 1}, {"b", 2}}));
}

}  // namespace
