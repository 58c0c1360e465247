#include "ops/cuda/cuda_ops.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace qe::cuda {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{16} << 20;
constexpr std::size_t kGraphsMax = 64;
constexpr std::size_t kTileRows = 64;
/** Rows of split-K attention that share scratch memory. */
constexpr std::size_t kScratchRows = 64;

using Pinned = std::unique_ptr<std::byte[], void (*)(void*) noexcept>;
Pinned pinned(std::size_t bytes) { return {static_cast<std::byte*>(allocate_pinned(bytes)), free_pinned}; }

}  // namespace

CudaOps::CudaOps(const CudaOptions& options)
    : options_(options),
      staging_{Pinned(nullptr, free_pinned), Pinned(nullptr, free_pinned)},
      indices_host_(nullptr, free_pinned),
      result_(nullptr, free_pinned) {
  if (const auto why = unavailable()) throw Error(ErrorCode::invalid_request, *why);
  device_ = cuda::device();
  stream_ = create_stream();
  for (Stream& copy : copies_) copy = create_stream();
  for (Pinned& part : staging_) part = pinned(kStagingBytes);
}

CudaOps::~CudaOps() {
  forget_graphs();
  for (Stream copy : copies_) destroy_stream(copy);
  destroy_stream(stream_);
}

std::string CudaOps::level() const {
  return concat("sm_", device_.major, device_.minor, rounds() ? " bf16" : " f32", options_.deterministic ? " deterministic" : "");
}

CudaOps::Memory CudaOps::device_memory(std::size_t bytes) {
  return {static_cast<std::byte*>(allocate_device(bytes)), free_device};
}

/** Before a capture, never inside one: graphs hold the addresses. */
void CudaOps::grow(Memory& memory, std::size_t& has, std::size_t bytes) {
  if (bytes <= has) return;
  has = std::bit_ceil(bytes);
  memory = device_memory(has);
  forget_graphs();
}

/** In pieces through two pinned buffers: one is filled from the file's pages while the other is on its way. */
void CudaOps::upload(void* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += kStagingBytes) {
    const std::size_t count = std::min(kStagingBytes, bytes - at), turn = next_copy_++ % 2;
    synchronize(copies_[turn]);
    std::memcpy(staging_[turn].get(), from + at, count);
    copy_to_device(copies_[turn], static_cast<std::byte*>(to) + at, staging_[turn].get(), count);
  }
}

Weight CudaOps::upload_matrix(const TensorView& tensor) {
  weights_.push_back(device_memory(tensor.bytes()));
  upload(weights_.back().get(), tensor.data, tensor.bytes());
  return {weights_.back().get(), tensor.dtype, tensor.shape.at(0), tensor.shape.at(1)};
}

Buffer CudaOps::upload_vector(const TensorView& tensor) {
  const Memory stored = device_memory(tensor.bytes());
  upload(stored.get(), tensor.data, tensor.bytes());
  for (Stream copy : copies_) synchronize(copy);
  Buffer buffer = allocate(tensor.elements());
  widen(stream_, stored.get(), tensor.dtype, tensor.elements(), buffer.get());
  synchronize(stream_);
  return buffer;
}

Buffer CudaOps::allocate(std::size_t floats) {
  const std::size_t bytes = std::max<std::size_t>(floats, 1) * sizeof(float);
  Buffer buffer(static_cast<float*>(allocate_device(bytes)), free_device);
  zero_device(stream_, buffer.get(), bytes);
  return buffer;
}

std::size_t CudaOps::kv_block_bytes(const AttentionShape& shape) const {
  return shape.layers * shape.kv_heads * kBlockSize * shape.head_dim * 2 * (rounds() ? 2 : 4);
}

void CudaOps::allocate_kv(const AttentionShape& shape, std::size_t blocks) {
  if (shape.head_dim % 8 != 0 || shape.head_dim > 128 || shape.kv_heads == 0 || shape.heads % shape.kv_heads != 0)
    throw Error(ErrorCode::checkpoint, concat("CUDA attention takes a head_dim that is a multiple of 8, at most 128, and whole groups of heads; not ",
                                              shape.head_dim, ", ", shape.heads, " heads, ", shape.kv_heads, " KV heads"));
  for (Stream copy : copies_) synchronize(copy);
  shape_ = shape;
  keys_.clear(), values_.clear();
  const std::size_t bytes = blocks * kv_block_bytes(shape) / shape.layers / 2;
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    keys_.push_back(device_memory(bytes));
    values_.push_back(device_memory(bytes));
    zero_device(stream_, keys_.back().get(), bytes);
    zero_device(stream_, values_.back().get(), bytes);
  }
  positions_ = 0;
  forget_graphs();
}

/** As the reference does it: the angle is rounded to fp32 before its cosine is taken. */
void CudaOps::grow_rotations(std::size_t positions) {
  if (positions <= positions_) return;
  positions_ = std::max<std::size_t>(std::bit_ceil(positions), 1024);
  const std::size_t half = shape_.frequencies.size();
  std::vector<float> cosine(positions_ * half), sine(positions_ * half);
  for (std::size_t position = 0; position < positions_; ++position)
    for (std::size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * shape_.frequencies[i];
      cosine[position * half + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * shape_.rope_magnitude;
      sine[position * half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * shape_.rope_magnitude;
    }
  for (auto [memory, values] : {std::pair{&cosine_, &cosine}, {&sine_, &sine}}) {
    *memory = device_memory(values->size() * sizeof(float));
    upload(memory->get(), reinterpret_cast<const std::byte*>(values->data()), values->size() * sizeof(float));
  }
  for (Stream copy : copies_) synchronize(copy);
  forget_graphs();
}

std::size_t CudaOps::bucket(std::size_t rows) const {
  const std::size_t step = rows <= 8 ? 1 : rows <= 64 ? 8 : 32;
  const std::size_t padded = rows <= 8 ? std::bit_ceil(rows) : round_up(rows, step);
  return padded <= options_.rows_max ? padded : rows;
}

void CudaOps::begin(const Batch& batch) {
  batch_ = &batch;
  const bool decodes = std::ranges::all_of(batch.slices, [](const BatchSlice& slice) { return slice.count == 1; });
  std::size_t longest = 1;
  for (const BatchSlice& slice : batch.slices) longest = std::max(longest, slice.position + slice.count);
  grow_rotations(longest);
  recording_ = options_.graphs && decodes;
  step_ = {batch.rows(), div_up(longest, kSplit)};
  if (recording_) step_ = {bucket(batch.rows()), std::bit_ceil(step_.splits)};
  const bool tiles_fit = rounds() && (shape_.head_dim == 64 || shape_.head_dim == 128);
  attention_ = tiles_fit && (options_.deterministic || !decodes) ? Attention::tiles : Attention::rows;
  tile_warps_ = decodes ? 1 : kTileRows / 16;
  if (attention_ == Attention::rows) {
    const std::size_t rows = std::min(kScratchRows, step_.rows);
    grow(partial_, partial_bytes_, attention_scratch(rows, shape_.heads, shape_.head_dim, static_cast<unsigned>(step_.splits)) * sizeof(float));
  }
  calls_.clear();
  send_batch(batch);
}

/** All indices in one copy. Their places depend on the step's shape alone, so that a graph finds them again. */
void CudaOps::send_batch(const Batch& batch) {
  std::vector<QueryTile> tiles;
  for (std::uint32_t s = 0; s < batch.slices.size(); ++s) {
    const BatchSlice& slice = batch.slices[s];
    for (std::size_t i = 0; i < slice.count; i += kTileRows)
      tiles.push_back({static_cast<std::uint32_t>(slice.row + i), static_cast<std::uint32_t>(std::min(kTileRows, slice.count - i)),
                       s, static_cast<std::uint32_t>(slice.position + i)});
  }
  if (recording_) tiles.resize(step_.rows, QueryTile{});  // an empty tile does nothing
  const std::size_t rows = step_.rows, stride = step_.splits * kSplit / kBlockSize;
  const std::size_t slices = recording_ ? rows : batch.slices.size();
  const std::size_t words = 3 * rows + slices * stride + tiles.size() * 4 + batch.logit_rows.size();
  if (words * 4 > indices_bytes_) {
    indices_bytes_ = std::bit_ceil(words * 4);
    indices_ = device_memory(indices_bytes_);
    indices_host_ = pinned(indices_bytes_);
    forget_graphs();
  }
  auto* host = reinterpret_cast<std::uint32_t*>(indices_host_.get());
  const auto* there = reinterpret_cast<const std::uint32_t*>(indices_.get());
  std::fill_n(host, words, 0);
  std::uint32_t *positions = host + rows, *slice_of = positions + rows, *tables = slice_of + rows;
  std::uint32_t *tile_words = tables + slices * stride, *logit_rows = tile_words + tiles.size() * 4;
  std::ranges::copy(batch.tokens, host);
  std::ranges::transform(batch.positions, positions, [](std::size_t p) { return static_cast<std::uint32_t>(p); });
  std::fill_n(slice_of, rows, BatchView::kNoSlice);
  for (std::uint32_t s = 0; s < batch.slices.size(); ++s) {
    const BatchSlice& slice = batch.slices[s];
    std::fill_n(slice_of + slice.row, slice.count, s);
    std::copy_n(slice.blocks.begin(), div_up(slice.position + slice.count, kBlockSize), tables + s * stride);
  }
  std::memcpy(tile_words, tiles.data(), tiles.size() * sizeof(QueryTile));
  std::ranges::transform(batch.logit_rows, logit_rows, [](std::size_t row) { return static_cast<std::uint32_t>(row); });
  copy_to_device(stream_, indices_.get(), host, words * 4);
  const auto at = [&](const std::uint32_t* place) { return there + (place - host); };
  view_ = {there, at(positions), at(slice_of), at(tables), reinterpret_cast<const QueryTile*>(at(tile_words)), at(logit_rows),
           static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(stride), static_cast<std::uint32_t>(tiles.size())};
}

void CudaOps::issue(const Call& call) {
  if (recording_)
    calls_.push_back(call);
  else
    run(call);
}

void CudaOps::embed(const Weight& table, float* x) {
  issue({.kind = Call::Kind::embed, .dtype = table.dtype, .rows = step_.rows, .width = table.in, .weight = table.data, .y = x});
}

void CudaOps::rms_norm(const float* x, const Buffer& weight, float eps, std::size_t rows, std::size_t width, float* y) {
  issue({.kind = Call::Kind::rms_norm, .eps = eps, .rows = recording_ ? step_.rows : rows, .width = width, .a = x, .b = weight.get(), .y = y});
}

void CudaOps::linear(const float* x, std::size_t rows, std::span<const Linear> parts) {
  Call call{.kind = Call::Kind::linear, .dtype = parts.front().weight->dtype, .rows = recording_ ? step_.rows : rows,
            .width = parts.front().weight->in, .a = x};
  grow(rounded_, rounded_bytes_, call.rows * call.width * sizeof(std::uint16_t));
  for (const Linear& part : parts) {
    const Weight& weight = *part.weight;
    if (weight.dtype != call.dtype || call.parts.count == kPartsMax) {
      issue(call);
      call.parts = {}, call.dtype = weight.dtype;
    }
    call.parts.part[call.parts.count++] = {weight.data, part.bias, part.y, static_cast<std::uint32_t>(weight.out), part.add};
  }
  issue(call);
}

void CudaOps::rope_and_store(std::size_t layer, float* q, float* k, const float* v) {
  issue({.kind = Call::Kind::rope_and_store, .layer = layer, .a = v, .y = q, .z = k});
}

void CudaOps::attention(std::size_t layer, const float* q, float* out) {
  issue({.kind = Call::Kind::attention, .layer = layer, .a = q, .y = out});
}

void CudaOps::silu_mul(const float* gate, const float* up, std::size_t count, float* y) {
  issue({.kind = Call::Kind::silu_mul, .rows = recording_ ? count / batch_->rows() * step_.rows : count, .a = gate, .b = up, .y = y});
}

template <class KV>
PagedCache<KV> CudaOps::cache(std::size_t layer) const {
  return {reinterpret_cast<KV*>(keys_[layer].get()), reinterpret_cast<KV*>(values_[layer].get()), static_cast<std::uint32_t>(shape_.heads),
          static_cast<std::uint32_t>(shape_.kv_heads), static_cast<std::uint32_t>(shape_.head_dim)};
}

void CudaOps::run(const Call& call) {
  switch (call.kind) {
    case Call::Kind::embed:
      return cuda::embed(stream_, call.weight, call.dtype, view_.tokens, call.rows, call.width, call.y);
    case Call::Kind::rms_norm: return cuda::rms_norm(stream_, call.a, call.b, call.eps, call.rows, call.width, call.y);
    case Call::Kind::linear: return run_linear(call);
    case Call::Kind::attention: return run_attention(call);
    case Call::Kind::silu_mul: return cuda::silu_mul(stream_, call.a, call.b, call.rows, call.y);
    case Call::Kind::rope_and_store: {
      const auto* cosine = reinterpret_cast<const float*>(cosine_.get());
      const auto* sine = reinterpret_cast<const float*>(sine_.get());
      if (rounds()) return cuda::rope_and_store(stream_, view_, call.y, call.z, call.a, cosine, sine, cache<Bf16>(call.layer));
      return cuda::rope_and_store(stream_, view_, call.y, call.z, call.a, cosine, sine, cache<float>(call.layer));
    }
  }
}

void CudaOps::run_linear(const Call& call) {
  const bool tensor_cores = rounds() && call.dtype == DType::bf16 && call.width % 8 == 0 &&
                            (options_.deterministic || call.rows > kGemvRows);
  if (!tensor_cores) return gemv(stream_, call.a, call.rows, call.width, call.dtype, call.parts);
  auto* rounded = reinterpret_cast<Bf16*>(rounded_.get());
  round_to_bf16(stream_, call.a, call.rows * call.width, rounded);
  gemm(stream_, rounded, call.rows, call.width, call.parts);
}

void CudaOps::run_attention(const Call& call) {
  if (attention_ == Attention::tiles)
    return attention_tiles(stream_, view_, tile_warps_, call.a, cache<Bf16>(call.layer), shape_.scale, call.y);
  auto* partial = reinterpret_cast<float*>(partial_.get());
  const auto splits = static_cast<unsigned>(step_.splits);
  for (std::size_t row = 0; row < step_.rows; row += kScratchRows) {
    const std::size_t rows = std::min(kScratchRows, step_.rows - row);
    if (rounds())
      attention_rows(stream_, view_, row, rows, call.a, cache<Bf16>(call.layer), shape_.scale, splits, partial, call.y);
    else
      attention_rows(stream_, view_, row, rows, call.a, cache<float>(call.layer), shape_.scale, splits, partial, call.y);
  }
}

/** Runs what was recorded, as a graph. */
void CudaOps::flush() {
  if (!recording_) return;
  recording_ = false;
  auto known = std::ranges::find_if(graphs_, [&](const Captured& each) { return each.shape == step_ && each.calls == calls_; });
  if (known == graphs_.end()) {
    if (graphs_.size() == kGraphsMax) forget_graphs();
    begin_capture(stream_);
    try {
      for (const Call& call : calls_) run(call);
    } catch (...) {
      destroy(end_capture(stream_));
      throw;
    }
    graphs_.push_back({step_, calls_, end_capture(stream_)});
    known = std::prev(graphs_.end());
  }
  launch(known->graph, stream_);
}

void CudaOps::forget_graphs() {
  for (const Captured& each : graphs_) destroy(each.graph);
  graphs_.clear();
}

void CudaOps::gather_logit_rows(const float* from, std::size_t width, float* to) {
  flush();
  gather(stream_, from, view_.logit_rows, batch_->logit_rows.size(), width, to);
}

std::span<const float> CudaOps::read(const float* from, std::size_t count) {
  flush();
  const std::size_t bytes = count * sizeof(float);
  if (bytes > result_bytes_) {
    result_bytes_ = std::bit_ceil(bytes);
    result_ = pinned(result_bytes_);
  }
  if (bytes > 0) copy_to_host(stream_, result_.get(), from, bytes);
  synchronize(stream_);
  return {reinterpret_cast<const float*>(result_.get()), count};
}

}  // namespace qe::cuda
