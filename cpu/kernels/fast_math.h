/* Functions in a form that compilers vectorise, for elementwise.h and select.h. */
#ifndef MOI_CPU_KERNELS_FAST_MATH_H
#define MOI_CPU_KERNELS_FAST_MATH_H

#include "core/shared/round.h"

/* e^x to 2 ulp for x in [-87, 88], clamped outside; NaN stays NaN. No float-to-int conversion: the integer is read off
 * the sum with 1.5 * 2^23. */
static inline float fast_exp(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  float shifted = x * 1.44269504f + 12582912.0f;
  float n = shifted - 12582912.0f;
  float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * moi_bits_f32((moi_f32_bits(shifted) << 23) + 0x3f800000u);
}

static inline float fast_sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

#endif
