/* The library against golden data: MoE layers as the models' own code computed them. golden/README.md describes the
 * files. */
#include <math.h>

#include "support.h"

/* ---------------------------------------------------------------------------------------------------- a golden file */

typedef struct tensor {
  char name[32];
  uint32_t dims[3], n_dims;
  size_t n;
  double *at;
} tensor;

typedef struct golden {
  char name[64];
  char *text;
  tensor tensors[32];
  uint32_t n_tensors;
  uint32_t tokens;
  uint32_t unordered;
  moi_route_desc route;
  moi_experts_desc experts, shared;
  moi_moe_desc moe;
} golden;

#define WORDS(X)                                                                                                       \
  X(SCORE_SOFTMAX) X(SCORE_SIGMOID) X(SCORE_SQRT_SOFTPLUS) X(SCORE_TOPK_SOFTMAX) X(SCORE_TOPK_SIGMOID)                 \
  X(SCORE_SPARSEMIXER) X(GROUP_TOP2_SUM) X(GROUP_MAX) X(RENORM_NONE) X(RENORM_SUM) X(RENORM_MAX) X(ROUTE_BIAS)         \
  X(ROUTE_SELECT_BIAS) X(ROUTE_SELECT_BIAS_ALT) X(ROUTE_EXPERT_SCALE) X(ROUTE_INPUT_NORM) X(ROUTE_HASH)                \
  X(ACT_SWIGLU) X(ACT_SWIGLU_OAI) X(ACT_GEGLU_TANH) X(ACT_SITU) X(ACT_RELU2) X(GATE_SPLIT) X(GATE_CONCAT)              \
  X(GATE_INTERLEAVED) X(GATE_NONE) X(WEIGHT_ON_OUTPUT) X(WEIGHT_ON_INPUT) X(WEIGHT_ON_ACTIVATION) X(SHARED_PLAIN)      \
  X(SHARED_SIGMOID)

static const struct word {
  const char *name;
  uint32_t value;
} words[] = {
#define MOI_X(name) {#name, (uint32_t)MOI_##name},
    WORDS(MOI_X)
#undef MOI_X
    {"defined", 0},
    {"undefined", 1},
};

enum kind { NUMBER, REAL };

#define EXPERTS_FIELDS(X, part)                                                                                        \
  X(part.hidden, NUMBER) X(part.intermediate, NUMBER) X(part.n_experts, NUMBER) X(part.n_identity, NUMBER)             \
  X(part.top_k, NUMBER) X(part.activation, NUMBER) X(part.act_alpha, REAL) X(part.act_limit, REAL)                     \
  X(part.gate_layout, NUMBER) X(part.weight_on, NUMBER) X(part.format, NUMBER) X(part.bias_type, NUMBER)
#define FIELDS(X)                                                                                                      \
  X(tokens, NUMBER) X(route.hidden, NUMBER) X(route.n_experts, NUMBER)     \
  X(route.n_identity, NUMBER) X(route.top_k, NUMBER) X(route.score, NUMBER) X(route.n_group, NUMBER)                   \
  X(route.topk_group, NUMBER) X(route.group_score, NUMBER) X(route.renorm, NUMBER) X(route.renorm_eps, REAL)           \
  X(route.scale, REAL) X(route.logit_softcap, REAL) X(route.jitter, REAL) X(route.norm_eps, REAL)                      \
  X(route.norm_scale, REAL) X(route.flags, NUMBER) X(route.vocab, NUMBER) EXPERTS_FIELDS(X, experts)                   \
  EXPERTS_FIELDS(X, shared) X(moe.shared_gate, NUMBER) X(moe.output_scale, REAL)

static const struct field {
  const char *key;
  size_t offset;
  enum kind kind;
} fields[] = {
#define MOI_X(member, kind) {#member, offsetof(golden, member), kind},
    FIELDS(MOI_X)
#undef MOI_X
    {"order", offsetof(golden, unordered), NUMBER},
};

/* A number, a format's name, or words joined by |. */
static uint32_t value_of(const golden *g, const char *text) {
  if (*text >= '0' && *text <= '9') return (uint32_t)strtoul(text, NULL, 10);
  if (moi_format_from_name(text)) return (uint32_t)moi_format_from_name(text);
  uint32_t value = 0;
  for (size_t length; *text; text += length + (text[length] == '|')) {
    length = strcspn(text, "|");
    size_t i = 0, n = sizeof words / sizeof *words;
    while (i < n && (strlen(words[i].name) != length || strncmp(words[i].name, text, length))) i++;
    if (i == n) fail_msg("%s: unknown word in \"%s\"", g->name, text);
    value |= words[i].value;
  }
  return value;
}

static void set_field(golden *g, const char *key, const char *text) {
  if (!strcmp(key, "source")) return;
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    if (strcmp(fields[i].key, key)) continue;
    float real = strtof(text, NULL);
    uint32_t number = fields[i].kind == NUMBER ? value_of(g, text) : 0;
    memcpy((uint8_t *)g + fields[i].offset, fields[i].kind == NUMBER ? (void *)&number : (void *)&real, 4);
    return;
  }
  fail_msg("%s: unknown key %s", g->name, key);
}

/* "tensor NAME UNIT DIMS..." and lines of values, each to be multiplied by UNIT. */
static char *read_tensor(golden *g, char *line, char *next) {
  assert_true(g->n_tensors < sizeof g->tensors / sizeof *g->tensors);
  tensor *t = &g->tensors[g->n_tensors++];
  double unit = 0;
  int used = 0;
  assert_int_equal(sscanf(line, "tensor %31s %lf%n", t->name, &unit, &used), 2);
  t->n = 1;
  for (char *p = line + used; *p;) {
    assert_true(t->n_dims < 3);
    t->dims[t->n_dims] = (uint32_t)strtoul(p, &p, 10);
    t->n *= t->dims[t->n_dims++];
  }
  t->at = malloc(t->n * sizeof *t->at);
  assert_non_null(t->at);
  for (size_t i = 0; i < t->n; i++) {
    char *end = next;
    t->at[i] = strtod(next, &end) * unit;
    if (end == next) fail_msg("%s: tensor %s ends after %zu values", g->name, t->name, i);
    next = end;
  }
  return next + strspn(next, "\n");
}

static void close_golden(golden *g) {
  for (uint32_t i = 0; i < g->n_tensors; i++) free(g->tensors[i].at);
  free(g->text);
}

static void open_golden(golden *g, const char *file) {
  memset(g, 0, sizeof *g);
  snprintf(g->name, sizeof g->name, "%s", file);
  g->route = (moi_route_desc)MOI_ROUTE_DESC_INIT;
  g->experts = g->shared = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
  g->moe = (moi_moe_desc)MOI_MOE_DESC_INIT;
  char path[1024];
  snprintf(path, sizeof path, "%s/%s.txt", MOI_GOLDEN_DIR, file);
  FILE *f = fopen(path, "rb");
  if (!f) fail_msg("cannot open %s", path);
  fseek(f, 0, SEEK_END);
  long size = ftell(f);
  rewind(f);
  g->text = malloc((size_t)size + 1);
  assert_non_null(g->text);
  assert_int_equal(fread(g->text, 1, (size_t)size, f), size);
  fclose(f);
  g->text[size] = 0;
  for (char *p = g->text; *p;) {
    char *line = p;
    p += strcspn(p, "\n");
    if (*p) *p++ = 0;
    if (!strncmp(line, "tensor ", 7)) {
      p = read_tensor(g, line, p);
      continue;
    }
    char *value = strchr(line, ' ');
    assert_non_null(value);
    *value++ = 0;
    set_field(g, line, value);
  }
}

static const tensor *find(const golden *g, const char *name) {
  for (uint32_t i = 0; i < g->n_tensors; i++)
    if (!strcmp(g->tensors[i].name, name)) return &g->tensors[i];
  return NULL;
}

static const tensor *need(const golden *g, const char *name) {
  const tensor *t = find(g, name);
  if (!t) fail_msg("%s: no tensor %s", g->name, name);
  return t;
}

/* What a run borrows from the heap until it is over. */
typedef struct heap {
  void *blocks[64];
  uint32_t n;
} heap;

static void *take(heap *h, size_t size) {
  assert_true(h->n < sizeof h->blocks / sizeof *h->blocks);
  void *p = malloc(size);
  assert_non_null(p);
  return h->blocks[h->n++] = p;
}

static void release(heap *h) {
  while (h->n) free(h->blocks[--h->n]);
}

enum stored { AS_F32, AS_BF16, AS_I32, AS_U8 };

/* A view of the tensor's numbers in a type that holds them exactly; absent if there is no such tensor. */
static moi_buffer view_of(const golden *g, heap *h, const char *name, enum stored stored) {
  const tensor *t = find(g, name);
  if (!t) return moi_ptr(NULL, 0);
  size_t size = stored == AS_U8 ? 1 : stored == AS_BF16 ? 2 : 4;
  uint8_t *to = take(h, t->n * size);
  for (size_t i = 0; i < t->n; i++) {
    float real = (float)t->at[i];
    int32_t number = stored == AS_I32 || stored == AS_U8 ? (int32_t)t->at[i] : 0;
    uint32_t bits;
    memcpy(&bits, &real, 4);
    if (stored == AS_F32) memcpy(to + i * 4, &real, 4);
    if (stored == AS_I32) memcpy(to + i * 4, &number, 4);
    if (stored == AS_U8) to[i] = (uint8_t)number;
    if (stored == AS_BF16) {
      assert_int_equal(bits & 0xffff, 0);
      uint16_t half = (uint16_t)(bits >> 16);
      memcpy(to + i * 2, &half, 2);
    }
  }
  return moi_ptr(to, t->n * size);
}

static moi_buffer poisoned(heap *h, size_t size) {
  void *p = take(h, size);
  memset(p, 0xff, size);
  return moi_ptr(p, size);
}

/* ----------------------------------------------------------------------------------------------------------- layers */

static moi_weights weights_of(const golden *g, heap *h, const char *prefix, const char *name, moi_format format) {
  char full[64];
  moi_weights w = MOI_WEIGHTS_INIT;
  snprintf(full, sizeof full, "%s%s", prefix, name);
  w.data = view_of(g, h, full, format == MOI_FORMAT_F32 ? AS_F32 : AS_BF16);
  snprintf(full, sizeof full, "%s%s_bias", prefix, name);
  w.bias = view_of(g, h, full, AS_F32);
  return w;
}

static double largest(const double *v, uint32_t n) {
  double max = 0;
  for (uint32_t i = 0; i < n; i++)
    if (isfinite(v[i])) max = fmax(max, fabs(v[i]));
  return max;
}

/* The reference sums in double: only fp32 noise of the golden side is left. */
static const double tolerance = 1e-5;

static void check_layer(const golden *g, const char *kernel, const int32_t *ids, const float *weights, const float *y) {
  const tensor *want_ids = need(g, "ids"), *want_weights = need(g, "weights"), *want = need(g, "y");
  uint32_t k = g->route.top_k, h = g->experts.hidden;
  assert_int_equal(want_ids->n, g->tokens * k);
  assert_int_equal(want->n, g->tokens * h);
  for (uint32_t t = 0; t < g->tokens; t++) {
    const double *wi = want_ids->at + (size_t)t * k, *ww = want_weights->at + (size_t)t * k;
    for (uint32_t j = 0; j < k; j++) {
      uint32_t at = 0;
      while (at < k && ids[t * k + at] != (int32_t)wi[j]) at++;
      if (at == k || (!g->unordered && at != j))
        fail_msg("%s, kernel %s: token %u, slot %u: expert %d is %s", g->name, kernel, t, j, (int)wi[j],
                 at == k ? "not chosen" : "in another slot");
      if (!(fabs(weights[t * k + at] - ww[j]) <= tolerance * largest(ww, k)))
        fail_msg("%s, kernel %s: token %u, expert %d: weight %.9g, wanted %.9g", g->name, kernel, t, (int)wi[j],
                 weights[t * k + at], ww[j]);
    }
    const double *row = want->at + (size_t)t * h;
    for (uint32_t i = 0; i < h; i++)
      if (!(fabs(y[t * h + i] - row[i]) <= tolerance * largest(row, h)))
        fail_msg("%s, kernel %s: y[%u][%u] = %.9g, wanted %.9g", g->name, kernel, t, i, y[t * h + i], row[i]);
  }
}

static void run_layer(golden *g, moi_context *context, const char *kernel) {
  heap own = {.n = 0};
  uint32_t t = g->tokens, k = g->route.top_k, h = g->experts.hidden;
  int has_shared = g->shared.hidden != 0;
  g->route.max_tokens = g->experts.max_tokens = g->shared.max_tokens = t;
  g->moe.route = &g->route;
  g->moe.experts = &g->experts;
  g->moe.shared = has_shared ? &g->shared : NULL;
  g->moe.kernel = kernel;

  moi_route_args route = MOI_ROUTE_ARGS_INIT;
  route.n_tokens = t;
  route.hidden = view_of(g, &own, find(g, "route_x") ? "route_x" : "x", AS_F32);
  route.router = view_of(g, &own, "router", AS_F32);
  route.router_bias = view_of(g, &own, "router_bias", AS_F32);
  route.select_bias = view_of(g, &own, "select_bias", AS_F32);
  route.select_bias_alt = view_of(g, &own, "select_bias_alt", AS_F32);
  route.alt_mask = view_of(g, &own, "alt_mask", AS_U8);
  route.expert_scale = view_of(g, &own, "expert_scale", AS_F32);
  route.norm_weight = view_of(g, &own, "norm_weight", AS_F32);
  route.hash_table = view_of(g, &own, "hash_table", AS_I32);
  route.token_ids = view_of(g, &own, "token_ids", AS_I32);
  route.ids = poisoned(&own, (size_t)t * k * 4);
  route.weights = poisoned(&own, (size_t)t * k * 4);

  moi_weights w[6];
  const char *names[3] = {"gate", "up", "down"};
  for (int i = 0; i < 6; i++)
    w[i] = weights_of(g, &own, i < 3 ? "" : "shared.", names[i % 3], i < 3 ? g->experts.format : g->shared.format);
  moi_experts_args experts = MOI_EXPERTS_ARGS_INIT, shared = MOI_EXPERTS_ARGS_INIT;
  experts.n_tokens = t;
  experts.input = view_of(g, &own, "x", AS_F32);
  experts.output = poisoned(&own, (size_t)t * h * 4);
  experts.gate = &w[0];
  experts.up = &w[1];
  experts.down = &w[2];
  shared.gate = &w[3];
  shared.up = &w[4];
  shared.down = &w[5];

  moi_moe_args args = MOI_MOE_ARGS_INIT;
  args.route = &route;
  args.experts = &experts;
  args.shared = has_shared ? &shared : NULL;
  args.shared_gate = view_of(g, &own, "shared_gate", AS_F32);

  moi_plan *plan = NULL;
  if (moi_moe_plan(context, &g->moe, &plan)) fail_msg("%s: %s", g->name, moi_last_error());
  moi_buffer workspace = take_workspace(plan);
  if (moi_moe_run(plan, &args, workspace, no_queue)) fail_msg("%s: %s", g->name, moi_last_error());
  check_layer(g, kernel ? kernel : moi_plan_kernel(plan), route.ids.ptr, route.weights.ptr, experts.output.ptr);
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
  release(&own);
}

/* ------------------------------------------------------------------------------------------------------------ tests */

/* Every file is a test of its own; a missing one fails. */
static const char *const layers[] = {
    "qwen3_moe", "mixtral", "olmoe", "qwen2_moe", "qwen3_next", "qwen3_5_moe", "hunyuan_v1_moe", "gpt_oss",
    "granitemoe", "granitemoehybrid", "llama4", "deepseek_v3", "bailing_hybrid", "glm4_moe", "kimi_linear", "dots1",
    "mimo_v2_flash", "minimax_m2", "minimax_m3", "step3p7", "nemotron_h", "nemotron_h_latent", "deepseek_v4",
    "deepseek_v4_hash", "deepseek_v4_1", "deepseek_v2", "deepseek_v2_lite", "ernie4_5_moe", "longcat_flash",
    "phimoe", "gemma4", "grok_1", "grok_2", "kimi_k3",
};
static void layer_test(void **state) {
  golden g;
  open_golden(&g, *state);
  moi_context *context = open_cpu(2);
  run_layer(&g, context, "ref");
  run_layer(&g, context, NULL);
  moi_context_destroy(context);
  close_golden(&g);
}

int main(void) {
  enum { N_LAYERS = sizeof layers / sizeof *layers };
  struct CMUnitTest tests[N_LAYERS];
  memset(tests, 0, sizeof tests);
  for (size_t i = 0; i < N_LAYERS; i++) {
    tests[i].name = layers[i];
    tests[i].test_func = layer_test;
    tests[i].initial_state = (void *)(uintptr_t)tests[i].name;
  }
  return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
