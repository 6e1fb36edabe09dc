/* Rounding of fp32 values to the dense types, and dense loads and stores, on the host. Round to nearest even; NaN stays
 * NaN; overflow gives infinity. */
#ifndef MOI_SHARED_ROUND_H
#define MOI_SHARED_ROUND_H

#include <moiety.h>

#include "decode.h"

static inline uint16_t moi_to_bf16(float f) { return (uint16_t)moi_bf16_code(f); }
static inline uint16_t moi_to_f16(float f) { return (uint16_t)moi_f16_code(f); }

static inline float moi_round_to(moi_format type, float f) {
  if (type == MOI_FORMAT_BF16) return moi_bf16_value(moi_to_bf16(f));
  if (type == MOI_FORMAT_F16) return moi_f16_value(moi_to_f16(f));
  return f;
}

/* Element i of dense memory. */
static inline float moi_dense_load(moi_format type, const void *p, size_t i) {
  if (type == MOI_FORMAT_F32) return ((const float *)p)[i];
  uint32_t h = ((const uint16_t *)p)[i];
  return type == MOI_FORMAT_BF16 ? moi_bf16_value(h) : moi_f16_value(h);
}
static inline void moi_dense_store(moi_format type, void *p, size_t i, float f) {
  if (type == MOI_FORMAT_F32) ((float *)p)[i] = f;
  else ((uint16_t *)p)[i] = type == MOI_FORMAT_BF16 ? moi_to_bf16(f) : moi_to_f16(f);
}

static inline uint8_t moi_to_e4m3(float f) { return (uint8_t)moi_e4m3_code(f); }

/* n <= 32 values of MOI_ACT_QUANT_INT8_32: their codes (unless NULL), and their scale. A scale of infinity says that all
 * are NaN; their codes are 0. */
static inline float moi_int8_group(const float *x, uint32_t n, int8_t *codes) {
  float a = 0;
  for (uint32_t i = 0; i < n; i++) {
    float v = x[i] < 0 ? -x[i] : x[i];
    if (!(v <= 0x1.fffffep127f)) v = moi_bits_f32(0x7f800000u);
    if (v > a) a = v;
  }
  float s = a / 127.0f;
  if (s < 0x1p-126f) s = 0x1p-126f;
  for (uint32_t i = 0; codes && i < n; i++) {
    float v = x[i] / s; /* 1.5 * 2^23: what is added to it is rounded to an integer */
    codes[i] = s < moi_bits_f32(0x7f800000u) ? (int8_t)(int32_t)(v + 12582912.0f - 12582912.0f) : 0;
  }
  return s;
}

/* In place: the values that online quantisation leaves. */
static inline void moi_act_quant_row(moi_act_quant quant, float *x, uint32_t k) {
  if (quant == MOI_ACT_QUANT_NONE) return;
  for (uint32_t at = 0; quant == MOI_ACT_QUANT_INT8_32 && at < k; at += 32) {
    int8_t codes[32];
    uint32_t n = k - at < 32 ? k - at : 32;
    float s = moi_int8_group(x + at, n, codes);
    for (uint32_t i = 0; i < n; i++) x[at + i] = (float)codes[i] * s;
  }
  if (quant == MOI_ACT_QUANT_INT8_32) return;
  for (uint32_t at = 0; at < k; at += 128) {
    uint32_t n = k - at < 128 ? k - at : 128;
    float a = 1e-4f;
    for (uint32_t i = 0; i < n; i++) {
      float v = x[at + i] < 0 ? -x[at + i] : x[at + i];
      if (v > a) a = v;
    }
    float s = a / 448.0f;
    if (quant == MOI_ACT_QUANT_FP8_128_POW2) { /* 2^ceil(log2 s), on the bits */
      uint32_t u = moi_f32_bits(s);
      s = moi_bits_f32(((u >> 23) + ((u & 0x7fffffu) != 0)) << 23);
    }
    for (uint32_t i = 0; i < n; i++) {
      float v = x[at + i] / s;
      v = v > 448.0f ? 448.0f : v < -448.0f ? -448.0f : v;
      x[at + i] = moi_e4m3_value(moi_to_e4m3(v)) * s;
    }
  }
}

#endif
