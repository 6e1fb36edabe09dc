/* GEMMs for few tokens: c = x W^T with integer activations, streaming the weights once at memory speed.
 *
 * x is d * (256*hi + lo) for each 32 elements, or d * hi (MOI_ACT_QUANT_INT8_32); weights are unsigned bytes u with
 * w = scale*u - correction: a block is
 *   scale * d * (256 * sum u*hi + sum u*lo) - correction * (d * sum q)
 * where the sums are exact integers (vpdpbusd) and the last factor is the s of the prepared row. A chunk is 64
 * elements: one vector of u, two vpdpbusd, one conversion, one FMA for each token. Scales are fetched and multiplied by
 * d a group of chunks at a time and reach the FMA through a small buffer in L1, because loads cost no vector port.
 *
 * High nibbles are not shifted down where no lookup needs it: their lanes count 16 times as much and are divided at the
 * end, which is exact. Every (token, row) has sums of its own in an order that depends on k alone: BATCH_INVARIANT. */
#if defined(__x86_64__)

#include <string.h>

#include "cpu/kernels/int_avx512.h"

enum {
  ROWS = 2,  /* rows of W at once: shares the loads of x */
  TOKENS = 4 /* most tokens at once */
};

/* What a lane's sum counts in the end: see nibbles_in_place. */
INLINE __m512 lane_weights(int f) {
  const float h = 0.0625f;
  if (f == MOI_FORMAT_Q4_0) return _mm512_setr_ps(1, 1, 1, 1, h, h, h, h, 1, 1, 1, 1, h, h, h, h);
  if (f == MOI_FORMAT_Q4_K || (is_even_odd(f) && !is_e2m1(f)))
    return _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, h, h, h, h, h, h, h, h);
  return _mm512_set1_ps(1);
}

/* The scale of each lane of chunk c, out of the group's scales p. */
INLINE __m512 lane_scales(int f, const float *p, uint32_t c) {
  if (block_of(f) == 16) {
    __m512 v = _mm512_broadcast_f32x4(_mm_load_ps(p + 4 * c));
    return _mm512_permutexvar_ps(is_even_odd(f) ? _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1, 2, 2, 3, 3)
                                                : _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), v);
  }
  double pair; /* two floats: a broadcast of 64 bits costs a load and nothing else */
  memcpy(&pair, p + 2 * c, sizeof pair);
  __m512 v = _mm512_castpd_ps(_mm512_set1_pd(pair));
  return _mm512_permutexvar_ps(is_even_odd(f) ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1)
                                              : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), v);
}

/* What multiplies the 16 (or twice 16) s of a group. */
INLINE void spread_pairs(int f, __m512 of, __m512 correction[2]) {
  const __m512i pairs_lo = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const __m512i pairs_hi = _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
  const int minima = f == MOI_FORMAT_Q4_K || f == MOI_FORMAT_Q5_K;
  correction[0] = block_of(f) == 16 ? of : _mm512_permutexvar_ps(minima ? pairs_hi : pairs_lo, of);
  correction[1] = _mm512_permutexvar_ps(pairs_hi, of);
}

/* ---- the loops */

typedef struct sums {
  __m512 product[ROWS][TOKENS], correction[ROWS][TOKENS];
} sums;

/* Chunk c, n elements of it, of ROWS rows and m tokens. */
INLINE void chunk(int f, int digits, uint32_t m, const row *w, const uint8_t *const *x, size_t k0, uint32_t c, uint32_t n,
                  const float scale[ROWS][TOKENS][16], sums *sum) {
  __m512i u[ROWS];
  for (uint32_t r = 0; r < ROWS; r++) u[r] = chunk_of(f, 1, &w[r], k0, c, n);
  for (uint32_t t = 0; t < m; t++) {
    const uint8_t *at = x[t] + digits * (k0 + 64 * c);
    __m512i hi = _mm512_load_si512(at), lo = digits == 2 ? _mm512_load_si512(at + 64) : hi;
    for (uint32_t r = 0; r < ROWS; r++) {
      __m512i q = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u[r], hi);
      if (digits == 2) q = _mm512_dpbusd_epi32(_mm512_slli_epi32(q, 8), u[r], lo);
      sum->product[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), lane_scales(f, scale[r][t], c), sum->product[r][t]);
    }
  }
}

/* What the loops over a matrix share. */
typedef struct walk {
  const moi_gemm_tile *tile;
  strides stride;
  size_t ahead; /* rows_ahead */
} walk;

/* The n elements from k0 on (a whole group, or the last of k) of ROWS rows and m tokens. */
INLINE void add_group(int f, int digits, uint32_t m, const walk *at, const row *w, const uint8_t *const *x, size_t k0,
                      uint32_t n, sums *sum) {
  const uint32_t k = at->tile->w->k, group = group_of(f);
  const uint32_t group_bytes = is_superblock(f) ? bytes_of(f) : group / block_of(f) * bytes_of(f);
  const __mmask16 d_mask = first((n + 31) / 32), s_lo = first(n / 16), s_hi = first(n > 256 ? n / 16 - 16 : 0);
  float scale[ROWS][TOKENS][16] __attribute__((aligned(64)));
  for (uint32_t r = 0; r < ROWS; r++) {
    prefetch(w[r].data + k0 / group * group_bytes, at->ahead * at->stride.data, group_bytes);
    if (scale_bytes_of(f)) prefetch(w[r].scales + k0 / 128 * scale_bytes_of(f), at->ahead * at->stride.scales, 1);
    __m512 of, v = scales_of(f, &w[r], k0, n, &of), correction[2];
    spread_pairs(f, of, correction);
    for (uint32_t t = 0; t < m; t++) {
      const float *d_at = (const float *)(const void *)(x[t] + (digits == 2 ? MOI_FORM_D(k) : MOI_FORM_I8_D(k))) + k0 / 32;
      const float *s_at = (const float *)(const void *)(x[t] + (digits == 2 ? MOI_FORM_S(k) : MOI_FORM_I8_S(k))) + k0 / 16;
      __m512 d = _mm512_maskz_loadu_ps(d_mask, d_at), c = sum->correction[r][t];
      if (block_of(f) == 16)
        d = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), d);
      _mm512_store_ps(scale[r][t], _mm512_mul_ps(v, d));
      c = _mm512_fmadd_ps(correction[0], _mm512_maskz_loadu_ps(s_lo, s_at), c);
      if (group == 512) c = _mm512_fmadd_ps(correction[1], _mm512_maskz_loadu_ps(s_hi, s_at + 16), c);
      sum->correction[r][t] = c;
    }
  }
  for (uint32_t c = 0; c < n / 64; c++) chunk(f, digits, m, w, x, k0, c, 64, scale, sum);
  if (n % 64) chunk(f, digits, m, w, x, k0, n / 64, n % 64, scale, sum);
}

/* ROWS rows, m tokens. */
INLINE void block(int f, int digits, uint32_t m, const walk *at, const row *w, const uint32_t *rows, float *const *out) {
  const uint32_t k = at->tile->w->k, group = group_of(f);
  const uint8_t *x[TOKENS];
  sums sum;
  for (uint32_t t = 0; t < m; t++) {
    x[t] = at->tile->x + rows[t] * at->tile->x_stride;
    for (uint32_t r = 0; r < ROWS; r++) sum.product[r][t] = sum.correction[r][t] = _mm512_setzero_ps();
  }
  size_t k0 = 0;
  for (; k0 + group <= k; k0 += group) add_group(f, digits, m, at, w, x, k0, group, &sum);
  if (!is_superblock(f) && k0 < k) add_group(f, digits, m, at, w, x, k0, (uint32_t)(k - k0), &sum);
  const __m512 lanes = lane_weights(f), offset = _mm512_set1_ps(offset_of(f) > 0 ? offset_of(f) : 1);
  for (uint32_t r = 0; r < ROWS; r++) {
    for (uint32_t t = 0; t < m; t++) {
      __m512 v = _mm512_fnmadd_ps(offset, sum.correction[r][t], _mm512_mul_ps(lanes, sum.product[r][t]));
      out[r][t * at->tile->ldc] = at->tile->w->global * _mm512_reduce_add_ps(v);
    }
  }
}

INLINE void gemm(int f, int digits, const moi_gemm_tile *tile) {
  walk at = {tile, strides_of(f, tile->w->k), 0};
  at.ahead = rows_ahead(&at.stride, ROWS);
  for (uint32_t n = tile->n0; n < tile->n1; n += ROWS) {
    row rows[ROWS];
    uint32_t column[ROWS];
    for (uint32_t r = 0; r < ROWS; r++) {
      /* the last row twice rather than a case for an odd one */
      uint32_t last = n + r < tile->n1 ? n + r : tile->n1 - 1;
      rows[r] = row_of(tile->w, &at.stride, last);
      column[r] = last - tile->n0;
    }
    for (uint32_t t = 0; t < tile->m; t += TOKENS) {
      float *out[ROWS];
      for (uint32_t r = 0; r < ROWS; r++) out[r] = tile->c + t * tile->ldc + column[r];
      switch (tile->m - t) {
      case 1: block(f, digits, 1, &at, rows, tile->rows + t, out); break;
      case 2: block(f, digits, 2, &at, rows, tile->rows + t, out); break;
      case 3: block(f, digits, 3, &at, rows, tile->rows + t, out); break;
      default: block(f, digits, TOKENS, &at, rows, tile->rows + t, out); break;
      }
    }
  }
}

#define MOI_GEMM(format, name)                                                                                         \
  void moi_gemm_##name##_avx512vnni(const moi_gemm_tile *tile);                                                        \
  void moi_gemm_##name##_avx512vnni(const moi_gemm_tile *tile) { gemm(MOI_FORMAT_##format, 2, tile); }           \
  void moi_gemm_##name##_i8_avx512vnni(const moi_gemm_tile *tile);                                                     \
  void moi_gemm_##name##_i8_avx512vnni(const moi_gemm_tile *tile) { gemm(MOI_FORMAT_##format, 1, tile); }

/* q4_k has rows in lanes_avx512vnni.c */
MOI_GEMM(Q8_0, q8_0)
MOI_GEMM(Q4_0, q4_0)
MOI_GEMM(Q5_K, q5_k)
MOI_GEMM(Q6_K, q6_k)
MOI_GEMM(MXFP4_GGUF, mxfp4_gguf)
MOI_GEMM(IQ4_NL, iq4_nl)
MOI_GEMM(MXFP4, mxfp4)
MOI_GEMM(NVFP4, nvfp4)
MOI_GEMM(INT4_G32, int4_g32)
MOI_GEMM(INT4_G128, int4_g128)
MOI_GEMM(INT4Z_G32, int4z_g32)
MOI_GEMM(INT4Z_G128, int4z_g128)

#endif
