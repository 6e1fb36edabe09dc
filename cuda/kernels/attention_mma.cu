/* Attention on tensor cores, an online softmax over tiles of 64 keys: a warp has 16 or 32 rows, scores and sums in
 * registers, queries, keys and values bf16 in shared memory. Keys of the next step come while weights and values are
 * multiplied, values while keys are. Queries, and keys and values of the cache, are exact in bf16; exp(l) is rounded to
 * it. Logits are kept times log2 e. */
#include "cuda/kernels/attention_load.h"

#include "cuda/device/copy.h"
#include "cuda/device/mma.h"

#define T 128u           /* threads */
#define N 64u            /* keys of a step */
#define LD(d) ((d) + 8u) /* numbers between rows: eight of them lie in different banks */
#define LOG2E 1.44269504f
#define LN2 0.693147181f

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define BODY(DK, DV, MT, many) (void)a;
#else
#define BODY(DK, DV, MT, many) attend_mma(a, DK, DV, MT, many);

/* Eight floats that are bf16, to shared memory. */
MOI_DEVICE void store_eight(uint16_t *to, const float *f) {
  moi_u4 q;
  q.x = moi_bf16x2_exact(f[0], f[1]);
  q.y = moi_bf16x2_exact(f[2], f[3]);
  q.z = moi_bf16x2_exact(f[4], f[5]);
  q.w = moi_bf16x2_exact(f[6], f[7]);
  *(moi_u4 *)(void *)to = q;
}

/* N rows of the cache, DIM numbers of each, zeros behind their end. safe: any address that 16 bytes may be read of */
MOI_DEVICE void stage(const moi_cu_kv *kv, const uint8_t *const *rows, uint16_t *to, const unsigned DIM,
                      const void *safe) {
  const unsigned eights = DIM / 8u;
  unsigned thread = moi_fresh(moi_thread());
  if (kv->vectors && kv->format == MOI_CU_BF16) {
    MOI_ROLLED
    for (unsigned i = 0; i < N * eights; i += 4u * T) {
      MOI_UNROLL
      for (unsigned c = 0; c < 4u; c++) {
        unsigned at = i + c * T + thread, r = at / eights, e = 8u * (at % eights);
        const uint8_t *row = rows[r];
        int there = row && e < kv->dim;
        moi_copy16_async(to + r * LD(DIM) + e, there ? (const void *)(row + 2u * e) : safe, there ? 16 : 0);
      }
    }
    return;
  }
  MOI_ROLLED
  for (unsigned i = thread; i < N * eights; i += T) {
    unsigned r = i / eights, e = 8u * (i % eights);
    float f[8];
    moi_kv_eight(kv, rows[r], e, f);
    store_eight(to + r * LD(DIM) + e, f);
  }
}

MOI_DEVICE int odd_word(unsigned w) { return (w & 0x7f80u) == 0x7f80u || (w & 0x7f800000u) == 0x7f800000u; }

/* DK, DV: dimensions there is room for; MT: blocks of 16 rows of a warp; many: as attend_tile's */
MOI_DEVICE void attend_mma(const moi_cu_attention_args *a, const unsigned DK, const unsigned DV, const unsigned MT,
                           const int many) {
  MOI_SHARED_ASKED(memory);
  MOI_SHARED(const uint8_t *, k_rows, 2u * N);
  MOI_SHARED(const uint8_t *, v_rows, 2u * N);
  MOI_SHARED(float, scales, 128);
  MOI_SHARED(unsigned, begins, 128);
  MOI_SHARED(unsigned, ends, 128);
  MOI_SHARED(unsigned, odd, 1);
  const unsigned R = 64u * MT;
  uint16_t *queries = (uint16_t *)(void *)memory, *keys = queries + R * LD(DK), *values = keys + N * LD(DK);
  unsigned thread = moi_thread(), lane = moi_lane(), item = moi_block_x(), n_seqs = a->n_seqs;
  unsigned n_items = many ? a->seqs[n_seqs].many : a->seqs[n_seqs].few;
  if (item >= n_items) return;
  if (many) item = n_items - 1u - item; /* under a causal mask a sequence's last tiles have most to do */
  unsigned kv_head = many ? moi_block_y() : moi_block_y() / a->n_segments, group = a->n_heads / a->n_kv_heads;

  unsigned seq = moi_seq_of(a->seqs, n_seqs, many, item);
  const moi_cu_seq *s = &a->seqs[seq];
  unsigned rows = s->rows * group, first = (item - (many ? s->many : s->few)) * R, row_of_seq = s->row;
  if (thread < R) {
    unsigned r = first + thread, after = moi_position_after(s->position, moi_min_u(r, rows - 1u) / group);
    moi_span span = moi_visible(a, s, after);
    begins[thread] = r < rows ? span.begin : 0u;
    ends[thread] = r < rows ? span.end : 0u;
    scales[thread] = moi_row_scale(a, after, kv_head) * (a->softcap != 0.0f ? 1.0f / a->softcap : LOG2E);
  }
  moi_sync();

  /* all keys that a row of the tile sees, and those that all see; the same of this warp's rows */
  unsigned begin = ~0u, end = 0u, all_begin = 0u, all_end = ~0u, warp_begin = ~0u, warp_end = 0u;
  for (unsigned r = 0; r < R && first + r < rows; r++) {
    unsigned b = begins[r], e = ends[r];
    all_begin = moi_max_u(all_begin, b);
    all_end = moi_min_u(all_end, e);
    if (b >= e) continue;
    begin = moi_min_u(begin, b);
    end = moi_max_u(end, e);
    if (r / (16u * MT) != moi_warp()) continue;
    warp_begin = moi_min_u(warp_begin, b);
    warp_end = moi_max_u(warp_end, e);
  }
  unsigned segment_keys = many ? a->many_segment : a->segment;
  if (!many) {
    unsigned segment = moi_block_y() % a->n_segments;
    begin = moi_max_u(begin, segment * segment_keys);
    end = moi_min_u(end, (segment + 1u) * segment_keys);
    if (begin >= end) return;
  }
  unsigned row0 = moi_warp() * 16u * MT + lane / 4u, column0 = 2u * (lane % 4u);

  /* queries; rows behind the last are zeros */
  for (unsigned i = thread; i < R * DK / 8u; i += T) {
    unsigned r = i / (DK / 8u), e = 8u * (i % (DK / 8u));
    int there = first + r < rows && e < a->k.dim;
    unsigned at = there ? first + r : 0u;
    const uint16_t *q = (const uint16_t *)a->q + (uint64_t)(row_of_seq + at / group) * a->q_stride +
                        (uint64_t)(kv_head * group + at % group) * a->q_head_stride + (there ? e : 0u);
    uint16_t *to = queries + r * LD(DK) + e;
    if (a->q_vectors) {
      moi_copy16_async(to, q, there ? 16 : 0);
    } else {
      for (unsigned j = 0; j < 8u; j++) to[j] = there ? q[j] : (uint16_t)0;
    }
  }
  unsigned q_at = (moi_warp() * 16u * MT + lane % 16u) * LD(DK) + 8u * (lane / 16u);
  unsigned k_at = (lane % 8u + 8u * (lane / 16u)) * LD(DK) + 8u * (lane / 8u % 2u);
  unsigned v_at = (lane % 16u) * LD(DV) + 8u * (lane / 16u);

  float acc[2 * 32 * 4], most[4], sum[4];
  unsigned first_segment = begin < end ? begin / segment_keys : 0u;
  for (unsigned segment = first_segment;
       segment == first_segment || (begin < end && segment <= (end - 1u) / segment_keys); segment++) {
    unsigned from = 0, to = 0;
    if (begin < end) {
      from = moi_max_u(begin, segment * segment_keys);
      to = end - segment * segment_keys > segment_keys ? (segment + 1u) * segment_keys : end;
    }
    MOI_UNROLL
    for (unsigned i = 0; i < MT * DV / 2u; i++) acc[i] = 0.0f;
    MOI_UNROLL
    for (unsigned i = 0; i < 2u * MT; i++) {
      most[i] = -MOI_INF;
      sum[i] = 0.0f;
    }
    unsigned table = 0, step = from / N * N;
    if (thread < N) {
      unsigned j = step + thread, page, token;
      int there = j >= from && j < to && moi_place_of(&a->where, seq, j, &page, &token);
      k_rows[thread] = there ? moi_kv_row(&a->k, kv_head, page, token) : NULL;
      v_rows[thread] = there ? moi_kv_row(&a->v, kv_head, page, token) : NULL;
    }
    moi_sync();
    stage(&a->k, k_rows, keys, DK, a->seqs);
    moi_copy_commit();

    for (; step < to; step += N, table ^= N) {
      moi_copy_wait(0);
      moi_sync(); /* keys are there; values have been read */
      if (thread == 0u) *odd = 0u;
      unsigned next = step + N + thread, page = 0, token = 0; /* the page is loaded now, its address is wanted later */
      int there = thread < N && next >= from && next < to && moi_place_of(&a->where, seq, next, &page, &token);
      stage(&a->v, v_rows + table, values, DV, a->seqs);
      moi_copy_commit();

      int sees = step < warp_end && step + N > warp_begin; /* the warp */
      int whole = step >= moi_max_u(all_begin, from) && step + N <= moi_min_u(all_end, to);
      float score[2 * 8 * 4];
      unsigned weights[2 * 8 * 2];
      if (sees) {
        MOI_UNROLL
        for (unsigned i = 0; i < MT * 32u; i++) score[i] = 0.0f;
        const uint16_t *q_now = queries + moi_fresh(q_at), *k_now = keys + moi_fresh(k_at);
        MOI_UNROLL
        for (unsigned k = 0; k < DK; k += 16u) {
          unsigned q[2 * 4];
          MOI_UNROLL
          for (unsigned m = 0; m < MT; m++) moi_ldmatrix_x4(&q[4u * m], q_now + m * 16u * LD(DK) + k);
          MOI_UNROLL
          for (unsigned n = 0; n < 8u; n += 2u) {
            unsigned b[4];
            moi_ldmatrix_x4(b, k_now + n * 8u * LD(DK) + k);
            MOI_UNROLL
            for (unsigned m = 0; m < MT; m++) {
              moi_mma_bf16_16816(&score[4u * (m * 8u + n)], &q[4u * m], b);
              moi_mma_bf16_16816(&score[4u * (m * 8u + n + 1u)], &q[4u * m], b + 2);
            }
          }
        }
      }
      if (thread < N) {
        k_rows[(table ^ N) + thread] = there ? moi_kv_row(&a->k, kv_head, page, token) : NULL;
        v_rows[(table ^ N) + thread] = there ? moi_kv_row(&a->v, kv_head, page, token) : NULL;
      }
      moi_sync(); /* keys have been read */
      if (step + N < to) stage(&a->k, k_rows + (table ^ N), keys, DK, a->seqs);
      moi_copy_commit();

      if (sees) {
        MOI_UNROLL
        for (unsigned h = 0; h < 2u * MT; h++) { /* this thread's rows: 8 apart */
          float *l = &score[(h / 2u) * 32u + 2u * (h % 2u)], top = -MOI_INF;
          unsigned r = row0 + 8u * h, low = moi_max_u(begins[r], from), high = moi_min_u(ends[r], to);
          float scale = scales[r];
          MOI_UNROLL
          for (unsigned i = 0; i < 16u; i++) l[i / 2u * 4u + i % 2u] *= scale;
          if (a->softcap != 0.0f) {
            MOI_UNROLL
            for (unsigned i = 0; i < 16u; i++) {
              float *x = &l[i / 2u * 4u + i % 2u];
              *x = tanhf(*x) * (a->softcap * LOG2E);
            }
          }
          if (!whole) {
            MOI_UNROLL
            for (unsigned i = 0; i < 16u; i++) {
              unsigned j = step + i / 2u * 8u + column0 + i % 2u;
              if (j < low || j >= high) l[i / 2u * 4u + i % 2u] = -MOI_INF;
            }
          }
          MOI_UNROLL
          for (unsigned i = 0; i < 16u; i++) top = l[i / 2u * 4u + i % 2u] > top ? l[i / 2u * 4u + i % 2u] : top;
          MOI_UNROLL
          for (unsigned mask = 1u; mask < 4u; mask *= 2u) {
            float other = moi_xor_f32(top, mask);
            top = other > top ? other : top;
          }
          top = top > most[h] ? top : most[h];
          float base = top == -MOI_INF ? 0.0f : top, keep = moi_exp2(most[h] - base), more = 0.0f;
          MOI_UNROLL
          for (unsigned n = 0; n < 8u; n++) {
            float p = moi_exp2(l[4u * n] - base), p1 = moi_exp2(l[4u * n + 1u] - base);
            more += p;
            more += p1;
            weights[((h / 2u) * 8u + n) * 2u + h % 2u] = moi_bf16x2(p, p1);
          }
          sum[h] = fmaf(sum[h], keep, more);
          most[h] = top;
          MOI_UNROLL
          for (unsigned n = 0; n < DV / 8u; n++) {
            float *x = &acc[((h / 2u) * (DV / 8u) + n) * 4u + 2u * (h % 2u)];
            x[0] *= keep;
            x[1] *= keep;
          }
        }
      }
      moi_copy_wait(1);
      moi_sync(); /* values are there */

      if (!whole) { /* what a row does not see, or weighs 0, must not reach it as NaN */
        int met = 0;
        MOI_ROLLED
        for (unsigned i = thread; i < N * DV / 2u; i += T)
          met |= odd_word(*(const unsigned *)(const void *)(values + i / (DV / 2u) * LD(DV) + 2u * (i % (DV / 2u))));
        if (met) *odd = 1u;
        moi_sync();
        if (*odd) {
          if (sees) {
            unsigned weighs[4][2]; /* of this thread's rows: a bit for each key */
            MOI_UNROLL
            for (unsigned h = 0; h < 2u * MT; h++) {
              weighs[h][0] = weighs[h][1] = 0u;
              MOI_UNROLL
              for (unsigned n = 0; n < 8u; n++) {
                unsigned w = weights[((h / 2u) * 8u + n) * 2u + h % 2u], shift = 8u * (n % 4u) + column0;
                weighs[h][n / 4u] |= ((w & 0x7fffu) != 0u ? 1u << shift : 0u) | (w & 0x7fff0000u ? 2u << shift : 0u);
              }
              MOI_UNROLL
              for (unsigned i = 0; i < 2u; i++) {
                weighs[h][i] |= moi_xor_u32(weighs[h][i], 1u);
                weighs[h][i] |= moi_xor_u32(weighs[h][i], 2u);
              }
            }
            MOI_ROLLED
            for (unsigned k = 0; k < N; k++) {
              MOI_UNROLL
              for (unsigned n = 0; n < DV / 8u; n++) {
                unsigned w = *(const unsigned *)(const void *)(values + k * LD(DV) + 8u * n + column0);
                if (!odd_word(w)) continue;
                float f0 = moi_bf16_low_f32(w), f1 = moi_bf16_high_f32(w);
                MOI_UNROLL
                for (unsigned i = 0; i < 2u * MT; i++) {
                  float *x = &acc[((i / 2u) * (DV / 8u) + n) * 4u + 2u * (i % 2u)];
                  unsigned its = ((k < 32u ? weighs[i][0] : weighs[i][1]) >> (k % 32u)) & 1u;
                  if (its && moi_is_odd(f0)) x[0] += f0;
                  if (its && moi_is_odd(f1)) x[1] += f1;
                }
              }
            }
          }
          moi_sync();
          MOI_ROLLED
          for (unsigned i = thread; i < N * DV / 2u; i += T) {
            unsigned *w = (unsigned *)(void *)(values + i / (DV / 2u) * LD(DV) + 2u * (i % (DV / 2u)));
            if ((*w & 0x7f80u) == 0x7f80u) *w &= 0xffff0000u;
            if ((*w & 0x7f800000u) == 0x7f800000u) *w &= 0xffffu;
          }
          moi_sync();
        }
      }
      if (sees) {
        const uint16_t *v_now = values + moi_fresh(v_at);
        MOI_UNROLL
        for (unsigned k = 0; k < N; k += 16u) {
          MOI_UNROLL
          for (unsigned n = 0; n < DV / 8u; n += 2u) {
            unsigned b[4];
            moi_ldmatrix_x4_trans(b, v_now + k * LD(DV) + n * 8u);
            MOI_UNROLL
            for (unsigned m = 0; m < MT; m++) {
              const unsigned *p = &weights[(m * 8u + k / 8u) * 2u];
              moi_mma_bf16_16816(&acc[(m * (DV / 8u) + n) * 4u], p, b);
              moi_mma_bf16_16816(&acc[(m * (DV / 8u) + n + 1u) * 4u], p, b + 2);
            }
          }
        }
      }
    }
    moi_copy_wait(0);

    /* sums of a row's lanes; the logits' own unit */
    MOI_UNROLL
    for (unsigned h = 0; h < 2u * MT; h++) {
      sum[h] += moi_xor_f32(sum[h], 1u);
      sum[h] += moi_xor_f32(sum[h], 2u);
      most[h] = most[h] == -MOI_INF ? most[h] : most[h] * LN2;
    }
    /* where sums go, found only here: no register holds it through the products */
    uint64_t slot = moi_fresh(item);
    if (!many) slot = slot * a->n_segments + moi_block_y() % a->n_segments;
    slot = slot * a->n_kv_heads + kv_head;
    unsigned dv = a->v.dim;
    float *to_acc = many ? a->many : a->few, *to_sums = many ? a->many_sums : a->few_sums;
    if (to_acc) to_acc += slot * R * dv, to_sums += slot * R * 2u;
    if (!to_acc) { /* one segment, and the row's end */
      MOI_UNROLL
      for (unsigned h = 0; h < 2u * MT; h++) {
        unsigned r = first + row0 + 8u * h;
        if (r >= rows) continue;
        unsigned head = kv_head * group + r % group;
        uint64_t row = row_of_seq + r / group, y = moi_y_at(a, row, head);
        float factor = moi_row_end(a, row, head, most[h], sum[h]);
        MOI_UNROLL
        for (unsigned n = 0; n < DV / 8u; n++) {
          unsigned e = 8u * n + column0;
          if (e >= dv) continue;
          const float *x = &acc[((h / 2u) * (DV / 8u) + n) * 4u + 2u * (h % 2u)];
          float x0 = sum[h] == 0.0f ? 0.0f : x[0] * factor, x1 = sum[h] == 0.0f ? 0.0f : x[1] * factor;
          if (a->y_pairs && a->output_type == MOI_CU_BF16) {
            *(unsigned *)(void *)((uint16_t *)a->y + y + e) = moi_bf16x2(x0, x1);
          } else {
            moi_store(a->output_type, a->y, y + e, x0);
            moi_store(a->output_type, a->y, y + e + 1u, x1);
          }
        }
      }
      return;
    }

    /* a segment that is not the first goes to the others; a thread reads what it has written itself */
    unsigned row_now = moi_fresh(row0);
    MOI_UNROLL
    for (unsigned h = 0; h < 2u * MT; h++) {
      unsigned r = row_now + 8u * h;
      float keep = 0.0f, add = 1.0f, m = most[h], all = sum[h];
      int joins = segment != first_segment;
      if (joins) {
        m = to_sums[2u * r];
        all = to_sums[2u * r + 1u];
        moi_join(&m, &all, most[h], sum[h], &keep, &add);
      }
      moi_sync_warp();
      if (column0 == 0u) {
        to_sums[2u * r] = m;
        to_sums[2u * r + 1u] = all;
      }
      MOI_UNROLL
      for (unsigned n = 0; n < DV / 8u; n++) {
        unsigned e = 8u * n + column0;
        if (n % 4u == 0u) moi_sync_warp(); /* loads of four at a time: all would need as many registers as acc */
        if (e >= dv) continue;
        moi_f2 *x = (moi_f2 *)(void *)&to_acc[r * dv + e], y;
        const float *more = &acc[((h / 2u) * (DV / 8u) + n) * 4u + 2u * (h % 2u)];
        y.x = more[0], y.y = more[1];
        if (joins && add == 0.0f) continue;
        if (joins) {
          moi_f2 old = *x;
          y.x = fmaf(old.x, keep, y.x * add);
          y.y = fmaf(old.y, keep, y.y * add);
        }
        *x = y;
      }
    }
    moi_sync(); /* the tables of rows have been read */
  }
}

#endif

#define KERNELS(DK, DV, MT)                                                                                            \
  MOI_KERNEL(attend_mma_##DK##_##DV, 128, moi_cu_attention_args){BODY(DK, DV, 1, 0)} MOI_KERNEL(                       \
      attend_mma_many_##DK##_##DV, 128, moi_cu_attention_args) {                                                       \
    BODY(DK, DV, MT, 1)                                                                                                \
  }
KERNELS(64, 64, 2)
KERNELS(128, 128, 1)
KERNELS(192, 128, 1)
KERNELS(256, 256, 1)
