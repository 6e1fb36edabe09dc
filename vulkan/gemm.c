/* The bare grouped GEMM: rows come sorted by expert. */
#include "vulkan/grouped.h"

/* store_rows.comp: StoreArgs */
typedef struct store_args {
  uint64_t y, output_rows, ends;
  uint32_t n_rows, n, ldy, output_type;
  uint32_t output_stride, accumulate;
} store_args;

typedef struct memory {
  size_t block, x, y;
  moi_vk_groups groups;
} memory;

static void carve(const moi_plan *plan, moi_carve *c, memory *m) {
  const moi_vk_plan *state = plan->state;
  const moi_gemm_desc *d = &plan->gemm;
  m->block = moi_take_at(c, sizeof(((moi_vk_block *)0)->bytes), 1);
  moi_vk_groups_carve(c, &state->gemm, &state->gemm, d->max_rows, d->n_experts, d->n_experts, 1, &m->groups);
  m->x = moi_take_at(c, d->max_rows, (size_t)moi_vk_kp(d->k) * 4);
  m->y = moi_take_at(c, d->max_rows, (size_t)d->n * 4);
}

void moi_vk_gemm_count(const moi_plan *plan, moi_carve *c) {
  memory m;
  carve(plan, c, &m);
}

moi_status moi_vk_gemm_plan(const char *fn, moi_plan *plan, const char *forced, int *found) {
  moi_vk_plan *state = plan->state;
  const uint32_t offsets_given = 1;
  moi_status status = moi_vk_gemm_choose(fn, plan, "gemm", plan->gemm.format, 0, plan->gemm.act_quant, forced, found, &state->gemm);
  if (!status) status = moi_vk_pipeline_want(fn, plan, "sort", &offsets_given, 1, &state->sort);
  if (!status) status = moi_vk_pipeline_want(fn, plan, "prepare", NULL, 0, &state->prepare);
  if (!status) status = moi_vk_pipeline_want(fn, plan, "store_rows", NULL, 0, &state->store);
  return status;
}

void moi_vk_bare_gemm_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *c) {
  const moi_vk_plan *state = plan->state;
  const moi_gemm_desc *d = &plan->gemm;
  memory m;
  carve(plan, c, &m);
  uint32_t rows = run->n_tokens;
  if (!rows) return;
  uint64_t base = r->workspace_address;
  moi_vk_block block = {.at = m.block};
  int aligned = 1;
  uint64_t sort = moi_vk_groups_put(r, &block, &m.groups, moi_vk_address(r, run->gemm.offsets), 0, rows, 1, d->n_experts,
                                    d->n_experts);
  moi_vk_prepare_args prepare = {.input_rows = moi_vk_address(r, run->gemm.input),
                                 .x = base + m.x,
                                 .input_type = d->input_type,
                                 .input_stride = run->gemm.input_stride,
                                 .ldx = moi_vk_kp(d->k),
                                 .k = d->k,
                                 .n_rows = rows,
                                 .row_div = 1,
                                 .rows_per_count = 1,
                                 .act_quant = (uint32_t)d->act_quant,
                                 .form = state->gemm.form};
  moi_vk_gemm_args a = {.x = prepare.x,
                        .y = base + m.y,
                        .ldx = prepare.ldx,
                        .ldy = d->n,
                        .n = d->n,
                        .k = d->k,
                        .x_div = 1,
                        .n_rows = rows,
                        .bias_type = d->bias_type,
                        .rows_per_count = 1};
  a.up = moi_vk_matrix_of(r, 0, &run->gemm_weights, d->n, d->k, (d->flags & MOI_EXPERTS_TABLES) != 0, &aligned);
  store_args store = {.y = a.y,
                      .output_rows = moi_vk_address(r, run->gemm.output),
                      .ends = base + m.groups.ends,
                      .n_rows = rows,
                      .n = d->n,
                      .ldy = d->n,
                      .output_type = d->output_type,
                      .output_stride = run->gemm.output_stride,
                      .accumulate = (d->flags & MOI_EXPERTS_ACCUMULATE) != 0};
  uint64_t prepare_at = moi_vk_put(r, &block, &prepare, sizeof prepare), args = moi_vk_put(r, &block, &a, sizeof a);
  uint64_t store_at = moi_vk_put(r, &block, &store, sizeof store);
  moi_vk_gemm gemm = moi_vk_gemm_make(r, &state->gemm, args, &m.groups, 0, aligned, d->n, rows, (double)rows * d->n * d->k);
  gemm.weights[0] = &run->gemm_weights;
  moi_vk_flush(r, &block);
  moi_vk_gemm_dispatches(r, &gemm);
  moi_vk_barrier(r);
  moi_vk_dispatch(r, state->sort, &sort, sizeof sort, 1, 1, 1);
  moi_vk_prepare(r, state->prepare, prepare_at, rows);
  moi_vk_barrier(r);
  moi_vk_gemm_record(r, &gemm);
  moi_vk_barrier(r);
  moi_vk_dispatch(r, state->store, &store_at, sizeof store_at, (d->n + 127) / 128, rows < 65535 ? rows : 65535, 1);
}
