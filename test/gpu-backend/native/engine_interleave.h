#pragma once

// Random lives of many requests on a device that chooses tokens.

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "engine_bench.h"

namespace engine_bench {

inline SchedulerLimits no_guesses() {
  SchedulerLimits limits;
  limits.draft_rows = 0;
  return limits;
}

/** Any options, in all of which the fake device and the host agree or the host has the last word. */
inline Request any_request(std::mt19937& random) {
  Request request = request_of(random, 90);
  SamplingParams& sampling = request.sampling;
  if (random() % 6 != 0) request.mask.reset();
  if (random() % 3 == 0) sampling.stop = {static_cast<TokenId>(random() % 97), static_cast<TokenId>(random() % 97), 5, 50, 71};
  if (random() % 4 == 0) sampling.min_tokens = random() % 9;
  if (random() % 16 == 0) sampling.repetition_penalty = 1.2;
  if (random() % 16 == 0) sampling.logprobs = 2;
  if (random() % 12 == 0) sampling.max_tokens = random() % 2;
  if (random() % 10 == 0) request.deadline_ms = 0.2 + static_cast<double>(random() % 30) / 10;
  return request;
}

/** Submits, cancels, expires, finishes, evicts and preempts on a device that chooses; every answer must be that of the CPU
    alone, or its beginning. @returns steps that ran ahead */
template <class MakeOps>
std::uint64_t interleave_ahead(unsigned seed, int requests, MakeOps&& make_ops) {
  const TinyModel model;
  std::mt19937 random(seed);
  SchedulerLimits limits;
  limits.batch = 1 + random() % 8;
  limits.chunk = 1 + random() % 60;
  limits.chunk_beside = 1 + random() % 30;
  limits.draft_rows = random() % 3 == 0 ? 6 : 0;
  const unsigned undecided_every = random() % 2 == 0 ? 0u : 10 + static_cast<unsigned>(random() % 40);
  std::vector<std::pair<Request, Answer>> all;
  std::uint64_t ahead = 0;
  {
    Bench bench(model, 14, limits, make_ops(undecided_every, limits.rows_max()), random() % 3 * 20);
    std::vector<std::pair<Request, std::uint32_t>> asked;
    for (int i = 0; i < requests; ++i) {
      const Request request = any_request(random);
      asked.emplace_back(request, bench.submit(request));
      if (random() % 4 == 0) bench.engine().cancel(asked[random() % asked.size()].second);
      if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 1500));
      if (i % 20 == 0) bench.engine().check_integrity();
    }
    for (const auto& [request, handle] : asked) all.emplace_back(request, bench.wait(handle));
    bench.engine().check_integrity();
    const EngineStats stats = bench.engine().stats();
    CHECK(stats.blocks_used == 0 && stats.blocks_free + stats.blocks_cached == 14);
    CHECK(stats.running == 0 && stats.waiting == 0);
    std::size_t told = 0;
    for (const auto& [request, answer] : all) told += answer.tokens.size() + (answer.finish->reason == FinishReason::stop && !request.mask);
    CHECK(stats.generated_tokens - told <= static_cast<std::size_t>(requests) && stats.generated_tokens >= told,
          concat(stats.generated_tokens, " counted, ", told, " told"));
    ahead = stats.steps_ahead;
  }
  Bench lone(model, 64, no_guesses());
  for (auto& [request, answer] : all) {
    CHECK(answer.failure.empty(), answer.failure);
    CHECK(answer.finish->completion == answer.tokens.size());
    request.deadline_ms = 0;
    request.salt += "lone";
    const Answer want = lone.ask(request);
    const FinishReason reason = answer.finish->reason;
    const bool cut = reason == FinishReason::cancelled || reason == FinishReason::deadline;
    const bool same = cut ? answer.tokens.size() <= want.tokens.size() &&
                                std::equal(answer.tokens.begin(), answer.tokens.end(), want.tokens.begin())
                          : answer.tokens == want.tokens && reason == want.finish->reason;
    CHECK(same, concat("seed ", seed, ", prompt of ", request.tokens.size(), request.mask ? ", constrained" : ""));
  }
  return ahead;
}

}  // namespace engine_bench
