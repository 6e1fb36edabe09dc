/* The expert FFN and the bare grouped GEMM, token by token. */
#include <math.h>

#include "core/shared/round.h"
#include "cpu/ref/ref.h"

static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
static double clamp(double x, double limit) { return x > limit ? limit : x < -limit ? -limit : x; }

static double activate(const moi_experts_desc *d, double g, double u) {
  double alpha = d->act_alpha, limit = d->act_limit;
  switch (d->activation) {
    case MOI_ACT_SWIGLU:
      if (limit > 0) {
        g = g > limit ? limit : g;
        u = clamp(u, limit);
      }
      return g * sigmoid(g) * u;
    case MOI_ACT_SWIGLU_OAI:
      g = g > limit ? limit : g;
      return g * sigmoid(alpha * g) * (clamp(u, limit) + 1.0);
    case MOI_ACT_GEGLU_TANH: return 0.5 * g * (1.0 + tanh(0.79788456080286535588 * (g + 0.044715 * g * g * g))) * u;
    case MOI_ACT_GEGLU_ERF: return 0.5 * g * (1.0 + erf(g * 0.70710678118654752440)) * u;
    case MOI_ACT_SITU: return alpha * tanh(g / alpha) * sigmoid(g) * limit * tanh(u / limit);
    case MOI_ACT_RELU2: return u < 0 ? 0.0 : u * u;
    default: return 0;
  }
}

typedef struct memory {
  float *x, *mid, *row;
  double *o, *acc;
} memory;

static memory carve(const moi_plan *plan, moi_carve *c) {
  size_t h = plan->experts.hidden, i = plan->experts.intermediate;
  if (plan->has_shared) i = moi_max_size(i, plan->shared.intermediate);
  memory m;
  m.x = moi_take(c, h, 4);
  m.mid = moi_take(c, i, 4);
  m.row = moi_take(c, moi_max_size(h, i), 4);
  m.o = moi_take(c, h, 8);
  m.acc = moi_take(c, h, 8);
  return m;
}

void moi_ref_ffn_count(const moi_plan *plan, moi_carve *c) { carve(plan, c); }

static double bias_at(const moi_experts_desc *d, const moi_weights *w, uint32_t e, uint32_t n) {
  if (!d->bias_type) return 0;
  return moi_dense_load(d->bias_type, moi_bias_of(w, e, (d->flags & MOI_EXPERTS_TABLES) != 0), n);
}

static void load_row(moi_format type, moi_buffer view, uint32_t stride, uint32_t t, uint32_t n, float *out) {
  const uint8_t *p = moi_view(view);
  for (uint32_t i = 0; i < n; i++)
    out[i] = moi_dense_load(type, p + (size_t)t * stride * (type == MOI_FORMAT_F32 ? 4 : 2), i);
}

/* m->o = D_e act(G_e x, U_e x); 0 if a table entry is null */
static int expert(const moi_experts_desc *d, const moi_ffn_run *in, uint32_t e, uint32_t token, float weight, memory *m) {
  int tables = (d->flags & MOI_EXPERTS_TABLES) != 0;
  uint32_t i = d->intermediate, both = d->gate_layout == MOI_GATE_CONCAT || d->gate_layout == MOI_GATE_INTERLEAVED;
  moi_matrix up = moi_matrix_of(&in->up, d->format, i << both, d->hidden, e, tables), gate = up;
  moi_matrix down = moi_matrix_of(&in->down, d->down_format, d->hidden, i, e, tables);
  const moi_weights *gate_weights = d->gate_layout == MOI_GATE_SPLIT ? &in->gate : &in->up;
  if (d->gate_layout == MOI_GATE_SPLIT) gate = moi_matrix_of(&in->gate, d->format, i, d->hidden, e, tables);
  if (!up.data || !gate.data || !down.data) return 0;
  if (tables && d->bias_type && (!moi_bias_of(&in->up, e, 1) || !moi_bias_of(gate_weights, e, 1) ||
                                 !moi_bias_of(&in->down, e, 1)))
    return 0;
  load_row(d->input_type, in->args.input, in->args.input_stride, token, d->hidden, m->x);
  if (d->weight_on == MOI_WEIGHT_ON_INPUT)
    for (uint32_t j = 0; j < d->hidden; j++) m->x[j] = moi_round_to(d->input_type, m->x[j] * weight);
  moi_act_quant_row(d->act_quant, m->x, d->hidden);
  for (uint32_t j = 0; j < i; j++) {
    uint32_t g_row = d->gate_layout == MOI_GATE_INTERLEAVED ? 2 * j : j;
    uint32_t u_row = d->gate_layout == MOI_GATE_INTERLEAVED ? 2 * j + 1 : d->gate_layout == MOI_GATE_CONCAT ? i + j : j;
    double g = 0, u = moi_ref_dot(&up, u_row, m->x, m->row) + bias_at(d, &in->up, e, u_row);
    if (d->gate_layout != MOI_GATE_NONE)
      g = moi_ref_dot(&gate, g_row, m->x, m->row) + bias_at(d, gate_weights, e, g_row);
    double a = activate(d, g, u);
    if (d->weight_on == MOI_WEIGHT_ON_ACTIVATION) a *= weight;
    m->mid[j] = moi_round_to(d->mid_type, (float)a);
  }
  moi_act_quant_row(d->act_quant, m->mid, i);
  for (uint32_t n = 0; n < d->hidden; n++)
    m->o[n] = moi_ref_dot(&down, n, m->mid, m->row) + bias_at(d, &in->down, e, n);
  return 1;
}

moi_status moi_ref_ffn(const char *fn, const moi_plan *plan, const moi_run *run, moi_carve *c, const int32_t *ids,
                       const float *weights, uint32_t n_tokens) {
  const moi_experts_desc *d = &plan->experts;
  memory m = carve(plan, c);
  for (uint32_t t = 0; t < n_tokens; t++) {
    memset(m.acc, 0, d->hidden * sizeof *m.acc);
    for (uint32_t j = 0; j < d->top_k; j++) {
      uint32_t e = (uint32_t)ids[(size_t)t * d->top_k + j];
      float w = weights[(size_t)t * d->top_k + j];
      if (e >= d->n_experts + d->n_identity) continue;
      if (e >= d->n_experts) {
        load_row(d->input_type, run->experts.args.input, run->experts.args.input_stride, t, d->hidden, m.x);
        for (uint32_t n = 0; n < d->hidden; n++) m.acc[n] += (double)w * m.x[n];
        continue;
      }
      if (!expert(d, &run->experts, e, t, w, &m))
        return moi_fail(MOI_INVALID_ARGUMENT, fn, "args->gate, up, down: expert %u is used and its table entry is null",
                        e);
      for (uint32_t n = 0; n < d->hidden; n++) m.acc[n] += d->weight_on == MOI_WEIGHT_ON_OUTPUT ? w * m.o[n] : m.o[n];
    }
    if (plan->has_shared) {
      double gate = 1;
      if (plan->shared_gate == MOI_SHARED_SIGMOID) {
        load_row(plan->shared.input_type, run->shared.args.input, run->shared.args.input_stride, t, d->hidden, m.x);
        double sum = 0;
        for (uint32_t n = 0; n < d->hidden; n++)
          sum += (double)m.x[n] * moi_dense_load(plan->shared_gate_type, moi_view(run->shared_gate), n);
        gate = sigmoid(sum);
      }
      expert(&plan->shared, &run->shared, 0, t, 1, &m);
      for (uint32_t n = 0; n < d->hidden; n++) m.acc[n] += gate * m.o[n];
    }
    uint8_t *y = (uint8_t *)moi_view(run->experts.args.output) +
                 (size_t)t * run->experts.args.output_stride * (d->output_type == MOI_FORMAT_F32 ? 4 : 2);
    for (uint32_t n = 0; n < d->hidden; n++) {
      double v = m.acc[n] * plan->output_scale;
      if (d->flags & MOI_EXPERTS_ACCUMULATE) v += moi_dense_load(d->output_type, y, n);
      moi_dense_store(d->output_type, y, n, (float)v);
    }
  }
  return MOI_OK;
}

typedef struct gemm_memory {
  uint32_t *begin, *end;
  float *x, *row;
} gemm_memory;

static gemm_memory carve_gemm(const moi_plan *plan, moi_carve *c) {
  gemm_memory m;
  m.begin = moi_take(c, plan->gemm.n_experts, 4);
  m.end = moi_take(c, plan->gemm.n_experts, 4);
  m.x = moi_take(c, plan->gemm.k, 4);
  m.row = moi_take(c, plan->gemm.k, 4);
  return m;
}

void moi_ref_gemm_count(const moi_plan *plan, moi_carve *c) { carve_gemm(plan, c); }

moi_status moi_ref_gemm(const char *fn, const moi_plan *plan, const moi_run *run, moi_carve *c) {
  const moi_gemm_desc *d = &plan->gemm;
  int tables = (d->flags & MOI_EXPERTS_TABLES) != 0;
  gemm_memory m = carve_gemm(plan, c);
  if (!run->n_tokens) return MOI_OK;
  moi_gemm_groups(d, run, m.begin, m.end);
  for (uint32_t e = 0; e < d->n_experts; e++) {
    if (m.begin[e] == m.end[e]) continue;
    moi_matrix w = moi_matrix_of(&run->gemm_weights, d->format, d->n, d->k, e, tables);
    const void *bias = d->bias_type ? moi_bias_of(&run->gemm_weights, e, tables) : NULL;
    if (!w.data || (d->bias_type && !bias))
      return moi_fail(MOI_INVALID_ARGUMENT, fn, "args->weights: expert %u has rows and its table entry is null", e);
    for (uint32_t r = m.begin[e]; r < m.end[e]; r++) {
      load_row(d->input_type, run->gemm.input, run->gemm.input_stride, r, d->k, m.x);
      moi_act_quant_row(d->act_quant, m.x, d->k);
      uint8_t *y = (uint8_t *)moi_view(run->gemm.output) +
                   (size_t)r * run->gemm.output_stride * (d->output_type == MOI_FORMAT_F32 ? 4 : 2);
      for (uint32_t n = 0; n < d->n; n++) {
        double v = moi_ref_dot(&w, n, m.x, m.row);
        if (bias) v += moi_dense_load(d->bias_type, bias, n);
        if (d->flags & MOI_EXPERTS_ACCUMULATE) v += moi_dense_load(d->output_type, y, n);
        moi_dense_store(d->output_type, y, n, (float)v);
      }
    }
  }
  return MOI_OK;
}
