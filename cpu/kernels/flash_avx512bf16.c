/* Attention with bf16 products and fp32 sums, AVX512-BF16: queries, keys and values that are bf16 (or fp8), probabilities
 * rounded to bf16. */
#if defined(__x86_64__)

#include "cpu/kernels/flash_avx512.h"

#include "cpu/kernel.h"

typedef uint32_t unit; /* two bf16 */
#define UNIT 2
#define ATTEND moi_attend_avx512bf16

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
#else
typedef __m512bh operand;
static inline vec vec_dot(operand a, operand b, vec sum) { return _mm512_dpbf16_ps(sum, a, b); }
static inline operand operand_load(const unit *p) { return (__m512bh)_mm512_loadu_si512(p); }
static inline operand operand_splat(const unit *p) { return (__m512bh)_mm512_set1_epi32((int)*p); }
#endif
static inline void transpose(const unit *src, size_t lds, unit *dst, size_t ldd) { transpose_lanes(src, lds, dst, ldd); }

static inline void load_units(moi_format format, const uint8_t *row, unit *dst, uint32_t n) {
  const uint32_t padded = MOI_ATTEND_PAD(n);
  for (uint32_t i = 0; i < padded; i += 32) {
    __m512i h = _mm512_setzero_si512();
    if (i < n && format == MOI_FORMAT_BF16) {
      h = _mm512_maskz_loadu_epi16(mask32(n - i), row + i * 2);
    } else if (i < n) { /* FP8: its values are bf16 values */
      const __m256i bytes = _mm256_maskz_loadu_epi8(mask32(n - i), row + i);
      const __m256i low = _mm512_cvtepi32_epi16(
          _mm512_srli_epi32(_mm512_castps_si512(e4m3_floats(_mm256_castsi256_si128(bytes))), 16));
      const __m256i high = _mm512_cvtepi32_epi16(
          _mm512_srli_epi32(_mm512_castps_si512(e4m3_floats(_mm256_extracti128_si256(bytes, 1))), 16));
      h = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    _mm512_storeu_si512(dst + i / 2, h);
  }
}

/* Rows 2i and 2i+1 interleaved; a key outside first..last-1 is 0. */
static inline void pack_values(const unit *rows, size_t ldr, uint32_t first, uint32_t last, uint32_t width, unit *dst) {
  for (uint32_t j = first & ~1u; j < last; j += 2) {
    const unit *even = rows + j * ldr, *odd = even + ldr;
    for (uint32_t i = 0; i < width; i += 16) {
      const __m256i none = _mm256_setzero_si256();
      const __m256i x = j >= first ? _mm256_loadu_si256((const __m256i *)(const void *)(even + i / 2)) : none;
      const __m256i y = j + 1 < last ? _mm256_loadu_si256((const __m256i *)(const void *)(odd + i / 2)) : none;
      _mm512_storeu_si512(dst + (size_t)(j / 2) * width + i,
                          _mm512_or_si512(_mm512_cvtepu16_epi32(x), _mm512_slli_epi32(_mm512_cvtepu16_epi32(y), 16)));
    }
  }
}

/* Probabilities, which are finite or NaN, to bf16. */
static inline __m512i rounded(const float *p) {
  const __m512 f = _mm512_loadu_ps(p);
  const __m512i u = _mm512_castps_si512(f);
  __m512i r = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
  r = _mm512_add_epi32(r, _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1)));
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  return _mm512_srli_epi32(r, 16);
}
static inline void pack_weights(const float *p, uint32_t first, uint32_t last, unit *dst) {
  for (uint32_t j = first / 32 * 32; j < last; j += 32) { /* lanes beside first..last-1 are read by nobody or are 0 */
    const __m512i halves = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(rounded(p + j))),
                                              _mm512_cvtepi32_epi16(rounded(p + j + 16)), 1);
    _mm512_storeu_si512(dst + j / 2, halves);
  }
}

#include "cpu/kernels/flash.h"

#endif
typedef int moi_flash_avx512bf16_unit; /* never an empty translation unit */
