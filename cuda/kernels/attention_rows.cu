/* What stands around the products: sequences counted, segments joined, parts merged. */
#include "cuda/kernels/attention.h"

/* ---- sequences as the other kernels read them: rows clamped, keys clamped, tiles counted. One block. */

#define THREADS 256u
#define STEP 64u /* segments are multiples of it */

/* What the kernels read of a sequence of so many rows from `row` on, but for the counts before it. */
MOI_DEVICE moi_cu_seq sequence_of(const moi_cu_attention_args *a, unsigned s, unsigned row, unsigned rows) {
  moi_cu_seq seq;
  seq.row = row;
  seq.rows = rows;
  seq.len = moi_clamp_i(a->kv_lens[s], 0, a->reach);
  seq.position = a->q_start ? (unsigned)a->q_start[s] : seq.len - rows;
  seq.begin = a->kv_begin ? moi_clamp_i(a->kv_begin[s], 0, seq.len) : 0u;
  seq.few = seq.many = seq.parts = seq.reserved = 0u;
  seq.origin = 0u;
  seq.segment = a->segment;
  seq.n_segments = a->n_segments;
  if (a->adapt && rows) { /* rows see ever later keys: from the first's first to the last's last */
    moi_span first = moi_visible(a, &seq, moi_position_after(seq.position, 0));
    moi_span last = moi_visible(a, &seq, moi_position_after(seq.position, rows - 1u));
    seq.origin = first.begin / STEP * STEP;
    unsigned keys = last.end > seq.origin ? last.end - seq.origin : 0u;
    unsigned each = (keys + a->n_segments - 1u) / a->n_segments;
    seq.segment = moi_max_u(a->segment, (each + STEP - 1u) / STEP * STEP);
    seq.n_segments = (keys + seq.segment - 1u) / seq.segment;
  }
  return seq;
}

MOI_DEVICE unsigned tiles_of(unsigned rows, unsigned group, unsigned tile) { return (rows * group + tile - 1u) / tile; }

MOI_KERNEL(attention_prepare, 256, moi_cu_attention_args) {
  MOI_SHARED(unsigned, ends, THREADS);
  MOI_SHARED(unsigned, fews, THREADS);
  MOI_SHARED(unsigned, manies, THREADS);
  MOI_SHARED(unsigned, all_parts, THREADS);
  unsigned thread = moi_thread(), n_seqs = a->n_seqs, n_rows = a->n_rows, group = a->n_heads / a->n_kv_heads;

  /* each thread has some sequences; where they begin is the largest end before them */
  unsigned each = (n_seqs + THREADS - 1u) / THREADS, first = moi_min_u(thread * each, n_seqs);
  unsigned last = moi_min_u(first + each, n_seqs), end = 0;
  for (unsigned s = first; s < last; s++) end = moi_max_u(end, moi_clamp_i(a->q_offsets[s + 1u], 0, n_rows));
  ends[thread] = end;
  moi_sync();
  unsigned begin = moi_clamp_i(a->q_offsets[0], 0, n_rows);
  for (unsigned t = 0; t < thread; t++) begin = moi_max_u(begin, ends[t]);
  unsigned row = begin, few = 0, many = 0, parts = 0;
  for (unsigned s = first; s < last; s++) {
    end = moi_clamp_i(a->q_offsets[s + 1u], row, n_rows);
    unsigned rows = end - row;
    moi_cu_seq *seq = &a->seqs[s];
    *seq = sequence_of(a, s, row, rows);
    seq->few = few; /* of this thread's alone */
    seq->many = many;
    seq->parts = parts;
    if (rows > a->few_rows) {
      many += tiles_of(rows, group, a->many_tile);
    } else {
      unsigned tiles = tiles_of(rows, group, a->few_tile);
      few += tiles;
      parts += tiles * seq->n_segments;
    }
    row = end;
  }
  fews[thread] = few;
  manies[thread] = many;
  all_parts[thread] = parts;
  moi_sync();
  few = many = parts = 0;
  for (unsigned t = 0; t < thread; t++) few += fews[t], many += manies[t], parts += all_parts[t];
  for (unsigned s = first; s < last; s++) {
    moi_cu_seq *seq = &a->seqs[s];
    seq->few += few;
    seq->many += many;
    seq->parts += parts;
  }
  if (thread == THREADS - 1u) { /* the rows behind the last sequence are of none */
    moi_cu_seq *seq = &a->seqs[n_seqs];
    seq->row = row;
    seq->few = few + fews[thread];
    seq->many = many + manies[thread];
    seq->parts = parts + all_parts[thread];
  }
}

/* ---- finish: a row's segments joined, sinks, the division, the output's type. A block takes a row of a tile, a thread
 * some of its dimensions; what tiles of many rows have ended themselves is not here. Rows of no sequence get 0.
 *
 * Segments are joined in ascending order, as attend_* join them. What each multiplies depends on the maxima alone: all
 * threads together find it for 128 of them, then each goes through its dimension's column, many loads at once. */

#define FINISHERS 128u
#define AHEAD 16u /* loads at once */

MOI_KERNEL(attention_finish, 128, moi_cu_attention_args) {
  MOI_SHARED(float, mosts, FINISHERS);
  MOI_SHARED(float, sums, FINISHERS);
  MOI_SHARED(float, keeps, FINISHERS);
  MOI_SHARED(float, adds, FINISHERS);
  unsigned thread = moi_thread(), kv_head = moi_block_y(), dv = a->v.dim, group = a->n_heads / a->n_kv_heads;
  unsigned most_tile = a->many ? moi_max_u(a->few_tile, a->many_tile) : a->few_tile;
  unsigned item = moi_block_x() / most_tile, r = moi_block_x() % most_tile, n_seqs = a->n_seqs;
  unsigned n_few = n_seqs ? a->seqs[n_seqs].few : 0u, n_many = n_seqs && a->many ? a->seqs[n_seqs].many : 0u;
  if (item < n_few + n_many) {
    int many = item >= n_few;
    if (many) item -= n_few;
    const float *acc = many ? a->many : a->few, *all_sums = many ? a->many_sums : a->few_sums;
    unsigned tile = many ? a->many_tile : a->few_tile;
    const moi_cu_seq *s = &a->seqs[moi_seq_of(a->seqs, n_seqs, many, item)];
    unsigned in_seq = item - (many ? s->many : s->few), at_row = in_seq * tile + r;
    if (r < tile && at_row < s->rows * group) {
      unsigned in_row = at_row / group, head = kv_head * group + at_row % group;
      moi_span span = moi_visible(a, s, moi_position_after(s->position, in_row));
      unsigned n_parts = span.begin < span.end;
      uint64_t part = many ? item : s->parts + (uint64_t)in_seq * s->n_segments;
      if (n_parts && !many) {
        unsigned first = (span.begin - s->origin) / s->segment;
        part += first;
        n_parts = (span.end - 1u - s->origin) / s->segment - first + 1u;
      }
      uint64_t step = (uint64_t)a->n_kv_heads * tile, from = part * step + kv_head * tile + r, row = s->row + in_row;
      uint64_t to = moi_y_at(a, row, head);
      for (unsigned e = thread; e < (dv + FINISHERS - 1u) / FINISHERS * FINISHERS; e += FINISHERS) {
        const float *column = acc + from * dv + (e < dv ? e : 0u);
        float m = -MOI_INF, sum = 0.0f, x = 0.0f;
        for (unsigned p = 0; p < n_parts; p += FINISHERS) {
          unsigned n = moi_min_u(n_parts - p, FINISHERS);
          moi_sync();
          if (thread < n) {
            const moi_f2 *its = (const moi_f2 *)(const void *)(all_sums + 2u * (from + (p + thread) * step));
            mosts[thread] = its->x;
            sums[thread] = its->y;
          }
          moi_sync();
          if (thread < n) { /* moi_join's factors: a sum is 0 as long as nothing has come */
            float most = m, before = m;
            int came = sum != 0.0f, came_before = came;
            for (unsigned i = 0; i <= thread; i++) {
              before = most;
              came_before = came;
              if (sums[i] == 0.0f) continue;
              most = mosts[i] <= most ? most : mosts[i];
              came = 1;
            }
            int more = sums[thread] != 0.0f;
            keeps[thread] = !more ? 1.0f : came_before ? moi_shrink(before, most) : 0.0f;
            adds[thread] = more ? moi_shrink(mosts[thread], most) : 0.0f;
          }
          moi_sync();
          for (unsigned i = 0; i < n; i++) {
            if (sums[i] == 0.0f) continue;
            m = mosts[i] <= m ? m : mosts[i];
            sum = fmaf(sum, keeps[i], sums[i] * adds[i]);
          }
          for (unsigned i = 0; i < n; i += AHEAD) {
            float more[AHEAD];
            MOI_UNROLL
            for (unsigned c = 0; c < AHEAD; c++) more[c] = i + c < n ? column[(uint64_t)(p + i + c) * step * dv] : 0.0f;
            MOI_UNROLL
            for (unsigned c = 0; c < AHEAD; c++) {
              float add = i + c < n ? adds[i + c] : 0.0f;
              if (add != 0.0f) x = fmaf(x, keeps[i + c], more[c] * add); /* NaN is not 0 */
            }
          }
        }
        float factor = moi_row_end(a, row, head, m, sum);
        if (e < dv) moi_store(a->output_type, a->y, to + e, sum == 0.0f ? 0.0f : x * factor);
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
