// Each CUDA kernel against a plain reference in double precision, over shapes that include the edges.

#include "base/choice.h"
#include "cuda_device.h"
#include "ops/cuda/kernels.h"

namespace {

using namespace device;

TEST("cuda: embedding looks rows up in every dtype, by tokens and by what the step before chose") {
  const std::size_t vocab = 7, width = 130;
  const Floats table = rounded(noise(vocab * width, 1));
  const Array<std::uint32_t> tokens({6, qe::kChosenBefore + 2, 3, 3, qe::kChosenBefore}), chosen({qe::kUndecided, 5, 4});
  const Array<float> x(5 * width), single(table);
  const Array<std::uint16_t> half(bits_of(table));
  for (const qe::DType dtype : {qe::DType::f32, qe::DType::bf16}) {
    embed(stream(), dtype == qe::DType::f32 ? static_cast<const void*>(single) : half, dtype, tokens, chosen, 5, width, x);
    const Floats got = x.read();
    const std::uint32_t want[4] = {6, 4, 3, 3};  // the last row may be anybody's
    for (std::size_t row = 0; row < 4; ++row)
      for (std::size_t i = 0; i < width; ++i) CHECK(got[row * width + i] == table[want[row] * width + i]);
  }
}

TEST("cuda: norm, gate, gather and rounding against the reference") {
  for (const std::size_t width : {1, 31, 128, 129, 896}) {
    const std::size_t rows = 3;
    const Floats x = noise(rows * width, 2, 3), w = noise(width, 3), up = noise(rows * width, 4);
    const Array<float> on_x(x), on_w(w), on_up(up), y(rows * width), gated(rows * width), picked(2 * width);
    const Array<std::uint16_t> halves(rows * width);
    rms_norm(stream(), on_x, on_w, 1e-6f, rows, width, y);
    silu_mul(stream(), on_x, on_up, rows * width, gated);
    const Array<std::uint32_t> which({2, 0});
    gather(stream(), on_x, which, 2, width, picked);
    round_to_bf16(stream(), on_x, rows * width, reinterpret_cast<Bf16*>(static_cast<std::uint16_t*>(halves)));
    std::vector<double> norm, gate;
    for (std::size_t row = 0; row < rows; ++row) {
      double squares = 0;
      for (std::size_t i = 0; i < width; ++i) squares += double{x[row * width + i]} * double{x[row * width + i]};
      for (std::size_t i = 0; i < width; ++i) {
        const double a = double{x[row * width + i]};
        norm.push_back(a / std::sqrt(squares / static_cast<double>(width) + 1e-6) * double{w[i]});
        gate.push_back(a / (1 + std::exp(-a)) * double{up[row * width + i]});
      }
    }
    check_near(y.read(), norm, 1e-6, qe::concat("norm ", width));
    check_near(gated.read(), gate, 1e-6, qe::concat("gate ", width));
    CHECK(halves.read() == bits_of(x));
    Floats want(x.end() - static_cast<long>(width), x.end());
    want.insert(want.end(), x.begin(), x.begin() + static_cast<long>(width));
    CHECK(picked.read() == want);
  }
}

/** Two products of one input, the second added to what is there; every path must agree with the plain sum. */
void check_linear(std::size_t in, std::size_t out, std::size_t rows, qe::DType dtype, bool tensor_cores, double tolerance) {
  const Floats x = rounded(noise(rows * in, 5)), w = rounded(noise(2 * out * in, 6)), bias = noise(out, 7), before = noise(rows * out, 8);
  const Array<float> on_x(x), on_bias(bias), first(rows * out), second(before), single(w);
  const Array<std::uint16_t> half_x(bits_of(x)), half_w(bits_of(w));
  const auto weight = [&](std::size_t index) -> const void* {
    if (dtype == qe::DType::f32) return single + index * out * in;
    return half_w + index * out * in;
  };
  const auto n = static_cast<std::uint32_t>(out);
  const LinearParts parts{{{weight(0), on_bias, first, n, false}, {weight(1), nullptr, second, n, true}}, 2};
  if (tensor_cores)
    gemm(stream(), reinterpret_cast<const Bf16*>(static_cast<std::uint16_t*>(half_x)), rows, in, parts);
  else
    gemv(stream(), on_x, rows, in, dtype, parts);
  std::vector<double> want(rows * out), added(rows * out);
  for (std::size_t m = 0; m < rows; ++m)
    for (std::size_t j = 0; j < out; ++j) {
      double a = double{bias[j]}, b = double{before[m * out + j]};
      for (std::size_t k = 0; k < in; ++k) {
        a += double{x[m * in + k]} * double{w[j * in + k]};
        b += double{x[m * in + k]} * double{w[(out + j) * in + k]};
      }
      want[m * out + j] = a, added[m * out + j] = b;
    }
  const std::string where = qe::concat(tensor_cores ? "gemm " : "gemv ", in, "x", out, " rows ", rows);
  check_near(first.read(), want, tolerance, where);
  check_near(second.read(), added, tolerance, where + " added");
}

TEST("cuda: gemv against the reference, batches around its tile, odd widths") {
  for (const qe::DType dtype : {qe::DType::f32, qe::DType::bf16})
    for (const auto& [in, out] : {std::pair<std::size_t, std::size_t>{8, 1}, {33, 5}, {264, 9}, {896, 6}})
      for (const std::size_t rows : {1, 2, 3, 8, 9, 17}) check_linear(in, out, rows, dtype, false, 1e-5);
}

TEST("cuda: gemm on tensor cores against the reference, edges of tiles on every side") {
  for (const auto& [in, out] : {std::pair<std::size_t, std::size_t>{8, 1}, {40, 65}, {256, 64}})
    for (const std::size_t rows : {1, 15, 16, 17, 63, 64, 65}) check_linear(in, out, rows, qe::DType::bf16, true, 1e-5);
}

TEST("cuda: a row's product has the same bits alone and among others, in gemv and in gemm") {
  const std::size_t in = 136, out = 70, rows = 67;
  const Floats x = rounded(noise(rows * in, 9)), w = rounded(noise(out * in, 10));
  const Array<float> on_x(x), together(rows * out), alone(rows * out);
  const Array<std::uint16_t> half_x(bits_of(x)), half_w(bits_of(w));
  const auto part = [&](float* y) { return LinearParts{{{half_w, nullptr, y, out, false}}, 1}; };
  for (const bool tensor_cores : {false, true}) {
    const auto product = [&](std::size_t row, std::size_t count, float* y) {
      if (tensor_cores)
        gemm(stream(), reinterpret_cast<const Bf16*>(half_x + row * in), count, in, part(y));
      else
        gemv(stream(), on_x + row * in, count, in, qe::DType::bf16, part(y));
    };
    product(0, rows, together);
    for (std::size_t row = 0; row < rows; row += 11) {
      product(row, 1, alone);
      const Floats all = together.read(), one = alone.read();
      CHECK(std::memcmp(one.data(), all.data() + row * out, out * sizeof(float)) == 0, qe::concat("row ", row));
    }
  }
}

}  // namespace
