#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>

#define LANES 16
#define PAIRS_FROM_3 0
typedef __m512 vec;
#define vec_zero _mm512_setzero_ps
#define vec_load _mm512_loadu_ps
#define vec_fma _mm512_fmadd_ps
#define vec_mul _mm512_mul_ps
#define vec_splat _mm512_set1_ps
#define vec_sum _mm512_reduce_add_ps

/* the largest code with the sign set: 255 is NaN */
typedef __m512i nan_vec;
#define nan_zero _mm512_setzero_si512
static inline __attribute__((always_inline)) nan_vec nan_add(nan_vec v, const uint8_t *p) {
  return _mm512_max_epu8(v, _mm512_or_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x80)));
}
static inline __attribute__((always_inline)) int nan_any(nan_vec v) {
  return _mm512_cmpeq_epi8_mask(v, _mm512_set1_epi8(-1)) != 0;
}

#include "cpu/kernels/stream.h"

INLINE void decode_f32(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = _mm512_loadu_ps(p);
  *w1 = _mm512_loadu_ps(p + 64);
}
INLINE void decode_f16(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
  *w1 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p + 32)));
}
INLINE vec bf16_to_f32(const uint8_t *p) {
  __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
INLINE void decode_bf16(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = bf16_to_f32(p);
  *w1 = bf16_to_f32(p + 32);
}
/* As f16 bits the code's exponent and mantissa mean its value times 2^-8, subnormals too; the scale makes up for it. They
 * go through memory because vcvtph2ps takes one port less from there, and both vector ports are what bounds this. */
INLINE void decode_fp8(const uint8_t *p, vec *w0, vec *w1) {
  uint16_t half[32] __attribute__((aligned(64)));
  __m512i b = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));
  _mm512_store_si512(half, _mm512_and_si512(_mm512_slli_epi16(b, 7), _mm512_set1_epi16((short)0xbf80)));
  __asm__("" : "+m"(half)); /* or the compiler extracts the halves from the register */
  *w0 = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)half));
  *w1 = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)(half + 16)));
}
#define decode_fp8_b128 decode_fp8

#define STREAM_NAME(format) moi_gemm_##format##_stream_avx512
STREAM_ALL

#endif
typedef int moi_stream_avx512_unit; /* never an empty translation unit */
