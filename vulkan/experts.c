/* The expert FFN: routed experts and, in moe, the shared one beside them.
 *
 *   1 sort      slots by expert, work items            and beside it: prepare, x rows in fp32 as the model wants them
 *   2 gate/up   both GEMMs, bias, activation -> mid
 *   3 quantise  mid rows, where the model or the down GEMM's row asks for it
 *   4 down      -> o, a row for each slot
 *   5 combine   a token gathers its slots' rows in ascending order of expert: one order of summation, no atomics
 *
 * Rows of mid and o lie by slot, so that nothing needs the inverse of the permutation. */
#include "vulkan/grouped.h"

/* combine.comp: CombineArgs */
typedef struct combine_args {
  uint64_t o, ids, weights, input_rows, output_rows, n_tokens_device;
  uint64_t shared_o, shared_gate;
  uint32_t n_tokens, top_k, n_experts, n_class;
  uint32_t h, ldo, input_type, output_type;
  uint32_t input_stride, output_stride, weighted, accumulate;
  uint32_t shared_ldo;
  float scale;
} combine_args;

typedef struct memory {
  size_t block;
  moi_vk_groups groups;
  size_t x[2], mid[2], o[2], gate; /* routed, shared */
} memory;

static int weighted_input(const moi_experts_desc *d) { return d->weight_on == MOI_WEIGHT_ON_INPUT; }

static void carve(const moi_plan *plan, moi_carve *c, memory *m) {
  const moi_vk_plan *state = plan->state;
  m->block = moi_take_at(c, sizeof(((moi_vk_block *)0)->bytes), 1);
  for (uint32_t i = 0; i < 1 + plan->has_shared; i++) {
    const moi_experts_desc *d = i ? &plan->shared : &plan->experts;
    size_t tokens = d->max_tokens, slots = tokens * d->top_k;
    if (!i) moi_vk_groups_carve(c, &state->ffn[0].up, &state->ffn[0].down, slots, d->n_experts + d->n_identity, d->n_experts, 0, &m->groups);
    m->x[i] = moi_take_at(c, weighted_input(d) ? slots : tokens, (size_t)moi_vk_kp(d->hidden) * 4);
    m->mid[i] = moi_take_at(c, slots, (size_t)moi_vk_kp(d->intermediate) * 4);
    m->o[i] = moi_take_at(c, slots, (size_t)d->hidden * 4);
  }
  m->gate = moi_take_at(c, plan->experts.max_tokens, 4);
}

void moi_vk_ffn_count(const moi_plan *plan, moi_carve *c) {
  memory m;
  carve(plan, c, &m);
}

moi_status moi_vk_ffn_plan(const char *fn, moi_plan *plan, const char *forced, int *found) {
  moi_vk_plan *state = plan->state;
  static const char *const names[2][2] = {{"experts gate and up", "experts down"}, {"shared gate and up", "shared down"}};
  for (uint32_t i = 0; i < 1 + plan->has_shared; i++) {
    const moi_experts_desc *d = i ? &plan->shared : &plan->experts;
    moi_vk_ffn_state *f = &state->ffn[i];
    const char *name = forced ? forced : d->kernel;
    int served = 0;
    moi_status status = moi_vk_gemm_choose(fn, plan, names[i][0], d->format, 1, d->act_quant, name, &served, &f->up);
    if (!status)
      status = moi_vk_gemm_choose(fn, plan, names[i][1], d->down_format, 0, d->act_quant, name, &served, &f->down);
    if (status) return status;
    if (!forced && name && !served)
      return moi_fail(MOI_UNSUPPORTED, fn, "kernel: '%s' is no Vulkan kernel for these formats", name);
    *found |= forced && served;
  }
  moi_status status = moi_vk_sort_plan(fn, plan, &state->sort);
  if (!status) status = moi_vk_pipeline_want(fn, plan, "prepare", NULL, 0, &state->prepare);
  if (!status) status = moi_vk_pipeline_want(fn, plan, "combine", NULL, 0, &state->combine);
  return status;
}

static int same_view(moi_buffer a, moi_buffer b) { return a.handle == b.handle && a.offset == b.offset; }

/* One FFN's arguments and GEMMs. */
typedef struct ffn {
  uint64_t prepare, quantise; /* 0: none */
  uint32_t x_rows, mid_rows;
  moi_vk_gemm up, down;
} ffn;

static void put_ffn(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_vk_block *block,
                    const memory *m, uint32_t i, uint64_t weights, uint64_t x, ffn *out) {
  const moi_vk_plan *state = plan->state;
  const moi_experts_desc *d = i ? &plan->shared : &plan->experts;
  const moi_ffn_run *in = i ? &run->shared : &run->experts;
  const moi_vk_groups *groups = i ? NULL : &m->groups;
  uint64_t base = r->workspace_address, device = moi_vk_address(r, run->experts.args.n_tokens_device);
  uint32_t tables = (d->flags & MOI_EXPERTS_TABLES) != 0, t = run->n_tokens, slots = t * d->top_k, inter = d->intermediate;
  uint32_t both = d->gate_layout == MOI_GATE_CONCAT || d->gate_layout == MOI_GATE_INTERLEAVED;
  int up_aligned = 1, down_aligned = 1;
  moi_vk_gemm_args up = {.x = x,
                         .y = base + m->mid[i],
                         .permutation = groups ? base + groups->permutation : 0,
                         .n_rows_device = device,
                         .weights = d->weight_on == MOI_WEIGHT_ON_ACTIVATION ? weights : 0,
                         .ldx = moi_vk_kp(d->hidden),
                         .ldy = moi_vk_kp(inter),
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
  up.up = moi_vk_matrix_of(r, 0, &in->up, inter << both, d->hidden, tables, &up_aligned);
  up.gate = up.up;
  if (d->gate_layout == MOI_GATE_SPLIT) up.gate = moi_vk_matrix_of(r, 1, &in->gate, inter, d->hidden, tables, &up_aligned);
  if (d->gate_layout == MOI_GATE_CONCAT) up.up.row_add = inter;
  if (d->gate_layout == MOI_GATE_INTERLEAVED) up.up.row_mul = up.gate.row_mul = 2, up.up.row_add = 1;
  moi_vk_gemm_args down = {.x = base + m->mid[i],
                           .y = base + m->o[i],
                           .permutation = up.permutation,
                           .n_rows_device = device,
                           .ldx = moi_vk_kp(inter),
                           .ldy = d->hidden,
                           .n = d->hidden,
                           .k = inter,
                           .x_div = 1,
                           .n_rows = slots,
                           .bias_type = d->bias_type,
                           .rows_per_count = d->top_k};
  down.up = moi_vk_matrix_of(r, 0, &in->down, d->hidden, inter, tables, &down_aligned);
  double work = (double)slots * inter * d->hidden;
  out->up = moi_vk_gemm_make(r, &state->ffn[i].up, moi_vk_put(r, block, &up, sizeof up), groups, 0, up_aligned, up.ldy,
                             slots, 2 * work);
  out->down = moi_vk_gemm_make(r, &state->ffn[i].down, moi_vk_put(r, block, &down, sizeof down), groups, 1, down_aligned,
                               d->hidden, slots, work);
  out->up.weights[0] = &in->up;
  out->up.weights[1] = d->gate_layout == MOI_GATE_SPLIT ? &in->gate : NULL;
  out->down.weights[0] = &in->down;
  out->quantise = 0;
  out->mid_rows = slots;
  if (!d->act_quant && !state->ffn[i].down.form) return;
  moi_vk_prepare_args quantise = {.input_rows = down.x,
                                  .x = down.x,
                                  .n_rows_device = device,
                                  .input_type = MOI_FORMAT_F32,
                                  .input_stride = down.ldx,
                                  .ldx = down.ldx,
                                  .k = inter,
                                  .n_rows = slots,
                                  .row_div = 1,
                                  .rows_per_count = d->top_k,
                                  .act_quant = (uint32_t)d->act_quant,
                                  .form = state->ffn[i].down.form};
  out->quantise = moi_vk_put(r, block, &quantise, sizeof quantise);
}

/* The preparation of x; gate: the shared expert's, computed on the same rows. */
static uint64_t put_prepare(const moi_experts_desc *d, const moi_experts_args *a, moi_vk_form form,
                            const moi_vk_record *r, moi_vk_block *block, uint32_t t, uint64_t device, uint64_t x,
                            uint64_t weights, uint64_t gate, moi_format gate_type, uint64_t gate_out) {
  int slots = weighted_input(d);
  moi_vk_prepare_args p = {.input_rows = moi_vk_address(r, a->input),
                           .x = x,
                           .weights = slots ? weights : 0,
                           .n_rows_device = device,
                           .gate = gate,
                           .gate_out = gate_out,
                           .input_type = d->input_type,
                           .gate_type = gate_type,
                           .input_stride = a->input_stride,
                           .ldx = moi_vk_kp(d->hidden),
                           .k = d->hidden,
                           .n_rows = slots ? t * d->top_k : t,
                           .row_div = slots ? d->top_k : 1,
                           .rows_per_count = slots ? d->top_k : 1,
                           .act_quant = (uint32_t)d->act_quant,
                           .form = form};
  return moi_vk_put(r, block, &p, sizeof p);
}

void moi_vk_ffn_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *c, uint64_t ids,
                       uint64_t weights) {
  const moi_vk_plan *state = plan->state;
  const moi_experts_desc *d = &plan->experts, *s = &plan->shared;
  memory m;
  carve(plan, c, &m);
  uint32_t t = run->n_tokens, n_class = d->n_experts + d->n_identity;
  if (!t) return;
  uint64_t base = r->workspace_address, device = moi_vk_address(r, run->experts.args.n_tokens_device);
  moi_vk_block block = {.at = m.block};
  ffn f[2];
  memset(f, 0, sizeof f);
  /* shared x is routed x where both are made alike of the same rows */
  int one_x = plan->has_shared && same_view(run->shared.args.input, run->experts.args.input) &&
              run->shared.args.input_stride == run->experts.args.input_stride && d->input_type == s->input_type &&
              d->act_quant == s->act_quant && state->ffn[0].up.form == state->ffn[1].up.form && !weighted_input(d);
  uint64_t gate = plan->has_shared && plan->shared_gate ? moi_vk_address(r, run->shared_gate) : 0;
  uint64_t x0 = base + m.x[0], x1 = one_x ? x0 : base + m.x[1];
  uint64_t sort = moi_vk_groups_put(r, &block, &m.groups, ids, device, t, d->top_k, n_class, d->n_experts);
  f[0].x_rows = weighted_input(d) ? t * d->top_k : t;
  f[0].prepare = put_prepare(d, &run->experts.args, state->ffn[0].up.form, r, &block, t, device, x0, weights, one_x ? gate : 0,
                             plan->shared_gate_type, base + m.gate);
  put_ffn(plan, run, r, &block, &m, 0, weights, x0, &f[0]);
  if (plan->has_shared) {
    f[1].x_rows = t;
    if (!one_x)
      f[1].prepare = put_prepare(s, &run->shared.args, state->ffn[1].up.form, r, &block, t, device, x1, 0, gate, plan->shared_gate_type,
                                 base + m.gate);
    put_ffn(plan, run, r, &block, &m, 1, 0, x1, &f[1]);
  }
  combine_args combine = {.o = base + m.o[0],
                          .ids = ids,
                          .weights = weights,
                          .input_rows = moi_vk_address(r, run->experts.args.input),
                          .output_rows = moi_vk_address(r, run->experts.args.output),
                          .n_tokens_device = device,
                          .shared_o = plan->has_shared ? base + m.o[1] : 0,
                          .shared_gate = gate ? base + m.gate : 0,
                          .n_tokens = t,
                          .top_k = d->top_k,
                          .n_experts = d->n_experts,
                          .n_class = n_class,
                          .h = d->hidden,
                          .ldo = d->hidden,
                          .input_type = d->input_type,
                          .output_type = d->output_type,
                          .input_stride = run->experts.args.input_stride,
                          .output_stride = run->experts.args.output_stride,
                          .weighted = d->weight_on == MOI_WEIGHT_ON_OUTPUT,
                          .accumulate = (d->flags & MOI_EXPERTS_ACCUMULATE) != 0,
                          .shared_ldo = d->hidden,
                          .scale = plan->output_scale};
  uint64_t combine_at = moi_vk_put(r, &block, &combine, sizeof combine);
  moi_vk_flush(r, &block);
  moi_vk_gemm_dispatches(r, &f[0].up);
  moi_vk_gemm_dispatches(r, &f[0].down);
  moi_vk_barrier(r);
  moi_vk_dispatch(r, state->sort, &sort, sizeof sort, 1, 1, 1);
  for (int i = 0; i < 2; i++)
    if (f[i].prepare) moi_vk_prepare(r, state->prepare, f[i].prepare, f[i].x_rows);
  moi_vk_barrier(r);
  for (uint32_t i = 0; i < 1 + plan->has_shared; i++) moi_vk_gemm_record(r, &f[i].up);
  moi_vk_barrier(r);
  if (f[0].quantise || f[1].quantise) {
    for (int i = 0; i < 2; i++)
      if (f[i].quantise) moi_vk_prepare(r, state->prepare, f[i].quantise, f[i].mid_rows);
    moi_vk_barrier(r);
  }
  for (uint32_t i = 0; i < 1 + plan->has_shared; i++) moi_vk_gemm_record(r, &f[i].down);
  moi_vk_barrier(r);
  moi_vk_dispatch(r, state->combine, &combine_at, sizeof combine_at, (d->hidden + 127) / 128, t < 65535 ? t : 65535, 1);
}
