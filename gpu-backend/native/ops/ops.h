#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/choice.h"
#include "base/error.h"
#include "base/types.h"
#include "checkpoint/tensor.h"

namespace qe {

/** plain: numbers of a dtype. int8, int4: w[o][i] = scales[o][i / group] * q[o][i] + offsets[o][i / group]. */
enum class Packing : std::uint8_t { plain, int8, int4 };

/** A weight matrix on the device, [out][in], in the order its Ops likes; its memory belongs to them. */
struct Weight {
  const void* data = nullptr;
  DType dtype = DType::f32;  // of a plain matrix
  std::size_t out = 0;
  std::size_t in = 0;
  Packing packing = Packing::plain;
  std::size_t group = 0;           // inputs that share a scale; divides `in`
  const float* scales = nullptr;   // [out][in / group]
  const float* offsets = nullptr;  // the same; null: 0
};

/** The routed experts of one sparse layer. */
struct Experts {
  std::vector<Weight> gate, up, down;  // per expert: [inner][hidden] twice, [hidden][inner]
  std::size_t top_k = 0;
  bool renormalise = false;  // whether the chosen experts' weights are scaled to sum to 1
};

/** Memory on the device, freed with the handle. */
using Buffer = std::shared_ptr<float[]>;

/** Consecutive tokens of one sequence inside a batch. */
struct BatchSlice {
  std::size_t row = 0;              // first row in the batch
  std::size_t count = 0;            // rows
  std::size_t position = 0;         // of the first row in its sequence
  std::span<const BlockId> blocks;  // the sequence's block table, long enough for position + count tokens
};

/** What one step computes: rows of tokens, grouped by sequence. */
struct Batch {
  std::vector<TokenId> tokens;         // [rows]
  std::vector<std::size_t> positions;  // [rows]
  std::vector<BatchSlice> slices;
  std::vector<std::size_t> logit_rows;  // rows whose logits are wanted, ascending
  unsigned turn = 0;                    // 0 or 1: two steps may be under way, each with its own

  [[nodiscard]] std::size_t rows() const { return tokens.size(); }
  void clear() { tokens.clear(), positions.clear(), slices.clear(), logit_rows.clear(); }
};

/** How attention is shaped; the same for every layer. */
struct AttentionShape {
  std::size_t layers = 0;
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;
  float scale = 1;                 // applied to q.k
  float rope_magnitude = 1;        // factor of cos and sin (YaRN), else 1
  std::vector<float> frequencies;  // [head_dim / 2], radians per position
};

/** One matrix product of several with the same input: y = x W^T + bias, or added to y. */
struct Linear {
  const Weight* weight = nullptr;
  const float* bias = nullptr;  // device, [out], or null
  float* y = nullptr;           // device, [rows][out]
  bool add = false;
};

/**
 * Every arithmetic operation the model needs; the model is written once on this interface. All pointers are device
 * memory from allocate() or upload_*(); all activations are fp32, row major. Calls are issued by one thread, in order,
 * take effect in that order, and may return before they finish; read() and take_tokens() wait.
 *
 * Contract: a row's result never depends on the other rows of the batch, nor on how its sequence was cut into slices.
 */
class Ops {
 public:
  virtual ~Ops() = default;

  [[nodiscard]] virtual std::string level() const = 0;
  [[nodiscard]] virtual unsigned threads() const = 0;

  /** Keeps the tensor's own dtype. */
  virtual Weight upload_matrix(const TensorView& tensor) = 0;
  /** A table for embed() alone; the view must outlive the Ops. @param tied the same as a matrix, where that exists */
  virtual Weight upload_table(const TensorView& tensor, const Weight* tied) {
    return tied != nullptr && tied->packing == Packing::plain ? *tied : upload_matrix(tensor);
  }
  /** Rounded to eight bits, a scale for each group of inputs; plain where `in` is no multiple of 16. */
  virtual Weight upload_int8(const TensorView&) { return lacks("int8 weights"); }
  virtual Weight upload_int4(const Int4Matrix&) { return lacks("four-bit weights"); }
  /** Throws Error(checkpoint) for a mixture that experts() could not compute. */
  virtual void accept(const Experts&) {}
  /** Widened to fp32, [n]. */
  virtual Buffer upload_vector(const TensorView& tensor) = 0;
  /** Zeroed floats. */
  virtual Buffer allocate(std::size_t floats) = 0;

  /** Reserves the paged KV cache: `blocks` blocks of kBlockSize tokens for every layer. */
  virtual void allocate_kv(const AttentionShape& shape, std::size_t blocks) = 0;
  /** Bytes of KV one block takes over all layers. */
  [[nodiscard]] virtual std::size_t kv_block_bytes(const AttentionShape& shape) const = 0;

  /** Copies a block's keys and values of all layers, kv_block_bytes(), to host memory and back, after all work before.
   */
  virtual void save_block(BlockId /*block*/, std::byte* /*to*/) { lacks("a host tier of the prefix cache"); }
  virtual void load_block(BlockId /*block*/, const std::byte* /*from*/) { lacks("a host tier of the prefix cache"); }

  /** Announces the batch the following calls work on; it must stay alive until the last of them. Waits for the step
      that had its turn before. */
  virtual void begin(const Batch& batch) = 0;
  /** x[row] = table[token of row], of upload_table(); x: [rows][width] */
  virtual void embed(const Weight& table, float* x) = 0;
  /** y = x / sqrt(mean(x^2) + eps) * weight; x, y: [rows][width] */
  virtual void rms_norm(const float* x, const Buffer& weight, float eps, std::size_t rows, std::size_t width,
                        float* y) = 0;
  /** Each part: y = x W^T (+ bias) (+ y); x: [rows][in] */
  virtual void linear(const float* x, std::size_t rows, std::span<const Linear> parts) = 0;
  /** Rotates q and k in place (rotate-half) and writes k, v into the batch's blocks.
      q: [rows][heads * head_dim]; k, v: [rows][kv_heads * head_dim] */
  virtual void rope_and_store(std::size_t layer, float* q, float* k, const float* v) = 0;
  /** out = softmax(q K^T * scale) V, causal, per head; q, out: [rows][heads * head_dim] */
  virtual void attention(std::size_t layer, const float* q, float* out) = 0;
  /** gate.y = silu(gate) * up, which have as many outputs and no bias; leaves anything in up.y. */
  virtual void gated(const float* x, std::size_t rows, const Linear& gate, const Linear& up) {
    linear(x, rows, std::array{gate, up});
    silu_mul(gate.y, up.y, rows * gate.weight->out, gate.y);
  }
  /** y = silu(gate) * up; [count] */
  virtual void silu_mul(const float* gate, const float* up, std::size_t count, float* y) = 0;
  /** y += sum of weight_e * expert_e(x) over the top_k experts e of each row, in ascending e, where the weights are a
      softmax over all of the row's router logits; x, y: [rows][hidden]; router: [rows][experts] */
  virtual void experts(const float* /*x*/, const float* /*router*/, std::size_t /*rows*/, const Experts&,
                       float* /*y*/) {
    lacks("mixtures of experts");
  }
  /** y[row] += sigmoid(gate[row]) * x[row]; gate: [rows]; x, y: [rows][width] */
  virtual void add_gated(const float* /*gate*/, const float* /*x*/, std::size_t /*rows*/, std::size_t /*width*/,
                         float* /*y*/) {
    lacks("gated experts");
  }
  /** to[i] = from[batch.logit_rows[i]]; [..][width] */
  virtual void gather_logit_rows(const float* from, std::size_t width, float* to) = 0;
  /** Whether the two calls below work here. */
  [[nodiscard]] virtual bool chooses() const { return false; }
  /** Ends a step: a token, or kUndecided, for each row of logits, of which the first `vocab` of `width` exist; leaves
      the logits as they were. Does not wait. logits: [choices][width] */
  virtual void launch_choose(float* /*logits*/, std::size_t /*width*/, std::size_t /*vocab*/,
                             std::span<const Choice> /*choices*/) {
    lacks("a choice of tokens");
  }
  /** Waits for the step of that turn, and for none behind it; @returns what it chose, [choices] */
  virtual std::vector<TokenId> take_tokens(unsigned /*turn*/) {
    lacks("a choice of tokens");
  }
  /** Waits for all work and gives the host its view of `count` floats. */
  virtual std::span<const float> read(const float* from, std::size_t count) = 0;

 protected:
  /** What an implementation leaves out is refused when the checkpoint that wants it is opened. */
  [[noreturn]] Weight lacks(const char* what) const {
    throw Error(ErrorCode::checkpoint, concat(what, " cannot run on this device (", level(), ")"));
  }
};

}  // namespace qe
