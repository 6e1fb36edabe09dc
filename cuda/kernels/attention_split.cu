/* Attention of few rows, split over the keys, in fp32: the cache is read once, as it lies, into registers.
 *
 * A warp's turn is 32 keys. A row of the cache is spread over L lanes, 8 elements each and C times, so that 32 / L rows
 * are read at once; the tile's queries, R rows, lie in registers the same way, and so do the sums of the values. Loads of
 * the next rows are on their way while these are multiplied. Dot products meet in a transposing sum: L of them in L - 1
 * exchanges, and not in L log L. For the softmax a lane has a key.
 *
 * What weighs 0 and is infinite or NaN must be left out: where a sum ends as such, the keys are gone through again with
 * care, and nobody else pays for it. */
#define MOI_BLOCKS 2
#include "cuda/kernels/attention_split.h"

#define STEP 32u /* keys of a warp's turn */
#define MAX_R 8
#define MAX_CHUNKS 4
#define MAX_AT_ONCE 8
enum { ANY = 0 }; /* format: of each side its own, rows that begin anywhere */

/* What 8 elements are before they are numbers. */
#define WORDS(format)                                                                                                  \
  ((format) == MOI_CU_F32 || (format) == ANY ? 8u : (format) == MOI_CU_FP8 ? 2u : (format) == MOI_CU_Q8_0 ? 3u : 4u)

/* Elements e .. e+7 of a row; zeros behind its end, and where there is no row. */
MOI_DEVICE void load_eight(const unsigned format, const moi_cu_kv *kv, const uint8_t *row, unsigned e, unsigned *w) {
  int there = row && e < kv->dim;
  if (format == ANY) {
    float f[8];
    moi_kv_eight(kv, row, e, f);
    MOI_UNROLL
    for (unsigned i = 0; i < 8u; i++) w[i] = moi_f32_bits(f[i]);
  } else if (format == MOI_CU_F32) {
    moi_u4 x = {0, 0, 0, 0}, y = {0, 0, 0, 0};
    if (there) {
      const moi_u4 *p = (const moi_u4 *)moi_global(row + 4u * e);
      x = p[0];
      y = p[1];
    }
    w[0] = x.x, w[1] = x.y, w[2] = x.z, w[3] = x.w, w[4] = y.x, w[5] = y.y, w[6] = y.z, w[7] = y.w;
  } else if (format == MOI_CU_FP8) {
    moi_u2 x = {0, 0};
    if (there) x = *(const moi_u2 *)moi_global(row + e);
    w[0] = x.x, w[1] = x.y;
  } else if (format == MOI_CU_Q8_0) { /* blocks of 34 bytes: eight codes from an even byte on */
    unsigned d = 0, q[4] = {0, 0, 0, 0};
    if (there) {
      const uint16_t *block = (const uint16_t *)moi_global(row + 34u * (e / 32u)), *p = block + 1u + e % 32u / 2u;
      d = block[0];
      MOI_UNROLL
      for (unsigned i = 0; i < 4u; i++) q[i] = p[i];
    }
    w[0] = q[0] | q[1] << 16, w[1] = q[2] | q[3] << 16, w[2] = d;
  } else {
    moi_u4 x = {0, 0, 0, 0};
    if (there) x = *(const moi_u4 *)moi_global(row + 2u * e);
    w[0] = x.x, w[1] = x.y, w[2] = x.z, w[3] = x.w;
  }
}

MOI_DEVICE void decode_eight(const unsigned format, const unsigned *w, float *f) {
  if (format == MOI_CU_FP8) { /* two at a time: an E4M3 code is an f16 of another bias, but for its NaN */
    MOI_UNROLL
    for (unsigned i = 0; i < 8u; i += 2u) {
      unsigned at = i / 4u * 4u + i % 4u / 2u, p = i % 4u ? w[i / 4u] : w[i / 4u] << 8; /* bytes at, at + 2 */
      unsigned h = ((p >> 1) & 0x3f803f80u) | (p & 0x80008000u);
      f[at] = moi_f16_f32(h) * 256.0f;
      f[at + 2u] = moi_f16_f32(h >> 16) * 256.0f;
    }
    if ((((w[0] & 0x7f7f7f7fu) + 0x01010101u) | ((w[1] & 0x7f7f7f7fu) + 0x01010101u)) & 0x80808080u) {
      MOI_UNROLL
      for (unsigned i = 0; i < 8u; i++)
        if (((w[i / 4u] >> (8u * (i % 4u))) & 127u) == 127u) f[i] = moi_bits_f32(0x7fc00000u);
    }
    return;
  }
  float d = format == MOI_CU_Q8_0 ? moi_f16_f32(w[2]) : 0.0f;
  MOI_UNROLL
  for (unsigned i = 0; i < 8u; i++) {
    if (format == ANY || format == MOI_CU_F32) {
      f[i] = moi_bits_f32(w[i]);
    } else if (format == MOI_CU_Q8_0) { /* as moi_small, less 128 too */
      unsigned q = ((w[i / 4u] ^ 0x80808080u) >> (8u * (i % 4u))) & 255u;
      f[i] = (moi_bits_f32(0x4b000000u | q) - 8388736.0f) * d;
    } else if (format == MOI_CU_BF16) {
      f[i] = i % 2u ? moi_bf16_high_f32(w[i / 2u]) : moi_bf16_low_f32(w[i / 2u]);
    } else {
      f[i] = moi_f16_f32(i % 2u ? w[i / 2u] >> 16 : w[i / 2u]);
    }
  }
}

/* N numbers of each lane, summed over groups of `lanes` of them; the one with index i ends up in v[i % left] of the lane
 * that *first = i / left * left says, left = max(N / lanes, 1). Where lanes are more than numbers, several have each. */
MOI_DEVICE void sum_transposed(float *v, const unsigned N, const unsigned lanes, unsigned *first) {
  unsigned left = N, lane = moi_lane(), at = 0;
  MOI_UNROLL
  for (unsigned step = 1u; step < 32u; step *= 2u) {
    unsigned mask = lanes / 2u / step;
    if (mask == 0u) continue;
    if (left > 1u) {
      left /= 2u;
      int upper = (lane & mask) != 0u;
      MOI_UNROLL
      for (unsigned i = 0; i < N / 2u; i++) {
        if (i >= left) continue;
        float mine = upper ? v[i + left] : v[i], other = upper ? v[i] : v[i + left];
        v[i] = mine + moi_xor_f32(other, mask);
      }
      if (upper) at += left;
    } else {
      v[0] += moi_xor_f32(v[0], mask);
    }
  }
  *first = at;
}

MOI_DEVICE void attend_split(const moi_cu_attention_args *a, const unsigned FORMAT, const unsigned L, const unsigned C,
                             const unsigned R) {
  /* U: rows at once, each of a lane; AHEAD: loaded while those before are multiplied. Registers allow no more */
  const unsigned W = WORDS(FORMAT), narrow = W == 8u || (FORMAT == MOI_CU_Q8_0 && R == 8u);
  const unsigned U = (C > 1u ? 2u : 4u) / (narrow ? 2u : 1u), AHEAD = FORMAT != ANY;
  const unsigned G = 32u / L, TURNS = STEP / (G * U), LD = 8u * L * C;
  MOI_SHARED(unsigned, held, (4u * 128u * 8u));       /* ANY: a thread's numbers; to get them takes many registers */
  MOI_SHARED(float, joint, 2048);                     /* queries, then sums of values: [row, LD] */
  MOI_SHARED(float, weights, (WARPS * STEP * MAX_R)); /* of a warp: [key, row] */
  MOI_SHARED(const uint8_t *, k_rows, (2u * WARPS * STEP));
  MOI_SHARED(const uint8_t *, v_rows, (2u * WARPS * STEP));
  MOI_SHARED(float, scales, MAX_R);
  MOI_SHARED(unsigned, begins, MAX_R);
  MOI_SHARED(unsigned, ends, MAX_R);
  MOI_SHARED(float, warp_mosts, (WARPS * MAX_R));
  MOI_SHARED(float, warp_sums, (WARPS * MAX_R));
  MOI_SHARED(float, mosts, MAX_R);
  MOI_SHARED(float, sums, MAX_R);
  MOI_SHARED(float, keeps, MAX_R);
  MOI_SHARED(float, adds, MAX_R);
  unsigned lane = moi_lane(), warp = moi_warp();
  unsigned in_row = lane % L, in_group = lane / L;
  unsigned *mine = held + 8u * moi_thread();
  float *its = weights + warp * STEP * R;
  const uint8_t **k_table = k_rows + warp * 2u * STEP, **v_table = v_rows + warp * 2u * STEP;

  MOI_ROLLED
  for (unsigned at = moi_block_x(); at < split_all(a); at += moi_grid_x()) {
    split_work w = split_work_of(a, at, R);
    moi_sync(); /* the work before has been read */
    split_rows(a, &w, R, begins, ends, scales);
    const moi_cu_kv queries = {NULL, NULL, 0, 0, 0, a->input_type, a->k.dim, a->q_vectors, 0};
    MOI_ROLLED
    for (unsigned i = moi_thread(); i < R * L * C; i += 32u * WARPS) {
      unsigned row = moi_min_u(w.first + i / (L * C), w.rows - 1u);
      uint64_t from = (uint64_t)(w.s->row + row / w.group) * a->q_stride +
                      (uint64_t)(w.kv_head * w.group + row % w.group) * a->q_head_stride;
      moi_kv_eight(&queries, (const uint8_t *)a->q + from * moi_element_bytes(a->input_type), 8u * (i % (L * C)),
                   &joint[8u * i]);
    }
    moi_sync();
    split_keys(a, &w, R, begins, ends);
    float q[MAX_R * 8], acc[MAX_R * 8];
    MOI_UNROLL
    for (unsigned i = 0; i < R * C; i++) {
      const moi_f4 *from = (const moi_f4 *)(const void *)&joint[i / C * LD + 8u * (i % C * L + in_row)];
      moi_f4 x = from[0], y = from[1];
      float *to_q = &q[8u * i];
      to_q[0] = x.x, to_q[1] = x.y, to_q[2] = x.z, to_q[3] = x.w;
      to_q[4] = y.x, to_q[5] = y.y, to_q[6] = y.z, to_q[7] = y.w;
    }

    MOI_ROLLED
    for (unsigned segment = split_first(a, &w);; segment++) {
      unsigned from, to;
      split_segment(a, &w, segment, &from, &to);
      float most[MAX_R], sum[MAX_R];
      unsigned start = from / STEP * STEP; /* this warp's first keys */
      start += (warp - start / STEP) % WARPS * STEP;
      MOI_ROLLED
      for (int careful = 0;; careful = 1) {
        MOI_UNROLL
        for (unsigned i = 0; i < R * C * 8u; i++) acc[i] = 0.0f;
        MOI_UNROLL
        for (unsigned r = 0; r < R; r++) {
          most[r] = -MOI_INF;
          sum[r] = 0.0f;
        }
        unsigned table = 0;
        split_place(a, &w, start + lane, from, to, &k_table[lane], &v_table[lane]);
        moi_sync_warp();
        unsigned x[2][MAX_AT_ONCE * 8];
        MOI_UNROLL
        for (unsigned u = 0; u < U * C * AHEAD; u++)
          load_eight(FORMAT, &a->k, k_table[u / C * G + in_group], 8u * (u % C * L + in_row), &x[0][u * W]);

        MOI_ROLLED
        for (unsigned step = start; step < to; step += WARPS * STEP, table ^= STEP) {
          /* the place of the keys that come next is loaded now, its address is wanted later */
          unsigned next = step + WARPS * STEP + lane, page = 0, token = 0;
          int there = next >= from && next < to && moi_place_of(&a->where, w.seq, next, &page, &token);

          /* scores */
          MOI_ROLLED
          for (unsigned t2 = 0; t2 < TURNS; t2 += 2u) {
            MOI_UNROLL
            for (unsigned half = 0; half < 2u; half++) {
              unsigned t = t2 + half;
              int more = !half || t + 1u < TURNS; /* keys again, or the first values */
              if (FORMAT == ANY) {
                MOI_ROLLED
                for (unsigned u = 0; u < U * C; u++)
                  load_eight(FORMAT, &a->k, k_table[table + t * U * G + u / C * G + in_group],
                             8u * (u % C * L + in_row), &mine[u * 1024u]);
              }
              MOI_UNROLL
              for (unsigned u = 0; u < U * C * AHEAD; u++) {
                unsigned key = (more ? (t + 1u) * U * G : 0u) + u / C * G + in_group;
                load_eight(FORMAT, more ? &a->k : &a->v, (more ? k_table : v_table)[table + key],
                           8u * (u % C * L + in_row), &x[1u - half][u * W]);
              }
              float score[MAX_R * 4];
              MOI_UNROLL
              for (unsigned u = 0; u < U; u++) {
                MOI_UNROLL
                for (unsigned c = 0; c < C; c++) {
                  float f[8];
                  decode_eight(FORMAT, AHEAD ? &x[half][(u * C + c) * W] : &mine[(u * C + c) * 1024u], f);
                  MOI_UNROLL
                  for (unsigned r = 0; r < R; r++) {
                    MOI_UNROLL
                    for (unsigned i = 0; i < 8u; i++)
                      score[u * R + r] = fmaf(f[i], q[(r * C + c) * 8u + i], c || i ? score[u * R + r] : 0.0f);
                  }
                }
              }
              unsigned first;
              sum_transposed(score, U * R, L, &first);
              MOI_UNROLL
              for (unsigned i = 0; i < (U * R > L ? U * R / L : 1u); i++)
                its[(t * U * G + (first + i) / R * G + in_group) * R + (first + i) % R] = score[i];
            }
          }
          moi_sync_warp();

          /* weights: a lane has a key */
          MOI_UNROLL
          for (unsigned r = 0; r < R; r++) {
            unsigned j = step + lane;
            float l = its[lane * R + r] * scales[r];
            if (a->softcap != 0.0f) l = a->softcap * tanhf(l / a->softcap);
            if (j < moi_max_u(begins[r], from) || j >= moi_min_u(ends[r], to)) l = -MOI_INF;
            float top = l > most[r] ? l : most[r];
            MOI_UNROLL
            for (unsigned mask = 16u; mask > 0u; mask /= 2u) {
              float other = moi_xor_f32(top, mask);
              top = other > top ? other : top;
            }
            float p = l == -MOI_INF ? 0.0f : expf(l - top), keep = moi_shrink(most[r], top);
            most[r] = top;
            sum[r] = fmaf(sum[r], keep, p);
            its[lane * R + r] = p;
            MOI_UNROLL
            for (unsigned i = 0; i < C * 8u; i++) acc[r * C * 8u + i] *= keep;
          }
          k_table[(table ^ STEP) + lane] = there ? moi_kv_row(&a->k, w.kv_head, page, token) : NULL;
          v_table[(table ^ STEP) + lane] = there ? moi_kv_row(&a->v, w.kv_head, page, token) : NULL;
          moi_sync_warp();

          /* values */
          MOI_ROLLED
          for (unsigned t2 = 0; t2 < TURNS; t2 += 2u) {
            MOI_UNROLL
            for (unsigned half = 0; half < 2u; half++) {
              unsigned t = t2 + half;
              int more = !half || t + 1u < TURNS; /* values again, or the next keys */
              if (FORMAT == ANY) {
                MOI_ROLLED
                for (unsigned u = 0; u < U * C; u++)
                  load_eight(FORMAT, &a->v, v_table[table + t * U * G + u / C * G + in_group],
                             8u * (u % C * L + in_row), &mine[u * 1024u]);
              }
              MOI_UNROLL
              for (unsigned u = 0; u < U * C * AHEAD; u++) {
                unsigned key = (more ? table + (t + 1u) * U * G : table ^ STEP) + u / C * G + in_group;
                load_eight(FORMAT, more ? &a->v : &a->k, (more ? v_table : k_table)[key], 8u * (u % C * L + in_row),
                           &x[1u - half][u * W]);
              }
              MOI_UNROLL
              for (unsigned u = 0; u < U; u++) {
                float p[MAX_R];
                MOI_UNROLL
                for (unsigned r = 0; r < R; r++) p[r] = its[(t * U * G + u * G + in_group) * R + r];
                MOI_UNROLL
                for (unsigned c = 0; c < C; c++) {
                  float f[8];
                  decode_eight(FORMAT, AHEAD ? &x[half][(u * C + c) * W] : &mine[(u * C + c) * 1024u], f);
                  if (!careful) {
                    MOI_UNROLL
                    for (unsigned i = 0; i < R * 8u; i++) {
                      float *to_acc = &acc[(i / 8u * C + c) * 8u + i % 8u];
                      *to_acc = fmaf(p[i / 8u], f[i % 8u], *to_acc);
                    }
                  } else {
                    MOI_UNROLL
                    for (unsigned i = 0; i < R * 8u; i++) {
                      float *to_acc = &acc[(i / 8u * C + c) * 8u + i % 8u];
                      if (p[i / 8u] != 0.0f || !moi_is_odd(f[i % 8u])) *to_acc = fmaf(p[i / 8u], f[i % 8u], *to_acc);
                    }
                  }
                }
              }
            }
          }
          moi_sync_warp(); /* weights have been read */
        }
        if (careful) break;
        int odd = 0;
        MOI_UNROLL
        for (unsigned i = 0; i < R * C * 8u; i++) odd |= moi_is_odd(acc[i]);
        if (!moi_ballot(odd)) break;
      }

      /* the warp's sums, then the block's */
      MOI_UNROLL
      for (unsigned r = 0; r < R; r++) {
        MOI_UNROLL
        for (unsigned mask = 16u; mask > 0u; mask /= 2u) sum[r] += moi_xor_f32(sum[r], mask);
        if (lane == 0u) {
          warp_mosts[warp * R + r] = most[r];
          warp_sums[warp * R + r] = sum[r];
        }
      }
      MOI_UNROLL
      for (unsigned mask = L; mask < 32u; mask *= 2u) {
        MOI_UNROLL
        for (unsigned i = 0; i < R * C * 8u; i++) acc[i] += moi_xor_f32(acc[i], mask);
      }
      moi_sync();
      split_sums(R, warp_mosts, warp_sums, mosts, sums);
      moi_sync();
      MOI_ROLLED
      for (unsigned i = 0; i < WARPS; i++) {
        if (warp == i && lane < L) {
          MOI_UNROLL
          for (unsigned r = 0; r < R; r++) {
            float factor = sum[r] == 0.0f ? 0.0f : moi_shrink(most[r], mosts[r]);
            MOI_UNROLL
            for (unsigned c = 0; c < C; c++) {
              MOI_UNROLL
              for (unsigned e = 0; e < 8u; e += 4u) {
                moi_f4 *to_joint = (moi_f4 *)(void *)&joint[r * LD + 8u * (c * L + in_row) + e];
                const float *more = &acc[(r * C + c) * 8u + e];
                moi_f4 y = {0.0f, 0.0f, 0.0f, 0.0f};
                if (i) y = *to_joint;
                if (factor != 0.0f) { /* NaN is not */
                  y.x = fmaf(more[0], factor, y.x), y.y = fmaf(more[1], factor, y.y);
                  y.z = fmaf(more[2], factor, y.z), y.w = fmaf(more[3], factor, y.w);
                }
                *to_joint = y;
              }
            }
          }
        }
        moi_sync();
      }
      if (FORMAT == ANY || C > 1u) { /* found again, so that no register holds it through the keys */
        w = split_work_of(a, moi_fresh(at), R);
        split_keys(a, &w, R, begins, ends);
      }
      split_end(a, &w, R, LD, joint, mosts, sums, keeps, adds, segment != split_first(a, &w));
      if (split_is_last(a, &w, segment)) break;
      moi_sync();
    }
  }
}

#define KERNEL(format, FORMAT, D, L, C, R)                                                                             \
  MOI_KERNEL(attend_split_##format##_##D##_##R, 128, moi_cu_attention_args) { attend_split(a, FORMAT, L, C, R); }
#define KERNELS(format, FORMAT)                                                                                        \
  KERNEL(format, FORMAT, 64, 8, 1, 4)                                                                                  \
  KERNEL(format, FORMAT, 128, 16, 1, 4)                                                                                \
  KERNEL(format, FORMAT, 256, 32, 1, 4)                                                                                \
  KERNEL(format, FORMAT, 512, 32, 2, 4)                                                                                \
  KERNEL(format, FORMAT, 768, 32, 3, 2)
#define KERNELS_8(format, FORMAT)                                                                                      \
  KERNEL(format, FORMAT, 64, 8, 1, 8)                                                                                  \
  KERNEL(format, FORMAT, 128, 16, 1, 8)                                                                                \
  KERNEL(format, FORMAT, 256, 32, 1, 8)
KERNELS(any, ANY)
KERNEL(any, ANY, 1024, 32, 4, 1)
KERNELS(f32, MOI_CU_F32)
KERNELS(f16, MOI_CU_F16)
KERNELS(bf16, MOI_CU_BF16)
KERNELS(fp8, MOI_CU_FP8)
KERNELS(q8_0, MOI_CU_Q8_0)
KERNELS_8(any, ANY)
KERNELS_8(f16, MOI_CU_F16)
KERNELS_8(bf16, MOI_CU_BF16)
KERNELS_8(fp8, MOI_CU_FP8)
KERNELS_8(q8_0, MOI_CU_Q8_0)
