#include <atomic>
#include <numeric>

#include "base/philox.h"
#include "base/sha256.h"
#include "base/thread_pool.h"
#include "check.h"

namespace {

std::string hex(const qe::Hash& hash) {
  std::string text;
  for (const std::uint8_t byte : hash) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", byte);
    text += digits;
  }
  return text;
}

TEST("sha256: FIPS 180-4 vectors") {
  CHECK(hex(qe::Sha256().finish()) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hex(qe::Sha256().update("abc").finish()) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hex(qe::Sha256().update("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq").finish()) ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(hex(qe::Sha256().update(std::string(1000000, 'a')).finish()) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST("sha256: any split of the input gives the same hash") {
  std::string text(300, 0);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7);
  const qe::Hash whole = qe::Sha256().update(text).finish();
  for (std::size_t cut = 0; cut <= text.size(); ++cut)
    CHECK(qe::Sha256()
              .update(std::string_view(text).substr(0, cut))
              .update(std::string_view(text).substr(cut))
              .finish() == whole);
}

TEST("philox: Random123's known answers") {
  using W = std::array<std::uint32_t, 4>;
  CHECK((qe::philox({0, 0, 0, 0}, {0, 0}) == W{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((qe::philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == W{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((qe::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         W{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST("uniform: in [0, 1), with the right mean, and unlike its neighbours") {
  double total = 0;
  for (std::uint64_t i = 0; i < 100000; ++i) {
    const double u = qe::uniform(42, i);
    CHECK(u >= 0 && u < 1);
    CHECK(u != qe::uniform(43, i));
    total += u;
  }
  CHECK(total / 100000 > 0.495 && total / 100000 < 0.505);
}

TEST("thread pool: every index once, whatever the number of threads, jobs in quick succession") {
  for (const unsigned threads : {1u, 2u, 5u}) {
    qe::ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    std::vector<std::atomic<int>> seen(1000);
    for (int round = 1; round <= 300; ++round) {
      const std::size_t count = static_cast<std::size_t>(round * 7 % 1000);
      for (auto& each : seen) each = 0;
      pool.for_each(count, [&](std::size_t i) { ++seen[i]; });
      for (std::size_t i = 0; i < seen.size(); ++i) CHECK(seen[i] == (i < count ? 1 : 0));
    }
  }
}

TEST("thread pool: work is visible to the caller, also after the workers went to sleep") {
  qe::ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    std::vector<int> plain(100, 0);
    pool.for_each(plain.size(), [&](std::size_t i) { plain[i] = static_cast<int>(i) + round; });
    CHECK(std::accumulate(plain.begin(), plain.end(), 0) == 4950 + 100 * round);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace
