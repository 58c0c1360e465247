// Matmul y = x W^T, for one row (decode) and for many (prefill), by one and the same micro-kernel.
//
// Reduction order, the same for every output whatever the number of rows: one accumulator vector per output runs over
// k in steps of kLanes, its lanes are summed in a fixed tree, and the k left over are added one by one. A tile of
// MR rows by NR outputs keeps MR * NR such accumulators in registers; the weight vectors are widened once per tile.
// So a row's bits depend on the level alone, and decode may publish its blocks for prefill to reuse.
//
// Speed: with one row the tile streams NR = 4 weight rows, which is bound by memory. With many rows it is bound by
// FMA: 24 FMAs per 4 widened weight vectors and 6 loads on AVX-512. Rows go in blocks whose x fits in L2; outputs are
// the outer loop inside, so a weight tile is read from memory once per block of rows.

template <class From, std::size_t MR, std::size_t NR>
inline void tile(const float* x, std::size_t in, const typename From::Stored* w, const Projection& part,
                 std::size_t row, std::size_t n) {
  F acc[MR][NR];
#pragma GCC unroll 8
  for (std::size_t m = 0; m < MR; ++m)
#pragma GCC unroll 8
    for (std::size_t j = 0; j < NR; ++j) acc[m][j] = set1(0.0f);

  // The next tile's weights follow this one's in memory; short rows give the hardware's prefetcher no time to see it.
  const auto* ahead = reinterpret_cast<const char*>(w + NR * in);
  constexpr std::size_t kStep = NR * kLanes * sizeof(typename From::Stored);
  const std::size_t whole = in / kLanes * kLanes;
  for (std::size_t k = 0; k < whole; k += kLanes, ahead += kStep) {
#pragma GCC unroll 8
    for (std::size_t line = 0; line < kStep; line += 64) __builtin_prefetch(ahead + line, 0, 2);
    F wide[NR];
#pragma GCC unroll 8
    for (std::size_t j = 0; j < NR; ++j) wide[j] = From::vector(w + j * in + k);
#pragma GCC unroll 8
    for (std::size_t m = 0; m < MR; ++m) {
      const F a = load(x + m * in + k);
#pragma GCC unroll 8
      for (std::size_t j = 0; j < NR; ++j) acc[m][j] = fma(a, wide[j], acc[m][j]);
    }
  }

  for (std::size_t m = 0; m < MR; ++m) {
    float* y = part.y + (row + m) * part.stride + n;
    float sums[NR];
    if constexpr (NR == 4) {
      sum4(acc[m], sums);
    } else {
      for (std::size_t j = 0; j < NR; ++j) sums[j] = sum(acc[m][j]);
    }
    for (std::size_t j = 0; j < NR; ++j) {
      float total = sums[j];
      for (std::size_t k = whole; k < in; ++k) total += x[m * in + k] * From::scalar(w + j * in + k);
      if (part.bias != nullptr) total += part.bias[n + j];
      y[j] = part.add ? y[j] + total : total;
    }
  }
}

inline constexpr std::size_t kTileRows = QE_LANES == 16 ? 6 : 3;
inline constexpr std::size_t kTileOutputs = QE_LANES == 16 ? 4 : 3;

template <class From, std::size_t NR>
inline void tile_of(std::size_t mr, const float* x, std::size_t in, const typename From::Stored* w,
                    const Projection& part, std::size_t row, std::size_t n) {
  switch (mr) {
    case 1:
      return tile<From, 1, NR>(x, in, w, part, row, n);
    case 2:
      return tile<From, 2, NR>(x, in, w, part, row, n);
    case 3:
      return tile<From, 3, NR>(x, in, w, part, row, n);
#if QE_LANES == 16
    case 4:
      return tile<From, 4, NR>(x, in, w, part, row, n);
    case 5:
      return tile<From, 5, NR>(x, in, w, part, row, n);
    case 6:
      return tile<From, 6, NR>(x, in, w, part, row, n);
#endif
    default:
      __builtin_unreachable();
  }
}

/** Calls tiles(mr, x, row, n, whether it is kTileOutputs wide or one) over all rows and outputs [begin, end). */
template <class Tiles>
inline void for_tiles(const Matmul& job, std::size_t begin, std::size_t end, Tiles&& tiles) {
  constexpr std::size_t kL2Floats = 160 * 1024;
  const std::size_t in = job.in;
  const std::size_t block = std::max<std::size_t>(kL2Floats / in / kTileRows, 1) * kTileRows;
  for (std::size_t first = 0; first < job.rows; first += block) {
    const std::size_t rows = std::min(block, job.rows - first);
    const std::size_t count = div_up(rows, kTileRows);
    for (std::size_t n = begin; n < end;) {
      const bool wide = end - n >= kTileOutputs;
      for (std::size_t t = 0; t < count; ++t) {  // tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2
        const std::size_t row = first + rows * t / count;
        tiles(first + rows * (t + 1) / count - row, job.x + row * in, row, n, wide);
      }
      n += wide ? kTileOutputs : 1;
    }
  }
}

template <class From>
inline void matmul_from(const Matmul& job, const Projection& part, std::size_t begin, std::size_t end) {
  const std::size_t in = job.in;
  const auto* weight = reinterpret_cast<const typename From::Stored*>(part.weight);
  for_tiles(job, begin, end, [&](std::size_t mr, const float* x, std::size_t row, std::size_t n, bool wide) {
    if (wide) {
      tile_of<From, kTileOutputs>(mr, x, in, weight + n * in, part, row, n);
    } else {
      tile_of<From, 1>(mr, x, in, weight + n * in, part, row, n);
    }
  });
}

template <class From>
inline void matmul_quantised(const Matmul& job, const Projection& part, std::size_t begin, std::size_t end) {
  for_tiles(job, begin, end, [&](std::size_t mr, const float* x, std::size_t row, std::size_t n, bool wide) {
    if (wide) {
      quantised_tile_of<From, kTileOutputs>(mr, x, job.in, part, row, n);
    } else {
      quantised_tile_of<From, 1>(mr, x, job.in, part, row, n);
    }
  });
}

inline void matmul(const Matmul& job, const Projection& part, std::size_t begin, std::size_t end) {
  switch (part.format) {
    case Format::f32:
      return matmul_from<FromF32>(job, part, begin, end);
    case Format::f16:
      return matmul_from<FromF16>(job, part, begin, end);
    case Format::bf16:
      return matmul_from<FromBf16>(job, part, begin, end);
    case Format::int8:
      return matmul_quantised<Int8>(job, part, begin, end);
    case Format::int4:
      return matmul_quantised<Int4>(job, part, begin, end);
  }
}
