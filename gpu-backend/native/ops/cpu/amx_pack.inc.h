// How the AMX products want x: cut into parts that the tiles multiply without rounding, 16 rows to a block.
//
// Beside bf16 weights x is the sum of two bf16 numbers, which hold 16 bits of its mantissa (a third would hold all 24
// and cost half as much time again), or at the level amx-bf16 one, rounded. Beside weights of eight or four bits each
// group of inputs is a 24-bit fixed-point number relative to the group's largest |x|, as three signed bytes.
//
// A block is a sequence of tiles of [rows of B][columns][4 bytes], a column being a row of x; with one row of x, as in
// decode, that is x in order, and the parts of fixed-point numbers are the columns instead. All blocks of a job have as
// many columns, those past its last row are zero.

inline std::size_t columns_of(const Matmul& job) { return std::min(job.rows, kPackRows); }

inline constexpr std::size_t kBf16Parts = QE_BF16_PARTS, kByteParts = 3;

/** A packed block beside weights of eight or four bits. */
struct BytesBlock {
  std::size_t groups, group, columns;
  std::size_t scales() const { return 0; }                          // float [groups][16]: of the fixed point
  std::size_t sums() const { return groups * 16 * sizeof(float); }  // float [groups][16]: sum of x
  std::size_t tiles() const { return 2 * sums(); }                  // [groups][steps][parts][step / 4][columns][4]
  std::size_t bytes() const { return tiles() + groups * group * kByteParts * columns; }
};

inline std::size_t packed_bytes(const Matmul& job, const Projection& part) {
  switch (part.format) {
    case Format::bf16:
      return round_up(job.in, kBf16Step) * kBf16Parts * columns_of(job) * sizeof(std::uint16_t);
    case Format::int8:
    case Format::int4:
      return round_up(BytesBlock{job.in / part.group, part.group, columns_of(job)}.bytes(), 64);
    case Format::f32:
    case Format::f16:
      return 0;
  }
  return 0;
}

/** r[i][j] <-> r[j][i] */
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // u[i + c]: rows i..i + 3 of columns c, c + 4, c + 8, c + 12
    u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd), e = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
    r[c] = _mm512_shuffle_i32x4(a, b, 0x88);
    r[c + 4] = _mm512_shuffle_i32x4(d, e, 0x88);
    r[c + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
    r[c + 12] = _mm512_shuffle_i32x4(d, e, 0xdd);
  }
}

/** Writes one tile of B from a vector of `count` dwords for each column. */
inline void store_columns(__m512i (&column)[16], std::size_t columns, std::size_t count, std::byte* to) {
  if (columns == 1) return _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << count) - 1), column[0]);
  transpose(column);
  const auto mask = static_cast<__mmask16>((1u << columns) - 1);
  for (std::size_t i = 0; i < count; ++i) _mm512_mask_storeu_epi32(to + i * columns * 4, mask, column[i]);
}

inline F widen_half(__m512i pairs, int half) {
  const __m256i words = half == 0 ? _mm512_castsi512_si256(pairs) : _mm512_extracti64x4_epi64(pairs, 1);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

inline void pack_bf16(const Matmul& job, std::size_t first, std::byte* to) {
  const std::size_t columns = columns_of(job), rows = std::min(columns, job.rows - first);
  for (std::size_t k = 0; k < job.in; k += kBf16Step) {
    const std::size_t left = std::min(kBf16Step, job.in - k);
    const auto mask = static_cast<__mmask32>((std::uint64_t{1} << left) - 1);
    __m512i part[kBf16Parts][16];
    for (std::size_t m = 0; m < rows; ++m) {
      const float* x = job.x + (first + m) * job.in + k;
      F low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x);
      F high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + 16);
      for (std::size_t p = 0; p < kBf16Parts; ++p) {  // the differences are exact
        part[p][m] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        low = low - widen_half(part[p][m], 0);
        high = high - widen_half(part[p][m], 1);
      }
    }
    for (std::size_t p = 0; p < kBf16Parts; ++p, to += columns * 64) {
      for (std::size_t m = rows; m < columns; ++m) part[p][m] = _mm512_setzero_si512();
      store_columns(part[p], columns, 16, to);
    }
  }
}

/** The fixed point of one group of one row: [parts][group] bytes, most significant first. @returns its unit */
inline float fixed_point(const float* x, std::size_t group, std::int8_t* to, float& total) {
  F most = set1(0.0f), all = set1(0.0f);
  for (std::size_t k = 0; k < group; k += kLanes) {
    most = max(_mm512_abs_ps(load(x + k)), most);
    all = all + load(x + k);
  }
  total = sum(all);
  constexpr float kMost = 127 * 65536.0f;
  const float top = largest(most), scale = top > 0 ? kMost / top : 0;
  // A group of numbers near the smallest would overflow the factor: it is taken for zeros.
  const F factor = set1(std::isfinite(scale) ? scale : 0.0f);
  const __m512i half = _mm512_set1_epi32(128);
  for (std::size_t k = 0; k < group; k += kLanes) {
    __m512i digits = _mm512_cvtps_epi32(load(x + k) * factor);
    for (std::size_t p = kByteParts; p > 0; --p) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (p - 1) * group + k), _mm512_cvtepi32_epi8(digits));
      digits = _mm512_srai_epi32(_mm512_add_epi32(digits, half), 8);
    }
  }
  return top / kMost;
}

inline void pack_bytes(const Matmul& job, std::size_t group, std::size_t first, std::byte* to) {
  const std::size_t columns = columns_of(job), rows = std::min(columns, job.rows - first);
  const BytesBlock block{job.in / group, group, columns};
  const std::size_t step = byte_step(group), dwords = step / 4;
  auto* scales = reinterpret_cast<float*>(to + block.scales());
  auto* sums = reinterpret_cast<float*>(to + block.sums());
  std::byte* tile = to + block.tiles();
  thread_local std::vector<std::int8_t> digits;  // [columns][parts][group]
  digits.assign(columns * kByteParts * group, 0);
  for (std::size_t g = 0; g < block.groups; ++g, scales += 16, sums += 16) {
    for (std::size_t m = 0; m < 16; ++m) scales[m] = sums[m] = 0;
    for (std::size_t m = 0; m < rows; ++m)
      scales[m] =
          fixed_point(job.x + (first + m) * job.in + g * group, group, digits.data() + m * kByteParts * group, sums[m]);
    if (columns == 1) {
      for (std::size_t k = 0; k < group; k += 4)
        for (std::size_t p = 0; p < kByteParts; ++p, tile += 4) std::memcpy(tile, digits.data() + p * group + k, 4);
      continue;
    }
    for (std::size_t k = 0; k < group; k += step)
      for (std::size_t p = 0; p < kByteParts; ++p, tile += columns * step) {
        __m512i column[16];
        const auto mask = static_cast<__mmask16>((1u << dwords) - 1);
        for (std::size_t m = 0; m < columns; ++m)
          column[m] = _mm512_maskz_loadu_epi32(mask, digits.data() + (m * kByteParts + p) * group + k);
        store_columns(column, columns, dwords, tile);
      }
  }
}

inline void pack(const Matmul& job, const Projection& part, std::size_t block, std::byte* to) {
  to += block * packed_bytes(job, part);
  if (part.format == Format::bf16) return pack_bf16(job, block * kPackRows, to);
  pack_bytes(job, part.group, block * kPackRows, to);
}
