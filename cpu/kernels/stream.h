/* GEMMs for few tokens on formats that decode in a few instructions (f32, f16, bf16, fp8): weights go from memory through
 * registers into fp32 FMAs and are touched once. An including file defines
 *
 *   vec, LANES, vec_zero(), vec_load(const float *), vec_fma(a, b, c), vec_splat(float), vec_mul(a, b), vec_sum(vec)
 *   decode_<format>(const uint8_t *p, vec *w0, vec *w1)     2 * LANES elements
 *   nan_vec, nan_zero(), nan_add(nan_vec, const uint8_t *)  notes whether one of 64 E4M3 codes is NaN; nan_any(nan_vec)
 *   PAIRS_FROM_3     1 where the registers hold the sums of four rows for two tokens, but not for three or four
 *
 * Rows of weights are short (a page or less), too short for the hardware's prefetchers to run up: while one group of rows
 * is used, the next is fetched. A (token, row) has one chain of operations that depends on k alone: BATCH_INVARIANT. */
#ifndef MOI_CPU_KERNELS_STREAM_H
#define MOI_CPU_KERNELS_STREAM_H

#include <string.h>

#include "cpu/kernel.h"

#define INLINE static inline __attribute__((always_inline))

enum { STEP = 2 * LANES, TOKENS = 4, BLOCK = 128 /* elements between two looks at prefetch, NaN and scale */ };

/* What follows the products: nothing; or codes of E4M3, which decode to 2^-8 of their values and may have a scale for each
 * tile of 128 x 128. */
enum { PLAIN = 0, E4M3_SCALED = 1, E4M3 = 2 };

typedef void (*decode_fn)(const uint8_t *p, vec *w0, vec *w1);

/* acc[r][t] += row r . x[t] over n elements. Behind a ragged end the last ones read as 0. */
INLINE void stream_block(const int rows, const int tokens, decode_fn decode, const size_t element,
                         const uint8_t *const *row, const float *const *x, size_t n, vec acc[4][TOKENS]) {
  size_t k = 0;
  for (; k + STEP <= n; k += STEP) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      vec w0, w1;
      decode(row[r] + k * element, &w0, &w1);
#pragma GCC unroll 4
      for (int t = 0; t < tokens; t++) {
        acc[r][t] = vec_fma(w0, vec_load(x[t] + k), acc[r][t]);
        acc[r][t] = vec_fma(w1, vec_load(x[t] + k + LANES), acc[r][t]);
      }
    }
  }
  if (k == n) return;
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) {
    uint8_t tail[STEP * 4];
    memset(tail, 0, sizeof tail);
    memcpy(tail, row[r] + k * element, (n - k) * element);
    vec w0, w1;
    decode(tail, &w0, &w1);
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
      acc[r][t] = vec_fma(w0, vec_load(x[t] + k), acc[r][t]);
      acc[r][t] = vec_fma(w1, vec_load(x[t] + k + LANES), acc[r][t]);
    }
  }
}

/* The rows n..n+rows-1 for `tokens` tokens from t0 on. ahead: bytes from a row to the one that takes its place next. */
INLINE void stream_group(const int rows, const int tokens, const int fp8, decode_fn decode, const size_t element,
                         const moi_gemm_tile *tile, uint32_t n, uint32_t t0, size_t ahead) {
  const moi_matrix *m = tile->w;
  const size_t k = m->k;
  const uint32_t have = tile->n1 - n < (uint32_t)rows ? tile->n1 - n : (uint32_t)rows;
  const uint8_t *row[4];
  const float *x[TOKENS];
  vec acc[4][TOKENS];
  nan_vec nans = nan_zero();
  for (int r = 0; r < rows; r++) { /* the last one again where the matrix ends: computed, never stored */
    uint32_t at = n + ((uint32_t)r < have ? (uint32_t)r : have - 1);
    row[r] = m->data + at * k * element;
    for (int t = 0; t < tokens; t++) acc[r][t] = vec_zero();
  }
  for (int t = 0; t < tokens; t++)
    x[t] = (const float *)(const void *)(tile->x + tile->rows[t0 + (uint32_t)t] * tile->x_stride);
  /* fp8: one scale for a tile of 128 x 128; a group starts at a multiple of its rows, so they share one row of tiles */
  const float *scale = (const float *)(const void *)m->scales;
  if (fp8 == E4M3_SCALED) scale += (size_t)(n / 128) * ((k + 127) / 128);
  for (size_t k0 = 0; k0 < k; k0 += BLOCK) {
    const size_t size = k - k0 < BLOCK ? k - k0 : BLOCK;
    if (ahead)
      for (int r = 0; r < rows; r++)
        for (size_t i = 0; i < BLOCK * element; i += 64) __builtin_prefetch(row[r] + ahead + i, 0, MOI_AHEAD_INTO);
    if (fp8) {
      vec part[4][TOKENS], s = vec_splat(fp8 == E4M3_SCALED ? scale[k0 / 128] : 1.0f), lift = vec_splat(256.0f);
      for (int r = 0; r < rows; r++) {
        for (int t = 0; t < tokens; t++) part[r][t] = vec_zero();
        if (size == BLOCK) nans = nan_add(nan_add(nans, row[r]), row[r] + 64);
      }
      if (size < BLOCK)
        for (int r = 0; r < rows; r++)
          for (size_t i = 0; i < size; i += 64) {
            uint8_t tail[64];
            memset(tail, 0, sizeof tail);
            memcpy(tail, row[r] + i, size - i < 64 ? size - i : 64);
            nans = nan_add(nans, tail);
          }
      stream_block(rows, tokens, decode, element, row, x, size, part);
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) acc[r][t] = vec_fma(vec_mul(part[r][t], lift), s, acc[r][t]);
    } else {
      stream_block(rows, tokens, decode, element, row, x, size, acc);
    }
    for (int r = 0; r < rows; r++) row[r] += BLOCK * element;
    for (int t = 0; t < tokens; t++) x[t] += BLOCK;
  }
  float *c = tile->c + t0 * tile->ldc + (n - tile->n0);
  for (uint32_t r = 0; r < have; r++)
    for (uint32_t t = 0; t < (uint32_t)tokens; t++) c[t * tile->ldc + r] = m->global * vec_sum(acc[r][t]);
  if (!fp8 || !nan_any(nans)) return;
  for (uint32_t r = 0; r < have; r++) { /* NaN codes decode to numbers above: their rows are NaN */
    const uint8_t *code = m->data + (n + r) * k;
    for (size_t i = 0; i < k; i++)
      if ((code[i] & 127) == 127)
        for (uint32_t t = 0; t < (uint32_t)tokens; t++) c[t * tile->ldc + r] = __builtin_nanf("");
  }
}

/* From three tokens on two rows at a time where four do not fit the registers; fp8 has two sums for each (token, row). */
INLINE void stream_tokens(const int rows, const int tokens, const int fp8, decode_fn decode, const size_t element,
                          const moi_gemm_tile *tile, uint32_t n, uint32_t t0, size_t ahead) {
  if (!fp8 && !PAIRS_FROM_3) {
    stream_group(rows, tokens, fp8, decode, element, tile, n, t0, ahead);
    return;
  }
  for (uint32_t r = 0; r < (uint32_t)rows && n + r < tile->n1; r += 2)
    stream_group(2, tokens, fp8, decode, element, tile, n + r, t0, ahead);
}

INLINE void stream_gemm(const int rows, const int fp8, decode_fn decode, const size_t element,
                        const moi_gemm_tile *tile) {
  const size_t row_bytes = tile->w->k * element;
  for (uint32_t n = tile->n0; n < tile->n1; n += (uint32_t)rows) {
    for (uint32_t t = 0; t < tile->m; t += TOKENS) {
      const size_t ahead = t == 0 && n + 2 * (uint32_t)rows < tile->w->n ? (size_t)rows * row_bytes : 0;
      switch (tile->m - t) {
      case 1: stream_group(rows, 1, fp8, decode, element, tile, n, t, ahead); break;
      case 2: stream_group(rows, 2, fp8, decode, element, tile, n, t, ahead); break;
      case 3: stream_tokens(rows, 3, fp8, decode, element, tile, n, t, ahead); break;
      default: stream_tokens(rows, 4, fp8, decode, element, tile, n, t, ahead); break;
      }
    }
  }
}

/* (format, rows of W at once, bytes of an element, PLAIN or which E4M3) */
#define STREAM(format, rows, element, fp8)                                                                             \
  void STREAM_NAME(format)(const moi_gemm_tile *tile);                                                                 \
  void STREAM_NAME(format)(const moi_gemm_tile *tile) { stream_gemm(rows, fp8, decode_##format, element, tile); }

#define STREAM_ALL                                                                                                     \
  STREAM(f32, 4, 4, PLAIN) STREAM(f16, 4, 2, PLAIN) STREAM(bf16, 4, 2, PLAIN) STREAM(fp8, 4, 1, E4M3)                   \
  STREAM(fp8_b128, 4, 1, E4M3_SCALED)

#endif
