// Weights as the AMX products read them: in panels of 16 outputs, each panel a sequence of tiles of [16 outputs][64
// bytes of inputs], which lie in the order in which they are multiplied. Decode is bound by reading weights, and so it
// is one long read, which the hardware's prefetcher follows; and no two rows of a tile fall on the same set of a cache.
//
//   bf16: [panels, an even number][in / 32][16][32], zeros beyond the last output and input.
//
//   eight bits: [panels][groups] of {[group / step][16][step] bytes, 16 scales}, a step being what an instruction
//   takes.
//
//   four bits: [panels][groups] of {[group / step][8 * step] bytes, 16 scales, 16 offsets}; byte b of a tile holds byte
//   b of its 16 * step in its low half, byte b + 8 * step in its high half.

inline constexpr std::size_t kPanel = 16;     // outputs
inline constexpr std::size_t kBf16Step = 32;  // inputs that one instruction takes
inline constexpr std::size_t kTile = kPanel * 64;
inline constexpr std::size_t kAhead = 1024, kFarAhead = 4096;  // bytes of weights that are in L1, in L2 before use

/** Inputs of one instruction beside weights of eight or four bits: it must not cross a group. */
inline std::size_t byte_step(std::size_t group) { return group % 64 == 0 ? 64 : group % 32 == 0 ? 32 : 16; }

/** One group of inputs of a panel of eight or four bits. */
struct BytesGroup {
  Format format;
  std::size_t group;

  std::size_t tiles() const { return group * kPanel / (format == Format::int8 ? 1 : 2); }
  std::size_t scales() const { return tiles(); }
  std::size_t offsets() const { return tiles() + kPanel * sizeof(float); }
  std::size_t bytes() const { return format == Format::int8 ? offsets() : offsets() + kPanel * sizeof(float); }
};

inline std::size_t bf16_panel_bytes(std::size_t in) { return div_up(in, kBf16Step) * kTile; }

inline std::size_t panel_bytes(const MatrixForm& form) {
  if (form.format == Format::bf16) return bf16_panel_bytes(form.in);
  return groups_of(form) * BytesGroup{form.format, form.group}.bytes();
}

inline bool in_panels(Format format) { return format != Format::f32 && format != Format::f16; }

inline std::size_t panels_bytes(const MatrixForm& form) {
  if (!in_panels(form.format)) return rows_bytes(form);
  const std::size_t together = form.format == Format::bf16 ? 2 * kPanel : kPanel;
  return round_up(form.out, together) / kPanel * panel_bytes(form);
}

/** Panel of bf16; from: [outputs][in] */
inline void arrange_bf16(const std::uint16_t* from, std::size_t in, std::size_t outputs, std::byte* to) {
  for (std::size_t k = 0; k < in; k += kBf16Step) {
    const std::size_t left = std::min(kBf16Step, in - k);
    const auto mask = static_cast<__mmask32>((std::uint64_t{1} << left) - 1);
    for (std::size_t i = 0; i < kPanel; ++i, to += 64)
      _mm512_store_si512(to, i < outputs ? _mm512_maskz_loadu_epi16(mask, from + i * in + k) : _mm512_setzero_si512());
  }
}

/** Panel of eight or four bits; the rows begin at its first output. */
inline void arrange_bytes(const MatrixForm& form, const MatrixRows& rows, std::size_t outputs, std::byte* to) {
  const BytesGroup layout{form.format, form.group};
  const std::size_t groups = groups_of(form), step = byte_step(form.group), row = stored_bytes(form);
  const auto* from = static_cast<const std::byte*>(rows.weight);
  const std::size_t size = kPanel * step, half = size / 2;
  std::vector<std::byte> unpacked(size);
  for (std::size_t g = 0; g < groups; ++g, to += layout.bytes()) {
    for (std::size_t k = 0; k < form.group; k += step) {
      const std::size_t at = g * form.group + k;
      std::byte* tile = form.format == Format::int8 ? to + k * kPanel : unpacked.data();
      std::fill_n(tile, size, std::byte{0});
      for (std::size_t i = 0; i < outputs; ++i) {
        if (form.format == Format::int8) {
          std::memcpy(tile + i * step, from + i * row + at, step);
        } else {
          for (std::size_t b = 0; b < step; ++b) {  // 16 bytes hold 32 inputs: the low halves, then the high ones
            const std::byte both = from[i * row + (at + b) / 32 * 16 + b % 16];
            tile[i * step + b] = b % 32 < 16 ? both & std::byte{15} : both >> 4;
          }
        }
      }
      if (form.format == Format::int4)
        for (std::size_t b = 0; b < half; ++b) to[k * kPanel / 2 + b] = tile[b] | tile[b + half] << 4;
    }
    const auto spread = [&](const float* numbers, std::byte* at) {
      for (std::size_t i = 0; i < kPanel; ++i)
        reinterpret_cast<float*>(at)[i] = i < outputs ? numbers[i * groups + g] : 0.0f;
    };
    spread(rows.scales, to + layout.scales());
    if (form.format == Format::int4) spread(rows.offsets, to + layout.offsets());
  }
}

inline void arrange_panels(const MatrixForm& form, const MatrixRows& rows, std::size_t first, std::size_t count,
                           std::byte* matrix) {
  if (!in_panels(form.format)) return arrange_rows(form, rows, first, count, matrix);
  const std::size_t panel = panel_bytes(form), row = stored_bytes(form), groups = groups_of(form);
  const std::size_t end = first + count == form.out ? panels_bytes(form) / panel * kPanel : first + count;
  std::byte* to = matrix + first / kPanel * panel;
  for (std::size_t n = first; n < end; n += kPanel, to += panel) {
    const std::size_t skip = std::min(n - first, count), outputs = std::min(kPanel, count - skip);
    const std::byte* from = static_cast<const std::byte*>(rows.weight) + skip * row;
    if (form.format == Format::bf16) {
      arrange_bf16(reinterpret_cast<const std::uint16_t*>(from), form.in, outputs, to);
    } else {
      arrange_bytes(
          form, {from, rows.scales + skip * groups, rows.offsets == nullptr ? nullptr : rows.offsets + skip * groups},
          outputs, to);
    }
  }
}

/** While a tile of one long read is used. */
template <std::size_t Lines>
inline void fetch_ahead(const std::byte* at) {
#pragma GCC unroll 16
  for (std::size_t i = 0; i < Lines; ++i) {
    _mm_prefetch(reinterpret_cast<const char*>(at + kFarAhead + i * 64), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(at + kAhead + i * 64), _MM_HINT_T0);
  }
}
