// Matmul on AMX tiles, for weights of bf16, eight and four bits; the other formats take matmul.inc.h's kernels.
//
// Weights are the left operand, 16 outputs by 64 bytes of inputs as they lie in memory; x, cut into parts
// (amx_pack.inc.h), is the right one, so a tile of sums is [16 outputs][up to 16 rows of x], and decode, which is bound
// by reading weights, runs the same instructions as prefill. An element of a tile is its own sum, in an order that the
// instruction fixes, over inputs in ascending order. So a row's bits depend on nothing but the row, as at every level.
//   bf16: one fp32 sum over all inputs and parts.
//   eight and four bits: an exact integer sum for each part of each group of inputs, joined and scaled in fp32.
//
// Speed: up to 16 rows read weights in place and prefetch what comes next. More, beside weights of eight and four bits
// (for bf16 see amx_prefill.inc.h), go over the inputs in pieces whose weights (64 outputs, copied to be aligned and
// dense) stay in L1 and whose x stays in L2; the sums wait in memory as fp32, which loses nothing.

inline constexpr std::size_t kPanelTiles = 4;  // tiles of 16 outputs that share what is loaded of x
inline constexpr std::size_t kPanelOutputs = kPanelTiles * 16;
inline constexpr std::size_t kPieceBytes = 256;    // of each weight row at a time: 16 KB of a panel
inline constexpr std::size_t kChunkOutputs = 256;  // whose sums are held at once,
inline constexpr std::size_t kChunkRows = 512;     // for so many rows: 512 KB
inline constexpr std::size_t kAhead = 512;         // bytes of a weight row between reading and prefetching

/** Bytes between the outputs of a tile of sums. */
inline std::size_t sums_stride(std::size_t columns) { return columns == 1 ? 4 : 64; }

/** Weights of a panel: bytes of row r of tile t from `step` on lie at data + t * tile + r * row + step. */
struct Panel {
  const std::byte* data;
  std::size_t tiles, tile, row;
  bool in_place;  // then what comes after it is prefetched
};

/** Prefetches what will be read kAhead later: further on in the same 16 rows, or at the beginning of the next 16. */
inline void prefetch_rows(const std::byte* at, std::size_t row, std::size_t offset) {
  const std::byte* ahead = at + (offset + kAhead < row ? kAhead : kAhead + 15 * row);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < 16; ++r) _mm_prefetch(reinterpret_cast<const char*>(ahead + r * row), _MM_HINT_T0);
}

struct Bf16Product {
  const Matmul& job;
  const Projection& part;
  std::size_t columns = columns_of(job);
  std::size_t row_bytes = job.in * 2;

  [[nodiscard]] bool in_place() const { return job.in % kBf16Step == 0; }
  [[nodiscard]] std::size_t piece(std::size_t) const { return job.in; }
  [[nodiscard]] static std::size_t bytes(std::size_t inputs) { return round_up(inputs, kBf16Step) * 2; }

  void configure() const {
    TileConfig config;
    for (int tile = 0; tile < 4; ++tile) config.set(tile, 16, columns * 4);
    config.set(4, 16, 64);
    for (int tile = 5; tile < 7; ++tile) config.set(tile, 16, columns * 4);
    tile_configure(config);
  }

  /** `inputs` weights of output n from input k on, as whole vectors of 64 bytes. */
  void copy(std::size_t n, std::size_t k, std::size_t inputs, std::byte* to) const {
    const std::uint16_t* from = static_cast<const std::uint16_t*>(part.weight) + n * job.in + k;
    for (std::size_t i = 0; i < inputs; i += 32, to += 64) {
      const std::size_t left = std::min<std::size_t>(inputs - i, 32);
      const auto mask = static_cast<__mmask32>((std::uint64_t{1} << left) - 1);
      _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, from + i));
    }
  }

  /** The sums of `panel` and a block of x over all inputs; sums: [tiles] with `apart` floats between. */
  void multiply(const Panel& panel, std::size_t, std::size_t, std::size_t inputs, const std::byte* block, float* sums,
                std::size_t apart) const {
    switch (panel.tiles) {
      case 1:
        return multiply_tiles<1>(panel, inputs, block, sums, apart);
      case 2:
        return multiply_tiles<2>(panel, inputs, block, sums, apart);
      case 3:
        return multiply_tiles<3>(panel, inputs, block, sums, apart);
      default:
        return multiply_tiles<4>(panel, inputs, block, sums, apart);
    }
  }

  /** One tile of 16 outputs by 32 inputs times the parts of x in tiles 5 and 6. */
  template <int Tile, bool InPlace>
  static void step(std::size_t row, const std::byte* at, std::size_t offset) {
    if constexpr (InPlace) prefetch_rows(at, row, offset);
    tile_load<4>(at, row);
    tile_dot_bf16<Tile, 4, 5>();
    if constexpr (kBf16Parts > 1) tile_dot_bf16<Tile, 4, 6>();
  }
  template <std::size_t Tiles>
  void multiply_tiles(const Panel& panel, std::size_t inputs, const std::byte* x, float* sums,
                      std::size_t apart) const {
    tile_zero<0>();
    if constexpr (Tiles > 1) tile_zero<1>();
    if constexpr (Tiles > 2) tile_zero<2>();
    if constexpr (Tiles > 3) tile_zero<3>();
    if (panel.in_place) {
      steps<Tiles, true>(panel.data, panel.tile, panel.row, bytes(inputs), x, columns * 4);
    } else {
      steps<Tiles, false>(panel.data, panel.tile, panel.row, bytes(inputs), x, columns * 4);
    }
    tile_store<0>(sums, sums_stride(columns));
    if constexpr (Tiles > 1) tile_store<1>(sums + apart, sums_stride(columns));
    if constexpr (Tiles > 2) tile_store<2>(sums + 2 * apart, sums_stride(columns));
    if constexpr (Tiles > 3) tile_store<3>(sums + 3 * apart, sums_stride(columns));
  }
  template <std::size_t Tiles, bool InPlace>
  static void steps(const std::byte* w, std::size_t tile, std::size_t row, std::size_t width, const std::byte* x,
                    std::size_t stride) {
    for (std::size_t i = 0; i < width; i += 64, x += kBf16Parts * 16 * stride) {
      tile_load<5>(x, stride);
      if constexpr (kBf16Parts > 1) tile_load<6>(x + 16 * stride, stride);
      step<0, InPlace>(row, w + i, i);
      if constexpr (Tiles > 1) step<1, InPlace>(row, w + tile + i, i);
      if constexpr (Tiles > 2) step<2, InPlace>(row, w + 2 * tile + i, i);
      if constexpr (Tiles > 3) step<3, InPlace>(row, w + 3 * tile + i, i);
    }
  }
};

/** Weights of eight or four bits. */
template <Format Stored>
struct BytesProduct {
  const Matmul& job;
  const Projection& part;
  std::size_t columns = columns_of(job), group = part.group, step = byte_step(group), groups = job.in / group;
  std::size_t row_bytes = Stored == Format::int8 ? job.in : job.in / 2;

  [[nodiscard]] bool in_place() const { return Stored == Format::int8; }
  [[nodiscard]] std::size_t piece(std::size_t blocks) const {
    return blocks == 1 && in_place() ? job.in : std::max<std::size_t>(kPieceBytes / group, 1) * group;
  }
  [[nodiscard]] static std::size_t bytes(std::size_t inputs) { return inputs; }

  void configure() const {
    TileConfig config;
    config.set(3, 16, step);
    if (columns == 1) {  // the parts are the columns
      config.set(0, 16, kByteParts * 4);
      config.set(4, step / 4, kByteParts * 4);
    } else {
      for (int tile = 0; tile < 3; ++tile) config.set(tile, 16, columns * 4);
      for (int tile = 4; tile < 7; ++tile) config.set(tile, step / 4, columns * 4);
    }
    tile_configure(config);
  }

  void copy(std::size_t n, std::size_t k, std::size_t inputs, std::byte* to) const {
    const std::byte* from = static_cast<const std::byte*>(part.weight) + n * row_bytes;
    if constexpr (Stored == Format::int8) {
      std::memcpy(to, from + k, inputs);
    } else {  // 16 bytes hold 32 inputs: the low halves, then the high ones
      for (std::size_t i = 0; i < inputs; i += 32) {
        const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (k + i) / 2));
        const __m128i nibble = _mm_set1_epi8(15);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm_and_si128(both, nibble));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i + 16), _mm_and_si128(_mm_srli_epi16(both, 4), nibble));
      }
    }
  }

  void multiply(const Panel& panel, std::size_t n, std::size_t k, std::size_t inputs, const std::byte* block,
                float* sums, std::size_t apart) const {
    for (std::size_t tile = 0; tile < panel.tiles; ++tile) {
      const std::byte* w = panel.data + tile * panel.tile;
      float* to = sums + tile * apart;
      if (k == 0) std::fill_n(to, columns == 1 ? 16 : kSums, 0.0f);
      if (columns == 1) {
        multiply_one(panel, w, n + tile * 16, k, inputs, block, to);
      } else {
        multiply_many(panel, w, n + tile * 16, k, inputs, block, to);
      }
    }
  }

  void multiply_many(const Panel& panel, const std::byte* w, std::size_t n, std::size_t k, std::size_t inputs,
                     const std::byte* block, float* sums) const {
    const BytesBlock packed{groups, group, columns};
    alignas(64) std::int32_t whole[kByteParts][kSums];
    const std::byte* x = block + packed.tiles() + k * kByteParts * columns;
    for (std::size_t g = k / group; g < (k + inputs) / group; ++g, x += group * kByteParts * columns) {
      whole_sums(panel, w, g * group - k, x, whole);
      join(whole, n, g, block, packed, sums);
    }
  }

  /** One row of x: one instruction takes its parts, side by side, and lanes are outputs. The arithmetic is the same. */
  void multiply_one(const Panel& panel, const std::byte* w, std::size_t n, std::size_t k, std::size_t inputs,
                    const std::byte* block, float* sums) const {
    constexpr std::size_t kTogether = 4;  // groups, so that what is stored has arrived when it is loaded
    const BytesBlock packed{groups, group, 1};
    const std::byte* x = block + packed.tiles() + k * kByteParts;
    const auto mask = static_cast<__mmask16>((1u << std::min<std::size_t>(16, part.out - n)) - 1);
    const __m512i index = _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int>(groups)),
                                             _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const auto of_outputs = [&](const float* from) {
      return _mm512_mask_i32gather_ps(set1(0.0f), mask, index, from, 4);
    };
    F sum = load(sums);
    for (std::size_t first = k / group; first < (k + inputs) / group; first += kTogether) {
      const std::size_t count = std::min(kTogether, (k + inputs) / group - first);
      alignas(64) std::int32_t whole[kTogether][16 * 4];  // [16 outputs][parts and one unused]
      for (std::size_t i = 0; i < count; ++i) {
        tile_zero<0>();
        for (std::size_t at = (first + i) * group - k, end = at + group; at < end; at += step, x += step * kByteParts) {
          if (panel.in_place) prefetch_rows(w + at, panel.row, at);
          tile_load<3>(w + at, panel.row);
          tile_load<4>(x, kByteParts * 4);
          tile_dot_bytes<0, 3, 4>();
        }
        tile_store<0>(whole[i], 16);
      }
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t g = first + i, at = n * groups + g;
        const float unit = reinterpret_cast<const float*>(block + packed.scales())[g * 16];
        const float total = reinterpret_cast<const float*>(block + packed.sums())[g * 16];
        sum = fma(joined(part_of_outputs(whole[i], 0), part_of_outputs(whole[i], 1), part_of_outputs(whole[i], 2)) *
                      set1(unit),
                  of_outputs(part.scales + at), sum);
        if (part.offsets != nullptr) sum = fma(set1(total), of_outputs(part.offsets + at), sum);
      }
    }
    store(sums, sum);
  }

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
  void whole_sums(const Panel& panel, const std::byte* w, std::size_t offset, const std::byte* x,
                  std::int32_t (*to)[kSums]) const {
    const std::size_t tile_bytes = columns * step, stride = columns * 4;
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    for (std::size_t i = offset; i < offset + group; i += step, x += kByteParts * tile_bytes) {
      if (panel.in_place) prefetch_rows(w + i, panel.row, i);
      tile_load<3>(w + i, panel.row);
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

  /** sums += scale of the weights * (fixed point * integer) + offset of the weights * sum of x */
  void join(const std::int32_t (*whole)[kSums], std::size_t n, std::size_t g, const std::byte* block,
            const BytesBlock& packed, float* sums) const {
    const auto dot = [&](std::size_t i) {
      const auto part_of = [&](std::size_t p) { return _mm512_load_si512(whole[p] + i * 16); };
      return joined(part_of(0), part_of(1), part_of(2));
    };
    const float* units = reinterpret_cast<const float*>(block + packed.scales()) + g * 16;
    const float* totals = reinterpret_cast<const float*>(block + packed.sums()) + g * 16;
    const std::size_t outputs = std::min<std::size_t>(16, part.out - n), at = n * groups + g;
    const F unit = load(units), total = load(totals);
    for (std::size_t i = 0; i < outputs; ++i) {
      F sum = fma(dot(i) * unit, set1(part.scales[at + i * groups]), load(sums + i * 16));
      if (part.offsets != nullptr) sum = fma(total, set1(part.offsets[at + i * groups]), sum);
      store(sums + i * 16, sum);
    }
  }
};

template <class Product>
inline void tile_matmul(const Product product, std::size_t begin, std::size_t end) {
  const Matmul& job = product.job;
  const Projection& part = product.part;
  const std::size_t block_bytes = packed_bytes(job, part);
  thread_local AlignedBuffer sums, copied;  // [outputs / 16][blocks][16][16] floats, [tiles][16][piece] bytes
  product.configure();
  for (std::size_t row = 0; row < job.rows; row += kChunkRows) {
    const std::size_t rows = std::min(kChunkRows, job.rows - row), blocks = div_up(rows, kPackRows);
    const std::byte* x = job.packed + row / kPackRows * block_bytes;
    const std::size_t piece = product.piece(blocks), apart = blocks * kSums;
    // Weights read in place are bound by memory, which likes few streams: 16 rows at a time.
    const std::size_t width = blocks == 1 ? 16 : kPanelOutputs;
    auto* held = sums.floats(kChunkOutputs / 16 * apart);
    for (std::size_t first = begin; first < end; first += kChunkOutputs) {
      const std::size_t last = std::min(first + kChunkOutputs, end);
      for (std::size_t k = 0; k < job.in; k += piece) {
        const std::size_t inputs = std::min(piece, job.in - k);
        for (std::size_t n = first; n < last; n += width) {
          const std::size_t tiles = div_up(std::min(width, last - n), 16);
          Panel panel{static_cast<const std::byte*>(part.weight) + n * product.row_bytes, tiles, 16 * product.row_bytes,
                      product.row_bytes, true};
          if (blocks > 1 || !product.in_place() || n + tiles * 16 > part.out) {
            const std::size_t row_bytes = product.bytes(inputs);
            std::byte* to = copied.bytes(kPanelOutputs * row_bytes);
            for (std::size_t i = 0; i < tiles * 16; ++i) {
              if (n + i < part.out)
                product.copy(n + i, k, inputs, to + i * row_bytes);
              else
                std::memset(to + i * row_bytes, 0, row_bytes);
            }
            panel = {to, tiles, 16 * row_bytes, row_bytes, false};
          }
          for (std::size_t b = 0; b < blocks; ++b) {
            float* at = held + (n - first) / 16 * apart + b * kSums;
            product.multiply(panel, n, k, inputs, x + b * block_bytes, at, apart);
            if (k + inputs < job.in) continue;
            for (std::size_t t = 0; t < tiles; ++t)
              write_sums(part, at + t * apart, n + t * 16, std::min<std::size_t>(16, last - n - t * 16),
                         row + b * kPackRows, std::min(kPackRows, rows - b * kPackRows), product.columns);
          }
        }
      }
    }
  }
  tile_release();
}

inline void amx_matmul(const Matmul& job, const Projection& part, std::size_t begin, std::size_t end) {
  switch (part.format) {
    case Format::f32:
    case Format::f16:
      return matmul(job, part, begin, end);
    case Format::bf16: {
      const std::size_t whole = ManyRows::fits(job, part) ? (end - begin) / 32 * 32 : 0;
      if (whole > 0) ManyRows(job, part, nullptr).multiply(begin, begin + whole);
      if (begin + whole < end) tile_matmul(Bf16Product{job, part}, begin + whole, end);
      return;
    }
    case Format::int8:
      return tile_matmul(BytesProduct<Format::int8>{job, part}, begin, end);
    case Format::int4:
      return tile_matmul(BytesProduct<Format::int4>{job, part}, begin, end);
  }
}

inline bool amx_gates(const Matmul& job, const Projection& gate, const Projection& up) {
  return ManyRows::fits(job, gate) && ManyRows::fits(job, up) && gate.out == up.out && gate.out % 32 == 0 &&
         gate.bias == nullptr && up.bias == nullptr;
}
inline void amx_gated(const Matmul& job, const Projection& gate, const Projection& up, std::size_t begin,
                      std::size_t end) {
  ManyRows(job, gate, &up).multiply(begin, end);
}
