/* What the kernels of byte tiles on tensor cores share, gemm_fp8mma.cu and gemm_mxmma.cu: rows of x that act_quant has left as
 * E4M3, and lines of W, both 128 bytes of a chunk of k a stage. A thread brings a segment of each fourth of both. */
#ifndef MOI_CUDA_KERNELS_GEMM_E4M3_H
#define MOI_CUDA_KERNELS_GEMM_E4M3_H

#include "cuda/device/copy.h"
#include "cuda/kernels/codes.h"
#define MOI_ROW_SCALE(a, slot) 1.0f
#include "cuda/kernels/gemm_mma.h"

#define THREADS 256
#define CHUNK 128u
#define LINES 128u
#define PLANE MOI_CU_E4M3_STAGE

/* Where 16 bytes of k lie in a plane of rows of 128 bytes: eight rows of one segment are in all banks. */
MOI_DEVICE unsigned at(unsigned row, unsigned segment) { return row * 128u + ((segment ^ (row & 7u)) << 4); }

/* Rows of x that a thread copies, in units of 16 bytes, its segment included; or NO_ROW. */
#define NO_ROW 0xffffffffu
MOI_DEVICE void rows_of_x(const moi_cu_gemm_args *a, const moi_cu_item *item, unsigned *rows) {
  unsigned thread = moi_thread(), units = MOI_CU_UP128(a->ldx) / 16u;
  MOI_UNROLL
  for (unsigned r = 0; r < 4u; r++) {
    unsigned row = (thread >> 3) + 32u * r;
    rows[r] = NO_ROW;
    if (row < item->rows) rows[r] = moi_slot_of(a, item->first + row) / a->x_div * units + (thread & 7u);
  }
}
MOI_DEVICE void copy_x(const moi_cu_gemm_args *a, const unsigned *rows, unsigned chunk, unsigned char *x) {
  unsigned segment = moi_thread() & 7u, line = moi_thread() >> 3;
  MOI_UNROLL
  for (unsigned i = 0; i < 4u; i++)
    moi_copy16_async(x + at(line, segment) + i * 4096u,
                     (const moi_u4 *)(const void *)a->x + (rows[i] == NO_ROW ? 0u : rows[i] + chunk * 8u),
                     rows[i] == NO_ROW ? 0 : 16);
}

/* The row of W that a line is; *gate: whose. */
MOI_DEVICE unsigned row_of_line(const moi_cu_gemm_args *a, int two, unsigned j0, unsigned line, int *gate) {
  *gate = two && line & 8u;
  unsigned column = j0 + (two ? (line >> 4) * 8u + (line & 7u) : line);
  if (column >= a->n) column = a->n - 1u;
  return *gate ? column * a->gate.row_mul + a->gate.row_add : column * a->up.row_mul + a->up.row_add;
}

#endif
