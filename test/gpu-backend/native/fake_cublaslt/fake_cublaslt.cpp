// A libcublasLt that computes on the host and notes what it was asked: proves the sequence of calls and the layouts where
// there is no GPU. Anything but what its documentation allows for our products is an error status.

#include "fake_cublaslt.h"

#include <bit>
#include <cstring>

#include "ops/cuda/cublaslt_api.h"

using namespace qe::cuda::lt;

struct qe::cuda::lt::HandleOf {};
struct qe::cuda::lt::MatmulDescOf {
  int compute, scale, transposed_a = 0;
};
struct qe::cuda::lt::MatrixLayoutOf {
  int type;
  std::uint64_t rows, columns;
  std::int64_t stride;
};
struct qe::cuda::lt::PreferenceOf {
  std::size_t workspace = 0;
};

namespace {

constexpr Status kFine = 0, kWrong = 7;
constexpr std::uint64_t kMark = 0x51ed'0a16'0c4a'11ed;  // what an algorithm of ours looks like
FakeCublasLt noted{};

float from_bfloat16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

bool fits(const MatmulDescOf* product, const MatrixLayoutOf* a, const MatrixLayoutOf* b, const MatrixLayoutOf* c) {
  return product->compute == kCompute32F && product->scale == kFloat && product->transposed_a == kTransposed &&
         a->type == kBfloat16 && b->type == kBfloat16 && c->type == kFloat && a->rows == b->rows && a->columns == c->rows &&
         b->columns == c->columns && a->stride >= static_cast<std::int64_t>(a->rows) &&
         b->stride >= static_cast<std::int64_t>(b->rows) && c->stride >= static_cast<std::int64_t>(c->rows);
}

}  // namespace

extern "C" {

FakeCublasLt* fake_cublaslt() { return &noted; }

Status cublasLtCreate(Handle* handle) { return ++noted.open, *handle = new HandleOf, kFine; }
Status cublasLtDestroy(Handle handle) { return --noted.open, delete handle, kFine; }
Status cublasLtMatmulDescCreate(MatmulDesc* product, int compute, int scale) {
  return ++noted.open, *product = new MatmulDescOf{compute, scale}, kFine;
}
Status cublasLtMatmulDescSetAttribute(MatmulDesc product, int attribute, const void* value, std::size_t bytes) {
  if (attribute != kTransA || bytes != sizeof(int)) return kWrong;
  std::memcpy(&product->transposed_a, value, bytes);
  return kFine;
}
Status cublasLtMatmulDescDestroy(MatmulDesc product) { return --noted.open, delete product, kFine; }
Status cublasLtMatrixLayoutCreate(MatrixLayout* layout, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t stride) {
  return ++noted.open, *layout = new MatrixLayoutOf{type, rows, columns, stride}, kFine;
}
Status cublasLtMatrixLayoutDestroy(MatrixLayout layout) { return --noted.open, delete layout, kFine; }
Status cublasLtMatmulPreferenceCreate(Preference* preference) { return ++noted.open, *preference = new PreferenceOf, kFine; }
Status cublasLtMatmulPreferenceSetAttribute(Preference preference, int attribute, const void* value, std::size_t bytes) {
  if (attribute != kWorkspaceMax || bytes != sizeof(std::size_t)) return kWrong;
  std::memcpy(&preference->workspace, value, bytes);
  return kFine;
}
Status cublasLtMatmulPreferenceDestroy(Preference preference) { return --noted.open, delete preference, kFine; }

Status cublasLtMatmulAlgoGetHeuristic(Handle, MatmulDesc product, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d,
                                      Preference preference, int wanted, Heuristic* results, int* found) {
  *found = 0;
  if (wanted < 1 || c != d || preference->workspace == 0 || !fits(product, a, b, d)) return kWrong;
  if (noted.refuses) return 15;  // CUBLAS_STATUS_NOT_SUPPORTED
  ++noted.heuristics;
  results[0] = {};
  results[0].algorithm.data[0] = kMark ^ b->columns;
  results[0].workspace = preference->workspace;
  *found = 1;
  return kFine;
}

Status cublasLtMatmul(Handle, MatmulDesc product, const void* alpha, const void* a, MatrixLayout a_layout, const void* b,
                      MatrixLayout b_layout, const void* beta, const void* c, MatrixLayout c_layout, void* d, MatrixLayout d_layout,
                      const Algorithm* algorithm, void* workspace, std::size_t workspace_bytes, CUstream_st* stream) {
  if (!fits(product, a_layout, b_layout, d_layout) || c != d || c_layout != d_layout || stream == nullptr) return kWrong;
  if (algorithm->data[0] != (kMark ^ b_layout->columns)) return kWrong;
  std::memset(workspace, 0xee, workspace_bytes);  // all of it may be written
  float by = 0, keep = 0;
  std::memcpy(&by, alpha, sizeof by), std::memcpy(&keep, beta, sizeof keep);
  const auto* weight = static_cast<const std::uint16_t*>(a);
  const auto* x = static_cast<const std::uint16_t*>(b);
  auto* y = static_cast<float*>(d);
  const auto at = [](const MatrixLayoutOf* layout, std::uint64_t row, std::uint64_t column) {
    return column * static_cast<std::uint64_t>(layout->stride) + row;
  };
  for (std::uint64_t row = 0; row < d_layout->columns; ++row)
    for (std::uint64_t out = 0; out < d_layout->rows; ++out) {
      float sum = 0;
      for (std::uint64_t k = 0; k < a_layout->rows; ++k)
        sum += from_bfloat16(weight[at(a_layout, k, out)]) * from_bfloat16(x[at(b_layout, k, row)]);
      float& to = y[at(d_layout, out, row)];
      to = by * sum + (keep == 0 ? 0 : keep * to);  // as BLAS: with beta 0 what was there is not read
    }
  ++noted.products;
  return kFine;
}
}
