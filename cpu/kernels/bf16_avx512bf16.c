/* BF16 weights times BF16 activations, AVX512-BF16: products of pairs summed in fp32 (which flushes subnormals). */
#if defined(__x86_64__)

#include <immintrin.h>

#include "core/shared/decode.h"

#ifdef MOI_EMULATE_BF16 /* the instruction's arithmetic on machines without it, to test what is around it */
typedef __m512i operand;
static inline __m512 emulated_dpbf16(__m512 sum, __m512i a, __m512i b) {
  const __m512i odd = _mm512_set1_epi32((int)0xffff0000u);
  sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, odd)), _mm512_castsi512_ps(_mm512_and_si512(b, odd)),
                        sum);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)),
                         sum);
}
#define OPERAND(v) (v)
#define DPBF16(sum, a, b) emulated_dpbf16(sum, a, b)
#else
typedef __m512bh operand;
#define OPERAND(v) ((__m512bh)(v))
#define DPBF16(sum, a, b) _mm512_dpbf16_ps(sum, a, b)
#endif

typedef __m512 vec;
typedef uint16_t elem;
#define VEC 16
#define STEP 32
#define MR 6

static inline vec vec_zero(void) { return _mm512_setzero_ps(); }
static inline operand operand_load(const elem *p) { return OPERAND(_mm512_loadu_si512(p)); }
static inline vec vec_dot(operand w, operand x, vec sum) { return DPBF16(sum, w, x); }

static inline __m128 vec_sum4(vec a, vec b, vec c, vec d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 s = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

#include "cpu/kernels/tile.h"

/* Where a row's part is whole it is used in place; only a ragged end is copied. */
static const elem *decode_bf16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, elem *dst) {
  const elem *row = (const elem *)(const void *)w->data + (size_t)n * w->k + k0;
  const uint32_t count = k1 - k0;
  if (count % STEP == 0) return row;
  memcpy(dst, row, count * sizeof(elem));
  memset(dst + count, 0, (STEP - count % STEP) * sizeof(elem));
  return dst;
}

void moi_gemm_bf16_avx512bf16(const moi_gemm_tile *tile);
void moi_gemm_bf16_avx512bf16(const moi_gemm_tile *tile) { gemm_dot(tile, decode_bf16, 0); }

#endif
