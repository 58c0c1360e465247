// The engine with the small random model: every answer must equal its lone run, whatever ran beside it, and no block
// may be lost. Runs under ASan/UBSan and TSan.

#include <atomic>
#include <future>

#include "base/error.h"
#include "engine_bench.h"

namespace qe {

/** Breaks what the engine guards, between two steps. */
struct EngineProbe {
  static void lose_block(Engine& engine) {
    engine.run_between_steps([&] { CHECK(engine.cache_.allocate().has_value()); });
  }
};

}  // namespace qe

namespace {

using namespace engine_bench;

/** Submits, cancels, finishes, evicts and preempts; every survivor must equal its lone run. @returns steps */
std::uint64_t interleave(unsigned seed, int requests, unsigned threads, std::string_view level = "",
                         WeightFormat weights = WeightFormat::stored) {
  TinyModel model;
  model.config.weights = weights;
  std::mt19937 random(seed);
  SchedulerLimits limits;
  limits.batch = 1 + random() % 8;
  limits.chunk = 1 + random() % 60;
  limits.chunk_beside = 1 + random() % 30;
  limits.draft_rows = random() % 12;
  constexpr std::size_t kBlocks = 14;  // the longest sequence takes 8
  std::vector<std::pair<Request, Answer>> survivors;
  std::uint64_t steps = 0;
  {
    Bench bench(model, kBlocks, limits, threads, random() % 3 * 20, level);
    std::vector<std::pair<Request, std::uint32_t>> asked;
    for (int i = 0; i < requests; ++i) {
      const Request request = request_of(random, 100);
      asked.emplace_back(request, bench.submit(request));
      if (random() % 4 == 0) bench.engine().cancel(asked[random() % asked.size()].second);
      if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 1500));
      if (i % 50 == 0) bench.engine().check_integrity();
    }
    for (const auto& [request, handle] : asked) {
      const Answer answer = bench.wait(handle);
      CHECK(answer.failure.empty(), answer.failure);
      CHECK(answer.finish->completion == answer.tokens.size());
      const bool whole = answer.tokens.size() == request.sampling.max_tokens;
      const bool masked_out = !whole && request.mask && answer.tokens.size() == 19;
      const FinishReason ended = whole        ? FinishReason::length
                                 : masked_out ? FinishReason::stop
                                              : FinishReason::cancelled;
      CHECK(answer.finish->reason == ended || (masked_out && answer.finish->reason == FinishReason::cancelled));
      for (std::size_t i = 0; request.mask && i < answer.tokens.size(); ++i) CHECK((answer.tokens[i] + i) % 3 == 0);
      survivors.emplace_back(request, answer);
    }
    bench.engine().check_integrity();
    const EngineStats stats = bench.engine().stats();
    CHECK(stats.blocks_used == 0 && stats.blocks_free + stats.blocks_cached == kBlocks);
    CHECK(stats.running == 0 && stats.waiting == 0);
    CHECK(stats.evictions > 0);
    steps = stats.steps;
  }
  Bench lone(model, 64, {}, 1, 0, level);
  for (auto& [request, answer] : survivors) {
    Request again = request;
    again.sampling.max_tokens = answer.tokens.size();
    again.salt += "lone";
    CHECK(lone.ask(again).tokens == answer.tokens, concat("seed ", seed));
  }
  return steps;
}

TEST("engine: interleavings lose no block and change no answer") {
  for (unsigned seed = 1; seed <= 6; ++seed) interleave(seed, 150, 1);
}

TEST("soak: 10,000 steps of submit, abort, finish, evict and preempt, seed by seed") {
  std::uint64_t steps = 0;
  for (unsigned seed = 1000; steps < 10000; ++seed) steps += interleave(seed, 400, 1 + seed % 2);
  std::printf("     %llu steps\n", static_cast<unsigned long long>(steps));
}

TEST("engine: interleavings with several kernel threads") { interleave(99, 100, 3); }

TEST("engine: interleavings at every kernel level, with weights of eight bits") {
  for (const cpu::Kernels* kernels : cpu::available_kernels()) interleave(7, 60, 2, kernels->level, WeightFormat::int8);
}

TEST("engine: scarce memory preempts and still answers alike") {
  const TinyModel model;
  const auto tokens_with = [&](std::size_t blocks) {
    Bench bench(model, blocks);
    std::vector<std::uint32_t> handles;
    std::mt19937 random(5);
    for (int i = 0; i < 12; ++i) {
      Request request = request_of(random, 60);
      request.sampling.max_tokens = 60;
      handles.push_back(bench.submit(request));
    }
    std::vector<std::vector<TokenId>> all;
    for (const std::uint32_t handle : handles) all.push_back(bench.wait(handle).tokens);
    return std::pair(all, bench.engine().stats().preemptions);
  };
  const auto [plenty, never] = tokens_with(200);
  const auto [scarce, often] = tokens_with(12);
  CHECK(never == 0 && often > 0, concat(never, " and ", often));
  CHECK(plenty == scarce);
}

TEST("engine: one row's logits have the same bits in every chunking and on any number of threads") {
  const TinyModel model(3, false);
  std::vector<TokenId> prompt;
  for (unsigned i = 0; i < 333; ++i) prompt.push_back(i * i % 97);
  std::vector<float> first;
  for (const unsigned threads : {1u, 2u, 4u}) {
    Bench bench(model, 64, {}, threads);
    for (const std::size_t chunk : {512, 1, 13, 64}) {
      const std::vector<float> logits = bench.engine().logits(prompt, chunk);
      CHECK(logits.size() == prompt.size() * model.config.vocab);
      if (first.empty()) first = logits;
      CHECK(logits == first, concat("threads ", threads, " chunk ", chunk));
    }
  }
}

TEST("engine: guessing ahead takes fewer steps to the same answer, greedy and sampled") {
  const TinyModel model;
  SchedulerLimits plain;
  plain.draft_rows = 0;
  Bench guessing(model, 200), steady(model, 200, plain);
  Request request;
  for (unsigned i = 0; i < 90; ++i) request.tokens.push_back(i * i % 13);
  request.sampling.max_tokens = 300;
  for (const double temperature : {0.0, 0.4}) {
    request.sampling.temperature = temperature;
    request.sampling.seed = 11;
    const Answer quick = guessing.ask(request), slow = steady.ask(request);
    CHECK(quick.tokens == slow.tokens);
    CHECK(quick.tokens.size() == 300);
    // What is stopped at a guessed token ends there all the same.
    Request stopped = request;
    stopped.sampling.stop = {quick.tokens[150]};
    CHECK(guessing.ask(stopped).tokens == steady.ask(stopped).tokens);
  }
  const EngineStats fast = guessing.engine().stats(), slow = steady.engine().stats();
  CHECK(slow.drafted_tokens == 0 && fast.accepted_tokens > 100, concat(fast.accepted_tokens, " accepted"));
  CHECK(fast.accepted_tokens <= fast.drafted_tokens);
  CHECK(fast.steps + fast.accepted_tokens == slow.steps, concat(fast.steps, " and ", slow.steps));
  guessing.engine().check_integrity();
}

TEST("engine: evicted blocks come back from the host's memory, to the tenant they belong to") {
  const TinyModel model;
  Bench bench(model, 14, {}, 1, 100);
  const auto prompt = [](unsigned seed) {
    Request request;
    for (unsigned i = 0; i < 100; ++i) request.tokens.push_back((seed * 31 + i * i) % 97);
    request.salt = "a";
    return request;
  };
  std::vector<Answer> cold;
  for (unsigned seed = 0; seed < 8; ++seed) cold.push_back(bench.ask(prompt(seed)));
  CHECK(bench.engine().stats().evictions > 20 && bench.engine().stats().host_blocks > 20);
  for (unsigned seed = 0; seed < 8; ++seed) {
    const Answer warm = bench.ask(prompt(seed));
    CHECK(warm.finish->cached == 96, concat(warm.finish->cached));
    CHECK(warm.tokens == cold[seed].tokens);
  }
  CHECK(bench.engine().stats().host_loads > 20);
  Request foreign = prompt(3);
  foreign.salt = "b";
  CHECK(bench.ask(foreign).finish->cached == 0);
  bench.engine().check_integrity();
}

TEST("engine: padded rows are never chosen") {
  const TinyModel model;
  Bench bench(model, 64);
  Request request;
  request.tokens = {1, 2, 3};
  request.sampling.temperature = 2;
  request.sampling.max_tokens = 500;
  request.sampling.logit_bias = {{99, 100.0f}, {100, 100.0f}};
  for (const TokenId token : bench.ask(request).tokens) CHECK(token < 97);
}

TEST("engine: refuses by name what it cannot serve") {
  const TinyModel model;
  Bench bench(model, 8);
  Request request;
  CHECK_THROWS("prompt is empty", bench.engine().submit(request));
  request.tokens = {97};
  CHECK_THROWS("outside the vocabulary", bench.engine().submit(request));
  request.tokens = {1};
  request.sampling.max_tokens = 1024;
  CHECK_THROWS("exceeds the context", bench.engine().submit(request));
  request.sampling.max_tokens = 500;
  CHECK_THROWS("exceed the KV memory", bench.engine().submit(request));
  request.sampling.max_tokens = 127;
  CHECK(bench.ask(request).tokens.size() == 127);
  CHECK_THROWS("at least 2 are wanted", Bench(model, 1));
}

TEST("engine: a deadline ends a request where it stands, waiting or running") {
  const TinyModel model;
  SchedulerLimits limits;
  limits.batch = 1;
  Bench bench(model, 64, limits);
  Request request;
  request.tokens = {1, 2, 3};
  request.sampling.max_tokens = 1000;
  request.deadline_ms = 3;
  const std::uint32_t running = bench.engine().submit(request), waiting = bench.engine().submit(request);
  CHECK(bench.wait(running).finish->reason == FinishReason::deadline);
  CHECK(bench.wait(waiting).finish->reason == FinishReason::deadline);
}

TEST("engine: decode goes on beside a long prefill, a token a step") {
  const TinyModel model;
  SchedulerLimits limits;
  limits.chunk_beside = 16;
  Bench bench(model, 200, limits);
  Request decoding;
  decoding.tokens = {1, 2, 3};
  decoding.sampling.max_tokens = 200;
  const std::uint32_t handle = bench.engine().submit(decoding);
  Request prefill;
  for (unsigned i = 0; i < 900; ++i) prefill.tokens.push_back(i % 97);
  prefill.sampling.max_tokens = 1;
  const Answer longer = bench.ask(prefill);
  const Answer answer = bench.wait(handle);
  CHECK(longer.tokens.size() == 1 && answer.tokens.size() == 200);
  // 900 tokens in chunks of 16 are 57 steps; had decode waited for them, there would be 57 steps more.
  CHECK(bench.engine().stats().steps < 230, concat(bench.engine().stats().steps));
}

TEST("engine: a prompt like one under way follows it through the cache") {
  const TinyModel model;
  SchedulerLimits limits;
  limits.chunk = 32;
  Bench bench(model, 200, limits);
  Request request;
  for (unsigned i = 0; i < 320; ++i) request.tokens.push_back(i % 97);
  request.sampling.max_tokens = 2;
  std::vector<std::uint32_t> handles;
  for (int i = 0; i < 4; ++i) handles.push_back(bench.engine().submit(request));
  for (const std::uint32_t each : handles) CHECK(bench.wait(each).tokens.size() == 2);
  CHECK(bench.engine().stats().prompt_tokens < 320 * 2, concat(bench.engine().stats().prompt_tokens));
}

TEST("engine: submit, cancel, stats and checks from many threads at once") {
  const TinyModel model;
  Bench bench(model, 40);
  std::vector<std::thread> callers;
  std::atomic<int> done{0};
  for (unsigned t = 0; t < 4; ++t)
    callers.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 25; ++i) {
        const std::uint32_t handle = bench.submit(request_of(random, 60));
        if (random() % 2 == 0) bench.engine().cancel(handle);
        if (random() % 8 == 0) bench.engine().check_integrity();
        (void)bench.engine().stats();
        const Answer answer = bench.wait(handle);
        if (answer.finish) ++done;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(done == 100);
}

TEST("engine: close() ends what runs as cancelled, and later calls are refused") {
  const TinyModel model;
  Bench bench(model, 64);
  Request request;
  request.tokens = {1};
  request.sampling.max_tokens = 1000;
  const std::uint32_t handle = bench.engine().submit(request);
  bench.engine().close();
  CHECK(bench.wait(handle).finish->reason == FinishReason::cancelled);
  CHECK_THROWS("closed", bench.engine().submit(request));
  CHECK_THROWS("closed", bench.engine().check_integrity());
  bench.engine().cancel(handle);
}

TEST("engine: a block lost while nobody asks ends the engine, which says so and refuses with the reason") {
  const TinyModel model;
  Bench bench(model, 64);
  Request request;
  request.tokens = {1, 2, 3};
  request.sampling.max_tokens = 5;
  CHECK(bench.ask(request).tokens.size() == 5);
  EngineProbe::lose_block(bench.engine());
  const Answer end = bench.wait(kEngineHandle);
  CHECK(end.failure.find("holders") != std::string::npos, end.failure);
  CHECK_THROWS(end.failure, bench.engine().submit(request));
  CHECK_THROWS(end.failure, bench.engine().check_integrity());
  bench.engine().close();
}

TEST("engine: close() may be called by many at once") {
  const TinyModel model;
  Bench bench(model, 64);
  Request request;
  request.tokens = {1};
  request.sampling.max_tokens = 1000;
  bench.submit(request);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back([&] { bench.engine().close(); });
  for (std::thread& caller : callers) caller.join();
}

TEST("engine: the largest step is one of prefill, of decode beside it, or of guesses") {
  SchedulerLimits limits;
  limits.chunk = 8, limits.batch = 4, limits.chunk_beside = 5, limits.draft_rows = 6;
  CHECK(limits.rows_max() == 9);
  limits.draft_rows = 12;
  CHECK(limits.rows_max() == 12);
}

TEST("engine: a checkpoint that lacks a tensor is refused") {
  TinyModel model;
  model.config.tied = false;
  CHECK_THROWS("lm_head.weight: is missing", Bench(model, 8));
}

}  // namespace
