/* Attention in plain C, for machines that no other row serves. */
#include <math.h>

#include "core/shared/decode.h"
#include "cpu/kernel.h"

typedef float vec;
typedef float operand;
typedef float unit;
#define VEC 1
#define MR 4
#define NV 4
#define UNIT 1
#define ATTEND moi_attend_generic

static inline vec vec_zero(void) { return 0; }
static inline vec vec_load(const float *p) { return *p; }
static inline void vec_store(float *p, vec v) { *p = v; }
static inline vec vec_splat(float f) { return f; }
static inline vec vec_add(vec a, vec b) { return a + b; }
static inline vec vec_sub(vec a, vec b) { return a - b; }
static inline vec vec_mul(vec a, vec b) { return a * b; }
static inline vec vec_div(vec a, vec b) { return a / b; }
static inline vec vec_fma(vec a, vec b, vec c) { return a * b + c; }
static inline vec vec_max(vec a, vec b) { return a > b ? a : b; }
static inline vec vec_min(vec a, vec b) { return a < b ? a : b; }
static inline vec vec_choose_less(vec a, vec b, vec x, vec y) { return a < b ? x : y; }
static inline operand operand_load(const unit *p) { return *p; }
static inline operand operand_splat(const unit *p) { return *p; }
static inline vec vec_dot(operand a, operand b, vec sum) { return a * b + sum; }
static inline vec vec_exp2(vec x) { return x < -126 ? 0 : exp2f(x); }
static inline void transpose(const unit *src, size_t lds, unit *dst, size_t ldd) {
  (void)lds, (void)ldd;
  *dst = *src;
}

static inline void load_units(moi_format format, const uint8_t *row, unit *dst, uint32_t n) {
  const uint8_t *scales = NULL, *zeros = NULL;
  (void)scales, (void)zeros;
  switch (format) {
#define LOAD(NAME)                                                                                                     \
  case MOI_FORMAT_##NAME:                                                                                              \
    for (uint32_t i = 0; i < n; i++) dst[i] = MOI_AT_##NAME(row, scales, zeros, 0, i, 1, n);                           \
    break;
    LOAD(F32)
    LOAD(F16)
    LOAD(BF16)
    LOAD(FP8)
    LOAD(Q8_0)
    default: break;
  }
  for (uint32_t i = n; i < MOI_ATTEND_PAD(n); i++) dst[i] = 0;
}

#include "cpu/kernels/flash.h"
