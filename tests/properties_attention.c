/* What must hold of attention whatever the numbers are: layouts, splits, batches, limits of windows and sinks; and the
 * formula itself, in double, over every combination of its rules. */
#include "tests/attention.h"

static moi_context *context;
static const char *kernels[16];
static uint32_t n_kernels;

/* Three workers that take turns, so that work is shared but nobody waits: most tests run many small calls. */
static int open_context(void **state) {
  static const lanes three = {3, 0};
  *state = context = open_lanes(&three);
  n_kernels = attention_kernels(kernels);
  return 0;
}

typedef struct shape {
  uint32_t dk, dv, heads, kv_heads, flags;
} shape;

static const shape shapes[] = {
    {64, 64, 8, 2, 0},   {128, 128, 4, 2, 0}, {192, 128, 2, 2, 0}, {256, 256, 2, 1, 0}, {512, 512, 2, 1, 0},
    {576, 512, 4, 1, MOI_ATTENTION_V_IN_K},   {1, 1, 3, 3, 0},     {5, 5, 6, 2, 0},     {80, 80, 3, 1, 0},
    {96, 96, 2, 2, 0},   {40, 24, 4, 4, 0},   {32, 32, 14, 1, 0},  {48, 48, 2, 1, MOI_ATTENTION_V_IN_K},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct types {
  moi_format k, v, input;
} types;

static const types all_types[] = {
    {MOI_FORMAT_F32, MOI_FORMAT_F32, MOI_FORMAT_F32},   {MOI_FORMAT_BF16, MOI_FORMAT_BF16, MOI_FORMAT_BF16},
    {MOI_FORMAT_F16, MOI_FORMAT_F16, MOI_FORMAT_F16},   {MOI_FORMAT_FP8, MOI_FORMAT_FP8, MOI_FORMAT_BF16},
    {MOI_FORMAT_Q8_0, MOI_FORMAT_Q8_0, MOI_FORMAT_BF16}, {MOI_FORMAT_F16, MOI_FORMAT_BF16, MOI_FORMAT_F32},
    {MOI_FORMAT_Q8_0, MOI_FORMAT_FP8, MOI_FORMAT_BF16},
};
enum { N_TYPES = sizeof all_types / sizeof *all_types };

/* Two prompts in full and in part, two decodes of other lengths, a sequence without rows. */
static void usual(world *w, const shape *s, const types *t, uint64_t seed) {
  memset(w, 0, sizeof *w);
  w->desc = (moi_attention_desc)MOI_ATTENTION_DESC_INIT;
  moi_attention_desc *d = &w->desc;
  d->max_rows = 24;
  d->max_seqs = 6;
  d->max_kv = 80;
  d->n_heads = s->heads;
  d->n_kv_heads = s->kv_heads;
  d->head_dim = s->dk;
  d->v_head_dim = s->dv;
  d->flags = s->flags;
  d->k_format = t->k;
  d->v_format = t->v;
  d->input_type = t->input;
  d->output_type = MOI_FORMAT_F32;
  static const int32_t rows[5] = {9, 1, 0, 5, 1}, lens[5] = {9, 70, 12, 23, 1};
  w->n_seqs = 5;
  for (uint32_t i = 0; i < 5; i++) {
    w->offsets[i + 1] = w->offsets[i] + rows[i];
    w->lens[i] = lens[i];
    w->id[i] = i;
  }
  w->n_rows = 16;
  w->seed = seed;
  w->fill = 0xff;
  for (uint32_t h = 0; h < MAX_HEADS; h++) {
    w->sinks[h] = (float)h - 2.5f;
    w->k_scale[h] = 0.5f + 0.25f * (float)h;
    w->v_scale[h] = 1.5f - 0.25f * (float)h;
  }
}

/* The types that a shape goes with. */
static int fits(const shape *s, const types *t) {
  if (s->flags & MOI_ATTENTION_V_IN_K) return t->k == t->v && (t->k != MOI_FORMAT_Q8_0 || s->dk % 32 == 0);
  return (t->k != MOI_FORMAT_Q8_0 || s->dk % 32 == 0) && (t->v != MOI_FORMAT_Q8_0 || s->dv % 32 == 0);
}

/* SOME_TYPES: each type with every n-th shape, where the shapes and types have little to do with each other. */
#define EVERY_SHAPE(s) for (const shape *s = shapes; s < shapes + N_SHAPES; s++)
#define EVERY_TYPE(t, s) for (const types *t = all_types; t < all_types + N_TYPES; t++) if (fits(s, t))
#define SOME_TYPES(t, s, n) EVERY_TYPE(t, s) if ((size_t)(t - all_types + (s - shapes)) % (n) == 0)
#define EVERY_KERNEL(k) for (uint32_t k = 0; k < n_kernels; k++)

static void same_rows(const char *what, const engine *a, uint32_t row_a, const engine *b, uint32_t row_b, uint32_t n) {
  size_t width = (size_t)a->desc.n_heads * a->desc.v_head_dim, heads = a->desc.n_heads;
  for (uint32_t r = 0; r < n; r++) {
    const float *x = a->y + (row_a + r) * width, *y = b->y + (row_b + r) * width;
    if (memcmp(x, y, width * 4)) {
      size_t i = 0;
      while (!memcmp(x + i, y + i, 4)) i++;
      fail_msg("%s, %s, head_dim %u/%u, k %s: row %u, head %zu, [%zu]: %.9g and %.9g", what, a->kernel,
               a->desc.head_dim, a->desc.v_head_dim, moi_format_name(a->desc.k_format), row_a + r,
               i / a->desc.v_head_dim, i % a->desc.v_head_dim, (double)x[i], (double)y[i]);
    }
    if (memcmp(a->lse + (row_a + r) * heads, b->lse + (row_b + r) * heads, heads * 4))
      fail_msg("%s, %s, head_dim %u/%u: row %u: lse differs", what, a->kernel, a->desc.head_dim, a->desc.v_head_dim,
               row_a + r);
  }
}

static void same(const char *what, const engine *a, const engine *b) {
  assert_int_equal(a->w->n_rows, b->w->n_rows);
  same_rows(what, a, 0, b, 0, a->w->n_rows);
}

/* Two computations of the same: each may be off by fp32 arithmetic (exp to bf16 where the kernel's name says so). */
static void near_rows(const char *what, const engine *a, const float *y, const float *lse) {
  const moi_attention_desc *d = &a->desc;
  double e = strstr(a->kernel, "bf16") ? 0x1p-7 : 4e-6 * sqrt((double)d->head_dim);
  for (uint32_t r = 0; r < a->w->n_rows * d->n_heads; r++) {
    double most = 1;
    for (uint32_t i = 0; i < d->v_head_dim; i++) most = fmax(most, fabs((double)y[(size_t)r * d->v_head_dim + i]));
    for (uint32_t i = 0; i < d->v_head_dim; i++) {
      size_t at = (size_t)r * d->v_head_dim + i;
      if (!(fabs((double)a->y[at] - (double)y[at]) <= e * most))
        fail_msg("%s, %s, head_dim %u/%u: row %u, head %u, [%u]: %.9g and %.9g", what, a->kernel, d->head_dim,
                 d->v_head_dim, r / d->n_heads, r % d->n_heads, i, (double)a->y[at], (double)y[at]);
    }
    if (lse && (isinf(lse[r]) || isinf(a->lse[r]) ? lse[r] != a->lse[r]
                                                  : !(fabs((double)a->lse[r] - (double)lse[r]) <= 2 * e)))
      fail_msg("%s, %s: row %u: lse %.9g and %.9g", what, a->kernel, r / d->n_heads, (double)a->lse[r], (double)lse[r]);
  }
}

static void near(const char *what, const engine *a, const engine *b) {
  assert_int_equal(a->w->n_rows, b->w->n_rows);
  near_rows(what, a, b->y, b->lse);
}

/* ---- the formula */

static void rule(world *w, uint32_t i) {
  moi_attention_desc *d = &w->desc;
  switch (i) {
    case 1: d->flags |= MOI_ATTENTION_SINKS; break;
    case 2: d->window = 6; break;
    case 3: d->chunk = 7; break;
    case 4: d->softcap = 1.5f; break;
    case 5: d->temperature = 0.4f, d->temperature_floor = 3; break;
    case 6: d->mask = MOI_MASK_NONE; break;
    case 7: d->scale = 0.3f, w->has_k_scale = w->has_v_scale = 1; break;
    case 8: /* all at once */
      d->flags |= MOI_ATTENTION_SINKS;
      d->window = 20, d->chunk = 33, d->softcap = 5, d->temperature = -0.1f, d->temperature_floor = 8;
      d->scale = 0.05f, w->has_k_scale = w->has_v_scale = 1;
      break;
    case 9: /* positions and keys that the engine says itself; some rows see nothing */
      w->has_start = w->has_begin = 1;
      for (uint32_t s = 0; s < w->n_seqs; s++) w->start[s] = w->lens[s] - 3 - (int32_t)s * 2, w->begin[s] = (int32_t)s * 3;
      break;
    case 10: d->window = 1; break;
    case 11: d->chunk = 1, d->mask = MOI_MASK_NONE; break;
    default: break;
  }
}
enum { RULES = 12 };

static void test_formula(void **state) {
  (void)state;
  EVERY_SHAPE(s) SOME_TYPES(t, s, 2) for (uint32_t i = 0; i < RULES; i++) {
      world w;
      usual(&w, s, t, 1);
      rule(&w, i);
      w.layout.page_size = i % 3 * 8;
      w.layout.shuffled = 1;
      engine e;
      engine_make(&e, &w);
      char what[64];
      snprintf(what, sizeof what, "rule %u, k %s, v %s", i, moi_format_name(t->k), moi_format_name(t->v));
      EVERY_KERNEL(k) {
        if (!engine_run(&e, context, kernels[k], 0)) continue;
        engine_check(&e, what);
      }
      engine_free(&e);
    }
}

/* Contexts of several segments, for few rows and for many, on one worker and on several. */
static void long_world(world *w, const types *t, uint32_t rows, uint32_t max_kv) {
  static const shape small = {32, 32, 4, 2, 0};
  usual(w, &small, t, 2);
  w->desc.max_kv = max_kv;
  w->desc.max_rows = 70;
  w->desc.max_seqs = 4;
  w->n_seqs = 3;
  static const int32_t lens[3] = {1400, 1, 1030};
  for (uint32_t i = 0; i < 3; i++) {
    w->lens[i] = lens[i];
    w->offsets[i + 1] = w->offsets[i] + (i == 1 ? 1 : (int32_t)rows);
  }
  w->n_rows = (uint32_t)w->offsets[3];
}

static void test_formula_of_long_contexts(void **state) {
  (void)state;
  moi_context *on[3] = {context, open_cpu(1), open_cpu(2)};
  static const uint32_t bounds[2] = {1400, 40000};
  for (int c = 0; c < 3; c++)
    for (uint32_t rows = 1; rows < 40; rows += 32)
      for (int b = 0; b < 2; b++)
        for (uint32_t i = 0; i < RULES; i += c ? 8 : 1 + (rows > 1)) {
          world w;
          long_world(&w, &all_types[c % 2], rows, bounds[b]);
          rule(&w, i);
          if (w.desc.window == 20) w.desc.window = 900, w.desc.chunk = 1000;
          w.layout.page_size = 64;
          engine e;
          engine_make(&e, &w);
          EVERY_KERNEL(k) {
            if (!engine_run(&e, on[c], kernels[k], 0)) continue;
            engine_check(&e, "long");
          }
          engine_free(&e);
        }
  moi_context_destroy(on[1]);
  moi_context_destroy(on[2]);
}

/* ---- limits */

static void test_one_key(void **state) {
  (void)state;
  EVERY_SHAPE(s) SOME_TYPES(t, s, 3) EVERY_KERNEL(k) {
    world w;
    usual(&w, s, t, 3);
    w.desc.window = 1; /* every row sees itself alone */
    engine e;
    engine_make(&e, &w);
    if (engine_run(&e, context, kernels[k], 0))
      for (uint32_t r = 0; r < w.n_rows; r++)
        for (uint32_t h = 0; h < s->heads; h++) {
          int64_t p = 0;
          int seq = seq_of(&e, r, &p);
          moi_streams v = {cache_at(&e, 1, (uint32_t)seq, p, h / (s->heads / s->kv_heads)), NULL, NULL};
          for (uint32_t i = 0; i < s->dv; i++) {
            double x = (double)moi_decode(e.desc.v_format, v, 1, 0, i, 1, s->flags ? s->dk : s->dv);
            double got = (double)e.y[((size_t)r * s->heads + h) * s->dv + i];
            if (!(fabs(got - x) <= 0x1p-20 * fabs(x)))
              fail_msg("%s, head_dim %u: row %u: %.9g, its value is %.9g", e.kernel, s->dk, r, got, x);
          }
        }
    engine_free(&e);
  }
}

/* The same world under two descs. */
static void pair(const char *what, const world *wa, const world *wb, int bits, uint32_t flags) {
  engine a, b;
  engine_make(&a, wa);
  engine_make(&b, wb);
  EVERY_KERNEL(k) {
    if (!engine_run(&a, context, kernels[k], flags)) continue;
    assert_true(engine_run(&b, context, kernels[k], flags));
    (bits ? same : near)(what, &a, &b);
  }
  engine_free(&a);
  engine_free(&b);
}

static void test_limits(void **state) {
  (void)state;
  EVERY_SHAPE(s) SOME_TYPES(t, s, 5) {
    world a, b;
    usual(&a, s, t, 4);
    b = a;
    b.desc.window = 70;
    pair("a window as long as the context", &b, &a, 0, 0);
    b.desc.window = UINT32_MAX;
    pair("a window without end", &b, &a, 0, 0);
    b = a;
    b.desc.chunk = 70;
    pair("a chunk as long as the context", &b, &a, 0, 0);
    b.desc.chunk = UINT32_MAX;
    pair("a chunk without end", &b, &a, 0, 0);
    b = a;
    b.desc.flags |= MOI_ATTENTION_SINKS;
    for (int h = 0; h < MAX_HEADS; h++) b.sinks[h] = -INFINITY;
    pair("sinks of -inf", &b, &a, 0, 0);
    b = a;
    b.desc.softcap = 30000;
    pair("a huge softcap", &b, &a, 0, 0);
    b = a;
    b.desc.temperature = 0.5f;
    b.desc.temperature_floor = 71;
    pair("a temperature that has not begun", &b, &a, 0, 0);
    b = a;
    b.desc.scale = 1 / sqrtf((float)s->dk);
    pair("the scale that 0 means", &b, &a, 1, 0);
    if (t->k != MOI_FORMAT_Q8_0) { /* powers of two are exact */
      b = a;
      b.has_k_scale = b.has_v_scale = 1;
      for (int h = 0; h < MAX_HEADS; h++) b.k_scale[h] = 1, b.v_scale[h] = 1;
      pair("scales of one", &b, &a, 1, 0);
    }
  }
}

static void test_scaled_values(void **state) {
  (void)state;
  EVERY_SHAPE(s) SOME_TYPES(t, s, 3) {
    if (s->flags || t->v == MOI_FORMAT_FP8) continue; /* in fp8 the small ones lose bits */
    world a, b;
    usual(&a, s, t, 5);
    b = a;
    b.v_gain = 2;
    engine x, y;
    engine_make(&x, &a);
    engine_make(&y, &b);
    EVERY_KERNEL(k) {
      if (!engine_run(&x, context, kernels[k], 0)) continue;
      assert_true(engine_run(&y, context, kernels[k], 0));
      for (size_t i = 0; i < (size_t)a.n_rows * s->heads * s->dv; i++)
        if (y.y[i] != 2 * x.y[i]) fail_msg("%s: %.9g is not twice %.9g", x.kernel, (double)y.y[i], (double)x.y[i]);
      assert_memory_equal(x.lse, y.lse, (size_t)a.n_rows * s->heads * 4);
    }
    engine_free(&x);
    engine_free(&y);
  }
}

/* A sink takes its share and gives nothing. */
static void test_a_large_sink(void **state) {
  (void)state;
  EVERY_SHAPE(s) EVERY_KERNEL(k) {
    world w;
    usual(&w, s, &all_types[0], 6);
    w.desc.flags |= MOI_ATTENTION_SINKS;
    for (int h = 0; h < MAX_HEADS; h++) w.sinks[h] = 500;
    engine e;
    engine_make(&e, &w);
    if (engine_run(&e, context, kernels[k], 0)) {
      for (size_t i = 0; i < (size_t)w.n_rows * s->heads * s->dv; i++) assert_true(fabsf(e.y[i]) < 1e-30f);
      for (size_t i = 0; i < (size_t)w.n_rows * s->heads; i++) assert_true(fabsf(e.lse[i] - 500) < 1e-3f);
    }
    engine_free(&e);
  }
}

static void test_grouped_heads_are_repeated_heads(void **state) {
  (void)state;
  EVERY_SHAPE(s) SOME_TYPES(t, s, 3) {
    if (s->heads == s->kv_heads) continue;
    world a, b;
    usual(&a, s, t, 7);
    b = a;
    b.desc.n_kv_heads = s->heads;
    b.repeat_heads = s->heads / s->kv_heads;
    pair("GQA and MHA", &a, &b, 0, 0);
  }
}

/* ---- layouts */

static void test_layouts(void **state) {
  (void)state;
  static const layout layouts[] = {
      {0, 1, 0, 0, 0},  {0, 0, 1, 0, 0},  {0, 1, 0, 16, 1},  {1, 1, 0, 0, 0},   {3, 1, 0, 0, 0},  {16, 0, 0, 0, 0},
      {16, 1, 0, 0, 0}, {16, 1, 1, 0, 0}, {16, 1, 0, 48, 0}, {16, 1, 0, 0, 1},  {16, 1, 1, 32, 1}, {64, 1, 0, 0, 0},
      {80, 1, 1, 0, 0}, {100, 1, 0, 4, 0}, {7, 1, 1, 20, 1},
  };
  EVERY_SHAPE(s) SOME_TYPES(t, s, 5) for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
      if (layouts[i].one_buffer && s->flags) continue;
      uint32_t align = t->k == MOI_FORMAT_F32 ? 4 : 2;
      if (layouts[i].one_buffer && (row_bytes(t->k, s->dk) % align || row_bytes(t->v, s->dv) % align)) continue;
      world a, b;
      usual(&a, s, t, 8);
      b = a;
      b.layout = layouts[i];
      char what[64];
      snprintf(what, sizeof what, "layout %zu", i);
      pair(what, &b, &a, 1, 0);
    }
}

/* Long decodes, whose KV heads may be taken together where a token has them side by side: the bits are those of heads that
 * lie apart, with all keys in the cache and with pages that are not there. */
static void test_heads_side_by_side(void **state) {
  (void)state;
  static const shape wide[] = {{192, 128, 6, 6, 0}, {64, 64, 16, 4, 0}, {128, 128, 10, 5, 0},
                               {80, 96, 16, 16, 0},  {40, 40, 4, 4, 0}};
  moi_context *alone = open_cpu(1);
  for (uint32_t i = 0; i < sizeof wide / sizeof *wide; i++)
    for (uint32_t n = 0; n < N_TYPES; n++) {
      if (!fits(&wide[i], &all_types[n])) continue;
      world a, b;
      long_world(&a, &all_types[n], 1, 1400);
      moi_attention_desc *d = &a.desc;
      d->n_heads = wide[i].heads, d->n_kv_heads = wide[i].kv_heads, d->head_dim = wide[i].dk, d->v_head_dim = wide[i].dv;
      if ((i + n) % 3 == 1) d->window = 700;
      if ((i + n) % 4 == 1) a.has_begin = 1, a.begin[0] = 37;
      a.layout.page_size = n % 2 ? 16 : 0;
      b = a;
      b.layout.heads_first = 1;
      EVERY_KERNEL(k) {
        if (kernels[k] && !strstr(kernels[k], "dot")) continue; /* the rest takes one head at a time */
        engine x, y;
        engine_make(&x, &a);
        engine_make(&y, &b);
        if (a.layout.page_size) x.table[3] = y.table[3] = -1;
        if (engine_run(&x, alone, kernels[k], 0) && engine_run(&y, alone, kernels[k], 0)) same("heads side by side", &x, &y);
        engine_free(&x);
        engine_free(&y);
      }
    }
  moi_context_destroy(alone);
}

/* q and output with room between rows and heads; 16-bit outputs are the rounded 32-bit ones. */
static void test_strides_and_output_types(void **state) {
  (void)state;
  EVERY_SHAPE(s) EVERY_TYPE(t, s) {
    world a, b;
    usual(&a, s, t, 9);
    b = a;
    b.stride_extra = 3;
    pair("strides of q and output", &b, &a, 1, 0);
    for (int half = 0; half < 2; half++) {
      b = a;
      b.desc.output_type = half ? MOI_FORMAT_F16 : MOI_FORMAT_BF16;
      engine x, y;
      engine_make(&x, &a);
      engine_make(&y, &b);
      EVERY_KERNEL(k) {
        if (!engine_run(&x, context, kernels[k], 0)) continue;
        assert_true(engine_run(&y, context, kernels[k], 0));
        for (size_t i = 0; i < (size_t)a.n_rows * s->heads * s->dv; i++) {
          uint16_t bits;
          encode_row(b.desc.output_type, &x.y[i], 1, &bits);
          moi_streams in = {(uint8_t *)&bits, NULL, NULL};
          if (y.y[i] != moi_decode(b.desc.output_type, in, 1, 0, 0, 1, 1))
            fail_msg("%s: %.9g is not %.9g rounded", x.kernel, (double)y.y[i], (double)x.y[i]);
        }
      }
      engine_free(&x);
      engine_free(&y);
    }
  }
}

/* A quantised cache with scales is an f32 cache of what it holds. */
static void test_scaled_caches(void **state) {
  (void)state;
  static const moi_format formats[] = {MOI_FORMAT_FP8, MOI_FORMAT_Q8_0, MOI_FORMAT_F16};
  EVERY_SHAPE(s) for (int f = 0; f < 3; f++) {
    types t = {formats[f], formats[f], MOI_FORMAT_F32};
    if (!fits(s, &t)) continue;
    world a, b;
    usual(&a, s, &t, 10);
    a.has_k_scale = a.has_v_scale = 1;
    if (s->flags & MOI_ATTENTION_V_IN_K) memcpy(a.v_scale, a.k_scale, sizeof a.v_scale);
    b = a;
    b.desc.k_format = b.desc.v_format = MOI_FORMAT_F32;
    b.has_k_scale = b.has_v_scale = 0;
    engine x, y;
    engine_make(&x, &a);
    engine_make(&y, &b);
    for (uint32_t seq = 0; seq < a.n_seqs; seq++)
      for (int64_t j = 0; j < a.lens[seq]; j++)
        for (uint32_t h = 0; h < s->kv_heads; h++)
          for (int values = 0; values < (s->flags ? 1 : 2); values++) {
            uint32_t n = values ? s->dv : s->dk;
            moi_streams in = {cache_at(&x, values, seq, j, h), NULL, NULL};
            float *to = (float *)(void *)cache_at(&y, values, seq, j, h);
            for (uint32_t i = 0; i < n; i++)
              to[i] = moi_decode(formats[f], in, 1, 0, i, 1, n) * (values ? a.v_scale[h] : a.k_scale[h]);
          }
    EVERY_KERNEL(k) {
      if (!engine_run(&x, context, kernels[k], 0)) continue;
      assert_true(engine_run(&y, context, kernels[k], 0));
      near("scales", &x, &y);
    }
    engine_free(&x);
    engine_free(&y);
  }
}

/* ---- MLA */

static void test_absorbed_is_plain(void **state) {
  (void)state;
  enum { HEADS = 3, NOPE = 128, ROPE = 64, V = 128, LORA = 512, N = 21, ROWS = 5 };
  static double kb[HEADS][NOPE][LORA], vb[HEADS][V][LORA];
  static float q[ROWS][HEADS][NOPE + ROPE], qa[ROWS][HEADS][LORA + ROPE], latent[N][LORA + ROPE];
  static float k[N][HEADS][NOPE + ROPE], v[N][HEADS][V], plain[ROWS][HEADS][V], absorbed[ROWS][HEADS][LORA];
  static float lse[2][ROWS][HEADS];
  for (int h = 0; h < HEADS; h++)
    for (int i = 0; i < NOPE; i++)
      for (int c = 0; c < LORA; c++) {
        uint64_t at = (uint64_t)((h * NOPE + i) * LORA + c);
        kb[h][i][c] = (double)moi_random_normal(1, at) / 22;
        vb[h][i][c] = (double)moi_random_normal(2, at) / 22;
      }
  for (int j = 0; j < N; j++)
    for (int c = 0; c < LORA + ROPE; c++) latent[j][c] = moi_random_normal(3, (uint64_t)(j * 1024 + c));
  for (int j = 0; j < N; j++)
    for (int h = 0; h < HEADS; h++)
      for (int i = 0; i < NOPE + ROPE; i++) {
        double x = 0, y = 0;
        for (int c = 0; c < LORA && i < NOPE; c++)
          x += kb[h][i][c] * (double)latent[j][c], y += vb[h][i][c] * (double)latent[j][c];
        k[j][h][i] = i < NOPE ? (float)x : latent[j][LORA + i - NOPE];
        if (i < V) v[j][h][i] = (float)y;
      }
  for (int r = 0; r < ROWS; r++)
    for (int h = 0; h < HEADS; h++) {
      for (int i = 0; i < NOPE + ROPE; i++) q[r][h][i] = moi_random_normal(4, (uint64_t)((r * HEADS + h) * 1024 + i));
      for (int c = 0; c < LORA + ROPE; c++) {
        double x = 0;
        for (int i = 0; i < NOPE && c < LORA; i++) x += kb[h][i][c] * (double)q[r][h][i];
        qa[r][h][c] = c < LORA ? (float)x : q[r][h][NOPE + c - LORA];
      }
    }
  EVERY_KERNEL(kernel) {
    int ran[2] = {0, 0};
    for (int form = 0; form < 2; form++) {
      moi_attention_desc d = MOI_ATTENTION_DESC_INIT;
      d.max_rows = ROWS, d.max_seqs = 1, d.max_kv = N;
      d.n_heads = HEADS, d.n_kv_heads = form ? 1 : HEADS;
      d.head_dim = form ? LORA + ROPE : NOPE + ROPE;
      d.v_head_dim = form ? LORA : V;
      d.scale = 1 / sqrtf(NOPE + ROPE);
      d.flags = form ? MOI_ATTENTION_V_IN_K : 0;
      d.kernel = kernels[kernel];
      moi_plan *plan = NULL;
      if (moi_attention_plan(context, &d, &plan) == MOI_UNSUPPORTED && d.kernel) continue;
      assert_non_null(plan);
      moi_kv_cache c = MOI_KV_CACHE_INIT;
      c.capacity = N;
      c.k = form ? VIEW(latent) : VIEW(k);
      if (!form) c.v = VIEW(v);
      int32_t offsets[2] = {0, ROWS}, lens[1] = {N};
      moi_attention_args a = MOI_ATTENTION_ARGS_INIT;
      a.n_rows = ROWS, a.n_seqs = 1;
      a.q = form ? VIEW(qa) : VIEW(q);
      a.output = form ? VIEW(absorbed) : VIEW(plain);
      a.lse = VIEW(lse[form]);
      a.q_offsets = VIEW(offsets);
      a.kv_lens = VIEW(lens);
      a.cache = &c;
      moi_buffer workspace = take_workspace(plan);
      passes(moi_attention_run(plan, &a, workspace, no_queue));
      drop_aligned(workspace.ptr);
      moi_plan_destroy(plan);
      ran[form] = 1;
    }
    if (!ran[0] || !ran[1]) continue;
    for (int r = 0; r < ROWS; r++)
      for (int h = 0; h < HEADS; h++) {
        assert_true(fabsf(lse[0][r][h] - lse[1][r][h]) < 1e-4f);
        for (int i = 0; i < V; i++) {
          double x = 0;
          for (int c = 0; c < LORA; c++) x += vb[h][i][c] * (double)absorbed[r][h][c];
          if (!(fabs(x - (double)plain[r][h][i]) < 1e-4)) /* values are around 1, fp32 sums of 576 around 1e-5 */
            fail_msg("row %d, head %d, [%d]: absorbed %.9g, plain %.9g", r, h, i, x, (double)plain[r][h][i]);
        }
      }
  }
}

/* ---- the same bits */

static void test_same_bits(void **state) {
  (void)state;
  lanes how[3] = {{1, 0}, {3, 1}, {11, 0}};
  moi_context *contexts[6] = {context, open_cpu(1), open_cpu(2), NULL, NULL, NULL}; /* context itself: a second run */
  for (int i = 0; i < 3; i++) contexts[3 + i] = open_lanes(&how[i]);
  for (int size = 0; size < 4; size++)
    for (size_t n = 0; n < N_TYPES; n++) {
      world w;
      if (size == 0) usual(&w, &shapes[0], &all_types[n], 11);
      else long_world(&w, &all_types[n], size == 3 ? 33 : 1, size == 2 ? 17000 : 1400);
      w.layout.page_size = 16;
      engine a, b;
      engine_make(&a, &w);
      engine_make(&b, &w);
      EVERY_KERNEL(k) {
        if (!engine_run(&a, context, kernels[k], MOI_DETERMINISTIC)) continue;
        for (int i = 0; i < 6; i++) {
          assert_true(engine_run(&b, contexts[i], kernels[k], MOI_DETERMINISTIC));
          same("workers", &b, &a);
        }
      }
      engine_free(&a);
      engine_free(&b);
    }
  for (int i = 1; i < 6; i++) moi_context_destroy(contexts[i]);
}

/* A batch under MOI_BATCH_INVARIANT against each of its rows alone, its sequences alone, and its sequences in another
 * order. */
static void batch(const world *w) {
  engine whole, part;
  engine_make(&whole, w);
  EVERY_KERNEL(k) {
    if (!engine_run(&whole, context, kernels[k], MOI_BATCH_INVARIANT)) continue;
    for (uint32_t s = 0; s < w->n_seqs; s++) {
      uint32_t rows = (uint32_t)(w->offsets[s + 1] - w->offsets[s]);
      for (uint32_t r = 0; r <= rows; r++) { /* the last time: the whole sequence */
        if (rows > 8 && r > 2 && r + 3 < rows) continue;
        world one = *w;
        one.n_seqs = 1;
        one.n_rows = r < rows ? 1 : rows;
        one.offsets[1] = (int32_t)one.n_rows;
        one.id[0] = w->id[s];
        one.has_start = 1;
        one.start[0] = w->lens[s] - (int32_t)rows + (int32_t)(r < rows ? r : 0);
        one.lens[0] = r < rows ? one.start[0] + 1 : w->lens[s]; /* what comes later is not there yet */
        if (!one.n_rows) continue;
        engine_make(&part, &one);
        assert_true(engine_run(&part, context, kernels[k], MOI_BATCH_INVARIANT));
        same_rows("alone", &part, 0, &whole, (uint32_t)w->offsets[s] + (r < rows ? r : 0), one.n_rows);
        engine_free(&part);
      }
    }
    world other = *w;
    for (uint32_t s = 0; s < w->n_seqs; s++) {
      uint32_t from = w->n_seqs - 1 - s;
      other.id[s] = w->id[from];
      other.lens[s] = w->lens[from];
      other.offsets[s + 1] = other.offsets[s] + w->offsets[from + 1] - w->offsets[from];
    }
    engine_make(&part, &other);
    assert_true(engine_run(&part, context, kernels[k], MOI_BATCH_INVARIANT));
    for (uint32_t s = 0; s < w->n_seqs; s++) {
      uint32_t from = w->n_seqs - 1 - s;
      same_rows("another order", &part, (uint32_t)other.offsets[s], &whole, (uint32_t)w->offsets[from],
                (uint32_t)(w->offsets[from + 1] - w->offsets[from]));
    }
    engine_free(&part);
  }
  engine_free(&whole);
}

static void test_batches(void **state) {
  (void)state;
  EVERY_SHAPE(s) SOME_TYPES(t, s, 3) for (uint32_t i = 0; i < 4; i += 1 + (t != all_types)) {
    world w;
    usual(&w, s, t, 12);
    rule(&w, i * 2);
    w.layout.page_size = 16;
    w.layout.shuffled = 1;
    if (w.desc.mask == MOI_MASK_NONE) continue; /* rows see the later ones */
    batch(&w);
  }
  for (uint32_t rows = 1; rows < 40; rows += 32) {
    world w;
    long_world(&w, &all_types[rows % 2], rows, rows == 1 ? 1400 : 17000);
    batch(&w);
  }
}

/* ---- split keys */

/* Attention over keys cut at `cuts`, merged. */
static void split(const world *w, const int32_t *cuts, uint32_t n_cuts, const char *kernel) {
  engine whole, part;
  engine_make(&whole, w);
  if (!engine_run(&whole, context, kernel, 0)) {
    engine_free(&whole);
    return;
  }
  const moi_attention_desc *d = &whole.desc;
  uint32_t n_parts = n_cuts + 1;
  size_t width = (size_t)w->n_rows * d->n_heads * d->v_head_dim, heads = (size_t)w->n_rows * d->n_heads;
  moi_arena arena = {.flags = MOI_ARENA_GUARD};
  float *parts = moi_arena_take(&arena, n_parts * width * 4, 4, "parts");
  float *lses = moi_arena_take(&arena, n_parts * heads * 4, 4, "part_lse");
  for (uint32_t i = 0; i < n_parts; i++) {
    world p = *w;
    p.has_start = p.has_begin = 1;
    for (uint32_t s = 0; s < w->n_seqs; s++) {
      p.start[s] = w->lens[s] - (w->offsets[s + 1] - w->offsets[s]);
      p.begin[s] = i ? cuts[i - 1] : 0;
      if (i < n_cuts && cuts[i] < w->lens[s]) p.lens[s] = cuts[i];
    }
    if (i != 1) p.desc.flags &= ~MOI_ATTENTION_SINKS; /* one part has the sink */
    engine_make(&part, &p);
    assert_true(engine_run(&part, context, kernel, 0));
    memcpy(parts + i * width, part.y, width * 4);
    memcpy(lses + i * heads, part.lse, heads * 4);
    engine_free(&part);
  }
  moi_attention_desc desc = w->desc;
  moi_plan *plan = NULL;
  passes(moi_attention_plan(context, &desc, &plan));
  moi_attention_merge_args a = MOI_ATTENTION_MERGE_ARGS_INIT;
  a.n_rows = w->n_rows;
  a.n_parts = n_parts;
  a.parts = moi_ptr(parts, n_parts * width * 4);
  a.part_lse = moi_ptr(lses, n_parts * heads * 4);
  a.output = moi_arena_view(&arena, width * 4, 4, "output");
  a.lse = moi_arena_view(&arena, heads * 4, 4, "lse");
  moi_poison(a.output);
  moi_poison(a.lse);
  passes(moi_attention_merge_run(plan, &a, no_queue));
  near_rows("split", &whole, a.output.ptr, a.lse.ptr);
  long long offset = 0;
  assert_null(moi_arena_damage(&arena, &offset));
  moi_plan_destroy(plan);
  moi_arena_free(&arena);
  engine_free(&whole);
}

static void test_split_keys(void **state) {
  (void)state;
  static const int32_t cuts[4] = {4, 5, 16, 40};
  EVERY_SHAPE(s) SOME_TYPES(t, s, 5) for (uint32_t i = 0; i < 5; i++) EVERY_KERNEL(k) {
    world w;
    usual(&w, s, t, 13);
    rule(&w, i);
    split(&w, cuts, 4, kernels[k]);
  }
  for (uint32_t rows = 1; rows < 40; rows += 32) {
    static const int32_t far_cuts[2] = {500, 1029};
    world w;
    long_world(&w, &all_types[0], rows, 1400);
    w.desc.flags |= MOI_ATTENTION_SINKS;
    EVERY_KERNEL(k) split(&w, far_cuts, 2, kernels[k]);
  }
}

/* What the merge does with parts that saw nothing, into every output type, with a stride. */
static void test_merge(void **state) {
  (void)state;
  enum { ROWS = 3, HEADS = 2, DIM = 5, PARTS = 3, STRIDE = HEADS * DIM + 2 };
  static float parts[PARTS][ROWS][HEADS][DIM], lse[PARTS][ROWS][HEADS], out_lse[ROWS][HEADS];
  for (int i = 0; i < PARTS; i++)
    for (int r = 0; r < ROWS; r++)
      for (int h = 0; h < HEADS; h++) {
        lse[i][r][h] = r == 2 || (r == 1 && i != 1) ? -INFINITY : (float)(i * 2 - h) + 60 * (float)h;
        for (int x = 0; x < DIM; x++) /* whatever a part that saw nothing holds */
          parts[i][r][h][x] = lse[i][r][h] == -INFINITY ? NAN : moi_random_normal(1, (uint64_t)(i * 100 + r * 20 + h * 9 + x));
      }
  for (moi_format type = MOI_FORMAT_F32; type <= MOI_FORMAT_BF16; type = (moi_format)(type + 1)) {
    moi_attention_desc d = MOI_ATTENTION_DESC_INIT;
    d.max_rows = ROWS, d.max_seqs = 1, d.max_kv = 1, d.n_heads = d.n_kv_heads = HEADS, d.head_dim = DIM;
    d.output_type = type;
    moi_plan *plan = NULL;
    passes(moi_attention_plan(context, &d, &plan));
    moi_arena arena = {.flags = MOI_ARENA_GUARD};
    uint32_t each = type == MOI_FORMAT_F32 ? 4 : 2;
    moi_attention_merge_args a = MOI_ATTENTION_MERGE_ARGS_INIT;
    a.n_rows = ROWS, a.n_parts = PARTS, a.output_stride = STRIDE;
    a.parts = VIEW(parts), a.part_lse = VIEW(lse), a.lse = VIEW(out_lse);
    a.output = moi_arena_view(&arena, ((ROWS - 1) * STRIDE + HEADS * DIM) * each, each, "output");
    moi_poison(a.output);
    passes(moi_attention_merge_run(plan, &a, no_queue));
    moi_streams got = {a.output.ptr, NULL, NULL};
    for (int r = 0; r < ROWS; r++)
      for (int h = 0; h < HEADS; h++) {
        double sum = 0, most = 60 * h + 4;
        for (int i = 0; i < PARTS; i++) sum += exp((double)lse[i][r][h] - most);
        for (int x = 0; x < DIM; x++) {
          double y = 0, z = (double)moi_decode(type, got, 1, 0, (uint32_t)(r * STRIDE + h * DIM + x), 1, ROWS * STRIDE);
          for (int i = 0; i < PARTS; i++)
            if (lse[i][r][h] != -INFINITY) y += exp((double)lse[i][r][h] - most) / sum * (double)parts[i][r][h][x];
          assert_true(fabs(y - z) <= fabs(y) * (type == MOI_FORMAT_F32 ? 1e-6 : type == MOI_FORMAT_F16 ? 5e-4 : 4e-3));
        }
        if (r == 2) assert_true(out_lse[r][h] == -INFINITY);
        else assert_true(fabs((double)out_lse[r][h] - most - log(sum)) < 1e-5);
      }
    for (uint32_t i = 0; i < 2 * each; i++)
      assert_int_equal(((uint8_t *)a.output.ptr)[HEADS * DIM * each + i], MOI_POISON);
    long long offset = 0;
    assert_null(moi_arena_damage(&arena, &offset));
    moi_arena_free(&arena);
    moi_plan_destroy(plan);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_formula),
      cmocka_unit_test(test_formula_of_long_contexts),
      cmocka_unit_test(test_one_key),
      cmocka_unit_test(test_limits),
      cmocka_unit_test(test_scaled_values),
      cmocka_unit_test(test_a_large_sink),
      cmocka_unit_test(test_grouped_heads_are_repeated_heads),
      cmocka_unit_test(test_layouts), cmocka_unit_test(test_heads_side_by_side),
      cmocka_unit_test(test_strides_and_output_types),
      cmocka_unit_test(test_scaled_caches),
      cmocka_unit_test(test_absorbed_is_plain),
      cmocka_unit_test(test_same_bits),
      cmocka_unit_test(test_batches),
      cmocka_unit_test(test_split_keys),
      cmocka_unit_test(test_merge),
  };
  return cmocka_run_group_tests_name("properties_attention", tests, open_context, close_context);
}
