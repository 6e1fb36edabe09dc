/* BF16 weights times BF16 activations in BFMMLA: two rows of weights meet two tokens, four elements at a time.
 *
 * Unless a program sets FPCR.EBF (FEAT_EBF16) the instruction rounds each of its steps to odd and flushes subnormals,
 * whatever the rounding mode is. Its four results do not touch each other, so the last token of an odd number goes in
 * twice; a (token, row) has one chain of operations that depends on k alone: BATCH_INVARIANT. */
#if defined(__aarch64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns") /* it would make the 26 registers of a tile more than there are */
#endif

#include <arm_neon.h>
#include <string.h>

#include "cpu/kernel.h"

#define INLINE static inline __attribute__((always_inline))

/* A tile is ROWS of weights by TOKENS. K_BLOCK elements at a time: both stay in the first-level cache while tokens go
 * by, and chains of sums stay short. */
enum { ROWS = 8, TOKENS = 8, STEP = 8, K_BLOCK = 1024 };

/* The first or the last four elements of a, then those of b. */
INLINE bfloat16x8_t pair(uint16x8_t a, uint16x8_t b, int last) {
  const uint64x2_t p = vreinterpretq_u64_u16(a), q = vreinterpretq_u64_u16(b);
  return vreinterpretq_bf16_u64(last ? vzip2q_u64(p, q) : vzip1q_u64(p, q));
}

/* sum[j][p]: tokens 2j and 2j+1 by rows 2p and 2p+1, STEP elements from k on. */
INLINE void add_step(uint32_t pairs, const uint16_t *const *w, const uint16_t *const *x, size_t w_at, size_t x_at,
                     float32x4_t sum[TOKENS / 2][ROWS / 2]) {
  bfloat16x8_t c[ROWS / 2][2];
#pragma GCC unroll 4
  for (uint32_t p = 0; p < ROWS / 2; p++) {
    const uint16x8_t a = vld1q_u16(w[2 * p] + w_at), b = vld1q_u16(w[2 * p + 1] + w_at);
    c[p][0] = pair(a, b, 0), c[p][1] = pair(a, b, 1);
  }
#pragma GCC unroll 4
  for (uint32_t j = 0; j < pairs; j++) {
    const uint16x8_t a = vld1q_u16(x[2 * j] + x_at), b = vld1q_u16(x[2 * j + 1] + x_at);
    const bfloat16x8_t first = pair(a, b, 0), last = pair(a, b, 1);
#pragma GCC unroll 4
    for (uint32_t p = 0; p < ROWS / 2; p++) sum[j][p] = vbfmmlaq_f32(sum[j][p], first, c[p][0]);
#pragma GCC unroll 4
    for (uint32_t p = 0; p < ROWS / 2; p++) sum[j][p] = vbfmmlaq_f32(sum[j][p], last, c[p][1]);
  }
}

/* Where the sums of a tile's block of k go: the first block sets, the others add, the last multiplies by `global`. */
typedef struct place {
  float *c;
  size_t ldc;
  uint32_t rows, tokens;
  int first, last;
  float global;
} place;

INLINE void put(const place *to, float *c, float32x4_t low, float32x4_t high) {
  const int whole = to->rows == ROWS;
  float part[ROWS] = {0}, *at = whole ? c : part;
  if (!to->first) {
    if (!whole) memcpy(part, c, to->rows * sizeof *c);
    low = vaddq_f32(vld1q_f32(at), low);
    high = vaddq_f32(vld1q_f32(at + 4), high);
  }
  if (to->last) low = vmulq_n_f32(low, to->global), high = vmulq_n_f32(high, to->global);
  vst1q_f32(at, low);
  vst1q_f32(at + 4, high);
  if (!whole) memcpy(c, part, to->rows * sizeof *c);
}

/* n elements; the weights behind them are not read, the activations there are zeros. */
INLINE void tile_of(uint32_t pairs, const uint16_t *const *w, const uint16_t *const *x, size_t n, const place *to) {
  float32x4_t sum[TOKENS / 2][ROWS / 2];
#pragma GCC unroll 4
  for (uint32_t j = 0; j < pairs; j++)
#pragma GCC unroll 4
    for (uint32_t p = 0; p < ROWS / 2; p++) sum[j][p] = vdupq_n_f32(0);
  size_t k = 0;
  for (; k + STEP <= n; k += STEP) add_step(pairs, w, x, k, k, sum);
  if (k < n) {
    uint16_t tail[ROWS][STEP] = {{0}};
    const uint16_t *at[ROWS];
    for (uint32_t r = 0; r < ROWS; r++) {
      memcpy(tail[r], w[r] + k, (n - k) * sizeof tail[r][0]);
      at[r] = tail[r];
    }
    add_step(pairs, at, x, 0, k, sum);
  }
#pragma GCC unroll 4
  for (uint32_t j = 0; j < pairs; j++) {
    const float32x4_t *s = sum[j];
    float *c = to->c + 2 * j * to->ldc;
    put(to, c, vcombine_f32(vget_low_f32(s[0]), vget_low_f32(s[1])),
        vcombine_f32(vget_low_f32(s[2]), vget_low_f32(s[3])));
    if (2 * j + 1 < to->tokens)
      put(to, c + to->ldc, vcombine_f32(vget_high_f32(s[0]), vget_high_f32(s[1])),
          vcombine_f32(vget_high_f32(s[2]), vget_high_f32(s[3])));
  }
}

void moi_gemm_bf16_neonbf16(const moi_gemm_tile *tile);
void moi_gemm_bf16_neonbf16(const moi_gemm_tile *tile) {
  const moi_matrix *m = tile->w;
  const uint16_t *data = (const uint16_t *)(const void *)m->data;
  for (uint32_t n = tile->n0; n < tile->n1; n += ROWS) {
    const uint32_t rows = tile->n1 - n < ROWS ? tile->n1 - n : ROWS;
    for (uint32_t k0 = 0; k0 < m->k; k0 += K_BLOCK) {
      const uint32_t size = m->k - k0 < K_BLOCK ? m->k - k0 : K_BLOCK;
      const uint16_t *w[ROWS], *x[TOKENS];
      /* where rows or tokens end, the last again: computed, never stored */
      for (uint32_t r = 0; r < ROWS; r++) w[r] = data + (size_t)(n + (r < rows ? r : rows - 1)) * m->k + k0;
      for (uint32_t t = 0; t < tile->m; t += TOKENS) {
        const uint32_t tokens = tile->m - t < TOKENS ? tile->m - t : TOKENS;
        const place to = {tile->c + t * tile->ldc + (n - tile->n0), tile->ldc, rows, tokens, k0 == 0,
                          k0 + size == m->k, m->global};
        for (uint32_t i = 0; i < TOKENS; i++) {
          const uint32_t from = tile->rows[t + (i < tokens ? i : tokens - 1)];
          x[i] = (const uint16_t *)(const void *)(tile->x + from * tile->x_stride) + k0;
        }
        switch ((tokens + 1) / 2) {
        case 1: tile_of(1, w, x, size, &to); break;
        case 2: tile_of(2, w, x, size, &to); break;
        case 3: tile_of(3, w, x, size, &to); break;
        default: tile_of(4, w, x, size, &to); break;
        }
      }
    }
  }
}

#endif
typedef int moi_bf16_neonbf16_unit; /* never an empty translation unit */
