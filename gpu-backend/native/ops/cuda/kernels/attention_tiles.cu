// Paged causal attention on tensor cores: a block for a tile of query rows and one head, a warp for 16 of the rows.
// Keys and values come through shared memory 64 at a time (cp.async), scores and outputs stay in registers, and the
// softmax is the online one (FlashAttention-2: Dao, 2023). q, weights, keys and values are bf16, sums fp32.
//
// Tiles of keys start at multiples of 64 and a row's arithmetic ignores its neighbours: a tile of keys that a row may
// not see multiplies its sums by exactly 1 and adds exactly 0. So one row alone and 64 together give the same bits,
// which deterministic mode builds on. Limits: head_dim 64 or 128.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kKeys = 64, kPad = 8;  // padding spreads the rows over the banks

struct TilesArguments {
  BatchView batch;
  const float* q;  // [rows][heads * dim]
  float scale;     // times log2(e)
  float* out;      // [rows][heads * dim]
};

template <unsigned Dim>
__global__ void __launch_bounds__(128) attention_tiles_kernel(TilesArguments a, PagedCache<Bf16> cache) {
  constexpr unsigned kStride = Dim + kPad, kTileBytes = kKeys * kStride * 2;
  DYNAMIC_SHARED(Bf16, key, 0, kKeys * kStride);             // [64][stride]
  DYNAMIC_SHARED(Bf16, value, kTileBytes, kKeys * kStride);  // [64][stride]
  const QueryTile tile = a.batch.tiles[blockIdx.x];
  const unsigned head = blockIdx.y, kv_head = head / (cache.heads / cache.kv_heads);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const std::uint32_t* table = a.batch.tables + static_cast<std::size_t>(tile.slice) * a.batch.table_stride;
  const unsigned mine[2] = {warp * 16 + g, warp * 16 + g + 8};  // this lane's two rows of the tile

  std::uint32_t query[Dim / 16][4];  // A fragments
#pragma unroll
  for (unsigned k = 0; k < Dim / 16; ++k)
#pragma unroll
    for (unsigned r = 0; r < 4; ++r) {
      const unsigned row = mine[r % 2], d = k * 16 + t * 2 + r / 2 * 8;
      const float* from = a.q + (static_cast<std::size_t>(tile.row + row) * cache.heads + head) * Dim + d;
      query[k][r] = row < tile.count ? pack_bf16(from[0], from[1]) : 0;
    }

  float out[Dim / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  const unsigned tokens = tile.position + tile.count;  // keys that any row of the tile sees
  for (unsigned first = 0; first < tokens; first += kKeys) {
    constexpr unsigned kChunks = Dim / 8;  // of 16 bytes, in a row
    __syncthreads();
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned i = threadIdx.x; i < kKeys * kChunks; i += blockDim.x) {
        const unsigned token = first + i / kChunks, d = i % kChunks * 8, known = min(token, tokens - 1);
        const std::size_t block = table[known / kBlockSize];
        const std::size_t at = ((block * cache.kv_heads + kv_head) * kBlockSize + known % kBlockSize) * Dim + d;
        const unsigned to = i / kChunks * kStride + d;
        cp_async(half == 0 ? shared_at(key, to) : shared_at(value, to), (half == 0 ? cache.keys : cache.values) + at,
                 token < tokens ? 16 : 0);
      }
      cp_async_commit();
    }
    cp_async_wait<1>();
    __syncthreads();

    float score[kKeys / 8][4] = {};  // C fragments: rows g and g + 8, keys 8n + 2t and the next
#pragma unroll
    for (unsigned k = 0; k < Dim / 16; ++k)
#pragma unroll
      for (unsigned n = 0; n < kKeys / 16; ++n) {
        std::uint32_t b[4];
        ldmatrix<false>(b, shared_at(key, (n * 16 + lane / 16 * 8 + lane % 8) * kStride + k * 16 + lane / 8 % 2 * 8));
        mma_bf16(score[2 * n], query[k], b);
        mma_bf16(score[2 * n + 1], query[k], b + 2);
      }

#pragma unroll
    for (unsigned r = 0; r < 2; ++r) {
      const unsigned last = tile.position + min(mine[r], tile.count - 1);  // the last key this row sees
      float best = top[r];
#pragma unroll
      for (unsigned n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (unsigned i = 0; i < 2; ++i) {
          float& s = score[n][2 * r + i];
          s = first + n * 8 + t * 2 + i <= last ? s * a.scale : -INFINITY;
          best = fmaxf(best, s);
        }
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
      const float keep = exp2f(top[r] - best);
      top[r] = best;
      float sum = 0;
#pragma unroll
      for (unsigned n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (unsigned i = 0; i < 2; ++i) {
          const float weight = exp2f(score[n][2 * r + i] - best);
          score[n][2 * r + i] = weight;
          sum += weight;
        }
      total[r] = total[r] * keep + sum;
#pragma unroll
      for (unsigned d = 0; d < Dim / 8; ++d) out[d][2 * r] *= keep, out[d][2 * r + 1] *= keep;
    }

    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (unsigned k = 0; k < kKeys / 16; ++k) {
      const std::uint32_t weight[4] = {pack_bf16(score[2 * k][0], score[2 * k][1]), pack_bf16(score[2 * k][2], score[2 * k][3]),
                                       pack_bf16(score[2 * k + 1][0], score[2 * k + 1][1]),
                                       pack_bf16(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
      for (unsigned d = 0; d < Dim / 16; ++d) {
        std::uint32_t b[4];
        ldmatrix<true>(b, shared_at(value, (k * 16 + lane / 8 % 2 * 8 + lane % 8) * kStride + d * 16 + lane / 16 * 8));
        mma_bf16(out[2 * d], weight, b);
        mma_bf16(out[2 * d + 1], weight, b + 2);
      }
    }
  }

#pragma unroll
  for (unsigned r = 0; r < 2; ++r) {
    float sum = total[r] + __shfl_xor_sync(kAllLanes, total[r], 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (mine[r] >= tile.count) continue;
    float* to = a.out + (static_cast<std::size_t>(tile.row + mine[r]) * cache.heads + head) * Dim + t * 2;
#pragma unroll
    for (unsigned d = 0; d < Dim / 8; ++d) to[d * 8] = out[d][2 * r] / sum, to[d * 8 + 1] = out[d][2 * r + 1] / sum;
  }
}

}  // namespace

void attention_tiles(Stream stream, const BatchView& batch, unsigned warps, const float* q, const PagedCache<Bf16>& cache,
                     float scale, float* out) {
  const TilesArguments arguments{batch, q, scale * 1.4426950408889634f, out};
  const unsigned dim = cache.head_dim, bytes = 2 * kKeys * (dim + kPad) * 2;
  auto* const kernel = dim == 64 ? attention_tiles_kernel<64> : attention_tiles_kernel<128>;
  LAUNCH(kernel, dim3(batch.tiles_count, cache.heads), warps * 32, bytes, stream, arguments, cache);
}

}  // namespace qe::cuda
