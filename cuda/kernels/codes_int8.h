/* W for int8 tensor cores: 16 consecutive k of one row as signed bytes, w = scale * code - minimum, of what moi_raw_load of
 * codes.h brought.
 *
 *   MOI_INT8_GROUP    16, 32: so many k share a scale (formats of longer groups repeat it)
 *   MOI_INT8_MINIMUM  1: and a minimum; with groups of 32 alone
 *
 * Codes are exact. Those of E2M1 are twice the value, with half the scale; zeros of int4z do not fit beside a code, and
 * are minima: scale * zero has 19 bits at most. */
#ifndef MOI_CUDA_CODES_INT8_H
#define MOI_CUDA_CODES_INT8_H

#include "cuda/kernels/codes.h"

#if defined(MOI_FORMAT_Q6_K) || defined(MOI_FORMAT_NVFP4) || defined(MOI_FORMAT_FP4_G16)
#define MOI_INT8_GROUP 16
#else
#define MOI_INT8_GROUP 32
#endif
#if defined(MOI_FORMAT_Q4_K) || defined(MOI_FORMAT_Q5_K) || defined(MOI_FORMAT_INT4Z_G32) ||                            \
    defined(MOI_FORMAT_INT4Z_G128)
#define MOI_INT8_MINIMUM 1
#else
#define MOI_INT8_MINIMUM 0
#endif

/* Four codes of 0..127 in the bytes of w, less `zero` of 1..128. */
MOI_DEVICE unsigned moi_bytes_less(unsigned w, unsigned zero) {
  return (w + (128u - zero) * 0x01010101u) ^ 0x80808080u;
}
/* 8 nibbles, low first, as 8 bytes */
MOI_DEVICE void moi_bytes_of_nibbles(unsigned q, unsigned *w) {
  unsigned even = q & 0x0f0f0f0fu, odd = (q >> 4) & 0x0f0f0f0fu;
  w[0] = moi_bytes(even, odd, 0x5140u);
  w[1] = moi_bytes(even, odd, 0x7362u);
}
/* Four nibbles, the low 16 bits of q, through a table of 16 bytes. */
MOI_DEVICE unsigned moi_bytes_of_table(unsigned q, const unsigned *table) {
  unsigned low = moi_bytes(table[0], table[1], q & 0x7777u), high = moi_bytes(table[2], table[3], q & 0x7777u);
  unsigned which = moi_bytes(0xff00u, 0u, (q >> 3) & 0x1111u);
  return (low & ~which) | (high & which);
}
/* The low nibbles of 4 bytes, whose high ones are 0, side by side. */
MOI_DEVICE unsigned moi_nibbles_of_bytes(unsigned q) { return moi_bytes(q | q >> 4, 0u, 0x4420u); }

#define MOI_E2M1_TABLE {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu}
#define MOI_IQ4_NL_TABLE {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u}

#define BYTES_OF MOI_DEVICE void moi_raw_bytes(const moi_raw *r, unsigned *w, float *scale, float *minimum)

#if defined(MOI_FORMAT_MXFP4) || defined(MOI_FORMAT_NVFP4) || defined(MOI_FORMAT_FP4_G16)
BYTES_OF {
  const unsigned table[4] = MOI_E2M1_TABLE;
  (void)minimum;
#ifdef MOI_FORMAT_NVFP4
  *scale = 0.5f * moi_e4m3_f32(r->s);
#else
  *scale = 0.5f * moi_e8m0_value(r->s);
#endif
  MOI_UNROLL
  for (int c = 0; c < 2; c++) {
    w[2 * c] = moi_bytes_of_table(r->q[c], table);
    w[2 * c + 1] = moi_bytes_of_table(r->q[c] >> 16, table);
  }
}

#elif defined(MOI_FORMAT_INT4_G32) || defined(MOI_FORMAT_INT4_G128)
BYTES_OF {
  (void)minimum;
  *scale = moi_bf16_value(r->s);
  moi_bytes_of_nibbles(r->q[0], w);
  moi_bytes_of_nibbles(r->q[1], w + 2);
  MOI_UNROLL
  for (int c = 0; c < 4; c++) w[c] = moi_bytes_less(w[c], 8u);
}

#elif defined(MOI_FORMAT_INT4Z_G32) || defined(MOI_FORMAT_INT4Z_G128)
BYTES_OF {
  *scale = moi_f16_f32(r->s);
  *minimum = *scale * moi_small(r->z);
  moi_bytes_of_nibbles(r->q[0], w);
  moi_bytes_of_nibbles(r->q[1], w + 2);
}

#elif defined(MOI_FORMAT_GPTQ_G32) || defined(MOI_FORMAT_GPTQ_G128) || defined(MOI_FORMAT_AWQ_G32) ||                  \
    defined(MOI_FORMAT_AWQ_G128)
BYTES_OF { /* zeros are 16 at most */
  (void)minimum;
  *scale = moi_f16_f32(r->s);
  moi_bytes_of_nibbles(r->q[0], w);
  moi_bytes_of_nibbles(r->q[1], w + 2);
  MOI_UNROLL
  for (int c = 0; c < 4; c++) w[c] = moi_bytes_less(w[c], r->z);
}

#elif defined(MOI_FORMAT_Q8_0)
BYTES_OF {
  (void)minimum;
  *scale = moi_f16_f32(r->s);
  MOI_UNROLL
  for (int c = 0; c < 4; c++) w[c] = r->q[c];
}

#elif defined(MOI_FORMAT_Q4_0)
BYTES_OF {
  (void)minimum;
  *scale = moi_f16_f32(r->s);
  MOI_UNROLL
  for (int c = 0; c < 4; c++) w[c] = moi_bytes_less(r->q[c], 8u);
}

#elif defined(MOI_FORMAT_IQ4_NL) || defined(MOI_FORMAT_MXFP4_GGUF)
BYTES_OF {
  (void)minimum;
#ifdef MOI_FORMAT_IQ4_NL
  const unsigned table[4] = MOI_IQ4_NL_TABLE;
  *scale = moi_f16_f32(r->s);
#else
  const unsigned table[4] = MOI_E2M1_TABLE;
  *scale = 0.5f * moi_e8m0_value(r->s);
#endif
  MOI_UNROLL
  for (int c = 0; c < 4; c++) w[c] = moi_bytes_of_table(moi_nibbles_of_bytes(r->q[c]), table);
}

#elif defined(MOI_FORMAT_Q4_K) || defined(MOI_FORMAT_Q5_K)
BYTES_OF {
  *scale = moi_f16_f32(r->q[4]) * moi_small(r->s);
  *minimum = moi_f16_f32(r->q[4] >> 16) * moi_small(r->z);
  MOI_UNROLL
  for (int c = 0; c < 4; c++) w[c] = r->q[c];
}

#elif defined(MOI_FORMAT_Q6_K)
BYTES_OF {
  (void)minimum;
  *scale = moi_f16_f32(r->s) * (float)moi_signed8(r->z);
  MOI_UNROLL
  for (int c = 0; c < 4; c++) w[c] = moi_bytes_less(r->q[c], 32u);
}

#else
#error "a format without int8 codes: write them here, or leave it out of the row in kernels.def"
#endif

#endif
