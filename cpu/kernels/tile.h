/* The loops that the floating-point GEMM kernels of every instruction set share. An including file defines
 *
 *   VEC     floats in a vector            vec, vec_zero()
 *   MR      tokens in a register tile, at most 6
 *   elem    element of prepared activations and of decoded weights; STEP of them make an operand
 *   operand, operand_load(const elem *), vec_dot(operand w, operand x, vec sum)
 *   vec_sum4(vec, vec, vec, vec) -> 4 floats in a vector, the sum over the lanes of each
 *
 * and, for K-ordered formats (with TILE_OUTER), vec_load(float *), vec_store(float *, vec), vec_splat(float),
 * vec_fma(vec, vec, vec), vec_add(vec, vec), vec_mul(vec, vec).
 *
 * Every output is summed by one sequence of operations that depends on k alone: for each block of k vector accumulators
 * in ascending order, then one fixed reduction, and the blocks' sums in ascending order in c. So a row's bits depend
 * neither on the other rows nor on the tile. */
#ifndef MOI_CPU_TILE_H
#define MOI_CPU_TILE_H

#include <string.h>

#include "cpu/kernel.h"

/* scratch_rows of every row that uses these loops (the outer-product ones too) */
enum { TILE_SCRATCH_ROWS = 32 };

/* NR rows of weights meet MR tokens in registers. ROW_BLOCK rows of K_BLOCK elements are decoded at once: K_BLOCK such
 * that the reduction at its end is little of the work, and that a tile's tokens stay in the first-level cache while those
 * rows come by from the second. FEW: up to here decoding is most of the work, so NR rows at a time, which stay in the
 * first. AHEAD_TOKENS: up to here memory is what a kernel waits for, so the next rows are fetched early; beyond, that
 * costs more than it hides. */
enum { NR = 4, ROW_BLOCK = 2 * VEC, K_BLOCK = 64 * (VEC > 8 ? VEC : 8), FEW = 2 * MR, AHEAD_TOKENS = 32 };

static inline uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

#define TILE_ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

/* what __m128 and float32x4_t are */
typedef float quad __attribute__((vector_size(16)));

#define TILE_ZERO(t) vec a##t##0 = vec_zero(), a##t##1 = vec_zero(), a##t##2 = vec_zero(), a##t##3 = vec_zero();
#define TILE_X(t) const elem *x##t = mt > t ? x[t] : NULL;

/* Where the sums of a tile's block of k go: the first block sets, the others add, the last multiplies by `global`. */
typedef struct tile_out {
  float *c;
  size_t ldc;
  uint32_t width; /* columns of c that exist */
  int first, last;
  float global;
} tile_out;

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

/* ----------------------------------------------------------------------------------- N-ordered formats: lanes are k */

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
#define DOT_END(t)                                                                                                     \
  if (mt > t) dot_end(vec_sum4(a##t##0, a##t##1, a##t##2, a##t##3), out, out->c + t * out->ldc);

static inline void dot_end(quad s, const tile_out *out, float *c) {
  const int whole = out->width == NR;
  float part[NR] = {0};
  if (!out->first) {
    if (!whole) memcpy(part, c, out->width * sizeof *c);
    quad before;
    memcpy(&before, whole ? c : part, sizeof before);
    s = before + s;
  }
  if (out->last) s = (quad){out->global, out->global, out->global, out->global} * s;
  memcpy(whole ? c : part, &s, sizeof s);
  if (!whole) memcpy(c, part, out->width * sizeof *c);
}

static inline __attribute__((always_inline)) void dot_tile(const uint32_t mt, const elem *const *x,
                                                           const elem *const *w, size_t k_steps,
                                                           const tile_out *out) {
  TILE_ROWS(TILE_X)
  TILE_ROWS(TILE_ZERO)
  const elem *p0 = w[0], *p1 = w[1], *p2 = w[2], *p3 = w[3];
  for (size_t k = 0; k < k_steps * STEP; k += STEP) {
    const operand w0 = operand_load(p0 + k), w1 = operand_load(p1 + k);
    const operand w2 = operand_load(p2 + k), w3 = operand_load(p3 + k);
    TILE_ROWS(DOT_STEP)
  }
  TILE_ROWS(DOT_END)
}

static __attribute__((noinline)) void dot_block(uint32_t mt, const elem *const *x, const elem *const *w, size_t k_steps,
                                                const tile_out *out) {
  TILE_DISPATCH(dot_tile, x, w, k_steps, out)
}

/* row_bytes: of the data stream; 0: what decoding returns lies in the matrix, and the hardware fetches it well. */
static inline void gemm_dot(const moi_gemm_tile *tile, decode_fn decode, size_t row_bytes) {
  const moi_matrix *w = tile->w;
  const uint32_t k = w->k, block = tile->m <= FEW ? NR : ROW_BLOCK;
  const uint32_t kc = k <= K_BLOCK ? (uint32_t)MOI_FORM_KP(k) : K_BLOCK;
  const size_t ahead = tile->m <= AHEAD_TOKENS ? (size_t)((uint64_t)row_bytes * least(kc, k) / k) : 0;
  elem *decoded = tile->scratch;

  for (uint32_t n = tile->n0; n < tile->n1; n += block) {
    const uint32_t rows = least(block, tile->n1 - n);
    for (uint32_t k0 = 0; k0 < k; k0 += kc) {
      const uint32_t k1 = least(k0 + kc, k);
      const size_t steps = (k1 - k0 + STEP - 1) / STEP;
      const elem *rows_at[ROW_BLOCK];
      for (uint32_t r = 0; r < block; r++) {
        if (r < rows) {
          if (ahead && n + r + block < w->n) {
            const size_t at = (size_t)(n + r + block) * row_bytes + k0 / kc * ahead;
            const size_t end = k1 < k ? at + ahead : (size_t)(n + r + block + 1) * row_bytes;
            for (size_t i = at; i < end; i += 64) __builtin_prefetch(w->data + i, 0, 2);
          }
          rows_at[r] = decode(w, n + r, k0, k1, decoded + (size_t)r * kc);
        } else {
          rows_at[r] = rows_at[rows - 1]; /* computed, never stored */
        }
      }
      for (uint32_t t = 0; t < tile->m; t += MR) {
        const uint32_t mt = least(MR, tile->m - t);
        const elem *x[MR];
        for (uint32_t i = 0; i < mt; i++)
          x[i] = (const elem *)(tile->x + tile->rows[t + i] * tile->x_stride) + k0;
        for (uint32_t r = 0; r < rows; r += NR) {
          const tile_out out = {tile->c + t * tile->ldc + (n - tile->n0) + r, tile->ldc, least(NR, rows - r), k0 == 0,
                                k1 == k, w->global};
          dot_block(mt, x, rows_at + r, steps, &out);
        }
      }
    }
  }
}

/* ----------------------------------------------------------------------------------- K-ordered formats: lanes are n */

#ifdef TILE_OUTER

/* A pair of vectors of OUTER_K_BLOCK rows fits the first-level cache. They are decoded OUTER_STRIP rows at a time for
 * all columns, so that each row's lines and pages are visited once. */
enum { PAIR = 2 * VEC, OUTER_COLUMNS = 128, OUTER_K_BLOCK = 128, OUTER_STRIP = 64 };

/* Decodes k0..k1-1 of columns n..n+width-1 (n a multiple of 16, width <= PAIR, one of 8 or n + width the tile's or
 * matrix's end) to dst[k - k0][PAIR]; columns from width to PAIR are zero or finite. k0 is a multiple of 32. */
typedef void (*decode_columns_fn)(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1,
                                  float *dst);

#define OUTER_STEP(t)                                                                                                  \
  if (mt > t) {                                                                                                        \
    vec even = vec_splat(x##t[k]), odd = vec_splat(x##t[k + 1]);                                                       \
    a##t##0 = vec_fma(w0, even, a##t##0);                                                                              \
    a##t##1 = vec_fma(w1, even, a##t##1);                                                                              \
    a##t##2 = vec_fma(w2, odd, a##t##2);                                                                               \
    a##t##3 = vec_fma(w3, odd, a##t##3);                                                                               \
  }
#define OUTER_END(t)                                                                                                   \
  if (mt > t) outer_end(vec_add(a##t##0, a##t##2), vec_add(a##t##1, a##t##3), out, out->c + t * out->ldc);

static inline void outer_end(vec low, vec high, const tile_out *out, float *c) {
  const int whole = out->width == PAIR;
  float part[PAIR] = {0}, *at = whole ? c : part;
  if (!out->first) {
    if (!whole) memcpy(part, c, out->width * sizeof *c);
    low = vec_add(vec_load(at), low);
    high = vec_add(vec_load(at + VEC), high);
  }
  if (out->last) {
    low = vec_mul(vec_splat(out->global), low);
    high = vec_mul(vec_splat(out->global), high);
  }
  vec_store(at, low);
  vec_store(at + VEC, high);
  if (!whole) memcpy(c, part, out->width * sizeof *c);
}

/* Two vectors of columns; sums of even and odd k are kept apart: shorter chains, smaller errors. */
static inline __attribute__((always_inline)) void outer_tile(const uint32_t mt, const float *const *x, const float *w,
                                                             size_t n_k, const tile_out *out) {
  TILE_ROWS(TILE_X)
  TILE_ROWS(TILE_ZERO)
  for (size_t k = 0; k < n_k; k += 2, w += 2 * PAIR) {
    const vec w0 = vec_load(w), w1 = vec_load(w + VEC), w2 = vec_load(w + PAIR), w3 = vec_load(w + PAIR + VEC);
    TILE_ROWS(OUTER_STEP)
  }
  TILE_ROWS(OUTER_END)
}

static __attribute__((noinline)) void outer_block(uint32_t mt, const float *const *x, const float *w, size_t n_k,
                                                  const tile_out *out) {
  TILE_DISPATCH(outer_tile, x, w, n_k, out)
}

static inline void gemm_outer(const moi_gemm_tile *tile, decode_columns_fn decode) {
  const moi_matrix *w = tile->w;
  const uint32_t kp = (uint32_t)MOI_FORM_KP(w->k), quarter = kp / 4 & ~31u;
  const uint32_t kc = quarter ? least(quarter, OUTER_K_BLOCK) : 32;
  const uint32_t most = least(OUTER_COLUMNS, kp / kc * TILE_SCRATCH_ROWS / PAIR * PAIR);
  float *decoded = tile->scratch;

  for (uint32_t n = tile->n0; n < tile->n1; n += most) {
    const uint32_t width = least(most, tile->n1 - n);
    for (uint32_t k0 = 0; k0 < w->k; k0 += kc) {
      const uint32_t k1 = least(k0 + kc, w->k);
      for (uint32_t k2 = k0; k2 < k1; k2 += OUTER_STRIP)
        for (uint32_t j = 0; j < width; j += PAIR)
          decode(w, n + j, least(PAIR, width - j), k2, least(k2 + OUTER_STRIP, k1),
                 decoded + (size_t)j * kc + (size_t)(k2 - k0) * PAIR);
      if ((k1 - k0) & 1)
        for (uint32_t j = 0; j < width; j += PAIR)
          memset(decoded + (size_t)j * kc + (size_t)(k1 - k0) * PAIR, 0, PAIR * sizeof(float));
      for (uint32_t t = 0; t < tile->m; t += MR) {
        const uint32_t mt = least(MR, tile->m - t);
        const float *x[MR];
        for (uint32_t i = 0; i < mt; i++)
          x[i] = (const float *)(tile->x + tile->rows[t + i] * tile->x_stride) + k0;
        for (uint32_t j = 0; j < width; j += PAIR) {
          const tile_out out = {tile->c + t * tile->ldc + (n - tile->n0) + j, tile->ldc, least(PAIR, width - j),
                                k0 == 0, k1 == w->k, w->global};
          outer_block(mt, x, decoded + (size_t)j * kc, k1 - k0, &out);
        }
      }
    }
  }
}

#endif
#endif
