// Sampling on the device against the host's sampler, token for token.

#include <algorithm>
#include <limits>

#include "cuda_device.h"
#include "ops/cuda/cuda_ops.h"
#include "sampler/sampler.h"
#include "sampling_params.h"

namespace {

using namespace device;
namespace cuda = qe::cuda;
using qe::Choice;
using qe::concat;
using qe::kUndecided;
using qe::Sampler;
using qe::SamplingParams;
using qe::TokenId;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<TokenId> choose(cuda::CudaOps& ops, float* logits, std::size_t width, std::size_t vocab, std::span<const Choice> choices) {
  ops.launch_choose(logits, width, vocab, choices);
  return ops.take_tokens(0);
}

/** Coarse, so that there are equals. */
Floats logits_of(std::size_t vocab, unsigned seed) {
  Floats logits = noise(vocab, seed, 3);
  for (float& logit : logits) logit = std::round(logit * 8) / 8;
  return logits;
}

SamplingParams any_params(std::mt19937& random, std::size_t vocab) {
  const auto any = [&] { return static_cast<TokenId>(random() % vocab); };
  SamplingParams p = any_options(random, random() % 4 == 0 ? 0.0 : 0.1 + static_cast<double>(random() % 20) / 10);
  if (vocab > 4) p.stop = {any(), any(), 1, 1};
  for (std::size_t i = 0; i < random() % 3 && i < vocab; ++i) p.logit_bias.emplace_back(i * vocab / 3, static_cast<float>(random() % 9) - 4);
  return p;
}

TEST("cuda: sampling: every option, alone and together, chooses what the host's sampler chooses, and leaves the logits") {
  cuda::CudaOps ops{cuda::CudaOptions{}};
  std::mt19937 random(3);
  std::size_t rows = 0, left = 0;
  for (unsigned round = 0; round < 12; ++round) {
    const std::size_t vocab = round == 0 ? 1 : round < 3 ? 2 + random() % 30 : 300 + random() % 4000, width = vocab + round % 3;
    const std::size_t count = 1 + random() % 9;
    std::vector<Sampler> samplers;
    for (std::size_t i = 0; i < count; ++i)
      samplers.emplace_back(any_params(random, vocab), vocab, std::vector<TokenId>{0, static_cast<TokenId>(vocab / 2), 0});
    for (std::size_t step = 0; step < 4; ++step) {
      Floats logits;
      for (std::size_t i = 0; i < count; ++i) {
        const Floats row = logits_of(vocab, static_cast<unsigned>(round * 100 + step * 10 + i));
        logits.insert(logits.end(), row.begin(), row.end());
        logits.insert(logits.end(), width - vocab, 1e6f);  // padding, which is never chosen
      }
      std::vector<Choice> choices;
      for (const Sampler& sampler : samplers) choices.push_back(sampler.choice(step + 7, {}));
      const Array<float> there(logits);
      const auto got = choose(ops, there, width, vocab, choices);
      CHECK(same_bits(there.read(), logits));
      for (std::size_t i = 0; i < count; ++i, ++rows) {
        const TokenId want = samplers[i].next(std::span(logits).subspan(i * width, width), step + 7).token;
        left += got[i] == kUndecided;
        CHECK(got[i] == want || got[i] == kUndecided, concat("round ", round, " step ", step, " row ", i, ": ", got[i], " for ", want));
      }
    }
  }
  CHECK(left * 20 < rows, concat(left, " of ", rows, " rows were left to the host"));
}

TEST("cuda: sampling: a draw follows the distribution over a whole vocabulary, and many draws are the host's") {
  cuda::CudaOps ops{cuda::CudaOptions{}};
  const std::size_t vocab = 5000;
  const Floats logits = noise(vocab, 1, 2);
  for (const double top_p : {1.0, 0.3}) {
    SamplingParams p;
    p.temperature = 1, p.top_p = top_p, p.seed = 11;
    Sampler sampler(p, vocab, {});
    Floats rows;
    std::vector<Choice> choices;
    for (std::size_t i = 0; i < 60; ++i) rows.insert(rows.end(), logits.begin(), logits.end()), choices.push_back(sampler.choice(i, {}));
    const Array<float> there(rows);
    const auto got = choose(ops, there, vocab, vocab, choices);
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == sampler.next(logits, i).token, concat("draw ", i));
  }
}

TEST("cuda: sampling: ties, zeros of both signs and tokens under a floor of equals rank by id") {
  cuda::CudaOps ops{cuda::CudaOptions{}};
  Floats logits(3000, 1);
  logits[5] = 0.0f, logits[2] = -0.0f;
  SamplingParams p;
  p.temperature = 1, p.top_k = 40;
  Sampler sampler(p, logits.size(), {});
  std::vector<Choice> choices;
  Floats rows;
  for (std::size_t i = 0; i < 8; ++i) rows.insert(rows.end(), logits.begin(), logits.end()), choices.push_back(sampler.choice(i, {}));
  const auto got = choose(ops, Array<float>(rows), logits.size(), logits.size(), choices);
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == sampler.next(logits, i).token && got[i] < 42);
  CHECK(choose(ops, Array<float>(Floats{-1, -0.0f, 0.0f}), 3, 3, std::vector<Choice>(1)).front() == 1);
}

TEST("cuda: sampling: what only the host can do is left to it, row by row") {
  cuda::CudaOps ops{cuda::CudaOptions{}};
  const std::size_t vocab = 4000;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Floats rows;
  std::vector<Choice> choices(7);
  const auto add = [&](const Floats& row, std::size_t at, Choice choice) {
    rows.insert(rows.end(), row.begin(), row.end());
    choices[at] = std::move(choice);
  };
  Floats broken = logits_of(vocab, 1), endless = broken;
  broken[3000] = nan, endless[7] = kInfinity;
  add(logits_of(vocab, 2), 0, {.on_host = true});
  add(logits_of(vocab, 2), 1, {});
  add(broken, 2, {});
  add(endless, 3, {});
  add(Floats(vocab, 0.5f), 4, {.temperature = 1, .top_p = 0.9});  // a nucleus of nearly everything
  add(logits_of(vocab, 2), 5, {.temperature = 1, .top_k = cuda::kTopKMax + 1});
  add(logits_of(vocab, 2), 6, {.temperature = 1e-309, .top_k = 3});
  const auto got = choose(ops, Array<float>(rows), vocab, vocab, choices);
  for (const std::size_t row : {0, 2, 3, 4, 5, 6}) CHECK(got[row] == kUndecided, concat("row ", row));
  CHECK(got[1] == qe::argmax(logits_of(vocab, 2)));
  CHECK(choose(ops, nullptr, vocab, vocab, {}).empty());
}

TEST("cuda: sampling: guesses ahead count as output, as they do when sampled one by one") {
  SamplingParams p;
  p.repetition_penalty = 1.3, p.frequency_penalty = 0.7, p.min_tokens = 2, p.stop = {4};
  const std::vector<TokenId> prompt{1, 2}, guesses{2, 3, 3};
  const Sampler start(p, 100, prompt);
  Sampler walked = start;
  for (std::size_t i = 0; i <= guesses.size(); ++i) {
    auto ahead = start.choice(i, std::span(guesses).first(i)), then = walked.choice(i, {});
    std::ranges::sort(ahead.seen), std::ranges::sort(then.seen);
    CHECK(ahead.seen == then.seen && ahead.forbidden == then.forbidden && ahead.noise == then.noise);
    if (i < guesses.size()) walked.accept(guesses[i]);
  }
}

}  // namespace
