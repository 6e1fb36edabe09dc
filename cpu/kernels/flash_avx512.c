/* Attention in fp32, AVX-512 F, BW, DQ, VL. */
#if defined(__x86_64__)

#include "cpu/kernels/flash_avx512.h"

#include "cpu/kernel.h"

typedef float unit;
typedef __m512 operand;
#define UNIT 1
#define ATTEND moi_attend_avx512
#define ATTEND_DOT moi_attend_dot_avx512

static inline operand operand_load(const unit *p) { return _mm512_loadu_ps(p); }
static inline operand operand_splat(const unit *p) { return _mm512_set1_ps(*p); }
static inline vec vec_dot(operand a, operand b, vec sum) { return _mm512_fmadd_ps(a, b, sum); }
static inline void transpose(const unit *src, size_t lds, unit *dst, size_t ldd) { transpose_lanes(src, lds, dst, ldd); }

static inline void load_units(moi_format format, const uint8_t *row, unit *dst, uint32_t n) {
  const uint32_t padded = MOI_ATTEND_PAD(n);
  switch (format) {
    case MOI_FORMAT_F32:
      for (uint32_t i = 0; i < padded; i += 16)
        _mm512_storeu_ps(dst + i, i < n ? _mm512_maskz_loadu_ps(mask16(n - i), (const float *)(const void *)row + i)
                                        : _mm512_setzero_ps());
      break;
    case MOI_FORMAT_BF16:
      for (uint32_t i = 0; i < padded; i += 16) {
        const __m256i h = i < n ? _mm256_maskz_loadu_epi16(mask16(n - i), row + i * 2) : _mm256_setzero_si256();
        _mm512_storeu_ps(dst + i, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)));
      }
      break;
    case MOI_FORMAT_F16:
      for (uint32_t i = 0; i < padded; i += 16) {
        const __m256i h = i < n ? _mm256_maskz_loadu_epi16(mask16(n - i), row + i * 2) : _mm256_setzero_si256();
        _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(h));
      }
      break;
    case MOI_FORMAT_FP8:
      for (uint32_t i = 0; i < padded; i += 16)
        _mm512_storeu_ps(dst + i, e4m3_floats(i < n ? _mm_maskz_loadu_epi8(mask16(n - i), row + i) : _mm_setzero_si128()));
      break;
    default: /* Q8_0 */
      for (uint32_t i = 0; i < n; i += 32, row += 34) {
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

#endif
typedef int moi_flash_avx512_unit; /* never an empty translation unit */
