/* Attention with bf16 products and fp32 sums, AVX512-BF16: queries that are bf16, keys and values that are bf16, or fp8, or
 * the codes of q8_0, which bf16 holds as well; probabilities, times a code's scale, rounded to bf16. */
#if defined(__x86_64__)

#include "cpu/kernels/flash_avx512.h"

#include "cpu/kernel.h"

typedef uint32_t unit; /* two bf16 */
#define UNIT 2
#define ATTEND moi_attend_avx512bf16
#define ATTEND_DOT moi_attend_dot_avx512bf16
#define PANEL 8
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#define KEEP_IN_MEMORY(p) __asm__("" : "+r"(p)) /* what p points to is not to be held in registers */

#ifdef MOI_EMULATE_BF16 /* the instruction's arithmetic on machines without it, to test what is around it */
typedef __m512i operand;
static inline vec vec_dot(operand a, operand b, vec sum) {
  const __m512i odd = _mm512_set1_epi32((int)0xffff0000u);
  sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, odd)), _mm512_castsi512_ps(_mm512_and_si512(b, odd)),
                        sum);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)),
                         sum);
}
static inline operand operand_load(const unit *p) { return _mm512_loadu_si512(p); }
static inline operand operand_splat(const unit *p) { return _mm512_set1_epi32((int)*p); }
static inline vec vec_dot_unit(operand a, const unit *b, vec sum) { return vec_dot(a, operand_splat(b), sum); }
#else
typedef __m512bh operand;
static inline vec vec_dot(operand a, operand b, vec sum) { return _mm512_dpbf16_ps(sum, a, b); }
static inline operand operand_load(const unit *p) { return (__m512bh)_mm512_loadu_si512(p); }
static inline operand operand_splat(const unit *p) { return (__m512bh)_mm512_set1_epi32((int)*p); }
/* the broadcast as an operand: gcc 12 makes an instruction of it */
static inline vec vec_dot_unit(operand a, const unit *b, vec sum) {
  __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*b));
  return sum;
}
#endif
static inline void transpose(const unit *src, size_t lds, unit *dst, size_t ldd) { transpose_lanes(src, lds, dst, ldd); }

/* 32 bytes of E4M3, whose values are bf16 values */
static inline __m512i e4m3_halves(__m256i bytes) {
  const __m512i x = _mm512_cvtepu8_epi16(bytes), digits = _mm512_and_si512(x, _mm512_set1_epi16(0x7f));
  const __m512i sub = _mm512_inserti32x4( /* subnormal: 0 to 7 times 2^-9 */
      _mm512_setzero_si512(), _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60), 0);
  __m512i h = _mm512_add_epi16(_mm512_slli_epi16(digits, 4), _mm512_set1_epi16(120 << 7));
  h = _mm512_mask_permutexvar_epi16(h, _mm512_cmplt_epu16_mask(digits, _mm512_set1_epi16(8)), digits, sub);
  h = _mm512_mask_mov_epi16(h, _mm512_cmpeq_epi16_mask(digits, _mm512_set1_epi16(0x7f)), _mm512_set1_epi16(0x7fc0));
  return _mm512_or_si512(h, _mm512_slli_epi16(_mm512_srli_epi16(x, 7), 15));
}

/* The upper halves of x's lanes, then y's: floats that are bf16 values. */
static inline __m512i upper_halves(__m512 x, __m512 y) {
  const __m512i odd =
      _mm512_setr_epi32(0x030001, 0x070005, 0x0b0009, 0x0f000d, 0x130011, 0x170015, 0x1b0019, 0x1f001d, 0x230021,
                        0x270025, 0x2b0029, 0x2f002d, 0x330031, 0x370035, 0x3b0039, 0x3f003d);
  return _mm512_permutex2var_epi16(_mm512_castps_si512(x), odd, _mm512_castps_si512(y));
}
static inline __m512 code_floats(const uint8_t *codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)codes)));
}
static inline const uint8_t *codes_at(const uint8_t *row, uint32_t i) { return row + i / 32 * 34 + 2; }

/* Q8_0: the codes of a block. */
static inline __m512i load_half_words(moi_format format, const uint8_t *row, uint32_t i) {
  if (format == MOI_FORMAT_BF16) return _mm512_loadu_si512(row + i * 2);
  if (format == MOI_FORMAT_FP8) return e4m3_halves(_mm256_loadu_si256((const __m256i *)(row + i)));
  const uint8_t *codes = codes_at(row, i);
  return upper_halves(code_floats(codes), code_floats(codes + 16));
}
static inline vec load_scales(const uint16_t *halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)halves));
}
/* Elements from i on of n, zeros behind the last. */
static inline __m512i load_some(moi_format format, const uint8_t *row, uint32_t i, uint32_t n) {
  if (i + 32 <= n || format == MOI_FORMAT_Q8_0) return load_half_words(format, row, i);
  if (format == MOI_FORMAT_BF16) return _mm512_maskz_loadu_epi16(mask32(n - i), row + i * 2);
  return e4m3_halves(_mm256_maskz_loadu_epi8(mask32(n - i), row + i));
}
static inline __attribute__((always_inline)) void turn_four(const __m512i in[4], operand out[4]) {
  const __m512i a = in[0], b = in[1], c = in[2], d = in[3];
  const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
  const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
  out[0] = (operand)_mm512_unpacklo_epi64(ab0, cd0);
  out[1] = (operand)_mm512_unpackhi_epi64(ab0, cd0);
  out[2] = (operand)_mm512_unpacklo_epi64(ab1, cd1);
  out[3] = (operand)_mm512_unpackhi_epi64(ab1, cd1);
}
static inline __attribute__((always_inline)) void turn_fours(const operand in[16], uint32_t u, operand out[4]) {
  const __m512i a = (__m512i)in[u], b = (__m512i)in[4 + u], c = (__m512i)in[8 + u], d = (__m512i)in[12 + u];
  const __m512i ab0 = _mm512_shuffle_i32x4(a, b, 0x44), ab1 = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i cd0 = _mm512_shuffle_i32x4(c, d, 0x44), cd1 = _mm512_shuffle_i32x4(c, d, 0xee);
  out[0] = (operand)_mm512_shuffle_i32x4(ab0, cd0, 0x88);
  out[1] = (operand)_mm512_shuffle_i32x4(ab0, cd0, 0xdd);
  out[2] = (operand)_mm512_shuffle_i32x4(ab1, cd1, 0x88);
  out[3] = (operand)_mm512_shuffle_i32x4(ab1, cd1, 0xdd);
}

static inline void turn_rows(moi_format format, const uint8_t *const *rows, uint32_t n, unit *dst, size_t ldd) {
  for (uint32_t i = 0; i < n; i += 32, dst += 16 * ldd) {
    operand fours[16], y[4];
#pragma GCC unroll 4
    for (uint32_t u = 0; u < 16; u += 4) {
      __m512i x[4];
#pragma GCC unroll 4
      for (uint32_t j = 0; j < 4; j++) x[j] = load_some(format, rows[u + j], i, n);
      turn_four(x, fours + u);
    }
#pragma GCC unroll 4
    for (uint32_t u = 0; u < 4; u++) {
      turn_fours(fours, u, y);
#pragma GCC unroll 4
      for (uint32_t c = 0; c < 4; c++) _mm512_storeu_si512(dst + (4 * c + u) * ldd, (__m512i)y[c]);
    }
  }
}

static inline void pair_rows(moi_format format, const uint8_t *even, const uint8_t *odd, uint32_t n, unit *dst) {
  const __m512i order =
      _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006, 0x270007, 0x280008,
                        0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d, 0x2e000e, 0x2f000f);
  for (uint32_t i = 0; i < n; i += 32) {
    const __m512i x = even ? load_some(format, even, i, n) : _mm512_setzero_si512();
    const __m512i y = odd ? load_some(format, odd, i, n) : _mm512_setzero_si512();
    _mm512_storeu_si512(dst + i, _mm512_permutex2var_epi16(x, order, y));
    _mm512_storeu_si512(dst + i + 16, _mm512_permutex2var_epi16(x, _mm512_add_epi16(order, _mm512_set1_epi16(16)), y));
  }
}

/* Probabilities, which are finite or NaN, to bf16. */
static inline __m256i halves(vec f) {
#ifdef MOI_EMULATE_BF16
  const __m512i u = _mm512_castps_si512(f);
  __m512i r = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
  r = _mm512_add_epi32(r, _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1)));
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
#else
  return (__m256i)_mm512_cvtneps_pbh(f);
#endif
}
static inline void pack_keys(vec p, unit *out) { _mm256_storeu_si256((__m256i *)(void *)out, halves(p)); }

/* Few rows. */
static inline __attribute__((always_inline)) void load_four(moi_format format, const uint8_t *const *rows, size_t at,
                                                            operand out[4]) {
  __m512i x[4];
#pragma GCC unroll 4
  for (uint32_t i = 0; i < 4; i++) x[i] = load_half_words(format, rows[i] + at, 0);
  turn_four(x, out);
}
static inline __attribute__((always_inline)) void load_twins(moi_format format, const uint8_t *even,
                                                             const uint8_t *odd, uint32_t i, operand out[2]) {
  if (format == MOI_FORMAT_Q8_0) {
    const uint8_t *x = codes_at(even, i), *y = codes_at(odd, i);
#pragma GCC unroll 2
    for (uint32_t half = 0; half < 2; half++)
      out[half] = (operand)_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(code_floats(x + half * 16)), 16),
                                           _mm512_castps_si512(code_floats(y + half * 16)));
    return;
  }
  const __m512i x = load_half_words(format, even, i), y = load_half_words(format, odd, i);
  out[0] = (operand)_mm512_unpacklo_epi16(x, y);
  out[1] = (operand)_mm512_unpackhi_epi16(x, y);
}
/* From 1 to below 2, whatever the lane is. */
static inline vec vec_mantissa(vec v) {
  const __m512i bits = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffff));
  return _mm512_castsi512_ps(_mm512_or_si512(bits, _mm512_set1_epi32(0x3f800000)));
}
static inline uint32_t lanes_above(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline float vec_highest(vec v) { return _mm512_reduce_max_ps(v); }

#include "cpu/kernels/flash.h"
#include "cpu/kernels/flash_few.h"

#endif
typedef int moi_flash_avx512bf16_unit; /* never an empty translation unit */
