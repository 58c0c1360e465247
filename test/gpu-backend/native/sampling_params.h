#pragma once

#include <cstddef>
#include <random>

#include "sampler/sampler.h"

/** Every option that is a number, each left at its default half of the time. */
inline qe::SamplingParams any_options(std::mt19937& random, double temperature) {
  const auto maybe = [&](auto value, auto otherwise) { return random() % 2 == 0 ? value : otherwise; };
  qe::SamplingParams p;
  p.temperature = temperature;
  p.top_p = maybe(0.05 + static_cast<double>(random() % 19) / 20, 1.0);
  p.top_k = maybe(std::size_t{1 + random() % 50}, std::size_t{0});
  p.min_p = maybe(static_cast<double>(random() % 10) / 30, 0.0);
  p.repetition_penalty = maybe(0.8 + static_cast<double>(random() % 8) / 10, 1.0);
  p.presence_penalty = maybe(static_cast<double>(random() % 40) / 10 - 2, 0.0);
  p.frequency_penalty = maybe(static_cast<double>(random() % 40) / 10 - 2, 0.0);
  p.seed = random();
  p.min_tokens = random() % 6;
  return p;
}
