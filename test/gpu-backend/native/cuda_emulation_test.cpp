// The emulation catches what it is there to catch: each planted bug below is one that a GPU would let pass now and then.

#include <string>

#include "check.h"
#include "ops/cuda/device.cuh"

namespace {

using namespace qe::cuda;

/** What the emulation said about a kernel. */
template <class Body>
std::string fault(unsigned blocks, unsigned threads, Body body, std::size_t shared_bytes = 0) {
  return check::thrown([&] { qe::emulation::run({"planted", blocks, threads, shared_bytes, body}); });
}

/** Reverses 64 numbers through shared memory. */
void reverse(const float* from, float* to, bool with_barrier) {
  SHARED(float, tile, 64);
  tile[threadIdx.x] = from[threadIdx.x];
  if (with_barrier) __syncthreads();
  to[threadIdx.x] = tile[63 - threadIdx.x];
}

TEST("emulation: a kernel with its barrier is right, without it a race is named") {
  std::vector<float> from(64), to(64);
  for (unsigned i = 0; i < 64; ++i) from[i] = static_cast<float>(i);
  CHECK(fault(1, 64, [&] { reverse(from.data(), to.data(), true); }).empty());
  for (unsigned i = 0; i < 64; ++i) CHECK(to[i] == static_cast<float>(63 - i));
  const std::string said = fault(1, 64, [&] { reverse(from.data(), to.data(), false); });
  CHECK(said.find("planted, block (0,0,0), thread ") == 0, said);
  CHECK(said.find("nobody wrote") != std::string::npos || said.find("race") != std::string::npos, said);
}

TEST("emulation: reusing a tile before everybody has read it is a race, whatever the order of threads") {
  for (const unsigned blocks : {1u, 2u}) {  // odd blocks run their threads backwards
    const std::string said = fault(blocks, 64, [] {
      SHARED(float, tile, 64);
      float sum = 0;
      for (unsigned round = 0; round < 2; ++round) {
        tile[threadIdx.x] = static_cast<float>(round);
        __syncthreads();
        sum += tile[(threadIdx.x + 32) % 64];
        // The missing barrier.
      }
      static_cast<void>(sum);
    });
    CHECK(said.find("race in shared memory") != std::string::npos, said);
  }
}

TEST("emulation: __syncwarp orders the lanes of a warp and not those of two") {
  const auto exchange = [](unsigned distance) {
    SHARED(float, tile, 64);
    tile[threadIdx.x] = 1;
    __syncwarp();
    const float other = tile[(threadIdx.x + distance) % 32 + threadIdx.x / 32 * 32];
    static_cast<void>(other);
    if (distance == 33) {
      const float far = tile[(threadIdx.x + 32) % 64];
      static_cast<void>(far);
    }
  };
  CHECK(fault(2, 64, [&] { exchange(1); }).empty());
  CHECK(!fault(2, 64, [&] { exchange(33); }).empty());
}

TEST("emulation: a shuffle alone orders no memory") {
  const std::string said = fault(1, 32, [] {
    SHARED(float, tile, 32);
    tile[threadIdx.x] = 1;
    static_cast<void>(__shfl_xor_sync(kAllLanes, 1.0f, 1));
    static_cast<void>(static_cast<float>(tile[threadIdx.x ^ 1]));
  });
  CHECK(said.find("race") != std::string::npos, said);
}

/** Sums 64 floats that cp.async brings, waiting for all but `pending` groups. */
template <int Pending>
void sum_copied(const float* from, float* to) {
  SHARED(float, tile, 64);
  for (unsigned half = 0; half < 2; ++half) {
    if (threadIdx.x < 8) cp_async(shared_at(tile, half * 32 + threadIdx.x * 4), from + half * 32 + threadIdx.x * 4, 16);
    cp_async_commit();
  }
  cp_async_wait<Pending>();
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < 64; ++i) sum += tile[i];
    *to = sum;
  }
  cp_async_wait<0>();
}

TEST("emulation: a copy lands at its wait; the wrong wait leaves NaN") {
  alignas(16) float from[64];
  for (float& x : from) x = 1;
  float sum = 0;
  CHECK(fault(1, 32, [&] { sum_copied<0>(from, &sum); }).empty());
  CHECK(sum == 64);
  static_cast<void>(fault(1, 32, [&] { sum_copied<1>(from, &sum); }));
  CHECK(std::isnan(sum));
  CHECK(fault(1, 32, [&] {
          SHARED(float, tile, 4);
          if (threadIdx.x == 0) cp_async(shared_at(tile, 0), from, 16);
          cp_async_commit();
        }).find("never waited for") != std::string::npos);
}

TEST("emulation: a barrier that some threads do not reach is divergent") {
  const std::string left = fault(1, 64, [] {
    if (threadIdx.x >= 40) return;
    __syncthreads();
  });
  CHECK(left.find("divergent barrier") != std::string::npos, left);
  const std::string elsewhere = fault(1, 64, [] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  });
  CHECK(elsewhere.find("divergent barrier") != std::string::npos, elsewhere);
}

TEST("emulation: lanes of one warp in different collectives, or missing from one, are found") {
  const std::string mixed = fault(1, 32, [] {
    if (threadIdx.x % 2 == 0) {
      static_cast<void>(__shfl_xor_sync(kAllLanes, 1, 1));
    } else {
      static_cast<void>(__ballot_sync(kAllLanes, 1));
    }
  });
  CHECK(mixed.find("mismatched collectives") != std::string::npos, mixed);
  const std::string missing = fault(1, 32, [] {
    if (threadIdx.x == 7) return;
    static_cast<void>(__shfl_xor_sync(kAllLanes, 1, 1));
  });
  CHECK(missing.find("lanes that never come") != std::string::npos, missing);
  const std::string outside = fault(1, 32, [] { static_cast<void>(__shfl_xor_sync(0x0fu, 1, 1)); });
  CHECK(outside.find("leaves out its own lane") != std::string::npos, outside);
  const std::string half = fault(1, 32, [] {
    if (threadIdx.x < 16) static_cast<void>(__shfl_xor_sync(0xffffu, 1, 16));
  });
  CHECK(half.find("outside its mask") != std::string::npos, half);
}

TEST("emulation: shared memory has bounds, static, dynamic and through pointers") {
  const std::string fixed = fault(1, 32, [] {
    SHARED(float, tile, 31);
    tile[threadIdx.x] = 1;
  });
  CHECK(fixed.find("out of bounds: element 31 of 31") != std::string::npos, fixed);
  const std::string dynamic = fault(1, 32, [] { DYNAMIC_SHARED(float, tile, 16, 32); static_cast<void>(tile); }, 128);
  CHECK(dynamic.find("128 bytes at 16 of 128") != std::string::npos, dynamic);
  alignas(16) const float from[4] = {};
  const std::string copied = fault(1, 32, [&] {
    SHARED(float, tile, 34);
    if (threadIdx.x == 0) cp_async(shared_at(tile, 32), from, 16);
  });
  CHECK(copied.find("out of bounds") != std::string::npos, copied);
}

TEST("emulation: an off-by-one block is seen: a grid one too small leaves NaN, one too large runs past the end") {
  constexpr unsigned kCount = 96;
  const auto doubled = [](unsigned blocks) {
    std::vector<float> from(kCount, 1), to(kCount, NAN);
    const std::string said = fault(blocks, 32, [&] {
      const unsigned i = blockIdx.x * 32 + threadIdx.x;
      if (i >= to.size()) throw std::out_of_range("past the end");  // a vector's bounds stand in for the sanitizer
      to[i] = 2 * from[i];
    });
    return std::pair{said, to};
  };
  CHECK(doubled(3).first.empty() && doubled(3).second.back() == 2);
  CHECK(std::isnan(doubled(2).second.back()));
  CHECK(!doubled(4).first.empty());
}

TEST("emulation: launches that no device runs are refused") {
  CHECK(fault(0, 32, [] {}).find("0 blocks") != std::string::npos);
  CHECK(fault(1, 33, [] {}).find("whole warps") != std::string::npos);
  CHECK(fault(1, 2048, [] {}).find("at most 1024") != std::string::npos);
  CHECK(fault(1, 32, [] {}, 50000).find("49152 at most") != std::string::npos);
}

TEST("emulation: mma.sync and ldmatrix lay their fragments out as PTX says") {
  // 16x16 times 16x8 from shared memory; element by element against a plain product.
  std::vector<std::uint16_t> a(256), b(128);
  for (unsigned i = 0; i < 256; ++i) a[i] = to_bf16(static_cast<float>(i % 13) - 6).bits;
  for (unsigned i = 0; i < 128; ++i) b[i] = to_bf16(static_cast<float>(i % 7) - 3).bits;  // [8 outputs][16]
  std::vector<float> d(128);
  const std::string said = fault(1, 32, [&] {
    SHARED(Bf16, left, 256);
    SHARED(Bf16, right, 256);
    for (unsigned i = threadIdx.x; i < 256; i += 32) left[i] = Bf16{a[i]}, right[i] = Bf16{i < 128 ? b[i] : std::uint16_t{0}};
    __syncthreads();
    const unsigned lane = threadIdx.x;
    std::uint32_t x[4], y[4];
    ldmatrix<false>(x, shared_at(left, lane % 16 * 16 + lane / 16 * 8));
    ldmatrix<false>(y, shared_at(right, (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8));
    float sum[4] = {};
    mma_bf16(sum, x, y);
    for (unsigned i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
  });
  CHECK(said.empty(), said);
  for (unsigned m = 0; m < 16; ++m)
    for (unsigned n = 0; n < 8; ++n) {
      float want = 0;
      for (unsigned k = 0; k < 16; ++k) want += to_float(Bf16{a[m * 16 + k]}) * to_float(Bf16{b[n * 16 + k]});
      CHECK(d[m * 8 + n] == want);
    }
}

}  // namespace
