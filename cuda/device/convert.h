/* Numbers: the conversions that hardware has, and those of core/shared that stand on them. Results are those of
 * core/shared/decode.h, bit for bit. */
#ifndef MOI_CUDA_CONVERT_H
#define MOI_CUDA_CONVERT_H

#include "cuda/args.h"
#include "cuda/device/thread.h"

#define MOI_U8(B, i) ((uint)((const uint8_t *)(B))[i])
#define MOI_U16(B, i) moi_u16(B, i)
#define MOI_U32(B, i) moi_u32(B, i)
/* 16 bits from any byte on; 32 bits from a multiple of 4 */
MOI_DEVICE unsigned moi_u16(const uint8_t *b, unsigned i) { return (unsigned)b[i] | (unsigned)b[i + 1u] << 8; }
MOI_DEVICE unsigned moi_u32(const uint8_t *b, unsigned i) { return *(const unsigned *)(const void *)(b + i); }

#include "core/shared/decode.h"

/* f16 in the low 16 bits to f32, subnormals too */
MOI_DEVICE float moi_f16_f32(unsigned h) {
#if defined(MOI_EMULATED)
  return moi_f16_value(h & 65535u);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((unsigned short)h));
  return f;
#endif
}
/* 2^x to 2^-22 of it */
MOI_DEVICE float moi_exp2(float x) {
#if defined(MOI_EMULATED)
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
MOI_DEVICE float moi_bf16_low_f32(unsigned w) { return moi_bits_f32(w << 16); }
MOI_DEVICE float moi_bf16_high_f32(unsigned w) { return moi_bits_f32(w & 0xffff0000u); }

/* An E4M3 code is an f16 of another bias, but for its NaN. */
MOI_DEVICE float moi_e4m3_f32(unsigned b) {
  float f = moi_f16_f32(((b & 128u) << 8) | ((b & 127u) << 7)) * 256.0f;
  return (b & 127u) == 127u ? moi_bits_f32(0x7fc00000u) : f;
}
/* E2M1 likewise, subnormals of f16 included. */
MOI_DEVICE float moi_e2m1_f32(unsigned c) { return moi_f16_f32(((c & 8u) << 12) | ((c & 7u) << 9)) * 16384.0f; }

/* An integer code below 2^23 through the float whose mantissa holds it: an addition, where a conversion has a quarter of
 * the rate. */
MOI_DEVICE float moi_small(unsigned q) { return moi_bits_f32(0x4b000000u | q) - 8388608.0f; }

/* the low 32 bits of (high:low) >> shift, shift < 32 */
MOI_DEVICE unsigned moi_funnel(unsigned low, unsigned high, unsigned shift) {
#if defined(MOI_EMULATED)
  return (unsigned)((((uint64_t)high << 32) | low) >> shift);
#else
  return __funnelshift_r(low, high, shift);
#endif
}

/* ---- dense memory; type: MOI_CU_F32, MOI_CU_F16, MOI_CU_BF16 */

MOI_DEVICE unsigned moi_element_bytes(unsigned type) { return type == MOI_CU_F32 ? 4u : 2u; }

MOI_DEVICE float moi_load(unsigned type, const void *base, uint64_t i) {
  if (type == MOI_CU_F32) return ((const float *)base)[i];
  unsigned h = ((const uint16_t *)base)[i];
  return type == MOI_CU_BF16 ? moi_bf16_value(h) : moi_f16_f32(h);
}

MOI_DEVICE void moi_store(unsigned type, void *base, uint64_t i, float f) {
  if (type == MOI_CU_F32) ((float *)base)[i] = f;
  else ((uint16_t *)base)[i] = (uint16_t)(type == MOI_CU_BF16 ? moi_bf16_code(f) : moi_f16_code(f));
}

MOI_DEVICE float moi_round_to(unsigned type, float f) {
  if (type == MOI_CU_BF16) return moi_bf16_value(moi_bf16_code(f));
  if (type == MOI_CU_F16) return moi_f16_f32(moi_f16_code(f));
  return f;
}

MOI_DEVICE int moi_is_nan(float f) { return (moi_f32_bits(f) & 0x7fffffffu) > 0x7f800000u; }
#define MOI_INF moi_bits_f32(0x7f800000u)

#endif
