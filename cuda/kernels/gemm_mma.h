/* What the GEMMs on tensor cores share: blocks of 8 warps, 2 by rows, in tiles of 16 that alternate between them, 4 by
 * lines, 32 each: 128 columns, or by eights 64 of up and of gate; and what becomes of their sums. A file may define others:
 *
 *   MOI_WARPS_M, MOI_WARP_M(warp), MOI_WARP_N(warp)   warps by rows; which of them, and of those by lines, a warp is
 *   MOI_ROW_SCALE(a, slot)   what a slot's sums are multiplied by, defined by a file before it includes this one */
#ifndef MOI_CUDA_GEMM_MMA_H
#define MOI_CUDA_GEMM_MMA_H

#include "cuda/kernels/gemm.h"

#ifndef MOI_WARPS_M
#define MOI_WARPS_M 2
#define MOI_WARP_M(warp) ((warp) & 1u)
#define MOI_WARP_N(warp) ((warp) >> 1)
#endif

#define OUT_PITCH 40u /* floats; 8 warps' 16 rows are 20 KB, less than any row's stages */

/* Columns j and j + 1 of a slot's row; j is even. */
MOI_DEVICE void put_pair(const moi_cu_gemm_args *a, const int gate_up, const moi_streams *su, const moi_streams *sg,
                         unsigned slot, unsigned j, const float *u, const float *g) {
  unsigned end = moi_columns_of(a, gate_up);
  uint64_t row = (uint64_t)slot * a->ldy;
  if (j + 1u >= end || (row & 1u)) {
    moi_finish(a, gate_up, su, sg, slot, j, u[0], g[0]);
    moi_finish(a, gate_up, su, sg, slot, j + 1u, u[1], g[1]);
    return;
  }
  moi_f2 v;
  v.x = j < a->n ? moi_result(a, gate_up, su, sg, slot, j, u[0], g[0]) : 0.0f;
  v.y = j + 1u < a->n ? moi_result(a, gate_up, su, sg, slot, j + 1u, u[1], g[1]) : 0.0f;
  if (!gate_up || !a->y_digits) {
    *(moi_f2 *)(void *)(a->y + row + j) = v;
    return;
  }
  uint16_t *to = (uint16_t *)(void *)(a->y + row) + j;
  unsigned high = moi_bf16x2(v.x, v.y);
  *(unsigned *)(void *)to = high;
  if (a->y_digits > 1u)
    *(unsigned *)(void *)(to + a->ldy) = moi_bf16x2(v.x - moi_bf16_low_f32(high), v.y - moi_bf16_high_f32(high));
}

/* A warp's sums to y, 16 rows at a time through its part of shared memory: once behind all products, so that the text of
 * the activations is there once, and lanes side by side write columns side by side. */
MOI_DEVICE void finish(const moi_cu_gemm_args *a, const int gate_up, unsigned i, int two, unsigned j0, float *shared,
                       float *acc) {
  unsigned n_rows; /* read again, as what follows: no register holds it through the products */
  moi_item_count(a, &n_rows);
  moi_cu_item item = moi_item_at(a, i, n_rows);
  unsigned thread = moi_fresh(moi_thread()), warp = thread >> 5, lane = thread & 31u;
  unsigned wm = MOI_WARP_M(warp), line0 = MOI_WARP_N(warp) * 32u;
  moi_streams su = moi_streams_of(&a->up, item.expert, a->bias_type), sg = su;
  if (two) sg = moi_streams_of(&a->gate, item.expert, a->bias_type);
  float *own = shared + warp * 16u * OUT_PITCH;
  MOI_ROLLED
  for (unsigned row0 = wm * 16u; row0 < item.rows; row0 += MOI_WARPS_M * 16u) {
    MOI_UNROLL
    for (unsigned c = 0; c < 4u; c++) {
      MOI_UNROLL
      for (unsigned r = 0; r < 2u; r++) {
        moi_f2 v;
        v.x = acc[c * 4u + 2u * r], v.y = acc[c * 4u + 2u * r + 1u];
        *(moi_f2 *)(void *)(own + (r * 8u + (lane >> 2)) * OUT_PITCH + c * 8u + 2u * (lane & 3u)) = v;
      }
    }
    moi_sync_warp();
    unsigned pairs = two ? 8u : 16u; /* of columns that the warp has */
    MOI_ROLLED
    for (unsigned e = lane; e < 16u * pairs; e += 32u) {
      unsigned row = e / pairs, pair = e % pairs;
      if (row0 + row >= item.rows) break;
      const float *u = own + row * OUT_PITCH + (two ? (pair >> 2) * 16u + 2u * (pair & 3u) : 2u * pair);
      unsigned slot = moi_slot_of(a, item.first + row0 + row);
      float scale = MOI_ROW_SCALE(a, slot), v[4];
      MOI_UNROLL
      for (unsigned c = 0; c < 4u; c++) v[c] = scale * u[(c & 1u) + (two ? 4u * (c & 2u) : 0u)];
      put_pair(a, gate_up, &su, &sg, slot, j0 + (two ? line0 / 2u : line0) + 2u * pair, v, v + 2);
    }
    moi_sync_warp();
    MOI_UNROLL
    for (int c = 0; c < 128 / MOI_WARPS_M - 16; c++) acc[c] = acc[c + 16]; /* a register's number must be a constant */
  }
}

#endif
