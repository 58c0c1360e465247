#pragma once

namespace qe::cuda {

/** From now on every wait for the emulated device fails, as after a kernel's illegal access; or no longer does. */
void lose_emulated_device(bool now);

}  // namespace qe::cuda
