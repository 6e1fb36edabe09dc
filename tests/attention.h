/* What the attention tests share: sequences whose every number is known by sequence, position, head and element, caches of
 * any layout in guarded memory, a run of them, and the formula of moiety.h in double over what lies in the cache. */
#ifndef MOI_TESTS_ATTENTION_H
#define MOI_TESTS_ATTENTION_H

#include "support.h"

#include <math.h>

#include "bench/rig/arena.h"
#include "bench/rig/encode.h"
#include "bench/rig/random.h"

enum { MAX_SEQS = 8, MAX_TABLE = 64, MAX_HEADS = 16 };

/* How a cache lies in memory. All 0: contiguous, [token, head, element], `start` absent. */
typedef struct layout {
  uint32_t page_size;
  int shuffled;    /* pages, or the places of the sequences in a contiguous cache */
  int heads_first; /* [page, head, token, element] */
  uint32_t gap;    /* bytes between everything, a multiple of 4 */
  int one_buffer;  /* k and v of a token and head beside each other */
} layout;

/* A call. Row r of sequence s is position start[s] + r, whose q, like every k and v, is drawn by id[s], position, head and
 * element: the same sequence has the same numbers wherever it stands and however it is cut into calls. */
typedef struct world {
  moi_attention_desc desc; /* max_rows, max_seqs, max_kv and page_size too */
  uint32_t n_rows, n_seqs;
  int32_t offsets[MAX_SEQS + 1], lens[MAX_SEQS], start[MAX_SEQS], begin[MAX_SEQS];
  int has_start, has_begin; /* absent if 0 */
  uint32_t id[MAX_SEQS];
  uint64_t seed;
  layout layout;
  uint8_t fill;          /* what the cache holds where no key is: every byte */
  uint32_t repeat_heads; /* KV head h is drawn as h / repeat_heads; 0: 1 */
  float v_gain;          /* 0: 1 */
  float sinks[MAX_HEADS], k_scale[MAX_HEADS], v_scale[MAX_HEADS];
  int has_k_scale, has_v_scale;
  uint32_t stride_extra; /* elements after rows of q and output, and after heads of q */
} world;

typedef struct engine {
  const world *w;
  moi_arena arena;
  moi_attention_desc desc; /* defaults resolved */
  moi_kv_cache cache, where; /* where: strides resolved, for cache_at */
  moi_attention_args args;
  int32_t *table;
  float *y, *lse; /* of the last run: [n_rows, n_heads, v_head_dim], [n_rows, n_heads] */
  double *want;   /* engine_check's: for each row and head v_head_dim values, lse, largest |v|, error; NULL: not yet */
  char kernel[128];
} engine;

/* q: which = 0, k: 1, v: 2. Eight bits of a number are enough, so that bf16 holds it. */
static inline float number(const world *w, int which, uint32_t seq, int64_t position, uint32_t head, uint32_t i) {
  uint64_t at = (((uint64_t)w->id[seq] << 24 | (uint64_t)(position & 0xffffff)) << 8 | head) << 12 | i;
  float x = moi_random_normal(w->seed * 4 + (uint64_t)which, at) * (which == 0 ? 2.0f : 1.0f);
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits &= 0xffff0000u;
  memcpy(&x, &bits, 4);
  return which == 2 && w->v_gain != 0 ? x * w->v_gain : x;
}

static inline uint64_t row_bytes(moi_format format, uint32_t dim) {
  moi_format_sizes sizes;
  assert_int_equal(moi_format_size(format, 1, dim, &sizes), MOI_OK);
  return sizes.data;
}

static inline void encode_row(moi_format format, const float *x, uint32_t dim, void *to) {
  moi_streams s = {to, NULL, NULL};
  (void)moi_encode(format, x, 1, dim, s);
}

/* Key (value) j of sequence s and KV head h in the cache; NULL where the cache has no such place. */
static inline uint8_t *cache_at(const engine *e, int values, uint32_t s, int64_t j, uint32_t h) {
  const moi_kv_cache *c = &e->where;
  const moi_attention_desc *d = &e->desc;
  if (d->flags & MOI_ATTENTION_V_IN_K) values = 0;
  uint64_t token_stride = values ? c->v_token_stride : c->k_token_stride;
  uint64_t head_stride = values ? c->v_head_stride : c->k_head_stride;
  uint64_t page_stride = values ? c->v_page_stride : c->k_page_stride;
  uint8_t *base = values ? c->v.ptr : c->k.ptr;
  int64_t page = 0, token = j;
  if (d->page_size) {
    page = e->table[s * c->page_table_stride + (uint64_t)j / d->page_size];
    token = j % d->page_size;
    if (page < 0 || page >= c->capacity) return NULL;
  } else {
    token += c->start.ptr ? ((int32_t *)c->start.ptr)[s] : (int64_t)s * d->max_kv;
    if (token < 0 || token >= c->capacity) return NULL;
  }
  return base + (uint64_t)page * page_stride + (uint64_t)token * token_stride + h * head_stride;
}

/* How many keys of a sequence count. */
static inline int64_t keys_of(const engine *e, uint32_t s) {
  int64_t most = e->desc.max_kv, n = e->w->lens[s];
  if (e->desc.page_size && (int64_t)e->where.page_table_stride * e->desc.page_size < most)
    most = (int64_t)e->where.page_table_stride * e->desc.page_size;
  return n < 0 ? 0 : n > most ? most : n;
}

static inline void make_strides(const layout *l, uint32_t heads, uint32_t tokens, uint64_t row, uint64_t *token,
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

static inline void make_cache(engine *e) {
  const world *w = e->w;
  const moi_attention_desc *d = &e->desc;
  const layout *l = &w->layout;
  moi_kv_cache *c = &e->cache;
  int v_in_k = (d->flags & MOI_ATTENTION_V_IN_K) != 0;
  *c = (moi_kv_cache)MOI_KV_CACHE_INIT;
  uint32_t entries = d->page_size ? (d->max_kv - 1) / d->page_size + 1 : 0;
  c->capacity = d->page_size ? d->max_seqs * entries + 1 : d->max_seqs * d->max_kv;
  uint32_t tokens = d->page_size ? d->page_size : c->capacity, pages = d->page_size ? c->capacity : 1;
  uint64_t k_row = row_bytes(d->k_format, d->head_dim), v_row = v_in_k ? 0 : row_bytes(d->v_format, d->v_head_dim);
  moi_kv_cache *at = &e->where;
  *at = *c;
  make_strides(l, d->n_kv_heads, tokens, l->one_buffer ? k_row + v_row : k_row, &at->k_token_stride, &at->k_head_stride,
               &at->k_page_stride);
  make_strides(l, d->n_kv_heads, tokens, l->one_buffer ? k_row + v_row : v_row, &at->v_token_stride, &at->v_head_stride,
               &at->v_page_stride);
  uint64_t k_end = (pages - 1) * at->k_page_stride + (tokens - 1) * at->k_token_stride +
                   (d->n_kv_heads - 1) * at->k_head_stride + k_row;
  uint64_t v_end = v_in_k ? 0 : k_end - k_row + v_row;
  if (!l->one_buffer)
    v_end = (pages - 1) * at->v_page_stride + (tokens - 1) * at->v_token_stride +
            (d->n_kv_heads - 1) * at->v_head_stride + v_row;
  if (l->one_buffer) {
    uint8_t *p = moi_arena_take(&e->arena, k_end + v_row, 4, "k and v");
    memset(p, w->fill, k_end + v_row);
    c->k = moi_ptr(p, k_end);
    if (!v_in_k) c->v = moi_ptr(p + k_row, v_end);
  } else {
    c->k = moi_arena_view(&e->arena, k_end, 4, "k");
    memset(c->k.ptr, w->fill, k_end);
    if (!v_in_k) {
      c->v = moi_arena_view(&e->arena, v_end, 4, "v");
      memset(c->v.ptr, w->fill, v_end);
    }
  }
  if (d->page_size) {
    c->page_table = moi_arena_view(&e->arena, (uint64_t)w->n_seqs * entries * 4, 4, "page table");
    e->table = c->page_table.ptr;
    uint32_t step = 1;
    if (l->shuffled) /* near the middle, prime to the capacity */
      for (step = c->capacity / 2 + 1;; step++) {
        uint32_t a = step, b = c->capacity;
        while (b) {
          uint32_t r = a % b;
          a = b, b = r;
        }
        if (a == 1) break;
      }
    for (uint32_t s = 0; s < w->n_seqs; s++)
      for (uint32_t i = 0; i < entries; i++)
        e->table[s * entries + i] = (int32_t)((uint64_t)(w->id[s] % d->max_seqs * entries + i) * step % c->capacity);
  } else if (l->shuffled) {
    c->start = moi_arena_view(&e->arena, w->n_seqs * 4, 4, "start");
    for (uint32_t s = 0; s < w->n_seqs; s++)
      ((int32_t *)c->start.ptr)[s] = (int32_t)((w->id[s] * 5 + 1) % d->max_seqs * d->max_kv);
  }
  at->k = c->k;
  at->v = c->v;
  at->start = c->start;
  at->page_table_stride = entries;
  int dense = !l->heads_first && !l->gap && !l->one_buffer;
  if (!dense) { /* the dense case leaves the defaults to the library */
    c->k_token_stride = at->k_token_stride, c->k_head_stride = at->k_head_stride, c->k_page_stride = at->k_page_stride;
    c->v_token_stride = at->v_token_stride, c->v_head_stride = at->v_head_stride, c->v_page_stride = at->v_page_stride;
  }
  if (w->has_k_scale) {
    c->k_scale = moi_arena_view(&e->arena, d->n_kv_heads * 4, 4, "k_scale");
    memcpy(c->k_scale.ptr, w->k_scale, d->n_kv_heads * 4);
  }
  if (w->has_v_scale) {
    c->v_scale = moi_arena_view(&e->arena, d->n_kv_heads * 4, 4, "v_scale");
    memcpy(c->v_scale.ptr, w->v_scale, d->n_kv_heads * 4);
  }
}

/* Key (value) j of a sequence as numbers, divided by the cache's scale, if it has one. */
static inline void draw_row(const engine *e, int values, uint32_t s, int64_t j, uint32_t h, float *x) {
  const world *w = e->w;
  uint32_t n = values ? e->desc.v_head_dim : e->desc.head_dim;
  for (uint32_t i = 0; i < n; i++) {
    x[i] = number(w, values ? 2 : 1, s, j, w->repeat_heads ? h / w->repeat_heads : h, i);
    if (values ? w->has_v_scale : w->has_k_scale) x[i] /= values ? w->v_scale[h] : w->k_scale[h];
  }
}

/* Writes the keys 0..len-1 of every sequence. */
static inline void fill_cache(engine *e) {
  float x[1024];
  for (uint32_t s = 0; s < e->w->n_seqs; s++)
    for (int64_t j = 0; j < keys_of(e, s); j++)
      for (uint32_t h = 0; h < e->desc.n_kv_heads; h++)
        for (int values = 0; values < 2; values++) {
          if (values && e->desc.flags & MOI_ATTENTION_V_IN_K) continue;
          uint8_t *to = cache_at(e, values, s, j, h);
          if (!to) continue;
          draw_row(e, values, s, j, h, x);
          encode_row(values ? e->desc.v_format : e->desc.k_format, x, values ? e->desc.v_head_dim : e->desc.head_dim, to);
        }
}

/* Sequence and position of a row; -1: of no sequence. Offsets are clamped to what is before them and to n_rows. */
static inline int seq_of(const engine *e, uint32_t row, int64_t *position) {
  const world *w = e->w;
  int64_t begin = 0;
  for (uint32_t s = 0; s < w->n_seqs; s++) {
    int64_t from = w->offsets[s], to = w->offsets[s + 1];
    if (s == 0) begin = from < 0 ? 0 : from > w->n_rows ? w->n_rows : from;
    int64_t end = to < begin ? begin : to > w->n_rows ? w->n_rows : to;
    if (row >= begin && row < end) {
      *position = (w->has_start ? w->start[s] : keys_of(e, s) - (end - begin)) + (row - begin);
      return (int)s;
    }
    begin = end;
  }
  return -1;
}

static inline moi_buffer guarded(engine *e, const void *from, size_t size, const char *name) {
  moi_buffer b = moi_arena_view(&e->arena, size, 4, name);
  memcpy(b.ptr, from, size);
  return b;
}

static inline void engine_make(engine *e, const world *w) {
  memset(e, 0, sizeof *e);
  e->w = w;
  e->arena.flags = MOI_ARENA_GUARD;
  moi_attention_desc *d = &e->desc;
  *d = w->desc;
  d->page_size = w->layout.page_size;
  if (!d->v_head_dim) d->v_head_dim = d->head_dim;
  if (!d->k_format) d->k_format = MOI_FORMAT_F32;
  if (!d->v_format) d->v_format = d->k_format;
  if (!d->input_type) d->input_type = MOI_FORMAT_F32;
  if (!d->output_type) d->output_type = MOI_FORMAT_F32;
  assert_true(w->n_seqs <= MAX_SEQS && d->max_seqs <= MAX_SEQS && d->n_heads <= MAX_HEADS);
  make_cache(e);
  fill_cache(e);

  moi_attention_args *a = &e->args;
  *a = (moi_attention_args)MOI_ATTENTION_ARGS_INIT;
  a->n_rows = w->n_rows;
  a->n_seqs = w->n_seqs;
  uint32_t extra = w->stride_extra, q_head = d->head_dim + extra, q_row = d->n_heads * q_head + extra;
  uint32_t out_row = d->n_heads * d->v_head_dim + extra;
  if (extra) a->q_head_stride = q_head, a->q_stride = q_row, a->output_stride = out_row;
  uint64_t in = row_bytes(d->input_type, 1), out = row_bytes(d->output_type, 1);
  uint64_t q_size = w->n_rows ? ((w->n_rows - 1) * (uint64_t)q_row + (d->n_heads - 1) * (uint64_t)q_head + d->head_dim) * in : 0;
  uint64_t y_size = w->n_rows ? ((w->n_rows - 1) * (uint64_t)out_row + d->n_heads * d->v_head_dim) * out : 0;
  a->q = moi_arena_view(&e->arena, q_size, in, "q");
  memset(a->q.ptr, 0xff, q_size);
  for (uint32_t r = 0; r < w->n_rows; r++) {
    int64_t position = 0;
    int s = seq_of(e, r, &position);
    float x[1024] = {0};
    for (uint32_t h = 0; h < d->n_heads; h++) {
      for (uint32_t i = 0; i < d->head_dim && s >= 0; i++) x[i] = number(w, 0, (uint32_t)s, position, h, i);
      encode_row(d->input_type, x, d->head_dim, (uint8_t *)a->q.ptr + ((uint64_t)r * q_row + h * q_head) * in);
    }
  }
  a->output = moi_arena_view(&e->arena, y_size, out, "output");
  a->lse = moi_arena_view(&e->arena, (uint64_t)w->n_rows * d->n_heads * 4, 4, "lse");
  if (d->flags & MOI_ATTENTION_SINKS) a->sinks = guarded(e, w->sinks, d->n_heads * 4, "sinks");
  if (w->n_seqs) {
    a->q_offsets = guarded(e, w->offsets, (w->n_seqs + 1) * 4, "q_offsets");
    a->kv_lens = guarded(e, w->lens, w->n_seqs * 4, "kv_lens");
    if (w->has_start) a->q_start = guarded(e, w->start, w->n_seqs * 4, "q_start");
    if (w->has_begin) a->kv_begin = guarded(e, w->begin, w->n_seqs * 4, "kv_begin");
  }
  a->cache = &e->cache;
  e->y = malloc((size_t)w->n_rows * d->n_heads * d->v_head_dim * 4 + 4);
  e->lse = malloc((size_t)w->n_rows * d->n_heads * 4 + 4);
  assert_true(e->y && e->lse);
}

static inline void engine_free(engine *e) {
  free(e->y);
  free(e->lse);
  free(e->want);
  moi_arena_free(&e->arena);
  memset(e, 0, sizeof *e);
}

/* Runs with a poisoned output and a guarded workspace. 0: the kernel does not serve this plan. */
static inline int engine_run(engine *e, moi_context *context, const char *kernel, uint32_t plan_flags) {
  const moi_attention_desc *d = &e->desc;
  moi_attention_args *a = &e->args;
  moi_attention_desc desc = e->w->desc;
  desc.page_size = d->page_size;
  desc.kernel = kernel;
  desc.plan_flags |= plan_flags;
  moi_plan *plan = NULL;
  moi_status status = moi_attention_plan(context, &desc, &plan);
  if (status == MOI_UNSUPPORTED && kernel) return 0;
  if (status) fail_msg("%s", moi_last_error());
  snprintf(e->kernel, sizeof e->kernel, "%s", moi_plan_kernel(plan));
  size_t align = 1, size = moi_plan_workspace(plan, &align);
  moi_arena work = {.flags = MOI_ARENA_GUARD};
  moi_buffer workspace = size ? moi_arena_view(&work, size, align, "workspace") : moi_ptr(NULL, 0);
  if (size) memset(workspace.ptr, 0xff, size);
  if (a->output.size) moi_poison(a->output);
  if (a->lse.size) moi_poison(a->lse);
  status = moi_attention_run(plan, a, workspace, no_queue);
  if (status) fail_msg("%s: %s", e->kernel, moi_last_error());
  long long offset = 0;
  const char *hit = moi_arena_damage(&e->arena, &offset);
  if (!hit) hit = moi_arena_damage(&work, &offset);
  if (hit) fail_msg("%s: wrote to %s at %lld", e->kernel, hit, offset);
  moi_arena_free(&work);
  moi_plan_destroy(plan);
  uint32_t width = d->n_heads * d->v_head_dim, stride = a->output_stride ? a->output_stride : width;
  uint64_t out = row_bytes(d->output_type, 1);
  moi_streams streams = {a->output.ptr, NULL, NULL};
  for (uint32_t r = 0; r < a->n_rows; r++) {
    for (uint32_t i = 0; i < width; i++)
      e->y[(size_t)r * width + i] = moi_decode(d->output_type, streams, 1, 0, r * stride + i, 1, a->n_rows * stride);
    for (uint64_t i = width * out; i < stride * out && r + 1 < a->n_rows; i++) /* between rows nothing is written */
      assert_int_equal(((uint8_t *)a->output.ptr)[r * stride * out + i], MOI_POISON);
  }
  if (a->lse.ptr) memcpy(e->lse, a->lse.ptr, (size_t)a->n_rows * d->n_heads * 4);
  return 1;
}

/* A row of a cache as numbers; zeros where there is none. */
static inline void decode_row(moi_format format, uint8_t *row, uint32_t dim, float *x) {
  moi_streams in = {row, NULL, NULL};
  if (!row) memset(x, 0, dim * sizeof *x);
  else if (format == MOI_FORMAT_F32) memcpy(x, row, dim * sizeof *x);
  else
    for (uint32_t i = 0; i < dim; i++) x[i] = moi_decode(format, in, 1, 0, i, 1, dim);
}

/* 1 if position p of sequence s sees key j. */
static inline int sees(const engine *e, uint32_t s, int64_t p, int64_t j) {
  const moi_attention_desc *d = &e->desc;
  if (j < 0 || j >= keys_of(e, s) || (e->w->has_begin && j < e->w->begin[s])) return 0;
  if (d->mask == MOI_MASK_CAUSAL && j > p) return 0;
  if (d->window && j <= p - (int64_t)d->window) return 0;
  return !d->chunk || (p >= 0 && j / d->chunk == p / d->chunk);
}

/* What one row and head must be. Returns the error that fp32 arithmetic may make, relative to the largest |v|. */
static inline double exact(const engine *e, uint32_t row, uint32_t head, double *y, double *lse, double *largest_v) {
  const world *w = e->w;
  const moi_attention_desc *d = &e->desc;
  uint32_t kv_head = head / (d->n_heads / d->n_kv_heads);
  double scale = d->scale != 0 ? (double)d->scale : 1 / sqrt((double)d->head_dim), sum = 0, most = -INFINITY, size = 0;
  double ks = w->has_k_scale ? (double)w->k_scale[kv_head] : 1, vs = w->has_v_scale ? (double)w->v_scale[kv_head] : 1;
  for (uint32_t i = 0; i < d->v_head_dim; i++) y[i] = 0;
  *lse = -INFINITY;
  *largest_v = 0;
  int64_t p = 0;
  int s = seq_of(e, row, &p);
  if (s < 0) return 0;
  if (d->flags & MOI_ATTENTION_SINKS) most = (double)w->sinks[head], sum = most == -INFINITY ? 0 : 1;
  double tau = 1;
  if (d->temperature != 0 && p >= 0) tau += (double)d->temperature * log(1 + (double)((p + 1) / d->temperature_floor));
  int64_t n = keys_of(e, (uint32_t)s);
  static float q[1024], x[1024];
  uint64_t in = row_bytes(d->input_type, 1);
  uint32_t q_head = d->head_dim + w->stride_extra, q_row = d->n_heads * q_head + w->stride_extra;
  moi_streams from = {(uint8_t *)e->args.q.ptr + ((uint64_t)row * q_row + head * q_head) * in, NULL, NULL};
  for (uint32_t i = 0; i < d->head_dim; i++) q[i] = moi_decode(d->input_type, from, 1, 0, i, 1, d->head_dim);
  for (int64_t j = 0; j < n; j++) {
    if (!sees(e, (uint32_t)s, p, j)) continue;
    int v_in_k = (d->flags & MOI_ATTENTION_V_IN_K) != 0;
    double l = 0, parts = 0;
    decode_row(d->k_format, cache_at(e, 0, (uint32_t)s, j, kv_head), d->head_dim, x);
    for (uint32_t i = 0; i < d->head_dim; i++) l += (double)q[i] * (double)x[i], parts += fabs((double)q[i] * (double)x[i]);
    size = fmax(size, parts * fabs(scale * tau * ks));
    l *= scale * tau * ks;
    if (d->softcap > 0) l = (double)d->softcap * tanh(l / (double)d->softcap);
    if (l > most || most == -INFINITY) {
      double shrink = most == -INFINITY ? 0 : exp(most - l);
      sum *= shrink;
      for (uint32_t i = 0; i < d->v_head_dim; i++) y[i] *= shrink;
      most = l;
    }
    double weight = exp(l - most);
    sum += weight;
    if (!v_in_k) decode_row(d->v_format, cache_at(e, 1, (uint32_t)s, j, kv_head), d->v_head_dim, x);
    for (uint32_t i = 0; i < d->v_head_dim; i++) {
      y[i] += weight * (double)x[i];
      *largest_v = fmax(*largest_v, fabs((double)x[i] * vs));
    }
  }
  for (uint32_t i = 0; i < d->v_head_dim; i++) y[i] = sum > 0 ? y[i] * vs / sum : 0;
  if (sum > 0) *lse = most + log(sum);
  /* a dot product of n terms in fp32: 4 sqrt(n) 2^-24 of the sum of their sizes; exp and tanh: 2^-20 */
  return expm1(2 * size * 4 * sqrt((double)d->head_dim) * 0x1p-24) + 0x1p-19;
}

/* Holds every row to `exact`, which is computed once for an engine. */
static inline void engine_check(engine *e, const char *what) {
  const moi_attention_desc *d = &e->desc;
  size_t dim = d->v_head_dim, each = dim + 3;
  if (!e->want) {
    e->want = malloc((size_t)e->w->n_rows * d->n_heads * each * sizeof *e->want + 8);
    assert_non_null(e->want);
    for (uint32_t r = 0; r < e->w->n_rows; r++)
      for (uint32_t h = 0; h < d->n_heads; h++) {
        double *y = e->want + ((size_t)r * d->n_heads + h) * each;
        y[dim + 2] = exact(e, r, h, y, &y[dim], &y[dim + 1]);
      }
  }
  int bf16 = strstr(e->kernel, "bf16") != NULL; /* may round exp(l) to bf16 */
  double type = d->output_type == MOI_FORMAT_BF16 ? 0x1p-8 : d->output_type == MOI_FORMAT_F16 ? 0x1p-11 : 0x1p-24;
  for (uint32_t r = 0; r < e->w->n_rows; r++)
    for (uint32_t h = 0; h < d->n_heads; h++) {
      const double *y = e->want + ((size_t)r * d->n_heads + h) * each;
      double lse = y[dim], v = y[dim + 1], error = y[dim + 2] + (bf16 ? 0x1p-8 : 0);
      const float *got = e->y + ((size_t)r * d->n_heads + h) * dim;
      double got_lse = (double)e->lse[(size_t)r * d->n_heads + h];
      for (size_t i = 0; i < dim; i++)
        if (!(fabs((double)got[i] - y[i]) <= error * v + type * fabs(y[i]) + (type > 0x1p-20 ? 0x1p-24 : 0)))
          fail_msg("%s, %s, head_dim %u/%u: row %u, head %u: [%zu] = %.9g, wanted %.9g +- %.2g", what, e->kernel,
                   d->head_dim, d->v_head_dim, r, h, i, (double)got[i], y[i], error * v);
      if (isinf(lse) ? got_lse != lse : !(fabs(got_lse - lse) <= error * (1 + fabs(lse))))
        fail_msg("%s, %s, head_dim %u/%u: row %u, head %u: lse %.9g, wanted %.9g +- %.2g", what, e->kernel, d->head_dim,
                 d->v_head_dim, r, h, got_lse, lse, error * (1 + fabs(lse)));
    }
}

/* Every attention row of the list that this machine runs; the first, NULL, is the chosen one. */
static inline uint32_t attention_kernels(const char *names[16]) {
  uint32_t n = 0;
  names[n++] = NULL;
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  for (uint32_t i = 0; moi_kernel_get(MOI_BACKEND_CPU, i, &info) == MOI_OK; i++)
    if (info.op == MOI_OP_ATTENTION && info.runs_here) {
      assert_true(n < 16);
      names[n++] = info.name;
    }
  assert_true(n > 1);
  return n;
}

#endif
