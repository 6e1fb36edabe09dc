#if defined(__aarch64__)

#include <arm_neon.h>
#include <stdint.h>

#define LANES 8
#define PAIRS_FROM_3 1
/* Two registers: one token and four rows are chains enough for four units of four cycles. */
typedef struct vec {
  float32x4_t low, high;
} vec;

#define PIECE static inline __attribute__((always_inline))
PIECE vec vec_splat(float f) { return (vec){vdupq_n_f32(f), vdupq_n_f32(f)}; }
PIECE vec vec_zero(void) { return vec_splat(0); }
PIECE vec vec_load(const float *p) { return (vec){vld1q_f32(p), vld1q_f32(p + 4)}; }
PIECE vec vec_mul(vec a, vec b) { return (vec){vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
PIECE vec vec_fma(vec a, vec b, vec c) {
  return (vec){vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
PIECE float vec_sum(vec v) { return vaddvq_f32(vaddq_f32(v.low, v.high)); }

/* the largest code with the sign set: 255 is NaN */
typedef uint8x16_t nan_vec;
PIECE nan_vec nan_zero(void) { return vdupq_n_u8(0); }
PIECE nan_vec nan_add(nan_vec v, const uint8_t *p) {
  const uint8x16_t sign = vdupq_n_u8(0x80);
  const uint8x16_t a = vmaxq_u8(vorrq_u8(vld1q_u8(p), sign), vorrq_u8(vld1q_u8(p + 16), sign));
  const uint8x16_t b = vmaxq_u8(vorrq_u8(vld1q_u8(p + 32), sign), vorrq_u8(vld1q_u8(p + 48), sign));
  return vmaxq_u8(v, vmaxq_u8(a, b));
}
PIECE int nan_any(nan_vec v) { return vmaxvq_u8(v) == 255; }

#include "cpu/kernels/stream.h"

INLINE vec f16_to_f32(uint16x8_t h) {
  const float16x8_t v = vreinterpretq_f16_u16(h);
  return (vec){vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)};
}
INLINE vec bf16_to_f32(uint16x8_t h) {
  return (vec){vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(h, 16))};
}
INLINE uint16x8_t load_halves(const uint8_t *p) { return vreinterpretq_u16_u8(vld1q_u8(p)); }

INLINE void decode_f32(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = vec_load((const float *)(const void *)p);
  *w1 = vec_load((const float *)(const void *)(p + 32));
}
INLINE void decode_f16(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = f16_to_f32(load_halves(p));
  *w1 = f16_to_f32(load_halves(p + 16));
}
INLINE void decode_bf16(const uint8_t *p, vec *w0, vec *w1) {
  *w0 = bf16_to_f32(load_halves(p));
  *w1 = bf16_to_f32(load_halves(p + 16));
}
/* As f16 bits the code's exponent and mantissa mean its value times 2^-8, subnormals too; the scale makes up for it. The
 * widening shift puts the sign in its place and, one bit too many, below it. */
INLINE void decode_fp8(const uint8_t *p, vec *w0, vec *w1) {
  const int8x16_t v = vreinterpretq_s8_u8(vld1q_u8(p));
  const uint16x8_t mask = vdupq_n_u16(0xbf80);
  *w0 = f16_to_f32(vandq_u16(vreinterpretq_u16_s16(vshll_n_s8(vget_low_s8(v), 7)), mask));
  *w1 = f16_to_f32(vandq_u16(vreinterpretq_u16_s16(vshll_high_n_s8(v, 7)), mask));
}
#define decode_fp8_b128 decode_fp8

#define STREAM_NAME(format) moi_gemm_##format##_stream_neon
STREAM_ALL

#endif
typedef int moi_stream_neon_unit; /* never an empty translation unit */
