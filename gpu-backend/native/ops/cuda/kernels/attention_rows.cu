// Paged grouped-query attention, one block of threads for a row, a KV head's group of queries and a segment of 256 keys
// (split-K, "flash decoding"), then a merge of the segments in order by the online softmax (Milakov, Gimelshein, 2018).
// A group reads its keys and values once. Segments start at multiples of 256 and every sum inside has a fixed order, so
// a row's bits depend on neither batch nor chunking. Limits: head_dim a multiple of 8, at most 128.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kThreads = 128, kDimMax = 128;

struct RowsArguments {
  BatchView batch;
  std::uint32_t first_row, group, chunks, splits;  // chunks: of at most kGroupMax heads, in a group
  const float* q;                                  // [rows][heads * dim]
  float scale;
  float* partial;  // [row][head][split][dim], then [row][head][split][2]: maximum and sum
  float* out;      // [rows][heads * dim]
};

template <class KV>
__device__ __forceinline__ const KV* cached(const KV* base, const PagedCache<KV>& cache, const std::uint32_t* table,
                                            unsigned kv_head, unsigned token) {
  const std::size_t block = table[token / kBlockSize];
  return base + ((block * cache.kv_heads + kv_head) * kBlockSize + token % kBlockSize) * cache.head_dim;
}

template <class KV>
__global__ void __launch_bounds__(kThreads) attention_split_kernel(RowsArguments a, PagedCache<KV> cache) {
  SHARED(float, query, kGroupMax * kDimMax);  // [heads][dim]; later [parts][heads][dim]
  SHARED(float, score, kGroupMax * kSplit);   // [heads][keys]
  const unsigned row = a.first_row + blockIdx.x, slice = a.batch.slice_of[row];
  if (slice == BatchView::kNoSlice) return;
  const unsigned visible = a.batch.positions[row] + 1, first = blockIdx.z * kSplit;
  if (first >= visible) return;
  const unsigned keys = min(kSplit, visible - first), dim = cache.head_dim;
  const unsigned kv_head = blockIdx.y / a.chunks, skip = blockIdx.y % a.chunks * kGroupMax;
  const unsigned heads = min(kGroupMax, a.group - skip), head = kv_head * a.group + skip;
  const std::uint32_t* table = a.batch.tables + static_cast<std::size_t>(slice) * a.batch.table_stride;

  const float* from = a.q + (static_cast<std::size_t>(row) * cache.heads + head) * dim;
  for (unsigned i = threadIdx.x; i < heads * dim; i += kThreads) query[i] = from[i] * a.scale;
  __syncthreads();

  for (unsigned key = threadIdx.x; key < keys; key += kThreads) {
    const KV* stored = cached(cache.keys, cache, table, kv_head, first + key);
    float sum[kGroupMax] = {};
    for (unsigned d = 0; d < dim; d += 8) {
      float k[8];
      load8(stored + d, k);
#pragma unroll
      for (unsigned h = 0; h < kGroupMax; ++h)
        if (h < heads)
#pragma unroll
          for (unsigned i = 0; i < 8; ++i) sum[h] += query[h * dim + d + i] * k[i];
    }
#pragma unroll
    for (unsigned h = 0; h < kGroupMax; ++h)
      if (h < heads) score[h * kSplit + key] = sum[h];
  }
  __syncthreads();

  const std::size_t summaries = static_cast<std::size_t>(gridDim.x) * cache.heads * a.splits;
  const std::size_t at = (static_cast<std::size_t>(blockIdx.x) * cache.heads + head) * a.splits + blockIdx.z;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (unsigned h = warp; h < heads; h += kThreads / 32) {
    float top = -INFINITY;
    for (unsigned key = lane; key < keys; key += 32) top = fmaxf(top, score[h * kSplit + key]);
    top = warp_max(top);
    float sum = 0;
    for (unsigned key = lane; key < keys; key += 32) {
      const float weight = expf(score[h * kSplit + key] - top);
      score[h * kSplit + key] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      float* summary = a.partial + summaries * dim + (at + h * a.splits) * 2;
      summary[0] = top, summary[1] = sum;
    }
  }
  __syncthreads();

  // A thread for each channel; where channels are fewer than threads, several share one, each a stretch of the keys.
  const unsigned parts = kThreads / dim, part = threadIdx.x / dim, d = threadIdx.x % dim, stretch = (kSplit + parts - 1) / parts;
  if (part < parts) {
    float sum[kGroupMax] = {};
    const unsigned end = min(keys, (part + 1) * stretch);
    for (unsigned key = part * stretch; key < end; ++key) {
      const float value = to_float(cached(cache.values, cache, table, kv_head, first + key)[d]);
#pragma unroll
      for (unsigned h = 0; h < kGroupMax; ++h)
        if (h < heads) sum[h] += score[h * kSplit + key] * value;
    }
#pragma unroll
    for (unsigned h = 0; h < kGroupMax; ++h)
      if (h < heads) query[(part * heads + h) * dim + d] = sum[h];
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < heads * dim; i += kThreads) {
    float sum = 0;
    for (unsigned p = 0; p < parts; ++p) sum += query[p * heads * dim + i];
    a.partial[(at + i / dim * a.splits) * dim + i % dim] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) attention_merge_kernel(RowsArguments a, unsigned heads, unsigned dim) {
  const unsigned row = a.first_row + blockIdx.x, head = blockIdx.y, d = threadIdx.x;
  if (a.batch.slice_of[row] == BatchView::kNoSlice || d >= dim) return;
  const unsigned splits = (a.batch.positions[row] + kSplit) / kSplit;
  const std::size_t at = (static_cast<std::size_t>(blockIdx.x) * heads + head) * a.splits;
  const float* values = a.partial + at * dim + d;
  const float* summary = a.partial + static_cast<std::size_t>(gridDim.x) * heads * a.splits * dim + at * 2;
  float top = summary[0], total = summary[1], sum = values[0];
  for (unsigned i = 1; i < splits; ++i) {
    const float merged = fmaxf(top, summary[2 * i]);
    const float keep = expf(top - merged), add = expf(summary[2 * i] - merged);
    total = total * keep + summary[2 * i + 1] * add;
    sum = sum * keep + values[static_cast<std::size_t>(i) * dim] * add;
    top = merged;
  }
  a.out[(static_cast<std::size_t>(row) * heads + head) * dim + d] = sum / total;
}

}  // namespace

template <class KV>
void attention_rows(Stream stream, const BatchView& batch, std::size_t first_row, std::size_t rows, const float* q,
                    const PagedCache<KV>& cache, float scale, unsigned splits, float* partial, float* out) {
  const unsigned group = cache.heads / cache.kv_heads, chunks = (group + kGroupMax - 1) / kGroupMax;
  const RowsArguments arguments{batch, static_cast<std::uint32_t>(first_row), group, chunks, splits, q, scale, partial, out};
  const auto count = static_cast<unsigned>(rows), heads = cache.heads, dim = cache.head_dim;
  auto* const kernel = attention_split_kernel<KV>;
  LAUNCH(kernel, dim3(count, cache.kv_heads * chunks, splits), kThreads, 0, stream, arguments, cache);
  LAUNCH(attention_merge_kernel, dim3(count, heads), kThreads, 0, stream, arguments, heads, dim);
}

template void attention_rows<float>(Stream, const BatchView&, std::size_t, std::size_t, const float*, const PagedCache<float>&,
                                    float, unsigned, float*, float*);
template void attention_rows<Bf16>(Stream, const BatchView&, std::size_t, std::size_t, const float*, const PagedCache<Bf16>&,
                                   float, unsigned, float*, float*);

}  // namespace qe::cuda
