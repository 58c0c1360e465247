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

}  // namespace qe
