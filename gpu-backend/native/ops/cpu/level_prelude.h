#pragma once

// Every header the kernels need, included before a level's `#pragma GCC target`: inline functions of the standard
// library must not be compiled for an instruction set that the machine may lack.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/cpu/aligned_buffer.h"
#include "ops/cpu/kernels.h"
