// Running ahead: steps launched before the tokens of the step before are read (engine/steps.cpp). Every answer must be
// that of an engine that waits for each step, whatever ended, came, was undone or preempted meanwhile.

#include "base/error.h"
#include "choosing_ops.h"
#include "engine_interleave.h"

namespace {

using namespace engine_bench;
using Story = ChoosingOps::Story;

Request plain(std::size_t length, std::size_t answer, unsigned family = 0) {
  Request request;
  for (std::size_t i = 0; i < length; ++i) request.tokens.push_back(static_cast<TokenId>((family * 31 + i * i * 7 + i) % 97));
  request.sampling.max_tokens = answer;
  return request;
}

TEST("engine ahead: a step is launched before the one before is waited for, and never more than two are under way") {
  const TinyModel model;
  const auto story = std::make_shared<Story>();
  std::uint64_t ahead = 0, steps = 0;
  {
    Bench bench(model, 64, no_guesses(), std::make_unique<ChoosingOps>(story));
    CHECK(bench.ask(plain(20, 50)).tokens.size() == 50);
    steps = bench.engine().stats().steps, ahead = bench.engine().stats().steps_ahead;
    bench.engine().close();
  }
  CHECK(steps == 50 && ahead == 49, concat(steps, " steps, ", ahead, " ahead"));
  std::string want = "L";
  for (std::size_t i = 1; i < steps; ++i) want += "LT";
  CHECK(story->calls == want + "T", story->calls);

  const auto off = std::make_shared<Story>();
  {
    Bench bench(model, 64, no_guesses(), std::make_unique<ChoosingOps>(off), 0, false);
    CHECK(bench.ask(plain(20, 50)).tokens.size() == 50);
    CHECK(bench.engine().stats().steps_ahead == 0);
    bench.engine().close();
  }
  CHECK(off->calls.find("LL") == std::string::npos);
}

std::unique_ptr<Ops> choosing(unsigned undecided_every, std::size_t /*rows_max*/) {
  const auto story = std::make_shared<Story>();
  story->undecided_every = undecided_every;
  return std::make_unique<ChoosingOps>(story);
}

TEST("engine ahead: interleavings lose no block and change no answer") {
  std::uint64_t ahead = 0;
  for (unsigned seed = 1; seed <= 8; ++seed) ahead += interleave_ahead(seed, 100, choosing);
  CHECK(ahead > 200, concat(ahead, " steps ran ahead"));
}

TEST("soak: 10,000 steps ahead of submit, abort, finish, evict and preempt, seed by seed") {
  std::uint64_t ahead = 0;
  for (unsigned seed = 1000; ahead < 10000; ++seed) ahead += interleave_ahead(seed, 400, choosing);
}

TEST("engine ahead: what a block is named by is what it holds, where answers end in it and where rows are undone") {
  const TinyModel model;
  for (const unsigned undecided_every : {0u, 3u}) {
    const auto story = std::make_shared<Story>();
    story->undecided_every = undecided_every;
    Bench bench(model, 400, no_guesses(), std::make_unique<ChoosingOps>(story)), fresh(model, 64, no_guesses());
    std::size_t cached = 0;
    for (std::size_t length = 1; length <= 33; ++length) {
      Request first = plain(length, 40, static_cast<unsigned>(length));
      const std::vector<TokenId> whole = bench.ask(first).tokens;
      CHECK(fresh.ask(first).tokens == whole);
      // Ended by a token somewhere on the way, so that a row ahead of it is dropped.
      first.sampling.stop = {whole[length % 37]};
      Request second = first;
      second.sampling.stop.clear(), second.sampling.max_tokens = 6;
      const std::vector<TokenId> until = bench.ask(first).tokens;
      second.tokens.insert(second.tokens.end(), whole.begin(), whole.end());
      second.salt = first.salt;
      const Answer warm = bench.ask(second);
      cached += warm.finish->cached;
      second.salt = "elsewhere";
      CHECK(fresh.ask(second).tokens == warm.tokens, concat("after a prompt of ", length, ", ", until.size(), " tokens"));
    }
    CHECK(cached > 33 * 32, concat(cached));
    CHECK(bench.engine().stats().steps_ahead > 200);
    bench.engine().check_integrity();
  }
}

TEST("engine ahead: text that repeats is guessed as it is without running ahead") {
  const TinyModel model;
  Request request = plain(20, 300);
  request.sampling.logit_bias = {{7, 9.0f}, {8, 9.0f}};  // little else is said
  Bench guessing(model, 200, {}, std::make_unique<ChoosingOps>(std::make_shared<Story>())), patient(model, 200);
  CHECK(guessing.ask(request).tokens == patient.ask(request).tokens);
  const EngineStats stats = guessing.engine().stats(), without = patient.engine().stats();
  CHECK(stats.steps_ahead > 0 && without.accepted_tokens > 100, concat(stats.steps_ahead, " ahead, ", without.accepted_tokens));
  CHECK(stats.accepted_tokens * 10 > without.accepted_tokens * 9, concat(stats.accepted_tokens, " accepted, ", without.accepted_tokens));
}

TEST("engine ahead: scarce memory preempts and still answers alike") {
  const TinyModel model;
  const auto run = [&](std::size_t blocks, bool run_ahead) {
    Bench bench(model, blocks, no_guesses(), std::make_unique<ChoosingOps>(std::make_shared<Story>()), 0, run_ahead);
    std::vector<std::uint32_t> handles;
    for (unsigned i = 0; i < 12; ++i) handles.push_back(bench.submit(plain(5 + 4 * i, 60, i)));
    std::vector<std::vector<TokenId>> all;
    for (const std::uint32_t handle : handles) all.push_back(bench.wait(handle).tokens);
    return std::pair(all, bench.engine().stats());
  };
  const auto [plenty, calm] = run(200, false);
  const auto [scarce, pressed] = run(12, true);
  CHECK(plenty == scarce);
  CHECK(calm.preemptions == 0 && pressed.preemptions > 0 && pressed.steps_ahead > 50);
}

TEST("engine ahead: a launch that fails comes behind the tokens of the step before, and the engine goes on") {
  const TinyModel model;
  for (const std::size_t fails_at : {1, 5}) {
    const auto story = std::make_shared<Story>();
    story->fails_at = fails_at;
    Bench bench(model, 64, no_guesses(), std::make_unique<ChoosingOps>(story));
    const Answer broken = bench.ask(plain(10, 30)), whole = bench.ask(plain(10, 30));
    CHECK(broken.failure == "a launch that fails" && whole.tokens.size() == 30);
    CHECK(broken.tokens == std::vector(whole.tokens.begin(), whole.tokens.begin() + static_cast<std::ptrdiff_t>(fails_at) - 1));
    bench.engine().check_integrity();
  }
}

}  // namespace
