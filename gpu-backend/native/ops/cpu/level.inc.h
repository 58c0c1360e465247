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
}  // namespace

const Kernels& kernels() {
  static constexpr Kernels table{QE_LEVEL_NAME, matmul, attention, rms_norm, silu_mul, widen, read};
  return table;
}
}  // namespace qe::cpu::QE_LEVEL
