// Weights of eight and four bits at every kernel level: against their dequantised matrix in double precision, and bit
// for bit against themselves whatever the number of rows.

#include <algorithm>
#include <cmath>
#include <random>

#include "base/error.h"
#include "check.h"
#include "checkpoint/int4.h"
#include "ops/cpu/cpu_ops.h"

namespace {

using namespace qe;
using Floats = std::vector<float>;

Floats noise(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 1);
  Floats values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

Int4Matrix random_int4(std::size_t out, std::size_t in, std::size_t group) {
  std::mt19937 generator(7);
  Int4Matrix matrix{out, in, group, std::vector<std::uint8_t>(out * in / 2), noise(out * in / group, 8), {}};
  for (std::uint8_t& byte : matrix.nibbles) byte = static_cast<std::uint8_t>(generator());
  for (const float scale : matrix.scales) matrix.offsets.push_back(-scale * static_cast<float>(1 + generator() % 15));
  return matrix;
}

double value_of(const Int4Matrix& m, std::size_t o, std::size_t i) {
  const std::uint8_t byte = m.nibbles[o * m.in / 2 + i / 32 * 16 + i % 16];
  const std::size_t g = o * (m.in / m.group) + i / m.group;
  return double{m.scales[g]} * (i % 32 < 16 ? byte & 15 : byte >> 4) + double{m.offsets[g]};
}

/** Products of 1 to 18 rows must be near `want`, and every row's bits those of the row alone. */
template <class Value>
void check_products(cpu::CpuOps& ops, const Weight& weight, Value&& value, const std::string& what) {
  constexpr std::size_t kRows = 18;
  const Floats x = noise(kRows * weight.in, 3), bias = noise(weight.out, 4);
  Floats alone(kRows * weight.out);
  for (std::size_t row = 0; row < kRows; ++row)
    ops.linear(x.data() + row * weight.in, 1,
               std::array{Linear{&weight, bias.data(), alone.data() + row * weight.out}});
  for (std::size_t rows = 1; rows <= kRows; ++rows) {
    Floats y(rows * weight.out);
    ops.linear(x.data(), rows, std::array{Linear{&weight, bias.data(), y.data()}});
    CHECK(std::equal(y.begin(), y.end(), alone.begin()), concat(what, ": ", rows, " rows differ from one"));
  }
  for (std::size_t row = 0; row < kRows; ++row)
    for (std::size_t o = 0; o < weight.out; ++o) {
      double total = double{bias[o]}, size = 1;
      for (std::size_t i = 0; i < weight.in; ++i) {
        total += double{x[row * weight.in + i]} * value(o, i);
        size += std::abs(double{x[row * weight.in + i]} * value(o, i));
      }
      CHECK(std::abs(total - double{alone[row * weight.out + o]}) < 2e-6 * size, concat(what, " output ", o));
    }
}

/** [out][in], by products with the unit vectors, which every level computes all but exactly. */
Floats weights_of(cpu::CpuOps& ops, const Weight& weight) {
  Floats unit(weight.in), column(weight.out), all(weight.out * weight.in);
  for (std::size_t i = 0; i < weight.in; ++i) {
    unit[i] = 1;
    ops.linear(unit.data(), 1, std::array{Linear{&weight, nullptr, column.data()}});
    for (std::size_t o = 0; o < weight.out; ++o) all[o * weight.in + i] = column[o];
    unit[i] = 0;
  }
  return all;
}

TEST("quantised: four bits at every level") {
  for (const cpu::Kernels* level : cpu::available_kernels()) {
    cpu::CpuOps ops(2, level->level);
    for (const auto& [out, in, group] : {std::array<std::size_t, 3>{8, 32, 32}, {37, 256, 64}, {130, 384, 128}}) {
      const Int4Matrix matrix = random_int4(out, in, group);
      check_products(
          ops, ops.upload_int4(matrix), [&](std::size_t o, std::size_t i) { return value_of(matrix, o, i); },
          concat(level->level, " int4 ", out, "x", in));
    }
  }
}

TEST("quantised: eight bits at every level, within half a step of the weights") {
  for (const cpu::Kernels* level : cpu::available_kernels()) {
    cpu::CpuOps ops(2, level->level);
    for (const auto& [out, in] : {std::pair<std::size_t, std::size_t>{5, 16}, {37, 96}, {130, 384}}) {
      Floats values = noise(out * in, 5);
      std::fill_n(values.begin(), 16, 0.0f);  // a group of zeros has no scale
      const TensorView tensor{"w", DType::f32, {out, in}, reinterpret_cast<const std::byte*>(values.data())};
      const Weight weight = ops.upload_int8(tensor);
      CHECK(weight.packing == Packing::int8 && in % weight.group == 0);
      const Floats rounded = weights_of(ops, weight);
      for (std::size_t o = 0; o < out; ++o)
        for (std::size_t i = 0; i < in; i += weight.group) {
          const auto group = std::span(values).subspan(o * in + i, weight.group);
          const float top = std::abs(*std::ranges::max_element(group, {}, [](float w) { return std::abs(w); }));
          for (std::size_t k = 0; k < weight.group; ++k)
            CHECK(std::abs(rounded[o * in + i + k] - group[k]) <= 0.5001f * top / 127);
        }
      const auto value = [&](std::size_t o, std::size_t i) { return double{rounded[o * in + i]}; };
      check_products(ops, weight, value, concat(level->level, " int8 ", out, "x", in));
    }
  }
}

TEST("quantised: what has no group of 16 stays as stored") {
  cpu::CpuOps ops(1);
  const Floats values = noise(3 * 24, 1);
  const TensorView tensor{"w", DType::f32, {3, 24}, reinterpret_cast<const std::byte*>(values.data())};
  CHECK(ops.upload_int8(tensor).packing == Packing::plain);
}

}  // namespace
