// The two products of attention on AMX tiles: queries, keys, weights and values rounded to one bf16 number each, as at
// this level everything is that meets a tile; sums, maxima and exponentials are fp32 (attention.inc.h).
//
// A tile has 16 queries: 16 rows of 7 heads fill seven of them. A sum runs over channels, or over a segment's keys, in
// the order that the instruction fixes; keys that a row does not see have weight 0. So bits depend on the row alone.

class TileProducts {
 public:
  static constexpr std::size_t kRows = 16;
  static constexpr std::size_t kTogether = 16;  // queries of a tile

  explicit TileProducts(const AttentionTile& t) : t_(t), tiles_(div_up(t.rows * t.group, kTogether)) {
    thread_local AlignedBuffer queries, keys, values;
    query_ = queries.bytes(tiles_ * steps_ * kTile);
    key_ = keys.bytes(steps_ * kTile);
    value_ = values.bytes(kSegment / kBf16Step * t.padded / 16 * kTile);
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, 64);
    tile_configure(config);
    pack_scaled_queries();
  }
  ~TileProducts() { tile_release(); }

  void scores(std::size_t segment, std::size_t keys, float* score) const {
    for (std::size_t first = 0; first < keys; first += kBlockSize) {
      pack_keys(t_.keys + t_.blocks[(segment + first) / kBlockSize] * t_.key_block);
      for (std::size_t i = 0; i < tiles_; ++i) {
        tile_zero<0>();
        for (std::size_t s = 0; s < steps_; ++s) {
          tile_load<1>(query_ + (i * steps_ + s) * kTile, 64);
          tile_load<2>(key_ + s * kTile, 64);
          tile_dot_bf16<0, 1, 2>();
        }
        tile_store<0>(score + i * kTogether * kSegment + first, kSegment * sizeof(float));
      }
    }
  }

  /** Leaves the weights as bf16. */
  void values(std::size_t segment, std::size_t keys, float* weight, float* out) const {
    for (std::size_t first = 0; first < keys; first += kBf16Step) pack_values(segment, first, keys);
    for (std::size_t i = 0; i < tiles_; ++i, weight += kTogether * kSegment, out += kTogether * t_.padded) {
      const std::size_t last = std::min((i + 1) * kTogether, t_.rows * t_.group) - 1;
      const std::size_t seen = round_up(keys_seen(t_, segment, last / t_.group), kBf16Step);
      for (std::size_t q = i * kTogether; q <= last; ++q)
        round_weights(weight + q % kTogether * kSegment, keys_seen(t_, segment, q / t_.group), seen);
      for (std::size_t d = 0; d < t_.padded; d += 64) {
        if (t_.padded - d > 48) {
          add_values<4>(weight, seen, d, out);
        } else if (t_.padded - d > 32) {
          add_values<3>(weight, seen, d, out);
        } else if (t_.padded - d > 16) {
          add_values<2>(weight, seen, d, out);
        } else {
          add_values<1>(weight, seen, d, out);
        }
      }
    }
  }

 private:
  /** [tiles][channels / 32][16 queries][32], zeros beyond the last of either */
  void pack_scaled_queries() const {
    for (std::size_t i = 0; i < tiles_ * kTogether; ++i)
      for (std::size_t s = 0; s < steps_; ++s) {
        const float* from = t_.q + i / t_.group * t_.q_stride + i % t_.group * t_.head_dim + s * kBf16Step;
        const std::size_t left = i < t_.rows * t_.group ? std::min(kBf16Step, t_.head_dim - s * kBf16Step) : 0;
        const auto mask = static_cast<__mmask32>((std::uint64_t{1} << left) - 1);
        const F low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
        const F high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), from + 16);
        const F scale = set1(t_.scale);
        _mm512_store_si512(query_ + ((i / kTogether * steps_ + s) * kTogether + i % kTogether) * 64,
                           (__m512i)_mm512_cvtne2ps_pbh(high * scale, low * scale));
      }
  }

  /** A block [channels][16 tokens] as [channels / 32][16 pairs of channels][16 tokens][2] */
  void pack_keys(const float* block) const {
    for (std::size_t d = 0; d < steps_ * kBf16Step; d += 2) {
      const F first = d < t_.head_dim ? load(block + d * kBlockSize) : set1(0.0f);
      const F second = d + 1 < t_.head_dim ? load(block + (d + 1) * kBlockSize) : set1(0.0f);
      _mm512_store_si512(key_ + d / 2 * 64, pairs(first, second));
    }
  }

  /** 32 tokens, from `first` of a segment on, as [channels / 16][16 pairs of tokens][16 channels][2]; slots that hold
   * no key are taken for zeros */
  void pack_values(std::size_t segment, std::size_t first, std::size_t keys) const {
    std::byte* to = value_ + first / kBf16Step * t_.padded / 16 * kTile;
    for (std::size_t pair = 0; pair < kBf16Step / 2; ++pair, to += 64) {
      const float* token[2];
      for (std::size_t j = 0; j < 2; ++j) {
        const std::size_t at = first + 2 * pair + j;
        token[j] = at >= keys ? nullptr
                              : t_.values + t_.blocks[(segment + at) / kBlockSize] * t_.value_block +
                                    at % kBlockSize * t_.padded;
      }
      for (std::size_t d = 0; d < t_.padded; d += 16)
        _mm512_store_si512(to + d / 16 * kTile, pairs(token[0] == nullptr ? set1(0.0f) : load(token[0] + d),
                                                      token[1] == nullptr ? set1(0.0f) : load(token[1] + d)));
    }
  }

  /** bf16 [end] in place of fp32 [keys], zeros behind them */
  static void round_weights(float* weight, std::size_t keys, std::size_t end) {
    for (std::size_t i = 0; i < end; i += kBf16Step) {
      const std::size_t left = keys <= i ? 0 : std::min(kBf16Step, keys - i);
      const auto mask = static_cast<__mmask32>((std::uint64_t{1} << left) - 1);
      const F low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), weight + i);
      const F high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), weight + i + 16);
      _mm512_storeu_si512(reinterpret_cast<std::byte*>(weight) + i * 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }

  /** out [16][padded], channels [d, d + 16 * Vectors) = weights [16][kSegment] times the values of `keys` keys */
  template <std::size_t Vectors>
  void add_values(const float* weight, std::size_t keys, std::size_t d, float* out) const {
    tile_zero<0>();
    if constexpr (Vectors > 1) tile_zero<1>();
    if constexpr (Vectors > 2) tile_zero<2>();
    if constexpr (Vectors > 3) tile_zero<3>();
    for (std::size_t k = 0; k < keys; k += kBf16Step) {
      const std::byte* value = value_ + (k / kBf16Step * t_.padded + d) / 16 * kTile;
      tile_load<4>(reinterpret_cast<const std::byte*>(weight) + k * 2, kSegment * sizeof(float));
      add_channels<0>(value);
      if constexpr (Vectors > 1) add_channels<1>(value);
      if constexpr (Vectors > 2) add_channels<2>(value);
      if constexpr (Vectors > 3) add_channels<3>(value);
    }
    const std::size_t stride = t_.padded * sizeof(float);
    tile_store<0>(out + d, stride);
    if constexpr (Vectors > 1) tile_store<1>(out + d + 16, stride);
    if constexpr (Vectors > 2) tile_store<2>(out + d + 32, stride);
    if constexpr (Vectors > 3) tile_store<3>(out + d + 48, stride);
  }
  template <int Tile>
  static void add_channels(const std::byte* value) {
    tile_load<5>(value + Tile * kTile, 64);
    tile_dot_bf16<Tile, 4, 5>();
  }

  /** a0 b0 a1 b1 ... as bf16 */
  static __m512i pairs(F a, F b) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __m512i index = _mm512_or_si512(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_slli_epi32(_mm512_setr_epi32(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31), 16));
    return _mm512_permutexvar_epi16(index, both);
  }

  const AttentionTile& t_;
  std::size_t tiles_, steps_ = div_up(t_.head_dim, kBf16Step);
  std::byte *query_, *key_, *value_;
};
