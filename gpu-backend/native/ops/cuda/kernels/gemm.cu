// y = x W^T on tensor cores (mma.m16n8k16, bf16 in, fp32 sums): a block for 16 or 64 rows by 64 outputs, a warp for 16
// of the outputs, inputs through four stages of shared memory filled by cp.async three steps ahead.
//
// Every output adds its products in steps of 16 inputs, in order, in one accumulator: no split over inputs, so neither
// the number of rows nor the height of the tile changes a bit. Deterministic mode builds on that. `in` must be a
// multiple of 8 (16-byte chunks); what lies beyond `in` is filled with zeros.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kOutputs = 64, kDepth = 32, kStages = 4, kStride = kDepth + 8, kThreads = 128;

struct GemmArguments {
  const Bf16* x;       // [rows][in]
  const Bf16* weight;  // [out][in]
  const float* bias;
  float* y;  // [rows][stride]
  unsigned rows, in, out, stride;
  bool add;
};

/** Fills one stage: `count` rows of 32 numbers, those past `limit` or past `in` with zeros. */
template <class Tile>
__device__ __forceinline__ void fetch(const Tile& tile, unsigned at, const Bf16* from, unsigned first, unsigned limit,
                                      unsigned count, unsigned in, unsigned k) {
  for (unsigned i = threadIdx.x; i < count * (kDepth / 8); i += kThreads) {
    const unsigned row = i / (kDepth / 8), c = k + i % (kDepth / 8) * 8;
    const bool inside = first + row < limit && c < in;
    const Bf16* source = inside ? from + static_cast<std::size_t>(first + row) * in + c : from;
    cp_async(shared_at(tile, at + row * kStride + i % (kDepth / 8) * 8), source, inside ? 16 : 0);
  }
}

template <unsigned Heights>  // the tile's height in units of 16 rows
__global__ void __launch_bounds__(kThreads) gemm_kernel(GemmArguments a) {
  constexpr unsigned kRows = Heights * 16, kRowTile = kRows * kStride, kOutTile = kOutputs * kStride;
  DYNAMIC_SHARED(Bf16, rows, 0, kStages * kRowTile);                          // [stage][row][stride]
  DYNAMIC_SHARED(Bf16, outputs, kStages * kRowTile * 2, kStages * kOutTile);  // [stage][output][stride]
  const unsigned first_out = blockIdx.x * kOutputs, first_row = blockIdx.y * kRows;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned steps = (a.in + kDepth - 1) / kDepth;
  const auto fetch_step = [&](unsigned step) {
    if (step < steps) {
      fetch(rows, step % kStages * kRowTile, a.x, first_row, a.rows, kRows, a.in, step * kDepth);
      fetch(outputs, step % kStages * kOutTile, a.weight, first_out, a.out, kOutputs, a.in, step * kDepth);
    }
    cp_async_commit();
  };
  for (unsigned step = 0; step < kStages - 1; ++step) fetch_step(step);

  float sum[Heights][2][4] = {};
  for (unsigned step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    fetch_step(step + kStages - 1);
    const unsigned stage = step % kStages;
#pragma unroll
    for (unsigned k = 0; k < kDepth; k += 16) {
      std::uint32_t b[4];
      ldmatrix<false>(b, shared_at(outputs, stage * kOutTile + (warp * 16 + lane / 16 * 8 + lane % 8) * kStride + k + lane / 8 % 2 * 8));
#pragma unroll
      for (unsigned h = 0; h < Heights; ++h) {
        std::uint32_t x[4];
        ldmatrix<false>(x, shared_at(rows, stage * kRowTile + (h * 16 + lane % 16) * kStride + k + lane / 16 * 8));
        mma_bf16(sum[h][0], x, b);
        mma_bf16(sum[h][1], x, b + 2);
      }
    }
  }
  cp_async_wait<0>();

#pragma unroll
  for (unsigned h = 0; h < Heights; ++h)
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned row = first_row + h * 16 + lane / 4 + i % 4 / 2 * 8;
      const unsigned output = first_out + warp * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (row >= a.rows || output >= a.out) continue;
      float* y = a.y + static_cast<std::size_t>(row) * a.stride + output;
      const float biased = a.bias == nullptr ? sum[h][i / 4][i % 4] : sum[h][i / 4][i % 4] + a.bias[output];
      *y = a.add ? *y + biased : biased;
    }
}

template <unsigned Heights>
void launch_gemm(Stream stream, const GemmArguments& arguments) {
  auto* const kernel = gemm_kernel<Heights>;
  const GemmArguments copy = arguments;
  constexpr unsigned kBytes = kStages * (Heights * 16 + kOutputs) * kStride * 2;
  LAUNCH(kernel, dim3(static_cast<unsigned>(div_up(copy.out, kOutputs)), static_cast<unsigned>(div_up(copy.rows, Heights * 16))),
         kThreads, kBytes, stream, copy);
}

}  // namespace

void gemm(Stream stream, const Bf16* x, std::size_t rows, std::size_t in, const LinearParts& parts) {
  for (unsigned i = 0; i < parts.count; ++i) {
    const LinearPart& part = parts.part[i];
    const GemmArguments arguments{x, static_cast<const Bf16*>(part.weight), part.bias, part.y, static_cast<unsigned>(rows),
                                  static_cast<unsigned>(in), part.out, part.stride == 0 ? part.out : part.stride, part.add};
    if (rows <= 16)
      launch_gemm<1>(stream, arguments);
    else
      launch_gemm<4>(stream, arguments);
  }
}

}  // namespace qe::cuda
