/* Blocks of integer weights in AVX-512 registers: their codes as unsigned bytes, their scales as floats. */
#ifndef MOI_CPU_KERNELS_INT_AVX512_H
#define MOI_CPU_KERNELS_INT_AVX512_H

#include <immintrin.h>

#include "cpu/kernels/int.h"

/* Elements that share one fetch of scales: 16 scales, or one superblock. */
INLINE uint32_t group_of(int f) {
  return is_superblock(f) || block_of(f) == 16 ? 256 : 512;
}

/* Words of four rows: v[j] = word j of each 128 bits of all rows, afterwards. */
INLINE void turn_in_lanes(__m512i v[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

/* ---- scales */

INLINE __mmask16 first(uint32_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }
INLINE __m512 bits(__m512i v) { return _mm512_castsi512_ps(v); }

/* E8M0 bytes in lanes, halved: the lookup holds twice the E2M1 values. */
INLINE __m512 e8m0_half(__m512i b) {
  __m512i v = _mm512_slli_epi32(_mm512_sub_epi32(b, _mm512_set1_epi32(1)), 23);
  __mmask16 tiny = _mm512_cmplt_epu32_mask(b, _mm512_set1_epi32(2)); /* subnormal: 2^-128 << b */
  v = _mm512_mask_sllv_epi32(v, tiny, _mm512_set1_epi32(0x00200000), b);
  __mmask16 nan = _mm512_cmpeq_epi32_mask(b, _mm512_set1_epi32(255));
  return bits(_mm512_mask_mov_epi32(v, nan, _mm512_set1_epi32(0x7fc00000)));
}

/* E4M3 bytes, halved. As f16 bits they are the value times 2^-8, subnormals too; only NaN has no equal there. */
INLINE __m512 e4m3_half(__m128i b) {
  __m256i w = _mm256_cvtepu8_epi16(b), magnitude = _mm256_and_si256(w, _mm256_set1_epi16(127));
  __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(127), w), 8);
  __m256i h = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
  h = _mm256_mask_mov_epi16(h, _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(127)), _mm256_set1_epi16(0x7e00));
  return _mm512_mul_ps(_mm512_cvtph_ps(h), _mm512_set1_ps(128));
}

/* Four scales, each for four lanes. */
INLINE __m512 spread4(__m512 v) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), v);
}

/* Superblock of Q4_K and Q5_K: lanes 0..7 d * scale, 8..15 dmin * minimum. */
INLINE __m512 k_scales(const uint8_t *block) {
  __m128i b = _mm_loadu_si128((const __m128i *)(const void *)block); /* d, dmin, 12 bytes */
  __m128i low = _mm_shuffle_epi8(b, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
  __m128i high = _mm_shuffle_epi8(b, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
  /* lanes 0..3 and 8..11 keep 6 bits; 4..7 the low nibble, 12..15 the high one, under two bits of `high` */
  __m512i l = _mm512_cvtepu8_epi32(low), h = _mm512_cvtepu8_epi32(high);
  l = _mm512_srlv_epi32(l, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4));
  l = _mm512_and_si512(l, _mm512_setr_epi32(63, 63, 63, 63, 15, 15, 15, 15, 63, 63, 63, 63, 15, 15, 15, 15));
  h = _mm512_and_si512(_mm512_srli_epi32(h, 2), _mm512_set1_epi32(0x30));
  __m512 d = _mm512_castps128_ps512(_mm_cvtph_ps(b));
  d = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), d);
  return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_or_si512(l, h)));
}

/* The 8 scales and then the 8 minima of a superblock of 16 rows, a row in each lane, vectors `apart` floats from each other:
 * h has their d and dmin and the 12 bytes behind, 4 bytes of each row. */
INLINE void k_scales_of_rows(const __m512i h[4], float *out, size_t apart) {
  const __m512i six = _mm512_set1_epi8(63), two = _mm512_set1_epi8(0x30), low = _mm512_set1_epi8(15);
  const __m512i q[4] = {
      _mm512_and_si512(h[1], six),
      _mm512_or_si512(_mm512_and_si512(h[3], low), _mm512_and_si512(_mm512_srli_epi16(h[1], 2), two)),
      _mm512_and_si512(h[2], six),
      _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(h[3], 4), low),
                      _mm512_and_si512(_mm512_srli_epi16(h[2], 2), two))};
  const __m512 d[2] = {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(h[0])),
                       _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(h[0], 16)))};
#pragma GCC unroll 4
  for (uint32_t i = 0; i < 4; i++)
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; j++) {
      const __m512i byte = _mm512_and_si512(_mm512_srli_epi32(q[i], 8 * j), _mm512_set1_epi32(255));
      _mm512_store_ps(out + (4 * i + j) * apart, _mm512_mul_ps(d[i / 2], _mm512_cvtepi32_ps(byte)));
    }
}

/* The 16-bit words (MXFP4_GGUF: bytes) at the head of up to 16 blocks of 32 elements; the missing ones are 0. A 64-byte
 * load holds the heads of `heads` blocks, and one permutation puts them in place; a gather costs several times that. */
INLINE __m256i block_heads(int f, const uint8_t *p, uint32_t n) {
  const uint32_t heads = f == MOI_FORMAT_Q8_0 ? 2 : 4, step = heads * bytes_of(f), size = n / 32 * bytes_of(f);
  __m512i index = _mm512_set1_epi64(f == MOI_FORMAT_Q8_0 ? 0x0011000000110000 : 0x001b001200090000);
  if (f == MOI_FORMAT_MXFP4_GGUF) index = _mm512_set1_epi64(0x0019001100080000); /* bytes 0 17 34 51 */
  __m512i v = _mm512_setzero_si512();
  for (uint32_t j = 0; j < 16 / heads; j++) {
    __mmask32 into = ((1u << heads) - 1) << j * heads;
    __m512i from;
    if (n == 512) {
      from = _mm512_loadu_si512(p + j * step);
    } else {
      uint32_t left = j * step >= size ? 0 : size - j * step;
      from = _mm512_maskz_loadu_epi8(left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1, p + j * step);
    }
    v = _mm512_mask_permutexvar_epi16(v, into, index, from);
  }
  __m256i w = _mm512_castsi512_si256(v);
  if (f == MOI_FORMAT_MXFP4_GGUF)
    w = _mm256_and_si256(_mm256_srlv_epi16(w, _mm256_set1_epi32(8 << 16)), _mm256_set1_epi16(255));
  return w;
}

/* The scales of the group from element k0 on, n of which exist (the other lanes are 0), and *of, what multiplies each
 * block's sum of x in the correction (see offset_of). Superblocks with minima: both are scales in lanes 0..7 and minima
 * in 8..15. */
INLINE __m512 scales_of(int f, const row *w, size_t k0, uint32_t n, __m512 *correction) {
  __mmask16 m = first(n / block_of(f));
  const uint8_t *d = w->data + k0 / block_of(f) * bytes_of(f);
  if (is_superblock(f)) d = w->data + k0 / 256 * bytes_of(f);
  __m512 v = _mm512_setzero_ps(), of = v;
  switch (f) {
  case MOI_FORMAT_Q8_0:
  case MOI_FORMAT_Q4_0:
  case MOI_FORMAT_IQ4_NL: of = v = _mm512_cvtph_ps(block_heads(f, d, n)); break;
  case MOI_FORMAT_MXFP4_GGUF:
    of = v = _mm512_maskz_mov_ps(m, e8m0_half(_mm512_cvtepu16_epi32(block_heads(f, d, n))));
    break;
  case MOI_FORMAT_MXFP4:
    of = v = _mm512_maskz_mov_ps(m, e8m0_half(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, w->scales + k0 / 32))));
    break;
  case MOI_FORMAT_FP4_G16:
    of = v = _mm512_maskz_mov_ps(m, e8m0_half(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, w->scales + k0 / 16))));
    break;
  case MOI_FORMAT_NVFP4: of = v = e4m3_half(_mm_maskz_loadu_epi8(m, w->scales + k0 / 16)); break;
  case MOI_FORMAT_INT4_G32:
    of = v = bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, w->scales + k0 / 16)), 16));
    break;
  case MOI_FORMAT_INT4Z_G32:
    v = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, w->scales + k0 / 16));
    of = _mm512_mul_ps(v, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, w->zeros + k0 / 32))));
    break;
  case MOI_FORMAT_INT4_G128: {
    __m128i s = _mm_maskz_loadu_epi16((__mmask8)first(n / 128), w->scales + k0 / 64);
    of = v = spread4(bits(_mm512_slli_epi32(_mm512_castsi128_si512(_mm_cvtepu16_epi32(s)), 16)));
    break;
  }
  case MOI_FORMAT_INT4Z_G128: {
    __m128i s = _mm_maskz_loadu_epi16((__mmask8)first(n / 128), w->scales + k0 / 64);
    __m128i z = _mm_maskz_loadu_epi8(first(n / 128), w->zeros + k0 / 128);
    __m128 scale = _mm_cvtph_ps(s);
    v = spread4(_mm512_castps128_ps512(scale));
    of = spread4(_mm512_castps128_ps512(_mm_mul_ps(scale, _mm_cvtepi32_ps(_mm_cvtepu8_epi32(z)))));
    break;
  }
  case MOI_FORMAT_Q4_K:
  case MOI_FORMAT_Q5_K:
    v = k_scales(d);
    of = v;
    break;
  case MOI_FORMAT_Q6_K: {
    __m128i s = _mm_loadu_si128((const __m128i *)(const void *)(d + 192));
    __m512 scale = _mm512_set1_ps(_cvtsh_ss((unsigned short)(d[208] | d[209] << 8)));
    v = of = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(s)));
    break;
  }
  default: break;
  }
  *correction = of;
  return v;
}

/* ---- unpacking */

INLINE __m512i load16x4(const uint8_t *p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p));
}
INLINE __m512i load32x2(const uint8_t *p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
/* v, and in the other lanes of every second 128 (by16) or in the upper 256 bits v's high nibbles */
INLINE __m512i nibbles(__m512i v, int by16) {
  __m512i shift = by16 ? _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4)
                       : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
  return _mm512_and_si512(_mm512_srlv_epi32(v, shift), _mm512_set1_epi8(15));
}
INLINE __m512i nibbles_in_place(__m512i v, int by16) {
  const int l = 0x0f0f0f0f, h = (int)0xf0f0f0f0;
  return _mm512_and_si512(v, by16 ? _mm512_setr_epi32(l, l, l, l, h, h, h, h, l, l, l, l, h, h, h, h)
                                  : _mm512_setr_epi32(l, l, l, l, l, l, l, l, h, h, h, h, h, h, h, h));
}
INLINE __m512i lookup(int f, __m512i index) { return _mm512_shuffle_epi8(load16x4(codes_of(f)), index); }

/* The n (64, or fewer at the end of a row) elements of chunk c of the group at k0, as unsigned bytes; in_place: high
 * nibbles that no lookup needs low stay where they are. */
INLINE __m512i chunk_of(int f, int in_place, const row *w, size_t k0, uint32_t c, uint32_t n) {
  if (is_even_odd(f)) {
    const uint8_t *p = w->data + k0 / 2 + c * 32;
    __m512i v;
    if (n == 64) v = load32x2(p);
    else v = _mm512_broadcast_i64x4(_mm256_maskz_loadu_epi8((1u << n / 2) - 1, p));
    return is_e2m1(f) ? lookup(f, nibbles(v, 0)) : in_place ? nibbles_in_place(v, 0) : nibbles(v, 0);
  }
  if (is_superblock(f)) {
    const uint8_t *b = w->data + k0 / 256 * bytes_of(f);
    if (f == MOI_FORMAT_Q4_K) {
      __m512i v = load32x2(b + 16 + c * 32);
      return in_place ? nibbles_in_place(v, 0) : nibbles(v, 0);
    }
    if (f == MOI_FORMAT_Q5_K) {
      __m512i u = nibbles(load32x2(b + 48 + c * 32), 0);
      __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8((char)(1u << 2 * c)), _mm256_set1_epi8((char)(2u << 2 * c)), 1);
      return _mm512_mask_add_epi8(u, _mm512_test_epi8_mask(load32x2(b + 16), bit), u, _mm512_set1_epi8(16));
    }
    /* two chunks of a half: low, then high nibbles of the same 64 bytes; bits 2*quarter of 32 bytes go above them */
    __m512i low = _mm512_loadu_si512(b + c / 2 * 64), high = load32x2(b + 128 + c / 2 * 32);
    if (c & 1) low = _mm512_srli_epi16(low, 4);
    int r0 = c & 1 ? 0 : 4, r1 = c & 1 ? 30 : 2;
    high = _mm512_rolv_epi32(high, _mm512_setr_epi32(r0, r0, r0, r0, r0, r0, r0, r0, r1, r1, r1, r1, r1, r1, r1, r1));
    low = _mm512_and_si512(low, _mm512_set1_epi8(15));
    return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(0x30), 0xf8); /* low | (high & 0x30) */
  }
  const uint8_t *b = w->data + (k0 / 32 + 2 * c) * bytes_of(f);
  if (f == MOI_FORMAT_Q8_0) {
    __m512i v = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)(b + 2)));
    if (n == 64) v = _mm512_inserti64x4(v, _mm256_loadu_si256((const __m256i *)(const void *)(b + 36)), 1);
    return _mm512_xor_si512(v, _mm512_set1_epi8((char)128));
  }
  uint32_t head = f == MOI_FORMAT_MXFP4_GGUF ? 1 : 2;
  const __m128i *second = (const __m128i *)(const void *)(b + bytes_of(f) + head);
  __m512i v = load16x4(b + head);
  if (n == 64) v = _mm512_mask_broadcast_i32x4(v, 0xff00, _mm_loadu_si128(second));
  if (f == MOI_FORMAT_Q4_0) return in_place ? nibbles_in_place(v, 1) : nibbles(v, 1);
  return lookup(f, nibbles(v, 1));
}

#endif
