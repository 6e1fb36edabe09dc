/* Weights decoded to fp32, fp32 FMA: every format, AVX-512 F, BW, DQ, VL. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "core/shared/decode.h"

typedef __m512 vec;
typedef __m512 operand;
typedef float elem;
#define VEC 16
#define STEP 16
#define MR 6
#define TILE_OUTER

static inline vec vec_zero(void) { return _mm512_setzero_ps(); }
static inline vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
static inline vec vec_splat(float f) { return _mm512_set1_ps(f); }
static inline vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline operand operand_load(const elem *p) { return _mm512_loadu_ps(p); }
static inline vec vec_dot(operand w, operand x, vec sum) { return _mm512_fmadd_ps(w, x, sum); }

static inline __m128 vec_sum4(vec a, vec b, vec c, vec d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 s = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

#include "cpu/kernels/tile.h"

/* ----------------------------------------------------------------------------------------------------------- pieces */

static inline __mmask16 mask16(uint32_t n) { return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff); }
static inline __mmask32 mask32(uint32_t n) { return n < 32 ? (1u << n) - 1 : ~0u; }

static inline __m512 iota(void) {
  return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static inline __m512 e2m1_table(void) {
  return _mm512_setr_ps(0.0f, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
}
static inline __m512 iq4_nl_table(void) {
  return _mm512_setr_ps(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
}

static inline __m512 f16_splat(const uint8_t *p) {
  return _mm512_cvtph_ps(_mm256_set1_epi16((short)moi_load_u16(p)));
}
static inline __m512 bf16_floats(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
static inline __m512 bytes_floats(__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)); }

/* Nibbles look up `table`, the 16 values a nibble can mean here: the scale is already in it. */

/* 16 bytes: low nibbles to dst[0..16), high to dst[16..32) */
static inline void nibbles_half(const uint8_t *p, __m512 table, float *dst) {
  const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
  _mm512_store_ps(dst, _mm512_permutexvar_ps(v, table));
  _mm512_store_ps(dst + 16, _mm512_permutexvar_ps(_mm512_srli_epi32(v, 4), table));
}
/* 8 bytes, in their order */
static inline void nibbles_even_odd(const uint8_t *p, __m512 table, float *dst) {
  const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  __m512i v = _mm512_set1_epi32((int)moi_load_u32(p));
  v = _mm512_mask_set1_epi32(v, 0xff00, (int)moi_load_u32(p + 4));
  _mm512_store_ps(dst, _mm512_permutexvar_ps(_mm512_srlv_epi32(v, shifts), table));
}
/* 32 elements of 16 bytes */
static inline void nibbles_even_odd_32(const uint8_t *p, __m512 table, float *dst) {
  nibbles_even_odd(p, table, dst);
  nibbles_even_odd(p + 8, table, dst + 16);
}

/* E4M3 to values * 2^-8: its exponent and mantissa in an f16's place, where subnormals cost nothing. The two NaN codes
 * come out as +-1.875: *nan says where. */
static inline __m512i e4m3_halves(__m256i bytes, __mmask32 *nan) {
  *nan = _mm256_cmpeq_epi8_mask(_mm256_and_si256(bytes, _mm256_set1_epi8(127)), _mm256_set1_epi8(127));
  const __m512i h = _mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 7);
  return _mm512_and_si512(h, _mm512_set1_epi16((short)0xbfff));
}
static inline __m512 half_low(__m512i h) { return _mm512_cvtph_ps(_mm512_castsi512_si256(h)); }
static inline __m512 half_high(__m512i h) { return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1)); }
static inline __m512 nan16(void) { return _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)); }

/* `count` scales to floats, up to the next multiple of 16 (32 for E4M3) of zeros */
enum { MOST_SCALES = K_BLOCK / 16 };
static inline void scales_e4m3(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i += 32, p += 32, s += 32) {
    __mmask32 nan;
    const __m512i h = e4m3_halves(_mm256_maskz_loadu_epi8(mask32(count - i), p), &nan);
    const __m512 unit = _mm512_set1_ps(256);
    _mm512_store_ps(s, _mm512_mask_mov_ps(_mm512_mul_ps(half_low(h), unit), (__mmask16)nan, nan16()));
    _mm512_store_ps(s + 16, _mm512_mask_mov_ps(_mm512_mul_ps(half_high(h), unit), (__mmask16)(nan >> 16), nan16()));
  }
}
static inline void scales_e8m0(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i += 16, p += 16, s += 16) {
    const __m512i b = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask16(count - i), p));
    __m512i v = _mm512_slli_epi32(b, 23);
    v = _mm512_mask_mov_epi32(v, _mm512_testn_epi32_mask(b, b), _mm512_set1_epi32(0x00400000));
    v = _mm512_mask_mov_epi32(v, _mm512_cmpeq_epi32_mask(b, _mm512_set1_epi32(255)), _mm512_set1_epi32(0x7fc00000));
    _mm512_store_si512(s, v);
  }
}
static inline void scales_bf16(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i += 16, p += 32, s += 16)
    _mm512_store_ps(s, bf16_floats(_mm256_maskz_loadu_epi16(mask16(count - i), p)));
}
static inline void scales_f16(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i += 16, p += 32, s += 16)
    _mm512_store_ps(s, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask16(count - i), p)));
}
static inline void scales_u8(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i += 16, p += 16, s += 16)
    _mm512_store_ps(s, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask16(count - i), p))));
}
#define SCALES __attribute__((aligned(64)))
/* Splats of scales are to be loads: compilers prefer shuffles, on the port that the decoders are short of. */
#define IN_MEMORY(array) __asm__("" : "+m"(array))

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
  for (uint32_t i = 0; i < count; i += 16) _mm512_store_ps(dst + i, _mm512_maskz_loadu_ps(mask16(count - i), row + i));
  return dst;
}

static const float *decode_f16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + ((size_t)n * w->k + k0) * 2;
  const uint32_t count = k1 - k0, whole = count & ~15u;
  for (uint32_t i = 0; i < whole; i += 16)
    _mm512_store_ps(dst + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + i * 2))));
  if (whole < count)
    _mm512_store_ps(dst + whole, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask16(count - whole), row + whole * 2)));
  return dst;
}

static const float *decode_bf16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + ((size_t)n * w->k + k0) * 2;
  const uint32_t count = k1 - k0, whole = count & ~15u;
  for (uint32_t i = 0; i < whole; i += 16)
    _mm512_store_ps(dst + i, bf16_floats(_mm256_loadu_si256((const __m256i *)(row + i * 2))));
  if (whole < count)
    _mm512_store_ps(dst + whole, bf16_floats(_mm256_maskz_loadu_epi16(mask16(count - whole), row + whole * 2)));
  return dst;
}

/* count codes with one scale; zeros up to a multiple of 32 */
static inline void decode_e4m3(const uint8_t *row, uint32_t count, float scale, float *dst) {
  /* 256 * scale must be finite; what is not, NaN with it, goes the slow way */
  const int plain = scale < 0x1p119f && scale > -0x1p119f;
  const __m512 unit = _mm512_set1_ps(plain ? 256 * scale : 0);
  for (uint32_t i = 0; i < count; i += 32) {
    const uint32_t here = least(32, count - i);
    const __m256i bytes = here == 32 ? _mm256_loadu_si256((const __m256i *)(row + i))
                                     : _mm256_maskz_loadu_epi8(mask32(here), row + i);
    __mmask32 nan;
    const __m512i h = e4m3_halves(bytes, &nan);
    _mm512_store_ps(dst + i, _mm512_mul_ps(half_low(h), unit));
    if (here > 16) _mm512_store_ps(dst + i + 16, _mm512_mul_ps(half_high(h), unit));
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
  scales_e8m0(block_at(w->scales, n, w->k, k0, 32, 1), blocks, s);
  for (uint32_t i = 0; i < blocks; i++)
    nibbles_even_odd_32(p + i * 16, _mm512_mul_ps(e2m1_table(), _mm512_set1_ps(s[i])), dst + i * 32);
  return dst;
}

static const float *decode_nvfp4(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, 16, 8);
  float s[MOST_SCALES] SCALES;
  const uint32_t blocks = (k1 - k0) / 16;
  scales_e4m3(block_at(w->scales, n, w->k, k0, 16, 1), blocks, s);
  for (uint32_t i = 0; i < blocks; i++)
    nibbles_even_odd(p + i * 8, _mm512_mul_ps(e2m1_table(), _mm512_set1_ps(s[i])), dst + i * 16);
  return dst;
}

static const float *decode_fp4_g16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, 16, 8);
  float s[MOST_SCALES] SCALES;
  const uint32_t blocks = (k1 - k0) / 16;
  scales_e8m0(block_at(w->scales, n, w->k, k0, 16, 1), blocks, s);
  for (uint32_t i = 0; i < blocks; i++)
    nibbles_even_odd(p + i * 8, _mm512_mul_ps(e2m1_table(), _mm512_set1_ps(s[i])), dst + i * 16);
  return dst;
}

static inline const float *decode_int4(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst,
                                       const uint32_t group) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, group, group / 2);
  float s[MOST_SCALES] SCALES;
  const uint32_t groups = (k1 - k0) / group;
  scales_bf16(block_at(w->scales, n, w->k, k0, group, 2), groups, s);
  for (uint32_t i = 0; i < groups; i++) {
    const __m512 table = _mm512_mul_ps(_mm512_sub_ps(iota(), _mm512_set1_ps(8)), _mm512_set1_ps(s[i]));
    for (uint32_t j = 0; j < group; j += 32, p += 16, dst += 32) nibbles_even_odd_32(p, table, dst);
  }
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
  float s[MOST_SCALES] SCALES, z[MOST_SCALES] SCALES;
  const uint32_t groups = (k1 - k0) / group;
  scales_f16(block_at(w->scales, n, w->k, k0, group, 2), groups, s);
  scales_u8(block_at(w->zeros, n, w->k, k0, group, 1), groups, z);
  for (uint32_t i = 0; i < groups; i++) {
    const __m512 table = _mm512_mul_ps(_mm512_sub_ps(iota(), _mm512_set1_ps(z[i])), _mm512_set1_ps(s[i]));
    for (uint32_t j = 0; j < group; j += 32, p += 16, dst += 32) nibbles_even_odd_32(p, table, dst);
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
    const __m512 d = f16_splat(b);
    _mm512_store_ps(dst + i, _mm512_mul_ps(d, bytes_floats(_mm_loadu_si128((const __m128i *)(b + 2)))));
    _mm512_store_ps(dst + i + 16, _mm512_mul_ps(d, bytes_floats(_mm_loadu_si128((const __m128i *)(b + 18)))));
  }
  return dst;
}

static const float *decode_q4_0(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 18);
  const __m512 codes = _mm512_sub_ps(iota(), _mm512_set1_ps(8));
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 18) nibbles_half(b + 2, _mm512_mul_ps(codes, f16_splat(b)), dst + i);
  return dst;
}

static const float *decode_iq4_nl(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 18);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 18)
    nibbles_half(b + 2, _mm512_mul_ps(iq4_nl_table(), f16_splat(b)), dst + i);
  return dst;
}

static const float *decode_mxfp4_gguf(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 17);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 17)
    nibbles_half(b + 1, _mm512_mul_ps(e2m1_table(), _mm512_set1_ps(moi_e8m0_value(*b))), dst + i);
  return dst;
}

/* d * scale and dmin * minimum of a Q4_K or Q5_K block's 8 sub-blocks. Products with the codes are exact in fp32, so
 * one fused operation gives decode.h's value. */
static inline void k_scales(const uint8_t *b, float *scales, float *minima) {
  const uint32_t u0 = moi_load_u32(b + 4), u1 = moi_load_u32(b + 8), u2 = moi_load_u32(b + 12);
  const uint64_t s = (u0 & 0x3f3f3f3fu) | (uint64_t)((u2 & 0x0f0f0f0fu) | ((u0 >> 2) & 0x30303030u)) << 32;
  const uint64_t m = (u1 & 0x3f3f3f3fu) | (uint64_t)(((u2 >> 4) & 0x0f0f0f0fu) | ((u1 >> 2) & 0x30303030u)) << 32;
  const __m256 d = _mm512_castps512_ps256(f16_splat(b)), dmin = _mm512_castps512_ps256(f16_splat(b + 2));
  _mm256_store_ps(scales, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)s)))));
  _mm256_store_ps(minima,
                  _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)m)))));
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
      const __m512 low = _mm512_fmsub_ps(iota(), _mm512_set1_ps(s[j]), _mm512_set1_ps(m[j]));
      const __m512 high = _mm512_fmsub_ps(iota(), _mm512_set1_ps(s[j + 1]), _mm512_set1_ps(m[j + 1]));
      const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(b + 16 + 16 * j)));
      const __m512i u = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(b + 32 + 16 * j)));
      _mm512_store_ps(out, _mm512_permutexvar_ps(v, low));
      _mm512_store_ps(out + 16, _mm512_permutexvar_ps(u, low));
      _mm512_store_ps(out + 32, _mm512_permutexvar_ps(_mm512_srli_epi32(v, 4), high));
      _mm512_store_ps(out + 48, _mm512_permutexvar_ps(_mm512_srli_epi32(u, 4), high));
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
    const __m256i high = _mm256_loadu_si256((const __m256i *)(b + 16));
    for (int j = 0; j < 8; j++, out += 32) {
      const __m256i v = _mm256_loadu_si256((const __m256i *)(b + 48 + 32 * (j >> 1)));
      const __m256i h = _mm256_srlv_epi32(_mm256_slli_epi64(high, 4), _mm256_set1_epi32(j));
      const __m256i top = j < 4 ? h : _mm256_srlv_epi32(high, _mm256_set1_epi32(j - 4));
      const __m256i q = _mm256_or_si256(_mm256_and_si256(_mm256_srlv_epi32(v, _mm256_set1_epi32(4 * (j & 1))), nibble),
                                        _mm256_and_si256(top, bit));
      const __m512 scale = _mm512_set1_ps(s[j]), minimum = _mm512_set1_ps(m[j]);
      _mm512_store_ps(out, _mm512_fmsub_ps(bytes_floats(_mm256_castsi256_si128(q)), scale, minimum));
      _mm512_store_ps(out + 16, _mm512_fmsub_ps(bytes_floats(_mm256_extracti128_si256(q, 1)), scale, minimum));
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
    _mm512_store_ps(s, _mm512_mul_ps(f16_splat(b + 208), bytes_floats(_mm_loadu_si128((const __m128i *)(b + 192)))));
    IN_MEMORY(s);
    for (int half = 0; half < 2; half++) {
      const __m256i v0 = _mm256_loadu_si256((const __m256i *)(b + 64 * half));
      const __m256i v1 = _mm256_loadu_si256((const __m256i *)(b + 64 * half + 32));
      const __m256i high = _mm256_loadu_si256((const __m256i *)(b + 128 + 32 * half));
      const __m256i low[4] = {v0, v1, _mm256_srli_epi16(v0, 4), _mm256_srli_epi16(v1, 4)};
      const __m256i top[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high,
                              _mm256_srli_epi16(high, 2)};
      for (int c = 0; c < 4; c++, out += 32) {
        const __m256i q = _mm256_sub_epi8(
            _mm256_or_si256(_mm256_and_si256(low[c], nibble), _mm256_and_si256(top[c], pair)), bias);
        const float *scale = s + half * 8 + c * 2;
        _mm512_store_ps(out, _mm512_mul_ps(_mm512_set1_ps(scale[0]), bytes_floats(_mm256_castsi256_si128(q))));
        _mm512_store_ps(out + 16,
                        _mm512_mul_ps(_mm512_set1_ps(scale[1]), bytes_floats(_mm256_extracti128_si256(q, 1))));
      }
    }
  }
  return dst;
}

/* ------------------------------------------------------------------------------------------- decoders: columns of n */

static void decode_bf16_kn(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  for (uint32_t k = k0; k < k1; k++, dst += PAIR) {
    const uint8_t *row = w->data + ((size_t)k * w->n + n) * 2;
    for (uint32_t i = 0; i < PAIR; i += 16) {
      if (i == 0 && k + AHEAD_BF16_KN < w->k)
        _mm_prefetch((const char *)row + (size_t)AHEAD_BF16_KN * w->n * 2, _MM_HINT_T0);
      const __m256i v = i + 16 <= width ? _mm256_loadu_si256((const __m256i *)(row + i * 2))
                                        : _mm256_maskz_loadu_epi16(i < width ? mask16(width - i) : 0, row + i * 2);
      _mm512_store_ps(dst + i, bf16_floats(v));
    }
  }
}

/* Scale and zero * scale of 16 columns of AWQ and GPTQ. q * scale and zero * scale are exact in fp32, so that their
 * fused difference is decode.h's value; but for infinite scales, of which it returns the columns. */
static inline __mmask16 zero_scale(const moi_matrix *w, uint32_t n, uint32_t g, __m512i shifts, int plus,
                                   __m512 *scale, __m512 *zero) {
  const int two = n + 8 < w->n; /* n is a multiple of 16, w->n of 8 */
  const __mmask16 valid = two ? 0xffff : 0xff;
  const uint8_t *words = w->zeros + ((size_t)g * (w->n >> 3) + (n >> 3)) * 4;
  __m512i z = _mm512_set1_epi32((int)moi_load_u32(words));
  if (two) z = _mm512_mask_set1_epi32(z, 0xff00, (int)moi_load_u32(words + 4));
  z = _mm512_and_si512(_mm512_srlv_epi32(z, shifts), _mm512_set1_epi32(15));
  z = _mm512_add_epi32(z, _mm512_set1_epi32(plus));
  *scale = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(valid, w->scales + ((size_t)g * w->n + n) * 2));
  *zero = _mm512_mul_ps(_mm512_cvtepi32_ps(z), *scale);
  return _mm512_fpclass_ps_mask(*scale, 0x18);
}

static inline void decode_gptq(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst,
                               uint32_t group) {
  const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m512 codes = iota();
  for (uint32_t i = 0; i < PAIR; i += 16) {
    if (i >= width) {
      for (uint32_t k = 0; k < k1 - k0; k++) _mm512_store_ps(dst + k * PAIR + i, _mm512_setzero_ps());
      continue;
    }
    const __mmask16 valid = n + i + 8 < w->n ? 0xffff : 0xff;
    __m512 scale = _mm512_setzero_ps(), zero = scale;
    __mmask16 infinite = 0;
    float *out = dst + i;
    for (uint32_t k = k0; k < k1; k += 8, out += 8 * PAIR) {
      if (k == k0 || k % group == 0) infinite |= zero_scale(w, n + i, k / group, shifts, 1, &scale, &zero);
      const uint8_t *words = w->data + ((size_t)(k >> 3) * w->n + n + i) * 4;
      if (k + 8 * AHEAD_GPTQ < w->k)
        _mm_prefetch((const char *)words + (size_t)AHEAD_GPTQ * w->n * 4, _MM_HINT_T0);
      __m512i v = _mm512_maskz_loadu_epi32(valid, words);
      for (int j = 0; j < 8; j++, v = _mm512_srli_epi32(v, 4))
        _mm512_store_ps(out + j * PAIR, _mm512_fmsub_ps(_mm512_permutexvar_ps(v, codes), scale, zero));
    }
    if (infinite)
      for (uint32_t k = k0; k < k1; k++)
        for (uint32_t j = i; j < least(i + 16, width); j++)
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
  const __m512i shifts = _mm512_setr_epi32(0, 16, 4, 20, 8, 24, 12, 28, 0, 16, 4, 20, 8, 24, 12, 28);
  const __m512 codes = iota();
  for (uint32_t i = 0; i < PAIR; i += 16) {
    if (i >= width) {
      for (uint32_t k = 0; k < k1 - k0; k++) _mm512_store_ps(dst + k * PAIR + i, _mm512_setzero_ps());
      continue;
    }
    const int two = n + i + 8 < w->n;
    __m512 scale = _mm512_setzero_ps(), zero = scale;
    __mmask16 infinite = 0;
    float *out = dst + i;
    for (uint32_t k = k0; k < k1; k++, out += PAIR) {
      if (k == k0 || k % group == 0) infinite |= zero_scale(w, n + i, k / group, shifts, 0, &scale, &zero);
      const uint8_t *words = w->data + ((size_t)k * (w->n >> 3) + ((n + i) >> 3)) * 4;
      if (i == 0 && k + AHEAD_AWQ < w->k)
        _mm_prefetch((const char *)words + (size_t)AHEAD_AWQ * (w->n >> 3) * 4, _MM_HINT_T0);
      __m512i v = _mm512_set1_epi32((int)moi_load_u32(words));
      if (two) v = _mm512_mask_set1_epi32(v, 0xff00, (int)moi_load_u32(words + 4));
      _mm512_store_ps(out,
                      _mm512_fmsub_ps(_mm512_permutexvar_ps(_mm512_srlv_epi32(v, shifts), codes), scale, zero));
    }
    if (infinite)
      for (uint32_t k = k0; k < k1; k++)
        for (uint32_t j = i; j < least(i + 16, width); j++)
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

#define KERNEL_NAME(format) moi_gemm_##format##_avx512
#include "cpu/kernels/f32_list.h"

#endif
