// The mixture of experts: a router picks top_k of E experts for each row, whose SwiGLU layers are added up by weight.
//
// route: a warp for each row takes the softmax over all logits, then the best expert top_k times (the lowest id among
// equals), and leaves the choices in ascending id. expand: for each chosen pair (row, expert) and inner channel, a warp
// computes silu(gate x) * up x. contract: for each row and output a warp adds weight * (down inner) over the row's
// experts, in ascending id, onto y. No row's result depends on another's, and nothing is added atomically.
// Limits: plain weights, inputs a multiple of 8, top_k at most 32. Weights are read once per pair, which suits decode.
// Source of the arithmetic: transformers' modeling_qwen2_moe.py.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kWarps = 4;

__global__ void __launch_bounds__(32) route_kernel(const float* router, unsigned experts, unsigned top_k, bool renormalise,
                                                   ExpertChoice* choices) {
  SHARED(float, chosen_weight, 32);
  SHARED(std::uint32_t, chosen_expert, 32);
  const float* logits = router + static_cast<std::size_t>(blockIdx.x) * experts;
  const unsigned lane = threadIdx.x;
  float top = -INFINITY;
  for (unsigned e = lane; e < experts; e += 32) top = fmaxf(top, logits[e]);
  top = warp_max(top);
  float total = 0;
  for (unsigned e = lane; e < experts; e += 32) total += expf(logits[e] - top);
  total = warp_sum(total);

  float last = INFINITY, kept = 0;  // of the ranking so far: everything before (last, last_id) is taken
  unsigned last_id = 0;
  for (unsigned i = 0; i < top_k; ++i) {
    float best = -INFINITY;
    unsigned best_id = experts;
    for (unsigned e = lane; e < experts; e += 32) {
      const float logit = logits[e];
      const bool left = i == 0 || logit < last || (logit == last && e > last_id);
      if (left && (best_id == experts || logit > best)) best = logit, best_id = e;
    }
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, bits);
      const unsigned other_id = __shfl_xor_sync(kAllLanes, best_id, bits);
      if (other_id < experts && (best_id == experts || other > best || (other == best && other_id < best_id)))
        best = other, best_id = other_id;
    }
    last = best, last_id = best_id;
    const float weight = expf(best - top) / total;
    kept += weight;
    if (lane == 0) chosen_weight[i] = weight, chosen_expert[i] = best_id;
  }
  __syncwarp();
  if (lane >= top_k) return;
  const unsigned mine = chosen_expert[lane];
  unsigned rank = 0;
  for (unsigned i = 0; i < top_k; ++i) rank += chosen_expert[i] < mine ? 1 : 0;
  const float weight = chosen_weight[lane];
  choices[static_cast<std::size_t>(blockIdx.x) * top_k + rank] = {mine, renormalise ? weight / kept : weight};
}

/** One lane's share of the product of an input and a weight row, both of `in` numbers. */
template <class W>
__device__ __forceinline__ float lane_dot(const float* x, const W* weight, unsigned in, unsigned lane) {
  float sum = 0;
  for (unsigned k = lane * 8; k < in; k += 256) {
    float a[8], w[8];
    load8(x + k, a);
    load8(weight + k, w);
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) sum += a[i] * w[i];
  }
  return sum;
}

template <class W>
__global__ void __launch_bounds__(kWarps * 32)
    expand_kernel(ExpertsView view, const float* x, const ExpertChoice* choices, float* inner) {
  const unsigned channel = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32, pair = blockIdx.y;
  if (channel >= view.inner) return;
  const ExpertWeights& expert = view.experts[choices[pair].expert];
  const float* row = x + static_cast<std::size_t>(pair / view.top_k) * view.hidden;
  const std::size_t at = static_cast<std::size_t>(channel) * view.hidden;
  const float gate = warp_sum(lane_dot(row, static_cast<const W*>(expert.gate) + at, view.hidden, lane));
  const float up = warp_sum(lane_dot(row, static_cast<const W*>(expert.up) + at, view.hidden, lane));
  if (lane == 0) inner[static_cast<std::size_t>(pair) * view.inner + channel] = gate / (1.0f + expf(-gate)) * up;
}

template <class W>
__global__ void __launch_bounds__(kWarps * 32)
    contract_kernel(ExpertsView view, const float* inner, const ExpertChoice* choices, float* y) {
  const unsigned output = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y;
  if (output >= view.hidden) return;
  float sum = 0;
  for (unsigned i = 0; i < view.top_k; ++i) {
    const std::size_t pair = static_cast<std::size_t>(row) * view.top_k + i;
    const ExpertChoice choice = choices[pair];
    const W* down = static_cast<const W*>(view.experts[choice.expert].down) + static_cast<std::size_t>(output) * view.inner;
    sum += choice.weight * warp_sum(lane_dot(inner + pair * view.inner, down, view.inner, lane));
  }
  if (lane == 0) y[static_cast<std::size_t>(row) * view.hidden + output] += sum;
}

__global__ void __launch_bounds__(128) add_gated_kernel(const float* gate, const float* x, unsigned width, float* y) {
  const float open = 1.0f / (1.0f + expf(-gate[blockIdx.x]));
  const std::size_t at = static_cast<std::size_t>(blockIdx.x) * width;
  for (unsigned i = threadIdx.x; i < width; i += 128) y[at + i] += open * x[at + i];
}

template <class W>
void mix_as(Stream stream, const ExpertsView& view, const float* x, std::size_t rows, const ExpertChoice* choices, float* inner,
            float* y) {
  auto* const expand = expand_kernel<W>;
  auto* const contract = contract_kernel<W>;
  const ExpertsView copy = view;
  const auto count = static_cast<unsigned>(rows);
  const dim3 wide(static_cast<unsigned>(div_up(view.inner, kWarps)), count * view.top_k);
  LAUNCH(expand, wide, kWarps * 32, 0, stream, copy, x, choices, inner);
  const dim3 narrow(static_cast<unsigned>(div_up(view.hidden, kWarps)), count);
  LAUNCH(contract, narrow, kWarps * 32, 0, stream, copy, inner, choices, y);
}

}  // namespace

void route(Stream stream, const float* router, std::size_t rows, std::size_t experts, std::size_t top_k, bool renormalise,
           ExpertChoice* choices) {
  LAUNCH(route_kernel, static_cast<unsigned>(rows), 32, 0, stream, router, static_cast<unsigned>(experts),
         static_cast<unsigned>(top_k), renormalise, choices);
}

void mix_experts(Stream stream, const ExpertsView& view, DType dtype, const float* x, std::size_t rows,
                 const ExpertChoice* choices, float* inner, float* y) {
  if (dtype == DType::f32) return mix_as<float>(stream, view, x, rows, choices, inner, y);
  if (dtype == DType::f16) return mix_as<Half>(stream, view, x, rows, choices, inner, y);
  mix_as<Bf16>(stream, view, x, rows, choices, inner, y);
}

void add_gated(Stream stream, const float* gate, const float* x, std::size_t rows, std::size_t width, float* y) {
  LAUNCH(add_gated_kernel, static_cast<unsigned>(rows), 128, 0, stream, gate, x, static_cast<unsigned>(width), y);
}

}  // namespace qe::cuda
