// Rotary embedding (rotate-half) of queries and keys, and the write of keys and values into the paged cache.
// A block for every row; cosines come from a table that the host computed, so that the device's own functions, whose
// large-angle path is slow and differs in the last bit, play no part. Source: transformers' apply_rotary_pos_emb.

#include "base/types.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/kernels.h"

namespace qe::cuda {
namespace {

constexpr unsigned kThreads = 128;

template <class KV>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(BatchView batch, float* q, float* k, const float* v, const float* cosine, const float* sine, PagedCache<KV> cache) {
  const unsigned row = blockIdx.x, slice = batch.slice_of[row];
  if (slice == BatchView::kNoSlice) return;
  const unsigned dim = cache.head_dim, half = dim / 2, position = batch.positions[row];
  const float* c = cosine + static_cast<std::size_t>(position) * half;
  const float* s = sine + static_cast<std::size_t>(position) * half;
  float* query = q + static_cast<std::size_t>(row) * cache.heads * dim;
  for (unsigned i = threadIdx.x; i < cache.heads * half; i += kThreads) {
    float* head = query + i / half * dim;
    const unsigned d = i % half;
    const float a = head[d], b = head[d + half];
    head[d] = a * c[d] - b * s[d];
    head[d + half] = b * c[d] + a * s[d];
  }
  const std::size_t block = batch.tables[static_cast<std::size_t>(slice) * batch.table_stride + position / kBlockSize];
  const unsigned slot = position % kBlockSize;
  const std::size_t narrow = static_cast<std::size_t>(row) * cache.kv_heads * dim;
  for (unsigned i = threadIdx.x; i < cache.kv_heads * half; i += kThreads) {
    const unsigned head = i / half, d = i % half;
    const std::size_t from = narrow + head * dim + d;
    const std::size_t to = ((block * cache.kv_heads + head) * kBlockSize + slot) * dim + d;
    const float a = k[from], b = k[from + half];
    k[from] = a * c[d] - b * s[d];
    k[from + half] = b * c[d] + a * s[d];
    store_as(cache.keys + to, a * c[d] - b * s[d]);
    store_as(cache.keys + to + half, b * c[d] + a * s[d]);
    store_as(cache.values + to, v[from]);
    store_as(cache.values + to + half, v[from + half]);
  }
}

}  // namespace

template <class KV>
void rope_and_store(Stream stream, const BatchView& batch, float* q, float* k, const float* v, const float* cosine,
                    const float* sine, const PagedCache<KV>& cache) {
  auto* const kernel = rope_kernel<KV>;
  LAUNCH(kernel, batch.rows, kThreads, 0, stream, batch, q, k, v, cosine, sine, cache);
}

template void rope_and_store<float>(Stream, const BatchView&, float*, float*, const float*, const float*, const float*,
                                    const PagedCache<float>&);
template void rope_and_store<Bf16>(Stream, const BatchView&, float*, float*, const float*, const float*, const float*,
                                   const PagedCache<Bf16>&);

}  // namespace qe::cuda
