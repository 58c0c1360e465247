// The driver's twin on the host: see driver.h.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "emulation/block.h"
#include "emulation/device_fault.h"
#include "emulation/streams.h"
#include "ops/cuda/driver.h"

struct CUgraphExec_st {
  std::vector<std::function<void()>> calls;
};
struct CUstream_st {
  CUgraphExec_st* capturing = nullptr;
  std::deque<std::function<void()>> pending;
  std::size_t put = 0, done = 0;  // calls
};
struct CUevent_st {
  CUstream_st* stream = nullptr;
  std::size_t reached = 0;  // once the stream has done so many calls
};

namespace qe::cuda {

void emulate(Stream stream, emulation::Launch launch);

namespace {
std::atomic<bool> lost = false, lazy = false;
std::atomic<std::size_t> waits_behind = 0;
std::mutex streams_mutex;
std::vector<Stream> streams;

void run_until(Stream stream, std::size_t calls) {
  while (stream->done < calls) {
    const std::function<void()> call = std::move(stream->pending.front());
    stream->pending.pop_front();
    ++stream->done;
    call();
  }
}
void put(Stream stream, std::function<void()> call) {
  stream->pending.push_back(std::move(call));
  ++stream->put;
  if (!lazy) run_until(stream, stream->put);
}
void fail_if_lost() {
  if (lost) throw Error(ErrorCode::device, "CUDA: the step: an illegal memory access was encountered");
}
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
    put(stream, std::move(call));
}
const char* gemm_library() { return ""; }

std::optional<std::string> unavailable() { return std::nullopt; }
Device device() { return {"emulated", 8, 0, std::size_t{16} << 30, std::size_t{16} << 30, 4}; }

Stream create_stream() {
  const std::scoped_lock lock(streams_mutex);
  return streams.emplace_back(new CUstream_st);
}
void destroy_stream(Stream stream) noexcept {
  run_until(stream, stream->put);
  const std::scoped_lock lock(streams_mutex);
  std::erase(streams, stream);
  delete stream;
}
void synchronize(Stream stream) {
  outside_capture(stream, "a wait");
  run_until(stream, stream->put);
  fail_if_lost();
}

Event create_event() { return new CUevent_st; }
void destroy_event(Event event) noexcept { delete event; }
void record(Event event, Stream stream) {
  outside_capture(stream, "an event");
  *event = {stream, stream->put};
}
void wait(Event event) {
  if (event->stream == nullptr) return;
  if (event->stream->done < event->reached && event->reached < event->stream->put) ++waits_behind;
  run_until(event->stream, event->reached);
  fail_if_lost();
}

void* allocate_device(std::size_t bytes) { return allocate(bytes); }
/** As CUDA does, after all that is under way. */
void free_device(void* memory) noexcept {
  if (lazy) {
    const std::scoped_lock lock(streams_mutex);
    for (Stream stream : streams) run_until(stream, stream->put);
  }
  std::free(memory);
}
void* allocate_pinned(std::size_t bytes) { return allocate(bytes); }
void free_pinned(void* memory) noexcept { std::free(memory); }

void copy_to_device(Stream stream, void* to, const void* from, std::size_t bytes) {
  outside_capture(stream, "a copy");
  put(stream, [=] { std::memcpy(to, from, bytes); });
}
void copy_to_host(Stream stream, void* to, const void* from, std::size_t bytes) {
  outside_capture(stream, "a copy");
  put(stream, [=] { std::memcpy(to, from, bytes); });
}
void copy_on_device(Stream stream, void* to, const void* from, std::size_t bytes) {
  outside_capture(stream, "a copy");
  put(stream, [=] { std::memcpy(to, from, bytes); });
}
void zero_device(Stream stream, void* memory, std::size_t bytes) {
  outside_capture(stream, "a fill");
  put(stream, [=] { std::memset(memory, 0, bytes); });
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
  for (const auto& call : graph->calls) put(stream, call);
}
void destroy(Graph graph) noexcept { delete graph; }

void check_launch(const char*) {}

void lose_emulated_device(bool now) { lost = now; }
void set_lazy_streams(bool now) { lazy = now; }
std::size_t waits_with_work_behind() { return waits_behind; }

double measure_ms(Stream stream, void (*work)(void*), void* argument) {
  const auto start = std::chrono::steady_clock::now();
  work(argument);
  run_until(stream, stream->put);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace qe::cuda
