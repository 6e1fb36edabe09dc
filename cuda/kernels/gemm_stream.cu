/* Grouped GEMM for few rows: a warp owns a column, its lanes take 32 consecutive k each, side by side, so that a warp
 * reads W as it lies in memory; every weight is decoded once for all rows of the item. Two products with matrices of one
 * format, of the routed experts and of the shared one, fit in a launch; and for very few tokens the down products with what
 * follows them. */
#define MOI_BLOCKS 3
#include "cuda/kernels/combine.h"
#include "cuda/kernels/gemm.h"

#if !MOI_ALONG_N /* of those there is no row */

#define ROWS 8

/* acc[r] += x[rows[r]][k0..k0+31] . w; at most `most` rows, a constant */
MOI_DEVICE void add(const moi_cu_gemm_args *a, const float *w, const unsigned *rows, unsigned n_rows, unsigned k0, float *acc,
                    const unsigned most) {
  MOI_UNROLL
  for (unsigned r = 0; r < most; r++) {
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

MOI_DEVICE void stream(const moi_cu_gemm_pair *pair, const int gate_up) {
  unsigned second = moi_block_y() < pair->first_y ? 0u : 1u, y = moi_block_y() - (second ? pair->first_y : 0u);
  unsigned grid_y = second ? moi_grid_y() - pair->first_y : pair->first_y;
  const moi_cu_gemm_args *a = &pair->of[second];
  unsigned n_rows, n_items = moi_item_count(a, &n_rows), lane = moi_lane();
  unsigned j = moi_block_x() * 4u + moi_warp();
  if (j >= moi_columns_of(a, gate_up)) return;
  unsigned column = j < a->n ? j : a->n - 1u;
  int two = gate_up && a->has_gate;
  for (unsigned i = y; i < n_items; i += grid_y) {
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
      add(a, w, rows, item.rows, k0, acc, ROWS);
      if (!two) continue;
      moi_fetch_any(&sg, n_gate, k0, a->gate.rows, a->k, w);
      add(a, w, rows, item.rows, k0, acc_gate, ROWS);
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

MOI_KERNEL(MOI_JOIN(gemm_stream_, MOI_FORMAT_NAME), 128, moi_cu_gemm_pair) { stream(a, 0); }
MOI_KERNEL(MOI_JOIN(MOI_JOIN(gemm_stream_, MOI_FORMAT_NAME), _up), 128, moi_cu_gemm_pair) { stream(a, 1); }

/* ---- down and combine: a block has a token and 4 columns; its warps take the products of its slots and columns, and then a
 * thread sums a column up. Sums and their order are those of the two launches that this one is instead of. */

#define COLUMNS 4u

/* Column j of W_expert x[row], in every lane. */
MOI_DEVICE float product(const moi_cu_gemm_args *a, unsigned expert, unsigned row, unsigned j) {
  moi_streams s = moi_streams_of(&a->up, expert, a->bias_type);
  unsigned n = j * a->up.row_mul + a->up.row_add, k_end = s.there ? a->k : 0u;
  float acc = 0.0f;
  MOI_ROLLED
  for (unsigned k0 = moi_lane() * 32u; k0 < k_end; k0 += 1024u) {
    float w[32];
    moi_fetch_any(&s, n, k0, a->up.rows, a->k, w);
    add(a, w, &row, 1u, k0, &acc, 1u);
  }
  MOI_UNROLL
  for (unsigned step = 16u; step > 0u; step >>= 1) acc += moi_xor_f32(acc, step);
  return moi_result(a, 0, &s, &s, 0u, j, acc, 0.0f);
}

MOI_KERNEL(MOI_JOIN(MOI_JOIN(gemm_stream_, MOI_FORMAT_NAME), _combine), 128, moi_cu_down_args) {
  MOI_SHARED(unsigned, order, MOI_SLOTS);
  MOI_SHARED(unsigned, ids_of, MOI_SLOTS);
  MOI_SHARED(float, weight_of, MOI_SLOTS);
  MOI_SHARED(float, results, (MOI_SLOTS + 1u) * COLUMNS);
  const moi_cu_combine_args *c = &a->combine;
  unsigned t = moi_block_y(), k = c->top_k, n = 0, j0 = moi_block_x() * COLUMNS;
  if (t >= moi_tokens_of(c)) return;
  moi_order_slots(c, t, order, ids_of, weight_of);
  while (n < k && ids_of[order[n]] < c->n_class) n++;
  unsigned sums = n + (a->has_shared ? 1u : 0u);
  for (unsigned i = moi_warp(); i < sums * COLUMNS; i += 4u) {
    unsigned r = i / COLUMNS, j = j0 + i % COLUMNS, slot = r < n ? order[r] : 0u, id = ids_of[slot];
    if (j >= c->h) continue;
    float v;
    if (r < n && id >= c->n_experts) v = moi_identity(c, t, j);
    else v = product(r < n ? &a->down : &a->shared, r < n ? id : 0u, r < n ? t * k + slot : t, j);
    if (moi_lane() == 0u) results[i] = v;
  }
  moi_sync();
  unsigned column = moi_thread();
  if (column >= COLUMNS || j0 + column >= c->h) return;
  float sum = 0.0f;
  for (unsigned r = 0; r < n; r++) {
    unsigned slot = order[r], id = ids_of[slot];
    float w = moi_slot_weight(c, id, weight_of[slot]);
    sum += w * results[r * COLUMNS + column];
  }
  if (a->has_shared) sum += moi_shared_gate(c, t) * results[n * COLUMNS + column];
  moi_put_output(c, t, j0 + column, sum);
}

#endif
