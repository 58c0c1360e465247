#pragma once

// What a kernel of ours uses of CUDA C++, for the host compiler. Names and meanings are NVIDIA's (CUDA C++ Programming
// Guide; PTX ISA for mma, ldmatrix and cp.async); only what our kernels need exists.
//
// Outside its reach: grid-wide sync, clusters, wgmma, TMA, caches, instruction-level races and everything about time.
// compute-sanitizer on a GPU looks for the first five; a passing emulation says the algorithm and its indices are right.

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "emulation/block.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define threadIdx (::qe::emulation::self().index)
#define blockIdx (::qe::emulation::block().block_index)
#define blockDim (::qe::emulation::block().block_dim)
#define gridDim (::qe::emulation::block().grid_dim)

struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }

using EmulatedPlace = std::source_location;

inline void __syncthreads(EmulatedPlace at = EmulatedPlace::current()) { qe::emulation::barrier(at); }

inline void __syncwarp(std::uint32_t mask = 0xffffffff, EmulatedPlace at = EmulatedPlace::current()) {
  qe::emulation::collective({"__syncwarp", mask, at, nullptr}, nullptr, true);
}

namespace qe::emulation {

template <class T>
struct Shuffle {
  T value;
  std::uint32_t from;
  T result;
};

template <class T>
T shuffle(const char* name, std::uint32_t mask, T value, std::uint32_t from, const std::source_location& at) {
  Shuffle<T> mine{value, from & 31, {}};
  const auto compute = [](void* const* lanes, std::uint32_t members) {
    for (std::uint32_t i = 0; i < kWarp; ++i) {
      if ((members >> i & 1) == 0) continue;
      auto* lane = static_cast<Shuffle<T>*>(lanes[i]);
      const auto* source = static_cast<const Shuffle<T>*>(lanes[lane->from]);
      if (source == nullptr) throw Fault(std::string("a shuffle reads lane ") + std::to_string(lane->from) + " outside its mask");
      lane->result = source->value;
    }
  };
  collective({name, mask, at, compute}, &mine);
  return mine.result;
}

inline std::uint32_t lane_id() { return self().id % kWarp; }

/** A butterfly over the whole warp. */
template <class Combine>
float reduce(float x, Combine, const std::source_location& at = std::source_location::current()) {
  const auto compute = [](void* const* lanes, std::uint32_t) {
    float values[kWarp], next[kWarp];
    for (std::uint32_t i = 0; i < kWarp; ++i) values[i] = *static_cast<float*>(lanes[i]);
    for (std::uint32_t bits = kWarp / 2; bits > 0; bits /= 2) {
      for (std::uint32_t i = 0; i < kWarp; ++i) next[i] = Combine()(values[i], values[i ^ bits]);
      for (std::uint32_t i = 0; i < kWarp; ++i) values[i] = next[i];
    }
    for (std::uint32_t i = 0; i < kWarp; ++i) *static_cast<float*>(lanes[i]) = values[i];
  };
  collective({"a reduction", 0xffffffff, at, compute}, &x);
  return x;
}

inline float bf16_to_float(std::uint32_t bits) { return std::bit_cast<float>(bits << 16); }

struct Mma {
  float* d;
  const std::uint32_t *a, *b;
};

/** d += a b for a warp's 16x16 by 16x8 tile, fragments laid out as PTX's mma.m16n8k16 has them. */
inline void compute_mma(void* const* lanes, std::uint32_t mask) {
  if (mask != 0xffffffff) throw Fault("mma.sync wants the whole warp");
  float a[16][16], b[16][8];
  for (std::uint32_t lane = 0; lane < kWarp; ++lane) {
    const auto* mine = static_cast<const Mma*>(lanes[lane]);
    const std::uint32_t g = lane / 4, t = lane % 4;
    for (std::uint32_t r = 0; r < 4; ++r)
      for (std::uint32_t half = 0; half < 2; ++half)
        a[g + r % 2 * 8][t * 2 + r / 2 * 8 + half] = bf16_to_float(mine->a[r] >> (16 * half) & 0xffff);
    for (std::uint32_t r = 0; r < 2; ++r)
      for (std::uint32_t half = 0; half < 2; ++half)
        b[t * 2 + r * 8 + half][g] = bf16_to_float(mine->b[r] >> (16 * half) & 0xffff);
  }
  for (std::uint32_t lane = 0; lane < kWarp; ++lane) {
    const auto* mine = static_cast<const Mma*>(lanes[lane]);
    const std::uint32_t g = lane / 4, t = lane % 4;
    for (std::uint32_t i = 0; i < 4; ++i) {
      float sum = mine->d[i];
      for (std::uint32_t k = 0; k < 16; ++k) sum += a[g + i / 2 * 8][k] * b[k][t * 2 + i % 2];
      mine->d[i] = sum;
    }
  }
}

struct LoadMatrix {
  std::uint32_t* registers;
  const std::uint16_t* row;  // 8 elements
  bool transposed;
};

inline void compute_ldmatrix(void* const* lanes, std::uint32_t mask) {
  if (mask != 0xffffffff) throw Fault("ldmatrix wants the whole warp");
  for (std::uint32_t lane = 0; lane < kWarp; ++lane) {
    const auto* mine = static_cast<const LoadMatrix*>(lanes[lane]);
    const std::uint32_t g = lane / 4, t = lane % 4;
    for (std::uint32_t matrix = 0; matrix < 4; ++matrix) {
      const auto element = [&](std::uint32_t row, std::uint32_t column) -> std::uint32_t {
        return static_cast<const LoadMatrix*>(lanes[matrix * 8 + row])->row[column];
      };
      mine->registers[matrix] = mine->transposed ? element(t * 2, g) | element(t * 2 + 1, g) << 16
                                                 : element(g, t * 2) | element(g, t * 2 + 1) << 16;
    }
  }
}

}  // namespace qe::emulation

template <class T>
T __shfl_sync(std::uint32_t mask, T value, int lane, EmulatedPlace at = EmulatedPlace::current()) {
  return qe::emulation::shuffle("__shfl_sync", mask, value, static_cast<std::uint32_t>(lane), at);
}
template <class T>
T __shfl_xor_sync(std::uint32_t mask, T value, int bits, EmulatedPlace at = EmulatedPlace::current()) {
  return qe::emulation::shuffle("__shfl_xor_sync", mask, value, qe::emulation::lane_id() ^ static_cast<std::uint32_t>(bits), at);
}
template <class T>
T __shfl_up_sync(std::uint32_t mask, T value, unsigned by, EmulatedPlace at = EmulatedPlace::current()) {
  const std::uint32_t lane = qe::emulation::lane_id();
  return qe::emulation::shuffle("__shfl_up_sync", mask, value, lane < by ? lane : lane - by, at);
}
inline std::uint32_t __ballot_sync(std::uint32_t mask, int vote, EmulatedPlace at = EmulatedPlace::current()) {
  struct Ballot {
    bool vote;
    std::uint32_t result;
  } mine{vote != 0, 0};
  const auto compute = [](void* const* lanes, std::uint32_t members) {
    std::uint32_t votes = 0;
    for (std::uint32_t i = 0; i < 32; ++i)
      if ((members >> i & 1) != 0 && static_cast<const Ballot*>(lanes[i])->vote) votes |= 1u << i;
    for (std::uint32_t i = 0; i < 32; ++i)
      if ((members >> i & 1) != 0) static_cast<Ballot*>(lanes[i])->result = votes;
  };
  qe::emulation::collective({"__ballot_sync", mask, at, compute}, &mine);
  return mine.result;
}
inline std::uint32_t __float_as_uint(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline int __popc(std::uint32_t bits) { return std::popcount(bits); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline std::uint32_t __umulhi(std::uint32_t a, std::uint32_t b) {
  return static_cast<std::uint32_t>(std::uint64_t{a} * b >> 32);
}
