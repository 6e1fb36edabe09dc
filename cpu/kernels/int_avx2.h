/* Blocks of integer weights in AVX2 registers: their codes as 16-bit integers, their scales as floats. A byte of nibbles
 * widened to 16 bits gives, by one mask and one shift, the first and the second 16 elements of a GGUF block, and equally
 * the even and the odd ones of the *_EO form. */
#ifndef MOI_CPU_KERNELS_INT_AVX2_H
#define MOI_CPU_KERNELS_INT_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "cpu/kernels/int.h"

enum { GROUP = 256 /* elements that share one fetch of scales */ };

/* ---- scales: of 8 blocks of 32, or 16 of 16, the missing ones with whatever value is finite */

typedef struct block_scales {
  __m256 v[2];  /* v[1] and of[1]: only blocks of 16 */
  __m256 of[2]; /* what multiplies each block's sum of x in the correction */
} block_scales;

INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
INLINE __m128i load8(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)(const void *)p); }
INLINE uint32_t u32_at(const uint8_t *p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}
INLINE uint16_t u16_at(const uint8_t *p) {
  uint16_t v;
  memcpy(&v, p, 2);
  return v;
}

INLINE __m256i first_lanes(uint32_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/* 8 floats, n of which exist. */
INLINE __m256 load_first(const float *p, uint32_t n) {
  return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n));
}

/* p, or, where only `size` of the bytes exist, a copy filled up with `fill`. */
INLINE const uint8_t *padded(const uint8_t *p, uint32_t size, uint32_t full, uint8_t fill, uint8_t copy[16]) {
  if (size >= full) return p;
  memset(copy, fill, 16);
  for (uint32_t i = 0; i < size; i++) copy[i] = p[i];
  return copy;
}

/* E8M0 bytes, halved: the lookup holds twice the E2M1 values. */
INLINE __m256 e8m0_half(__m256i b) {
  __m256i v = _mm256_slli_epi32(_mm256_sub_epi32(b, _mm256_set1_epi32(1)), 23);
  __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), b);
  v = _mm256_blendv_epi8(v, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), b));
  __m256i nan = _mm256_cmpeq_epi32(b, _mm256_set1_epi32(255));
  return _mm256_castsi256_ps(_mm256_blendv_epi8(v, _mm256_set1_epi32(0x7fc00000), nan));
}

/* E4M3 bytes, halved, as f16 bits of the value times 2^-8. */
INLINE void e4m3_half(__m128i b, __m256 out[2]) {
  __m256i w = _mm256_cvtepu8_epi16(b), magnitude = _mm256_and_si256(w, _mm256_set1_epi16(127));
  __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(127), w), 8);
  __m256i h = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
  h = _mm256_blendv_epi8(h, _mm256_set1_epi16(0x7e00), _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(127)));
  out[0] = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_set1_ps(128));
  out[1] = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)), _mm256_set1_ps(128));
}

/* Superblock of Q4_K and Q5_K: d * scale, dmin * minimum. */
INLINE void k_scales(const uint8_t *block, __m256 *scale, __m256 *minimum) {
  __m128i b = load16(block); /* d, dmin, 12 bytes */
  __m128i low = _mm_shuffle_epi8(b, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
  __m128i high = _mm_shuffle_epi8(b, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
  high = _mm_and_si128(_mm_srli_epi16(high, 2), _mm_set1_epi8(0x30));
  __m128i fours = _mm_srli_epi16(low, 4);
  low = _mm_blend_epi32(low, fours, 8); /* the last four minimums are high nibbles */
  low = _mm_and_si128(low, _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
  low = _mm_or_si128(low, high);
  __m128 d = _mm_cvtph_ps(b);
  *scale = _mm256_mul_ps(_mm256_broadcastss_ps(d), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low)));
  *minimum = _mm256_mul_ps(_mm256_broadcastss_ps(_mm_movehdup_ps(d)),
                           _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(low, 8))));
}

/* Two scales, each for four lanes. */
INLINE __m256 spread4(__m128 v) {
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(v), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

/* The scales of the group from element k0 on, n elements of which exist. */
INLINE block_scales scales_of(int f, const row *w, size_t k0, uint32_t n) {
  block_scales out;
  uint8_t copy[16];
  __m256 v = _mm256_setzero_ps(), of = v;
  const uint8_t *d = w->data + k0 / (is_superblock(f) ? 256 : block_of(f)) * bytes_of(f);
  switch (f) {
  case MOI_FORMAT_Q8_0:
  case MOI_FORMAT_Q4_0:
  case MOI_FORMAT_IQ4_NL: {
    const uint32_t b = bytes_of(f);
    __m128i h;
    if (n == GROUP) {
      h = _mm_setr_epi16((short)u16_at(d), (short)u16_at(d + b), (short)u16_at(d + 2 * b), (short)u16_at(d + 3 * b),
                         (short)u16_at(d + 4 * b), (short)u16_at(d + 5 * b), (short)u16_at(d + 6 * b),
                         (short)u16_at(d + 7 * b));
    } else {
      uint16_t heads[8] = {0};
      for (uint32_t i = 0; i < n / 32; i++) heads[i] = u16_at(d + i * b);
      h = _mm_loadu_si128((const __m128i *)(const void *)heads);
    }
    of = v = _mm256_cvtph_ps(h);
    break;
  }
  case MOI_FORMAT_MXFP4_GGUF: {
    uint64_t heads = 0x7f7f7f7f7f7f7f7f;
    for (uint32_t i = 0; i < n / 32; i++) heads = heads << 8 | d[(n / 32 - 1 - i) * 17];
    of = v = e8m0_half(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)heads)));
    break;
  }
  case MOI_FORMAT_MXFP4:
    of = v = e8m0_half(_mm256_cvtepu8_epi32(load8(padded(w->scales + k0 / 32, n / 32, 8, 127, copy))));
    break;
  case MOI_FORMAT_FP4_G16: {
    __m128i s = load16(padded(w->scales + k0 / 16, n / 16, 16, 127, copy));
    out.v[0] = out.of[0] = e8m0_half(_mm256_cvtepu8_epi32(s));
    out.v[1] = out.of[1] = e8m0_half(_mm256_cvtepu8_epi32(_mm_srli_si128(s, 8)));
    return out;
  }
  case MOI_FORMAT_NVFP4:
    e4m3_half(load16(padded(w->scales + k0 / 16, n / 16, 16, 0, copy)), out.v);
    out.of[0] = out.v[0], out.of[1] = out.v[1];
    return out;
  case MOI_FORMAT_INT4_G32: {
    __m128i s = load16(padded(w->scales + k0 / 16, n / 16, 16, 0, copy));
    of = v = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(s), 16));
    break;
  }
  case MOI_FORMAT_INT4Z_G32: {
    uint8_t zeros[16];
    v = _mm256_cvtph_ps(load16(padded(w->scales + k0 / 16, n / 16, 16, 0, copy)));
    __m128i z = load8(padded(w->zeros + k0 / 32, n / 32, 8, 0, zeros));
    of = _mm256_mul_ps(v, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(z)));
    break;
  }
  case MOI_FORMAT_INT4_G128:
  case MOI_FORMAT_INT4Z_G128: {
    const uint8_t *s = w->scales + k0 / 64;
    const int two = n == GROUP;
    __m128i h = _mm_cvtsi32_si128((int)(u16_at(s) | (two ? (uint32_t)u16_at(s + 2) << 16 : 0)));
    if (f == MOI_FORMAT_INT4_G128) {
      of = v = spread4(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(h), 16)));
    } else {
      const uint8_t *z = w->zeros + k0 / 128;
      __m128 scale = _mm_cvtph_ps(h);
      v = spread4(scale);
      of = spread4(_mm_mul_ps(scale, _mm_setr_ps(z[0], two ? z[1] : 0, 0, 0)));
    }
    break;
  }
  case MOI_FORMAT_Q4_K:
  case MOI_FORMAT_Q5_K: k_scales(d, &v, &of); break;
  case MOI_FORMAT_Q6_K: {
    __m256 scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(u16_at(d + 208))));
    out.v[0] = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(d + 192))));
    out.v[1] = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(d + 200))));
    out.of[0] = out.v[0], out.of[1] = out.v[1];
    return out;
  }
  default: break;
  }
  out.v[0] = out.v[1] = v;
  out.of[0] = out.of[1] = of;
  return out;
}

/* ---- unpacking */

INLINE __m256i lookup(int f, __m256i index) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(codes_of(f))), index);
}

/* Block b of the group, n (32, or 16 at the end of a row) elements: what meets q[0..15] and what meets q[16..31]. */
INLINE void block_of_weights(int f, const row *w, size_t k0, uint32_t b, uint32_t n, __m256i out[2]) {
  if (is_superblock(f)) {
    const uint8_t *p = w->data + k0 / 256 * bytes_of(f);
    const uint8_t *low = p + (f == MOI_FORMAT_Q4_K ? 16 : 48) + b / 2 * 32;
    if (f == MOI_FORMAT_Q6_K) low = p + b / 4 * 64 + (b & 1) * 32;
    const int shift = f == MOI_FORMAT_Q6_K ? (b & 2) != 0 : b & 1;
    __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)low);
    if (shift) u = _mm256_srli_epi16(u, 4);
    u = _mm256_and_si256(u, _mm256_set1_epi8(15));
    if (f == MOI_FORMAT_Q5_K) {
      __m256i bit = _mm256_set1_epi8((char)(1u << b));
      __m256i h = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(const void *)(p + 16)), bit);
      u = _mm256_or_si256(u, _mm256_and_si256(_mm256_cmpeq_epi8(h, bit), _mm256_set1_epi8(16)));
    }
    if (f == MOI_FORMAT_Q6_K) {
      __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)(p + 128 + b / 4 * 32));
      if ((b & 3) == 0) h = _mm256_slli_epi16(h, 4);
      if ((b & 3) == 1) h = _mm256_slli_epi16(h, 2);
      if ((b & 3) == 3) h = _mm256_srli_epi16(h, 2);
      u = _mm256_or_si256(u, _mm256_and_si256(h, _mm256_set1_epi8(0x30)));
    }
    out[0] = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(u));
    out[1] = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(u, 1));
    return;
  }
  const uint8_t *p = w->data + (k0 / 32 + b) * (is_even_odd(f) ? 16 : bytes_of(f));
  if (f == MOI_FORMAT_Q8_0) {
    out[0] = _mm256_cvtepi8_epi16(load16(p + 2));
    out[1] = _mm256_cvtepi8_epi16(load16(p + 18));
    return;
  }
  if (!is_even_odd(f)) p += f == MOI_FORMAT_MXFP4_GGUF ? 1 : 2;
  __m256i v = _mm256_cvtepu8_epi16(n == 32 ? load16(p) : load8(p));
  if (f == MOI_FORMAT_IQ4_NL || is_e2m1(f)) { /* a high byte with bit 7 looks up 0 */
    v = _mm256_or_si256(v, _mm256_set1_epi16((short)0x8000));
    out[0] = lookup(f, _mm256_and_si256(v, _mm256_set1_epi16((short)0x800f)));
    out[1] = lookup(f, _mm256_srai_epi16(v, 4));
  } else {
    out[0] = _mm256_and_si256(v, _mm256_set1_epi16(15));
    out[1] = _mm256_srli_epi16(v, 4);
  }
}

#endif
