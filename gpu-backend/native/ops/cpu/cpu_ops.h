#pragma once

#include <memory>
#include <string_view>

#include "base/thread_pool.h"
#include "ops/cpu/aligned_buffer.h"
#include "ops/cpu/kernels.h"
#include "ops/ops.h"

namespace qe::cpu {

/**
 * Ops on this machine's cores: weights are copied into huge pages in the order in which the kernels read them, an
 * embedding table is read where it lies; activations and KV are fp32.
 *
 * Bits: every output is computed whole by one thread in an order fixed by the kernel level, so neither the number of
 * threads nor the batch changes a result. Prefill and decode share all kernels and therefore agree bit for bit.
 */
class CpuOps final : public Ops {
 public:
  /** @param threads 0: one per physical core. @param level "" picks the best; see select_kernels(). */
  explicit CpuOps(unsigned threads = 0, std::string_view level = "");

  [[nodiscard]] std::string level() const override { return std::string(kernels_.level); }
  [[nodiscard]] unsigned threads() const override { return pool_.threads(); }

  Weight upload_matrix(const TensorView& tensor) override;
  Weight upload_table(const TensorView& tensor, const Weight* tied) override;
  Weight upload_int8(const TensorView& tensor) override;
  Weight upload_int4(const Int4Matrix& matrix) override;
  Buffer upload_vector(const TensorView& tensor) override;
  Buffer allocate(std::size_t floats) override;
  void allocate_kv(const AttentionShape& shape, std::size_t blocks) override;
  [[nodiscard]] std::size_t kv_block_bytes(const AttentionShape& shape) const override;

  void save_block(BlockId block, std::byte* to) override;
  void load_block(BlockId block, const std::byte* from) override;

  void begin(const Batch& batch) override;
  void embed(const Weight& table, float* x) override;
  void rms_norm(const float* x, const Buffer& weight, float eps, std::size_t rows, std::size_t width,
                float* y) override;
  void linear(const float* x, std::size_t rows, std::span<const Linear> parts) override;
  void gated(const float* x, std::size_t rows, const Linear& gate, const Linear& up) override;
  void rope_and_store(std::size_t layer, float* q, float* k, const float* v) override;
  void attention(std::size_t layer, const float* q, float* out) override;
  void silu_mul(const float* gate, const float* up, std::size_t count, float* y) override;
  void experts(const float* x, const float* router, std::size_t rows, const Experts& experts, float* y) override;
  void add_gated(const float* gate, const float* x, std::size_t rows, std::size_t width, float* y) override;
  void gather_logit_rows(const float* from, std::size_t width, float* to) override;
  std::span<const float> read(const float* from, std::size_t count) override { return {from, count}; }

  ThreadPool& pool() { return pool_; }
  const Kernels& kernels() const { return kernels_; }

 private:
  struct Tile {  // up to Kernels::attention_rows consecutive rows of one slice
    std::size_t slice;
    std::size_t offset;  // of its first row inside the slice
    std::size_t rows;
  };

  /** Outputs [begin, end) of one matrix product, or of one gated by another. */
  struct Run {
    Matmul job;
    Projection part;
    std::optional<Projection> up;
    std::size_t begin, end;
    std::size_t packed;  // index of its x among the packed ones, or kAsItIs
  };
  static constexpr std::size_t kAsItIs = ~std::size_t{0};
  /** An x to be packed, for all runs that want it so. */
  struct Packed {
    Matmul job;
    Projection part;
    std::size_t at;  // in packed_
  };
  /** Cuts a product into runs of `length` outputs, several a thread, so that one which loses its core holds up little;
   * with few rows into shorter and shorter ones. */
  void add_runs(const Matmul& job, const Projection& part, const std::optional<Projection>& up, std::size_t length);
  /** Outputs of a run, for `outputs` of them in all. */
  [[nodiscard]] std::size_t run_length(std::size_t outputs, std::size_t in, std::size_t rows) const;
  std::size_t packed_for(const Matmul& job, const Projection& part);
  void do_runs();
  /** `rows(first, count)` gives outputs of the matrix as they were stored. @returns where they lie now */
  template <class Rows>
  const std::byte* keep(const MatrixForm& form, Rows&& rows);

  const Kernels& kernels_;
  ThreadPool pool_;
  std::vector<Buffer> kept_;  // memory for weights
  std::byte* kept_free_ = nullptr;
  std::size_t kept_left_ = 0;  // bytes at kept_free_
  std::vector<Run> runs_;
  std::vector<Packed> packs_;
  std::vector<std::pair<std::size_t, std::size_t>> blocks_to_pack_;  // (index in packs_, block)
  std::size_t packed_size_ = 0;
  AlignedBuffer packed_;
  std::vector<float> routed_x_, routed_gate_, routed_up_, routed_y_;  // [rows * top_k][hidden, inner, inner, hidden]
  AttentionShape shape_;
  std::size_t padded_ = 0;       // head_dim rounded up to kBlockSize
  std::size_t key_block_ = 0;    // floats of one block's keys in one layer: [kv_heads][head_dim][16]
  std::size_t value_block_ = 0;  // floats of one block's values in one layer: [kv_heads][16][padded]
  std::vector<Buffer> keys_;     // per layer, [blocks][key_block]
  std::vector<Buffer> values_;   // per layer, [blocks][value_block]
  const Batch* batch_ = nullptr;
  std::vector<Tile> tiles_;
  std::vector<std::size_t> slice_of_;  // [rows]
  std::vector<float> cosine_, sine_;   // [rows][head_dim / 2]
};

}  // namespace qe::cpu
