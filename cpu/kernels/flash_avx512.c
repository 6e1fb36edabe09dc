/* Attention in fp32, AVX-512 F, BW, DQ, VL. */
#if defined(__x86_64__)

#include "cpu/kernels/flash_avx512.h"

#include "cpu/kernel.h"

typedef float unit;
typedef __m512 operand;
#define UNIT 1
#define ATTEND moi_attend_avx512
#define ATTEND_DOT moi_attend_dot_avx512
#define PANEL 8
#define SUM16
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#define SPREAD(format) ((format) == MOI_FORMAT_BF16)

static inline operand operand_load(const unit *p) { return _mm512_loadu_ps(p); }
static inline operand operand_splat(const unit *p) { return _mm512_set1_ps(*p); }
static inline vec vec_dot(operand a, operand b, vec sum) { return _mm512_fmadd_ps(a, b, sum); }
static inline void transpose(const unit *src, size_t lds, unit *dst, size_t ldd) { transpose_lanes(src, lds, dst, ldd); }

static inline __m512 bf16_floats(__m256i h) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

static inline __attribute__((always_inline)) vec load_vec(moi_format format, const uint8_t *row, uint32_t i) {
  switch (format) {
    case MOI_FORMAT_F32: return _mm512_loadu_ps((const float *)(const void *)row + i);
    case MOI_FORMAT_F16: return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + i * 2)));
    case MOI_FORMAT_FP8: return e4m3_floats(_mm_loadu_si128((const __m128i *)(row + i)));
    default: { /* Q8_0 */
      const uint8_t *b = row + i / 32 * 34;
      const __m512i q = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(b + 2 + i % 32)));
      return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_set1_epi16((short)moi_load_u16(b))), _mm512_cvtepi32_ps(q));
    }
  }
}

static inline __attribute__((always_inline)) void load_pair(moi_format format, const uint8_t *row, uint32_t i,
                                                            vec out[2]) {
  if (format == MOI_FORMAT_BF16) { /* even and odd elements: one operation each */
    const __m512i both = _mm512_loadu_si512(row + i * 2);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
    return;
  }
  out[0] = load_vec(format, row, i);
  out[1] = load_vec(format, row, i + VEC);
}

/* The last vector of a row that is no multiple of 16, and the zeros behind it. */
#define RAGGED(load)                                                                                                   \
  for (; i < padded; i += 16) {                                                                                        \
    const uint32_t left = i < n ? n - i : 0;                                                                           \
    _mm512_storeu_ps(dst + i, load);                                                                                   \
  }

static inline __attribute__((always_inline)) void load_units(moi_format format, const uint8_t *row, unit *dst,
                                                             uint32_t n) {
  const uint32_t padded = MOI_ATTEND_PAD(n), whole = n & ~15u;
  uint32_t i = 0;
  switch (format) {
    case MOI_FORMAT_F32:
      for (; i < whole; i += 16) _mm512_storeu_ps(dst + i, _mm512_loadu_ps((const float *)(const void *)row + i));
      RAGGED(_mm512_maskz_loadu_ps(mask16(left), (const float *)(const void *)row + i))
      break;
    case MOI_FORMAT_BF16:
      for (; i < whole; i += 16) _mm512_storeu_ps(dst + i, bf16_floats(_mm256_loadu_si256((const __m256i *)(row + i * 2))));
      RAGGED(bf16_floats(_mm256_maskz_loadu_epi16(mask16(left), row + i * 2)))
      break;
    case MOI_FORMAT_F16:
      for (; i < whole; i += 16) _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + i * 2))));
      RAGGED(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask16(left), row + i * 2)))
      break;
    case MOI_FORMAT_FP8:
      for (; i < whole; i += 16) _mm512_storeu_ps(dst + i, e4m3_floats(_mm_loadu_si128((const __m128i *)(row + i))));
      RAGGED(e4m3_floats(_mm_maskz_loadu_epi8(mask16(left), row + i)))
      break;
    default: /* Q8_0 */
      for (; i < n; i += 32, row += 34) {
        const __m512 d = _mm512_cvtph_ps(_mm256_set1_epi16((short)moi_load_u16(row)));
        const __m512i low = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + 2)));
        const __m512i high = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + 18)));
        _mm512_storeu_ps(dst + i, _mm512_mul_ps(d, _mm512_cvtepi32_ps(low)));
        _mm512_storeu_ps(dst + i + 16, _mm512_mul_ps(d, _mm512_cvtepi32_ps(high)));
      }
      break;
  }
}

#include "cpu/kernels/flash.h"
#include "cpu/kernels/flash_few.h"

#endif
typedef int moi_flash_avx512_unit; /* never an empty translation unit */
