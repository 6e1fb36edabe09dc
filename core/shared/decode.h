/* The definition of every weight format: element (n, k) of one expert's W[N,K] out of its streams D (data), S (scales)
 * and Z (zeros), as MOI_AT_<FORMAT>(D, S, Z, n, k, N, K) -> float. Slow as written: it is the definition and the generic
 * kernel; tuned kernels must match it. NVFP4's global scale is applied by the caller, to the dot product.
 * Layouts: include/moiety.h names where each format comes from. */
#ifndef MOI_SHARED_DECODE_H
#define MOI_SHARED_DECODE_H

#include "prelude.h"

/* ---- scalar codes */

MOI_FN float moi_bf16_value(uint h) { return moi_bits_f32(h << 16); }

/* Built from integer steps, so that devices which flush f16 subnormals give the same value. */
MOI_FN float moi_f16_value(uint h) {
  uint e = (h >> 10) & 31u, m = h & 1023u;
  float magnitude;
  if (e == 0u) magnitude = MOI_FLOAT(m) * 5.9604644775390625e-8f; /* 2^-24 */
  else magnitude = moi_bits_f32(((e == 31u ? 255u : e + 112u) << 23) | (m << 13));
  return (h & 0x8000u) != 0u ? -magnitude : magnitude;
}

/* OCP E4M3FN: bias 7, no infinity, NaN 0x7f and 0xff. */
MOI_FN float moi_e4m3_value(uint b) {
  uint e = (b >> 3) & 15u, m = b & 7u;
  float magnitude;
  if ((b & 127u) == 127u) magnitude = moi_bits_f32(0x7fc00000u);
  else if (e == 0u) magnitude = MOI_FLOAT(m) * 0.001953125f; /* 2^-9 */
  else magnitude = moi_bits_f32(((e + 120u) << 23) | (m << 20));
  return (b & 128u) != 0u ? -magnitude : magnitude;
}

/* OCP E8M0: 2^(b-127); 255 is NaN, 0 is the fp32 subnormal 2^-127. */
MOI_FN float moi_e8m0_value(uint b) {
  if (b == 255u) return moi_bits_f32(0x7fc00000u);
  return moi_bits_f32(b == 0u ? 0x00400000u : b << 23);
}

/* OCP E2M1: 0 .5 1 1.5 2 3 4 6, bit 3 the sign. Twice the value is an integer, eight of them in a word. */
MOI_FN float moi_e2m1_value(uint c) {
  float magnitude = 0.5f * MOI_FLOAT((0xc8643210u >> (4u * (c & 7u))) & 15u);
  return (c & 8u) != 0u ? -magnitude : magnitude;
}

/* ---- the other way: round to nearest even; NaN stays NaN; overflow gives infinity */

MOI_FN uint moi_bf16_code(float f) {
  uint u = moi_f32_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (u >> 16) | 0x40u;
  return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}

MOI_FN uint moi_f16_code(float f) {
  uint u = moi_f32_bits(f), sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7e00u;
  if (u >= 0x477ff000u) return sign | 0x7c00u; /* rounds to 65536 or more */
  if (u < 0x38800000u)                         /* below 2^-14: the fp32 adder does the rounding */
    return sign | (moi_f32_bits(moi_bits_f32(u) + 0.5f) - 0x3f000000u);
  u += 0xfffu + ((u >> 13) & 1u);
  return sign | ((u - 0x38000000u) >> 13);
}

/* E4M3FN saturates at 448. */
MOI_FN uint moi_e4m3_code(float f) {
  uint u = moi_f32_bits(f), sign = (u >> 24) & 0x80u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7fu;
  if (u >= 0x43e00000u) return sign | 0x7eu;
  if (u < 0x3c800000u) /* below 2^-6: multiples of 2^-9, rounded by the fp32 adder (2^14 has that ulp) */
    return sign | (moi_f32_bits(moi_bits_f32(u) + 16384.0f) - 0x46800000u);
  u += 0x7ffffu + ((u >> 20) & 1u);
  uint code = (u - 0x3c000000u) >> 20;
  return sign | (code > 0x7eu ? 0x7eu : code);
}

/* Nibble k & 1 of a byte (low = even k). */
MOI_FN uint moi_nibble_even_odd(uint byte, uint k) { return (byte >> (4u * (k & 1u))) & 15u; }
/* GGUF's 32-blocks: byte j holds elements j (low) and j + 16 (high). */
MOI_FN uint moi_nibble_half(uint byte, uint k) { return (byte >> (4u * ((k >> 4) & 1u))) & 15u; }

/* ---- dense */

#define MOI_AT_F32(D, S, Z, n, k, N, K) moi_bits_f32(MOI_U32(D, ((n) * (K) + (k)) * 4u))
#define MOI_AT_F16(D, S, Z, n, k, N, K) moi_f16_value(MOI_U16(D, ((n) * (K) + (k)) * 2u))
#define MOI_AT_BF16(D, S, Z, n, k, N, K) moi_bf16_value(MOI_U16(D, ((n) * (K) + (k)) * 2u))
#define MOI_AT_FP8(D, S, Z, n, k, N, K) moi_e4m3_value(MOI_U8(D, (n) * (K) + (k)))
#define MOI_AT_BF16_KN(D, S, Z, n, k, N, K) moi_bf16_value(MOI_U16(D, ((k) * (N) + (n)) * 2u))

/* ---- scales beside the data */

#define MOI_AT_FP8_B128(D, S, Z, n, k, N, K)                                                                           \
  (moi_e4m3_value(MOI_U8(D, (n) * (K) + (k))) *                                                                        \
   moi_bits_f32(MOI_U32(S, (((n) >> 7) * (((K) + 127u) >> 7) + ((k) >> 7)) * 4u)))

#define MOI_AT_MXFP4(D, S, Z, n, k, N, K)                                                                              \
  (moi_e2m1_value(moi_nibble_even_odd(MOI_U8(D, ((n) * (K) + (k)) >> 1), k)) *                                         \
   moi_e8m0_value(MOI_U8(S, (n) * ((K) >> 5) + ((k) >> 5))))

#define MOI_AT_NVFP4(D, S, Z, n, k, N, K)                                                                              \
  (moi_e2m1_value(moi_nibble_even_odd(MOI_U8(D, ((n) * (K) + (k)) >> 1), k)) *                                         \
   moi_e4m3_value(MOI_U8(S, (n) * ((K) >> 4) + ((k) >> 4))))

#define MOI_AT_FP4_G16(D, S, Z, n, k, N, K)                                                                            \
  (moi_e2m1_value(moi_nibble_even_odd(MOI_U8(D, ((n) * (K) + (k)) >> 1), k)) *                                         \
   moi_e8m0_value(MOI_U8(S, (n) * ((K) >> 4) + ((k) >> 4))))

/* w = (q - zero) * scale */
MOI_FN float moi_int4_value(uint q, uint zero, float scale) { return MOI_FLOAT(MOI_INT(q) - MOI_INT(zero)) * scale; }

#define MOI_AT_INT4(D, S, n, k, K, G)                                                                                  \
  moi_int4_value(moi_nibble_even_odd(MOI_U8(D, ((n) * (K) + (k)) >> 1), k), 8u,                                        \
                 moi_bf16_value(MOI_U16(S, ((n) * ((K) / (G)) + (k) / (G)) * 2u)))
#define MOI_AT_INT4_G32(D, S, Z, n, k, N, K) MOI_AT_INT4(D, S, n, k, K, 32u)
#define MOI_AT_INT4_G128(D, S, Z, n, k, N, K) MOI_AT_INT4(D, S, n, k, K, 128u)

#define MOI_AT_INT4Z(D, S, Z, n, k, K, G)                                                                              \
  moi_int4_value(moi_nibble_even_odd(MOI_U8(D, ((n) * (K) + (k)) >> 1), k),                                            \
                 MOI_U8(Z, (n) * ((K) / (G)) + (k) / (G)),                                                             \
                 moi_f16_value(MOI_U16(S, ((n) * ((K) / (G)) + (k) / (G)) * 2u)))
#define MOI_AT_INT4Z_G32(D, S, Z, n, k, N, K) MOI_AT_INT4Z(D, S, Z, n, k, K, 32u)
#define MOI_AT_INT4Z_G128(D, S, Z, n, k, N, K) MOI_AT_INT4Z(D, S, Z, n, k, K, 128u)

/* GPTQ v1 stores zero - 1. */
MOI_FN uint moi_gptq_zero(uint word, uint n) { return ((word >> (4u * (n & 7u))) & 15u) + 1u; }
#define MOI_AT_GPTQ(D, S, Z, n, k, N, G)                                                                               \
  moi_int4_value((MOI_U32(D, (((k) >> 3) * (N) + (n)) * 4u) >> (4u * ((k) & 7u))) & 15u,                               \
                 moi_gptq_zero(MOI_U32(Z, ((k) / (G) * ((N) >> 3) + ((n) >> 3)) * 4u), n),                             \
                 moi_f16_value(MOI_U16(S, ((k) / (G) * (N) + (n)) * 2u)))
#define MOI_AT_GPTQ_G32(D, S, Z, n, k, N, K) MOI_AT_GPTQ(D, S, Z, n, k, N, 32u)
#define MOI_AT_GPTQ_G128(D, S, Z, n, k, N, K) MOI_AT_GPTQ(D, S, Z, n, k, N, 128u)

/* AWQ puts column 8j + [0,2,4,6,1,3,5,7][p] into nibble p. */
MOI_FN uint moi_awq_nibble(uint word, uint n) {
  uint c = n & 7u, p = (c >> 1) + 4u * (c & 1u);
  return (word >> (4u * p)) & 15u;
}
#define MOI_AT_AWQ(D, S, Z, n, k, N, G)                                                                                \
  moi_int4_value(moi_awq_nibble(MOI_U32(D, ((k) * ((N) >> 3) + ((n) >> 3)) * 4u), n),                                  \
                 moi_awq_nibble(MOI_U32(Z, ((k) / (G) * ((N) >> 3) + ((n) >> 3)) * 4u), n),                            \
                 moi_f16_value(MOI_U16(S, ((k) / (G) * (N) + (n)) * 2u)))
#define MOI_AT_AWQ_G32(D, S, Z, n, k, N, K) MOI_AT_AWQ(D, S, Z, n, k, N, 32u)
#define MOI_AT_AWQ_G128(D, S, Z, n, k, N, K) MOI_AT_AWQ(D, S, Z, n, k, N, 128u)

/* ---- GGUF blocks; b is the byte offset of the block */

#define MOI_BLOCK(n, k, K, elements, bytes) (((n) * ((K) / (elements)) + (k) / (elements)) * (bytes))

MOI_FN int moi_signed8(uint b) { return MOI_INT(b) - (b > 127u ? 256 : 0); }

#define MOI_Q8_0(D, b, k) (moi_f16_value(MOI_U16(D, b)) * MOI_FLOAT(moi_signed8(MOI_U8(D, (b) + 2u + ((k) & 31u)))))
#define MOI_AT_Q8_0(D, S, Z, n, k, N, K) MOI_Q8_0(D, MOI_BLOCK(n, k, K, 32u, 34u), k)

#define MOI_Q4_0(D, b, k)                                                                                              \
  moi_int4_value(moi_nibble_half(MOI_U8(D, (b) + 2u + ((k) & 15u)), k), 8u, moi_f16_value(MOI_U16(D, b)))
#define MOI_AT_Q4_0(D, S, Z, n, k, N, K) MOI_Q4_0(D, MOI_BLOCK(n, k, K, 32u, 18u), k)

MOI_FN int moi_iq4_nl_code(uint q) {
  /* -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113, plus 128 */
  uint word = q < 4u ? 0x3f2d1801u : q < 8u ? 0x766a5d4fu : q < 12u ? 0xa6998d81u : 0xf1d9c5b5u;
  return MOI_INT((word >> (8u * (q & 3u))) & 255u) - 128;
}
#define MOI_IQ4_NL(D, b, k)                                                                                            \
  (moi_f16_value(MOI_U16(D, b)) * MOI_FLOAT(moi_iq4_nl_code(moi_nibble_half(MOI_U8(D, (b) + 2u + ((k) & 15u)), k))))
#define MOI_AT_IQ4_NL(D, S, Z, n, k, N, K) MOI_IQ4_NL(D, MOI_BLOCK(n, k, K, 32u, 18u), k)

#define MOI_MXFP4_GGUF(D, b, k)                                                                                        \
  (moi_e2m1_value(moi_nibble_half(MOI_U8(D, (b) + 1u + ((k) & 15u)), k)) * moi_e8m0_value(MOI_U8(D, b)))
#define MOI_AT_MXFP4_GGUF(D, S, Z, n, k, N, K) MOI_MXFP4_GGUF(D, MOI_BLOCK(n, k, K, 32u, 17u), k)

/* 6-bit scale and minimum j (0..7) of a Q4_K or Q5_K block out of its 12 bytes: a is byte j (j < 4) or byte j + 4,
 * low is byte j + 4 (j < 4) or j + 4 again, high is byte j - 4 for the scale and j for the minimum (j >= 4). */
MOI_FN uint moi_k_scale(uint j, uint at_j, uint at_j_plus_4, uint at_j_minus_4) {
  return j < 4u ? at_j & 63u : (at_j_plus_4 & 15u) | ((at_j_minus_4 >> 6) << 4);
}
MOI_FN uint moi_k_min(uint j, uint at_j, uint at_j_plus_4) {
  return j < 4u ? at_j_plus_4 & 63u : (at_j_plus_4 >> 4) | ((at_j >> 6) << 4);
}
MOI_FN float moi_k_value(float d, float dmin, uint scale, uint minimum, uint q) {
  return d * MOI_FLOAT(scale) * MOI_FLOAT(q) - dmin * MOI_FLOAT(minimum);
}
/* sub-block of 32 that element k lies in, and offset of the nibble's byte */
#define MOI_K_SUB(k) (((k) >> 5) & 7u)
#define MOI_K_BYTE(k) ((((k) >> 6) & 3u) * 32u + ((k) & 31u))
#define MOI_K_SCALES(D, b, j)                                                                                          \
  moi_k_scale(j, MOI_U8(D, (b) + 4u + (j)), MOI_U8(D, (b) + 8u + (j)), MOI_U8(D, (b) + ((j) < 4u ? 0u : (j))))
#define MOI_K_MINS(D, b, j) moi_k_min(j, MOI_U8(D, (b) + 4u + (j)), MOI_U8(D, (b) + 8u + (j)))

#define MOI_Q4_K(D, b, k)                                                                                              \
  moi_k_value(moi_f16_value(MOI_U16(D, b)), moi_f16_value(MOI_U16(D, (b) + 2u)), MOI_K_SCALES(D, b, MOI_K_SUB(k)),     \
              MOI_K_MINS(D, b, MOI_K_SUB(k)),                                                                          \
              (MOI_U8(D, (b) + 16u + MOI_K_BYTE(k)) >> (4u * (MOI_K_SUB(k) & 1u))) & 15u)
#define MOI_AT_Q4_K(D, S, Z, n, k, N, K) MOI_Q4_K(D, MOI_BLOCK(n, k, K, 256u, 144u), k)

#define MOI_Q5_K(D, b, k)                                                                                              \
  moi_k_value(moi_f16_value(MOI_U16(D, b)), moi_f16_value(MOI_U16(D, (b) + 2u)), MOI_K_SCALES(D, b, MOI_K_SUB(k)),     \
              MOI_K_MINS(D, b, MOI_K_SUB(k)),                                                                          \
              ((MOI_U8(D, (b) + 48u + MOI_K_BYTE(k)) >> (4u * (MOI_K_SUB(k) & 1u))) & 15u) |                           \
                  (((MOI_U8(D, (b) + 16u + ((k) & 31u)) >> MOI_K_SUB(k)) & 1u) << 4))
#define MOI_AT_Q5_K(D, S, Z, n, k, N, K) MOI_Q5_K(D, MOI_BLOCK(n, k, K, 256u, 176u), k)

/* Q6_K: 128 elements a half; quarter c = (k>>5)&3 of the half takes nibble c>>1 of ql[(c&1)*32 + l], bits 2c of qh[l]. */
#define MOI_Q6_K_LOW(D, b, k)                                                                                          \
  ((MOI_U8(D, (b) + (((k) >> 7) & 1u) * 64u + (((k) >> 5) & 1u) * 32u + ((k) & 31u)) >> (4u * (((k) >> 6) & 1u))) & 15u)
#define MOI_Q6_K_HIGH(D, b, k)                                                                                         \
  ((MOI_U8(D, (b) + 128u + (((k) >> 7) & 1u) * 32u + ((k) & 31u)) >> (2u * (((k) >> 5) & 3u))) & 3u)
MOI_FN float moi_q6_k_value(float d, uint scale, uint low, uint high) {
  return d * MOI_FLOAT(moi_signed8(scale)) * MOI_FLOAT(MOI_INT(low | (high << 4)) - 32);
}
#define MOI_Q6_K(D, b, k)                                                                                              \
  moi_q6_k_value(moi_f16_value(MOI_U16(D, (b) + 208u)), MOI_U8(D, (b) + 192u + (((k) & 255u) >> 4)),                   \
                 MOI_Q6_K_LOW(D, b, k), MOI_Q6_K_HIGH(D, b, k))
#define MOI_AT_Q6_K(D, S, Z, n, k, N, K) MOI_Q6_K(D, MOI_BLOCK(n, k, K, 256u, 210u), k)

/* ---- order R: the blocks of 16 rows in pieces of 4 bytes a row; b: byte offset of the 16 blocks, o: a byte of a block */

#define MOI_R16_BLOCK(n, k, K, elements) (((n) >> 4) * ((K) / (elements)) + (k) / (elements))
#define MOI_R16_BYTE(b, n, o) ((b) + ((o) >> 2) * 64u + ((n) & 15u) * 4u + ((o) & 3u))
#define MOI_R16_SCALE(n, k, K) (MOI_R16_BLOCK(n, k, K, 32u) * 16u + ((n) & 15u))
#define MOI_R16_NIBBLE(D, n, k, K)                                                                                     \
  moi_nibble_half(MOI_U8(D, MOI_R16_BYTE(MOI_R16_BLOCK(n, k, K, 32u) * 256u, n, (k) & 15u)), k)

#define MOI_AT_Q4_0_R16(D, S, Z, n, k, N, K)                                                                           \
  moi_int4_value(MOI_R16_NIBBLE(D, n, k, K), 8u, moi_f16_value(MOI_U16(S, MOI_R16_SCALE(n, k, K) * 2u)))
#define MOI_AT_IQ4_NL_R16(D, S, Z, n, k, N, K)                                                                         \
  (moi_f16_value(MOI_U16(S, MOI_R16_SCALE(n, k, K) * 2u)) * MOI_FLOAT(moi_iq4_nl_code(MOI_R16_NIBBLE(D, n, k, K))))
#define MOI_AT_MXFP4_R16(D, S, Z, n, k, N, K)                                                                          \
  (moi_e2m1_value(MOI_R16_NIBBLE(D, n, k, K)) * moi_e8m0_value(MOI_U8(S, MOI_R16_SCALE(n, k, K))))
#define MOI_AT_Q8_0_R16(D, S, Z, n, k, N, K)                                                                           \
  (moi_f16_value(MOI_U16(S, MOI_R16_SCALE(n, k, K) * 2u)) *                                                            \
   MOI_FLOAT(moi_signed8(MOI_U8(D, MOI_R16_BYTE(MOI_R16_BLOCK(n, k, K, 32u) * 512u, n, (k) & 31u)))))

#define MOI_Q4_K_R16(D, b, n, k, j)                                                                                    \
  moi_k_value(moi_f16_value(MOI_U16(D, MOI_R16_BYTE(b, n, 0u))), moi_f16_value(MOI_U16(D, MOI_R16_BYTE(b, n, 2u))),    \
              moi_k_scale(j, MOI_U8(D, MOI_R16_BYTE(b, n, 4u + (j))), MOI_U8(D, MOI_R16_BYTE(b, n, 8u + (j))),         \
                          MOI_U8(D, MOI_R16_BYTE(b, n, (j) < 4u ? 0u : (j)))),                                         \
              moi_k_min(j, MOI_U8(D, MOI_R16_BYTE(b, n, 4u + (j))), MOI_U8(D, MOI_R16_BYTE(b, n, 8u + (j)))),          \
              (MOI_U8(D, MOI_R16_BYTE(b, n, 16u + MOI_K_BYTE(k))) >> (4u * ((j) & 1u))) & 15u)
#define MOI_AT_Q4_K_R16(D, S, Z, n, k, N, K)                                                                           \
  MOI_Q4_K_R16(D, MOI_R16_BLOCK(n, k, K, 256u) * 2304u, n, k, MOI_K_SUB(k))

#endif
