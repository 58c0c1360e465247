#include "ops/cuda/open.h"

#include "base/error.h"
#include "ops/cuda/cuda_ops.h"

namespace qe::cuda {
namespace {

/** Activations, indices, the runtime's own context: what is left free beside weights and cache. */
constexpr std::size_t kReserve = std::size_t{1} << 30;
constexpr std::size_t kCacheMin = std::size_t{64} << 20;

std::string gigabytes(std::size_t bytes) { return concat(static_cast<double>(bytes / 10'000'000) / 100, " GB"); }

}  // namespace

std::optional<std::string> missing() { return unavailable(); }

Opened open(const OpenOptions& options) {
  CudaOptions chosen;
  chosen.deterministic = options.deterministic;
  chosen.rows_max = options.rows_max;
  auto ops = std::make_unique<CudaOps>(chosen);
  const std::size_t free = ops->device().free, rest = kReserve + 2 * options.logit_bytes;  // two steps may be under way
  const std::size_t wanted = options.weight_bytes + rest + (options.kv_bytes == 0 ? kCacheMin : options.kv_bytes);
  if (wanted > free)
    throw Error(ErrorCode::invalid_request,
                concat(ops->device().name, " has ", gigabytes(free), " free; the weights take ", gigabytes(options.weight_bytes),
                       ", keys and values ", gigabytes(options.kv_bytes == 0 ? kCacheMin : options.kv_bytes), ", the rest ", gigabytes(rest)));
  const std::size_t kv_bytes = options.kv_bytes == 0 ? free - options.weight_bytes - rest : options.kv_bytes;
  return {std::move(ops), kv_bytes};
}

}  // namespace qe::cuda
