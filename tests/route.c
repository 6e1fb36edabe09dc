/* Routing against examples computed by hand: every rule of docs/routing.md, ties, NaN, infinities, masks, hash tables,
 * counts. Every example runs on the fast selection and on the reference, from logits and, where they are finite,
 * through a router that is the identity matrix. */
#include "tests/support.h"

#include <math.h>

#include "bench/rig/operands.h"
#include "core/shared/round.h"

static moi_context *context;

static int open_context(void **state) {
  *state = context = open_cpu(1);
  return 0;
}

enum { MAX_T = 8, MAX_N = 16, MAX_K = 8 };

typedef struct example {
  const char *name;
  moi_route_desc desc; /* max_tokens and struct_size are filled in */
  const float *logits; /* [t, n_class] */
  uint32_t t;
  const int32_t *ids;    /* [t, k] wanted */
  const double *weights; /* [t, k] wanted */
  moi_route_args args;   /* optional operands */
} example;

typedef struct outputs {
  int32_t ids[MAX_T * MAX_K], counts[MAX_N], offsets[MAX_N + 1], permutation[MAX_T * MAX_K];
  float weights[MAX_T * MAX_K], logits[MAX_T * MAX_N];
} outputs;

static moi_status route(const moi_route_desc *desc, const moi_route_args *operands, outputs *out) {
  moi_plan *plan = NULL;
  moi_status status = moi_route_plan(context, desc, &plan);
  if (status) return status;
  moi_route_args a = *operands;
  memset(out, 0x7f, sizeof *out);
  a.struct_size = sizeof a;
  a.ids = VIEW(out->ids);
  a.weights = VIEW(out->weights);
  a.counts = VIEW(out->counts);
  a.offsets = VIEW(out->offsets);
  a.permutation = VIEW(out->permutation);
  a.logits_out = VIEW(out->logits);
  moi_buffer workspace = take_workspace(plan);
  status = moi_route_run(plan, &a, workspace, no_queue);
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
  return status;
}

/* counts, offsets and permutation are those of the ids */
static void check_order(const int32_t *ids, const int32_t *counts, const int32_t *offsets, const int32_t *permutation,
                        uint32_t slots, uint32_t n) {
  int32_t at = 0;
  for (uint32_t e = 0; e < n; e++) {
    assert_int_equal(offsets[e], at);
    int32_t count = 0;
    for (uint32_t s = 0; s < slots; s++) {
      if (ids[s] != (int32_t)e) continue;
      count++;
      assert_int_equal(permutation[at], s);
      at++;
    }
    assert_int_equal(counts[e], count);
  }
  assert_int_equal(offsets[n], at);
  for (uint32_t s = (uint32_t)at; s < slots; s++) assert_int_equal(permutation[s], -1);
}

static void check_outputs(const example *x, const char *how, const outputs *out) {
  uint32_t k = x->desc.top_k;
  for (uint32_t i = 0; i < x->t * k; i++) {
    double w = x->weights[i], slack = 4e-6 * fabs(w) + (x->desc.weight_type == MOI_FORMAT_BF16 ? fabs(w) / 256 : 0);
    if (out->ids[i] == x->ids[i] && fabs(out->weights[i] - w) <= slack) continue;
    fail_msg("%s, %s: token %u slot %u: expert %d weight %.9g, wanted %d and %.9g", x->name, how, i / k, i % k,
             out->ids[i], (double)out->weights[i], x->ids[i], w);
  }
  check_order(out->ids, out->counts, out->offsets, out->permutation, x->t * k, x->desc.n_experts + x->desc.n_identity);
}

static void check(const example *given) {
  static const char *const kernels[3] = {NULL, "select-f32", "ref"}; /* NULL: what a plan takes, of the same bits as the second */
  example x = *given;
  uint32_t n = x.desc.n_experts + x.desc.n_identity;
  assert_true(n <= MAX_N && x.t <= MAX_T && x.desc.top_k <= MAX_K);
  static float identity[MAX_N * MAX_N];
  int finite = 1;
  for (uint32_t i = 0; i < x.t * n; i++) finite &= isfinite(x.logits[i]) != 0;
  for (uint32_t i = 0; i < n * n; i++) identity[i] = i / n == i % n;
  x.desc.struct_size = sizeof x.desc;
  x.desc.max_tokens = MAX_T;
  x.args.n_tokens = x.t;
  outputs out, chosen;
  for (int i = 0; i < 3; i++) {
    const char *name = kernels[i] ? kernels[i] : "chosen";
    x.desc.kernel = kernels[i];
    x.desc.hidden = 0;
    x.args.logits = moi_ptr(x.logits, x.t * n * 4);
    passes(route(&x.desc, &x.args, &out));
    check_outputs(&x, name, &out);
    if (i == 0) chosen = out;
    if (i == 1) {
      assert_memory_equal(out.ids, chosen.ids, x.t * x.desc.top_k * sizeof *out.ids);
      assert_memory_equal(out.weights, chosen.weights, x.t * x.desc.top_k * sizeof *out.weights);
    }
    if (!finite || x.desc.input_type) continue;
    x.desc.hidden = n;
    x.args.hidden = x.args.logits;
    x.args.router = moi_ptr(identity, n * n * 4);
    passes(route(&x.desc, &x.args, &out));
    check_outputs(&x, name, &out);
  }
}

#define CHECK(text, tokens, describe, ...)                                                                             \
  check(&(example){.name = text,                                                                                       \
                   .t = tokens,                                                                                        \
                   .desc = {UNWRAP describe},                                                                          \
                   .logits = logits,                                                                                   \
                   .ids = ids,                                                                                         \
                   .weights = weights,                                                                                 \
                   .args = {__VA_ARGS__}})
#define UNWRAP(...) __VA_ARGS__
#define IDS(...) static const int32_t ids[] = {__VA_ARGS__}
#define LOGITS(...) static const float logits[] = {__VA_ARGS__}

static double sigmoid(double l) { return 1 / (1 + exp(-l)); }

/* R1: softmax over all, top-k, with and without renormalisation */
static void test_softmax(void **state) {
  (void)state;
  LOGITS(1, 3, 2, 0, /**/ -1, -2, -3, -0.5f);
  IDS(1, 2, /**/ 3, 0);
  double z[2] = {exp(1) + exp(3) + exp(2) + exp(0), exp(-1) + exp(-2) + exp(-3) + exp(-0.5)};
  double p[4] = {exp(3) / z[0], exp(2) / z[0], exp(-0.5) / z[1], exp(-1) / z[1]}, weights[4];
  memcpy(weights, p, sizeof p);
  CHECK("plain", 2, (.n_experts = 4, .top_k = 2));
  for (int i = 0; i < 4; i++) weights[i] = p[i] * 16;
  CHECK("scaled", 2, (.n_experts = 4, .top_k = 2, .scale = 16));
  for (int i = 0; i < 4; i++) weights[i] = p[i] / (p[i & 2] + p[(i & 2) + 1]);
  CHECK("renormalised", 2, (.n_experts = 4, .top_k = 2, .renorm = MOI_RENORM_SUM));
  CHECK("rounded to bf16", 2, (.n_experts = 4, .top_k = 2, .renorm = MOI_RENORM_SUM, .weight_type = MOI_FORMAT_BF16));
  for (int i = 0; i < 4; i++) weights[i] = p[i] / (p[i & 2] + p[(i & 2) + 1] + 0.25);
  CHECK("epsilon", 2, (.n_experts = 4, .top_k = 2, .renorm = MOI_RENORM_SUM, .renorm_eps = 0.25f));
}

/* The weights are bf16 values, not only near them. */
static void test_weight_type_is_a_rounding(void **state) {
  (void)state;
  LOGITS(0.1f, 0.7f, 0.4f);
  static const moi_format types[] = {MOI_FORMAT_BF16, MOI_FORMAT_F16};
  static const char *const kernels[] = {"select-f32", "ref"};
  for (int i = 0; i < 4; i++) {
    moi_route_desc d = {.struct_size = sizeof d,
                        .max_tokens = 1,
                        .n_experts = 3,
                        .top_k = 3,
                        .weight_type = types[i / 2],
                        .kernel = kernels[i % 2]};
    moi_route_args a = {.n_tokens = 1, .logits = moi_ptr(logits, 12)};
    outputs out;
    passes(route(&d, &a, &out));
    double z = exp((double)0.1f) + exp((double)0.7f) + exp((double)0.4f), l[3] = {0.7f, 0.4f, 0.1f};
    for (int j = 0; j < 3; j++) {
      uint32_t bits;
      memcpy(&bits, &out.weights[j], 4);
      assert_int_equal(bits & (types[i / 2] == MOI_FORMAT_BF16 ? 0xffffu : 0x1fffu), 0);
      double step = types[i / 2] == MOI_FORMAT_BF16 ? 0x1p-9 : 0x1p-12;
      assert_true(fabs(out.weights[j] - exp(l[j]) / z) <= step * 1.0001 * exp(l[j]) / z * 2);
    }
  }
}

/* R2 and R3: top-k first */
static void test_scores_after_topk(void **state) {
  (void)state;
  LOGITS(1, 3, 2, 0, /**/ -1, -2, -3, -0.5f);
  static const float bias[4] = {4, 0, 0, -1};
  {
    IDS(1, 2, /**/ 3, 0);
    const double weights[] = {1 / (1 + exp(-1)), 1 / (1 + exp(1)), 1 / (1 + exp(-0.5)), 1 / (1 + exp(0.5))};
    CHECK("top-k softmax", 2, (.n_experts = 4, .top_k = 2, .score = MOI_SCORE_TOPK_SOFTMAX));
  }
  { /* l + b = 5 3 2 -1, 3 -2 -3 -1.5 */
    IDS(0, 1, /**/ 0, 3);
    const double weights[] = {1 / (1 + exp(-2)), 1 / (1 + exp(2)), 1 / (1 + exp(-4.5)), 1 / (1 + exp(4.5))};
    CHECK("top-k softmax, router bias", 2,
          (.n_experts = 4, .top_k = 2, .score = MOI_SCORE_TOPK_SOFTMAX, .flags = MOI_ROUTE_BIAS),
          .router_bias = VIEW(bias));
  }
  {
    IDS(1, /**/ 3);
    const double weights[] = {sigmoid(3), sigmoid(-0.5)};
    CHECK("top-k sigmoid", 2, (.n_experts = 4, .top_k = 1, .score = MOI_SCORE_TOPK_SIGMOID));
  }
  {
    IDS(1, 2, 0, 3, /**/ 3, 0, 1, 2);
    const double weights[] = {sigmoid(3),    sigmoid(2),  sigmoid(1),  0.5,
                              sigmoid(-0.5), sigmoid(-1), sigmoid(-2), sigmoid(-3)};
    CHECK("top-k sigmoid, all", 2, (.n_experts = 4, .top_k = 4, .score = MOI_SCORE_TOPK_SIGMOID));
  }
}

/* R4, R12: sigmoid, selection bias, groups, renormalisation, scale */
static void test_sigmoid(void **state) {
  (void)state;
  LOGITS(0, 1, 2, -1, 0.5f, -2, 3, -3);
  static const float bias[8] = {1, 0, -1, 1, 0, 0, -0.5f, 0};
  /* s 0.500 0.731 0.881 0.269 0.622 0.119 0.953 0.047; s + b 1.500 0.731 -0.119 1.269 0.622 0.119 0.453 0.047 */
  {
    IDS(0, 3, 1);
    double sum = sigmoid(0) + sigmoid(-1) + sigmoid(1);
    const double weights[] = {2.5 * sigmoid(0) / sum, 2.5 * sigmoid(-1) / sum, 2.5 * sigmoid(1) / sum};
    CHECK("bias", 1,
          (.n_experts = 8, .top_k = 3, .score = MOI_SCORE_SIGMOID, .flags = MOI_ROUTE_SELECT_BIAS,
           .renorm = MOI_RENORM_SUM, .renorm_eps = 1e-20f, .scale = 2.5f),
          .select_bias = VIEW(bias));
  }
  { /* without bias */
    IDS(6, 2, 1);
    const double weights[] = {sigmoid(3), sigmoid(2), sigmoid(1)};
    CHECK("no bias", 1, (.n_experts = 8, .top_k = 3, .score = MOI_SCORE_SIGMOID));
  }
  {                  /* groups of two: 2.231 1.150 0.741 0.500: 0 and 1 stay */
    IDS(0, 3, 1, 2); /* 2 though v < 0: groups are removed, not set to 0 */
    const double weights[] = {sigmoid(0), sigmoid(-1), sigmoid(1), sigmoid(2)};
    CHECK("four groups", 1,
          (.n_experts = 8, .top_k = 4, .score = MOI_SCORE_SIGMOID, .flags = MOI_ROUTE_SELECT_BIAS, .n_group = 4,
           .topk_group = 2),
          .select_bias = VIEW(bias));
  }
  { /* groups of four by the sum of two: 1.500 + 1.269 and 0.622 + 0.453 */
    IDS(0, 3);
    const double weights[] = {sigmoid(0), sigmoid(-1)};
    CHECK("two groups", 1,
          (.n_experts = 8, .top_k = 2, .score = MOI_SCORE_SIGMOID, .flags = MOI_ROUTE_SELECT_BIAS, .n_group = 2,
           .topk_group = 1),
          .select_bias = VIEW(bias));
  }
  { /* without bias: sums 1.231 1.150 0.741 1.000 by two, maxima 0.731 0.881 0.622 0.953 */
    IDS(2, 1);
    const double weights[] = {sigmoid(2), sigmoid(1)};
    CHECK("sum of two", 1, (.n_experts = 8, .top_k = 2, .score = MOI_SCORE_SIGMOID, .n_group = 4, .topk_group = 2));
  }
  {
    IDS(6, 2);
    const double weights[] = {sigmoid(3), sigmoid(2)};
    CHECK("maximum", 1,
          (.n_experts = 8, .top_k = 2, .score = MOI_SCORE_SIGMOID, .n_group = 4, .topk_group = 2,
           .group_score = MOI_GROUP_MAX));
  }
  {
    IDS(6, 7);
    const double weights[] = {5 * sigmoid(3) / (sigmoid(3) + sigmoid(-3)),
                              5 * sigmoid(-3) / (sigmoid(3) + sigmoid(-3))};
    CHECK("one group", 1,
          (.n_experts = 8, .top_k = 2, .score = MOI_SCORE_SIGMOID, .n_group = 4, .topk_group = 1, .scale = 5,
           .group_score = MOI_GROUP_MAX, .renorm = MOI_RENORM_SUM));
  }
}

/* R5 */
#define S(l) sqrt(l > 30 ? l : log1p(exp(l)))

static void test_sqrt_softplus(void **state) {
  (void)state;
  LOGITS(0, 25, -30, 2, 100, -60, /**/ 0, 25, -30, 2, 100, -60);
  static const float bias[6] = {0, 0, 20, 0, -20, 0}, alt[6] = {0, 0, 0, 30, 0, 40};
  {
    IDS(4, 1, 3);
    double sum = 10 + 5 + S(2.0);
    const double weights[] = {1.5 * 10 / sum, 1.5 * S(25.0) / sum, 1.5 * S(2.0) / sum};
    CHECK("sqrt(softplus)", 1,
          (.n_experts = 6, .top_k = 3, .score = MOI_SCORE_SQRT_SOFTPLUS, .renorm = MOI_RENORM_SUM, .renorm_eps = 1e-20f,
           .scale = 1.5f));
  }
  {
    IDS(2, 1, 3);
    const double weights[] = {S(-30.0), S(25.0), S(2.0)};
    CHECK("bias", 1, (.n_experts = 6, .top_k = 3, .score = MOI_SCORE_SQRT_SOFTPLUS, .flags = MOI_ROUTE_SELECT_BIAS),
          .select_bias = VIEW(bias));
  }
  { /* the other bias for the tokens of a mask */
    static const uint8_t mask[2] = {0, 2};
    IDS(2, 1, 3, /**/ 5, 3, 4);
    const double weights[] = {S(-30.0), S(25.0), S(2.0), /**/ S(-60.0), S(2.0), 10};
    CHECK("alt bias", 2,
          (.n_experts = 6, .top_k = 3, .score = MOI_SCORE_SQRT_SOFTPLUS,
           .flags = MOI_ROUTE_SELECT_BIAS | MOI_ROUTE_SELECT_BIAS_ALT),
          .select_bias = VIEW(bias), .select_bias_alt = VIEW(alt), .alt_mask = VIEW(mask));
  }
}

/* R6, R7, R8 */
static void test_softmax_variants(void **state) {
  (void)state;
  LOGITS(1, 2, 0, 3, -1, 0.5f);
  double z = exp(1) + exp(2) + 1 + exp(3) + exp(-1) + exp(0.5);
  {
    IDS(3, 1, 0); /* the maxima of the groups of two are 2 3 0.5 */
    const double weights[] = {16 * exp(3) / z, 16 * exp(2) / z, 16 * exp(1) / z};
    CHECK("group maximum", 1,
          (.n_experts = 6, .top_k = 3, .n_group = 3, .topk_group = 2, .group_score = MOI_GROUP_MAX, .scale = 16));
  }
  static const float bias[6] = {0, 0, 0, -1, 0.9f, 0};
  { /* p 0.083 0.226 0.031 0.615 0.011 0.051 -> p + b: 4 is first, 3 last */
    IDS(4, 1);
    double sum = (exp(-1) + exp(2)) / z;
    double weights[] = {exp(-1) / z / sum, exp(2) / z / sum};
    CHECK("max(sum, eps)", 1,
          (.n_experts = 6, .top_k = 2, .renorm = MOI_RENORM_MAX, .renorm_eps = 1e-12f, .flags = MOI_ROUTE_SELECT_BIAS),
          .select_bias = VIEW(bias));
    weights[0] = exp(-1) / z / 2;
    weights[1] = exp(2) / z / 2;
    CHECK("max(sum, eps), eps larger", 1,
          (.n_experts = 6, .top_k = 2, .renorm = MOI_RENORM_MAX, .renorm_eps = 2, .flags = MOI_ROUTE_SELECT_BIAS),
          .select_bias = VIEW(bias));
  }
  { /* the last three classes are identity experts */
    IDS(3, 1, 0);
    const double weights[] = {6 * exp(3) / z, 6 * exp(2) / z, 6 * exp(1) / z};
    CHECK("identity classes", 1, (.n_experts = 3, .n_identity = 3, .top_k = 3, .scale = 6));
  }
}

/* R9, threshold 2*0.25: (m - l)/max(|l|, m) > 0.5 is dropped */
static void test_sparsemixer(void **state) {
  (void)state;
  LOGITS(4, 3, 1.9f, 2.5f, -8, 1, /**/ -1, -2, -1.25f, -4, -1.5f, -1.75f);
  IDS(0, 1, /**/ 0, 2);
  /* token 0: of 4 stay 4 3 2.5 (1.9: 0.525); of 3 stay 3 1.9 2.5 (1: 0.67), not the chosen 4, (-8: 11/8)
     token 1: of -1: (-1 - l)/|l| = 0 0.5 0.2 0.75 1/3 3/7, so -2 stays and -4 goes; of -1.25 stay -2 -1.5 -1.75, and
     -4: 0.6875 goes */
  const double weights[] = {1 / (1 + exp(-1) + exp(-1.5)), 1 / (1 + exp(1.9f - 3.0) + exp(-0.5)),
                            1 / (1 + exp(-1) + exp(-0.25) + exp(-0.5) + exp(-0.75)),
                            1 / (1 + exp(-0.75) + exp(-0.25) + exp(-0.5))};
  CHECK("sparsemixer", 2, (.n_experts = 6, .top_k = 2, .score = MOI_SCORE_SPARSEMIXER, .jitter = 0.25f));
}

/* R10, R11 and the other changes of the logits */
static void test_logit_changes(void **state) {
  (void)state;
  LOGITS(30, 60, -30, 20);
  {
    IDS(1, 0);
    double l[4] = {30 * tanh(1), 30 * tanh(2), 30 * tanh(-1), 30 * tanh(20.0 / 30)}, z = 0;
    for (int i = 0; i < 4; i++) z += exp(l[i] - l[1]);
    const double weights[] = {1 / z, exp(l[0] - l[1]) / z};
    CHECK("softcap", 1, (.n_experts = 4, .top_k = 2, .logit_softcap = 30));
  }
  {
    IDS(1, 0);
    double z = 1 + exp(-3) + exp(-9) + exp(-4);
    const double weights[] = {1 / z, exp(-3) / z};
    CHECK("scale", 1, (.n_experts = 4, .top_k = 2, .logit_scale = 0.1f));
  }
  {
    IDS(2, 3);
    double z = exp(-6 - 3.0) + exp(-3 - 3.0) + 1 + exp(-2 - 3.0);
    const double weights[] = {1 / z, exp(-5.0) / z};
    CHECK("negative scale", 1, (.n_experts = 4, .top_k = 2, .logit_scale = -0.1f));
  }
  { /* scale first, then the cap */
    IDS(1, 0);
    double l[4] = {tanh(3), tanh(6), tanh(-3), tanh(2)}, z = 0;
    for (int i = 0; i < 4; i++) z += exp(l[i]);
    const double weights[] = {exp(l[1]) / z, exp(l[0]) / z};
    CHECK("scale and softcap", 1, (.n_experts = 4, .top_k = 2, .logit_scale = 0.1f, .logit_softcap = 1));
  }
  {
    static const float scales[4] = {3, 0.5f, 7, 9};
    IDS(1, 0);
    const double weights[] = {0.5 * 2 / (1 + exp(-30)), 3 * 2 * exp(-30) / (1 + exp(-30))};
    CHECK("expert scale", 1,
          (.n_experts = 4, .top_k = 2, .renorm = MOI_RENORM_SUM, .scale = 2, .flags = MOI_ROUTE_EXPERT_SCALE),
          .expert_scale = VIEW(scales));
  }
}

/* 1.001 and 1.002 are 1 in bf16: a tie that the lower index wins */
static void test_logits_type(void **state) {
  (void)state;
  LOGITS(0, 1.001f, 1.002f, 0.5f);
  {
    IDS(1, 2);
    double z = 1 + 2 * exp(1) + exp(0.5);
    const double weights[] = {exp(1) / z, exp(1) / z};
    CHECK("logits rounded to bf16", 1, (.n_experts = 4, .top_k = 2, .logits_type = MOI_FORMAT_BF16));
  }
  {
    IDS(2, 1);
    double z = 1 + exp(1.001f) + exp(1.002f) + exp(0.5);
    const double weights[] = {exp(1.002f) / z, exp(1.001f) / z};
    CHECK("logits in f32", 1, (.n_experts = 4, .top_k = 2));
  }
}

/* The router's input: x * rsqrt(mean(x^2) + eps) * norm_weight * norm_scale */
static void test_input_norm(void **state) {
  (void)state;
  static const float x[4] = {1, -2, 3, 4}, norm[4] = {1, 2, 0.5f, -1};
  static const float router[12] = {1, 0, 0, 0, /**/ 0, 1, 0, 1, /**/ 0.5f, 0, 2, 0};
  static const char *const kernels[2] = {"select-f32", "ref"};
  double r = 0.5 / sqrt(30.0 / 4 + 0.5); /* norm_scale / rms */
  double l[3] = {1 * r, (-4 - 4) * r, (0.5 + 3) * r}, z = exp(l[0]) + exp(l[1]) + exp(l[2]);
  for (int i = 0; i < 2; i++) {
    moi_route_desc d = {.struct_size = sizeof d,
                        .max_tokens = 1,
                        .hidden = 4,
                        .n_experts = 3,
                        .top_k = 2,
                        .flags = MOI_ROUTE_INPUT_NORM,
                        .norm_eps = 0.5f,
                        .norm_scale = 0.5f,
                        .kernel = kernels[i]};
    moi_route_args a = {.n_tokens = 1, .hidden = VIEW(x), .router = VIEW(router), .norm_weight = VIEW(norm)};
    outputs out;
    passes(route(&d, &a, &out));
    for (int e = 0; e < 3; e++) assert_float_equal(out.logits[e], l[e], 1e-6);
    assert_int_equal(out.ids[0], 2);
    assert_int_equal(out.ids[1], 0);
    assert_float_equal(out.weights[0], exp(l[2]) / z, 1e-6);
    assert_float_equal(out.weights[1], exp(l[0]) / z, 1e-6);
  }
}

/* ---- odd data */

static void test_ties(void **state) {
  (void)state;
  static const moi_score scores[] = {MOI_SCORE_SOFTMAX, MOI_SCORE_SIGMOID, MOI_SCORE_SQRT_SOFTPLUS,
                                     MOI_SCORE_TOPK_SOFTMAX, MOI_SCORE_TOPK_SIGMOID};
  static const float zero_bias[8] = {0};
  for (int s = 0; s < 5; s++) {
    double each = s == 0 ? 0.125 : s == 1 || s == 4 ? sigmoid(0.625) : s == 2 ? S(0.625) : 0.25;
    LOGITS(0.625f, 0.625f, 0.625f, 0.625f, 0.625f, 0.625f, 0.625f, 0.625f);
    IDS(0, 1, 2, 3);
    const double weights[] = {each, each, each, each};
    CHECK("all equal", 1, (.n_experts = 8, .top_k = 4, .score = scores[s]));
    if (s > 2) continue;
    CHECK("all equal, bias", 1, (.n_experts = 8, .top_k = 4, .score = scores[s], .flags = MOI_ROUTE_SELECT_BIAS),
          .select_bias = VIEW(zero_bias));
    for (int g = 0; g < 2; g++)
      CHECK("equal groups", 1,
            (.n_experts = 8, .top_k = 4, .score = scores[s], .n_group = 4, .topk_group = 2,
             .group_score = (moi_group_score)g));
  }
  { /* two values, the larger at 1 4 6, the smaller elsewhere */
    LOGITS(0, 1, 0, 0, 1, 0, 1, 0);
    IDS(1, 4, 6, 0, 2);
    double z = 3 * exp(1) + 5;
    const double weights[] = {exp(1) / z, exp(1) / z, exp(1) / z, 1 / z, 1 / z};
    CHECK("two values", 1, (.n_experts = 8, .top_k = 5));
  }
  { /* ties in large sigmoids that are 1 in fp32: the logits tell them apart */
    LOGITS(40, 60, 50, 0);
    IDS(1, 2);
    const double weights[] = {1, 1};
    CHECK("saturated", 1, (.n_experts = 4, .top_k = 2, .score = MOI_SCORE_SIGMOID));
  }
  { /* -0 and +0 are one value */
    LOGITS(-0.0f, 0.0f, -1);
    IDS(0, 1);
    const double weights[] = {0.5, 0.5};
    CHECK("zeros", 1, (.n_experts = 3, .top_k = 2, .score = MOI_SCORE_TOPK_SOFTMAX));
  }
}

static void test_nan_and_infinity(void **state) {
  (void)state;
  {
    LOGITS(NAN, 2, -INFINITY, 5, INFINITY, 2);
    IDS(4, 3, 1, 5);
    double weights[] = {1, 0, 0, 0};
    CHECK("softmax", 1, (.n_experts = 6, .top_k = 4));
    CHECK("top-k softmax", 1, (.n_experts = 6, .top_k = 4, .score = MOI_SCORE_TOPK_SOFTMAX));
    CHECK("renormalised", 1, (.n_experts = 6, .top_k = 4, .renorm = MOI_RENORM_SUM));
    weights[1] = sigmoid(5), weights[2] = weights[3] = sigmoid(2);
    CHECK("sigmoid", 1, (.n_experts = 6, .top_k = 4, .score = MOI_SCORE_SIGMOID));
    CHECK("top-k sigmoid", 1, (.n_experts = 6, .top_k = 4, .score = MOI_SCORE_TOPK_SIGMOID));
  }
  { /* two +inf are two largest floats */
    LOGITS(INFINITY, 0, INFINITY, 3.4e38f);
    IDS(0, 2);
    const double weights[] = {0.5, 0.5};
    CHECK("two infinities", 1, (.n_experts = 4, .top_k = 2));
  }
  { /* fewer valid experts than slots; a second token that has none */
    LOGITS(NAN, 1, -INFINITY, 0, /**/ NAN, NAN, -INFINITY, NAN);
    IDS(1, 3, -1, -1, /**/ -1, -1, -1, -1);
    double a = exp(1) / (exp(1) + 1), b = 1 - a;
    {
      const double weights[] = {a, b, 0, 0, 0, 0, 0, 0};
      CHECK("softmax", 2, (.n_experts = 4, .top_k = 4));
      CHECK("renormalised", 2, (.n_experts = 4, .top_k = 4, .renorm = MOI_RENORM_SUM));
      CHECK("renormalised by max", 2, (.n_experts = 4, .top_k = 4, .renorm = MOI_RENORM_MAX, .renorm_eps = 1e-12f));
      CHECK("top-k softmax", 2, (.n_experts = 4, .top_k = 4, .score = MOI_SCORE_TOPK_SOFTMAX));
    }
    {
      const double weights[] = {sigmoid(1), 0.5, 0, 0, 0, 0, 0, 0};
      CHECK("sigmoid", 2, (.n_experts = 4, .top_k = 4, .score = MOI_SCORE_SIGMOID));
      CHECK("top-k sigmoid", 2, (.n_experts = 4, .top_k = 4, .score = MOI_SCORE_TOPK_SIGMOID));
    }
    {
      const double weights[] = {S(1.0), S(0.0), 0, 0, 0, 0, 0, 0};
      CHECK("sqrt(softplus)", 2, (.n_experts = 4, .top_k = 4, .score = MOI_SCORE_SQRT_SOFTPLUS));
    }
  }
  {
    LOGITS(NAN, 1, -INFINITY, NAN, /**/ NAN, NAN, -INFINITY, NAN);
    IDS(1, -1, /**/ -1, -1);
    const double weights[] = {1, 0, 0, 0};
    CHECK("sparsemixer", 2, (.n_experts = 4, .top_k = 2, .score = MOI_SCORE_SPARSEMIXER));
  }
  { /* a score of 0 in every slot: weights of 0, not NaN */
    LOGITS(-3e38f, -3e38f, -3e38f);
    IDS(0, 1);
    const double weights[] = {0, 0};
    CHECK("zero sum", 1, (.n_experts = 3, .top_k = 2, .score = MOI_SCORE_SIGMOID, .renorm = MOI_RENORM_SUM));
    CHECK("zero sum, max", 1, (.n_experts = 3, .top_k = 2, .score = MOI_SCORE_SIGMOID, .renorm = MOI_RENORM_MAX));
  }
  { /* a bias that is NaN or -inf removes its expert too, +inf chooses it */
    static const float bias[4] = {NAN, -INFINITY, 0, INFINITY};
    LOGITS(3, 2, 1, 0);
    IDS(3, 2, -1);
    const double weights[] = {0.5, sigmoid(1), 0};
    CHECK("odd bias", 1, (.n_experts = 4, .top_k = 3, .score = MOI_SCORE_SIGMOID, .flags = MOI_ROUTE_SELECT_BIAS),
          .select_bias = VIEW(bias));
  }
}

/* A group without experts loses, one with a single expert counts it alone, and then slots stay empty. The groups' sums:
 * none, 0.731, 1.184. */
static void test_removed_groups(void **state) {
  (void)state;
  LOGITS(NAN, -INFINITY, 1, NAN, 0.5f, 0.25f, /**/ NAN, NAN, NAN, -INFINITY, NAN, NAN);
  {
    IDS(2, 4, 5, /**/ -1, -1, -1);
    const double weights[] = {sigmoid(1), sigmoid(0.5), sigmoid(0.25), 0, 0, 0};
    CHECK("two of three", 2, (.n_experts = 6, .top_k = 3, .score = MOI_SCORE_SIGMOID, .n_group = 3, .topk_group = 2));
    CHECK("all", 2, (.n_experts = 6, .top_k = 3, .score = MOI_SCORE_SIGMOID, .n_group = 3, .topk_group = 3));
  }
  {
    IDS(4, 5, /**/ -1, -1);
    const double weights[] = {sigmoid(0.5), sigmoid(0.25), 0, 0};
    CHECK("one of three", 2, (.n_experts = 6, .top_k = 2, .score = MOI_SCORE_SIGMOID, .n_group = 3, .topk_group = 1));
  }
  { /* the maximum: 1 wins, and its group has no second expert */
    IDS(2, -1, /**/ -1, -1);
    const double weights[] = {sigmoid(1), 0, 0, 0};
    CHECK("maximum", 2,
          (.n_experts = 6, .top_k = 2, .score = MOI_SCORE_SIGMOID, .n_group = 3, .topk_group = 1,
           .group_score = MOI_GROUP_MAX));
  }
}

static void test_hash(void **state) {
  (void)state;
  /* rows: in order, backwards, out of range both ways, one expert twice */
  static const int32_t table[4 * 2] = {1, 2, /**/ 3, 0, /**/ -1, 4, /**/ 2, 2};
  static const int32_t tokens[7] = {1, 0, 3, 2, -1, 4, INT32_MIN};
  LOGITS(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  IDS(3, 0, 1, 2, 2, 2, -1, -1, -1, -1, -1, -1, -1, -1);
  double s[4] = {sigmoid(0), sigmoid(1), sigmoid(2), sigmoid(3)};
  const double weights[] = {s[3] / (s[3] + s[0]),
                            s[0] / (s[3] + s[0]),
                            s[1] / (s[1] + s[2]),
                            s[2] / (s[1] + s[2]),
                            0.5,
                            0.5,
                            0,
                            0,
                            0,
                            0,
                            0,
                            0,
                            0,
                            0};
  CHECK("hash table", 7,
        (.n_experts = 4, .top_k = 2, .score = MOI_SCORE_SIGMOID, .renorm = MOI_RENORM_SUM, .flags = MOI_ROUTE_HASH,
         .vocab = 4),
        .hash_table = VIEW(table), .token_ids = VIEW(tokens));
}

/* An expert that the table names and whose logit is NaN. */
static void test_hash_of_nan(void **state) {
  (void)state;
  static const int32_t table[2] = {1, 2}, token = 0;
  LOGITS(0, NAN, 2, 3);
  IDS(-1, 2);
  const double weights[] = {0, 1};
  CHECK("hash table, NaN", 1,
        (.n_experts = 4, .top_k = 2, .score = MOI_SCORE_TOPK_SOFTMAX, .flags = MOI_ROUTE_HASH, .vocab = 1),
        .hash_table = VIEW(table), .token_ids = moi_ptr(&token, 4));
}

/* ---- types, counts, strides */

/* Small integers are exact in every type: all combinations give one result. */
static void test_types(void **state) {
  (void)state;
  enum { T = 5, H = 72, N = 11, K = 3 };
  static const moi_format types[3] = {MOI_FORMAT_F32, MOI_FORMAT_F16, MOI_FORMAT_BF16};
  static const char *const kernels[2] = {"select-f32", "ref"};
  static float x[T * (H + 3)], router[N * H], bias[N];
  for (int i = 0; i < T * (H + 3); i++) x[i] = (float)((i * 7 + i / 11) % 9 - 4) / 4;
  for (int i = 0; i < N * H; i++) router[i] = (float)((i * 5 + i / 7) % 7 - 3) / 8;
  for (int i = 0; i < N; i++) bias[i] = (float)(i % 3) / 2;
  double l[T * N];
  for (int t = 0; t < T; t++)
    for (int n = 0; n < N; n++) {
      l[t * N + n] = bias[n];
      for (int h = 0; h < H; h++) l[t * N + n] += (double)x[t * (H + 3) + h] * router[n * H + h];
    }
  for (int c = 0; c < 3 * 3 * 2; c++) {
    moi_format input = types[c % 3], type = types[c / 3 % 3];
    uint8_t xs[sizeof x], routers[sizeof router], biases[sizeof bias];
    for (int i = 0; i < T * (H + 3); i++) moi_dense_store(input, xs, (size_t)i, i % (H + 3) < H ? x[i] : NAN);
    for (int i = 0; i < N * H; i++) moi_dense_store(type, routers, (size_t)i, router[i]);
    for (int i = 0; i < N; i++) moi_dense_store(type, biases, (size_t)i, bias[i]);
    moi_route_desc d = {.struct_size = sizeof d,
                        .max_tokens = T,
                        .hidden = H,
                        .n_experts = N,
                        .top_k = K,
                        .flags = MOI_ROUTE_BIAS,
                        .score = MOI_SCORE_TOPK_SOFTMAX,
                        .input_type = input,
                        .router_type = type,
                        .kernel = kernels[c / 9]};
    size_t in = moi_element_bytes(input), w = moi_element_bytes(type);
    moi_route_args a = {.n_tokens = T,
                        .hidden_stride = H + 3,
                        .hidden = moi_ptr(xs, (T * (H + 3) - 3) * in),
                        .router = moi_ptr(routers, N * H * w),
                        .router_bias = moi_ptr(biases, N * w)};
    outputs out;
    passes(route(&d, &a, &out));
    for (int i = 0; i < T * N; i++) assert_float_equal(out.logits[i], l[i], 0); /* exact */
    for (int t = 0; t < T; t++) {
      double left[N], sum = 0;
      memcpy(left, l + t * N, sizeof left);
      for (int j = 0; j < K; j++) {
        int best = 0;
        for (int n = 1; n < N; n++)
          if (left[n] > left[best]) best = n;
        assert_int_equal(out.ids[t * K + j], best);
        left[best] = -1e9;
      }
      for (int j = 0; j < K; j++) sum += exp(l[t * N + out.ids[t * K + j]]);
      for (int j = 0; j < K; j++)
        assert_float_equal(out.weights[t * K + j], exp(l[t * N + out.ids[t * K + j]]) / sum, 1e-5);
    }
    /* and the same logits brought by the engine, in the input's type where that holds them */
    if (c / 3 % 3) continue;
    uint8_t ls[T * N * 4];
    int exact = 1;
    for (int i = 0; i < T * N; i++) {
      moi_dense_store(input, ls, (size_t)i, (float)l[i]);
      exact &= moi_dense_load(input, ls, (size_t)i) == (float)l[i];
    }
    if (!exact) continue;
    outputs direct;
    d.hidden = 0;
    d.flags = 0;
    moi_route_args brought = {.n_tokens = T, .logits = moi_ptr(ls, T * N * in)};
    passes(route(&d, &brought, &direct));
    assert_memory_equal(direct.ids, out.ids, sizeof out.ids);
    assert_memory_equal(direct.weights, out.weights, sizeof out.weights);
  }
}

static void test_no_and_one_token(void **state) {
  (void)state;
  static const char *const kernels[2] = {"select-f32", "ref"};
  for (int i = 0; i < 2; i++) {
    moi_route_desc d = {.struct_size = sizeof d, .max_tokens = 4, .n_experts = 5, .top_k = 2, .kernel = kernels[i]};
    moi_route_args a = {.n_tokens = 0};
    outputs out;
    passes(route(&d, &a, &out)); /* nothing to read: logits are absent */
    for (int e = 0; e < 5; e++) assert_int_equal(out.counts[e], 0);
    for (int e = 0; e < 6; e++) assert_int_equal(out.offsets[e], 0);
    assert_int_equal(out.ids[0], 0x7f7f7f7f);
    assert_int_equal(out.permutation[0], 0x7f7f7f7f);
    d.hidden = 7;
    passes(route(&d, &a, &out));
    for (int e = 0; e < 5; e++) assert_int_equal(out.counts[e], 0);
  }
  LOGITS(2);
  IDS(0);
  const double weights[] = {1};
  CHECK("one expert", 1, (.n_experts = 1, .top_k = 1));
}

/* Many tokens, ids of every kind: counts, offsets and permutation against a plain count. */
static void test_order_of_many_tokens(void **state) {
  (void)state;
  for (uint32_t seed = 1; seed <= 6; seed++) {
    moi_arena arena = {.flags = MOI_ARENA_GUARD};
    moi_route_desc d = {.struct_size = sizeof d,
                        .max_tokens = 200,
                        .n_experts = 60,
                        .n_identity = 5,
                        .top_k = 7,
                        .kernel = seed & 1 ? "ref" : "select-f32"};
    if (seed % 3 == 0) d.hidden = 48;
    moi_route_args a;
    uint32_t t = seed == 6 ? 200 : 37 * seed;
    moi_make_route(&arena, &d, t, seed < 3 ? MOI_LOGITS_NAN : MOI_LOGITS_TIES, seed % 2 * 5, seed, &a);
    moi_plan *plan = NULL;
    passes(moi_route_plan(context, &d, &plan));
    moi_buffer workspace = take_workspace(plan);
    passes(moi_route_run(plan, &a, workspace, no_queue));
    check_order(a.ids.ptr, a.counts.ptr, a.offsets.ptr, a.permutation.ptr, t * 7, 65);
    for (uint32_t i = 0; i < t * 7; i++) {
      assert_in_range(((int32_t *)a.ids.ptr)[i] + 1, 0, 65);
      for (uint32_t j = i / 7 * 7; j < i; j++) /* no expert twice */
        assert_true(((int32_t *)a.ids.ptr)[i] == -1 || ((int32_t *)a.ids.ptr)[i] != ((int32_t *)a.ids.ptr)[j]);
    }
    long long offset;
    assert_null(moi_arena_damage(&arena, &offset));
    drop_aligned(workspace.ptr);
    moi_plan_destroy(plan);
    moi_arena_free(&arena);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_softmax),
      cmocka_unit_test(test_weight_type_is_a_rounding),
      cmocka_unit_test(test_scores_after_topk),
      cmocka_unit_test(test_sigmoid),
      cmocka_unit_test(test_sqrt_softplus),
      cmocka_unit_test(test_softmax_variants),
      cmocka_unit_test(test_sparsemixer),
      cmocka_unit_test(test_logit_changes),
      cmocka_unit_test(test_logits_type),
      cmocka_unit_test(test_input_norm),
      cmocka_unit_test(test_ties),
      cmocka_unit_test(test_nan_and_infinity),
      cmocka_unit_test(test_removed_groups),
      cmocka_unit_test(test_hash),
      cmocka_unit_test(test_hash_of_nan),
      cmocka_unit_test(test_types),
      cmocka_unit_test(test_no_and_one_token),
      cmocka_unit_test(test_order_of_many_tokens),
  };
  return cmocka_run_group_tests(tests, open_context, close_context);
}
