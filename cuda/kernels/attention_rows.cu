/* What stands around the products: sequences counted, segments joined, parts merged. */
#include "cuda/kernels/attention.h"

/* ---- sequences as the other kernels read them: rows clamped, keys clamped, tiles counted. One block. */

#define THREADS 256u

MOI_KERNEL(attention_prepare, 256, moi_cu_attention_args) {
  MOI_SHARED(unsigned, ends, THREADS);
  MOI_SHARED(unsigned, fews, THREADS);
  MOI_SHARED(unsigned, manies, THREADS);
  unsigned thread = moi_thread(), n_seqs = a->n_seqs, n_rows = a->n_rows, group = a->n_heads / a->n_kv_heads;

  /* each thread has some sequences; where they begin is the largest end before them */
  unsigned each = (n_seqs + THREADS - 1u) / THREADS, first = moi_min_u(thread * each, n_seqs);
  unsigned last = moi_min_u(first + each, n_seqs), end = 0;
  for (unsigned s = first; s < last; s++) end = moi_max_u(end, moi_clamp_i(a->q_offsets[s + 1u], 0, n_rows));
  ends[thread] = end;
  moi_sync();
  unsigned begin = moi_clamp_i(a->q_offsets[0], 0, n_rows);
  for (unsigned t = 0; t < thread; t++) begin = moi_max_u(begin, ends[t]);
  unsigned row = begin, few = 0, many = 0;
  for (unsigned s = first; s < last; s++) {
    end = moi_clamp_i(a->q_offsets[s + 1u], row, n_rows);
    unsigned rows = end - row;
    if (rows > a->few_rows) many += (rows * group + a->many_tile - 1u) / a->many_tile;
    else few += (rows * group + a->few_tile - 1u) / a->few_tile;
    row = end;
  }
  fews[thread] = few;
  manies[thread] = many;
  moi_sync();
  few = many = 0;
  for (unsigned t = 0; t < thread; t++) few += fews[t], many += manies[t];
  row = begin;
  for (unsigned s = first; s < last; s++) {
    end = moi_clamp_i(a->q_offsets[s + 1u], row, n_rows);
    moi_cu_seq *seq = &a->seqs[s];
    seq->row = row;
    seq->rows = end - row;
    seq->len = moi_clamp_i(a->kv_lens[s], 0, a->reach);
    seq->position = a->q_start ? (unsigned)a->q_start[s] : seq->len - seq->rows;
    seq->begin = a->kv_begin ? moi_clamp_i(a->kv_begin[s], 0, seq->len) : 0u;
    seq->few = few;
    seq->many = many;
    if (seq->rows > a->few_rows) many += (seq->rows * group + a->many_tile - 1u) / a->many_tile;
    else few += (seq->rows * group + a->few_tile - 1u) / a->few_tile;
    row = end;
  }
  if (thread == THREADS - 1u) { /* the rows behind the last sequence are of none */
    moi_cu_seq *seq = &a->seqs[n_seqs];
    seq->row = row;
    seq->few = few;
    seq->many = many;
  }
}

/* ---- finish: a row's segments joined, sinks, the division, the output's type. A block takes a tile, a warp some of
 * its rows; what tiles of many rows have ended themselves is not here. Rows of no sequence get 0. */

MOI_KERNEL(attention_finish, 128, moi_cu_attention_args) {
  unsigned lane = moi_lane(), kv_head = moi_block_y(), dv = a->v.dim, group = a->n_heads / a->n_kv_heads;
  unsigned item = moi_block_x(), n_seqs = a->n_seqs;
  unsigned n_few = n_seqs ? a->seqs[n_seqs].few : 0u, n_many = n_seqs && a->many ? a->seqs[n_seqs].many : 0u;
  if (item < n_few + n_many) {
    int many = item >= n_few;
    if (many) item -= n_few;
    const float *acc = many ? a->many : a->few, *sums = many ? a->many_sums : a->few_sums;
    unsigned tile = many ? a->many_tile : a->few_tile, slots = many ? 1u : a->n_segments;
    const moi_cu_seq *s = &a->seqs[moi_seq_of(a->seqs, n_seqs, many, item)];
    unsigned first = (item - (many ? s->many : s->few)) * tile, step = a->n_kv_heads * tile;
    for (unsigned r = moi_warp(); r < tile && first + r < s->rows * group; r += 4u) {
      unsigned in_row = (first + r) / group, head = kv_head * group + (first + r) % group;
      moi_span span = moi_visible(a, s, moi_position_after(s->position, in_row));
      unsigned part = 0, n_parts = span.begin < span.end;
      if (n_parts && !many) {
        part = span.begin / a->segment;
        n_parts = (span.end - 1u) / a->segment - part + 1u;
      }
      uint64_t from = ((uint64_t)item * slots + part) * step + kv_head * tile + r, row = s->row + in_row;
      uint64_t to = moi_y_at(a, row, head);
      for (unsigned e0 = lane; e0 < dv; e0 += 128u) {
        float m = -MOI_INF, sum = 0.0f, x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (unsigned i = 0; i < n_parts; i++) {
          uint64_t at = from + (uint64_t)i * step;
          float keep, add;
          moi_join(&m, &sum, sums[2u * at], sums[2u * at + 1u], &keep, &add);
          if (add == 0.0f) continue; /* NaN is not */
          MOI_UNROLL
          for (unsigned c = 0; c < 4u; c++)
            if (e0 + 32u * c < dv) x[c] = fmaf(x[c], keep, acc[at * dv + e0 + 32u * c] * add);
        }
        float factor = moi_row_end(a, row, head, m, sum);
        MOI_UNROLL
        for (unsigned c = 0; c < 4u; c++)
          if (e0 + 32u * c < dv) moi_store(a->output_type, a->y, to + e0 + 32u * c, sum == 0.0f ? 0.0f : x[c] * factor);
      }
    }
  }

  unsigned before = n_seqs ? a->seqs[0].row : a->n_rows, behind = n_seqs ? a->seqs[n_seqs].row : a->n_rows;
  unsigned strays = before + (a->n_rows - behind);
  for (unsigned i = moi_block_x(); i < strays; i += moi_grid_x()) {
    uint64_t row = i < before ? i : behind + (i - before);
    for (unsigned h = 0; h < group; h++) {
      unsigned head = kv_head * group + h;
      for (unsigned e = moi_thread(); e < dv; e += 128u)
        moi_store(a->output_type, a->y, moi_y_at(a, row, head) + e, 0.0f);
      if (a->lse && moi_thread() == 0u) a->lse[row * a->n_heads + head] = -MOI_INF;
    }
  }
}

/* ---- merge: results over parts of the keys into one. A block takes a row and head. */

#define MERGERS 64u

MOI_KERNEL(attention_merge, 64, moi_cu_merge_args) {
  MOI_SHARED(float, shares, MERGERS);
  unsigned thread = moi_thread(), n = moi_min_u(MERGERS, a->n_parts);
  uint64_t at = (uint64_t)moi_block_x() * a->n_heads + moi_block_y(), step = (uint64_t)a->n_rows * a->n_heads;

  float most = -MOI_INF, sum = 0.0f;
  for (unsigned p = thread; p < a->n_parts; p += MERGERS) {
    float l = a->part_lse[p * step + at];
    most = l > most ? l : most;
  }
  shares[thread] = most;
  moi_sync();
  for (unsigned j = 0; j < n; j++) most = shares[j] > most ? shares[j] : most;
  moi_sync();
  for (unsigned p = thread; p < a->n_parts; p += MERGERS) { /* NaN passes: its weight is NaN */
    float l = a->part_lse[p * step + at];
    sum += l == -MOI_INF ? 0.0f : moi_shrink(l, most);
  }
  shares[thread] = sum;
  moi_sync();
  sum = 0.0f;
  for (unsigned j = 0; j < n; j++) sum += shares[j];

  uint64_t to = (uint64_t)moi_block_x() * a->y_stride + moi_block_y() * a->dim;
  float by = 1.0f / sum;
  for (unsigned e = thread; e < a->dim; e += MERGERS) {
    float y = 0.0f;
    for (unsigned p = 0; p < a->n_parts; p++) {
      float l = a->part_lse[p * step + at];
      if (l == -MOI_INF) continue; /* it may hold anything */
      y = fmaf(moi_shrink(l, most) * by, a->parts[(p * step + at) * a->dim + e], y);
    }
    moi_store(a->output_type, a->y, to + e, y);
  }
  if (thread == 0u && a->lse) a->lse[at] = sum == 0.0f ? -MOI_INF : moi_is_nan(sum) ? sum : most + logf(sum);
}
