/* GEMMs for few tokens in SDOT: 16-bit integer activations in two signed digits, weights streamed once.
 *
 * x is d * (256*hi + lo), so a block's sum of c*q is (sum c*hi) << 8 plus sum c*lo: SDOT adds the second to the first
 * in place. One conversion and one FMA by a lane of v * d follow for each token. A (token, row) has one chain of
 * operations that depends on k alone: BATCH_INVARIANT. */
#if defined(__aarch64__)

#include "cpu/kernels/int_neon.h"

enum { ROWS = 2 /* rows of W at once: shares the loads of x */ };

/* sum c*q of a block, or of one half of it where only one of the two is asked for */
INLINE float32x4_t dot(const int8x16_t *w, const int8x16_t *hi, const int8x16_t *lo, int first, int second) {
  int32x4_t q = vdupq_n_s32(0);
  if (first) q = vdotq_s32(q, w[0], hi[0]);
  if (second) q = vdotq_s32(q, w[1], hi[1]);
  q = vshlq_n_s32(q, 8);
  if (first) q = vdotq_s32(q, w[0], lo[0]);
  if (second) q = vdotq_s32(q, w[1], lo[1]);
  return vcvtq_f32_s32(q);
}

INLINE void add_group(int f, uint32_t m, const row *w, const uint8_t *const *x, uint32_t k, size_t k0, uint32_t half,
                      uint32_t n, float32x4_t *sum) {
  float32x4_t vd[ROWS][TOKENS][2];
#pragma GCC unroll 2
  for (uint32_t r = 0; r < ROWS; r++) {
    const scales s = scales_of(f, &w[r], k0, half, n);
#pragma GCC unroll 4
    for (uint32_t t = 0; t < m; t++) {
      float32x4_t d = d_of(x[t], k, k0, n);
      if (has_of(f)) sum[r * TOKENS + t] = vfmsq_f32(sum[r * TOKENS + t], s.of, s_of(x[t], k, k0, n));
      vd[r][t][0] = vmulq_f32(s.v[0], block_of(f) == 16 ? vzip1q_f32(d, d) : d);
      vd[r][t][1] = vmulq_f32(s.v[1], vzip2q_f32(d, d));
    }
  }
#pragma GCC unroll 4
  for (uint32_t b = 0; b < GROUP / 32; b++) {
    if (32 * b >= n) break;
    int8x16_t c[ROWS][2];
#pragma GCC unroll 2
    for (uint32_t r = 0; r < ROWS; r++)
      block_of_weights(f, &w[r], k0, half, b, n - 32 * b >= 32 ? 32 : 16, c[r]);
#pragma GCC unroll 4
    for (uint32_t t = 0; t < m; t++) {
      const int8_t *digits = (const int8_t *)x[t] + 2 * k0 + b / 2 * 128 + (b & 1) * (is_even_odd(f) ? 16 : 32);
      const int second = is_even_odd(f) ? 32 : 16;
      const int8x16_t hi[2] = {vld1q_s8(digits), vld1q_s8(digits + second)};
      const int8x16_t lo[2] = {vld1q_s8(digits + 64), vld1q_s8(digits + 64 + second)};
#pragma GCC unroll 2
      for (uint32_t r = 0; r < ROWS; r++) {
        float32x4_t *to = &sum[r * TOKENS + t];
        const float32x4_t by = vd[r][t][block_of(f) == 16 ? b / 2 : 0];
        if (f == MOI_FORMAT_Q6_K) { /* a scale for each half */
          *to = vfmaq_n_f32(*to, dot(c[r], hi, lo, 1, 0), by[2 * (b & 1)]);
          *to = vfmaq_n_f32(*to, dot(c[r], hi, lo, 0, 1), by[2 * (b & 1) + 1]);
        } else if (f == MOI_FORMAT_NVFP4) { /* even and odd of the first 16 in the lower lanes */
          *to = vfmaq_f32(*to, dot(c[r], hi, lo, 1, 1), b & 1 ? vzip2q_f32(by, by) : vzip1q_f32(by, by));
        } else {
          *to = vfmaq_n_f32(*to, dot(c[r], hi, lo, 1, 1), by[b]);
        }
      }
    }
  }
}

INLINE void block(int f, uint32_t m, const walk *at, const row *w, const uint8_t *const *x, float *const *out) {
  float32x4_t sum[ROWS * TOKENS];
#pragma GCC unroll 8
  for (uint32_t i = 0; i < ROWS * TOKENS; i++) sum[i] = vdupq_n_f32(0);
  add_groups(f, ROWS, m, at, w, x, add_group, sum);
#pragma GCC unroll 2
  for (uint32_t r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (uint32_t t = 0; t < m; t++) out[r][t * at->tile->ldc] = at->tile->w->global * vaddvq_f32(sum[r * TOKENS + t]);
}

#define MOI_GEMM(format, name)                                                                                         \
  void moi_gemm_##name##_dotprod(const moi_gemm_tile *tile);                                                           \
  void moi_gemm_##name##_dotprod(const moi_gemm_tile *tile) { gemm(MOI_FORMAT_##format, ROWS, block, tile); }
MOI_INT_FORMATS

#endif
typedef int moi_int_dotprod_unit; /* never an empty translation unit */
