// The driver's twin on the host: see driver.h.

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "emulation/block.h"
#include "ops/cuda/driver.h"

struct CUgraphExec_st {
  std::vector<qe::emulation::Launch> launches;
};
struct CUstream_st {
  CUgraphExec_st* capturing = nullptr;
};

namespace qe::cuda {

void emulate(Stream stream, emulation::Launch launch);

namespace {
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
  if (stream->capturing != nullptr)
    stream->capturing->launches.push_back(std::move(launch));
  else
    emulation::run(launch);
}

std::optional<std::string> unavailable() { return std::nullopt; }
Device device() { return {"emulated", 8, 0, std::size_t{16} << 30, std::size_t{16} << 30, 4}; }

Stream create_stream() { return new CUstream_st; }
void destroy_stream(Stream stream) { delete stream; }
void synchronize(Stream stream) { outside_capture(stream, "a wait"); }

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
  for (const emulation::Launch& each : graph->launches) emulation::run(each);
}
void destroy(Graph graph) noexcept { delete graph; }

void check_launch(const char*) {}

double measure_ms(Stream, void (*work)(void*), void* argument) {
  const auto start = std::chrono::steady_clock::now();
  work(argument);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace qe::cuda
