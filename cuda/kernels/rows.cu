/* Rows of activations on their way into the grouped GEMMs and out of them. */
#include "cuda/kernels/combine.h"
#include "cuda/kernels/rows.h"

MOI_KERNEL(prepare, 256, moi_cu_prepare_set) {
  MOI_SHARED(float, shares, MOI_ROW_SHARES);
  moi_prepare_rows(a, shares, moi_block_x(), moi_grid_x());
}

/* ---- combine: y[t] = scale * (sum of a token's experts in ascending order + the shared expert) [+ y[t]]: gathered, in one
 * fixed order. A thread has two columns. */

MOI_KERNEL(combine, 64, moi_cu_combine_args) {
  MOI_SHARED(unsigned, order, MOI_SLOTS);
  MOI_SHARED(unsigned, ids_of, MOI_SLOTS);
  MOI_SHARED(float, weight_of, MOI_SLOTS);
  unsigned n_tokens = moi_tokens_of(a), k = a->top_k;
  for (unsigned t = moi_block_y(); t < n_tokens; t += moi_grid_y()) {
    moi_order_slots(a, t, order, ids_of, weight_of);
    unsigned at = (moi_block_x() * 64u + moi_thread()) * 2u;
    if (at >= a->h) continue;
    int both = at + 1u < a->h;
    float sum0 = 0.0f, sum1 = 0.0f;
    for (unsigned j = 0; j < k; j++) {
      unsigned slot = order[j], id = ids_of[slot];
      if (id >= a->n_class) break;
      float w = moi_slot_weight(a, id, weight_of[slot]), v0, v1;
      if (id < a->n_experts) {
        const float *row = a->o + ((uint64_t)t * k + slot) * a->ldo;
        v0 = row[at];
        v1 = both ? row[at + 1u] : 0.0f;
      } else {
        v0 = moi_identity(a, t, at);
        v1 = both ? moi_identity(a, t, at + 1u) : 0.0f;
      }
      sum0 += w * v0;
      sum1 += w * v1;
    }
    if (a->shared_o) {
      const float *row = a->shared_o + (uint64_t)t * a->shared_ldo;
      float gate = moi_shared_gate(a, t);
      sum0 += gate * row[at];
      if (both) sum1 += gate * row[at + 1u];
    }
    moi_put_output(a, t, at, sum0);
    if (both) moi_put_output(a, t, at + 1u, sum1);
  }
}

/* ---- store_rows: a grouped GEMM's fp32 rows to the engine's output; rows of no group are 0, or stay where results are
 * added. */

MOI_KERNEL(store_rows, 64, moi_cu_store_args) {
  unsigned at = (moi_block_x() * 64u + moi_thread()) * 2u;
  if (at >= a->n) return;
  int both = at + 1u < a->n;
  unsigned first = a->ends[0], end = a->ends[1];
  for (unsigned r = moi_block_y(); r < a->n_rows; r += moi_grid_y()) {
    int inside = r >= first && r < end;
    if (!inside && a->accumulate) continue;
    const float *from = a->y + (uint64_t)r * a->ldy;
    float v0 = inside ? from[at] : 0.0f, v1 = inside && both ? from[at + 1u] : 0.0f;
    if (inside && a->row_scales) v0 *= a->row_scales[r], v1 *= a->row_scales[r];
    if (inside && a->global_scale) v0 *= a->global_scale[0], v1 *= a->global_scale[0];
    if (inside && a->bias) {
      v0 += moi_load(a->bias_type, a->bias, at);
      if (both) v1 += moi_load(a->bias_type, a->bias, at + 1u);
    }
    uint64_t row = (uint64_t)r * a->output_stride + at;
    if (a->accumulate) {
      v0 += moi_load(a->output_type, a->output, row);
      if (both) v1 += moi_load(a->output_type, a->output, row + 1u);
    }
    moi_store(a->output_type, a->output, row, v0);
    if (both) moi_store(a->output_type, a->output, row + 1u, v1);
  }
}
