/* What attention must survive: numbers that no query may see, ids, lengths and offsets out of range, nothing to do; and what
 * the append writes, to the byte. Every buffer ends at a guard page. */
#include "tests/attention.h"

static moi_context *context;
static const char *kernels[16];
static uint32_t n_kernels;

/* Workers that take turns: work is shared, but nobody waits. */
static int open_context(void **state) {
  static const lanes three = {3, 0};
  *state = context = open_lanes(&three);
  n_kernels = attention_kernels(kernels);
  return 0;
}

typedef struct kind {
  uint32_t dk, dv, heads, kv_heads, flags;
  moi_format k, v, input;
} kind;

static const kind kinds[] = {
    {64, 64, 8, 2, 0, MOI_FORMAT_F32, MOI_FORMAT_F32, MOI_FORMAT_F32},
    {128, 128, 4, 2, 0, MOI_FORMAT_BF16, MOI_FORMAT_BF16, MOI_FORMAT_BF16},
    {192, 128, 2, 2, 0, MOI_FORMAT_F16, MOI_FORMAT_F16, MOI_FORMAT_F32},
    {256, 256, 2, 1, 0, MOI_FORMAT_Q8_0, MOI_FORMAT_Q8_0, MOI_FORMAT_BF16},
    {576, 512, 12, 1, MOI_ATTENTION_V_IN_K, MOI_FORMAT_BF16, MOI_FORMAT_BF16, MOI_FORMAT_BF16},
    {64, 64, 4, 1, MOI_ATTENTION_V_IN_K, MOI_FORMAT_Q8_0, MOI_FORMAT_Q8_0, MOI_FORMAT_BF16},
    {80, 80, 3, 1, 0, MOI_FORMAT_FP8, MOI_FORMAT_FP8, MOI_FORMAT_BF16},
    {5, 3, 6, 2, 0, MOI_FORMAT_F32, MOI_FORMAT_F16, MOI_FORMAT_F16},
    {96, 64, 2, 2, 0, MOI_FORMAT_Q8_0, MOI_FORMAT_F32, MOI_FORMAT_BF16},
    {1, 1, 14, 7, 0, MOI_FORMAT_F16, MOI_FORMAT_FP8, MOI_FORMAT_F32},
};

#define EVERY_KIND(x) for (const kind *x = kinds; x < kinds + sizeof kinds / sizeof *kinds; x++)
#define EVERY_KERNEL(k) for (uint32_t k = 0; k < n_kernels; k++)

static void usual(world *w, const kind *x, uint64_t seed) {
  memset(w, 0, sizeof *w);
  w->desc = (moi_attention_desc)MOI_ATTENTION_DESC_INIT;
  moi_attention_desc *d = &w->desc;
  d->max_rows = 24, d->max_seqs = 6, d->max_kv = 80;
  d->n_heads = x->heads, d->n_kv_heads = x->kv_heads, d->head_dim = x->dk, d->v_head_dim = x->dv;
  d->flags = x->flags;
  d->k_format = x->k, d->v_format = x->v, d->input_type = x->input, d->output_type = MOI_FORMAT_F32;
  static const int32_t rows[5] = {9, 1, 0, 13, 1}, lens[5] = {9, 70, 12, 73, 1};
  w->n_seqs = 5;
  for (uint32_t i = 0; i < 5; i++) {
    w->offsets[i + 1] = w->offsets[i] + rows[i];
    w->lens[i] = lens[i];
    w->id[i] = i;
  }
  w->n_rows = 24;
  w->seed = seed;
  for (uint32_t h = 0; h < MAX_HEADS; h++) w->sinks[h] = (float)h - 2.5f;
}

/* The bits of two runs of as many rows. NaN are equal to themselves. */
static void same_row(const char *what, const engine *e, uint32_t row, const float *y, const float *lse) {
  size_t heads = e->desc.n_heads, width = heads * e->desc.v_head_dim;
  for (size_t i = 0; i < width; i++)
    if (memcmp(e->y + row * width + i, y + row * width + i, 4))
      fail_msg("%s, %s, head_dim %u/%u: row %u, head %zu: %.9g was %.9g", what, e->kernel, e->desc.head_dim,
               e->desc.v_head_dim, row, i / e->desc.v_head_dim, (double)e->y[row * width + i],
               (double)y[row * width + i]);
  for (size_t h = 0; h < heads; h++)
    if (memcmp(e->lse + row * heads + h, lse + row * heads + h, 4))
      fail_msg("%s, %s: row %u, head %zu: lse %.9g was %.9g", what, e->kernel, row, h, (double)e->lse[row * heads + h],
               (double)lse[row * heads + h]);
}

/* ---- what no query may see */

/* Bits that are NaN (or infinite) in every element of a row. */
static void spoil(moi_format format, uint8_t *row, uint32_t dim, int infinite) {
  static const uint32_t f32[2] = {0xffc00000u, 0x7f800000u};
  static const uint16_t f16[2] = {0xfe00, 0x7c00}, bf16[2] = {0xffc0, 0x7f80};
  uint64_t size = row_bytes(format, dim);
  for (uint32_t i = 0; i < dim; i++)
    if (format == MOI_FORMAT_F32) memcpy(row + i * 4, &f32[infinite], 4);
    else if (format == MOI_FORMAT_F16) memcpy(row + i * 2, &f16[infinite], 2);
    else if (format == MOI_FORMAT_BF16) memcpy(row + i * 2, &bf16[infinite], 2);
  if (format == MOI_FORMAT_FP8) memset(row, 0x7f, size); /* it has no infinity */
  for (uint64_t i = 0; format == MOI_FORMAT_Q8_0 && i < size; i += 34) {
    memset(row + i, 0x55, 34);
    memcpy(row + i, &f16[infinite], 2);
  }
}

static void spoil_key(const engine *e, uint32_t s, int64_t j, int values, int infinite) {
  for (uint32_t h = 0; h < e->desc.n_kv_heads; h++) {
    uint8_t *row = cache_at(e, values, s, j, h);
    assert_non_null(row);
    spoil(values ? e->desc.v_format : e->desc.k_format, row, values ? e->desc.v_head_dim : e->desc.head_dim, infinite);
  }
}

static void test_unseen_numbers(void **state) {
  (void)state;
  EVERY_KIND(x) for (int i = 0; i < 12; i++) {
      world clean, dirty;
      usual(&clean, x, 1);
      moi_attention_desc *d = &clean.desc;
      if (i % 6 == 1) d->window = 6;
      if (i % 6 == 2) d->chunk = 8;
      if (i % 6 == 3) d->window = 3, d->chunk = 5, d->flags |= MOI_ATTENTION_SINKS, d->softcap = 4;
      if (i % 6 == 4) { /* keys before kv_begin, and ones after the last row's position */
        clean.has_begin = clean.has_start = 1;
        for (uint32_t s = 0; s < 5; s++) {
          clean.begin[s] = clean.lens[s] / 4;
          clean.start[s] = clean.lens[s] * 2 / 3;
        }
      }
      if (i % 6 == 5) d->mask = MOI_MASK_NONE;
      clean.layout.page_size = i < 6 ? 16 : 0;
      clean.layout.gap = i % 2 ? 16 : 0;
      clean.layout.shuffled = 1;
      dirty = clean;
      dirty.fill = 0xff;
      engine a, b;
      engine_make(&a, &clean);
      engine_make(&b, &dirty);
      uint32_t spoiled = 0;
      for (uint32_t s = 0; s < clean.n_seqs; s++)
        for (int64_t j = 0; j < d->max_kv; j++) {
          int seen = 0;
          for (uint32_t r = 0; r < clean.n_rows; r++) {
            int64_t p = 0;
            if (seq_of(&a, r, &p) == (int)s) seen |= sees(&a, s, p, j);
          }
          if (seen) continue;
          spoiled++;
          spoil_key(&b, s, j, 0, j % 2);
          if (!(x->flags & MOI_ATTENTION_V_IN_K)) spoil_key(&b, s, j, 1, (j / 2) % 2);
        }
      assert_true(spoiled > 80);
      EVERY_KERNEL(k) {
        if (!engine_run(&a, context, kernels[k], 0)) continue;
        assert_true(engine_run(&b, context, kernels[k], 0));
        for (uint32_t r = 0; r < clean.n_rows; r++) same_row("unseen", &b, r, a.y, a.lse);
      }
      engine_free(&a);
      engine_free(&b);
    }
}

/* A key that is NaN belongs to the rows that see it, and to no other of the same call. */
static void test_a_nan_that_some_rows_see(void **state) {
  (void)state;
  static const int64_t keys[] = {8, 7, 3, 0};
  EVERY_KIND(x) for (int i = 0; i < 8; i++) for (int rule = 0; rule < 2; rule++) {
      int values = i / 4;
      if (values && x->flags & MOI_ATTENTION_V_IN_K) continue;
      world w;
      usual(&w, x, 2);
      w.layout.page_size = 4;
      if (rule) w.desc.window = 3;
      engine a, b;
      engine_make(&a, &w);
      engine_make(&b, &w);
      int64_t at = keys[i % 4];
      for (uint32_t s = 0; s < 4; s += 3) spoil_key(&b, s, s ? 64 + at : at, values, 0);
      EVERY_KERNEL(k) {
        if (!engine_run(&a, context, kernels[k], 0)) continue;
        assert_true(engine_run(&b, context, kernels[k], 0));
        for (uint32_t r = 0; r < w.n_rows; r++) {
          int64_t p = 0;
          int s = seq_of(&a, r, &p);
          if ((s == 0 && sees(&a, 0, p, at)) || (s == 3 && sees(&a, 3, p, 64 + at))) {
            for (uint32_t c = 0; c < x->heads * x->dv; c++)
              if (!isnan(b.y[(size_t)r * x->heads * x->dv + c]))
                fail_msg("%s, head_dim %u: row %u sees a NaN in %s %d, but has %.9g", b.kernel, x->dk, r,
                         values ? "value" : "key", (int)at, (double)b.y[(size_t)r * x->heads * x->dv + c]);
          } else {
            same_row("a NaN that it does not see", &b, r, a.y, a.lse);
          }
        }
      }
      engine_free(&a);
      engine_free(&b);
    }
}

/* ---- out of range */

static int32_t pick(uint64_t seed, uint32_t *at, const int32_t *of, uint32_t n, int32_t below) {
  uint32_t i = moi_random_below(seed, (*at)++, n + 3);
  return i < n ? of[i] : (int32_t)moi_random_below(seed, (*at)++, (uint32_t)below + 1);
}

/* Lists of every kind of wrong number, by chance, against the formula. */
static void test_hostile_numbers(void **state) {
  (void)state;
  static const int32_t bad[] = {-1, INT32_MIN, INT32_MAX, INT32_MAX - 3, -7, 81, 100000};
  enum { N_BAD = sizeof bad / sizeof *bad };
  for (uint32_t seed = 0; seed < 400; seed++) {
    const kind *x = &kinds[seed % (sizeof kinds / sizeof *kinds)];
    uint32_t at = 0;
    world w;
    usual(&w, x, seed);
    moi_attention_desc *d = &w.desc;
    w.n_rows = moi_random_below(seed, at++, 25);
    w.n_seqs = 1 + moi_random_below(seed, at++, 6);
    for (uint32_t s = 0; s < 6; s++) {
      w.id[s] = s;
      w.lens[s] = pick(seed, &at, bad, N_BAD, 80);
      w.start[s] = pick(seed, &at, bad, N_BAD, 80);
      w.begin[s] = pick(seed, &at, bad, N_BAD, 40);
      w.offsets[s] = seed % 2 ? pick(seed, &at, bad, N_BAD, 24) : (int32_t)(s * w.n_rows / w.n_seqs);
    }
    w.offsets[6] = (int32_t)w.n_rows;
    w.has_start = seed / 2 % 2;
    w.has_begin = seed / 4 % 2;
    if (seed % 3 == 0) d->window = 1 + moi_random_below(seed, at++, 20);
    if (seed % 5 == 0) d->chunk = 1 + moi_random_below(seed, at++, 20);
    if (seed % 7 == 0) d->temperature = 0.3f, d->temperature_floor = 9;
    if (seed % 4 == 3) d->flags |= MOI_ATTENTION_SINKS;
    if (!d->window && seed % 11 < 3) d->mask = MOI_MASK_NONE;
    w.layout.page_size = seed % 8 < 5 ? 1 + moi_random_below(seed, at++, 20) : 0;
    w.layout.shuffled = 1;
    engine e;
    engine_make(&e, &w);
    if (w.layout.page_size) {
      uint32_t entries = e.where.page_table_stride, n = w.n_seqs * entries;
      for (uint32_t i = 0; i < n; i++)
        if (moi_random_below(seed, at++, 3) == 0)
          e.table[i] = i % 2 ? (int32_t)e.cache.capacity - (int32_t)(i / 2 % 2) : pick(seed, &at, bad, N_BAD, 80);
      if (seed % 6 == 4 && entries > 1) { /* a table with fewer entries */
        e.cache.page_table_stride = e.where.page_table_stride = entries - 1;
        e.cache.page_table = guarded(&e, e.table, (size_t)w.n_seqs * (entries - 1) * 4, "short page table");
        e.table = e.cache.page_table.ptr;
      }
    } else {
      for (uint32_t s = 0; s < w.n_seqs; s++)
        if (s % 2) ((int32_t *)e.cache.start.ptr)[s] = pick(seed, &at, bad, N_BAD, (int32_t)e.cache.capacity);
    }
    char what[32];
    snprintf(what, sizeof what, "seed %u", seed);
    EVERY_KERNEL(k) {
      if (!engine_run(&e, context, kernels[k], 0)) continue;
      engine_check(&e, what);
    }
    engine_free(&e);
  }
}

/* ---- nothing to do */

static void assert_nothing(const engine *e) {
  for (size_t i = 0; i < (size_t)e->w->n_rows * e->desc.n_heads * e->desc.v_head_dim; i++)
    assert_true(e->y[i] == 0);
  for (size_t i = 0; i < (size_t)e->w->n_rows * e->desc.n_heads; i++) assert_true(e->lse[i] == -INFINITY);
}

static void test_nothing_to_do(void **state) {
  (void)state;
  EVERY_KIND(x) EVERY_KERNEL(k) {
    world w;
    engine e;
    for (int i = 0; i < 6; i++) {
      usual(&w, x, 3);
      if (i == 0) w.n_seqs = 0; /* rows, but no sequences */
      if (i == 1) memset(w.offsets, 0, sizeof w.offsets); /* rows of no sequence */
      if (i == 2) memset(w.lens, 0, sizeof w.lens);       /* no keys */
      if (i == 3)
        for (int s = 0; s < 5; s++) w.has_start = 1, w.start[s] = -100; /* before all keys */
      if (i == 4)
        for (int s = 0; s < 5; s++) w.has_begin = 1, w.begin[s] = w.lens[s]; /* after all keys */
      if (i == 5) { /* without a mask too, chunks leave nothing to positions before them */
        w.desc.mask = MOI_MASK_NONE;
        w.desc.window = 0, w.desc.chunk = 16;
        for (int s = 0; s < 5; s++) w.has_start = 1, w.start[s] = -100;
      }
      engine_make(&e, &w);
      if (engine_run(&e, context, kernels[k], 0)) assert_nothing(&e);
      if (i == 2) { /* the sink alone: all of the denominator, none of the output */
        engine_free(&e);
        w.desc.flags |= MOI_ATTENTION_SINKS;
        engine_make(&e, &w);
        if (engine_run(&e, context, kernels[k], 0)) engine_check(&e, "sinks alone");
      }
      engine_free(&e);
    }
    usual(&w, x, 3);
    w.n_rows = 0; /* no rows: nothing is looked at */
    w.n_seqs = 0;
    engine_make(&e, &w);
    e.args.q = e.args.output = e.args.lse = e.args.q_offsets = e.args.kv_lens = moi_ptr(NULL, 0);
    e.args.cache = NULL;
    engine_run(&e, context, kernels[k], 0);
    engine_free(&e);
    usual(&w, x, 3);
    w.n_rows = 0;
    memset(w.offsets, 0, sizeof w.offsets);
    engine_make(&e, &w);
    engine_run(&e, context, kernels[k], 0);
    engine_free(&e);
    usual(&w, x, 3); /* rows before the first sequence, and after the last */
    w.n_seqs = 1;
    w.offsets[0] = 3, w.offsets[1] = 5;
    engine_make(&e, &w);
    if (engine_run(&e, context, kernels[k], 0)) engine_check(&e, "rows of no sequence");
    engine_free(&e);
  }
}

/* ---- append */

/* A row as the append is to store it. */
static void store_row(moi_format format, const float *x, uint32_t n, uint8_t *to) {
  if (format != MOI_FORMAT_Q8_0) {
    encode_row(format, x, n, to);
    return;
  }
  for (uint32_t b = 0; b < n; b += 32, to += 34) {
    float most = 0;
    for (uint32_t i = 0; i < 32; i++) most = fabsf(x[b + i]) > most ? fabsf(x[b + i]) : most;
    float d = most / 127, factor = d > 0 ? 1 / d : 0;
    encode_row(MOI_FORMAT_F16, &d, 1, to);
    for (uint32_t i = 0; i < 32; i++) to[2 + i] = (uint8_t)(int8_t)roundf(x[b + i] * factor);
  }
}

/* Appends the world's rows, and holds the whole cache to what it must be, byte for byte. */
static void append(const world *w, const char *what, int hostile_pages) {
  world empty = *w;
  empty.fill = 0xa5;
  engine e;
  engine_make(&e, &empty);
  const moi_attention_desc *d = &e.desc;
  int v_in_k = (d->flags & MOI_ATTENTION_V_IN_K) != 0, one_buffer = w->layout.one_buffer;
  if (hostile_pages)
    for (uint32_t i = 0; i < w->n_seqs * e.where.page_table_stride; i += 3)
      e.table[i] = i % 2 ? -1 - (int32_t)i : (int32_t)e.cache.capacity + (int32_t)i;
  memset(e.cache.k.ptr, 0xa5, e.cache.k.size);
  if (!v_in_k) memset(e.cache.v.ptr, 0xa5, e.cache.v.size);

  uint64_t each = row_bytes(d->input_type, 1);
  uint32_t extra = w->stride_extra, n[2] = {d->head_dim, d->v_head_dim};
  moi_kv_append_args a = MOI_KV_APPEND_ARGS_INIT;
  moi_buffer in[2] = {{0}, {0}};
  static float x[1024];
  for (int values = 0; values < 2 - v_in_k; values++) {
    uint32_t head = n[values] + extra, row = d->n_kv_heads * head + extra;
    uint64_t size = w->n_rows ? ((w->n_rows - 1) * (uint64_t)row + (d->n_kv_heads - 1) * (uint64_t)head + n[values]) * each : 0;
    in[values] = moi_arena_view(&e.arena, size, (size_t)each, values ? "new v" : "new k");
    for (uint32_t r = 0; r < w->n_rows; r++) {
      int64_t p = 0;
      int s = seq_of(&e, r, &p);
      for (uint32_t h = 0; h < d->n_kv_heads; h++) {
        for (uint32_t i = 0; i < n[values]; i++) x[i] = s < 0 ? 7 : number(w, values ? 2 : 1, (uint32_t)s, p, h, i);
        encode_row(d->input_type, x, n[values], (uint8_t *)in[values].ptr + ((uint64_t)r * row + h * head) * each);
      }
    }
    if (extra && values) a.v_head_stride = head, a.v_stride = row;
    if (extra && !values) a.k_head_stride = head, a.k_stride = row;
  }
  a.n_rows = w->n_rows, a.n_seqs = w->n_seqs;
  a.k = in[0], a.v = in[1];
  a.q_offsets = e.args.q_offsets, a.kv_lens = e.args.kv_lens, a.q_start = e.args.q_start;
  a.cache = &e.cache;
  moi_attention_desc desc = w->desc;
  desc.page_size = d->page_size;
  moi_plan *plan = NULL;
  passes(moi_attention_plan(context, &desc, &plan));
  passes(moi_kv_append_run(plan, &a, no_queue));
  moi_plan_destroy(plan);
  long long offset = 0;
  const char *hit = moi_arena_damage(&e.arena, &offset);
  if (hit) fail_msg("%s: wrote to %s at %lld", what, hit, offset);

  size_t sizes[2] = {e.cache.k.size, v_in_k ? 0 : e.cache.v.size};
  uint8_t *got[2] = {malloc(sizes[0] + 1), malloc(sizes[1] + 1)};
  assert_true(got[0] && got[1]);
  memcpy(got[0], e.cache.k.ptr, sizes[0]);
  if (!v_in_k) memcpy(got[1], e.cache.v.ptr, sizes[1]);
  memset(e.cache.k.ptr, 0xa5, sizes[0]);
  if (!v_in_k) memset(e.cache.v.ptr, 0xa5, sizes[1]);
  int64_t end = d->max_kv;
  if (d->page_size && (int64_t)e.where.page_table_stride * d->page_size < end)
    end = (int64_t)e.where.page_table_stride * d->page_size;
  for (uint32_t r = 0; r < w->n_rows; r++) {
    int64_t p = 0;
    int s = seq_of(&e, r, &p);
    if (s < 0 || p < 0 || p >= end) continue;
    for (uint32_t h = 0; h < d->n_kv_heads; h++)
      for (int values = 0; values < 2 - v_in_k; values++) {
        uint8_t *to = cache_at(&e, values, (uint32_t)s, p, h);
        if (!to) continue;
        draw_row(&e, values, (uint32_t)s, p, h, x);
        store_row(values ? d->v_format : d->k_format, x, n[values], to);
      }
  }
  const uint8_t *want[2] = {e.cache.k.ptr, e.cache.v.ptr};
  for (int values = 0; values < 2 - v_in_k; values++)
    for (size_t i = 0; i < sizes[values]; i++)
      if (got[values][i] != want[values][i])
        fail_msg("%s, head_dim %u/%u, %s %s%s: byte %zu is 0x%02x, wanted 0x%02x", what, d->head_dim, d->v_head_dim,
                 values ? "v" : "k", moi_format_name(values ? d->v_format : d->k_format),
                 one_buffer ? " in one buffer" : "", i, got[values][i], want[values][i]);
  free(got[0]);
  free(got[1]);
  engine_free(&e);
}

static void test_append(void **state) {
  (void)state;
  static const layout layouts[] = {{0, 0, 0, 0, 0},  {0, 1, 1, 0, 0},  {16, 1, 0, 0, 0}, {16, 1, 1, 32, 0},
                                   {16, 1, 0, 0, 1}, {80, 1, 1, 0, 0}, {3, 1, 0, 4, 0}};
  EVERY_KIND(x) for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
      world w;
      usual(&w, x, 4);
      w.layout = layouts[i];
      if (w.layout.one_buffer && (x->flags || x->k != x->v)) continue;
      append(&w, "append", 0);
      w.stride_extra = 3;
      append(&w, "append of strided rows", 0);
      w.has_start = 1; /* behind the end, before the beginning, in the middle of what is there */
      w.start[0] = 76, w.start[1] = -1, w.start[3] = -5, w.start[4] = 20;
      append(&w, "append at other places", 0);
      if (!x->flags) w.has_k_scale = w.has_v_scale = 1;
      for (int h = 0; h < MAX_HEADS; h++) w.k_scale[h] = 0.3f + (float)h, w.v_scale[h] = 2.5f - 0.3f * (float)h;
      append(&w, "append with scales", 0);
      w.start[1] = INT32_MAX, w.start[3] = INT32_MIN, w.offsets[2] = 100, w.offsets[3] = -1;
      append(&w, "append of hostile numbers", w.layout.page_size != 0);
      w.n_seqs = 0;
      append(&w, "append of no sequences", 0);
      usual(&w, x, 4);
      w.layout = layouts[i];
      w.n_rows = 0;
      append(&w, "append of no rows", 0);
    }
}

/* What does not fit into fp8 becomes its largest number; NaN stays. */
static void test_append_saturates(void **state) {
  (void)state;
  static float x[8] = {1e9f, -1e9f, 448, -460, INFINITY, -INFINITY, 0, 0.4375f};
  static const uint8_t want[8] = {0x7e, 0xfe, 0x7e, 0xfe, 0x7e, 0xfe, 0x00, 0x2e};
  uint8_t k[8] = {0}, v[8] = {0};
  int32_t offsets[2] = {0, 1}, lens[1] = {1};
  moi_attention_desc d = MOI_ATTENTION_DESC_INIT;
  d.max_rows = d.max_seqs = d.max_kv = d.n_heads = d.n_kv_heads = 1;
  d.head_dim = 8;
  d.k_format = MOI_FORMAT_FP8;
  moi_plan *plan = NULL;
  passes(moi_attention_plan(context, &d, &plan));
  moi_kv_cache c = MOI_KV_CACHE_INIT;
  c.capacity = 1, c.k = VIEW(k), c.v = VIEW(v);
  moi_kv_append_args a = MOI_KV_APPEND_ARGS_INIT;
  a.n_rows = a.n_seqs = 1;
  a.k = a.v = VIEW(x), a.q_offsets = VIEW(offsets), a.kv_lens = VIEW(lens), a.cache = &c;
  passes(moi_kv_append_run(plan, &a, no_queue));
  assert_memory_equal(k, want, 8);
  assert_memory_equal(v, want, 8);
  x[3] = NAN;
  passes(moi_kv_append_run(plan, &a, no_queue));
  assert_int_equal(k[3] & 0x7f, 0x7f);
  moi_plan_destroy(plan);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_unseen_numbers),   cmocka_unit_test(test_a_nan_that_some_rows_see),
      cmocka_unit_test(test_hostile_numbers),  cmocka_unit_test(test_nothing_to_do),
      cmocka_unit_test(test_append),           cmocka_unit_test(test_append_saturates),
  };
  return cmocka_run_group_tests_name("hostile_attention", tests, open_context, close_context);
}
