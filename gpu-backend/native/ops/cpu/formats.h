#pragma once

#include "ops/cpu/kernels.h"
#include "ops/ops.h"

namespace qe::cpu {

/** Below this many multiply-adds a job is not worth waking anyone. */
inline constexpr std::size_t kWorthSharing = 32 * 1024;
/** Outputs of a product that make such a job. */
inline std::size_t outputs_worth(std::size_t in, std::size_t rows) {
  return div_up(kWorthSharing, in * std::max<std::size_t>(rows, 1));
}

inline Format format_of(DType dtype) {
  return dtype == DType::f32 ? Format::f32 : dtype == DType::f16 ? Format::f16 : Format::bf16;
}

inline Projection projection_of(const Weight& w, const float* bias, float* y, bool add) {
  const Format format = w.packing == Packing::int8   ? Format::int8
                        : w.packing == Packing::int4 ? Format::int4
                                                     : format_of(w.dtype);
  return {static_cast<const std::byte*>(w.data), format, bias, y, w.out, w.out, add, w.group};
}

}  // namespace qe::cpu
