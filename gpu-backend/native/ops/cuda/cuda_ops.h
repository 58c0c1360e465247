#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "ops/cuda/cublaslt.h"
#include "ops/cuda/driver.h"
#include "ops/cuda/kernels.h"
#include "ops/ops.h"

namespace qe::cuda {

struct CudaOptions {
  enum class Precision : std::uint8_t {
    bf16,  // keys, values and large products in bf16, sums in fp32: what is served
    f32,   // nothing is rounded beyond the stored weights: for oracles
  };
  Precision precision = Precision::bf16;
  /** One kernel for every number of rows and both phases: the same bits alone or batched, cached or not. */
  bool deterministic = false;
  /** Decode steps are captured once per shape and replayed. */
  bool graphs = true;
  /** Rows the model's buffers have; a graph's padding stays below. */
  std::size_t rows_max = 0;
  /** cuBLASLt, for products of many rows; where it is absent, or in deterministic mode, our own kernel does them. */
  std::string gemm_library = cuda::gemm_library();
};

/** One call of the model, as recorded for a graph. */
struct Call {
  enum class Kind : std::uint8_t { embed, rms_norm, linear, linear_packed, rope_and_store, attention, silu_mul, experts, add_gated };
  Kind kind{};
  DType dtype{};
  float eps = 0;
  std::size_t rows = 0, width = 0, layer = 0;
  const void* weight = nullptr;
  const float *a = nullptr, *b = nullptr;
  float *y = nullptr, *z = nullptr;
  LinearParts parts{};
  PackedView packed{};
  ExpertsView mixture{};
  bool renormalise = false;
  bool operator==(const Call&) const = default;
};

/**
 * Ops on one NVIDIA GPU, or on the emulation of one. Work goes to one stream; begin() sends the batch's indices in one
 * copy, read() and take_tokens() are the waits.
 *
 * The second of two steps under way is prepared while the first one runs: what the host writes for a step, or reads of
 * it, lies in pinned memory of its turn. Memory on the device is shared, since the stream keeps its use in order.
 *
 * A step in which every sequence decodes is recorded up to gather_logit_rows(), its rows padded to a bucket and its
 * block tables to a power of two of segments. If a graph of the same calls and shape exists it is launched; otherwise
 * one is captured. What changes from step to step lies behind device pointers that stay.
 *
 * Bits: with Precision::f32 or `deterministic` the contract of Ops holds as it stands. Otherwise a row's arithmetic
 * also depends on how many rows share its step (a product of at most kGemvRows rows is a gemv) and on whether any of
 * them is prefill.
 */
class CudaOps final : public Ops {
 public:
  /** Throws Error(invalid_request) with one line when there is no device. */
  explicit CudaOps(const CudaOptions& options);
  ~CudaOps() override;

  [[nodiscard]] std::string level() const override;
  [[nodiscard]] unsigned threads() const override { return device_.multiprocessors; }
  [[nodiscard]] const Device& device() const { return device_; }
  [[nodiscard]] std::size_t graphs() const { return graphs_.size(); }
  [[nodiscard]] Stream stream() const { return stream_; }

  Weight upload_matrix(const TensorView& tensor) override;
  Weight upload_int8(const TensorView& tensor) override;
  Weight upload_int4(const Int4Matrix& matrix) override;
  void accept(const Experts& experts) override { table_of(experts); }
  Buffer upload_vector(const TensorView& tensor) override;
  Buffer allocate(std::size_t floats) override;
  void allocate_kv(const AttentionShape& shape, std::size_t blocks) override;
  [[nodiscard]] std::size_t kv_block_bytes(const AttentionShape& shape) const override;

  // Of the host tier: a block of every layer, its keys and then its values. Copies from and to pinned memory are quick.
  void save_block(BlockId block, std::byte* to) override;
  void load_block(BlockId block, const std::byte* from) override;

  void begin(const Batch& batch) override;
  void embed(const Weight& table, float* x) override;
  void rms_norm(const float* x, const Buffer& weight, float eps, std::size_t rows, std::size_t width, float* y) override;
  void linear(const float* x, std::size_t rows, std::span<const Linear> parts) override;
  void rope_and_store(std::size_t layer, float* q, float* k, const float* v) override;
  void attention(std::size_t layer, const float* q, float* out) override;
  void silu_mul(const float* gate, const float* up, std::size_t count, float* y) override;
  void experts(const float* x, const float* router, std::size_t rows, const Experts& experts, float* y) override;
  void add_gated(const float* gate, const float* x, std::size_t rows, std::size_t width, float* y) override;
  void gather_logit_rows(const float* from, std::size_t width, float* to) override;
  [[nodiscard]] bool chooses() const override { return true; }
  void launch_choose(float* logits, std::size_t width, std::size_t vocab, std::span<const Choice> choices) override;
  std::vector<TokenId> take_tokens(unsigned turn) override;
  std::span<const float> read(const float* from, std::size_t count) override;

 private:
  using Memory = std::shared_ptr<std::byte[]>;
  struct FreePinned {
    void operator()(std::byte* memory) const noexcept { free_pinned(memory); }
  };
  struct Pinned {
    std::unique_ptr<std::byte[], FreePinned> memory;
    std::size_t bytes = 0;
    /** At least so many bytes; what was there is lost. */
    std::byte* room_for(std::size_t wanted);
  };
  struct Turn {
    Pinned indices, sampling, chosen;
    std::vector<std::uint32_t> rows;  // of logits that the device chooses from, of `choices`
    std::size_t choices = 0;
    Event done = nullptr;  // its copies are
  };
  enum class Attention : std::uint8_t { rows, tiles };
  struct Shape {  // of a recorded step: what a graph's grids and strides were made for
    std::size_t rows, splits;
    bool operator==(const Shape&) const = default;
  };
  struct Captured {
    Shape shape;
    std::vector<Call> calls;
    Graph graph;
  };

  static Memory device_memory(std::size_t bytes);
  void grow(Memory& memory, std::size_t& has, std::size_t bytes);
  void upload(void* to, const std::byte* from, std::size_t bytes);
  void grow_rotations(std::size_t positions);
  void send_batch(const Batch& batch);
  std::size_t bucket(std::size_t rows) const;
  void issue(const Call& call);
  void run(const Call& call);
  void run_linear(const Call& call);
  void product(const Bf16* x, std::size_t rows, std::size_t in, const LinearPart& part);
  void run_packed(const Call& call);
  void* place(const void* from, std::size_t bytes);
  void run_attention(const Call& call);
  void run_experts(const Call& call);
  const ExpertWeights* table_of(const Experts& experts);
  void flush();
  void forget_graphs();
  template <class KV>
  PagedCache<KV> cache(std::size_t layer) const;
  [[nodiscard]] bool rounds() const { return options_.precision == CudaOptions::Precision::bf16; }

  CudaOptions options_;
  Device device_;
  Stream stream_ = nullptr;
  Stream copies_[2] = {nullptr, nullptr};
  std::unique_ptr<CublasLt> library_;
  std::vector<Memory> weights_;
  std::map<const void*, Memory> tables_;  // of experts' weights, by the first one's
  Pinned staging_[2], result_;
  std::size_t next_copy_ = 0;
  Turn turns_[2];
  unsigned turn_ = 0;  // of the step that began last

  AttentionShape shape_;
  std::vector<Memory> keys_, values_;       // per layer
  Memory cosine_, sine_;                    // [positions_][head_dim / 2]
  std::size_t positions_ = 0;
  Memory indices_, rounded_, partial_, unpacked_, sampling_, chosen_;
  Memory choices_, order_, slots_, starts_, inner_, outer_;  // of a mixture of experts
  std::size_t indices_bytes_ = 0, rounded_bytes_ = 0, partial_bytes_ = 0, unpacked_bytes_ = 0;
  std::size_t sampling_bytes_ = 0, chosen_bytes_ = 0, choices_bytes_ = 0, order_bytes_ = 0, slots_bytes_ = 0, starts_bytes_ = 0, inner_bytes_ = 0,
              outer_bytes_ = 0;

  const Batch* batch_ = nullptr;
  BatchView view_{};
  Attention attention_ = Attention::rows;
  unsigned tile_warps_ = 4;
  Shape step_{};
  bool recording_ = false;
  std::vector<Call> calls_;
  std::vector<Captured> graphs_;
};

}  // namespace qe::cuda
