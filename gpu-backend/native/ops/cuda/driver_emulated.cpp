// The driver's twin on the host: see driver.h.

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "emulation/block.h"
#include "emulation/device_fault.h"
#include "ops/cuda/driver.h"

struct CUgraphExec_st {
  std::vector<std::function<void()>> calls;
};
struct CUstream_st {
  CUgraphExec_st* capturing = nullptr;
};

namespace qe::cuda {

void emulate(Stream stream, emulation::Launch launch);

namespace {
std::atomic<bool> lost = false;
void outside_capture(Stream stream, const char* what) {
  if (stream->capturing != nullptr) throw Error(ErrorCode::internal, concat(what, " inside a graph's capture"));
}
void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes == 0 ? 1 : bytes) != 0)
    throw Error(ErrorCode::internal, concat("out of memory: ", bytes, " bytes"));
  std::memset(memory, 0xff, bytes);
  return memory;
}
}  // namespace

void emulate(Stream stream, emulation::Launch launch) {
  enqueue(stream, [launch = std::move(launch)] { emulation::run(launch); });
}

void enqueue(Stream stream, std::function<void()> call) {
  if (stream->capturing != nullptr)
    stream->capturing->calls.push_back(std::move(call));
  else
    call();
}
const char* gemm_library() { return ""; }

std::optional<std::string> unavailable() { return std::nullopt; }
Device device() { return {"emulated", 8, 0, std::size_t{16} << 30, std::size_t{16} << 30, 4}; }

Stream create_stream() { return new CUstream_st; }
void destroy_stream(Stream stream) { delete stream; }
void synchronize(Stream stream) {
  outside_capture(stream, "a wait");
  if (lost) throw Error(ErrorCode::device, "CUDA: the step: an illegal memory access was encountered");
}

void* allocate_device(std::size_t bytes) { return allocate(bytes); }
void free_device(void* memory) noexcept { std::free(memory); }
void* allocate_pinned(std::size_t bytes) { return allocate(bytes); }
void free_pinned(void* memory) noexcept { std::free(memory); }

void copy_to_device(Stream stream, void* to, const void* from, std::size_t bytes) {
  outside_capture(stream, "a copy");
  std::memcpy(to, from, bytes);
}
void copy_to_host(Stream stream, void* to, const void* from, std::size_t bytes) {
  outside_capture(stream, "a copy");
  std::memcpy(to, from, bytes);
}
void copy_on_device(Stream stream, void* to, const void* from, std::size_t bytes) {
  outside_capture(stream, "a copy");
  std::memcpy(to, from, bytes);
}
void zero_device(Stream stream, void* memory, std::size_t bytes) {
  outside_capture(stream, "a fill");
  std::memset(memory, 0, bytes);
}

void begin_capture(Stream stream) {
  outside_capture(stream, "a capture");
  stream->capturing = new CUgraphExec_st;
}
Graph end_capture(Stream stream) {
  Graph graph = stream->capturing;
  stream->capturing = nullptr;
  return graph;
}
void launch(Graph graph, Stream stream) {
  outside_capture(stream, "a graph");
  for (const auto& call : graph->calls) call();
}
void destroy(Graph graph) noexcept { delete graph; }

void check_launch(const char*) {}

void lose_emulated_device(bool now) { lost = now; }

double measure_ms(Stream, void (*work)(void*), void* argument) {
  const auto start = std::chrono::steady_clock::now();
  work(argument);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace qe::cuda
