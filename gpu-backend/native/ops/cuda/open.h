#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "ops/ops.h"

namespace qe::cuda {

struct OpenOptions {
  bool deterministic = false;
  std::size_t rows_max = 0;      // rows of the largest batch
  std::size_t weight_bytes = 0;  // of the checkpoint
  std::size_t kv_bytes = 0;      // wanted for keys and values; 0: what the rest leaves
  std::size_t logit_bytes = 0;   // of the largest step
};

struct Opened {
  std::unique_ptr<Ops> ops;
  std::size_t kv_bytes;
};

/** Why this machine, or this build, cannot compute on CUDA: one line. Nothing when it can. */
std::optional<std::string> missing();

/**
 * Opens the GPU after adding up what will lie on it. Throws Error(invalid_request): no device, or not enough memory,
 * with the numbers.
 */
Opened open(const OpenOptions& options);

}  // namespace qe::cuda
