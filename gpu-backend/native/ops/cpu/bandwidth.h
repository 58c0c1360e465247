#pragma once

#include <cstddef>

namespace qe::cpu {

/**
 * The rate at which `threads` threads together read `bytes` of memory once, in bytes per second: the best of several
 * passes over a buffer much larger than the caches. The physical limit that batch-1 decode is measured against.
 * @param threads 0: one per physical core
 */
double read_bandwidth(unsigned threads, std::size_t bytes);

}  // namespace qe::cpu
