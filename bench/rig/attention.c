#include "bench/rig/attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/rig/device.h"
#include "bench/rig/operands.h"
#include "bench/rig/random.h"
#include "core/backend.h"
#include "core/shared/round.h"

enum { MAX_DIM = 1024, POOL_ROWS = 2048, DEAL_ABOVE = 32768, ENDLESS = 1 << 28 };

/* ---- what the args mean */

static uint32_t v_dim(const moi_attention_desc *d) { return d->v_head_dim ? d->v_head_dim : d->head_dim; }
static moi_format k_format(const moi_attention_desc *d) { return moi_or(d->k_format, MOI_FORMAT_F32); }
static moi_format v_format(const moi_attention_desc *d) { return moi_or(d->v_format, k_format(d)); }
static moi_format input_type(const moi_attention_desc *d) { return moi_or(d->input_type, MOI_FORMAT_F32); }
static moi_format output_type(const moi_attention_desc *d) { return moi_or(d->output_type, input_type(d)); }
static int v_in_k(const moi_attention_desc *d) { return (d->flags & MOI_ATTENTION_V_IN_K) != 0; }

static uint64_t row_bytes(moi_format format, uint32_t dim) {
  moi_format_sizes sizes;
  if (!moi_format_size(format, 1, dim, &sizes)) return sizes.data;
  fprintf(stderr, "moiety: a cache of %s with heads of %u: %s\n", moi_format_name(format), dim, moi_last_error());
  exit(3);
}

uint64_t moi_kv_token_bytes(const moi_attention_desc *d) {
  return d->n_kv_heads * (row_bytes(k_format(d), d->head_dim) + (v_in_k(d) ? 0 : row_bytes(v_format(d), v_dim(d))));
}

static uint32_t pages_of(const moi_attention_desc *d) { return d->page_size ? (d->max_kv - 1) / d->page_size + 1 : 0; }

static int32_t at_most(int32_t v, uint32_t high) { return v < 0 ? 0 : (uint32_t)v > high ? (int32_t)high : v; }

/* The rows of sequence s as the offsets say: clamped to what is before them and to n_rows. Operands that are not made
 * yet have none. */
static uint32_t rows_of(const moi_attention_operands *o, uint32_t s, uint32_t *first) {
  const int32_t *offsets = o->args.q_offsets.ptr;
  if (!offsets) {
    *first = 0;
    for (uint32_t i = 0; i < s; i++) *first += o->sequences[i].rows;
    return o->sequences[s].rows;
  }
  uint32_t begin = (uint32_t)at_most(offsets[0], o->n_rows), end = begin;
  for (uint32_t i = 0; i <= s; i++) {
    begin = end;
    end = (uint32_t)at_most(offsets[i + 1], o->n_rows);
    if (end < begin) end = begin;
  }
  *first = begin;
  return end - begin;
}

static int64_t position_of(const moi_attention_operands *o, uint32_t s) {
  uint32_t first, rows = rows_of(o, s, &first);
  if (o->has_start) return o->sequences[s].start;
  return (int64_t)at_most(o->sequences[s].kv_len, o->desc.max_kv) - rows;
}

/* The keys low <= j < high that position p of sequence s sees. */
static int64_t sees(const moi_attention_operands *o, uint32_t s, int64_t p, int64_t *low, int64_t *high) {
  const moi_attention_desc *d = &o->desc;
  *low = o->has_begin && o->sequences[s].begin > 0 ? o->sequences[s].begin : 0;
  *high = at_most(o->sequences[s].kv_len, d->max_kv);
  if (d->mask == MOI_MASK_CAUSAL) *high = *high < p + 1 ? *high : p + 1;
  if (d->window) *low = *low > p - d->window + 1 ? *low : p - d->window + 1;
  if (d->chunk) {
    int64_t begin = p < 0 ? -(int64_t)d->chunk : p / d->chunk * d->chunk;
    *low = *low > begin ? *low : begin;
    *high = *high < begin + d->chunk ? *high : begin + d->chunk;
  }
  return *high > *low ? *high - *low : 0;
}

/* The keys of a sequence that any of its rows sees. */
static int64_t seen_by_any(const moi_attention_operands *o, uint32_t s, int64_t *low, int64_t *high) {
  uint32_t first, rows = rows_of(o, s, &first);
  int64_t position = position_of(o, s);
  *low = ENDLESS;
  *high = 0;
  for (uint32_t r = 0; r < rows; r++) {
    int64_t a, b;
    if (!sees(o, s, position + r, &a, &b)) continue;
    *low = a < *low ? a : *low;
    *high = b > *high ? b : *high;
  }
  return *high > *low ? *high - *low : 0;
}

uint64_t moi_attention_seen(const moi_attention_operands *o, uint64_t *read, uint32_t *most) {
  uint64_t all = 0, any = 0, largest = 0;
  for (uint32_t s = 0; s < o->n_seqs; s++) {
    uint32_t first, rows = rows_of(o, s, &first);
    int64_t low, high, position = position_of(o, s);
    for (uint32_t r = 0; r < rows; r++) {
      uint64_t n = (uint64_t)sees(o, s, position + r, &low, &high);
      all += n;
      if (n > largest) largest = n;
    }
    any += (uint64_t)seen_by_any(o, s, &low, &high);
  }
  if (read) *read = any;
  if (most) *most = (uint32_t)largest;
  return all;
}

/* Key (value) j of sequence s and KV head h from `base` on; NULL where the cache has no such place. */
static uint8_t *place(const moi_attention_operands *o, uint8_t *base, int values, uint32_t s, int64_t j, uint32_t h) {
  const moi_kv_cache *c = &o->cache;
  uint64_t token_stride = values ? c->v_token_stride : c->k_token_stride;
  uint64_t head_stride = values ? c->v_head_stride : c->k_head_stride;
  uint64_t page_stride = values ? c->v_page_stride : c->k_page_stride;
  int64_t page = 0, token = j;
  if (j < 0 || j >= o->desc.max_kv) return NULL;
  if (o->desc.page_size) {
    page = ((const int32_t *)c->page_table.ptr)[s * (uint64_t)c->page_table_stride + (uint64_t)j / o->desc.page_size];
    token = j % o->desc.page_size;
    if (page < 0 || page >= c->capacity) return NULL;
  } else {
    token += c->start.ptr ? ((const int32_t *)c->start.ptr)[s] : (int64_t)s * o->desc.max_kv;
    if (token < 0 || token >= c->capacity) return NULL;
  }
  return base + (uint64_t)page * page_stride + (uint64_t)token * token_stride + h * head_stride;
}

/* ---- encoding */

static void encode_q8_0(const float *x, uint32_t n, uint8_t *out) {
  for (; n; n -= 32, x += 32, out += 34) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[i]));
    const float d = most / 127, to = d > 0 ? 1 / d : 0;
    const uint16_t half = moi_to_f16(d);
    memcpy(out, &half, 2);
    for (int i = 0; i < 32; i++) out[2 + i] = (uint8_t)(int8_t)lroundf(x[i] * to);
  }
}

void moi_kv_encode(moi_format format, const float *x, uint32_t n, float scale, uint8_t *out) {
  float scaled[MAX_DIM];
  for (uint32_t i = 0; i < n; i++) scaled[i] = x[i] / scale;
  if (format == MOI_FORMAT_Q8_0) encode_q8_0(scaled, n, out);
  else if (format == MOI_FORMAT_FP8)
    for (uint32_t i = 0; i < n; i++) out[i] = moi_to_e4m3(fminf(fmaxf(scaled[i], -448), 448));
  else
    for (uint32_t i = 0; i < n; i++) moi_dense_store(format, out, i, scaled[i]);
}

static float scale_of(moi_buffer scales, uint32_t head) { return scales.ptr ? ((const float *)scales.ptr)[head] : 1; }

/* Key (value) j of a sequence as numbers. */
static void draw(const moi_attention_operands *o, int values, uint32_t s, int64_t j, uint32_t h, float *x) {
  uint32_t n = values ? v_dim(&o->desc) : o->desc.head_dim;
  uint64_t at = (((uint64_t)s << 32 | (uint64_t)j) * o->desc.n_kv_heads + h) * MAX_DIM;
  for (uint32_t i = 0; i < n; i++) x[i] = moi_random_normal(o->seed * 17 + (uint64_t)values, at + i);
}

/* ---- making */

static void strides(const moi_kv_layout *l, uint32_t heads, uint32_t tokens, uint64_t row, uint64_t *token,
                    uint64_t *head, uint64_t *page) {
  if (l->heads_first) {
    *token = row + l->gap;
    *head = *token * tokens + l->gap;
    *page = *head * heads + l->gap;
  } else {
    *head = row + l->gap;
    *token = *head * heads + l->gap;
    *page = *token * tokens + l->gap;
  }
}

/* Page (or place) i of n, in a fixed other order. */
static uint32_t shuffled(const moi_attention_operands *o, uint32_t i, uint32_t n) {
  if (!o->layout.shuffled || n < 3) return i;
  uint32_t step = n / 2 + 1;
  for (;; step++) { /* prime to n */
    uint32_t a = step, b = n;
    while (b) {
      uint32_t r = a % b;
      a = b;
      b = r;
    }
    if (a == 1) return (uint32_t)(((uint64_t)i * step + o->seed % n) % n);
  }
}

static void make_places(moi_arena *arena, moi_attention_operands *o) {
  const moi_attention_desc *d = &o->desc;
  moi_kv_cache *c = &o->cache;
  uint32_t n = o->n_seqs;
  int tight = o->layout.tight && o->task == MOI_RIG_ATTEND;
  if (!d->page_size && tight) {
    int64_t low, high;
    c->start = moi_arena_view(arena, n * 4, 4, "start");
    for (uint32_t i = 0; i < n; i++) {
      uint32_t s = shuffled(o, i, n);
      int64_t any = seen_by_any(o, s, &low, &high);
      ((int32_t *)c->start.ptr)[s] = any ? (int32_t)(c->capacity - low) : INT32_MIN;
      c->capacity += (uint32_t)any;
    }
    return;
  }
  if (!d->page_size) {
    c->capacity = n * d->max_kv;
    if (!o->layout.shuffled) return;
    c->start = moi_arena_view(arena, n * 4, 4, "start");
    for (uint32_t s = 0; s < n; s++) ((int32_t *)c->start.ptr)[s] = (int32_t)(shuffled(o, s, n) * d->max_kv);
    return;
  }
  /* a spare page at the end of the order is NaN; table entries that nobody may read name it, or nothing */
  uint32_t entries = pages_of(d), next = 0;
  c->capacity = n * entries + 1;
  for (uint32_t s = 0; s < n && tight; s++) {
    int64_t low, high;
    if (!s) c->capacity = 1;
    if (seen_by_any(o, s, &low, &high)) c->capacity += (uint32_t)((high - 1) / d->page_size - low / d->page_size + 1);
  }
  c->page_table_stride = entries;
  c->page_table = moi_arena_view(arena, (uint64_t)n * entries * 4, 4, "page table");
  for (uint32_t s = 0; s < n; s++) {
    int64_t low, high;
    int any = seen_by_any(o, s, &low, &high) != 0 || o->task == MOI_RIG_APPEND;
    if (o->task == MOI_RIG_APPEND) low = 0, high = d->max_kv;
    for (uint32_t i = 0; i < entries; i++) {
      int seen = any && (int64_t)i * d->page_size < high && (int64_t)(i + 1) * d->page_size > low;
      int32_t *entry = (int32_t *)c->page_table.ptr + (uint64_t)s * entries + i;
      if (seen) *entry = (int32_t)shuffled(o, tight ? next++ : s * entries + i, c->capacity);
      else
        *entry = i % 3 == 0 ? INT32_MIN : i % 3 == 1 ? INT32_MAX : (int32_t)shuffled(o, c->capacity - 1, c->capacity);
      if (o->holes && seen && moi_random_below(o->seed ^ 0x401e, (uint64_t)s * entries + i, 4) == 0)
        *entry = i % 2 ? -1 : (int32_t)c->capacity;
    }
  }
}

static void make_memory(moi_arena *arena, moi_attention_operands *o) {
  const moi_attention_desc *d = &o->desc;
  const moi_kv_layout *l = &o->layout;
  moi_kv_cache *c = &o->cache;
  uint64_t k_row = row_bytes(k_format(d), d->head_dim), v_row = v_in_k(d) ? 0 : row_bytes(v_format(d), v_dim(d));
  uint32_t tokens = d->page_size ? d->page_size : c->capacity, pages = d->page_size ? c->capacity : 1;
  strides(l, d->n_kv_heads, tokens, l->one_buffer ? k_row + v_row : k_row, &c->k_token_stride, &c->k_head_stride,
          &c->k_page_stride);
  strides(l, d->n_kv_heads, tokens, l->one_buffer ? k_row + v_row : v_row, &c->v_token_stride, &c->v_head_stride,
          &c->v_page_stride);
  if (!tokens) return;
  uint64_t k_size = (pages - 1) * c->k_page_stride + (tokens - 1) * c->k_token_stride +
                    (d->n_kv_heads - 1) * c->k_head_stride + k_row;
  uint64_t v_size = (pages - 1) * c->v_page_stride + (tokens - 1) * c->v_token_stride +
                    (d->n_kv_heads - 1) * c->v_head_stride + v_row;
  if (l->one_buffer && !v_in_k(d)) {
    uint8_t *p = moi_arena_take(arena, k_size + v_row, 4, "k and v");
    c->k = moi_ptr(p, k_size);
    c->v = moi_ptr(p + k_row, v_size);
    memset(p, 0xff, k_size + v_row);
    return;
  }
  c->k = moi_arena_view(arena, k_size, 4, "k");
  if (!v_in_k(d)) c->v = moi_arena_view(arena, v_size, 4, "v");
  if (o->like) {
    memcpy(c->k.ptr, o->like->cache.k.ptr, k_size);
    if (c->v.ptr) memcpy(c->v.ptr, o->like->cache.v.ptr, v_size);
    return;
  }
  memset(c->k.ptr, 0xff, k_size);
  if (c->v.ptr) memset(c->v.ptr, 0xff, v_size);
}

static void fill_cache(moi_attention_operands *o, int values) {
  const moi_attention_desc *d = &o->desc;
  moi_format format = values ? v_format(d) : k_format(d);
  uint32_t dim = values ? v_dim(d) : d->head_dim;
  uint64_t bytes = row_bytes(format, dim), total = 0;
  float x[MAX_DIM];
  int64_t low, high;
  for (uint32_t s = 0; s < o->n_seqs; s++) total += (uint64_t)seen_by_any(o, s, &low, &high) * d->n_kv_heads;
  uint8_t *pool = NULL;
  if (total > DEAL_ABOVE) {
    pool = malloc(POOL_ROWS * bytes);
    if (!pool) exit(3);
    for (uint32_t i = 0; i < POOL_ROWS; i++) {
      draw(o, values, 0, i, 0, x);
      moi_kv_encode(format, x, dim, scale_of(values ? o->cache.v_scale : o->cache.k_scale, 0), pool + i * bytes);
    }
  }
  for (uint32_t s = 0; s < o->n_seqs; s++) {
    if (!seen_by_any(o, s, &low, &high)) continue;
    for (int64_t j = low; j < high; j++)
      for (uint32_t h = 0; h < d->n_kv_heads; h++) {
        uint8_t *to = place(o, values ? o->cache.v.ptr : o->cache.k.ptr, values, s, j, h);
        if (!to) continue;
        if (pool) {
          uint64_t at = ((uint64_t)s << 32 | (uint64_t)j) * d->n_kv_heads + h;
          memcpy(to, pool + moi_random_below(o->seed * 3 + (uint64_t)values, at, POOL_ROWS) * bytes, bytes);
          continue;
        }
        draw(o, values, s, j, h, x);
        /* the first row of a sequence does not see its last key */
        if (o->nan && s == 0 && h == 0 && j == high - 1 && (values || v_in_k(d))) x[dim / 2] = NAN;
        moi_kv_encode(format, x, dim, scale_of(values ? o->cache.v_scale : o->cache.k_scale, h), to);
      }
  }
  free(pool);
}

static void make_sequences(moi_arena *arena, moi_attention_operands *o) {
  uint32_t n = o->n_seqs;
  moi_attention_args *a = &o->args;
  o->n_rows = o->strays ? 2 : 0;
  for (uint32_t s = 0; s < n; s++) o->n_rows += o->sequences[s].rows;
  a->n_rows = o->n_rows;
  a->n_seqs = n;
  if (!n) return;
  a->q_offsets = moi_arena_view(arena, (n + 1) * 4, 4, "q_offsets");
  a->kv_lens = moi_arena_view(arena, n * 4, 4, "kv_lens");
  if (o->has_start) a->q_start = moi_arena_view(arena, n * 4, 4, "q_start");
  if (o->has_begin) a->kv_begin = moi_arena_view(arena, n * 4, 4, "kv_begin");
  int32_t *offsets = a->q_offsets.ptr;
  offsets[0] = o->strays ? 1 : 0;
  for (uint32_t s = 0; s < n; s++) {
    const moi_sequence *q = &o->sequences[s];
    offsets[s + 1] = offsets[s] + (int32_t)q->rows;
    ((int32_t *)a->kv_lens.ptr)[s] = q->kv_len;
    if (o->has_start) ((int32_t *)a->q_start.ptr)[s] = q->start;
    if (o->has_begin) ((int32_t *)a->kv_begin.ptr)[s] = q->begin;
  }
  for (uint32_t s = 0; o->hostile && s <= n; s++) {
    static const int32_t odd[5] = {-7, 2, 1, INT32_MAX, INT32_MIN};
    offsets[s] = odd[s % 5];
  }
}

static moi_buffer f32_row(moi_arena *arena, uint32_t n, float offset, float step, const char *name) {
  moi_buffer b = moi_arena_view(arena, n * 4, 4, name);
  for (uint32_t i = 0; i < n; i++) ((float *)b.ptr)[i] = offset + step * (float)(i % 7);
  return b;
}

/* Rows of heads with NaN between them; x = gain * normal. */
static moi_buffer head_rows(moi_arena *arena, moi_format type, uint32_t rows, uint32_t heads, uint32_t dim,
                            uint32_t extra, float gain, uint64_t seed, const char *name) {
  size_t element = moi_element_bytes(type), head = dim + extra, row = heads * head + extra;
  size_t count = rows ? (rows - 1) * row + (heads - 1) * head + dim : 0;
  moi_buffer b = moi_arena_view(arena, count * element, element, name);
  if (count && extra) memset(b.ptr, 0xff, count * element);
  for (uint32_t r = 0; r < rows; r++)
    for (uint32_t h = 0; h < heads; h++)
      moi_random_dense(type, (uint8_t *)b.ptr + (r * row + h * head) * element, dim, gain,
                       seed * 40503 + (uint64_t)r * heads + h);
  return b;
}

/* The first row's first head: steps of a half under 127, which are ties of Q8_0. */
static void add_ties(moi_format type, moi_buffer rows, uint32_t n) {
  for (uint32_t i = 0; i < n && rows.size; i++)
    moi_dense_store(type, rows.ptr, i, i % 32 == 5 ? -127.0f : (float)(i % 32) * 1.5f - 20);
}

static void make_merge(moi_arena *arena, moi_attention_operands *o) {
  const moi_attention_desc *d = &o->desc;
  moi_attention_merge_args *m = &o->merge;
  size_t heads = (size_t)o->parts * o->n_rows * d->n_heads;
  *m = (moi_attention_merge_args)MOI_ATTENTION_MERGE_ARGS_INIT;
  m->n_rows = o->n_rows;
  m->n_parts = o->parts;
  m->parts = moi_arena_view(arena, heads * v_dim(d) * 4, 4, "parts");
  m->part_lse = moi_arena_view(arena, heads * 4, 4, "part lse");
  moi_random_dense(MOI_FORMAT_F32, m->parts.ptr, heads * v_dim(d), 1, o->seed * 5 + 1);
  moi_random_dense(MOI_FORMAT_F32, m->part_lse.ptr, heads, 4, o->seed * 5 + 2);
  float *lse = m->part_lse.ptr;
  for (size_t i = 0; i < heads;
       i++) { /* parts that saw nothing hold what they like; rows 3, 10, ... saw nothing at all */
    int nothing = i / d->n_heads % o->n_rows % 7 == 3 || moi_random_below(o->seed * 5 + 3, i, 5) == 0;
    if (!nothing) continue;
    lse[i] = -INFINITY;
    for (uint32_t j = 0; j < v_dim(d); j++) ((float *)m->parts.ptr)[i * v_dim(d) + j] = NAN;
  }
  if (o->stride_extra) m->output_stride = d->n_heads * v_dim(d) + o->stride_extra;
}

void moi_make_attention(moi_arena *arena, moi_attention_operands *o) {
  moi_attention_desc *d = &o->desc;
  moi_attention_args *a = &o->args;
  uint32_t extra = o->stride_extra;
  *a = (moi_attention_args)MOI_ATTENTION_ARGS_INIT;
  o->cache = (moi_kv_cache)MOI_KV_CACHE_INIT;
  make_sequences(arena, o);
  if (o->task == MOI_RIG_MERGE) {
    make_merge(arena, o);
    return;
  }
  make_places(arena, o);
  make_memory(arena, o);
  if (o->has_scales) {
    o->cache.k_scale = f32_row(arena, d->n_kv_heads, 0.5f, 0.25f, "k_scale");
    o->cache.v_scale = f32_row(arena, d->n_kv_heads, 1.5f, -0.125f, "v_scale");
  }
  a->cache = &o->cache;
  if (o->task == MOI_RIG_APPEND) {
    moi_kv_append_args *p = &o->append;
    *p = (moi_kv_append_args)MOI_KV_APPEND_ARGS_INIT;
    p->n_rows = a->n_rows;
    p->n_seqs = a->n_seqs;
    /* now and then beyond what fp8 holds */
    p->k = head_rows(arena, input_type(d), o->n_rows, d->n_kv_heads, d->head_dim, extra, 150, o->seed * 2, "new k");
    if (!v_in_k(d))
      p->v = head_rows(arena, input_type(d), o->n_rows, d->n_kv_heads, v_dim(d), extra, 1, o->seed * 2 + 1, "new v");
    add_ties(input_type(d), p->k, d->head_dim);
    if (p->v.ptr) add_ties(input_type(d), p->v, v_dim(d));
    if (extra) {
      p->k_head_stride = d->head_dim + extra;
      p->k_stride = d->n_kv_heads * p->k_head_stride + extra;
      p->v_head_stride = v_dim(d) + extra;
      p->v_stride = d->n_kv_heads * p->v_head_stride + extra;
    }
    p->q_offsets = a->q_offsets;
    p->kv_lens = a->kv_lens;
    p->q_start = a->q_start;
    return;
  }
  if (!o->like) {
    fill_cache(o, 0);
    if (!v_in_k(d)) fill_cache(o, 1);
  }
  float scale = d->scale == 0 ? 1 / sqrtf((float)d->head_dim) : fabsf(d->scale);
  float gain = (o->logits > 0 ? o->logits : 2) / (scale * sqrtf((float)d->head_dim));
  if (o->like) {
    a->q = moi_arena_view(arena, o->like->args.q.size, 4, "q");
    memcpy(a->q.ptr, o->like->args.q.ptr, a->q.size);
  } else {
    a->q = head_rows(arena, input_type(d), o->n_rows, d->n_heads, d->head_dim, extra, gain, o->seed * 2, "q");
  }
  if (extra) {
    a->q_head_stride = d->head_dim + extra;
    a->q_stride = d->n_heads * a->q_head_stride + extra;
    a->output_stride = d->n_heads * v_dim(d) + extra;
  }
  if (d->flags & MOI_ATTENTION_SINKS) a->sinks = f32_row(arena, d->n_heads, -1, 0.75f, "sinks");
}

/* ---- running */

static uint32_t output_stride(const moi_attention_operands *o) {
  return o->desc.n_heads * v_dim(&o->desc) + o->stride_extra;
}

static moi_buffer copy_of(moi_arena *arena, moi_buffer from, const char *name) {
  if (!from.ptr) return from;
  moi_buffer b = moi_arena_view(arena, from.size, 4, name);
  memcpy(b.ptr, from.ptr, from.size);
  return b;
}

moi_attention_outputs moi_attention_outputs_make(moi_arena *arena, const moi_attention_operands *o) {
  const moi_attention_desc *d = &o->desc;
  moi_attention_outputs out;
  memset(&out, 0, sizeof out);
  if (o->task == MOI_RIG_APPEND) {
    if (o->layout.one_buffer && !v_in_k(d)) { /* keep them beside each other */
      uint64_t apart = (uint64_t)((uint8_t *)o->cache.v.ptr - (uint8_t *)o->cache.k.ptr);
      moi_buffer both = copy_of(arena, moi_ptr(o->cache.k.ptr, apart + o->cache.v.size), "k and v");
      out.k = moi_ptr(both.ptr, o->cache.k.size);
      out.v = moi_ptr((uint8_t *)both.ptr + apart, o->cache.v.size);
    } else {
      out.k = copy_of(arena, o->cache.k, "k");
      out.v = copy_of(arena, o->cache.v, "v");
    }
    return out;
  }
  out.output = moi_make_output(arena, output_type(d), o->n_rows, d->n_heads * v_dim(d), output_stride(o), 0);
  moi_poison(out.output);
  if (!o->has_lse) return out;
  out.lse = moi_arena_view(arena, (size_t)o->n_rows * d->n_heads * 4, 4, "lse");
  moi_poison(out.lse);
  return out;
}

moi_status moi_attention_operands_plan(const moi_attention_operands *o, moi_context *context, const char *kernel,
                                       uint32_t plan_flags, moi_plan **out) {
  moi_attention_desc d = o->desc;
  d.struct_size = sizeof d;
  d.max_rows = o->n_rows ? o->n_rows : 1;
  d.max_seqs = o->n_seqs ? o->n_seqs : 1;
  d.kernel = kernel;
  d.plan_flags |= plan_flags;
  return moi_attention_plan(context, &d, out);
}

moi_status moi_attention_operands_run(const moi_attention_operands *o, const moi_plan *plan,
                                      const moi_attention_outputs *outputs, moi_buffer workspace) {
  moi_queue queue = {NULL};
  moi_mirror *m = NULL;
  moi_status status;
  moi_device *device = moi_device_of(plan->context, &status);
  if (device) status = moi_mirror_begin(device, &m);
  if (status) return status;
  if (m) queue = moi_mirror_queue(m);
  moi_kv_cache cache = o->cache;
  moi_kv_append_args append = o->append;
  moi_attention_merge_args merge = o->merge;
  moi_attention_args args = o->args;
  if (o->task == MOI_RIG_APPEND) cache.k = outputs->k, cache.v = outputs->v;
  append.cache = &cache;
  args.cache = args.cache ? &cache : NULL;
  merge.output = args.output = outputs->output;
  merge.lse = args.lse = outputs->lse;
  if (m) {
    moi_buffer *attending[] = {&args.q, &args.output, &args.lse, &args.sinks, &args.q_offsets, &args.kv_lens,
                               &args.q_start, &args.kv_begin, &workspace};
    moi_buffer *appending[] = {&append.k, &append.v, &append.q_offsets, &append.kv_lens, &append.q_start};
    moi_buffer *merging[] = {&merge.parts, &merge.part_lse, &merge.output, &merge.lse};
    moi_buffer **views = o->task == MOI_RIG_APPEND ? appending : o->task == MOI_RIG_MERGE ? merging : attending;
    size_t n = o->task == MOI_RIG_APPEND ? 5 : o->task == MOI_RIG_MERGE ? 4 : 9;
    for (size_t i = 0; i < n; i++) *views[i] = moi_mirror_view(m, *views[i]);
    if (o->task != MOI_RIG_MERGE) moi_mirror_cache(m, &cache);
  }
  status = o->task == MOI_RIG_APPEND  ? moi_kv_append_run(plan, &append, queue)
           : o->task == MOI_RIG_MERGE ? moi_attention_merge_run(plan, &merge, queue)
                                      : moi_attention_run(plan, &args, workspace, queue);
  return m ? moi_mirror_end(m, status) : status;
}

/* ---- results that the rig knows itself */

static void append_expected(const moi_attention_operands *o, const moi_attention_outputs *out) {
  const moi_attention_desc *d = &o->desc;
  const moi_kv_append_args *p = &o->append;
  float x[MAX_DIM];
  for (uint32_t s = 0; s < o->n_seqs; s++) {
    uint32_t first, rows = rows_of(o, s, &first);
    int64_t position = position_of(o, s);
    for (uint32_t r = 0; r < rows; r++)
      for (uint32_t h = 0; h < d->n_kv_heads; h++)
        for (int values = 0; values < (v_in_k(d) ? 1 : 2); values++) {
          uint32_t dim = values ? v_dim(d) : d->head_dim, head = dim + o->stride_extra;
          uint32_t row = d->n_kv_heads * head + o->stride_extra;
          uint8_t *to = place(o, values ? out->v.ptr : out->k.ptr, values, s, position + r, h);
          if (!to) continue;
          for (uint32_t i = 0; i < dim; i++)
            x[i] =
                moi_dense_load(input_type(d), values ? p->v.ptr : p->k.ptr, (size_t)(first + r) * row + h * head + i);
          moi_kv_encode(values ? v_format(d) : k_format(d), x, dim,
                        scale_of(values ? o->cache.v_scale : o->cache.k_scale, h), to);
        }
  }
}

static void merge_expected(const moi_attention_operands *o, const moi_attention_outputs *out) {
  const moi_attention_desc *d = &o->desc;
  const float *lse = o->merge.part_lse.ptr, *parts = o->merge.parts.ptr;
  size_t step = (size_t)o->n_rows * d->n_heads;
  for (uint32_t row = 0; row < o->n_rows; row++)
    for (uint32_t head = 0; head < d->n_heads; head++) {
      size_t at = (size_t)row * d->n_heads + head;
      double sum = 0, most = -INFINITY;
      for (uint32_t i = 0; i < o->parts; i++) most = fmax(most, lse[i * step + at]);
      for (uint32_t i = 0; i < o->parts; i++) sum += most == -INFINITY ? 0 : exp(lse[i * step + at] - most);
      if (out->lse.ptr) ((float *)out->lse.ptr)[at] = (float)(sum > 0 ? most + log(sum) : -INFINITY);
      for (uint32_t j = 0; j < v_dim(d); j++) {
        double y = 0;
        for (uint32_t i = 0; i < o->parts; i++)
          if (lse[i * step + at] > -INFINITY)
            y += exp(lse[i * step + at] - most) / sum * parts[(i * step + at) * v_dim(d) + j];
        moi_dense_store(output_type(d), out->output.ptr, (size_t)row * output_stride(o) + head * v_dim(d) + j,
                        (float)y);
      }
    }
}

void moi_attention_expected(const moi_attention_operands *o, const moi_attention_outputs *outputs) {
  if (o->task == MOI_RIG_APPEND) append_expected(o, outputs);
  else merge_expected(o, outputs);
}

/* ---- comparing */

static void complain(moi_verdict *v, const char *what, size_t at, double got, double wanted) {
  if (!v->ok) return;
  v->ok = 0;
  snprintf(v->text, sizeof v->text, "%s %zu: %.9g, wanted is %.9g", what, at, got, wanted);
}

static void same_bytes(moi_verdict *v, const char *what, moi_buffer a, moi_buffer b) {
  for (size_t i = 0; a.ptr && i < a.size; i++)
    if (((const uint8_t *)a.ptr)[i] != ((const uint8_t *)b.ptr)[i]) {
      complain(v, what, i, ((const uint8_t *)a.ptr)[i], ((const uint8_t *)b.ptr)[i]);
      return;
    }
}

/* The rows without what lies between them, a head of a row after another. */
static void *dense_heads(const moi_attention_operands *o, moi_buffer output) {
  size_t element = moi_element_bytes(output_type(&o->desc)), width = o->desc.n_heads * v_dim(&o->desc) * element;
  uint8_t *p = malloc(o->n_rows * width + 1);
  if (!p) exit(3);
  for (uint32_t r = 0; r < o->n_rows; r++)
    memcpy(p + r * width, (const uint8_t *)output.ptr + r * element * output_stride(o), width);
  return p;
}

static void compare_lse(const moi_attention_operands *o, double e, moi_buffer result, moi_buffer reference,
                        moi_verdict *v) {
  const float *y = result.ptr, *x = reference.ptr;
  for (size_t i = 0; y && i < (size_t)o->n_rows * o->desc.n_heads; i++) {
    double bound = 12 * e + 0x1p-22 * fabs(x[i]);
    if (isnan(x[i]) ? !isnan(y[i]) : isinf(x[i]) ? y[i] != x[i] : !(fabs((double)y[i] - (double)x[i]) <= bound))
      complain(v, "lse", i, y[i], x[i]);
  }
}

moi_verdict moi_attention_compare(const moi_attention_operands *o, const char *kernel,
                                  const moi_attention_outputs *result, const moi_attention_outputs *reference) {
  moi_verdict v = {.ok = 1};
  const moi_attention_desc *d = &o->desc;
  if (o->task == MOI_RIG_APPEND) {
    same_bytes(&v, "k: byte", result->k, reference->k);
    same_bytes(&v, "v: byte", result->v, reference->v);
    return v;
  }
  uint32_t most = 0;
  uint64_t seen = o->task == MOI_RIG_MERGE ? 1 : moi_attention_seen(o, NULL, &most);
  int64_t last = 0;
  for (uint32_t s = 0; s < o->n_seqs; s++) {
    int64_t p = o->task == MOI_RIG_MERGE ? 0 : position_of(o, s) + o->sequences[s].rows;
    last = p > last ? p : last;
  }
  moi_error error = {0x1p-22, 0};
  if (o->task == MOI_RIG_ATTEND)
    error = moi_attention_error(kernel, d, o->logits > 0 ? o->logits : 2, most, (uint64_t)last);
  void *y = dense_heads(o, result->output), *x = dense_heads(o, reference->output);
  for (size_t i = 0; i < (size_t)o->n_rows * d->n_heads * v_dim(d) && !o->nan; i++)
    if (!isfinite(moi_dense_load(output_type(d), x, i))) /* what nobody may read is NaN */
      complain(&v, "the reference, element", i, moi_dense_load(output_type(d), x, i), 0);
  uint32_t rows = o->n_rows * d->n_heads;
  moi_matrix_view a = {output_type(d), y, rows, v_dim(d), v_dim(d)}, b = {output_type(d), x, rows, v_dim(d), v_dim(d)};
  if (v.ok) v = moi_compare(&a, &b, error, seen && o->n_rows && !o->holes && !o->hostile);
  free(y);
  free(x);
  compare_lse(o, error.e, result->lse, reference->lse, &v);
  size_t element = moi_element_bytes(output_type(d)), width = d->n_heads * v_dim(d) * element;
  for (uint32_t r = 0; r + 1 < o->n_rows; r++)
    for (size_t i = width; i < output_stride(o) * element; i++) {
      size_t at = r * element * output_stride(o) + i;
      if (((const uint8_t *)result->output.ptr)[at] != MOI_POISON)
        complain(&v, "wrote between rows of the output, byte", at, ((const uint8_t *)result->output.ptr)[at],
                 MOI_POISON);
    }
  return v;
}

static int same(moi_buffer a, moi_buffer b) { return !a.ptr || !memcmp(a.ptr, b.ptr, a.size); }

int moi_attention_same_bits(const moi_attention_outputs *a, const moi_attention_outputs *b) {
  return same(a->output, b->output) && same(a->lse, b->lse) && same(a->k, b->k) && same(a->v, b->v);
}

/* ---- one row */

int moi_attention_row(const moi_attention_operands *o, uint32_t row, moi_arena *arena, moi_attention_operands *out) {
  const moi_attention_desc *d = &o->desc;
  uint32_t s = 0, first = 0, rows = 0;
  for (; s < o->n_seqs; s++) {
    rows = rows_of(o, s, &first);
    if (row >= first && row < first + rows) break;
  }
  if (s == o->n_seqs) return 0;
  *out = *o;
  out->n_seqs = out->n_rows = 1;
  out->strays = out->hostile = 0;
  out->has_start = 1;
  out->sequences[0] = o->sequences[s];
  out->sequences[0].rows = 1;
  out->sequences[0].start = (int32_t)(position_of(o, s) + (row - first));
  moi_attention_args *a = &out->args;
  moi_kv_cache *c = &out->cache;
  make_sequences(arena, out);
  a->cache = c;
  size_t stride = a->q_stride ? a->q_stride : d->n_heads * (size_t)d->head_dim;
  a->q.offset += row * stride * moi_element_bytes(input_type(d));
  a->q.size -= row * stride * moi_element_bytes(input_type(d));
  if (c->page_table.ptr) {
    c->page_table.ptr = (int32_t *)c->page_table.ptr + (uint64_t)s * c->page_table_stride;
    c->page_table.size = (uint64_t)c->page_table_stride * 4;
  } else {
    moi_buffer start = moi_arena_view(arena, 4, 4, "start");
    *(int32_t *)start.ptr = c->start.ptr ? ((const int32_t *)c->start.ptr)[s] : (int32_t)(s * d->max_kv);
    c->start = start;
  }
  return 1;
}

int moi_attention_same_row(const moi_attention_operands *o, uint32_t row, const moi_attention_outputs *whole,
                           const moi_attention_outputs *single) {
  size_t element = moi_element_bytes(output_type(&o->desc)), heads = o->desc.n_heads;
  const uint8_t *y = (const uint8_t *)whole->output.ptr + row * element * output_stride(o);
  if (memcmp(y, single->output.ptr, heads * v_dim(&o->desc) * element)) return 0;
  return !whole->lse.ptr || !memcmp((const float *)whole->lse.ptr + row * heads, single->lse.ptr, heads * 4);
}
