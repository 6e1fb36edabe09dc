/* Attention in fp32, AArch64 Advanced SIMD. */
#if defined(__aarch64__)

#include <arm_neon.h>

#include "core/shared/decode.h"
#include "cpu/kernel.h"

typedef float32x4_t vec;
typedef float32x4_t operand;
typedef float unit;
#define VEC 4
#define MR 6
#define NV 4
#define UNIT 1
#define ATTEND moi_attend_neon
#define ATTEND_DOT moi_attend_dot_neon
#define PANEL 8
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#define SPREAD(format) 0

static inline vec vec_zero(void) { return vdupq_n_f32(0); }
static inline vec vec_load(const float *p) { return vld1q_f32(p); }
static inline void vec_store(float *p, vec v) { vst1q_f32(p, v); }
static inline vec vec_splat(float f) { return vdupq_n_f32(f); }
static inline vec vec_add(vec a, vec b) { return vaddq_f32(a, b); }
static inline vec vec_sub(vec a, vec b) { return vsubq_f32(a, b); }
static inline vec vec_mul(vec a, vec b) { return vmulq_f32(a, b); }
static inline vec vec_div(vec a, vec b) { return vdivq_f32(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
static inline vec vec_max(vec a, vec b) { return vmaxq_f32(a, b); }
static inline vec vec_min(vec a, vec b) { return vminq_f32(a, b); }
static inline vec vec_choose_less(vec a, vec b, vec x, vec y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
static inline operand operand_load(const unit *p) { return vld1q_f32(p); }
static inline operand operand_splat(const unit *p) { return vld1q_dup_f32(p); }
static inline vec vec_dot(operand a, operand b, vec sum) { return vfmaq_f32(sum, a, b); }
/* The sum over the lanes of each. */
static inline void vec_sum4(vec a, vec b, vec c, vec d, float *out) {
  vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

static inline vec vec_exp2(vec x) {
  const float32x4_t lowest = vdupq_n_f32(-126), y = vmaxq_f32(lowest, x), n = vrndnq_f32(y), r = vsubq_f32(y, n);
  float32x4_t p = vdupq_n_f32(1.54614447e-4f);
  p = vfmaq_f32(vdupq_n_f32(1.34004282e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(9.61805668e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(5.55032723e-2f), p, r);
  p = vfmaq_f32(vdupq_n_f32(0.240226509f), p, r);
  p = vfmaq_f32(vdupq_n_f32(0.693147207f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1), p, r);
  const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  /* below 2^-126 is 0: subnormal weights would cost more than they weigh */
  const uint32x4_t below = vcltq_f32(x, lowest);
  return vreinterpretq_f32_u32(
      vbicq_u32(vreinterpretq_u32_f32(vmulq_f32(p, vreinterpretq_f32_s32(power))), below));
}

/* 4 x 4; strides in floats */
static inline void transpose(const unit *src, size_t lds, unit *dst, size_t ldd) {
  const float32x4_t a = vld1q_f32(src), b = vld1q_f32(src + lds), c = vld1q_f32(src + 2 * lds);
  const float32x4_t d = vld1q_f32(src + 3 * lds);
  const float64x2_t ab0 = vreinterpretq_f64_f32(vtrn1q_f32(a, b)), ab1 = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
  const float64x2_t cd0 = vreinterpretq_f64_f32(vtrn1q_f32(c, d)), cd1 = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
  vst1q_f32(dst, vreinterpretq_f32_f64(vtrn1q_f64(ab0, cd0)));
  vst1q_f32(dst + ldd, vreinterpretq_f32_f64(vtrn1q_f64(ab1, cd1)));
  vst1q_f32(dst + 2 * ldd, vreinterpretq_f32_f64(vtrn2q_f64(ab0, cd0)));
  vst1q_f32(dst + 3 * ldd, vreinterpretq_f32_f64(vtrn2q_f64(ab1, cd1)));
}

/* 4 bytes from p on, sign-extended to 16 bits */
static inline int16x4_t bytes4(const uint8_t *p) {
  return vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(moi_load_u32(p)))));
}
/* 4 bytes of E4M3 to fp32; NaN codes give NaN */
static inline float32x4_t e4m3_floats(const uint8_t *p) {
  const int16x4_t b = bytes4(p);
  const uint16x4_t code = vand_u16(vreinterpret_u16_s16(b), vdup_n_u16(127));
  const uint16x4_t h = vand_u16(vreinterpret_u16_s16(vshl_n_s16(b, 7)), vdup_n_u16(0xbfff));
  const float32x4_t v = vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(h)), 256);
  const uint32x4_t nan = vceqq_u32(vmovl_u16(code), vdupq_n_u32(127));
  return vbslq_f32(nan, vreinterpretq_f32_u32(vdupq_n_u32(0x7fc00000)), v);
}

static inline __attribute__((always_inline)) vec load_vec(moi_format format, const uint8_t *row, uint32_t i) {
  switch (format) {
    case MOI_FORMAT_F32: return vld1q_f32((const float *)(const void *)row + i);
    case MOI_FORMAT_BF16:
      return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)(const void *)row + i), 16));
    case MOI_FORMAT_F16:
      return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)(const void *)row + i)));
    case MOI_FORMAT_FP8: return e4m3_floats(row + i);
    default: { /* Q8_0 */
      const uint8_t *b = row + i / 32 * 34;
      return vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(bytes4(b + 2 + i % 32))), moi_f16_value(moi_load_u16(b)));
    }
  }
}

static inline __attribute__((always_inline)) void load_pair(moi_format format, const uint8_t *row, uint32_t i,
                                                            vec out[2]) {
  out[0] = load_vec(format, row, i);
  out[1] = load_vec(format, row, i + VEC);
}

static inline void load_units(moi_format format, const uint8_t *row, unit *dst, uint32_t n) {
  const uint32_t padded = MOI_ATTEND_PAD(n), whole = n & ~3u;
  uint32_t i = 0;
#define LOAD(NAME, value)                                                                                              \
  case MOI_FORMAT_##NAME:                                                                                              \
    for (; i < whole; i += 4) vst1q_f32(dst + i, load_vec(MOI_FORMAT_##NAME, row, i));                                 \
    for (; i < n; i++) dst[i] = value;                                                                                 \
    break;
  switch (format) {
    LOAD(F32, ((const float *)(const void *)row)[i])
    LOAD(F16, moi_f16_value(moi_load_u16(row + i * 2)))
    LOAD(BF16, moi_bf16_value(moi_load_u16(row + i * 2)))
    LOAD(FP8, moi_e4m3_value(row[i]))
    LOAD(Q8_0, 0)
    default: break;
  }
  for (; i < padded; i++) dst[i] = 0;
}

#include "cpu/kernels/flash.h"
#include "cpu/kernels/flash_few.h"

#endif
typedef int moi_flash_neon_unit; /* never an empty translation unit */
