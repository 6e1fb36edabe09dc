/* New keys and values into the cache: a block takes a row's heads, a thread an element (q8_0: a block of 32). The bytes
 * are those of the CPU, NaN included. */
#include "cuda/kernels/attention.h"

#define THREADS 64u

/* a / b with the NaN that a CPU gives: the first operand's, or the negative one that has no payload */
MOI_DEVICE float divide(float a, float b) {
  if (moi_is_nan(a)) return moi_bits_f32(moi_f32_bits(a) | 0x400000u);
  if (moi_is_nan(b)) return moi_bits_f32(moi_f32_bits(b) | 0x400000u);
  float q = a / b;
  return moi_is_nan(q) ? moi_bits_f32(0xffc00000u) : q;
}

/* An element divided by the scale; no conversion of the hardware's, which has but one NaN. */
MOI_DEVICE float element(unsigned type, const void *x, uint64_t i, const float *scale) {
  float f;
  if (type == MOI_CU_F32) f = ((const float *)x)[i];
  else f = type == MOI_CU_BF16 ? moi_bf16_value(((const uint16_t *)x)[i]) : moi_f16_value(((const uint16_t *)x)[i]);
  return scale ? divide(f, *scale) : f;
}

MOI_DEVICE void store_block(unsigned type, const void *x, uint64_t i, const float *scale, uint8_t *to) {
  float most = 0.0f;
  MOI_ROLLED
  for (unsigned j = 0; j < 32u; j++) most = fmaxf(most, fabsf(element(type, x, i + j, scale))); /* NaN is passed over */
  float d = most / 127.0f, by = d != 0.0f ? 1.0f / d : 0.0f;
  *(uint16_t *)(void *)to = (uint16_t)moi_f16_code(d);
  MOI_ROLLED
  for (unsigned j = 0; j < 32u; j += 2u) {
    unsigned pair = 0;
    for (unsigned k = 0; k < 2u; k++) {
      float q = roundf(element(type, x, i + j + k, scale) * by);
      int code = q >= 127.0f ? 127 : q >= -127.0f ? (int)q : -127;
      pair |= ((unsigned)code & 255u) << (8u * k);
    }
    *(uint16_t *)(void *)(to + 2u + j) = (uint16_t)pair;
  }
}

/* the smallest (largest: the largest) of all threads' */
MOI_DEVICE unsigned reduce(unsigned *shares, unsigned v, int largest) {
  shares[moi_thread()] = v;
  moi_sync();
  for (unsigned t = 0; t < THREADS; t++) v = largest ? moi_max_u(v, shares[t]) : moi_min_u(v, shares[t]);
  moi_sync();
  return v;
}

MOI_KERNEL(kv_append, 64, moi_cu_append_args) {
  MOI_SHARED(unsigned, shares, THREADS);
  unsigned thread = moi_thread(), row = moi_block_x(), n_rows = a->n_rows;

  /* the first sequence that ends behind the row; it begins where those before it have ended at the latest */
  unsigned seq = ~0u, first = 0;
  for (unsigned s = thread; s < a->n_seqs && seq == ~0u; s += THREADS)
    if (moi_clamp_i(a->q_offsets[s + 1u], 0, n_rows) > row) seq = s;
  seq = reduce(shares, seq, 0);
  if (seq == ~0u) return;
  for (unsigned s = thread; s <= seq; s += THREADS) first = moi_max_u(first, moi_clamp_i(a->q_offsets[s], 0, n_rows));
  first = reduce(shares, first, 1);
  if (row < first) return;
  unsigned end = moi_clamp_i(a->q_offsets[seq + 1u], 0, n_rows), len = moi_clamp_i(a->kv_lens[seq], 0, a->reach);
  unsigned after = moi_position_after(a->q_start ? (unsigned)a->q_start[seq] : len - (end - first), row - first);
  unsigned page, token;
  if (after == 0u || after > a->reach || !moi_place_of(&a->where, seq, after - 1u, &page, &token)) return;

  const moi_cu_append_side *side = &a->sides[moi_block_y()];
  unsigned type = a->input_type, format = side->to.format, dim = side->to.dim;
  unsigned units = format == MOI_CU_Q8_0 ? dim / 32u : dim;
  for (unsigned i = thread; i < a->n_kv_heads * units; i += THREADS) {
    unsigned head = i / units, e = i - head * units;
    uint8_t *to = (uint8_t *)(uintptr_t)moi_kv_row(&side->to, head, page, token);
    const float *scale = side->to.scale ? &side->to.scale[head] : NULL;
    uint64_t from = (uint64_t)row * side->stride + (uint64_t)head * side->head_stride;
    if (format == MOI_CU_Q8_0) {
      store_block(type, side->x, from + 32u * e, scale, to + 34u * e);
    } else if (format == type && !scale) { /* bits, whatever they are */
      if (type == MOI_CU_F32) ((unsigned *)(void *)to)[e] = ((const unsigned *)side->x)[from + e];
      else ((uint16_t *)(void *)to)[e] = ((const uint16_t *)side->x)[from + e];
    } else {
      float f = element(type, side->x, from + e, scale);
      if (format == MOI_CU_FP8) to[e] = (uint8_t)moi_e4m3_code(f);
      else moi_store(format, to, e, f);
    }
  }
}
