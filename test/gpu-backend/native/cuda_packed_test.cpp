// Matrices of four and eight bits on CUDA, against plain references.

#include <functional>

#include "cuda_device.h"
#include "ops/cuda/kernels.h"

namespace {

using namespace device;
using WeightAt = std::function<double(std::size_t output, std::size_t input)>;

/** Few rows by gemv, and unpacked for the tensor cores from the middle on. */
void check_packed(const PackedView& view, const WeightAt& weight) {
  const std::size_t in = view.in, out = view.out;
  for (const std::size_t rows : {1, 3, 9}) {
    const Floats x = noise(rows * in, 4), bias = noise(out, 5), before = noise(rows * out, 6);
    const Array<float> on_x(x), on_bias(bias), y(before);
    gemv_packed(stream(), view, on_x, rows, on_bias, y, true);
    std::vector<double> want;
    for (std::size_t m = 0; m < rows; ++m)
      for (std::size_t o = 0; o < out; ++o) {
        double sum = double{before[m * out + o]} + double{bias[o]};
        for (std::size_t i = 0; i < in; ++i) sum += double{x[m * in + i]} * weight(o, i);
        want.push_back(sum);
      }
    check_near(y.read(), want, 1e-5, qe::concat(view.bits, " bits, ", in, "x", out, " rows ", rows));
  }
  const std::size_t first = out / 2, count = out - first;
  const Array<std::uint16_t> unpacked(count * in);
  unpack(stream(), view, first, count, reinterpret_cast<Bf16*>(static_cast<std::uint16_t*>(unpacked)));
  const auto bits = unpacked.read();
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const double want = weight(first + i / in, i % in);
    const double got = double{std::bit_cast<float>(std::uint32_t{bits[i]} << 16)};
    CHECK(std::abs(got - want) <= std::abs(want) * 0x1p-8 + 1e-6, qe::concat("unpacked ", i, ": ", got, " for ", want));
  }
}

struct Size {
  std::uint32_t in, group, out;
};
constexpr Size kSizes[] = {{32, 32, 1}, {128, 64, 5}, {1152, 128, 7}};

TEST("cuda: four-bit products and unpacking against the reference") {
  for (const auto& [in, group, out] : kSizes) {
    std::mt19937 random(1);
    std::vector<std::uint8_t> nibbles(std::size_t{out} * in / 2);
    for (auto& byte : nibbles) byte = static_cast<std::uint8_t>(random());
    const std::size_t groups = in / group;
    const Floats scales = noise(out * groups, 2, 0.1f), offsets = noise(out * groups, 3, 0.5f);
    const Array<std::uint8_t> on_nibbles(nibbles);
    const Array<float> on_scales(scales), on_offsets(offsets);
    check_packed({on_nibbles, on_scales, on_offsets, out, in, group, 4},
                 [&, width = in, size = group](std::size_t o, std::size_t i) {
                   const std::uint8_t byte = nibbles[o * width / 2 + i / 32 * 16 + i % 16];
                   const std::size_t g = o * groups + i / size;
                   return double{scales[g]} * (i % 32 < 16 ? byte & 15 : byte >> 4) + double{offsets[g]};
                 });
  }
}

TEST("cuda: weights are rounded to int8 as the CPU rounds them, and multiply as what they were rounded to") {
  for (const auto& [in, group, out] : kSizes) {
    Floats w = rounded(noise(std::size_t{out} * in, 1));
    std::fill_n(w.begin(), group, 0.0f);  // a group without a scale
    const std::size_t count = w.size();
    std::vector<std::int8_t> want(count);
    Floats want_scales;
    for (std::size_t first = 0; first < count; first += group) {
      float top = 0;
      for (std::size_t i = first; i < first + group; ++i) top = std::max(top, std::abs(w[i]));
      const float scale = top / 127, inverse = scale > 0 ? 1 / scale : 0;
      want_scales.push_back(scale);
      for (std::size_t i = first; i < first + group; ++i)
        want[i] = static_cast<std::int8_t>(std::lrint(w[i] * inverse));
    }
    const Array<float> single(w), scales(want_scales.size());
    const Array<std::uint16_t> half(bits_of(w));
    const Array<std::int8_t> q(count);
    for (const qe::DType dtype : {qe::DType::f32, qe::DType::bf16}) {
      const void* from = dtype == qe::DType::f32 ? static_cast<const void*>(single) : half;
      round_to_int8(stream(), from, dtype, count, group, q, scales);
      CHECK(q.read() == want && same_bits(scales.read(), want_scales));
    }
    check_packed({q, scales, nullptr, out, in, group, 8}, [&, width = in, size = group](std::size_t o, std::size_t i) {
      return double{want_scales[(o * width + i) / size]} * want[o * width + i];
    });
  }
}

TEST("cuda: a row's product with packed weights has the same bits alone and among others") {
  const std::size_t in = 1088, out = 5, rows = 9;
  const Array<float> w(noise(out * in, 1)), scales(out * in / 64), x(noise(rows * in, 2)), together(rows * out),
      alone(rows * out);
  const Array<std::int8_t> q(out * in);
  round_to_int8(stream(), w, qe::DType::f32, out * in, 64, q, scales);
  const PackedView view{q, scales, nullptr, out, in, 64, 8};
  gemv_packed(stream(), view, x, rows, nullptr, together, false);
  for (std::size_t row = 0; row < rows; ++row)
    gemv_packed(stream(), view, x + row * in, 1, nullptr, alone + row * out, false);
  CHECK(same_bits(alone.read(), together.read()));
}

}  // namespace
