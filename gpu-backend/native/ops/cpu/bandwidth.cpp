#include "ops/cpu/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "ops/cpu/cpu_ops.h"

namespace qe::cpu {

double read_bandwidth(unsigned threads, std::size_t bytes) {
  CpuOps ops(threads);
  constexpr std::size_t chunk = 1 << 20;
  const std::size_t chunks = std::max<std::size_t>(bytes / chunk, 1);
  const Buffer buffer = ops.allocate(chunks * chunk / sizeof(float));
  for (std::size_t i = 0; i < chunks * chunk / sizeof(float); i += 256) buffer.get()[i] = 1.0f;

  std::atomic<std::uint32_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < 7; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    ops.pool().for_each(chunks, [&](std::size_t i) {
      sink += ops.kernels().read(reinterpret_cast<const std::byte*>(buffer.get()) + i * chunk, chunk);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(chunks * chunk) / took.count());
  }
  return best;
}

}  // namespace qe::cpu
