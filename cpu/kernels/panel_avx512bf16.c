/* GEMMs for many tokens: BF16 activations times weights that are BF16 or exact in it, AVX512-BF16. A panel holds pairs of k
 * (panel_avx512.h); products of pairs are summed in fp32 (which flushes subnormals), in an order that depends on k alone:
 * BATCH_INVARIANT. */
#if defined(__x86_64__)

#include "core/shared/decode.h"
#include "cpu/kernels/panel_avx512.h"

#define INLINE static inline __attribute__((always_inline))

/* sum += w . x */
#ifdef MOI_EMULATE_BF16 /* the instruction's arithmetic on machines without it, to test what is around it */
INLINE __m512 dot(__m512 sum, __m512i w, __m512i x) {
  const __m512i odd = _mm512_set1_epi32((int)0xffff0000u);
  sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w, odd)), _mm512_castsi512_ps(_mm512_and_si512(x, odd)),
                        sum);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                         sum);
}
#else
/* GCC 12 copies every sum around the intrinsic. */
INLINE __m512 dot(__m512 sum, __m512i w, __m512i x) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}
#endif

enum { SCALE_BLOCK = 128 };

/* tokens x 16 * vectors sums over k. scales: NULL, or [vectors], a scale for each SCALE_BLOCK elements. */
INLINE void tile(const uint32_t tokens, const uint32_t vectors, const int scaled, uint32_t k, const uint8_t *const *x,
                 const uint8_t *panel, const float *const *scales, panel_ahead *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
  const size_t kp = MOI_FORM_KP(k);
  for (uint32_t t = 0; scaled && t < tokens; t++)
    for (uint32_t v = 0; v < vectors; v++) _mm512_store_ps(sum[t] + 16 * v, _mm512_setzero_ps());
  const size_t step = scaled ? SCALE_BLOCK : kp;
  for (size_t k0 = 0; k0 < kp; k0 += step) {
    const size_t k1 = kp - k0 < step ? kp : k0 + step;
    __m512 a[PANEL_TOKENS][4];
#pragma GCC unroll 6
    for (uint32_t t = 0; t < tokens; t++)
#pragma GCC unroll 4
      for (uint32_t v = 0; v < vectors; v++) a[t][v] = _mm512_setzero_ps();
    for (size_t k2 = k0; k2 < k1; k2 += 64) {
      panel_fetch(ahead);
#pragma GCC unroll 1
      for (size_t at = k2 * 2; at < k2 * 2 + 128; at += 4) {
        __m512i w[4];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < vectors; v++) {
          w[v] = _mm512_load_si512(panel + at * COLUMNS + 64 * v);
          IN_REGISTER(w[v]);
        }
#pragma GCC unroll 6
        for (uint32_t t = 0; t < tokens; t++) {
          const __m512i pair = _mm512_set1_epi32(*(const int32_t *)(const void *)(x[t] + at));
#pragma GCC unroll 4
          for (uint32_t v = 0; v < vectors; v++) a[t][v] = dot(a[t][v], w[v], pair);
        }
      }
    }
    IN_MEMORY();
#pragma GCC unroll 6
    for (uint32_t t = 0; t < tokens; t++)
#pragma GCC unroll 4
      for (uint32_t v = 0; v < vectors; v++) {
        if (scaled)
          a[t][v] = _mm512_fmadd_ps(_mm512_set1_ps(scales[v][k0 / SCALE_BLOCK]), a[t][v], _mm512_load_ps(sum[t] + 16 * v));
        _mm512_store_ps(sum[t] + 16 * v, a[t][v]);
      }
  }
}

INLINE void tiles(const uint32_t vectors, const int scaled, uint32_t tokens, uint32_t k, const uint8_t *const *x,
                  const uint8_t *panel, const float *const *scales, panel_ahead *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
  switch (tokens) {
  case 1: tile(1, vectors, scaled, k, x, panel, scales, ahead, sum); break;
  case 2: tile(2, vectors, scaled, k, x, panel, scales, ahead, sum); break;
  case 3: tile(3, vectors, scaled, k, x, panel, scales, ahead, sum); break;
  case 4: tile(4, vectors, scaled, k, x, panel, scales, ahead, sum); break;
  case 5: tile(5, vectors, scaled, k, x, panel, scales, ahead, sum); break;
  default: tile(6, vectors, scaled, k, x, panel, scales, ahead, sum); break;
  }
}

static void tiles_plain(uint32_t vectors, uint32_t tokens, uint32_t k, const uint8_t *const *x, const uint8_t *panel,
                        const float *const *scales, panel_ahead *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
  if (vectors > 2) tiles(4, 0, tokens, k, x, panel, scales, ahead, sum);
  else tiles(2, 0, tokens, k, x, panel, scales, ahead, sum);
}
static void tiles_scaled(uint32_t vectors, uint32_t tokens, uint32_t k, const uint8_t *const *x, const uint8_t *panel,
                         const float *const *scales, panel_ahead *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
  if (vectors > 2) tiles(4, 1, tokens, k, x, panel, scales, ahead, sum);
  else tiles(2, 1, tokens, k, x, panel, scales, ahead, sum);
}

/* ---- panels */

/* Bytes of the data and scales streams from a row to the next. */
typedef struct strides {
  size_t data, scales;
} strides;
INLINE strides strides_of(int f, size_t k) {
  switch (f) {
  case MOI_FORMAT_BF16: return (strides){k * 2, 0};
  default: return (strides){k, 0};
  }
}

/* 32 bytes of E4M3. Subnormals are looked up. */
INLINE __m512i e4m3(__m256i codes) {
  const __m512i code = _mm512_cvtepu8_epi16(codes), magnitude = _mm512_and_si512(code, _mm512_set1_epi16(127));
  const __m512i small = _mm512_castsi128_si512(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60)); /* m * 2^-9 */
  __m512i v = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  v = _mm512_mask_permutexvar_epi16(v, _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8)), magnitude, small);
  v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(127)), _mm512_set1_epi16(0x7fc0));
  return _mm512_or_si512(v, _mm512_slli_epi16(_mm512_andnot_si512(_mm512_set1_epi16(127), code), 8));
}

/* Elements k0..k0+n-1 of a row, n <= 32, and zeros behind them. */
INLINE __m512i elements(int f, const uint8_t *data, size_t k0, uint32_t n) {
  const __mmask32 exist = n == 32 ? ~0u : (1u << n) - 1;
  if (f == MOI_FORMAT_BF16) return _mm512_maskz_loadu_epi16(exist, data + 2 * k0);
  return e4m3(_mm256_maskz_loadu_epi8(exist, data + k0));
}

/* Vector v of the panel: rows n..n+15, the last that exists again behind it. */
INLINE void fill(int f, const moi_gemm_tile *g, strides stride, uint32_t n, uint32_t v, uint8_t *panel) {
  const uint32_t k = g->w->k, whole = k / 32 * 32;
  const uint8_t *data = g->w->data + n * stride.data;
  const uint32_t have = g->n1 - n < 16 ? g->n1 - n : 16;
  size_t k0 = 0;
  panel += 64 * v;
  if (f == MOI_FORMAT_BF16 && have == 16) {
    panel_turn(data, stride.data, whole / 8, panel);
    k0 = whole;
  }
  for (; k0 < MOI_FORM_KP(k); k0 += 32) {
    uint8_t bytes[16][64] __attribute__((aligned(64)));
    const uint32_t left = k0 >= k ? 0 : k - k0 < 32 ? (uint32_t)(k - k0) : 32;
    for (uint32_t r = 0; r < 16; r++) {
      const uint8_t *from = data + (r < have ? r : have - 1) * stride.data;
      _mm512_store_si512(bytes[r], left == 32 ? elements(f, from, k0, 32) : elements(f, from, k0, left));
    }
    panel_turn(bytes[0], 64, 4, panel + k0 * 2 * COLUMNS);
  }
}

/* scratch_rows: 32, a panel of 2-byte elements */
INLINE void gemm(int f, const moi_gemm_tile *g) {
  const moi_matrix *w = g->w;
  const strides stride = strides_of(f, w->k);
  const int scaled = f == MOI_FORMAT_FP8_B128;
  uint8_t *panel = g->scratch;
  float sum[PANEL_TOKENS][COLUMNS] __attribute__((aligned(64)));
  for (uint32_t n = g->n0; n < g->n1; n += COLUMNS) {
    const uint32_t width = g->n1 - n < COLUMNS ? g->n1 - n : COLUMNS, vectors = (width + 15) / 16;
    const float *scales[4] = {NULL};
    for (uint32_t v = 0; v < 4; v++) {
      const uint32_t at = n + 16 * (v < vectors ? v : vectors - 1);
      if (v < vectors) fill(f, g, stride, at, v, panel);
      if (scaled) /* of 128 rows too, of which a vector never crosses the end */
        scales[v] = (const float *)(const void *)w->scales + (size_t)(at / SCALE_BLOCK) * ((w->k + 127) / SCALE_BLOCK);
    }
    panel_ahead ahead = panel_next(g, n, stride.data);
    for (uint32_t t = 0, tokens; t < g->m; t += tokens) {
      tokens = panel_tokens(t, g->m);
      const uint8_t *x[PANEL_TOKENS];
      for (uint32_t i = 0; i < tokens; i++) x[i] = g->x + g->rows[t + i] * g->x_stride;
      (scaled ? tiles_scaled : tiles_plain)(vectors, tokens, w->k, x, panel, scales, &ahead, sum);
      panel_store(sum, tokens, width, w->global, g->c + t * g->ldc + (n - g->n0), g->ldc);
    }
  }
}

#define MOI_GEMM(format, name)                                                                                         \
  void moi_gemm_##name##_panel_avx512bf16(const moi_gemm_tile *tile);                                                  \
  void moi_gemm_##name##_panel_avx512bf16(const moi_gemm_tile *tile) { gemm(MOI_FORMAT_##format, tile); }

MOI_GEMM(BF16, bf16)
MOI_GEMM(FP8, fp8)
MOI_GEMM(FP8_B128, fp8_b128)

#endif
