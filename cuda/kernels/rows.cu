/* Rows of activations on their way into the grouped GEMMs and out of them. */
#include "cuda/args.h"
#include "cuda/device/convert.h"

/* ---- prepare: fp32 or another form or both, zero behind k, weighted and quantised as the model says. A block makes a row
 * at a time. */

#define THREADS 128u

/* Over `width` threads side by side, a power of two. */
MOI_DEVICE float reduce(float *shares, float v, int largest, unsigned width) {
  unsigned thread = moi_thread();
  shares[thread] = v;
  moi_sync();
  for (unsigned step = width / 2u; step > 0u; step >>= 1) {
    if ((thread & (width - 1u)) < step)
      shares[thread] = largest ? fmaxf(shares[thread], shares[thread + step]) : shares[thread] + shares[thread + step];
    moi_sync();
  }
  float r = shares[thread & ~(width - 1u)];
  moi_sync();
  return r;
}

/* Value k of a row, weighted. */
MOI_DEVICE float value(const moi_cu_prepare_args *a, const uint8_t *from, unsigned k, float weight) {
  float v = moi_load(a->input_type, from, k);
  return a->weights ? moi_round_to(a->input_type, v * weight) : v;
}

/* The power of two that brings the largest of a row to 2^13 .. 2^14, which act_quant makes 2^15 at most; a row without
 * one, or of numbers below 2^-97, gets that of 2^-97: its digits are small and right. */
MOI_DEVICE unsigned row_exponent(const moi_cu_prepare_args *a, const uint8_t *from, float weight, float *shares) {
  float largest = 0.0f;
  for (unsigned k = moi_thread(); k < a->k; k += THREADS) largest = fmaxf(largest, fabsf(value(a, from, k, weight)));
  unsigned e = moi_f32_bits(reduce(shares, largest, 1, THREADS)) >> 23;
  return e < 30u ? 30u : e > 254u ? 254u : e;
}

/* The power of two that INT8 counts 32 values in, a lane each: it brings the largest to 2^14 and more, and once rounded to
 * 32639 at most, the largest number of two signed digits. NaN if one of them is not finite. */
MOI_DEVICE float int8_scale(float v) {
  unsigned largest = moi_max_u32(moi_f32_bits(v) & 0x7fffffffu);
  if (largest >= 0x7f800000u) return moi_bits_f32(0x7fc00000u);
  unsigned e = (largest + 0x10100u) >> 23; /* the next power from 32639.5 on */
  return moi_bits_f32((e < 15u ? 1u : e - 14u) << 23);
}
/* A lane's value of those, q times the scale, to a row of INT8. */
MOI_DEVICE void put_int8(const moi_cu_prepare_args *a, unsigned row, unsigned k, int q, float scale) {
  uint8_t *to = (uint8_t *)a->codes + (uint64_t)row * 4u * a->ldx;
  int two = a->n_digits > 1u, sum = q;
  to[k] = (uint8_t)(two ? (q + 128) >> 8 : q);
  if (two) to[a->ldx + k] = (uint8_t)q;
  MOI_UNROLL
  for (unsigned step = 16u; step > 0u; step >>= 1) sum += (int)moi_xor_u32((unsigned)sum, step);
  if ((k & 31u) != 0u) return;
  moi_f2 v;
  v.x = scale, v.y = scale * (float)sum;
  ((moi_f2 *)(void *)(to + 2u * a->ldx))[k >> 5] = v;
}

MOI_KERNEL(prepare, 128, moi_cu_prepare_args) {
  MOI_SHARED(float, shares, THREADS);
  unsigned thread = moi_thread(), n_rows = a->n_rows;
  if (a->n_rows_device) {
    unsigned n = *a->n_rows_device;
    if (n < n_rows / a->rows_per_count) n_rows = n * a->rows_per_count;
  }
  for (unsigned row = moi_block_x(); row < n_rows; row += moi_grid_x()) {
    const uint8_t *from =
        (const uint8_t *)a->input + (uint64_t)(row / a->row_div) * a->input_stride * moi_element_bytes(a->input_type);
    float *to = a->x ? a->x + (uint64_t)row * a->ldx : NULL;
    uint16_t *digits = a->codes ? (uint16_t *)a->codes + (uint64_t)row * 2u * a->ldx : NULL; /* of DIGITS* */
    float weight = a->weights ? a->weights[row] : 1.0f, dot = 0.0f, up = 1.0f;
    if (a->codes && a->form == MOI_CU_DIGITS_F16) {
      unsigned e = row_exponent(a, from, weight, shares);
      up = moi_bits_f32((267u - e) << 23);
      if (thread == 0u) a->scales[row] = moi_bits_f32((e - 13u) << 23);
    }
    for (unsigned k0 = 0; k0 < a->ldx; k0 += THREADS) { /* 128: groups of act_quant */
      unsigned k = k0 + thread;
      float v = 0.0f;
      if (k < a->k) {
        v = value(a, from, k, weight);
        if (a->gate) dot = fmaf(moi_load(a->input_type, from, k), moi_load(a->gate_type, a->gate, k), dot);
      }
      unsigned code = 0u;
      float step = 0.0f, steps = 0.0f; /* of INT8_32 */
      if (a->act_quant == 3u) {
        step = fmaxf(reduce(shares, fabsf(v) <= 3.402823466e38f ? fabsf(v) : INFINITY, 1, 32) / 127.0f, 1.17549435e-38f);
        steps = step < INFINITY ? rintf(v / step) : 0.0f;
        v = steps * step;
      } else if (a->act_quant) {
        float scale = reduce(shares, fmaxf(fabsf(v), 1e-4f), 1, THREADS) / 448.0f;
        if (a->act_quant == 2u) { /* 2^ceil(log2 scale), on the bits */
          unsigned u = moi_f32_bits(scale);
          scale = moi_bits_f32(((u >> 23) + ((u & 0x7fffffu) != 0u ? 1u : 0u)) << 23);
        }
        float q = v / scale;
        q = q > 448.0f ? 448.0f : q < -448.0f ? -448.0f : q;
        code = moi_e4m3_code(q);
        v = moi_e4m3_value(code) * scale;
        if (a->codes && a->form == MOI_CU_E4M3) {
          uint64_t at = (uint64_t)row * MOI_CU_UP128(a->ldx) + k0;
          ((uint8_t *)a->codes)[at + thread] = (uint8_t)code;
          if (thread == 0u) a->scales[at >> 7] = scale;
        }
      }
      if (k >= a->ldx) continue;
      if (to) to[k] = v;
      if (!digits || a->form == MOI_CU_E4M3) continue;
      if (a->form == MOI_CU_INT8) {
        if (a->n_digits > 1u) {
          step = int8_scale(v);
          steps = step < INFINITY ? rintf(v / step) : 0.0f;
        }
        put_int8(a, row, k, (int)steps, step);
        continue;
      }
      if (a->form == MOI_CU_DIGITS_F16) {
        unsigned first = moi_f16_code(v * up);
        digits[k] = (uint16_t)first;
        if (a->n_digits > 1u) digits[a->ldx + k] = (uint16_t)moi_f16_code(v * up - moi_f16_f32(first));
        continue;
      }
      unsigned high = moi_bf16_code(v);
      digits[k] = (uint16_t)high;
      if (a->n_digits > 1u) digits[a->ldx + k] = (uint16_t)moi_bf16_code(v - moi_bf16_value(high));
    }
    if (a->gate) {
      dot = reduce(shares, dot, 0, THREADS);
      if (thread == 0u) a->gate_out[row] = 1.0f / (1.0f + expf(-dot));
    }
  }
}

/* ---- combine: y[t] = scale * (sum of a token's experts in ascending order + the shared expert) [+ y[t]]: gathered, in one
 * fixed order. */

MOI_KERNEL(combine, 64, moi_cu_combine_args) {
  MOI_SHARED(unsigned, order, 64);
  MOI_SHARED(unsigned, ids_of, 64);
  MOI_SHARED(float, weight_of, 64);
  unsigned thread = moi_thread(), n_tokens = a->n_tokens, k = a->top_k;
  if (a->n_tokens_device && *a->n_tokens_device < n_tokens) n_tokens = *a->n_tokens_device;
  for (unsigned t = moi_block_y(); t < n_tokens; t += moi_grid_y()) {
    moi_sync();
    if (thread < k) {
      unsigned id = (unsigned)a->ids[(uint64_t)t * k + thread];
      ids_of[thread] = id < a->n_class ? id : a->n_class; /* what is none lies behind all */
      weight_of[thread] = a->weights[(uint64_t)t * k + thread];
    }
    moi_sync();
    if (thread < k) {
      unsigned rank = 0;
      for (unsigned j = 0; j < k; j++)
        if (ids_of[j] < ids_of[thread] || (ids_of[j] == ids_of[thread] && j < thread)) rank++;
      order[rank] = thread;
    }
    moi_sync();
    unsigned at = (moi_block_x() * 64u + thread) * 2u;
    if (at >= a->h) continue;
    int both = at + 1u < a->h;
    float sum0 = 0.0f, sum1 = 0.0f;
    for (unsigned j = 0; j < k; j++) {
      unsigned slot = order[j], id = ids_of[slot];
      if (id >= a->n_class) break;
      float w = weight_of[slot], v0, v1;
      if (id < a->n_experts) {
        const float *row = a->o + ((uint64_t)t * k + slot) * a->ldo;
        v0 = row[at];
        v1 = both ? row[at + 1u] : 0.0f;
        if (!a->weighted) w = 1.0f;
      } else {
        uint64_t row = (uint64_t)t * a->input_stride;
        v0 = moi_load(a->input_type, a->input, row + at);
        v1 = both ? moi_load(a->input_type, a->input, row + at + 1u) : 0.0f;
      }
      sum0 += w * v0;
      sum1 += w * v1;
    }
    if (a->shared_o) {
      const float *row = a->shared_o + (uint64_t)t * a->shared_ldo;
      float gate = a->shared_gate ? a->shared_gate[t] : 1.0f;
      sum0 += gate * row[at];
      if (both) sum1 += gate * row[at + 1u];
    }
    sum0 *= a->scale;
    sum1 *= a->scale;
    uint64_t row = (uint64_t)t * a->output_stride + at;
    if (a->accumulate) {
      sum0 += moi_load(a->output_type, a->output, row);
      if (both) sum1 += moi_load(a->output_type, a->output, row + 1u);
    }
    moi_store(a->output_type, a->output, row, sum0);
    if (both) moi_store(a->output_type, a->output, row + 1u, sum1);
  }
}

/* ---- store_rows: a grouped GEMM's fp32 rows to the engine's output; rows of no group are 0, or stay where results are
 * added. */

MOI_KERNEL(store_rows, 64, moi_cu_store_args) {
  unsigned at = (moi_block_x() * 64u + moi_thread()) * 2u;
  if (at >= a->n) return;
  int both = at + 1u < a->n;
  unsigned first = a->ends[0], end = a->ends[1];
  for (unsigned r = moi_block_y(); r < a->n_rows; r += moi_grid_y()) {
    int inside = r >= first && r < end;
    if (!inside && a->accumulate) continue;
    const float *from = a->y + (uint64_t)r * a->ldy;
    float v0 = inside ? from[at] : 0.0f, v1 = inside && both ? from[at + 1u] : 0.0f;
    uint64_t row = (uint64_t)r * a->output_stride + at;
    if (a->accumulate) {
      v0 += moi_load(a->output_type, a->output, row);
      if (both) v1 += moi_load(a->output_type, a->output, row + 1u);
    }
    moi_store(a->output_type, a->output, row, v0);
    if (both) moi_store(a->output_type, a->output, row + 1u, v1);
  }
}
