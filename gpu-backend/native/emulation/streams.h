#pragma once

#include <cstddef>

namespace qe::cuda {

/** Whether what is put on a stream is done only when somebody waits for it, and otherwise at once: the two ends of what
    a GPU may do. Not to be changed while a stream is in use. */
void set_lazy_streams(bool lazy);

/** Waits, so far, for what was still to be done, with more work on the stream behind it. */
std::size_t waits_with_work_behind();

}  // namespace qe::cuda
