/* GEMMs on 16 interleaved rows (order R) for AVX2, any number of tokens.
 *
 * A vector of codes is four bytes of 8 rows, as it lies in memory. Spread to 16 bits, two bytes of k of each row meet the
 * same two of a token's x, which a load has spread over the lanes: nothing is left to sum over lanes. x is d * q for each 32
 * with 16-bit q, weights are unsigned u = w / scale + offset: vpmaddwd sums a block exactly in int32 and
 *   scale * (d * sum u*q - offset * s)
 * is added, where s = d * sum q comes with the prepared row. Sums of one (token, row) depend on k alone. */
#if defined(__x86_64__)

#include "cpu/kernels/int_avx2.h"
#include "cpu/kernels/rows16.h"

enum { R16_TOKENS = 4 /* most tokens at once */, AHEAD = 4096 /* bytes */ };

INLINE __m256 r16_scales(int f, const uint8_t *at, uint32_t v) {
  if (f == MOI_FORMAT_MXFP4_R16) return e8m0_half(_mm256_cvtepu8_epi32(load8(at + 8 * v)));
  return _mm256_cvtph_ps(load16(at + 16 * v));
}

INLINE __m256i two_of_x(const uint8_t *q) { return _mm256_set1_epi32((int)u32_at(q)); }

/* Word `word` of 8 of a block, of 8 rows: its bytes 0 and 1, 2 and 3. */
INLINE void word_of(int f, const uint8_t *codes, uint32_t word, uint32_t v, __m256i table, __m256i out[2]) {
  const uint32_t piece = f == MOI_FORMAT_Q8_0_R16 ? word : word % 4;
  __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)(codes + 64 * piece + 32 * v));
  if (f == MOI_FORMAT_Q8_0_R16) u = _mm256_xor_si256(u, _mm256_set1_epi8((char)128));
  else u = _mm256_and_si256(word >= 4 ? _mm256_srli_epi16(u, 4) : u, _mm256_set1_epi8(15));
  if (r16_has_table(f)) u = _mm256_shuffle_epi8(table, u);
  out[0] = _mm256_shuffle_epi8(u, _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 0, -1, 1,
                                                   -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
  out[1] = _mm256_shuffle_epi8(u, _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1, 2, -1, 3,
                                                   -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
}

/* y += block b of k for 16 rows and m tokens. */
INLINE void add_block(int f, const uint32_t m, const uint8_t *codes, const uint8_t *scales, const uint8_t *const *x,
                      uint32_t k, uint32_t b, __m256i table, float y[R16_TOKENS][16]) {
  __m256i sum[R16_TOKENS][2];
#pragma GCC unroll 4
  for (uint32_t t = 0; t < m; t++) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (uint32_t word = 0; word < 8; word++) {
    __m256i u[2][2];
    word_of(f, codes, word, 0, table, u[0]);
    word_of(f, codes, word, 1, table, u[1]);
#pragma GCC unroll 4
    for (uint32_t t = 0; t < m; t++)
#pragma GCC unroll 2
      for (uint32_t i = 0; i < 2; i++) {
        const __m256i q = two_of_x(x[t] + 64 * (size_t)b + 8 * word + 4 * i);
        sum[t][0] = _mm256_add_epi32(sum[t][0], _mm256_madd_epi16(u[0][i], q));
        sum[t][1] = _mm256_add_epi32(sum[t][1], _mm256_madd_epi16(u[1][i], q));
      }
  }
#pragma GCC unroll 2
  for (uint32_t v = 0; v < 2; v++) {
    const __m256 scale = r16_scales(f, scales, v);
#pragma GCC unroll 4
    for (uint32_t t = 0; t < m; t++) {
      const float *d = (const float *)(const void *)(x[t] + MOI_FORM_D(k)) + b;
      const float *s = (const float *)(const void *)(x[t] + MOI_FORM_S(k)) + 2 * (size_t)b;
      const __m256 of = _mm256_set1_ps(-r16_offset(f) * (s[0] + s[1]));
      const __m256 block = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t][v]), _mm256_broadcast_ss(d), of);
      _mm256_store_ps(y[t] + 8 * v, _mm256_fmadd_ps(scale, block, _mm256_load_ps(y[t] + 8 * v)));
    }
  }
}

INLINE void r16_tile(int f, const uint32_t m, const uint8_t *codes, const uint8_t *scales, const uint8_t *const *x,
                 uint32_t k, float y[R16_TOKENS][16]) {
  __m256i table = _mm256_setzero_si256();
  if (r16_has_table(f)) table = _mm256_broadcastsi128_si256(load16(codes_of(r16_codes_as(f))));
  memset(y, 0, m * sizeof *y);
#pragma GCC unroll 1
  for (uint32_t b = 0; b < k / 32; b++, codes += r16_code_bytes(f), scales += r16_scale_bytes(f)) {
    prefetch(codes, AHEAD, r16_code_bytes(f));
    add_block(f, m, codes, scales, x, k, b, table, y);
  }
}

#include "cpu/kernels/rows16_few.h"
R16_GEMMS(avx2i)

#endif
typedef int moi_rows16_avx2_unit; /* never an empty translation unit */
