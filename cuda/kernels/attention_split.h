/* What the split kernels share: a block takes a segment of the keys for a tile of R rows of one KV head, each of its
 * warps some of the segment's keys with an online softmax of its own, and at the end the warps' sums are joined in
 * ascending order. A warp takes the same keys whatever the batch: those that its number and theirs say. */
#ifndef MOI_CUDA_ATTENTION_SPLIT_H
#define MOI_CUDA_ATTENTION_SPLIT_H

#include "cuda/kernels/attention_load.h"

#define WARPS 4u

/* A block's work: `all` items x KV heads, KV heads side by side, then the tiles of a segment: what reads the same keys
 * runs at the same time. */
typedef struct split_work {
  const moi_cu_seq *s;
  unsigned seq, kv_head, group, rows, first; /* query rows of the sequence for a KV head, and the tile's first */
  unsigned begin, end;                       /* keys, tiles of few rows: of the segment */
  unsigned origin, segment;                  /* where segments begin; keys of one */
  float *acc, *sums;                         /* where its sums go; null: into y */
} split_work;

MOI_DEVICE unsigned split_all(const moi_cu_attention_args *a) {
  const moi_cu_seq *end = &a->seqs[a->n_seqs];
  return (a->pass ? end->many : end->parts) * a->n_kv_heads;
}

/* All but begin and end of work `at` of split_all. */
MOI_DEVICE split_work split_work_of(const moi_cu_attention_args *a, unsigned at, const unsigned R) {
  split_work w;
  unsigned item = at / a->n_kv_heads, dv = a->v.dim, part = 0;
  w.kv_head = at - item * a->n_kv_heads;
  w.group = a->n_heads / a->n_kv_heads;
  uint64_t slot;
  if (a->pass) {
    item = split_all(a) / a->n_kv_heads - 1u - item; /* under a causal mask a sequence's last tiles have most to do */
    w.seq = moi_seq_of(a->seqs, a->n_seqs, 1, item);
    w.s = &a->seqs[w.seq];
    w.rows = w.s->rows * w.group;
    w.first = (item - w.s->many) * R;
    w.origin = 0u;
    w.segment = a->many_segment;
    w.acc = a->many;
    w.sums = a->many_sums;
    slot = item;
  } else {
    w.seq = moi_seq_of_part(a->seqs, a->n_seqs, item);
    w.s = &a->seqs[w.seq];
    w.rows = w.s->rows * w.group;
    unsigned tiles = (w.rows + R - 1u) / R, in_seq = item - w.s->parts, tile;
    part = in_seq / tiles;
    tile = in_seq - part * tiles;
    w.first = tile * R;
    w.origin = w.s->origin + part * w.s->segment;
    w.segment = w.s->segment;
    w.acc = a->few;
    w.sums = a->few_sums;
    slot = w.s->parts + (uint64_t)tile * w.s->n_segments + part;
  }
  slot = (slot * a->n_kv_heads + w.kv_head) * R;
  if (w.acc) w.acc += slot * dv, w.sums += slot * 2u;
  return w;
}

/* Threads 0..R-1: what a row sees, and what multiplies its dot products. */
MOI_DEVICE void split_rows(const moi_cu_attention_args *a, const split_work *w, const unsigned R, unsigned *begins,
                           unsigned *ends, float *scales) {
  unsigned thread = moi_thread();
  if (thread >= R) return;
  unsigned r = w->first + thread, after = moi_position_after(w->s->position, moi_min_u(r, w->rows - 1u) / w->group);
  moi_span span = moi_visible(a, w->s, after);
  begins[thread] = r < w->rows ? span.begin : 0u;
  ends[thread] = r < w->rows ? span.end : 0u;
  scales[thread] = moi_row_scale(a, after, w->kv_head);
}

/* The keys that any row sees; of few rows, those in the segment. */
MOI_DEVICE void split_keys(const moi_cu_attention_args *a, split_work *w, const unsigned R, const unsigned *begins,
                           const unsigned *ends) {
  w->begin = ~0u;
  w->end = 0u;
  MOI_UNROLL
  for (unsigned r = 0; r < R; r++) {
    if (begins[r] >= ends[r]) continue;
    w->begin = moi_min_u(w->begin, begins[r]);
    w->end = moi_max_u(w->end, ends[r]);
  }
  if (a->pass) return;
  w->begin = moi_max_u(w->begin, w->origin);
  if (w->end > w->origin && w->end - w->origin > w->segment) w->end = w->origin + w->segment;
}

/* The keys of one of the segments that tiles of many rows go through; of few rows there is one, with all of theirs. */
MOI_DEVICE void split_segment(const moi_cu_attention_args *a, const split_work *w, unsigned segment, unsigned *from,
                              unsigned *to) {
  *from = w->begin;
  *to = w->end;
  if (!a->pass || w->begin >= w->end) return;
  *from = moi_max_u(w->begin, segment * w->segment);
  if (w->end - segment * w->segment > w->segment) *to = (segment + 1u) * w->segment;
}
MOI_DEVICE unsigned split_first(const moi_cu_attention_args *a, const split_work *w) {
  return a->pass && w->begin < w->end ? w->begin / w->segment : 0u;
}
MOI_DEVICE int split_is_last(const moi_cu_attention_args *a, const split_work *w, unsigned segment) {
  return !a->pass || w->begin >= w->end || segment >= (w->end - 1u) / w->segment;
}

/* Where key j of from..to-1 and its value lie; null: there is none. */
MOI_DEVICE void split_place(const moi_cu_attention_args *a, const split_work *w, unsigned j, unsigned from, unsigned to,
                            const uint8_t **k_row, const uint8_t **v_row) {
  unsigned page, token;
  int there = j >= from && j < to && moi_place_of(&a->where, w->seq, j, &page, &token);
  *k_row = there ? moi_kv_row(&a->k, w->kv_head, page, token) : NULL;
  *v_row = there ? moi_kv_row(&a->v, w->kv_head, page, token) : NULL;
}

/* Threads 0..R-1: maximum and sum of a row from those of the warps, [warp, row]; a sum of 0 has seen nothing. */
MOI_DEVICE void split_sums(const unsigned R, const float *warp_mosts, const float *warp_sums, float *mosts,
                           float *sums) {
  unsigned thread = moi_thread();
  if (thread >= R) return;
  float top = -MOI_INF, total = 0.0f;
  for (unsigned i = 0; i < WARPS; i++)
    if (warp_sums[i * R + thread] != 0.0f && warp_mosts[i * R + thread] > top) top = warp_mosts[i * R + thread];
  for (unsigned i = 0; i < WARPS; i++)
    if (warp_sums[i * R + thread] != 0.0f)
      total = fmaf(warp_sums[i * R + thread], moi_shrink(warp_mosts[i * R + thread], top), total);
  mosts[thread] = top;
  sums[thread] = total;
}

/* What the warps have joined, `joint` [R, LD], and rows' maxima and sums: to the segment's place, after another
 * segment's (`joins`), or as the rows' end to y. All threads; a barrier stands before, and behind where it is needed. */
MOI_DEVICE void split_end(const moi_cu_attention_args *a, const split_work *w, const unsigned R, const unsigned LD,
                          const float *joint, const float *mosts, const float *sums, float *keeps, float *adds,
                          int joins) {
  unsigned thread = moi_thread(), dv = a->v.dim;
  if (thread < R) {
    float m = mosts[thread], sum = sums[thread], keep = 0.0f, add = 1.0f;
    unsigned r = w->first + thread;
    if (w->acc) {
      if (joins) {
        float more_m = m, more_s = sum;
        m = w->sums[2u * thread];
        sum = w->sums[2u * thread + 1u];
        moi_join(&m, &sum, more_m, more_s, &keep, &add);
      }
      w->sums[2u * thread] = m;
      w->sums[2u * thread + 1u] = sum;
    } else if (r < w->rows) {
      keep = moi_row_end(a, w->s->row + r / w->group, w->kv_head * w->group + r % w->group, m, sum);
    }
    keeps[thread] = keep;
    adds[thread] = add;
  }
  moi_sync();
  MOI_ROLLED
  for (unsigned r = 0; r < R && w->first + r < w->rows; r++) {
    float keep = keeps[r], add = adds[r];
    unsigned at = w->first + r;
    uint64_t y = w->acc ? 0u : moi_y_at(a, w->s->row + at / w->group, w->kv_head * w->group + at % w->group);
    for (unsigned e = thread; e < dv; e += 32u * WARPS) {
      float x = joint[r * LD + e];
      if (!w->acc) {
        moi_store(a->output_type, a->y, y + e, sums[r] == 0.0f ? 0.0f : x * keep);
      } else if (!joins) {
        w->acc[r * dv + e] = x;
      } else if (add != 0.0f) { /* a thread reads what it has written itself */
        w->acc[r * dv + e] = fmaf(w->acc[r * dv + e], keep, x * add);
      }
    }
  }
}

#endif
