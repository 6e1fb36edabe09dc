/* What a row of kernels.def is. */
#ifndef MOI_CUDA_KERNEL_H
#define MOI_CUDA_KERNEL_H

#include <moiety.h>

#include "cuda/args.h"

/* In a GEMM row's flags: its kernels take moi_cu_gemm_pair, and there is <image>_combine, which takes moi_cu_down_args. */
#define MOI_CU_ROW_PAIRS 0x1000u
/* Its products are cuBLAS's: there is no image. */
#define MOI_CU_ROW_CUBLAS 0x2000u

/* Its tensor cores multiply by scales that are exponents: x has an act_quant whose scales are powers of two. Its image holds
 * code for the compute capability that it needs, and for no newer one. */
#define MOI_CU_ROW_MX 0x4000u

typedef struct moi_cu_kernel {
  const char *name;
  moi_op op;         /* ROUTE, GEMM, ATTENTION */
  moi_format format; /* NONE: every format */
  uint32_t needs;    /* compute capability: 75, 80, ... */
  uint32_t m_max;    /* rows of an expert (query rows of a KV head) up to which it is meant; 0: no bound */
  uint32_t m_tile;   /* rows of a work item */
  uint32_t n_tile;   /* columns of a block */
  uint32_t threads;  /* of a block */
  uint32_t flags;    /* MOI_DETERMINISTIC | MOI_BATCH_INVARIANT | MOI_ROW_FALLBACK */
  const char *image; /* as moi_cu_function_get names it; null with ROW_CUBLAS */
  moi_cu_form form;  /* of the activations that a GEMM row takes. DIGITS*: kernels called <image>_one take a single one */
  uint32_t shared, shared_digit; /* bytes that a launch asks for, and those for each digit */
} moi_cu_kernel;

extern const moi_cu_kernel moi_cu_kernels[];
extern const uint32_t moi_cu_kernel_count;

#endif
