/* GEMMs for many tokens: c = x W^T with integer activations and weights in 16 registers of 256 bits.
 *
 * Weights are taken apart once for all tokens: codes turned into panels, and their scales as floats. x is d * q for each
 * 32; a block is
 *   scale * d * sum u*q             or, where a format brings minima or zeros,      scale * d * sum u*q - minimum * s
 * where the sums are exact integers and s = d * sum q comes with the prepared row. Two kinds of panels:
 *   - 16-bit q and codes (signed, the constant that would make them unsigned taken off) for vpmaddwd, whose products of
 *     pairs fit int32 as a whole block does;
 *   - 8-bit q (MOI_ACT_QUANT_INT8_32) and unsigned codes for vpmaddubsw, whose sums of pairs are 16 bits wide and saturate:
 *     they are widened before they can, after `run` words, which serves codes of up to 5 bits. The constant is taken off
 *     through s.
 * With AVX-VNNI, the VEX form of VNNI that CPUs without AVX-512 have, one instruction multiplies, widens and adds for both.
 *
 * Every (token, column) has sums of its own in an order that depends on k alone: BATCH_INVARIANT. */
#if defined(__x86_64__)

#include "cpu/kernels/int_avx2.h"
#define COLUMNS 16 /* 12 sums of a block, 2 vectors of weights, one of x, one product; sums of k are in memory */
#include "cpu/kernels/panel.h"

/* What the loops must know of a format, all constants. */
typedef struct layout {
  uint32_t block; /* elements of a scale */
  uint32_t run;   /* words of a block that are summed at once */
  int even_odd;   /* order of x */
  int minima;
  uint32_t bytes; /* of a code and of q */
  int vnni;
} layout;

/* 8 bits without VNNI: twice the words of run, times the largest code, times 127, is less than 2^15. */
INLINE layout layout_of(int f, uint32_t bytes, int vnni) {
  const int minima =
      f == MOI_FORMAT_Q4_K || f == MOI_FORMAT_Q5_K || f == MOI_FORMAT_INT4Z_G32 || f == MOI_FORMAT_INT4Z_G128;
  const int even_odd = is_even_odd(f) && (bytes == 1 || block_of(f) == 16); /* else a block has all of its chunk */
  layout l = {block_of(f), block_of(f) * bytes / 4, even_odd, minima, bytes, vnni};
  if (bytes == 1 && !vnni && (is_e2m1(f) || f == MOI_FORMAT_Q5_K)) l.run = 4;
  return l;
}

typedef struct panel {
  uint8_t *codes;         /* [k * bytes / 4][COLUMNS] words, 16 to a chunk */
  float *scales, *minima; /* [k / block][COLUMNS] */
} panel;

/* sum += the products of pairs of signed words, or of four bytes, u unsigned and q signed. */
#ifdef MOI_EMULATE_AVXVNNI /* the instructions' arithmetic on machines without them, to test what is around them */
INLINE __m256i dot_words(__m256i sum, __m256i u, __m256i q) { return _mm256_add_epi32(sum, _mm256_madd_epi16(u, q)); }
INLINE __m256i dot_bytes(__m256i sum, __m256i u, __m256i q) {
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8), odd = _mm256_srai_epi16(q, 8);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)), even));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(u, 8), odd));
}
#else /* by hand: this file is compiled for AVX2, so that both share what takes weights apart */
INLINE __m256i dot_words(__m256i sum, __m256i u, __m256i q) {
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(u), "x"(q));
  return sum;
}
INLINE __m256i dot_bytes(__m256i sum, __m256i u, __m256i q) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u), "x"(q));
  return sum;
}
#endif

INLINE __m256i first_product(layout l, __m256i u, __m256i q) {
  if (l.bytes == 1 && l.vnni) return dot_bytes(_mm256_setzero_si256(), u, q);
  return l.bytes == 2 ? _mm256_madd_epi16(u, q) : _mm256_maddubs_epi16(u, q);
}
/* GCC 12 copies every sum around an addition of its own, and keeps some in memory for that. */
INLINE __m256i add_product(layout l, __m256i sum, __m256i u, __m256i q) {
  if (l.vnni) return l.bytes == 2 ? dot_words(sum, u, q) : dot_bytes(sum, u, q);
  if (l.bytes == 2) __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(u, q)));
  else __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(_mm256_maddubs_epi16(u, q)));
  return sum;
}
INLINE __m256 float_of(layout l, __m256i sum) {
  if (l.bytes == 1 && !l.vnni) sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  return _mm256_cvtepi32_ps(sum);
}

/* Word j of the block's words in a chunk (16 words). */
INLINE uint32_t word_of(layout l, uint32_t block, uint32_t j) {
  const uint32_t words = l.block * l.bytes / 4, half = words / 2;
  if (!l.even_odd) return block * words + j;
  return block * half + (j < half ? j : 8 + j - half);
}

/* A word of k of every token. */
INLINE void multiply(const layout l, const int first, const uint32_t tokens, const uint8_t *codes,
                     const uint8_t *const *q_at, uint32_t q0, uint32_t word, __m256i a[PANEL_TOKENS][2]) {
  __m256i u0 = _mm256_load_si256((const __m256i *)(const void *)(codes + word * COLUMNS * 4));
  __m256i u1 = _mm256_load_si256((const __m256i *)(const void *)(codes + word * COLUMNS * 4 + 32));
  IN_REGISTER(u0);
  IN_REGISTER(u1);
#pragma GCC unroll 6
  for (uint32_t t = 0; t < tokens; t++) {
    const __m256i q = _mm256_set1_epi32(*(const int32_t *)(const void *)(q_at[t] + q0 + 4 * word));
    a[t][0] = first ? first_product(l, u0, q) : add_product(l, a[t][0], u0, q);
    a[t][1] = first ? first_product(l, u1, q) : add_product(l, a[t][1], u1, q);
  }
}

/* s of up to 8 blocks of 32, two for each: n exist. */
INLINE __m256 sums_of_pairs(const float *s, uint32_t n) {
  const __m256 pairs = _mm256_hadd_ps(load_first(s, n), n > 8 ? load_first(s + 8, n - 8) : _mm256_setzero_ps());
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xd8));
}

/* tokens x COLUMNS sums over the whole of k. */
INLINE void tile(const layout l, const uint32_t tokens, uint32_t k, const uint8_t *const *x, const panel *p,
                 float offset, ahead_state *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
  const size_t d_at = l.bytes == 2 ? MOI_FORM_D(k) : MOI_FORM_I8_D(k);
  const size_t s_at = l.bytes == 2 ? MOI_FORM_S(k) : MOI_FORM_I8_S(k);
  const uint32_t words = l.block * l.bytes / 4, blocks = 16 / words, stop = 64 / l.block;
  const int corrected = l.minima || l.bytes == 1;
  for (uint32_t t = 0; t < tokens; t++)
    for (uint32_t v = 0; v < COLUMNS; v += 8) _mm256_store_ps(sum[t] + v, _mm256_setzero_ps());
  for (size_t k0 = 0; k0 < k; k0 += GROUP) {
    const uint32_t n = k - k0 < GROUP ? (uint32_t)(k - k0) : GROUP;
    float s[PANEL_TOKENS][16] __attribute__((aligned(32)));
    const uint8_t *q_at[PANEL_TOKENS];
    for (uint32_t t = 0; t < tokens; t++) {
      q_at[t] = x[t] + k0 * l.bytes;
      if (!corrected) continue;
      const float *from = (const float *)(const void *)(x[t] + s_at) + k0 / 16;
      __m256 s0 = l.block == 16 ? load_first(from, n / 16) : sums_of_pairs(from, n / 16), s1 = _mm256_setzero_ps();
      if (l.block == 16 && n > 128) s1 = load_first(from + 8, n / 16 - 8);
      if (!l.minima) s0 = _mm256_mul_ps(s0, _mm256_set1_ps(-offset)), s1 = _mm256_mul_ps(s1, _mm256_set1_ps(-offset));
      _mm256_store_ps(s[t], s0);
      _mm256_store_ps(s[t] + 8, s1);
    }
    for (uint32_t b = 0; b < n / l.block; b++) {
      const uint8_t *codes = p->codes + (k0 * l.bytes + b / blocks * 64) * COLUMNS;
      const float *scale = p->scales + (k0 / l.block + b) * COLUMNS,
                  *minimum = p->minima + (k0 / l.block + b) * COLUMNS;
      const size_t d_of = d_at + (k0 + b * l.block) / 32 * 4;
      if (b % stop == 0) ahead_fetch(ahead, 1);
#pragma GCC unroll 2
      for (uint32_t run = 0; run < words; run += l.run) {
        __m256i a[PANEL_TOKENS][2];
        const uint32_t bi = b % blocks, q0 = b / blocks * 64;
        multiply(l, 1, tokens, codes, q_at, q0, word_of(l, bi, run), a);
#pragma GCC unroll 1
        for (uint32_t j = run + 1; j < run + l.run; j++) multiply(l, 0, tokens, codes, q_at, q0, word_of(l, bi, j), a);
#pragma GCC unroll 6
        for (uint32_t t = 0; t < tokens; t++) {
          const __m256 d = _mm256_broadcast_ss((const float *)(const void *)(x[t] + d_of));
#pragma GCC unroll 2
          for (uint32_t v = 0; v < 2; v++) {
            const __m256 w = _mm256_load_ps(scale + 8 * v);
            __m256 y = _mm256_load_ps(sum[t] + 8 * v), part = float_of(l, a[t][v]);
            if (corrected && run == 0) {
              const __m256 st = _mm256_broadcast_ss(&s[t][b]);
              if (l.minima) y = _mm256_fnmadd_ps(_mm256_load_ps(minimum + 8 * v), st, y);
              part = l.minima ? _mm256_mul_ps(part, d) : _mm256_fmadd_ps(part, d, st);
            } else {
              part = _mm256_mul_ps(part, d);
            }
            _mm256_store_ps(sum[t] + 8 * v, _mm256_fmadd_ps(w, part, y));
          }
        }
        IN_MEMORY();
      }
    }
  }
}

INLINE void tiles(const layout l, uint32_t tokens, uint32_t k, const uint8_t *const *x, const panel *p, float offset,
                  ahead_state *ahead, float sum[PANEL_TOKENS][COLUMNS]) {
  switch (tokens) {
  case 1: tile(l, 1, k, x, p, offset, ahead, sum); break;
  case 2: tile(l, 2, k, x, p, offset, ahead, sum); break;
  case 3: tile(l, 3, k, x, p, offset, ahead, sum); break;
  case 4: tile(l, 4, k, x, p, offset, ahead, sum); break;
  case 5: tile(l, 5, k, x, p, offset, ahead, sum); break;
  default: tile(l, 6, k, x, p, offset, ahead, sum); break;
  }
}

/* One function for all formats of a layout. */
typedef void (*tiles_fn)(uint32_t tokens, uint32_t k, const uint8_t *const *x, const panel *p, float offset,
                         ahead_state *ahead, float sum[PANEL_TOKENS][COLUMNS]);
#define TILES(name, format, bytes, vnni)                                                                               \
  static __attribute__((noinline)) void tiles_##name(uint32_t tokens, uint32_t k, const uint8_t *const *x,             \
                                                     const panel *p, float offset, ahead_state *ahead,                 \
                                                     float sum[PANEL_TOKENS][COLUMNS]) {                               \
    tiles(layout_of(MOI_FORMAT_##format, bytes, vnni), tokens, k, x, p, offset, ahead, sum);                           \
  }
TILES(32, Q8_0, 2, 0)
TILES(16, Q6_K, 2, 0)
TILES(minima, Q4_K, 2, 0)
TILES(even_odd_16, NVFP4, 2, 0)
TILES(i8_32, Q4_0, 1, 0)
TILES(i8_e2m1, MXFP4_GGUF, 1, 0)
TILES(i8_minima, Q4_K, 1, 0)
TILES(i8_q5_k, Q5_K, 1, 0)
TILES(i8_even_odd_32, INT4_G32, 1, 0)
TILES(i8_even_odd_e2m1, MXFP4, 1, 0)
TILES(i8_even_odd_16, NVFP4, 1, 0)
TILES(i8_even_odd_zeros, INT4Z_G32, 1, 0)
TILES(vnni_32, Q8_0, 2, 1)
TILES(vnni_16, Q6_K, 2, 1)
TILES(vnni_minima, Q4_K, 2, 1)
TILES(vnni_even_odd_16, NVFP4, 2, 1)
TILES(vnni_i8_32, Q8_0, 1, 1)
TILES(vnni_i8_16, Q6_K, 1, 1)
TILES(vnni_i8_minima, Q4_K, 1, 1)
TILES(vnni_i8_even_odd_32, MXFP4, 1, 1)
TILES(vnni_i8_even_odd_16, NVFP4, 1, 1)
TILES(vnni_i8_even_odd_zeros, INT4Z_G32, 1, 1)

INLINE tiles_fn tiles_of(int f, uint32_t bytes, int vnni) {
  const layout l = layout_of(f, bytes, vnni);
  if (bytes == 2) {
    if (l.minima) return vnni ? tiles_vnni_minima : tiles_minima;
    if (l.block == 32) return vnni ? tiles_vnni_32 : tiles_32;
    return l.even_odd ? vnni ? tiles_vnni_even_odd_16 : tiles_even_odd_16 : vnni ? tiles_vnni_16 : tiles_16;
  }
  if (vnni) {
    if (l.minima) return l.even_odd ? tiles_vnni_i8_even_odd_zeros : tiles_vnni_i8_minima;
    if (l.block == 32) return l.even_odd ? tiles_vnni_i8_even_odd_32 : tiles_vnni_i8_32;
    return l.even_odd ? tiles_vnni_i8_even_odd_16 : tiles_vnni_i8_16;
  }
  if (l.minima) return l.even_odd ? tiles_i8_even_odd_zeros : l.run == 4 ? tiles_i8_q5_k : tiles_i8_minima;
  if (l.block == 16) return tiles_i8_even_odd_16;
  if (l.run == 4) return l.even_odd ? tiles_i8_even_odd_e2m1 : tiles_i8_e2m1;
  return l.even_odd ? tiles_i8_even_odd_32 : tiles_i8_32;
}

/* 8 rows of 16-byte pieces, row r's at from + r * stride; out[4 * i + j] = 32-bit word j of piece i of all rows, at a
 * distance of COLUMNS words. */
INLINE void panel_turn(const void *from_rows, size_t stride, uint32_t pieces, void *to) {
  const uint8_t *from = from_rows;
  uint8_t *out = to;
  for (uint32_t i = 0; i < pieces; i++, from += 16, out += 4 * COLUMNS * 4) {
    __m256i v[4];
    for (int j = 0; j < 4; j++) /* half h of v[j] is row 4h + j */
      v[j] = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(from + (size_t)j * stride)),
                                     load16(from + (size_t)(j + 4) * stride), 1);
    const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
    const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    _mm256_store_si256((__m256i *)(void *)out, _mm256_unpacklo_epi64(a, c));
    _mm256_store_si256((__m256i *)(void *)(out + 4 * COLUMNS), _mm256_unpackhi_epi64(a, c));
    _mm256_store_si256((__m256i *)(void *)(out + 8 * COLUMNS), _mm256_unpacklo_epi64(b, d));
    _mm256_store_si256((__m256i *)(void *)(out + 12 * COLUMNS), _mm256_unpackhi_epi64(b, d));
  }
}

/* The 32 elements from k0 + 32 * b on (16 at the end of a row) in the order of x: as signed words, or as unsigned ones that
 * fit a byte. */
INLINE void words_of(int f, uint32_t bytes, const row *w, size_t k0, uint32_t b, uint32_t n, __m256i u[2]) {
  block_of_weights(f, w, k0, b, n, u);
  int offset = 0;
  if (bytes == 2 && f != MOI_FORMAT_Q8_0) offset = -(int)offset_of(f);
  if (bytes == 1 && f == MOI_FORMAT_Q8_0) offset = 128;
  for (int i = 0; i < 2 && offset; i++) u[i] = _mm256_add_epi16(u[i], _mm256_set1_epi16((short)offset));
}

INLINE void store_words(__m256i v, uint8_t *to) { _mm256_store_si256((__m256i *)(void *)to, v); }
/* Two vectors of words that fit bytes. */
INLINE __m256i packed(__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8); }

/* Vector v of a panel: rows n..n+7, the last that exists again behind it. */
INLINE void fill_vector(int f, uint32_t bytes, const moi_gemm_tile *g, const strides *stride, uint32_t n, uint32_t v,
                        uint8_t *codes, float *scales, float *minima) {
  const layout l = layout_of(f, bytes, 0);
  const uint32_t k = g->w->k;
  row rows[8];
  for (uint32_t r = 0; r < 8; r++) rows[r] = row_of(g->w, stride, n + r < g->n1 ? n + r : g->n1 - 1);
  for (size_t k0 = 0; k0 < k; k0 += GROUP) {
    const uint32_t size = is_superblock(f) || k - k0 >= GROUP ? GROUP : (uint32_t)(k - k0);
    const uint32_t pieces = (size / l.block + 3) / 4;
    float scale[8][16] __attribute__((aligned(32))), minimum[8][16] __attribute__((aligned(32)));
    uint8_t row_words[8][64] __attribute__((aligned(32)));
#pragma GCC unroll 1
    for (uint32_t r = 0; r < 8; r++) {
      const block_scales of = scales_of(f, &rows[r], k0, size);
      for (int i = 0; i < 2; i++) {
        _mm256_store_ps(scale[r] + 8 * i, of.v[i]);
        if (l.minima) _mm256_store_ps(minimum[r] + 8 * i, of.of[i]);
      }
    }
    panel_turn(scale, 64, pieces, scales + k0 / l.block * COLUMNS + 8 * v);
    if (l.minima) panel_turn(minimum, 64, pieces, minima + k0 / l.block * COLUMNS + 8 * v);
    for (uint32_t b = 0; 32 * b < size; b += 2 / bytes) {
#pragma GCC unroll 1
      for (uint32_t r = 0; r < 8; r++) {
        const uint32_t left = size - 32 * b;
        __m256i u[4];
        words_of(f, bytes, &rows[r], k0, b, left >= 32 ? 32 : 16, u);
        if (bytes == 1) {
          u[2] = u[3] = _mm256_setzero_si256();
          if (left > 32) words_of(f, bytes, &rows[r], k0, b + 1, left >= 64 ? 32 : 16, u + 2);
          const __m256i a = packed(u[0], u[l.even_odd ? 2 : 1]), c = packed(u[l.even_odd ? 1 : 2], u[3]);
          u[0] = a, u[1] = c;
        }
        store_words(u[0], row_words[r]);
        store_words(u[1], row_words[r] + 32);
      }
      panel_turn(row_words, 64, 4, codes + (k0 + 32 * b) * bytes * COLUMNS + 32 * v);
    }
  }
}

/* Panels that are filled at once. */
enum { PANELS = 4 };

/* Scratch of a panel: 4 * bytes rows of codes, scales and minima one each. */
INLINE panel panel_at(uint8_t *scratch, uint32_t k, uint32_t bytes, uint32_t i) {
  const size_t kp = MOI_FORM_KP(k);
  float *at = (float *)(void *)scratch + i * (4 * bytes + 2) * kp, *scales = at + 4 * bytes * kp;
  return (panel){(uint8_t *)at, scales, scales + kp};
}

/* GPTQ and AWQ, whose codes lie along n, so that words of 8 columns need no turning. A zero is taken off the codes. Each
 * row of k is a few lines, too short for the hardware's prefetchers; GPTQ's are read once and in their order, with all
 * panels of n..n1-1 at once, while AWQ's few are all fetched with the first panel of a call. */
INLINE void fill_columns(int awq, uint32_t group, const moi_gemm_tile *g, uint32_t n, uint32_t n1, panel *panels) {
  const moi_matrix *w = g->w;
  const size_t row_bytes = awq ? w->n / 2 : (size_t)w->n * 4; /* of 8 k for GPTQ, of one for AWQ */
  const uint32_t rows = awq ? 8 : 1, early = awq ? 64 : 16; /* of a step, and that a row is fetched before it is used */
  const uint32_t size = !awq ? (n1 - n + 7) / 8 * 32 : n == g->n0 ? (g->n1 - n + 7) / 8 * 4 : 0;
  const uint32_t vectors = awq ? 2 : (n1 - n + 7) / 8; /* where AWQ's second does not exist, the first again */
  const __m256i shifts =
      awq ? _mm256_setr_epi32(0, 16, 4, 20, 8, 24, 12, 28) : _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i nibble = _mm256_set1_epi32(15);
  const uint8_t *words = w->data + (awq ? n / 2 : (size_t)n * 4), *end = w->data + w->k / 8 * rows * row_bytes;
  __m256i zeros[2 * PANELS] = {_mm256_setzero_si256()};
  __m256 scale[2 * PANELS] = {_mm256_setzero_ps()};
  for (uint32_t k = 0; k < w->k; k += 8, words += rows * row_bytes) {
    for (uint32_t i = 0; i < rows && words + (early + i) * row_bytes < end; i++)
      prefetch(words, (early + i) * row_bytes, size);
#pragma GCC unroll 2
    for (uint32_t v = 0; v < vectors; v++) {
      const panel *p = &panels[v / 2];
      const uint32_t c = n + 8 * v < n1 ? v : 0;
      if (k % group == 0) {
        const uint8_t *zero = w->zeros + ((size_t)(k / group) * (w->n / 8) + n / 8 + c) * 4;
        __m256i z = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)u32_at(zero)), shifts), nibble);
        if (!awq) z = _mm256_add_epi32(z, _mm256_set1_epi32(1));
        zeros[v] = _mm256_or_si256(z, _mm256_slli_epi32(z, 16));
        scale[v] = _mm256_cvtph_ps(load16(w->scales + ((size_t)(k / group) * w->n + n + 8 * c) * 2));
      }
      if (k % 32 == 0) _mm256_store_ps(p->scales + k / 32 * COLUMNS + v % 2 * 8, scale[v]);
      const uint8_t *from = words + c * (awq ? 4 : 32);
      uint8_t *to = p->codes + k / 2 * COLUMNS * 4 + v % 2 * 32;
      __m256i eight = _mm256_setzero_si256();
      if (!awq) eight = _mm256_loadu_si256((const __m256i *)(const void *)from);
      for (uint32_t j = 0; j < 4; j++, from += 2 * row_bytes) {
        __m256i even = eight, odd = _mm256_slli_epi32(eight, 12);
        if (awq) {
          even = _mm256_srlv_epi32(_mm256_set1_epi32((int)u32_at(from)), shifts);
          odd = _mm256_slli_epi32(_mm256_srlv_epi32(_mm256_set1_epi32((int)u32_at(from + row_bytes)), shifts), 16);
        }
        even = _mm256_and_si256(even, nibble);
        odd = _mm256_and_si256(odd, _mm256_set1_epi32(15 << 16));
        even = _mm256_sub_epi16(_mm256_or_si256(even, odd), zeros[v]);
        _mm256_store_si256((__m256i *)(void *)(to + j * COLUMNS * 4), even);
        eight = _mm256_srli_epi32(eight, 8);
      }
    }
  }
}

INLINE void store_sums(const float sum[][COLUMNS], uint32_t tokens, uint32_t width, float global, float *c,
                       size_t ldc) {
  for (uint32_t t = 0; t < tokens; t++)
    for (uint32_t i = 0; i < width; i += 8) {
      const __m256 v = _mm256_mul_ps(_mm256_set1_ps(global), _mm256_load_ps(sum[t] + i));
      if (width - i >= 8) _mm256_storeu_ps(c + t * ldc + i, v);
      else _mm256_maskstore_ps(c + t * ldc + i, first_lanes(width - i), v);
    }
}

/* Fills the panels of columns n..n1-1. */
typedef void (*fill_fn)(const moi_gemm_tile *g, uint32_t n, uint32_t n1, panel *panels);

/* scratch_rows: those of panel_at, for as many `panels` as are filled at once */
static __attribute__((noinline)) void gemm(const moi_gemm_tile *g, uint32_t bytes, float offset, uint32_t panels,
                                           fill_fn filled, tiles_fn run) {
  const moi_matrix *w = g->w;
  float sum[PANEL_TOKENS][COLUMNS] __attribute__((aligned(32)));
  ahead_state ahead = panel_ahead(g, (g->m + PANEL_TOKENS - 1) / PANEL_TOKENS);
  panel p[PANELS];
  for (uint32_t i = 0; i < panels; i++) p[i] = panel_at(g->scratch, w->k, bytes, i);
  for (uint32_t n0 = g->n0; n0 < g->n1; n0 += panels * COLUMNS) {
    const uint32_t n1 = g->n1 - n0 < panels * COLUMNS ? g->n1 : n0 + panels * COLUMNS;
    filled(g, n0, n1, p);
    for (uint32_t n = n0; n < n1; n += COLUMNS) {
      const uint32_t width = n1 - n < COLUMNS ? n1 - n : COLUMNS;
      for (uint32_t t = 0, tokens; t < g->m; t += tokens) {
        tokens = panel_tokens(t, g->m);
        const uint8_t *x[PANEL_TOKENS];
        for (uint32_t i = 0; i < tokens; i++) x[i] = g->x + g->rows[t + i] * g->x_stride;
        run(tokens, w->k, x, &p[(n - n0) / COLUMNS], offset, &ahead, sum);
        store_sums(sum, tokens, width, w->global, g->c + t * g->ldc + (n - g->n0), g->ldc);
      }
    }
  }
}

#define PANEL_FILL(format, name, bytes)                                                                                \
  static __attribute__((noinline)) void fill_##name##_##bytes(const moi_gemm_tile *g, uint32_t n, uint32_t n1,         \
                                                              panel *p) {                                              \
    const strides stride = strides_of(MOI_FORMAT_##format, g->w->k);                                                   \
    (void)n1;                                                                                                          \
    for (uint32_t v = 0; v < 2; v++)                                                                                   \
      fill_vector(MOI_FORMAT_##format, bytes, g, &stride, n + 8 * v, v, p->codes, p->scales, p->minima);               \
  }
#define PANEL(format, name, bytes, vnni, panels, function)                                                             \
  void function(const moi_gemm_tile *tile);                                                                            \
  void function(const moi_gemm_tile *g) {                                                                              \
    gemm(g, bytes, offset_of(MOI_FORMAT_##format), panels, fill_##name##_##bytes,                                      \
         tiles_of(MOI_FORMAT_##format, bytes, vnni));                                                                  \
  }

#define MOI_GEMM(format, name)                                                                                         \
  PANEL_FILL(format, name, 2)                                                                                          \
  PANEL_FILL(format, name, 1)                                                                                          \
  PANEL(format, name, 2, 0, 1, moi_gemm_##name##_panel_avx2)                                                           \
  PANEL(format, name, 2, 1, 1, moi_gemm_##name##_panel_avxvnni)                                                        \
  PANEL(format, name, 1, 1, 1, moi_gemm_##name##_i8_panel_avxvnni)

MOI_INT_FORMATS
MOI_GEMM(FP4_G16, fp4_g16)

/* the codes of the others have more than 5 bits */
#define PANEL_I8(format, name) PANEL(format, name, 1, 0, 1, moi_gemm_##name##_i8_panel_avx2)
PANEL_I8(Q4_0, q4_0)
PANEL_I8(Q4_K, q4_k)
PANEL_I8(Q5_K, q5_k)
PANEL_I8(MXFP4_GGUF, mxfp4_gguf)
PANEL_I8(MXFP4, mxfp4)
PANEL_I8(NVFP4, nvfp4)
PANEL_I8(FP4_G16, fp4_g16)
PANEL_I8(INT4_G32, int4_g32)
PANEL_I8(INT4_G128, int4_g128)
PANEL_I8(INT4Z_G32, int4z_g32)
PANEL_I8(INT4Z_G128, int4z_g128)

#define PANEL_COLUMNS(format, name, awq, group)                                                                        \
  static __attribute__((noinline)) void fill_##name##_2(const moi_gemm_tile *g, uint32_t n, uint32_t n1, panel *p) {   \
    fill_columns(awq, group, g, n, n1, p);                                                                             \
  }                                                                                                                    \
  PANEL(format, name, 2, 0, awq ? 1 : PANELS, moi_gemm_##name##_panel_avx2)                                            \
  PANEL(format, name, 2, 1, awq ? 1 : PANELS, moi_gemm_##name##_panel_avxvnni)
PANEL_COLUMNS(GPTQ_G32, gptq_g32, 0, 32)
PANEL_COLUMNS(GPTQ_G128, gptq_g128, 0, 128)
PANEL_COLUMNS(AWQ_G32, awq_g32, 1, 32)
PANEL_COLUMNS(AWQ_G128, awq_g128, 1, 128)

#endif
