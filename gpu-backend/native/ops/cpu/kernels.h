#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace qe::cpu {

enum class Format : std::uint8_t { f32, f16, bf16, int8, int4 };

/** A weight matrix. int8 and int4: w = scale * q (+ offset, int4 alone), one for each output and `group` of inputs. */
struct MatrixForm {
  Format format;
  std::size_t out, in;
  std::size_t group = 0;
};

/** Some outputs of a matrix, row major. */
struct MatrixRows {
  const void* weight;              // [outputs][in]; int4 as Int4Matrix::nibbles
  const float* scales = nullptr;   // [outputs][in / group]: int8, int4
  const float* offsets = nullptr;  // the same: int4
};

/** One linear layer's share of a matmul: y[m][n] = sum_k x[m][k] * w[n][k] + bias[n], or that added to y. */
struct Projection {
  const std::byte* weight;  // as Kernels::arrange wrote it
  Format format;
  const float* bias;  // [out] or null
  float* y;           // [rows][stride]
  std::size_t out;
  std::size_t stride;
  bool add;  // y += instead of y =
  std::size_t group = 0;
};

struct Matmul {
  const float* x;  // [rows][in]
  std::size_t rows;
  std::size_t in;
  const std::byte* packed = nullptr;  // what Kernels::pack made of x, where packed_bytes asks for it
};
inline constexpr std::size_t kPackRows = 16;
inline constexpr std::size_t kArrangeStep = 32;

/** Attention of a few consecutive rows of one sequence over all its earlier keys, for one KV head's group of queries.
 */
struct AttentionTile {
  const float* q;         // [rows][q_stride], already rotated; head h of the group at h * head_dim
  float* out;             // [rows][q_stride], the same layout
  const float* keys;      // layer base: [block][kv_head][head_dim][16]
  const float* values;    // layer base: [block][kv_head][16][padded]
  const BlockId* blocks;  // the sequence's block table
  std::size_t rows;       // <= Kernels::attention_rows
  std::size_t position;   // of the first row: row r sees keys [0, position + r]
  std::size_t q_stride;   // floats between rows
  std::size_t group;      // query heads per KV head
  std::size_t head_dim;
  std::size_t padded;       // head_dim rounded up to 16: the stride of a value row
  std::size_t key_block;    // floats between two blocks' keys (kv_heads * head_dim * 16)
  std::size_t value_block;  // floats between two blocks' values
  float scale;
};

/** Keys per segment of the softmax. Segments start at multiples of it, so their bounds never depend on chunking. */
inline constexpr std::size_t kSegment = 256;

/** The inner loops of one instruction-set level. Every function computes whole outputs: callers split work freely. */
struct Kernels {
  std::string_view level;
  /** Runs of outputs begin at multiples of it. */
  std::size_t outputs_step;
  /** Outputs of a run at least, where rows are many: each run reads all of x from afar. */
  std::size_t outputs_least;
  /** Bytes of a matrix as matmul reads it. Alignment: 64. */
  std::size_t (*arranged_bytes)(const MatrixForm&);
  /** Writes outputs [first, first + count) of that, `first` a multiple of kArrangeStep. */
  void (*arrange)(const MatrixForm&, const MatrixRows&, std::size_t first, std::size_t count, std::byte* matrix);
  /** Bytes of each kPackRows rows of x in the form that matmul wants beside such weights; 0: it reads x as it is. */
  std::size_t (*packed_bytes)(const Matmul&, const Projection&);
  /** Writes rows [kPackRows * block, ...) of that form at its place in `to`, which is aligned to 64 bytes. */
  void (*pack)(const Matmul&, const Projection&, std::size_t block, std::byte* to);
  /** Outputs [begin, end) of one projection, for all rows; end: a multiple of outputs_step, or the last. */
  void (*matmul)(const Matmul&, const Projection&, std::size_t begin, std::size_t end);
  /** Whether `gated` takes such a product. */
  bool (*gates)(const Matmul&, const Projection& gate, const Projection& up);
  /** Outputs [begin, end) of gate.y = silu(gate) * up; bounds are multiples of outputs_step, bits those of matmul. */
  void (*gated)(const Matmul&, const Projection& gate, const Projection& up, std::size_t begin, std::size_t end);
  std::size_t attention_rows;
  void (*attention)(const AttentionTile&);
  /** y = x / sqrt(mean(x^2) + eps) * weight, one row of `width`. */
  void (*rms_norm)(const float* x, const float* weight, float eps, std::size_t width, float* y);
  /** y = gate / (1 + exp(-gate)) * up, `count` elements. */
  void (*silu_mul)(const float* gate, const float* up, std::size_t count, float* y);
  /** Any plain format to fp32. */
  void (*widen)(const void* from, Format format, std::size_t count, float* to);
  /** Sum of all 32-bit words: the read-bandwidth probe of the bench. */
  std::uint32_t (*read)(const void* from, std::size_t bytes);
};

/** The levels this machine can run, the default first: "amx"; "amx-bf16", which rounds to bf16 what meets weights of
 * bf16, and in attention; "avx512"; "avx2"; and "base" (SSE2, NEON or plain C++). */
std::vector<const Kernels*> available_kernels();
/** The named level, or the best one for "" ; throws Error(invalid_request) for a level this machine lacks. */
const Kernels& select_kernels(std::string_view level);

}  // namespace qe::cpu
