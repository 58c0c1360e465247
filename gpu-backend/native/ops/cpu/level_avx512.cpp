#include "ops/cpu/level_prelude.h"

#if defined(__x86_64__)
// Left in force to the end of the file: templates are instantiated there.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define QE_LEVEL avx512
#define QE_LEVEL_NAME "avx512"
#define QE_LANES 16
#include "ops/cpu/level.inc.h"
#endif
