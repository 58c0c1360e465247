#include "ops/cuda/cuda_ops.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace qe::cuda {
namespace {

constexpr std::size_t kGraphsMax = 64;
constexpr std::size_t kTileRows = 64;
/** Rows of split-K attention that share scratch memory. */
constexpr std::size_t kScratchRows = 64;

/** From so many rows on cuBLASLt takes the products. */
constexpr std::size_t kLibraryRows = 64;

/** Above so many rows a packed matrix is unpacked for the tensor cores. */
constexpr std::size_t kUnpackRows = 32;

/** Rows of a mixture of experts that share scratch memory, and one reading of the experts' weights. */
constexpr std::size_t kMixRows = 512;

PackedView view_of(const Weight& weight) {
  const auto of = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
  return {weight.data,      weight.scales,    weight.offsets, of(weight.out), of(weight.in), of(weight.group),
          weight.packing == Packing::int4 ? 4u : 8u};
}

}  // namespace

std::size_t CudaOps::bucket(std::size_t rows) const {
  const std::size_t step = rows <= 8 ? 1 : rows <= 64 ? 8 : 32;
  const std::size_t padded = rows <= 8 ? std::bit_ceil(rows) : round_up(rows, step);
  return padded <= options_.rows_max ? padded : rows;
}

void CudaOps::begin(const Batch& batch) {
  batch_ = &batch;
  turn_ = batch.turn;
  wait(turns_[turn_].done);
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
    forget_graphs();
  }
  auto* host = reinterpret_cast<std::uint32_t*>(turns_[turn_].indices.room_for(words * 4));
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
  record(turns_[turn_].done, stream_);
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
    const LinearPart one{weight.data, part.bias, part.y, static_cast<std::uint32_t>(weight.out), part.add};
    if (weight.packing != Packing::plain) {
      Call packed{.kind = Call::Kind::linear_packed, .rows = call.rows, .a = x};
      packed.parts = {{one}, 1}, packed.packed = view_of(weight);
      issue(packed);
      continue;
    }
    if (call.parts.count > 0 && (weight.dtype != call.dtype || call.parts.count == kPartsMax)) {
      issue(call);
      call.parts = {};
    }
    call.dtype = weight.dtype;
    call.parts.part[call.parts.count++] = one;
  }
  if (call.parts.count > 0) issue(call);
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

const ExpertWeights* CudaOps::table_of(const Experts& experts) {
  Memory& table = tables_[experts.gate.front().data];
  if (!table) {
    std::vector<ExpertWeights> weights;
    for (std::size_t e = 0; e < experts.gate.size(); ++e) {
      for (const Weight* part : {&experts.gate[e], &experts.up[e], &experts.down[e]})
        if (part->packing != Packing::plain || part->in % 8 != 0 || part->dtype != experts.gate.front().dtype)
          throw Error(ErrorCode::checkpoint, "experts on CUDA are plain matrices of one dtype, their widths multiples of 8");
      weights.push_back({experts.gate[e].data, experts.up[e].data, experts.down[e].data});
    }
    if (experts.top_k > 32) throw Error(ErrorCode::checkpoint, "CUDA routes to at most 32 experts a token");
    table = device_memory(weights.size() * sizeof(ExpertWeights));
    upload(table.get(), reinterpret_cast<const std::byte*>(weights.data()), weights.size() * sizeof(ExpertWeights));
    for (Stream copy : copies_) synchronize(copy);
  }
  return reinterpret_cast<const ExpertWeights*>(table.get());
}

void CudaOps::experts(const float* x, const float* router, std::size_t rows, const Experts& experts, float* y) {
  const auto of = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
  const Weight& gate = experts.gate.front();
  Call call{.kind = Call::Kind::experts, .dtype = gate.dtype, .rows = recording_ ? step_.rows : rows, .a = x, .b = router, .y = y};
  call.mixture = {table_of(experts), of(experts.gate.size()), of(gate.in), of(gate.out), of(experts.top_k)};
  call.renormalise = experts.renormalise;
  const std::size_t pairs = std::min(call.rows, kMixRows) * experts.top_k;
  grow(choices_, choices_bytes_, pairs * sizeof(ExpertChoice));
  grow(order_, order_bytes_, pairs * sizeof(std::uint32_t));
  grow(slots_, slots_bytes_, pairs * sizeof(std::uint32_t));
  grow(starts_, starts_bytes_, (experts.gate.size() + 1) * sizeof(std::uint32_t));
  grow(inner_, inner_bytes_, pairs * gate.out * sizeof(float));
  grow(outer_, outer_bytes_, pairs * gate.in * sizeof(float));
  grow(rounded_, rounded_bytes_, std::min(call.rows, kMixRows) * gate.in * sizeof(std::uint16_t));
  issue(call);
}

void CudaOps::add_gated(const float* gate, const float* x, std::size_t rows, std::size_t width, float* y) {
  issue({.kind = Call::Kind::add_gated, .rows = recording_ ? step_.rows : rows, .width = width, .a = gate, .b = x, .y = y});
}

template <class KV>
PagedCache<KV> CudaOps::cache(std::size_t layer) const {
  return {reinterpret_cast<KV*>(keys_[layer].get()), reinterpret_cast<KV*>(values_[layer].get()), static_cast<std::uint32_t>(shape_.heads),
          static_cast<std::uint32_t>(shape_.kv_heads), static_cast<std::uint32_t>(shape_.head_dim)};
}

void CudaOps::run(const Call& call) {
  switch (call.kind) {
    case Call::Kind::embed:
      return cuda::embed(stream_, call.weight, call.dtype, view_.tokens, reinterpret_cast<const std::uint32_t*>(chosen_.get()), call.rows,
                         call.width, call.y);
    case Call::Kind::rms_norm: return cuda::rms_norm(stream_, call.a, call.b, call.eps, call.rows, call.width, call.y);
    case Call::Kind::linear: return run_linear(call);
    case Call::Kind::linear_packed: return run_packed(call);
    case Call::Kind::attention: return run_attention(call);
    case Call::Kind::experts: return run_experts(call);
    case Call::Kind::add_gated: return cuda::add_gated(stream_, call.a, call.b, call.rows, call.width, call.y);
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
  for (std::size_t i = 0; i < call.parts.count; ++i) product(rounded, call.rows, call.width, call.parts.part[i]);
}

/** On tensor cores, by the library where it is worth it. */
void CudaOps::product(const Bf16* x, std::size_t rows, std::size_t in, const LinearPart& part) {
  const std::size_t stride = part.stride == 0 ? part.out : part.stride;
  const auto* weight = static_cast<const Bf16*>(part.weight);
  if (library_ == nullptr || rows < kLibraryRows || !library_->matmul(stream_, x, rows, in, weight, part.out, part.y, stride, part.add))
    return gemm(stream_, x, rows, in, {{part}, 1});
  if (part.bias != nullptr) add_bias(stream_, part.bias, rows, part.out, stride, part.y);
}

/** The tensor cores round, and take a stretch of outputs at a time; deterministic and fp32 modes never use them here. */
void CudaOps::run_packed(const Call& call) {
  const PackedView& w = call.packed;
  const LinearPart& part = call.parts.part[0];
  if (!rounds() || options_.deterministic || call.rows <= kUnpackRows)
    return gemv_packed(stream_, w, call.a, call.rows, part.bias, part.y, part.add);
  auto* rounded = reinterpret_cast<Bf16*>(rounded_.get());
  auto* unpacked = reinterpret_cast<Bf16*>(unpacked_.get());
  round_to_bf16(stream_, call.a, call.rows * w.in, rounded);
  const std::size_t stretch = unpacked_bytes_ / (w.in * 2);
  for (std::size_t first = 0; first < w.out; first += stretch) {
    const std::size_t outputs = std::min<std::size_t>(stretch, w.out - first);
    unpack(stream_, w, first, outputs, unpacked);
    const LinearPart piece{unpacked, part.bias == nullptr ? nullptr : part.bias + first, part.y + first,
                           static_cast<std::uint32_t>(outputs), part.add, w.out};
    product(rounded, call.rows, w.in, piece);
  }
}

void CudaOps::run_experts(const Call& call) {
  const ExpertsView& view = call.mixture;
  auto* choices = reinterpret_cast<ExpertChoice*>(choices_.get());
  const auto words = [](const Memory& memory) { return reinterpret_cast<std::uint32_t*>(memory.get()); };
  const ExpertGroups groups{words(order_), words(slots_), words(starts_)};
  auto* outer = reinterpret_cast<float*>(outer_.get());
  auto* rounded = reinterpret_cast<Bf16*>(rounded_.get());
  const bool tensor_cores = rounds() && call.dtype == DType::bf16 &&
                            (options_.deterministic || call.rows * view.top_k > view.count * kGemvRows);
  for (std::size_t first = 0; first < call.rows; first += kMixRows) {
    const std::size_t rows = std::min(kMixRows, call.rows - first);
    const float* x = call.a + first * view.hidden;
    route(stream_, call.b + first * view.count, rows, view.count, view.top_k, call.renormalise, choices);
    group_by_expert(stream_, choices, rows * view.top_k, view.count, groups);
    if (tensor_cores) {
      round_to_bf16(stream_, x, rows * view.hidden, rounded);
      experts_by_tiles(stream_, view, rounded, rows, groups, reinterpret_cast<Bf16*>(inner_.get()), outer);
    } else {
      experts_by_rows(stream_, view, call.dtype, x, groups, reinterpret_cast<float*>(inner_.get()), outer);
    }
    combine_experts(stream_, view, choices, rows, groups, outer, call.y + first * view.hidden);
  }
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
  std::byte* const host = result_.room_for(bytes);
  if (bytes > 0) copy_to_host(stream_, host, from, bytes);
  synchronize(stream_);
  return {reinterpret_cast<const float*>(host), count};
}

}  // namespace qe::cuda
