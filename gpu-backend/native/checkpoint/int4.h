#pragma once

#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor.h"

namespace qe {

/**
 * Reads one four-bit linear layer, `prefix` + {qweight, qzeros, scales[, g_idx]}, into the one layout we compute with.
 * The value of a weight is scale * (q - zero), a scale and a zero for each output and each group of inputs.
 *
 * GPTQ (AutoGPTQ, qlinear_cuda_old.py): qweight I32 [in / 8][out], eight inputs to a word, least significant first;
 * qzeros I32 [in / group][out / 8] holds zero - 1; g_idx, where present, must be the plain i / group (desc_act=false).
 * AWQ (AutoAWQ, gemm.py): qweight I32 [in][out / 8], eight outputs to a word in the order 0 2 4 6 1 3 5 7; qzeros the
 * same way, zero itself.
 */
Int4Matrix read_int4(const Checkpoint& checkpoint, const std::string& prefix, WeightFormat format, std::size_t out,
                     std::size_t in, std::size_t group);

}  // namespace qe
