/* moi_fetch: 32 consecutive k of one row of W as floats, for each weight format. k0 is a multiple of 32; k0 + 32 <= K, or
 * the tail is 0. A file that includes this is compiled for one format: MOI_FORMAT_<NAME> is defined, and MOI_AT is its
 * definition in decode.h.
 *
 * A format without a text of its own here goes through its definition: right, and slow. */
#ifndef MOI_CUDA_FETCH_H
#define MOI_CUDA_FETCH_H

#include "cuda/args.h"
#include "cuda/device/convert.h"

/* One expert's matrix. */
typedef struct moi_streams {
  const uint8_t *d, *s, *z;
  const void *bias;
  float global_scale;
  int there;        /* 0: an expert without an address has no rows to be multiplied: its results are 0 */
  unsigned vectors; /* 1: 16 bytes at once may be loaded of d */
} moi_streams;

/* 16 bytes from any byte on: the words they lie in, and no other */
MOI_DEVICE moi_u4 moi_any4(const uint8_t *p) {
  const unsigned *w = (const unsigned *)moi_global((const void *)((uintptr_t)p & ~(uintptr_t)3));
  unsigned shift = 8u * (unsigned)((uintptr_t)p & 3u);
  unsigned a = w[0], b = w[1], c = w[2], d = w[3], e = w[3 + (shift != 0u)];
  moi_u4 r;
  r.x = moi_funnel(a, b, shift);
  r.y = moi_funnel(b, c, shift);
  r.z = moi_funnel(c, d, shift);
  r.w = moi_funnel(d, e, shift);
  return r;
}
/* the same where p is a multiple of 16 if the streams are vectors */
MOI_DEVICE moi_u4 moi_load4(const moi_streams *m, const uint8_t *p) {
  return m->vectors ? *(const moi_u4 *)moi_global(p) : moi_any4(p);
}
MOI_DEVICE moi_u4 moi_shift4(moi_u4 q, unsigned right, unsigned mask) {
  q.x = (q.x >> right) & mask, q.y = (q.y >> right) & mask, q.z = (q.z >> right) & mask, q.w = (q.w >> right) & mask;
  return q;
}
MOI_DEVICE moi_u4 moi_or4(moi_u4 q, moi_u4 p, unsigned left) {
  q.x |= p.x << left, q.y |= p.y << left, q.z |= p.z << left, q.w |= p.w << left;
  return q;
}

#define EACH4(STEP) STEP(0, x) STEP(1, y) STEP(2, z) STEP(3, w)
/* elements 4c .. 4c+3 from the bytes of component p of a vector */
#define BYTES(f, q, at)                                                                                                \
  w[at] = f(q & 255u), w[(at) + 1] = f((q >> 8) & 255u), w[(at) + 2] = f((q >> 16) & 255u), w[(at) + 3] = f(q >> 24);
/* elements 8c .. 8c+7 from the nibbles, low first */
#define NIBBLES(f, q, at)                                                                                              \
  w[at] = f(q & 15u), w[(at) + 1] = f((q >> 4) & 15u), w[(at) + 2] = f((q >> 8) & 15u),                                \
  w[(at) + 3] = f((q >> 12) & 15u), w[(at) + 4] = f((q >> 16) & 15u), w[(at) + 5] = f((q >> 20) & 15u),                \
  w[(at) + 6] = f((q >> 24) & 15u), w[(at) + 7] = f(q >> 28);
/* GGUF's halves: low nibbles are elements at .. at+3, high ones at+16 .. at+19 */
#define HALVES(f, q, at)                                                                                               \
  w[at] = f(q & 15u), w[(at) + 1] = f((q >> 8) & 15u), w[(at) + 2] = f((q >> 16) & 15u),                               \
  w[(at) + 3] = f((q >> 24) & 15u), w[(at) + 16] = f((q >> 4) & 15u), w[(at) + 17] = f((q >> 12) & 15u),               \
  w[(at) + 18] = f((q >> 20) & 15u), w[(at) + 19] = f(q >> 28);

/* Formats whose rows do not lie along k. */
#if defined(MOI_FORMAT_BF16_KN) || defined(MOI_FORMAT_GPTQ_G32) || defined(MOI_FORMAT_GPTQ_G128) ||                        \
    defined(MOI_FORMAT_AWQ_G32) || defined(MOI_FORMAT_AWQ_G128)
#define MOI_ALONG_N 1
#else
#define MOI_ALONG_N 0
#endif

/* For the last 32 k of rows that end inside them. Formats whose groups are 32 or more k long have no such rows. */
#if defined(MOI_FORMAT_F32) || defined(MOI_FORMAT_F16) || defined(MOI_FORMAT_BF16) || defined(MOI_FORMAT_BF16_KN) ||      \
    defined(MOI_FORMAT_FP8) || defined(MOI_FORMAT_FP8_B128) || defined(MOI_FORMAT_NVFP4) || defined(MOI_FORMAT_FP4_G16)
#define MOI_RAGGED 1
#else
#define MOI_RAGGED 0
#endif

#define FETCH MOI_DEVICE void moi_fetch(const moi_streams *m, unsigned n, unsigned k0, unsigned N, unsigned K, float *w)

MOI_DEVICE void moi_fetch_slow(const moi_streams *m, unsigned n, unsigned k0, unsigned N, unsigned K, float *w) {
  const uint8_t *D = m->d, *S = m->s, *Z = m->z;
  (void)D, (void)S, (void)Z, (void)N;
  MOI_UNROLL
  for (unsigned j = 0; j < 32u; j++) {
    unsigned k = k0 + j;
    w[j] = k < K ? MOI_AT(D, S, Z, n, k, N, K) : 0.0f;
  }
}

#if defined(MOI_FORMAT_F32)
FETCH {
  const uint8_t *p = m->d + (uint64_t)(n * K + k0) * 4u;
  (void)N;
  MOI_UNROLL
  for (int j = 0; j < 8; j++) {
    moi_u4 q = moi_load4(m, p + 16 * j);
#define STEP(c, p) w[4 * j + c] = moi_bits_f32(q.p);
    EACH4(STEP)
#undef STEP
  }
}

#elif defined(MOI_FORMAT_F16) || defined(MOI_FORMAT_BF16)
#ifdef MOI_FORMAT_F16
#define LOW(q) moi_f16_f32(q)
#define HIGH(q) moi_f16_f32((q) >> 16)
#else
#define LOW(q) moi_bf16_low_f32(q)
#define HIGH(q) moi_bf16_high_f32(q)
#endif
FETCH {
  const uint8_t *p = m->d + (uint64_t)(n * K + k0) * 2u;
  (void)N;
  MOI_UNROLL
  for (int j = 0; j < 4; j++) {
    moi_u4 q = moi_load4(m, p + 16 * j);
#define STEP(c, p) w[8 * j + 2 * c] = LOW(q.p), w[8 * j + 2 * c + 1] = HIGH(q.p);
    EACH4(STEP)
#undef STEP
  }
}

#elif defined(MOI_FORMAT_FP8) || defined(MOI_FORMAT_FP8_B128)
FETCH {
  const uint8_t *p = m->d + (n * K + k0);
  (void)N;
#ifdef MOI_FORMAT_FP8
#define VALUE(b) moi_e4m3_f32(b)
#else
  float scale = moi_bits_f32(moi_u32(m->s, ((n >> 7) * ((K + 127u) >> 7) + (k0 >> 7)) * 4u));
#define VALUE(b) (moi_e4m3_f32(b) * scale)
#endif
  MOI_UNROLL
  for (int j = 0; j < 2; j++) {
    moi_u4 q = moi_load4(m, p + 16 * j);
#define STEP(c, p) BYTES(VALUE, q.p, 16 * j + 4 * c)
    EACH4(STEP)
#undef STEP
  }
#undef VALUE
}

#elif defined(MOI_FORMAT_MXFP4)
FETCH {
  moi_u4 q = moi_load4(m, m->d + ((n * K + k0) >> 1));
  float scale = moi_e8m0_value(m->s[n * (K >> 5) + (k0 >> 5)]);
  (void)N;
#define VALUE(c) (moi_e2m1_f32(c) * scale)
#define STEP(c, p) NIBBLES(VALUE, q.p, 8 * c)
  EACH4(STEP)
#undef STEP
#undef VALUE
}

#elif defined(MOI_FORMAT_NVFP4) || defined(MOI_FORMAT_FP4_G16)
#ifdef MOI_FORMAT_NVFP4
#define SCALE(b) moi_e4m3_f32(b)
#else
#define SCALE(b) moi_e8m0_value(b)
#endif
FETCH {
  moi_u4 q = moi_load4(m, m->d + ((n * K + k0) >> 1));
  unsigned group = n * (K >> 4) + (k0 >> 4);
  float first = SCALE(m->s[group]), second = SCALE(m->s[group + 1u]);
  (void)N;
#define VALUE(c) (moi_e2m1_f32(c) * first)
  NIBBLES(VALUE, q.x, 0) NIBBLES(VALUE, q.y, 8)
#undef VALUE
#define VALUE(c) (moi_e2m1_f32(c) * second)
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
FETCH {
  moi_u4 q = moi_load4(m, m->d + ((n * K + k0) >> 1));
  unsigned group = n * (K / GROUP) + k0 / GROUP;
  (void)N;
#if defined(MOI_FORMAT_INT4_G32) || defined(MOI_FORMAT_INT4_G128)
  float scale = moi_bf16_value(moi_u16(m->s, group * 2u)), zero = 8.0f;
#else
  float scale = moi_f16_f32(moi_u16(m->s, group * 2u)), zero = moi_small(m->z[group]);
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
FETCH {
  unsigned group = k0 / GROUP;
  float scale = moi_f16_f32(moi_u16(m->s, (group * N + n) * 2u));
  float zero = moi_small(moi_gptq_zero(moi_u32(m->z, (group * (N >> 3) + (n >> 3)) * 4u), n));
  (void)K;
  MOI_UNROLL
  for (int j = 0; j < 4; j++) {
    unsigned q = moi_u32(m->d, (((k0 >> 3) + (unsigned)j) * N + n) * 4u);
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
FETCH {
  unsigned group = k0 / GROUP;
  float scale = moi_f16_f32(moi_u16(m->s, (group * N + n) * 2u));
  float zero = moi_small(moi_awq_nibble(moi_u32(m->z, (group * (N >> 3) + (n >> 3)) * 4u), n));
  (void)K;
  MOI_UNROLL
  for (unsigned j = 0; j < 32u; j++)
    w[j] = (moi_small(moi_awq_nibble(moi_u32(m->d, ((k0 + j) * (N >> 3) + (n >> 3)) * 4u), n)) - zero) * scale;
}

#elif defined(MOI_FORMAT_BF16_KN)
FETCH {
  (void)K;
  MOI_UNROLL
  for (unsigned j = 0; j < 32u; j++) w[j] = moi_bf16_value(((const uint16_t *)(const void *)m->d)[(uint64_t)(k0 + j) * N + n]);
}

#elif defined(MOI_FORMAT_Q8_0)
FETCH {
  const uint8_t *b = m->d + (n * (K >> 5) + (k0 >> 5)) * 34u;
  float d = moi_f16_f32(moi_u16(b, 0));
  (void)N;
  MOI_UNROLL
  for (int j = 0; j < 2; j++) {
    moi_u4 q = moi_any4(b + 2 + 16 * j);
#define VALUE(c) ((moi_small(c) - 128.0f) * d)
#define STEP(c, p) BYTES(VALUE, (q.p ^ 0x80808080u), 16 * j + 4 * c)
    EACH4(STEP)
#undef STEP
#undef VALUE
  }
}

#elif defined(MOI_FORMAT_Q4_0) || defined(MOI_FORMAT_IQ4_NL)
FETCH {
  const uint8_t *b = m->d + (n * (K >> 5) + (k0 >> 5)) * 18u;
  float d = moi_f16_f32(moi_u16(b, 0));
  moi_u4 q = moi_any4(b + 2);
  (void)N;
#ifdef MOI_FORMAT_Q4_0
#define VALUE(c) ((moi_small(c) - 8.0f) * d)
#else
#define VALUE(c) ((float)moi_iq4_nl_code(c) * d)
#endif
#define STEP(c, p) HALVES(VALUE, q.p, 4 * c)
  EACH4(STEP)
#undef STEP
#undef VALUE
}

#elif defined(MOI_FORMAT_MXFP4_GGUF)
FETCH {
  const uint8_t *b = m->d + (n * (K >> 5) + (k0 >> 5)) * 17u;
  float d = moi_e8m0_value(b[0]);
  moi_u4 q = moi_any4(b + 1);
  (void)N;
#define VALUE(c) (moi_e2m1_f32(c) * d)
#define STEP(c, p) HALVES(VALUE, q.p, 4 * c)
  EACH4(STEP)
#undef STEP
#undef VALUE
}

#elif defined(MOI_FORMAT_Q4_K) || defined(MOI_FORMAT_Q5_K)
#ifdef MOI_FORMAT_Q4_K
#define BLOCK 144u
#define CODES_AT 16u
#else
#define BLOCK 176u
#define CODES_AT 48u
#endif
FETCH {
  const uint8_t *b = m->d + (n * (K >> 8) + (k0 >> 8)) * BLOCK;
  unsigned sub = (k0 >> 5) & 7u, shift = 4u * (sub & 1u);
  moi_u4 head = moi_load4(m, b); /* d, dmin, and MOI_K_SCALES' 12 bytes as three words */
  unsigned at = 8u * (sub & 3u), low = head.y >> at, high = head.z >> at, mixed = head.w >> at;
  int first = sub < 4u;
  unsigned scale_code = first ? low & 63u : (mixed & 15u) | ((low & 192u) >> 2);
  unsigned min_code = first ? high & 63u : ((mixed >> 4) & 15u) | ((high & 192u) >> 2);
  float scale = moi_f16_f32(head.x) * moi_small(scale_code);
  float minimum = moi_f16_f32(head.x >> 16) * moi_small(min_code);
  (void)N;
  MOI_UNROLL
  for (int j = 0; j < 2; j++) {
    moi_u4 q = moi_shift4(moi_load4(m, b + CODES_AT + (sub >> 1) * 32u + 16u * (unsigned)j), shift, 0x0f0f0f0fu);
#ifdef MOI_FORMAT_Q5_K
    q = moi_or4(q, moi_shift4(moi_load4(m, b + 16u + 16u * (unsigned)j), sub, 0x01010101u), 4u);
#endif
#define VALUE(c) (scale * moi_small(c) - minimum)
#define STEP(c, p) BYTES(VALUE, q.p, 16 * j + 4 * c)
    EACH4(STEP)
#undef STEP
#undef VALUE
  }
}

#elif defined(MOI_FORMAT_Q6_K)
FETCH {
  const uint8_t *b = m->d + (n * (K >> 8) + (k0 >> 8)) * 210u;
  unsigned c32 = (k0 >> 5) & 7u, half_of = c32 >> 2, quarter = c32 & 3u;
  float d = moi_f16_f32(moi_u16(b, 208));
  (void)N;
  MOI_UNROLL
  for (unsigned j = 0; j < 2u; j++) {
    float scale = d * (float)(int)(int8_t)b[192u + 2u * c32 + j];
    moi_u4 low = moi_shift4(moi_any4(b + half_of * 64u + (quarter & 1u) * 32u + 16u * j), 4u * (quarter >> 1), 0x0f0f0f0fu);
    moi_u4 high = moi_shift4(moi_any4(b + 128u + half_of * 32u + 16u * j), 2u * quarter, 0x03030303u);
    moi_u4 q = moi_or4(low, high, 4u);
#define VALUE(c) ((moi_small(c) - 32.0f) * scale)
#define STEP(c, p) BYTES(VALUE, q.p, 16 * j + 4 * c)
    EACH4(STEP)
#undef STEP
#undef VALUE
  }
}

#else
FETCH { moi_fetch_slow(m, n, k0, N, K, w); }
#endif

/* The same whether the row ends inside or not. */
MOI_DEVICE void moi_fetch_any(const moi_streams *m, unsigned n, unsigned k0, unsigned N, unsigned K, float *w) {
#if MOI_RAGGED
  if (k0 + 32u > K) {
    moi_fetch_slow(m, n, k0, N, K, w);
    return;
  }
#endif
  moi_fetch(m, n, k0, N, K, w);
}

#endif
