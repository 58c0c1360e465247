#pragma once

// Runs one block of an emulated grid: a fiber for every thread, barriers, warp collectives, asynchronous copies.
//
// Threads run one at a time, each until it waits; blocks run one after the other, in ascending order, their threads in
// ascending order in even blocks and descending in odd ones. Whoever arrives last at a collective computes it for the
// whole warp. When nobody can go on, or the threads of a block disagree about where they meet, that is a Fault: it
// names the kernel, the block and the thread, and launch() throws it.

#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation/fiber.h"
#include "emulation/shared.h"

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace qe::emulation {

inline constexpr unsigned kWarp = 32;

/** A kernel did what hardware punishes. */
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Launch {
  const char* kernel;
  dim3 grid, block;
  std::size_t shared_bytes;
  std::function<void()> body;
};

/** Runs the whole grid; throws Fault. */
void run(const Launch& launch);
/** Threads run so far, in all launches of this host thread: a measure of work. */
std::uint64_t threads_run();

/** One copy on its way to shared memory. */
struct AsyncCopy {
  void* to;
  const void* from;
  std::size_t bytes;  // of `from` that count; the rest of 16 becomes zero
};

struct Thread {
  enum class State : std::uint8_t { ready, at_barrier, in_collective, done };
  Fiber fiber;
  dim3 index;                      // threadIdx
  std::uint32_t id = 0;            // linear
  State state = State::done;
  Clock clock{};
  std::source_location where;      // of the wait
  std::vector<AsyncCopy> copies;   // of the group not yet committed
  std::vector<std::vector<AsyncCopy>> groups;
};

/** What a lane brings to a collective: `arguments` lie on its stack while it waits. */
struct Collective {
  const char* name = nullptr;
  std::uint32_t mask = 0;
  std::source_location where;
  void (*compute)(void* const* arguments, std::uint32_t mask) = nullptr;
};

struct Block {
  dim3 block_index, block_dim, grid_dim;
};

/** The thread that runs, and its block. */
Thread& self();
const Block& block();

void barrier(const std::source_location& where);
/** Waits for the lanes of `mask`; the last one calls `compute` with every lane's arguments ([32], null outside). */
void collective(const Collective& what, void* arguments, bool orders_memory = false);
/** Starts a copy of 16 bytes, of which the first `bytes` come from `from`; until its wait the target is NaN. */
void copy_async(void* to, const void* from, std::size_t bytes);
void commit_copies();
/** Lets land all but the `pending` groups committed last. */
void wait_copies(std::size_t pending);

}  // namespace qe::emulation
