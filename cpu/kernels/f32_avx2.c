/* Weights decoded to fp32, fp32 FMA, AVX2 with FMA and F16C: the formats whose codes are not integers. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "core/shared/decode.h"

typedef __m256 vec;
typedef __m256 operand;
typedef float elem;
#define VEC 8
#define STEP 8
#define MR 3
#define TILE_OUTER

static inline vec vec_zero(void) { return _mm256_setzero_ps(); }
static inline vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
static inline vec vec_splat(float f) { return _mm256_set1_ps(f); }
static inline vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline operand operand_load(const elem *p) { return _mm256_loadu_ps(p); }
static inline vec vec_dot(operand w, operand x, vec sum) { return _mm256_fmadd_ps(w, x, sum); }

static inline __m128 vec_sum4(vec a, vec b, vec c, vec d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256 s = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

#include "cpu/kernels/tile.h"

/* ----------------------------------------------------------------------------------------------------------- pieces */

static inline __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
/* The first n <= 16 bytes at p, then zeros. */
static inline __m128i load_part(const uint8_t *p, uint32_t n) {
  if (n >= 16) return load16(p);
  uint8_t part[16] = {0};
  memcpy(part, p, n);
  return load16(part);
}

static inline __m256 bf16_floats(__m128i v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
/* E4M3 to values * 2^-8: its exponent and mantissa in an f16's place, where subnormals cost nothing. The two NaN codes
 * come out as +-1.875: *nan says where. */
static inline __m256i e4m3_halves(__m128i bytes, uint32_t *nan) {
  *nan = (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_and_si128(bytes, _mm_set1_epi8(127)), _mm_set1_epi8(127)));
  const __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
  return _mm256_and_si256(h, _mm256_set1_epi16((short)0xbfff));
}
static inline __m256 half_low(__m256i h) { return _mm256_cvtph_ps(_mm256_castsi256_si128(h)); }
static inline __m256 half_high(__m256i h) { return _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)); }

/* How many rows of k ahead K-ordered data is fetched: each row is only a few cache lines long. */
enum { AHEAD_BF16_KN = 16 };

/* ------------------------------------------------------------------------- f32 and bf16: panels that lie along k

 * 16 registers hold the sums of 6 tokens by a pair of vectors of rows, so that 8 loads serve 12 FMAs, and a panel of PANEL_K
 * elements stays in the first-level cache: turning weights costs less than that saves. f16 and fp8 take more to decode, and
 * are slower in panels for up to some 20 tokens. */

enum { PANEL_TOKENS = 6, PANEL_K = 256 };

static inline __attribute__((always_inline)) void panel_tile(const uint32_t tokens, const float *const *x,
                                                             const float *w, size_t n_k, const tile_out *out) {
  vec low[PANEL_TOKENS], high[PANEL_TOKENS];
#pragma GCC unroll 6
  for (uint32_t t = 0; t < tokens; t++) low[t] = high[t] = vec_zero();
  for (size_t k = 0; k < n_k; k++, w += PAIR) {
    const vec w0 = vec_load(w), w1 = vec_load(w + VEC);
#pragma GCC unroll 6
    for (uint32_t t = 0; t < tokens; t++) {
      const vec v = vec_splat(x[t][k]);
      low[t] = vec_fma(w0, v, low[t]);
      high[t] = vec_fma(w1, v, high[t]);
    }
  }
#pragma GCC unroll 6
  for (uint32_t t = 0; t < tokens; t++) outer_end(low[t], high[t], out, out->c + t * out->ldc);
}

static __attribute__((noinline)) void panel_block(uint32_t tokens, const float *const *x, const float *w, size_t n_k,
                                                  const tile_out *out) {
  switch (tokens) {
  case 1: panel_tile(1, x, w, n_k, out); break;
  case 2: panel_tile(2, x, w, n_k, out); break;
  case 3: panel_tile(3, x, w, n_k, out); break;
  case 4: panel_tile(4, x, w, n_k, out); break;
  case 5: panel_tile(5, x, w, n_k, out); break;
  default: panel_tile(6, x, w, n_k, out); break;
  }
}

/* Four 32-bit words of 8 rows, row r's at rows[r] + at: to[j] = word j of them all. */
static inline __attribute__((always_inline)) void turn(const uint8_t *const *rows, size_t at, __m256i to[4]) {
  __m256i v[4];
  for (int j = 0; j < 4; j++) /* half h of v[j] is row 4h + j */
    v[j] = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(rows[j] + at)), load16(rows[j + 4] + at), 1);
  const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  to[0] = _mm256_unpacklo_epi64(a, c), to[1] = _mm256_unpackhi_epi64(a, c);
  to[2] = _mm256_unpacklo_epi64(b, d), to[3] = _mm256_unpackhi_epi64(b, d);
}

/* n elements, a multiple of 8, of 8 rows of `element` bytes to panel[k][PAIR]; of bf16 pairs are turned, which is half the
 * work, before they are widened. */
static inline __attribute__((always_inline)) void fill_half(const uint32_t element, const uint8_t *const *rows,
                                                            uint32_t n, float *panel) {
  for (uint32_t at = 0; at < n * element; at += 16) {
    __m256i words[4];
    turn(rows, at, words);
    for (int j = 0; j < 4; j++, panel += element == 2 ? 2 * PAIR : PAIR) {
      if (element == 4) {
        vec_store(panel, _mm256_castsi256_ps(words[j]));
      } else {
        const __m256i odd = _mm256_and_si256(words[j], _mm256_set1_epi32((int)0xffff0000u));
        vec_store(panel, _mm256_castsi256_ps(_mm256_slli_epi32(words[j], 16)));
        vec_store(panel + PAIR, _mm256_castsi256_ps(odd));
      }
    }
  }
}

static inline __attribute__((always_inline)) void gemm_panel(const moi_gemm_tile *tile, const uint32_t element) {
  const moi_matrix *w = tile->w;
  const size_t stride = (size_t)w->k * element;
  const uint32_t k = w->k, kc = least((uint32_t)MOI_FORM_KP(k), PANEL_K);
  const int few = tile->m <= AHEAD_TOKENS;
  float *panel = tile->scratch;
  for (uint32_t n = tile->n0; n < tile->n1; n += PAIR) {
    const uint32_t width = least(PAIR, tile->n1 - n);
    for (uint32_t k0 = 0; k0 < k; k0 += kc) {
      const uint32_t k1 = least(k0 + kc, k), whole = (k1 - k0) & ~7u, rest = k1 - k0 - whole;
      const uint8_t *rows[PAIR], *rests[PAIR];
      uint8_t ends[PAIR][32]; /* the last elements of a row and zeros */
      for (uint32_t r = 0; r < PAIR; r++) { /* the last row again behind it: computed, never stored */
        rows[r] = w->data + (n + least(r, width - 1)) * stride + (size_t)k0 * element;
        if (few && n + r + PAIR < w->n)
          for (uint32_t i = 0; i < (k1 - k0) * element; i += 64) __builtin_prefetch(rows[r] + PAIR * stride + i, 0, 2);
        if (!rest) continue;
        rests[r] = memset(ends[r], 0, sizeof ends[r]);
        memcpy(ends[r], rows[r] + (size_t)whole * element, rest * element);
      }
      for (uint32_t half = 0; half < PAIR; half += VEC) {
        fill_half(element, rows + half, whole, panel + half);
        if (rest) fill_half(element, rests + half, 8, panel + whole * PAIR + half);
      }
      for (uint32_t t = 0, tokens; t < tile->m; t += tokens) {
        const uint32_t left = tile->m - t, tiles = (left + PANEL_TOKENS - 1) / PANEL_TOKENS;
        tokens = (left + tiles - 1) / tiles; /* as even as may be, for a tile of one or two waits for its sums */
        const float *x[PANEL_TOKENS];
        for (uint32_t i = 0; i < tokens; i++)
          x[i] = (const float *)(const void *)(tile->x + tile->rows[t + i] * tile->x_stride) + k0;
        const tile_out out = {tile->c + t * tile->ldc + (n - tile->n0), tile->ldc, width, k0 == 0, k1 == k, w->global};
        panel_block(tokens, x, panel, whole + (rest ? 8 : 0), &out);
      }
    }
  }
}

/* ----------------------------------------------------------------------------------------------- decoders: row of k */

static const float *decode_f16(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + ((size_t)n * w->k + k0) * 2;
  const uint32_t count = k1 - k0, whole = count & ~7u;
  for (uint32_t i = 0; i < whole; i += 8) _mm256_store_ps(dst + i, _mm256_cvtph_ps(load16(row + i * 2)));
  if (whole < count) _mm256_store_ps(dst + whole, _mm256_cvtph_ps(load_part(row + whole * 2, (count - whole) * 2)));
  return dst;
}

/* count codes with one scale; zeros up to a multiple of 16 */
static inline void decode_e4m3(const uint8_t *row, uint32_t count, float scale, float *dst) {
  /* 256 * scale must be finite; what is not, NaN with it, goes the slow way */
  const int plain = scale < 0x1p119f && scale > -0x1p119f;
  const __m256 unit = _mm256_set1_ps(plain ? 256 * scale : 0);
  for (uint32_t i = 0; i < count; i += 16) {
    const uint32_t here = least(16, count - i);
    uint32_t nan;
    const __m256i h = e4m3_halves(load_part(row + i, here), &nan);
    _mm256_store_ps(dst + i, _mm256_mul_ps(half_low(h), unit));
    _mm256_store_ps(dst + i + 8, _mm256_mul_ps(half_high(h), unit));
    if (nan || !plain)
      for (uint32_t j = 0; j < here; j++) dst[i + j] = moi_e4m3_value(row[i + j]) * scale;
  }
}

static const float *decode_fp8(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  decode_e4m3(w->data + (size_t)n * w->k + k0, k1 - k0, 1, dst);
  return dst;
}

static const float *decode_fp8_b128(const moi_matrix *w, uint32_t n, uint32_t k0, uint32_t k1, float *dst) {
  const uint8_t *row = w->data + (size_t)n * w->k;
  const uint8_t *scales = w->scales + (size_t)(n >> 7) * ((w->k + 127) >> 7) * 4;
  for (uint32_t k = k0; k < k1; k += 128)
    decode_e4m3(row + k, least(128, k1 - k), moi_bits_f32(moi_load_u32(scales + (k >> 7) * 4)), dst + (k - k0));
  return dst;
}

/* ------------------------------------------------------------------------------------------- decoders: columns of n */

static void decode_bf16_kn(const moi_matrix *w, uint32_t n, uint32_t width, uint32_t k0, uint32_t k1, float *dst) {
  for (uint32_t k = k0; k < k1; k++, dst += PAIR) {
    const uint8_t *row = w->data + ((size_t)k * w->n + n) * 2;
    for (uint32_t i = 0; i < PAIR; i += 8) {
      if (i == 0 && k + AHEAD_BF16_KN < w->k)
        _mm_prefetch((const char *)row + (size_t)AHEAD_BF16_KN * w->n * 2, _MM_HINT_T0);
      const __m128i v = i + 8 <= width ? load16(row + i * 2)
                        : i < width    ? load_part(row + i * 2, (width - i) * 2)
                                       : _mm_setzero_si128();
      _mm256_store_ps(dst + i, bf16_floats(v));
    }
  }
}

/* ---------------------------------------------------------------------------------------------------------- kernels */

#define NO_INTEGER_FORMATS
#define MOI_DENSE(format, element)                                                                                     \
  void KERNEL_NAME(format)(const moi_gemm_tile *tile);                                                                 \
  void KERNEL_NAME(format)(const moi_gemm_tile *tile) { gemm_panel(tile, element); }
#define KERNEL_NAME(format) moi_gemm_##format##_avx2
#include "cpu/kernels/f32_list.h"

#endif
