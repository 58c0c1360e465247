#include "ops/cuda/cublaslt.h"

#include <dlfcn.h>

#include "base/error.h"

namespace qe::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr std::size_t kPlansMax = 4096;

void check(lt::Status status, const char* what) {
  if (status != 0) throw Error(ErrorCode::device, concat("cuBLASLt: ", what, ": status ", status));
}

/** The library stays open as long as the process lives. */
std::optional<lt::Functions> load(const std::string& library) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return std::nullopt;
  lt::Functions all{};
  bool whole = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    whole = whole && function != nullptr;
  };
#define QE_FIND(name) find(all.name, #name)
  QE_FIND(cublasLtCreate);
  QE_FIND(cublasLtDestroy);
  QE_FIND(cublasLtMatmulDescCreate);
  QE_FIND(cublasLtMatmulDescSetAttribute);
  QE_FIND(cublasLtMatmulDescDestroy);
  QE_FIND(cublasLtMatrixLayoutCreate);
  QE_FIND(cublasLtMatrixLayoutDestroy);
  QE_FIND(cublasLtMatmulPreferenceCreate);
  QE_FIND(cublasLtMatmulPreferenceSetAttribute);
  QE_FIND(cublasLtMatmulPreferenceDestroy);
  QE_FIND(cublasLtMatmulAlgoGetHeuristic);
  QE_FIND(cublasLtMatmul);
#undef QE_FIND
  return whole ? std::optional(all) : std::nullopt;
}

}  // namespace

std::unique_ptr<CublasLt> CublasLt::open(const std::string& library) {
  const auto functions = load(library);
  if (!functions) return nullptr;
  return std::unique_ptr<CublasLt>(new CublasLt(*functions));
}

CublasLt::CublasLt(const lt::Functions& functions)
    : call_(functions), workspace_(allocate_device(kWorkspaceBytes), free_device) {
  check(call_.cublasLtCreate(&handle_), "opening");
  check(call_.cublasLtMatmulDescCreate(&product_, lt::kCompute32F, lt::kFloat), "a product");
  // Column major: weight is [in x out], x [in x rows], y [out x rows], so y = weight^T x.
  check(call_.cublasLtMatmulDescSetAttribute(product_, lt::kTransA, &lt::kTransposed, sizeof lt::kTransposed), "a transpose");
  check(call_.cublasLtMatmulPreferenceCreate(&preference_), "a preference");
  check(call_.cublasLtMatmulPreferenceSetAttribute(preference_, lt::kWorkspaceMax, &kWorkspaceBytes, sizeof kWorkspaceBytes),
        "a workspace");
}

CublasLt::~CublasLt() {
  forget_plans();
  call_.cublasLtMatmulPreferenceDestroy(preference_);
  call_.cublasLtMatmulDescDestroy(product_);
  call_.cublasLtDestroy(handle_);
}

void CublasLt::forget_plans() {
  for (const auto& [shape, plan] : plans_)
    for (const lt::MatrixLayout layout : {plan.weight, plan.x, plan.y}) call_.cublasLtMatrixLayoutDestroy(layout);
  plans_.clear();
}

const CublasLt::Plan& CublasLt::plan_of(const Shape& shape) {
  if (const auto known = plans_.find(shape); known != plans_.end()) return known->second;
  if (plans_.size() == kPlansMax) forget_plans();
  const auto [rows, in, out, stride] = shape;
  const auto wide = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  Plan plan;
  check(call_.cublasLtMatrixLayoutCreate(&plan.weight, lt::kBfloat16, in, out, wide(in)), "a layout");
  check(call_.cublasLtMatrixLayoutCreate(&plan.x, lt::kBfloat16, in, rows, wide(in)), "a layout");
  check(call_.cublasLtMatrixLayoutCreate(&plan.y, lt::kFloat, out, rows, wide(stride)), "a layout");
  lt::Heuristic best{};
  int found = 0;
  const lt::Status status = call_.cublasLtMatmulAlgoGetHeuristic(handle_, product_, plan.weight, plan.x, plan.y, plan.y,
                                                                 preference_, 1, &best, &found);
  plan.possible = status == 0 && found > 0 && best.state == 0;
  plan.algorithm = best.algorithm;
  return plans_.emplace(shape, plan).first->second;
}

bool CublasLt::matmul(Stream stream, const Bf16* x, std::size_t rows, std::size_t in, const Bf16* weight, std::size_t out,
                      float* y, std::size_t stride, bool add) {
  const Plan plan = plan_of({rows, in, out, stride});
  if (!plan.possible) return false;
  enqueue(stream, [this, plan, stream, x, weight, y, add] {
    const float one = 1, beta = add ? 1.0f : 0.0f;
    check(call_.cublasLtMatmul(handle_, product_, &one, weight, plan.weight, x, plan.x, &beta, y, plan.y, y, plan.y,
                               &plan.algorithm, workspace_.get(), kWorkspaceBytes, stream),
          "a product");
  });
  return true;
}

}  // namespace qe::cuda
