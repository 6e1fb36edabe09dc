#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>

#define LANES 8
#define PAIRS_FROM_3 0
typedef __m256 vec;
#define vec_zero _mm256_setzero_ps
#define vec_load _mm256_loadu_ps
#define vec_fma _mm256_fmadd_ps
#define vec_mul _mm256_mul_ps
#define vec_splat _mm256_set1_ps

static inline __attribute__((always_inline)) float vec_sum(vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
/* the largest code with the sign set: 255 is NaN */
typedef __m256i nan_vec;
#define nan_zero _mm256_setzero_si256
static inline __attribute__((always_inline)) nan_vec nan_add(nan_vec v, const uint8_t *p) {
  __m256i sign = _mm256_set1_epi8((char)0x80);
  v = _mm256_max_epu8(v, _mm256_or_si256(_mm256_loadu_si256((const __m256i *)(const void *)p), sign));
  return _mm256_max_epu8(v, _mm256_or_si256(_mm256_loadu_si256((const __m256i *)(const void *)(p + 32)), sign));
}
static inline __attribute__((always_inline)) int nan_any(nan_vec v) {
  return _mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(-1))) != 0;
}

#include "cpu/kernels/stream.h"

INLINE void decode_f32(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = _mm256_loadu_ps((const float *)(const void *)p);
  *w1 = _mm256_loadu_ps((const float *)(const void *)(p + 32));
}
INLINE void decode_f16(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
  *w1 = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 16)));
}
INLINE vec bf16_to_f32(const uint8_t *p) {
  __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
INLINE void decode_bf16(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = bf16_to_f32(p);
  *w1 = bf16_to_f32(p + 16);
}
/* As f16 bits the code's exponent and mantissa mean its value times 2^-8, subnormals too; the scale makes up for it. */
INLINE void decode_fp8(const uint8_t *p, vec *w0, vec *w1) {
  __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
  b = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(b, 8), 1), _mm256_set1_epi16((short)0xbf80));
  *w0 = _mm256_cvtph_ps(_mm256_castsi256_si128(b));
  *w1 = _mm256_cvtph_ps(_mm256_extracti128_si256(b, 1));
}
#define decode_fp8_b128 decode_fp8

#define STREAM_NAME(format) moi_gemm_##format##_stream_avx2
STREAM_ALL

#endif
typedef int moi_stream_avx2_unit; /* never an empty translation unit */
