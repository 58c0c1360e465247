// The next token of a row of logits: a block for each row. What it must equal is the host's sampler (sampler.cpp).
//
// Logits rank by (value, lowest id first) as one 64-bit number. Greedy is its maximum. The best k of a row are found in
// two passes: the k-th largest of the threads' own maxima is a floor that at least k tokens reach and few more do; those
// are gathered and sorted, and one thread goes through them in order, as the host does. Without top_k the nucleus is
// sought among the best kNucleus; with neither top_k nor top_p each thread adds up a stretch of ids.
//
// Bits: adjustments, greedy and the sums over the best k have the host's operations in the host's order (this file is
// compiled without fused multiply-add). Not the host's: the order of sums over the whole vocabulary, and on a GPU the
// last bit of exp; either can move a draw only where the noise falls within some 1e-15 of a boundary.
// Left to the host: NaN or infinite maxima, a nucleus of more than kNucleus tokens, more candidates than fit.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

using Rank = unsigned long long;

constexpr unsigned kThreads = 1024, kGathered = 2 * kThreads, kNucleus = 256;
constexpr std::uint32_t kLeft = 0xffffffff;
constexpr double kNegligible = -40;  // as the host's

/** Orders logits as the host compares them: -0 equals 0, the lower id first; NaN above all. */
__device__ __forceinline__ Rank rank_of(float x, unsigned id) {
  if (x != x) return ~Rank{0};
  const std::uint32_t bits = __float_as_uint(x + 0.0f);
  const std::uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return Rank{key} << 32 | (0xffffffffu - id);
}
__device__ __forceinline__ unsigned id_of(Rank rank) { return 0xffffffffu - static_cast<unsigned>(rank); }
__device__ __forceinline__ float logit_of(Rank rank) {
  const auto key = static_cast<std::uint32_t>(rank >> 32);
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

/** Biases, then penalties, then what is forbidden; `saved` keeps what was there. */
__device__ __forceinline__ void adjust(float* row, const RowChoice& choice, const Adjustment* all, float* saved) {
  for (unsigned i = threadIdx.x; i < choice.biases; i += kThreads) {
    saved[i] = row[all[i].token];
    row[all[i].token] = saved[i] + all[i].bias;
  }
  __syncthreads();
  const unsigned seen_end = choice.biases + choice.seen;
  for (unsigned i = choice.biases + threadIdx.x; i < seen_end; i += kThreads) {
    saved[i] = row[all[i].token];
    double logit = static_cast<double>(saved[i]);
    logit = logit > 0 ? logit / choice.repetition_penalty : logit * choice.repetition_penalty;
    if (all[i].count > 0) logit -= choice.presence_penalty + choice.frequency_penalty * static_cast<double>(all[i].count);
    row[all[i].token] = static_cast<float>(logit);
  }
  __syncthreads();
  for (unsigned i = seen_end + threadIdx.x; i < seen_end + choice.forbidden; i += kThreads) {
    saved[i] = row[all[i].token];
    row[all[i].token] = -INFINITY;
  }
  __syncthreads();
}

/** In the opposite order: a token may be there once in each kind. */
__device__ __forceinline__ void restore(float* row, const RowChoice& choice, const Adjustment* all, const float* saved) {
  __syncthreads();
  const unsigned ends[4] = {0, choice.biases, choice.biases + choice.seen, choice.biases + choice.seen + choice.forbidden};
#pragma unroll
  for (unsigned kind = 3; kind > 0; --kind) {
    for (unsigned i = ends[kind - 1] + threadIdx.x; i < ends[kind]; i += kThreads) row[all[i].token] = saved[i];
    __syncthreads();
  }
}

/** Bitonic, descending; `size` a power of two, at most 2 * kThreads. */
template <class Ranks>
__device__ __forceinline__ void sort_descending(Ranks& ranks, unsigned size) {
  for (unsigned run = 2; run <= size; run *= 2)
    for (unsigned gap = run / 2; gap > 0; gap /= 2) {
      __syncthreads();
      if (threadIdx.x >= size / 2) continue;
      const unsigned a = threadIdx.x / gap * gap * 2 + threadIdx.x % gap, b = a + gap;
      const Rank x = ranks[a], y = ranks[b];
      if ((x < y) == ((a & run) == 0)) ranks[a] = y, ranks[b] = x;
    }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 1)
    choose_kernel(float* logits, unsigned width, unsigned vocab, const RowChoice* choices, const Adjustment* adjustments,
                  float* saved, std::uint32_t* chosen) {
  SHARED(Rank, ranks, kGathered);    // the threads' maxima, then the gathered
  SHARED(double, masses, kThreads);  // of the threads' parts, then of the best
  SHARED(unsigned, gathered, 1);
  const RowChoice choice = choices[blockIdx.x];
  float* const row = logits + static_cast<std::size_t>(choice.row) * width;
  const Adjustment* const mine = adjustments + choice.first;
  float* const kept_back = saved + choice.first;
  const bool first = threadIdx.x == 0;
  const auto settle = [&](unsigned token) { chosen[choice.row] = token; };
  adjust(row, choice, mine, kept_back);

  Rank best = 0;
  for (unsigned i = threadIdx.x; i < vocab; i += kThreads) {
    const Rank rank = rank_of(row[i], i);
    best = rank > best ? rank : best;
  }
  const bool limited = choice.top_k > 0 && choice.top_k < vocab;
  const bool by_id = !limited && choice.top_p >= 1;
  const unsigned count = min(limited ? choice.top_k : kNucleus, vocab);
  ranks[threadIdx.x] = best;
  if (first) gathered[0] = 0;
  if (choice.scale == 0 || by_id) {  // the maximum is enough
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half && ranks[threadIdx.x + half] > ranks[threadIdx.x])
        ranks[threadIdx.x] = static_cast<Rank>(ranks[threadIdx.x + half]);
    }
    __syncthreads();
  } else {
    sort_descending(ranks, kThreads);
  }
  const Rank top_rank = ranks[0], floor = ranks[min(count, kThreads) - 1];
  const float top = logit_of(top_rank);
  const double scale = choice.scale;
  const auto weight = [&](float logit) {
    const double exponent = (static_cast<double>(logit) - static_cast<double>(top)) * scale;
    return exponent > kNegligible ? exp(exponent) : 0.0;
  };
  const bool broken = !(fabsf(top) < INFINITY);
  if (broken || scale == 0) {
    if (first) settle(broken ? kLeft : id_of(top_rank));
    return restore(row, choice, mine, kept_back);
  }

  if (by_id) {
    const unsigned stretch = (vocab + kThreads - 1) / kThreads, begin = threadIdx.x * stretch;
    double mass = 0;
    for (unsigned i = begin; i < min(begin + stretch, vocab); ++i) {
      const double each = weight(row[i]);
      if (each >= choice.min_p) mass += each;
    }
    masses[threadIdx.x] = mass;
    __syncthreads();
    if (first) {
      double total = 0;
      for (unsigned i = 0; i < kThreads; ++i) total += masses[i];
      double left = choice.noise * total;
      unsigned part = 0, token = id_of(top_rank);
      while (part + 1 < kThreads && left - masses[part] >= 0) left -= masses[part++];
      for (unsigned i = min(part * stretch, vocab); i < min((part + 1) * stretch, vocab); ++i) {
        const double each = weight(row[i]);
        if (each == 0 || each < choice.min_p) continue;
        token = i;
        left -= each;
        if (left < 0) break;
      }
      settle(token);
    }
    return restore(row, choice, mine, kept_back);
  }

  // Everything at the floor and above it, in any order, then sorted.
  double mass = 0;
  __syncthreads();
  for (unsigned i = threadIdx.x; i < vocab; i += kThreads) {
    const Rank rank = rank_of(row[i], i);
    if (!limited) mass += weight(row[i]);
    if (rank < floor) continue;
    const unsigned place = shared_add(gathered, 0, 1);
    if (place < kGathered) ranks[place] = rank;
  }
  masses[threadIdx.x] = mass;
  __syncthreads();
  const unsigned found = gathered[0];
  if (found > kGathered) {
    if (first) settle(kLeft);
    return restore(row, choice, mine, kept_back);
  }
  unsigned size = 2;
  while (size < found) size *= 2;
  for (unsigned i = found + threadIdx.x; i < size; i += kThreads) ranks[i] = 0;
  sort_descending(ranks, size);
  if (first)
    for (unsigned i = 0; i < kThreads && !limited; ++i) mass = i == 0 ? double{masses[0]} : mass + masses[i];
  __syncthreads();
  if (threadIdx.x < count) masses[threadIdx.x] = weight(logit_of(ranks[threadIdx.x]));
  __syncthreads();
  if (first) {
    double covered = 0;
    for (unsigned i = 0; i < count; ++i) covered += masses[i];
    if (limited) mass = covered;
    double kept = 0;
    unsigned taken = 0;
    while (taken < count) {
      const double next = masses[taken];
      if (taken > 0 && (kept >= choice.top_p * mass || next < choice.min_p || next == 0)) break;
      kept += next;
      ++taken;
    }
    double left = choice.noise * kept;
    unsigned place = 0;
    while (place + 1 < taken && (left -= masses[place]) >= 0) ++place;
    const bool enough = limited || count == vocab || covered >= choice.top_p * mass;
    settle(enough ? id_of(ranks[place]) : kLeft);
  }
  restore(row, choice, mine, kept_back);
}

}  // namespace

void choose(Stream stream, float* logits, std::size_t width, std::size_t vocab, const RowChoice* choices, std::size_t count,
            const Adjustment* adjustments, float* saved, std::uint32_t* chosen) {
  LAUNCH(choose_kernel, static_cast<unsigned>(count), kThreads, 0, stream, logits, static_cast<unsigned>(width),
         static_cast<unsigned>(vocab), choices, adjustments, saved, chosen);
}

}  // namespace qe::cuda
