/* Weights decoded to fp32, fp32 FMA: every format, AVX2 with FMA and F16C. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "core/shared/decode.h"

typedef __m256 vec;
typedef __m256 operand;
typedef float elem;
#define VEC 8
#define STEP 8
#define MR 3
#define TILE_OUTER

static inline vec vec_zero(void) { return _mm256_setzero_ps(); }
static inline vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
static inline vec vec_splat(float f) { return _mm256_set1_ps(f); }
static inline vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline operand operand_load(const elem *p) { return _mm256_loadu_ps(p); }
static inline vec vec_dot(operand w, operand x, vec sum) { return _mm256_fmadd_ps(w, x, sum); }

static inline __m128 vec_sum4(vec a, vec b, vec c, vec d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256 s = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

#include "cpu/kernels/tile.h"

/* ----------------------------------------------------------------------------------------------------------- pieces */

static inline __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline __m256i load32(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline __m128i load8(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)p); }
/* The first n <= 16 bytes at p, then zeros. */
static inline __m128i load_part(const uint8_t *p, uint32_t n) {
  if (n >= 16) return load16(p);
  uint8_t part[16] = {0};
  memcpy(part, p, n);
  return load16(part);
}

static inline __m256 f16_splat(const uint8_t *p) { return _mm256_cvtph_ps(_mm_set1_epi16((short)moi_load_u16(p))); }
static inline __m256 bf16_floats(__m128i v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
/* the low 8 signed bytes */
static inline __m256 bytes_floats(__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)); }
/* 16 signed bytes times a scale */
static inline void put16(__m128i v, __m256 scale, float *dst) {
  _mm256_store_ps(dst, _mm256_mul_ps(bytes_floats(v), scale));
  _mm256_store_ps(dst + 8, _mm256_mul_ps(bytes_floats(_mm_srli_si128(v, 8)), scale));
}
/* 16 signed bytes times a scale, less a minimum */
static inline void put16_less(__m128i v, __m256 scale, __m256 minimum, float *dst) {
  _mm256_store_ps(dst, _mm256_fmsub_ps(bytes_floats(v), scale, minimum));
  _mm256_store_ps(dst + 8, _mm256_fmsub_ps(bytes_floats(_mm_srli_si128(v, 8)), scale, minimum));
}

/* What the 16 nibbles mean, as bytes; E2M1 doubled. */
static inline __m128i offset8_codes(void) {
  return _mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
}
static inline __m128i e2m1_codes(void) {
  return _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
}
static inline __m128i iq4_nl_codes(void) {
  return _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
}
static inline __m128i nibble_low(__m128i v) { return _mm_and_si128(v, _mm_set1_epi8(15)); }
static inline __m128i nibble_high(__m128i v) { return _mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15)); }

/* 16 bytes: low nibbles to dst[0..16), high to dst[16..32) */
static inline void nibbles_half(const uint8_t *p, __m128i codes, __m256 scale, float *dst) {
  const __m128i v = load16(p);
  put16(_mm_shuffle_epi8(codes, nibble_low(v)), scale, dst);
  put16(_mm_shuffle_epi8(codes, nibble_high(v)), scale, dst + 16);
}
/* 8 bytes (the low ones of v), in their order */
static inline void nibbles_even_odd(__m128i v, __m128i codes, __m256 scale, float *dst) {
  put16(_mm_shuffle_epi8(codes, _mm_unpacklo_epi8(nibble_low(v), nibble_high(v))), scale, dst);
}

/* E4M3 to values * 2^-8: its exponent and mantissa in an f16's place, where subnormals cost nothing. The two NaN codes
 * come out as +-1.875: *nan says where. */
static inline __m256i e4m3_halves(__m128i bytes, uint32_t *nan) {
  *nan = (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_and_si128(bytes, _mm_set1_epi8(127)), _mm_set1_epi8(127)));
  const __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
  return _mm256_and_si256(h, _mm256_set1_epi16((short)0xbfff));
}
static inline __m256 half_low(__m256i h) { return _mm256_cvtph_ps(_mm256_castsi256_si128(h)); }
static inline __m256 half_high(__m256i h) { return _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)); }

/* `count` scales to floats, up to the next multiple of 16 of zeros */
enum { MOST_SCALES = K_BLOCK / 16 };
#define SCALES __attribute__((aligned(64)))
/* Splats of scales are to be loads: compilers prefer shuffles, on the port that the decoders are short of. */
#define IN_MEMORY(array) __asm__("" : "+m"(array))
static inline void scales_e4m3(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i += 16, p += 16, s += 16) {
    uint32_t nan;
    const __m256i h = e4m3_halves(load_part(p, count - i), &nan);
    _mm256_store_ps(s, _mm256_mul_ps(half_low(h), _mm256_set1_ps(256)));
    _mm256_store_ps(s + 8, _mm256_mul_ps(half_high(h), _mm256_set1_ps(256)));
    for (uint32_t j = 0; nan; j++, nan >>= 1)
      if (nan & 1) s[j] = moi_bits_f32(0x7fc00000u);
  }
}
/* half the value, for the doubled codes: 2^-128 is a subnormal that fp32 has */
static inline void scales_half_e8m0(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i++) s[i] = 0.5f * moi_e8m0_value(p[i]);
}
static inline void scales_bf16(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i++) s[i] = moi_bf16_value(moi_load_u16(p + 2 * i));
}
static inline void scales_f16(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i++) s[i] = _cvtsh_ss((unsigned short)moi_load_u16(p + 2 * i));
}

/* How many rows of k ahead K-ordered data is fetched: each row is only a few cache lines long. */
enum { AHEAD_BF16_KN = 16, AHEAD_GPTQ = 2, AHEAD_AWQ = 16 };

/* Byte of block k0 of row n */
static inline const uint8_t *block_at(const uint8_t *stream, uint32_t n, uint32_t k, uint32_t k0, uint32_t elements,
                                      uint32_t bytes) {
  return stream + ((size_t)n * (k / elements) + k0 / elements) * bytes;
}

/* ----------------------------------------------------------------------------------------------- decoders: row of k */

static const float *decode_f32(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const float *row = (const float *)(const void *)w->data + (size_t)n * w->k + k0;
  const uint32_t count = k1 - k0;
  if (count % STEP == 0) return row;
  memcpy(dst, row, count * 4);
  memset(dst + count, 0, (STEP - count % STEP) * 4);
  return dst;
}

static const float *decode_f16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + ((size_t)n * w->k + k0) * 2;
  const uint32_t count = k1 - k0, whole = count & ~7u;
  for (uint32_t i = 0; i < whole; i += 8) _mm256_store_ps(dst + i, _mm256_cvtph_ps(load16(row + i * 2)));
  if (whole < count) _mm256_store_ps(dst + whole, _mm256_cvtph_ps(load_part(row + whole * 2, (count - whole) * 2)));
  return dst;
}

static const float *decode_bf16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + ((size_t)n * w->k + k0) * 2;
  const uint32_t count = k1 - k0, whole = count & ~7u;
  for (uint32_t i = 0; i < whole; i += 8) _mm256_store_ps(dst + i, bf16_floats(load16(row + i * 2)));
  if (whole < count) _mm256_store_ps(dst + whole, bf16_floats(load_part(row + whole * 2, (count - whole) * 2)));
  return dst;
}

/* count codes with one scale; zeros up to a multiple of 16 */
static inline void decode_e4m3(const uint8_t *row, uint32_t count, float scale, float *dst) {
  /* 256 * scale must be finite; what is not, NaN with it, goes the slow way */
  const int plain = scale < 0x1p119f && scale > -0x1p119f;
  const __m256 unit = _mm256_set1_ps(plain ? 256 * scale : 0);
  for (uint32_t i = 0; i < count; i += 16) {
    const uint32_t here = least(16, count - i);
    uint32_t nan;
    const __m256i h = e4m3_halves(load_part(row + i, here), &nan);
    _mm256_store_ps(dst + i, _mm256_mul_ps(half_low(h), unit));
    _mm256_store_ps(dst + i + 8, _mm256_mul_ps(half_high(h), unit));
    if (nan || !plain)
      for (uint32_t j = 0; j < here; j++) dst[i + j] = moi_e4m3_value(row[i + j]) * scale;
  }
}

static const float *decode_fp8(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  decode_e4m3(w->data + (size_t)n * w->k + k0, k1 - k0, 1, dst);
  return dst;
}

static const float *decode_fp8_b128(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + (size_t)n * w->k;
  const uint8_t *scales = w->scales + (size_t)(n >> 7) * ((w->k + 127) >> 7) * 4;
  for (uint32_t k = k0; k < k1; k += 128)
    decode_e4m3(row + k, least(128, k1 - k), moi_bits_f32(moi_load_u32(scales + (k >> 7) * 4)), dst + (k - k0));
  return dst;
}

static const float *decode_mxfp4(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, 32, 16);
  float s[MOST_SCALES] SCALES;
  const uint32_t blocks = (k1 - k0) / 32;
  scales_half_e8m0(block_at(w->scales, n, w->k, k0, 32, 1), blocks, s);
  for (uint32_t i = 0; i < blocks; i++, p += 16, dst += 32) {
    nibbles_even_odd(load8(p), e2m1_codes(), _mm256_set1_ps(s[i]), dst);
    nibbles_even_odd(load8(p + 8), e2m1_codes(), _mm256_set1_ps(s[i]), dst + 16);
  }
  return dst - (k1 - k0);
}

static const float *decode_nvfp4(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, 16, 8);
  float s[MOST_SCALES] SCALES;
  const uint32_t blocks = (k1 - k0) / 16;
  scales_e4m3(block_at(w->scales, n, w->k, k0, 16, 1), blocks, s);
  for (uint32_t i = 0; i < blocks; i++)
    nibbles_even_odd(load8(p + i * 8), e2m1_codes(), _mm256_set1_ps(0.5f * s[i]), dst + i * 16);
  return dst;
}

static const float *decode_fp4_g16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, 16, 8);
  float s[MOST_SCALES] SCALES;
  const uint32_t blocks = (k1 - k0) / 16;
  scales_half_e8m0(block_at(w->scales, n, w->k, k0, 16, 1), blocks, s);
  for (uint32_t i = 0; i < blocks; i++)
    nibbles_even_odd(load8(p + i * 8), e2m1_codes(), _mm256_set1_ps(s[i]), dst + i * 16);
  return dst;
}

static inline const float *decode_int4(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst,
                                       const uint32_t group) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, group, group / 2);
  float s[MOST_SCALES] SCALES;
  const uint32_t groups = (k1 - k0) / group;
  scales_bf16(block_at(w->scales, n, w->k, k0, group, 2), groups, s);
  for (uint32_t i = 0; i < groups; i++)
    for (uint32_t j = 0; j < group; j += 16, p += 8, dst += 16)
      nibbles_even_odd(load8(p), offset8_codes(), _mm256_set1_ps(s[i]), dst);
  return dst - (k1 - k0);
}
static const float *decode_int4_g32(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  return decode_int4(w, n, k0, k1, dst, 32);
}
static const float *decode_int4_g128(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  return decode_int4(w, n, k0, k1, dst, 128);
}

static inline const float *decode_int4z(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst,
                                        const uint32_t group) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, group, group / 2);
  const uint8_t *zeros = block_at(w->zeros, n, w->k, k0, group, 1);
  float s[MOST_SCALES] SCALES;
  const uint32_t groups = (k1 - k0) / group;
  scales_f16(block_at(w->scales, n, w->k, k0, group, 2), groups, s);
  for (uint32_t i = 0; i < groups; i++) {
    const __m256 scale = _mm256_set1_ps(s[i]), zero = _mm256_set1_ps(zeros[i]);
    for (uint32_t j = 0; j < group; j += 16, p += 8, dst += 16) {
      const __m128i v = load8(p), q = _mm_unpacklo_epi8(nibble_low(v), nibble_high(v));
      _mm256_store_ps(dst, _mm256_mul_ps(_mm256_sub_ps(bytes_floats(q), zero), scale));
      _mm256_store_ps(dst + 8, _mm256_mul_ps(_mm256_sub_ps(bytes_floats(_mm_srli_si128(q, 8)), zero), scale));
    }
  }
  return dst - (k1 - k0);
}
static const float *decode_int4z_g32(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  return decode_int4z(w, n, k0, k1, dst, 32);
}
static const float *decode_int4z_g128(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  return decode_int4z(w, n, k0, k1, dst, 128);
}

static const float *decode_q8_0(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 34);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 34) {
    const __m256 d = f16_splat(b);
    for (int j = 0; j < 32; j += 8) _mm256_store_ps(dst + i + j, _mm256_mul_ps(d, bytes_floats(load8(b + 2 + j))));
  }
  return dst;
}

static const float *decode_q4_0(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 18);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 18) nibbles_half(b + 2, offset8_codes(), f16_splat(b), dst + i);
  return dst;
}

static const float *decode_iq4_nl(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 18);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 18) nibbles_half(b + 2, iq4_nl_codes(), f16_splat(b), dst + i);
  return dst;
}

static const float *decode_mxfp4_gguf(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 17);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 17)
    nibbles_half(b + 1, e2m1_codes(), _mm256_set1_ps(0.5f * moi_e8m0_value(*b)), dst + i);
  return dst;
}

/* d * scale and dmin * minimum of a Q4_K or Q5_K block's 8 sub-blocks. Products with the codes are exact in fp32, so
 * one fused operation gives decode.h's value. */
static inline void k_scales(const uint8_t *b, float *scales, float *minima) {
  const uint32_t u0 = moi_load_u32(b + 4), u1 = moi_load_u32(b + 8), u2 = moi_load_u32(b + 12);
  const uint64_t s = (u0 & 0x3f3f3f3fu) | (uint64_t)((u2 & 0x0f0f0f0fu) | ((u0 >> 2) & 0x30303030u)) << 32;
  const uint64_t m = (u1 & 0x3f3f3f3fu) | (uint64_t)(((u2 >> 4) & 0x0f0f0f0fu) | ((u1 >> 2) & 0x30303030u)) << 32;
  _mm256_store_ps(scales, _mm256_mul_ps(f16_splat(b), bytes_floats(_mm_cvtsi64_si128((int64_t)s))));
  _mm256_store_ps(minima, _mm256_mul_ps(f16_splat(b + 2), bytes_floats(_mm_cvtsi64_si128((int64_t)m))));
}

static const float *decode_q4_k(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 256, 144);
  float *out = dst;
  for (uint32_t i = 0; i < k1 - k0; i += 256, b += 144) {
    float s[8] SCALES, m[8] SCALES;
    k_scales(b, s, m);
    IN_MEMORY(s);
    IN_MEMORY(m);
    for (int j = 0; j < 8; j += 2, out += 64) {
      const __m128i v = load16(b + 16 + 16 * j), u = load16(b + 32 + 16 * j);
      __m256 scale = _mm256_set1_ps(s[j]), minimum = _mm256_set1_ps(m[j]);
      put16_less(nibble_low(v), scale, minimum, out);
      put16_less(nibble_low(u), scale, minimum, out + 16);
      scale = _mm256_set1_ps(s[j + 1]), minimum = _mm256_set1_ps(m[j + 1]);
      put16_less(nibble_high(v), scale, minimum, out + 32);
      put16_less(nibble_high(u), scale, minimum, out + 48);
    }
  }
  return dst;
}

static const float *decode_q5_k(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 256, 176);
  const __m256i nibble = _mm256_set1_epi8(15), bit = _mm256_set1_epi8(16);
  float *out = dst;
  for (uint32_t i = 0; i < k1 - k0; i += 256, b += 176) {
    float s[8] SCALES, m[8] SCALES;
    k_scales(b, s, m);
    IN_MEMORY(s);
    IN_MEMORY(m);
    const __m256i high = load32(b + 16);
    for (int j = 0; j < 8; j++, out += 32) {
      const __m256i v = _mm256_srlv_epi32(load32(b + 48 + 32 * (j >> 1)), _mm256_set1_epi32(4 * (j & 1)));
      const __m256i top = j < 4 ? _mm256_sllv_epi32(high, _mm256_set1_epi32(4 - j))
                                : _mm256_srlv_epi32(high, _mm256_set1_epi32(j - 4));
      const __m256i q = _mm256_or_si256(_mm256_and_si256(v, nibble), _mm256_and_si256(top, bit));
      const __m256 scale = _mm256_set1_ps(s[j]), minimum = _mm256_set1_ps(m[j]);
      put16_less(_mm256_castsi256_si128(q), scale, minimum, out);
      put16_less(_mm256_extracti128_si256(q, 1), scale, minimum, out + 16);
    }
  }
  return dst;
}

static const float *decode_q6_k(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 256, 210);
  const __m256i nibble = _mm256_set1_epi8(15), pair = _mm256_set1_epi8(48), bias = _mm256_set1_epi8(32);
  float *out = dst;
  for (uint32_t i = 0; i < k1 - k0; i += 256, b += 210) {
    float s[16] SCALES;
    put16(load16(b + 192), f16_splat(b + 208), s);
    IN_MEMORY(s);
    for (int half = 0; half < 2; half++) {
      const __m256i v0 = load32(b + 64 * half), v1 = load32(b + 64 * half + 32), high = load32(b + 128 + 32 * half);
      const __m256i low[4] = {v0, v1, _mm256_srli_epi16(v0, 4), _mm256_srli_epi16(v1, 4)};
      const __m256i top[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high,
                              _mm256_srli_epi16(high, 2)};
      for (int c = 0; c < 4; c++, out += 32) {
        const __m256i q = _mm256_sub_epi8(
            _mm256_or_si256(_mm256_and_si256(low[c], nibble), _mm256_and_si256(top[c], pair)), bias);
        const float *scale = s + half * 8 + c * 2;
        put16(_mm256_castsi256_si128(q), _mm256_set1_ps(scale[0]), out);
        put16(_mm256_extracti128_si256(q, 1), _mm256_set1_ps(scale[1]), out + 16);
      }
    }
  }
  return dst;
}

/* ------------------------------------------------------------------------------------------- decoders: columns of n */

static void decode_bf16_kn(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  for (uint32_t k = k0; k < k1; k++, dst += PAIR) {
    const uint8_t *row = w->data + ((size_t)k * w->n + n) * 2;
    for (uint32_t i = 0; i < PAIR; i += 8) {
      if (i == 0 && k + AHEAD_BF16_KN < w->k)
        _mm_prefetch((const char *)row + (size_t)AHEAD_BF16_KN * w->n * 2, _MM_HINT_T0);
      const __m128i v = i + 8 <= width ? load16(row + i * 2)
                        : i < width    ? load_part(row + i * 2, (width - i) * 2)
                                       : _mm_setzero_si128();
      _mm256_store_ps(dst + i, bf16_floats(v));
    }
  }
}

/* Scale and zero * scale of 8 columns of AWQ and GPTQ. q * scale and zero * scale are exact in fp32, so that their
 * fused difference is decode.h's value; but for infinite scales, of which it returns the columns. */
static inline int zero_scale(const moi_matrix *w, uint32_t n, uint32_t g, __m256i shifts, int plus, __m256 *scale,
                             __m256 *zero) {
  const uint32_t word = moi_load_u32(w->zeros + ((size_t)g * (w->n >> 3) + (n >> 3)) * 4);
  __m256i z = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)word), shifts), _mm256_set1_epi32(15));
  z = _mm256_add_epi32(z, _mm256_set1_epi32(plus));
  *scale = _mm256_cvtph_ps(load16(w->scales + ((size_t)g * w->n + n) * 2));
  *zero = _mm256_mul_ps(_mm256_cvtepi32_ps(z), *scale);
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), *scale), inf = _mm256_set1_ps(moi_bits_f32(0x7f800000u));
  return _mm256_movemask_ps(_mm256_cmp_ps(size, inf, _CMP_EQ_OQ));
}

static void zero_columns(float *dst, uint32_t n_k) {
  for (uint32_t k = 0; k < n_k; k++) _mm256_store_ps(dst + k * PAIR, _mm256_setzero_ps());
}

static inline void decode_gptq(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst,
                               uint32_t group) {
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), nibble = _mm256_set1_epi32(15);
  for (uint32_t i = 0; i < PAIR; i += 8) {
    if (i >= width) {
      zero_columns(dst + i, k1 - k0);
      continue;
    }
    __m256 scale = _mm256_setzero_ps(), zero = scale;
    int infinite = 0;
    float *out = dst + i;
    for (uint32_t k = k0; k < k1; k += 8, out += 8 * PAIR) {
      if (k == k0 || k % group == 0) infinite |= zero_scale(w, n + i, k / group, shifts, 1, &scale, &zero);
      const uint8_t *words = w->data + ((size_t)(k >> 3) * w->n + n + i) * 4;
      if (i == 0 && k + 8 * AHEAD_GPTQ < w->k)
        _mm_prefetch((const char *)words + (size_t)AHEAD_GPTQ * w->n * 4, _MM_HINT_T0);
      __m256i v = load32(words);
      for (int j = 0; j < 8; j++, v = _mm256_srli_epi32(v, 4))
        _mm256_store_ps(out + j * PAIR,
                        _mm256_fmsub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(v, nibble)), scale, zero));
    }
    if (infinite)
      for (uint32_t k = k0; k < k1; k++)
        for (uint32_t j = i; j < least(i + 8, width); j++)
          dst[(k - k0) * PAIR + j] = MOI_AT_GPTQ(w->data, w->scales, w->zeros, n + j, k, w->n, group);
  }
}
static void decode_gptq_g32(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  decode_gptq(w, n, width, k0, k1, dst, 32);
}
static void decode_gptq_g128(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  decode_gptq(w, n, width, k0, k1, dst, 128);
}

static inline void decode_awq(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst,
                               uint32_t group) {
  const __m256i shifts = _mm256_setr_epi32(0, 16, 4, 20, 8, 24, 12, 28), nibble = _mm256_set1_epi32(15);
  for (uint32_t i = 0; i < PAIR; i += 8) {
    if (i >= width) {
      zero_columns(dst + i, k1 - k0);
      continue;
    }
    __m256 scale = _mm256_setzero_ps(), zero = scale;
    int infinite = 0;
    float *out = dst + i;
    for (uint32_t k = k0; k < k1; k++, out += PAIR) {
      if (k == k0 || k % group == 0) infinite |= zero_scale(w, n + i, k / group, shifts, 0, &scale, &zero);
      const uint8_t *words = w->data + ((size_t)k * (w->n >> 3) + ((n + i) >> 3)) * 4;
      if (i == 0 && k + AHEAD_AWQ < w->k)
        _mm_prefetch((const char *)words + (size_t)AHEAD_AWQ * (w->n >> 3) * 4, _MM_HINT_T0);
      const __m256i v = _mm256_srlv_epi32(_mm256_set1_epi32((int)moi_load_u32(words)), shifts);
      _mm256_store_ps(out, _mm256_fmsub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(v, nibble)), scale, zero));
    }
    if (infinite)
      for (uint32_t k = k0; k < k1; k++)
        for (uint32_t j = i; j < least(i + 8, width); j++)
          dst[(k - k0) * PAIR + j] = MOI_AT_AWQ(w->data, w->scales, w->zeros, n + j, k, w->n, group);
  }
}
static void decode_awq_g32(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  decode_awq(w, n, width, k0, k1, dst, 32);
}
static void decode_awq_g128(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  decode_awq(w, n, width, k0, k1, dst, 128);
}

/* ---------------------------------------------------------------------------------------------------------- kernels */

#define KERNEL_NAME(format) moi_gemm_##format##_avx2
#include "cpu/kernels/f32_list.h"

#endif
