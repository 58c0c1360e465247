#include "ops/cpu/cpu_ops.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "ops/cpu/formats.h"

namespace qe::cpu {
CpuOps::CpuOps(unsigned threads, std::string_view level)
    : kernels_(select_kernels(level)), pool_(threads == 0 ? ThreadPool::physical_cores() : threads) {}

Buffer CpuOps::upload_vector(const TensorView& tensor) {
  Buffer buffer = allocate(tensor.elements());
  kernels_.widen(tensor.data, format_of(tensor.dtype), tensor.elements(), buffer.get());
  return buffer;
}

Weight CpuOps::upload_table(const TensorView& tensor, const Weight* /*tied*/) {
  return {tensor.data, tensor.dtype, tensor.shape.at(0), tensor.shape.at(1)};
}

/** Anonymous pages: zero, touched only when used, in huge pages where the kernel grants them. */
Buffer CpuOps::allocate(std::size_t floats) {
  const std::size_t bytes = round_up(std::max<std::size_t>(floats, 1) * sizeof(float), 4096);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw Error(ErrorCode::internal, concat("cannot allocate ", bytes, " bytes"));
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return {static_cast<float*>(memory), [bytes](float* p) { munmap(p, bytes); }};
}

std::size_t CpuOps::kv_block_bytes(const AttentionShape& shape) const {
  const std::size_t padded = round_up(shape.head_dim, kBlockSize);
  return shape.layers * shape.kv_heads * kBlockSize * (shape.head_dim + padded) * sizeof(float);
}

void CpuOps::allocate_kv(const AttentionShape& shape, std::size_t blocks) {
  shape_ = shape;
  padded_ = round_up(shape.head_dim, kBlockSize);
  key_block_ = shape.kv_heads * shape.head_dim * kBlockSize;
  value_block_ = shape.kv_heads * kBlockSize * padded_;
  keys_.clear(), values_.clear();
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    keys_.push_back(allocate(blocks * key_block_));
    values_.push_back(allocate(blocks * value_block_));
  }
}

void CpuOps::save_block(BlockId block, std::byte* to) {
  for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
    std::memcpy(to, keys_[layer].get() + block * key_block_, key_block_ * sizeof(float));
    to += key_block_ * sizeof(float);
    std::memcpy(to, values_[layer].get() + block * value_block_, value_block_ * sizeof(float));
    to += value_block_ * sizeof(float);
  }
}

void CpuOps::load_block(BlockId block, const std::byte* from) {
  for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
    std::memcpy(keys_[layer].get() + block * key_block_, from, key_block_ * sizeof(float));
    from += key_block_ * sizeof(float);
    std::memcpy(values_[layer].get() + block * value_block_, from, value_block_ * sizeof(float));
    from += value_block_ * sizeof(float);
  }
}

void CpuOps::begin(const Batch& batch) {
  batch_ = &batch;
  tiles_.clear();
  slice_of_.resize(batch.rows());
  for (std::size_t s = 0; s < batch.slices.size(); ++s) {
    const BatchSlice& slice = batch.slices[s];
    for (std::size_t i = 0; i < slice.count; i += kernels_.attention_rows)
      tiles_.push_back({s, i, std::min(kernels_.attention_rows, slice.count - i)});
    for (std::size_t i = 0; i < slice.count; ++i) slice_of_[slice.row + i] = s;
  }
  // As the reference does it: the angle is rounded to fp32 before its cosine is taken.
  const std::size_t half = shape_.frequencies.size();
  cosine_.resize(batch.rows() * half);
  sine_.resize(batch.rows() * half);
  pool_.for_each(div_up(batch.rows(), 16), [&](std::size_t part) {
    for (std::size_t row = part * 16; row < std::min(batch.rows(), part * 16 + 16); ++row) {
      for (std::size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(batch.positions[row]) * shape_.frequencies[i];
        cosine_[row * half + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * shape_.rope_magnitude;
        sine_[row * half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * shape_.rope_magnitude;
      }
    }
  });
}

void CpuOps::embed(const Weight& table, float* x) {
  const auto* bytes = static_cast<const std::byte*>(table.data);
  for (std::size_t row = 0; row < batch_->rows(); ++row) {
    const std::byte* from = bytes + std::size_t{batch_->tokens[row]} * table.in * size_of(table.dtype);
    kernels_.widen(from, format_of(table.dtype), table.in, x + row * table.in);
  }
}

void CpuOps::rms_norm(const float* x, const Buffer& weight, float eps, std::size_t rows, std::size_t width, float* y) {
  const std::size_t chunk = std::max<std::size_t>(1, kWorthSharing / 4 / width);
  pool_.for_each(div_up(rows, chunk), [&](std::size_t part) {
    for (std::size_t row = part * chunk; row < std::min(rows, (part + 1) * chunk); ++row)
      kernels_.rms_norm(x + row * width, weight.get(), eps, width, y + row * width);
  });
}

void CpuOps::linear(const float* x, std::size_t rows, std::span<const Linear> parts) {
  const std::size_t in = parts.front().weight->in;
  std::size_t outputs = 0;
  for (const Linear& part : parts) outputs += part.weight->out;
  for (const Linear& part : parts)
    add_runs({x, rows, in}, projection_of(*part.weight, part.bias, part.y, part.add), {},
             run_length(outputs, in, rows));
  do_runs();
}

void CpuOps::gated(const float* x, std::size_t rows, const Linear& gate, const Linear& up) {
  const Matmul job{x, rows, gate.weight->in};
  const Projection part = projection_of(*gate.weight, gate.bias, gate.y, gate.add);
  const Projection other = projection_of(*up.weight, up.bias, up.y, up.add);
  if (!kernels_.gates(job, part, other)) return Ops::gated(x, rows, gate, up);
  add_runs(job, part, other, run_length(part.out, 2 * job.in, rows));
  do_runs();
}

std::size_t CpuOps::run_length(std::size_t outputs, std::size_t in, std::size_t rows) const {
  const std::size_t wanted = threads() == 1 ? 1 : std::size_t{threads()} * 6;
  return std::max(
      {div_up(outputs, wanted), outputs_worth(in, rows), rows > 4 * kPackRows ? kernels_.outputs_least : 1});
}

void CpuOps::add_runs(const Matmul& job, const Projection& part, const std::optional<Projection>& up,
                      std::size_t length) {
  const std::size_t packed = packed_for(job, part);
  for (std::size_t begin = 0; begin < part.out;) {
    std::size_t wanted = length;
    // Few rows are bound by memory, which likes long runs; the last ones are short, so that threads end together.
    if (threads() > 1 && job.rows <= kPackRows)
      wanted = std::max(outputs_worth(job.in, job.rows), (part.out - begin) / (2 * threads()));
    const std::size_t end = std::min(begin + round_up(wanted, kernels_.outputs_step), part.out);
    runs_.push_back({job, part, up, begin, end, packed});
    begin = end;
  }
}

/** Products of one x with weights of one form share its packed rows. */
std::size_t CpuOps::packed_for(const Matmul& job, const Projection& part) {
  const std::size_t bytes = kernels_.packed_bytes(job, part);
  if (bytes == 0) return kAsItIs;
  for (std::size_t i = 0; i < packs_.size(); ++i)
    if (packs_[i].job.x == job.x && packs_[i].part.format == part.format && packs_[i].part.group == part.group)
      return i;
  const std::size_t blocks = div_up(job.rows, kPackRows);
  for (std::size_t block = 0; block < blocks; ++block) blocks_to_pack_.emplace_back(packs_.size(), block);
  packs_.push_back({job, part, packed_size_});
  packed_size_ += blocks * bytes;
  return packs_.size() - 1;
}

void CpuOps::do_runs() {
  std::byte* packed = packed_.bytes(packed_size_);
  pool_.for_each(blocks_to_pack_.size(), [&](std::size_t i) {
    const auto [index, block] = blocks_to_pack_[i];
    kernels_.pack(packs_[index].job, packs_[index].part, block, packed + packs_[index].at);
  });
  pool_.for_each(runs_.size(), [&](std::size_t i) {
    Run& run = runs_[i];
    if (run.packed != kAsItIs) run.job.packed = packed + packs_[run.packed].at;
    if (run.up.has_value()) {
      kernels_.gated(run.job, run.part, *run.up, run.begin, run.end);
    } else {
      kernels_.matmul(run.job, run.part, run.begin, run.end);
    }
  });
  runs_.clear(), packs_.clear(), blocks_to_pack_.clear();
  packed_size_ = 0;
}

void CpuOps::rope_and_store(std::size_t layer, float* q, float* k, const float* v) {
  const std::size_t half = shape_.head_dim / 2, dim = shape_.head_dim;
  const auto rotate = [half](float* x, const float* cosine, const float* sine) {
    for (std::size_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * cosine[i] - b * sine[i];
      x[i + half] = b * cosine[i] + a * sine[i];
    }
  };
  // In prefill whole blocks, whose keys share cache lines.
  const std::size_t least = batch_->rows() >= kBlockSize * threads() ? kBlockSize : 1;
  const std::size_t chunk = std::max(least, kWorthSharing / 8 / (shape_.heads * dim));
  pool_.for_each(div_up(batch_->rows(), chunk), [&](std::size_t part) {
    for (std::size_t row = part * chunk; row < std::min(batch_->rows(), (part + 1) * chunk); ++row) {
      const float* cosine = cosine_.data() + row * half;
      const float* sine = sine_.data() + row * half;
      for (std::size_t h = 0; h < shape_.heads; ++h) rotate(q + (row * shape_.heads + h) * dim, cosine, sine);
      const BatchSlice& slice = batch_->slices[slice_of_[row]];
      const std::size_t position = batch_->positions[row];
      const BlockId block = slice.blocks[position / kBlockSize];
      const std::size_t slot = position % kBlockSize;
      for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
        float* key = k + (row * shape_.kv_heads + h) * dim;
        const float* value = v + (row * shape_.kv_heads + h) * dim;
        rotate(key, cosine, sine);
        float* key_to = keys_[layer].get() + block * key_block_ + h * dim * kBlockSize + slot;
        for (std::size_t d = 0; d < dim; ++d) key_to[d * kBlockSize] = key[d];
        float* value_to = values_[layer].get() + block * value_block_ + (h * kBlockSize + slot) * padded_;
        std::memcpy(value_to, value, dim * sizeof(float));
      }
    }
  });
}

void CpuOps::attention(std::size_t layer, const float* q, float* out) {
  const std::size_t stride = shape_.heads * shape_.head_dim, group = shape_.heads / shape_.kv_heads;
  const std::size_t jobs = tiles_.size() * shape_.kv_heads;
  pool_.for_each(jobs, [&](std::size_t turn) {
    const std::size_t i = jobs - 1 - turn;  // those that see most come first, so that threads end together
    const Tile& tile = tiles_[i / shape_.kv_heads];
    const std::size_t kv_head = i % shape_.kv_heads;
    const BatchSlice& slice = batch_->slices[tile.slice];
    const std::size_t at = (slice.row + tile.offset) * stride + kv_head * group * shape_.head_dim;
    const AttentionTile job{.q = q + at,
                            .out = out + at,
                            .keys = keys_[layer].get() + kv_head * shape_.head_dim * kBlockSize,
                            .values = values_[layer].get() + kv_head * kBlockSize * padded_,
                            .blocks = slice.blocks.data(),
                            .rows = tile.rows,
                            .position = slice.position + tile.offset,
                            .q_stride = stride,
                            .group = group,
                            .head_dim = shape_.head_dim,
                            .padded = padded_,
                            .key_block = key_block_,
                            .value_block = value_block_,
                            .scale = shape_.scale};
    kernels_.attention(job);
  });
}

void CpuOps::silu_mul(const float* gate, const float* up, std::size_t count, float* y) {
  // A multiple of every lane count, so that the vector loop and its rest fall on the same elements however it is cut.
  constexpr std::size_t chunk = 4096;
  pool_.for_each(div_up(count, chunk), [&](std::size_t part) {
    const std::size_t begin = part * chunk;
    kernels_.silu_mul(gate + begin, up + begin, std::min(chunk, count - begin), y + begin);
  });
}

void CpuOps::gather_logit_rows(const float* from, std::size_t width, float* to) {
  for (std::size_t i = 0; i < batch_->logit_rows.size(); ++i)
    std::memcpy(to + i * width, from + batch_->logit_rows[i] * width, width * sizeof(float));
}

}  // namespace qe::cpu
