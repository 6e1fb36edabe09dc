#include "cuda/kernel.h"

#include "core/choose.h"
#include "cuda/args.h"
#include "cuda_formats.h" /* generated: MOI_CU_EVERY_FORMAT(X, ...) is X(NAME, "name", ...) for each format, _BUT_F32,
                           * _ALONG_K and _OF_BLOCKS for some */

#define STEADY (MOI_DETERMINISTIC | MOI_BATCH_INVARIANT)
#define FALLBACK MOI_ROW_FALLBACK
#define PAIRS MOI_CU_ROW_PAIRS
#define MX MOI_CU_ROW_MX

const moi_cu_kernel moi_cu_kernels[] = {
#define GEMM_ROW(FORMAT, format, name, needs, m_max, m_tile, n_tile, threads, flags, image, ...)                       \
  {format "-" name, MOI_OP_GEMM, MOI_FORMAT_##FORMAT, needs, m_max, m_tile, n_tile, threads, flags, image "_" format,  \
   __VA_ARGS__},
#define GEMM(name, ...) MOI_CU_EVERY_FORMAT(GEMM_ROW, name, __VA_ARGS__, MOI_CU_FLOATS, 0, 0)
#define GEMM_ALONG_K(name, ...) MOI_CU_EVERY_FORMAT_ALONG_K(GEMM_ROW, name, __VA_ARGS__, MOI_CU_FLOATS, 0, 0)
#define GEMM_DIGITS(name, ...) MOI_CU_EVERY_FORMAT_BUT_F32(GEMM_ROW, name, __VA_ARGS__)
#define GEMM_FP8(name, ...) GEMM_ROW(FP8, "fp8", name, __VA_ARGS__) GEMM_ROW(FP8_B128, "fp8_b128", name, __VA_ARGS__)
#define GEMM_MX(name, ...)                                                                                             \
  GEMM_ROW(MXFP4, "mxfp4", name, __VA_ARGS__) GEMM_ROW(MXFP4_GGUF, "mxfp4_gguf", name, __VA_ARGS__)
#define GEMM_INT8(name, ...) MOI_CU_EVERY_FORMAT_OF_BLOCKS(GEMM_ROW, name, __VA_ARGS__)
#define CUBLAS_ROW(FORMAT, format, name, needs, flags, form)                                                           \
  {format "-" name, MOI_OP_GEMM, MOI_FORMAT_##FORMAT, needs, 0, 128, 128, 0, (flags) | MOI_CU_ROW_CUBLAS, NULL, form, 0, 0},
#define GEMM_CUBLAS(name, flags)                                                                                       \
  CUBLAS_ROW(F32, "f32", name, 75, flags, MOI_CU_FLOATS)                                                               \
  CUBLAS_ROW(F16, "f16", name, 75, flags, MOI_CU_DIGITS_F16)                                                           \
  CUBLAS_ROW(BF16, "bf16", name, 80, flags, MOI_CU_DIGITS)                                                             \
  CUBLAS_ROW(BF16_KN, "bf16_kn", name, 80, flags, MOI_CU_DIGITS)
#define ROUTE(name, needs, threads, flags, image)                                                                      \
  {name, MOI_OP_ROUTE, MOI_FORMAT_NONE, needs, 0, 0, 0, threads, flags, image, MOI_CU_FLOATS, 0, 0},
#define ATTENTION(name, needs, m_max, m_tile, n_tile, threads, flags, image)                                           \
  {name, MOI_OP_ATTENTION, MOI_FORMAT_NONE, needs, m_max, m_tile, n_tile, threads, flags, image, MOI_CU_FLOATS, 0, 0},
#include "cuda/kernels.def"
};
const uint32_t moi_cu_kernel_count = sizeof moi_cu_kernels / sizeof moi_cu_kernels[0];
