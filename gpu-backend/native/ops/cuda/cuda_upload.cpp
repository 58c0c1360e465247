// What lies on the device before the first step: weights, cache, rotations; and the one stream everything runs on.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "ops/cuda/cuda_ops.h"

namespace qe::cuda {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{16} << 20;
/** Of a packed matrix that is unpacked for the tensor cores, at a time; of a plain one that is rounded. */
constexpr std::size_t kUnpackBytes = std::size_t{32} << 20;

}  // namespace

CudaOps::CudaOps(const CudaOptions& options) : options_(options) {
  if (const auto why = unavailable()) throw Error(ErrorCode::invalid_request, *why);
  device_ = cuda::device();
  stream_ = create_stream();
  for (Stream& copy : copies_) copy = create_stream();
  for (Turn& turn : turns_) turn.done = create_event();
  for (Pinned& part : staging_) part.room_for(kStagingBytes);
  if (rounds() && !options_.deterministic && !options_.gemm_library.empty()) library_ = CublasLt::open(options_.gemm_library);
}

CudaOps::~CudaOps() {
  forget_graphs();
  for (const Turn& turn : turns_) destroy_event(turn.done);
  for (Stream copy : copies_) destroy_stream(copy);
  destroy_stream(stream_);
}

std::string CudaOps::level() const {
  return concat("sm_", device_.major, device_.minor, rounds() ? " bf16" : " f32", options_.deterministic ? " deterministic" : "",
                library_ != nullptr                                           ? " cuBLASLt"
                : options_.deterministic || options_.gemm_library.empty() ? ""
                                                                              : " no " + options_.gemm_library);
}

std::byte* CudaOps::Pinned::room_for(std::size_t wanted) {
  if (wanted > bytes) {
    memory.reset();
    memory.reset(static_cast<std::byte*>(allocate_pinned(std::bit_ceil(wanted))));
    bytes = std::bit_ceil(wanted);
  }
  return memory.get();
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
    std::memcpy(staging_[turn].memory.get(), from + at, count);
    copy_to_device(copies_[turn], static_cast<std::byte*>(to) + at, staging_[turn].memory.get(), count);
  }
}

Weight CudaOps::upload_matrix(const TensorView& tensor) {
  weights_.push_back(device_memory(tensor.bytes()));
  upload(weights_.back().get(), tensor.data, tensor.bytes());
  return {weights_.back().get(), tensor.dtype, tensor.shape.at(0), tensor.shape.at(1)};
}

void* CudaOps::place(const void* from, std::size_t bytes) {
  weights_.push_back(device_memory(bytes));
  upload(weights_.back().get(), static_cast<const std::byte*>(from), bytes);
  return weights_.back().get();
}

/** The stored weights pass through a buffer on the device, a stretch at a time, and are rounded there. */
Weight CudaOps::upload_int8(const TensorView& tensor) {
  const std::size_t out = tensor.shape.at(0), in = tensor.shape.at(1), bytes = in * size_of(tensor.dtype);
  std::size_t group = 128;
  while (group >= 32 && in % group != 0) group /= 2;
  if (group < 32) return upload_matrix(tensor);
  weights_.push_back(device_memory(out * in));
  auto* q = reinterpret_cast<std::int8_t*>(weights_.back().get());
  weights_.push_back(device_memory(out * in / group * sizeof(float)));
  auto* scales = reinterpret_cast<float*>(weights_.back().get());
  grow(unpacked_, unpacked_bytes_, std::max(std::min(out * bytes, kUnpackBytes), std::max(bytes, in * 2)));
  const std::size_t stretch = unpacked_bytes_ / bytes;
  for (std::size_t first = 0; first < out; first += stretch) {
    const std::size_t outputs = std::min(stretch, out - first);
    upload(unpacked_.get(), tensor.data + first * bytes, outputs * bytes);
    for (Stream copy : copies_) synchronize(copy);
    round_to_int8(stream_, unpacked_.get(), tensor.dtype, outputs * in, group, q + first * in, scales + first * in / group);
    synchronize(stream_);
  }
  Weight weight{.data = q, .out = out, .in = in, .packing = Packing::int8, .group = group};
  weight.scales = scales;
  return weight;
}

Weight CudaOps::upload_int4(const Int4Matrix& matrix) {
  Weight weight{.out = matrix.out, .in = matrix.in, .packing = Packing::int4, .group = matrix.group};
  weight.data = place(matrix.nibbles.data(), matrix.nibbles.size());
  weight.scales = static_cast<const float*>(place(matrix.scales.data(), matrix.scales.size() * sizeof(float)));
  weight.offsets = static_cast<const float*>(place(matrix.offsets.data(), matrix.offsets.size() * sizeof(float)));
  grow(unpacked_, unpacked_bytes_, std::max(std::min(matrix.out * matrix.in * 2, kUnpackBytes), matrix.in * 2));
  return weight;
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

void CudaOps::save_block(BlockId block, std::byte* to) {
  const std::size_t bytes = kv_block_bytes(shape_) / shape_.layers / 2;
  for (std::size_t layer = 0; layer < shape_.layers; ++layer)
    for (const Memory& part : {keys_[layer], values_[layer]}) {
      copy_to_host(stream_, to, part.get() + block * bytes, bytes);
      to += bytes;
    }
  synchronize(stream_);
}

void CudaOps::load_block(BlockId block, const std::byte* from) {
  const std::size_t bytes = kv_block_bytes(shape_) / shape_.layers / 2;
  for (std::size_t layer = 0; layer < shape_.layers; ++layer)
    for (const Memory& part : {keys_[layer], values_[layer]}) {
      copy_to_device(stream_, part.get() + block * bytes, from, bytes);
      from += bytes;
    }
  synchronize(stream_);  // the caller's memory may change after this
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

}  // namespace qe::cuda
