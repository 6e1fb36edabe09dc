/* What attention's kernels share: sequences, what their rows see, places in the cache, how sums are joined.
 *
 * A tile is some of a sequence's rows x query heads of one KV head, by row, then head: keys and values are read once
 * for all of it. Keys are gone through in steps that begin at multiples of the step, a row's sums over them do not
 * depend on the other rows of its tile, and segments are joined in ascending order: a row's bits are the same in any
 * batch. */
#ifndef MOI_CUDA_ATTENTION_H
#define MOI_CUDA_ATTENTION_H

#include "cuda/attention_args.h"
#include "cuda/device/convert.h"

MOI_DEVICE unsigned moi_min_u(unsigned a, unsigned b) { return a < b ? a : b; }
MOI_DEVICE unsigned moi_max_u(unsigned a, unsigned b) { return a > b ? a : b; }
MOI_DEVICE unsigned moi_clamp_i(int v, unsigned low, unsigned high) {
  return v < 0 || (unsigned)v < low ? low : moi_min_u((unsigned)v, high);
}

/* The sequence that part i of tiles of few rows belongs to: the last with no more before it. */
MOI_DEVICE unsigned moi_seq_of_part(const moi_cu_seq *seqs, unsigned n_seqs, unsigned i) {
  unsigned low = 0, high = n_seqs;
  while (high - low > 1u) {
    unsigned middle = low + (high - low) / 2u;
    if (seqs[middle].parts <= i) low = middle;
    else high = middle;
  }
  return low;
}

/* The sequence that tile i belongs to, likewise. */
MOI_DEVICE unsigned moi_seq_of(const moi_cu_seq *seqs, unsigned n_seqs, int many, unsigned i) {
  unsigned low = 0, high = n_seqs;
  while (high - low > 1u) {
    unsigned middle = low + (high - low) / 2u;
    if ((many ? seqs[middle].many : seqs[middle].few) <= i) low = middle;
    else high = middle;
  }
  return low;
}

/* Row i of a sequence whose first row is at `position`: one more than its own position, 0 for those below 0. */
MOI_DEVICE unsigned moi_position_after(unsigned position, unsigned i) {
  return (int)position < 0 && 0u - position > i ? 0u : position + i + 1u;
}

/* The keys begin <= j < end that a row sees; both the same if there is none. */
typedef struct moi_span {
  unsigned begin, end;
} moi_span;

MOI_DEVICE moi_span moi_visible(const moi_cu_attention_args *a, const moi_cu_seq *s, unsigned after) {
  moi_span r;
  r.begin = s->begin;
  r.end = s->len;
  if (a->causal) r.end = moi_min_u(r.end, after);
  if (a->window && after > a->window) r.begin = moi_max_u(r.begin, after - a->window);
  if (a->chunk) {
    unsigned first = after ? (after - 1u) / a->chunk * a->chunk : 0u;
    r.begin = moi_max_u(r.begin, first);
    if (!after) r.end = 0u;
    else if (r.end > first && r.end - first > a->chunk) r.end = first + a->chunk;
  }
  r.begin = moi_min_u(r.begin, r.end);
  return r;
}

/* What multiplies a row's dot products: scale, tau of its position, the keys' scale. */
MOI_DEVICE float moi_row_scale(const moi_cu_attention_args *a, unsigned after, unsigned kv_head) {
  float tau = 1.0f;
  if (a->temperature != 0.0f && after) tau = 1.0f + a->temperature * logf((float)(after / a->temperature_floor + 1u));
  float scale = a->scale * tau;
  return a->k.scale ? scale * a->k.scale[kv_head] : scale;
}

/* Which page and token key j is; 0 if the cache has no such place. */
MOI_DEVICE int moi_place_of(const moi_cu_places *p, unsigned seq, unsigned j, unsigned *page, unsigned *token) {
  if (p->page_size) {
    unsigned entry = j / p->page_size;
    *token = j - entry * p->page_size;
    *page = (unsigned)p->places[(uint64_t)seq * p->page_entries + entry];
    return *page < p->capacity; /* ids below 0 are above it */
  }
  int64_t at = (p->places ? (int64_t)p->places[seq] : (int64_t)seq * p->max_kv) + j;
  *page = 0;
  *token = (unsigned)at;
  return at >= 0 && at < (int64_t)p->capacity;
}

MOI_DEVICE const uint8_t *moi_kv_row(const moi_cu_kv *kv, unsigned head, unsigned page, unsigned token) {
  return kv->data + head * kv->head + page * kv->page + token * kv->token;
}

/* ---- sums: m is the largest logit, s the sum of exp(l - m): 0 where nothing was, or NaN */

/* exp(from - to) for to >= from; 1 if both are the same, infinite ones too */
MOI_DEVICE float moi_shrink(float from, float to) { return from == to ? 1.0f : expf(from - to); }

/* What has been seen, and then more: the factors of both accumulators. */
MOI_DEVICE void moi_join(float *m, float *s, float more_m, float more_s, float *keep, float *add) {
  *keep = 1.0f;
  *add = 0.0f;
  if (more_s == 0.0f) return;
  float most = more_m <= *m ? *m : more_m;
  *keep = *s == 0.0f ? 0.0f : moi_shrink(*m, most);
  *add = moi_shrink(more_m, most);
  *s = fmaf(*s, *keep, more_s * *add);
  *m = most;
}

/* A row's end: its sink, its log-sum-exp, and what its accumulator is multiplied by; 0: the result is 0. */
MOI_DEVICE float moi_row_end(const moi_cu_attention_args *a, uint64_t row, unsigned head, float m, float s) {
  float factor = 1.0f, add;
  int nothing = s == 0.0f;
  if (a->sinks && a->sinks[head] != -MOI_INF) moi_join(&m, &s, a->sinks[head], 1.0f, &factor, &add);
  if (a->lse) a->lse[row * a->n_heads + head] = s == 0.0f ? -MOI_INF : moi_is_nan(s) ? s : m + logf(s);
  if (nothing) return 0.0f;
  if (a->v.scale) factor *= a->v.scale[head / (a->n_heads / a->n_kv_heads)];
  return factor / s;
}

MOI_DEVICE uint64_t moi_y_at(const moi_cu_attention_args *a, uint64_t row, unsigned head) {
  return row * a->y_stride + head * a->v.dim;
}

#endif
