// Weights into memory of our own, in the form and the order in which the kernels read them.

#include <algorithm>
#include <cmath>

#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/formats.h"

namespace qe::cpu {
namespace {

constexpr std::size_t kOutputsAtOnce = 2 * kArrangeStep;
constexpr std::size_t kSlab = std::size_t{64} << 20;     // small matrices share huge pages
constexpr std::size_t kHugePage = std::size_t{2} << 20;  // Linux aligns whole ones
constexpr std::size_t kPastEnd = 4096;                   // the last tile may prefetch, and load a whole vector

}  // namespace

template <class Rows>
const std::byte* CpuOps::keep(const MatrixForm& form, Rows&& rows) {
  const std::size_t bytes = round_up(kernels_.arranged_bytes(form), 64);
  if (bytes + kPastEnd > kept_left_) {
    const std::size_t slab = std::max(round_up(bytes + kPastEnd, kHugePage), kSlab);
    kept_.push_back(allocate(div_up(slab, sizeof(float))));
    kept_free_ = reinterpret_cast<std::byte*>(kept_.back().get()), kept_left_ = slab;
  }
  std::byte* matrix = kept_free_;
  kept_free_ += bytes, kept_left_ -= bytes;
  pool_.for_each(div_up(form.out, kOutputsAtOnce), [&](std::size_t part) {
    const std::size_t first = part * kOutputsAtOnce, count = std::min(kOutputsAtOnce, form.out - first);
    kernels_.arrange(form, rows(first, count), first, count, matrix);
  });
  return matrix;
}

Weight CpuOps::upload_matrix(const TensorView& tensor) {
  const std::size_t out = tensor.shape.at(0), in = tensor.shape.at(1), row = in * size_of(tensor.dtype);
  const auto rows = [&](std::size_t first, std::size_t) { return MatrixRows{tensor.data + first * row}; };
  return {keep({format_of(tensor.dtype), out, in}, rows), tensor.dtype, out, in};
}

/** Symmetric: scale = max |w| / 127 of each output's group of inputs, q = w / scale to the nearest. */
Weight CpuOps::upload_int8(const TensorView& tensor) {
  const std::size_t out = tensor.shape.at(0), in = tensor.shape.at(1);
  std::size_t group = 128;
  while (group >= 16 && in % group != 0) group /= 2;
  if (group < 16) return upload_matrix(tensor);

  const std::size_t groups = in / group;
  const auto rounded = [&](std::size_t first, std::size_t count) {
    thread_local std::vector<std::int8_t> q;
    thread_local std::vector<float> row, scales;
    q.resize(count * in), row.resize(in), scales.resize(count * groups);
    for (std::size_t o = 0; o < count; ++o) {
      kernels_.widen(tensor.data + (first + o) * in * size_of(tensor.dtype), format_of(tensor.dtype), in, row.data());
      for (std::size_t g = 0; g < groups; ++g) {
        float top = 0;
        for (std::size_t i = g * group; i < (g + 1) * group; ++i) top = std::max(top, std::abs(row[i]));
        const float scale = top / 127;
        scales[o * groups + g] = scale;
        const float inverse = scale > 0 ? 1 / scale : 0;
        for (std::size_t i = g * group; i < (g + 1) * group; ++i)
          q[o * in + i] = static_cast<std::int8_t>(std::lrint(std::clamp(row[i] * inverse, -127.0f, 127.0f)));
      }
    }
    return MatrixRows{q.data(), scales.data()};
  };
  Weight weight{keep({Format::int8, out, in, group}, rounded), tensor.dtype, out, in};
  weight.packing = Packing::int8, weight.group = group;
  return weight;
}

Weight CpuOps::upload_int4(const Int4Matrix& matrix) {
  const std::size_t groups = matrix.in / matrix.group;
  const auto rows = [&](std::size_t first, std::size_t) {
    return MatrixRows{matrix.nibbles.data() + first * matrix.in / 2, matrix.scales.data() + first * groups,
                      matrix.offsets.data() + first * groups};
  };
  Weight weight{keep({Format::int4, matrix.out, matrix.in, matrix.group}, rows), DType::f32, matrix.out, matrix.in};
  weight.packing = Packing::int4, weight.group = matrix.group;
  return weight;
}

}  // namespace qe::cpu
