// The driver on a GPU: CUDA's runtime, linked statically, which looks for the machine's driver when first asked.

#include <cuda_runtime.h>

#include "base/error.h"
#include "ops/cuda/driver.h"

namespace qe::cuda {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw Error(ErrorCode::device, concat("CUDA: ", what, ": ", cudaGetErrorString(status)));
}

}  // namespace

std::optional<std::string> unavailable() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return concat("no CUDA device: ", cudaGetErrorString(status));
  if (count == 0) return "no CUDA device";
  cudaDeviceProp found{};
  if (cudaGetDeviceProperties(&found, 0) != cudaSuccess) return "the CUDA device does not answer";
  if (found.major < 8)
    return concat(found.name, " has compute capability ", found.major, ".", found.minor, "; 8.0 or later is needed");
  return std::nullopt;
}

Device device() {
  cudaDeviceProp found{};
  check(cudaGetDeviceProperties(&found, 0), "device properties");
  Device device{found.name, found.major, found.minor, found.totalGlobalMem, 0, static_cast<unsigned>(found.multiProcessorCount)};
  std::size_t total = 0;
  check(cudaMemGetInfo(&device.free, &total), "free memory");
  return device;
}

Stream create_stream() {
  Stream stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  return stream;
}
void destroy_stream(Stream stream) noexcept { cudaStreamSynchronize(stream), cudaStreamDestroy(stream); }
void synchronize(Stream stream) { check(cudaStreamSynchronize(stream), "the step"); }

Event create_event() {
  Event event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  return event;
}
void destroy_event(Event event) noexcept { cudaEventDestroy(event); }
void record(Event event, Stream stream) { check(cudaEventRecord(event, stream), "an event"); }
void wait(Event event) { check(cudaEventSynchronize(event), "the step"); }

void* allocate_device(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes == 0 ? 1 : bytes), "device memory");
  return memory;
}
void free_device(void* memory) noexcept { cudaFree(memory); }
void* allocate_pinned(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes == 0 ? 1 : bytes), "pinned memory");
  return memory;
}
void free_pinned(void* memory) noexcept { cudaFreeHost(memory); }

void copy_to_device(Stream stream, void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "a copy to the device");
}
void copy_to_host(Stream stream, void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "a copy to the host");
}
void copy_on_device(Stream stream, void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "a copy on the device");
}
void zero_device(Stream stream, void* memory, std::size_t bytes) {
  check(cudaMemsetAsync(memory, 0, bytes, stream), "a fill");
}

void begin_capture(Stream stream) { check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a capture"); }
Graph end_capture(Stream stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "a capture's end");
  Graph runnable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&runnable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "a graph");
  return runnable;
}
void launch(Graph graph, Stream stream) { check(cudaGraphLaunch(graph, stream), "a graph's launch"); }
void destroy(Graph graph) noexcept { cudaGraphExecDestroy(graph); }

void enqueue(Stream, std::function<void()> call) { call(); }
const char* gemm_library() { return "libcublasLt.so.13"; }

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

double measure_ms(Stream stream, void (*work)(void*), void* argument) {
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "an event");
  check(cudaEventCreate(&end), "an event");
  check(cudaEventRecord(begin, stream), "an event");
  work(argument);
  check(cudaEventRecord(end, stream), "an event");
  check(cudaEventSynchronize(end), "the measured work");
  float took = 0;
  check(cudaEventElapsedTime(&took, begin, end), "an event's time");
  cudaEventDestroy(begin), cudaEventDestroy(end);
  return static_cast<double>(took);
}

}  // namespace qe::cuda
