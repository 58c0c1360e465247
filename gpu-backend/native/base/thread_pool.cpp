#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>

namespace qe {
namespace {

constexpr int kSpins = 4000;  // some 30-60 us of pauses: longer than the serial code between two jobs of one step

constexpr unsigned kThreadsMax = 1024;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(unsigned threads) {
  try {
    for (unsigned i = 1; i < std::min(threads, kThreadsMax); ++i) workers_.emplace_back([this] { worker(); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true);
  ticket_.store(~std::uint64_t{0} >> 32);  // count 0, and unlike any ticket a sleeper may hold
  ticket_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

bool ThreadPool::work_once() {
  const std::uint64_t seen = ticket_.load(std::memory_order_relaxed);
  if ((seen & 0xffffffff) >= seen >> 32) return false;
  const std::uint64_t mine = ticket_.fetch_add(1, std::memory_order_acq_rel);
  const std::uint64_t index = mine & 0xffffffff;
  if (index >= mine >> 32) return false;
  function_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), index);
  done_.fetch_add(1, std::memory_order_acq_rel);
  return true;
}

void ThreadPool::run(std::size_t count, Function function, void* context) {
  if (count == 0) return;
  if (count == 1 || workers_.empty()) {
    for (std::size_t i = 0; i < count; ++i) function(context, i);
    return;
  }
  function_.store(function, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  ticket_.store(std::uint64_t{count} << 32, std::memory_order_release);
  ticket_.notify_all();
  while (work_once()) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != count; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::worker() {
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (work_once()) continue;
    const std::uint64_t idle = ticket_.load(std::memory_order_relaxed);
    if ((idle & 0xffffffff) < idle >> 32) continue;
    int spins = 0;
    while (spins < kSpins && ticket_.load(std::memory_order_relaxed) == idle) pause(), ++spins;
    if (spins == kSpins) ticket_.wait(idle, std::memory_order_relaxed);
  }
}

unsigned ThreadPool::physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return std::max(1u, std::thread::hardware_concurrency());
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::string siblings;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return std::max<unsigned>(1, static_cast<unsigned>(cores.size()));
}

}  // namespace qe
