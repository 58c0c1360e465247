#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qe {

enum class DType : std::uint8_t { f32, f16, bf16 };

inline constexpr std::size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }
inline constexpr std::string_view name_of(DType dtype) {
  return dtype == DType::f32 ? "F32" : dtype == DType::f16 ? "F16" : "BF16";
}

/** The safetensors name of a dtype this runtime computes with, or nothing. */
inline std::optional<DType> parse_dtype(std::string_view name) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    if (name == name_of(dtype)) return dtype;
  return std::nullopt;
}

/** A checked tensor inside a mapped file (or in a buffer of its own where the file does not align it). */
struct TensorView {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::size_t> shape;
  const std::byte* data = nullptr;

  [[nodiscard]] std::size_t elements() const {
    std::size_t count = 1;
    for (const std::size_t dim : shape) count *= dim;
    return count;
  }
  [[nodiscard]] std::size_t bytes() const { return elements() * size_of(dtype); }
};

/** How weight matrices are stored: as they are, rounded to int8 when loaded, or four-bit in the checkpoint already. */
enum class WeightFormat : std::uint8_t { stored, int8, gptq, awq };

/**
 * A four-bit matrix in host memory, whatever format it came from. `nibbles` is [out][in / 2]; each run of 32 inputs is
 * 16 bytes, byte b holding input b in its low half and input b + 16 in its high half, so that both unpack in order.
 */
struct Int4Matrix {
  std::size_t out = 0, in = 0, group = 0;  // group: a multiple of 32 that divides `in`
  std::vector<std::uint8_t> nibbles;
  std::vector<float> scales, offsets;  // [out][in / group]
};

}  // namespace qe
