#pragma once

// One tile of y = x W^T on tensor cores (mma.m16n8k16, bf16 in, fp32 sums) for a block of four warps: 16 * Heights rows
// by 64 outputs, a warp for 16 of the outputs, inputs through four stages of shared memory filled by cp.async three
// ahead.
//
// Every output adds its products in steps of 16 inputs, in order, in one accumulator: no split over inputs, so neither
// the number of rows nor the height of the tile changes a bit. Deterministic mode builds on that. `in` must be a
// multiple of 8 (16-byte chunks); what lies beyond `in` is filled with zeros.

#include "base/types.h"
#include "ops/cuda/device.cuh"

namespace qe::cuda::tile {

inline constexpr unsigned kOutputs = 64, kDepth = 32, kStages = 4, kStride = kDepth + 8, kThreads = 128;
inline constexpr unsigned kOutTile = kOutputs * kStride;
template <unsigned Heights>
inline constexpr unsigned kRowTile = Heights * 16 * kStride;

/** Bytes of dynamic shared memory. */
template <unsigned Heights>
inline constexpr unsigned kSharedBytes = kStages * (kRowTile<Heights> + kOutTile) * 2;

/** Fills one stage: `count` rows of 32 numbers. @param row_at a row's numbers, or null for zeros @param any readable */
template <class Tile, class RowAt>
__device__ __forceinline__ void fetch(const Tile& tile, unsigned at, RowAt row_at, const Bf16* any, unsigned count,
                                      unsigned in, unsigned k) {
  for (unsigned i = threadIdx.x; i < count * (kDepth / 8); i += kThreads) {
    const unsigned row = i / (kDepth / 8), c = k + i % (kDepth / 8) * 8;
    const Bf16* from = c < in ? row_at(row) : nullptr;
    cp_async(shared_at(tile, at + row * kStride + i % (kDepth / 8) * 8), from == nullptr ? any : from + c,
             from == nullptr ? 0 : 16);
  }
}

/** Adds the tile's products to `sum`; the block's threads leave together, and shared memory may be used again.
    @param rows, outputs kStages tiles each @param row_at the tile's row of x, null beyond the last
    @param weight [out][in], of which outputs from `first_out` on are taken */
template <unsigned Heights, class Rows, class Outputs, class RowAt>
__device__ __forceinline__ void multiply(const Rows& rows, const Outputs& outputs, RowAt row_at, const Bf16* weight,
                                         unsigned first_out, unsigned out, unsigned in, float (&sum)[Heights][2][4]) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, steps = (in + kDepth - 1) / kDepth;
  const auto output_at = [&](unsigned output) {
    return first_out + output < out ? weight + static_cast<std::size_t>(first_out + output) * in : nullptr;
  };
  const auto fetch_step = [&](unsigned step) {
    if (step < steps) {
      fetch(rows, step % kStages * kRowTile<Heights>, row_at, weight, Heights * 16, in, step * kDepth);
      fetch(outputs, step % kStages * kOutTile, output_at, weight, kOutputs, in, step * kDepth);
    }
    cp_async_commit();
  };
  for (unsigned step = 0; step < kStages - 1; ++step) fetch_step(step);
  for (unsigned step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    fetch_step(step + kStages - 1);
    const unsigned stage = step % kStages;
#pragma unroll
    for (unsigned k = 0; k < kDepth; k += 16) {
      std::uint32_t b[4];
      ldmatrix<false>(b, shared_at(outputs, stage * kOutTile + (warp * 16 + lane / 16 * 8 + lane % 8) * kStride + k +
                                                lane / 8 % 2 * 8));
#pragma unroll
      for (unsigned h = 0; h < Heights; ++h) {
        std::uint32_t x[4];
        ldmatrix<false>(
            x, shared_at(rows, stage * kRowTile<Heights> + (h * 16 + lane % 16) * kStride + k + lane / 16 * 8));
        mma_bf16(sum[h][0], x, b);
        mma_bf16(sum[h][1], x, b + 2);
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();
}

/** Calls store(row, output, i, h) for each of the thread's sums: sum[h][i / 4][i % 4] is that of the tile's row and
 * output. */
template <unsigned Heights, class Store>
__device__ __forceinline__ void for_each_sum(Store store) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (unsigned h = 0; h < Heights; ++h)
#pragma unroll
    for (unsigned i = 0; i < 8; ++i)
      store(h * 16 + lane / 4 + i % 4 / 2 * 8, warp * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2, h, i);
}

}  // namespace qe::cuda::tile
