#pragma once

// The few calls we make of the CUDA runtime, with two implementations: driver_cuda.cu on a GPU, driver_emulated.cpp on
// the host (streams run at once, or as late as they may: emulation/streams.h; device memory is exact heap memory that AddressSanitizer fences, graphs replay their
// launches with the arguments they were captured with). Every failure throws Error(device) with CUDA's own words.

#include <cstddef>
#include <functional>
#include <optional>
#include <string>

struct CUstream_st;
struct CUgraphExec_st;
struct CUevent_st;

namespace qe::cuda {

using Stream = CUstream_st*;
using Graph = CUgraphExec_st*;
using Event = CUevent_st*;

struct Device {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  std::size_t memory = 0;    // bytes
  std::size_t free = 0;      // bytes
  unsigned multiprocessors = 0;
};

/** Why no CUDA device can be used, in one line; nothing when one can. */
std::optional<std::string> unavailable();
Device device();

Stream create_stream();
/** Waits for what is on it, whether that fails or not. */
void destroy_stream(Stream stream) noexcept;
/** Waits for all work of the stream; errors of kernels that ran before show up here. */
void synchronize(Stream stream);

Event create_event();
void destroy_event(Event event) noexcept;
/** The event is reached when all that is on the stream now is done. */
void record(Event event, Stream stream);
/** Until the event's last record is reached, at once if there is none; throws as synchronize() does. */
void wait(Event event);

void* allocate_device(std::size_t bytes);
void free_device(void* memory) noexcept;
/** Page-locked, so that copies run beside kernels. */
void* allocate_pinned(std::size_t bytes);
void free_pinned(void* memory) noexcept;

void copy_to_device(Stream stream, void* to, const void* from, std::size_t bytes);
void copy_to_host(Stream stream, void* to, const void* from, std::size_t bytes);
void copy_on_device(Stream stream, void* to, const void* from, std::size_t bytes);
void zero_device(Stream stream, void* memory, std::size_t bytes);

/** Until end_capture(), launches on the stream are recorded and not run. */
void begin_capture(Stream stream);
Graph end_capture(Stream stream);
void launch(Graph graph, Stream stream);
void destroy(Graph graph) noexcept;

/** A library's call, which puts work on the stream by itself; like a launch, it may be inside a capture. */
void enqueue(Stream stream, std::function<void()> call);
/** The name under which cuBLASLt is looked for; "" where there is none to look for. */
const char* gemm_library();

/** Throws for a launch that was refused (a shape the device cannot run). */
void check_launch(const char* kernel);

/** Milliseconds the stream took for what `work` put on it. */
double measure_ms(Stream stream, void (*work)(void* argument), void* argument);

}  // namespace qe::cuda
