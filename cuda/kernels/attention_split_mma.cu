/* Attention of few rows, split over the keys, on tensor cores: for more query heads of a KV head than fp32 can serve while
 * the next keys come from memory. Keys and values are the operand of 16 rows, queries and weights that of 8 columns, so that
 * 8 query rows fill a product; both go from the cache through registers alone. What belongs together in a product may be in
 * any order as long as both sides have the same one, so a lane loads 16 bytes of a row and has
 *
 *   K   rows g and g + 8 of 16 keys, elements 8 q .. 8 q + 7 of each 32: two products, in the order of the queries too
 *   V   rows 2 q, 2 q + 1, 2 q + 8, 2 q + 9 of 16 keys, elements 8 g .. 8 g + 7 of each 64: once the halves of two rows have
 *       changed places, four products, of elements (2 t, 2 t + 1) each
 *
 * with g = lane / 4, q = lane % 4; twice as many elements of fp8. Scores end as [key g, rows 2 q, 2 q + 1], weights are
 * wanted as [keys 2 q, 2 q + 1, row g]: two exchanges within the warp. A warp's turn is 32 keys. exp(l) is rounded to bf16,
 * everything else that is multiplied is exact in it. Logits are kept times log2 e.
 *
 * What weighs 0 and is infinite or NaN must be left out: where a sum ends as such, the keys are gone through again, to count
 * what is +infinity or NaN, what is -infinity or NaN, and to sum up what is left. */
#define MOI_BLOCKS 2
#include "cuda/kernels/attention_split.h"

#include "cuda/device/mma.h"

#define STEP 32u /* keys of a warp's turn */
#define MAX_R 16
#define LOG2E 1.44269504f
#define LN2 0.693147181f

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define BODY(FP8, DK, DV, R) (void)a;
#else
#define BODY(FP8, DK, DV, R) attend_split_mma(a, FP8, DK, DV, R);

enum { PLAIN, PLUS, MINUS, REST }; /* times through the keys: as they are; to count infinities; without them */

/* Two bytes of E4M3, in the high bytes of p's halves, as bf16: of such bits one is the value times 2^-120. NaN becomes
 * 480. */
MOI_DEVICE unsigned pair_of_fp8(unsigned p) {
  return moi_bf16x2_fma(((p >> 4) & 0x07f007f0u) | (p & 0x80008000u), 0x7b807b80u, 0x80008000u);
}
MOI_DEVICE unsigned nans_of_fp8(unsigned p) {
  return ((((p & 0x7f007f00u) + 0x01000100u) & 0x80008000u) >> 15) * 0x7fc0u;
}
/* Eight bytes of it. */
MOI_DEVICE void words_of_fp8(unsigned x, unsigned y, unsigned *w) {
  unsigned p[4] = {moi_bytes(x, 0u, 0x1404u), moi_bytes(x, 0u, 0x3424u), moi_bytes(y, 0u, 0x1404u),
                   moi_bytes(y, 0u, 0x3424u)};
  MOI_UNROLL
  for (unsigned i = 0; i < 4u; i++) w[i] = pair_of_fp8(p[i]);
  if ((((x & 0x7f7f7f7fu) + 0x01010101u) | ((y & 0x7f7f7f7fu) + 0x01010101u)) & 0x80808080u) {
    MOI_UNROLL
    for (unsigned i = 0; i < 4u; i++) w[i] |= nans_of_fp8(p[i]);
  }
}

/* Four bytes, from any even byte on; of fp8 from any. */
MOI_DEVICE unsigned load_word(const int FP8, const uint8_t *p) {
  if (FP8) return (unsigned)p[0] | (unsigned)p[1] << 8 | (unsigned)p[2] << 16 | (unsigned)p[3] << 24;
  const uint16_t *h = (const uint16_t *)(const void *)p;
  return (unsigned)h[0] | (unsigned)h[1] << 16;
}

/* A load: 16 bytes of a row from element e on, 8 if NARROW; zeros behind its end, and where there is no row. */
MOI_DEVICE void load_run(const int FP8, const int NARROW, const moi_cu_kv *kv, const uint8_t *row, unsigned e,
                         unsigned *w) {
  int there = row && e < kv->dim, half = FP8 && (NARROW || e + 8u >= kv->dim); /* eight elements are all there is */
  moi_u4 x = {0, 0, 0, 0};
  if (there) {
    const uint8_t *from = (const uint8_t *)moi_global(row + (FP8 ? e : 2u * e));
    if (!kv->vectors) {
      x.x = load_word(FP8, from), x.y = load_word(FP8, from + 4);
      if (!half) x.z = load_word(FP8, from + 8), x.w = load_word(FP8, from + 12);
    } else if (half) {
      moi_u2 y = *(const moi_u2 *)(const void *)from;
      x.x = y.x, x.y = y.y;
    } else {
      x = *(const moi_u4 *)(const void *)from;
    }
  }
  w[0] = x.x, w[1] = x.y;
  if (!NARROW) w[2] = x.z, w[3] = x.w;
}

/* 16 ones for each half of w whose highest bit is set */
MOI_DEVICE unsigned halves(unsigned w) { return ((w >> 15) & 0x00010001u) * 0xffffu; }
/* Of two bf16, 1 for each that counts, 0 for the others; or what is left of them. */
MOI_DEVICE unsigned word_of(int time, unsigned w) {
  unsigned odd = halves((w & 0x7f807f80u) + 0x00800080u), nan = halves(((w & 0x007f007fu) + 0x007f007fu) << 8);
  unsigned sign = halves(time == MINUS ? w : ~w);
  return time == REST ? w & ~odd : odd & (nan | sign) & 0x3f803f80u;
}

/* DK, DV: dimensions there is room for; R: 8 or 16 rows */
MOI_DEVICE void attend_split_mma(const moi_cu_attention_args *a, const int FP8, const unsigned DK, const unsigned DV,
                                 const unsigned R) {
  const unsigned NT = R / 8u;
  const unsigned KU = DK % 128u ? 2u : 4u,
                 VU = DV < 128u || (DV > 256u && !FP8) ? 1u : 2u; /* runs of 32, of 64 elements at once */
  const unsigned KN = DK / (32u * KU), VN = DV / (64u * VU);
  const int NARROW_V = FP8 && VU == 1u;
  /* loads of a row at once, and how much each has */
  const unsigned KL = FP8 ? KU / 2u : KU, VL = FP8 && !NARROW_V ? VU / 2u : VU, VW = NARROW_V ? 2u : 4u;
  MOI_SHARED(float, joint, 4096);
  MOI_SHARED(unsigned, queries, (576 / 2 * 8)); /* as the products have them: [run of 32, columns, lane, 4] */
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
  unsigned lane = moi_lane(), warp = moi_warp(), thread = moi_thread(), all = split_all(a);
  unsigned g = lane / 4u, q = lane % 4u;
  const uint8_t **k_table = k_rows + warp * 2u * STEP, **v_table = v_rows + warp * 2u * STEP;

  MOI_ROLLED
  for (unsigned at = moi_block_x(); at < all; at += moi_grid_x()) {
    split_work w = split_work_of(a, at, R);
    moi_sync(); /* the work before has been read */
    split_rows(a, &w, R, begins, ends, scales);
    MOI_ROLLED
    for (unsigned i = thread; i < DK / 32u * NT * 32u; i += 32u * WARPS) {
      unsigned l = i % 32u, r = i / 32u % NT * 8u + l / 4u, run = i / 32u / NT;
      unsigned e = FP8 ? run / 2u * 64u + l % 4u * 16u + run % 2u * 8u : run * 32u + l % 4u * 8u;
      moi_u4 x = {0, 0, 0, 0};
      if (w.first + r < w.rows && e < a->k.dim) {
        unsigned row = w.first + r;
        const uint16_t *from = (const uint16_t *)a->q + (uint64_t)(w.s->row + row / w.group) * a->q_stride +
                               (uint64_t)(w.kv_head * w.group + row % w.group) * a->q_head_stride + e;
        if (a->q_vectors) x = *(const moi_u4 *)moi_global(from);
        else {
          x.x = from[0] | (unsigned)from[1] << 16, x.y = from[2] | (unsigned)from[3] << 16;
          x.z = from[4] | (unsigned)from[5] << 16, x.w = from[6] | (unsigned)from[7] << 16;
        }
      }
      *(moi_u4 *)(void *)&queries[4u * i] = x;
    }
    moi_sync();
    split_keys(a, &w, R, begins, ends);

    int joins = 0;
    MOI_ROLLED
    for (unsigned segment = split_first(a, &w);; segment++, joins = 1) {
      unsigned from, to;
      split_segment(a, &w, segment, &from, &to);
      float acc[128];        /* [run of 64, pair, columns, 4] */
      float most[4], sum[4]; /* rows 2 q, 2 q + 1, then of the next columns */
      unsigned plus[4], minus[4];
      unsigned start = from / STEP * STEP; /* this warp's first keys */
      start += (warp - start / STEP) % WARPS * STEP;
      MOI_UNROLL
      for (unsigned i = 0; i < 4u; i++) plus[i] = minus[i] = 0u;
      MOI_ROLLED
      for (int time = PLAIN;; time++) {
        MOI_UNROLL
        for (unsigned i = 0; i < DV / 4u * NT; i++) acc[i] = 0.0f;
        MOI_UNROLL
        for (unsigned i = 0; i < 2u * NT; i++) {
          most[i] = -MOI_INF;
          sum[i] = 0.0f;
        }
        unsigned table = 0;
        split_place(a, &w, start + lane, from, to, &k_table[lane], &v_table[lane]);
        moi_sync_warp();
        unsigned x[2][32];
#define LOAD_K(unit, table, to)                                                                                        \
  {                                                                                                                    \
    MOI_UNROLL                                                                                                         \
    for (unsigned h = 0; h < 2u; h++) {                                                                                \
      const uint8_t *row = k_table[(table) + (unit) % 2u * 16u + h * 8u + g];                                          \
      MOI_UNROLL                                                                                                       \
      for (unsigned c = 0; c < KL; c++)                                                                                \
        load_run(FP8, 0, &a->k, row,                                                                                   \
                 FP8 ? ((unit) / 2u * KL + c) * 64u + 16u * q : ((unit) / 2u * KL + c) * 32u + 8u * q,                 \
                 &(to)[(c * 2u + h) * 4u]);                                                                            \
    }                                                                                                                  \
  }
#define LOAD_V(unit, table, to)                                                                                        \
  {                                                                                                                    \
    MOI_UNROLL                                                                                                         \
    for (unsigned h = 0; h < 4u; h++) {                                                                                \
      const uint8_t *row = v_table[(table) + (unit) / VN * 16u + h / 2u * 8u + 2u * q + h % 2u];                       \
      MOI_UNROLL                                                                                                       \
      for (unsigned c = 0; c < VL; c++)                                                                                \
        load_run(FP8, NARROW_V, &a->v, row,                                                                            \
                 FP8 && !NARROW_V ? ((unit) % VN * VL + c) * 128u + 16u * g : ((unit) % VN * VL + c) * 64u + 8u * g,   \
                 &(to)[(c * 4u + h) * VW]);                                                                            \
    }                                                                                                                  \
  }
        LOAD_K(0u, 0u, x[0])

        MOI_ROLLED
        for (unsigned step = start; step < to; step += WARPS * STEP, table ^= STEP) {
          /* the place of the keys that come next is loaded now, its address is wanted later */
          unsigned next = step + WARPS * STEP + lane, page = 0, token = 0;
          int there = next >= from && next < to && moi_place_of(&a->where, w.seq, next, &page, &token);

          /* scores */
          float score[2 * 2 * 4]; /* [16 keys, columns, 4] */
          MOI_UNROLL
          for (unsigned i = 0; i < 8u * NT; i++) score[i] = 0.0f;
          MOI_ROLLED
          for (unsigned unit2 = 0; unit2 < 2u * KN; unit2 += 2u) {
            MOI_UNROLL
            for (unsigned half = 0; half < 2u; half++) { /* 16 keys, then the others */
              unsigned unit = unit2 + half;
              if (!half || unit + 1u < 2u * KN) LOAD_K(unit + 1u, table, x[1u - half])
              else LOAD_V(0u, table, x[0])
              const unsigned *from_x = x[half];
              MOI_UNROLL
              for (unsigned c = 0; c < KU; c++) {
                const unsigned *k_low = &from_x[FP8 ? c / 2u * 8u + c % 2u * 2u : c * 8u], *k_high = k_low + 4;
                unsigned k0[4], k8[4]; /* of keys g, and g + 8 */
                if (FP8) {
                  words_of_fp8(k_low[0], k_low[1], k0);
                  words_of_fp8(k_high[0], k_high[1], k8);
                } else {
                  MOI_UNROLL
                  for (unsigned i = 0; i < 4u; i++) k0[i] = k_low[i], k8[i] = k_high[i];
                }
                MOI_UNROLL
                for (unsigned n = 0; n < NT; n++) {
                  moi_u4 b =
                      *(const moi_u4 *)(const void *)&queries[4u * (((unit / 2u * KU + c) * NT + n) * 32u + lane)];
                  unsigned a0[4] = {k0[0], k8[0], k0[1], k8[1]}, a1[4] = {k0[2], k8[2], k0[3], k8[3]};
                  unsigned b0[2] = {b.x, b.y}, b1[2] = {b.z, b.w};
                  moi_mma_bf16_16816(&score[(half * NT + n) * 4u], a0, b0);
                  moi_mma_bf16_16816(&score[(half * NT + n) * 4u], a1, b1);
                }
              }
            }
          }

          /* weights: a lane has four keys of each of its rows */
          unsigned weights[2 * 2 * 2]; /* [16 keys, columns, 8 keys] */
          MOI_UNROLL
          for (unsigned n = 0; n < NT; n++) {
            float p[2][4];
            MOI_UNROLL
            for (unsigned h = 0; h < 2u; h++) {
              unsigned r = n * 8u + 2u * q + h, low = moi_max_u(begins[r], from), high = moi_min_u(ends[r], to);
              float scale = scales[r], top = most[n * 2u + h];
              MOI_UNROLL
              for (unsigned i = 0; i < 4u; i++) { /* keys g, g + 8, g + 16, g + 24 */
                float l = score[(i / 2u * NT + n) * 4u + i % 2u * 2u + h] * scale;
                unsigned j = step + 8u * i + g;
                if (a->softcap != 0.0f) l = a->softcap * tanhf(l / a->softcap);
                l *= LOG2E;
                if (j < low || j >= high) l = -MOI_INF;
                p[h][i] = l;
                top = l > top ? l : top;
              }
              MOI_UNROLL
              for (unsigned mask = 4u; mask < 32u; mask *= 2u) {
                float other = moi_xor_f32(top, mask);
                top = other > top ? other : top;
              }
              float base = top == -MOI_INF ? 0.0f : top, keep = moi_exp2(most[n * 2u + h] - base), more = 0.0f;
              MOI_UNROLL
              for (unsigned i = 0; i < 4u; i++) {
                p[h][i] = moi_exp2(p[h][i] - base);
                more += p[h][i];
              }
              most[n * 2u + h] = top;
              sum[n * 2u + h] = fmaf(sum[n * 2u + h], keep, more);
              MOI_UNROLL
              for (unsigned i = 0; i < DV / 16u; i++) {
                acc[(i * NT + n) * 4u + h] *= keep;
                acc[(i * NT + n) * 4u + 2u + h] *= keep;
              }
            }
            MOI_UNROLL
            for (unsigned i = 0; i < 4u; i++) {
              unsigned both = moi_bf16x2(p[0][i], p[1][i]);
              unsigned even = moi_from_u32(both, 8u * q + g / 2u), odd = moi_from_u32(both, 8u * q + 4u + g / 2u);
              unsigned *to_w = &weights[(i / 2u * NT + n) * 2u + i % 2u];
              *to_w = moi_bytes(even, odd, g % 2u ? 0x7632u : 0x5410u);
              if (time == PLUS || time == MINUS)
                *to_w = (*to_w & 0x7fffu ? 0x3f80u : 0u) | (*to_w & 0x7fff0000u ? 0x3f800000u : 0u);
            }
          }
          k_table[(table ^ STEP) + lane] = there ? moi_kv_row(&a->k, w.kv_head, page, token) : NULL;
          v_table[(table ^ STEP) + lane] = there ? moi_kv_row(&a->v, w.kv_head, page, token) : NULL;
          moi_sync_warp();

          /* values */
          MOI_UNROLL
          for (unsigned half = 0; half < 2u; half++) { /* two loops: nvcc unrolls no 16 turns at once */
            MOI_UNROLL
            for (unsigned run = 0; run < VN; run++) {
              unsigned unit = half * VN + run;
              if (DV > 256u) moi_keep_order(); /* loads a unit ahead, not two: there are no registers for more */
              if (unit + 1u < 2u * VN) LOAD_V(unit + 1u, table, x[(unit + 1u) % 2u])
              else LOAD_K(0u, table ^ STEP, x[0])
              const unsigned *from_x = x[unit % 2u];
              MOI_UNROLL
              for (unsigned c = 0; c < VU; c++) {
                unsigned v[4][4]; /* [row, pair of elements] */
                MOI_UNROLL
                for (unsigned h = 0; h < 4u; h++) {
                  if (NARROW_V) {
                    words_of_fp8(from_x[h * 2u], from_x[h * 2u + 1u], v[h]);
                  } else if (FP8) {
                    words_of_fp8(from_x[h * 4u + c * 2u], from_x[h * 4u + c * 2u + 1u], v[h]);
                  } else {
                    MOI_UNROLL
                    for (unsigned i = 0; i < 4u; i++) v[h][i] = from_x[(c * 4u + h) * 4u + i];
                  }
                }
                if (time != PLAIN) {
                  MOI_UNROLL
                  for (unsigned i = 0; i < 16u; i++) v[i / 4u][i % 4u] = word_of(time, v[i / 4u][i % 4u]);
                }
                MOI_UNROLL
                for (unsigned t = 0; t < 4u; t++) {
                  unsigned a0[4] = {moi_bytes(v[0][t], v[1][t], 0x5410u), moi_bytes(v[0][t], v[1][t], 0x7632u),
                                    moi_bytes(v[2][t], v[3][t], 0x5410u), moi_bytes(v[2][t], v[3][t], 0x7632u)};
                  MOI_UNROLL
                  for (unsigned n = 0; n < NT; n++)
                    moi_mma_bf16_16816(&acc[(((run * VU + c) * 4u + t) * NT + n) * 4u], a0,
                                       &weights[(half * NT + n) * 2u]);
                }
              }
            }
          }
          moi_sync_warp(); /* the tables have been read */
        }
        if (time == REST) break;
        if (time == PLAIN) {
          int odd = 0;
          MOI_UNROLL
          for (unsigned i = 0; i < DV / 4u * NT; i++) odd |= moi_is_odd(acc[i]);
          if (!moi_ballot(odd)) break;
        } else {
          MOI_UNROLL
          for (unsigned i = 0; i < DV / 4u * NT; i++) {
            if (acc[i] != 0.0f && time == PLUS) plus[i / 32u] |= 1u << i % 32u;
            if (acc[i] != 0.0f && time == MINUS) minus[i / 32u] |= 1u << i % 32u;
          }
        }
      }
      MOI_UNROLL
      for (unsigned i = 0; i < DV / 4u * NT; i++) {
        unsigned bit = 1u << i % 32u;
        if (plus[i / 32u] & bit) acc[i] = MOI_INF;
        if (minus[i / 32u] & bit) acc[i] = plus[i / 32u] & bit ? MOI_INF - MOI_INF : -MOI_INF;
      }

      /* the warp's sums, in the logits' own unit; then the block's */
      MOI_UNROLL
      for (unsigned i = 0; i < 2u * NT; i++) {
        MOI_UNROLL
        for (unsigned mask = 4u; mask < 32u; mask *= 2u) sum[i] += moi_xor_f32(sum[i], mask);
        most[i] = most[i] == -MOI_INF ? most[i] : most[i] * LN2;
        if (g == 0u) {
          warp_mosts[warp * R + i / 2u * 8u + 2u * q + i % 2u] = most[i];
          warp_sums[warp * R + i / 2u * 8u + 2u * q + i % 2u] = sum[i];
        }
      }
      moi_sync();
      split_sums(R, warp_mosts, warp_sums, mosts, sums);
      moi_sync();
      MOI_ROLLED
      for (unsigned turn = 0; turn < WARPS; turn++) {
        if (warp == turn) {
          MOI_UNROLL
          for (unsigned h = 0; h < 2u * NT; h++) {
            unsigned r = h / 2u * 8u + 2u * q + h % 2u;
            float factor = sum[h] == 0.0f ? 0.0f : moi_shrink(most[h], mosts[r]);
            MOI_UNROLL
            for (unsigned i = 0; i < DV / 16u; i++) {
              unsigned run = i / 4u,
                       e = FP8 && !NARROW_V ? run / 2u * 128u + 16u * g + run % 2u * 8u : run * 64u + 8u * g;
              moi_f2 *to_joint = (moi_f2 *)(void *)&joint[r * DV + e + 2u * (i % 4u)], y = {0.0f, 0.0f};
              const float *more = &acc[(i * NT + h / 2u) * 4u + h % 2u];
              if (turn) y = *to_joint;
              if (factor != 0.0f) y.x = fmaf(more[0], factor, y.x), y.y = fmaf(more[2], factor, y.y); /* NaN is not 0 */
              *to_joint = y;
            }
          }
        }
        moi_sync();
      }
      split_end(a, &w, R, DV, joint, mosts, sums, keeps, adds, joins);
      if (split_is_last(a, &w, segment)) break;
      moi_sync();
    }
  }
}

#endif

#define KERNEL(format, FP8, DK, DV, R)                                                                                 \
  MOI_KERNEL(attend_split_mma_##format##_##DK##_##DV##_##R, 128, moi_cu_attention_args) { BODY(FP8, DK, DV, R) }
#define KERNELS(format, FP8)                                                                                           \
  KERNEL(format, FP8, 64, 64, 8)                                                                                       \
  KERNEL(format, FP8, 64, 64, 16)                                                                                      \
  KERNEL(format, FP8, 128, 128, 8)                                                                                     \
  KERNEL(format, FP8, 128, 128, 16)                                                                                    \
  KERNEL(format, FP8, 192, 128, 8)                                                                                     \
  KERNEL(format, FP8, 192, 128, 16)                                                                                    \
  KERNEL(format, FP8, 256, 256, 8)                                                                                     \
  KERNEL(format, FP8, 576, 512, 8)
KERNELS(bf16, 0)
KERNELS(fp8, 1)
