#include "base/error.h"
#include "ops/cpu/kernels.h"

namespace qe::cpu {

namespace base {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> levels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2_here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2_here && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    levels.push_back(&avx512::kernels());
  if (avx2_here) levels.push_back(&avx2::kernels());  // every processor with AVX2 and FMA has F16C
#endif
  levels.push_back(&base::kernels());
  return levels;
}

const Kernels& select_kernels(std::string_view level) {
  std::string names;
  for (const Kernels* kernels : available_kernels()) {
    if (level.empty() || kernels->level == level) return *kernels;
    names += concat(names.empty() ? "" : ", ", kernels->level);
  }
  throw Error(ErrorCode::invalid_request, concat("no kernels '", level, "' on this machine, which has ", names));
}

}  // namespace qe::cpu
