/* What the AVX-512 attention kernels share: vectors of fp32 for flash.h. */
#ifndef MOI_CPU_FLASH_AVX512_H
#define MOI_CPU_FLASH_AVX512_H

#include <immintrin.h>

#include "core/shared/decode.h"

typedef __m512 vec;
#define VEC 16
#define MR 6
#define NV 4

static inline vec vec_zero(void) { return _mm512_setzero_ps(); }
static inline vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
static inline vec vec_splat(float f) { return _mm512_set1_ps(f); }
static inline vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
static inline vec vec_choose_less(vec a, vec b, vec x, vec y) {
  return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
/* In each 128-bit quarter the sums over a's, b's, c's and d's quarter. */
static inline __m512 sum_quarters(vec a, vec b, vec c, vec d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}
/* The sum over the lanes of each. */
static inline void vec_sum4(vec a, vec b, vec c, vec d, float *out) {
  const __m512 s = sum_quarters(a, b, c, d);
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}
static inline void vec_sum16(const vec *a, const vec *b, const vec *c, const vec *d, float *out) {
  const __m512 s0 = sum_quarters(a[0], a[1], a[2], a[3]), s1 = sum_quarters(b[0], b[1], b[2], b[3]);
  const __m512 s2 = sum_quarters(c[0], c[1], c[2], c[3]), s3 = sum_quarters(d[0], d[1], d[2], d[3]);
  const __m512 s01 = _mm512_add_ps(_mm512_shuffle_f32x4(s0, s1, 0x44), _mm512_shuffle_f32x4(s0, s1, 0xee));
  const __m512 s23 = _mm512_add_ps(_mm512_shuffle_f32x4(s2, s3, 0x44), _mm512_shuffle_f32x4(s2, s3, 0xee));
  _mm512_storeu_ps(out, _mm512_add_ps(_mm512_shuffle_f32x4(s01, s23, 0x88), _mm512_shuffle_f32x4(s01, s23, 0xdd)));
}

static inline vec vec_exp2(vec x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200), x);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.54614447e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.34004282e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61805668e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55032723e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240226509f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693147207f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
  /* below 2^-126 is 0: subnormal weights would cost more than they weigh */
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126), _CMP_NLT_UQ), p, n);
}

/* 16 x 16 lanes of 32 bits; lds, ldd in lanes */
static inline void transpose_lanes(const void *src, size_t lds, void *dst, size_t ldd) {
  const float *s = src;
  float *d = dst;
  __m512 r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(s + (size_t)i * lds);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) { /* r[i + c]: column c of each 128-bit quarter, rows i..i+3 */
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    const __m512 low01 = _mm512_shuffle_f32x4(r[c], r[c + 4], 0x44), high01 = _mm512_shuffle_f32x4(r[c], r[c + 4], 0xee);
    const __m512 low23 = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0xee);
    _mm512_storeu_ps(d + (size_t)c * ldd, _mm512_shuffle_f32x4(low01, low23, 0x88));
    _mm512_storeu_ps(d + (size_t)(c + 4) * ldd, _mm512_shuffle_f32x4(low01, low23, 0xdd));
    _mm512_storeu_ps(d + (size_t)(c + 8) * ldd, _mm512_shuffle_f32x4(high01, high23, 0x88));
    _mm512_storeu_ps(d + (size_t)(c + 12) * ldd, _mm512_shuffle_f32x4(high01, high23, 0xdd));
  }
}

static inline __mmask16 mask16(uint32_t n) { return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff); }
static inline __mmask32 mask32(uint32_t n) { return n < 32 ? (1u << n) - 1 : ~0u; }

/* 16 bytes of E4M3 to fp32; NaN codes give NaN */
static inline __m512 e4m3_floats(__m128i bytes) {
  const __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_and_si128(bytes, _mm_set1_epi8(127)), _mm_set1_epi8(127));
  const __m256i h = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7), _mm256_set1_epi16((short)0xbfff));
  const __m512 v = _mm512_mul_ps(_mm512_cvtph_ps(h), _mm512_set1_ps(256));
  return _mm512_mask_mov_ps(v, nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

#endif
