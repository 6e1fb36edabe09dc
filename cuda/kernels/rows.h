/* Rows of activations as the GEMMs want them: fp32 or digits or both, zero behind k, weighted and quantised as the model
 * says. Beside kernels that need few blocks, or alone. */
#ifndef MOI_CUDA_ROWS_H
#define MOI_CUDA_ROWS_H

#include "cuda/args.h"
#include "cuda/device/convert.h"

#define MOI_ROW_THREADS 256u
#define MOI_ROW_SHARES 64u /* of shared memory: a number for each warp and each of 8 elements */

/* Elements i, i + step, ... of n, all of them asked for before the first is needed; 0 behind the last. */
MOI_DEVICE void moi_load8(unsigned type, const void *base, unsigned i, unsigned step, unsigned n, float v[8]) {
  if (type == MOI_CU_F32) {
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++) v[q] = i + q * step < n ? ((const float *)base)[i + q * step] : 0.0f;
    return;
  }
  unsigned h[8];
  MOI_UNROLL
  for (unsigned q = 0; q < 8u; q++) h[q] = i + q * step < n ? ((const uint16_t *)base)[i + q * step] : 0u;
  MOI_UNROLL
  for (unsigned q = 0; q < 8u; q++) v[q] = type == MOI_CU_BF16 ? moi_bf16_value(h[q]) : moi_f16_f32(h[q]);
}

MOI_DEVICE float moi_warp_sum(float v) {
  MOI_UNROLL
  for (unsigned step = 16u; step > 0u; step >>= 1) v += moi_xor_f32(v, step);
  return v;
}

MOI_DEVICE float moi_warp_max(float v) {
  MOI_UNROLL
  for (unsigned step = 16u; step > 0u; step >>= 1) v = fmaxf(v, moi_xor_f32(v, step));
  return v;
}

/* act_quant of 8 elements of each thread, v = code * scale. INT8_32: whole numbers, the scale of the 32 that a warp has for
 * each q; else e4m3, the scale of the 128 that half of the block has. */
MOI_DEVICE void moi_quantise8(unsigned act_quant, float *shares, float v[8], unsigned code[8], float scale[8]) {
  unsigned warp = moi_warp();
  if (act_quant == 3u) {
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++) {
      float most = moi_warp_max(fabsf(v[q]) <= 3.402823466e38f ? fabsf(v[q]) : MOI_INF);
      scale[q] = fmaxf(most / 127.0f, 1.17549435e-38f);
      float steps = scale[q] < MOI_INF ? rintf(v[q] / scale[q]) : 0.0f;
      code[q] = (unsigned)(int)steps;
      v[q] = steps * scale[q];
    }
    return;
  }
  MOI_UNROLL
  for (unsigned q = 0; q < 8u; q++) {
    float most = moi_warp_max(fmaxf(fabsf(v[q]), 1e-4f));
    if (moi_lane() == 0u) shares[8u * q + warp] = most;
  }
  moi_sync();
  MOI_UNROLL
  for (unsigned q = 0; q < 8u; q++) {
    const float *half = shares + 8u * q + (warp & 4u);
    float s = fmaxf(fmaxf(half[0], half[1]), fmaxf(half[2], half[3])) / 448.0f;
    if (act_quant == 2u) { /* 2^ceil(log2 s), on the bits */
      unsigned u = moi_f32_bits(s);
      s = moi_bits_f32(((u >> 23) + ((u & 0x7fffffu) != 0u ? 1u : 0u)) << 23);
    }
    float x = v[q] / s;
    x = x > 448.0f ? 448.0f : x < -448.0f ? -448.0f : x;
    code[q] = moi_e4m3_code(x);
    scale[q] = s;
    v[q] = moi_e4m3_value(code[q]) * s;
  }
  moi_sync(); /* shares have been read */
}

/* Elements k0, k0 + MOI_ROW_THREADS, ... of a row, weighted; 0 behind the last. */
MOI_DEVICE void moi_values8(const moi_cu_prepare_args *a, const uint8_t *from, unsigned k0, float weight, float v[8]) {
  moi_load8(a->input_type, from, k0, MOI_ROW_THREADS, a->k, v);
  if (!a->weights) return;
  MOI_UNROLL
  for (unsigned q = 0; q < 8u; q++)
    v[q] = k0 + q * MOI_ROW_THREADS < a->k ? moi_round_to(a->input_type, v[q] * weight) : 0.0f;
}

/* The power of two that brings the largest of a row to 2^13 .. 2^14, which act_quant makes 2^15 at most; a row without
 * one, or of numbers below 2^-97, gets that of 2^-97: its digits are small and right. */
MOI_DEVICE unsigned moi_row_exponent(const moi_cu_prepare_args *a, const uint8_t *from, float weight, float *shares) {
  float largest = 0.0f;
  for (unsigned k0 = moi_thread(); k0 < a->k; k0 += 8u * MOI_ROW_THREADS) {
    float v[8];
    moi_values8(a, from, k0, weight, v);
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++) largest = fmaxf(largest, fabsf(v[q]));
  }
  largest = moi_warp_max(largest);
  if (moi_lane() == 0u) shares[moi_warp()] = largest;
  moi_sync();
  for (unsigned w = 0; w < MOI_ROW_THREADS / 32u; w++) largest = fmaxf(largest, shares[w]);
  moi_sync(); /* shares have been read */
  unsigned e = moi_f32_bits(largest) >> 23;
  return e < 30u ? 30u : e > 254u ? 254u : e;
}

/* The power of two that INT8 counts 32 values in, a lane each: it brings the largest to 2^14 and more, and once rounded to
 * 32639 at most, the largest number of two signed digits. NaN if one of them is not finite. */
MOI_DEVICE float moi_int8_scale(float v) {
  unsigned largest = moi_max_u32(moi_f32_bits(v) & 0x7fffffffu);
  if (largest >= 0x7f800000u) return moi_bits_f32(0x7fc00000u);
  unsigned e = (largest + 0x10100u) >> 23; /* the next power from 32639.5 on */
  return moi_bits_f32((e < 15u ? 1u : e - 14u) << 23);
}
/* A lane's value of those, n times the scale, to a row of INT8. */
MOI_DEVICE void moi_put_int8(const moi_cu_prepare_args *a, unsigned row, unsigned k, int n, float scale) {
  uint8_t *to = (uint8_t *)a->codes + (uint64_t)row * 4u * a->ldx;
  int two = a->n_digits > 1u, sum = n;
  to[k] = (uint8_t)(two ? (n + 128) >> 8 : n);
  if (two) to[a->ldx + k] = (uint8_t)n;
  MOI_UNROLL
  for (unsigned step = 16u; step > 0u; step >>= 1) sum += (int)moi_xor_u32((unsigned)sum, step);
  if ((k & 31u) != 0u) return;
  moi_f2 v;
  v.x = scale, v.y = scale * (float)sum;
  ((moi_f2 *)(void *)(to + 2u * a->ldx))[k >> 5] = v;
}

/* One element in `form`; code and scale: of act_quant, up: of DIGITS_F16. Whole warps call, for 32 k side by side. */
MOI_DEVICE void moi_put_code(const moi_cu_prepare_args *a, unsigned row, unsigned k, float v, unsigned code, float scale,
                             float up) {
  if (a->form == MOI_CU_E4M3) {
    uint64_t at = (uint64_t)row * MOI_CU_UP128(a->ldx) + k;
    if (k >= MOI_CU_UP128(a->ldx)) return;
    ((uint8_t *)a->codes)[at] = (uint8_t)code;
    if ((k & 127u) == 0u) a->scales[at >> 7] = scale;
    return;
  }
  if (k >= a->ldx) return;
  uint16_t *digits = (uint16_t *)a->codes + (uint64_t)row * 2u * a->ldx + k;
  if (a->form == MOI_CU_INT8) {
    int n = (int)code;
    if (a->n_digits > 1u) {
      scale = moi_int8_scale(v);
      n = scale < MOI_INF ? (int)rintf(v / scale) : 0;
    }
    moi_put_int8(a, row, k, n, scale);
  } else if (a->form == MOI_CU_DIGITS_F16) {
    unsigned first = moi_f16_code(v * up);
    digits[0] = (uint16_t)first;
    if (a->n_digits > 1u) digits[a->ldx] = (uint16_t)moi_f16_code(v * up - moi_f16_f32(first));
  } else {
    unsigned high = moi_bf16_code(v);
    digits[0] = (uint16_t)high;
    if (a->n_digits > 1u) digits[a->ldx] = (uint16_t)moi_bf16_code(v - moi_bf16_value(high));
  }
}

/* A block makes a row. */
MOI_DEVICE void moi_prepare_row(const moi_cu_prepare_args *a, float *shares, unsigned row) {
  unsigned thread = moi_thread();
  const uint8_t *from =
      (const uint8_t *)a->input + (uint64_t)(row / a->row_div) * a->input_stride * moi_element_bytes(a->input_type);
  float *to = a->x ? a->x + (uint64_t)row * a->ldx : NULL;
  float weight = a->weights ? a->weights[row] : 1.0f, dot = 0.0f, up = 1.0f;
  if (a->codes && a->form == MOI_CU_DIGITS_F16) {
    unsigned e = moi_row_exponent(a, from, weight, shares);
    up = moi_bits_f32((267u - e) << 23);
    if (thread == 0u) a->scales[row] = moi_bits_f32((e - 13u) << 23);
  }
  for (unsigned k0 = 0; k0 < a->ldx; k0 += 8u * MOI_ROW_THREADS) {
    float v[8], scale[8];
    unsigned code[8];
    if (a->gate) {
      float g[8];
      moi_load8(a->input_type, from, k0 + thread, MOI_ROW_THREADS, a->k, v);
      moi_load8(a->gate_type, a->gate, k0 + thread, MOI_ROW_THREADS, a->k, g);
      MOI_UNROLL
      for (unsigned q = 0; q < 8u; q++)
        if (k0 + thread + q * MOI_ROW_THREADS < a->k) dot = fmaf(v[q], g[q], dot);
    }
    moi_values8(a, from, k0 + thread, weight, v);
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++) code[q] = 0u, scale[q] = 0.0f;
    if (a->act_quant) moi_quantise8(a->act_quant, shares, v, code, scale);
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++) {
      unsigned k = k0 + thread + q * MOI_ROW_THREADS;
      if (to && k < a->ldx) to[k] = v[q];
      if (a->codes) moi_put_code(a, row, k, v[q], code[q], scale[q], up);
    }
  }
  if (!a->gate) return;
  dot = moi_warp_sum(dot);
  if (moi_lane() == 0u) shares[moi_warp()] = dot;
  moi_sync();
  dot = 0.0f;
  for (unsigned w = 0; w < MOI_ROW_THREADS / 32u; w++) dot += shares[w];
  if (thread == 0u) a->gate_out[row] = 1.0f / (1.0f + expf(-dot));
  moi_sync(); /* shares have been read */
}

MOI_DEVICE unsigned moi_rows_of(const moi_cu_prepare_args *a) {
  unsigned n_rows = a->n_rows;
  if (n_rows && a->n_rows_device) {
    unsigned n = *a->n_rows_device;
    if (n < n_rows / a->rows_per_count) n_rows = n * a->rows_per_count;
  }
  return n_rows;
}

/* All rows of a set, by block `block` of n_blocks. */
MOI_DEVICE void moi_prepare_rows(const moi_cu_prepare_set *a, float *shares, unsigned block, unsigned n_blocks) {
  unsigned ends[MOI_CU_PREPARES], all = 0;
  MOI_UNROLL
  for (unsigned i = 0; i < MOI_CU_PREPARES; i++) ends[i] = all += moi_rows_of(&a->of[i]);
  for (unsigned row = block; row < all; row += n_blocks) {
    unsigned i = row < ends[0] ? 0u : row < ends[1] ? 1u : 2u;
    moi_prepare_row(&a->of[i], shares, row - (i == 0u ? 0u : i == 1u ? ends[0] : ends[1]));
  }
}

#endif
