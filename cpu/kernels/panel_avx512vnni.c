/* GEMMs for many tokens: c = x W^T with integer activations and weights, vpdpbusd.
 *
 * Weights are taken apart once for all tokens: codes as unsigned bytes, turned into panels, and their scales as floats.
 * x is d * q for each 32, q an integer of two digits; a block is
 *   scale * (d * (256 * sum u*hi + sum u*lo) - offset * s)      or, where a format brings minima,
 *   scale * d * (256 * sum u*hi + sum u*lo) - minimum * s
 * where the sums are exact integers and s = d * sum q comes with the prepared row.
 *
 * Every (token, column) has sums of its own in an order that depends on k alone: BATCH_INVARIANT. */
#if defined(__x86_64__)

#include "cpu/kernels/int_avx512.h"
#define COLUMNS 32 /* 12 sums of a block, 12 of k, 2 vectors of weights, one of x */
#include "cpu/kernels/panel_avx512.h"

/* What it takes about, a chunk of 64 elements each: to fill it in for 16 rows, and to multiply it by a digit of a token. */
enum { FILL = 16, MULTIPLY = 10 };

/* What the loops must know of a format, all constants. */
typedef struct layout {
  uint32_t block;   /* elements of a scale */
  uint32_t section; /* elements of 16 scales, or of 8 scales and 8 minima */
  int even_odd;     /* order of x */
  int minima;       /* 0: an offset; 1: behind the scales; 2: in a panel of their own */
  uint32_t digits;  /* of x */
} layout;

INLINE layout layout_of(int f, uint32_t digits) {
  layout l = {block_of(f), group_of(f), is_even_odd(f), 0, digits};
  if (f == MOI_FORMAT_Q4_K || f == MOI_FORMAT_Q5_K) l.minima = 1;
  if (f == MOI_FORMAT_INT4Z_G32 || f == MOI_FORMAT_INT4Z_G128) l.minima = 2;
  return l;
}

/* Elements k0..k1-1 of COLUMNS rows, k0 a multiple of a section; k1 another, or kp. */
typedef struct panel {
  uint8_t *codes;         /* [(k1 - k0) / 4][COLUMNS] times four */
  float *scales, *minima; /* [sections][16][COLUMNS] */
  size_t k0, k1;
} panel;

/* sum += u . q. GCC 12 copies every sum around the intrinsic, once before and once behind it. */
INLINE __m512i dot(__m512i sum, __m512i u, __m512i q) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(q));
  return sum;
}

/* Word j of the block's words in a chunk of 64 elements (16 words). */
INLINE uint32_t word_of(layout l, uint32_t block, uint32_t j) {
  const uint32_t words = l.block / 4, half = words / 2;
  if (!l.even_odd) return block * words + j;
  return block * half + (j < half ? j : 8 + j - half);
}

/* tokens x COLUMNS sums += those over the panel's part of k. */
INLINE void tile(const layout l, const uint32_t tokens, uint32_t k, const uint8_t *const *x, const panel *p, float offset,
                 ahead_state *ahead, float sum[][COLUMNS]) {
  const size_t d_at = l.digits == 2 ? MOI_FORM_D(k) : MOI_FORM_I8_D(k);
  const size_t s_at = l.digits == 2 ? MOI_FORM_S(k) : MOI_FORM_I8_S(k);
  const uint32_t blocks = 64 / l.block;
  __m512 y[PANEL_TOKENS][2];
#pragma GCC unroll 6
  for (uint32_t t = 0; t < tokens; t++) {
    y[t][0] = p->k0 ? _mm512_load_ps(sum[t]) : _mm512_setzero_ps();
    y[t][1] = p->k0 ? _mm512_load_ps(sum[t] + 16) : _mm512_setzero_ps();
  }
  const uint8_t *codes = p->codes;
  const float *scale = p->scales, *zeros = p->minima;
  for (size_t k0 = p->k0; k0 < p->k1; k0 += l.section, scale += 16 * COLUMNS, zeros += 16 * COLUMNS) {
    const uint32_t n = p->k1 - k0 < l.section ? (uint32_t)(p->k1 - k0) : l.section, n_s = n / 16;
    float d[PANEL_TOKENS][16] __attribute__((aligned(64))), s[PANEL_TOKENS][16] __attribute__((aligned(64)));
#pragma GCC unroll 1
    for (uint32_t t = 0; t < tokens; t++) {
      const float *from = (const float *)(const void *)(x[t] + s_at) + k0 / 16;
      __m512 dv = _mm512_maskz_loadu_ps((__mmask16)((1u << n / 32) - 1), x[t] + d_at + k0 / 8);
      __m512 sv = _mm512_maskz_loadu_ps((__mmask16)(n_s < 16 ? (1u << n_s) - 1 : 0xffff), from);
      if (l.block == 16) {
        dv = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), dv);
      } else {
        __m512 more = _mm512_maskz_loadu_ps((__mmask16)(n_s > 16 ? (1u << (n_s - 16)) - 1 : 0), from + 16);
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        sv = _mm512_add_ps(_mm512_permutex2var_ps(sv, even, more), _mm512_permutex2var_ps(sv, odd, more));
      }
      if (!l.minima) sv = _mm512_mul_ps(sv, _mm512_set1_ps(-offset));
      _mm512_store_ps(d[t], dv);
      _mm512_store_ps(s[t], sv);
    }
    IN_MEMORY();
    for (uint32_t c = 0; c < n / 64; c++, codes += 64 * COLUMNS) {
      for (uint32_t b = 0; b < blocks; b++) {
        ahead_fetch(ahead, MULTIPLY * tokens * l.digits / blocks);
        __m512i a[PANEL_TOKENS][2];
#pragma GCC unroll 6
        for (uint32_t t = 0; t < tokens; t++) a[t][0] = a[t][1] = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (uint32_t digit = 0; digit < l.digits; digit++) {
          const size_t at = l.digits * (k0 + 64 * c) + 64 * digit;
          if (digit)
#pragma GCC unroll 6
            for (uint32_t t = 0; t < tokens; t++) {
              a[t][0] = _mm512_slli_epi32(a[t][0], 8);
              a[t][1] = _mm512_slli_epi32(a[t][1], 8);
            }
#pragma GCC unroll 1
          for (uint32_t j = 0; j < l.block / 4; j++) {
            const uint32_t word = word_of(l, b, j);
            __m512i u0 = _mm512_load_si512(codes + word * COLUMNS * 4);
            __m512i u1 = _mm512_load_si512(codes + word * COLUMNS * 4 + 64);
            IN_REGISTER(u0);
            IN_REGISTER(u1);
#pragma GCC unroll 6
            for (uint32_t t = 0; t < tokens; t++) {
              const __m512i q = _mm512_set1_epi32(*(const int32_t *)(const void *)(x[t] + at + 4 * word));
              a[t][0] = dot(a[t][0], u0, q);
              a[t][1] = dot(a[t][1], u1, q);
            }
          }
        }
        const uint32_t at = c * blocks + b;
        const float *minimum = l.minima == 1 ? scale + (8 + at) * COLUMNS : zeros + at * COLUMNS;
#pragma GCC unroll 2
        for (uint32_t v = 0; v < 2; v++) {
          const __m512 w = _mm512_load_ps(scale + at * COLUMNS + 16 * v);
#pragma GCC unroll 6
          for (uint32_t t = 0; t < tokens; t++) {
            const __m512 q = _mm512_cvtepi32_ps(a[t][v]), dt = _mm512_set1_ps(d[t][at]), st = _mm512_set1_ps(s[t][at]);
            if (l.minima) {
              y[t][v] = _mm512_fmadd_ps(w, _mm512_mul_ps(q, dt), y[t][v]);
              y[t][v] = _mm512_fnmadd_ps(_mm512_load_ps(minimum + 16 * v), st, y[t][v]);
            } else {
              y[t][v] = _mm512_fmadd_ps(w, _mm512_fmadd_ps(q, dt, st), y[t][v]);
            }
          }
        }
      }
    }
  }
#pragma GCC unroll 6
  for (uint32_t t = 0; t < tokens; t++) {
    _mm512_store_ps(sum[t], y[t][0]);
    _mm512_store_ps(sum[t] + 16, y[t][1]);
  }
}

INLINE void tiles(const layout l, uint32_t tokens, uint32_t k, const uint8_t *const *x, const panel *p, float offset,
                  ahead_state *ahead, float sum[][COLUMNS]) {
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
                         ahead_state *ahead, float sum[][COLUMNS]);
#define TILES(name, format, digits)                                                                                    \
  static void tiles_##name(uint32_t tokens, uint32_t k, const uint8_t *const *x, const panel *p, float offset,         \
                           ahead_state *ahead, float sum[][COLUMNS]) {                                    \
    tiles(layout_of(MOI_FORMAT_##format, digits), tokens, k, x, p, offset, ahead, sum);                                \
  }
#define TILES_ALL(i8, digits)                                                                                          \
  TILES(i8##32, Q8_0, digits) TILES(i8##16, Q6_K, digits) TILES(i8##minima, Q4_K, digits)                              \
  TILES(i8##even_odd_32, MXFP4, digits) TILES(i8##even_odd_16, NVFP4, digits)                                          \
  TILES(i8##even_odd_zeros, INT4Z_G32, digits)
TILES_ALL(, 2)
TILES_ALL(i8_, 1)

INLINE tiles_fn tiles_of(int f, uint32_t digits) {
  const layout l = layout_of(f, digits);
  const int i8 = digits == 1;
  if (l.minima == 1) return i8 ? tiles_i8_minima : tiles_minima;
  if (l.minima == 2) return i8 ? tiles_i8_even_odd_zeros : tiles_even_odd_zeros;
  if (l.even_odd && l.block == 16) return i8 ? tiles_i8_even_odd_16 : tiles_even_odd_16;
  if (l.even_odd) return i8 ? tiles_i8_even_odd_32 : tiles_even_odd_32;
  if (l.block == 16) return i8 ? tiles_i8_16 : tiles_16;
  return i8 ? tiles_i8_32 : tiles_32;
}

INLINE __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

/* Vector `word` of a chunk. */
INLINE void put(uint8_t *chunk, uint32_t word, __m512i v) { _mm512_store_si512(chunk + word * COLUMNS * 4, v); }

/* n bits of each byte of v from bit `from` on, moved to bit `to`. */
INLINE __m512i bits_at(__m512i v, int from, int to, int n) {
  v = from > to ? _mm512_srli_epi16(v, (unsigned)(from - to)) : _mm512_slli_epi16(v, (unsigned)(to - from));
  return _mm512_and_si512(v, _mm512_set1_epi8((char)(((1 << n) - 1) << to)));
}

/* `chunks` whole chunks from k0 on (a section, or what is left of it) of 16 rows, the first of which is w: words of all rows
 * are put beside each other as they lie and taken apart then, which turns half as many as taken apart before. */
INLINE void fill_codes(int f, const row *w, size_t stride, size_t k0, uint32_t chunks, uint8_t *out, ahead_state *ahead) {
  __m512i v[4];
  if (f == MOI_FORMAT_Q6_K) {
    const uint8_t *b = w->data + k0 / 256 * bytes_of(f);
#pragma GCC unroll 1
    for (uint32_t half = 0; half < 2; half++, out += 128 * COLUMNS) {
      __m512i top[2][4];
      for (uint32_t i = 0; i < 2; i++) panel_words(b + 128 + 32 * half + 16 * i, stride, top[i]);
#pragma GCC unroll 4
      for (uint32_t i = 0; i < 4; i++) {
        ahead_fetch(ahead, FILL / 2);
        panel_words(b + 64 * half + 16 * i, stride, v);
        for (uint32_t j = 0; j < 4; j++) {
          const __m512i t = top[i % 2][j];
          put(out, 4 * i + j, _mm512_or_si512(low_nibbles(v[j]), bits_at(t, i < 2 ? 0 : 2, 4, 2)));
          put(out + 64 * COLUMNS, 4 * i + j, _mm512_or_si512(high_nibbles(v[j]), bits_at(t, i < 2 ? 4 : 6, 4, 2)));
        }
      }
    }
    return;
  }
  if (f == MOI_FORMAT_Q5_K) {
    const uint8_t *b = w->data + k0 / 256 * bytes_of(f);
    for (uint32_t i = 0; i < 2; i++) {
      __m512i top[4];
      panel_words(b + 16 + 16 * i, stride, top);
#pragma GCC unroll 4
      for (uint32_t c = 0; c < 4; c++) {
        ahead_fetch(ahead, FILL / 2);
        panel_words(b + 48 + 32 * c + 16 * i, stride, v);
        for (uint32_t j = 0; j < 4; j++) {
          put(out + 64 * COLUMNS * c, 4 * i + j, _mm512_or_si512(low_nibbles(v[j]), bits_at(top[j], (int)(2 * c), 4, 1)));
          put(out + 64 * COLUMNS * c, 8 + 4 * i + j,
              _mm512_or_si512(high_nibbles(v[j]), bits_at(top[j], (int)(2 * c + 1), 4, 1)));
        }
      }
    }
    return;
  }
  const int apart = f == MOI_FORMAT_Q4_0 || f == MOI_FORMAT_IQ4_NL || f == MOI_FORMAT_MXFP4_GGUF; /* blocks with heads */
  const uint8_t *from = w->data + k0 / 2;
  if (f == MOI_FORMAT_Q4_K) from = w->data + k0 / 256 * bytes_of(f) + 16;
  if (f == MOI_FORMAT_Q8_0 || apart) from = w->data + k0 / 32 * bytes_of(f) + (f == MOI_FORMAT_MXFP4_GGUF ? 1 : 2);
#pragma GCC unroll 1
  for (uint32_t c = 0; c < chunks; c++, out += 64 * COLUMNS)
#pragma GCC unroll 2
    for (uint32_t b = 0; b < 2; b++) {
      if (f != MOI_FORMAT_Q8_0) ahead_fetch(ahead, FILL / 2);
      if (f == MOI_FORMAT_Q8_0) {
        for (uint32_t i = 0; i < 2; i++) {
          ahead_fetch(ahead, FILL / 4);
          panel_words(from + 16 * i, stride, v);
          for (uint32_t j = 0; j < 4; j++) put(out, 8 * b + 4 * i + j, _mm512_xor_si512(v[j], _mm512_set1_epi8((char)128)));
        }
        from += bytes_of(f);
        continue;
      }
      panel_words(from, stride, v);
      from += apart ? bytes_of(f) : 16;
      for (uint32_t j = 0; j < 4; j++) {
        __m512i low = low_nibbles(v[j]), high = high_nibbles(v[j]);
        if (is_e2m1(f) || f == MOI_FORMAT_IQ4_NL) low = lookup(f, low), high = lookup(f, high);
        put(out, apart ? 8 * b + j : 4 * b + j, low);
        put(out, apart ? 8 * b + 4 + j : 8 + 4 * b + j, high);
      }
    }
}

INLINE void fill_k_scales(const uint8_t *block, size_t stride, float *scales) {
  __m512i h[4];
  panel_words(block, stride, h);
  k_scales_of_rows(h, scales, COLUMNS);
}

/* Vector v of the panel: rows n..n+15, the last that exists again behind it. */
INLINE void fill(int f, const moi_gemm_tile *g, const strides *stride, uint32_t n, uint32_t v, const panel *p,
                 ahead_state *ahead) {
  const layout l = layout_of(f, 2);
  const uint32_t k = g->w->k, k1 = p->k1 < k ? (uint32_t)p->k1 : k;
  const int whole = n + 16 <= g->n1;
  row rows[16];
  for (uint32_t r = 0; r < 16; r++) rows[r] = row_of(g->w, stride, n + r < g->n1 ? n + r : g->n1 - 1);
  uint8_t *codes = p->codes + 64 * v;
  float *scales = p->scales + 16 * v, *minima = p->minima + 16 * v;
  for (size_t k0 = p->k0; k0 < k1; k0 += l.section) {
    const uint32_t size = k1 - k0 < l.section ? (uint32_t)(k1 - k0) : l.section;
    if (whole && l.minima == 1) {
      fill_k_scales(rows[0].data + k0 / 256 * bytes_of(f), stride->data, scales);
    } else {
      const uint32_t pieces = l.minima == 1 ? 4 : ((size + 63) / 64 * 64 / l.block + 3) / 4;
      float scale[16][16] __attribute__((aligned(64))), minimum[16][16] __attribute__((aligned(64)));
      for (uint32_t r = 0; r < 16; r++) {
        __m512 of;
        _mm512_store_ps(scale[r], scales_of(f, &rows[r], k0, size, &of));
        if (l.minima == 2) _mm512_store_ps(minimum[r], of);
      }
      panel_turn((const uint8_t *)scale, 64, pieces, scales);
      if (l.minima == 2) panel_turn((const uint8_t *)minimum, 64, pieces, minima);
    }
    scales += 16 * COLUMNS, minima += 16 * COLUMNS;
    uint32_t c = 0;
    if (whole) {
      c = size / 64;
      fill_codes(f, &rows[0], stride->data, k0, c, codes, ahead);
    }
    for (; c < (size + 63) / 64; c++) {
      const uint32_t left = size - 64 * c;
      uint8_t bytes[16][64] __attribute__((aligned(64)));
      if (left >= 64)
        for (uint32_t r = 0; r < 16; r++) _mm512_store_si512(bytes[r], chunk_of(f, 0, &rows[r], k0, c, 64));
      else
        for (uint32_t r = 0; r < 16; r++) _mm512_store_si512(bytes[r], chunk_of(f, 0, &rows[r], k0, c, left));
      panel_turn(bytes[0], 64, 4, codes + 64 * c * COLUMNS);
    }
    codes += l.section * COLUMNS;
  }
}

/* scratch_rows: 12. Codes are 8 rows of it; scales are COLUMNS * kp / 16 floats at most, 2 rows, and minima at most
 * 2 rows where kp is 64. */
typedef void (*fill_fn)(const moi_gemm_tile *g, const strides *stride, uint32_t n, uint32_t v, const panel *p,
                 ahead_state *ahead);

/* Up to so many tokens a panel is a section of k, which stays in the first-level cache; from there on it is the whole of k,
 * so that sums stay in registers. */
enum { FEW = 12 };

INLINE void gemm(int f, uint32_t digits, fill_fn filled, const moi_gemm_tile *g) {
  const moi_matrix *w = g->w;
  const size_t kp = MOI_FORM_KP(w->k), step = g->m <= FEW ? group_of(f) : kp;
  const strides stride = strides_of(f, w->k);
  const tiles_fn run = tiles_of(f, digits);
  float sum[FEW][COLUMNS] __attribute__((aligned(64)));
  panel p = {.codes = g->scratch, .scales = (float *)g->scratch + 8 * kp, .minima = (float *)g->scratch + 10 * kp};
  ahead_state ahead = panel_ahead(g, 2 * FILL + MULTIPLY * g->m * digits);
  for (uint32_t n = g->n0; n < g->n1; n += COLUMNS) {
    const uint32_t width = g->n1 - n < COLUMNS ? g->n1 - n : COLUMNS, vectors = (width + 15) / 16;
    for (p.k0 = 0; p.k0 < kp; p.k0 = p.k1) {
      p.k1 = kp - p.k0 < step ? kp : p.k0 + step;
      for (uint32_t v = 0; v < vectors; v++) filled(g, &stride, n + 16 * v, v, &p, &ahead);
      for (uint32_t t = 0, tokens; t < g->m; t += tokens) {
        tokens = panel_tokens(t, g->m);
        const uint8_t *x[PANEL_TOKENS];
        for (uint32_t i = 0; i < tokens; i++) x[i] = g->x + g->rows[t + i] * g->x_stride;
        float(*const at)[COLUMNS] = sum + (g->m <= FEW ? t : 0);
        run(tokens, w->k, x, &p, offset_of(f), &ahead, at);
        if (p.k1 == kp) panel_store(at, tokens, width, w->global, g->c + t * g->ldc + (n - g->n0), g->ldc);
      }
    }
  }
}

#define MOI_GEMM(format, name)                                                                                         \
  static __attribute__((noinline)) void fill_##name(const moi_gemm_tile *g, const strides *stride, uint32_t n,         \
                                                    uint32_t v, const panel *p, ahead_state *ahead) {                  \
    fill(MOI_FORMAT_##format, g, stride, n, v, p, ahead);                                                                   \
  }                                                                                                                    \
  void moi_gemm_##name##_panel_avx512vnni(const moi_gemm_tile *tile);                                                  \
  void moi_gemm_##name##_panel_avx512vnni(const moi_gemm_tile *tile) {                                                 \
    gemm(MOI_FORMAT_##format, 2, fill_##name, tile);                                                                   \
  }                                                                                                                    \
  void moi_gemm_##name##_i8_panel_avx512vnni(const moi_gemm_tile *tile);                                               \
  void moi_gemm_##name##_i8_panel_avx512vnni(const moi_gemm_tile *tile) {                                              \
    gemm(MOI_FORMAT_##format, 1, fill_##name, tile);                                                                   \
  }

MOI_INT_FORMATS
MOI_GEMM(FP4_G16, fp4_g16)

#endif
