/* The vector preparers behind moi_form_prepare: moi_prepare_fn each, with the bits of the scalar ones in forms.c. */
#ifndef MOI_CPU_KERNELS_FORMS_H
#define MOI_CPU_KERNELS_FORMS_H

#include "cpu/kernel.h"

/* q = x / d, |q| <= this: 127 * 256 + 127, so that both digits of I8X2 fit int8. */
#define MOI_FORM_QMAX 32639
/* Adding and subtracting it rounds a float below 2^22 to an integer, ties to even. */
#define MOI_FORM_ROUND 12582912.0f

#if defined(__x86_64__)
void moi_prepare_bf16_avx2(const float *x, uint32_t k, void *dst);
void moi_prepare_i16_avx2(const float *x, uint32_t k, void *dst);
void moi_prepare_i16_eo_avx2(const float *x, uint32_t k, void *dst);
void moi_prepare_i8_avx2(const float *x, uint32_t k, void *dst);
void moi_prepare_i8_eo_avx2(const float *x, uint32_t k, void *dst);
void moi_prepare_bf16_avx512(const float *x, uint32_t k, void *dst);
void moi_prepare_i8x2_avx512(const float *x, uint32_t k, void *dst);
void moi_prepare_i8x2_eo_avx512(const float *x, uint32_t k, void *dst);
void moi_prepare_i8_avx512(const float *x, uint32_t k, void *dst);
void moi_prepare_i8_eo_avx512(const float *x, uint32_t k, void *dst);
#elif defined(__aarch64__)
void moi_prepare_bf16_neon(const float *x, uint32_t k, void *dst);
void moi_prepare_i16_neon(const float *x, uint32_t k, void *dst);
void moi_prepare_i16_eo_neon(const float *x, uint32_t k, void *dst);
void moi_prepare_i8x2_neon(const float *x, uint32_t k, void *dst);
void moi_prepare_i8x2_eo_neon(const float *x, uint32_t k, void *dst);
#endif

#endif
