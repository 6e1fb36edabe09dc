/* What the AVX-512 panel kernels share. A panel is COLUMNS rows of W turned so that a vector holds the same four bytes of
 * k of 16 rows, one after another in k: they meet four bytes of a token's x that a load has spread over the lanes, and
 * nothing is left to sum over lanes. Turning costs about as much as one token's products; so these are rows for many. */
#ifndef MOI_CPU_KERNELS_PANEL_AVX512_H
#define MOI_CPU_KERNELS_PANEL_AVX512_H

#include <immintrin.h>

#include "cpu/kernels/ahead.h"

/* A register tile is PANEL_TOKENS tokens by COLUMNS columns, which an including file defines. */
enum { PANEL_TOKENS = 6 };

/* What compilers do worse: a vector is loaded once rather than before each use; sums in memory stay there between blocks,
 * for the registers are full. */
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#define IN_MEMORY() __asm__ volatile("" ::: "memory")

/* 16 bytes of each of 16 rows, row r's at from + r * stride: v[j] = 32-bit word j of all rows. */
static inline __attribute__((always_inline)) void panel_words(const uint8_t *from, size_t stride, __m512i w[4]) {
  __m512i v[4];
  for (int j = 0; j < 4; j++) { /* quarter q of v[j] is row 4q + j */
    const uint8_t *at = from + (size_t)j * stride;
    v[j] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)at));
    v[j] = _mm512_inserti32x4(v[j], _mm_loadu_si128((const __m128i *)(const void *)(at + 4 * stride)), 1);
    v[j] = _mm512_inserti32x4(v[j], _mm_loadu_si128((const __m128i *)(const void *)(at + 8 * stride)), 2);
    v[j] = _mm512_inserti32x4(v[j], _mm_loadu_si128((const __m128i *)(const void *)(at + 12 * stride)), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  w[0] = _mm512_unpacklo_epi64(a, c);
  w[1] = _mm512_unpackhi_epi64(a, c);
  w[2] = _mm512_unpacklo_epi64(b, d);
  w[3] = _mm512_unpackhi_epi64(b, d);
}

/* The same for pieces of 16 bytes: out[4 * i + j] = 32-bit word j of piece i of all rows, at a distance of COLUMNS words. */
static inline __attribute__((always_inline)) void panel_turn(const uint8_t *from, size_t stride, uint32_t pieces,
                                                             void *to) {
  uint8_t *out = to;
  for (uint32_t i = 0; i < pieces; i++, from += 16, out += 4 * COLUMNS * 4) {
    __m512i w[4];
    panel_words(from, stride, w);
    for (int j = 0; j < 4; j++) _mm512_store_si512(out + 4 * COLUMNS * j, w[j]);
  }
}

/* Stores the sums of a tile: `width` of its columns exist. */
static inline void panel_store(const float sum[][COLUMNS], uint32_t tokens, uint32_t width, float global, float *c,
                               size_t ldc) {
  for (uint32_t t = 0; t < tokens; t++)
    for (uint32_t i = 0; i < width; i += 16) {
      const __mmask16 exist = width - i >= 16 ? 0xffff : (__mmask16)((1u << (width - i)) - 1);
      _mm512_mask_storeu_ps(c + t * ldc + i, exist, _mm512_mul_ps(_mm512_set1_ps(global), _mm512_load_ps(sum[t] + i)));
    }
}

/* Tokens in the tile that begins at t of m: as even as may be, for a tile of one or two waits for its sums. */
static inline uint32_t panel_tokens(uint32_t t, uint32_t m) {
  const uint32_t left = m - t, tiles = (left + PANEL_TOKENS - 1) / PANEL_TOKENS;
  return (left + tiles - 1) / tiles;
}

/* What is fetched meanwhile. work: of 64 elements of k for COLUMNS columns. */
static inline ahead_state panel_ahead(const moi_gemm_tile *g, uint32_t work) {
  return ahead_of(g, (uint64_t)((g->n1 - g->n0 + COLUMNS - 1) / COLUMNS) * (MOI_FORM_KP(g->w->k) / 64) * work);
}

#endif
