/* Attention: query rows that share a KV head are packed into blocks, keys are gone through in segments; kernels do the
 * arithmetic (cpu/kernel.h), this file says which rows see which keys, where they lie, and puts segments together. A
 * block of few rows (decode) takes several KV heads where a cache has a token's heads side by side: memory is read
 * fastest in its order.
 *
 * A row's result is a chain: the segments' results, each computed from nothing, merged in ascending order. Whether one
 * worker computes the chain or several share a block's segments, the arithmetic is the same, and so are the bits. */
#include "cpu/kv.h"

#include <stdatomic.h>

#include "cpu/cpu.h"

#define LOG2E 1.44269504088896340736f
#define LN2 0.69314718055994530942

enum { MAX_SEGMENTS = 32, CHUNK = MOI_ATTEND_SEGMENT, BLOCK_BYTES = 512 << 10, FLOATS = 16 };

void moi_cpu_attention_shape(const moi_plan *plan, moi_attention_state *state) {
  const moi_attention_desc *d = &plan->attention;
  uint32_t keys = (d->max_kv + MAX_SEGMENTS - 1) / MAX_SEGMENTS;
  keys = (keys + CHUNK - 1) / CHUNK * CHUNK;
  state->segment = keys > MOI_ATTEND_SEGMENT ? keys : MOI_ATTEND_SEGMENT;
  /* queries and two accumulators of a block are to stay in a second-level cache beside the keys */
  uint32_t row = (MOI_ATTEND_PAD(d->head_dim) + 2 * MOI_ATTEND_PAD(d->v_head_dim)) * 4, rows = BLOCK_BYTES / row;
  uint64_t most = (uint64_t)d->max_rows * d->n_heads;
  rows = rows / 12 * 12;
  rows = rows > MOI_ATTEND_ROWS ? MOI_ATTEND_ROWS : rows < 12 ? 12 : rows;
  state->block_rows = most < rows ? (uint32_t)most : rows;
}

/* What rows have so far: max and sum in units of log2, and the weighted values. */
typedef struct partial {
  float *max, *sum, *acc;
} partial;

/* A worker's memory. */
typedef struct lane {
  void *q;
  float *scale;
  moi_span *spans;
  uint32_t *begin, *end;
  const uint8_t **k, **v;
  const uint8_t **next_k, **next_v; /* [MOI_ATTEND_TILE]: see moi_attend */
  uint32_t next_keys, next_at;
  uint32_t fetched; /* lines of what comes next */
  partial now, chain;
  void *scratch;
} lane;

/* A block whose segments are shared among the workers: each takes one after another, near the order of memory, and
 * whoever finds the next of the chain done merges it. Bit i of `taken` and `done` is the block's i-th segment. */
typedef struct split {
  atomic_uint taken, done, merging;
  uint32_t block, first_segment, n_segments;
  uint32_t merged; /* segments in the chain, parts[0]; of the worker that set `merging` */
  partial *parts;  /* [MAX_SEGMENTS] */
} split;

typedef struct item {
  uint32_t block;
  int32_t split;  /* -1: the whole block */
  uint32_t begin; /* the segment to begin with */
} item;

typedef struct memory {
  moi_seq *seqs;
  uint32_t *first_block; /* [n_seqs + 1]: blocks before a sequence, counted for one KV head */
  lane *lanes;
  split *splits;   /* [n_workers] */
  partial *parts;  /* [n_workers * MAX_SEGMENTS] */
  item *items;     /* [ITEMS(n_workers)] */
} memory;

/* Up to here blocks are few: each is looked at, and long ones are split. */
#define FEW_BLOCKS(n_workers) (4 * (size_t)(n_workers))
#define ITEMS(n_workers) (FEW_BLOCKS(n_workers) + (size_t)(n_workers) * MAX_SEGMENTS)
_Static_assert(MAX_SEGMENTS <= 32, "split has a bit for each");

static partial take_partial(moi_carve *c, uint32_t rows, uint32_t dv) {
  partial p;
  p.max = moi_take(c, rows + FLOATS, 4);
  p.sum = moi_take(c, rows + FLOATS, 4);
  p.acc = moi_take(c, (size_t)rows * MOI_ATTEND_PAD(dv), 4);
  return p;
}

static memory carve(const moi_plan *plan, moi_carve *c) {
  const moi_attention_desc *d = &plan->attention;
  const moi_attention_state *state = &((const moi_cpu_plan *)plan->state)->attention;
  uint32_t workers = plan->context->desc.n_workers, rows = state->block_rows;
  memory m;
  m.seqs = moi_take(c, d->max_seqs, sizeof *m.seqs);
  m.first_block = moi_take(c, (size_t)d->max_seqs + 1, 4);
  m.items = moi_take(c, ITEMS(workers), sizeof *m.items);
  m.lanes = moi_take(c, workers, sizeof *m.lanes);
  for (uint32_t i = 0; i < workers; i++) {
    lane l;
    l.q = moi_take(c, (size_t)rows * MOI_ATTEND_PAD(d->head_dim), 4);
    l.scale = moi_take(c, rows, 4);
    l.spans = moi_take(c, rows, sizeof *l.spans);
    l.begin = moi_take(c, rows, 4);
    l.end = moi_take(c, rows, 4);
    l.k = moi_take(c, CHUNK + MOI_ATTEND_TILE, sizeof *l.k);
    l.v = moi_take(c, CHUNK + MOI_ATTEND_TILE, sizeof *l.v);
    l.next_k = moi_take(c, MOI_ATTEND_TILE, sizeof *l.next_k);
    l.next_v = moi_take(c, MOI_ATTEND_TILE, sizeof *l.next_v);
    l.next_keys = l.next_at = l.fetched = 0;
    l.now = take_partial(c, rows, d->v_head_dim);
    l.chain = take_partial(c, rows, d->v_head_dim);
    l.scratch = moi_take(c, moi_attend_scratch(d->head_dim, d->v_head_dim), 1);
    if (m.lanes) m.lanes[i] = l;
  }
  uint32_t segments = (d->max_kv + state->segment - 1) / state->segment;
  uint32_t splits = workers > 1 && segments > 1 ? workers : 0;
  m.splits = moi_take(c, splits, sizeof *m.splits);
  m.parts = moi_take(c, (size_t)splits * segments, sizeof *m.parts);
  for (uint32_t i = 0; i < splits * segments; i++) {
    partial p = take_partial(c, rows, d->v_head_dim);
    if (m.parts) m.parts[i] = p;
  }
  for (uint32_t i = 0; i < splits && m.splits; i++) m.splits[i].parts = m.parts + (size_t)i * segments;
  return m;
}

void moi_cpu_attention_count(const moi_plan *plan, moi_carve *c) { carve(plan, c); }

typedef struct work {
  const moi_plan *plan;
  const moi_run *run;
  const moi_attention_state *state;
  const moi_elementwise *ew;
  memory m;
  uint32_t group;          /* query heads of a KV head */
  uint32_t heads_together; /* KV heads of a block of few rows, at most */
  uint32_t n_items;
  int listed; /* 0: every block is an item of its own */
  atomic_uint next_item;
} work;

/* A block: for each of its KV heads the rows first .. first + m - 1 of a sequence's rows * group, which are ordered by
 * position, then head. In a lane's memory they follow each other, head after head. */
typedef struct block {
  uint32_t seq, kv_head, n_heads, first, m;
  uint32_t begin, end; /* keys that any of its rows sees */
} block;

/* KV heads that one block of a sequence takes: several if there are few rows and tokens hold their heads side by
 * side. */
static uint32_t heads_of(const work *w, const moi_seq *s) {
  const uint64_t rows = (uint64_t)s->n_rows * w->group;
  if (!rows || rows > w->state->pick.few->m_max) return 1;
  const uint32_t fit = moi_min_u32(MOI_ATTEND_HEADS, w->state->block_rows / (uint32_t)rows);
  return moi_min_u32(w->heads_together, fit ? fit : 1);
}

static block block_at(const work *w, uint32_t index) {
  const moi_attention_desc *d = &w->plan->attention;
  const uint32_t *first = w->m.first_block;
  block b;
  uint32_t low = 0, high = w->run->attention.n_seqs;
  while (high - low > 1) {
    uint32_t middle = low + (high - low) / 2;
    if (first[middle] <= index) low = middle;
    else high = middle;
  }
  b.seq = low;
  const moi_seq *s = &w->m.seqs[b.seq];
  const uint32_t together = heads_of(w, s), n_groups = (d->n_kv_heads + together - 1) / together;
  uint32_t from_last = first[low + 1] - 1 - index; /* the last rows see the most keys: they go first */
  uint32_t rows = s->n_rows * w->group;
  b.kv_head = from_last % n_groups * together;
  b.n_heads = moi_min_u32(together, d->n_kv_heads - b.kv_head);
  b.first = from_last / n_groups * w->state->block_rows;
  b.m = moi_min_u32(w->state->block_rows, rows - b.first);
  b.begin = UINT32_MAX;
  b.end = 0;
  for (uint32_t i = b.first / w->group; i <= (b.first + b.m - 1) / w->group; i++) {
    moi_span span = moi_visible(d, s, (int64_t)s->position + i);
    if (span.begin == span.end) continue;
    if (span.begin < b.begin) b.begin = span.begin;
    if (span.end > b.end) b.end = span.end;
  }
  if (b.begin > b.end) b.begin = b.end;
  return b;
}

static size_t dense(moi_format type) { return type == MOI_FORMAT_F32 ? 4 : 2; }

/* Rows of queries and outputs lie apart where a model has more heads than a block's: hardware foresees them badly. */
enum { ROWS_AHEAD = 6 };

/* Where a row of the block is: a row of the call, and its query head. */
typedef struct place {
  uint32_t at, row, head, in_group;
} place;

static place first_place(const work *w, const block *b) {
  const uint32_t in_group = b->first % w->group;
  return (place){0, w->m.seqs[b->seq].row + b->first / w->group, b->kv_head * w->group + in_group, in_group};
}

static void next_place(const work *w, const block *b, place *p) {
  p->head++;
  if (++p->in_group == w->group) {
    p->in_group = 0;
    p->head -= w->group;
    p->row++;
  }
  if (++p->at % b->m) return;
  const place first = first_place(w, b); /* of the next KV head */
  p->row = first.row;
  p->in_group = first.in_group;
  p->head = first.head + p->at / b->m * w->group;
}

/* The one a few rows on. */
static place place_ahead(const work *w, place p) {
  p.row += (ROWS_AHEAD + w->group - 1) / w->group;
  return p;
}

static const uint8_t *query(const work *w, place p) {
  const moi_attention_args *a = &w->run->attention;
  return (const uint8_t *)moi_view(a->q) + ((size_t)p.row * a->q_stride + (size_t)p.head * a->q_head_stride) *
                                               dense(w->plan->attention.input_type);
}

static uint8_t *output(const work *w, place p) {
  const moi_attention_desc *d = &w->plan->attention;
  const moi_attention_args *a = &w->run->attention;
  return (uint8_t *)moi_view(a->output) +
         ((size_t)p.row * a->output_stride + (size_t)p.head * d->v_head_dim) * dense(d->output_type);
}

/* A block of few rows: all of its queries at once. */
static void fetch_queries(const work *w, const block *b) {
  const moi_attention_desc *d = &w->plan->attention;
  const uint32_t bytes = d->head_dim * (uint32_t)dense(d->input_type);
  place at = first_place(w, b);
  for (; at.at < b->n_heads * b->m; next_place(w, b, &at)) {
    const char *q = (const char *)query(w, at);
    for (uint32_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(q + byte);
  }
}

/* The block's queries in the form of the row that serves it, and what each of them sees. */
static void prepare(const work *w, const block *b, const moi_cpu_kernel *row, lane *l) {
  const moi_attention_desc *d = &w->plan->attention;
  const moi_seq *s = &w->m.seqs[b->seq];
  const uint32_t pad = MOI_ATTEND_PAD(d->head_dim), n = b->n_heads * b->m;
  const uint32_t bytes = d->head_dim * (uint32_t)dense(d->input_type);
  const float *k_scale = moi_view(w->run->cache.k_scale);
  moi_span span = {0, 0};
  double temperature = 1;
  place at = first_place(w, b);
  for (; at.at < n; next_place(w, b, &at)) {
    const uint8_t *q = query(w, at);
    const char *ahead = (const char *)query(w, place_ahead(w, at));
    for (uint32_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(ahead + byte);
    if (row->form == MOI_FORM_BF16) {
      uint16_t *to = (uint16_t *)l->q + (size_t)at.at * pad;
      uint32_t i = 0;
      for (; i + 32 <= d->head_dim; i += 32) memcpy(to + i, q + i * sizeof *to, 32 * sizeof *to);
      memcpy(to + i, q + i * sizeof *to, (d->head_dim - i) * sizeof *to);
      memset(to + d->head_dim, 0, (pad - d->head_dim) * sizeof *to);
    } else {
      float *to = (float *)l->q + (size_t)at.at * pad;
      w->ew->load(d->input_type, q, to, d->head_dim);
      memset(to + d->head_dim, 0, (pad - d->head_dim) * sizeof *to);
    }
    if (!at.in_group || at.at % b->m == 0) {
      const int64_t position = (int64_t)s->position + (at.row - s->row);
      span = moi_visible(d, s, position);
      temperature = moi_temperature(d, position);
    }
    double scale = (double)d->scale * (k_scale ? k_scale[at.head / w->group] : 1) * (d->softcap > 0 ? 1 : LOG2E);
    l->scale[at.at] = (float)(scale * temperature);
    if (at.at < b->m) l->spans[at.at] = span; /* the same for every KV head */
  }
}

/* a cache has fewer bytes in a row than this */
static const uint8_t absent[1024 * 4];

/* Names the rows of keys from .. to - 1 in `out`; 0 if the cache lacks one of them. */
static int rows_of(const moi_kv_head *h, uint32_t from, uint32_t to, const uint8_t **out) {
  int all = 1;
  for (uint32_t j = from; j < to; j++) {
    const uint8_t *row = moi_kv_at(h, j);
    *out++ = row ? row : absent;
    all &= row != NULL;
  }
  return all;
}

/* The block's rows over keys from .. to - 1, which lie in one segment. The keys behind them up to `ahead_end` may be
 * fetched, and if these are the block's last, those of the lane's next block. */
static void attend(const work *w, const block *b, const moi_cpu_kernel *row, lane *l, uint32_t from, uint32_t to,
                   uint32_t ahead_end, const partial *out) {
  const moi_attention_desc *d = &w->plan->attention;
  const moi_kv_cache *c = &w->run->cache;
  const size_t q_bytes = (size_t)b->m * MOI_ATTEND_PAD(d->head_dim) * (row->form == MOI_FORM_BF16 ? 2 : 4);
  const size_t acc_floats = (size_t)b->m * MOI_ATTEND_PAD(d->v_head_dim);
  moi_attend a = {.m = b->m, .dk = d->head_dim, .dv = d->v_head_dim, .k_format = d->k_format, .v_format = d->v_format};
  a.v_in_k = (d->flags & MOI_ATTENTION_V_IN_K) != 0;
  a.k_head_stride = c->k_head_stride;
  a.v_head_stride = c->v_head_stride;
  a.softcap = d->softcap;
  a.begin = l->begin;
  a.end = l->end;
  a.k = l->k;
  a.v = a.v_in_k ? l->k : l->v;
  a.scratch = l->scratch;
  a.fresh = 1;
  a.next_k = l->next_k;
  a.next_v = a.v_in_k ? l->next_k : l->next_v;
  a.fetched = &l->fetched;
  for (uint32_t base = from / MOI_ATTEND_TILE * MOI_ATTEND_TILE; base < to; base += CHUNK, a.fresh = 0) {
    uint32_t first = from > base ? from : base, last = to - base < CHUNK ? to : base + CHUNK;
    uint32_t ahead = ahead_end - base < CHUNK + MOI_ATTEND_TILE ? ahead_end : base + CHUNK + MOI_ATTEND_TILE;
    a.key_begin = first - base;
    a.key_end = last - base;
    a.ahead_end = ahead - base;
    a.next_keys = ahead == b->end ? l->next_keys : 0;
    a.next_at = l->next_at;
    for (uint32_t r = 0; r < b->m; r++) {
      uint32_t begin = l->spans[r].begin > first ? l->spans[r].begin : first;
      uint32_t end = l->spans[r].end < last ? l->spans[r].end : last;
      if (begin >= end) begin = end = first;
      l->begin[r] = begin - base;
      l->end[r] = end - base;
    }
    a.heads = b->n_heads;
    for (uint32_t h = 0; h < b->n_heads; h += a.heads) {
      moi_kv_head keys = moi_kv_head_of(d, c, 0, b->seq, b->kv_head + h);
      moi_kv_head values = moi_kv_head_of(d, c, 1, b->seq, b->kv_head + h);
      int all = rows_of(&keys, first, ahead, l->k + (first - base));
      if (!a.v_in_k) all &= rows_of(&values, first, ahead, l->v + (first - base));
      if (!all) a.heads = 1; /* what is absent has no next head */
      if (a.heads < b->n_heads) l->fetched = a.next_keys = 0;
      a.q = (const uint8_t *)l->q + h * q_bytes;
      a.scale = l->scale + (size_t)h * b->m;
      a.max = out->max + (size_t)h * b->m;
      a.sum = out->sum + (size_t)h * b->m;
      a.acc = out->acc + h * acc_floats;
      ((moi_attend_fn)row->fn)(&a);
    }
  }
}

static float shrink(float from, float to) { return from == to ? 1.0f : exp2f(from - to); }

/* chain = chain and then more */
static void merge(const work *w, uint32_t m, const partial *chain, const partial *more) {
  const uint32_t dv = w->plan->attention.v_head_dim, pad = MOI_ATTEND_PAD(dv);
  for (uint32_t r = 0; r < m; r++) {
    float a = chain->max[r], b = more->max[r];
    if (b == -INFINITY) continue;
    float most = b <= a ? a : b, fa = a == -INFINITY ? 0 : shrink(a, most), fb = shrink(b, most);
    chain->max[r] = most;
    chain->sum[r] = chain->sum[r] * fa + more->sum[r] * fb;
    w->ew->blend(chain->acc + (size_t)r * pad, fa, more->acc + (size_t)r * pad, fb, dv);
  }
}

/* Divides by the denominator and writes the block's rows. */
static void finish(const work *w, const block *b, const partial *p) {
  const moi_attention_desc *d = &w->plan->attention;
  const moi_attention_args *a = &w->run->attention;
  uint32_t pad = MOI_ATTEND_PAD(d->v_head_dim);
  const float *sinks = d->flags & MOI_ATTENTION_SINKS ? moi_view(a->sinks) : NULL;
  const float *v_scales = moi_view(w->run->cache.v_scale);
  float *lse = moi_view(a->lse);
  const size_t bytes = d->v_head_dim * dense(d->output_type);
  place at = first_place(w, b);
  for (; at.at < b->n_heads * b->m; next_place(w, b, &at)) {
    const uint32_t r = at.at;
    char *ahead = (char *)output(w, place_ahead(w, at));
    for (size_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(ahead + byte, 1);
    float v_scale = v_scales ? v_scales[at.head / w->group] : 1;
    float most = p->max[r], sum = p->sum[r], factor = 1;
    if (sinks && sinks[at.head] != -INFINITY) {
      float sink = sinks[at.head] * LOG2E, before = most;
      most = sink <= before ? before : sink;
      factor = before == -INFINITY ? 0 : shrink(before, most);
      sum = sum * factor + shrink(sink, most);
    }
    float *acc = p->acc + (size_t)r * pad;
    if (sum == 0 || factor == 0) memset(acc, 0, d->v_head_dim * sizeof *acc);
    factor = sum == 0 ? 0 : factor * v_scale / sum;
    w->ew->store(d->output_type, acc, factor, output(w, at), d->v_head_dim);
    if (lse) lse[(size_t)at.row * d->n_heads + at.head] = sum == 0 ? -INFINITY : (float)((most + log2(sum)) * LN2);
  }
}

static void nothing(uint32_t m, uint32_t dv, const partial *p) {
  for (uint32_t r = 0; r < m; r++) {
    p->max[r] = -INFINITY;
    p->sum[r] = 0;
  }
  memset(p->acc, 0, (size_t)m * MOI_ATTEND_PAD(dv) * sizeof *p->acc);
}

/* Keys of segment i that the block sees. */
static moi_span segment_of(const work *w, const block *b, uint32_t i) {
  moi_span s = {i * w->state->segment, b->end};
  if (s.end - s.begin > w->state->segment) s.end = s.begin + w->state->segment;
  if (s.begin < b->begin) s.begin = b->begin;
  return s;
}

static uint32_t segments_of(const work *w, const block *b) {
  return b->begin == b->end ? 0 : (b->end - 1) / w->state->segment - b->begin / w->state->segment + 1;
}

static uint32_t take_item(work *w) { return atomic_fetch_add_explicit(&w->next_item, 1, memory_order_relaxed); }

static block block_of(const work *w, uint32_t i) { return block_at(w, w->listed ? w->m.items[i].block : i); }

/* The item that the lane takes next, which is taken before the last segment of a block of few rows: its queries and first
 * keys are fetched meanwhile. */
static uint32_t take_ahead(work *w, const block *b, lane *l) {
  const moi_attention_desc *d = &w->plan->attention;
  const uint32_t i = take_item(w);
  if (i >= w->n_items || (w->listed && w->m.items[i].split >= 0)) return i;
  const block next = block_of(w, i);
  if (next.m > w->state->pick.few->m_max || next.begin == next.end) return i;
  fetch_queries(w, &next);
  if (next.n_heads != b->n_heads) return i;
  const uint32_t end = moi_min_u32(next.end, next.begin + MOI_ATTEND_TILE);
  const moi_kv_head keys = moi_kv_head_of(d, &w->run->cache, 0, next.seq, next.kv_head);
  const moi_kv_head values = moi_kv_head_of(d, &w->run->cache, 1, next.seq, next.kv_head);
  int all = rows_of(&keys, next.begin, end, l->next_k);
  if (!(d->flags & MOI_ATTENTION_V_IN_K)) all &= rows_of(&values, next.begin, end, l->next_v);
  if (all) l->next_keys = end - next.begin;
  l->next_at = next.begin % MOI_ATTEND_TILE;
  return i;
}

/* The item that comes after it. */
static uint32_t whole_block(work *w, const block *b, lane *l) {
  const uint32_t dv = w->plan->attention.v_head_dim;
  const moi_cpu_kernel *row = moi_pick_for(&w->state->pick, b->m);
  uint32_t next = UINT32_MAX;
  if (b->begin == b->end) {
    nothing(b->n_heads * b->m, dv, &l->chain);
  } else {
    prepare(w, b, row, l);
    uint32_t first = b->begin / w->state->segment, last = (b->end - 1) / w->state->segment;
    for (uint32_t i = first; i <= last; i++) {
      moi_span s = segment_of(w, b, i);
      l->next_keys = 0;
      if (i == last && b->m <= w->state->pick.few->m_max) next = take_ahead(w, b, l);
      attend(w, b, row, l, s.begin, s.end, b->end, i == first ? &l->chain : &l->now);
      if (i != first) merge(w, b->n_heads * b->m, &l->chain, &l->now);
    }
  }
  finish(w, b, &l->chain);
  return next == UINT32_MAX ? take_item(w) : next;
}

/* A segment that nobody has taken: `next`, or the last; n_segments: there is none. */
static uint32_t take_segment(split *p, uint32_t next) {
  for (;;) {
    const uint32_t taken = atomic_load_explicit(&p->taken, memory_order_relaxed);
    uint32_t i = next;
    if (i >= p->n_segments || taken >> i & 1)
      for (i = p->n_segments; i && taken >> (i - 1) & 1;) i--;
    else i++;
    if (!i) return p->n_segments;
    if (!(atomic_fetch_or_explicit(&p->taken, 1u << (i - 1), memory_order_relaxed) >> (i - 1) & 1)) return i - 1;
  }
}

/* Segment i is done: the chain goes on as far as segments are. */
static void join(const work *w, const block *b, split *p, uint32_t i) {
  const uint32_t rows = b->n_heads * b->m;
  atomic_fetch_or(&p->done, 1u << i);
  do {
    if (atomic_exchange(&p->merging, 1)) return; /* who merges looks again afterwards */
    for (i = p->merged; i < p->n_segments && atomic_load(&p->done) >> i & 1; i++)
      if (i) merge(w, rows, &p->parts[0], &p->parts[i]);
    p->merged = i;
    if (i == p->n_segments) {
      finish(w, b, &p->parts[0]);
      return; /* and nobody merges again */
    }
    atomic_store(&p->merging, 0);
  } while (atomic_load(&p->done) >> i & 1);
}

static void part_of_block(const work *w, const block *b, lane *l, split *p, uint32_t begin) {
  const moi_cpu_kernel *row = moi_pick_for(&w->state->pick, b->m);
  uint32_t i = take_segment(p, begin);
  l->fetched = l->next_keys = 0;
  if (i < p->n_segments) prepare(w, b, row, l);
  for (uint32_t fetched = i; i < p->n_segments; i = take_segment(p, i + 1)) {
    const moi_span s = segment_of(w, b, p->first_segment + i);
    const int goes_on =
        i + 1 < p->n_segments && !(atomic_load_explicit(&p->taken, memory_order_relaxed) >> (i + 1) & 1);
    if (i != fetched) l->fetched = 0;
    attend(w, b, row, l, s.begin, s.end, goes_on ? b->end : s.end, &p->parts[i]);
    fetched = goes_on ? i + 1 : p->n_segments;
    join(w, b, p, i);
  }
}

/* A worker's: one item after another. */
static void do_items(void *arg, uint32_t lane_index, uint32_t task) {
  work *w = arg;
  lane *l = &w->m.lanes[lane_index];
  int is_first = 1;
  (void)task;
  l->fetched = l->next_keys = 0;
  for (uint32_t i = take_item(w); i < w->n_items;) {
    const block b = block_of(w, i);
    const item *it = w->listed ? &w->m.items[i] : NULL;
    if (is_first && b.m <= w->state->pick.few->m_max) fetch_queries(w, &b);
    is_first = 0;
    if (it && it->split >= 0) {
      part_of_block(w, &b, l, &w->m.splits[it->split], it->begin);
      l->fetched = 0;
      i = take_item(w);
    } else {
      i = whole_block(w, &b, l);
      if (!l->next_keys) l->fetched = 0;
    }
  }
}

static uint64_t cost_of(const block *b) { return (uint64_t)b->n_heads * b->m * (b->end - b->begin); }

/* Few blocks: workers share those that are more than a quarter of what each is to do, after the others. There is memory to
 * share as many as there are workers: of more, some that are no more than one worker's are not shared. */
static void plan_items(work *w, uint32_t n_blocks) {
  uint32_t workers = w->plan->context->desc.n_workers, n_splits = 0, large = 0;
  w->n_items = n_blocks;
  w->listed = 0;
  if (workers < 2 || n_blocks > FEW_BLOCKS(workers) || !w->m.splits) return;
  uint64_t total = 0;
  for (uint32_t i = 0; i < n_blocks; i++) {
    block b = block_at(w, i);
    total += cost_of(&b);
  }
  w->n_items = 0;
  w->listed = 1;
  for (uint32_t i = 0; i < n_blocks; i++) {
    block b = block_at(w, i);
    large += segments_of(w, &b) > 1 && cost_of(&b) * 4 * workers > total;
  }
  for (uint32_t i = 0, whole = large > workers ? large - workers : 0; i < n_blocks; i++) {
    block b = block_at(w, i);
    const uint32_t segments = segments_of(w, &b);
    if (segments > 1 && cost_of(&b) * 4 * workers > total) {
      if (!whole || cost_of(&b) * workers > total) {
        split *p = &w->m.splits[n_splits++];
        p->block = i;
        p->first_segment = b.begin / w->state->segment;
        p->n_segments = segments;
        p->merged = 0;
        atomic_store_explicit(&p->taken, 0, memory_order_relaxed);
        atomic_store_explicit(&p->done, 0, memory_order_relaxed);
        atomic_store_explicit(&p->merging, 0, memory_order_relaxed);
        continue;
      }
      whole--;
    }
    w->m.items[w->n_items++] = (item){i, -1, 0};
  }
  for (uint32_t i = 0; i < n_splits; i++) {
    const split *p = &w->m.splits[i];
    const uint32_t shares = moi_min_u32(workers, p->n_segments);
    for (uint32_t s = 0; s < shares; s++)
      w->m.items[w->n_items++] = (item){p->block, (int32_t)i, (uint32_t)((uint64_t)s * p->n_segments / shares)};
  }
}

/* Keys that a sequence's last row sees. */
static uint32_t keys_of_last(const moi_attention_desc *d, const moi_seq *s) {
  const moi_span span = moi_visible(d, s, (int64_t)s->position + s->n_rows - 1);
  return span.end - span.begin;
}

/* As many KV heads as can be shared about evenly: pieces of work are segments, or a short sequence. Workers that each read
 * some heads of the same tokens at the same time take as long as one that reads all. */
static uint32_t heads_together(const work *w) {
  const moi_attention_desc *d = &w->plan->attention;
  const uint32_t workers = w->plan->context->desc.n_workers;
  uint64_t keys = 0, pieces = 0;
  uint32_t most = 1; /* keys of a piece */
  for (uint32_t i = 0; i < w->run->attention.n_seqs; i++) {
    const moi_seq *s = &w->m.seqs[i];
    if (!s->n_rows) continue;
    const uint32_t n = keys_of_last(d, s), piece = moi_min_u32(n, w->state->segment);
    keys += n;
    pieces += piece ? n / piece : 0; /* what is left fills gaps */
    most = most > piece ? most : piece;
  }
  for (uint32_t heads = d->n_kv_heads; heads > 1; heads--) {
    const uint64_t groups = d->n_kv_heads / heads, longest = (pieces * groups + workers - 1) / workers * most;
    if (d->n_kv_heads % heads == 0 && longest * workers <= keys * groups * 3 / 2) return heads;
  }
  return 1;
}

void moi_cpu_attention(const moi_plan *plan, const moi_run *run, moi_carve *c) {
  const moi_attention_desc *d = &plan->attention;
  const moi_attention_args *a = &run->attention;
  const moi_cpu *cpu = plan->context->state;
  work w;
  w.plan = plan;
  w.run = run;
  w.state = &((const moi_cpu_plan *)plan->state)->attention;
  w.ew = moi_elementwise_for(cpu->isa);
  w.m = carve(plan, c);
  w.group = d->n_heads / d->n_kv_heads;
  moi_seqs_of(run, a->n_rows, a->n_seqs, a->q_offsets, a->kv_lens, a->q_start, a->kv_begin, w.m.seqs);

  /* rows of no sequence */
  uint32_t first = a->n_seqs ? w.m.seqs[0].row : a->n_rows, end = first;
  if (a->n_seqs) end = w.m.seqs[a->n_seqs - 1].row + w.m.seqs[a->n_seqs - 1].n_rows;
  size_t element = dense(d->output_type), width = (size_t)d->n_heads * d->v_head_dim;
  float *lse = moi_view(a->lse);
  for (uint32_t row = 0; row < a->n_rows; row++) {
    if (row >= first && row < end) {
      row = end - 1;
      continue;
    }
    memset((uint8_t *)moi_view(a->output) + (size_t)row * a->output_stride * element, 0, width * element);
    for (uint32_t h = 0; lse && h < d->n_heads; h++) lse[(size_t)row * d->n_heads + h] = -INFINITY;
  }

  w.heads_together = heads_together(&w);
  if (d->head_dim % 32 || d->v_head_dim % 32 || run->cache.k_head_stride >= run->cache.k_token_stride)
    w.heads_together = 1;

  uint32_t n_blocks = 0;
  uint64_t work_of_all = 0;
  for (uint32_t s = 0; s < a->n_seqs; s++) {
    const moi_seq *seq = &w.m.seqs[s];
    work_of_all += (uint64_t)seq->n_rows * keys_of_last(d, seq) * d->n_heads;
    const uint32_t together = heads_of(&w, seq);
    w.m.first_block[s] = n_blocks;
    n_blocks += (uint32_t)(((uint64_t)seq->n_rows * w.group + w.state->block_rows - 1) / w.state->block_rows) *
                ((d->n_kv_heads + together - 1) / together);
  }
  w.m.first_block[a->n_seqs] = n_blocks;
  if (!n_blocks) return;
  work_of_all = work_of_all > UINT32_MAX ? UINT32_MAX : work_of_all;
  work_of_all *= d->head_dim + d->v_head_dim;
  plan_items(&w, n_blocks);
  atomic_init(&w.next_item, 0);
  moi_pool_run_sized(plan->context, work_of_all, moi_min_u32(w.n_items, plan->context->desc.n_workers), do_items, &w);
}
