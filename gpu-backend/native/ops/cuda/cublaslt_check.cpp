// Our declarations of cuBLASLt against NVIDIA's, wherever a CUDA toolkit brings the header; elsewhere nothing.

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#include <type_traits>

#include "ops/cuda/cublaslt_api.h"

namespace qe::cuda::lt {

static_assert(kCompute32F == CUBLAS_COMPUTE_32F && kFloat == CUDA_R_32F && kBfloat16 == CUDA_R_16BF);
static_assert(kTransposed == CUBLAS_OP_T && kTransA == CUBLASLT_MATMUL_DESC_TRANSA);
static_assert(kWorkspaceMax == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && CUBLAS_STATUS_SUCCESS == 0);
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t) && sizeof(Heuristic) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(Heuristic, workspace) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(Heuristic, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(sizeof(Status) == sizeof(cublasStatus_t) && sizeof(int) == sizeof(cublasComputeType_t));
static_assert(sizeof(int) == sizeof(cudaDataType_t) && sizeof(int) == sizeof(cublasLtMatmulDescAttributes_t));

/** Equal as far as a call is concerned: enums pass as int, opaque handles and structs as pointers. */
template <class Ours, class Theirs>
constexpr bool kPassesAlike = std::is_same_v<Ours, Theirs> || (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>) ||
                              (std::is_enum_v<Theirs> && sizeof(Ours) == sizeof(Theirs)) ||
                              (std::is_integral_v<Ours> && std::is_integral_v<Theirs> && sizeof(Ours) == sizeof(Theirs));
template <class Ours, class Theirs>
constexpr bool kAlike = false;
template <class Result, class... Ours, class Status, class... Theirs>
  requires(sizeof...(Ours) == sizeof...(Theirs))
constexpr bool kAlike<Result (*)(Ours...), Status (*)(Theirs...)> = (kPassesAlike<Ours, Theirs> && ...);

#define QE_ALIKE(name) static_assert(kAlike<decltype(Functions::name), decltype(&::name)>)
QE_ALIKE(cublasLtCreate);
QE_ALIKE(cublasLtDestroy);
QE_ALIKE(cublasLtMatmulDescCreate);
QE_ALIKE(cublasLtMatmulDescSetAttribute);
QE_ALIKE(cublasLtMatmulDescDestroy);
QE_ALIKE(cublasLtMatrixLayoutCreate);
QE_ALIKE(cublasLtMatrixLayoutDestroy);
QE_ALIKE(cublasLtMatmulPreferenceCreate);
QE_ALIKE(cublasLtMatmulPreferenceSetAttribute);
QE_ALIKE(cublasLtMatmulPreferenceDestroy);
QE_ALIKE(cublasLtMatmulAlgoGetHeuristic);
QE_ALIKE(cublasLtMatmul);

}  // namespace qe::cuda::lt
#endif
