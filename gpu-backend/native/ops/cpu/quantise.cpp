// Weights of eight and four bits: rounded, or repacked, into memory of our own when the checkpoint is opened.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/formats.h"

namespace qe::cpu {

template <class T>
T* CpuOps::keep(std::size_t count) {
  // 64 bytes more, so that the last tile may prefetch, and load a whole vector, past its end.
  kept_.push_back(allocate(div_up(count * sizeof(T) + 64, sizeof(float))));
  return reinterpret_cast<T*>(kept_.back().get());
}

/** Symmetric: scale = max |w| / 127 of each output's group of inputs, q = w / scale to the nearest. */
Weight CpuOps::upload_int8(const TensorView& tensor) {
  const std::size_t out = tensor.shape.at(0), in = tensor.shape.at(1);
  std::size_t group = 128;
  while (group >= 16 && in % group != 0) group /= 2;
  if (group < 16) return upload_matrix(tensor);

  const std::size_t groups = in / group;
  auto* q = keep<std::int8_t>(out * in);
  auto* scales = keep<float>(out * groups);
  pool_.for_each(div_up(out, 64), [&](std::size_t part) {
    std::vector<float> row(in);
    for (std::size_t o = part * 64; o < std::min(out, part * 64 + 64); ++o) {
      kernels_.widen(tensor.data + o * in * size_of(tensor.dtype), format_of(tensor.dtype), in, row.data());
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
  });
  Weight weight{q, tensor.dtype, out, in};
  weight.packing = Packing::int8, weight.group = group, weight.scales = scales;
  return weight;
}

Weight CpuOps::upload_int4(const Int4Matrix& matrix) {
  auto* nibbles = keep<std::uint8_t>(matrix.nibbles.size());
  auto* scales = keep<float>(matrix.scales.size());
  auto* offsets = keep<float>(matrix.offsets.size());
  std::ranges::copy(matrix.nibbles, nibbles);
  std::ranges::copy(matrix.scales, scales);
  std::ranges::copy(matrix.offsets, offsets);
  Weight weight{nibbles, DType::f32, matrix.out, matrix.in};
  weight.packing = Packing::int4, weight.group = matrix.group, weight.scales = scales, weight.offsets = offsets;
  return weight;
}

}  // namespace qe::cpu
