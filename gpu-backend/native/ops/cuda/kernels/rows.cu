// The kernels that touch each element once. A block for every row, or a thread for every few elements; memory-bound.
// The order of a norm's sum depends on the row's width alone: thread t adds elements t, t + 128, ..., then a fixed tree.
// Arithmetic: transformers' modeling_qwen2.py in fp32.

#include "base/choice.h"
#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kThreads = 128;

template <class W>
__global__ void __launch_bounds__(kThreads)
    embed_kernel(const W* table, const std::uint32_t* tokens, const std::uint32_t* chosen, unsigned width, float* x) {
  std::uint32_t token = tokens[blockIdx.x];
  if (token >= kChosenBefore) token = chosen[token - kChosenBefore];
  if (token == kUndecided) token = 0;  // nobody will read this row
  const W* from = table + static_cast<std::size_t>(token) * width;
  float* to = x + static_cast<std::size_t>(blockIdx.x) * width;
  for (unsigned i = threadIdx.x; i < width; i += kThreads) to[i] = to_float(from[i]);
}

__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(const float* x, const float* weight, float eps, unsigned width, float* y) {
  SHARED(float, part, kThreads / 32);
  const float* from = x + static_cast<std::size_t>(blockIdx.x) * width;
  float* to = y + static_cast<std::size_t>(blockIdx.x) * width;
  float squares = 0;
  for (unsigned i = threadIdx.x; i < width; i += kThreads) squares += from[i] * from[i];
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = squares;
  __syncthreads();
  const float total = (part[0] + part[1]) + (part[2] + part[3]);
  const float inverse = 1.0f / sqrtf(total / static_cast<float>(width) + eps);
  for (unsigned i = threadIdx.x; i < width; i += kThreads) to[i] = from[i] * inverse * weight[i];
}

__global__ void __launch_bounds__(kThreads) silu_mul_kernel(const float* gate, const float* up, std::size_t count, float* y) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

__global__ void __launch_bounds__(kThreads) gather_kernel(const float* from, const std::uint32_t* rows, unsigned width, float* to) {
  const float* source = from + static_cast<std::size_t>(rows[blockIdx.x]) * width;
  float* target = to + static_cast<std::size_t>(blockIdx.x) * width;
  for (unsigned i = threadIdx.x; i < width; i += kThreads) target[i] = source[i];
}

__global__ void __launch_bounds__(kThreads) add_bias_kernel(const float* bias, unsigned width, unsigned stride, float* y) {
  float* row = y + static_cast<std::size_t>(blockIdx.x) * stride;
  for (unsigned i = threadIdx.x; i < width; i += kThreads) row[i] += bias[i];
}

__global__ void __launch_bounds__(kThreads) round_kernel(const float* x, std::size_t count, Bf16* y) {
  const std::size_t i = (static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x) * 2;
  if (i + 1 < count)
    *reinterpret_cast<std::uint32_t*>(y + i) = pack_bf16(x[i], x[i + 1]);
  else if (i < count)
    y[i] = to_bf16(x[i]);
}

template <class W>
__global__ void __launch_bounds__(kThreads) widen_kernel(const W* x, std::size_t count, float* y) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) y[i] = to_float(x[i]);
}

unsigned blocks_for(std::size_t count) { return static_cast<unsigned>(div_up(count, kThreads)); }

template <class W>
void embed_as(Stream stream, const void* table, const std::uint32_t* tokens, const std::uint32_t* chosen, std::size_t rows,
              std::size_t width, float* x) {
  LAUNCH(embed_kernel, static_cast<unsigned>(rows), kThreads, 0, stream, static_cast<const W*>(table), tokens, chosen,
         static_cast<unsigned>(width), x);
}

template <class W>
void widen_as(Stream stream, const void* x, std::size_t count, float* y) {
  LAUNCH(widen_kernel, blocks_for(count), kThreads, 0, stream, static_cast<const W*>(x), count, y);
}

}  // namespace

void embed(Stream stream, const void* table, DType dtype, const std::uint32_t* tokens, const std::uint32_t* chosen, std::size_t rows,
           std::size_t width, float* x) {
  if (dtype == DType::f32) return embed_as<float>(stream, table, tokens, chosen, rows, width, x);
  if (dtype == DType::f16) return embed_as<Half>(stream, table, tokens, chosen, rows, width, x);
  embed_as<Bf16>(stream, table, tokens, chosen, rows, width, x);
}

void rms_norm(Stream stream, const float* x, const float* weight, float eps, std::size_t rows, std::size_t width, float* y) {
  LAUNCH(rms_norm_kernel, static_cast<unsigned>(rows), kThreads, 0, stream, x, weight, eps, static_cast<unsigned>(width), y);
}

void silu_mul(Stream stream, const float* gate, const float* up, std::size_t count, float* y) {
  LAUNCH(silu_mul_kernel, blocks_for(count), kThreads, 0, stream, gate, up, count, y);
}

void gather(Stream stream, const float* from, const std::uint32_t* rows, std::size_t count, std::size_t width, float* to) {
  LAUNCH(gather_kernel, static_cast<unsigned>(count), kThreads, 0, stream, from, rows, static_cast<unsigned>(width), to);
}

void add_bias(Stream stream, const float* bias, std::size_t rows, std::size_t width, std::size_t stride, float* y) {
  LAUNCH(add_bias_kernel, static_cast<unsigned>(rows), kThreads, 0, stream, bias, static_cast<unsigned>(width),
         static_cast<unsigned>(stride), y);
}

void round_to_bf16(Stream stream, const float* x, std::size_t count, Bf16* y) {
  LAUNCH(round_kernel, blocks_for(div_up(count, 2)), kThreads, 0, stream, x, count, y);
}

void widen(Stream stream, const void* x, DType dtype, std::size_t count, float* y) {
  if (dtype == DType::f32) return widen_as<float>(stream, x, count, y);
  if (dtype == DType::f16) return widen_as<Half>(stream, x, count, y);
  widen_as<Bf16>(stream, x, count, y);
}

}  // namespace qe::cuda
