#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "ops/cuda/cublaslt_api.h"
#include "ops/cuda/driver.h"

namespace qe::cuda {

struct Bf16;

/**
 * Large products by NVIDIA's library, opened at run time. What it takes for a shape (its heuristic's first choice) is kept
 * per shape; one workspace serves all, since all calls run on one stream.
 */
class CublasLt {
 public:
  /** Null when the library cannot be opened or lacks a function. */
  static std::unique_ptr<CublasLt> open(const std::string& library);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  /** y = x W^T, or added to y; @returns false, having done nothing, where the library has no way for this shape.
      x: [rows][in]; weight: [out][in]; y: [rows][stride] */
  bool matmul(Stream stream, const Bf16* x, std::size_t rows, std::size_t in, const Bf16* weight, std::size_t out, float* y,
              std::size_t stride, bool add);

 private:
  struct Plan {
    lt::MatrixLayout weight = nullptr, x = nullptr, y = nullptr;
    lt::Algorithm algorithm{};
    bool possible = false;
  };
  using Shape = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t>;  // rows, in, out, stride

  explicit CublasLt(const lt::Functions& functions);
  const Plan& plan_of(const Shape& shape);
  void forget_plans();

  lt::Functions call_;
  lt::Handle handle_ = nullptr;
  lt::MatmulDesc product_ = nullptr;
  lt::Preference preference_ = nullptr;
  std::shared_ptr<void> workspace_;
  std::map<Shape, Plan> plans_;
};

}  // namespace qe::cuda
