/* Attention against golden data: what the models' own modules handed to their softmax, and got from it.
 * golden/README.md describes the files. */
#include <math.h>

#include "support.h"

enum { MAX_TENSORS = 10, SEQS = 3, PAGE = 4 };

/* ---------------------------------------------------------------------------------------------------- a golden file */

typedef struct tensor {
  char name[32];
  uint32_t dims[3], n_dims;
  size_t n;
  float *at;
} tensor;

typedef struct golden {
  char name[64];
  tensor tensors[MAX_TENSORS];
  uint32_t n_tensors;
  moi_attention_desc desc;
} golden;

static const struct field {
  const char *key;
  size_t offset;
  int real;
} fields[] = {
#define FIELD(member, real) {"attention." #member, offsetof(moi_attention_desc, member), real}
    FIELD(n_heads, 0), FIELD(n_kv_heads, 0), FIELD(head_dim, 0), FIELD(v_head_dim, 0),
    FIELD(scale, 1),   FIELD(softcap, 1),    FIELD(window, 0),   FIELD(chunk, 0),
    FIELD(flags, 0),   FIELD(temperature, 1), FIELD(temperature_floor, 0),
};

static uint32_t flags_of(const golden *g, const char *text) {
  uint32_t flags = 0;
  for (size_t length; *text; text += length + (text[length] == '|')) {
    length = strcspn(text, "|");
    if (length == 15 && !strncmp(text, "ATTENTION_SINKS", length)) flags |= MOI_ATTENTION_SINKS;
    else if (length == 16 && !strncmp(text, "ATTENTION_V_IN_K", length)) flags |= MOI_ATTENTION_V_IN_K;
    else fail_msg("%s: unknown word in \"%s\"", g->name, text);
  }
  return flags;
}

static void set_field(golden *g, const char *key, const char *text) {
  if (!strcmp(key, "source")) return;
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    if (strcmp(fields[i].key, key)) continue;
    float real = strtof(text, NULL);
    uint32_t number = *text == 'A' ? flags_of(g, text) : (uint32_t)strtoul(text, NULL, 10);
    memcpy((uint8_t *)&g->desc + fields[i].offset, fields[i].real ? (void *)&real : (void *)&number, 4);
    return;
  }
  fail_msg("%s: unknown key %s", g->name, key);
}

/* "tensor NAME UNIT DIMS..." and lines of values, each to be multiplied by UNIT. */
static char *read_tensor(golden *g, const char *line, char *next) {
  assert_true(g->n_tensors < MAX_TENSORS);
  tensor *t = &g->tensors[g->n_tensors++];
  double unit = 0;
  int used = 0;
  assert_int_equal(sscanf(line, "tensor %31s %lf%n", t->name, &unit, &used), 2);
  t->n = 1;
  char *p = NULL;
  for (const char *dims = line + used; *dims; dims = p) {
    assert_true(t->n_dims < 3);
    t->dims[t->n_dims] = (uint32_t)strtoul(dims, &p, 10);
    t->n *= t->dims[t->n_dims++];
  }
  t->at = malloc(t->n * sizeof *t->at);
  assert_non_null(t->at);
  for (size_t i = 0; i < t->n; i++) {
    char *end = next;
    t->at[i] = (float)(strtod(next, &end) * unit);
    if (end == next) fail_msg("%s: tensor %s ends after %zu values", g->name, t->name, i);
    next = end;
  }
  return next + strspn(next, "\n");
}

static void close_golden(golden *g) {
  for (uint32_t i = 0; i < g->n_tensors; i++) free(g->tensors[i].at);
}

static void open_golden(golden *g, const char *file) {
  memset(g, 0, sizeof *g);
  snprintf(g->name, sizeof g->name, "%s", file);
  g->desc = (moi_attention_desc)MOI_ATTENTION_DESC_INIT;
  char path[1024];
  snprintf(path, sizeof path, "%s/attention_%s.txt", MOI_GOLDEN_DIR, file);
  FILE *f = fopen(path, "rb");
  if (!f) fail_msg("cannot open %s", path);
  fseek(f, 0, SEEK_END);
  long size = ftell(f);
  rewind(f);
  char *text = malloc((size_t)size + 1);
  assert_non_null(text);
  assert_int_equal(fread(text, 1, (size_t)size, f), size);
  fclose(f);
  text[size] = 0;
  for (char *p = text; *p;) {
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
  free(text);
  if (!g->desc.v_head_dim) g->desc.v_head_dim = g->desc.head_dim;
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

static uint32_t length_of(const golden *g, int seq) { return (uint32_t)need(g, "lengths")->at[seq]; }

/* The first row of a sequence in q, k, v and out. */
static uint32_t first_row(const golden *g, int seq) {
  uint32_t row = 0;
  for (int s = 0; s < seq; s++) row += length_of(g, s);
  return row;
}

/* -------------------------------------------------------------------------------------------------------- tolerance */

static uint16_t bf16_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static float through(moi_format format, float x) {
  if (format == MOI_FORMAT_F32 || x == 0) return x;
  int e;
  float f = frexpf(x, &e);
  int bits = format == MOI_FORMAT_BF16 ? 8 : e > -14 ? 11 : 11 - (-13 - e);
  return ldexpf(rintf(ldexpf(f, bits)), e - bits);
}

/* The largest relative error that storing the tensor in a format makes: 0 for most of them, which hold few bits. */
static double rounding_of(const tensor *t, moi_format format) {
  double most = 0;
  for (size_t i = 0; t && i < t->n; i++)
    if (t->at[i] != 0) most = fmax(most, fabs((double)through(format, t->at[i]) / t->at[i] - 1));
  return most;
}

typedef struct allowed {
  double q, k, v, p; /* relative roundings of the operands, and of exp(l) */
} allowed;

/* How far out[row][head] may be off. With L the largest scale * tau * sum_i |q_i k_i|, a logit is off by L times the
 * roundings of q and k and twice (both sides are fp32) 4 sqrt(head_dim) 2^-24; weights then by a factor of exp(2 L ...),
 * and 2^-20 for exp itself; and what weights are off, the output is of the largest value. */
static double bound(const golden *g, const allowed *a, uint32_t seq_row, uint32_t row, uint32_t position,
                    uint32_t head) {
  const moi_attention_desc *d = &g->desc;
  const tensor *v = find(g, "v"), *v_scale = find(g, "v_scale"), *w = find(g, "w_vb");
  uint32_t kv_head = head / (d->n_heads / d->n_kv_heads), dim = d->head_dim, v_dim = d->v_head_dim;
  const float *q = need(g, "q")->at + ((size_t)row * d->n_heads + head) * dim;
  double tau = 1, most = 0, value = 0;
  if (d->temperature != 0)
    tau += d->temperature * log(1 + (double)((position + 1) / d->temperature_floor));
  for (uint32_t j = seq_row; j <= seq_row + position; j++) {
    size_t at = (size_t)j * d->n_kv_heads + kv_head;
    const float *k = need(g, "k")->at + at * dim, *x = v ? v->at + at * v_dim : k;
    double l = 0;
    for (uint32_t i = 0; i < dim; i++) l += fabs((double)q[i] * k[i]);
    most = fmax(most, l);
    for (uint32_t i = 0; i < v_dim; i++) value = fmax(value, fabs((double)x[i]));
  }
  most *= tau * (d->scale != 0 ? d->scale : 1 / sqrt((double)dim));
  if (v_scale) value *= fabs((double)v_scale->at[kv_head]);
  double off = expm1(2 * most * (a->q + a->k + 8 * sqrt((double)dim) * 0x1p-24)) + a->v + a->p + 0x1p-20;
  double spread = 1;
  if (w) { /* what W_vb makes of it */
    uint32_t n = w->dims[1];
    spread = 0;
    for (uint32_t i = 0; i < n; i++) {
      double sum = 0;
      for (uint32_t c = 0; c < v_dim; c++) sum += fabs((double)w->at[((size_t)head * n + i) * v_dim + c]);
      spread = fmax(spread, sum);
    }
  }
  return off * value * spread;
}

/* -------------------------------------------------------------------------------------------------------------- runs */

typedef struct types {
  moi_format k, v, input;
} types;

/* Rows that each sequence brings to each call. 0 0 0 ends it. */
typedef struct schedule {
  const char *name;
  uint32_t rows[24][SEQS];
} schedule;

static const schedule schedules[] = {
    {"whole prompts, one after another", {{21, 0, 0}, {0, 7, 0}, {0, 0, 1}}},
    {"whole prompts in one call", {{21, 7, 1}}},
    {"chunked prefill", {{3, 0, 0}, {5, 0, 0}, {2, 5, 0}, {7, 2, 1}, {4, 0, 0}}},
    {"prefill, then decode", {{10, 5, 1}, {1, 1, 0}, {1, 1, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0},
                              {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}}},
    {"token by token", {{1, 0, 0}, {1, 0, 0}, {1, 1, 0}, {1, 1, 0}, {1, 1, 0}, {1, 1, 0}, {1, 1, 0}, {1, 1, 0}, {1, 1, 0},
                        {1, 0, 1}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0},
                        {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}}},
    {"decode beside prefill", {{12, 0, 0}, {1, 6, 0}, {1, 1, 1}, {7, 0, 0}}},
};

/* One engine: a plan, a cache, and how far each sequence is. */
typedef struct engine {
  const golden *g;
  const schedule *schedule;
  types types;
  moi_attention_desc desc;
  moi_plan *plan;
  moi_buffer workspace;
  moi_kv_cache cache;
  int32_t table[SEQS * 8], start[SEQS], done[SEQS];
} engine;

static size_t bytes_of(moi_format type) { return type == MOI_FORMAT_F32 ? 4 : 2; }

static void *filled(size_t size) {
  void *p = malloc(size ? size : 1);
  assert_non_null(p);
  memset(p, 0xff, size); /* NaN in every format */
  return p;
}

static uint32_t max_kv(const golden *g) {
  uint32_t most = 0;
  for (int s = 0; s < SEQS; s++)
    if (length_of(g, s) > most) most = length_of(g, s);
  return most;
}

static void engine_open(engine *e, const golden *g, const schedule *order, types t, int paged,
                        moi_context *context, const char *kernel) {
  memset(e, 0, sizeof *e);
  e->g = g;
  e->schedule = order;
  e->types = t;
  e->desc = g->desc;
  moi_attention_desc *d = &e->desc;
  d->max_rows = need(g, "q")->dims[0];
  d->max_seqs = SEQS;
  d->max_kv = max_kv(g);
  d->k_format = t.k;
  d->v_format = t.v;
  d->input_type = t.input;
  d->output_type = MOI_FORMAT_F32;
  d->page_size = paged ? PAGE : 0;
  d->kernel = kernel;
  if (moi_attention_plan(context, d, &e->plan)) fail_msg("%s: %s", g->name, moi_last_error());
  e->workspace = take_workspace(e->plan);

  moi_kv_cache *c = &e->cache;
  *c = (moi_kv_cache)MOI_KV_CACHE_INIT;
  uint32_t pages = (d->max_kv + PAGE - 1) / PAGE;
  assert_true(pages <= 8);
  c->capacity = paged ? SEQS * pages + 1 : SEQS * d->max_kv;
  for (uint32_t s = 0; s < SEQS; s++) {
    for (uint32_t i = 0; i < pages; i++) /* 5 is prime to 3 * 6 + 1: every page once, in no order */
      e->table[s * pages + i] = i * PAGE < length_of(g, (int)s) ? (int32_t)((s * pages + i) * 5 % c->capacity) : -1;
    e->start[s] = (int32_t)((s + 1) % SEQS * d->max_kv);
  }
  if (paged) c->page_table = moi_ptr(e->table, (size_t)SEQS * pages * 4);
  else if (order != &schedules[0]) c->start = VIEW(e->start);
  size_t tokens = (size_t)c->capacity * (paged ? PAGE : 1) * d->n_kv_heads;
  c->k = moi_ptr(filled(tokens * d->head_dim * bytes_of(t.k)), tokens * d->head_dim * bytes_of(t.k));
  if (!(d->flags & MOI_ATTENTION_V_IN_K))
    c->v = moi_ptr(filled(tokens * d->v_head_dim * bytes_of(t.v)), tokens * d->v_head_dim * bytes_of(t.v));
}

static void engine_close(engine *e) {
  free(e->cache.k.ptr);
  free(e->cache.v.ptr);
  drop_aligned(e->workspace.ptr);
  moi_plan_destroy(e->plan);
}

/* The tensor's rows of a call, one after another, in the input type. */
static moi_buffer gather(const engine *e, const tensor *t, const uint32_t *rows) {
  size_t width = t->n / t->dims[0], n = 0, each = bytes_of(e->types.input);
  for (int s = 0; s < SEQS; s++) n += rows[s];
  uint8_t *to = malloc(n * width * each);
  assert_non_null(to);
  size_t at = 0;
  for (int s = 0; s < SEQS; s++) {
    const float *from = t->at + (first_row(e->g, s) + (size_t)e->done[s]) * width;
    for (size_t i = 0; i < rows[s] * width; i++, at++) {
      uint16_t half = bf16_of(from[i]);
      if (each == 4) memcpy(to + at * 4, from + i, 4);
      else memcpy(to + at * 2, &half, 2);
    }
  }
  return moi_ptr(to, n * width * each);
}

static void check_rows(const engine *e, const uint32_t *rows, const float *y, const allowed *a) {
  const golden *g = e->g;
  const tensor *want = need(g, "out"), *w = find(g, "w_vb");
  uint32_t heads = g->desc.n_heads, dim = e->desc.v_head_dim, n = want->dims[2];
  for (int s = 0; s < SEQS; s++)
    for (uint32_t i = 0; i < rows[s]; i++)
      for (uint32_t h = 0; h < heads; h++, y += dim) {
        uint32_t seq_row = first_row(g, s), position = (uint32_t)e->done[s] + i, row = seq_row + position;
        double limit = bound(g, a, seq_row, row, position, h);
        for (uint32_t x = 0; x < n; x++) {
          double got = 0, wanted = (double)want->at[((size_t)row * heads + h) * n + x];
          if (w)
            for (uint32_t c = 0; c < dim; c++) got += (double)w->at[((size_t)h * n + x) * dim + c] * (double)y[c];
          else got = (double)y[x];
          if (!(fabs(got - wanted) <= limit))
            fail_msg("%s, kernel %s, k %s, %s, %s: sequence %d, position %u, head %u: out[%u] = %.9g, wanted %.9g "
                     "+- %.2g", g->name, moi_plan_kernel(e->plan), moi_format_name(e->types.k),
                     e->desc.page_size ? "paged" : "contiguous", e->schedule->name, s, position, h, x, got, wanted,
                     limit);
        }
      }
}

/* Appends the call's keys and values, then attends. */
static void step(engine *e, const uint32_t *rows, const allowed *allow) {
  const golden *g = e->g;
  int32_t offsets[SEQS + 1] = {0}, lens[SEQS];
  for (int s = 0; s < SEQS; s++) {
    offsets[s + 1] = offsets[s] + (int32_t)rows[s];
    lens[s] = e->done[s] + (int32_t)rows[s];
  }
  uint32_t n = (uint32_t)offsets[SEQS];
  moi_kv_append_args append = MOI_KV_APPEND_ARGS_INIT;
  append.n_rows = n;
  append.n_seqs = SEQS;
  append.k = gather(e, need(g, "k"), rows);
  if (!(e->desc.flags & MOI_ATTENTION_V_IN_K)) append.v = gather(e, need(g, "v"), rows);
  append.q_offsets = VIEW(offsets);
  append.kv_lens = VIEW(lens);
  append.cache = &e->cache;
  moi_attention_args args = MOI_ATTENTION_ARGS_INIT;
  args.n_rows = n;
  args.n_seqs = SEQS;
  args.q = gather(e, need(g, "q"), rows);
  size_t size = (size_t)n * e->desc.n_heads * e->desc.v_head_dim * 4;
  args.output = moi_ptr(filled(size), size);
  const tensor *sinks = find(g, "sinks"), *v_scale = find(g, "v_scale");
  if (sinks) args.sinks = moi_ptr(sinks->at, sinks->n * 4);
  args.q_offsets = VIEW(offsets);
  args.kv_lens = VIEW(lens);
  if (e->desc.page_size) append.q_start = args.q_start = VIEW(e->done);
  moi_kv_cache scaled = e->cache; /* the values lie unscaled in the cache: the scale is the model's */
  if (v_scale) scaled.v_scale = moi_ptr(v_scale->at, v_scale->n * 4);
  args.cache = &scaled;
  if (moi_kv_append_run(e->plan, &append, no_queue)) fail_msg("%s: %s", g->name, moi_last_error());
  if (moi_attention_run(e->plan, &args, e->workspace, no_queue)) fail_msg("%s: %s", g->name, moi_last_error());
  check_rows(e, rows, args.output.ptr, allow);
  for (int s = 0; s < SEQS; s++) e->done[s] = lens[s];
  free(append.k.ptr);
  free(append.v.ptr);
  free(args.q.ptr);
  free(args.output.ptr);
}

static void check_family(const golden *g, moi_context *context, types t, const char *kernel) {
  int v_in_k = (g->desc.flags & MOI_ATTENTION_V_IN_K) != 0;
  allowed a = {0, rounding_of(need(g, "k"), t.k), rounding_of(find(g, "v"), t.v), 0};
  if (v_in_k) a.v = a.k;
  if (t.input == MOI_FORMAT_BF16) { /* what is appended has passed through it */
    a.q = rounding_of(need(g, "q"), t.input);
    a.k += rounding_of(need(g, "k"), t.input);
    a.v += v_in_k ? rounding_of(need(g, "k"), t.input) : rounding_of(find(g, "v"), t.input);
  }
  for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++)
    for (int paged = 0; paged < 2; paged++) {
      engine e;
      engine_open(&e, g, &schedules[i], t, paged, context, kernel);
      if (strstr(moi_plan_kernel(e.plan), "bf16")) a.p = 0x1p-8; /* such kernels may round exp(l) to bf16 */
      for (const uint32_t(*rows)[SEQS] = schedules[i].rows; rows[0][0] || rows[0][1] || rows[0][2]; rows++)
        step(&e, *rows, &a);
      for (int s = 0; s < SEQS; s++) assert_int_equal(e.done[s], length_of(g, s));
      engine_close(&e);
    }
}

/* ------------------------------------------------------------------------------------------------------------ tests */

/* Every file is a test of its own; a missing one fails. */
static const char *const families[] = {
    "qwen3_moe", "mixtral", "glm4_moe", "phimoe", "granitemoe", "qwen3_next", "minimax_m2", "olmoe", "hunyuan_v1_moe",
    "gpt_oss_window", "gpt_oss_full", "gemma2_window", "gemma2_full", "gemma3_window", "gemma3_full",
    "mimo_v2_flash_window", "mimo_v2_flash_full", "gemma4_window", "gemma4_full", "deepseek_v4_window",
    "llama4_chunked", "llama4_nope", "deepseek_v3", "deepseek_v3_absorbed",
};

static void family_test(void **state) {
  static const types all[] = {
      {MOI_FORMAT_F32, MOI_FORMAT_F32, MOI_FORMAT_F32},
      {MOI_FORMAT_F16, MOI_FORMAT_F16, MOI_FORMAT_F32},
      {MOI_FORMAT_BF16, MOI_FORMAT_BF16, MOI_FORMAT_F32},
      {MOI_FORMAT_BF16, MOI_FORMAT_BF16, MOI_FORMAT_BF16}, /* as engines have it */
      {MOI_FORMAT_BF16, MOI_FORMAT_F16, MOI_FORMAT_F32},
  };
  golden g;
  open_golden(&g, *state);
  assert_int_equal(need(&g, "q")->dims[0], first_row(&g, SEQS));
  assert_true(!(g.desc.flags & MOI_ATTENTION_SINKS) == !find(&g, "sinks"));
  moi_context *context = open_cpu(2);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    if (all[i].k != all[i].v && (g.desc.flags & MOI_ATTENTION_V_IN_K)) continue;
    check_family(&g, context, all[i], "ref");
    check_family(&g, context, all[i], NULL);
  }
  moi_context_destroy(context);
  close_golden(&g);
}

int main(void) {
  enum { N = sizeof families / sizeof *families };
  struct CMUnitTest tests[N];
  memset(tests, 0, sizeof tests);
  for (size_t i = 0; i < N; i++) {
    tests[i].name = families[i];
    tests[i].test_func = family_test;
    tests[i].initial_state = (void *)(uintptr_t)tests[i].name;
  }
  return cmocka_run_group_tests_name("golden_attention", tests, NULL, NULL);
}
