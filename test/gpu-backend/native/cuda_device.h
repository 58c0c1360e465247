#pragma once

// What the tests of CUDA kernels share: arrays on the device (emulated or real), numbers, bf16, and a tolerance.

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "ops/cuda/driver.h"

namespace device {

using namespace qe::cuda;
using Floats = std::vector<float>;

inline Stream stream() {
  static Stream one = create_stream();
  return one;
}

/** An array of exactly this length on the device. */
template <class T>
class Array {
 public:
  explicit Array(std::size_t count) : count_(count), memory_(static_cast<T*>(allocate_device(count * sizeof(T)))) {}
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    copy_to_device(stream(), memory_, values.data(), count_ * sizeof(T));
    synchronize(stream());
  }
  ~Array() { free_device(memory_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  operator T*() const { return memory_; }  // NOLINT: stands for its address
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> values(count_);
    copy_to_host(stream(), values.data(), memory_, count_ * sizeof(T));
    synchronize(stream());
    return values;
  }

 private:
  std::size_t count_;
  T* memory_;
};

inline Floats noise(std::size_t count, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  Floats values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

inline std::uint16_t to_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float rounded(float value) { return std::bit_cast<float>(std::uint32_t{to_bits(value)} << 16); }
inline Floats rounded(Floats values) {
  for (float& value : values) value = rounded(value);
  return values;
}
inline std::vector<std::uint16_t> bits_of(const Floats& values) {
  std::vector<std::uint16_t> bits;
  for (const float value : values) bits.push_back(to_bits(value));
  return bits;
}

inline void check_near(const Floats& got, const std::vector<double>& want, double tolerance, const std::string& where) {
  double worst = 0, norm = 0;
  bool whole = got.size() == want.size();
  for (std::size_t i = 0; i < got.size() && whole; ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    whole = !std::isnan(error);
    worst = std::max(worst, error);
    norm = std::max(norm, std::abs(want[i]));
  }
  CHECK(whole && worst <= tolerance * std::max(norm, 1e-30), where + qe::concat(": error ", worst, " of ", norm, whole ? "" : " (NaN)"));
}

inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace device
