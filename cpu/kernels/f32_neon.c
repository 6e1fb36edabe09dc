/* Weights decoded to fp32, fp32 FMA: every format, Advanced SIMD of AArch64. */
#if defined(__aarch64__)

#include <arm_neon.h>

#include "core/shared/decode.h"

typedef float32x4_t vec;
typedef float32x4_t operand;
typedef float elem;
#define VEC 4
#define STEP 4
#define MR 6
#define TILE_OUTER

static inline vec vec_zero(void) { return vdupq_n_f32(0); }
static inline vec vec_load(const float *p) { return vld1q_f32(p); }
static inline void vec_store(float *p, vec v) { vst1q_f32(p, v); }
static inline vec vec_splat(float f) { return vdupq_n_f32(f); }
static inline vec vec_add(vec a, vec b) { return vaddq_f32(a, b); }
static inline vec vec_mul(vec a, vec b) { return vmulq_f32(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
static inline operand operand_load(const elem *p) { return vld1q_f32(p); }
static inline vec vec_dot(operand w, operand x, vec sum) { return vfmaq_f32(sum, w, x); }
static inline vec vec_sum4(vec a, vec b, vec c, vec d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }

#include "cpu/kernels/tile.h"

/* ----------------------------------------------------------------------------------------------------------- pieces */

/* The first n <= 16 bytes at p, then zeros. */
static inline uint8x16_t load_part(const uint8_t *p, uint32_t n) {
  if (n >= 16) return vld1q_u8(p);
  uint8_t part[16] = {0};
  memcpy(part, p, n);
  return vld1q_u8(part);
}

static inline float f16_value(const uint8_t *p) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16((uint16_t)moi_load_u16(p)))), 0);
}
/* 8 numbers of 16 bits, and where to store them */
static inline void put8_f16(uint16x8_t h, float *dst) {
  const float16x8_t v = vreinterpretq_f16_u16(h);
  vst1q_f32(dst, vcvt_f32_f16(vget_low_f16(v)));
  vst1q_f32(dst + 4, vcvt_high_f32_f16(v));
}
static inline void put8_bf16(uint16x8_t h, float *dst) {
  vst1q_f32(dst, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)));
  vst1q_f32(dst + 4, vreinterpretq_f32_u32(vshll_high_n_u16(h, 16)));
}

/* 16 signed bytes as 4 x 4 floats */
typedef struct floats16 {
  float32x4_t v[4];
} floats16;
static inline floats16 bytes_floats(int8x16_t b) {
  const int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_high_s8(b);
  return (floats16){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                     vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
/* 16 signed bytes times a scale */
static inline void put16(int8x16_t b, float scale, float *dst) {
  const floats16 f = bytes_floats(b);
  for (int i = 0; i < 4; i++) vst1q_f32(dst + 4 * i, vmulq_n_f32(f.v[i], scale));
}
/* 16 bytes below 128 times a scale, less a minimum */
static inline void put16_less(uint8x16_t b, float scale, float minimum, float *dst) {
  const floats16 f = bytes_floats(vreinterpretq_s8_u8(b));
  const float32x4_t s = vdupq_n_f32(scale), m = vdupq_n_f32(-minimum);
  for (int i = 0; i < 4; i++) vst1q_f32(dst + 4 * i, vfmaq_f32(m, f.v[i], s));
}

/* What the 16 nibbles mean, as bytes; E2M1 doubled. */
static const int8_t offset8_codes[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
static const int8_t e2m1_codes[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static const int8_t iq4_nl_codes[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static inline uint8x16_t nibble_low(uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }
static inline uint8x16_t nibble_high(uint8x16_t v) { return vshrq_n_u8(v, 4); }

/* 16 bytes: low nibbles to dst[0..16), high to dst[16..32) */
static inline void nibbles_half(const uint8_t *p, int8x16_t codes, float scale, float *dst) {
  const uint8x16_t v = vld1q_u8(p);
  put16(vqtbl1q_s8(codes, nibble_low(v)), scale, dst);
  put16(vqtbl1q_s8(codes, nibble_high(v)), scale, dst + 16);
}
/* the 16 nibbles of 8 bytes, in the order of k */
static inline uint8x16_t nibbles(const uint8_t *p) {
  const uint8x8_t v = vld1_u8(p), low = vand_u8(v, vdup_n_u8(15)), high = vshr_n_u8(v, 4);
  return vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
}
static inline void nibbles_even_odd(const uint8_t *p, int8x16_t codes, float scale, float *dst) {
  put16(vqtbl1q_s8(codes, nibbles(p)), scale, dst);
}

/* 16 codes of E4M3 as 2^-8 of their values: exponent and mantissa in an f16's place, where subnormals cost nothing. The
 * two NaN codes come out as +-1.875: any_nan says so. */
static inline floats16 e4m3_floats(uint8x16_t b) {
  const int8x16_t v = vreinterpretq_s8_u8(b);
  const uint16x8_t mask = vdupq_n_u16(0xbfff);
  const float16x8_t low =
      vreinterpretq_f16_u16(vandq_u16(vreinterpretq_u16_s16(vshll_n_s8(vget_low_s8(v), 7)), mask));
  const float16x8_t high = vreinterpretq_f16_u16(vandq_u16(vreinterpretq_u16_s16(vshll_high_n_s8(v, 7)), mask));
  return (floats16){{vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low), vcvt_f32_f16(vget_low_f16(high)),
                     vcvt_high_f32_f16(high)}};
}
static inline int any_nan(uint8x16_t b) { return vmaxvq_u8(vorrq_u8(b, vdupq_n_u8(128))) == 255; }

/* `count` scales to floats, up to the next multiple of 16 of anything */
enum { MOST_SCALES = K_BLOCK / 16 };
static inline void scales_e4m3(const uint8_t *p, uint32_t count, float by, float *s) {
  for (uint32_t i = 0; i < count; i += 16) {
    const uint8x16_t b = load_part(p + i, count - i);
    const floats16 f = e4m3_floats(b);
    for (int j = 0; j < 4; j++) vst1q_f32(s + i + 4 * j, vmulq_n_f32(f.v[j], 256 * by));
    if (any_nan(b))
      for (uint32_t j = i; j < count && j < i + 16; j++) s[j] = by * moi_e4m3_value(p[j]);
  }
}
/* half the value, for the doubled codes: 2^-128 is a subnormal that fp32 has */
static inline void scales_half_e8m0(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i++) s[i] = 0.5f * moi_e8m0_value(p[i]);
}
static inline void scales_bf16(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i++) s[i] = moi_bf16_value(moi_load_u16(p + 2 * i));
}
static inline void scales_f16(const uint8_t *p, uint32_t count, float *s) {
  for (uint32_t i = 0; i < count; i++) s[i] = f16_value(p + 2 * i);
}

/* How many rows of k ahead K-ordered data is fetched: each row is only a few cache lines long. */
enum { AHEAD_BF16_KN = 16, AHEAD_GPTQ = 2, AHEAD_AWQ = 16 };

/* Byte of block k0 of row n */
static inline const uint8_t *block_at(const uint8_t *stream, uint32_t n, uint32_t k, uint32_t k0, uint32_t elements,
                                      uint32_t bytes) {
  return stream + ((size_t)n * (k / elements) + k0 / elements) * bytes;
}

/* ----------------------------------------------------------------------------------------------- decoders: row of k */

static const float *decode_f32(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const float *row = (const float *)(const void *)w->data + (size_t)n * w->k + k0;
  const uint32_t count = k1 - k0;
  if (count % STEP == 0) return row;
  memcpy(dst, row, count * 4);
  memset(dst + count, 0, (STEP - count % STEP) * 4);
  return dst;
}

static const float *decode_f16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + ((size_t)n * w->k + k0) * 2;
  const uint32_t count = k1 - k0, whole = count & ~7u;
  for (uint32_t i = 0; i < whole; i += 8) put8_f16(vreinterpretq_u16_u8(vld1q_u8(row + i * 2)), dst + i);
  if (whole < count) put8_f16(vreinterpretq_u16_u8(load_part(row + whole * 2, (count - whole) * 2)), dst + whole);
  return dst;
}

static const float *decode_bf16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + ((size_t)n * w->k + k0) * 2;
  const uint32_t count = k1 - k0, whole = count & ~7u;
  for (uint32_t i = 0; i < whole; i += 8) put8_bf16(vreinterpretq_u16_u8(vld1q_u8(row + i * 2)), dst + i);
  if (whole < count) put8_bf16(vreinterpretq_u16_u8(load_part(row + whole * 2, (count - whole) * 2)), dst + whole);
  return dst;
}

/* `count` codes with one scale, zeros behind them up to a multiple of 16 */
static inline void decode_e4m3(const uint8_t *p, uint32_t count, float scale, float *dst) {
  /* 256 * scale must be finite; what is not, NaN with it, goes the slow way */
  const int plain = scale < 0x1p119f && scale > -0x1p119f;
  const float unit = plain ? 256 * scale : 0;
  for (uint32_t i = 0; i < count; i += 16) {
    const uint8x16_t b = load_part(p + i, count - i);
    const floats16 f = e4m3_floats(b);
    for (int j = 0; j < 4; j++) vst1q_f32(dst + i + 4 * j, vmulq_n_f32(f.v[j], unit));
    if (!plain || any_nan(b))
      for (uint32_t j = i; j < count && j < i + 16; j++) dst[j] = moi_e4m3_value(p[j]) * scale;
  }
}

static const float *decode_fp8(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  decode_e4m3(w->data + (size_t)n * w->k + k0, k1 - k0, 1, dst);
  return dst;
}

static const float *decode_fp8_b128(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + (size_t)n * w->k;
  const uint8_t *scales = w->scales + (size_t)(n >> 7) * ((w->k + 127) >> 7) * 4;
  for (uint32_t k = k0; k < k1; k += 128)
    decode_e4m3(row + k, least(128, k1 - k), moi_bits_f32(moi_load_u32(scales + (k >> 7) * 4)), dst + (k - k0));
  return dst;
}

static const float *decode_mxfp4(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, 32, 16);
  const int8x16_t codes = vld1q_s8(e2m1_codes);
  float s[MOST_SCALES];
  const uint32_t blocks = (k1 - k0) / 32;
  scales_half_e8m0(block_at(w->scales, n, w->k, k0, 32, 1), blocks, s);
  for (uint32_t i = 0; i < blocks; i++, p += 16) {
    nibbles_even_odd(p, codes, s[i], dst + i * 32);
    nibbles_even_odd(p + 8, codes, s[i], dst + i * 32 + 16);
  }
  return dst;
}

static inline const float *decode_fp4_16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst,
                                         const float *half_scales) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, 16, 8);
  const int8x16_t codes = vld1q_s8(e2m1_codes);
  for (uint32_t i = 0; i < (k1 - k0) / 16; i++) nibbles_even_odd(p + i * 8, codes, half_scales[i], dst + i * 16);
  return dst;
}
static const float *decode_nvfp4(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  float s[MOST_SCALES];
  scales_e4m3(block_at(w->scales, n, w->k, k0, 16, 1), (k1 - k0) / 16, 0.5f, s);
  return decode_fp4_16(w, n, k0, k1, dst, s);
}
static const float *decode_fp4_g16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  float s[MOST_SCALES];
  scales_half_e8m0(block_at(w->scales, n, w->k, k0, 16, 1), (k1 - k0) / 16, s);
  return decode_fp4_16(w, n, k0, k1, dst, s);
}

static inline const float *decode_int4(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst,
                                       const uint32_t group) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, group, group / 2);
  const int8x16_t codes = vld1q_s8(offset8_codes);
  float s[MOST_SCALES];
  const uint32_t groups = (k1 - k0) / group;
  scales_bf16(block_at(w->scales, n, w->k, k0, group, 2), groups, s);
  for (uint32_t i = 0; i < groups; i++)
    for (uint32_t j = 0; j < group; j += 16, p += 8, dst += 16) nibbles_even_odd(p, codes, s[i], dst);
  return dst - (k1 - k0);
}
static const float *decode_int4_g32(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  return decode_int4(w, n, k0, k1, dst, 32);
}
static const float *decode_int4_g128(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  return decode_int4(w, n, k0, k1, dst, 128);
}

static inline const float *decode_int4z(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst,
                                        const uint32_t group) {
  const uint8_t *p = block_at(w->data, n, w->k, k0, group, group / 2);
  const uint8_t *zeros = block_at(w->zeros, n, w->k, k0, group, 1);
  float s[MOST_SCALES];
  const uint32_t groups = (k1 - k0) / group;
  scales_f16(block_at(w->scales, n, w->k, k0, group, 2), groups, s);
  for (uint32_t i = 0; i < groups; i++) {
    const float32x4_t zero = vdupq_n_f32(zeros[i]);
    for (uint32_t j = 0; j < group; j += 16, p += 8, dst += 16) {
      const floats16 q = bytes_floats(vreinterpretq_s8_u8(nibbles(p)));
      for (int v = 0; v < 4; v++) vst1q_f32(dst + 4 * v, vmulq_n_f32(vsubq_f32(q.v[v], zero), s[i]));
    }
  }
  return dst - (k1 - k0);
}
static const float *decode_int4z_g32(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  return decode_int4z(w, n, k0, k1, dst, 32);
}
static const float *decode_int4z_g128(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  return decode_int4z(w, n, k0, k1, dst, 128);
}

static const float *decode_q8_0(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 34);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 34) {
    const float d = f16_value(b);
    put16(vreinterpretq_s8_u8(vld1q_u8(b + 2)), d, dst + i);
    put16(vreinterpretq_s8_u8(vld1q_u8(b + 18)), d, dst + i + 16);
  }
  return dst;
}

static const float *decode_q4_0(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 18);
  const int8x16_t codes = vld1q_s8(offset8_codes);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 18) nibbles_half(b + 2, codes, f16_value(b), dst + i);
  return dst;
}

static const float *decode_iq4_nl(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 18);
  const int8x16_t codes = vld1q_s8(iq4_nl_codes);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 18) nibbles_half(b + 2, codes, f16_value(b), dst + i);
  return dst;
}

static const float *decode_mxfp4_gguf(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 32, 17);
  const int8x16_t codes = vld1q_s8(e2m1_codes);
  for (uint32_t i = 0; i < k1 - k0; i += 32, b += 17) nibbles_half(b + 1, codes, 0.5f * moi_e8m0_value(*b), dst + i);
  return dst;
}

/* d * scale and dmin * minimum of a Q4_K or Q5_K block's 8 sub-blocks. Products with the codes are exact in fp32, so
 * one fused operation gives decode.h's value. */
static inline void put8_codes(uint64_t codes, float by, float *dst) {
  const uint16x8_t v = vmovl_u8(vcreate_u8(codes));
  vst1q_f32(dst, vmulq_n_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(v))), by));
  vst1q_f32(dst + 4, vmulq_n_f32(vcvtq_f32_u32(vmovl_high_u16(v)), by));
}
static inline void k_scales(const uint8_t *b, float *scales, float *minima) {
  const uint32_t u0 = moi_load_u32(b + 4), u1 = moi_load_u32(b + 8), u2 = moi_load_u32(b + 12);
  const uint64_t s = (u0 & 0x3f3f3f3fu) | (uint64_t)((u2 & 0x0f0f0f0fu) | ((u0 >> 2) & 0x30303030u)) << 32;
  const uint64_t m = (u1 & 0x3f3f3f3fu) | (uint64_t)(((u2 >> 4) & 0x0f0f0f0fu) | ((u1 >> 2) & 0x30303030u)) << 32;
  put8_codes(s, f16_value(b), scales);
  put8_codes(m, f16_value(b + 2), minima);
}

static const float *decode_q4_k(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 256, 144);
  float *out = dst;
  for (uint32_t i = 0; i < k1 - k0; i += 256, b += 144) {
    float s[8], m[8];
    k_scales(b, s, m);
    for (int j = 0; j < 8; j += 2, out += 64) {
      const uint8x16_t v = vld1q_u8(b + 16 + 16 * j), u = vld1q_u8(b + 32 + 16 * j);
      put16_less(nibble_low(v), s[j], m[j], out);
      put16_less(nibble_low(u), s[j], m[j], out + 16);
      put16_less(nibble_high(v), s[j + 1], m[j + 1], out + 32);
      put16_less(nibble_high(u), s[j + 1], m[j + 1], out + 48);
    }
  }
  return dst;
}

/* Bytes shifted left; right where `by` is negative. */
static inline uint8x16_t shift(uint8x16_t v, int by) { return vshlq_u8(v, vdupq_n_s8((int8_t)by)); }

static const float *decode_q5_k(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 256, 176);
  float *out = dst;
  for (uint32_t i = 0; i < k1 - k0; i += 256, b += 176) {
    float s[8], m[8];
    k_scales(b, s, m);
    for (int j = 0; j < 8; j++, out += 32)
      for (int half = 0; half < 32; half += 16) {
        const uint8x16_t v = shift(vld1q_u8(b + 48 + 32 * (j >> 1) + half), -4 * (j & 1));
        const uint8x16_t top = vandq_u8(shift(vld1q_u8(b + 16 + half), 4 - j), vdupq_n_u8(16));
        put16_less(vorrq_u8(nibble_low(v), top), s[j], m[j], out + half);
      }
  }
  return dst;
}

static const float *decode_q6_k(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *b = block_at(w->data, n, w->k, k0, 256, 210);
  const uint8x16_t pair = vdupq_n_u8(48), bias = vdupq_n_u8(32);
  float *out = dst;
  for (uint32_t i = 0; i < k1 - k0; i += 256, b += 210) {
    float s[16];
    put16(vreinterpretq_s8_u8(vld1q_u8(b + 192)), f16_value(b + 208), s);
    for (int c = 0; c < 8; c++, out += 32) /* 32 elements: bits 2c of `high`, nibble c & 2 of row c & 1 of 32 bytes */
      for (int half = 0; half < 32; half += 16) {
        const uint8x16_t v = shift(vld1q_u8(b + 64 * (c >> 2) + 32 * (c & 1) + half), -2 * (c & 2));
        const uint8x16_t top = vandq_u8(shift(vld1q_u8(b + 128 + 32 * (c >> 2) + half), 4 - 2 * (c & 3)), pair);
        const uint8x16_t q = vsubq_u8(vorrq_u8(nibble_low(v), top), bias);
        put16(vreinterpretq_s8_u8(q), s[2 * c + half / 16], out + half);
      }
  }
  return dst;
}

/* ------------------------------------------------------------------------------------------- decoders: columns of n */

static void decode_bf16_kn(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  for (uint32_t k = k0; k < k1; k++, dst += PAIR) {
    const uint8_t *row = w->data + ((size_t)k * w->n + n) * 2;
    if (k + AHEAD_BF16_KN < w->k) __builtin_prefetch(row + (size_t)AHEAD_BF16_KN * w->n * 2, 0, 3);
    put8_bf16(vreinterpretq_u16_u8(load_part(row, width * 2)), dst);
  }
}

/* 8 columns of AWQ and GPTQ: their scales and zeros * scales, negative. q * scale and zero * scale are exact in fp32, so
 * that their fused difference is decode.h's value; but for infinite scales. */
typedef struct group8 {
  float32x4_t scale[2], less[2];
} group8;

static inline uint32x4_t nibbles_at(uint32_t word, int32x4_t shifts) {
  return vandq_u32(vshlq_u32(vdupq_n_u32(word), shifts), vdupq_n_u32(15));
}

/* Returns whether a scale is infinite. */
static inline int group_of(const moi_matrix *w, uint32_t n, uint32_t g, const int32x4_t shifts[2], uint32_t plus,
                           group8 *out) {
  const uint32_t word = moi_load_u32(w->zeros + ((size_t)g * (w->n >> 3) + (n >> 3)) * 4);
  float scale[8];
  put8_f16(vreinterpretq_u16_u8(vld1q_u8(w->scales + ((size_t)g * w->n + n) * 2)), scale);
  float32x4_t largest = vdupq_n_f32(0);
  for (int i = 0; i < 2; i++) {
    const uint32x4_t zero = vaddq_u32(nibbles_at(word, shifts[i]), vdupq_n_u32(plus));
    out->scale[i] = vld1q_f32(scale + 4 * i);
    out->less[i] = vnegq_f32(vmulq_f32(vcvtq_f32_u32(zero), out->scale[i]));
    largest = vmaxnmq_f32(largest, vabsq_f32(out->scale[i]));
  }
  return vmaxnmvq_f32(largest) > 65504;
}
static inline void put8(const uint32x4_t q[2], const group8 *g, float *dst) {
  vst1q_f32(dst, vfmaq_f32(g->less[0], vcvtq_f32_u32(q[0]), g->scale[0]));
  vst1q_f32(dst + 4, vfmaq_f32(g->less[1], vcvtq_f32_u32(q[1]), g->scale[1]));
}

static inline void decode_gptq(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst,
                               const uint32_t group) {
  const int32x4_t shifts[2] = {{0, -4, -8, -12}, {-16, -20, -24, -28}};
  const uint32x4_t nibble = vdupq_n_u32(15);
  group8 g = {{vec_zero(), vec_zero()}, {vec_zero(), vec_zero()}};
  int infinite = 0;
  float *out = dst;
  for (uint32_t k = k0; k < k1; k += 8) {
    if (k == k0 || k % group == 0) infinite |= group_of(w, n, k / group, shifts, 1, &g);
    const uint8_t *words = w->data + ((size_t)(k >> 3) * w->n + n) * 4;
    if (k + 8 * AHEAD_GPTQ < w->k) __builtin_prefetch(words + (size_t)AHEAD_GPTQ * w->n * 4, 0, 3);
    uint32x4_t v[2] = {vreinterpretq_u32_u8(vld1q_u8(words)), vreinterpretq_u32_u8(vld1q_u8(words + 16))};
    for (int j = 0; j < 8; j++, out += PAIR) {
      const uint32x4_t q[2] = {vandq_u32(v[0], nibble), vandq_u32(v[1], nibble)};
      put8(q, &g, out);
      v[0] = vshrq_n_u32(v[0], 4), v[1] = vshrq_n_u32(v[1], 4);
    }
  }
  if (infinite)
    for (uint32_t k = k0; k < k1; k++)
      for (uint32_t j = 0; j < width; j++)
        dst[(k - k0) * PAIR + j] = MOI_AT_GPTQ(w->data, w->scales, w->zeros, n + j, k, w->n, group);
}
static void decode_gptq_g32(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  decode_gptq(w, n, width, k0, k1, dst, 32);
}
static void decode_gptq_g128(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  decode_gptq(w, n, width, k0, k1, dst, 128);
}

static inline void decode_awq(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst,
                              const uint32_t group) {
  const int32x4_t shifts[2] = {{0, -16, -4, -20}, {-8, -24, -12, -28}};
  group8 g = {{vec_zero(), vec_zero()}, {vec_zero(), vec_zero()}};
  int infinite = 0;
  float *out = dst;
  for (uint32_t k = k0; k < k1; k++, out += PAIR) {
    if (k == k0 || k % group == 0) infinite |= group_of(w, n, k / group, shifts, 0, &g);
    const uint8_t *words = w->data + ((size_t)k * (w->n >> 3) + (n >> 3)) * 4;
    if (k + AHEAD_AWQ < w->k) __builtin_prefetch(words + (size_t)AHEAD_AWQ * (w->n >> 3) * 4, 0, 3);
    const uint32_t word = moi_load_u32(words);
    const uint32x4_t q[2] = {nibbles_at(word, shifts[0]), nibbles_at(word, shifts[1])};
    put8(q, &g, out);
  }
  if (infinite)
    for (uint32_t k = k0; k < k1; k++)
      for (uint32_t j = 0; j < width; j++)
        dst[(k - k0) * PAIR + j] = MOI_AT_AWQ(w->data, w->scales, w->zeros, n + j, k, w->n, group);
}
static void decode_awq_g32(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  decode_awq(w, n, width, k0, k1, dst, 32);
}
static void decode_awq_g128(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  decode_awq(w, n, width, k0, k1, dst, 128);
}

/* ---------------------------------------------------------------------------------------------------------- kernels */

#define KERNEL_NAME(format) moi_gemm_##format##_neon
#include "cpu/kernels/f32_list.h"

#endif
typedef int moi_f32_neon_unit; /* never an empty translation unit */
