// The kernels that touch each element once: normalisation, the gate of the feed-forward layer, widening.

inline void rms_norm(const float* x, const float* weight, float eps, std::size_t width, float* y) {
  const std::size_t whole = width / kLanes * kLanes;
  F squares = set1(0.0f);
  for (std::size_t i = 0; i < whole; i += kLanes) {
    const F a = load(x + i);
    squares = fma(a, a, squares);
  }
  float total = sum(squares);
  for (std::size_t i = whole; i < width; ++i) total += x[i] * x[i];
  const float inverse = 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
  for (std::size_t i = 0; i < whole; i += kLanes) store(y + i, load(x + i) * set1(inverse) * load(weight + i));
  for (std::size_t i = whole; i < width; ++i) y[i] = x[i] * inverse * weight[i];
}

inline F silu(F gate) { return gate / (set1(1.0f) + exp(set1(0.0f) - gate)); }

inline void silu_mul(const float* gate, const float* up, std::size_t count, float* y) {
  const std::size_t whole = count / kLanes * kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes) store(y + i, silu(load(gate + i)) * load(up + i));
  for (std::size_t i = whole; i < count; ++i) {
    float lane[kLanes];
    store(lane, silu(set1(gate[i])));
    y[i] = lane[0] * up[i];
  }
}

template <class From>
inline void widen_from(const void* from, std::size_t count, float* to) {
  const auto* stored = static_cast<const typename From::Stored*>(from);
  const std::size_t whole = count / kLanes * kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes) store(to + i, From::vector(stored + i));
  for (std::size_t i = whole; i < count; ++i) to[i] = From::scalar(stored + i);
}

inline void widen(const void* from, Format format, std::size_t count, float* to) {
  switch (format) {
    case Format::f32:
      return widen_from<FromF32>(from, count, to);
    case Format::f16:
      return widen_from<FromF16>(from, count, to);
    case Format::bf16:
      return widen_from<FromBf16>(from, count, to);
    case Format::int8:
    case Format::int4:
      return;  // no numbers of their own: see quantised.inc.h
  }
}

inline std::uint32_t read(const void* from, std::size_t bytes) {
  using Words = std::uint32_t __attribute__((vector_size(kLanes * 4)));
  Words total[8] = {};
  const auto* p = static_cast<const std::byte*>(from);
  for (std::size_t i = 0; i + sizeof total <= bytes; i += sizeof total) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < 8; ++v) {
      Words word;
      std::memcpy(&word, p + i + v * sizeof word, sizeof word);
      total[v] += word;
    }
  }
  std::uint32_t all = 0;
  for (const Words& words : total)
    for (std::size_t i = 0; i < kLanes; ++i) all += words[i];
  return all;
}
