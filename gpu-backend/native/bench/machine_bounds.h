#pragma once

// What this device can do at best, measured: copies on it and to it, and large products of bf16 matrices.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/random_model.h"
#include "ops/cuda/cublaslt.h"
#include "ops/cuda/kernels.h"

namespace qe::bench {

struct MachineBounds {
  double device_bytes;  // a second, read and written, of a copy on the device
  double host_bytes;    // a second, from page-locked memory of the host
  double flops;         // a second, of a product of square bf16 matrices
  std::string product;  // whose product that was
};

class MachineMeter {
 public:
  /** @param small for an emulated device, whose figures say nothing */
  explicit MachineMeter(bool small) : bytes_(std::size_t{1} << (small ? 16 : 30)), side_(small ? 64 : 8192) {}
  ~MachineMeter() { cuda::destroy_stream(stream_); }
  MachineMeter(const MachineMeter&) = delete;
  MachineMeter& operator=(const MachineMeter&) = delete;

  MachineBounds measure() {
    std::byte* pinned = pinned_.get();
    for (std::size_t i = 0; i < bytes_ / 2; ++i)  // never zero: a chip that moves zeros runs faster
      reinterpret_cast<std::uint16_t*>(pinned)[i] = static_cast<std::uint16_t>(0x3c00 + i * 40503 % 0x300);
    for (std::byte* part : {a_.get(), b_.get()}) cuda::copy_to_device(stream_, part, pinned, bytes_);
    const auto bytes = static_cast<double>(bytes_);
    MachineBounds bounds{};
    bounds.host_bytes = bytes / seconds([this] { cuda::copy_to_device(stream_, a_.get(), pinned_.get(), bytes_); });
    bounds.device_bytes = 2 * bytes / seconds([this] { cuda::copy_on_device(stream_, b_.get(), a_.get(), bytes_); });
    const auto library = cuda::CublasLt::open(cuda::gemm_library());
    bounds.product = library != nullptr ? "cuBLASLt" : "our gemm";
    const auto* x = reinterpret_cast<const cuda::Bf16*>(a_.get());
    const auto* w = reinterpret_cast<const cuda::Bf16*>(b_.get());
    auto* y = reinterpret_cast<float*>(b_.get() + side_ * side_ * 2);
    const double each = seconds([&] {
      if (library != nullptr && library->matmul(stream_, x, side_, side_, w, side_, y, side_, false)) return;
      cuda::gemm(stream_, x, side_, side_, {{{w, nullptr, y, static_cast<std::uint32_t>(side_), false}}, 1});
    });
    bounds.flops = 2 * static_cast<double>(side_ * side_ * side_) / each;
    return bounds;
  }

 private:
  using Memory = std::unique_ptr<std::byte[], void (*)(void*) noexcept>;
  static Memory on_device(std::size_t bytes) {
    return {static_cast<std::byte*>(cuda::allocate_device(bytes)), cuda::free_device};
  }

  /** Of one run of the work among several, after a first one. */
  template <class Work>
  double seconds(Work work) {
    constexpr int kRounds = 10;
    const auto all = [](void* argument) {
      for (int i = 0; i < kRounds; ++i) (*static_cast<Work*>(argument))();
    };
    work();
    cuda::synchronize(stream_);
    return cuda::measure_ms(stream_, all, &work) / 1e3 / kRounds;
  }

  std::size_t bytes_, side_;
  cuda::Stream stream_ = cuda::create_stream();
  Memory a_ = on_device(bytes_), b_ = on_device(bytes_);
  Memory pinned_{static_cast<std::byte*>(cuda::allocate_pinned(bytes_)), cuda::free_pinned};
};

}  // namespace qe::bench
