#include "sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/philox.h"

namespace qe {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();
constexpr double kNegligible = -40;  // e^-40: a whole vocabulary of such tokens holds less than 1e-12 of the mass

/** Ids of the `count` largest logits, best first, equals by id. */
std::vector<TokenId> best(std::span<const float> logits, std::size_t count) {
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), TokenId{0});
  const auto ranks_before = [&](TokenId a, TokenId b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  count = std::min(count, ids.size());
  if (count < ids.size()) {
    std::nth_element(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(), ranks_before);
    ids.resize(count);
  }
  std::ranges::sort(ids, ranks_before);
  return ids;
}

/** log(sum(exp(logits))), and where the sum was taken from. */
double log_sum_exp(std::span<const float> logits, double scale, double top) {
  double total = 0;
  for (const float logit : logits) {
    const double exponent = (static_cast<double>(logit) - top) * scale;
    if (exponent > kNegligible) total += std::exp(exponent);
  }
  return std::log(total) + top * scale;
}

}  // namespace

TokenId argmax(std::span<const float> logits) {
  // Two passes, so that the first one vectorises.
  float top = kImpossible;
  for (const float logit : logits) top = logit > top ? logit : top;
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (logits[i] == top) return static_cast<TokenId>(i);
  return 0;  // every logit is NaN: the model is broken, and any token is as good
}

Sampler::Sampler(SamplingParams params, std::size_t vocab, std::span<const TokenId> prompt)
    : params_(std::move(params)), vocab_(vocab) {
  if (params_.repetition_penalty != 1)
    for (const TokenId token : prompt) output_counts_.try_emplace(token, 0);
}

bool Sampler::penalises() const {
  return params_.repetition_penalty != 1 || params_.presence_penalty != 0 || params_.frequency_penalty != 0;
}

bool Sampler::adjusts() const {
  return !params_.logit_bias.empty() || penalises() || (generated_ < params_.min_tokens && !params_.stop.empty());
}

void Sampler::adjust(std::span<float> logits) const {
  for (const auto& [token, bias] : params_.logit_bias)
    if (token < logits.size()) logits[token] += bias;
  for (const auto& [token, count] : output_counts_) {
    if (token >= logits.size()) continue;
    double logit = static_cast<double>(logits[token]);
    logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
    if (count > 0) logit -= params_.presence_penalty + params_.frequency_penalty * count;
    logits[token] = static_cast<float>(logit);
  }
  if (generated_ < params_.min_tokens)
    for (const TokenId token : params_.stop)
      if (token < logits.size()) logits[token] = kImpossible;
}

Sampled Sampler::next(std::span<const float> logits, std::size_t position, std::span<const std::uint32_t> mask) {
  std::span<const float> raw = logits.first(std::min(vocab_, logits.size()));
  if (!mask.empty()) {
    allowed_.assign(raw.begin(), raw.end());
    for (std::size_t i = 0; i < allowed_.size(); ++i)
      if (i / 32 >= mask.size() || (mask[i / 32] >> i % 32 & 1) == 0) allowed_[i] = kImpossible;
    raw = allowed_;
  }
  std::span<const float> used = raw;
  if (adjusts()) {
    adjusted_.assign(raw.begin(), raw.end());
    adjust(adjusted_);
    // What a mask leaves may all be stop ids that min_tokens forbids: the mask has the last word.
    if (mask.empty() || adjusted_[argmax(adjusted_)] != kImpossible) used = adjusted_;
  }
  Sampled sampled;
  sampled.token = params_.temperature == 0 ? argmax(used) : draw(used, position);
  if (params_.logprobs >= 0) {
    const double norm = log_sum_exp(raw, 1, static_cast<double>(raw[argmax(raw)]));
    const auto logprob = [&](TokenId token) { return static_cast<float>(static_cast<double>(raw[token]) - norm); };
    sampled.logprob = logprob(sampled.token);
    for (const TokenId token : best(raw, static_cast<std::size_t>(params_.logprobs)))
      if (raw[token] != kImpossible) sampled.top.push_back({token, logprob(token)});
  }
  accept(sampled.token);
  return sampled;
}

Sampled Sampler::accept(TokenId token) {
  ++generated_;
  if (penalises()) ++output_counts_[token];
  Sampled sampled;
  sampled.token = token;
  return sampled;
}

Choice Sampler::choice(std::size_t position, std::span<const TokenId> assumed) const {
  Choice choice;
  std::unordered_map<TokenId, float> biases;
  for (const auto& [token, bias] : params_.logit_bias)
    choice.on_host |= token < vocab_ && !biases.emplace(token, bias).second;  // twice: added one after the other
  choice.on_host |= params_.logprobs >= 0;
  if (choice.on_host) return choice;
  choice.temperature = params_.temperature, choice.top_p = params_.top_p;
  choice.min_p = params_.min_p, choice.top_k = params_.top_k;
  if (params_.temperature != 0) choice.noise = uniform(params_.seed, position);
  choice.repetition_penalty = params_.repetition_penalty;
  choice.presence_penalty = params_.presence_penalty, choice.frequency_penalty = params_.frequency_penalty;
  choice.biases.assign(biases.begin(), biases.end());
  const auto emit = [&](const auto& counts) {
    for (const auto& [token, count] : counts)
      if (token < vocab_) choice.seen.emplace_back(token, count);
  };
  if (penalises() && !assumed.empty()) {
    auto counts = output_counts_;
    for (const TokenId token : assumed) ++counts[token];
    emit(counts);
  } else {
    emit(output_counts_);
  }
  if (generated_ + assumed.size() < params_.min_tokens)
    for (const TokenId token : params_.stop)
      if (token < vocab_ && std::ranges::find(choice.forbidden, token) == choice.forbidden.end())
        choice.forbidden.push_back(token);
  return choice;
}

TokenId Sampler::draw(std::span<const float> logits, std::size_t position) const {
  const double scale = 1 / params_.temperature;
  const double top = static_cast<double>(logits[argmax(logits)]);
  const auto weight = [&](TokenId token) {
    const double exponent = (static_cast<double>(logits[token]) - top) * scale;
    return exponent > kNegligible ? std::exp(exponent) : 0.0;
  };

  const auto drawn = [&](std::span<const TokenId> ids, double mass) {
    double left = uniform(params_.seed, position) * mass;
    for (const TokenId token : ids) {
      left -= weight(token);
      if (left < 0) return token;
    }
    return ids.empty() ? argmax(logits) : ids.back();  // empty: the largest logit is infinite or NaN
  };

  const bool limited = params_.top_k > 0 && params_.top_k < logits.size();
  double mass = 0;
  std::vector<TokenId> ids;
  if (limited) {
    ids = best(logits, params_.top_k);
    for (const TokenId token : ids) mass += weight(token);
  } else if (params_.top_p >= 1) {  // nothing needs an order: draw by id
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const auto token = static_cast<TokenId>(i);
      const double each = weight(token);
      if (each > 0 && each >= params_.min_p) ids.push_back(token), mass += each;
    }
    return drawn(ids, mass);
  } else {  // top_p of the whole vocabulary seldom needs more than a few hundred tokens of it
    for (std::size_t i = 0; i < logits.size(); ++i) mass += weight(static_cast<TokenId>(i));
    for (std::size_t count = 256;; count *= 8) {
      ids = best(logits, count);
      double covered = 0;
      for (const TokenId token : ids) covered += weight(token);
      if (ids.size() == logits.size() || covered >= params_.top_p * mass) break;
    }
  }

  double kept = 0;
  std::size_t count = 0;
  while (count < ids.size()) {
    const double next = weight(ids[count]);
    if (count > 0 && (kept >= params_.top_p * mass || next < params_.min_p || next == 0)) break;
    kept += next;
    ++count;
  }
  return drawn(std::span(ids).first(count), kept);
}

}  // namespace qe
