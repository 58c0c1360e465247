// Four-bit matrices (GPTQ and AWQ, brought to one layout when they are read): each run of 32 inputs of an output is 16
// bytes, byte b holding input b in its low half and input b + 16 in its high half; w = scale * q + offset, a scale and
// an offset for each output and group of inputs.
//
// Few rows: a warp for each output streams 16 bytes a lane, as in gemv.cu, and a row's bits do not depend on the others.
// Many rows: the matrix is unpacked to bf16 for the tensor cores, a stretch of outputs at a time.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kWarps = 4;

template <unsigned Rows>
__global__ void __launch_bounds__(kWarps * 32)
    gemv_int4_kernel(Int4View w, const float* x, unsigned rows, const float* bias, float* y, bool add) {
  const unsigned output = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.y * Rows;
  if (output >= w.out) return;
  const std::uint8_t* packed = w.nibbles + static_cast<std::size_t>(output) * w.in / 2;
  const std::size_t groups = static_cast<std::size_t>(output) * (w.in / w.group);
  float sum[Rows] = {};
  for (unsigned k = lane * 32; k < w.in; k += 1024) {
    const uint4 word = *reinterpret_cast<const uint4*>(packed + k / 2);
    const std::uint32_t quads[4] = {word.x, word.y, word.z, word.w};
    const float scale = w.scales[groups + k / w.group], offset = w.offsets[groups + k / w.group];
#pragma unroll
    for (unsigned r = 0; r < Rows; ++r) {
      if (first + r >= rows) break;
      const float* a = x + static_cast<std::size_t>(first + r) * w.in + k;
      float products = 0, inputs = 0;
#pragma unroll
      for (unsigned q = 0; q < 4; ++q) {
        const float4 low = reinterpret_cast<const float4*>(a)[q], high = reinterpret_cast<const float4*>(a)[q + 4];
        const float lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
          products += lows[i] * static_cast<float>(quads[q] >> (8 * i) & 15);
          products += highs[i] * static_cast<float>(quads[q] >> (8 * i + 4) & 15);
          inputs += lows[i] + highs[i];
        }
      }
      sum[r] += scale * products + offset * inputs;
    }
  }
#pragma unroll
  for (unsigned r = 0; r < Rows; ++r) {
    if (first + r >= rows) break;
    const float total = warp_sum(sum[r]);
    if (lane != 0) continue;
    float* to = y + static_cast<std::size_t>(first + r) * w.out + output;
    const float biased = bias == nullptr ? total : total + bias[output];
    *to = add ? *to + biased : biased;
  }
}

/** A thread for each run of 32 inputs. */
__global__ void __launch_bounds__(128) unpack_int4_kernel(Int4View w, unsigned first, std::size_t runs, Bf16* to) {
  const std::size_t run = static_cast<std::size_t>(blockIdx.x) * 128 + threadIdx.x;
  if (run >= runs) return;
  const std::size_t per_output = w.in / 32, output = first + run / per_output, k = run % per_output * 32;
  const uint4 word = *reinterpret_cast<const uint4*>(w.nibbles + (output * w.in + k) / 2);
  const std::uint32_t quads[4] = {word.x, word.y, word.z, word.w};
  const std::size_t group = output * (w.in / w.group) + k / w.group;
  const float scale = w.scales[group], offset = w.offsets[group];
  auto* pairs = reinterpret_cast<std::uint32_t*>(to + run * 32);
  const auto value = [&](unsigned byte, unsigned half) {
    return scale * static_cast<float>(quads[byte / 4] >> (8 * (byte % 4) + 4 * half) & 15) + offset;
  };
#pragma unroll
  for (unsigned i = 0; i < 16; ++i) pairs[i] = pack_bf16(value(i % 8 * 2, i / 8), value(i % 8 * 2 + 1, i / 8));
}

template <unsigned Rows>
void launch_int4(Stream stream, const Int4View& w, const float* x, unsigned rows, const float* bias, float* y, bool add) {
  auto* const kernel = gemv_int4_kernel<Rows>;
  const Int4View copy = w;
  LAUNCH(kernel, dim3(static_cast<unsigned>(div_up(w.out, kWarps)), static_cast<unsigned>(div_up(rows, Rows))), kWarps * 32, 0,
         stream, copy, x, rows, bias, y, add);
}

}  // namespace

void gemv_int4(Stream stream, const Int4View& w, const float* x, std::size_t rows, const float* bias, float* y, bool add) {
  const auto m = static_cast<unsigned>(rows);
  if (rows == 1) return launch_int4<1>(stream, w, x, m, bias, y, add);
  if (rows <= 4) return launch_int4<4>(stream, w, x, m, bias, y, add);
  launch_int4<8>(stream, w, x, m, bias, y, add);
}

void unpack_int4(Stream stream, const Int4View& w, std::size_t first, std::size_t outputs, Bf16* to) {
  const std::size_t runs = outputs * w.in / 32;
  const Int4View copy = w;
  const auto from = static_cast<unsigned>(first);
  LAUNCH(unpack_int4_kernel, static_cast<unsigned>(div_up(runs, 128)), 128, 0, stream, copy, from, runs, to);
}

}  // namespace qe::cuda
