#pragma once

// The one dialect our kernels are written in: CUDA C++ where nvcc compiles them, the same text on emulation/ where the
// host's compiler does. What the two spell differently has one name here.
//
//   SHARED(float, name, 128);                   a static shared array
//   DYNAMIC_SHARED(Bf16, name, bytes, count);   a part of the dynamic one, `bytes` from its start (a multiple of 16)
//   shared_at(name, i)                          the address of an element, for cp_async and ldmatrix
//   LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)

#include <cstddef>
#include <cstdint>

#include "ops/cuda/driver.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(type, name, bytes, count)                      \
  extern __shared__ __align__(16) unsigned char qe_dynamic_shared[];  \
  type* name = reinterpret_cast<type*>(qe_dynamic_shared + (bytes))
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)            \
  do {                                                                    \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);           \
    ::qe::cuda::check_launch(#kernel);                                    \
  } while (false)
#else
#include "emulation/cuda_api.h"
#define SHARED(type, name, count)             \
  static const char name##_tag = 0;           \
  const ::qe::emulation::SharedArray<type> name(::qe::emulation::shared_memory(&name##_tag, sizeof(type) * (count), sizeof(type)))
#define DYNAMIC_SHARED(type, name, bytes, count)   \
  const ::qe::emulation::SharedArray<type> name(   \
      ::qe::emulation::dynamic_shared_memory(bytes, sizeof(type) * (count), sizeof(type)))
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::qe::cuda::emulate(stream, {#kernel, grid, block, shared_bytes, [=] { kernel(__VA_ARGS__); }})
namespace qe::cuda {
/** Runs the launch, or records it when the stream captures a graph. */
void emulate(Stream stream, emulation::Launch launch);
}  // namespace qe::cuda
#endif

namespace qe::cuda {

inline constexpr unsigned kAllLanes = 0xffffffff;

/** A bfloat16 in memory: the upper half of a float. */
struct Bf16 {
  std::uint16_t bits;
};
/** An IEEE half in memory. */
struct Half {
  std::uint16_t bits;
};

#if defined(__CUDACC__)
template <class T>
__device__ __forceinline__ T* shared_at(T* array, unsigned index) {
  return array + index;
}
__device__ __forceinline__ float to_float(Bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ __forceinline__ float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
/** Two floats rounded to nearest even, the first in the lower half. */
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
/** Adds to an element of shared memory; @returns what it held. */
__device__ __forceinline__ unsigned shared_add(unsigned* array, unsigned index, unsigned value) { return atomicAdd(array + index, value); }
/** Copies 16 bytes to shared memory in the background; bytes beyond `valid` become zero. */
__device__ __forceinline__ void cp_async(void* to, const void* from, unsigned valid) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <bool Transposed>
__device__ __forceinline__ void ldmatrix(std::uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
  }
}
#else
template <class T>
T* shared_at(const emulation::SharedArray<T>& array, unsigned index) {
  return array.at(index);
}
inline float to_float(Bf16 x) { return emulation::bf16_to_float(x.bits); }
inline float to_float(Half x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return mantissa != 0 ? NAN : x.bits & 0x8000 ? -INFINITY : INFINITY;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                   : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  return x.bits & 0x8000 ? -size : size;
}
inline std::uint32_t round_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline std::uint32_t pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }
inline unsigned shared_add(const emulation::SharedArray<unsigned>& array, unsigned index, unsigned value) {
  return emulation::atomic_add(array, index, value);
}
inline void cp_async(void* to, const void* from, unsigned valid) { emulation::copy_async(to, from, valid); }
inline void cp_async_commit() { emulation::commit_copies(); }
template <int Pending>
void cp_async_wait() {
  emulation::wait_copies(Pending);
}
inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t* b,
                     EmulatedPlace at = EmulatedPlace::current()) {
  emulation::Mma mine{d, a, b};
  emulation::collective({"mma.sync", kAllLanes, at, emulation::compute_mma}, &mine);
}
template <bool Transposed>
void ldmatrix(std::uint32_t (&r)[4], const void* row, EmulatedPlace at = EmulatedPlace::current()) {
  emulation::touch_shared(row, 16, false);
  emulation::LoadMatrix mine{r, static_cast<const std::uint16_t*>(row), Transposed};
  emulation::collective({"ldmatrix", kAllLanes, at, emulation::compute_ldmatrix}, &mine);
}
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ Bf16 to_bf16(float x) { return {static_cast<std::uint16_t>(pack_bf16(x, 0))}; }
__device__ __forceinline__ void store_as(float* to, float x) { *to = x; }
__device__ __forceinline__ void store_as(Bf16* to, float x) { *to = to_bf16(x); }

/** Eight consecutive numbers from 16-byte aligned memory. */
__device__ __forceinline__ void load8(const float* from, float (&to)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}
template <class T>
__device__ __forceinline__ void load8(const T* from, float (&to)[8]) {
  const uint4 word = *reinterpret_cast<const uint4*>(from);
  const std::uint32_t pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = to_float(T{static_cast<std::uint16_t>(pairs[i])});
    to[2 * i + 1] = to_float(T{static_cast<std::uint16_t>(pairs[i] >> 16)});
  }
}

/** Combines what the 32 lanes bring, in one fixed order, for every lane: lanes 16 apart first, then 8, 4, 2, 1. */
template <class Combine>
__device__ __forceinline__ float warp_reduce(float x, Combine combine) {
#if defined(__CUDACC__)
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, bits));
  return x;
#else  // the same tree as one collective: five times fewer switches of fibers
  return emulation::reduce(x, combine);
#endif
}
__device__ __forceinline__ float warp_sum(float x) {
  return warp_reduce(x, [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float warp_max(float x) {
  return warp_reduce(x, [](float a, float b) { return fmaxf(a, b); });
}

}  // namespace qe::cuda
