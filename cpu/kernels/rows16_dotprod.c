/* GEMMs on 16 interleaved rows (order R) in SDOT, any number of tokens: 16-bit integer activations in two signed digits.
 *
 * A vector of codes is four bytes of 4 rows, as it lies in memory: SDOT multiplies them by four bytes of a token's x, one of
 * the four words of a register of x, and nothing is left to sum over lanes. x is d * (256*hi + lo), so a block's sum of c*q
 * is (sum c*hi) << 8 plus sum c*lo. A (token, row) has one chain of operations that depends on k alone: BATCH_INVARIANT. */
#if defined(__aarch64__)

#include "cpu/kernels/int_neon.h"
#include "cpu/kernels/rows16.h"

enum { R16_TOKENS = TOKENS, AHEAD_R16 = 4096 /* bytes */ };

/* The scales of rows 4v .. 4v+3, divided by what c is of a code. */
INLINE float32x4_t r16_scales(int f, const uint8_t *at, uint32_t v) {
  const float by = 1 / counts_of(r16_codes_as(f));
  if (f == MOI_FORMAT_MXFP4_R16) return vmulq_n_f32(e8m0(u8x4(bytes_at(at + 4 * v, 4))), by);
  return vmulq_n_f32(f16x4(bytes_at(at + 8 * v, 8)), by);
}

/* c of the 8 words of a block, of rows 4v .. 4v+3. */
INLINE void words_of(int f, const uint8_t *codes, uint32_t v, int8x16_t out[8]) {
  const int as = r16_codes_as(f);
#pragma GCC unroll 4
  for (uint32_t j = 0; j < 4; j++) {
    const uint8x16_t u = vld1q_u8(codes + 64 * j + 16 * v);
    uint8x16_t low, high;
    if (as == MOI_FORMAT_Q8_0) {
      low = u, high = vld1q_u8(codes + 64 * (j + 4) + 16 * v);
    } else if (as == MOI_FORMAT_Q4_0) { /* as in block_of_weights: 16 * (code - 8) */
      const uint8x16_t turned = veorq_u8(u, vdupq_n_u8(0x88));
      low = left(turned, 4), high = vandq_u8(turned, vdupq_n_u8(0xf0));
    } else {
      low = vqtbl1q_u8(values_of(as), vandq_u8(u, vdupq_n_u8(15))), high = vqtbl1q_u8(values_of(as), right(u, 4));
    }
    out[j] = vreinterpretq_s8_u8(low), out[j + 4] = vreinterpretq_s8_u8(high);
  }
}

/* sum += c . x of the 32 bytes at x. */
INLINE int32x4_t dot(int32x4_t sum, const int8x16_t c[8], const uint8_t *x) {
  const int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(x)), b = vreinterpretq_s8_u8(vld1q_u8(x + 16));
  sum = vdotq_laneq_s32(sum, c[0], a, 0);
  sum = vdotq_laneq_s32(sum, c[1], a, 1);
  sum = vdotq_laneq_s32(sum, c[2], a, 2);
  sum = vdotq_laneq_s32(sum, c[3], a, 3);
  sum = vdotq_laneq_s32(sum, c[4], b, 0);
  sum = vdotq_laneq_s32(sum, c[5], b, 1);
  sum = vdotq_laneq_s32(sum, c[6], b, 2);
  return vdotq_laneq_s32(sum, c[7], b, 3);
}

INLINE void r16_tile(int f, const uint32_t m, const uint8_t *codes, const uint8_t *scale_bytes, const uint8_t *const *x,
                 uint32_t k, float y[R16_TOKENS][16]) {
  float32x4_t sum[R16_TOKENS][4];
#pragma GCC unroll 4
  for (uint32_t t = 0; t < m; t++) sum[t][0] = sum[t][1] = sum[t][2] = sum[t][3] = vdupq_n_f32(0);
#pragma GCC unroll 1
  for (uint32_t b = 0; b < k / 32; b++, codes += r16_code_bytes(f), scale_bytes += r16_scale_bytes(f)) {
    const size_t at = (size_t)b / 2 * 128 + b % 2 * 32; /* hi; lo is 64 bytes behind */
    prefetch(codes, AHEAD_R16, r16_code_bytes(f));
#pragma GCC unroll 4
    for (uint32_t v = 0; v < 4; v++) {
      int8x16_t c[8];
      words_of(f, codes, v, c);
      const float32x4_t scale = r16_scales(f, scale_bytes, v);
#pragma GCC unroll 4
      for (uint32_t t = 0; t < m; t++) {
        int32x4_t q = vshlq_n_s32(dot(vdupq_n_s32(0), c, x[t] + at), 8);
        q = dot(q, c, x[t] + at + 64);
        const float d = ((const float *)(const void *)(x[t] + MOI_FORM_D(k)))[b];
        sum[t][v] = vfmaq_f32(sum[t][v], vcvtq_f32_s32(q), vmulq_n_f32(scale, d));
      }
    }
  }
#pragma GCC unroll 4
  for (uint32_t t = 0; t < m; t++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < 4; v++) vst1q_f32(y[t] + 4 * v, sum[t][v]);
}

#include "cpu/kernels/rows16_few.h"
R16_GEMMS(dotprod)

#endif
typedef int moi_rows16_dotprod_unit; /* never an empty translation unit */
