/* The promises of moiety.h that hold for every op: structs, descs, errors, formats, plans, presets. */
#include "tests/support.h"

#include <pthread.h>

static moi_context *context;
static layer l;

static int open_context(void **state) {
  *state = context = open_cpu(1);
  return 0;
}
static int make_layer(void **state) {
  (void)state;
  layer_make(&l);
  return 0;
}

/* ---- structs */

typedef moi_status (*struct_call)(const void *s);

static moi_status plan_of(moi_status status, moi_plan *plan) {
  if (status) assert_null(plan);
  moi_plan_destroy(plan);
  return status;
}
static moi_status call_context(const void *s) {
  moi_context *c = (moi_context *)&l;
  moi_status status = moi_context_create(s, &c);
  if (status) assert_null(c);
  moi_context_destroy(c);
  return status;
}
#define PLAN_CALL(name, fn)                                                                                            \
  static moi_status name(const void *s) {                                                                              \
    moi_plan *plan = (moi_plan *)&l;                                                                                   \
    moi_status status = fn(context, s, &plan);                                                                         \
    return plan_of(status, plan);                                                                                      \
  }
PLAN_CALL(call_route, moi_route_plan)
PLAN_CALL(call_experts, moi_experts_plan)
PLAN_CALL(call_gemm, moi_gemm_plan)
PLAN_CALL(call_moe, moi_moe_plan)

static moi_status run_layer(moi_op op) {
  moi_plan *plan = NULL;
  passes(layer_plan(&l, op, context, &plan));
  moi_buffer workspace = take_workspace(plan);
  moi_status status = layer_run(&l, op, plan, workspace);
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
  return status;
}
/* Runs with another args struct of the family. */
#define RUN_CALL(name, fn, op)                                                                                         \
  static moi_status name(const void *s) {                                                                              \
    moi_plan *plan = NULL;                                                                                             \
    passes(layer_plan(&l, op, context, &plan));                                                                        \
    moi_buffer workspace = take_workspace(plan);                                                                       \
    moi_status status = fn(plan, s, workspace, no_queue);                                                              \
    drop_aligned(workspace.ptr);                                                                                               \
    moi_plan_destroy(plan);                                                                                            \
    return status;                                                                                                     \
  }
RUN_CALL(call_route_args, moi_route_run, MOI_OP_ROUTE)
RUN_CALL(call_experts_args, moi_experts_run, MOI_OP_EXPERTS)
RUN_CALL(call_gemm_args, moi_gemm_run, MOI_OP_GEMM)
RUN_CALL(call_moe_args, moi_moe_run, MOI_OP_MOE)
static moi_status call_weights(const void *s) {
  l.experts_args.up = s;
  return run_layer(MOI_OP_EXPERTS);
}
static moi_status call_gemm_weights(const void *s) {
  l.gemm_args.weights = s;
  return run_layer(MOI_OP_GEMM);
}
static moi_status call_inner_args(const void *s) {
  l.moe_args.experts = s;
  return run_layer(MOI_OP_MOE);
}
static moi_status call_inner_desc(const void *s) {
  l.moe.experts = s;
  moi_plan *plan = NULL;
  moi_status status = moi_moe_plan(context, &l.moe, &plan);
  return plan_of(status, plan);
}
static uint16_t pack_from[8 * 8], pack_to[8 * 8];
static moi_pack_desc pack_desc;
static moi_weights pack_src, pack_dst;
static moi_status call_pack(const void *s) { return moi_pack(s, &pack_src, &pack_dst); }
static moi_status call_pack_src(const void *s) { return moi_pack(&pack_desc, s, &pack_dst); }
static moi_status call_pack_dst(const void *s) { return moi_pack(&pack_desc, &pack_src, s); }
static moi_status call_pack_plan(const void *s) {
  moi_plan *plan = NULL;
  moi_status status = moi_pack_plan(context, s, &plan);
  return plan_of(status, plan);
}
static moi_status run_pack(const void *src, const void *dst) {
  moi_plan *plan = NULL;
  passes(moi_pack_plan(context, &pack_desc, &plan));
  moi_status status = moi_pack_run(plan, src, dst, no_queue);
  moi_plan_destroy(plan);
  return status;
}
static moi_status call_pack_run_src(const void *s) { return run_pack(s, &pack_dst); }
static moi_status call_pack_run_dst(const void *s) { return run_pack(&pack_src, s); }

static void make_pack(void) {
  pack_desc = (moi_pack_desc)MOI_PACK_DESC_INIT;
  pack_desc.from = MOI_FORMAT_BF16_KN;
  pack_desc.to = MOI_FORMAT_BF16;
  pack_desc.n = pack_desc.k = 8;
  pack_desc.n_experts = 1;
  pack_src = pack_dst = (moi_weights)MOI_WEIGHTS_INIT;
  pack_src.data = VIEW(pack_from);
  pack_dst.data = VIEW(pack_to);
}

static void test_struct_size(void **state) {
  (void)state;
  static const moi_context_desc one_worker = {.struct_size = sizeof(moi_context_desc), .n_workers = 1};
  make_pack();
  /* `older`: a size from before the last members, which then have their default; 0 if none of them may be missing */
  const struct {
    const char *name;
    const void *valid;
    size_t size, older;
    struct_call call;
  } rows[] = {
      {"context_desc", &one_worker, sizeof one_worker, offsetof(moi_context_desc, parallel_for), call_context},
      {"route_desc", &l.route, sizeof l.route, offsetof(moi_route_desc, score), call_route},
      {"experts_desc", &l.experts, sizeof l.experts, offsetof(moi_experts_desc, down_format), call_experts},
      {"gemm_desc", &l.gemm, sizeof l.gemm, offsetof(moi_gemm_desc, bias_type), call_gemm},
      {"moe_desc", &l.moe, sizeof l.moe, offsetof(moi_moe_desc, shared_gate_type), call_moe},
      {"experts in moe_desc", &l.experts, sizeof l.experts, offsetof(moi_experts_desc, down_format), call_inner_desc},
      {"route_args", &l.route_args, sizeof l.route_args, offsetof(moi_route_args, counts), call_route_args},
      {"experts_args", &l.experts_args, sizeof l.experts_args, 0, call_experts_args},
      {"gemm_args", &l.gemm_args, sizeof l.gemm_args, 0, call_gemm_args},
      {"moe_args", &l.moe_args, sizeof l.moe_args, 0, call_moe_args},
      {"experts in moe_args", &l.experts_args, sizeof l.experts_args, 0, call_inner_args},
      {"weights", &l.up_w, sizeof l.up_w, offsetof(moi_weights, scales), call_weights},
      {"gemm's weights", &l.up_w, sizeof l.up_w, offsetof(moi_weights, data_stride), call_gemm_weights},
      {"pack_desc", &pack_desc, sizeof pack_desc, 0, call_pack},
      {"pack's src", &pack_src, sizeof pack_src, offsetof(moi_weights, scales), call_pack_src},
      {"pack's dst", &pack_dst, sizeof pack_dst, offsetof(moi_weights, scales), call_pack_dst},
      {"a pack plan's desc", &pack_desc, sizeof pack_desc, 0, call_pack_plan},
      {"a pack run's src", &pack_src, sizeof pack_src, offsetof(moi_weights, scales), call_pack_run_src},
      {"a pack run's dst", &pack_dst, sizeof pack_dst, offsetof(moi_weights, scales), call_pack_run_dst},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    layer_make(&l);
    size_t size = rows[i].size;
    uint64_t space[160]; /* the struct and an unknown tail, which begins where it ends */
    uint8_t *s = (uint8_t *)space;
    assert_true(size + 64 <= sizeof space);
    memset(space, 0, sizeof space);
    memcpy(space, rows[i].valid, size);
#define WITH_SIZE(value)                                                                                               \
  do {                                                                                                                 \
    size_t with_size = (value);                                                                                        \
    memcpy(space, &with_size, sizeof with_size);                                                                       \
  } while (0)
    print_message("  %s\n", rows[i].name);
    passes(rows[i].call(s));
    WITH_SIZE(size + 16);
    passes(rows[i].call(s));
    s[size + 15] = 1;
    refused(rows[i].call(s), MOI_VERSION_MISMATCH, "struct_size");
    s[size + 15] = 0, s[size] = 0x80;
    refused(rows[i].call(s), MOI_VERSION_MISMATCH, "struct_size");
    WITH_SIZE(size); /* what lies behind the struct is not looked at */
    passes(rows[i].call(s));
    const size_t nonsense[] = {0, 1, sizeof(size_t), size - 4, size + 1, SIZE_MAX, SIZE_MAX / 2 + 1, (size_t)1 << 32};
    for (size_t j = 0; j < sizeof nonsense / sizeof nonsense[0]; j++) {
      WITH_SIZE(nonsense[j]);
      refused(rows[i].call(s), MOI_INVALID_ARGUMENT, "struct_size");
    }
    refused(rows[i].call(NULL), MOI_INVALID_ARGUMENT, "is null");
    WITH_SIZE(size);
    refused(rows[i].call(s + 1), MOI_INVALID_ARGUMENT, "misaligned");
    if (!rows[i].older) continue;
    memcpy(space, rows[i].valid, size);
    size_t older = (rows[i].older + 7) & ~(size_t)7; /* a struct is whole words */
    memset(s + older, 0xee, sizeof space - older);   /* not read: not the library's */
    WITH_SIZE(older);
    passes(rows[i].call(s));
  }
}

static void test_next_chain(void **state) {
  (void)state;
  moi_chain chain = {1, 0, NULL};
  moi_plan *plan = NULL;
  moi_context *c = NULL;
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.next = &chain;
  refused(moi_context_create(&desc, &c), MOI_UNSUPPORTED, "next");
  l.route.next = &chain;
  refused(moi_route_plan(context, &l.route, &plan), MOI_UNSUPPORTED, "next");
  refused(moi_moe_plan(context, &l.moe, &plan), MOI_UNSUPPORTED, "next");
  l.route.next = NULL;
  l.moe.next = &chain;
  refused(moi_moe_plan(context, &l.moe, &plan), MOI_UNSUPPORTED, "next");
  l.moe.next = NULL;
  l.gemm.next = &chain;
  refused(moi_gemm_plan(context, &l.gemm, &plan), MOI_UNSUPPORTED, "next");
  l.gemm.next = NULL;
  l.experts_args.next = &chain;
  refused(run_layer(MOI_OP_EXPERTS), MOI_UNSUPPORTED, "next");
  l.experts_args.next = NULL;
  l.route_args.next = &chain;
  refused(run_layer(MOI_OP_ROUTE), MOI_UNSUPPORTED, "next");
  refused(run_layer(MOI_OP_MOE), MOI_UNSUPPORTED, "next");
  l.route_args.next = NULL;
  l.up_w.next = &chain;
  refused(run_layer(MOI_OP_GEMM), MOI_UNSUPPORTED, "next");
  l.up_w.next = NULL;
  l.moe_args.next = &chain;
  refused(run_layer(MOI_OP_MOE), MOI_UNSUPPORTED, "next");
}

/* ---- descs */

typedef struct bad_member {
  size_t offset;
  uint32_t bits; /* of a u32, an enum or a float */
  const char *says;
} bad_member;

enum { NOT_A_NUMBER = 0x7fc00000, INFINITE = 0x7f800000, MINUS_ONE = (int)0xbf800000 };
#define MINUS_INFINITE 0xff800000u
#define BAD(type, member, value)                                                                                       \
  { offsetof(type, member), (uint32_t)(value), #member }

static void refuse_members(const bad_member *bad, size_t n, void *desc, moi_op op) {
  for (size_t i = 0; i < n; i++) {
    uint8_t *at = (uint8_t *)desc + bad[i].offset;
    uint32_t kept;
    moi_plan *plan = (moi_plan *)&l;
    memcpy(&kept, at, 4);
    memcpy(at, &bad[i].bits, 4);
    refused(layer_plan(&l, op, context, &plan), MOI_INVALID_ARGUMENT, bad[i].says);
    assert_null(plan);
    memcpy(at, &kept, 4);
  }
  moi_plan *plan = NULL;
  passes(layer_plan(&l, op, context, &plan));
  moi_plan_destroy(plan);
}

static void test_route_desc(void **state) {
  (void)state;
#define R(member, value) BAD(moi_route_desc, member, value)
  static const bad_member bad[] = {R(max_tokens, 0),
                                   R(max_tokens, UINT32_MAX),
                                   R(hidden, UINT32_MAX),
                                   R(n_experts, 0),
                                   R(n_experts, 65537),
                                   R(n_experts, UINT32_MAX),
                                   R(n_identity, UINT32_MAX),
                                   R(top_k, 0),
                                   R(top_k, 65),
                                   R(top_k, LAYER_E + 1),
                                   R(top_k, UINT32_MAX),
                                   R(score, MOI_SCORE_SPARSEMIXER + 1),
                                   R(score, -1),
                                   R(score, 0x7fffffff),
                                   R(n_group, 2),
                                   R(n_group, 1025),
                                   R(n_group, UINT32_MAX),
                                   R(group_score, 2),
                                   R(group_score, -1),
                                   R(renorm, 3),
                                   R(renorm, -1),
                                   R(renorm_eps, NOT_A_NUMBER),
                                   R(renorm_eps, INFINITE),
                                   R(renorm_eps, MINUS_ONE),
                                   R(scale, NOT_A_NUMBER),
                                   R(scale, MINUS_INFINITE),
                                   R(logit_scale, INFINITE),
                                   R(logit_softcap, NOT_A_NUMBER),
                                   R(logit_softcap, MINUS_ONE),
                                   R(jitter, NOT_A_NUMBER),
                                   R(jitter, MINUS_ONE),
                                   R(norm_eps, INFINITE),
                                   R(norm_eps, MINUS_ONE),
                                   R(norm_scale, NOT_A_NUMBER),
                                   R(flags, 0x40),
                                   R(flags, 0x80000000u),
                                   R(flags, MOI_ROUTE_SELECT_BIAS_ALT),
                                   R(flags, MOI_ROUTE_HASH) /* without vocab */,
                                   R(input_type, MOI_FORMAT_BF16_KN),
                                   R(input_type, -1),
                                   R(router_type, MOI_FORMAT_Q8_0),
                                   R(router_type, 7),
                                   R(logits_type, 99),
                                   R(weight_type, 0x7fffffff),
                                   R(plan_flags, 8),
                                   R(plan_flags, 0x80000000u)};
  /* flags without vocab names vocab */
  bad_member rows[sizeof bad / sizeof bad[0]];
  memcpy(rows, bad, sizeof bad);
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    if (rows[i].offset == offsetof(moi_route_desc, flags) && rows[i].bits == MOI_ROUTE_HASH) rows[i].says = "vocab";
  refuse_members(rows, sizeof bad / sizeof bad[0], &l.route, MOI_OP_ROUTE);

  moi_plan *plan = NULL;
  l.route.hidden = 0;
  l.route.flags = MOI_ROUTE_INPUT_NORM;
  refused(moi_route_plan(context, &l.route, &plan), MOI_INVALID_ARGUMENT, "INPUT_NORM");
  l.route.flags = MOI_ROUTE_HASH | MOI_ROUTE_SELECT_BIAS;
  l.route.vocab = 10;
  refused(moi_route_plan(context, &l.route, &plan), MOI_INVALID_ARGUMENT, "SELECT_BIAS");
  l.route.flags = 0;
  l.route.n_experts = 12;
  l.route.n_group = 5;
  l.route.topk_group = 2;
  refused(moi_route_plan(context, &l.route, &plan), MOI_INVALID_ARGUMENT, "n_group");
  l.route.n_group = 4;
  l.route.topk_group = 0;
  refused(moi_route_plan(context, &l.route, &plan), MOI_INVALID_ARGUMENT, "topk_group");
  l.route.topk_group = 5;
  refused(moi_route_plan(context, &l.route, &plan), MOI_INVALID_ARGUMENT, "topk_group");
  l.route.topk_group = 2;
  l.route.top_k = 7;
  refused(moi_route_plan(context, &l.route, &plan), MOI_INVALID_ARGUMENT, "topk_group");
  l.route.top_k = 6;
  passes(moi_route_plan(context, &l.route, &plan));
  moi_plan_destroy(plan);
  layer_make(&l);
  l.route.max_tokens = 1u << 24;
  l.route.n_experts = 65536;
  refused(moi_route_plan(context, &l.route, &plan), MOI_INVALID_ARGUMENT, "max_tokens");
  l.route.max_tokens = 1;
  l.route.hidden = 1u << 20;
  refused(moi_route_plan(context, &l.route, &plan), MOI_INVALID_ARGUMENT, "hidden");
}

static void test_experts_desc(void **state) {
  (void)state;
#define X(member, value) BAD(moi_experts_desc, member, value)
  static const bad_member bad[] = {X(max_tokens, 0),
                                   X(max_tokens, UINT32_MAX),
                                   X(hidden, 0),
                                   X(hidden, UINT32_MAX),
                                   X(intermediate, 0),
                                   X(intermediate, UINT32_MAX),
                                   X(intermediate, 0x80000002u),
                                   X(n_experts, 0),
                                   X(n_experts, 65537),
                                   X(n_identity, UINT32_MAX),
                                   X(top_k, 0),
                                   X(top_k, 65),
                                   X(activation, MOI_ACT_RELU2 + 1),
                                   X(activation, -1),
                                   X(act_alpha, NOT_A_NUMBER),
                                   X(act_limit, INFINITE),
                                   X(act_limit, MINUS_ONE),
                                   X(gate_layout, 4),
                                   X(gate_layout, -1),
                                   X(gate_layout, MOI_GATE_NONE),
                                   X(weight_on, 3),
                                   X(weight_on, -1),
                                   X(act_quant, 4),
                                   X(act_quant, 0x7fffffff),
                                   X(format, 0),
                                   X(format, 5),
                                   X(format, -1),
                                   X(down_format, 1000),
                                   X(bias_type, 16),
                                   X(bias_type, -1),
                                   X(input_type, MOI_FORMAT_MXFP4),
                                   X(mid_type, 12),
                                   X(output_type, MOI_FORMAT_FP8_B128),
                                   X(output_scale, NOT_A_NUMBER),
                                   X(output_scale, INFINITE),
                                   X(flags, 4),
                                   X(flags, 0x80000000u),
                                   X(plan_flags, 8)};
  refuse_members(bad, sizeof bad / sizeof bad[0], &l.experts, MOI_OP_EXPERTS);

  /* k that is no multiple of a block: of gate and up it is h, of down it is i */
  static const struct {
    moi_format format;
    uint32_t multiple;
  } blocks[] = {{MOI_FORMAT_MXFP4, 32},    {MOI_FORMAT_NVFP4, 16},     {MOI_FORMAT_INT4_G128, 128},
                {MOI_FORMAT_GPTQ_G32, 32}, {MOI_FORMAT_AWQ_G128, 128}, {MOI_FORMAT_Q4_K, 256},
                {MOI_FORMAT_Q8_0, 32}};
  moi_plan *plan = NULL;
  for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
    uint32_t k = blocks[i].multiple;
    l.experts.format = blocks[i].format;
    l.experts.hidden = l.experts.intermediate = 256;
    passes(moi_experts_plan(context, &l.experts, &plan));
    moi_plan_destroy(plan);
    l.experts.hidden = 256 + k / 2;
    refused(moi_experts_plan(context, &l.experts, &plan), MOI_INVALID_ARGUMENT, "gate/up");
    l.experts.hidden = 256;
    l.experts.intermediate = 256 + k / 2;
    refused(moi_experts_plan(context, &l.experts, &plan), MOI_INVALID_ARGUMENT, "down");
  }
  layer_make(&l);
  l.experts.hidden = l.experts.intermediate = 1u << 20;
  refused(moi_experts_plan(context, &l.experts, &plan), MOI_INVALID_ARGUMENT, "4 GiB");
  layer_make(&l);
  l.experts.max_tokens = 1u << 24;
  l.experts.top_k = 64; /* 2^30 slots: within bounds, the workspace is only counted */
  passes(moi_experts_plan(context, &l.experts, &plan));
  assert_true(moi_plan_workspace(plan, NULL) > (size_t)1 << 30);
  moi_plan_destroy(plan);
  layer_make(&l);
  l.experts.activation = MOI_ACT_RELU2; /* with a gate */
  refused(moi_experts_plan(context, &l.experts, &plan), MOI_INVALID_ARGUMENT, "gate_layout");
}

static void test_gemm_desc(void **state) {
  (void)state;
#define G(member, value) BAD(moi_gemm_desc, member, value)
  static const bad_member bad[] = {
      G(max_rows, 0),   G(max_rows, UINT32_MAX), G(n, 0),         G(n, UINT32_MAX), G(k, 0),       G(k, UINT32_MAX),
      G(n_experts, 0),  G(n_experts, 65537),     G(format, 0),    G(format, -1),    G(format, 71), G(bias_type, 4),
      G(input_type, 4), G(output_type, 64),      G(act_quant, 4), G(act_quant, -1), G(flags, 4),   G(plan_flags, 8)};
  refuse_members(bad, sizeof bad / sizeof bad[0], &l.gemm, MOI_OP_GEMM);
  moi_plan *plan = NULL;
  l.gemm.format = MOI_FORMAT_AWQ_G32;
  l.gemm.k = 64;
  l.gemm.n = 12;
  refused(moi_gemm_plan(context, &l.gemm, &plan), MOI_INVALID_ARGUMENT, "8");
}

static void test_moe_desc(void **state) {
  (void)state;
#define M(member, value) BAD(moi_moe_desc, member, value)
  static const bad_member bad[] = {M(shared_gate, 2),         M(shared_gate, -1),
                                   M(shared_gate_type, 4),    M(output_scale, NOT_A_NUMBER),
                                   M(output_scale, INFINITE), M(plan_flags, 8)};
  refuse_members(bad, sizeof bad / sizeof bad[0], &l.moe, MOI_OP_MOE);
  /* members of the descs inside */
  static const bad_member inner[] = {X(max_tokens, LAYER_T + 1), X(n_experts, LAYER_E + 1), X(n_identity, 1),
                                     X(top_k, 1), X(activation, 99)};
  refuse_members(inner, sizeof inner / sizeof inner[0], &l.experts, MOI_OP_MOE);
  static const bad_member shared[] = {X(max_tokens, 1), X(hidden, 4), X(n_experts, 2), X(top_k, 2),
                                      X(n_identity, 1), X(flags, 1),  X(weight_on, 1), X(output_scale, 0x40000000)};
  refuse_members(shared, sizeof shared / sizeof shared[0], &l.shared, MOI_OP_MOE);

  moi_plan *plan = NULL;
  l.moe.experts = NULL;
  refused(moi_moe_plan(context, &l.moe, &plan), MOI_INVALID_ARGUMENT, "experts");
  l.moe.experts = &l.experts;
  l.moe.shared = NULL;
  refused(moi_moe_plan(context, &l.moe, &plan), MOI_INVALID_ARGUMENT, "shared");
  l.moe.shared_gate = MOI_SHARED_PLAIN;
  passes(moi_moe_plan(context, &l.moe, &plan));
  moi_plan_destroy(plan);
}

static void test_null_arguments(void **state) {
  (void)state;
  moi_plan *plan = (moi_plan *)&l;
  refused(moi_context_create(NULL, (moi_context **)&plan), MOI_INVALID_ARGUMENT, "moi_context_create: desc");
  assert_null(plan);
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  refused(moi_context_create(&desc, NULL), MOI_INVALID_ARGUMENT, "moi_context_create: out");
  refused(moi_route_plan(NULL, &l.route, &plan), MOI_INVALID_ARGUMENT, "moi_route_plan: context");
  refused(moi_experts_plan(context, &l.experts, NULL), MOI_INVALID_ARGUMENT, "moi_experts_plan: out");
  refused(moi_gemm_plan(context, NULL, &plan), MOI_INVALID_ARGUMENT, "moi_gemm_plan: desc");
  refused(moi_moe_plan(NULL, &l.moe, &plan), MOI_INVALID_ARGUMENT, "moi_moe_plan: context");
  refused(moi_attention_plan(context, NULL, NULL), MOI_INVALID_ARGUMENT, "moi_attention_plan: out");
  refused(moi_route_run(NULL, &l.route_args, moi_ptr(NULL, 0), no_queue), MOI_INVALID_ARGUMENT, "moi_route_run: plan");
  refused(moi_moe_run(NULL, NULL, moi_ptr(NULL, 0), no_queue), MOI_INVALID_ARGUMENT, "plan");
  refused(moi_device_count(MOI_BACKEND_CPU, NULL), MOI_INVALID_ARGUMENT, "moi_device_count: count");
  refused(moi_device_get(MOI_BACKEND_CPU, 0, NULL), MOI_INVALID_ARGUMENT, "moi_device_get: info");
  refused(moi_kernel_get(MOI_BACKEND_CPU, 0, NULL), MOI_INVALID_ARGUMENT, "moi_kernel_get: info");
  refused(moi_format_size(MOI_FORMAT_F32, 1, 1, NULL), MOI_INVALID_ARGUMENT, "moi_format_size: out");
  refused(moi_pack(NULL, NULL, NULL), MOI_INVALID_ARGUMENT, "moi_pack: desc");
  refused(moi_pack_plan(NULL, &pack_desc, &plan), MOI_INVALID_ARGUMENT, "moi_pack_plan: context");
  refused(moi_pack_run(NULL, &pack_src, &pack_dst, no_queue), MOI_INVALID_ARGUMENT, "moi_pack_run: plan");
  moi_context_destroy(NULL);
  moi_plan_destroy(NULL);
  size_t align = 1;
  assert_int_equal(moi_plan_workspace(NULL, &align), 0);
  assert_int_equal(moi_plan_workspace(NULL, NULL), 0);
  assert_int_equal(moi_plan_describe(NULL, NULL, 0), 0);
  assert_string_equal(moi_plan_kernel(NULL), "");
  assert_int_equal(moi_format_from_name(NULL), MOI_FORMAT_NONE);
  assert_null(moi_preset_find(NULL));
}

/* ---- errors */

static void *other_thread(void *unused) {
  (void)unused;
  static char seen[2][256];
  snprintf(seen[0], sizeof seen[0], "%s", moi_last_error());
  moi_format_size(MOI_FORMAT_Q4_K, 1, 77, &(moi_format_sizes){0, 0, 0});
  snprintf(seen[1], sizeof seen[1], "%s", moi_last_error());
  return seen;
}

static void test_last_error(void **state) {
  (void)state;
  moi_format_sizes sizes;
  moi_plan *plan = NULL;
  l.experts.top_k = 4711;
  refused(moi_experts_plan(context, &l.experts, &plan), MOI_INVALID_ARGUMENT, "moi_experts_plan: desc->top_k: 4711");
  assert_non_null(strstr(moi_last_error(), "64")); /* the limit */
  char before[256];
  snprintf(before, sizeof before, "%s", moi_last_error());
  passes(moi_format_size(MOI_FORMAT_F32, 4, 4, &sizes));
  assert_string_equal(moi_last_error(), before); /* success leaves it */
  pthread_t thread;
  void *result = NULL;
  assert_int_equal(pthread_create(&thread, NULL, other_thread, NULL), 0);
  pthread_join(thread, &result);
  char(*seen)[256] = result;
  assert_string_equal(seen[0], ""); /* before a thread's first failure */
  assert_non_null(strstr(seen[1], "77"));
  assert_string_equal(moi_last_error(), before);
  /* a text that is longer than any buffer is cut, not overrun */
  char name[4000];
  memset(name, 'n', sizeof name - 1);
  name[sizeof name - 1] = 0;
  l.experts.top_k = LAYER_K;
  l.experts.kernel = name;
  refused(moi_experts_plan(context, &l.experts, &plan), MOI_UNSUPPORTED, "kernel");
}

static void test_status_and_version(void **state) {
  (void)state;
#define TEXT(NAME, value, text)                                                                                        \
  assert_int_equal(MOI_##NAME, value);                                                                                 \
  assert_string_equal(moi_status_text(MOI_##NAME), text);
  MOI_STATUS_MAP(TEXT)
  assert_non_null(moi_status_text((moi_status)-1));
  assert_non_null(moi_status_text((moi_status)12345));
  assert_int_equal(moi_version(), MOI_VERSION);
  assert_int_equal(MOI_VERSION, MOI_VERSION_MAJOR * 65536 + MOI_VERSION_MINOR * 256 + MOI_VERSION_PATCH);
  assert_int_equal(sizeof(moi_status), 4);
  assert_int_equal(sizeof(moi_format), 4);
  assert_int_equal(sizeof(moi_backend), 4);
}

/* ---- formats */

static void test_formats(void **state) {
  (void)state;
  /* bytes of W[256, 512], counted by hand */
  static const struct {
    moi_format format;
    uint64_t data, scales, zeros;
    uint32_t k_multiple, n_multiple;
  } rows[] = {
      {MOI_FORMAT_F32, 524288, 0, 0, 1, 1},
      {MOI_FORMAT_F16, 262144, 0, 0, 1, 1},
      {MOI_FORMAT_BF16, 262144, 0, 0, 1, 1},
      {MOI_FORMAT_BF16_KN, 262144, 0, 0, 1, 1},
      {MOI_FORMAT_FP8, 131072, 0, 0, 1, 1},
      {MOI_FORMAT_FP8_B128, 131072, 32, 0, 1, 1},
      {MOI_FORMAT_MXFP4, 65536, 4096, 0, 32, 1},
      {MOI_FORMAT_NVFP4, 65536, 8192, 0, 16, 1},
      {MOI_FORMAT_FP4_G16, 65536, 8192, 0, 16, 1},
      {MOI_FORMAT_INT4_G32, 65536, 8192, 0, 32, 1},
      {MOI_FORMAT_INT4_G128, 65536, 2048, 0, 128, 1},
      {MOI_FORMAT_INT4Z_G32, 65536, 8192, 4096, 32, 1},
      {MOI_FORMAT_INT4Z_G128, 65536, 2048, 1024, 128, 1},
      {MOI_FORMAT_GPTQ_G32, 65536, 8192, 2048, 32, 8},
      {MOI_FORMAT_GPTQ_G128, 65536, 2048, 512, 128, 8},
      {MOI_FORMAT_AWQ_G32, 65536, 8192, 2048, 32, 8},
      {MOI_FORMAT_AWQ_G128, 65536, 2048, 512, 128, 8},
      {MOI_FORMAT_Q8_0, 139264, 0, 0, 32, 1},
      {MOI_FORMAT_Q4_0, 73728, 0, 0, 32, 1},
      {MOI_FORMAT_Q4_K, 73728, 0, 0, 256, 1},
      {MOI_FORMAT_Q5_K, 90112, 0, 0, 256, 1},
      {MOI_FORMAT_Q6_K, 107520, 0, 0, 256, 1},
      {MOI_FORMAT_MXFP4_GGUF, 69632, 0, 0, 32, 1},
      {MOI_FORMAT_IQ4_NL, 73728, 0, 0, 32, 1},
      {MOI_FORMAT_MXFP4_R16, 65536, 4096, 0, 32, 16},
      {MOI_FORMAT_Q4_0_R16, 65536, 8192, 0, 32, 16},
      {MOI_FORMAT_IQ4_NL_R16, 65536, 8192, 0, 32, 16},
      {MOI_FORMAT_Q8_0_R16, 131072, 8192, 0, 32, 16},
      {MOI_FORMAT_Q4_K_R16, 73728, 0, 0, 256, 16},
  };
  enum { N = sizeof rows / sizeof rows[0] };
  uint32_t count = 0;
  while (moi_format_at(count) != MOI_FORMAT_NONE) count++;
  assert_int_equal(count, N);
  assert_int_equal(moi_format_at(UINT32_MAX), MOI_FORMAT_NONE);
  for (size_t i = 0; i < N; i++) {
    moi_format format = rows[i].format;
    moi_format_sizes s;
    assert_int_equal(moi_format_at((uint32_t)i), format);
    const char *name = moi_format_name(format);
    assert_non_null(name);
    assert_int_equal(moi_format_from_name(name), format);
    passes(moi_format_size(format, 256, 512, &s));
    assert_int_equal(s.data, rows[i].data);
    assert_int_equal(s.scales, rows[i].scales);
    assert_int_equal(s.zeros, rows[i].zeros);
    refused(moi_format_size(format, 0, 512, &s), MOI_INVALID_ARGUMENT, "n");
    refused(moi_format_size(format, 256, 0, &s), MOI_INVALID_ARGUMENT, "k");
    refused(moi_format_size(format, 1u << 20, 1u << 20, &s), MOI_INVALID_ARGUMENT, "4 GiB");
    refused(moi_format_size(format, 0xfffffff0u, 0xffffff00u, &s), MOI_INVALID_ARGUMENT, "4 GiB");
    if (rows[i].k_multiple > 1) {
      char number[16];
      snprintf(number, sizeof number, "%u", rows[i].k_multiple);
      refused(moi_format_size(format, 256, 512 + rows[i].k_multiple / 2, &s), MOI_INVALID_ARGUMENT, number);
      refused(moi_format_size(format, 256, rows[i].k_multiple - 1, &s), MOI_INVALID_ARGUMENT, number);
    }
    if (rows[i].n_multiple > 1) refused(moi_format_size(format, 256 + 4, 512, &s), MOI_INVALID_ARGUMENT, "n");
  }
  moi_format_sizes s;
  passes(moi_format_size(MOI_FORMAT_FP8_B128, 130, 200, &s)); /* ragged tiles */
  assert_int_equal(s.data, 26000);
  assert_int_equal(s.scales, 16);
  refused(moi_format_size(MOI_FORMAT_NONE, 4, 4, &s), MOI_INVALID_ARGUMENT, "format: 0");
  refused(moi_format_size((moi_format)-3, 4, 4, &s), MOI_INVALID_ARGUMENT, "format: -3");
  assert_null(moi_format_name(MOI_FORMAT_NONE));
  assert_null(moi_format_name((moi_format)71));
  assert_int_equal(moi_format_from_name("q4_k"), MOI_FORMAT_Q4_K);
  assert_int_equal(moi_format_from_name("Q4_K"), MOI_FORMAT_NONE);
  assert_int_equal(moi_format_from_name(""), MOI_FORMAT_NONE);
}

static void test_pack_arguments(void **state) {
  (void)state;
  make_pack();
  passes(moi_pack(&pack_desc, &pack_src, &pack_dst));
  for (uint32_t i = 0; moi_format_at(i); i++)
    for (uint32_t j = 0; moi_format_at(j); j++) {
      int listed = 0;
      for (size_t p = 0; p < sizeof packed_pairs / sizeof packed_pairs[0]; p++)
        listed |= packed_pairs[p][0] == moi_format_at(i) && packed_pairs[p][1] == moi_format_at(j);
      pack_desc.from = moi_format_at(i);
      pack_desc.to = moi_format_at(j);
      if (!listed) refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_UNSUPPORTED, moi_format_name(pack_desc.to));
    }
  make_pack();
  pack_desc.n_experts = 0;
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "n_experts");
  make_pack();
  pack_desc.n = 0;
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "n");
  make_pack();
  pack_desc.to = (moi_format)-1;
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "to");
  make_pack();
  pack_src.data.size--;
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "src->data");
  make_pack();
  pack_dst.data.ptr = NULL;
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "dst->data");
  make_pack();
  pack_dst.data_stride = 127;
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "dst->data_stride");
  make_pack();
  pack_desc.from = MOI_FORMAT_Q4_0, pack_desc.to = MOI_FORMAT_Q4_0_R16, pack_desc.n = 40, pack_desc.k = 32;
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "40 is not a multiple of 16, as q4_0_r16 needs");
  make_pack();
  pack_desc.n_experts = 65536; /* more than the views hold */
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "size");
  make_pack();
  pack_dst.data = pack_src.data;
  refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "dst->data: overlaps src->data");
  make_pack();
  pack_desc.k = 7; /* from any byte on; a run wants what is aligned */
  pack_src.data.offset = 1;
  pack_src.data.size -= 1;
  passes(moi_pack(&pack_desc, &pack_src, &pack_dst));
  refused(run_pack(&pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "src->data: is not aligned to 2");
  for (uint32_t i = 0; moi_format_at(i); i++) {
    moi_format to = moi_pack_preferred(MOI_BACKEND_CPU, moi_format_at(i));
    assert_non_null(moi_format_name(to));
    make_pack();
    pack_desc.from = moi_format_at(i);
    pack_desc.to = to;
    pack_desc.n = pack_desc.k = 256; /* what is preferred can be packed: only the views are too small */
    if (to != moi_format_at(i)) refused(moi_pack(&pack_desc, &pack_src, &pack_dst), MOI_INVALID_ARGUMENT, "src->");
  }
}

/* ---- plans */

static void test_desc_lives_only_during_the_call(void **state) {
  (void)state;
  moi_route_desc *route = malloc(sizeof *route);
  moi_experts_desc *experts = malloc(sizeof *experts), *shared = malloc(sizeof *shared);
  moi_moe_desc *moe = malloc(sizeof *moe);
  char *kernel = malloc(8);
  assert_true(route && experts && shared && moe && kernel);
  *route = l.route, *experts = l.experts, *shared = l.shared, *moe = l.moe;
  strcpy(kernel, "generic");
  moe->route = route, moe->experts = experts, moe->shared = shared, moe->kernel = kernel;
  moi_plan *plan = NULL;
  passes(moi_moe_plan(context, moe, &plan));
  memset(route, 0xff, sizeof *route), memset(experts, 0xff, sizeof *experts), memset(kernel, 'x', 8);
  free(route), free(experts), free(shared), free(moe), free(kernel);
  moi_buffer workspace = take_workspace(plan);
  passes(moi_moe_run(plan, &l.moe_args, workspace, no_queue));
  assert_non_null(strstr(moi_plan_kernel(plan), "generic"));
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
}

static void test_describe(void **state) {
  (void)state;
  moi_plan *plan = NULL;
  passes(moi_moe_plan(context, &l.moe, &plan));
  size_t length = moi_plan_describe(plan, NULL, 0);
  assert_true(length > 0);
  char *text = malloc(length + 1), part[16];
  assert_non_null(text);
  assert_int_equal(moi_plan_describe(plan, text, length + 1), length);
  assert_int_equal(strlen(text), length);
  for (size_t size = 0; size <= sizeof part; size++) {
    memset(part, '#', sizeof part);
    assert_int_equal(moi_plan_describe(plan, part, size), length);
    if (size) {
      assert_int_equal(strlen(part), size - 1);
      assert_memory_equal(part, text, size - 1);
    }
    for (size_t i = size; i < sizeof part; i++) assert_int_equal(part[i], '#');
  }
  assert_non_null(strstr(text, "gate"));
  assert_non_null(strstr(text, "router"));
  assert_non_null(strstr(text, "select-"));
  assert_non_null(strstr(text, "workspace"));
  free(text);
  moi_plan_destroy(plan);
}

static void test_presets(void **state) {
  (void)state;
  uint32_t n = moi_preset_count();
  assert_true(n > 10);
  assert_null(moi_preset_at(n));
  assert_null(moi_preset_at(UINT32_MAX));
  assert_null(moi_preset_find("no such model"));
  for (uint32_t i = 0; i < n; i++) {
    const moi_preset *p = moi_preset_at(i);
    assert_non_null(p);
    assert_ptr_equal(moi_preset_find(p->name), p); /* so names are unique */
    assert_true(p->struct_size == sizeof *p && p->name[0] && p->models[0] && p->rule[0] == 'R' && p->note);
    assert_true(p->moe_layers && p->moe_layers <= p->layers && p->route && p->experts);
    assert_int_equal(p->experts->max_tokens, 0);
    assert_int_equal(p->route->max_tokens, 0);
    moi_route_desc route = *p->route;
    moi_experts_desc experts = *p->experts, shared;
    route.max_tokens = experts.max_tokens = 16;
    moi_moe_desc moe = MOI_MOE_DESC_INIT;
    moe.route = &route;
    moe.experts = &experts;
    if (p->shared) {
      shared = *p->shared;
      assert_int_equal(shared.max_tokens, 0);
      shared.max_tokens = 16;
      moe.shared = &shared;
    }
    moe.shared_gate = p->shared_gate;
    moe.output_scale = p->output_scale;
    moi_plan *plan = NULL;
    moi_status status = moi_moe_plan(context, &moe, &plan);
    if (status) fail_msg("%s: %s", p->name, moi_last_error());
    moi_plan_destroy(plan);
    passes(moi_route_plan(context, &route, &plan));
    moi_plan_destroy(plan);
    passes(moi_experts_plan(context, &experts, &plan));
    moi_plan_destroy(plan);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_struct_size, make_layer),
      cmocka_unit_test_setup(test_next_chain, make_layer),
      cmocka_unit_test_setup(test_route_desc, make_layer),
      cmocka_unit_test_setup(test_experts_desc, make_layer),
      cmocka_unit_test_setup(test_gemm_desc, make_layer),
      cmocka_unit_test_setup(test_moe_desc, make_layer),
      cmocka_unit_test_setup(test_null_arguments, make_layer),
      cmocka_unit_test_setup(test_last_error, make_layer),
      cmocka_unit_test_setup(test_status_and_version, make_layer),
      cmocka_unit_test_setup(test_formats, make_layer),
      cmocka_unit_test_setup(test_pack_arguments, make_layer),
      cmocka_unit_test_setup(test_desc_lives_only_during_the_call, make_layer),
      cmocka_unit_test_setup(test_describe, make_layer),
      cmocka_unit_test_setup(test_presets, make_layer),
  };
  return cmocka_run_group_tests(tests, open_context, close_context);
}
