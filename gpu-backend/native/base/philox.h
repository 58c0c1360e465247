#pragma once

#include <array>
#include <cstdint>

namespace qe {

/**
 * Philox4x32-10, a counter-based generator: the same (seed, position) gives the same number whatever ran before it.
 * Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); test vectors from Random123.
 */
inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

/** Uniform in [0, 1) with 53 bits, for the token at `position` of a sequence sampled with `seed`. */
inline double uniform(std::uint64_t seed, std::uint64_t position) {
  const auto word = philox({static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32), 0, 0},
                           {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  const std::uint64_t bits = (std::uint64_t{word[1]} << 32 | word[0]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

}  // namespace qe
