#pragma once

// What we use of cuBLASLt's C interface (NVIDIA cuBLAS documentation, "Using the cuBLASLt API"), declared by ourselves so
// that the library is no dependency of the build. cublaslt_check.cpp compares it with the real header where there is one.

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace qe::cuda::lt {

using Handle = struct HandleOf*;
using MatmulDesc = struct MatmulDescOf*;
using MatrixLayout = struct MatrixLayoutOf*;
using Preference = struct PreferenceOf*;
using Status = int;  // 0: success

inline constexpr int kCompute32F = 68;           // CUBLAS_COMPUTE_32F
inline constexpr int kFloat = 0, kBfloat16 = 14;  // CUDA_R_32F, CUDA_R_16BF
inline constexpr int kTransposed = 1;            // CUBLAS_OP_T
inline constexpr int kTransA = 3;                // CUBLASLT_MATMUL_DESC_TRANSA
inline constexpr int kWorkspaceMax = 1;          // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES

struct Algorithm {
  std::uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  std::size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};

/** The library's functions, by the names it exports. Matrices are column major. */
struct Functions {
  Status (*cublasLtCreate)(Handle*);
  Status (*cublasLtDestroy)(Handle);
  Status (*cublasLtMatmulDescCreate)(MatmulDesc*, int compute, int scale_type);
  Status (*cublasLtMatmulDescSetAttribute)(MatmulDesc, int attribute, const void* value, std::size_t bytes);
  Status (*cublasLtMatmulDescDestroy)(MatmulDesc);
  Status (*cublasLtMatrixLayoutCreate)(MatrixLayout*, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t stride);
  Status (*cublasLtMatrixLayoutDestroy)(MatrixLayout);
  Status (*cublasLtMatmulPreferenceCreate)(Preference*);
  Status (*cublasLtMatmulPreferenceSetAttribute)(Preference, int attribute, const void* value, std::size_t bytes);
  Status (*cublasLtMatmulPreferenceDestroy)(Preference);
  Status (*cublasLtMatmulAlgoGetHeuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d,
                                           Preference, int wanted, Heuristic* results, int* found);
  Status (*cublasLtMatmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout, const void* b, MatrixLayout,
                           const void* beta, const void* c, MatrixLayout, void* d, MatrixLayout, const Algorithm*,
                           void* workspace, std::size_t workspace_bytes, CUstream_st*);
};

}  // namespace qe::cuda::lt
