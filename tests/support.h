/* What the tests share: a small layer whose every operand is there, and the way a refusal is checked. */
#ifndef MOI_TESTS_SUPPORT_H
#define MOI_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <moiety.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static const moi_queue no_queue = {NULL};

/* n_workers 1: no pool, everything in the caller's thread. */
static inline moi_context *open_cpu(uint32_t n_workers) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.n_workers = n_workers;
  moi_context *context = NULL;
  assert_int_equal(moi_context_create(&desc, &context), MOI_OK);
  assert_non_null(context);
  return context;
}

/* n workers that take turns, in one order or the other: work is shared as among threads, but nobody waits. */
typedef struct lanes {
  uint32_t n;
  int backwards;
} lanes;

static inline void one_by_one(void *user, uint32_t n, void (*body)(void *, uint32_t), void *arg) {
  const lanes *how = user;
  for (uint32_t i = 0; i < n; i++) body(arg, how->backwards ? n - 1 - i : i);
}
/* *how must outlive the context. */
static inline moi_context *open_lanes(const lanes *how) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.n_workers = how->n;
  desc.parallel_for = one_by_one;
  desc.parallel_for_user = (void *)(uintptr_t)how;
  moi_context *context = NULL;
  assert_int_equal(moi_context_create(&desc, &context), MOI_OK);
  assert_non_null(context);
  return context;
}

/* The teardown of a group whose setup left its context in *state. */
static inline int close_context(void **state) {
  moi_context_destroy(*state);
  return 0;
}

/* The call failed with `wanted` and moi_last_error says `function: ... says ...`. */
static inline void refused_at(const char *file, int line, moi_status got, moi_status wanted, const char *says) {
  const char *text = moi_last_error();
  if (got == wanted && !strncmp(text, "moi_", 4) && strstr(text, ": ") && strstr(text, says)) return;
  print_error("%s:%d: status %d, wanted %d; error \"%s\", wanted to say \"%s\"\n", file, line, (int)got, (int)wanted,
              text, says);
  fail();
}
#define refused(call, wanted, says) refused_at(__FILE__, __LINE__, call, wanted, says)

/* Formats of order R, on a backend that has no kernels for them: by name, with the one to use. */
static inline void refuses_rows_of_16(moi_context *context) {
  moi_gemm_desc d = MOI_GEMM_DESC_INIT;
  d.max_rows = 1, d.n = 32, d.k = 256, d.n_experts = 1;
  moi_plan *plan = NULL;
  d.format = MOI_FORMAT_Q4_K_R16;
  refused(moi_gemm_plan(context, &d, &plan), MOI_UNSUPPORTED, "q4_k_r16");
  refused(moi_gemm_plan(context, &d, &plan), MOI_UNSUPPORTED, "use q4_k");
  d.format = MOI_FORMAT_MXFP4_R16;
  refused(moi_gemm_plan(context, &d, &plan), MOI_UNSUPPORTED, "use mxfp4");
}

/* The pairs of moi_pack. */
static const moi_format packed_pairs[][2] = {
    {MOI_FORMAT_BF16_KN, MOI_FORMAT_BF16},         {MOI_FORMAT_GPTQ_G32, MOI_FORMAT_INT4Z_G32},
    {MOI_FORMAT_GPTQ_G128, MOI_FORMAT_INT4Z_G128}, {MOI_FORMAT_AWQ_G32, MOI_FORMAT_INT4Z_G32},
    {MOI_FORMAT_AWQ_G128, MOI_FORMAT_INT4Z_G128},  {MOI_FORMAT_MXFP4, MOI_FORMAT_MXFP4_GGUF},
    {MOI_FORMAT_MXFP4_GGUF, MOI_FORMAT_MXFP4},     {MOI_FORMAT_Q4_0, MOI_FORMAT_Q4_0_R16},
    {MOI_FORMAT_Q4_0_R16, MOI_FORMAT_Q4_0},        {MOI_FORMAT_IQ4_NL, MOI_FORMAT_IQ4_NL_R16},
    {MOI_FORMAT_IQ4_NL_R16, MOI_FORMAT_IQ4_NL},    {MOI_FORMAT_MXFP4, MOI_FORMAT_MXFP4_R16},
    {MOI_FORMAT_MXFP4_R16, MOI_FORMAT_MXFP4},      {MOI_FORMAT_MXFP4_GGUF, MOI_FORMAT_MXFP4_R16},
    {MOI_FORMAT_MXFP4_R16, MOI_FORMAT_MXFP4_GGUF}, {MOI_FORMAT_Q8_0, MOI_FORMAT_Q8_0_R16},
    {MOI_FORMAT_Q8_0_R16, MOI_FORMAT_Q8_0},        {MOI_FORMAT_Q4_K, MOI_FORMAT_Q4_K_R16},
    {MOI_FORMAT_Q4_K_R16, MOI_FORMAT_Q4_K}};

#define passes(call)                                                                                                   \
  do {                                                                                                                 \
    moi_status passes_status = (call);                                                                                 \
    if (passes_status) fail_msg("%s: status %d, %s", #call, (int)passes_status, moi_last_error());                     \
  } while (0)

/* Memory at a multiple of align, which is a power of two. NULL if there is none. */
static inline void *take_aligned(size_t align, size_t size) {
#if defined(_WIN32)
  return _aligned_malloc(size, align);
#else
  return aligned_alloc(align, (size + align - 1) / align * align);
#endif
}
static inline void drop_aligned(void *p) {
#if defined(_WIN32)
  _aligned_free(p);
#else
  free(p);
#endif
}

/* A workspace for a plan, aligned as it asks, filled with NaN. To be dropped with drop_aligned. */
static inline moi_buffer take_workspace(const moi_plan *plan) {
  size_t align = 0, size = moi_plan_workspace(plan, &align);
  if (!size) return moi_ptr(NULL, 0);
  size_t whole = (size + align - 1) / align * align;
  void *p = take_aligned(align, whole);
  assert_non_null(p);
  memset(p, 0xff, whole);
  return moi_ptr(p, size);
}

/* All ops on one small layer in fp32. Numbers are multiples of 1/8. */
enum { LAYER_T = 3, LAYER_H = 8, LAYER_I = 4, LAYER_E = 3, LAYER_K = 2 };

typedef struct layer {
  float x[LAYER_T * LAYER_H], y[LAYER_T * LAYER_H], router[LAYER_E * LAYER_H], logits_out[LAYER_T * LAYER_E];
  float gate[LAYER_E * LAYER_I * LAYER_H], up[LAYER_E * LAYER_I * LAYER_H], down[LAYER_E * LAYER_H * LAYER_I];
  float ids_weights[LAYER_T * LAYER_K], shared_gate[LAYER_H], product[LAYER_T * LAYER_I];
  int32_t ids[LAYER_T * LAYER_K], counts[LAYER_E], offsets[LAYER_E + 1], permutation[LAYER_T * LAYER_K];
  int32_t groups[LAYER_E + 1];
  moi_weights gate_w, up_w, down_w, shared_gate_w, shared_up_w, shared_down_w;
  moi_route_desc route;
  moi_experts_desc experts, shared;
  moi_gemm_desc gemm;
  moi_moe_desc moe;
  moi_route_args route_args;
  moi_experts_args experts_args, shared_args;
  moi_gemm_args gemm_args;
  moi_moe_args moe_args;
} layer;

#define VIEW(array) moi_ptr(array, sizeof(array))

static inline void layer_fill(float *p, size_t n, uint32_t seed) {
  for (size_t i = 0; i < n; i++) p[i] = (float)((int)((i * 37 + seed * 101 + i * i * 5) % 31) - 15) / 8.0f;
}

static inline void layer_make(layer *l) {
  memset(l, 0, sizeof *l);
  layer_fill(l->x, sizeof l->x / 4, 1);
  layer_fill(l->router, sizeof l->router / 4, 2);
  layer_fill(l->gate, sizeof l->gate / 4, 3);
  layer_fill(l->up, sizeof l->up / 4, 4);
  layer_fill(l->down, sizeof l->down / 4, 5);
  layer_fill(l->shared_gate, sizeof l->shared_gate / 4, 6);
  memset(l->y, 0xff, sizeof l->y);
  memset(l->product, 0xff, sizeof l->product);
  for (int i = 0; i < LAYER_T * LAYER_K; i++) {
    l->ids[i] = i % LAYER_E;
    l->ids_weights[i] = 0.25f + 0.125f * (float)i;
  }
  const int32_t groups[LAYER_E + 1] = {0, 1, 1, LAYER_T};
  memcpy(l->groups, groups, sizeof groups);

  l->route = (moi_route_desc)MOI_ROUTE_DESC_INIT;
  l->route.max_tokens = LAYER_T;
  l->route.hidden = LAYER_H;
  l->route.n_experts = LAYER_E;
  l->route.top_k = LAYER_K;
  l->experts = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
  l->experts.max_tokens = LAYER_T;
  l->experts.hidden = LAYER_H;
  l->experts.intermediate = LAYER_I;
  l->experts.n_experts = LAYER_E;
  l->experts.top_k = LAYER_K;
  l->experts.format = MOI_FORMAT_F32;
  l->shared = l->experts;
  l->shared.n_experts = l->shared.top_k = 1;
  l->gemm = (moi_gemm_desc)MOI_GEMM_DESC_INIT;
  l->gemm.max_rows = LAYER_T;
  l->gemm.n = LAYER_I;
  l->gemm.k = LAYER_H;
  l->gemm.n_experts = LAYER_E;
  l->gemm.format = MOI_FORMAT_F32;
  l->moe = (moi_moe_desc)MOI_MOE_DESC_INIT;
  l->moe.route = &l->route;
  l->moe.experts = &l->experts;
  l->moe.shared = &l->shared;
  l->moe.shared_gate = MOI_SHARED_SIGMOID;

  l->gate_w = l->up_w = l->down_w = (moi_weights)MOI_WEIGHTS_INIT;
  l->gate_w.data = VIEW(l->gate);
  l->up_w.data = VIEW(l->up);
  l->down_w.data = VIEW(l->down);
  l->shared_gate_w = l->gate_w;
  l->shared_up_w = l->up_w;
  l->shared_down_w = l->down_w;

  moi_route_args *r = &l->route_args;
  *r = (moi_route_args)MOI_ROUTE_ARGS_INIT;
  r->n_tokens = LAYER_T;
  r->hidden = VIEW(l->x);
  r->router = VIEW(l->router);
  r->ids = VIEW(l->ids);
  r->weights = VIEW(l->ids_weights);
  r->counts = VIEW(l->counts);
  r->offsets = VIEW(l->offsets);
  r->permutation = VIEW(l->permutation);
  r->logits_out = VIEW(l->logits_out);

  moi_experts_args *a = &l->experts_args;
  *a = (moi_experts_args)MOI_EXPERTS_ARGS_INIT;
  a->n_tokens = LAYER_T;
  a->input = VIEW(l->x);
  a->ids = VIEW(l->ids);
  a->weights = VIEW(l->ids_weights);
  a->output = VIEW(l->y);
  a->gate = &l->gate_w;
  a->up = &l->up_w;
  a->down = &l->down_w;
  l->shared_args = (moi_experts_args)MOI_EXPERTS_ARGS_INIT;
  l->shared_args.gate = &l->shared_gate_w;
  l->shared_args.up = &l->shared_up_w;
  l->shared_args.down = &l->shared_down_w;

  l->gemm_args = (moi_gemm_args)MOI_GEMM_ARGS_INIT;
  l->gemm_args.n_rows = LAYER_T;
  l->gemm_args.input = VIEW(l->x);
  l->gemm_args.offsets = VIEW(l->groups);
  l->gemm_args.output = VIEW(l->product);
  l->gemm_args.weights = &l->up_w;

  l->moe_args = (moi_moe_args)MOI_MOE_ARGS_INIT;
  l->moe_args.route = &l->route_args;
  l->moe_args.experts = &l->experts_args;
  l->moe_args.shared = &l->shared_args;
  l->moe_args.shared_gate = VIEW(l->shared_gate);
}

static inline moi_status layer_plan(const layer *l, moi_op op, moi_context *context, moi_plan **out) {
  switch (op) {
  case MOI_OP_ROUTE:
    return moi_route_plan(context, &l->route, out);
  case MOI_OP_EXPERTS:
    return moi_experts_plan(context, &l->experts, out);
  case MOI_OP_GEMM:
    return moi_gemm_plan(context, &l->gemm, out);
  default:
    return moi_moe_plan(context, &l->moe, out);
  }
}

static inline moi_status layer_run_on(const layer *l, moi_op op, const moi_plan *plan, moi_buffer workspace,
                                      moi_queue queue) {
  switch (op) {
  case MOI_OP_ROUTE:
    return moi_route_run(plan, &l->route_args, workspace, queue);
  case MOI_OP_EXPERTS:
    return moi_experts_run(plan, &l->experts_args, workspace, queue);
  case MOI_OP_GEMM:
    return moi_gemm_run(plan, &l->gemm_args, workspace, queue);
  default:
    return moi_moe_run(plan, &l->moe_args, workspace, queue);
  }
}
static inline moi_status layer_run(const layer *l, moi_op op, const moi_plan *plan, moi_buffer workspace) {
  return layer_run_on(l, op, plan, workspace, no_queue);
}

/* All views of a layer, for who moves its arrays to a device. */
enum { LAYER_VIEWS = 22 };
static inline void layer_views(layer *l, moi_buffer *views[LAYER_VIEWS]) {
  moi_buffer *all[LAYER_VIEWS] = {
      &l->gate_w.data,        &l->up_w.data,          &l->down_w.data,            &l->shared_gate_w.data,
      &l->shared_up_w.data,   &l->shared_down_w.data, &l->route_args.hidden,      &l->route_args.router,
      &l->route_args.ids,     &l->route_args.weights, &l->route_args.counts,      &l->route_args.offsets,
      &l->route_args.permutation, &l->route_args.logits_out, &l->experts_args.input, &l->experts_args.ids,
      &l->experts_args.weights, &l->experts_args.output, &l->gemm_args.input,     &l->gemm_args.offsets,
      &l->gemm_args.output,   &l->moe_args.shared_gate};
  memcpy(views, all, sizeof all);
}

static const moi_op layer_ops[4] = {MOI_OP_ROUTE, MOI_OP_EXPERTS, MOI_OP_GEMM, MOI_OP_MOE};

#endif
