#pragma once

// What the device computes, as the host calls it. Every function puts its kernels on the stream and returns; all
// pointers are device memory; activations are fp32, row major.

#include <cstddef>
#include <cstdint>

#include "checkpoint/tensor.h"
#include "ops/cuda/driver.h"

namespace qe::cuda {

struct Bf16;

/** One tile of consecutive query rows of one sequence. */
struct QueryTile {
  std::uint32_t row, count, slice, position;  // position: of its first row in the sequence
};

/** The step's batch on the device. Rows whose slice is kNoSlice pad the batch: nothing is stored or attended for them. */
struct BatchView {
  static constexpr std::uint32_t kNoSlice = 0xffffffff;
  const std::uint32_t* tokens;      // [rows]
  const std::uint32_t* positions;   // [rows]
  const std::uint32_t* slice_of;    // [rows]
  const std::uint32_t* tables;      // [slices][table_stride], block ids
  const QueryTile* tiles;           // [tiles]
  const std::uint32_t* logit_rows;  // [logits]
  std::uint32_t rows, table_stride, tiles_count;
};

/** The paged cache of one layer: keys and values are [block][kv_head][16 tokens][head_dim]. */
template <class KV>
struct PagedCache {
  KV* keys;
  KV* values;
  std::uint32_t heads, kv_heads, head_dim;
};

/** Keys per segment of split-K attention; segments start at its multiples, whatever the batch. */
inline constexpr unsigned kSplit = 256;
/** Key heads' query groups are taken in chunks of at most so many. */
inline constexpr unsigned kGroupMax = 8;

/** tokens: [rows], from kChosenBefore on places in `chosen` */
void embed(Stream stream, const void* table, DType dtype, const std::uint32_t* tokens, const std::uint32_t* chosen, std::size_t rows,
           std::size_t width, float* x);
void rms_norm(Stream stream, const float* x, const float* weight, float eps, std::size_t rows, std::size_t width, float* y);
void silu_mul(Stream stream, const float* gate, const float* up, std::size_t count, float* y);
/** to[i] = from[rows[i]] */
void gather(Stream stream, const float* from, const std::uint32_t* rows, std::size_t count, std::size_t width, float* to);
/** Rounds to nearest even. */
void round_to_bf16(Stream stream, const float* x, std::size_t count, Bf16* y);
void widen(Stream stream, const void* x, DType dtype, std::size_t count, float* y);

/** Rotates q and k in place and stores k and v; cosine, sine: [positions][head_dim / 2]. */
template <class KV>
void rope_and_store(Stream stream, const BatchView& batch, float* q, float* k, const float* v, const float* cosine,
                    const float* sine, const PagedCache<KV>& cache);

/** Split-K attention, a block for every row, group of heads and segment: for decode, and for anything in fp32.
    @param partial scratch, attention_scratch() floats @param splits segments of the longest row */
template <class KV>
void attention_rows(Stream stream, const BatchView& batch, std::size_t first_row, std::size_t rows, const float* q,
                    const PagedCache<KV>& cache, float scale, unsigned splits, float* partial, float* out);
inline std::size_t attention_scratch(std::size_t rows, std::size_t heads, std::size_t head_dim, unsigned splits) {
  return rows * heads * splits * (head_dim + 2);
}
/** Attention on tensor cores over the batch's tiles of at most 16 * warps rows; head_dim 64 or 128. */
void attention_tiles(Stream stream, const BatchView& batch, unsigned warps, const float* q, const PagedCache<Bf16>& cache,
                     float scale, float* out);

/** One of up to kPartsMax products with the same input. */
struct LinearPart {
  const void* weight;  // [out][in]
  const float* bias;   // [out] or null
  float* y;            // [rows][out]
  std::uint32_t out;
  bool add;
  std::uint32_t stride = 0;  // floats between rows of y; 0: out
  bool operator==(const LinearPart&) const = default;
};
inline constexpr std::size_t kPartsMax = 4;
struct LinearParts {
  LinearPart part[kPartsMax];
  std::uint32_t count;
  bool operator==(const LinearParts&) const = default;
};

/** fp32 rows times weights as stored; reads every weight once per kGemvRows rows. */
void gemv(Stream stream, const float* x, std::size_t rows, std::size_t in, DType dtype, const LinearParts& parts);
inline constexpr std::size_t kGemvRows = 8;
/** bf16 rows times bf16 weights on tensor cores; `in` a multiple of 8. */
void gemm(Stream stream, const Bf16* x, std::size_t rows, std::size_t in, const LinearParts& parts);

/** y[row] += bias; y: [rows][stride] */
void add_bias(Stream stream, const float* bias, std::size_t rows, std::size_t width, std::size_t stride, float* y);

/** A matrix of four or eight bits on the device, laid out as packed.cu says. */
struct PackedView {
  const void* data;               // [out][in * bits / 8]
  const float *scales, *offsets;  // [out][in / group]; no offsets with eight bits
  std::uint32_t out, in, group;   // group: a multiple of 32 that divides `in`
  std::uint32_t bits;
  bool operator==(const PackedView&) const = default;
};
void gemv_packed(Stream stream, const PackedView& w, const float* x, std::size_t rows, const float* bias, float* y, bool add);
/** Outputs [first, first + outputs) as bf16, [outputs][in]. */
void unpack(Stream stream, const PackedView& w, std::size_t first, std::size_t outputs, Bf16* to);
/** Of `count` weights, whole groups: q [count], scales [count / group]. */
void round_to_int8(Stream stream, const void* weight, DType dtype, std::size_t count, std::size_t group, std::int8_t* q, float* scales);

struct ExpertWeights {
  const void *gate, *up, *down;  // [inner][hidden] twice, [hidden][inner]
};
struct ExpertsView {
  const ExpertWeights* experts;  // [count]
  std::uint32_t count, hidden, inner, top_k;
  bool operator==(const ExpertsView&) const = default;
};
struct ExpertChoice {
  std::uint32_t expert;
  float weight;
};
/** choices: [rows][top_k], ascending ids; router: [rows][experts], logits. */
void route(Stream stream, const float* router, std::size_t rows, std::size_t experts, std::size_t top_k, bool renormalise,
           ExpertChoice* choices);
/** Pairs (row, choice) sorted by expert: a pair's place there is its slot. */
struct ExpertGroups {
  std::uint32_t *order, *slot_of;  // [pairs]: the pair in a slot, the slot of a pair
  std::uint32_t* starts;           // [experts + 1]: each expert's first slot
};
void group_by_expert(Stream stream, const ExpertChoice* choices, std::size_t pairs, std::size_t experts, const ExpertGroups& groups);
/** outer = each pair's expert of x, [pairs][hidden] by slot, in fp32 or, by tiles, on tensor cores.
    @param inner scratch, [pairs][inner] */
void experts_by_rows(Stream stream, const ExpertsView& view, DType dtype, const float* x, const ExpertGroups& groups, float* inner, float* outer);
void experts_by_tiles(Stream stream, const ExpertsView& view, const Bf16* x, std::size_t rows, const ExpertGroups& groups, Bf16* inner,
                      float* outer);
/** y += each row's experts by weight */
void combine_experts(Stream stream, const ExpertsView& view, const ExpertChoice* choices, std::size_t rows, const ExpertGroups& groups,
                     const float* outer, float* y);
/** y[row] += sigmoid(gate[row]) * x[row] */
void add_gated(Stream stream, const float* gate, const float* x, std::size_t rows, std::size_t width, float* y);

/** Changes one logit before its row is chosen from. */
struct Adjustment {
  static constexpr std::uint32_t kBias = 0xffffffff, kForbidden = 0xfffffffe;
  std::uint32_t token;
  std::uint32_t count;  // kBias, kForbidden, or how often the token seen is in the output
  float bias;
};
/** How a row's token is chosen: base/choice.h, as the kernel wants it. */
struct RowChoice {
  double scale;  // 1 / temperature; 0: the most likely token
  double top_p, min_p, noise;
  double repetition_penalty, presence_penalty, frequency_penalty;
  std::uint32_t row, top_k;               // top_k: 0 or at most kTopKMax
  std::uint32_t biases, seen, forbidden;  // adjustments, one kind after the other, each token once in a kind
  std::uint32_t first;                    // where they begin
};
inline constexpr std::size_t kTopKMax = 512;
/** chosen: [rows of logits], at each choice's row its token, or 0xffffffff where the kernel leaves it to the host; the
    logits end as they were.
    @param saved scratch, a float for each adjustment */
void choose(Stream stream, float* logits, std::size_t width, std::size_t vocab, const RowChoice* choices, std::size_t count,
            const Adjustment* adjustments, float* saved, std::uint32_t* chosen);

}  // namespace qe::cuda
