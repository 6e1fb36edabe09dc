/* The elementwise kernels, written once as plain loops that compilers vectorise; each ISA's file includes this text with
 * its own flags. Contraction is off everywhere, so all ISAs give the same bits. MOI_ELEMENTWISE names the set. */
#include <math.h>

#include "core/shared/round.h"
#include "cpu/cpu.h"
#include "cpu/kernels/fast_math.h"

static inline float fast_tanh(float x) {
  float x2 = x * x;
  float small = x * (1.0f + x2 * (-1.0f / 3.0f + x2 * (2.0f / 15.0f + x2 * (-17.0f / 315.0f + x2 * (62.0f / 2835.0f)))));
  float big = 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f);
  return x2 < 0.0625f ? small : big;
}

static inline float clamp(float x, float limit) {
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

static void activate(moi_activation activation, float alpha, float limit, const float *restrict g,
                     const float *restrict u, float weight, float *restrict out, uint32_t n) {
  switch (activation) {
    case MOI_ACT_SWIGLU:
      if (limit > 0)
        for (uint32_t i = 0; i < n; i++) {
          float a = g[i] > limit ? limit : g[i];
          out[i] = a * fast_sigmoid(a) * clamp(u[i], limit) * weight;
        }
      else
        for (uint32_t i = 0; i < n; i++) out[i] = g[i] * fast_sigmoid(g[i]) * u[i] * weight;
      break;
    case MOI_ACT_SWIGLU_OAI:
      for (uint32_t i = 0; i < n; i++) {
        float a = g[i] > limit ? limit : g[i];
        out[i] = a * fast_sigmoid(alpha * a) * (clamp(u[i], limit) + 1.0f) * weight;
      }
      break;
    case MOI_ACT_GEGLU_TANH:
      for (uint32_t i = 0; i < n; i++) {
        float a = g[i], t = fast_tanh(0.797884561f * (a + 0.044715f * a * a * a));
        out[i] = 0.5f * a * (1.0f + t) * u[i] * weight;
      }
      break;
    case MOI_ACT_GEGLU_ERF:
      for (uint32_t i = 0; i < n; i++) out[i] = 0.5f * g[i] * (1.0f + erff(g[i] * 0.707106781f)) * u[i] * weight;
      break;
    case MOI_ACT_SITU:
      for (uint32_t i = 0; i < n; i++)
        out[i] = alpha * fast_tanh(g[i] / alpha) * fast_sigmoid(g[i]) * (limit * fast_tanh(u[i] / limit)) * weight;
      break;
    case MOI_ACT_RELU2:
      for (uint32_t i = 0; i < n; i++) {
        float a = u[i] < 0.0f ? 0.0f : u[i];
        out[i] = a * a * weight;
      }
      break;
    default: break;
  }
}

static void load(moi_format type, const void *x, float *restrict out, uint32_t n) {
  const uint16_t *restrict h = x;
  if (type == MOI_FORMAT_F32) {
    memcpy(out, x, (size_t)n * sizeof *out);
  } else if (type == MOI_FORMAT_BF16) {
    for (uint32_t i = 0; i < n; i++) out[i] = moi_bits_f32((uint32_t)h[i] << 16);
  } else {
    for (uint32_t i = 0; i < n; i++) { /* 2^112 lifts the exponent and normalises subnormals */
      uint32_t u = h[i], magnitude = (u & 0x7fffu) << 13;
      uint32_t bits = moi_f32_bits(moi_bits_f32(magnitude) * moi_bits_f32(0x77800000u));
      bits |= (u & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
      out[i] = moi_bits_f32(bits | (u & 0x8000u) << 16);
    }
  }
}

static void combine(float *restrict acc, const float *restrict c, const float *restrict bias, float w, uint32_t n) {
  if (bias)
    for (uint32_t i = 0; i < n; i++) acc[i] += w * (c[i] + bias[i]);
  else
    for (uint32_t i = 0; i < n; i++) acc[i] += w * c[i];
}

static void store(moi_format type, const float *restrict x, float factor, void *out, uint32_t n) {
  float *restrict f = out;
  uint16_t *restrict h = out;
  if (type == MOI_FORMAT_F32)
    for (uint32_t i = 0; i < n; i++) f[i] = x[i] * factor;
  else if (type == MOI_FORMAT_BF16)
    for (uint32_t i = 0; i < n; i++) h[i] = moi_to_bf16(x[i] * factor);
  else
    for (uint32_t i = 0; i < n; i++) h[i] = moi_to_f16(x[i] * factor);
}

static void blend(float *restrict x, float a, const float *restrict y, float b, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) x[i] = x[i] * a + y[i] * b;
}

const moi_elementwise MOI_ELEMENTWISE = {activate, load, combine, store, blend};
