/* Preparers of the forms that AVX2 kernels read, 32 elements at a time. Same bits as cpu/forms.c. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#include "cpu/kernels/forms.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i bf16_of(__m256 x) {
  __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
  __m256i round = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, round), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
}

void moi_prepare_bf16_avx2(const float *x, uint32_t k, void *dst) {
  uint16_t *out = dst;
  float tail[16] = {0};
  for (size_t i = 0; i < MOI_FORM_KP(k); i += 16) {
    const float *from = x + i;
    if (i + 16 > k) {
      memset(tail, 0, sizeof tail);
      if (i < k) memcpy(tail, x + i, (k - i) * sizeof(float));
      from = tail;
    }
    __m256i packed = _mm256_packus_epi32(bf16_of(_mm256_loadu_ps(from)), bf16_of(_mm256_loadu_ps(from + 8)));
    _mm256_store_si256((__m256i *)(void *)(out + i), _mm256_permute4x64_epi64(packed, 0xd8));
  }
}

INLINE int sum8(__m256i v) {
  __m128i a = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
}

/* 32 elements as words in the order of the form: a, then b. digits: 2 for 16 bits, 1 for those of INT8_32. */
INLINE void quantise_32(const float *x, int digits, int even_odd, float *d_out, float *s_out, __m256i *a_out,
                        __m256i *b_out) {
  __m256 v[4];
  __m256i q[4], largest = _mm256_setzero_si256();
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_loadu_ps(x + 8 * i);
    __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(v[i]), _mm256_set1_epi32(0x7fffffff));
    largest = _mm256_max_epu32(largest, magnitude);
  }
  __m128i l = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  l = _mm_max_epu32(l, _mm_shuffle_epi32(l, 0x4e));
  l = _mm_max_epu32(l, _mm_shuffle_epi32(l, 0xb1));
  int bits = _mm_cvtsi128_si32(l), finite = bits < 0x7f800000;
  float d = _mm_cvtss_f32(_mm_castsi128_ps(l)) / (float)(digits == 2 ? MOI_FORM_QMAX : 127);
  if (digits == 1 && d < 0x1p-126f) d = 0x1p-126f;
  if (!finite) d = _mm_cvtss_f32(_mm_castsi128_ps(_mm_set1_epi32(digits == 2 ? 0x7fc00000 : 0x7f800000)));
  if (d > 0 && finite) {
    __m256 by = _mm256_set1_ps(d), top = _mm256_set1_ps(MOI_FORM_QMAX), bottom = _mm256_set1_ps(-MOI_FORM_QMAX);
    __m256 magic = _mm256_set1_ps(MOI_FORM_ROUND);
    for (int i = 0; i < 4; i++) {
      __m256 scaled = _mm256_max_ps(_mm256_min_ps(_mm256_div_ps(v[i], by), top), bottom);
      q[i] = _mm256_cvtps_epi32(_mm256_sub_ps(_mm256_add_ps(scaled, magic), magic));
    }
  } else {
    for (int i = 0; i < 4; i++) q[i] = _mm256_setzero_si256();
  }
  *d_out = d;
  s_out[0] = d * (float)sum8(_mm256_add_epi32(q[0], q[1]));
  s_out[1] = d * (float)sum8(_mm256_add_epi32(q[2], q[3]));
  __m256i a = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xd8);
  __m256i b = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[2], q[3]), 0xd8);
  if (even_odd) {
    __m256i low = _mm256_set1_epi32(0xffff);
    __m256i even = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
    __m256i odd = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    a = _mm256_permute4x64_epi64(even, 0xd8);
    b = _mm256_permute4x64_epi64(odd, 0xd8);
  }
  *a_out = a;
  *b_out = b;
}

/* 32 elements from x + i on, zeros behind k. */
INLINE const float *padded(const float *x, size_t i, uint32_t k, float tail[32]) {
  if (i + 32 <= k) return x + i;
  memset(tail, 0, 32 * sizeof *tail);
  if (i < k) memcpy(tail, x + i, (k - i) * sizeof(float));
  return tail;
}

INLINE void prepare(const float *x, uint32_t k, uint8_t *dst, int even_odd) {
  float *d = (float *)(void *)(dst + MOI_FORM_D(k)), *s = (float *)(void *)(dst + MOI_FORM_S(k)), tail[32];
  for (size_t i = 0; i < MOI_FORM_KP(k); i += 32) {
    __m256i a, b;
    quantise_32(padded(x, i, k, tail), 2, even_odd, d + i / 32, s + i / 16, &a, &b);
    _mm256_store_si256((__m256i *)(void *)(dst + 2 * i), a);
    _mm256_store_si256((__m256i *)(void *)(dst + 2 * i + 32), b);
  }
}

INLINE void prepare_bytes(const float *x, uint32_t k, uint8_t *dst, int even_odd) {
  float *d = (float *)(void *)(dst + MOI_FORM_I8_D(k)), *s = (float *)(void *)(dst + MOI_FORM_I8_S(k)), tail[32];
  for (size_t i = 0; i < MOI_FORM_KP(k); i += 64) {
    __m256i a, b, c, e;
    quantise_32(padded(x, i, k, tail), 1, even_odd, d + i / 32, s + i / 16, &a, &b);
    quantise_32(padded(x, i + 32, k, tail), 1, even_odd, d + i / 32 + 1, s + i / 16 + 2, &c, &e);
    const __m256i first = _mm256_packs_epi16(a, even_odd ? c : b), second = _mm256_packs_epi16(even_odd ? b : c, e);
    _mm256_store_si256((__m256i *)(void *)(dst + i), _mm256_permute4x64_epi64(first, 0xd8));
    _mm256_store_si256((__m256i *)(void *)(dst + i + 32), _mm256_permute4x64_epi64(second, 0xd8));
  }
}

void moi_prepare_i16_avx2(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 0); }
void moi_prepare_i16_eo_avx2(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 1); }
void moi_prepare_i8_avx2(const float *x, uint32_t k, void *dst) { prepare_bytes(x, k, dst, 0); }
void moi_prepare_i8_eo_avx2(const float *x, uint32_t k, void *dst) { prepare_bytes(x, k, dst, 1); }

#endif
