/* Grouped GEMM for few rows: a warp owns a column, its lanes take 32 consecutive k each, side by side, so that a warp
 * reads W as it lies in memory; every weight is decoded once for all rows of the item. */
#include "cuda/kernels/gemm.h"

#define ROWS 8

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
    const float *rows[ROWS];
    MOI_UNROLL
    for (unsigned r = 0; r < ROWS; r++) {
      acc[r] = acc_gate[r] = 0.0f;
      rows[r] = moi_x_row(a, item.first + (r < item.rows ? r : item.rows - 1u));
    }
    unsigned k_end = su.there && sg.there ? a->k : 0u;
    for (unsigned k0 = lane * 32u; k0 < k_end; k0 += 1024u) {
      float w[32], g[32];
      moi_fetch_any(&su, n_up, k0, a->up.rows, a->k, w);
      if (two) moi_fetch_any(&sg, n_gate, k0, a->gate.rows, a->k, g);
      MOI_UNROLL
      for (unsigned r = 0; r < ROWS; r++) {
        if (r >= item.rows) continue;
        MOI_UNROLL
        for (unsigned q = 0; q < 8u; q++) {
          moi_f4 x = ((const moi_f4 *)(const void *)(rows[r] + k0))[q];
          acc[r] = fmaf(w[4 * q], x.x, fmaf(w[4 * q + 1], x.y, fmaf(w[4 * q + 2], x.z, fmaf(w[4 * q + 3], x.w, acc[r]))));
          if (two)
            acc_gate[r] = fmaf(g[4 * q], x.x, fmaf(g[4 * q + 1], x.y, fmaf(g[4 * q + 2], x.z,
                                                                           fmaf(g[4 * q + 3], x.w, acc_gate[r]))));
        }
      }
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
