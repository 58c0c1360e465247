#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace qe::cpu {

/** Scratch memory on a cache line's edge that grows and keeps nothing when it does. */
class AlignedBuffer {
 public:
  std::byte* bytes(std::size_t count) {
    if (count > size_) {
      memory_.reset(static_cast<std::byte*>(::operator new(count, kLine)));
      size_ = count;
    }
    return memory_.get();
  }
  float* floats(std::size_t count) { return reinterpret_cast<float*>(bytes(count * sizeof(float))); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kLine); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t size_ = 0;
};

}  // namespace qe::cpu
