// Four-bit matrices and the mixture of experts on CUDA, against plain
// references.

#include <algorithm>
#include <numeric>

#include "cuda_device.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/kernels.h"

namespace {

using namespace device;

/** Experts of a softmax over all, equals by id, ascending. */
std::vector<std::pair<std::size_t, double>> chosen(const float* logits, std::size_t experts, std::size_t top_k,
                                                   bool renormalise) {
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

TEST(
    "cuda: the router takes the best experts, equals by id, with the weights "
    "of the whole softmax") {
  for (const auto& [experts, top_k] : {std::pair<std::size_t, std::size_t>{1, 1}, {4, 2}, {60, 4}, {64, 8}, {33, 32}})
    for (const bool renormalise : {false, true}) {
      const std::size_t rows = 5;
      Floats router = noise(rows * experts, 7, 2);
      for (std::size_t e = 0; e < experts; ++e) router[e] = 0.5f;  // a row of equals
      for (std::size_t e = 0; e + 1 < experts; e += 2)
        router[experts + e + 1] = router[experts + e];  // pairs of equals
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

TEST("cuda: pairs are grouped by expert, each in its old order") {
  for (const auto& [pairs, experts] : {std::pair<std::size_t, std::size_t>{1, 1}, {31, 3}, {32, 60}, {70, 5}}) {
    std::mt19937 random(1);
    std::vector<ExpertChoice> choices;
    for (std::size_t i = 0; i < pairs; ++i)
      choices.push_back({static_cast<std::uint32_t>(random() % experts * (random() % 2)), 1});
    const Array<ExpertChoice> on_choices(choices);
    const Array<std::uint32_t> order(pairs), slot_of(pairs), starts(experts + 1);
    group_by_expert(stream(), on_choices, pairs, experts, {order, slot_of, starts});
    std::vector<std::uint32_t> want, places(pairs), begins{0};
    for (std::uint32_t e = 0; e < experts; ++e) {
      for (std::uint32_t pair = 0; pair < pairs; ++pair)
        if (choices[pair].expert == e) places[pair] = static_cast<std::uint32_t>(want.size()), want.push_back(pair);
      begins.push_back(static_cast<std::uint32_t>(want.size()));
    }
    CHECK(order.read() == want && slot_of.read() == places && starts.read() == begins);
  }
}

/** A mixture of experts with random weights, on the device. */
struct Mixture {
  static constexpr std::size_t hidden = 72, inner = 40, experts = 6, top_k = 3, size = hidden * inner;
  Floats weights = rounded(noise(experts * 3 * size, 11, 0.3f));
  Array<std::uint16_t> halves{bits_of(weights)};
  Array<float> singles{weights};

  [[nodiscard]] std::vector<ExpertWeights> table(qe::DType dtype) const {
    std::vector<ExpertWeights> all;
    const auto at = [&](std::size_t part) -> const void* {
      if (dtype == qe::DType::f32) return singles + part * size;
      return halves + part * size;
    };
    for (std::size_t e = 0; e < experts; ++e) all.push_back({at(e * 3), at(e * 3 + 1), at(e * 3 + 2)});
    return all;
  }

  /** y += the mixture of x, as CudaOps does it. */
  void add(qe::DType dtype, bool tiles, const float* x, const float* router, std::size_t rows, float* y) const {
    const std::size_t pairs = rows * top_k;
    const Array<ExpertWeights> on_table(table(dtype));
    const Array<ExpertChoice> choices(pairs);
    const Array<std::uint32_t> order(pairs), slot_of(pairs), starts(experts + 1);
    const Array<float> between(pairs * inner), outer(pairs * hidden);
    const Array<std::uint16_t> narrow(pairs * inner), x_narrow(rows * hidden);
    const auto narrowed = [](const Array<std::uint16_t>& array) {
      return reinterpret_cast<Bf16*>(static_cast<std::uint16_t*>(array));
    };
    const ExpertsView view{on_table, experts, hidden, inner, top_k};
    const ExpertGroups groups{order, slot_of, starts};
    route(stream(), router, rows, experts, top_k, false, choices);
    group_by_expert(stream(), choices, pairs, experts, groups);
    round_to_bf16(stream(), x, rows * hidden, narrowed(x_narrow));
    if (tiles)
      experts_by_tiles(stream(), view, narrowed(x_narrow), rows, groups, narrowed(narrow), outer);
    else
      experts_by_rows(stream(), view, dtype, x, groups, between, outer);
    combine_experts(stream(), view, choices, rows, groups, outer, y);
    synchronize(stream());
  }

  [[nodiscard]] std::vector<double> reference(bool narrow, const Floats& x, const Floats& router,
                                              const Floats& before) const {
    std::vector<double> want(before.begin(), before.end());
    for (std::size_t row = 0; row < x.size() / hidden; ++row)
      for (const auto& [e, weight] : chosen(router.data() + row * experts, experts, top_k, false)) {
        const float* gate = weights.data() + e * 3 * size;
        std::vector<double> middle;
        for (std::size_t c = 0; c < inner; ++c) {
          double g = 0, u = 0;
          for (std::size_t i = 0; i < hidden; ++i) {
            g += double{x[row * hidden + i]} * double{gate[c * hidden + i]};
            u += double{x[row * hidden + i]} * double{gate[size + c * hidden + i]};
          }
          const double product = g / (1 + std::exp(-g)) * u;
          middle.push_back(narrow ? double{rounded(static_cast<float>(product))} : product);
        }
        for (std::size_t o = 0; o < hidden; ++o)
          for (std::size_t c = 0; c < inner; ++c)
            want[row * hidden + o] += weight * middle[c] * double{gate[2 * size + o * inner + c]};
      }
    return want;
  }
};

TEST(
    "cuda: a mixture of experts against the reference, few rows and many, "
    "scattered and crowded") {
  const Mixture mixture;
  // Crowded: all rows on the same experts, others have none.
  for (const auto& [rows, crowded] : {std::pair<std::size_t, bool>{1, false}, {35, false}, {66, true}}) {
    const Floats x = rounded(noise(rows * mixture.hidden, 8)), before = noise(rows * mixture.hidden, 9);
    Floats router = noise(rows * mixture.experts, 10);
    for (std::size_t i = mixture.experts; i < router.size() && crowded; ++i) router[i] = router[i % mixture.experts];
    const Array<float> on_x(x), on_router(router);
    for (const auto& [dtype, tiles] :
         {std::pair{qe::DType::f32, false}, {qe::DType::bf16, false}, {qe::DType::bf16, true}}) {
      const Array<float> y(before);
      mixture.add(dtype, tiles, on_x, on_router, rows, y);
      // A product at the edge between two numbers of bf16 may fall to either.
      check_near(y.read(), mixture.reference(tiles, x, router, before), tiles ? 2e-3 : 1e-5,
                 qe::concat("mixture of ", rows, tiles ? " by tiles" : " by rows"));
    }
  }
}

TEST(
    "cuda: a row's mixture of experts has the same bits alone and among "
    "others, by rows and by tiles") {
  const Mixture mixture;
  const std::size_t rows = 40, h = mixture.hidden;
  const Floats before = noise(rows * h, 9);
  const Array<float> x(noise(rows * h, 8)), router(noise(rows * mixture.experts, 10));
  for (const bool tiles : {false, true}) {
    const Array<float> together(before), alone(before);
    mixture.add(qe::DType::bf16, tiles, x, router, rows, together);
    for (std::size_t row = 0; row < rows; row += 13)
      mixture.add(qe::DType::bf16, tiles, x + row * h, router + row * mixture.experts, 1, alone + row * h);
    const Floats all = together.read(), ones = alone.read();
    for (std::size_t row = 0; row < rows; row += 13)
      CHECK(std::memcmp(ones.data() + row * h, all.data() + row * h, h * sizeof(float)) == 0, qe::concat("row ", row));
  }
}

TEST("cuda: more rows than share scratch memory are mixed in parts, with the same bits") {
  const std::size_t hidden = 16, inner = 8, experts = 3, rows = 600;
  const Floats weights = noise(experts * 3 * hidden * inner, 11);
  CudaOptions options;
  options.precision = CudaOptions::Precision::f32;
  CudaOps ops(options);
  qe::Experts mixture;
  mixture.top_k = 2;
  const auto upload = [&](std::size_t part, std::vector<std::size_t> shape) {
    const auto* at = reinterpret_cast<const std::byte*>(weights.data() + part * hidden * inner);
    return ops.upload_matrix({"", qe::DType::f32, std::move(shape), at});
  };
  for (std::size_t e = 0; e < experts; ++e) {
    mixture.gate.push_back(upload(e * 3, {inner, hidden}));
    mixture.up.push_back(upload(e * 3 + 1, {inner, hidden}));
    mixture.down.push_back(upload(e * 3 + 2, {hidden, inner}));
  }
  const Array<float> x(noise(rows * hidden, 1)), router(noise(rows * experts, 2)), y(Floats(rows * hidden)),
      parts(Floats(rows * hidden));
  ops.experts(x, router, rows, mixture, y);
  for (std::size_t row = 0; row < rows; row += 200)
    ops.experts(x + row * hidden, router + row * experts, 200, mixture, parts + row * hidden);
  synchronize(ops.stream());
  CHECK(same_bits(y.read(), parts.read()) && y.read().back() != 0);
}

TEST("cuda: a row of NaN is its own harm") {
  const Mixture mixture;
  const Floats before(2 * mixture.hidden, 0.0f);
  Floats bad = noise(2 * mixture.experts, 10);
  std::fill_n(bad.begin(), mixture.experts, NAN);
  const Array<float> x(noise(2 * mixture.hidden, 8)), router(bad), y(before), alone(before);
  mixture.add(qe::DType::bf16, false, x, router, 2, y);
  mixture.add(qe::DType::bf16, false, x + mixture.hidden, router + mixture.experts, 1, alone + mixture.hidden);
  const Floats got = y.read(), want = alone.read();
  CHECK(std::isnan(got.front()) &&
        std::memcmp(got.data() + mixture.hidden, want.data() + mixture.hidden, mixture.hidden * sizeof(float)) == 0);
}

TEST("cuda: the shared expert's gate") {
  const std::size_t rows = 3, width = 130;
  const Floats gate{-100, 0, 2.5f}, x = noise(rows * width, 12), before = noise(rows * width, 13);
  const Array<float> on_gate(gate), on_x(x), y(before);
  add_gated(stream(), on_gate, on_x, rows, width, y);
  std::vector<double> want;
  for (std::size_t i = 0; i < before.size(); ++i)
    want.push_back(double{before[i]} + double{x[i]} / (1 + std::exp(-double{gate[i / width]})));
  check_near(y.read(), want, 1e-6, "gated");
}

}  // namespace
