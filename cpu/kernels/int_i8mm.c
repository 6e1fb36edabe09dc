/* GEMMs for few tokens in SMMLA, the product of a 2x8 by an 8x2 matrix of signed bytes: the two digits of a token's
 * 16-bit activations meet two rows of weights.
 *
 * x is d * (256*hi + lo): a lane of an accumulator is the sum of c*hi or of c*lo for one row, an exact integer below
 * 2^24, and the four go through fp32 apart, [hi row 0 | hi row 1 | lo row 0 | lo row 1], until the end of k, where
 * 256 * hi + lo is the result. Tokens never share an instruction, so any number of them is as good; a (token, row) has
 * one chain of operations that depends on k alone: BATCH_INVARIANT. */
#if defined(__aarch64__)

#include "cpu/kernels/int_neon.h"

enum { PAIRS = 2, ROWS = 2 * PAIRS /* rows of W at once: shares the loads and the pairing of digits */ };

/* The first or the last 8 bytes of a, then those of b: two rows of a matrix. */
INLINE int8x16_t pair(int8x16_t a, int8x16_t b, int last) {
  int64x2_t p = vreinterpretq_s64_s8(a), q = vreinterpretq_s64_s8(b);
  return vreinterpretq_s8_s64(last ? vzip2q_s64(p, q) : vzip1q_s64(p, q));
}

/* Floats 2i and 2i+1 of v, twice. */
INLINE float32x4_t twice(float32x4_t v, int i) {
  return vreinterpretq_f32_u64(vdupq_n_u64(vreinterpretq_u64_f32(v)[i]));
}

INLINE void add_group(int f, uint32_t m, const row *w, const uint8_t *const *x, uint32_t k, size_t k0, uint32_t half,
                      uint32_t n, float32x4_t *sum) {
  float32x4_t v[PAIRS][4]; /* scales of rows 2p and 2p+1 in turn */
#pragma GCC unroll 2
  for (uint32_t p = 0; p < PAIRS; p++) {
    const scales a = scales_of(f, &w[2 * p], k0, half, n), b = scales_of(f, &w[2 * p + 1], k0, half, n);
    v[p][0] = vzip1q_f32(a.v[0], b.v[0]), v[p][1] = vzip2q_f32(a.v[0], b.v[0]);
    v[p][2] = vzip1q_f32(a.v[1], b.v[1]), v[p][3] = vzip2q_f32(a.v[1], b.v[1]);
    if (has_of(f)) { /* those of blocks 0 and 2 go into the lanes of hi, which count 256 times */
      const float32x4_t count = {0.00390625f, 0.00390625f, 1, 1};
      const float32x4_t of0 = vmulq_f32(vzip1q_f32(a.of, b.of), count);
      const float32x4_t of1 = vmulq_f32(vzip2q_f32(a.of, b.of), count);
#pragma GCC unroll 4
      for (uint32_t t = 0; t < m; t++) {
        const float32x4_t s = s_of(x[t], k, k0, n);
        sum[p * TOKENS + t] = vfmsq_f32(sum[p * TOKENS + t], of0, vzip1q_f32(s, s));
        sum[p * TOKENS + t] = vfmsq_f32(sum[p * TOKENS + t], of1, vzip2q_f32(s, s));
      }
    }
  }
#pragma GCC unroll 4
  for (uint32_t b = 0; b < GROUP / 32; b++) {
    if (32 * b >= n) break;
    int8x16_t c[PAIRS][4]; /* elements 0..7, 8..15, ... of a pair of rows */
    float32x4_t by[PAIRS][2];
#pragma GCC unroll 2
    for (uint32_t p = 0; p < PAIRS; p++) {
      int8x16_t u0[2], u1[2];
      block_of_weights(f, &w[2 * p], k0, half, b, n - 32 * b >= 32 ? 32 : 16, u0);
      block_of_weights(f, &w[2 * p + 1], k0, half, b, n - 32 * b >= 32 ? 32 : 16, u1);
      c[p][0] = pair(u0[0], u1[0], 0), c[p][1] = pair(u0[0], u1[0], 1);
      c[p][2] = pair(u0[1], u1[1], 0), c[p][3] = pair(u0[1], u1[1], 1);
      by[p][0] = block_of(f) == 16 ? twice(v[p][b], 0) : twice(v[p][b / 2], b & 1);
      by[p][1] = twice(v[p][b], 1);
    }
#pragma GCC unroll 4
    for (uint32_t t = 0; t < m; t++) {
      const int8_t *digits = (const int8_t *)x[t] + 2 * k0 + b / 2 * 128 + (b & 1) * (is_even_odd(f) ? 16 : 32);
      const int second = is_even_odd(f) ? 32 : 16;
      const int8x16_t hi0 = vld1q_s8(digits), lo0 = vld1q_s8(digits + 64);
      const int8x16_t hi1 = vld1q_s8(digits + second), lo1 = vld1q_s8(digits + 64 + second);
      const int8x16_t q[4] = {pair(hi0, lo0, 0), pair(hi0, lo0, 1), pair(hi1, lo1, 0), pair(hi1, lo1, 1)};
      const float d = ((const float *)(const void *)(x[t] + MOI_FORM_D(k)))[k0 / 32 + b];
#pragma GCC unroll 2
      for (uint32_t p = 0; p < PAIRS; p++) {
        float32x4_t *to = &sum[p * TOKENS + t];
        /* a block of 16 is the first or the second half, or, even and odd apart, half of each */
        const int next = f == MOI_FORMAT_NVFP4 ? 2 : 1, other = f == MOI_FORMAT_NVFP4 ? 1 : 2;
        int32x4_t a = vmmlaq_s32(vmmlaq_s32(vdupq_n_s32(0), q[0], c[p][0]), q[next], c[p][next]);
        if (block_of(f) == 16) {
          *to = vfmaq_f32(*to, vmulq_n_f32(vcvtq_f32_s32(a), d), by[p][0]);
          a = vdupq_n_s32(0);
        }
        a = vmmlaq_s32(vmmlaq_s32(a, q[other], c[p][other]), q[3], c[p][3]);
        *to = vfmaq_f32(*to, vmulq_n_f32(vcvtq_f32_s32(a), d), by[p][block_of(f) == 16]);
      }
    }
  }
}

INLINE void block(int f, uint32_t m, const walk *at, const row *w, const uint8_t *const *x, float *const *out) {
  float32x4_t sum[PAIRS * TOKENS];
#pragma GCC unroll 8
  for (uint32_t i = 0; i < PAIRS * TOKENS; i++) sum[i] = vdupq_n_f32(0);
  add_groups(f, ROWS, m, at, w, x, add_group, sum);
#pragma GCC unroll 2
  for (uint32_t p = 0; p < PAIRS; p++)
#pragma GCC unroll 4
    for (uint32_t t = 0; t < m; t++) {
      const float32x4_t s = sum[p * TOKENS + t];
      const float32x2_t two = vmul_n_f32(vfma_n_f32(vget_high_f32(s), vget_low_f32(s), 256), at->tile->w->global);
      out[2 * p][t * at->tile->ldc] = two[0];
      out[2 * p + 1][t * at->tile->ldc] = two[1];
    }
}

#define MOI_GEMM(format, name)                                                                                         \
  void moi_gemm_##name##_i8mm(const moi_gemm_tile *tile);                                                              \
  void moi_gemm_##name##_i8mm(const moi_gemm_tile *tile) { gemm(MOI_FORMAT_##format, ROWS, block, tile); }
MOI_INT_FORMATS

#endif
typedef int moi_int_i8mm_unit; /* never an empty translation unit */
