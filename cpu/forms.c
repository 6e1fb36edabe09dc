/* Rows of activations in the forms that kernels ask for (kernel.h): the plain preparers and the choice of the best. */
#include <string.h>

#include "core/shared/round.h"
#include "cpu/isa.h"
#include "cpu/kernel.h"
#include "cpu/kernels/forms.h"

size_t moi_form_bytes(moi_form form, uint32_t k) {
  size_t kp = MOI_FORM_KP(k), bytes = 0;
  switch (form) {
  case MOI_FORM_F32: bytes = kp * sizeof(float); break;
  case MOI_FORM_BF16: bytes = kp * sizeof(uint16_t); break;
  case MOI_FORM_I16:
  case MOI_FORM_I16_EO:
  case MOI_FORM_I8X2:
  case MOI_FORM_I8X2_EO: bytes = MOI_FORM_S(k) + kp / 16 * sizeof(float); break;
  case MOI_FORM_I8:
  case MOI_FORM_I8_EO: bytes = MOI_FORM_I8_S(k) + kp / 16 * sizeof(float); break;
  case MOI_FORM_COUNT: break;
  }
  return (bytes + 63) & ~(size_t)63;
}

static void prepare_f32(const float *x, uint32_t k, void *dst) {
  memcpy(dst, x, (size_t)k * sizeof(float));
  memset((float *)dst + k, 0, (MOI_FORM_KP(k) - k) * sizeof(float));
}

static uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static void prepare_bf16(const float *x, uint32_t k, void *dst) {
  uint16_t *out = dst;
  for (uint32_t i = 0; i < k; i++) {
    uint32_t bits = float_bits(x[i]);
    if ((bits & 0x7fffffffu) > 0x7f800000u) out[i] = (uint16_t)(bits >> 16 | 0x40u);
    else out[i] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  memset(out + k, 0, (MOI_FORM_KP(k) - k) * sizeof(uint16_t));
}

/* The integers of 32 elements, n of which exist; returns d. */
static float quantise(const float *x, uint32_t n, int32_t q[32]) {
  uint32_t largest = 0; /* magnitudes order as their bits do, infinity and NaN above all */
  for (uint32_t i = 0; i < n; i++) {
    uint32_t bits = float_bits(x[i]) & 0x7fffffffu;
    if (bits > largest) largest = bits;
  }
  memset(q, 0, 32 * sizeof *q);
  if (largest >= 0x7f800000u) return bits_float(0x7fc00000u);
  float d = bits_float(largest) / (float)MOI_FORM_QMAX;
  if (!(d > 0)) return 0;
  for (uint32_t i = 0; i < n; i++) {
    float v = x[i] / d; /* beyond the range only where d is subnormal and has few bits */
    v = v > MOI_FORM_QMAX ? MOI_FORM_QMAX : v < -MOI_FORM_QMAX ? -MOI_FORM_QMAX : v;
    q[i] = (int32_t)((v + MOI_FORM_ROUND) - MOI_FORM_ROUND);
  }
  return d;
}

static void prepare_integers(const float *x, uint32_t k, uint8_t *dst, int digits, int even_odd) {
  float *d = (float *)(void *)(dst + MOI_FORM_D(k)), *s = (float *)(void *)(dst + MOI_FORM_S(k));
  for (uint32_t i = 0; i < MOI_FORM_KP(k); i += 32) {
    int32_t q[32];
    uint32_t n = i >= k ? 0 : k - i < 32 ? k - i : 32;
    float scale = quantise(x + (n ? i : 0), n, q);
    d[i / 32] = scale;
    for (uint32_t half = 0; half < 2; half++) {
      int32_t sum = 0;
      for (uint32_t j = 0; j < 16; j++) sum += q[half * 16 + j];
      s[i / 16 + half] = scale * (float)sum;
    }
    for (uint32_t j = 0; j < 32; j++) {
      if (digits) {
        uint32_t second = i / 32 & 1, at = even_odd ? (j & 1) * 32 + second * 16 + j / 2 : second * 32 + j;
        int32_t lo = ((q[j] + 128) & 255) - 128;
        uint8_t *chunk = dst + (size_t)(i / 64) * 128;
        chunk[at] = (uint8_t)((q[j] - lo) / 256);
        chunk[64 + at] = (uint8_t)lo;
      } else {
        uint32_t at = even_odd ? (j & 1) * 16 + j / 2 : j;
        ((int16_t *)(void *)dst)[i + at] = (int16_t)q[j];
      }
    }
  }
}

static void prepare_int8(const float *x, uint32_t k, uint8_t *dst, int even_odd) {
  float *d = (float *)(void *)(dst + MOI_FORM_I8_D(k)), *s = (float *)(void *)(dst + MOI_FORM_I8_S(k));
  for (uint32_t i = 0; i < MOI_FORM_KP(k); i += 32) {
    int8_t q[32] = {0};
    const uint32_t n = i >= k ? 0 : k - i < 32 ? k - i : 32, second = i / 32 & 1;
    d[i / 32] = moi_int8_group(x + (n ? i : 0), n, q);
    for (uint32_t half = 0; half < 2; half++) {
      int32_t sum = 0;
      for (uint32_t j = 0; j < 16; j++) sum += q[half * 16 + j];
      s[i / 16 + half] = d[i / 32] * (float)sum;
    }
    for (uint32_t j = 0; j < 32; j++)
      dst[i / 64 * 64 + (even_odd ? (j & 1) * 32 + second * 16 + j / 2 : second * 32 + j)] = (uint8_t)q[j];
  }
}

static void prepare_i8(const float *x, uint32_t k, void *dst) { prepare_int8(x, k, dst, 0); }
static void prepare_i8_eo(const float *x, uint32_t k, void *dst) { prepare_int8(x, k, dst, 1); }
static void prepare_i16(const float *x, uint32_t k, void *dst) { prepare_integers(x, k, dst, 0, 0); }
static void prepare_i16_eo(const float *x, uint32_t k, void *dst) { prepare_integers(x, k, dst, 0, 1); }
static void prepare_i8x2(const float *x, uint32_t k, void *dst) { prepare_integers(x, k, dst, 1, 0); }
static void prepare_i8x2_eo(const float *x, uint32_t k, void *dst) { prepare_integers(x, k, dst, 1, 1); }

moi_prepare_fn moi_form_prepare(moi_form form, uint32_t isa) {
#if defined(__x86_64__)
  if (isa & MOI_ISA_AVX512) {
    if (form == MOI_FORM_BF16) return moi_prepare_bf16_avx512;
    if (form == MOI_FORM_I8X2) return moi_prepare_i8x2_avx512;
    if (form == MOI_FORM_I8X2_EO) return moi_prepare_i8x2_eo_avx512;
    if (form == MOI_FORM_I8) return moi_prepare_i8_avx512;
    if (form == MOI_FORM_I8_EO) return moi_prepare_i8_eo_avx512;
  }
  if (isa & MOI_ISA_AVX2) {
    if (form == MOI_FORM_BF16) return moi_prepare_bf16_avx2;
    if (form == MOI_FORM_I16) return moi_prepare_i16_avx2;
    if (form == MOI_FORM_I16_EO) return moi_prepare_i16_eo_avx2;
    if (form == MOI_FORM_I8) return moi_prepare_i8_avx2;
    if (form == MOI_FORM_I8_EO) return moi_prepare_i8_eo_avx2;
  }
#elif defined(__aarch64__)
  if (isa & MOI_ISA_NEON) {
    if (form == MOI_FORM_BF16) return moi_prepare_bf16_neon;
    if (form == MOI_FORM_I16) return moi_prepare_i16_neon;
    if (form == MOI_FORM_I16_EO) return moi_prepare_i16_eo_neon;
    if (form == MOI_FORM_I8X2) return moi_prepare_i8x2_neon;
    if (form == MOI_FORM_I8X2_EO) return moi_prepare_i8x2_eo_neon;
  }
#else
  (void)isa;
#endif
  switch (form) {
  case MOI_FORM_F32: return prepare_f32;
  case MOI_FORM_BF16: return prepare_bf16;
  case MOI_FORM_I16: return prepare_i16;
  case MOI_FORM_I16_EO: return prepare_i16_eo;
  case MOI_FORM_I8X2: return prepare_i8x2;
  case MOI_FORM_I8X2_EO: return prepare_i8x2_eo;
  case MOI_FORM_I8: return prepare_i8;
  case MOI_FORM_I8_EO: return prepare_i8_eo;
  case MOI_FORM_COUNT: break;
  }
  return NULL;
}
