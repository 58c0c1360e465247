// One vector type per level, with the dozen operations the kernels need. Included by level_*.cpp inside
// `namespace qe::cpu::QE_LEVEL` after `#pragma GCC target`, hence no include guard and no includes.
//
// FMA is always written out and contraction is off (-ffp-contract=off): the bits of a dot product must not depend on
// which loop the compiler happened to fuse.

#if QE_LANES == 16

using F = __m512;
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
inline F set1(float a) { return _mm512_set1_ps(a); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F load_bf16(const std::uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline F load_f16(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F load_i8(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline __m512i load_u8(const std::uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
/** The low or high four bits of each byte. */
inline F load_low4(const std::uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(load_u8(p), _mm512_set1_epi32(15)));
}
inline F load_high4(const std::uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(load_u8(p), 4)); }
/** The nearest integer n of a, and 2^n, for |n| <= 126. */
inline F round_nearest(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F exp2_integer(F n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

#elif QE_LANES == 8

using F = __m256;
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F a) { _mm256_storeu_ps(p, a); }
inline F set1(float a) { return _mm256_set1_ps(a); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F load_bf16(const std::uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline F load_f16(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F load_i8(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline __m256i load_u8(const std::uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline F load_low4(const std::uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(load_u8(p), _mm256_set1_epi32(15)));
}
inline F load_high4(const std::uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_srli_epi32(load_u8(p), 4)); }
inline F round_nearest(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F exp2_integer(F n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

#else  // four lanes of GCC's vector extension: SSE2, NEON, or whatever the target has

using F = float __attribute__((vector_size(16)));
using I = std::int32_t __attribute__((vector_size(16)));
inline F load(const float* p) {
  F a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
inline void store(float* p, F a) { std::memcpy(p, &a, sizeof a); }
inline F set1(float a) { return F{a, a, a, a}; }
#if defined(__aarch64__)
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
#else
inline F fma(F a, F b, F c) { return a * b + c; }
#endif
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a < b ? a : b; }
inline I widen16(const std::uint16_t* p) { return I{p[0], p[1], p[2], p[3]}; }
inline F load_bf16(const std::uint16_t* p) { return std::bit_cast<F>(widen16(p) << 16); }
inline F load_f16(const std::uint16_t* p) {
  // Shift exponent and mantissa into place and rescale by 2^112; subnormals come out exact, infinities do not (the
  // loader refuses them).
  const I bits = widen16(p);
  const F magnitude = std::bit_cast<F>((bits & 0x7fff) << 13) * 0x1p112f;
  return std::bit_cast<F>(std::bit_cast<I>(magnitude) | (bits & 0x8000) << 16);
}
inline F load_i8(const std::int8_t* p) { return __builtin_convertvector((I{p[0], p[1], p[2], p[3]}), F); }
inline I load_u8(const std::uint8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
inline F load_low4(const std::uint8_t* p) { return __builtin_convertvector(load_u8(p) & 15, F); }
inline F load_high4(const std::uint8_t* p) { return __builtin_convertvector(load_u8(p) >> 4, F); }
inline F round_nearest(F a) { return (a + 0x1.8p23f) - 0x1.8p23f; }  // |a| < 2^22
inline F exp2_integer(F n) { return std::bit_cast<F>((__builtin_convertvector(n, I) + 127) << 23); }

#endif

inline constexpr std::size_t kLanes = QE_LANES;

/** Sum of the lanes, always in the same tree: the upper half is added to the lower until one lane is left. */
#if QE_LANES == 4
inline float sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
#else
/** The tree down to four lanes. */
inline __m128 quarter(F a) {
#if QE_LANES == 16
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
#else
  const __m256 half = a;
#endif
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float sum(F a) {
  const __m128 four = quarter(a);
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/** Four sums at once, by the same tree. */
inline void sum4(const F* a, float* to) {
  __m128 p = quarter(a[0]), q = quarter(a[1]), r = quarter(a[2]), s = quarter(a[3]);
  _MM_TRANSPOSE4_PS(p, q, r, s);
  _mm_storeu_ps(to, _mm_add_ps(_mm_add_ps(p, r), _mm_add_ps(q, s)));
}
#endif

inline float largest(F a) {
  alignas(64) float lane[kLanes];
  store(lane, a);
  float top = lane[0];
  for (std::size_t i = 1; i < kLanes; ++i) top = lane[i] > top ? lane[i] : top;
  return top;
}

/** e^x to about 1 ulp; below -87 it is 1.6e-38 rather than 0, above 88 it saturates. Cephes' expf polynomial. */
inline F exp(F x) {
  x = min(max(x, set1(-87.0f)), set1(88.0f));
  const F n = round_nearest(x * set1(1.44269504f));
  F r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + set1(1.0f));
  return p * exp2_integer(n);
}

struct FromF32 {
  using Stored = float;
  static F vector(const Stored* p) { return load(p); }
  static float scalar(const Stored* p) { return *p; }
};
struct FromBf16 {
  using Stored = std::uint16_t;
  static F vector(const Stored* p) { return load_bf16(p); }
  static float scalar(const Stored* p) { return std::bit_cast<float>(std::uint32_t{*p} << 16); }
};
struct FromF16 {
  using Stored = std::uint16_t;
  static F vector(const Stored* p) { return load_f16(p); }
  static float scalar(const Stored* p) {
    const float magnitude = std::bit_cast<float>((std::uint32_t{*p} & 0x7fff) << 13) * 0x1p112f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | (std::uint32_t{*p} & 0x8000) << 16);
  }
};
