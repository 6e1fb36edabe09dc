/* Dense products by NVIDIA's cuBLAS, in declarations of our own: it is looked for at run time, when a row of it is asked for
 * or about, and never linked. The current context is the one that it works in. */
#ifndef MOI_CUDA_CUBLAS_H
#define MOI_CUDA_CUBLAS_H

#include "cuda/cuda.h"

/* NULL if it is here, else what a row needs and has not, as a noun. */
const char *moi_cublas_missing(void);

/* What it may use of a workspace while it multiplies, by NVIDIA's advice for the device; MOI_CUBLAS_ALIGN more, so that it can
 * begin where cuBLAS wants. */
enum { MOI_CUBLAS_ALIGN = 256 };
size_t moi_cublas_room(uint32_t sm);

/* A context has one handle, made for the first plan that asks, and a lock for it: a thread that enqueues a product has it for
 * those calls, and others wait. The stream and the workspace are set each time. */
moi_status moi_cublas_open(const char *function, moi_context *context);
void moi_cublas_close(moi_context *context);
/* Makes the handle if there is none. */
moi_status moi_cublas_start(const char *function, const moi_context *context);

/* y[r, 0..n-1] = x[r] W^T for rows 0..n_rows-1: fp32 sums, without TF32 and sums of fewer bits. x: of the form that the row takes,
 * without its scales; one digit after the other is added up. room: moi_cublas_room's bytes, at any address. */
typedef struct moi_cublas_product {
  const moi_cu_kernel *row;
  const void *x, *w;
  float *y;
  void *room;
  uint32_t n_rows, n, k, ldx, ldy, n_digits; /* ldx as in moi_cu_gemm_args */
} moi_cublas_product;
void moi_cublas_run(moi_cu_run *r, const moi_cublas_product *product);

#endif
