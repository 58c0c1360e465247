// y = x W^T for few rows: a warp for each output streams its weights once, lanes take eight consecutive inputs in turn.
// Bound by memory: every weight is read once per kGemvRows rows. A row's sum has the same order whatever the number of
// rows: lane l adds inputs 8l..8l+7, then those 256 further on; the lanes are added in a fixed tree.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kWarps = 4;

template <class W, unsigned Rows>
__global__ void __launch_bounds__(kWarps * 32) gemv_kernel(const float* x, unsigned rows, unsigned in, LinearParts parts) {
  unsigned output = blockIdx.x * kWarps + threadIdx.x / 32, index = 0;
  while (index < parts.count && output >= parts.part[index].out) output -= parts.part[index++].out;
  if (index == parts.count) return;
  const LinearPart part = parts.part[index];
  const unsigned lane = threadIdx.x % 32, first = blockIdx.y * Rows;
  const W* weight = static_cast<const W*>(part.weight) + static_cast<std::size_t>(output) * in;
  float sum[Rows] = {};
  if (in % 8 == 0) {
    for (unsigned k = lane * 8; k < in; k += 256) {
      float w[8];
      load8(weight + k, w);
#pragma unroll
      for (unsigned r = 0; r < Rows; ++r) {
        if (first + r >= rows) break;
        float a[8];
        load8(x + static_cast<std::size_t>(first + r) * in + k, a);
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) sum[r] += a[i] * w[i];
      }
    }
  } else {
    for (unsigned k = lane; k < in; k += 32)
#pragma unroll
      for (unsigned r = 0; r < Rows; ++r)
        if (first + r < rows) sum[r] += x[static_cast<std::size_t>(first + r) * in + k] * to_float(weight[k]);
  }
#pragma unroll
  for (unsigned r = 0; r < Rows; ++r) {
    if (first + r >= rows) break;
    const float total = warp_sum(sum[r]);
    if (lane != 0) continue;
    float* y = part.y + static_cast<std::size_t>(first + r) * part.out + output;
    const float biased = part.bias == nullptr ? total : total + part.bias[output];
    *y = part.add ? *y + biased : biased;
  }
}

template <class W, unsigned Rows>
void launch_gemv(Stream stream, const float* x, unsigned rows, unsigned in, const LinearParts& parts) {
  unsigned outputs = 0;
  for (unsigned i = 0; i < parts.count; ++i) outputs += parts.part[i].out;
  auto* const kernel = gemv_kernel<W, Rows>;
  const LinearParts copy = parts;
  LAUNCH(kernel, dim3(static_cast<unsigned>(div_up(outputs, kWarps)), static_cast<unsigned>(div_up(rows, Rows))),
         kWarps * 32, 0, stream, x, rows, in, copy);
}

template <class W>
void gemv_as(Stream stream, const float* x, unsigned rows, unsigned in, const LinearParts& parts) {
  if (rows == 1) return launch_gemv<W, 1>(stream, x, rows, in, parts);
  if (rows == 2) return launch_gemv<W, 2>(stream, x, rows, in, parts);
  if (rows <= 4) return launch_gemv<W, 4>(stream, x, rows, in, parts);
  launch_gemv<W, kGemvRows>(stream, x, rows, in, parts);
}

}  // namespace

void gemv(Stream stream, const float* x, std::size_t rows, std::size_t in, DType dtype, const LinearParts& parts) {
  const auto m = static_cast<unsigned>(rows), k = static_cast<unsigned>(in);
  if (dtype == DType::f32) return gemv_as<float>(stream, x, m, k, parts);
  if (dtype == DType::f16) return gemv_as<Half>(stream, x, m, k, parts);
  gemv_as<Bf16>(stream, x, m, k, parts);
}

}  // namespace qe::cuda
