#pragma once

// Shared memory of an emulated block: every array has bounds, starts as NaN, and knows who touched which element when.
//
// Two accesses of one element race when one of them writes, different threads made them, and no __syncthreads() lies
// between them; inside a warp a __syncwarp() is enough. (Shuffles order no memory.) Reading what nobody wrote is a fault.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace qe::emulation {

/** A thread's place in time: which barriers lie behind it. */
struct Clock {
  std::uint32_t thread, warp, block_epoch, warp_epoch;
};

/** Who touched one element last. */
struct Shadow {
  static constexpr std::uint32_t kNobody = 0xffffffff, kManyOfWarp = 0xfffffffe, kMany = 0xfffffffd,
                                 kAtomic = 0xfffffffc;
  Clock writer{kNobody, 0, 0, 0};
  Clock reader{kNobody, 0, 0, 0};
};

/** One shared array of the block that runs. */
struct SharedMemory {
  SharedMemory(const void* tag, std::size_t bytes, std::size_t element);
  /** A new block begins: rubbish everywhere, touched by nobody. */
  void reset();
  /** Notes an access of [from, from + bytes); throws Fault for one outside, a race, or a read of nothing. */
  void touch(std::size_t from, std::size_t bytes, bool write);
  /** The same for an atomic of one element, which races with everything but other atomics. */
  void touch_atomic(std::size_t index);

  const void* tag;
  std::size_t bytes, element;
  std::unique_ptr<std::byte[]> data;  // its own allocation, so that AddressSanitizer fences raw pointers too
  std::vector<Shadow> shadow;         // per element
};

/** The array of that tag in the block that runs, made on first use. */
SharedMemory& shared_memory(const void* tag, std::size_t bytes, std::size_t element);
/** A part of the launch's dynamic shared memory. */
SharedMemory& dynamic_shared_memory(std::size_t offset, std::size_t bytes, std::size_t element);
/** The array that holds this address; throws Fault when none does. */
SharedMemory& shared_memory_at(const void* address);

/** Notes an access through a raw pointer (cp.async, ldmatrix). */
inline void touch_shared(const void* address, std::size_t bytes, bool write) {
  SharedMemory& memory = shared_memory_at(address);
  memory.touch(static_cast<std::size_t>(static_cast<const std::byte*>(address) - memory.data.get()), bytes, write);
}

/** What indexing a shared array gives: reading and writing it are noted. */
template <class T>
class SharedElement {
 public:
  SharedElement(SharedMemory& memory, std::size_t index) : memory_(memory), index_(index) {}
  operator T() const {  // NOLINT: stands for the element
    memory_.touch(index_ * sizeof(T), sizeof(T), false);
    T value;
    std::memcpy(&value, memory_.data.get() + index_ * sizeof(T), sizeof(T));
    return value;
  }
  const SharedElement& operator=(const T& value) const {
    memory_.touch(index_ * sizeof(T), sizeof(T), true);
    std::memcpy(memory_.data.get() + index_ * sizeof(T), &value, sizeof(T));
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const { return *this = static_cast<T>(other); }
  const SharedElement& operator+=(const T& value) const { return *this = static_cast<T>(*this) + value; }

 private:
  SharedMemory& memory_;
  std::size_t index_;
};

template <class T>
class SharedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit SharedArray(SharedMemory& memory) : memory_(&memory) {}
  template <class Index>
  SharedElement<T> operator[](Index index) const {
    return {*memory_, static_cast<std::size_t>(index)};
  }
  /** A raw pointer to an element that exists. */
  template <class Index>
  T* at(Index index) const {
    check(static_cast<std::size_t>(index));
    return reinterpret_cast<T*>(memory_->data.get()) + static_cast<std::size_t>(index);
  }

  [[nodiscard]] SharedMemory& memory() const { return *memory_; }

 private:
  void check(std::size_t index) const;
  SharedMemory* memory_;
};

template <class T>
T atomic_add(const SharedArray<T>& array, std::size_t index, T value) {
  T* const at = array.at(index);
  array.memory().touch_atomic(index);
  return std::exchange(*at, *at + value);
}

[[noreturn]] void shared_index_fault(std::size_t index, std::size_t count);

template <class T>
void SharedArray<T>::check(std::size_t index) const {
  if (index >= memory_->bytes / sizeof(T)) shared_index_fault(index, memory_->bytes / sizeof(T));
}

}  // namespace qe::emulation
