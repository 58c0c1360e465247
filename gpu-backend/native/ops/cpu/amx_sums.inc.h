// Tiles of sums in memory, and from there to y.

inline constexpr std::size_t kSums = 256;  // floats of a tile of sums, [16 outputs][16 rows], or [16] for one row

/** Bytes between the outputs of a tile of sums. */
inline std::size_t sums_stride(std::size_t columns) { return columns == 1 ? 4 : 64; }

/** A tile of sums by rows: row r holds 16 outputs. */
inline void load_rows(const float* sums, __m512i (&row)[16]) {
  for (std::size_t i = 0; i < 16; ++i) row[i] = _mm512_load_si512(sums + i * 16);
  transpose(row);
}

/** y = the sums of 16 outputs (of which `outputs` are wanted) from n on and up to 16 rows, with bias and what was
 * there. */
inline void write_sums(const Projection& part, const float* sums, std::size_t n, std::size_t outputs, std::size_t row,
                       std::size_t rows, std::size_t columns) {
  const auto mask = static_cast<__mmask16>((1u << outputs) - 1);
  const F bias = part.bias == nullptr ? set1(0.0f) : _mm512_maskz_loadu_ps(mask, part.bias + n);
  __m512i of_row[16];
  if (columns == 1) {
    of_row[0] = _mm512_load_si512(sums);
  } else {
    load_rows(sums, of_row);
  }
#pragma GCC unroll 1
  for (std::size_t m = 0; m < rows; ++m) {
    float* y = part.y + (row + m) * part.stride + n;
    const F total = _mm512_castsi512_ps(of_row[m]) + bias;
    _mm512_mask_storeu_ps(y, mask, part.add ? _mm512_maskz_loadu_ps(mask, y) + total : total);
  }
}
