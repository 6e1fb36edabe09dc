#include "bench/rig/case.h"

#include <stdio.h>
#include <string.h>

#include "bench/rig/device.h"
#include "bench/rig/random.h"
#include "core/backend.h"

static const moi_experts_desc *ffn_of(const moi_case *c) { return &c->experts; }

static int writes_rows(const moi_case *c) { return c->op != MOI_OP_ROUTE && c->op != MOI_OP_ATTENTION; }
static int writes_route(const moi_case *c) { return c->op == MOI_OP_ROUTE || (c->op == MOI_OP_MOE && c->has_route); }

static uint32_t row_width(const moi_case *c) { return c->op == MOI_OP_GEMM ? c->gemm.n : ffn_of(c)->hidden; }
static moi_format row_type(const moi_case *c) {
  return c->op == MOI_OP_GEMM ? moi_or(c->gemm.output_type, moi_or(c->gemm.input_type, MOI_FORMAT_F32))
                              : moi_or(ffn_of(c)->output_type, moi_or(ffn_of(c)->input_type, MOI_FORMAT_F32));
}
static uint32_t row_stride(const moi_case *c) { return row_width(c) + c->stride_extra; }

static void bind_moe(moi_case *c) {
  c->moe.struct_size = sizeof c->moe;
  c->moe.route = c->has_route ? &c->route : NULL;
  c->moe.experts = &c->experts;
  c->moe.shared = c->has_shared ? &c->shared : NULL;
}

/* Groups of random sizes, some empty; sometimes rows before the first and behind the last. */
static void make_offsets(const moi_case *c, int32_t *offsets) {
  uint32_t n = c->gemm.n_experts, rows = c->n_tokens;
  uint32_t first = c->seed % 4 == 3 && rows > 4 ? 1 : 0, last = c->seed % 4 == 3 && rows > 4 ? rows - 1 : rows;
  offsets[0] = (int32_t)first;
  for (uint32_t e = 1; e < n; e++) {
    uint32_t left = last - (uint32_t)offsets[e - 1];
    uint32_t take = moi_random_below(c->seed ^ 0x0ff5, e, 3) == 0 ? 0 : moi_random_below(c->seed ^ 0x0ff6, e, left + 1);
    offsets[e] = offsets[e - 1] + (int32_t)take;
  }
  offsets[n] = (int32_t)last;
  if (!c->hostile_offsets) return;
  for (uint32_t e = 0; e <= n; e++) {
    static const int32_t hostile[5] = {-7, 5, 3, INT32_MAX, INT32_MIN};
    offsets[e] = hostile[e % 5];
  }
}

static void make_gemm(moi_case *c) {
  const moi_gemm_desc *d = &c->gemm;
  moi_arena *arena = &c->arena;
  int tables = (d->flags & MOI_EXPERTS_TABLES) != 0;
  moi_weights_spec spec = {d->format, d->bias_type, d->n, d->k, d->n_experts, tables};
  moi_format input = moi_or(d->input_type, MOI_FORMAT_F32);
  c->gemm_weights = moi_make_weights(arena, &spec, c->seed);
  moi_gemm_args *a = &c->gemm_args;
  *a = (moi_gemm_args)MOI_GEMM_ARGS_INIT;
  a->n_rows = c->n_tokens;
  uint32_t stride = d->k + c->stride_extra;
  a->input_stride = c->stride_extra ? stride : 0;
  a->output_stride = c->stride_extra ? row_stride(c) : 0;
  size_t element = moi_element_bytes(input), count = c->n_tokens ? (size_t)(c->n_tokens - 1) * stride + d->k : 0;
  a->input = moi_arena_view(arena, count * element, element, "input");
  if (count) memset(a->input.ptr, 0xff, count * element);
  for (uint32_t r = 0; r < c->n_tokens; r++)
    moi_random_activations(input, (uint8_t *)a->input.ptr + r * stride * element, d->k, c->seed * 11 + r * 7919u);
  a->offsets = moi_arena_view(arena, (d->n_experts + 1) * 4, 4, "offsets");
  make_offsets(c, a->offsets.ptr);
  a->weights = &c->gemm_weights;
}

void moi_case_make(moi_case *c, uint32_t arena_flags) {
  memset(&c->arena, 0, sizeof c->arena);
  c->arena.flags = arena_flags;
  moi_arena *arena = &c->arena;
  moi_moe_operands *o = &c->operands;
  bind_moe(c);
  switch (c->op) {
    case MOI_OP_ATTENTION:
      c->attention.seed = c->seed;
      c->attention.stride_extra = c->stride_extra;
      moi_make_attention(arena, &c->attention);
      c->n_tokens = c->attention.n_rows;
      break;
    case MOI_OP_GEMM: make_gemm(c); break;
    case MOI_OP_ROUTE:
      moi_make_route(arena, &c->route, c->n_tokens, c->logits, c->stride_extra, c->seed, &o->route);
      break;
    case MOI_OP_EXPERTS:
      moi_make_ffn_weights(arena, &c->experts, c->seed, &o->weights);
      moi_make_experts(arena, &c->experts, c->n_tokens, c->traffic, c->stride_extra, c->seed, &o->weights, &o->experts);
      break;
    default: moi_make_moe(arena, &c->moe, c->n_tokens, c->stride_extra, c->seed, o); break;
  }
  if (c->device_tokens) {
    moi_buffer count = moi_arena_view(arena, 4, 4, "token count");
    memcpy(count.ptr, &c->device_tokens, 4);
    o->route.n_tokens_device = o->experts.n_tokens_device = count;
  }
  if (c->op == MOI_OP_EXPERTS && c->experts.flags & MOI_EXPERTS_TABLES) { /* an expert that nobody uses may be absent */
    const int32_t *ids = o->experts.ids.ptr;
    for (uint32_t e = 0; e < c->experts.n_experts; e++) {
      uint32_t used = 0;
      for (size_t s = 0; s < (size_t)c->n_tokens * c->experts.top_k; s++) used |= ids[s] == (int32_t)e;
      if (!used) moi_drop_expert(&c->experts, &o->weights, e);
    }
  }
}

void moi_case_free(moi_case *c) { moi_arena_free(&c->arena); }

moi_outputs moi_case_outputs(const moi_case *c, moi_arena *arena) {
  moi_outputs out;
  memset(&out, 0, sizeof out);
  uint32_t flags = c->op == MOI_OP_GEMM ? c->gemm.flags : c->experts.flags;
  if (writes_rows(c))
    out.output = moi_make_output(arena, row_type(c), c->n_tokens, row_width(c), row_stride(c),
                                 flags & MOI_EXPERTS_ACCUMULATE ? c->seed * 13 + 1 : 0);
  if (c->op == MOI_OP_ATTENTION) out.attention = moi_attention_outputs_make(arena, &c->attention);
  out.route = c->operands.route;
  if (writes_route(c)) moi_make_route_outputs(arena, &c->route, &out.route);
  return out;
}

moi_status moi_case_plan(const moi_case *c, moi_context *context, const char *kernel, uint32_t plan_flags,
                         moi_plan **out) {
  moi_case copy = *c;
  uint32_t bound = c->n_tokens ? c->n_tokens : 1;
  bind_moe(&copy);
  copy.route.max_tokens = copy.experts.max_tokens = copy.shared.max_tokens = copy.gemm.max_rows = bound;
  switch (c->op) {
    case MOI_OP_ATTENTION: return moi_attention_operands_plan(&c->attention, context, kernel, plan_flags, out);
    case MOI_OP_GEMM:
      copy.gemm.kernel = kernel;
      copy.gemm.plan_flags |= plan_flags;
      return moi_gemm_plan(context, &copy.gemm, out);
    case MOI_OP_ROUTE:
      copy.route.kernel = kernel;
      copy.route.plan_flags |= plan_flags;
      return moi_route_plan(context, &copy.route, out);
    case MOI_OP_EXPERTS:
      copy.experts.kernel = kernel;
      copy.experts.plan_flags |= plan_flags;
      return moi_experts_plan(context, &copy.experts, out);
    default:
      copy.moe.kernel = kernel;
      copy.moe.plan_flags |= plan_flags;
      return moi_moe_plan(context, &copy.moe, out);
  }
}

moi_status moi_case_run(const moi_case *c, const moi_plan *plan, const moi_outputs *outputs, moi_buffer workspace) {
  if (c->op == MOI_OP_ATTENTION)
    return moi_attention_operands_run(&c->attention, plan, &outputs->attention, workspace);
  moi_queue queue = {NULL};
  moi_weights weights[7];
  moi_mirror *mirror = NULL;
  moi_status status;
  moi_device *device = moi_device_of(plan->context, &status);
  if (device) status = moi_mirror_begin(device, &mirror);
  if (status) return status;
  moi_route_args route = outputs->route;
  moi_experts_args experts = c->operands.experts;
  experts.output = outputs->output;
  moi_gemm_args gemm = c->gemm_args;
  gemm.output = outputs->output;
  moi_moe_args moe = c->operands.args;
  moe.experts = &experts;
  if (moe.route) moe.route = &route;
  moi_experts_args shared = c->operands.shared;
  if (moe.shared) moe.shared = &shared;
  if (mirror) {
    queue = moi_mirror_queue(mirror);
    workspace = moi_mirror_view(mirror, workspace);
    if (c->op == MOI_OP_GEMM) {
      weights[6] = *gemm.weights;
      moi_mirror_weights(mirror, &weights[6]);
      gemm.weights = &weights[6];
      gemm.input = moi_mirror_view(mirror, gemm.input);
      gemm.output = moi_mirror_view(mirror, gemm.output);
      gemm.offsets = moi_mirror_view(mirror, gemm.offsets);
    }
    if (c->op == MOI_OP_ROUTE || moe.route) moi_mirror_route(mirror, &route);
    if (c->op == MOI_OP_EXPERTS || c->op == MOI_OP_MOE) moi_mirror_experts(mirror, &experts, &weights[0]);
    if (moe.shared) moi_mirror_experts(mirror, &shared, &weights[3]);
    moe.shared_gate = moi_mirror_view(mirror, moe.shared_gate);
  }
  switch (c->op) {
    case MOI_OP_GEMM: status = moi_gemm_run(plan, &gemm, workspace, queue); break;
    case MOI_OP_ROUTE: status = moi_route_run(plan, &route, workspace, queue); break;
    case MOI_OP_EXPERTS: status = moi_experts_run(plan, &experts, workspace, queue); break;
    default: status = moi_moe_run(plan, &moe, workspace, queue); break;
  }
  return mirror ? moi_mirror_end(mirror, status) : status;
}

moi_status moi_case_run_guarded(const moi_case *c, const moi_plan *plan, const moi_outputs *outputs, char *damage,
                                size_t damage_size) {
  moi_arena arena = {.flags = MOI_ARENA_GUARD};
  size_t align, size = moi_plan_workspace(plan, &align);
  moi_buffer workspace = moi_arena_view(&arena, size, align ? align : 1, "workspace");
  memset(workspace.ptr, 0xff, size);
  moi_status status = moi_case_run(c, plan, outputs, workspace);
  long long offset;
  const char *name = moi_arena_damage(&arena, &offset);
  if (!name) name = moi_arena_damage(&c->arena, &offset);
  if (name) {
    snprintf(damage, damage_size, "wrote outside the buffer '%s', at byte %lld of it", name, offset);
    status = MOI_INTERNAL;
  }
  moi_arena_free(&arena);
  return status;
}

/* ---- comparing */

static uint32_t tokens_run(const moi_case *c) {
  return c->device_tokens && c->device_tokens < c->n_tokens ? c->device_tokens : c->n_tokens;
}

static moi_matrix_view rows_of(const moi_case *c, moi_buffer output, uint32_t first, uint32_t rows) {
  uint32_t stride = row_stride(c);
  moi_matrix_view m = {row_type(c),
                       (const uint8_t *)output.ptr + (size_t)first * stride * moi_element_bytes(row_type(c)), rows,
                       row_width(c), stride};
  return m;
}

/* Whether a case may have an all-zero result. */
static int may_be_nothing(const moi_case *c) {
  return c->traffic == MOI_TRAFFIC_NOWHERE || c->traffic == MOI_TRAFFIC_HOLES || c->hostile_offsets || !c->n_tokens;
}

static moi_accumulator lesser(moi_accumulator a, moi_accumulator b) { return a > b ? a : b; }

moi_verdict moi_case_compare(const moi_case *c, moi_backend backend, const char *kernel, const moi_outputs *result,
                             const moi_outputs *reference) {
  moi_verdict v = {.ok = 1};
  if (c->op == MOI_OP_ATTENTION)
    return moi_attention_compare(&c->attention, kernel, &result->attention, &reference->attention);
  uint32_t n = tokens_run(c), k = c->route.top_k;
  moi_format format = c->op == MOI_OP_GEMM    ? c->gemm.format
                      : c->op == MOI_OP_ROUTE ? moi_or(c->route.router_type, MOI_FORMAT_F32)
                                              : c->experts.format;
  moi_accumulator accumulator = moi_accumulator_of(backend, kernel, format);
  if (c->experts.down_format)
    accumulator = lesser(accumulator, moi_accumulator_of(backend, kernel, c->experts.down_format));
  if (c->has_shared) accumulator = lesser(accumulator, moi_accumulator_of(backend, kernel, c->shared.format));
  if (writes_route(c)) {
    moi_accumulator router = moi_accumulator_of(backend, kernel, moi_or(c->route.router_type, MOI_FORMAT_F32));
    moi_route_args a = result->route, b = reference->route;
    a.n_tokens = b.n_tokens = n;
    v = moi_compare_route(&c->route, &a, &b, moi_logit_error(router, &c->route));
    if (!v.ok || c->op == MOI_OP_ROUTE) return v;
    v.error = v.allowed = 0;
  }
  moi_error e = c->op == MOI_OP_GEMM      ? moi_gemm_error(accumulator, c->gemm.k)
                : c->op == MOI_OP_EXPERTS ? moi_experts_error(accumulator, &c->experts)
                                          : moi_moe_error(accumulator, &c->moe);
  int mistrust = !may_be_nothing(c);
  if (!v.excused) {
    moi_matrix_view y = rows_of(c, result->output, 0, n), r = rows_of(c, reference->output, 0, n);
    return moi_compare(&y, &r, e, mistrust);
  }
  for (uint32_t t = 0; t < n && v.ok; t++) { /* a token that a near tie sent elsewhere has another result */
    const int32_t *a = (const int32_t *)result->route.ids.ptr + (size_t)t * k;
    const int32_t *b = (const int32_t *)reference->route.ids.ptr + (size_t)t * k;
    if (memcmp(a, b, k * sizeof *a)) continue;
    moi_matrix_view y = rows_of(c, result->output, t, 1), r = rows_of(c, reference->output, t, 1);
    moi_verdict one = moi_compare(&y, &r, e, 0);
    one.excused = v.excused;
    if (one.ok && one.error * v.allowed < v.error * one.allowed) one.error = v.error, one.allowed = v.allowed;
    v = one;
  }
  return v;
}

static int same(moi_buffer a, moi_buffer b) { return !a.ptr || !memcmp(a.ptr, b.ptr, a.size); }

int moi_case_same_bits(const moi_case *c, const moi_outputs *a, const moi_outputs *b) {
  if (c->op == MOI_OP_ATTENTION) return moi_attention_same_bits(&a->attention, &b->attention);
  int ok = !writes_rows(c) || same(a->output, b->output);
  if (writes_route(c))
    ok = ok && same(a->route.ids, b->route.ids) && same(a->route.weights, b->route.weights) &&
         same(a->route.counts, b->route.counts) && same(a->route.offsets, b->route.offsets) &&
         same(a->route.permutation, b->route.permutation) && same(a->route.logits_out, b->route.logits_out);
  return ok;
}

int moi_case_known(const moi_case *c, const moi_outputs *outputs) {
  if (c->op != MOI_OP_ATTENTION || c->attention.task == MOI_RIG_ATTEND) return 0;
  moi_attention_expected(&c->attention, &outputs->attention);
  return 1;
}

/* ---- one token */

static moi_buffer from(moi_buffer b, size_t bytes) {
  if (!b.ptr) return b;
  b.offset += bytes;
  b.size -= bytes;
  return b;
}

void moi_case_token(const moi_case *c, uint32_t t, moi_case *out) {
  *out = *c;
  bind_moe(out);
  memset(&out->arena, 0, sizeof out->arena);
  out->n_tokens = 1;
  out->device_tokens = 0;
  if (c->op == MOI_OP_ATTENTION) {
    out->arena.flags = MOI_ARENA_GUARD;
    if (!moi_attention_row(&c->attention, t, &out->arena, &out->attention)) out->n_tokens = 0;
    return;
  }
  moi_route_args *r = &out->operands.route;
  moi_experts_args *x = &out->operands.experts;
  moi_gemm_args *g = &out->gemm_args;
  uint32_t classes = c->route.n_experts + c->route.n_identity, width = c->route.hidden ? c->route.hidden : classes;
  size_t in = (r->hidden_stride ? r->hidden_stride : width) * (size_t)moi_element_bytes(c->route.input_type);
  r->hidden = from(r->hidden, t * in);
  r->logits = from(r->logits, t * in);
  r->alt_mask = from(r->alt_mask, t);
  r->token_ids = from(r->token_ids, t * 4);
  r->n_tokens = 1;
  x->input =
      from(x->input, (size_t)t * (c->experts.hidden + c->stride_extra) * moi_element_bytes(c->experts.input_type));
  x->ids = from(x->ids, (size_t)t * c->experts.top_k * 4);
  x->weights = from(x->weights, (size_t)t * c->experts.top_k * 4);
  x->n_tokens = 1;
  memset(&r->n_tokens_device, 0, sizeof r->n_tokens_device);
  memset(&x->n_tokens_device, 0, sizeof x->n_tokens_device);
  if (c->op == MOI_OP_GEMM) {
    const int32_t *offsets = c->gemm_args.offsets.ptr;
    out->arena.flags = MOI_ARENA_GUARD;
    g->offsets = moi_arena_view(&out->arena, (c->gemm.n_experts + 1) * 4, 4, "offsets");
    for (uint32_t e = 0; e <= c->gemm.n_experts; e++) ((int32_t *)g->offsets.ptr)[e] = offsets[e] > (int32_t)t;
    g->input = from(g->input, (size_t)t * (c->gemm.k + c->stride_extra) * moi_element_bytes(c->gemm.input_type));
    g->n_rows = 1;
  }
}

int moi_case_same_row(const moi_case *c, uint32_t t, const moi_outputs *whole, const moi_outputs *single) {
  if (c->op == MOI_OP_ATTENTION) return moi_attention_same_row(&c->attention, t, &whole->attention, &single->attention);
  int ok = 1;
  size_t k = c->route.top_k, n = c->route.n_experts + c->route.n_identity;
  if (writes_rows(c)) {
    moi_matrix_view a = rows_of(c, whole->output, t, 1), b = rows_of(c, single->output, 0, 1);
    ok = !memcmp(a.data, b.data, (size_t)a.cols * moi_element_bytes(a.type));
  }
  if (writes_route(c))
    ok = ok && !memcmp((const int32_t *)whole->route.ids.ptr + t * k, single->route.ids.ptr, k * 4) &&
         !memcmp((const float *)whole->route.weights.ptr + t * k, single->route.weights.ptr, k * 4) &&
         !memcmp((const float *)whole->route.logits_out.ptr + t * n, single->route.logits_out.ptr, n * 4);
  return ok;
}

/* ---- presets */

void moi_case_of_preset(const moi_preset *p, moi_op op, moi_format format, uint32_t n_tokens, uint64_t seed,
                        moi_case *out) {
  memset(out, 0, sizeof *out);
  out->op = op;
  out->n_tokens = n_tokens;
  out->seed = seed;
  out->route = *p->route;
  out->experts = *p->experts;
  out->has_route = op != MOI_OP_EXPERTS;
  out->has_shared = p->shared && op == MOI_OP_MOE;
  if (out->has_shared) out->shared = *p->shared;
  out->moe = (moi_moe_desc)MOI_MOE_DESC_INIT;
  if (op == MOI_OP_MOE) {
    out->moe.shared_gate = p->shared_gate;
    out->moe.shared_gate_type = MOI_FORMAT_BF16;
    out->moe.output_scale = p->output_scale;
  }
  if (format) {
    out->experts.format = format;
    out->experts.down_format = MOI_FORMAT_NONE;
    if (out->has_shared) out->shared.format = format, out->shared.down_format = MOI_FORMAT_NONE;
  }
  if (out->route.flags & MOI_ROUTE_HASH && !out->route.vocab) out->route.vocab = 1000;
}
