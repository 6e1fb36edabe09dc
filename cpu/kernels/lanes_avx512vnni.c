/* GEMMs of Q4_K for few tokens: c = x W^T with integer activations, each weight taken apart once, vpdpbusd.
 *
 * x is d * (256*hi + lo) for each 32 elements, or d * hi (MOI_ACT_QUANT_INT8_32); weights are unsigned bytes u with
 * w = scale*u - minimum: a block is
 *   scale * d * (256 * sum u*hi + sum u*lo) - minimum * (d * sum q)
 * where the sums are exact integers and the last factor is the s of the prepared row.
 *
 * 64 bytes of codes of four rows are turned within 128-bit lanes: then vector j has in lane q the words 4q + j of the four
 * rows, and meets x in vectors whose lane q repeats its word 4q + j. So a vector's sums belong to four rows and up to four
 * blocks: scales are turned the same way, and the four lanes are added once, at the end. x as those vectors takes four times
 * its size; that is why k goes by in sections, whose x stays in the first-level cache while all rows of a call go by.
 *
 * Every (token, row) has sums of its own in an order that depends on k alone: BATCH_INVARIANT. */
#if defined(__x86_64__)

#include "cpu/kernels/ahead.h"
#include "cpu/kernels/int_avx512.h"

enum {
  ROWS = 4,      /* rows of W in a vector */
  TOKENS = 4,    /* most tokens at once */
  CALL = 64,     /* rows of W for a section of x */
  SECTION = 512, /* elements of k */
  GROUP = 256,   /* that share one fetch of scales: a superblock */
  STEP = 128,    /* of 64 bytes of codes: low nibbles, high nibbles */
  WORDS = 8      /* vectors of a step: four of low nibbles, then four of high ones */
};

/* ---- x */

/* A section of a token's x. */
typedef struct spread {
  uint8_t x[SECTION / STEP * WORDS][2][64]; /* [words of a step, steps after each other][digits] */
  float d[SECTION / STEP][2][16];           /* [steps][low, high] */
  float s[SECTION / GROUP][4][16];          /* what multiplies the turned minima */
} spread;

INLINE __m512i order(int a, int b, int c, int d) {
  return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}

INLINE void spread_x(int digits, uint32_t k, const uint8_t *x, size_t k0, spread *out) {
  const size_t k1 = k - k0 < SECTION ? k : k0 + SECTION;
  const float *d_at = (const float *)(const void *)(x + (digits == 2 ? MOI_FORM_D(k) : MOI_FORM_I8_D(k)));
  const float *s_at = (const float *)(const void *)(x + (digits == 2 ? MOI_FORM_S(k) : MOI_FORM_I8_S(k)));
  uint32_t i = 0;
  for (size_t at = k0; at < k1; at += STEP, i++) {
    for (int digit = 0; digit < digits; digit++) {
      const uint8_t *from = x + digits * at + 64 * digit;
      const __m512i a = _mm512_load_si512(from), b = _mm512_load_si512(from + 64 * digits);
      const __m512i v[2] = {_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee)};
      for (uint32_t h = 0; h < 2; h++) {
        uint8_t(*to)[2][64] = out->x + WORDS * i + 4 * h;
        _mm512_store_si512(to[0][digit], _mm512_shuffle_epi32(v[h], (_MM_PERM_ENUM)0x00));
        _mm512_store_si512(to[1][digit], _mm512_shuffle_epi32(v[h], (_MM_PERM_ENUM)0x55));
        _mm512_store_si512(to[2][digit], _mm512_shuffle_epi32(v[h], (_MM_PERM_ENUM)0xaa));
        _mm512_store_si512(to[3][digit], _mm512_shuffle_epi32(v[h], (_MM_PERM_ENUM)0xff));
      }
    }
    const __m512 d = _mm512_maskz_loadu_ps(15, d_at + at / 32);
    _mm512_store_ps(out->d[i][0], _mm512_permutexvar_ps(order(0, 0, 2, 2), d));
    _mm512_store_ps(out->d[i][1], _mm512_permutexvar_ps(order(1, 1, 3, 3), d));
  }
  i = 0;
  for (size_t at = k0; at < k1; at += GROUP, i++) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
    __m512 s = _mm512_loadu_ps(s_at + at / 16);
    s = _mm512_add_ps(_mm512_permutexvar_ps(even, s), _mm512_permutexvar_ps(odd, s));
    s = _mm512_maskz_mov_ps(0xff00, s); /* minima lie behind 8 scales */
    for (int j = 0; j < 4; j++)
      _mm512_store_ps(out->s[i][j], _mm512_permutexvar_ps(order(j, 4 + j, 8 + j, 12 + j), s));
  }
}

/* ---- weights */

INLINE const uint8_t *superblock(const row *w, size_t k0) { return w->data + k0 / 256 * bytes_of(MOI_FORMAT_Q4_K); }

/* Step i of the superblock of four rows as unsigned bytes. */
INLINE void unpack(const row w[ROWS], size_t k0, uint32_t i, __m512i u[WORDS]) {
  const __m512i low = _mm512_set1_epi8(15);
  __m512i v[4];
  for (int r = 0; r < ROWS; r++) v[r] = _mm512_loadu_si512(superblock(&w[r], k0) + 16 + 64 * i);
  turn_in_lanes(v);
  for (int j = 0; j < 4; j++)
    u[j] = _mm512_and_si512(v[j], low), u[4 + j] = _mm512_and_si512(_mm512_srli_epi16(v[j], 4), low);
}

/* k_scales of four rows at once, turned: row r's header is in lane r until one permutation puts its words in place. */
INLINE void turned_k_scales(const row w[ROWS], size_t k0, __m512 out[4]) {
  __m512i h = _mm512_setzero_si512();
  for (int r = 0; r < ROWS; r++) {
    const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)superblock(&w[r], k0));
    h = r == 0   ? _mm512_zextsi128_si512(b)
        : r == 1 ? _mm512_inserti32x4(h, b, 1)
        : r == 2 ? _mm512_inserti32x4(h, b, 2)
                 : _mm512_inserti32x4(h, b, 3);
  }
  /* bytes: 4 scales, 4 in two parts, 4 minima, 4 in two parts; of the low parts those of minima are high nibbles */
  const __m128i low_at = _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m128i high_at = _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11);
  const __m128i keep = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
  __m512i low = _mm512_shuffle_epi8(h, _mm512_broadcast_i32x4(low_at));
  const __m512i high = _mm512_shuffle_epi8(h, _mm512_broadcast_i32x4(high_at));
  low = _mm512_srlv_epi32(low, _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 0, 4)));
  low = _mm512_and_si512(low, _mm512_broadcast_i32x4(keep));
  const __m512i q = _mm512_ternarylogic_epi32(low, _mm512_srli_epi16(high, 2), _mm512_set1_epi8(0x30), 0xf8);
  const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_permutexvar_epi32(across, q);
  __m512i d = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), h);
  d = _mm512_srlv_epi32(d, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16));
  const __m512 by = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(d));
  for (unsigned j = 0; j < 4; j++) {
    const __m512i byte = _mm512_and_si512(_mm512_srli_epi32(bytes, 8 * j), _mm512_set1_epi32(255));
    out[j] = _mm512_mul_ps(by, _mm512_cvtepi32_ps(byte));
  }
}

/* Lane l of a twice, and of b twice. */
INLINE __m512 lanes(__m512 a, __m512 b, uint32_t l) {
  return l ? _mm512_shuffle_f32x4(a, b, 0x55) : _mm512_shuffle_f32x4(a, b, 0x00);
}

/* ---- the loops */

/* v is computed before what follows is begun: compilers load the operands of all tokens first, and store them again for lack
 * of registers. */
#define DONE(v) __asm__ volatile("" : "+v"(v)::"memory")

/* sum += u . q. GCC 12 copies every sum around the intrinsic. */
INLINE __m512i dot(__m512i sum, __m512i u, const uint8_t *q) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "m"(*(const __m512i *)(const void *)q));
  return sum;
}

/* Step `step` of a section, m tokens. scale: of low and of high nibbles. */
INLINE void add_step(int digits, uint32_t m, const __m512i u[WORDS], const __m512 scale[2], const spread *x, uint32_t step,
                     __m512 y[TOKENS]) {
  for (uint32_t t = 0; t < m; t++) {
    const uint8_t(*at)[2][64] = x[t].x + WORDS * step;
    for (uint32_t s = 0; s < 2; s++) {
      __m512i q[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}; /* a sum for each digit: short chains */
#pragma GCC unroll 4
      for (uint32_t i = 4 * s; i < 4 * s + 4; i++)
        for (int digit = 0; digit < digits; digit++) q[digit] = dot(q[digit], u[i], at[i][digit]);
      __m512i all = q[0];
      if (digits == 2) all = _mm512_add_epi32(_mm512_slli_epi32(all, 8), q[1]);
      y[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(all), _mm512_load_ps(x[t].d[step][s])), scale[s], y[t]);
      DONE(y[t]);
    }
  }
}

/* The superblock at k0, `group` of its section. */
INLINE void add_group(int digits, uint32_t m, const row w[ROWS], const spread *x, size_t k0, uint32_t group,
                      ahead_state *ahead, __m512 y[TOKENS]) {
  __m512 v[4], scale[2];
  __m512i u[WORDS];
  turned_k_scales(w, k0, v);
  for (uint32_t t = 0; t < m; t++) {
    for (int j = 0; j < 4; j++) y[t] = _mm512_fnmadd_ps(v[j], _mm512_load_ps(x[t].s[group][j]), y[t]);
    DONE(y[t]);
  }
#pragma GCC unroll 2
  for (uint32_t i = 0; i < GROUP / STEP; i++) {
    ahead_fetch(ahead, 1);
    unpack(w, k0, i, u);
    scale[0] = lanes(v[0], v[2], i);
    scale[1] = lanes(v[1], v[3], i);
    add_step(digits, m, u, scale, x, group * (GROUP / STEP) + i, y);
  }
}

/* Rows n..n+3, m tokens, a section of k. */
INLINE void add_section(int digits, uint32_t m, const moi_gemm_tile *g, const strides *stride, uint32_t n,
                        const spread *x, size_t k0, ahead_state *ahead, float sum[TOKENS][16]) {
  row w[ROWS]; /* the last row again rather than a case for fewer */
  for (uint32_t r = 0; r < ROWS; r++) w[r] = row_of(g->w, stride, n + r < g->n1 ? n + r : g->n1 - 1);
  __m512 y[TOKENS];
  for (uint32_t t = 0; t < m; t++) y[t] = k0 ? _mm512_load_ps(sum[t]) : _mm512_setzero_ps();
  for (uint32_t i = 0; i < SECTION / GROUP && k0 < g->w->k; i++, k0 += GROUP)
    add_group(digits, m, w, x, k0, i, ahead, y);
  for (uint32_t t = 0; t < m; t++) _mm512_store_ps(sum[t], y[t]);
}

/* Rows n..n1-1, CALL at most, m tokens from t0 on. */
INLINE void block(int digits, uint32_t m, const moi_gemm_tile *g, const strides *stride, uint32_t n, uint32_t n1,
                  uint32_t t0, ahead_state *ahead) {
  spread x[TOKENS] __attribute__((aligned(64)));
  float sum[CALL / ROWS][TOKENS][16] __attribute__((aligned(64)));
  for (size_t k0 = 0; k0 < g->w->k; k0 += SECTION) {
    for (uint32_t t = 0; t < m; t++) spread_x(digits, g->w->k, g->x + g->rows[t0 + t] * g->x_stride, k0, &x[t]);
    for (uint32_t at = n; at < n1; at += ROWS)
      add_section(digits, m, g, stride, at, x, k0, ahead, sum[(at - n) / ROWS]);
  }
  for (uint32_t at = n; at < n1; at += ROWS)
    for (uint32_t t = 0; t < m; t++) {
      const __m512 v = _mm512_load_ps(sum[(at - n) / ROWS][t]);
      const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
      const __m128 c = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
      const __mmask8 exist = n1 - at >= ROWS ? 15 : (__mmask8)((1u << (n1 - at)) - 1);
      _mm_mask_storeu_ps(g->c + (t0 + t) * g->ldc + (at - g->n0), exist, _mm_mul_ps(_mm_set1_ps(g->w->global), c));
    }
}

INLINE void gemm(int digits, const moi_gemm_tile *g) {
  const strides stride = strides_of(MOI_FORMAT_Q4_K, g->w->k);
  const uint64_t steps = g->w->k / STEP;
  ahead_state ahead = ahead_of(g, (g->n1 - g->n0 + ROWS - 1) / ROWS * steps * ((g->m + TOKENS - 1) / TOKENS));
  for (uint32_t n = g->n0; n < g->n1; n += CALL) {
    const uint32_t n1 = g->n1 - n < CALL ? g->n1 : n + CALL;
    for (uint32_t t = 0; t < g->m; t += TOKENS) {
      switch (g->m - t) {
      case 1: block(digits, 1, g, &stride, n, n1, t, &ahead); break;
      case 2: block(digits, 2, g, &stride, n, n1, t, &ahead); break;
      case 3: block(digits, 3, g, &stride, n, n1, t, &ahead); break;
      default: block(digits, TOKENS, g, &stride, n, n1, t, &ahead); break;
      }
    }
  }
}

void moi_gemm_q4_k_lanes_avx512vnni(const moi_gemm_tile *tile);
void moi_gemm_q4_k_lanes_avx512vnni(const moi_gemm_tile *tile) { gemm(2, tile); }
void moi_gemm_q4_k_i8_lanes_avx512vnni(const moi_gemm_tile *tile);
void moi_gemm_q4_k_i8_lanes_avx512vnni(const moi_gemm_tile *tile) { gemm(1, tile); }

#endif
