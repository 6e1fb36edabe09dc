/* Grouped GEMM for few rows: a warp owns a column, its lanes take 32 consecutive k each, side by side, so that a warp
 * reads W as it lies in memory; every weight is decoded once for all rows of the item. */
#define MOI_BLOCKS 3
#include "cuda/kernels/gemm.h"

#if !MOI_ALONG_N /* of those there is no row */

#define ROWS 8

/* acc[r] += x[rows[r]][k0..k0+31] . w */
MOI_DEVICE void add(const moi_cu_gemm_args *a, const float *w, const unsigned *rows, unsigned n_rows, unsigned k0, float *acc) {
  MOI_UNROLL
  for (unsigned r = 0; r < ROWS; r++) {
    if (r >= n_rows) continue;
    moi_keep_order();
    const moi_f4 *row = (const moi_f4 *)(const void *)(a->x + (uint64_t)rows[r] * a->ldx + k0);
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++) {
      moi_f4 x = row[q];
      acc[r] = fmaf(w[4 * q], x.x, fmaf(w[4 * q + 1], x.y, fmaf(w[4 * q + 2], x.z, fmaf(w[4 * q + 3], x.w, acc[r]))));
    }
  }
}

MOI_DEVICE void stream(const moi_cu_gemm_args *a, const int gate_up) {
  unsigned n_rows, n_items = moi_item_count(a, &n_rows), lane = moi_lane();
  unsigned j = moi_block_x() * 4u + moi_warp();
  if (j >= moi_columns_of(a, gate_up)) return;
  unsigned column = j < a->n ? j : a->n - 1u;
  int two = gate_up && a->has_gate;
  for (unsigned i = moi_block_y(); i < n_items; i += moi_grid_y()) {
    moi_cu_item item = moi_item_at(a, i, n_rows);
    moi_streams su = moi_streams_of(&a->up, item.expert, a->bias_type), sg = su;
    if (two) sg = moi_streams_of(&a->gate, item.expert, a->bias_type);
    unsigned n_up = column * a->up.row_mul + a->up.row_add, n_gate = column * a->gate.row_mul + a->gate.row_add;
    float acc[ROWS], acc_gate[ROWS];
    unsigned rows[ROWS];
    MOI_UNROLL
    for (unsigned r = 0; r < ROWS; r++) {
      acc[r] = acc_gate[r] = 0.0f;
      rows[r] = moi_slot_of(a, item.first + (r < item.rows ? r : item.rows - 1u)) / a->x_div;
    }
    unsigned k_end = su.there && sg.there ? a->k : 0u;
    MOI_ROLLED
    for (unsigned k0 = lane * 32u; k0 < k_end; k0 += 1024u) {
      float w[32]; /* one matrix after the other: both at once take the registers of half the warps */
      moi_fetch_any(&su, n_up, k0, a->up.rows, a->k, w);
      add(a, w, rows, item.rows, k0, acc);
      if (!two) continue;
      moi_fetch_any(&sg, n_gate, k0, a->gate.rows, a->k, w);
      add(a, w, rows, item.rows, k0, acc_gate);
    }
    MOI_UNROLL
    for (unsigned r = 0; r < ROWS; r++) {
      MOI_UNROLL
      for (unsigned step = 16u; step > 0u; step >>= 1) {
        acc[r] += moi_xor_f32(acc[r], step);
        if (gate_up) acc_gate[r] += moi_xor_f32(acc_gate[r], step);
      }
    }
    float u = 0.0f, ug = 0.0f; /* a row for each lane */
    MOI_UNROLL
    for (unsigned r = 0; r < ROWS; r++)
      if (r == lane) u = acc[r], ug = acc_gate[r];
    if (lane < item.rows) moi_finish(a, gate_up, &su, &sg, moi_slot_of(a, item.first + lane), j, u, ug);
  }
}

MOI_GEMM_KERNELS(gemm_stream, 128, stream)

#endif
