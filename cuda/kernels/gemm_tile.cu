/* Grouped GEMM for many rows: 64 rows x 64 columns a block, 32 k at a time through shared memory; half of the threads
 * decode W, the other half fetch x, then each thread has 4 rows x 8 columns of fp32 sums. */
#include "cuda/kernels/gemm.h"

#define N_TILE 64
#define CHUNK 32
#define PAD 65 /* odd: rows of a tile begin in different banks */

/* acc[r][c] += x rows (ty, ty + 16, ...) times columns (tx, tx + 8, ...) of the tiles */
MOI_DEVICE void multiply(const float *w_tile, const float *x_tile, unsigned tx, unsigned ty, float *acc) {
  for (int k = 0; k < CHUNK; k++) {
    float x[4], w[8];
    MOI_UNROLL
    for (int r = 0; r < 4; r++) x[r] = x_tile[k * PAD + (int)ty + 16 * r];
    MOI_UNROLL
    for (int c = 0; c < 8; c++) w[c] = w_tile[k * PAD + (int)tx + 8 * c];
    MOI_UNROLL
    for (int r = 0; r < 4; r++) {
      MOI_UNROLL
      for (int c = 0; c < 8; c++) acc[r * 8 + c] = fmaf(x[r], w[c], acc[r * 8 + c]);
    }
  }
}

MOI_DEVICE void tile(const moi_cu_gemm_args *a, const int gate_up) {
  MOI_SHARED(float, w_tile, CHUNK * PAD);
  MOI_SHARED(float, x_tile, CHUNK * PAD);
  unsigned n_rows, n_items = moi_item_count(a, &n_rows);
  unsigned thread = moi_thread(), lane = thread & 63u, j0 = moi_block_x() * N_TILE;
  unsigned tx = thread & 7u, ty = thread >> 3;
  int two = gate_up && a->has_gate;
  for (unsigned i = moi_block_y(); i < n_items; i += moi_grid_y()) {
    moi_cu_item item = moi_item_at(a, i, n_rows);
    moi_streams su = moi_streams_of(&a->up, item.expert, a->bias_type), sg = su;
    if (two) sg = moi_streams_of(&a->gate, item.expert, a->bias_type);
    unsigned column = j0 + lane < a->n ? j0 + lane : a->n - 1u;
    unsigned n_up = column * a->up.row_mul + a->up.row_add, n_gate = column * a->gate.row_mul + a->gate.row_add;
    const float *row = moi_x_row(a, item.first + (lane < item.rows ? lane : item.rows - 1u));
    float acc[32], acc_gate[32];
    MOI_UNROLL
    for (int c = 0; c < 32; c++) acc[c] = acc_gate[c] = 0.0f;
    unsigned k_end = su.there && sg.there ? a->k : 0u;
    for (unsigned k0 = 0; k0 < k_end; k0 += CHUNK) {
      if (thread < 64u) {
        float w[CHUNK];
        moi_fetch_any(&su, n_up, k0, a->up.rows, a->k, w);
        MOI_UNROLL
        for (int k = 0; k < CHUNK; k++) w_tile[k * PAD + (int)lane] = w[k];
      } else {
        MOI_UNROLL
        for (int q = 0; q < CHUNK / 4; q++) {
          moi_f4 x = ((const moi_f4 *)(const void *)(row + k0))[q];
          x_tile[(4 * q) * PAD + (int)lane] = x.x;
          x_tile[(4 * q + 1) * PAD + (int)lane] = x.y;
          x_tile[(4 * q + 2) * PAD + (int)lane] = x.z;
          x_tile[(4 * q + 3) * PAD + (int)lane] = x.w;
        }
      }
      moi_sync();
      multiply(w_tile, x_tile, tx, ty, acc);
      moi_sync();
      if (two) {
        if (thread < 64u) {
          float w[CHUNK];
          moi_fetch_any(&sg, n_gate, k0, a->gate.rows, a->k, w);
          MOI_UNROLL
          for (int k = 0; k < CHUNK; k++) w_tile[k * PAD + (int)lane] = w[k];
        }
        moi_sync();
        multiply(w_tile, x_tile, tx, ty, acc_gate);
        moi_sync();
      }
    }
    /* 16 rows at a time through shared memory: threads side by side write columns side by side */
    MOI_UNROLL
    for (unsigned r = 0; r < 4u; r++) {
      MOI_UNROLL
      for (unsigned c = 0; c < 8u; c++) {
        w_tile[ty * N_TILE + tx + 8u * c] = acc[r * 8u + c];
        if (gate_up) x_tile[ty * N_TILE + tx + 8u * c] = acc_gate[r * 8u + c];
      }
      moi_sync();
      for (unsigned e = thread; e < 16u * N_TILE; e += 128u) {
        unsigned at = e / N_TILE + 16u * r;
        if (at < item.rows)
          moi_finish(a, gate_up, &su, &sg, moi_slot_of(a, item.first + at), j0 + e % N_TILE, w_tile[e],
                     gate_up ? x_tile[e] : 0.0f);
      }
      moi_sync();
    }
  }
}

MOI_GEMM_KERNELS(gemm_tile, 128, tile)
