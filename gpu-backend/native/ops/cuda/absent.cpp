// What a build without CUDA says when it is asked for a GPU.

#include "base/error.h"
#include "ops/cuda/open.h"

namespace qe::cuda {

std::optional<std::string> missing() { return "this build of the engine has no CUDA: npm run build:cuda makes one that has"; }

Opened open(const OpenOptions&) { throw Error(ErrorCode::invalid_request, *missing()); }

}  // namespace qe::cuda
