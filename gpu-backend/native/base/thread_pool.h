#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace qe {

/**
 * Fork-join over one caller and `threads - 1` workers.
 *
 * A job is one 64-bit ticket, [count:32][next:32]. A thread claims an index with fetch_add and learns from the very
 * same word whether the index is real, so nobody waits for a worker that has not woken: the caller takes the work of
 * an absent worker itself, and a worker that wakes late finds nothing to do. The job's function is read only after a
 * real index was claimed, and the caller cannot leave before that index is done, so it is stable.
 * Workers spin for some tens of microseconds between jobs (a decode step has hundreds of them), then sleep on a futex.
 * One caller at a time; indices must not throw.
 */
class ThreadPool {
 public:
  explicit ThreadPool(unsigned threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] unsigned threads() const { return static_cast<unsigned>(workers_.size()) + 1; }

  /** Calls work(index) for every index in [0, count), in any order, on any thread; returns when all are done. */
  template <class Work>
  void for_each(std::size_t count, Work&& work) {
    using Plain = std::remove_reference_t<Work>;
    run(
        count, [](void* context, std::size_t index) { (*static_cast<Plain*>(context))(index); },
        const_cast<void*>(static_cast<const void*>(&work)));
  }

  /** Physical cores this process may run on (one per pair of hyper-threads, affinity respected); at least 1. */
  static unsigned physical_cores();

 private:
  using Function = void (*)(void*, std::size_t);

  void run(std::size_t count, Function function, void* context);
  bool work_once();
  void stop();
  void worker();

  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::size_t> done_{0};
  std::atomic<Function> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace qe
