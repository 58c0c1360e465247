// Four-bit matrices and the mixture of experts on CUDA, against plain references.

#include <algorithm>
#include <numeric>

#include "cuda_device.h"
#include "ops/cuda/kernels.h"

namespace {

using namespace device;

TEST("cuda: four-bit products and unpacking against the reference") {
  for (const auto& [in, group, out] : {std::tuple<std::size_t, std::size_t, std::size_t>{32, 32, 1}, {128, 64, 5}, {1152, 128, 7}}) {
    std::mt19937 random(1);
    std::vector<std::uint8_t> nibbles(out * in / 2);
    for (auto& byte : nibbles) byte = static_cast<std::uint8_t>(random());
    const Floats scales = noise(out * in / group, 2, 0.1f), offsets = noise(out * in / group, 3, 0.5f);
    const auto weight = [&](std::size_t o, std::size_t i) {
      const std::uint8_t byte = nibbles[o * in / 2 + i / 32 * 16 + i % 16];
      const std::size_t g = o * (in / group) + i / group;
      return double{scales[g]} * (i % 32 < 16 ? byte & 15 : byte >> 4) + double{offsets[g]};
    };
    const Array<std::uint8_t> on_nibbles(nibbles);
    const Array<float> on_scales(scales), on_offsets(offsets);
    const auto of = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
    const Int4View view{on_nibbles, on_scales, on_offsets, of(out), of(in), of(group)};
    for (const std::size_t rows : {1, 3, 9}) {
      const Floats x = noise(rows * in, 4), bias = noise(out, 5), before = noise(rows * out, 6);
      const Array<float> on_x(x), on_bias(bias), y(before);
      gemv_int4(stream(), view, on_x, rows, on_bias, y, true);
      std::vector<double> want;
      for (std::size_t m = 0; m < rows; ++m)
        for (std::size_t o = 0; o < out; ++o) {
          double sum = double{before[m * out + o]} + double{bias[o]};
          for (std::size_t i = 0; i < in; ++i) sum += double{x[m * in + i]} * weight(o, i);
          want.push_back(sum);
        }
      check_near(y.read(), want, 1e-5, qe::concat("int4 ", in, "x", out, " rows ", rows));
    }
    const std::size_t first = out / 2, count = out - first;
    const Array<std::uint16_t> unpacked(count * in);
    unpack_int4(stream(), view, first, count, reinterpret_cast<Bf16*>(static_cast<std::uint16_t*>(unpacked)));
    const auto bits = unpacked.read();
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const double want = weight(first + i / in, i % in);
      const double got = double{std::bit_cast<float>(std::uint32_t{bits[i]} << 16)};
      CHECK(std::abs(got - want) <= std::abs(want) * 0x1p-8 + 1e-6, qe::concat("unpacked ", i, ": ", got, " for ", want));
    }
  }
}

/** Experts of a softmax over all, equals by id, ascending. */
std::vector<std::pair<std::size_t, double>> chosen(const float* logits, std::size_t experts, std::size_t top_k, bool renormalise) {
  std::vector<std::size_t> order(experts);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  double total = 0, kept = 0;
  for (std::size_t e = 0; e < experts; ++e) total += std::exp(double{logits[e]});
  order.resize(top_k);
  std::sort(order.begin(), order.end());
  for (const std::size_t e : order) kept += std::exp(double{logits[e]}) / total;
  std::vector<std::pair<std::size_t, double>> all;
  for (const std::size_t e : order) all.emplace_back(e, std::exp(double{logits[e]}) / total / (renormalise ? kept : 1));
  return all;
}

TEST("cuda: the router takes the best experts, equals by id, with the weights of the whole softmax") {
  for (const auto& [experts, top_k] : {std::pair<std::size_t, std::size_t>{1, 1}, {4, 2}, {60, 4}, {64, 8}, {33, 32}})
    for (const bool renormalise : {false, true}) {
      const std::size_t rows = 5;
      Floats router = noise(rows * experts, 7, 2);
      for (std::size_t e = 0; e < experts; ++e) router[e] = 0.5f;  // a row of equals
      for (std::size_t e = 0; e + 1 < experts; e += 2) router[experts + e + 1] = router[experts + e];  // pairs of equals
      const Array<float> on_router(router);
      const Array<ExpertChoice> choices(rows * top_k);
      route(stream(), on_router, rows, experts, top_k, renormalise, choices);
      const auto got = choices.read();
      for (std::size_t row = 0; row < rows; ++row) {
        const auto want = chosen(router.data() + row * experts, experts, top_k, renormalise);
        for (std::size_t i = 0; i < top_k; ++i) {
          const ExpertChoice& one = got[row * top_k + i];
          CHECK(one.expert == want[i].first && std::abs(double{one.weight} - want[i].second) < 1e-6,
                qe::concat(experts, " experts, row ", row, ": ", one.expert, " for ", want[i].first));
        }
      }
    }
}

TEST("cuda: a mixture of experts against the reference, and each row alone with the same bits") {
  const std::size_t hidden = 40, inner = 24, experts = 6, top_k = 3, rows = 4;
  const Floats x = noise(rows * hidden, 8), before = noise(rows * hidden, 9), router = noise(rows * experts, 10);
  const std::size_t size = hidden * inner;
  const Floats weights = rounded(noise(experts * 3 * size, 11, 0.3f));
  const Array<std::uint16_t> on_weights(bits_of(weights));
  std::vector<ExpertWeights> table;
  for (std::size_t e = 0; e < experts; ++e)
    table.push_back({on_weights + e * 3 * size, on_weights + (e * 3 + 1) * size, on_weights + (e * 3 + 2) * size});
  const Array<ExpertWeights> on_table(table);
  const Array<float> on_x(x), on_router(router), y(before), scratch(rows * top_k * inner), alone(before);
  const Array<ExpertChoice> choices(rows * top_k);
  route(stream(), on_router, rows, experts, top_k, false, choices);
  const ExpertsView view{on_table, hidden, inner, top_k};
  mix_experts(stream(), view, qe::DType::bf16, on_x, rows, choices, scratch, y);
  std::vector<double> want(before.begin(), before.end());
  for (std::size_t row = 0; row < rows; ++row)
    for (const auto& [e, weight] : chosen(router.data() + row * experts, experts, top_k, false)) {
      const float* gate = weights.data() + e * 3 * size;
      std::vector<double> middle;
      for (std::size_t c = 0; c < inner; ++c) {
        double g = 0, u = 0;
        for (std::size_t i = 0; i < hidden; ++i) {
          g += double{x[row * hidden + i]} * double{gate[c * hidden + i]};
          u += double{x[row * hidden + i]} * double{gate[size + c * hidden + i]};
        }
        middle.push_back(g / (1 + std::exp(-g)) * u);
      }
      for (std::size_t o = 0; o < hidden; ++o)
        for (std::size_t c = 0; c < inner; ++c) want[row * hidden + o] += weight * middle[c] * double{gate[2 * size + o * inner + c]};
    }
  check_near(y.read(), want, 1e-5, "mixture");
  for (std::size_t row = 0; row < rows; ++row)
    mix_experts(stream(), view, qe::DType::bf16, on_x + row * hidden, 1, choices + row * top_k, scratch, alone + row * hidden);
  CHECK(same_bits(alone.read(), y.read()));
}

TEST("cuda: the shared expert's gate") {
  const std::size_t rows = 3, width = 130;
  const Floats gate{-100, 0, 2.5f}, x = noise(rows * width, 12), before = noise(rows * width, 13);
  const Array<float> on_gate(gate), on_x(x), y(before);
  add_gated(stream(), on_gate, on_x, rows, width, y);
  std::vector<double> want;
  for (std::size_t i = 0; i < before.size(); ++i) want.push_back(double{before[i]} + double{x[i]} / (1 + std::exp(-double{gate[i / width]})));
  check_near(y.read(), want, 1e-6, "gated");
}

}  // namespace
