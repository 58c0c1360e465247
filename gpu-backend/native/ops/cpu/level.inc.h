// One level: everything below is compiled once for each instruction set, in a namespace of its own.

namespace qe::cpu::QE_LEVEL {
namespace {
#include "ops/cpu/simd.inc.h"
//
#include "ops/cpu/attention.inc.h"
#include "ops/cpu/quantised.inc.h"
//
#include "ops/cpu/matmul.inc.h"
#include "ops/cpu/rows.inc.h"
//
#if defined(QE_AMX)
#include "ops/cpu/amx_tiles.inc.h"
//
#include "ops/cpu/amx_pack.inc.h"
//
#include "ops/cpu/amx_matmul.inc.h"
#endif
}  // namespace

const Kernels& kernels() {
#if defined(QE_AMX)
  static constexpr Kernels table{QE_LEVEL_NAME, 32,       packed_bytes, pack,  amx_matmul,
                                 attention,     rms_norm, silu_mul,     widen, read};
#else
  constexpr auto nothing = [](const Matmul&, const Projection&) { return std::size_t{0}; };
  constexpr auto never = [](const Matmul&, const Projection&, std::size_t, std::byte*) {};
  static constexpr Kernels table{QE_LEVEL_NAME, 12, nothing, never, matmul, attention, rms_norm, silu_mul, widen, read};
#endif
  return table;
}
}  // namespace qe::cpu::QE_LEVEL
