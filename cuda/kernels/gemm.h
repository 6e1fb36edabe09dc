/* What the grouped GEMMs share: work items, and what is done with a result. GATE_UP is 1 in kernels of two matrices and an
 * activation, a constant that the compiler folds. */
#ifndef MOI_CUDA_GEMM_H
#define MOI_CUDA_GEMM_H

#include "cuda/kernels/fetch.h"

/* Defines both kernels of a file: <name>_<format> and <name>_<format>_up. _OF: the name may be a macro. */
#define MOI_JOIN2(a, b) a##b
#define MOI_JOIN(a, b) MOI_JOIN2(a, b)
#define MOI_GEMM_KERNELS(name, threads, body)                                                                          \
  MOI_KERNEL(MOI_JOIN(name##_, MOI_FORMAT_NAME), threads, moi_cu_gemm_args) { body(a, 0); }                            \
  MOI_KERNEL(MOI_JOIN(MOI_JOIN(name##_, MOI_FORMAT_NAME), _up), threads, moi_cu_gemm_args) { body(a, 1); }
#define MOI_GEMM_KERNELS_OF(name, threads, body) MOI_GEMM_KERNELS(name, threads, body)
#define MOI_GEMM_KERNELS_ONE_OF(name, threads, body) MOI_GEMM_KERNELS_ONE(name, threads, body)
/* <name>_<format>_one and <name>_<format>_one_up: of a row that takes digits, for one digit. */
#define MOI_GEMM_KERNELS_ONE(name, threads, body)                                                                      \
  MOI_KERNEL(MOI_JOIN(MOI_JOIN(name##_, MOI_FORMAT_NAME), _one), threads, moi_cu_gemm_args) { body(a, 0); }            \
  MOI_KERNEL(MOI_JOIN(MOI_JOIN(name##_, MOI_FORMAT_NAME), _one_up), threads, moi_cu_gemm_args) { body(a, 1); }

MOI_DEVICE unsigned moi_item_count(const moi_cu_gemm_args *a, unsigned *n_rows) {
  *n_rows = a->n_rows;
  if (a->n_rows_device) {
    unsigned n = *a->n_rows_device;
    if (n < *n_rows / a->rows_per_count) *n_rows = n * a->rows_per_count;
  }
  return a->n_items ? *a->n_items : (*n_rows + a->m_tile - 1u) / a->m_tile;
}

MOI_DEVICE moi_cu_item moi_item_at(const moi_cu_gemm_args *a, unsigned i, unsigned n_rows) {
  moi_cu_item item;
  if (a->n_items) return a->items[i];
  item.expert = 0;
  item.first = i * a->m_tile;
  item.rows = n_rows - item.first < a->m_tile ? n_rows - item.first : a->m_tile;
  return item;
}

MOI_DEVICE unsigned moi_slot_of(const moi_cu_gemm_args *a, unsigned position) {
  return a->permutation ? a->permutation[position] : position;
}
MOI_DEVICE const float *moi_x_row(const moi_cu_gemm_args *a, unsigned position) {
  return a->x + (uint64_t)(moi_slot_of(a, position) / a->x_div) * a->ldx;
}

MOI_DEVICE const uint8_t *moi_expert_address(const void *base, uint64_t stride, unsigned tables, unsigned e) {
  if (!base) return NULL;
  return (const uint8_t *)moi_global(tables ? ((const uint8_t *const *)base)[e] : (const uint8_t *)base + stride * e);
}

MOI_DEVICE moi_streams moi_streams_of(const moi_cu_matrix *m, unsigned e, unsigned bias_type) {
  moi_streams r;
  r.d = moi_expert_address(m->data, m->data_stride, m->tables, e);
  r.s = moi_expert_address(m->scales, m->scales_stride, m->tables, e);
  r.z = moi_expert_address(m->zeros, m->zeros_stride, m->tables, e);
  r.bias = moi_expert_address(m->bias, m->bias_stride, m->tables, e);
  r.there = r.d && (!m->scales || r.s) && (!m->zeros || r.z) && (!bias_type || r.bias);
  r.global_scale = m->global_scale ? m->global_scale[e] : 1.0f;
  r.vectors = m->vectors;
  return r;
}

/* ---- moi_activation */

MOI_DEVICE float moi_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
MOI_DEVICE float moi_clamp_to(float x, float limit) {
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

MOI_DEVICE float moi_activate(const moi_cu_gemm_args *a, float g, float u) {
  float alpha = a->alpha, limit = a->limit;
  switch (a->activation) {
    case 0u:
      if (limit > 0.0f) g = g > limit ? limit : g, u = moi_clamp_to(u, limit);
      return g * moi_sigmoid(g) * u;
    case 1u: g = g > limit ? limit : g; return g * moi_sigmoid(alpha * g) * (moi_clamp_to(u, limit) + 1.0f);
    case 2u: return 0.5f * g * (1.0f + tanhf(0.797884561f * (g + 0.044715f * g * g * g))) * u;
    case 3u: return 0.5f * g * (1.0f + erff(g * 0.707106781f)) * u;
    case 4u: return alpha * tanhf(g / alpha) * moi_sigmoid(g) * (limit * tanhf(u / limit));
    default: return u < 0.0f ? 0.0f : u * u;
  }
}

/* Columns that a grid has to fill: behind n there are zeros where rows are an operand of the next product. */
MOI_DEVICE unsigned moi_columns_of(const moi_cu_gemm_args *a, int gate_up) { return gate_up ? a->ldy : a->n; }

/* What column j < n of a slot's row is: u and g are the dot products, before the expert's scale and bias. */
MOI_DEVICE float moi_result(const moi_cu_gemm_args *a, int gate_up, const moi_streams *su, const moi_streams *sg,
                            unsigned slot, unsigned j, float u, float g) {
  u = su->there ? u * su->global_scale : 0.0f;
  if (a->bias_type && su->there) u += moi_load(a->bias_type, su->bias, j * a->up.row_mul + a->up.row_add);
  if (!gate_up) return u;
  if (a->has_gate) {
    g = sg->there ? g * sg->global_scale : 0.0f;
    if (a->bias_type && sg->there) g += moi_load(a->bias_type, sg->bias, j * a->gate.row_mul + a->gate.row_add);
  }
  u = moi_activate(a, g, u);
  if (a->weights) u *= a->weights[slot];
  return moi_round_to(a->mid_type, u);
}

/* Writes column j of a slot's row in the form that is wanted. */
MOI_DEVICE void moi_put(const moi_cu_gemm_args *a, int gate_up, unsigned slot, unsigned j, float v) {
  uint64_t row = (uint64_t)slot * a->ldy;
  if (!gate_up || !a->y_digits) {
    a->y[row + j] = v;
    return;
  }
  uint16_t *digits = (uint16_t *)(void *)(a->y + row) + j;
  unsigned high = moi_bf16_code(v);
  digits[0] = (uint16_t)high;
  if (a->y_digits > 1u) digits[a->ldy] = (uint16_t)moi_bf16_code(v - moi_bf16_value(high));
}

/* Writes column j of a slot's row: u and g as for moi_result; zeros behind n. */
MOI_DEVICE void moi_finish(const moi_cu_gemm_args *a, int gate_up, const moi_streams *su, const moi_streams *sg,
                           unsigned slot, unsigned j, float u, float g) {
  if (j < a->n) moi_put(a, gate_up, slot, j, moi_result(a, gate_up, su, sg, slot, j, u, g));
  else if (gate_up && j < a->ldy) moi_put(a, gate_up, slot, j, 0.0f);
}

#endif
