// Every kernel level against a plain reference in double precision, and bit for bit against itself however the work
// is cut: that is what makes an answer independent of batch and cache.

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "base/error.h"
#include "check.h"
#include "ops/cpu/aligned_buffer.h"
#include "ops/cpu/kernels.h"

namespace {

using namespace qe::cpu;
using Floats = std::vector<float>;

Floats noise(std::size_t count, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  Floats values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

std::uint16_t to_bf16(float value) { return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16); }
float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

struct Stored {
  std::vector<std::uint16_t> half;
  Floats single;
  Format format;
  Floats value;  // what the stored numbers mean
  const void* data() const { return format == Format::f32 ? static_cast<const void*>(single.data()) : half.data(); }
};

float from_f16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                        : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

Stored store(const Floats& values, Format format) {
  Stored stored{{}, {}, format, {}};
  for (const float value : values) {
    if (format == Format::f32) {
      stored.single.push_back(value);
      stored.value.push_back(value);
    } else if (format == Format::bf16) {
      stored.half.push_back(to_bf16(value));
      stored.value.push_back(from_bf16(stored.half.back()));
    } else {
      // Any bits but infinity's; among them subnormals.
      const std::uint16_t bits = to_bf16(value) & 0xbbff;
      stored.half.push_back(bits);
      stored.value.push_back(from_f16(bits));
    }
  }
  return stored;
}

/** A matrix as a level reads it. */
class Arranged {
 public:
  Arranged(const Kernels& kernels, const Stored& stored, std::size_t out, std::size_t in)
      : format_(stored.format), out_(out) {
    const MatrixForm form{stored.format, out, in};
    std::byte* to = memory_.bytes(kernels.arranged_bytes(form) + 64);
    const auto* from = static_cast<const std::byte*>(stored.data());
    const std::size_t row = in * (stored.format == Format::f32 ? 4 : 2);
    for (std::size_t first = 0; first < out; first += kArrangeStep)
      kernels.arrange(form, {from + first * row}, first, std::min(kArrangeStep, out - first), to);
    weight_ = to;
  }
  Projection to(float* y, const float* bias = nullptr, bool add = false) const {
    return {weight_, format_, bias, y, out_, out_, add};
  }

 private:
  AlignedBuffer memory_;
  const std::byte* weight_;
  Format format_;
  std::size_t out_;
};

/** Packs x, where the level wants that, as the engine does. @returns what job.packed lies in */
AlignedBuffer pack(const Kernels& kernels, Matmul& job, const Projection& part) {
  AlignedBuffer packed;
  if (const std::size_t bytes = kernels.packed_bytes(job, part); bytes > 0) {
    const std::size_t blocks = qe::div_up(job.rows, kPackRows);
    std::byte* to = packed.bytes(blocks * bytes);
    for (std::size_t block = 0; block < blocks; ++block) kernels.pack(job, part, block, to);
    job.packed = to;
  }
  return packed;
}

void multiply(const Kernels& kernels, Matmul job, const Projection& part, std::size_t begin, std::size_t end) {
  const AlignedBuffer packed = pack(kernels, job, part);
  kernels.matmul(job, part, begin, end);
}

void check_near(const Floats& got, const std::vector<double>& want, double tolerance, const std::string& where) {
  double worst = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
    norm = std::max(norm, std::abs(want[i]));
  }
  CHECK(got.size() == want.size() && worst <= tolerance * std::max(norm, 1e-30),
        where + qe::concat(": error ", worst, " of ", norm));
}

TEST("kernels: matmul against the reference, all formats, odd sizes, bias and accumulation") {
  for (const Kernels* kernels : available_kernels())
    for (const Format format : {Format::f32, Format::f16, Format::bf16})
      for (const auto& [in, out] :
           {std::pair<std::size_t, std::size_t>{1, 1}, {15, 3}, {16, 4}, {64, 13}, {100, 7}, {288, 81}, {896, 33}})
        for (const std::size_t rows : {1, 2, 3, 5, 6, 7, 8, 13, 15, 16, 17, 70}) {
          const Stored w = store(noise(in * out, 1), format);
          const Floats x = noise(rows * in, 2), bias = noise(out, 3), before = noise(rows * out, 4);
          Floats y = before;
          multiply(*kernels, {x.data(), rows, in}, Arranged(*kernels, w, out, in).to(y.data(), bias.data(), true), 0,
                   out);
          std::vector<double> want(rows * out);
          for (std::size_t m = 0; m < rows; ++m)
            for (std::size_t n = 0; n < out; ++n) {
              double sum = double{before[m * out + n]} + double{bias[n]};
              for (std::size_t k = 0; k < in; ++k) sum += double{x[m * in + k]} * double{w.value[n * in + k]};
              want[m * out + n] = sum;
            }
          const bool rounds = kernels->level == "amx-bf16" && format == Format::bf16;
          check_near(y, want, rounds ? 1e-2 : 1e-5, qe::concat(kernels->level, " ", in, "x", out, " rows ", rows));
        }
}

TEST("kernels: a row of a matmul has the same bits alone, among others, and however outputs are cut") {
  for (const Kernels* kernels : available_kernels())
    for (const auto& [in, out] : {std::pair<std::size_t, std::size_t>{40, 29}, {896, 29}, {896, 96}, {4864, 129}}) {
      const std::size_t rows = 37;
      const Stored w = store(noise(in * out, 5), Format::bf16);
      const Floats x = noise(rows * in, 6);
      Floats together(rows * out), alone(rows * out);
      const Arranged weights(*kernels, w, out, in);
      multiply(*kernels, {x.data(), rows, in}, weights.to(together.data()), 0, out);
      for (std::size_t m = 0; m < rows; ++m) {
        const Projection one = weights.to(alone.data() + m * out);
        const std::size_t step = kernels->outputs_step, cut = m % qe::div_up(out, step) * step;
        multiply(*kernels, {x.data() + m * in, 1, in}, one, cut, out);
        multiply(*kernels, {x.data() + m * in, 1, in}, one, 0, cut);
      }
      CHECK(std::memcmp(together.data(), alone.data(), together.size() * sizeof(float)) == 0,
            std::string(kernels->level));
    }
}

/** Keys and values of one sequence, paged in a shuffled order, beside the plain ones. */
struct Paged {
  std::size_t kv_heads, dim, padded, length;
  Floats k, v;  // [length][kv_heads][dim]
  Floats keys, values;
  std::vector<qe::BlockId> blocks;

  Paged(std::size_t heads, std::size_t head_dim, std::size_t tokens)
      : kv_heads(heads), dim(head_dim), padded(qe::round_up(head_dim, 16)), length(tokens) {
    k = noise(length * kv_heads * dim, 7);
    v = noise(length * kv_heads * dim, 8);
    const std::size_t count = qe::div_up(length, 16);
    for (std::size_t i = 0; i < count; ++i) blocks.push_back(static_cast<qe::BlockId>((i * 7 + 3) % count));
    if (count % 7 == 0)
      for (std::size_t i = 0; i < count; ++i) blocks[i] = static_cast<qe::BlockId>(count - 1 - i);
    // Slots nobody wrote hold rubbish that must not matter.
    keys.assign(count * kv_heads * dim * 16, 1e30f);
    values.assign(count * kv_heads * 16 * padded, 1e30f);
    for (std::size_t t = 0; t < length; ++t)
      for (std::size_t h = 0; h < kv_heads; ++h)
        for (std::size_t d = 0; d < dim; ++d) {
          const std::size_t b = blocks[t / 16], s = t % 16;
          keys[((b * kv_heads + h) * dim + d) * 16 + s] = k[(t * kv_heads + h) * dim + d];
          values[((b * kv_heads + h) * 16 + s) * padded + d] = v[(t * kv_heads + h) * dim + d];
        }
  }

  AttentionTile tile(const Floats& q, Floats& out, std::size_t head, std::size_t group, std::size_t row,
                     std::size_t rows) const {
    const std::size_t stride = kv_heads * group * dim, at = row * stride + head * group * dim;
    return {.q = q.data() + at,
            .out = out.data() + at,
            .keys = keys.data() + head * dim * 16,
            .values = values.data() + head * 16 * padded,
            .blocks = blocks.data(),
            .rows = rows,
            .position = row,
            .q_stride = stride,
            .group = group,
            .head_dim = dim,
            .padded = padded,
            .key_block = kv_heads * dim * 16,
            .value_block = kv_heads * 16 * padded,
            .scale = 1 / std::sqrt(static_cast<float>(dim))};
  }
};

TEST("kernels: attention against the reference, with the same bits for tiles of one row and of many") {
  for (const Kernels* kernels : available_kernels())
    for (const auto& [kv_heads, group, dim] :
         {std::tuple<std::size_t, std::size_t, std::size_t>{2, 7, 64}, {1, 1, 16}, {2, 3, 20}, {1, 6, 128}})
      for (const std::size_t length : {1, 15, 16, 17, 255, 256, 257, 600}) {
        const Paged cache(kv_heads, dim, length);
        const std::size_t stride = kv_heads * group * dim;
        const Floats q = noise(length * stride, 9);
        Floats many(length * stride), ones(length * stride);
        std::vector<double> want(length * stride);
        const std::size_t most = kernels->attention_rows;
        for (std::size_t h = 0; h < kv_heads; ++h) {
          for (std::size_t row = 0; row < length; row += most)
            kernels->attention(cache.tile(q, many, h, group, row, std::min(most, length - row)));
          for (std::size_t row = 0; row < length; ++row) kernels->attention(cache.tile(q, ones, h, group, row, 1));
          for (std::size_t row = length > 40 ? length - 40 : 0; row < length; ++row)
            for (std::size_t g = 0; g < group; ++g) {
              const float* query = q.data() + row * stride + (h * group + g) * dim;
              std::vector<double> weight(row + 1);
              double total = 0;
              for (std::size_t t = 0; t <= row; ++t) {
                double score = 0;
                for (std::size_t d = 0; d < dim; ++d)
                  score += double{query[d]} * double{cache.k[(t * kv_heads + h) * dim + d]};
                total += weight[t] = std::exp(score / std::sqrt(static_cast<double>(dim)));
              }
              for (std::size_t d = 0; d < dim; ++d) {
                double sum = 0;
                for (std::size_t t = 0; t <= row; ++t)
                  sum += weight[t] / total * double{cache.v[(t * kv_heads + h) * dim + d]};
                want[row * stride + (h * group + g) * dim + d] = sum;
              }
            }
        }
        const std::string where = qe::concat(kernels->level, " dim ", dim, " length ", length);
        CHECK(std::memcmp(many.data(), ones.data(), many.size() * sizeof(float)) == 0, where);
        const std::size_t from = (length > 40 ? length - 40 : 0) * stride;
        check_near(Floats(many.begin() + static_cast<long>(from), many.end()),
                   {want.begin() + static_cast<long>(from), want.end()}, kernels->level == "amx-bf16" ? 2e-2 : 1e-5,
                   where);
      }
}

TEST("kernels: norm, gate and widening against the reference") {
  for (const Kernels* kernels : available_kernels())
    for (const std::size_t width : {1, 16, 50, 896}) {
      const Floats x = noise(width, 10, 3), w = noise(width, 11);
      Floats y(width), gated(width);
      kernels->rms_norm(x.data(), w.data(), 1e-6f, width, y.data());
      kernels->silu_mul(x.data(), w.data(), width, gated.data());
      double squares = 0;
      for (const float a : x) squares += double{a} * double{a};
      std::vector<double> norm(width), gate(width);
      for (std::size_t i = 0; i < width; ++i) {
        norm[i] = double{x[i]} / std::sqrt(squares / static_cast<double>(width) + 1e-6) * double{w[i]};
        gate[i] = double{x[i]} / (1 + std::exp(-double{x[i]})) * double{w[i]};
      }
      check_near(y, norm, 1e-6, std::string(kernels->level));
      check_near(gated, gate, 1e-6, std::string(kernels->level));
      for (const Format format : {Format::f32, Format::f16, Format::bf16}) {
        const Stored stored = store(x, format);
        Floats wide(width);
        kernels->widen(stored.data(), format, width, wide.data());
        CHECK(wide == stored.value, std::string(kernels->level));
      }
    }
}

TEST("kernels: the gate saturates and never turns into NaN") {
  for (const Kernels* kernels : available_kernels()) {
    const Floats gate{-1000, -88, -87, -20, 0, 20, 88, 1000}, up(gate.size(), 1);
    Floats y(gate.size());
    kernels->silu_mul(gate.data(), up.data(), gate.size(), y.data());
    CHECK(std::abs(y[0]) < 1e-30f && std::abs(y[2]) < 1e-30f && y[4] == 0 && y[6] == 88 && y[7] == 1000);
  }
}

TEST("kernels: a job of more rows and outputs than are held at once, in pieces") {
  for (const Kernels* kernels : available_kernels()) {
    const std::size_t in = 160, out = 300, rows = 530;
    const Stored w = store(noise(in * out, 12), Format::bf16);
    const Floats x = noise(rows * in, 13);
    Floats all(rows * out), one(out);
    const Arranged weights(*kernels, w, out, in);
    multiply(*kernels, {x.data(), rows, in}, weights.to(all.data()), 0, out);
    for (const std::size_t row : {0, 511, 512, 529}) {
      multiply(*kernels, {x.data() + row * in, 1, in}, weights.to(one.data()), 0, out);
      CHECK(std::memcmp(one.data(), all.data() + row * out, out * sizeof(float)) == 0,
            qe::concat(kernels->level, " row ", row));
    }
  }
}

TEST("kernels: a gated product has the bits of two products and the gate") {
  for (const Kernels* kernels : available_kernels())
    for (const std::size_t in : {64, 896, 2080})
      for (const std::size_t rows : {17, 48, 300}) {
        const std::size_t out = 160;
        const Arranged gate(*kernels, store(noise(in * out, 14), Format::bf16), out, in);
        const Arranged up(*kernels, store(noise(in * out, 15), Format::bf16), out, in);
        const Floats x = noise(rows * in, 16);
        Floats want(rows * out), other(rows * out), got(rows * out);
        const auto part = [](const Arranged& w, Floats& y) { return w.to(y.data()); };
        Matmul job{x.data(), rows, in};
        if (!kernels->gates(job, part(gate, got), part(up, other))) continue;
        multiply(*kernels, job, part(gate, want), 0, out);
        multiply(*kernels, job, part(up, other), 0, out);
        kernels->silu_mul(want.data(), other.data(), want.size(), want.data());
        const AlignedBuffer packed = pack(*kernels, job, part(gate, got));
        kernels->gated(job, part(gate, got), part(up, other), 0, 96);
        kernels->gated(job, part(gate, got), part(up, other), 96, out);
        CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0,
              qe::concat(kernels->level, " ", in, " rows ", rows));
      }
}

TEST("kernels: the plainest level is everywhere") {
  CHECK(available_kernels().back()->level == "base");
  if (available_kernels().front()->level != "amx")
    std::fputs("kernels: no AMX on this machine, so its level is not tested\n", stderr);
}

TEST("kernels: an unknown level is refused by name") {
  CHECK_THROWS("no kernels 'mmx'", select_kernels("mmx"));
  CHECK(select_kernels("").level == available_kernels().front()->level);
  CHECK(select_kernels("base").level == "base");
}

}  // namespace
