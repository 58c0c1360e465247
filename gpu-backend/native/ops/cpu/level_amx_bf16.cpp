#include "ops/cpu/level_prelude.h"

#if defined(__x86_64__)
// Left in force to the end of the file: templates are instantiated there.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#define QE_LEVEL amx_bf16
#define QE_LEVEL_NAME "amx-bf16"
#define QE_LANES 16
#define QE_AMX
#define QE_BF16_PARTS 1
#include "ops/cpu/level.inc.h"
#endif
