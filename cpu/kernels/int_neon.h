/* What the integer kernels of AArch64 share: weights as signed bytes, their scales, and the loops over a matrix.
 *
 * x is d * q for each 32 elements (kernel.h), a weight is v * c - of with a signed byte c: a block is
 *   v * d * sum c*q - of * (d * sum q)
 * where the sums are exact integers. Only formats with a zero point or minimum of their own have an `of`. In the others
 * c holds all of the weight and nothing cancels: SDOT and SMMLA multiply signed by signed, so no offset is in the way.
 * Where it saves an instruction c is a multiple of the code and v that much smaller, which is exact: see counts_of. */
#ifndef MOI_CPU_KERNELS_INT_NEON_H
#define MOI_CPU_KERNELS_INT_NEON_H

#if defined(__GNUC__) && !defined(__clang__)
/* Before the registers are given out, gcc would move the loads of a whole unrolled group to its front and then spill
 * half of them. */
#pragma GCC optimize("no-schedule-insns")
#endif

#include <arm_neon.h>
#include <string.h>

#include "cpu/kernels/int.h"

enum {
  GROUP = 128, /* elements that share one fetch of scales: half a superblock */
  TOKENS = 4   /* most tokens at once */
};

INLINE int is_int4(int f) {
  return f == MOI_FORMAT_INT4_G32 || f == MOI_FORMAT_INT4_G128 || f == MOI_FORMAT_INT4Z_G32 ||
         f == MOI_FORMAT_INT4Z_G128;
}
INLINE int has_of(int f) {
  return f == MOI_FORMAT_Q4_K || f == MOI_FORMAT_Q5_K || f == MOI_FORMAT_INT4Z_G32 || f == MOI_FORMAT_INT4Z_G128;
}
/* c is this times the code (less its offset). */
INLINE float counts_of(int f) {
  if (f == MOI_FORMAT_Q4_0 || is_int4(f)) return 16;
  if (f == MOI_FORMAT_Q6_K) return 4;
  return is_e2m1(f) ? 2 : 1;
}

/* ---- scales */

typedef struct scales {
  float32x4_t v[2]; /* of 4 blocks of 32, or of 8 of 16; those of blocks that do not exist are never used */
  float32x4_t of;   /* of 4 blocks of 32; 0 for those that do not exist */
} scales;

/* n <= 8 bytes, zeros above them */
INLINE uint64_t bytes_at(const uint8_t *p, uint32_t n) {
  uint64_t v = 0;
  memcpy(&v, p, n);
  return v;
}
INLINE float32x4_t f16x4(uint64_t h) { return vcvt_f32_f16(vcreate_f16(h)); }
INLINE float32x4_t bf16x4(uint64_t h) { return vreinterpretq_f32_u32(vshll_n_u16(vcreate_u16(h), 16)); }
INLINE uint32x4_t u8x4(uint64_t b) { return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(b)))); }

/* 0 is the subnormal 2^-127, 255 is NaN. */
INLINE float32x4_t e8m0(uint32x4_t b) {
  uint32x4_t v = vmaxq_u32(vshlq_n_u32(b, 23), vdupq_n_u32(0x00400000));
  uint32x4_t nan = vandq_u32(vceqq_u32(b, vdupq_n_u32(255)), vdupq_n_u32(0x00400000));
  return vreinterpretq_f32_u32(vorrq_u32(v, nan));
}

/* E4M3 bytes times 2^-8: as f16 bits they are that, subnormals too; only NaN has no equal there. */
INLINE void e4m3(uint64_t b, float32x4_t out[2]) {
  uint16x8_t w = vmovl_u8(vcreate_u8(b)), magnitude = vandq_u16(w, vdupq_n_u16(127));
  uint16x8_t h = vorrq_u16(vshlq_n_u16(magnitude, 7), vshlq_n_u16(vandq_u16(w, vdupq_n_u16(128)), 8));
  h = vorrq_u16(h, vandq_u16(vceqq_u16(magnitude, vdupq_n_u16(127)), vdupq_n_u16(0x7e00)));
  out[0] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(h)));
  out[1] = vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(h)));
}

/* The 16-bit words (MXFP4_GGUF: bytes) at the head of up to 4 blocks of 32 elements. */
INLINE uint64_t block_heads(int f, const uint8_t *p, uint32_t n) {
  const uint32_t size = f == MOI_FORMAT_MXFP4_GGUF ? 1 : 2, step = bytes_of(f);
  uint64_t heads = bytes_at(p, size);
  if (n > 32) heads |= bytes_at(p + step, size) << 16;
  if (n > 64) heads |= bytes_at(p + 2 * step, size) << 32;
  if (n > 96) heads |= bytes_at(p + 3 * step, size) << 48;
  return heads;
}

/* The scales and minimums of a half of a superblock of Q4_K or Q5_K, integers in its 12 bytes of 6-bit codes. */
INLINE uint64_t k_codes(const uint8_t *p, uint32_t half) {
  const uint32_t a = (uint32_t)bytes_at(p, 4), b = (uint32_t)bytes_at(p + 4, 4), c = (uint32_t)bytes_at(p + 8, 4);
  uint32_t scale = a & 0x3f3f3f3f, minimum = b & 0x3f3f3f3f;
  if (half) {
    scale = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
    minimum = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
  }
  return scale | (uint64_t)minimum << 32;
}

/* The scales of the group from element k0 on, n elements of which exist; half: of a superblock. */
INLINE scales scales_of(int f, const row *w, size_t k0, uint32_t half, uint32_t n) {
  const float by = 1 / counts_of(f);
  const uint8_t *d = w->data + k0 / (is_superblock(f) ? 256 : block_of(f)) * bytes_of(f);
  scales out;
  out.of = out.v[0] = out.v[1] = vdupq_n_f32(0);
  switch (f) {
  case MOI_FORMAT_Q8_0:
  case MOI_FORMAT_Q4_0:
  case MOI_FORMAT_IQ4_NL: out.v[0] = vmulq_n_f32(f16x4(block_heads(f, d, n)), by); break;
  case MOI_FORMAT_MXFP4_GGUF:
    out.v[0] = vmulq_n_f32(e8m0(vmovl_u16(vcreate_u16(block_heads(f, d, n)))), by);
    break;
  case MOI_FORMAT_MXFP4: out.v[0] = vmulq_n_f32(e8m0(u8x4(bytes_at(w->scales + k0 / 32, n / 32))), by); break;
  case MOI_FORMAT_NVFP4:
    e4m3(bytes_at(w->scales + k0 / 16, n / 16), out.v);
    out.v[0] = vmulq_n_f32(out.v[0], 256 * by);
    out.v[1] = vmulq_n_f32(out.v[1], 256 * by);
    break;
  case MOI_FORMAT_INT4_G32: out.v[0] = vmulq_n_f32(bf16x4(bytes_at(w->scales + k0 / 16, n / 16)), by); break;
  case MOI_FORMAT_INT4_G128:
    out.v[0] = vmulq_n_f32(vdupq_laneq_f32(bf16x4(bytes_at(w->scales + k0 / 64, 2)), 0), by);
    break;
  case MOI_FORMAT_INT4Z_G32:
  case MOI_FORMAT_INT4Z_G128: { /* (q - zero) * scale = (q - 8) * scale - (zero - 8) * scale */
    const int each = f == MOI_FORMAT_INT4Z_G32;
    float32x4_t scale = f16x4(bytes_at(w->scales + k0 / (each ? 16 : 64), each ? n / 16 : 2));
    uint32x4_t zero = u8x4(bytes_at(w->zeros + k0 / (each ? 32 : 128), each ? n / 32 : 1));
    float32x4_t of = vmulq_f32(scale, vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(zero), vdupq_n_s32(8))));
    out.of = each ? of : vdupq_laneq_f32(of, 0);
    out.v[0] = vmulq_n_f32(each ? scale : vdupq_laneq_f32(scale, 0), by);
    break;
  }
  case MOI_FORMAT_Q4_K:
  case MOI_FORMAT_Q5_K: {
    const float32x4_t head = f16x4(bytes_at(d, 4)); /* d, dmin */
    uint16x8_t codes = vmovl_u8(vcreate_u8(k_codes(d + 4, half)));
    out.v[0] = vmulq_laneq_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(codes))), head, 0);
    out.of = vmulq_laneq_f32(vcvtq_f32_u32(vmovl_high_u16(codes)), head, 1);
    break;
  }
  case MOI_FORMAT_Q6_K: {
    const float32x4_t head = vmulq_n_f32(f16x4(bytes_at(d + 208, 2)), by);
    int16x8_t codes = vmovl_s8(vcreate_s8(bytes_at(d + 192 + 8 * half, 8)));
    out.v[0] = vmulq_laneq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))), head, 0);
    out.v[1] = vmulq_laneq_f32(vcvtq_f32_s32(vmovl_high_s16(codes)), head, 0);
    break;
  }
  default: break;
  }
  return out;
}

/* ---- weights */

INLINE uint8x16_t left(uint8x16_t v, int by) { return v << vdupq_n_u8((uint8_t)by); }
INLINE uint8x16_t right(uint8x16_t v, int by) { return v >> vdupq_n_u8((uint8_t)by); }

/* The signed values of the 16 codes: twice those of E2M1, and IQ4_NL's. */
INLINE uint8x16_t values_of(int f) { return vsubq_u8(vld1q_u8(codes_of(f)), vdupq_n_u8((uint8_t)offset_of(f))); }

/* Block b of the group, n (32, or 16 at the end of a row) elements: c of elements 0..15 and 16..31, or, in formats that
 * are is_even_odd, of the even and the odd ones. */
INLINE void block_of_weights(int f, const row *w, size_t k0, uint32_t half, uint32_t b, uint32_t n, int8x16_t out[2]) {
  uint8x16_t u[2];
  if (is_superblock(f)) {
    const uint8_t *p = w->data + k0 / 256 * bytes_of(f), *q = p + (f == MOI_FORMAT_Q4_K ? 16 : 48);
    q += f == MOI_FORMAT_Q6_K ? (size_t)half * 64 + (b & 1) * 32 - 48 : (size_t)half * 64 + b / 2 * 32;
    for (int i = 0; i < 2; i++, q += 16) {
      const uint8x16_t v = vld1q_u8(q);
      if (f == MOI_FORMAT_Q4_K) {
        u[i] = b & 1 ? right(v, 4) : vandq_u8(v, vdupq_n_u8(15));
      } else if (f == MOI_FORMAT_Q5_K) { /* bit j of `high` goes above the nibble */
        const uint8x16_t high = vld1q_u8(p + 16 + 16 * i);
        const int j = (int)(4 * half + b);
        if (b & 1) u[i] = vsriq_n_u8(j < 4 ? left(high, 4 - j) : right(high, j - 4), v, 4);
        else u[i] = vsliq_n_u8(v, right(high, j), 4);
        u[i] = vandq_u8(u[i], vdupq_n_u8(31));
      } else { /* two bits of `high`, the nibble, two zeros: 4 * code, and 4 * (code - 32) with the upper bit turned */
        const uint8x16_t high = veorq_u8(vld1q_u8(p + 128 + 32 * half + 16 * i), vdupq_n_u8(0xaa));
        u[i] = vsriq_n_u8(left(high, 6 - 2 * (int)b), b < 2 ? left(v, 4) : v, 2);
        if (b >= 2) u[i] = vandq_u8(u[i], vdupq_n_u8(0xfc));
      }
    }
  } else {
    const uint8_t *p = w->data + (k0 / 32 + b) * (is_even_odd(f) ? 16 : bytes_of(f));
    if (!is_even_odd(f)) p += f == MOI_FORMAT_MXFP4_GGUF ? 1 : 2;
    const uint8x16_t v = n == 32 ? vld1q_u8(p) : vcombine_u8(vld1_u8(p), vdup_n_u8(0));
    if (f == MOI_FORMAT_Q8_0) {
      u[0] = v, u[1] = vld1q_u8(p + 16);
    } else if (is_e2m1(f) || f == MOI_FORMAT_IQ4_NL) {
      u[0] = vqtbl1q_u8(values_of(f), vandq_u8(v, vdupq_n_u8(15)));
      u[1] = vqtbl1q_u8(values_of(f), right(v, 4));
    } else { /* code - 8 is the code with its upper bit turned as a signed nibble, here in the upper half of a byte */
      const uint8x16_t turned = veorq_u8(v, vdupq_n_u8(0x88));
      u[0] = left(turned, 4);
      u[1] = vandq_u8(turned, vdupq_n_u8(0xf0));
    }
  }
  out[0] = vreinterpretq_s8_u8(u[0]), out[1] = vreinterpretq_s8_u8(u[1]);
}

/* ---- activations */

/* Floats at p, n of which exist: 4, or their sums by pairs of 8; zeros for the others. */
INLINE float32x4_t floats_at(const float *p, uint32_t n) {
  if (n >= 4) return vld1q_f32(p);
  float copy[4] = {0};
  memcpy(copy, p, n * sizeof *p);
  return vld1q_f32(copy);
}
INLINE float32x4_t pairs_at(const float *p, uint32_t n) {
  return vpaddq_f32(floats_at(p, n), n > 4 ? floats_at(p + 4, n - 4) : vdupq_n_f32(0));
}

/* d and d * (sum of 32 q) of the group's blocks. */
INLINE float32x4_t d_of(const uint8_t *x, uint32_t k, size_t k0, uint32_t n) {
  return floats_at((const float *)(const void *)(x + MOI_FORM_D(k)) + k0 / 32, (n + 31) / 32);
}
INLINE float32x4_t s_of(const uint8_t *x, uint32_t k, size_t k0, uint32_t n) {
  return pairs_at((const float *)(const void *)(x + MOI_FORM_S(k)) + k0 / 16, n / 16);
}

/* ---- the loops. `rows`, `m`, `f` and the functions are constants wherever these are inlined. */

/* What the loops over a matrix share. */
typedef struct walk {
  const moi_gemm_tile *tile;
  strides stride;
  size_t ahead; /* rows_ahead */
} walk;

/* Adds n elements from k0 on (a whole group, or the last of k) of the rows w for the m tokens x to the sums. */
typedef void (*group_fn)(int f, uint32_t m, const row *w, const uint8_t *const *x, uint32_t k, size_t k0, uint32_t half,
                         uint32_t n, float32x4_t *sum);

INLINE void add_groups(int f, uint32_t rows, uint32_t m, const walk *at, const row *w, const uint8_t *const *x,
                       group_fn add, float32x4_t *sum) {
  const uint32_t k = at->tile->w->k, step = is_superblock(f) ? 2 * GROUP : GROUP;
  const uint32_t bytes = is_superblock(f) ? bytes_of(f) : GROUP / block_of(f) * bytes_of(f);
  size_t k0 = 0;
  for (; k0 + step <= k; k0 += step) {
    for (uint32_t r = 0; r < rows; r++) {
      prefetch(w[r].data + k0 / step * bytes, at->ahead * at->stride.data, bytes);
      if (scale_bytes_of(f)) prefetch(w[r].scales + k0 / 128 * scale_bytes_of(f), at->ahead * at->stride.scales, 1);
    }
    add(f, m, w, x, k, k0, 0, GROUP, sum);
    if (is_superblock(f)) add(f, m, w, x, k, k0 + GROUP, 1, GROUP, sum);
  }
  if (!is_superblock(f) && k0 < k) add(f, m, w, x, k, k0, 0, (uint32_t)(k - k0), sum);
}

/* The rows w for m tokens: out[r][t * ldc]. */
typedef void (*block_fn)(int f, uint32_t m, const walk *at, const row *w, const uint8_t *const *x, float *const *out);

INLINE void gemm(int f, uint32_t rows, block_fn block, const moi_gemm_tile *tile) {
  walk at = {tile, strides_of(f, tile->w->k), 0};
  at.ahead = rows_ahead(&at.stride, rows);
  for (uint32_t n = tile->n0; n < tile->n1; n += rows) {
    row w[4];
    uint32_t column[4];
    for (uint32_t r = 0; r < rows; r++) {
      /* the last row again rather than a case for fewer */
      uint32_t last = n + r < tile->n1 ? n + r : tile->n1 - 1;
      w[r] = row_of(tile->w, &at.stride, last);
      column[r] = last - tile->n0;
    }
    for (uint32_t t = 0; t < tile->m; t += TOKENS) {
      const uint32_t m = tile->m - t < TOKENS ? tile->m - t : TOKENS;
      const uint8_t *x[TOKENS];
      float *out[4];
      for (uint32_t i = 0; i < m; i++) x[i] = tile->x + tile->rows[t + i] * tile->x_stride;
      for (uint32_t r = 0; r < rows; r++) out[r] = tile->c + t * tile->ldc + column[r];
      switch (m) {
      case 1: block(f, 1, &at, w, x, out); break;
      case 2: block(f, 2, &at, w, x, out); break;
      case 3: block(f, 3, &at, w, x, out); break;
      default: block(f, TOKENS, &at, w, x, out); break;
      }
    }
  }
}

#endif
