/* GEMMs for many tokens: BF16 activations times weights that are BF16 or exact in it, AVX512-BF16. A panel holds pairs of k
 * (panel_avx512.h); products of pairs are summed in fp32 (which flushes subnormals), in an order that depends on k alone:
 * BATCH_INVARIANT. */
#if defined(__x86_64__)

#include "cpu/kernels/int_avx512.h"
#define COLUMNS 64 /* 24 sums, 4 vectors of weights, one of x */
#include "cpu/kernels/panel_avx512.h"

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
                 const uint8_t *panel, const float *const *scales, ahead_state *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
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
      ahead_fetch(ahead, 1);
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
                  const uint8_t *panel, const float *const *scales, ahead_state *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
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
                        const float *const *scales, ahead_state *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
  if (vectors > 2) tiles(4, 0, tokens, k, x, panel, scales, ahead, sum);
  else tiles(2, 0, tokens, k, x, panel, scales, ahead, sum);
}
static void tiles_scaled(uint32_t vectors, uint32_t tokens, uint32_t k, const uint8_t *const *x, const uint8_t *panel,
                         const float *const *scales, ahead_state *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
  if (vectors > 2) tiles(4, 1, tokens, k, x, panel, scales, ahead, sum);
  else tiles(2, 1, tokens, k, x, panel, scales, ahead, sum);
}

/* ---- panels */

INLINE strides strides_for(int f, size_t k) {
  if (f == MOI_FORMAT_BF16) return (strides){k * 2, 0, 0};
  return f == MOI_FORMAT_FP8 || f == MOI_FORMAT_FP8_B128 ? (strides){k, 0, 0} : strides_of(f, k);
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

/* E2M1 times a scale (its half) is exact in bf16, but for what is below its normal numbers: a table of the 16 products,
 * twice. */
INLINE __m512i e2m1_times(float half) {
  const __m512 doubled = _mm512_setr_ps(0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12);
  const __m512i upper = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 31, 29, 27, 25, 23, 21,
                                         19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutexvar_epi16(upper, _mm512_castps_si512(_mm512_mul_ps(doubled, _mm512_set1_ps(half))));
}

/* 16 bytes, low nibbles first: an index of 5 bits for each, the highest of which means nothing. */
INLINE __m512i indices(__m128i bytes) {
  const __m512i v = _mm512_cvtepu8_epi32(bytes);
  return _mm512_or_si512(v, _mm512_slli_epi32(v, 12));
}

/* Elements k0..k0+n-1 of a row, n <= 32, and zeros behind them; scale: those of its blocks, halved. */
INLINE __m512i elements(int f, const row *w, size_t k0, uint32_t n, const float *scale) {
  const __mmask32 exist = n == 32 ? ~0u : (1u << n) - 1;
  switch (f) {
  case MOI_FORMAT_BF16: return _mm512_maskz_loadu_epi16(exist, w->data + 2 * k0);
  case MOI_FORMAT_MXFP4: {
    const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(w->data + k0 / 2));
    return _mm512_permutexvar_epi16(indices(v), e2m1_times(*scale));
  }
  case MOI_FORMAT_MXFP4_GGUF: {
    const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(w->data + k0 / 32 * 17 + 1));
    const __m256i v = _mm256_cvtepu8_epi16(b);
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(v), _mm256_srli_epi16(v, 4), 1);
    return _mm512_permutexvar_epi16(both, e2m1_times(*scale));
  }
  case MOI_FORMAT_NVFP4:
  case MOI_FORMAT_FP4_G16: { /* bit 5 of an index chooses the second block's table */
    const __m128i v = _mm_maskz_loadu_epi8(n == 32 ? 0xffff : 0xff, w->data + k0 / 2);
    const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(32), 1);
    const __m512i index = _mm512_ternarylogic_epi32(indices(v), second, _mm512_set1_epi16(32), 0xd8);
    return _mm512_maskz_mov_epi16(exist, _mm512_permutex2var_epi16(e2m1_times(scale[0]), index, e2m1_times(scale[1])));
  }
  default: return e4m3(_mm256_maskz_loadu_epi8(exist, w->data + k0));
  }
}

/* Vector v of the panel: rows n..n+15, the last that exists again behind it. */
INLINE void fill(int f, const moi_gemm_tile *g, const strides *stride, uint32_t n, uint32_t v, uint8_t *panel) {
  const uint32_t k = g->w->k, kp = (uint32_t)MOI_FORM_KP(k), whole = k / 32 * 32, section = is_e2m1(f) ? group_of(f) : 512;
  row rows[16];
  uint32_t k0 = 0;
  panel += 64 * v;
  if (f == MOI_FORMAT_BF16 && n + 16 <= g->n1) {
    panel_turn(g->w->data + n * stride->data, stride->data, whole / 8, panel);
    k0 = whole;
  }
  for (uint32_t r = 0; r < 16; r++) rows[r] = row_of(g->w, stride, n + r < g->n1 ? n + r : g->n1 - 1);
  for (uint32_t k1; k0 < kp; k0 = k1) {
    float scale[16][16] __attribute__((aligned(64)));
    k1 = kp - k0 < section ? kp : k0 + section;
    for (uint32_t r = 0; is_e2m1(f) && r < 16; r++) {
      __m512 of;
      _mm512_store_ps(scale[r], scales_of(f, &rows[r], k0, (k1 < k ? k1 : k) - k0, &of));
    }
    for (uint32_t at = k0; at < k1; at += 32) {
      uint8_t bytes[16][64] __attribute__((aligned(64)));
      const uint32_t left = at >= k ? 0 : k - at < 32 ? k - at : 32, s = (at - k0) / block_of(f);
      for (uint32_t r = 0; r < 16; r++) {
        __m512i b = _mm512_setzero_si512();
        if (left == 32) b = elements(f, &rows[r], at, 32, scale[r] + s);
        else if (left) b = elements(f, &rows[r], at, left, scale[r] + s);
        _mm512_store_si512(bytes[r], b);
      }
      panel_turn(bytes[0], 64, 4, panel + (size_t)at * 2 * COLUMNS);
    }
  }
}

/* scratch_rows: 32, a panel of 2-byte elements */
INLINE void gemm(int f, const moi_gemm_tile *g) {
  const moi_matrix *w = g->w;
  const strides stride = strides_for(f, w->k);
  const int scaled = f == MOI_FORMAT_FP8_B128;
  uint8_t *panel = g->scratch;
  float sum[PANEL_TOKENS][COLUMNS] __attribute__((aligned(64)));
  ahead_state ahead = panel_ahead(g, (g->m + PANEL_TOKENS - 1) / PANEL_TOKENS);
  for (uint32_t n = g->n0; n < g->n1; n += COLUMNS) {
    const uint32_t width = g->n1 - n < COLUMNS ? g->n1 - n : COLUMNS, vectors = (width + 15) / 16;
    const float *scales[4] = {NULL};
    for (uint32_t v = 0; v < 4; v++) {
      const uint32_t at = n + 16 * (v < vectors ? v : vectors - 1);
      if (v < vectors) fill(f, g, &stride, at, v, panel);
      if (scaled) /* of 128 rows too, of which a vector never crosses the end */
        scales[v] = (const float *)(const void *)w->scales + (size_t)(at / SCALE_BLOCK) * ((w->k + 127) / SCALE_BLOCK);
    }
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
MOI_GEMM(MXFP4, mxfp4)
MOI_GEMM(MXFP4_GGUF, mxfp4_gguf)
MOI_GEMM(NVFP4, nvfp4)
MOI_GEMM(FP4_G16, fp4_g16)

#endif
