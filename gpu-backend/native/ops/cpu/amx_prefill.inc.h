// Many rows against weights of bf16 on AMX tiles: 32 outputs by 32 rows of x at a time, in four tiles of sums.
//
// The order of every sum is that of amx_matmul.inc.h: inputs ascending, the parts of x one after the other at each
// step. Sums that wait in memory between two pieces of the inputs are fp32 and lose nothing.
//
// Speed: kManyRows rows of x by a piece of the inputs stay in L2, and weights pass by, 64 outputs at a time, the next
// 64 being fetched meanwhile. So each weight comes from beyond L2 once for kManyRows rows, hidden behind
// the products. The four tiles of sums take turns: an instruction waits 52 cycles for the one before it on the
// same sums, and 16 for one on others. The two matrices of a gated layer pass side by side, so that their outputs meet
// in L1 and only silu(gate) * up is written.

inline constexpr std::size_t kManyRows = 512 / kBf16Parts;  // 1 MB of packed x with a piece
inline constexpr std::size_t kPieceInputs = 1024;           // at most
inline constexpr std::size_t kGroupOutputs = 64;
inline constexpr std::size_t kAheadLines = kGroupOutputs * kPackRows / kManyRows;  // of the next weights, each step

class ManyRows {
 public:
  /** `up` null: y = the products. Else both have as many outputs, and y of `part` = silu(part) * up. */
  ManyRows(const Matmul& job, const Projection& part, const Projection* up) : job_(job), part_(part), up_(up) {}

  /** Outputs [begin, end), begin a multiple of 32; with `up` both. */
  void multiply(std::size_t begin, std::size_t end);

 private:
  /** What one pass reads, 32 outputs by one or two blocks of x over a piece of the inputs, and what comes next. */
  struct Pass {
    const std::byte *w, *x;
    std::size_t steps;
    bool first;         // of the pieces
    float* sums;        // [2][blocks][kSums]
    std::size_t apart;  // floats between the two
    const std::byte* next_w;
    const float* next_sums;
  };
  template <std::size_t Blocks>
  void pass(const Pass& over) const;
  void write(float* sums, std::size_t apart, std::size_t n, std::size_t last, std::size_t row, std::size_t rows) const;
  void fetch_results(std::size_t n, std::size_t last, std::size_t row, std::size_t end) const;

  /** Outputs count through both matrices of a gated layer, 32 of each by turns. */
  [[nodiscard]] std::size_t matrices() const { return up_ == nullptr ? 1 : 2; }
  [[nodiscard]] const std::byte* weights(std::size_t output, std::size_t input) const {
    const bool in_up = up_ != nullptr && output % 64 >= 32;
    if (up_ != nullptr) output = output / 64 * 32 + output % 32;
    return (in_up ? up_ : &part_)->weight + output / kPanel * panel_bytes_ + input / kBf16Step * kTile;
  }
  template <_mm_hint Hint>
  static void fetch(const void* at) {
    _mm_prefetch(static_cast<const char*>(at), Hint);
  }

  const Matmul& job_;
  const Projection& part_;
  const Projection* up_;
  std::size_t panel_bytes_ = bf16_panel_bytes(job_.in), block_bytes_ = packed_bytes(job_, part_);
};

inline void ManyRows::multiply(std::size_t begin, std::size_t end) {
  begin *= matrices(), end *= matrices();
  // Equal pieces of whole steps. With one piece the sums are written at once and wait for nothing.
  const std::size_t piece = round_up(div_up(job_.in, div_up(job_.in, kPieceInputs)), kBf16Step);
  const bool whole = piece >= job_.in;
  thread_local AlignedBuffer buffer;  // [outputs / 16][blocks][kSums]
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, 64);
  tile_configure(config);
  for (std::size_t row = 0; row < job_.rows; row += kManyRows) {
    const std::size_t rows = std::min(kManyRows, job_.rows - row), blocks = div_up(rows, kPackRows);
    const std::size_t apart = (whole ? 2 : blocks) * kSums;
    float* held = buffer.floats(round_up(whole ? kGroupOutputs : end - begin, 32) / 16 * apart);
    for (std::size_t k = 0; k < job_.in; k += piece) {
      const std::size_t inputs = std::min(piece, job_.in - k);
      const std::byte* x = job_.packed + row / kPackRows * block_bytes_ + k * kBf16Parts * kPackRows * 2;
      for (std::size_t n = begin; n < end; n += kGroupOutputs) {
        const std::size_t last = std::min(n + kGroupOutputs, end);
        const bool more = last < end;
        const std::size_t next_n = more ? last : begin, next_k = more ? k : k + inputs < job_.in ? k + inputs : 0;
        std::size_t lines = 0;  // that were fetched at each step of a panel
        const auto sums_of = [&](std::size_t at, std::size_t block) {
          return held + (at - (whole ? n : begin)) / 16 * apart + (whole ? 0 : block * kSums);
        };
        for (std::size_t block = 0; block < blocks; block += 2) {
          const bool two = block + 1 < blocks;
          for (std::size_t at = n; at < last; at += 32, lines += kAheadLines) {
            const std::size_t steps = div_up(inputs, kBf16Step);
            const Pass over{weights(at, k),
                            x + block * block_bytes_,
                            steps,
                            k == 0,
                            sums_of(at, block),
                            apart,
                            weights(next_n + lines / 16 * kPanel, next_k) + lines % 16 * steps * 64,
                            at + 32 < last ? sums_of(at + 32, block) : sums_of(n, block + 2)};
            two ? pass<2>(over) : pass<1>(over);
          }
          if (k + inputs < job_.in) continue;
          const std::size_t from = row + block * kPackRows, to = row + rows;
          for (std::size_t i = 0; i < (two ? 2 : 1); ++i)
            write(sums_of(n, block) + i * kSums, apart, n, last, from + i * kPackRows,
                  std::min(kPackRows, to - from - i * kPackRows));
          fetch_results(n, last, from + 2 * kPackRows, std::min(from + 4 * kPackRows, to));
        }
      }
    }
  }
  tile_release();
}

template <std::size_t Blocks>
inline void ManyRows::pass(const Pass& over) const {
  const auto [w, x, steps, first, sums, apart, next_w, next_sums] = over;
  const std::size_t panel = panel_bytes_, block = block_bytes_;
  if (first) {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  } else {
    tile_load<0>(sums, 64);
    tile_load<1>(sums + apart, 64);
    if constexpr (Blocks > 1) tile_load<2>(sums + kSums, 64);
    if constexpr (Blocks > 1) tile_load<3>(sums + apart + kSums, 64);
  }
  for (std::size_t step = 0; step < steps; ++step) {
    const std::byte *w_at = w + step * kTile, *x_at = x + step * kBf16Parts * 1024;
    tile_load<4>(w_at, 64);
    tile_load<5>(w_at + panel, 64);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < kAheadLines; ++i) fetch<_MM_HINT_T1>(next_w + (step * kAheadLines + i) * 64);
#pragma GCC unroll 2
    for (std::size_t p = 0; p < kBf16Parts; ++p) {
      tile_load<6>(x_at + p * 1024, 64);
      tile_dot_bf16<0, 4, 6>();
      tile_dot_bf16<1, 5, 6>();
      if constexpr (Blocks > 1) {
        tile_load<7>(x_at + block + p * 1024, 64);
        tile_dot_bf16<2, 4, 7>();
        tile_dot_bf16<3, 5, 7>();
      }
    }
    if (!first && step < Blocks * 16) {
      fetch<_MM_HINT_T0>(next_sums + step * 16);
      fetch<_MM_HINT_T0>(next_sums + apart + step * 16);
    }
  }
  tile_store<0>(sums, 64);
  tile_store<1>(sums + apart, 64);
  if constexpr (Blocks > 1) tile_store<2>(sums + kSums, 64);
  if constexpr (Blocks > 1) tile_store<3>(sums + apart + kSums, 64);
}

/** Outputs [n, last) of up to 16 rows from `row` on. */
inline void ManyRows::write(float* sums, std::size_t apart, std::size_t n, std::size_t last, std::size_t row,
                            std::size_t rows) const {
  if (up_ == nullptr) {
    for (std::size_t at = n; at < last; at += kPanel, sums += apart)
      write_sums(part_, sums, at, std::min(kPanel, last - at), row, rows, 16);
    return;
  }
  for (std::size_t at = n / 2; at < last / 2; at += 16, sums += apart) {
    __m512i gate[16], up[16];
    load_rows(sums, gate);
    load_rows(sums + 2 * apart, up);
    const F none = set1(0.0f);  // in place of a bias, so that a zero has the sign that write_sums gives it
    for (std::size_t m = 0; m < rows; ++m)
      store(part_.y + (row + m) * part_.stride + at,
            silu(_mm512_castsi512_ps(gate[m]) + none) * (_mm512_castsi512_ps(up[m]) + none));
  }
}

/** Where the next outputs will be written. */
inline void ManyRows::fetch_results(std::size_t n, std::size_t last, std::size_t row, std::size_t end) const {
  for (; row < end; ++row)
    for (std::size_t at = n; at < last; at += 16 * matrices())
      __builtin_prefetch(part_.y + row * part_.stride + at / matrices(), 1, 2);
}
