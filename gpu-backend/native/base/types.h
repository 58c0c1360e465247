#pragma once

#include <cstddef>
#include <cstdint>

namespace qe {

using TokenId = std::uint32_t;
using BlockId = std::uint32_t;

/** Tokens per KV block. Also the lane count of the widest vector unit: one block of keys is one AVX-512 register. */
inline constexpr std::size_t kBlockSize = 16;

inline constexpr std::size_t div_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }
inline constexpr std::size_t round_up(std::size_t a, std::size_t b) { return div_up(a, b) * b; }

}  // namespace qe
