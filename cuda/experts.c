/* The expert FFN: routed experts and, in moe, the shared one beside them.
 *
 *   1 sort      slots by expert, work items, and beside it: prepare, x rows as the GEMMs want them. In moe this is the
 *               routing's last launch, which may be its only one
 *   2 gate/up   both GEMMs, bias, activation -> mid
 *   3 mid       quantised, where the model asks for it, and in forms that a column's block cannot write: they want a
 *               row's largest
 *   4 down      -> o, a row for each slot
 *   5 combine   a token gathers its slots' rows in ascending order of expert: one order of summation, no atomics
 *
 * Few tokens take fewer launches: no list of experts with many rows, the shared expert beside the routed ones, 4 and 5 in one.
 *
 * Rows of mid and o lie by slot, so that nothing needs the inverse of the permutation. Sizes that depend on the routing
 * are read on the device: grids are made for the most work items there may be, and blocks without one end at once. */
#include "cuda/grouped.h"

#include <stdio.h>

enum { COMBINED_TOKENS = 2, COMBINED_COLUMNS = 4, COMBINED_THREADS = 128 }; /* of 4 and 5 in one: each token reads W by itself */

typedef struct memory {
  moi_cu_groups groups;
  moi_cu_rows x[2], mid[2]; /* routed, shared */
  float *o[2], *gate;
} memory;

static int weighted_input(const moi_experts_desc *d) { return d->weight_on == MOI_WEIGHT_ON_INPUT; }

/* Of the forms that down takes, those that step 3 makes. */
static uint32_t later_forms(const moi_experts_desc *d, uint32_t forms) {
  return d->act_quant ? forms : forms & ~(1u << MOI_CU_FLOATS | 1u << MOI_CU_DIGITS);
}

static void carve(const moi_plan *plan, moi_carve *c, memory *m) {
  const moi_cu_plan *state = plan->state;
  uint32_t forms = 0; /* x may be one for both */
  memset(m, 0, sizeof *m);
  for (uint32_t i = 0; i < 1 + plan->has_shared; i++) forms |= moi_cu_forms(&state->ffn[i].up, 3);
  for (uint32_t i = 0; i < 1 + plan->has_shared; i++) {
    const moi_experts_desc *d = i ? &plan->shared : &plan->experts;
    size_t tokens = d->max_tokens, slots = tokens * d->top_k;
    if (!i)
      moi_cu_groups_carve(c, &state->ffn[0].up, &state->ffn[0].down, slots, d->n_experts + d->n_identity, d->n_experts, 0,
                          plan->has_route ? moi_cu_route_parts(plan) : 0, &m->groups);
    moi_cu_activations x = {d->input_type, d->act_quant}, mid = {d->mid_type, d->act_quant};
    moi_cu_rows_carve(c, forms, weighted_input(d) ? slots : tokens, d->hidden, &x, &m->x[i]);
    float *floats = moi_take(c, slots, (size_t)moi_cu_kp(d->intermediate) * 4); /* gate and up write them, or digits */
    uint32_t later = later_forms(d, moi_cu_forms(&state->ffn[i].down, 3)) & ~(1u << MOI_CU_FLOATS);
    moi_cu_rows_carve(c, later, slots, d->intermediate, &mid, &m->mid[i]);
    m->mid[i].of[MOI_CU_FLOATS] = floats;
    if (!d->act_quant) m->mid[i].of[MOI_CU_DIGITS] = floats;
    m->o[i] = moi_take(c, slots, (size_t)d->hidden * 4);
  }
  m->gate = moi_take(c, plan->experts.max_tokens, 4);
}

void moi_cu_ffn_count(const moi_plan *plan, moi_carve *c) {
  memory m;
  carve(plan, c, &m);
}

moi_status moi_cu_ffn_plan(const char *fn, moi_plan *plan, const char *forced, int *found) {
  moi_cu_plan *state = plan->state;
  static const char *const names[2][2] = {{"experts gate and up", "experts down"}, {"shared gate and up", "shared down"}};
  for (uint32_t i = 0; i < 1 + plan->has_shared; i++) {
    const moi_experts_desc *d = i ? &plan->shared : &plan->experts;
    moi_cu_ffn_state *f = &state->ffn[i];
    const char *name = forced ? forced : d->kernel;
    int served = 0;
    moi_cu_activations x = {d->input_type, d->act_quant}, mid = {d->mid_type, d->act_quant};
    moi_status status = moi_cu_gemm_choose_of(fn, plan, names[i][0], d->format, 1, &x, name, &served, &f->up);
    if (!status)
      status = moi_cu_gemm_choose_of(fn, plan, names[i][1], d->down_format, 0, &mid, name, &served, &f->down);
    if (status) return status;
    if (!forced && name && !served)
      return moi_fail(MOI_UNSUPPORTED, fn, "kernel: '%s' is no CUDA kernel for these formats", name);
    *found |= forced && served;
    const moi_cu_kernel *few = f->down.pick.few;
    char kernel[96];
    if (i || !(few->flags & MOI_CU_ROW_PAIRS)) continue;
    snprintf(kernel, sizeof kernel, "%s_combine", few->image);
    status = moi_cu_function_get(fn, plan->context, few->image, kernel, &f->combine);
    if (status) return status;
  }
  moi_status status = moi_cu_steps_get(fn, plan->context, "sort", "sort", &state->sort);
  if (!status) status = moi_cu_function_get(fn, plan->context, "rows", "prepare", &state->prepare);
  if (!status) status = moi_cu_function_get(fn, plan->context, "rows", "combine", &state->combine);
  return status;
}

static int same_view(moi_buffer a, moi_buffer b) { return moi_view(a) == moi_view(b); }

/* One FFN's arguments. */
typedef struct ffn {
  moi_cu_prepare_args prepare, quantise; /* n_rows 0: none */
  uint32_t x_forms, mid_forms;           /* that they make */
  moi_cu_gemm_args up, down;
  moi_cu_rows x, mid;
} ffn;

/* x_of: whose rows of x are taken; its forms are in f */
static void fill_ffn(const moi_plan *plan, const moi_run *run, const memory *m, uint32_t i, const float *weights,
                     uint32_t x_of, ffn *f) {
  const moi_cu_ffn_state *state = &((const moi_cu_plan *)plan->state)->ffn[i];
  const moi_experts_desc *d = i ? &plan->shared : &plan->experts;
  const moi_ffn_run *in = i ? &run->shared : &run->experts;
  const uint32_t *device = moi_view(run->experts.args.n_tokens_device);
  uint32_t tables = (d->flags & MOI_EXPERTS_TABLES) != 0, slots = run->n_tokens * d->top_k, inter = d->intermediate;
  uint32_t both = d->gate_layout == MOI_GATE_CONCAT || d->gate_layout == MOI_GATE_INTERLEAVED;
  const moi_cu_groups *groups = i ? NULL : &m->groups;
  f->x = m->x[x_of];
  f->mid = m->mid[i];
  for (uint32_t list = 0; list < 2 && !d->act_quant; list++) { /* gate and up write what down reads */
    uint32_t reader = groups ? list : moi_cu_lists(&state->down, NULL, slots) >> 1;
    f->x.y_digits[list] = moi_cu_form_of(&state->down, reader) == MOI_CU_DIGITS ? state->down.n_digits[reader] : 0;
  }
  f->up = (moi_cu_gemm_args){.y = m->mid[i].of[MOI_CU_FLOATS],
                             .permutation = i ? NULL : m->groups.permutation,
                             .n_rows_device = device,
                             .weights = d->weight_on == MOI_WEIGHT_ON_ACTIVATION ? weights : NULL,
                             .ldx = moi_cu_kp(d->hidden),
                             .ldy = moi_cu_kp(inter),
                             .n = inter,
                             .k = d->hidden,
                             .x_div = weighted_input(d) ? 1 : d->top_k,
                             .n_rows = slots,
                             .bias_type = d->bias_type,
                             .activation = (uint32_t)d->activation,
                             .mid_type = d->mid_type,
                             .has_gate = d->gate_layout != MOI_GATE_NONE,
                             .rows_per_count = d->top_k,
                             .alpha = d->act_alpha,
                             .limit = d->act_limit};
  f->up.up = moi_cu_matrix_of(&in->up, d->format, inter << both, d->hidden, tables);
  f->up.gate = f->up.up;
  if (d->gate_layout == MOI_GATE_SPLIT) f->up.gate = moi_cu_matrix_of(&in->gate, d->format, inter, d->hidden, tables);
  if (d->gate_layout == MOI_GATE_CONCAT) f->up.up.row_add = inter;
  if (d->gate_layout == MOI_GATE_INTERLEAVED) f->up.up.row_mul = f->up.gate.row_mul = 2, f->up.up.row_add = 1;
  f->down = (moi_cu_gemm_args){.y = m->o[i],
                               .permutation = f->up.permutation,
                               .n_rows_device = device,
                               .ldx = moi_cu_kp(inter),
                               .ldy = d->hidden,
                               .n = d->hidden,
                               .k = inter,
                               .x_div = 1,
                               .n_rows = slots,
                               .bias_type = d->bias_type,
                               .rows_per_count = d->top_k};
  f->down.up = moi_cu_matrix_of(&in->down, d->down_format, d->hidden, inter, tables);
  f->mid_forms = later_forms(d, moi_cu_forms(&state->down, moi_cu_lists(&state->down, groups, slots)));
  f->quantise = (moi_cu_prepare_args){.input = m->mid[i].of[MOI_CU_FLOATS],
                                      .n_rows_device = device,
                                      .input_type = MOI_FORMAT_F32,
                                      .input_stride = moi_cu_kp(inter),
                                      .ldx = moi_cu_kp(inter),
                                      .k = inter,
                                      .n_rows = slots,
                                      .row_div = 1,
                                      .rows_per_count = d->top_k,
                                      .act_quant = (uint32_t)d->act_quant};
}

/* The preparation of x; gate: the shared expert's, computed on the same rows. */
static moi_cu_prepare_args prepare_of(const moi_experts_desc *d, const moi_experts_args *a, uint32_t t,
                                      const uint32_t *device, const float *weights, const void *gate,
                                      moi_format gate_type, float *gate_out) {
  int slots = weighted_input(d);
  return (moi_cu_prepare_args){.input = moi_view(a->input),
                               .weights = slots ? weights : NULL,
                               .n_rows_device = device,
                               .gate = gate,
                               .gate_out = gate_out,
                               .input_type = d->input_type,
                               .gate_type = gate_type,
                               .input_stride = a->input_stride,
                               .ldx = moi_cu_kp(d->hidden),
                               .k = d->hidden,
                               .n_rows = slots ? t * d->top_k : t,
                               .row_div = slots ? d->top_k : 1,
                               .rows_per_count = slots ? d->top_k : 1,
                               .act_quant = (uint32_t)d->act_quant};
}

static moi_cu_combine_args combine_of(const moi_plan *plan, const moi_run *run, const memory *m, const int32_t *ids,
                                      const float *weights, const float *shared_gate) {
  const moi_experts_desc *d = &plan->experts;
  const moi_experts_args *a = &run->experts.args;
  return (moi_cu_combine_args){.o = m->o[0],
                               .ids = ids,
                               .weights = weights,
                               .input = moi_view(a->input),
                               .output = moi_view(a->output),
                               .n_tokens_device = moi_view(a->n_tokens_device),
                               .shared_o = m->o[1],
                               .shared_gate = shared_gate,
                               .n_tokens = run->n_tokens,
                               .top_k = d->top_k,
                               .n_experts = d->n_experts,
                               .n_class = d->n_experts + d->n_identity,
                               .h = d->hidden,
                               .ldo = d->hidden,
                               .input_type = d->input_type,
                               .output_type = d->output_type,
                               .input_stride = a->input_stride,
                               .output_stride = a->output_stride,
                               .weighted = d->weight_on == MOI_WEIGHT_ON_OUTPUT,
                               .accumulate = (d->flags & MOI_EXPERTS_ACCUMULATE) != 0,
                               .shared_ldo = d->hidden,
                               .scale = plan->output_scale};
}

/* Step 3, in one launch; in several where a row has two forms, the first of them made in its own place. */
static void prepare_mid(moi_cu_run *r, moi_cu_function function, const ffn *f, const memory *m, uint32_t n) {
  moi_cu_prepare_set all = {0};
  uint32_t most = 0;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t forms = moi_cu_prepare_add(&all, &f[i].quantise, f[i].mid_forms, &m->mid[i]);
    if (forms > most) most = forms;
  }
  if (most <= 1) moi_cu_prepare(r, function, &all);
  else
    for (uint32_t i = 0; i < MOI_CU_PREPARES; i++) moi_cu_prepare(r, function, &(moi_cu_prepare_set){.of = {all.of[i]}});
}

/* A product of the routed experts and the same of the shared one, in one launch where that can be. */
static void run_both(moi_cu_run *r, const moi_cu_grouped *g, uint32_t n) {
  if (n == 2 && g[0].groups->lists == 1 && moi_cu_gemm_pairs(&g[0], &g[1])) {
    moi_cu_gemm_run_pair(r, &g[0], &g[1]);
    return;
  }
  for (uint32_t i = 0; i < n; i++) moi_cu_gemm_run(r, &g[i]);
}

/* Down and combine in one launch, if that can be. */
static int run_combined(moi_cu_run *r, moi_cu_function function, const moi_cu_grouped *g, uint32_t n, uint32_t n_tokens,
                        const moi_cu_combine_args *combine) {
  if (!function || n_tokens > COMBINED_TOKENS || g[0].groups->lists != 1) return 0;
  if (n == 2 && !moi_cu_gemm_pairs(&g[0], &g[1])) return 0;
  moi_cu_down_args a = {.down = *g[0].args, .combine = *combine, .has_shared = n == 2};
  a.down.x = g[0].rows_of->of[MOI_CU_FLOATS];
  if (n == 2) {
    a.shared = *g[1].args;
    a.shared.x = g[1].rows_of->of[MOI_CU_FLOATS];
  }
  moi_cu_launch(r, function, &a, moi_cu_ceil_div(combine->h, COMBINED_COLUMNS), n_tokens, COMBINED_THREADS);
  return 1;
}

void moi_cu_ffn_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *c, int32_t *ids,
                    float *weights) {
  const moi_cu_plan *state = plan->state;
  const moi_experts_desc *d = &plan->experts, *s = &plan->shared;
  memory m;
  carve(plan, c, &m);
  uint32_t t = run->n_tokens, n_class = d->n_experts + d->n_identity, n_ffn = 1 + plan->has_shared;
  if (!t && !plan->has_route) return;
  const uint32_t *device = moi_view(run->experts.args.n_tokens_device);
  if (plan->has_route && run->route.permutation.ptr) m.groups.permutation = moi_view(run->route.permutation);
  moi_cu_groups_few(&m.groups, t);
  ffn f[2];
  memset(f, 0, sizeof f);
  /* shared x is routed x where both are made alike of the same rows */
  int one_x = plan->has_shared && same_view(run->shared.args.input, run->experts.args.input) &&
              run->shared.args.input_stride == run->experts.args.input_stride && d->input_type == s->input_type &&
              d->act_quant == s->act_quant && !weighted_input(d);
  const void *gate = plan->has_shared && plan->shared_gate ? moi_view(run->shared_gate) : NULL;
  moi_cu_sort_prepare_args first = {.sort = moi_cu_groups_args(&m.groups, ids, t, d->top_k, n_class, d->n_experts)};
  first.sort.n_tokens_device = device;
  f[0].prepare = prepare_of(d, &run->experts.args, t, device, weights, one_x ? gate : NULL, plan->shared_gate_type,
                            m.gate);
  f[0].x_forms = moi_cu_forms(&state->ffn[0].up, moi_cu_lists(&state->ffn[0].up, &m.groups, t * d->top_k));
  fill_ffn(plan, run, &m, 0, weights, 0, &f[0]);
  if (plan->has_shared) {
    uint32_t forms = moi_cu_forms(&state->ffn[1].up, moi_cu_lists(&state->ffn[1].up, NULL, t * s->top_k));
    if (!one_x)
      f[1].prepare = prepare_of(s, &run->shared.args, t, device, NULL, gate, plan->shared_gate_type, m.gate);
    f[one_x ? 0 : 1].x_forms |= forms;
    fill_ffn(plan, run, &m, 1, NULL, one_x ? 0 : 1, &f[1]);
  }
  for (uint32_t i = 0; i < n_ffn && t; i++)
    if (f[i].prepare.n_rows) moi_cu_prepare_add(&first.rows, &f[i].prepare, f[i].x_forms, &m.x[i]);
  if (plan->has_route) moi_cu_route_run(plan, run, r, c, ids, weights, &first);
  else moi_cu_sort(r, &state->sort, &first);
  if (!t) return;

  moi_cu_grouped up[2], down[2];
  for (uint32_t i = 0; i < n_ffn; i++) {
    const moi_cu_groups *groups = i ? NULL : &m.groups;
    up[i] = (moi_cu_grouped){&state->ffn[i].up, &f[i].up, groups, f[i].up.ldy, f[i].up.n_rows, &f[i].x};
    down[i] = (moi_cu_grouped){&state->ffn[i].down, &f[i].down, groups, d->hidden, f[i].down.n_rows, &f[i].mid};
  }
  run_both(r, up, n_ffn);
  prepare_mid(r, state->prepare, f, &m, n_ffn);
  moi_cu_combine_args combine = combine_of(plan, run, &m, ids, weights, gate ? m.gate : NULL);
  if (run_combined(r, state->ffn[0].combine, down, n_ffn, t, &combine)) return;
  run_both(r, down, n_ffn);
  moi_cu_launch(r, state->combine, &combine, moi_cu_ceil_div(d->hidden, 2 * MOI_CU_COMBINE_THREADS), moi_cu_min(t, 65535),
                MOI_CU_COMBINE_THREADS);
}
