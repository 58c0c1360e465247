// The mixture of experts: a router picks top_k of E experts for each row, whose SwiGLU layers are added up by weight.
//
// route: a warp for each row takes the softmax over all logits, then the best expert top_k times (the lowest id among
// equals), and leaves the choices in ascending id. group: the chosen pairs (row, expert) sorted by expert, so that each
// expert's weights are read once for all its rows. Then silu(gate x) * up x and its contraction for each pair: here a
// warp for each output, for few rows; on tensor cores in experts_tiles.cu. combine: a row's experts by weight, in
// ascending id, onto y. No row's result depends on another's, and nothing is added atomically.
// Limits: plain weights, inputs a multiple of 8, top_k at most 32.
// Source of the arithmetic: transformers' modeling_qwen2_moe.py.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kWarps = 4;
/** Of an expert that share one reading of its weights. */
constexpr unsigned kRows = 4;
constexpr std::uint32_t kNoExpert = 0xffffffff;

__global__ void __launch_bounds__(32)
    route_kernel(const float* router, unsigned experts, unsigned top_k, bool renormalise, ExpertChoice* choices) {
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
      const float logit = fmaxf(logits[e], -INFINITY);  // NaN ranks last, and every choice exists
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

/** A warp for each expert: where its pairs (row, choice) go when they are sorted by expert, each in its old order. */
__global__ void __launch_bounds__(32) group_kernel(const ExpertChoice* choices, unsigned pairs, ExpertGroups groups) {
  const unsigned expert = blockIdx.x, lane = threadIdx.x;
  const auto expert_of = [&](unsigned pair) { return pair < pairs ? choices[pair].expert : kNoExpert; };
  unsigned slot = 0;
  for (unsigned base = 0; base < pairs; base += 32)
    slot += static_cast<unsigned>(__popc(__ballot_sync(kAllLanes, expert_of(base + lane) < expert ? 1 : 0)));
  if (lane == 0) groups.starts[expert] = slot;
  if (lane == 0 && expert + 1 == gridDim.x) groups.starts[expert + 1] = pairs;
  for (unsigned base = 0; base < pairs; base += 32) {
    const bool mine = expert_of(base + lane) == expert;
    const std::uint32_t all = __ballot_sync(kAllLanes, mine ? 1 : 0);
    const unsigned at = slot + static_cast<unsigned>(__popc(all & ((1u << lane) - 1)));
    if (mine) groups.order[at] = base + lane, groups.slot_of[base + lane] = at;
    slot += static_cast<unsigned>(__popc(all));
  }
}

/** Adds a lane's share of the products of up to Rows inputs with a weight row, all of `in` numbers. */
template <class W, class RowAt>
__device__ __forceinline__ void lane_dots(RowAt row_at, unsigned rows, const W* weight, unsigned in, unsigned lane,
                                          float (&sum)[kRows]) {
  for (unsigned k = lane * 8; k < in; k += 256) {
    float w[8];
    load8(weight + k, w);
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      float a[8];
      load8(row_at(r) + k, a);
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) sum[r] += a[i] * w[i];
    }
  }
}

template <class W>
__global__ void __launch_bounds__(kWarps * 32)
    expand_kernel(ExpertsView view, const float* x, ExpertGroups groups, float* inner) {
  const unsigned channel = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (channel >= view.inner) return;
  const ExpertWeights expert = view.experts[blockIdx.y];
  const std::size_t at = static_cast<std::size_t>(channel) * view.hidden;
  const unsigned end = groups.starts[blockIdx.y + 1];
  for (unsigned first = groups.starts[blockIdx.y]; first < end; first += kRows) {
    const unsigned rows = min(kRows, end - first);
    const auto row_at = [&](unsigned r) {
      return x + static_cast<std::size_t>(groups.order[first + r] / view.top_k) * view.hidden;
    };
    float gates[kRows] = {}, ups[kRows] = {};
    lane_dots(row_at, rows, static_cast<const W*>(expert.gate) + at, view.hidden, lane, gates);
    lane_dots(row_at, rows, static_cast<const W*>(expert.up) + at, view.hidden, lane, ups);
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const float gate = warp_sum(gates[r]), up = warp_sum(ups[r]);
      if (lane == 0)
        inner[static_cast<std::size_t>(first + r) * view.inner + channel] = gate / (1.0f + expf(-gate)) * up;
    }
  }
}

template <class W>
__global__ void __launch_bounds__(kWarps * 32)
    contract_kernel(ExpertsView view, const float* inner, ExpertGroups groups, float* outer) {
  const unsigned output = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (output >= view.hidden) return;
  const W* down = static_cast<const W*>(view.experts[blockIdx.y].down) + static_cast<std::size_t>(output) * view.inner;
  const unsigned end = groups.starts[blockIdx.y + 1];
  for (unsigned first = groups.starts[blockIdx.y]; first < end; first += kRows) {
    const unsigned rows = min(kRows, end - first);
    const auto row_at = [&](unsigned r) { return inner + static_cast<std::size_t>(first + r) * view.inner; };
    float sums[kRows] = {};
    lane_dots(row_at, rows, down, view.inner, lane, sums);
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const float sum = warp_sum(sums[r]);
      if (lane == 0) outer[static_cast<std::size_t>(first + r) * view.hidden + output] = sum;
    }
  }
}

__global__ void __launch_bounds__(128) combine_kernel(const ExpertChoice* choices, const std::uint32_t* slot_of,
                                                      const float* outer, unsigned top_k, unsigned hidden, float* y) {
  const std::size_t row = blockIdx.x;
  for (unsigned i = threadIdx.x; i < hidden; i += 128) {
    float sum = 0;
    for (std::size_t pair = row * top_k; pair < (row + 1) * top_k; ++pair)
      sum += choices[pair].weight * outer[static_cast<std::size_t>(slot_of[pair]) * hidden + i];
    y[row * hidden + i] += sum;
  }
}

__global__ void __launch_bounds__(128) add_gated_kernel(const float* gate, const float* x, unsigned width, float* y) {
  const float open = 1.0f / (1.0f + expf(-gate[blockIdx.x]));
  const std::size_t at = static_cast<std::size_t>(blockIdx.x) * width;
  for (unsigned i = threadIdx.x; i < width; i += 128) y[at + i] += open * x[at + i];
}

template <class W>
void by_rows(Stream stream, const ExpertsView& view, const float* x, const ExpertGroups& groups, float* inner,
             float* outer) {
  auto* const expand = expand_kernel<W>;
  auto* const contract = contract_kernel<W>;
  const ExpertsView copy = view;
  const ExpertGroups by = groups;
  const auto grid = [&](std::size_t out) { return dim3(static_cast<unsigned>(div_up(out, kWarps)), copy.count); };
  LAUNCH(expand, grid(copy.inner), kWarps * 32, 0, stream, copy, x, by, inner);
  LAUNCH(contract, grid(copy.hidden), kWarps * 32, 0, stream, copy, inner, by, outer);
}

}  // namespace

void route(Stream stream, const float* router, std::size_t rows, std::size_t experts, std::size_t top_k,
           bool renormalise, ExpertChoice* choices) {
  LAUNCH(route_kernel, static_cast<unsigned>(rows), 32, 0, stream, router, static_cast<unsigned>(experts),
         static_cast<unsigned>(top_k), renormalise, choices);
}

void group_by_expert(Stream stream, const ExpertChoice* choices, std::size_t pairs, std::size_t experts,
                     const ExpertGroups& groups) {
  const ExpertGroups copy = groups;
  LAUNCH(group_kernel, static_cast<unsigned>(experts), 32, 0, stream, choices, static_cast<unsigned>(pairs), copy);
}

void experts_by_rows(Stream stream, const ExpertsView& view, DType dtype, const float* x, const ExpertGroups& groups,
                     float* inner, float* outer) {
  if (dtype == DType::f32) return by_rows<float>(stream, view, x, groups, inner, outer);
  if (dtype == DType::f16) return by_rows<Half>(stream, view, x, groups, inner, outer);
  by_rows<Bf16>(stream, view, x, groups, inner, outer);
}

void combine_experts(Stream stream, const ExpertsView& view, const ExpertChoice* choices, std::size_t rows,
                     const ExpertGroups& groups, const float* outer, float* y) {
  const std::uint32_t* slot_of = groups.slot_of;
  const unsigned top_k = view.top_k, hidden = view.hidden;
  LAUNCH(combine_kernel, static_cast<unsigned>(rows), 128, 0, stream, choices, slot_of, outer, top_k, hidden, y);
}

void add_gated(Stream stream, const float* gate, const float* x, std::size_t rows, std::size_t width, float* y) {
  LAUNCH(add_gated_kernel, static_cast<unsigned>(rows), 128, 0, stream, gate, x, static_cast<unsigned>(width), y);
}

}  // namespace qe::cuda
