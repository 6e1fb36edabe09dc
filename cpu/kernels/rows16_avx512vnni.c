/* GEMMs on 16 interleaved rows (order R), any number of tokens: c = x W^T with integer activations, vpdpbusd.
 *
 * A vector of codes is four bytes of 16 rows, as it lies in memory: they meet four bytes of a token's x that a load has
 * spread over the lanes, nibbles first the low and then the high ones. Sums belong to 16 rows; nothing is turned and
 * nothing is left to sum over lanes. x is d * q for each 32, q an integer of one or two digits, weights are unsigned
 * bytes u = w / scale + offset: a block is
 *   scale * (d * (256 * sum u*hi + sum u*lo) - offset * s)      or, of Q4_K,
 *   scale * d * (256 * sum u*hi + sum u*lo) - minimum * s
 * where the sums are exact integers and s = d * sum q comes with the prepared row.
 *
 * Codes are taken apart for each tile of tokens again, in instructions that other ports run beside the products.
 *
 * Every (token, row) has sums of its own in an order that depends on k alone: BATCH_INVARIANT. */
#if defined(__x86_64__)

#include "cpu/kernels/int_avx512.h"
#define COLUMNS 32 /* two vectors of weights share the loads of x */
#include "cpu/kernels/panel.h"
#include "cpu/kernels/rows16.h"

enum {
  VECTORS = COLUMNS / 16,
  CALL = 256 /* tokens whose -offset * s are in scratch: 8 rows of it */
};

INLINE int is_r16_k(int f) { return f == MOI_FORMAT_Q4_K_R16; }
/* Q4_K: bytes of 256 elements of 16 rows, and of what stands before their codes. */
enum { SUPERBLOCK = 2304, HEADER = 256 };

/* The scales of a block's 16 rows. */
INLINE __m512 r16_scales(int f, const uint8_t *at) {
  if (f == MOI_FORMAT_MXFP4_R16)
    return e8m0_half(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)at)));
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}

/* The 8 scales and then the 8 minima of a superblock of 16 rows: k_scales with a row in each lane. */
typedef struct k_values {
  float of[16][16];
} k_values;

INLINE void r16_k_values(const uint8_t *at, k_values *out) {
  __m512i h[4];
  for (int i = 0; i < 4; i++) h[i] = _mm512_loadu_si512(at + 64 * i);
  k_scales_of_rows(h, out->of[0], 16);
}

/* sum += u . q. GCC 12 copies every sum around the intrinsic, once before and once behind it. */
INLINE __m512i dot(__m512i sum, __m512i u, __m512i q) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(q));
  return sum;
}

INLINE __m512i spread(const uint8_t *x) { return _mm512_set1_epi32(*(const int32_t *)(const void *)x); }

/* 16 rows of W, and of Q4_K the values of their superblocks where more than one tile needs them. */
typedef struct group {
  const uint8_t *codes, *scales;
  const k_values *values; /* NULL: to be made */
} group;

/* Word `word` of 8 of block b of k as unsigned bytes. */
INLINE __m512i word_of(int f, const uint8_t *codes, uint32_t b, uint32_t word, __m512i low, __m512i table) {
  if (f == MOI_FORMAT_Q8_0_R16) return _mm512_xor_si512(_mm512_loadu_si512(codes + word * 64), low);
  const int high = is_r16_k(f) ? (int)(b & 1) : word >= 4;
  __m512i u = _mm512_loadu_si512(codes + (is_r16_k(f) ? word : word % 4) * 64);
  u = _mm512_and_si512(high ? _mm512_srli_epi16(u, 4) : u, low);
  return r16_has_table(f) ? _mm512_shuffle_epi8(table, u) : u;
}

/* Constants of a tile, and what does not change while it goes along k. */
typedef struct work {
  int f;
  uint32_t digits, tokens;
  uint32_t together; /* digits that have sums of their own */
  const uint8_t *const *x;
  const float *const *s; /* -offset * s of each token and block */
  size_t d_at;
  __m512i low, table;
} work;

/* y += those of block b of k, of two groups of rows. scales: as they lie; of Q4_K a row of k_values. */
INLINE void add_block(const work *w, uint32_t b, const uint8_t *const codes[VECTORS], const void *const scales[VECTORS],
                      __m512 y[PANEL_TOKENS][VECTORS]) {
  const uint32_t tokens = w->tokens, digits = w->digits, together = w->together;
  const size_t at = digits * 64 * (b / 2) + b % 2 * 32;
  __m512i a[PANEL_TOKENS][2][VECTORS];
#pragma GCC unroll 6
  for (uint32_t t = 0; t < tokens; t++)
    a[t][0][0] = a[t][0][1] = a[t][1][0] = a[t][1][1] = _mm512_setzero_si512();
#pragma GCC unroll 2
  for (uint32_t digit = 0; digit < digits; digit += together) {
    if (digit)
#pragma GCC unroll 6
      for (uint32_t t = 0; t < tokens; t++) {
        a[t][0][0] = _mm512_slli_epi32(a[t][0][0], 8);
        a[t][0][1] = _mm512_slli_epi32(a[t][0][1], 8);
      }
#pragma GCC unroll 8
    for (uint32_t word = 0; word < 8; word++) {
      __m512i u0 = word_of(w->f, codes[0], b, word, w->low, w->table);
      __m512i u1 = word_of(w->f, codes[1], b, word, w->low, w->table);
      IN_REGISTER(u0);
      IN_REGISTER(u1);
#pragma GCC unroll 6
      for (uint32_t t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (uint32_t i = 0; i < together; i++) {
          const __m512i q = spread(w->x[t] + at + 64 * (digit + i) + 4 * word);
          a[t][i][0] = dot(a[t][i][0], u0, q);
          a[t][i][1] = dot(a[t][i][1], u1, q);
        }
    }
  }
#pragma GCC unroll 2
  for (uint32_t v = 0; v < VECTORS; v++) {
    const float *k_scales = scales[v];
    const __m512 scale = is_r16_k(w->f) ? _mm512_load_ps(k_scales) : r16_scales(w->f, scales[v]);
    const __m512 minimum = is_r16_k(w->f) ? _mm512_load_ps(k_scales + 128) : scale;
#pragma GCC unroll 6
    for (uint32_t t = 0; t < tokens; t++) {
      __m512i all = a[t][0][v];
      if (together == 2) all = _mm512_add_epi32(_mm512_slli_epi32(all, 8), a[t][1][v]);
      const __m512 q = _mm512_cvtepi32_ps(all);
      const __m512 dt = _mm512_set1_ps(((const float *)(const void *)(w->x[t] + w->d_at))[b]);
      const __m512 st = _mm512_set1_ps(w->s[t][b]);
      if (is_r16_k(w->f))
        y[t][v] = _mm512_fmadd_ps(minimum, st, _mm512_fmadd_ps(scale, _mm512_mul_ps(q, dt), y[t][v]));
      else
        y[t][v] = _mm512_fmadd_ps(scale, _mm512_fmadd_ps(q, dt, st), y[t][v]);
    }
  }
}

/* tokens x COLUMNS results of two groups of rows. */
INLINE void tile(int f, uint32_t digits, uint32_t tokens, uint32_t k, const uint8_t *const *x, const float *const *s,
                 const group rows[VECTORS], ahead_state *state, float sum[][COLUMNS]) {
  ahead_state ahead = *state; /* in registers */
  work w = {f, digits, tokens, tokens * digits <= 6 ? digits : 1, x, s,
            digits == 2 ? MOI_FORM_D(k) : MOI_FORM_I8_D(k),
            _mm512_set1_epi8(f == MOI_FORMAT_Q8_0_R16 ? (char)128 : 15), _mm512_setzero_si512()};
  IN_REGISTER(w.low);
  if (r16_has_table(f)) {
    w.table = load16x4(codes_of(r16_codes_as(f)));
    IN_REGISTER(w.table);
  }
  __m512 y[PANEL_TOKENS][VECTORS];
  const uint8_t *codes[VECTORS];
  const void *scales[VECTORS];
#pragma GCC unroll 6
  for (uint32_t t = 0; t < tokens; t++) y[t][0] = y[t][1] = _mm512_setzero_ps();
  if (is_r16_k(f)) {
    for (uint32_t b = 0; b < k / 32; b += 8) {
      k_values own[VECTORS] __attribute__((aligned(64)));
      const k_values *values[VECTORS];
      for (uint32_t v = 0; v < VECTORS; v++) {
        values[v] = rows[v].values ? rows[v].values + b / 8 : &own[v];
        if (!rows[v].values) r16_k_values(rows[v].codes + (size_t)b / 8 * SUPERBLOCK, &own[v]);
      }
#pragma GCC unroll 1
      for (uint32_t i = 0; i < 8; i += 2)
#pragma GCC unroll 2
        for (uint32_t half = 0; half < 2; half++) {
          ahead_fetch(&ahead, tokens);
          for (uint32_t v = 0; v < VECTORS; v++) {
            codes[v] = rows[v].codes + (size_t)b / 8 * SUPERBLOCK + HEADER + i / 2 * 512;
            scales[v] = values[v]->of[i + half];
          }
          /* b and i are even: which nibbles it is, is a constant */
          add_block(&w, (b + i) / 2 * 2 + half, codes, scales, y);
        }
    }
  } else {
#pragma GCC unroll 1
    for (uint32_t b = 0; b < k / 32; b++) {
      ahead_fetch(&ahead, tokens);
      for (uint32_t v = 0; v < VECTORS; v++) {
        codes[v] = rows[v].codes + (size_t)b * r16_code_bytes(f);
        scales[v] = rows[v].scales + (size_t)b * r16_scale_bytes(f);
      }
      add_block(&w, b, codes, scales, y);
    }
  }
  *state = ahead;
#pragma GCC unroll 6
  for (uint32_t t = 0; t < tokens; t++) {
    _mm512_store_ps(sum[t], y[t][0]);
    _mm512_store_ps(sum[t] + 16, y[t][1]);
  }
}

/* One function for each number of tokens. */
#define TILE(name, format, digits, tokens)                                                                             \
  static __attribute__((noinline)) void tile_##name##_##digits##_##tokens(                                             \
      uint32_t k, const uint8_t *const *x, const float *const *s, const group rows[VECTORS], ahead_state *ahead,       \
      float sum[][COLUMNS]) {                                                                                          \
    tile(MOI_FORMAT_##format, digits, tokens, k, x, s, rows, ahead, sum);                                              \
  }
typedef void (*tile_fn)(uint32_t k, const uint8_t *const *x, const float *const *s, const group rows[VECTORS],
                        ahead_state *ahead, float sum[][COLUMNS]);

/* -offset * s of the blocks of 32 of a prepared row. */
INLINE void sums_of_x(float offset, size_t kp, const float *s, float *out) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  for (size_t i = 0; i < kp / 32; i += 16) {
    const size_t left = kp / 16 - 2 * i;
    const __m512 a = _mm512_maskz_loadu_ps(first(left < 16 ? (uint32_t)left : 16), s + 2 * i);
    const __m512 b = _mm512_maskz_loadu_ps(first(left > 32 ? 16 : left > 16 ? (uint32_t)left - 16 : 0), s + 2 * i + 16);
    const __m512 v = _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
    const __mmask16 exist = first(left < 32 ? (uint32_t)left / 2 : 16);
    _mm512_mask_storeu_ps(out + i, exist, _mm512_mul_ps(v, _mm512_set1_ps(-offset)));
  }
}

/* scratch_rows: 8, Q4_K: 2 more for values */
INLINE void gemm(int f, uint32_t digits, const tile_fn run[PANEL_TOKENS], const moi_gemm_tile *g) {
  const moi_matrix *w = g->w;
  const size_t kp = MOI_FORM_KP(w->k), s_at = digits == 2 ? MOI_FORM_S(w->k) : MOI_FORM_I8_S(w->k);
  const size_t blocks = w->k / 32, group_scales = blocks * r16_scale_bytes(f);
  const size_t group_bytes = is_r16_k(f) ? w->k / 256 * SUPERBLOCK : blocks * r16_code_bytes(f);
  float *const s = g->scratch, sum[PANEL_TOKENS][COLUMNS] __attribute__((aligned(64)));
  ahead_state ahead = ahead_of(g, (uint64_t)((g->n1 - g->n0 + COLUMNS - 1) / COLUMNS) * blocks * g->m);
  for (uint32_t t0 = 0; t0 < g->m; t0 += CALL) {
    const uint32_t m = g->m - t0 < CALL ? g->m - t0 : CALL;
    for (uint32_t t = 0; t < m; t++)
      sums_of_x(r16_offset(f), kp, (const float *)(const void *)(g->x + g->rows[t0 + t] * g->x_stride + s_at),
                s + t * (kp / 32));
    for (uint32_t n = g->n0; n < g->n1; n += COLUMNS) {
      const uint32_t width = g->n1 - n < COLUMNS ? g->n1 - n : COLUMNS;
      group rows[VECTORS]; /* the last again rather than a case for one */
      for (uint32_t v = 0; v < VECTORS; v++) {
        const size_t i = n / 16 + (16 * v < width ? v : 0);
        rows[v] = (group){w->data + i * group_bytes, group_scales ? w->scales + i * group_scales : NULL, NULL};
        if (!is_r16_k(f) || m <= PANEL_TOKENS) continue;
        k_values *values = (k_values *)(void *)((float *)g->scratch + 8 * kp) + v * (w->k / 256);
        for (size_t b = 0; b < w->k / 256; b++) r16_k_values(rows[v].codes + b * SUPERBLOCK, values + b);
        rows[v].values = values;
      }
      for (uint32_t t = 0, tokens; t < m; t += tokens) {
        tokens = panel_tokens(t, m);
        const uint8_t *x[PANEL_TOKENS];
        const float *sx[PANEL_TOKENS];
        for (uint32_t i = 0; i < tokens; i++) {
          x[i] = g->x + g->rows[t0 + t + i] * g->x_stride;
          sx[i] = s + (t + i) * (kp / 32);
        }
        run[tokens - 1](w->k, x, sx, rows, &ahead, sum);
        for (uint32_t i = 0; i < tokens; i++)
          for (uint32_t j = 0; j < width; j += 16)
            _mm512_mask_storeu_ps(g->c + (t0 + t + i) * g->ldc + (n - g->n0) + j, first(width - j),
                                  _mm512_mul_ps(_mm512_set1_ps(w->global), _mm512_load_ps(sum[i] + j)));
      }
    }
  }
}

#define GEMM(name, format, row, digits)                                                                                \
  TILE(name, format, digits, 1)                                                                                        \
  TILE(name, format, digits, 2)                                                                                        \
  TILE(name, format, digits, 3)                                                                                        \
  TILE(name, format, digits, 4)                                                                                        \
  TILE(name, format, digits, 5)                                                                                        \
  TILE(name, format, digits, 6)                                                                                        \
  void moi_gemm_##row##_avx512vnni(const moi_gemm_tile *g);                                                            \
  void moi_gemm_##row##_avx512vnni(const moi_gemm_tile *g) {                                                           \
    static const tile_fn run[PANEL_TOKENS] = {tile_##name##_##digits##_1, tile_##name##_##digits##_2,                  \
                                              tile_##name##_##digits##_3, tile_##name##_##digits##_4,                  \
                                              tile_##name##_##digits##_5, tile_##name##_##digits##_6};                 \
    gemm(MOI_FORMAT_##format, digits, run, g);                                                                         \
  }
GEMM(q4_0, Q4_0_R16, q4_0_r16, 2)
GEMM(q4_0, Q4_0_R16, q4_0_r16_i8, 1)
GEMM(iq4_nl, IQ4_NL_R16, iq4_nl_r16, 2)
GEMM(iq4_nl, IQ4_NL_R16, iq4_nl_r16_i8, 1)
GEMM(mxfp4, MXFP4_R16, mxfp4_r16, 2)
GEMM(mxfp4, MXFP4_R16, mxfp4_r16_i8, 1)
GEMM(q8_0, Q8_0_R16, q8_0_r16, 2)
GEMM(q8_0, Q8_0_R16, q8_0_r16_i8, 1)
GEMM(q4_k, Q4_K_R16, q4_k_r16, 2)
GEMM(q4_k, Q4_K_R16, q4_k_r16_i8, 1)

#endif
