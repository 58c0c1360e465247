// Matrices of four and eight bits: w = scale * q + offset, a scale (and with four bits an offset) for each output and
// group of inputs. Eight bits are signed bytes in order. Four bits (GPTQ and AWQ, brought to one layout when they are
// read): each run of 32 inputs of an output is 16 bytes, byte b holding input b in its low half and input b + 16 in its
// high half.
//
// Few rows: a warp for each output streams 32 inputs a lane, as in gemv.cu, and a row's bits do not depend on the
// others. Many rows: the matrix is unpacked to bf16 for the tensor cores, a stretch of outputs at a time. round_to_int8
// is the CPU's rounding, bit for bit: scale = max |w| / 127 of a group, q = w / scale to the nearest.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kWarps = 4;

/** The numbers of a run of 32 inputs, as they are stored. */
template <unsigned Bits>
__device__ __forceinline__ void load_run(const PackedView& w, std::size_t output, unsigned k, float (&q)[32]) {
  const auto* bytes = static_cast<const std::uint8_t*>(w.data) + (output * w.in + k) * Bits / 8;
#pragma unroll
  for (unsigned part = 0; part < Bits / 4; ++part) {
    const uint4 word = reinterpret_cast<const uint4*>(bytes)[part];
    const std::uint32_t quads[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (unsigned i = 0; i < 16; ++i) {
      const std::uint32_t byte = quads[i / 4] >> (8 * (i % 4)) & 255;
      if constexpr (Bits == 4)
        q[i] = static_cast<float>(byte & 15), q[i + 16] = static_cast<float>(byte >> 4);
      else
        q[part * 16 + i] = static_cast<float>(static_cast<std::int8_t>(byte));
    }
  }
}

template <unsigned Bits, unsigned Rows>
__global__ void __launch_bounds__(kWarps * 32, Rows == 1 ? 10 : 5)  // as many blocks at once as need no spills
    gemv_packed_kernel(PackedView w, const float* x, unsigned rows, const float* bias, float* y, bool add) {
  const unsigned output = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.y * Rows;
  if (output >= w.out) return;
  const std::size_t groups = static_cast<std::size_t>(output) * (w.in / w.group);
  float sum[Rows] = {};
  for (unsigned k = lane * 32; k < w.in; k += 1024) {
    float q[32];
    load_run<Bits>(w, output, k, q);
    const float scale = w.scales[groups + k / w.group];
#pragma unroll
    for (unsigned r = 0; r < Rows; ++r) {
      if (first + r >= rows) break;
      const auto* a = reinterpret_cast<const float4*>(x + static_cast<std::size_t>(first + r) * w.in + k);
      float products = 0, inputs = 0;
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) {
        const float4 four = a[i];
        products += four.x * q[4 * i] + four.y * q[4 * i + 1] + four.z * q[4 * i + 2] + four.w * q[4 * i + 3];
        if constexpr (Bits == 4) inputs += four.x + four.y + four.z + four.w;
      }
      sum[r] += scale * products;
      if constexpr (Bits == 4) sum[r] += w.offsets[groups + k / w.group] * inputs;
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
template <unsigned Bits>
__global__ void __launch_bounds__(128) unpack_kernel(PackedView w, unsigned first, std::size_t runs, Bf16* to) {
  const std::size_t run = static_cast<std::size_t>(blockIdx.x) * 128 + threadIdx.x;
  if (run >= runs) return;
  const std::size_t per_output = w.in / 32, output = first + run / per_output;
  const auto k = static_cast<unsigned>(run % per_output * 32);
  const std::size_t group = output * (w.in / w.group) + k / w.group;
  const float scale = w.scales[group], offset = Bits == 4 ? w.offsets[group] : 0.0f;
  float q[32];
  load_run<Bits>(w, output, k, q);
  auto* pairs = reinterpret_cast<std::uint32_t*>(to + run * 32);
#pragma unroll
  for (unsigned i = 0; i < 16; ++i) pairs[i] = pack_bf16(scale * q[2 * i] + offset, scale * q[2 * i + 1] + offset);
}

/** A warp for each group of inputs. */
template <class W>
__global__ void __launch_bounds__(kWarps * 32)
    round_to_int8_kernel(const W* weight, std::size_t groups, unsigned group, std::int8_t* q, float* scales) {
  const std::size_t at = static_cast<std::size_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (at >= groups) return;
  const unsigned lane = threadIdx.x % 32;
  float top = 0;
  for (unsigned i = lane; i < group; i += 32) top = fmaxf(top, fabsf(to_float(weight[at * group + i])));
  top = warp_max(top);
  const float scale = top / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
  if (lane == 0) scales[at] = scale;
  for (unsigned i = lane; i < group; i += 32) {
    const float value = to_float(weight[at * group + i]) * inverse;
    q[at * group + i] = static_cast<std::int8_t>(rintf(fminf(fmaxf(value, -127.0f), 127.0f)));
  }
}

template <unsigned Bits, unsigned Rows>
void launch_gemv(Stream stream, const PackedView& w, const float* x, unsigned rows, const float* bias, float* y,
                 bool add) {
  auto* const kernel = gemv_packed_kernel<Bits, Rows>;
  const PackedView copy = w;
  const dim3 grid(static_cast<unsigned>(div_up(w.out, kWarps)), static_cast<unsigned>(div_up(rows, Rows)));
  LAUNCH(kernel, grid, kWarps * 32, 0, stream, copy, x, rows, bias, y, add);
}

template <unsigned Bits>
void gemv_of(Stream stream, const PackedView& w, const float* x, unsigned rows, const float* bias, float* y, bool add) {
  if (rows == 1) return launch_gemv<Bits, 1>(stream, w, x, rows, bias, y, add);
  if (rows <= 4) return launch_gemv<Bits, 4>(stream, w, x, rows, bias, y, add);
  launch_gemv<Bits, 8>(stream, w, x, rows, bias, y, add);
}

template <class W>
void round_as(Stream stream, const void* weight, std::size_t groups, unsigned group, std::int8_t* q, float* scales) {
  auto* const kernel = round_to_int8_kernel<W>;
  const auto* from = static_cast<const W*>(weight);
  LAUNCH(kernel, static_cast<unsigned>(div_up(groups, kWarps)), kWarps * 32, 0, stream, from, groups, group, q, scales);
}

}  // namespace

void gemv_packed(Stream stream, const PackedView& w, const float* x, std::size_t rows, const float* bias, float* y,
                 bool add) {
  if (w.bits == 4) return gemv_of<4>(stream, w, x, static_cast<unsigned>(rows), bias, y, add);
  gemv_of<8>(stream, w, x, static_cast<unsigned>(rows), bias, y, add);
}

void unpack(Stream stream, const PackedView& w, std::size_t first, std::size_t outputs, Bf16* to) {
  const std::size_t runs = outputs * w.in / 32;
  const PackedView copy = w;
  const auto from = static_cast<unsigned>(first), blocks = static_cast<unsigned>(div_up(runs, 128));
  auto* const kernel = w.bits == 4 ? unpack_kernel<4> : unpack_kernel<8>;
  LAUNCH(kernel, blocks, 128, 0, stream, copy, from, runs, to);
}

void round_to_int8(Stream stream, const void* weight, DType dtype, std::size_t count, std::size_t group, std::int8_t* q,
                   float* scales) {
  const auto of = static_cast<unsigned>(group);
  if (dtype == DType::f32) return round_as<float>(stream, weight, count / group, of, q, scales);
  if (dtype == DType::f16) return round_as<Half>(stream, weight, count / group, of, q, scales);
  round_as<Bf16>(stream, weight, count / group, of, q, scales);
}

}  // namespace qe::cuda
