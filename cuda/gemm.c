/* The bare grouped GEMM: rows come sorted by expert. */
#include "cuda/grouped.h"

typedef struct memory {
  moi_cu_rows x;
  float *y;
  moi_cu_groups groups;
  void *room;
} memory;

static void carve(const moi_plan *plan, moi_carve *c, memory *m) {
  const moi_cu_plan *state = plan->state;
  const moi_gemm_desc *d = &plan->gemm;
  moi_cu_groups_carve(c, &state->gemm, &state->gemm, d->max_rows, d->n_experts, d->n_experts, 1, 0, &m->groups);
  moi_cu_activations x = {d->input_type, d->act_quant};
  moi_cu_rows_carve(c, moi_cu_forms(&state->gemm, 3), d->max_rows, d->k, &x, &m->x);
  m->y = moi_take(c, d->max_rows, (size_t)d->n * 4);
  m->room = moi_cu_gemm_room(c, plan, &state->gemm);
}

void moi_cu_gemm_count(const moi_plan *plan, moi_carve *c) {
  memory m;
  carve(plan, c, &m);
}

moi_status moi_cu_gemm_plan(const char *fn, moi_plan *plan, const char *forced, int *found) {
  moi_cu_plan *state = plan->state;
  moi_cu_activations x = {plan->gemm.input_type, plan->gemm.act_quant};
  moi_status status =
      moi_cu_gemm_choose_of(fn, plan, "gemm", plan->gemm.format, 0, &x, forced, found, &state->gemm);
  if (!status) status = moi_cu_function_get(fn, plan->context, "sort", "groups", &state->groups);
  if (!status) status = moi_cu_function_get(fn, plan->context, "rows", "prepare", &state->prepare);
  if (!status) status = moi_cu_function_get(fn, plan->context, "rows", "store_rows", &state->store);
  return status;
}

void moi_cu_bare_gemm_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *c) {
  const moi_cu_plan *state = plan->state;
  const moi_gemm_desc *d = &plan->gemm;
  memory m;
  carve(plan, c, &m);
  uint32_t rows = run->n_tokens;
  if (!rows) return;
  moi_cu_groups_few(&m.groups, rows);
  moi_cu_prepare_args prepare = {.input = moi_view(run->gemm.input),
                                 .input_type = d->input_type,
                                 .input_stride = run->gemm.input_stride,
                                 .ldx = moi_cu_kp(d->k),
                                 .k = d->k,
                                 .n_rows = rows,
                                 .row_div = 1,
                                 .rows_per_count = 1,
                                 .act_quant = (uint32_t)d->act_quant};
  moi_cu_gemm_args a = {.y = m.y,
                        .ldx = prepare.ldx,
                        .ldy = d->n,
                        .n = d->n,
                        .k = d->k,
                        .x_div = 1,
                        .n_rows = rows,
                        .bias_type = d->bias_type,
                        .rows_per_count = 1};
  a.up = moi_cu_matrix_of(&run->gemm_weights, d->format, d->n, d->k, (d->flags & MOI_EXPERTS_TABLES) != 0);
  moi_cu_store_args store = {.y = m.y,
                             .output = moi_view(run->gemm.output),
                             .ends = m.groups.ends,
                             .n_rows = rows,
                             .n = d->n,
                             .ldy = d->n,
                             .output_type = d->output_type,
                             .bias_type = d->bias_type,
                             .output_stride = run->gemm.output_stride,
                             .accumulate = (d->flags & MOI_EXPERTS_ACCUMULATE) != 0};
  moi_cu_groups_given(r, state->groups, &m.groups, moi_view(run->gemm.offsets), rows, d->n_experts);
  moi_cu_prepare_set set = {0};
  moi_cu_prepare_add(&set, &prepare, moi_cu_forms(&state->gemm, moi_cu_lists(&state->gemm, &m.groups, rows)), &m.x);
  moi_cu_prepare(r, state->prepare, &set);
  moi_cu_gemm_run(r, &(moi_cu_grouped){&state->gemm, &a, &m.groups, d->n, rows, &m.x, m.room});
  if (state->gemm.pick.many->flags & MOI_CU_ROW_CUBLAS) {
    store.row_scales = a.x_scales;
    store.global_scale = a.up.global_scale;
    store.bias = d->bias_type ? a.up.bias : NULL;
  }
  moi_cu_launch(r, state->store, &store, moi_cu_ceil_div(d->n, 2 * MOI_CU_STORE_THREADS), moi_cu_min(rows, 65535),
                MOI_CU_STORE_THREADS);
}
