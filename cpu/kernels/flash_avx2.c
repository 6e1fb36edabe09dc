/* Attention in fp32, AVX2, FMA, F16C. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "core/shared/decode.h"
#include "cpu/kernel.h"

typedef __m256 vec;
typedef __m256 operand;
typedef float unit;
#define VEC 8
#define MR 6
#define NV 2
#define UNIT 1
#define ATTEND moi_attend_avx2
#define ATTEND_DOT moi_attend_dot_avx2
#define PANEL 4
#define IN_REGISTER(v) __asm__("" : "+x"(v))
#define SPREAD(format) ((format) == MOI_FORMAT_BF16)

static inline vec vec_zero(void) { return _mm256_setzero_ps(); }
static inline vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
static inline vec vec_splat(float f) { return _mm256_set1_ps(f); }
static inline vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec vec_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
static inline vec vec_choose_less(vec a, vec b, vec x, vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline operand operand_load(const unit *p) { return _mm256_loadu_ps(p); }
static inline operand operand_splat(const unit *p) { return _mm256_broadcast_ss(p); }
static inline vec vec_dot(operand a, operand b, vec sum) { return _mm256_fmadd_ps(a, b, sum); }

/* The sum over the lanes of each. */
static inline void vec_sum4(vec a, vec b, vec c, vec d, float *out) {
  const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

static inline vec vec_exp2(vec x) {
  const __m256 lowest = _mm256_set1_ps(-126), y = _mm256_max_ps(lowest, x);
  const __m256 n = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 r = _mm256_sub_ps(y, n);
  __m256 p = _mm256_set1_ps(1.54614447e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.34004282e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(9.61805668e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.55032723e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.240226509f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.693147207f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  /* below 2^-126 is 0: subnormal weights would cost more than they weigh. NaN: p is */
  return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), _mm256_cmp_ps(x, lowest, _CMP_NLT_UQ));
}

/* 8 x 8; strides in floats */
static inline void transpose(const unit *src, size_t lds, unit *dst, size_t ldd) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(src + (size_t)i * lds);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) { /* r[i + c]: column c of each half, rows i..i+3 */
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    _mm256_storeu_ps(dst + (size_t)c * ldd, _mm256_permute2f128_ps(r[c], r[c + 4], 0x20));
    _mm256_storeu_ps(dst + (size_t)(c + 4) * ldd, _mm256_permute2f128_ps(r[c], r[c + 4], 0x31));
  }
}

static inline __m256 q8_floats(const uint8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
/* 8 bytes of E4M3 to fp32; NaN codes give NaN */
static inline __m256 e4m3_floats(__m128i bytes) {
  const __m128i h = _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7), _mm_set1_epi16((short)0xbfff));
  const __m128i nan = _mm_cmpeq_epi8(_mm_and_si128(bytes, _mm_set1_epi8(127)), _mm_set1_epi8(127));
  const __m256 v = _mm256_mul_ps(_mm256_cvtph_ps(h), _mm256_set1_ps(256));
  return _mm256_blendv_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)),
                          _mm256_castsi256_ps(_mm256_cvtepi8_epi32(nan)));
}

static inline __attribute__((always_inline)) vec load_vec(moi_format format, const uint8_t *row, uint32_t i) {
  switch (format) {
    case MOI_FORMAT_F32: return _mm256_loadu_ps((const float *)(const void *)row + i);
    case MOI_FORMAT_BF16:
      return _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(row + i * 2))), 16));
    case MOI_FORMAT_F16: return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + i * 2)));
    case MOI_FORMAT_FP8: return e4m3_floats(_mm_loadl_epi64((const __m128i *)(row + i)));
    default: { /* Q8_0 */
      const uint8_t *b = row + i / 32 * 34;
      return _mm256_mul_ps(_mm256_cvtph_ps(_mm_set1_epi16((short)moi_load_u16(b))), q8_floats(b + 2 + i % 32));
    }
  }
}

static inline __attribute__((always_inline)) void load_pair(moi_format format, const uint8_t *row, uint32_t i,
                                                            vec out[2]) {
  if (format == MOI_FORMAT_BF16) { /* even and odd elements: one operation each */
    const __m256i both = _mm256_loadu_si256((const __m256i *)(row + i * 2));
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    out[1] = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
    return;
  }
  out[0] = load_vec(format, row, i);
  out[1] = load_vec(format, row, i + VEC);
}

static inline void load_units(moi_format format, const uint8_t *row, unit *dst, uint32_t n) {
  const uint32_t padded = MOI_ATTEND_PAD(n), whole = n & ~7u;
  uint32_t i = 0;
  switch (format) {
    case MOI_FORMAT_F32:
      memcpy(dst, row, n * sizeof *dst);
      i = n;
      break;
    case MOI_FORMAT_BF16:
      for (; i < whole; i += 8) {
        const __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(row + i * 2)));
        _mm256_storeu_ps(dst + i, _mm256_castsi256_ps(_mm256_slli_epi32(h, 16)));
      }
      for (; i < n; i++) dst[i] = moi_bf16_value(moi_load_u16(row + i * 2));
      break;
    case MOI_FORMAT_F16:
      for (; i < whole; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + i * 2))));
      for (; i < n; i++) dst[i] = moi_f16_value(moi_load_u16(row + i * 2));
      break;
    case MOI_FORMAT_FP8:
      for (; i < whole; i += 8) _mm256_storeu_ps(dst + i, e4m3_floats(_mm_loadl_epi64((const __m128i *)(row + i))));
      for (; i < n; i++) dst[i] = moi_e4m3_value(row[i]);
      break;
    default: /* Q8_0 */
      for (; i < n; i += 32, row += 34) {
        const __m256 d = _mm256_cvtph_ps(_mm_set1_epi16((short)moi_load_u16(row)));
        for (uint32_t j = 0; j < 32; j += 8) _mm256_storeu_ps(dst + i + j, _mm256_mul_ps(d, q8_floats(row + 2 + j)));
      }
      break;
  }
  for (; i < padded; i++) dst[i] = 0;
}

#include "cpu/kernels/flash.h"
#include "cpu/kernels/flash_few.h"

#endif
typedef int moi_flash_avx2_unit; /* never an empty translation unit */
