/* moi_fetch: 32 consecutive k of one row of W as floats, for each weight format. k0 is a multiple of 32; k0 + 32 <= K, or
 * the tail is 0. It is compiled for one format, MOI_FORMAT_<NAME>, with MOI_AT its definition in decode.h.
 *
 * A format without a text of its own here goes through its definition: right, and slow. */

#include "common.glsl"

/* 1: every stream of every expert begins at a word, and K is a multiple of 4 (that is known when a run is recorded) */
layout(constant_id = 0) const uint ALIGNED = 0u;

/* 16 bytes from byte `i` on; of a stream whose accesses are words, i is a multiple of 4 */
uvec4 moi_block4(Stream s, uint i) {
  uint at = i + s.at, word = at >> 2, shift = 8u * (at & 3u);
  uint a = WORD(s.words, word), b = WORD(s.words, word + 1u), c = WORD(s.words, word + 2u),
       d = WORD(s.words, word + 3u), e = WORD(s.words, word + 3u + min(shift, 1u)); /* no word that has none of them */
  uint left = 31u - shift;
  return uvec4((a >> shift) | ((b << 1) << left), (b >> shift) | ((c << 1) << left), (c >> shift) | ((d << 1) << left),
               (d >> shift) | ((e << 1) << left));
}
/* the same where the address is a multiple of 4 if the stream's and K are */
uvec4 moi_words4(Stream s, uint i) {
  if (ALIGNED == 0u) return moi_block4(s, i);
  uint word = i >> 2;
  return uvec4(WORD(s.words, word), WORD(s.words, word + 1u), WORD(s.words, word + 2u), WORD(s.words, word + 3u));
}

#define EACH4(STEP) STEP(0, x) STEP(1, y) STEP(2, z) STEP(3, w)
/* elements 4c .. 4c+3 from the bytes of component p of a vector */
#define BYTES(f, q, at)                                                                                                \
  w[at] = f(q & 255u), w[at + 1] = f((q >> 8) & 255u), w[at + 2] = f((q >> 16) & 255u), w[at + 3] = f(q >> 24);
/* elements 8c .. 8c+7 from the nibbles, low first */
#define NIBBLES(f, q, at)                                                                                              \
  w[at] = f(q & 15u), w[at + 1] = f((q >> 4) & 15u), w[at + 2] = f((q >> 8) & 15u), w[at + 3] = f((q >> 12) & 15u),    \
  w[at + 4] = f((q >> 16) & 15u), w[at + 5] = f((q >> 20) & 15u), w[at + 6] = f((q >> 24) & 15u), w[at + 7] = f(q >> 28);
/* GGUF's halves: low nibbles are elements at .. at+3, high ones at+16 .. at+19 */
#define HALVES(f, q, at)                                                                                               \
  w[at] = f(q & 15u), w[at + 1] = f((q >> 8) & 15u), w[at + 2] = f((q >> 16) & 15u), w[at + 3] = f((q >> 24) & 15u),   \
  w[at + 16] = f((q >> 4) & 15u), w[at + 17] = f((q >> 12) & 15u), w[at + 18] = f((q >> 20) & 15u), w[at + 19] = f(q >> 28);

/* An integer code through the float whose mantissa holds it: a conversion for an addition. */
float moi_small(uint q) { return uintBitsToFloat(0x4b000000u | q) - 8388608.0; }

/* Blocks of 256 that begin at byte b. Q4_K and Q5_K: what belongs to the 32 k of sub-block `sub`. */
void moi_k_scales(Stream D, uint b, uint sub, out float scale, out float minimum) {
  uvec4 head = moi_words4(D, b); /* d, dmin, and MOI_K_SCALES' 12 bytes as three words */
  uint at = 8u * (sub & 3u), low = head.y >> at, high = head.z >> at, mixed = head.w >> at;
  bool first = sub < 4u;
  uint scale_code = first ? low & 63u : (mixed & 15u) | ((low & 192u) >> 2);
  uint min_code = first ? high & 63u : ((mixed >> 4) & 15u) | ((high & 192u) >> 2);
  scale = moi_f16_value(head.x & 65535u) * float(scale_code);
  minimum = moi_f16_value(head.x >> 16) * float(min_code);
}
/* The codes of half j of them, a byte each. */
uvec4 moi_q4_k_codes(Stream D, uint b, uint sub, uint j) {
  return (moi_words4(D, b + 16u + (sub >> 1) * 32u + 16u * j) >> (4u * (sub & 1u))) & uvec4(0x0f0f0f0fu);
}
uvec4 moi_q5_k_codes(Stream D, uint b, uint sub, uint j) {
  return moi_q4_k_codes(D, b + 32u, sub, j) | (((moi_words4(D, b + 16u + 16u * j) >> sub) & uvec4(0x01010101u)) << 4);
}
/* Q6_K: the codes of half j of the block's 32 k number c32. */
uvec4 moi_q6_k_codes(Stream D, uint b, uint c32, uint j) {
  uint half_of = c32 >> 2, quarter = c32 & 3u;
  uvec4 low = moi_block4(D, b + half_of * 64u + (quarter & 1u) * 32u + 16u * j) >> (4u * (quarter >> 1));
  uvec4 high = moi_block4(D, b + 128u + half_of * 32u + 16u * j) >> (2u * quarter);
  return (low & uvec4(0x0f0f0f0fu)) | ((high & uvec4(0x03030303u)) << 4);
}

#ifdef MOI_AT

/* Bytes of the first k elements of a row of W, where rows lie one behind another; k is a multiple of the format's block. */
#if defined(MOI_FORMAT_F32)
#define MOI_ROW_BYTES(k) ((k) * 4u)
#elif defined(MOI_FORMAT_F16) || defined(MOI_FORMAT_BF16)
#define MOI_ROW_BYTES(k) ((k) * 2u)
#elif defined(MOI_FORMAT_FP8) || defined(MOI_FORMAT_FP8_B128)
#define MOI_ROW_BYTES(k) (k)
#elif defined(MOI_FORMAT_Q8_0)
#define MOI_ROW_BYTES(k) (((k) >> 5) * 34u)
#elif defined(MOI_FORMAT_Q4_0) || defined(MOI_FORMAT_IQ4_NL)
#define MOI_ROW_BYTES(k) (((k) >> 5) * 18u)
#elif defined(MOI_FORMAT_MXFP4_GGUF)
#define MOI_ROW_BYTES(k) (((k) >> 5) * 17u)
#elif defined(MOI_FORMAT_Q4_K)
#define MOI_ROW_BYTES(k) (((k) >> 8) * 144u)
#elif defined(MOI_FORMAT_Q5_K)
#define MOI_ROW_BYTES(k) (((k) >> 8) * 176u)
#elif defined(MOI_FORMAT_Q6_K)
#define MOI_ROW_BYTES(k) (((k) >> 8) * 210u)
#elif !defined(MOI_FORMAT_BF16_KN) && !defined(MOI_FORMAT_GPTQ_G32) && !defined(MOI_FORMAT_GPTQ_G128) &&               \
    !defined(MOI_FORMAT_AWQ_G32) && !defined(MOI_FORMAT_AWQ_G128)
#define MOI_ROW_BYTES(k) ((k) >> 1)
#endif

/* Reads a word of each 64 bytes of row n from k0 on, before k1. The result is their or, which keeps the reads. */
uint moi_touch(Stream D, uint n, uint k0, uint k1, uint K) {
  uint found = 0u;
#ifdef MOI_ROW_BYTES
  uint row = n * MOI_ROW_BYTES(K) + D.at, at = row + MOI_ROW_BYTES(k0);
  do {
    found |= WORD(D.words, at >> 2);
    at += 64u;
  } while (at < row + MOI_ROW_BYTES(k1));
#endif
  return found;
}

/* For the last 32 k of rows that end inside them. Formats whose groups are 32 or more k long have no such rows. */
#if defined(MOI_FORMAT_F32) || defined(MOI_FORMAT_F16) || defined(MOI_FORMAT_BF16) || defined(MOI_FORMAT_BF16_KN) ||   \
    defined(MOI_FORMAT_FP8) || defined(MOI_FORMAT_FP8_B128) || defined(MOI_FORMAT_NVFP4) || defined(MOI_FORMAT_FP4_G16)
#define MOI_RAGGED 1
#else
#define MOI_RAGGED 0
#endif

void moi_fetch_slow(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  for (uint j = 0u; j < 32u; j++) {
    uint k = k0 + j;
    w[j] = k < K ? MOI_AT(D, S, Z, n, k, N, K) : 0.0;
  }
}

#if defined(MOI_FORMAT_F32)
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint at = n * K + k0;
  [[unroll]] for (int j = 0; j < 32; j++) w[j] = FLOAT(D.words, at + uint(j));
}

#elif defined(MOI_FORMAT_F16) || defined(MOI_FORMAT_BF16)
#ifdef MOI_FORMAT_F16
#define LOW(q) moi_f16_value((q) & 65535u)
#define HIGH(q) moi_f16_value((q) >> 16)
#else
#define LOW(q) uintBitsToFloat((q) << 16)
#define HIGH(q) uintBitsToFloat((q) & 0xffff0000u)
#endif
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint at = (n * K + k0) * 2u;
  [[unroll]] for (int j = 0; j < 4; j++) {
    uvec4 q = moi_words4(D, at + 16u * uint(j)); /* rows of an odd length begin inside words */
#define STEP(c, p) w[8 * j + 2 * c] = LOW(q.p), w[8 * j + 2 * c + 1] = HIGH(q.p);
    EACH4(STEP)
#undef STEP
  }
}

#elif defined(MOI_FORMAT_FP8) || defined(MOI_FORMAT_FP8_B128)
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint at = n * K + k0;
#ifdef MOI_FORMAT_FP8
  const float scale = 1.0;
#else
  float scale = uintBitsToFloat(moi_u32(S, ((n >> 7) * ((K + 127u) >> 7) + (k0 >> 7)) * 4u));
#endif
  [[unroll]] for (int j = 0; j < 2; j++) {
    uvec4 q = moi_words4(D, at + 16u * uint(j));
#define VALUE(b) (moi_e4m3_value(b) * scale)
#define STEP(c, p) BYTES(VALUE, q.p, 16 * j + 4 * c)
    EACH4(STEP)
#undef STEP
#undef VALUE
  }
}

#elif defined(MOI_FORMAT_MXFP4)
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uvec4 q = moi_words4(D, (n * K + k0) >> 1);
  float scale = moi_e8m0_value(moi_u8(S, n * (K >> 5) + (k0 >> 5)));
#define VALUE(c) (moi_e2m1_value(c) * scale)
#define STEP(c, p) NIBBLES(VALUE, q.p, 8 * c)
  EACH4(STEP)
#undef STEP
#undef VALUE
}

#elif defined(MOI_FORMAT_NVFP4) || defined(MOI_FORMAT_FP4_G16)
#ifdef MOI_FORMAT_NVFP4
#define SCALE(b) moi_e4m3_value(b)
#else
#define SCALE(b) moi_e8m0_value(b)
#endif
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uvec4 q = moi_words4(D, (n * K + k0) >> 1);
  uint group = n * (K >> 4) + (k0 >> 4);
  float first = SCALE(moi_u8(S, group)), second = SCALE(moi_u8(S, group + 1u));
#define VALUE(c) (moi_e2m1_value(c) * first)
  NIBBLES(VALUE, q.x, 0) NIBBLES(VALUE, q.y, 8)
#undef VALUE
#define VALUE(c) (moi_e2m1_value(c) * second)
  NIBBLES(VALUE, q.z, 16) NIBBLES(VALUE, q.w, 24)
#undef VALUE
}

#elif defined(MOI_FORMAT_INT4_G32) || defined(MOI_FORMAT_INT4_G128) || defined(MOI_FORMAT_INT4Z_G32) ||                \
    defined(MOI_FORMAT_INT4Z_G128)
#if defined(MOI_FORMAT_INT4_G32) || defined(MOI_FORMAT_INT4Z_G32)
#define GROUP 32u
#else
#define GROUP 128u
#endif
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uvec4 q = moi_words4(D, (n * K + k0) >> 1);
  uint group = n * (K / GROUP) + k0 / GROUP;
#if defined(MOI_FORMAT_INT4_G32) || defined(MOI_FORMAT_INT4_G128)
  float scale = moi_bf16_value(moi_u16(S, group * 2u)), zero = 8.0;
#else
  float scale = moi_f16_value(moi_u16(S, group * 2u)), zero = float(moi_u8(Z, group));
#endif
#define VALUE(c) ((moi_small(c) - zero) * scale)
#define STEP(c, p) NIBBLES(VALUE, q.p, 8 * c)
  EACH4(STEP)
#undef STEP
#undef VALUE
}

#elif defined(MOI_FORMAT_GPTQ_G32) || defined(MOI_FORMAT_GPTQ_G128)
#ifdef MOI_FORMAT_GPTQ_G32
#define GROUP 32u
#else
#define GROUP 128u
#endif
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint group = k0 / GROUP;
  float scale = moi_f16_value(moi_u16(S, (group * N + n) * 2u));
  float zero = float(moi_gptq_zero(moi_u32(Z, (group * (N >> 3) + (n >> 3)) * 4u), n));
  [[unroll]] for (int j = 0; j < 4; j++) {
    uint q = moi_u32(D, (((k0 >> 3) + uint(j)) * N + n) * 4u);
#define VALUE(c) ((moi_small(c) - zero) * scale)
    NIBBLES(VALUE, q, 8 * j)
#undef VALUE
  }
}

#elif defined(MOI_FORMAT_AWQ_G32) || defined(MOI_FORMAT_AWQ_G128)
#ifdef MOI_FORMAT_AWQ_G32
#define GROUP 32u
#else
#define GROUP 128u
#endif
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint group = k0 / GROUP;
  float scale = moi_f16_value(moi_u16(S, (group * N + n) * 2u));
  float zero = float(moi_awq_nibble(moi_u32(Z, (group * (N >> 3) + (n >> 3)) * 4u), n));
  [[unroll]] for (int j = 0; j < 32; j++)
    w[j] = (moi_small(moi_awq_nibble(moi_u32(D, ((k0 + uint(j)) * (N >> 3) + (n >> 3)) * 4u), n)) - zero) * scale;
}

#elif defined(MOI_FORMAT_BF16_KN)
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  [[unroll]] for (int j = 0; j < 32; j++) w[j] = moi_bf16_value(moi_u16(D, ((k0 + uint(j)) * N + n) * 2u));
}

#elif defined(MOI_FORMAT_Q8_0)
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint b = (n * (K >> 5) + (k0 >> 5)) * 34u;
  float d = moi_f16_value(moi_u16(D, b));
  [[unroll]] for (int j = 0; j < 2; j++) {
    uvec4 q = moi_block4(D, b + 2u + 16u * uint(j)) ^ uvec4(0x80808080u);
#define VALUE(c) ((moi_small(c) - 128.0) * d)
#define STEP(c, p) BYTES(VALUE, q.p, 16 * j + 4 * c)
    EACH4(STEP)
#undef STEP
#undef VALUE
  }
}

#elif defined(MOI_FORMAT_Q4_0) || defined(MOI_FORMAT_IQ4_NL)
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint b = (n * (K >> 5) + (k0 >> 5)) * 18u;
  float d = moi_f16_value(moi_u16(D, b));
  uvec4 q = moi_block4(D, b + 2u);
#ifdef MOI_FORMAT_Q4_0
#define VALUE(c) ((moi_small(c) - 8.0) * d)
#else
#define VALUE(c) (float(moi_iq4_nl_code(c)) * d)
#endif
#define STEP(c, p) HALVES(VALUE, q.p, 4 * c)
  EACH4(STEP)
#undef STEP
#undef VALUE
}

#elif defined(MOI_FORMAT_MXFP4_GGUF)
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint b = (n * (K >> 5) + (k0 >> 5)) * 17u;
  float d = moi_e8m0_value(moi_u8(D, b));
  uvec4 q = moi_block4(D, b + 1u);
#define VALUE(c) (moi_e2m1_value(c) * d)
#define STEP(c, p) HALVES(VALUE, q.p, 4 * c)
  EACH4(STEP)
#undef STEP
#undef VALUE
}

#elif defined(MOI_FORMAT_Q4_K) || defined(MOI_FORMAT_Q5_K)
#ifdef MOI_FORMAT_Q4_K
#define BLOCK 144u
#define CODES moi_q4_k_codes
#else
#define BLOCK 176u
#define CODES moi_q5_k_codes
#endif
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint b = (n * (K >> 8) + (k0 >> 8)) * BLOCK, sub = (k0 >> 5) & 7u;
  float scale, minimum;
  moi_k_scales(D, b, sub, scale, minimum);
  [[unroll]] for (int j = 0; j < 2; j++) {
    uvec4 q = CODES(D, b, sub, uint(j));
#define VALUE(c) (scale * moi_small(c) - minimum)
#define STEP(c, p) BYTES(VALUE, q.p, 16 * j + 4 * c)
    EACH4(STEP)
#undef STEP
#undef VALUE
  }
}

#elif defined(MOI_FORMAT_Q6_K)
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  uint b = (n * (K >> 8) + (k0 >> 8)) * 210u, c32 = (k0 >> 5) & 7u;
  float d = moi_f16_value(moi_u16(D, b + 208u));
  [[unroll]] for (int j = 0; j < 2; j++) {
    float scale = d * float(moi_signed8(moi_u8(D, b + 192u + 2u * c32 + uint(j))));
    uvec4 q = moi_q6_k_codes(D, b, c32, uint(j));
#define VALUE(c) ((moi_small(c) - 32.0) * scale)
#define STEP(c, p) BYTES(VALUE, q.p, 16 * j + 4 * c)
    EACH4(STEP)
#undef STEP
#undef VALUE
  }
}

#else
void moi_fetch(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
  moi_fetch_slow(D, S, Z, n, k0, N, K, w);
}
#endif

/* The same whether the row ends inside or not. */
void moi_fetch_any(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K, out float w[32]) {
#if MOI_RAGGED
  if (k0 + 32u > K) {
    moi_fetch_slow(D, S, Z, n, k0, N, K, w);
    return;
  }
#endif
  moi_fetch(D, S, Z, n, k0, N, K, w);
}

#endif
