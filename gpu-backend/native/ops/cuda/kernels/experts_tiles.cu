// The experts' products on tensor cores, for rows that are grouped by expert (experts.cu): a block for each expert and
// 64 of its outputs takes the expert's rows a tile (gemm_tile.cuh) at a time, so that its weights come from memory
// once. x and what lies between the products are rounded to bf16.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/kernels/gemm_tile.cuh"

namespace qe::cuda {
namespace {

template <unsigned Heights>
__global__ void __launch_bounds__(tile::kThreads)
    expand_tiles_kernel(ExpertsView view, const Bf16* x, ExpertGroups groups, Bf16* inner) {
  DYNAMIC_SHARED(Bf16, rows, 0, tile::kStages * tile::kRowTile<Heights>);
  DYNAMIC_SHARED(Bf16, outputs, tile::kStages * tile::kRowTile<Heights> * 2, tile::kStages * tile::kOutTile);
  const unsigned first_out = blockIdx.x * tile::kOutputs, end = groups.starts[blockIdx.y + 1];
  const ExpertWeights expert = view.experts[blockIdx.y];
  for (unsigned first = groups.starts[blockIdx.y]; first < end; first += Heights * 16) {
    const auto row_at = [&](unsigned row) {
      return first + row < end ? x + static_cast<std::size_t>(groups.order[first + row] / view.top_k) * view.hidden
                               : nullptr;
    };
    float gate[Heights][2][4] = {}, up[Heights][2][4] = {};
    tile::multiply<Heights>(rows, outputs, row_at, static_cast<const Bf16*>(expert.gate), first_out, view.inner,
                            view.hidden, gate);
    tile::multiply<Heights>(rows, outputs, row_at, static_cast<const Bf16*>(expert.up), first_out, view.inner,
                            view.hidden, up);
    tile::for_each_sum<Heights>([&](unsigned row, unsigned output, unsigned h, unsigned i) {
      const std::size_t slot = first + row, channel = first_out + output;
      const float g = gate[h][i / 4][i % 4];
      if (slot < end && channel < view.inner)
        inner[slot * view.inner + channel] = to_bf16(g / (1.0f + expf(-g)) * up[h][i / 4][i % 4]);
    });
  }
}

template <unsigned Heights>
__global__ void __launch_bounds__(tile::kThreads)
    contract_tiles_kernel(ExpertsView view, const Bf16* inner, ExpertGroups groups, float* outer) {
  DYNAMIC_SHARED(Bf16, rows, 0, tile::kStages * tile::kRowTile<Heights>);
  DYNAMIC_SHARED(Bf16, outputs, tile::kStages * tile::kRowTile<Heights> * 2, tile::kStages * tile::kOutTile);
  const unsigned first_out = blockIdx.x * tile::kOutputs, end = groups.starts[blockIdx.y + 1];
  const auto* down = static_cast<const Bf16*>(view.experts[blockIdx.y].down);
  for (unsigned first = groups.starts[blockIdx.y]; first < end; first += Heights * 16) {
    const auto row_at = [&](unsigned row) {
      return first + row < end ? inner + static_cast<std::size_t>(first + row) * view.inner : nullptr;
    };
    float sum[Heights][2][4] = {};
    tile::multiply<Heights>(rows, outputs, row_at, down, first_out, view.hidden, view.inner, sum);
    tile::for_each_sum<Heights>([&](unsigned row, unsigned output, unsigned h, unsigned i) {
      const std::size_t slot = first + row, channel = first_out + output;
      if (slot < end && channel < view.hidden) outer[slot * view.hidden + channel] = sum[h][i / 4][i % 4];
    });
  }
}

template <unsigned Heights>
void launch_tiles(Stream stream, const ExpertsView& view, const Bf16* x, const ExpertGroups& groups, Bf16* inner,
                  float* outer) {
  auto* const expand = expand_tiles_kernel<Heights>;
  auto* const contract = contract_tiles_kernel<Heights>;
  const ExpertsView copy = view;
  const ExpertGroups by = groups;
  const auto grid = [&](std::size_t out) {
    return dim3(static_cast<unsigned>(div_up(out, tile::kOutputs)), copy.count);
  };
  LAUNCH(expand, grid(copy.inner), tile::kThreads, tile::kSharedBytes<Heights>, stream, copy, x, by, inner);
  LAUNCH(contract, grid(copy.hidden), tile::kThreads, tile::kSharedBytes<Heights>, stream, copy, inner, by, outer);
}

}  // namespace

void experts_by_tiles(Stream stream, const ExpertsView& view, const Bf16* x, std::size_t rows,
                      const ExpertGroups& groups, Bf16* inner, float* outer) {
  if (rows * view.top_k <= std::size_t{16} * view.count)
    launch_tiles<1>(stream, view, x, groups, inner, outer);
  else
    launch_tiles<4>(stream, view, x, groups, inner, outer);
}

}  // namespace qe::cuda
