// Weights of eight and four bits on AMX tiles: an exact integer sum for each part of each group of inputs, joined and
// scaled in fp32, group after group.
//
// Up to 16 rows of x read weights panel by panel as they come from memory. More go over the inputs in pieces, so that
// the weights of 64 outputs stay in L1 and x in L2; the sums wait in memory as fp32, which loses nothing.

inline constexpr std::size_t kBytesPiece = 256;    // inputs at most, where a group is no longer
inline constexpr std::size_t kChunkOutputs = 256;  // whose sums are held at once,
inline constexpr std::size_t kChunkRows = 512;     // for so many rows: 512 KB
inline constexpr std::size_t kPassPanels = 4;      // that share what is loaded of x

template <Format Stored>
class BytesProduct {
 public:
  BytesProduct(const Matmul& job, const Projection& part) : job_(job), part_(part) {}

  /** Outputs [begin, end), begin a multiple of 16. */
  void multiply(std::size_t begin, std::size_t end) const {
    configure();
    if (job_.rows <= kPackRows) {
      few_rows(begin, end);
    } else {
      many_rows(begin, end);
    }
    tile_release();
  }

 private:
  void configure() const {
    TileConfig config;
    config.set(3, 16, step_);
    if (columns_ == 1) {  // the parts are the columns
      config.set(0, 16, kByteParts * 4);
      config.set(4, step_ / 4, kByteParts * 4);
    } else {
      for (int tile = 0; tile < 3; ++tile) config.set(tile, 16, columns_ * 4);
      for (int tile = 4; tile < 7; ++tile) config.set(tile, step_ / 4, columns_ * 4);
    }
    tile_configure(config);
  }

  void few_rows(std::size_t begin, std::size_t end) const {
    alignas(64) float sums[kSums];
    for (std::size_t n = begin; n < end; n += kPanel) {
      const std::byte* w = group_at(n, 0);
      std::fill_n(sums, columns_ == 1 ? 16 : kSums, 0.0f);
      if (columns_ == 1) {
        one_row(w, sums);
      } else {
        for (std::size_t g = 0; g < groups_; ++g, w += layout_.bytes()) add(w, next_tiles(w), g, job_.packed, sums);
      }
      write_sums(part_, sums, n, std::min(kPanel, end - n), 0, job_.rows, columns_);
    }
  }

  void many_rows(std::size_t begin, std::size_t end) const {
    const std::size_t block_bytes = packed_bytes(job_, part_);
    const std::size_t piece = std::max<std::size_t>(kBytesPiece / layout_.group, 1);  // groups
    thread_local AlignedBuffer buffer;                                                // [outputs / 16][blocks][kSums]
    for (std::size_t row = 0; row < job_.rows; row += kChunkRows) {
      const std::size_t rows = std::min(kChunkRows, job_.rows - row), blocks = div_up(rows, kPackRows);
      const std::byte* x = job_.packed + row / kPackRows * block_bytes;
      const std::size_t apart = blocks * kSums;
      for (std::size_t first = begin; first < end; first += kChunkOutputs) {
        const std::size_t last = std::min(first + kChunkOutputs, end);
        float* held = buffer.floats(kChunkOutputs / kPanel * apart);
        std::fill_n(held, div_up(last - first, kPanel) * apart, 0.0f);
        for (std::size_t g = 0; g < groups_; g += piece)
          for (std::size_t n = first; n < last; n += kPassPanels * kPanel)
            add_piece(n, std::min(n + kPassPanels * kPanel, last), g, std::min(g + piece, groups_), x, blocks,
                      held + (n - first) / kPanel * apart);
        for (std::size_t n = first; n < last; n += kPanel)
          for (std::size_t b = 0; b < blocks; ++b)
            write_sums(part_, held + (n - first) / kPanel * apart + b * kSums, n, std::min(kPanel, last - n),
                       row + b * kPackRows, std::min(kPackRows, rows - b * kPackRows), columns_);
      }
    }
  }

  /** sums [panels][blocks][kSums] += groups [g, end_g) of outputs [n, end) times all blocks of x. */
  void add_piece(std::size_t n, std::size_t end, std::size_t g, std::size_t end_g, const std::byte* x,
                 std::size_t blocks, float* sums) const {
    const std::size_t panels = div_up(end - n, kPanel), block_bytes = packed_bytes(job_, part_);
    const std::byte* tiles[kPassPanels][kBytesPiece / 16];
    thread_local AlignedBuffer unpacked;
    std::byte* to = Stored == Format::int8 ? nullptr : unpacked.bytes(panels * (end_g - g) * tile_bytes());
    for (std::size_t t = 0; t < panels; ++t)
      for (std::size_t i = g; i < end_g; ++i, to += Stored == Format::int8 ? 0 : tile_bytes())
        tiles[t][i - g] = tiles_of(group_at(n + t * kPanel, i), to);
    for (std::size_t b = 0; b < blocks; ++b, x += block_bytes)
      for (std::size_t t = 0; t < panels; ++t)
        for (std::size_t i = g; i < end_g; ++i)
          add(group_at(n + t * kPanel, i), tiles[t][i - g], i, x, sums + (t * blocks + b) * kSums);
  }

  /** sums [16 outputs][columns] += one group of a panel times a block of x. */
  void add(const std::byte* w, const std::byte* tiles, std::size_t g, const std::byte* x, float* sums) const {
    const BytesBlock packed{groups_, layout_.group, columns_};
    alignas(64) std::int32_t whole[kByteParts][kSums];
    whole_sums(tiles, x + packed.tiles() + g * layout_.group * kByteParts * columns_, whole);
    join(whole, w, reinterpret_cast<const float*>(x + packed.scales()) + g * 16,
         reinterpret_cast<const float*>(x + packed.sums()) + g * 16, sums);
  }

  /** One row of x: one instruction takes its parts, side by side, and lanes are outputs. The arithmetic is the same. */
  void one_row(const std::byte* w, float* sums) const {
    constexpr std::size_t kTogether = 4;  // groups, so that what is stored has arrived when it is loaded
    const BytesBlock packed{groups_, layout_.group, 1};
    const auto* units = reinterpret_cast<const float*>(job_.packed + packed.scales());
    const auto* totals = reinterpret_cast<const float*>(job_.packed + packed.sums());
    const std::byte* x = job_.packed + packed.tiles();
    F sum = load(sums);
    for (std::size_t first = 0; first < groups_; first += kTogether) {
      const std::size_t count = std::min(kTogether, groups_ - first);
      alignas(64) std::int32_t whole[kTogether][16 * 4];  // [16 outputs][parts and one unused]
      for (std::size_t i = 0; i < count; ++i) {
        const std::byte* tile = next_tiles(w + i * layout_.bytes());
        tile_zero<0>();
        for (std::size_t at = 0; at < layout_.group; at += step_, tile += kPanel * step_, x += step_ * kByteParts) {
          tile_load<3>(tile, step_);
          tile_load<4>(x, kByteParts * 4);
          tile_dot_bytes<0, 3, 4>();
        }
        tile_store<0>(whole[i], 16);
      }
      for (std::size_t i = 0; i < count; ++i, w += layout_.bytes()) {
        const std::size_t g = first + i;
        const F fixed =
            joined(part_of_outputs(whole[i], 0), part_of_outputs(whole[i], 1), part_of_outputs(whole[i], 2));
        sum = fma(fixed * set1(units[g * 16]), scales(w), sum);
        if constexpr (kOffsets) sum = fma(set1(totals[g * 16]), offsets(w), sum);
      }
    }
    store(sums, sum);
  }

  /** The tiles of a group, while what follows in memory is fetched. */
  const std::byte* next_tiles(const std::byte* w) const {
    for (std::size_t line = 0; line < layout_.bytes(); line += 64) fetch_ahead<1>(w + line);
    thread_local AlignedBuffer unpacked;
    return tiles_of(w, Stored == Format::int8 ? nullptr : unpacked.bytes(tile_bytes()));
  }

  /** The tiles of a group, [steps][16][step]: where they lie, or unpacked. */
  const std::byte* tiles_of(const std::byte* w, std::byte* to) const {
    if constexpr (Stored == Format::int8) return w;
    const std::size_t half = kPanel * step_ / 2;
    const __m512i nibble = _mm512_set1_epi8(15);
    for (std::size_t tile = 0; tile < tile_bytes(); tile += 2 * half)
      for (std::size_t b = tile; b < tile + half; b += 64, w += 64) {
        const __m512i both = _mm512_loadu_si512(w);
        _mm512_storeu_si512(to + b, _mm512_and_si512(both, nibble));
        _mm512_storeu_si512(to + b + half, _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble));
      }
    return to;
  }
  [[nodiscard]] std::size_t tile_bytes() const { return layout_.group * kPanel; }

  /** Number p of every four, of 16 fours. */
  static __m512i part_of_outputs(const std::int32_t* fours, int p) {
    const __m512i index = _mm512_add_epi32(_mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28),
                                           _mm512_set1_epi32(p));
    const __m512i low = _mm512_permutex2var_epi32(_mm512_load_si512(fours), index, _mm512_load_si512(fours + 16));
    const __m512i high = _mm512_permutex2var_epi32(_mm512_load_si512(fours + 32), index, _mm512_load_si512(fours + 48));
    return _mm512_mask_blend_epi32(0xff00, low, high);
  }

  /** A fixed-point sum from those of its parts. */
  static F joined(__m512i top, __m512i middle, __m512i low) {
    return fma(_mm512_cvtepi32_ps(top), set1(65536.0f),
               fma(_mm512_cvtepi32_ps(middle), set1(256.0f), _mm512_cvtepi32_ps(low)));
  }

  /** The integer sums of one group of 16 outputs: [parts][16 outputs][16 rows] */
  void whole_sums(const std::byte* w, const std::byte* x, std::int32_t (*to)[kSums]) const {
    const std::size_t tile_bytes = columns_ * step_, stride = columns_ * 4;
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    for (std::size_t at = 0; at < layout_.group; at += step_, w += kPanel * step_, x += kByteParts * tile_bytes) {
      tile_load<3>(w, step_);
      tile_load<4>(x, stride);
      tile_dot_bytes<0, 3, 4>();
      tile_load<5>(x + tile_bytes, stride);
      tile_dot_bytes<1, 3, 5>();
      tile_load<6>(x + 2 * tile_bytes, stride);
      tile_dot_bytes<2, 3, 6>();
    }
    tile_store<0>(to[0], 64);
    tile_store<1>(to[1], 64);
    tile_store<2>(to[2], 64);
  }

  /** sums += scale of the weights * (fixed point * integer) + offset of the weights * sum of x; w: the group */
  void join(const std::int32_t (*whole)[kSums], const std::byte* w, const float* units, const float* totals,
            float* sums) const {
    const F unit = load(units), total = load(totals);
    const auto* scale = reinterpret_cast<const float*>(w + layout_.scales());
    for (std::size_t i = 0; i < kPanel; ++i) {
      const auto part_of = [&](std::size_t p) { return _mm512_load_si512(whole[p] + i * 16); };
      F sum = fma(joined(part_of(0), part_of(1), part_of(2)) * unit, set1(scale[i]), load(sums + i * 16));
      if constexpr (kOffsets) sum = fma(total, set1(reinterpret_cast<const float*>(w + layout_.offsets())[i]), sum);
      store(sums + i * 16, sum);
    }
  }

  [[nodiscard]] const std::byte* group_at(std::size_t n, std::size_t g) const {
    return part_.weight + (n / kPanel * groups_ + g) * layout_.bytes();
  }
  [[nodiscard]] F scales(const std::byte* group) const {
    return load(reinterpret_cast<const float*>(group + layout_.scales()));
  }
  [[nodiscard]] F offsets(const std::byte* group) const {
    return load(reinterpret_cast<const float*>(group + layout_.offsets()));
  }

  static constexpr bool kOffsets = Stored == Format::int4;
  const Matmul& job_;
  const Projection& part_;
  BytesGroup layout_{Stored, part_.group};
  std::size_t columns_ = columns_of(job_), step_ = byte_step(layout_.group), groups_ = job_.in / layout_.group;
};
