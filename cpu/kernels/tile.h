/* The loops that the floating-point GEMM kernels of every instruction set share. An including file defines
 *
 *   VEC     floats in a vector            vec, vec_zero(), vec_load(float *), vec_store(float *, vec)
 *   MR      tokens in a register tile, at most 6
 *   elem    element of prepared activations and of decoded weights; STEP of them make an operand
 *   operand, operand_load(const elem *), vec_dot(operand w, operand x, vec sum)
 *   vec_sum4(vec, vec, vec, vec) -> __m128, the sum over the lanes of each
 *
 * and, for K-ordered formats (with TILE_OUTER), vec_splat(float), vec_fma(vec, vec, vec).
 *
 * Every output is summed by one sequence of operations that depends on k alone: vector accumulators over k in ascending
 * order, then one fixed reduction. Blocking changes where accumulators wait, never what is added to them, so a row's
 * bits depend neither on the other rows nor on the tile. */
#ifndef MOI_CPU_TILE_H
#define MOI_CPU_TILE_H

#include <immintrin.h>
#include <string.h>

#include "cpu/kernel.h"

/* scratch_rows of every row that uses these loops (the outer-product ones too) */
enum { TILE_SCRATCH_ROWS = 32 };

enum { NR = 4, ROW_BLOCK = 16, K_BLOCK = 256, TOKEN_BLOCK = 96 };

static inline uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

static inline uint64_t scratch_floats(uint32_t k) { return MOI_FORM_KP(k) * (uint64_t)TILE_SCRATCH_ROWS; }

#define TILE_ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define TILE_LOAD(t)                                                                                                   \
  vec a##t##0 = vec_zero(), a##t##1 = vec_zero(), a##t##2 = vec_zero(), a##t##3 = vec_zero();                          \
  if (mt > t && !first) {                                                                                              \
    a##t##0 = vec_load(sums + (t * 4 + 0) * VEC);                                                                      \
    a##t##1 = vec_load(sums + (t * 4 + 1) * VEC);                                                                      \
    a##t##2 = vec_load(sums + (t * 4 + 2) * VEC);                                                                      \
    a##t##3 = vec_load(sums + (t * 4 + 3) * VEC);                                                                      \
  }
#define TILE_STORE(t)                                                                                                  \
  if (mt > t) {                                                                                                        \
    vec_store(sums + (t * 4 + 0) * VEC, a##t##0);                                                                      \
    vec_store(sums + (t * 4 + 1) * VEC, a##t##1);                                                                      \
    vec_store(sums + (t * 4 + 2) * VEC, a##t##2);                                                                      \
    vec_store(sums + (t * 4 + 3) * VEC, a##t##3);                                                                      \
  }

/* A tile's sums lie as [token][4] vectors. `first`: they start from zero. */
#define TILE_DISPATCH(tile, ...)                                                                                       \
  switch (mt) {                                                                                                        \
    case 1: tile(1, __VA_ARGS__); break;                                                                               \
    case 2: tile(2, __VA_ARGS__); break;                                                                               \
    case 3: tile(3, __VA_ARGS__); break;                                                                               \
    TILE_DISPATCH_MORE(tile, __VA_ARGS__)                                                                              \
  }
#if MR > 3
#define TILE_DISPATCH_MORE(tile, ...)                                                                                  \
  case 4: tile(4, __VA_ARGS__); break;                                                                                 \
  case 5: tile(5, __VA_ARGS__); break;                                                                                 \
  default: tile(6, __VA_ARGS__); break;
#else
#define TILE_DISPATCH_MORE(tile, ...)                                                                                  \
  default: break;
#endif

/* ------------------------------------------------------------------------------------- N-ordered formats: lanes are k */

/* Decodes elements k0..k1-1 of row n, zeros up to a multiple of STEP, and returns where they are: in dst (64-byte
 * aligned), or in the matrix itself. k0 is a multiple of K_BLOCK, k1 is w->k or another multiple. */
typedef const elem *(*decode_fn)(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, elem *dst);

#define DOT_STEP(t)                                                                                                    \
  if (mt > t) {                                                                                                        \
    operand v = operand_load(x##t + k);                                                                                \
    a##t##0 = vec_dot(w0, v, a##t##0);                                                                                 \
    a##t##1 = vec_dot(w1, v, a##t##1);                                                                                 \
    a##t##2 = vec_dot(w2, v, a##t##2);                                                                                 \
    a##t##3 = vec_dot(w3, v, a##t##3);                                                                                 \
  }
#define DOT_X(t) const elem *x##t = mt > t ? x[t] : NULL;

static inline __attribute__((always_inline)) void dot_tile(const uint32_t mt, const elem *const *x,
                                                           const elem *const *w, size_t k_steps, float *sums,
                                                           int first) {
  TILE_ROWS(DOT_X)
  TILE_ROWS(TILE_LOAD)
  const elem *p0 = w[0], *p1 = w[1], *p2 = w[2], *p3 = w[3];
  for (size_t k = 0; k < k_steps * STEP; k += STEP) {
    const operand w0 = operand_load(p0 + k), w1 = operand_load(p1 + k);
    const operand w2 = operand_load(p2 + k), w3 = operand_load(p3 + k);
    TILE_ROWS(DOT_STEP)
  }
  TILE_ROWS(TILE_STORE)
}

static void dot_block(uint32_t mt, const elem *const *x, const elem *const *w, size_t k_steps, float *sums, int first) {
  TILE_DISPATCH(dot_tile, x, w, k_steps, sums, first)
}

/* c[t][0..rows) of a finished tile */
static void dot_finish(const float *sums, uint32_t mt, uint32_t rows, float global, float *c, size_t ldc) {
  for (uint32_t t = 0; t < mt; t++, sums += NR * VEC, c += ldc) {
    __m128 s = vec_sum4(vec_load(sums), vec_load(sums + VEC), vec_load(sums + 2 * VEC), vec_load(sums + 3 * VEC));
    s = _mm_mul_ps(_mm_set1_ps(global), s);
    if (rows == NR) {
      _mm_storeu_ps(c, s);
    } else {
      float out[NR];
      _mm_storeu_ps(out, s);
      for (uint32_t r = 0; r < rows; r++) c[r] = out[r];
    }
  }
}

/* Few tokens: rows of weights go by in fours, and what is decoded stays in the first-level cache. Many: 16 rows of
 * K_BLOCK elements are decoded and used by up to TOKEN_BLOCK tokens, whose sums wait in scratch between two blocks of k.
 * row_bytes: of the data stream, to fetch from memory the rows that come next. */
static inline void gemm_dot(const moi_gemm_tile *tile, decode_fn decode, size_t row_bytes) {
  const moi_matrix *w = tile->w;
  const uint32_t k = w->k, few = tile->m <= MR, single = k <= K_BLOCK;
  const uint32_t block = few ? NR : ROW_BLOCK, kc = single ? (uint32_t)MOI_FORM_KP(k) : K_BLOCK;
  elem *decoded = tile->scratch;
  float *waiting = (float *)tile->scratch + (size_t)block * kc;
  float own[MR * NR * VEC] __attribute__((aligned(64)));
  const size_t part_bytes = (uint64_t)row_bytes * least(kc, k) / k;
  uint32_t tokens = tile->m;
  if (!single && !few)
    tokens = least(TOKEN_BLOCK, (uint32_t)((scratch_floats(k) - (uint64_t)block * kc) / (ROW_BLOCK * VEC)) / MR * MR);

  for (uint32_t n = tile->n0; n < tile->n1; n += block) {
    const uint32_t rows = least(block, tile->n1 - n);
    for (uint32_t t0 = 0; t0 < tile->m; t0 += tokens) {
      const uint32_t t1 = least(t0 + tokens, tile->m);
      for (uint32_t k0 = 0; k0 < k; k0 += kc) {
        const uint32_t k1 = least(k0 + kc, k);
        const size_t steps = (k1 - k0 + STEP - 1) / STEP;
        const elem *rows_at[ROW_BLOCK];
        for (uint32_t r = 0; r < block; r++) {
          if (r < rows) {
            if (n + r + block < w->n) {
              const uint8_t *next = w->data + (size_t)(n + r + block) * row_bytes + k0 / kc * part_bytes;
              for (size_t i = 0; i < part_bytes; i += 64) _mm_prefetch((const char *)next + i, _MM_HINT_T1);
            }
            rows_at[r] = decode(w, n + r, k0, k1, decoded + (size_t)r * kc);
          } else {
            rows_at[r] = rows_at[rows - 1]; /* computed, never stored */
          }
        }
        for (uint32_t t = t0; t < t1; t += MR) {
          const uint32_t mt = least(MR, t1 - t);
          const elem *x[MR];
          for (uint32_t i = 0; i < mt; i++)
            x[i] = (const elem *)(tile->x + tile->rows[t + i] * tile->x_stride) + k0;
          for (uint32_t r = 0; r < rows; r += NR) {
            float *sums = own;
            if (!single && !few) sums = waiting + ((size_t)(t - t0) * ROW_BLOCK + (size_t)r * MR) * VEC;
            dot_block(mt, x, rows_at + r, steps, sums, k0 == 0);
            if (k1 == k)
              dot_finish(sums, mt, least(NR, rows - r), w->global, tile->c + t * tile->ldc + (n - tile->n0) + r,
                         tile->ldc);
          }
        }
      }
    }
  }
}

/* ------------------------------------------------------------------------------------- K-ordered formats: lanes are n */

#ifdef TILE_OUTER

enum { N_BLOCK = 128, PAIR = 2 * VEC };

/* Decodes k0..k1-1 of columns n..n+width-1 (n a multiple of 16, width one of 8 or n + width the tile's or matrix's end)
 * to dst[k - k0][ld]; columns from width to ld are zero or finite. k0 is a multiple of 32. */
typedef void (*decode_columns_fn)(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst,
                                  size_t ld);

#define OUTER_STEP(t)                                                                                                  \
  if (mt > t) {                                                                                                        \
    vec even = vec_splat(x##t[k]), odd = vec_splat(x##t[k + 1]);                                                       \
    a##t##0 = vec_fma(w0, even, a##t##0);                                                                              \
    a##t##1 = vec_fma(w1, even, a##t##1);                                                                              \
    a##t##2 = vec_fma(w2, odd, a##t##2);                                                                               \
    a##t##3 = vec_fma(w3, odd, a##t##3);                                                                               \
  }

/* Two vectors of columns; sums of even and odd k are kept apart: shorter chains, smaller errors. */
static inline __attribute__((always_inline)) void outer_tile(const uint32_t mt, const float *const *x, const float *w,
                                                             size_t ld, size_t n_k, float *sums, int first) {
  TILE_ROWS(DOT_X)
  TILE_ROWS(TILE_LOAD)
  for (size_t k = 0; k < n_k; k += 2, w += 2 * ld) {
    const vec w0 = vec_load(w), w1 = vec_load(w + VEC), w2 = vec_load(w + ld), w3 = vec_load(w + ld + VEC);
    TILE_ROWS(OUTER_STEP)
  }
  TILE_ROWS(TILE_STORE)
}

static void outer_block(uint32_t mt, const float *const *x, const float *w, size_t ld, size_t n_k, float *sums,
                        int first) {
  TILE_DISPATCH(outer_tile, x, w, ld, n_k, sums, first)
}

static void outer_finish(const float *sums, uint32_t mt, uint32_t width, float global, float *c, size_t ldc) {
  for (uint32_t t = 0; t < mt; t++, sums += 4 * VEC, c += ldc)
    for (uint32_t i = 0; i < width; i++) c[i] = global * (sums[i] + sums[PAIR + i]);
}

static inline void gemm_outer(const moi_gemm_tile *tile, decode_columns_fn decode) {
  const moi_matrix *w = tile->w;
  const size_t kp = MOI_FORM_KP(w->k);
  const uint32_t kc = kp >= 1024 ? 64 : 32;
  /* half of the scratch for weights, half for sums; at kp = 64 that is 32 columns of 32 */
  const uint32_t most = least(N_BLOCK, (uint32_t)(kp * TILE_SCRATCH_ROWS / 2 / kc) / PAIR * PAIR);
  float *decoded = tile->scratch, *waiting = decoded + kp * TILE_SCRATCH_ROWS / 2;

  for (uint32_t n = tile->n0; n < tile->n1; n += most) {
    const uint32_t width = least(most, tile->n1 - n);
    const size_t ld = (width + PAIR - 1) / PAIR * PAIR;
    const uint32_t tokens = least(TOKEN_BLOCK, (uint32_t)(kp * TILE_SCRATCH_ROWS / 2 / (2 * ld)) / MR * MR);
    for (uint32_t t0 = 0; t0 < tile->m; t0 += tokens) {
      const uint32_t t1 = least(t0 + tokens, tile->m);
      for (uint32_t k0 = 0; k0 < w->k; k0 += kc) {
        const uint32_t k1 = least(k0 + kc, w->k);
        decode(w, n, width, k0, k1, decoded, ld);
        if ((k1 - k0) & 1) memset(decoded + (k1 - k0) * ld, 0, ld * sizeof(float));
        for (uint32_t t = t0; t < t1; t += MR) {
          const uint32_t mt = least(MR, t1 - t);
          const float *x[MR];
          for (uint32_t i = 0; i < mt; i++)
            x[i] = (const float *)(tile->x + tile->rows[t + i] * tile->x_stride) + k0;
          for (uint32_t j = 0; j < width; j += PAIR) {
            float *sums = waiting + (t - t0) * 2 * ld + (size_t)j / PAIR * MR * 4 * VEC;
            outer_block(mt, x, decoded + j, ld, k1 - k0, sums, k0 == 0);
            if (k1 == w->k)
              outer_finish(sums, mt, least(PAIR, width - j), w->global,
                           tile->c + t * tile->ldc + (n - tile->n0) + j, tile->ldc);
          }
        }
      }
    }
  }
}

#endif
#endif
