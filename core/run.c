/* Runs: every view is checked against the plan, then the backend gets normalised args. */
#include <string.h>

#include "core/backend.h"
#include "core/check.h"
#include "core/format.h"
#include "core/structs.h"
#include "core/workspace.h"

static moi_status check_weights(const char *fn, moi_memory memory, const char *what, moi_weights *out, const moi_weights *in,
                                moi_format format, uint32_t n, uint32_t k, uint32_t n_experts, moi_format bias_type,
                                int tables) {
  TRY(moi_struct_in(fn, what, out, sizeof *out, in));
  TRY(moi_chain_none(fn, what, out->next));
  moi_format_sizes sizes;
  TRY(moi_format_size(format, n, k, &sizes));
  const moi_format_row *row = moi_format_find(format);
  uint64_t bias = bias_type ? (uint64_t)n * moi_dense_bytes(bias_type) : 0;
  struct {
    const char *name;
    moi_buffer *view;
    uint64_t *stride, bytes;
    uint32_t align;
  } streams[] = {
      {"data", &out->data, &out->data_stride, sizes.data, moi_format_align(row)},
      {"scales", &out->scales, &out->scales_stride, sizes.scales, row->scale_bytes ? row->scale_bytes : 1},
      {"zeros", &out->zeros, &out->zeros_stride, sizes.zeros, row->zero_bits == 4 ? 4 : 1},
      {"bias", &out->bias, &out->bias_stride, bias, bias_type ? moi_dense_bytes(bias_type) : 1},
  };
  for (int i = 0; i < 4; i++) {
    if (!streams[i].bytes) { /* no such stream: whatever the view and its stride say reaches no kernel */
      memset(streams[i].view, 0, sizeof *streams[i].view);
      continue;
    }
    char name[96];
    size_t at = 0; /* what->name without snprintf: this is on every run's path */
    for (const char *p = what; *p && at < 60; p++) name[at++] = *p;
    name[at++] = '-', name[at++] = '>';
    for (const char *p = streams[i].name; *p; p++) name[at++] = *p;
    name[at] = 0;
    if (tables) {
      TRY(need(fn, memory, name, *streams[i].view, (uint64_t)n_experts * 8, 8));
      continue;
    }
    if (!*streams[i].stride) *streams[i].stride = streams[i].bytes;
    if (n_experts > 1 && *streams[i].stride < streams[i].bytes)
      REFUSE("%s_stride: %llu, one expert has %llu bytes", name, (unsigned long long)*streams[i].stride,
             (unsigned long long)streams[i].bytes);
    if (*streams[i].stride > (UINT64_MAX >> 17)) REFUSE("%s_stride: is out of range", name);
    if (*streams[i].stride % streams[i].align) REFUSE("%s_stride: is not a multiple of %u", name, streams[i].align);
    TRY(need(fn, memory, name, *streams[i].view, *streams[i].stride * (n_experts - 1) + streams[i].bytes, streams[i].align));
  }
  return need_optional(fn, memory, "weights->global_scale", out->global_scale, (uint64_t)n_experts * 4, 4);
}

static moi_status check_route(const char *fn, const moi_plan *plan, moi_route_args *a, int embedded) {
  const moi_route_desc *d = &plan->route;
  moi_memory memory = moi_memory_of(plan);
  uint32_t t = a->n_tokens, n_class = d->n_experts + d->n_identity;
  if (t > d->max_tokens) REFUSE("args->n_tokens: %u, the plan's max_tokens is %u", t, d->max_tokens);
  uint32_t in_bytes = moi_dense_bytes(d->input_type), router_bytes = moi_dense_bytes(d->router_type);
  uint32_t width = d->hidden ? d->hidden : n_class;
  TRY(resolve_stride(fn, "args->hidden_stride", &a->hidden_stride, width));
  TRY(need_optional(fn, memory, "args->n_tokens_device", a->n_tokens_device, 4, 4));
  uint64_t rows = rows_bytes(t, a->hidden_stride, width, in_bytes);
  uint64_t any = t ? 1 : 0; /* operands that no token reads are not asked for */
  if (d->hidden) {
    TRY(need(fn, memory, "args->hidden", a->hidden, rows, in_bytes));
    TRY(need(fn, memory, "args->router", a->router, any * n_class * d->hidden * router_bytes, router_bytes));
  } else {
    TRY(need(fn, memory, "args->logits", a->logits, rows, in_bytes));
  }
  if (d->flags & MOI_ROUTE_BIAS)
    TRY(need(fn, memory, "args->router_bias", a->router_bias, any * n_class * router_bytes, router_bytes));
  if (d->flags & MOI_ROUTE_SELECT_BIAS) TRY(need(fn, memory, "args->select_bias", a->select_bias, any * n_class * 4, 4));
  if (d->flags & MOI_ROUTE_SELECT_BIAS_ALT) {
    TRY(need(fn, memory, "args->select_bias_alt", a->select_bias_alt, any * n_class * 4, 4));
    TRY(need(fn, memory, "args->alt_mask", a->alt_mask, t, 1));
  }
  if (d->flags & MOI_ROUTE_EXPERT_SCALE) TRY(need(fn, memory, "args->expert_scale", a->expert_scale, any * n_class * 4, 4));
  if (d->flags & MOI_ROUTE_INPUT_NORM)
    TRY(need(fn, memory, "args->norm_weight", a->norm_weight, any * d->hidden * router_bytes, router_bytes));
  if (d->flags & MOI_ROUTE_HASH) {
    TRY(need(fn, memory, "args->hash_table", a->hash_table, any * d->vocab * d->top_k * 4, 4));
    TRY(need(fn, memory, "args->token_ids", a->token_ids, (uint64_t)t * 4, 4));
  }
  uint64_t slots = (uint64_t)t * d->top_k * 4;
  TRY((embedded ? need_optional : need)(fn, memory, "args->ids", a->ids, slots, 4));
  TRY((embedded ? need_optional : need)(fn, memory, "args->weights", a->weights, slots, 4));
  TRY(need_optional(fn, memory, "args->counts", a->counts, (uint64_t)n_class * 4, 4));
  TRY(need_optional(fn, memory, "args->offsets", a->offsets, (uint64_t)(n_class + 1) * 4, 4));
  TRY(need_optional(fn, memory, "args->permutation", a->permutation, slots, 4));
  return need_optional(fn, memory, "args->logits_out", a->logits_out, (uint64_t)t * n_class * 4, 4);
}

static moi_status check_ffn_weights(const char *fn, moi_memory memory, const moi_experts_desc *d, moi_ffn_run *r) {
  uint32_t both = d->gate_layout == MOI_GATE_CONCAT || d->gate_layout == MOI_GATE_INTERLEAVED;
  int tables = (d->flags & MOI_EXPERTS_TABLES) != 0;
  if (d->gate_layout == MOI_GATE_SPLIT)
    TRY(check_weights(fn, memory, "args->gate", &r->gate, r->args.gate, d->format, d->intermediate, d->hidden, d->n_experts,
                      d->bias_type, tables));
  TRY(check_weights(fn, memory, "args->up", &r->up, r->args.up, d->format, d->intermediate << both, d->hidden, d->n_experts,
                    d->bias_type, tables));
  return check_weights(fn, memory, "args->down", &r->down, r->args.down, d->down_format, d->hidden, d->intermediate,
                       d->n_experts, d->bias_type, tables);
}

/* with_ids: the engine's ids and weights are read; with_output: this FFN owns the output */
static moi_status check_ffn(const char *fn, moi_memory memory, const moi_experts_desc *d, moi_ffn_run *r, int with_ids, int with_output) {
  moi_experts_args *a = &r->args;
  uint32_t t = a->n_tokens;
  if (t > d->max_tokens) REFUSE("args->n_tokens: %u, the plan's max_tokens is %u", t, d->max_tokens);
  TRY(resolve_stride(fn, "args->input_stride", &a->input_stride, d->hidden));
  TRY(resolve_stride(fn, "args->output_stride", &a->output_stride, d->hidden));
  TRY(need_optional(fn, memory, "args->n_tokens_device", a->n_tokens_device, 4, 4));
  uint32_t in_bytes = moi_dense_bytes(d->input_type), out_bytes = moi_dense_bytes(d->output_type);
  uint64_t in = rows_bytes(t, a->input_stride, d->hidden, in_bytes);
  uint64_t out = rows_bytes(t, a->output_stride, d->hidden, out_bytes);
  TRY(need(fn, memory, "args->input", a->input, in, in_bytes));
  if (with_output) {
    TRY(need(fn, memory, "args->output", a->output, out, out_bytes));
    if (overlap(a->input, in, a->output, out)) REFUSE("args->output: overlaps args->input");
  }
  if (with_ids) {
    uint64_t slots = (uint64_t)t * d->top_k * 4;
    TRY(need(fn, memory, "args->ids", a->ids, slots, 4));
    TRY(need(fn, memory, "args->weights", a->weights, slots, 4));
    if (overlap(a->ids, slots, a->output, out) || overlap(a->weights, slots, a->output, out))
      REFUSE("args->output: overlaps args->ids or args->weights");
  }
  return t ? check_ffn_weights(fn, memory, d, r) : MOI_OK;
}

moi_status moi_run_begin(const char *fn, const moi_plan *plan, moi_op op, moi_buffer workspace, moi_queue queue,
                         moi_run *run) {
  if (!plan) REFUSE("plan: is null");
  if (plan->op != op) REFUSE("plan: is of another op family");
  memset(run, 0, sizeof *run);
  run->workspace = workspace;
  run->queue = queue;
  return need(fn, moi_memory_of(plan), "workspace", workspace, plan->workspace, (uint32_t)plan->workspace_align);
}

static moi_status take_ffn(const char *fn, const char *what, moi_experts_args *dst, const moi_experts_args *src) {
  TRY(moi_struct_in(fn, what, dst, sizeof *dst, src));
  return moi_chain_none(fn, what, dst->next);
}

static moi_status take_route(const char *fn, const char *what, moi_route_args *dst, const moi_route_args *src) {
  TRY(moi_struct_in(fn, what, dst, sizeof *dst, src));
  return moi_chain_none(fn, what, dst->next);
}

static moi_status go(const char *fn, const moi_plan *plan, const moi_run *run) {
  return plan->context->ops->run(fn, plan, run);
}

moi_status moi_route_run(const moi_plan *plan, const moi_route_args *args, moi_buffer workspace, moi_queue queue) {
  const char *fn = "moi_route_run";
  moi_run run;
  TRY(moi_run_begin(fn, plan, MOI_OP_ROUTE, workspace, queue, &run));
  TRY(take_route(fn, "args", &run.route, args));
  TRY(check_route(fn, plan, &run.route, 0));
  run.n_tokens = run.route.n_tokens;
  return go(fn, plan, &run);
}

moi_status moi_experts_run(const moi_plan *plan, const moi_experts_args *args, moi_buffer workspace, moi_queue queue) {
  const char *fn = "moi_experts_run";
  moi_run run;
  TRY(moi_run_begin(fn, plan, MOI_OP_EXPERTS, workspace, queue, &run));
  moi_memory memory = moi_memory_of(plan);
  TRY(take_ffn(fn, "args", &run.experts.args, args));
  TRY(check_ffn(fn, memory, &plan->experts, &run.experts, 1, 1));
  run.n_tokens = run.experts.args.n_tokens;
  return go(fn, plan, &run);
}

moi_status moi_gemm_run(const moi_plan *plan, const moi_gemm_args *args, moi_buffer workspace, moi_queue queue) {
  const char *fn = "moi_gemm_run";
  moi_run run;
  TRY(moi_run_begin(fn, plan, MOI_OP_GEMM, workspace, queue, &run));
  moi_memory memory = moi_memory_of(plan);
  moi_gemm_args *a = &run.gemm;
  TRY(MOI_STRUCT_IN(fn, a, args));
  TRY(moi_chain_none(fn, "args", a->next));
  const moi_gemm_desc *d = &plan->gemm;
  if (a->n_rows > d->max_rows) REFUSE("args->n_rows: %u, the plan's max_rows is %u", a->n_rows, d->max_rows);
  TRY(resolve_stride(fn, "args->input_stride", &a->input_stride, d->k));
  TRY(resolve_stride(fn, "args->output_stride", &a->output_stride, d->n));
  uint32_t in_bytes = moi_dense_bytes(d->input_type), out_bytes = moi_dense_bytes(d->output_type);
  uint64_t in = rows_bytes(a->n_rows, a->input_stride, d->k, in_bytes);
  uint64_t out = rows_bytes(a->n_rows, a->output_stride, d->n, out_bytes);
  TRY(need(fn, memory, "args->input", a->input, in, in_bytes));
  TRY(need(fn, memory, "args->output", a->output, out, out_bytes));
  TRY(need(fn, memory, "args->offsets", a->offsets, ((uint64_t)d->n_experts + 1) * 4, 4));
  if (overlap(a->input, in, a->output, out)) REFUSE("args->output: overlaps args->input");
  if (overlap(a->offsets, ((uint64_t)d->n_experts + 1) * 4, a->output, out))
    REFUSE("args->output: overlaps args->offsets");
  if (a->n_rows)
    TRY(check_weights(fn, memory, "args->weights", &run.gemm_weights, a->weights, d->format, d->n, d->k, d->n_experts,
                      d->bias_type, (d->flags & MOI_EXPERTS_TABLES) != 0));
  run.n_tokens = a->n_rows;
  return go(fn, plan, &run);
}

moi_status moi_moe_run(const moi_plan *plan, const moi_moe_args *args, moi_buffer workspace, moi_queue queue) {
  const char *fn = "moi_moe_run";
  moi_run run;
  moi_moe_args a;
  TRY(moi_run_begin(fn, plan, MOI_OP_MOE, workspace, queue, &run));
  moi_memory memory = moi_memory_of(plan);
  TRY(moi_struct_in(fn, "args", &a, sizeof a, args));
  TRY(moi_chain_none(fn, "args", a.next));
  TRY(take_ffn(fn, "args->experts", &run.experts.args, a.experts));
  TRY(check_ffn(fn, memory, &plan->experts, &run.experts, !plan->has_route, 1));
  run.n_tokens = run.experts.args.n_tokens;
  if (plan->has_route) {
    TRY(take_route(fn, "args->route", &run.route, a.route));
    if (run.route.n_tokens != run.n_tokens)
      REFUSE("args->route->n_tokens: %u, but args->experts has %u", run.route.n_tokens, run.n_tokens);
    run.route.n_tokens_device = run.experts.args.n_tokens_device;
    TRY(check_route(fn, plan, &run.route, 1));
  }
  if (plan->has_shared) {
    TRY(take_ffn(fn, "args->shared", &run.shared.args, a.shared));
    moi_experts_args *s = &run.shared.args;
    s->n_tokens = run.n_tokens;
    if (!moi_has(s->input)) {
      if (plan->shared.input_type != plan->experts.input_type)
        REFUSE("args->shared->input: is absent, but shared has another input_type than experts");
      s->input = run.experts.args.input;
      s->input_stride = run.experts.args.input_stride;
    }
    TRY(check_ffn(fn, memory, &plan->shared, &run.shared, 0, 0));
    const moi_experts_args *x = &run.experts.args;
    uint64_t in = rows_bytes(s->n_tokens, s->input_stride, plan->shared.hidden, moi_dense_bytes(plan->shared.input_type));
    uint64_t out = rows_bytes(x->n_tokens, x->output_stride, plan->experts.hidden,
                              moi_dense_bytes(plan->experts.output_type));
    if (overlap(s->input, in, x->output, out)) REFUSE("args->experts->output: overlaps args->shared->input");
    if (plan->shared_gate == MOI_SHARED_SIGMOID) {
      uint32_t bytes = moi_dense_bytes(plan->shared_gate_type);
      TRY(need(fn, memory, "args->shared_gate", a.shared_gate, (uint64_t)plan->shared.hidden * bytes, bytes));
      run.shared_gate = a.shared_gate;
    }
  }
  return go(fn, plan, &run);
}
