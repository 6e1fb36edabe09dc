/* Rows of a KV cache as fp32, eight elements at a time. */
#ifndef MOI_CUDA_ATTENTION_LOAD_H
#define MOI_CUDA_ATTENTION_LOAD_H

#include "cuda/kernels/attention.h"

/* Element e of a row. */
MOI_DEVICE float moi_kv_element(unsigned format, const uint8_t *row, unsigned e) {
  if (format == MOI_CU_FP8) return moi_e4m3_f32(row[e]);
  if (format == MOI_CU_Q8_0) {
    const uint8_t *block = row + 34u * (e / 32u);
    return moi_f16_f32(*(const uint16_t *)(const void *)block) * (float)(int)(int8_t)block[2u + e % 32u];
  }
  return moi_load(format, row, e);
}

/* Elements e .. e+7 of a row of kv->dim, e a multiple of 8: 0 behind the row's end, and where there is no row. */
MOI_DEVICE void moi_kv_eight(const moi_cu_kv *kv, const uint8_t *row, unsigned e, float *f) {
  unsigned format = kv->format;
  if (!row || e + 8u > kv->dim || (!kv->vectors && format != MOI_CU_Q8_0)) {
    MOI_UNROLL
    for (unsigned i = 0; i < 8u; i++) f[i] = row && e + i < kv->dim ? moi_kv_element(format, row, e + i) : 0.0f;
  } else if (format == MOI_CU_F32) {
    const moi_f4 *p = (const moi_f4 *)(const void *)(row + 4u * e);
    moi_f4 x = p[0], y = p[1];
    f[0] = x.x, f[1] = x.y, f[2] = x.z, f[3] = x.w, f[4] = y.x, f[5] = y.y, f[6] = y.z, f[7] = y.w;
  } else if (format == MOI_CU_FP8) {
    const unsigned *p = (const unsigned *)(const void *)(row + e);
    unsigned x = p[0], y = p[1];
    MOI_UNROLL
    for (unsigned i = 0; i < 4u; i++) {
      f[i] = moi_e4m3_f32((x >> (8u * i)) & 255u);
      f[4u + i] = moi_e4m3_f32((y >> (8u * i)) & 255u);
    }
  } else if (format == MOI_CU_Q8_0) {
    const uint16_t *block = (const uint16_t *)(const void *)(row + 34u * (e / 32u)), *p = block + 1u + e % 32u / 2u;
    float d = moi_f16_f32(block[0]);
    MOI_UNROLL
    for (unsigned i = 0; i < 4u; i++) {
      unsigned pair = p[i] ^ 0x8080u;
      f[2u * i] = (moi_small(pair & 255u) - 128.0f) * d;
      f[2u * i + 1u] = (moi_small(pair >> 8) - 128.0f) * d;
    }
  } else {
    moi_u4 q = *(const moi_u4 *)(const void *)(row + 2u * e);
    unsigned w[4] = {q.x, q.y, q.z, q.w};
    MOI_UNROLL
    for (unsigned i = 0; i < 4u; i++) {
      f[2u * i] = format == MOI_CU_BF16 ? moi_bf16_low_f32(w[i]) : moi_f16_f32(w[i]);
      f[2u * i + 1u] = format == MOI_CU_BF16 ? moi_bf16_high_f32(w[i]) : moi_f16_f32(w[i] >> 16);
    }
  }
}

/* Infinite or NaN: what weighs 0 is left out of such a sum. */
MOI_DEVICE int moi_is_odd(float f) { return (moi_f32_bits(f) & 0x7f800000u) == 0x7f800000u; }

/* n_rows rows, elements e0 .. e0+n-1 of each, n a multiple of 8, to `to`, ld floats apart; 1 if this thread met an odd
 * one. */
MOI_DEVICE int moi_kv_stage(const moi_cu_kv *kv, const uint8_t *const *rows, unsigned n_rows, unsigned e0, unsigned n,
                            unsigned threads, float *to, unsigned ld) {
  unsigned eights = n / 8u;
  int odd = 0;
  for (unsigned i = moi_thread(); i < n_rows * eights; i += threads) {
    unsigned r = i / eights, e = 8u * (i - r * eights);
    float f[8];
    moi_kv_eight(kv, rows[r], e0 + e, f);
    moi_f4 x = {f[0], f[1], f[2], f[3]}, y = {f[4], f[5], f[6], f[7]};
    *(moi_f4 *)(void *)(to + r * ld + e) = x;
    *(moi_f4 *)(void *)(to + r * ld + e + 4u) = y;
    MOI_UNROLL
    for (unsigned c = 0; c < 8u; c++) odd |= moi_is_odd(f[c]);
  }
  return odd;
}

#endif
