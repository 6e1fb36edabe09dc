/* Attention by tiles in fp32: keys and values meet queries and weights in shared memory, for any head, any type.
 * Scores: a thread has a key and half of the rows. Values: a thread has every 128th dimension of all rows in
 * registers. */
#define MOI_BLOCKS 2 /* by itself nvcc aims at more, and spills */
#include "cuda/kernels/attention_load.h"

#define T 128u  /* threads */
#define N 64u   /* keys of a step */
#define CK 32u  /* dimensions of keys at once */
#define LDK 36u /* floats between their rows: different banks for eight lanes that load 16 bytes */
#define MAX_R 16
#define LDP (MAX_R + 4u) /* floats between keys' weights */
#define PARTS 8u         /* threads that sum up a row */
#define TILE 4096u       /* floats: keys, then values */

/* R rows, 4, 8 or 16; DV: v_head_dim / 128, rounded up to 1, 2, 4 or 8; many: a block goes through all segments, else
 * through one. */
MOI_DEVICE void attend_tile(const moi_cu_attention_args *a, const unsigned R, const unsigned DV, const int many) {
  MOI_SHARED(float, tile, TILE);
  MOI_SHARED(float, queries, (MAX_R * CK));
  MOI_SHARED(float, weights, (N * LDP));
  MOI_SHARED(const uint8_t *, k_rows, N);
  MOI_SHARED(const uint8_t *, v_rows, N);
  MOI_SHARED(float, scales, MAX_R);
  MOI_SHARED(float, mosts, MAX_R);
  MOI_SHARED(float, sums, MAX_R);
  MOI_SHARED(float, keeps, MAX_R);
  MOI_SHARED(float, adds, MAX_R);
  MOI_SHARED(unsigned, begins, MAX_R);
  MOI_SHARED(unsigned, ends, MAX_R);
  MOI_SHARED(unsigned, odd, 2);
  const unsigned RT = R / 2u;          /* rows of a thread's scores: two threads have a key */
  const unsigned VK = TILE / (T * DV); /* keys whose values are there at once */
  unsigned thread = moi_thread(), item = moi_block_x(), n_seqs = a->n_seqs;
  unsigned n_items = many ? a->seqs[n_seqs].many : a->seqs[n_seqs].few;
  if (item >= n_items) return;
  if (many) item = n_items - 1u - item; /* under a causal mask a sequence's last tiles have most to do */
  unsigned kv_head = many ? moi_block_y() : moi_block_y() / a->n_segments, group = a->n_heads / a->n_kv_heads;

  unsigned seq = moi_seq_of(a->seqs, n_seqs, many, item), dk = a->k.dim, dv = a->v.dim;
  const moi_cu_seq *s = &a->seqs[seq];
  unsigned rows = s->rows * group, first = (item - (many ? s->many : s->few)) * R;
  if (thread < R) {
    unsigned r = first + thread, after = moi_position_after(s->position, moi_min_u(r, rows - 1u) / group);
    moi_span span = moi_visible(a, s, after);
    begins[thread] = r < rows ? span.begin : 0u;
    ends[thread] = r < rows ? span.end : 0u;
    scales[thread] = moi_row_scale(a, after, kv_head);
    mosts[thread] = -MOI_INF;
    sums[thread] = 0.0f;
  }
  if (thread < 2u) odd[thread] = 0u;
  moi_sync();
  unsigned begin = ~0u, end = 0u;
  for (unsigned r = 0; r < R; r++) {
    if (begins[r] >= ends[r]) continue;
    begin = moi_min_u(begin, begins[r]);
    end = moi_max_u(end, ends[r]);
  }
  unsigned segment_keys = many ? a->many_segment : a->segment;
  uint64_t slot = item; /* where sums go */
  if (!many) {
    unsigned segment = moi_block_y() % a->n_segments;
    begin = moi_max_u(begin, segment * segment_keys);
    end = moi_min_u(end, (segment + 1u) * segment_keys);
    slot = slot * a->n_segments + segment;
    if (begin >= end) return;
  }
  slot = slot * a->n_kv_heads + kv_head;
  float *to_acc = many ? a->many : a->few, *to_sums = many ? a->many_sums : a->few_sums;
  if (to_acc) to_acc += slot * R * dv, to_sums += slot * R * 2u;

  float acc[MAX_R * 8];
  MOI_UNROLL
  for (unsigned i = 0; i < R * DV; i++) acc[i] = 0.0f;
  unsigned key = thread % N, first_row = thread / N * RT, chunk = 0;
  unsigned row = thread / PARTS, part = thread % PARTS;
  for (unsigned segment = begin < end ? begin / segment_keys : 0u, first_segment = segment;
       begin < end && segment <= (end - 1u) / segment_keys; segment++) {
    unsigned from = moi_max_u(begin, segment * segment_keys);
    unsigned to = end - segment * segment_keys > segment_keys ? (segment + 1u) * segment_keys : end;
    if (segment != first_segment) {
      if (thread < R) {
        mosts[thread] = -MOI_INF;
        sums[thread] = 0.0f;
      }
      MOI_UNROLL
      for (unsigned i = 0; i < R * DV; i++) acc[i] = 0.0f;
    }
    for (unsigned step = from / N * N; step < to; step += N) {
      if (thread < N) {
        unsigned j = step + thread, page, token;
        int there = j >= from && j < to && moi_place_of(&a->where, seq, j, &page, &token);
        k_rows[thread] = there ? moi_kv_row(&a->k, kv_head, page, token) : NULL;
        v_rows[thread] = there ? moi_kv_row(&a->v, kv_head, page, token) : NULL;
      }

      /* scores */
      float score[MAX_R / 2];
      MOI_UNROLL
      for (unsigned i = 0; i < RT; i++) score[i] = 0.0f;
      for (unsigned c = 0; c < dk; c += CK) {
        moi_sync();
        moi_kv_stage(&a->k, k_rows, N, c, CK, T, tile, LDK);
        MOI_ROLLED
        for (unsigned i = thread; i < R * CK; i += T) {
          unsigned e = c + i % CK, r = moi_min_u(first + i / CK, rows - 1u);
          uint64_t at = (uint64_t)(s->row + r / group) * a->q_stride +
                        (uint64_t)(kv_head * group + r % group) * a->q_head_stride + e;
          queries[i] = e < dk ? moi_load(a->input_type, a->q, at) : 0.0f;
        }
        moi_sync();
        MOI_ROLLED
        for (unsigned e = 0; e < CK; e += 4u) {
          moi_f4 x = *(const moi_f4 *)(const void *)&tile[key * LDK + e];
          MOI_UNROLL
          for (unsigned i = 0; i < RT; i++) {
            moi_f4 q = *(const moi_f4 *)(const void *)&queries[(first_row + i) * CK + e];
            score[i] = fmaf(x.x, q.x, score[i]);
            score[i] = fmaf(x.y, q.y, score[i]);
            score[i] = fmaf(x.z, q.z, score[i]);
            score[i] = fmaf(x.w, q.w, score[i]);
          }
        }
      }
      MOI_UNROLL
      for (unsigned i = 0; i < RT; i++) {
        unsigned r = first_row + i, j = step + key;
        float l = score[i] * scales[r];
        if (a->softcap != 0.0f) l = a->softcap * tanhf(l / a->softcap);
        weights[key * LDP + r] = j >= moi_max_u(begins[r], from) && j < moi_min_u(ends[r], to) ? l : -MOI_INF;
      }
      moi_sync();

      /* weights: PARTS lanes have a row, N / PARTS keys each */
      if (row < R) { /* whole warps */
        float *w = &weights[part * LDP + row], top = -MOI_INF, more = 0.0f, most = mosts[row];
        MOI_UNROLL
        for (unsigned k = 0; k < N / PARTS; k++) {
          float l = w[k * PARTS * LDP];
          top = l > top ? l : top;
        }
        MOI_UNROLL
        for (unsigned mask = 1u; mask < PARTS; mask *= 2u) {
          float other = moi_xor_f32(top, mask);
          top = other > top ? other : top;
        }
        top = top > most ? top : most;
        MOI_UNROLL
        for (unsigned k = 0; k < N / PARTS; k++) {
          float l = w[k * PARTS * LDP], p = l == -MOI_INF ? 0.0f : expf(l - top);
          more += p;
          w[k * PARTS * LDP] = p;
        }
        MOI_UNROLL
        for (unsigned mask = 1u; mask < PARTS; mask *= 2u) more += moi_xor_f32(more, mask);
        moi_sync_warp(); /* all lanes of the row have read mosts: the exchanges order no memory */
        if (part == 0u) {
          float keep = sums[row] == 0.0f ? 0.0f : moi_shrink(most, top);
          keeps[row] = keep;
          mosts[row] = top;
          sums[row] = fmaf(sums[row], keep, more);
        }
      }
      moi_sync();

      /* values */
      MOI_UNROLL
      for (unsigned r = 0; r < R; r++) {
        float keep = keeps[r];
        MOI_UNROLL
        for (unsigned c = 0; c < DV; c++) acc[r * DV + c] *= keep;
      }
      for (unsigned k0 = 0; k0 < N; k0 += VK, chunk ^= 1u) {
        if (moi_kv_stage(&a->v, v_rows + k0, VK, 0, (dv + 7u) & ~7u, T, tile, T * DV)) odd[chunk] = 1u;
        moi_sync();
        if (thread == 0u) odd[chunk ^ 1u] = 0u;
        int careful = odd[chunk] != 0u;
        MOI_ROLLED
        for (unsigned k = 0; k < VK; k++) {
          const float *p = &weights[(k0 + k) * LDP], *f = &tile[k * T * DV + thread];
          MOI_UNROLL
          for (unsigned r4 = 0; r4 < R; r4 += 4u) {
            moi_f4 w4 = *(const moi_f4 *)(const void *)&p[r4];
            float w[4] = {w4.x, w4.y, w4.z, w4.w};
            MOI_UNROLL
            for (unsigned i = 0; i < 4u; i++) {
              MOI_UNROLL
              for (unsigned c = 0; c < DV; c++) {
                float *x = &acc[(r4 + i) * DV + c];
                if (!careful || w[i] != 0.0f || !moi_is_odd(f[c * T])) *x = fmaf(w[i], f[c * T], *x);
              }
            }
          }
        }
        moi_sync();
      }
    }
    if (!to_acc) break; /* one segment, which ends here */

    /* a segment that is not the first goes to the others; a thread reads what it has written itself */
    int joins = segment != first_segment;
    if (thread < R) {
      float m = mosts[thread], sum = sums[thread], keep = 0.0f, add = 1.0f;
      if (joins) {
        float more_m = m, more_s = sum;
        m = to_sums[2u * thread];
        sum = to_sums[2u * thread + 1u];
        moi_join(&m, &sum, more_m, more_s, &keep, &add);
      }
      to_sums[2u * thread] = m;
      to_sums[2u * thread + 1u] = sum;
      keeps[thread] = keep;
      adds[thread] = add;
    }
    moi_sync();
    unsigned thread_now = moi_fresh(thread);
    MOI_UNROLL
    for (unsigned r = 0; r < R; r++) {
      MOI_UNROLL
      for (unsigned c = 0; c < DV; c++) {
        unsigned e = c * T + thread_now;
        if (e >= dv) continue;
        float *x = &to_acc[r * dv + e];
        if (!joins) *x = acc[r * DV + c];
        else if (adds[r] != 0.0f) *x = fmaf(*x, keeps[r], acc[r * DV + c] * adds[r]);
      }
    }
    moi_sync();
  }
  if (to_acc) return;

  moi_sync();
  if (thread < R && first + thread < rows) {
    unsigned r = first + thread;
    keeps[thread] = moi_row_end(a, s->row + r / group, kv_head * group + r % group, mosts[thread], sums[thread]);
  }
  moi_sync();
  MOI_UNROLL
  for (unsigned r = 0; r < R; r++) {
    if (first + r >= rows) break;
    uint64_t y = moi_y_at(a, s->row + (first + r) / group, kv_head * group + (first + r) % group);
    MOI_UNROLL
    for (unsigned c = 0; c < DV; c++) {
      unsigned e = c * T + thread;
      if (e < dv) moi_store(a->output_type, a->y, y + e, sums[r] == 0.0f ? 0.0f : acc[r * DV + c] * keeps[r]);
    }
  }
}

#define KERNELS(R, DV)                                                                                                 \
  MOI_KERNEL(attend_tile_4_##DV, 128, moi_cu_attention_args) { attend_tile(a, 4, DV, 0); }                             \
  MOI_KERNEL(attend_tile_##R##_##DV, 128, moi_cu_attention_args) { attend_tile(a, R, DV, 0); }                         \
  MOI_KERNEL(attend_tile_many_##DV, 128, moi_cu_attention_args) { attend_tile(a, R, DV, 1); }
KERNELS(16, 1)
KERNELS(16, 2)
KERNELS(16, 4)
KERNELS(8, 8) /* as many registers as 16, 4 */
