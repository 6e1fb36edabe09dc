/* What the AVX-512 panel kernels share. Turning costs as much as the products of a few tokens; so these are rows for more. */
#ifndef MOI_CPU_KERNELS_PANEL_AVX512_H
#define MOI_CPU_KERNELS_PANEL_AVX512_H

#include "cpu/kernels/int_avx512.h"
#include "cpu/kernels/panel.h"

/* 16 bytes of each of 16 rows, row r's at from + r * stride: v[j] = 32-bit word j of all rows. */
static inline __attribute__((always_inline)) void panel_words(const uint8_t *from, size_t stride, __m512i w[4]) {
  for (int j = 0; j < 4; j++) { /* quarter q of w[j] is row 4q + j */
    const uint8_t *at = from + (size_t)j * stride;
    w[j] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)at));
    w[j] = _mm512_inserti32x4(w[j], _mm_loadu_si128((const __m128i *)(const void *)(at + 4 * stride)), 1);
    w[j] = _mm512_inserti32x4(w[j], _mm_loadu_si128((const __m128i *)(const void *)(at + 8 * stride)), 2);
    w[j] = _mm512_inserti32x4(w[j], _mm_loadu_si128((const __m128i *)(const void *)(at + 12 * stride)), 3);
  }
  turn_in_lanes(w);
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

#endif
