#include "ops/cpu/level_prelude.h"

#define QE_LEVEL base
#define QE_LEVEL_NAME "base"
#define QE_LANES 4
#include "ops/cpu/level.inc.h"
