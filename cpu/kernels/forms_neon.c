/* Preparers of the forms that AArch64 kernels read, 32 elements at a time. Same bits as cpu/forms.c. */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#include "cpu/kernels/forms.h"

#define INLINE static inline __attribute__((always_inline))

/* What a loop over k reads at i: x, or a copy of its n last elements in front of zeros. */
INLINE const float *from_or_zeros(const float *x, uint32_t k, size_t i, size_t n, float *tail) {
  if (i + n <= k) return x + i;
  memset(tail, 0, n * sizeof *tail);
  if (i < k) memcpy(tail, x + i, (k - i) * sizeof *tail);
  return tail;
}

INLINE uint16x4_t bf16_of(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}

void moi_prepare_bf16_neon(const float *x, uint32_t k, void *dst) {
  uint16_t *out = dst;
  float tail[8];
  for (size_t i = 0; i < MOI_FORM_KP(k); i += 8) {
    const float *from = from_or_zeros(x, k, i, 8, tail);
    vst1q_u16(out + i, vcombine_u16(bf16_of(vld1q_f32(from)), bf16_of(vld1q_f32(from + 4))));
  }
}

/* The integers of 32 elements, and their d and two s. */
INLINE void quantise(const float *x, int16x8_t q[4], float *d_out, float *s_out) {
  float32x4_t v[8];
  uint32x4_t largest = vdupq_n_u32(0); /* magnitudes order as their bits do, infinity and NaN above all */
  for (int i = 0; i < 8; i++) {
    v[i] = vld1q_f32(x + 4 * i);
    largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(v[i])));
  }
  const uint32_t bits = vmaxvq_u32(largest);
  float d = vget_lane_f32(vreinterpret_f32_u32(vdup_n_u32(bits)), 0) / (float)MOI_FORM_QMAX;
  if (bits >= 0x7f800000u) d = vget_lane_f32(vreinterpret_f32_u32(vdup_n_u32(0x7fc00000u)), 0);
  for (int i = 0; i < 4; i++) q[i] = vdupq_n_s16(0);
  if (d > 0) {
    const float32x4_t by = vdupq_n_f32(d), top = vdupq_n_f32(MOI_FORM_QMAX), bottom = vdupq_n_f32(-MOI_FORM_QMAX);
    int32x4_t whole[8];
    for (int i = 0; i < 8; i++) whole[i] = vcvtnq_s32_f32(vmaxq_f32(vminq_f32(vdivq_f32(v[i], by), top), bottom));
    for (int i = 0; i < 4; i++) q[i] = vcombine_s16(vmovn_s32(whole[2 * i]), vmovn_s32(whole[2 * i + 1]));
  }
  *d_out = d;
  for (int half = 0; half < 2; half++)
    s_out[half] = d * (float)vaddvq_s32(vaddq_s32(vpaddlq_s16(q[2 * half]), vpaddlq_s16(q[2 * half + 1])));
}

/* [even 16 | odd 16] */
INLINE void even_before_odd(int16x8_t q[4]) {
  const int16x8_t even0 = vuzp1q_s16(q[0], q[1]), even1 = vuzp1q_s16(q[2], q[3]);
  const int16x8_t odd0 = vuzp2q_s16(q[0], q[1]), odd1 = vuzp2q_s16(q[2], q[3]);
  q[0] = even0, q[1] = even1, q[2] = odd0, q[3] = odd1;
}

INLINE void prepare(const float *x, uint32_t k, uint8_t *dst, const int digits, const int even_odd) {
  float *d = (float *)(void *)(dst + MOI_FORM_D(k)), *s = (float *)(void *)(dst + MOI_FORM_S(k)), tail[32];
  for (size_t i = 0; i < MOI_FORM_KP(k); i += 32) {
    int16x8_t q[4];
    quantise(from_or_zeros(x, k, i, 32, tail), q, d + i / 32, s + i / 16);
    if (even_odd) even_before_odd(q);
    if (!digits) {
      for (int j = 0; j < 4; j++) vst1q_s16((int16_t *)(void *)dst + i + 8 * j, q[j]);
      continue;
    }
    /* lo is the low byte, sign and all; hi what is left of q above it: (q + 128) >> 8 */
    for (int j = 0; j < 2; j++) {
      const int8x16_t lo = vcombine_s8(vmovn_s16(q[2 * j]), vmovn_s16(q[2 * j + 1]));
      const int8x16_t hi = vcombine_s8(vrshrn_n_s16(q[2 * j], 8), vrshrn_n_s16(q[2 * j + 1], 8));
      const size_t second = i / 32 & 1, at = even_odd ? (size_t)j * 32 + second * 16 : second * 32 + (size_t)j * 16;
      int8_t *chunk = (int8_t *)dst + i / 64 * 128 + at;
      vst1q_s8(chunk, hi);
      vst1q_s8(chunk + 64, lo);
    }
  }
}

void moi_prepare_i16_neon(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 0, 0); }
void moi_prepare_i16_eo_neon(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 0, 1); }
void moi_prepare_i8x2_neon(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 1, 0); }
void moi_prepare_i8x2_eo_neon(const float *x, uint32_t k, void *dst) { prepare(x, k, dst, 1, 1); }

#endif
typedef int moi_forms_neon_unit; /* never an empty translation unit */
