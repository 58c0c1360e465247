// Up to 16 rows of x against weights of bf16: panel by panel, as they come from memory.

class FewRows {
 public:
  FewRows(const Matmul& job, const Projection& part) : job_(job), part_(part) {}

  /** Outputs [begin, end), begin a multiple of 16. */
  void multiply(std::size_t begin, std::size_t end) const {
    const std::size_t columns = columns_of(job_), panel = bf16_panel_bytes(job_.in);
    TileConfig config;
    config.set(0, 16, columns * 4);
    config.set(4, 16, 64);
    for (int tile = 5; tile < 7; ++tile) config.set(tile, 16, columns * 4);
    tile_configure(config);
    alignas(64) float sums[kSums];
    const std::byte* w = part_.weight + begin / kPanel * panel;
    for (std::size_t at = 0; at < kFarAhead; at += 64) _mm_prefetch(reinterpret_cast<const char*>(w + at), _MM_HINT_T1);
    for (std::size_t n = begin; n < end; n += kPanel) {
      const std::byte* x = job_.packed;
      tile_zero<0>();
      for (const std::byte* last = w + panel; w < last; w += kTile, x += kBf16Parts * 64 * columns) {
        fetch_ahead<16>(w);
        tile_load<5>(x, columns * 4);
        if constexpr (kBf16Parts > 1) tile_load<6>(x + 64 * columns, columns * 4);
        tile_load<4>(w, 64);
        tile_dot_bf16<0, 4, 5>();
        if constexpr (kBf16Parts > 1) tile_dot_bf16<0, 4, 6>();
      }
      tile_store<0>(sums, sums_stride(columns));
      write_sums(part_, sums, n, std::min(kPanel, end - n), 0, job_.rows, columns);
    }
    tile_release();
  }

 private:
  const Matmul& job_;
  const Projection& part_;
};
