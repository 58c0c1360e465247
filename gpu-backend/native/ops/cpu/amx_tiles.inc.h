// The tile instructions, by number: the compilers' own intrinsics take literals alone and do not say that they touch
// memory. Tile registers are eight, each up to 16 rows of 64 bytes, as the configuration shapes them.

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, std::size_t height, std::size_t bytes) {
    rows[tile] = static_cast<std::uint8_t>(height);
    row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  }
};

inline void tile_configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline void tile_release() { asm volatile("tilerelease"); }

template <int Tile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"n"(Tile));
}
template <int Tile>
inline void tile_load(const void* from, std::size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(Tile) : "memory");
}
template <int Tile>
inline void tile_store(void* to, std::size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(Tile) : "memory");
}
/** To += A B: A rows of pairs of bf16, B rows of [column][pair], To fp32. */
template <int To, int A, int B>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(To), "n"(A), "n"(B));
}
/** To += A B: rows of four signed bytes, To 32-bit integers. */
template <int To, int A, int B>
inline void tile_dot_bytes() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(To), "n"(A), "n"(B));
}
