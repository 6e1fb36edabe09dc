/* W for tensor cores: 16 consecutive k of one row as codes, w = MOI_FACTOR * (scale * code - minimum), in two steps:
 * moi_raw_load brings the bytes into registers, moi_raw_codes makes codes of them, so that products can go on between the
 * two.
 *
 *   MOI_F16      1: codes are f16, defined by a file before it includes this one; else bf16
 *   MOI_FACTOR   of all weights, a power of two: what codes of few bits would else be multiplied by
 *   MOI_GROUP    0: codes are the weights themselves; 16, 32: so many k share a scale (formats of longer groups repeat it)
 *   MOI_MINIMUM  1: and a minimum
 *   MOI_DIGITS   2: a weight is the sum of two codes (f16 has 11 bits, bf16 8); digit chooses
 *   MOI_BY_N     1: W lies along n
 *
 * Codes are exact: fp8 and fp4 with their e8m0 or e4m3 scales have no more than 8 bits, integer codes without their zero
 * at most 8 bits and a sign. f16 has the bits, but not the exponents of e8m0 and bf16: e8m0 becomes the scale of a group,
 * and 16 bf16 weights get a power of two of their own that brings the largest to 2^14..2^15. Those that are less than
 * 2^-31 of it are off by 2^-39 of it at most, the others are exact. k0 is a multiple of 16; behind K, codes are 0. */
#ifndef MOI_CUDA_CODES_H
#define MOI_CUDA_CODES_H

#include "cuda/device/mma.h"
#include "cuda/kernels/fetch.h"

typedef struct moi_raw {
  unsigned q[8], s, z; /* data, scale, zero or minimum */
} moi_raw;

#ifndef MOI_F16
#define MOI_F16 0
#endif

/* 2 codes, both halves alike */
#define MOI_TWICE(code) ((code)*0x10001u)
#define MOI_MINUS_0 0x80008000u

#if defined(MOI_FORMAT_BF16_KN) || defined(MOI_FORMAT_GPTQ_G32) || defined(MOI_FORMAT_GPTQ_G128) ||                    \
    defined(MOI_FORMAT_AWQ_G32) || defined(MOI_FORMAT_AWQ_G128)
#define MOI_BY_N 1
#else
#define MOI_BY_N 0
#endif
#if defined(MOI_FORMAT_F16) && !MOI_F16
#define MOI_DIGITS 2
#else
#define MOI_DIGITS 1
#endif
#if defined(MOI_FORMAT_Q4_K) || defined(MOI_FORMAT_Q5_K)
#define MOI_MINIMUM 1
#else
#define MOI_MINIMUM 0
#endif
#if MOI_F16 && (defined(MOI_FORMAT_BF16) || defined(MOI_FORMAT_BF16_KN) || defined(MOI_FORMAT_FP4_G16))
#define MOI_GROUP 16
#elif MOI_F16 && (defined(MOI_FORMAT_MXFP4) || defined(MOI_FORMAT_MXFP4_GGUF))
#define MOI_GROUP 32
#elif defined(MOI_FORMAT_F16) || defined(MOI_FORMAT_BF16) || defined(MOI_FORMAT_BF16_KN) || defined(MOI_FORMAT_FP8) || \
    defined(MOI_FORMAT_MXFP4) || defined(MOI_FORMAT_MXFP4_GGUF) || defined(MOI_FORMAT_NVFP4) ||                        \
    defined(MOI_FORMAT_FP4_G16)
#define MOI_GROUP 0
#elif defined(MOI_FORMAT_Q6_K)
#define MOI_GROUP 16
#else
#define MOI_GROUP 32
#endif

/* ---- codes out of bits */

/* MOI_WHOLE: the power of two whose mantissa is whole numbers: 128 of a bf16, 1024 of an f16. MOI_ONE: 1. */
#if MOI_F16
#define MOI_WHOLE 0x6400u
#define MOI_ONE 0x3c00u
#define moi_pair_fma moi_f16x2_fma
#else
#define MOI_WHOLE 0x4300u
#define MOI_ONE 0x3f80u
#define moi_pair_fma moi_bf16x2_fma
#endif

/* Codes 0..127 in the low bytes of the halves of p, other bits not 0 only where `mask` has none, less `zero`, which is
 * MOI_WHOLE + zero twice. */
MOI_DEVICE unsigned moi_small_codes(unsigned p, unsigned mask, unsigned zero) {
  return moi_pair_fma((p & mask) | MOI_TWICE(MOI_WHOLE), MOI_TWICE(MOI_ONE), zero ^ MOI_MINUS_0);
}
/* Signed bytes: their highest bit adds 128 to what is taken off. */
MOI_DEVICE unsigned moi_signed_codes(unsigned p) {
  return moi_pair_fma((p & 0x007f007fu) | MOI_TWICE(MOI_WHOLE), MOI_TWICE(MOI_ONE),
                      (p & 0x00800080u) | (MOI_TWICE(MOI_WHOLE) ^ MOI_MINUS_0));
}
#if MOI_F16
/* E2M1 in the low nibbles: an f16 with its bits is the value times 2^-14. */
MOI_DEVICE unsigned moi_e2m1_bits(unsigned p) { return ((p << 9) & 0x0e000e00u) | ((p << 12) & MOI_MINUS_0); }
/* E4M3 in the high bytes: likewise 2^-8. Its NaN becomes 480. */
MOI_DEVICE unsigned moi_e4m3_codes(unsigned p) { return ((p >> 1) & 0x3f803f80u) | (p & MOI_MINUS_0); }
#else
/* E2M1 in the low nibbles, times a bf16 twice. A bf16 with E2M1's bits is the value times 2^-126. */
MOI_DEVICE unsigned moi_e2m1_codes(unsigned p, unsigned scale) {
  unsigned bits = ((p << 6) & 0x01c001c0u) | ((p << 12) & MOI_MINUS_0);
  return moi_bf16x2_fma(moi_bf16x2_fma(bits, MOI_TWICE(0x7e80u), MOI_MINUS_0), scale, MOI_MINUS_0);
}
/* E4M3 in the high bytes: likewise 2^-120. Its NaN becomes 480. */
MOI_DEVICE unsigned moi_e4m3_codes(unsigned p) {
  return moi_bf16x2_fma(((p >> 4) & 0x07f007f0u) | (p & MOI_MINUS_0), MOI_TWICE(0x7b80u), MOI_MINUS_0);
}
#endif
/* MOI_FACTOR says what the codes above lack. NVFP4's scales take half of it, so that both they and their products with
 * codes of 2 bits are f16: 2^-17 .. 21. */
#if MOI_F16 && (defined(MOI_FORMAT_FP8) || defined(MOI_FORMAT_FP8_B128))
#define MOI_FACTOR 256.0f
#elif MOI_F16 && defined(MOI_FORMAT_NVFP4)
#define MOI_FACTOR 128.0f
#elif MOI_F16 && (defined(MOI_FORMAT_MXFP4) || defined(MOI_FORMAT_MXFP4_GGUF) || defined(MOI_FORMAT_FP4_G16))
#define MOI_FACTOR 16384.0f
#else
#define MOI_FACTOR 1.0f
#endif
#if MOI_GROUP == 16 && MOI_F16
/* 16 bf16 as f16 under a scale of their own. */
MOI_DEVICE void moi_scaled_codes(const unsigned *q, unsigned *w, float *scale) {
  unsigned largest = 0u;
  MOI_UNROLL
  for (int c = 0; c < 8; c++) {
    unsigned first = (q[c] << 16) & 0x7f800000u, second = q[c] & 0x7f800000u;
    largest = first > largest ? first : largest;
    largest = second > largest ? second : largest;
  }
  unsigned e = largest >> 23;
  e = e < 30u ? 30u : e > 254u ? 254u : e; /* both scales are normal numbers; the least bf16 is exact below 30 too */
  float up = moi_bits_f32((268u - e) << 23);
  *scale = moi_bits_f32((e - 14u) << 23);
  MOI_UNROLL
  for (int c = 0; c < 8; c++) w[c] = moi_f16x2(moi_bf16_low_f32(q[c]) * up, moi_bf16_high_f32(q[c]) * up);
}
#endif
/* NaN for each half whose high byte is E4M3's. */
MOI_DEVICE unsigned moi_e4m3_nans(unsigned p) {
  return ((((p & 0x7f007f00u) + 0x01000100u) & 0x80008000u) >> 15) * 0x7fc0u;
}
/* Some byte of a word is E4M3's NaN. */
MOI_DEVICE unsigned moi_e4m3_nan(unsigned q) { return ((q & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u; }

/* 16 k that lie as 16 bytes, one each; STEP(pair, p): p has byte 2 pair in its lowest byte, the next in its third; other
 * bytes are any */
#define PAIRS_OF_BYTES(q, STEP)                                                                                        \
  MOI_UNROLL                                                                                                           \
  for (int c = 0; c < 4; c++) {                                                                                        \
    STEP(2 * c, moi_bytes((q)[c], 0u, 0x4140u))                                                                        \
    STEP(2 * c + 1, moi_bytes((q)[c], 0u, 0x4342u))                                                                    \
  }
/* 16 k that lie as 8 bytes of nibbles, low first; p has the nibbles in the low ones of its lowest and third byte */
#define PAIRS_OF_NIBBLES(q, STEP)                                                                                      \
  MOI_UNROLL                                                                                                           \
  for (int c = 0; c < 2; c++) {                                                                                        \
    unsigned low = (q)[c], high = low >> 4;                                                                            \
    STEP(4 * c, moi_bytes(low, high, 0x0400u))                                                                         \
    STEP(4 * c + 1, moi_bytes(low, high, 0x0501u))                                                                     \
    STEP(4 * c + 2, moi_bytes(low, high, 0x0602u))                                                                     \
    STEP(4 * c + 3, moi_bytes(low, high, 0x0703u))                                                                     \
  }

/* ---- formats */

#define LOAD                                                                                                           \
  MOI_DEVICE void moi_raw_load(const moi_streams *m, unsigned n, unsigned k0, unsigned N, unsigned K, moi_raw *r)
#define CODES MOI_DEVICE void moi_raw_codes(const moi_raw *r, int digit, unsigned *w, float *scale, float *minimum)
#define PUT4(at, value)                                                                                                \
  do {                                                                                                                 \
    moi_u4 v = value;                                                                                                  \
    r->q[at] = v.x, r->q[(at) + 1] = v.y, r->q[(at) + 2] = v.z, r->q[(at) + 3] = v.w;                                  \
  } while (0)

/* 8 bytes from any multiple of 8 or, if the streams are no vectors, from any byte on */
MOI_DEVICE void moi_load2(const moi_streams *m, const uint8_t *p, unsigned *q) {
  if (m->vectors) {
    const moi_u2 v = *(const moi_u2 *)moi_global(p);
    q[0] = v.x, q[1] = v.y;
    return;
  }
  const unsigned *w = (const unsigned *)moi_global((const void *)((uintptr_t)p & ~(uintptr_t)3));
  unsigned shift = 8u * (unsigned)((uintptr_t)p & 3u);
  unsigned a = w[0], b = w[1], c = w[1 + (shift != 0u)];
  q[0] = moi_funnel(a, b, shift);
  q[1] = moi_funnel(b, c, shift);
}

#if defined(MOI_FORMAT_F16) || defined(MOI_FORMAT_BF16)
LOAD {
  const uint8_t *p = m->d + (uint64_t)(n * K + k0) * 2u;
  (void)N;
  if (k0 + 16u <= K) {
    PUT4(0, moi_load4(m, p));
    PUT4(4, moi_load4(m, p + 16));
    return;
  }
  MOI_UNROLL
  for (unsigned c = 0; c < 8u; c++) {
    unsigned k = k0 + 2u * c;
    r->q[c] = (k < K ? moi_u16(p, 4u * c) : 0u) | (k + 1u < K ? moi_u16(p, 4u * c + 2u) << 16 : 0u);
  }
}
CODES {
  (void)scale, (void)minimum, (void)digit;
#if MOI_F16 && defined(MOI_FORMAT_BF16)
  moi_scaled_codes(r->q, w, scale);
#else
  MOI_UNROLL
  for (int c = 0; c < 8; c++) {
#if defined(MOI_FORMAT_F16) && !MOI_F16
    float first = moi_f16_f32(r->q[c] & 0xffffu), second = moi_f16_f32(r->q[c] >> 16);
    unsigned high = moi_bf16x2(first, second);
    w[c] = digit ? moi_bf16x2(first - moi_bf16_low_f32(high), second - moi_bf16_high_f32(high)) : high;
#else
    w[c] = r->q[c];
#endif
  }
#endif
}

#elif defined(MOI_FORMAT_BF16_KN)
LOAD {
  const uint16_t *p = (const uint16_t *)(const void *)m->d + (uint64_t)k0 * N + n;
  MOI_UNROLL
  for (unsigned c = 0; c < 8u; c++) { /* one address that goes on: sixteen would be registers that sm_90 has not left */
    unsigned k = k0 + 2u * c;
    unsigned first = k < K ? (unsigned)*p : 0u;
    p += N;
    unsigned second = k + 1u < K ? (unsigned)*p : 0u;
    p += N;
    r->q[c] = first | second << 16;
  }
}
CODES {
  (void)scale, (void)minimum, (void)digit;
#if MOI_F16
  moi_scaled_codes(r->q, w, scale);
#else
  MOI_UNROLL
  for (int c = 0; c < 8; c++) w[c] = r->q[c];
#endif
}

#elif defined(MOI_FORMAT_FP8) || defined(MOI_FORMAT_FP8_B128)
LOAD {
  const uint8_t *p = m->d + (n * K + k0);
  (void)N;
#ifdef MOI_FORMAT_FP8_B128
  r->s = k0 < K ? moi_u32(m->s, ((n >> 7) * ((K + 127u) >> 7) + (k0 >> 7)) * 4u) : 0u;
#endif
  if (k0 + 16u <= K) {
    PUT4(0, moi_load4(m, p));
    return;
  }
  r->q[0] = r->q[1] = r->q[2] = r->q[3] = 0u;
  MOI_ROLLED
  for (unsigned b = 16u; b-- > 0u;) { /* rare: few registers rather than fast */
    r->q[3] = moi_funnel(r->q[2], r->q[3], 24u);
    r->q[2] = moi_funnel(r->q[1], r->q[2], 24u);
    r->q[1] = moi_funnel(r->q[0], r->q[1], 24u);
    r->q[0] = r->q[0] << 8 | (k0 + b < K ? (unsigned)p[b] : 0u);
  }
}
CODES {
  (void)minimum, (void)digit;
  *scale = moi_bits_f32(r->s);
  MOI_UNROLL
  for (int c = 0; c < 4; c++) {
    w[2 * c] = moi_e4m3_codes(moi_bytes(r->q[c], 0u, 0x1404u));
    w[2 * c + 1] = moi_e4m3_codes(moi_bytes(r->q[c], 0u, 0x3424u));
  }
  if (moi_e4m3_nan(r->q[0]) | moi_e4m3_nan(r->q[1]) | moi_e4m3_nan(r->q[2]) | moi_e4m3_nan(r->q[3])) {
    MOI_UNROLL
    for (int c = 0; c < 4; c++) {
      w[2 * c] |= moi_e4m3_nans(moi_bytes(r->q[c], 0u, 0x1404u));
      w[2 * c + 1] |= moi_e4m3_nans(moi_bytes(r->q[c], 0u, 0x3424u));
    }
  }
}

#elif defined(MOI_FORMAT_MXFP4) || defined(MOI_FORMAT_NVFP4) || defined(MOI_FORMAT_FP4_G16)
#ifdef MOI_FORMAT_MXFP4
#define SHIFT 5
#else
#define SHIFT 4
#endif
LOAD {
  (void)N;
  if (k0 >= K) {
    r->q[0] = r->q[1] = r->s = 0u;
    return;
  }
  moi_load2(m, m->d + ((n * K + k0) >> 1), r->q);
  r->s = m->s[n * (K >> SHIFT) + (k0 >> SHIFT)];
}
CODES {
  (void)scale, (void)minimum, (void)digit;
#if MOI_F16 && defined(MOI_FORMAT_NVFP4)
  float s = moi_e4m3_f32(r->s) * 128.0f;
  unsigned both = moi_f16x2(s, s);
#define STEP(pair, p) w[pair] = moi_f16x2_fma(moi_e2m1_bits(p), both, MOI_MINUS_0);
#elif MOI_F16
  *scale = moi_e8m0_value(r->s);
#define STEP(pair, p) w[pair] = moi_e2m1_bits(p);
#else
#ifdef MOI_FORMAT_NVFP4
  unsigned s = MOI_TWICE(moi_f32_bits(moi_e4m3_f32(r->s)) >> 16);
#else
  unsigned s = MOI_TWICE(moi_f32_bits(moi_e8m0_value(r->s)) >> 16);
#endif
#define STEP(pair, p) w[pair] = moi_e2m1_codes(p, s);
#endif
  PAIRS_OF_NIBBLES(r->q, STEP)
#undef STEP
}

#elif defined(MOI_FORMAT_INT4_G32) || defined(MOI_FORMAT_INT4_G128) || defined(MOI_FORMAT_INT4Z_G32) ||                \
    defined(MOI_FORMAT_INT4Z_G128)
/* GROUP: fetch.h's */
LOAD {
  unsigned group = n * (K / GROUP) + k0 / GROUP;
  (void)N;
  moi_load2(m, m->d + ((n * K + k0) >> 1), r->q);
  r->s = moi_u16(m->s, group * 2u);
#if defined(MOI_FORMAT_INT4Z_G32) || defined(MOI_FORMAT_INT4Z_G128)
  r->z = m->z[group];
#endif
}
CODES {
  (void)minimum, (void)digit;
#if defined(MOI_FORMAT_INT4_G32) || defined(MOI_FORMAT_INT4_G128)
  *scale = moi_bf16_value(r->s);
#define STEP(pair, p) w[pair] = moi_small_codes(p, 0x000f000fu, MOI_TWICE(MOI_WHOLE + 8u));
#elif MOI_F16
  *scale = moi_f16_f32(r->s);
  unsigned zero = MOI_TWICE(MOI_WHOLE + r->z);
#define STEP(pair, p) w[pair] = moi_small_codes(p, 0x000f000fu, zero);
#else /* zeros up to 255 are taken off by themselves: 128 + 255 would have 9 bits */
  *scale = moi_f16_f32(r->s);
  unsigned zero = MOI_TWICE(moi_f32_bits(-moi_small(r->z)) >> 16);
#define STEP(pair, p)                                                                                                  \
  w[pair] = moi_bf16x2_fma(moi_small_codes(p, 0x000f000fu, MOI_TWICE(0x4300u)), MOI_TWICE(0x3f80u), zero);
#endif
  PAIRS_OF_NIBBLES(r->q, STEP)
#undef STEP
}

#elif defined(MOI_FORMAT_GPTQ_G32) || defined(MOI_FORMAT_GPTQ_G128)
LOAD {
  unsigned group = k0 / GROUP;
  (void)K;
  r->q[0] = moi_u32(m->d, ((k0 >> 3) * N + n) * 4u);
  r->q[1] = moi_u32(m->d, (((k0 >> 3) + 1u) * N + n) * 4u);
  r->s = moi_u16(m->s, (group * N + n) * 2u);
  r->z = moi_gptq_zero(moi_u32(m->z, (group * (N >> 3) + (n >> 3)) * 4u), n);
}
CODES {
  unsigned zero = MOI_TWICE(MOI_WHOLE + r->z);
  (void)minimum, (void)digit;
  *scale = moi_f16_f32(r->s);
#define STEP(pair, p) w[pair] = moi_small_codes(p, 0x000f000fu, zero);
  PAIRS_OF_NIBBLES(r->q, STEP)
#undef STEP
}

#elif defined(MOI_FORMAT_AWQ_G32) || defined(MOI_FORMAT_AWQ_G128)
LOAD { /* a nibble of each k's word: shifted to its place in 8 bytes of nibbles */
  unsigned group = k0 / GROUP;
  (void)K;
  MOI_UNROLL
  for (unsigned c = 0; c < 2u; c++) {
    r->q[c] = 0u;
    MOI_UNROLL
    for (unsigned j = 0; j < 8u; j++)
      r->q[c] |= moi_awq_nibble(moi_u32(m->d, ((k0 + 8u * c + j) * (N >> 3) + (n >> 3)) * 4u), n) << (4u * j);
  }
  r->s = moi_u16(m->s, (group * N + n) * 2u);
  r->z = moi_awq_nibble(moi_u32(m->z, (group * (N >> 3) + (n >> 3)) * 4u), n);
}
CODES {
  unsigned zero = MOI_TWICE(MOI_WHOLE + r->z);
  (void)minimum, (void)digit;
  *scale = moi_f16_f32(r->s);
#define STEP(pair, p) w[pair] = moi_small_codes(p, 0x000f000fu, zero);
  PAIRS_OF_NIBBLES(r->q, STEP)
#undef STEP
}

#elif defined(MOI_FORMAT_Q8_0)
LOAD {
  const uint8_t *b = m->d + (n * (K >> 5) + (k0 >> 5)) * 34u;
  (void)N;
  PUT4(0, moi_any4(b + 2u + (k0 & 16u)));
  r->s = moi_u16(b, 0);
}
CODES {
  (void)minimum, (void)digit;
  *scale = moi_f16_f32(r->s);
#define STEP(pair, p) w[pair] = moi_signed_codes(p);
  PAIRS_OF_BYTES(r->q, STEP)
#undef STEP
}

#elif defined(MOI_FORMAT_Q4_0) || defined(MOI_FORMAT_IQ4_NL) || defined(MOI_FORMAT_MXFP4_GGUF)
#ifdef MOI_FORMAT_MXFP4_GGUF
#define HEAD 1u
#else
#define HEAD 2u
#endif
LOAD {
  const uint8_t *b = m->d + (n * (K >> 5) + (k0 >> 5)) * (16u + HEAD);
  (void)N;
  PUT4(0, moi_shift4(moi_any4(b + HEAD), (k0 & 16u) >> 2, 0x0f0f0f0fu));
#ifdef MOI_FORMAT_MXFP4_GGUF
  r->s = b[0];
#else
  r->s = moi_u16(b, 0);
#endif
}
CODES {
  (void)scale, (void)minimum, (void)digit;
#if defined(MOI_FORMAT_MXFP4_GGUF) && MOI_F16
  *scale = moi_e8m0_value(r->s);
#define STEP(pair, p) w[pair] = moi_e2m1_bits(p);
#elif defined(MOI_FORMAT_MXFP4_GGUF)
  unsigned s = MOI_TWICE(moi_f32_bits(moi_e8m0_value(r->s)) >> 16);
#define STEP(pair, p) w[pair] = moi_e2m1_codes(p, s);
#elif defined(MOI_FORMAT_Q4_0)
  *scale = moi_f16_f32(r->s);
#define STEP(pair, p) w[pair] = moi_small_codes(p, 0x000f000fu, MOI_TWICE(MOI_WHOLE + 8u));
#else
  *scale = moi_f16_f32(r->s);
#define STEP(pair, p)                                                                                                  \
  {                                                                                                                    \
    unsigned both = p;                                                                                                 \
    w[pair] = moi_signed_codes(moi_bytes((unsigned)moi_iq4_nl_code(both & 15u), (unsigned)moi_iq4_nl_code(both >> 16), \
                                         0x5410u));                                                                    \
  }
#endif
  PAIRS_OF_BYTES(r->q, STEP)
#undef STEP
}

#elif defined(MOI_FORMAT_Q4_K) || defined(MOI_FORMAT_Q5_K)
/* BLOCK, CODES_AT: fetch.h's */
LOAD {
  const uint8_t *b = m->d + (n * (K >> 8) + (k0 >> 8)) * BLOCK;
  unsigned sub = (k0 >> 5) & 7u, half_of = k0 & 16u;
  moi_u4 head = moi_load4(m, b);
  unsigned at = 8u * (sub & 3u), low = head.y >> at, high = head.z >> at, mixed = head.w >> at;
  int first = sub < 4u;
  r->s = first ? low & 63u : (mixed & 15u) | ((low & 192u) >> 2);
  r->z = first ? high & 63u : ((mixed >> 4) & 15u) | ((high & 192u) >> 2);
  r->q[4] = head.x;
  (void)N;
  moi_u4 q = moi_shift4(moi_load4(m, b + CODES_AT + (sub >> 1) * 32u + half_of), 4u * (sub & 1u), 0x0f0f0f0fu);
#ifdef MOI_FORMAT_Q5_K
  q = moi_or4(q, moi_shift4(moi_load4(m, b + 16u + half_of), sub, 0x01010101u), 4u);
#endif
  PUT4(0, q);
}
CODES {
  (void)digit;
  *scale = moi_f16_f32(r->q[4]) * moi_small(r->s);
  *minimum = moi_f16_f32(r->q[4] >> 16) * moi_small(r->z);
#define STEP(pair, p) w[pair] = moi_small_codes(p, 0x001f001fu, MOI_TWICE(MOI_WHOLE));
  PAIRS_OF_BYTES(r->q, STEP)
#undef STEP
}

#elif defined(MOI_FORMAT_Q6_K)
LOAD {
  const uint8_t *b = m->d + (n * (K >> 8) + (k0 >> 8)) * 210u;
  unsigned c32 = (k0 >> 5) & 7u, half_of = c32 >> 2, quarter = c32 & 3u, half16 = k0 & 16u;
  (void)N;
  moi_u4 low =
      moi_shift4(moi_any4(b + half_of * 64u + (quarter & 1u) * 32u + half16), 4u * (quarter >> 1), 0x0f0f0f0fu);
  moi_u4 high = moi_shift4(moi_any4(b + 128u + half_of * 32u + half16), 2u * quarter, 0x03030303u);
  PUT4(0, moi_or4(low, high, 4u));
  r->s = moi_u16(b, 208u);
  r->z = b[192u + ((k0 & 255u) >> 4)];
}
CODES {
  (void)minimum, (void)digit;
  *scale = moi_f16_f32(r->s) * (float)moi_signed8(r->z);
#define STEP(pair, p) w[pair] = moi_small_codes(p, 0x003f003fu, MOI_TWICE(MOI_WHOLE + 32u));
  PAIRS_OF_BYTES(r->q, STEP)
#undef STEP
}

#elif !defined(MOI_FORMAT_F32)
#error "a format without codes: write them here, or leave it out of the row in kernels.def"
#endif

#endif
