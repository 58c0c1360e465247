// One level: everything below is compiled once for each instruction set, in a namespace of its own.

namespace qe::cpu::QE_LEVEL {
namespace {
#include "ops/cpu/simd.inc.h"
//
#include "ops/cpu/attention.inc.h"
#include "ops/cpu/arrange.inc.h"
#include "ops/cpu/quantised.inc.h"
//
#include "ops/cpu/matmul.inc.h"
#include "ops/cpu/rows.inc.h"
//
#if defined(QE_AMX)
#include "ops/cpu/amx_tiles.inc.h"
//
#include "ops/cpu/amx_weights.inc.h"
//
#include "ops/cpu/amx_pack.inc.h"
//
#include "ops/cpu/amx_sums.inc.h"
//
#include "ops/cpu/amx_few_rows.inc.h"
//
#include "ops/cpu/amx_prefill.inc.h"
//
#include "ops/cpu/amx_bytes.inc.h"
//
#include "ops/cpu/amx_matmul.inc.h"
#if QE_BF16_PARTS == 1
#include "ops/cpu/amx_attention.inc.h"
using AttentionProducts = TileProducts;
#else
using AttentionProducts = PlainProducts;
#endif
#else
using AttentionProducts = PlainProducts;
#endif
}  // namespace

const Kernels& kernels() {
  static constexpr Kernels table{
      .level = QE_LEVEL_NAME,
#if defined(QE_AMX)
      .outputs_step = 32,
      .outputs_least = 224,
      .arranged_bytes = panels_bytes,
      .arrange = arrange_panels,
      .packed_bytes = packed_bytes,
      .pack = pack,
      .matmul = amx_matmul,
      .gates = amx_gates,
      .gated = amx_gated,
#else
      .outputs_step = 12,
      .outputs_least = 1,
      .arranged_bytes = rows_bytes,
      .arrange = arrange_rows,
      .packed_bytes = [](const Matmul&, const Projection&) { return std::size_t{0}; },
      .pack = [](const Matmul&, const Projection&, std::size_t, std::byte*) {},
      .matmul = matmul,
      .gates = [](const Matmul&, const Projection&, const Projection&) { return false; },
      .gated = [](const Matmul&, const Projection&, const Projection&, std::size_t, std::size_t) {},
#endif
      .attention_rows = AttentionProducts::kRows,
      .attention = attention<AttentionProducts>,
      .rms_norm = rms_norm,
      .silu_mul = silu_mul,
      .widen = widen,
      .read = read,
  };
  return table;
}
}  // namespace qe::cpu::QE_LEVEL
