// y = x W^T on tensor cores for any number of rows: a block for each tile (gemm_tile.cuh) of 16 or 64 rows by 64
// outputs.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/kernels/gemm_tile.cuh"

namespace qe::cuda {
namespace {

struct GemmArguments {
  const Bf16* x;       // [rows][in]
  const Bf16* weight;  // [out][in]
  const float* bias;
  float* y;  // [rows][stride]
  unsigned rows, in, out, stride;
  bool add;
};

template <unsigned Heights>  // the tile's height in units of 16 rows
__global__ void __launch_bounds__(tile::kThreads) gemm_kernel(GemmArguments a) {
  DYNAMIC_SHARED(Bf16, rows, 0, tile::kStages * tile::kRowTile<Heights>);
  DYNAMIC_SHARED(Bf16, outputs, tile::kStages * tile::kRowTile<Heights> * 2, tile::kStages * tile::kOutTile);
  const unsigned first_out = blockIdx.x * tile::kOutputs, first_row = blockIdx.y * Heights * 16;
  const auto row_at = [&](unsigned row) {
    return first_row + row < a.rows ? a.x + static_cast<std::size_t>(first_row + row) * a.in : nullptr;
  };
  float sum[Heights][2][4] = {};
  tile::multiply<Heights>(rows, outputs, row_at, a.weight, first_out, a.out, a.in, sum);
  tile::for_each_sum<Heights>([&](unsigned in_tile, unsigned output, unsigned h, unsigned i) {
    const unsigned row = first_row + in_tile;
    output += first_out;
    if (row >= a.rows || output >= a.out) return;
    float* y = a.y + static_cast<std::size_t>(row) * a.stride + output;
    const float biased = a.bias == nullptr ? sum[h][i / 4][i % 4] : sum[h][i / 4][i % 4] + a.bias[output];
    *y = a.add ? *y + biased : biased;
  });
}

template <unsigned Heights>
void launch_gemm(Stream stream, const GemmArguments& arguments) {
  auto* const kernel = gemm_kernel<Heights>;
  const GemmArguments copy = arguments;
  const dim3 grid(static_cast<unsigned>(div_up(copy.out, tile::kOutputs)),
                  static_cast<unsigned>(div_up(copy.rows, Heights * 16)));
  LAUNCH(kernel, grid, tile::kThreads, tile::kSharedBytes<Heights>, stream, copy);
}

}  // namespace

void gemm(Stream stream, const Bf16* x, std::size_t rows, std::size_t in, const LinearParts& parts) {
  for (unsigned i = 0; i < parts.count; ++i) {
    const LinearPart& part = parts.part[i];
    const GemmArguments arguments{x,
                                  static_cast<const Bf16*>(part.weight),
                                  part.bias,
                                  part.y,
                                  static_cast<unsigned>(rows),
                                  static_cast<unsigned>(in),
                                  part.out,
                                  part.stride == 0 ? part.out : part.stride,
                                  part.add};
    if (rows <= 16)
      launch_gemm<1>(stream, arguments);
    else
      launch_gemm<4>(stream, arguments);
  }
}

}  // namespace qe::cuda
