/* Preparers of the forms that AVX-512 kernels read, 64 elements at a time. Same bits as cpu/forms.c. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/kernels/forms.h"

#define INLINE static inline __attribute__((always_inline))

/* The lanes of 16 elements from i on that exist. */
INLINE __mmask16 lanes(size_t i, uint32_t k) {
  return i >= k ? 0 : k - i >= 16 ? 0xffff : (__mmask16)((1u << (k - i)) - 1);
}

void moi_prepare_bf16_avx512(const float *x, uint32_t k, void *dst) {
  uint16_t *out = dst;
  for (size_t i = 0; i < MOI_FORM_KP(k); i += 16) {
    __m512 v = _mm512_maskz_loadu_ps(lanes(i, k), x + i);
    __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
    __m512i round = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, round), 16);
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x40));
    _mm256_store_si256((__m256i *)(void *)(out + i), _mm512_cvtepi32_epi16(rounded));
  }
}

/* The sums of four vectors. */
INLINE __m128i sums(const __m512i q[4]) {
  __m256i a[4];
  for (int i = 0; i < 4; i++) a[i] = _mm256_add_epi32(_mm512_castsi512_si256(q[i]), _mm512_extracti64x4_epi64(q[i], 1));
  __m256i h = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
  return _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}

INLINE void prepare(const float *x, uint32_t k, uint8_t *dst, const int digits, const int even_odd) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512 magic = _mm512_set1_ps(MOI_FORM_ROUND);
  const __m512 top = _mm512_set1_ps(MOI_FORM_QMAX), bottom = _mm512_set1_ps(-MOI_FORM_QMAX);
  float *d_out = (float *)(void *)(dst + (digits == 2 ? MOI_FORM_D(k) : MOI_FORM_I8_D(k)));
  float *s_out = (float *)(void *)(dst + (digits == 2 ? MOI_FORM_S(k) : MOI_FORM_I8_S(k)));
  for (size_t i = 0; i < MOI_FORM_KP(k); i += 64) {
    __m512 v[4];
    __m512i q[4];
    float d[2];
    for (int j = 0; j < 4; j++) v[j] = _mm512_maskz_loadu_ps(lanes(i + 16 * j, k), x + i + 16 * j);
    for (int half = 0; half < 2; half++) {
      __m512i a = _mm512_and_si512(_mm512_castps_si512(v[2 * half]), magnitude);
      __m512i b = _mm512_and_si512(_mm512_castps_si512(v[2 * half + 1]), magnitude);
      int largest = (int)_mm512_reduce_max_epu32(_mm512_max_epu32(a, b));
      d[half] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(largest))) / (float)(digits == 2 ? MOI_FORM_QMAX : 127);
      if (digits == 1 && d[half] < 0x1p-126f) d[half] = 0x1p-126f;
      if (largest >= 0x7f800000)
        d[half] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(digits == 2 ? 0x7fc00000 : 0x7f800000)));
      __mmask16 some = d[half] > 0 && largest < 0x7f800000 ? 0xffff : 0;
      __m512 by = _mm512_set1_ps(d[half]);
      for (int j = 2 * half; j < 2 * half + 2; j++) {
        __m512 scaled = _mm512_maskz_div_ps(some, v[j], by);
        scaled = _mm512_max_ps(_mm512_min_ps(scaled, top), bottom);
        q[j] = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_add_ps(scaled, magic), magic));
      }
      d_out[i / 32 + half] = d[half];
    }
    __m128 scale = _mm_setr_ps(d[0], d[0], d[1], d[1]);
    _mm_storeu_ps(s_out + i / 16, _mm_mul_ps(scale, _mm_cvtepi32_ps(sums(q))));
    if (even_odd) {
      __m512i e0 = _mm512_permutex2var_epi32(q[0], even, q[1]), e1 = _mm512_permutex2var_epi32(q[2], even, q[3]);
      __m512i o0 = _mm512_permutex2var_epi32(q[0], odd, q[1]), o1 = _mm512_permutex2var_epi32(q[2], odd, q[3]);
      q[0] = e0, q[1] = e1, q[2] = o0, q[3] = o1;
    }
    if (digits == 1) {
      for (int j = 0; j < 4; j++)
        _mm_store_si128((__m128i *)(void *)(dst + i + 16 * j), _mm512_cvtepi32_epi8(q[j]));
      continue;
    }
    for (int j = 0; j < 4; j++) {
      __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(q[j], _mm512_set1_epi32(128)), 8);
      _mm_store_si128((__m128i *)(void *)(dst + 2 * i + 16 * j), _mm512_cvtepi32_epi8(hi));
      _mm_store_si128((__m128i *)(void *)(dst + 2 * i + 64 + 16 * j), _mm512_cvtepi32_epi8(q[j]));
    }
  }
}

void moi_prepare_i8x2_avx512(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 2, 0); }
void moi_prepare_i8x2_eo_avx512(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 2, 1); }
void moi_prepare_i8_avx512(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 1, 0); }
void moi_prepare_i8_eo_avx512(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 1, 1); }

#endif
