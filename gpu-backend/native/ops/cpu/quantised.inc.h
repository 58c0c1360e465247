// Matmul y = x W^T where W is stored in eight or four bits, with a scale (and an offset) for each output and each group
// of inputs: w = scale * q + offset, one FMA a vector, exact for scales of half precision. Activations stay fp32.
//
// The order of reduction is matmul.inc.h's: one accumulator vector per output over k, its lanes in a fixed tree.

struct Int8 {
  static constexpr bool kOffsets = false;
  static constexpr std::size_t kChunk = 16;  // inputs unpacked at once
  static constexpr std::size_t bytes(std::size_t inputs) { return inputs; }
  /** Lanes [at, at + kLanes) of a chunk. */
  static F vector(const std::byte* chunk, std::size_t at) {
    return load_i8(reinterpret_cast<const std::int8_t*>(chunk) + at);
  }
};

struct Int4 {
  static constexpr bool kOffsets = true;
  static constexpr std::size_t kChunk = 32;
  static constexpr std::size_t bytes(std::size_t inputs) { return inputs / 2; }
  static F vector(const std::byte* chunk, std::size_t at) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(chunk);
    return at < 16 ? load_low4(bytes + at) : load_high4(bytes + at - 16);
  }
};

template <class From, std::size_t MR, std::size_t NR>
inline void quantised_tile(const float* x, std::size_t in, const Projection& part, std::size_t row, std::size_t n) {
  F acc[MR][NR];
#pragma GCC unroll 8
  for (std::size_t m = 0; m < MR; ++m)
#pragma GCC unroll 8
    for (std::size_t j = 0; j < NR; ++j) acc[m][j] = set1(0.0f);

  const std::size_t groups = in / part.group, stride = From::bytes(in);
  const std::byte* w = part.weight + n * stride;
  const auto* scales = reinterpret_cast<const float*>(part.weight + part.out * stride);  // as arrange_rows wrote them
  const float* offsets = scales + part.out * groups;
  const auto* ahead = reinterpret_cast<const char*>(w + NR * stride);
  constexpr std::size_t kStep = NR * From::bytes(From::kChunk);
  for (std::size_t g = 0; g < groups; ++g) {
    F scale[NR], offset[NR];
#pragma GCC unroll 8
    for (std::size_t j = 0; j < NR; ++j) {
      scale[j] = set1(scales[(n + j) * groups + g]);
      offset[j] = set1(From::kOffsets ? offsets[(n + j) * groups + g] : 0.0f);
    }
    for (std::size_t k = g * part.group; k < (g + 1) * part.group; k += From::kChunk, ahead += kStep) {
      __builtin_prefetch(ahead, 0, 2);
      const std::byte* chunk = w + From::bytes(k);
#pragma GCC unroll 8
      for (std::size_t at = 0; at < From::kChunk; at += kLanes) {
        F wide[NR];
#pragma GCC unroll 8
        for (std::size_t j = 0; j < NR; ++j) wide[j] = fma(From::vector(chunk + j * stride, at), scale[j], offset[j]);
#pragma GCC unroll 8
        for (std::size_t m = 0; m < MR; ++m) {
          const F a = load(x + m * in + k + at);
#pragma GCC unroll 8
          for (std::size_t j = 0; j < NR; ++j) acc[m][j] = fma(a, wide[j], acc[m][j]);
        }
      }
    }
  }
  for (std::size_t m = 0; m < MR; ++m)
    for (std::size_t j = 0; j < NR; ++j) {
      float* y = part.y + (row + m) * part.stride + n + j;
      const float total = sum(acc[m][j]) + (part.bias == nullptr ? 0.0f : part.bias[n + j]);
      *y = part.add ? *y + total : total;
    }
}

template <class From, std::size_t NR>
inline void quantised_tile_of(std::size_t mr, const float* x, std::size_t in, const Projection& part, std::size_t row,
                              std::size_t n) {
  switch (mr) {
    case 1:
      return quantised_tile<From, 1, NR>(x, in, part, row, n);
    case 2:
      return quantised_tile<From, 2, NR>(x, in, part, row, n);
    case 3:
      return quantised_tile<From, 3, NR>(x, in, part, row, n);
#if QE_LANES == 16
    case 4:
      return quantised_tile<From, 4, NR>(x, in, part, row, n);
    case 5:
      return quantised_tile<From, 5, NR>(x, in, part, row, n);
    case 6:
      return quantised_tile<From, 6, NR>(x, in, part, row, n);
#endif
    default:
      __builtin_unreachable();
  }
}
