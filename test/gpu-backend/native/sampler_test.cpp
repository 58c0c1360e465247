// The sampler against the plainest thing that could be right: sort everything, no shortcuts.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/philox.h"
#include "check.h"
#include "sampler/sampler.h"
#include "sampling_params.h"

namespace {

using namespace qe;
using Floats = std::vector<float>;

Floats logits_of(std::size_t vocab, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  Floats logits(vocab);
  for (float& logit : logits) logit = std::round(normal(random) * 8) / 8;  // coarse, so that there are equals
  return logits;
}

std::vector<double> adjusted(const Floats& raw, const SamplingParams& p, const std::vector<TokenId>& prompt,
                             const std::vector<TokenId>& output) {
  std::vector<double> x(raw.begin(), raw.end());
  for (const auto& [token, bias] : p.logit_bias) x[token] = static_cast<double>(static_cast<float>(x[token]) + bias);
  for (std::size_t t = 0; t < x.size(); ++t) {
    const auto in_prompt = std::ranges::count(prompt, t), in_output = std::ranges::count(output, t);
    if (in_prompt + in_output > 0) x[t] = x[t] > 0 ? x[t] / p.repetition_penalty : x[t] * p.repetition_penalty;
    if (in_output > 0) x[t] -= p.presence_penalty + p.frequency_penalty * static_cast<double>(in_output);
    x[t] = static_cast<double>(static_cast<float>(x[t]));
  }
  if (output.size() < p.min_tokens)
    for (const TokenId token : p.stop) x[token] = -std::numeric_limits<double>::infinity();
  return x;
}

TokenId plain(const Floats& raw, const SamplingParams& p, const std::vector<TokenId>& prompt,
              const std::vector<TokenId>& output, std::size_t position) {
  const std::vector<double> x = adjusted(raw, p, prompt, output);
  std::vector<TokenId> ids(x.size());
  std::iota(ids.begin(), ids.end(), TokenId{0});
  std::ranges::stable_sort(ids, [&](TokenId a, TokenId b) { return x[a] > x[b]; });
  if (p.temperature == 0) return ids.front();
  std::vector<double> weight(x.size());
  for (std::size_t t = 0; t < x.size(); ++t) weight[t] = std::exp((x[t] - x[ids.front()]) / p.temperature);
  if (p.top_k > 0 && p.top_k < ids.size()) ids.resize(p.top_k);
  double mass = 0, kept = 0;
  for (const TokenId t : ids) mass += weight[t];
  std::vector<TokenId> nucleus;
  for (const TokenId t : ids) {
    if (!nucleus.empty() && kept >= p.top_p * mass) break;
    nucleus.push_back(t);
    kept += weight[t];
  }
  std::erase_if(nucleus, [&](TokenId t) { return weight[t] < p.min_p; });
  if (p.top_p >= 1 && (p.top_k == 0 || p.top_k >= x.size())) std::ranges::sort(nucleus);
  kept = 0;
  for (const TokenId t : nucleus) kept += weight[t];
  double left = uniform(p.seed, position) * kept;
  for (const TokenId t : nucleus)
    if ((left -= weight[t]) < 0) return t;
  return nucleus.back();
}

TEST("sampler: every option, alone and together, picks what the plain reference picks") {
  std::mt19937 random(3);
  for (unsigned round = 0; round < 3000; ++round) {
    const std::size_t vocab = 1 + random() % 700;
    const auto any = [&] { return static_cast<TokenId>(random() % vocab); };
    SamplingParams p = any_options(random, random() % 2 == 0 ? 0.1 + static_cast<double>(random() % 20) / 10 : 0.0);
    for (std::size_t i = random() % 3; i > 0; --i) p.stop.push_back(any());
    if (vocab < 4) p.stop.clear();
    for (std::size_t i = random() % 3; i > 0; --i)
      p.logit_bias.emplace_back(any(), static_cast<float>(random() % 9) - 4);
    std::vector<TokenId> prompt, output;
    for (std::size_t i = 1 + random() % 20; i > 0; --i) prompt.push_back(any());
    Sampler sampler(p, vocab, prompt);
    for (std::size_t step = 0; step < 8; ++step) {
      Floats logits = logits_of(vocab, round * 8 + static_cast<unsigned>(step));
      const std::size_t position = prompt.size() + step;
      const TokenId want = plain(logits, p, prompt, output, position);
      logits.push_back(1e6f);  // padding, which is never chosen
      const TokenId got = sampler.next(logits, position).token;
      CHECK(got == want, concat("round ", round, " step ", step, ": ", got, " instead of ", want));
      output.push_back(got);
    }
  }
}

TEST("sampler: frequencies follow the distribution") {
  const Floats logits{0, 1, 2, 3};
  SamplingParams p;
  p.temperature = 1;
  p.seed = 5;
  Sampler sampler(p, 4, {});
  std::array<int, 4> seen{};
  constexpr int kDraws = 40000;
  for (std::size_t i = 0; i < kDraws; ++i) ++seen[sampler.next(logits, i).token];
  const double norm = 1 + std::exp(1.0) + std::exp(2.0) + std::exp(3.0);
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(std::abs(seen[i] / double{kDraws} - std::exp(static_cast<double>(i)) / norm) < 0.01);
}

TEST("sampler: noise is of seed and position alone") {
  const Floats logits = logits_of(500, 1);
  SamplingParams p;
  p.temperature = 1.5;
  p.seed = 9;
  Sampler forward(p, 500, {}), backward(p, 500, {});
  std::vector<TokenId> a(50), b(50);
  for (std::size_t i = 0; i < 50; ++i) a[i] = forward.next(logits, i).token;
  for (std::size_t i = 50; i > 0; --i) b[i - 1] = backward.next(logits, i - 1).token;
  CHECK(a == b);
  p.seed = 10;
  Sampler other(p, 500, {});
  std::size_t same = 0;
  for (std::size_t i = 0; i < 50; ++i) same += other.next(logits, i).token == a[i];
  CHECK(same < 25);
}

TEST("sampler: log-probabilities are the model's own, whatever is done to choose") {
  const Floats logits = logits_of(300, 2);
  double norm = 0;
  for (const float logit : logits) norm += std::exp(double{logit});
  SamplingParams p;
  p.logprobs = 5;
  p.logit_bias = {{7, 100.0f}};
  Sampler sampler(p, 300, {});
  const Sampled sampled = sampler.next(logits, 0);
  CHECK(sampled.token == 7);
  CHECK(std::abs(double{sampled.logprob} - (double{logits[7]} - std::log(norm))) < 1e-5);
  CHECK(sampled.top.size() == 5);
  CHECK(sampled.top[0].token == argmax(logits));
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(std::abs(double{sampled.top[i].logprob} - (double{logits[sampled.top[i].token]} - std::log(norm))) < 1e-5);
    CHECK(i == 0 || sampled.top[i - 1].logprob >= sampled.top[i].logprob);
  }
  SamplingParams none;
  none.logprobs = 0;
  CHECK(Sampler(none, 300, {}).next(logits, 0).top.empty());
}

TEST("sampler: a mask leaves what sampling without the others would give") {
  std::mt19937 random(3);
  for (unsigned round = 0; round < 60; ++round) {
    const std::size_t vocab = 40 + random() % 100;
    const Floats logits = logits_of(vocab, round);
    std::vector<std::uint32_t> mask((vocab + 31) / 32);
    std::vector<TokenId> allowed;
    for (TokenId id = 0; id < vocab; ++id)
      if (random() % 4 == 0 || id == vocab - 1) mask[id / 32] |= 1u << id % 32, allowed.push_back(id);
    mask.back() |= 0xffffffffu << vocab % 32;  // bits beyond the vocabulary mean nothing
    Floats kept;
    for (const TokenId id : allowed) kept.push_back(logits[id]);
    SamplingParams p;
    p.temperature = round % 3 == 0 ? 0 : 0.8;
    p.top_k = round % 2 == 0 ? 0 : 1 + random() % 60;
    p.top_p = round % 5 == 0 ? 1 : 0.6;
    p.min_p = round % 7 == 0 ? 0.05 : 0;
    p.logprobs = 20;
    p.seed = round;
    Floats padded = logits;
    padded.push_back(1e6f);
    const Sampled got = Sampler(p, vocab, {}).next(padded, round, mask);
    const Sampled want = Sampler(p, kept.size(), {}).next(kept, round);
    CHECK(got.token == allowed[want.token], concat("round ", round));
    CHECK(std::abs(got.logprob - want.logprob) < 1e-5f);
    CHECK(got.top.size() == std::min<std::size_t>(20, allowed.size()));
    for (std::size_t i = 0; i < got.top.size(); ++i) CHECK(got.top[i].token == allowed[want.top[i].token]);
  }
}

TEST("sampler: what a mask leaves comes even where min_tokens forbids it, and a short mask allows nothing beyond") {
  SamplingParams p;
  p.min_tokens = 5;
  p.stop = {2};
  const std::vector<std::uint32_t> only_stop{1u << 2};
  CHECK(Sampler(p, 100, {}).next(logits_of(100, 1), 0, only_stop).token == 2);
  p.stop = {};
  Floats logits(100, 0.0f);
  logits[90] = 50;
  CHECK(Sampler(p, 100, {}).next(logits, 0, std::vector<std::uint32_t>{1u << 7}).token == 7);
}

TEST("sampler: a whole vocabulary of equals, of one, and of nonsense") {
  SamplingParams p;
  p.temperature = 1;
  p.top_p = 0.5;
  const Floats equal(151936, 1.0f);
  const TokenId token = Sampler(p, equal.size(), {}).next(equal, 0).token;
  CHECK(token < equal.size() / 2 + 1);
  CHECK(Sampler(p, 1, {}).next(Floats{3}, 0).token == 0);
  CHECK(argmax(Floats{2, 5, 5, 1}) == 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(Sampler(p, 3, {}).next(Floats{nan, nan, nan}, 0).token < 3);
  const float low = -std::numeric_limits<float>::infinity();
  CHECK(Sampler(p, 3, {}).next(Floats{low, 0, low}, 0).token == 1);
  p.top_p = 1;
  CHECK(Sampler(p, 3, {}).next(Floats{nan, nan, nan}, 0).token < 3);
  CHECK(Sampler(p, 3, {}).next(Floats{0, -low, 0}, 0).token == 1);
  p.temperature = 1e-309;  // 1 / temperature is infinite
  CHECK(Sampler(p, 3, {}).next(Floats{0, 2, 0}, 0).token == 1);
}

}  // namespace
