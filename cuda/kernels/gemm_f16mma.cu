/* gemm_mma.cu with f16 digits and codes: for Turing's tensor cores, which know no bf16, and for f16 activations. */
#define MOI_F16 1
#include "cuda/kernels/gemm_mma.cu"
