#include "base/error.h"
#include "ops/cpu/kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
namespace amx {
const Kernels& kernels();
}
namespace amx_bf16 {
const Kernels& kernels();
}

namespace {

/** Whether the processor has tiles and Linux lets this process use them, which it must be asked once. */
[[maybe_unused]] bool tiles_granted() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // linux: arch/x86/include/uapi/asm/prctl.h
  unsigned a = 0, b = 0, c = 0, d = 0;
  static const bool granted = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAll) == kAll &&
                              syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> levels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2_here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512_here = avx2_here && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512_here && __builtin_cpu_supports("avx512bf16") && tiles_granted()) {
    levels.push_back(&amx::kernels());
    levels.push_back(&amx_bf16::kernels());
  }
  if (avx512_here) levels.push_back(&avx512::kernels());
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
