/* The few-token GEMMs of int_avx512vnni.c for AVX2: x is d * q with 16-bit q, weights are widened to 16 bits, and
 * vpmaddwd sums a block exactly in int32. w = scale*u - correction again, with the correction applied through s. Sums of
 * one (token, row) depend on k alone. */
#if defined(__x86_64__)

#include "cpu/kernels/int_avx2.h"

enum { TOKENS = 4 /* most tokens at once */ };

/* Here Q8_0 is signed as it is. */
INLINE float correction_of(int f) { return f == MOI_FORMAT_Q8_0 ? 0 : offset_of(f) > 0 ? offset_of(f) : 1; }

/* What multiplies the 16 s of a group. */
INLINE void spread_pairs(int f, const block_scales *v, __m256 correction[2]) {
  if (block_of(f) == 16) {
    correction[0] = v->of[0], correction[1] = v->of[1];
    return;
  }
  correction[0] = _mm256_permutevar8x32_ps(v->of[0], _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
  correction[1] = _mm256_permutevar8x32_ps(v->of[0], _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
}

/* ---- the loops */

/* Block b, n elements of it, of one row and m tokens. */
INLINE void block(int f, uint32_t m, const row *w, const uint8_t *const *x, size_t k0, uint32_t b, uint32_t n,
                  float scale[TOKENS][16], __m256 *sum) {
  __m256i u[2];
  block_of_weights(f, w, k0, b, n, u);
  for (uint32_t t = 0; t < m; t++) {
    const __m256i *q = (const __m256i *)(const void *)(x[t] + 2 * k0) + 2 * b;
    __m256i first = _mm256_madd_epi16(u[0], _mm256_load_si256(q));
    __m256i second = _mm256_madd_epi16(u[1], _mm256_load_si256(q + 1));
    if (f == MOI_FORMAT_Q6_K) { /* a scale for each half */
      sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(first), _mm256_broadcast_ss(&scale[t][2 * b]), sum[t]);
      sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(second), _mm256_broadcast_ss(&scale[t][2 * b + 1]), sum[t]);
      continue;
    }
    __m256 s;
    if (f == MOI_FORMAT_NVFP4) { /* even and odd of the first 16 in the lower lanes */
      double pair;
      memcpy(&pair, &scale[t][2 * b], sizeof pair);
      s = _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_set1_pd(pair)), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    } else {
      s = _mm256_broadcast_ss(&scale[t][b]);
    }
    sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(first, second)), s, sum[t]);
  }
}

INLINE float sum8(__m256 v) {
  __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

/* What the loops over a matrix share. */
typedef struct walk {
  const moi_gemm_tile *tile;
  strides stride;
  size_t ahead; /* rows_ahead */
} walk;

typedef struct sums {
  __m256 product[2][TOKENS]; /* of even and odd blocks: one chain of FMAs would be the limit */
  __m256 correction[TOKENS];
} sums;

/* The n elements from k0 on (a whole group, or the last of k) of one row and m tokens. */
INLINE void add_group(int f, uint32_t m, const walk *at, const row *w, const uint8_t *const *x, size_t k0, uint32_t n,
                      sums *sum) {
  const uint32_t k = at->tile->w->k, halves = n / 16;
  const uint32_t group_bytes = is_superblock(f) ? bytes_of(f) : GROUP / block_of(f) * bytes_of(f);
  float scale[TOKENS][16] __attribute__((aligned(32)));
  prefetch(w->data + k0 / GROUP * group_bytes, at->ahead * at->stride.data, group_bytes);
  if (scale_bytes_of(f)) prefetch(w->scales + k0 / 128 * scale_bytes_of(f), at->ahead * at->stride.scales, 1);
  const block_scales v = scales_of(f, w, k0, n);
  __m256 correction[2];
  spread_pairs(f, &v, correction);
  for (uint32_t t = 0; t < m; t++) {
    const float *s = (const float *)(const void *)(x[t] + MOI_FORM_S(k)) + k0 / 16;
    __m256 d = load_first((const float *)(const void *)(x[t] + MOI_FORM_D(k)) + k0 / 32, (n + 31) / 32);
    if (block_of(f) == 16) {
      __m256 d0 = _mm256_permutevar8x32_ps(d, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
      __m256 d1 = _mm256_permutevar8x32_ps(d, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
      _mm256_store_ps(scale[t], _mm256_mul_ps(v.v[0], d0));
      _mm256_store_ps(scale[t] + 8, _mm256_mul_ps(v.v[1], d1));
    } else {
      _mm256_store_ps(scale[t], _mm256_mul_ps(v.v[0], d));
    }
    if (correction_of(f) > 0) {
      sum->correction[t] = _mm256_fmadd_ps(correction[0], load_first(s, halves), sum->correction[t]);
      if (halves > 8)
        sum->correction[t] = _mm256_fmadd_ps(correction[1], load_first(s + 8, halves - 8), sum->correction[t]);
    }
  }
  __m256 *even = sum->product[0], *odd = sum->product[1];
  if (is_superblock(f)) { /* by hand: b must be a constant for the shifts */
    block(f, m, w, x, k0, 0, 32, scale, even);
    block(f, m, w, x, k0, 1, 32, scale, odd);
    block(f, m, w, x, k0, 2, 32, scale, even);
    block(f, m, w, x, k0, 3, 32, scale, odd);
    block(f, m, w, x, k0, 4, 32, scale, even);
    block(f, m, w, x, k0, 5, 32, scale, odd);
    block(f, m, w, x, k0, 6, 32, scale, even);
    block(f, m, w, x, k0, 7, 32, scale, odd);
    return;
  }
  uint32_t b = 0;
  for (; b + 2 <= n / 32; b += 2) {
    block(f, m, w, x, k0, b, 32, scale, even);
    block(f, m, w, x, k0, b + 1, 32, scale, odd);
  }
  if (b < n / 32) block(f, m, w, x, k0, b++, 32, scale, even);
  if (block_of(f) == 16 && n % 32) block(f, m, w, x, k0, b, 16, scale, odd);
}

/* One row, m tokens. */
INLINE void dot(int f, uint32_t m, const walk *at, const row *w, const uint32_t *rows, float *out) {
  const uint32_t k = at->tile->w->k;
  const uint8_t *x[TOKENS];
  sums sum;
  for (uint32_t t = 0; t < m; t++) {
    x[t] = at->tile->x + rows[t] * at->tile->x_stride;
    sum.product[0][t] = sum.product[1][t] = sum.correction[t] = _mm256_setzero_ps();
  }
  size_t k0 = 0;
  for (; k0 + GROUP <= k; k0 += GROUP) add_group(f, m, at, w, x, k0, GROUP, &sum);
  if (!is_superblock(f) && k0 < k) add_group(f, m, at, w, x, k0, (uint32_t)(k - k0), &sum);
  for (uint32_t t = 0; t < m; t++) {
    __m256 v = _mm256_add_ps(sum.product[0][t], sum.product[1][t]);
    if (correction_of(f) > 0) v = _mm256_fnmadd_ps(_mm256_set1_ps(correction_of(f)), sum.correction[t], v);
    out[t * at->tile->ldc] = at->tile->w->global * sum8(v);
  }
}

INLINE void gemm(int f, const moi_gemm_tile *tile) {
  walk at = {tile, strides_of(f, tile->w->k), 0};
  at.ahead = rows_ahead(&at.stride, 1);
  for (uint32_t n = tile->n0; n < tile->n1; n++) {
    const row w = row_of(tile->w, &at.stride, n);
    for (uint32_t t = 0; t < tile->m; t += TOKENS) {
      float *out = tile->c + t * tile->ldc + (n - tile->n0);
      switch (tile->m - t) {
      case 1: dot(f, 1, &at, &w, tile->rows + t, out); break;
      case 2: dot(f, 2, &at, &w, tile->rows + t, out); break;
      case 3: dot(f, 3, &at, &w, tile->rows + t, out); break;
      default: dot(f, TOKENS, &at, &w, tile->rows + t, out); break;
      }
    }
  }
}

#define MOI_GEMM(format, name)                                                                                         \
  void moi_gemm_##name##_avx2i(const moi_gemm_tile *tile);                                                             \
  void moi_gemm_##name##_avx2i(const moi_gemm_tile *tile) { gemm(MOI_FORMAT_##format, tile); }

MOI_INT_FORMATS

#endif
