/* The sequences of an attention run and the KV cache they read, as the args tell them. */
#ifndef MOI_CPU_KV_H
#define MOI_CPU_KV_H

#include <math.h>

#include "core/backend.h"

/* One sequence: its rows of q, the position of the first, and the keys that exist. */
typedef struct moi_seq {
  uint32_t row, n_rows;
  int32_t position;
  uint32_t kv_begin, kv_len; /* kv_begin <= kv_len */
} moi_seq;

/* Fills [n_seqs]; rows are disjoint and inside 0..n_rows-1 whatever the offsets say. kv_begin may be absent. */
void moi_seqs_of(const moi_run *run, uint32_t n_rows, uint32_t n_seqs, moi_buffer q_offsets, moi_buffer kv_lens,
                 moi_buffer q_start, moi_buffer kv_begin, moi_seq *out);

/* The keys begin <= j < end that position p of a sequence may see; empty: begin == end. */
typedef struct moi_span {
  uint32_t begin, end;
} moi_span;

static inline moi_span moi_visible(const moi_attention_desc *d, const moi_seq *s, int64_t p) {
  int64_t begin = s->kv_begin, end = s->kv_len;
  if (d->mask == MOI_MASK_CAUSAL && end > p + 1) end = p + 1;
  if (d->window && begin < p + 1 - (int64_t)d->window) begin = p + 1 - (int64_t)d->window;
  if (d->chunk) {
    int64_t chunk = p < 0 ? -1 : p / d->chunk;
    if (begin < chunk * d->chunk) begin = chunk * d->chunk;
    if (end > (chunk + 1) * d->chunk) end = (chunk + 1) * d->chunk;
  }
  if (end < 0) end = 0;
  if (begin > end) begin = end;
  moi_span span = {(uint32_t)begin, (uint32_t)end};
  return span;
}

/* tau(p) of moi_attention_desc. */
static inline double moi_temperature(const moi_attention_desc *d, int64_t p) {
  if (d->temperature == 0 || p < 0) return 1;
  return 1 + d->temperature * log(1 + (double)((p + 1) / d->temperature_floor));
}

/* One KV head of one sequence in the cache's k or v. */
typedef struct moi_kv_head {
  uint8_t *base;
  uint64_t token_stride, page_stride;
  const int32_t *pages; /* NULL: contiguous */
  uint32_t page_size, capacity;
  int64_t start;
} moi_kv_head;

static inline moi_kv_head moi_kv_head_of(const moi_attention_desc *d, const moi_kv_cache *c, int values, uint32_t seq,
                                         uint32_t head) {
  moi_kv_head h;
  h.base = moi_view(values ? c->v : c->k); /* null if the cache holds nothing */
  if (h.base) h.base += head * (values ? c->v_head_stride : c->k_head_stride);
  h.token_stride = values ? c->v_token_stride : c->k_token_stride;
  h.page_stride = values ? c->v_page_stride : c->k_page_stride;
  h.page_size = d->page_size;
  h.capacity = c->capacity;
  h.pages = NULL;
  h.start = 0;
  const int32_t *start = moi_view(c->start);
  if (d->page_size) h.pages = (const int32_t *)moi_view(c->page_table) + (size_t)seq * c->page_table_stride;
  else h.start = start ? start[seq] : (int64_t)seq * d->max_kv;
  return h;
}

/* Where key j lies, NULL if the cache has no such place. */
static inline uint8_t *moi_kv_at(const moi_kv_head *h, uint32_t j) {
  if (h->pages) {
    int32_t page = h->pages[j / h->page_size];
    if (page < 0 || (uint32_t)page >= h->capacity) return NULL;
    return h->base + (uint64_t)page * h->page_stride + (uint64_t)(j % h->page_size) * h->token_stride;
  }
  int64_t token = h->start + j;
  if (token < 0 || token >= h->capacity) return NULL;
  return h->base + (uint64_t)token * h->token_stride;
}

static inline float moi_head_scale(moi_buffer scales, uint32_t head) {
  const float *p = moi_view(scales);
  return p ? p[head] : 1.0f;
}

/* moi_kv_append_run, and moi_attention_merge_run: they have one kernel, in double where it matters. */
void moi_cpu_kv_append(const moi_plan *plan, const moi_run *run);
void moi_cpu_merge(const moi_plan *plan, const moi_run *run);

#endif
