/* GEMMs for few tokens: c = x W^T with integer activations, each weight taken apart once, vpdpbusd.
 *
 * x is d * (256*hi + lo) for each 32 elements, or d * hi (MOI_ACT_QUANT_INT8_32); weights are unsigned bytes u with
 * w = scale*u - correction: a block is
 *   scale * d * (256 * sum u*hi + sum u*lo) - correction * (d * sum q)
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
  GROUPS = 2     /* of scales in a section, at most */
};

/* Elements of 64 bytes of codes, and how many sums they have: of low and of high nibbles, of even and of odd blocks, or one. */
INLINE uint32_t step_of(int f) { return f == MOI_FORMAT_Q8_0 ? 64 : 128; }
INLINE uint32_t sums_of(int f) { return is_superblock(f) || block_of(f) == 16 ? 2 : 1; }
/* The sum of vector i: those of low nibbles stand before those of high ones. */
INLINE uint32_t sum_of(int f, uint32_t i) { return is_superblock(f) ? i / 4 : block_of(f) == 16 ? i % 4 / 2 : 0; }
INLINE int has_minima(int f) { return f == MOI_FORMAT_Q4_K || f == MOI_FORMAT_Q5_K; }
INLINE int has_zeros(int f) { return f == MOI_FORMAT_INT4Z_G32 || f == MOI_FORMAT_INT4Z_G128; }
INLINE int is_apart(int f) { return f == MOI_FORMAT_Q4_0 || f == MOI_FORMAT_IQ4_NL || f == MOI_FORMAT_MXFP4_GGUF; }

/* Four rows in lanes: v[j] = word j of each 128 bits of all rows. */
INLINE void turn(__m512i v[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}
INLINE void turn_ps(__m512 v[4]) {
  __m512i w[4];
  for (int i = 0; i < 4; i++) w[i] = _mm512_castps_si512(v[i]);
  turn(w);
  for (int i = 0; i < 4; i++) v[i] = bits(w[i]);
}

/* ---- x */

/* A section of a token's x. */
typedef struct spread {
  uint8_t x[SECTION / 16][2][64]; /* [words of a step, steps after each other][digits] */
  float d[SECTION / 64][16];      /* [steps][sums] */
  float s[GROUPS][4][16];         /* what multiplies the turned corrections */
} spread;

INLINE __m512i order(int a, int b, int c, int d) {
  return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}

INLINE void spread_x(int f, int digits, uint32_t k, const uint8_t *x, size_t k0, spread *out) {
  const size_t kp = MOI_FORM_KP(k), k1 = kp - k0 < SECTION ? kp : k0 + SECTION;
  const float *d_at = (const float *)(const void *)(x + (digits == 2 ? MOI_FORM_D(k) : MOI_FORM_I8_D(k)));
  const float *s_at = (const float *)(const void *)(x + (digits == 2 ? MOI_FORM_S(k) : MOI_FORM_I8_S(k)));
  const uint32_t step = step_of(f), halves = step / 64;
  uint32_t i = 0;
  for (size_t at = k0; at < k1; at += step, i++) {
    const int second = at + 64 < kp;
    for (int digit = 0; digit < digits; digit++) {
      const uint8_t *from = x + digits * at + 64 * digit;
      const __m512i a = _mm512_load_si512(from);
      const __m512i b = second && halves == 2 ? _mm512_load_si512(from + 64 * digits) : _mm512_setzero_si512();
      __m512i v[2] = {a, b};
      if (is_apart(f)) {
        v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
        v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
      } else if (f != MOI_FORMAT_Q6_K && f != MOI_FORMAT_Q8_0) {
        v[0] = _mm512_shuffle_i32x4(a, b, 0x44);
        v[1] = _mm512_shuffle_i32x4(a, b, 0xee);
      }
      for (uint32_t h = 0; h < halves; h++) {
        uint8_t(*to)[2][64] = out->x + 4 * (i * halves + h);
        _mm512_store_si512(to[0][digit], _mm512_shuffle_epi32(v[h], (_MM_PERM_ENUM)0x00));
        _mm512_store_si512(to[1][digit], _mm512_shuffle_epi32(v[h], (_MM_PERM_ENUM)0x55));
        _mm512_store_si512(to[2][digit], _mm512_shuffle_epi32(v[h], (_MM_PERM_ENUM)0xaa));
        _mm512_store_si512(to[3][digit], _mm512_shuffle_epi32(v[h], (_MM_PERM_ENUM)0xff));
      }
    }
    const __m512 d = _mm512_maskz_loadu_ps(halves == 2 && second ? 15 : 3, d_at + at / 32);
    __m512i first_sum = order(0, 1, 2, 3), second_sum = first_sum;
    if (f == MOI_FORMAT_Q8_0) first_sum = order(0, 0, 1, 1);
    if (f == MOI_FORMAT_Q6_K) first_sum = order(0, 0, 1, 1), second_sum = order(2, 2, 3, 3);
    if (has_minima(f)) first_sum = order(0, 0, 2, 2), second_sum = order(1, 1, 3, 3);
    _mm512_store_ps(out->d[i * sums_of(f)], _mm512_permutexvar_ps(first_sum, d));
    if (sums_of(f) == 2) _mm512_store_ps(out->d[2 * i + 1], _mm512_permutexvar_ps(second_sum, d));
  }
  i = 0;
  for (size_t at = k0; at < k1; at += group_of(f), i++) {
    const uint32_t n = k1 - at < group_of(f) ? (uint32_t)(k1 - at) : group_of(f);
    __m512 s = _mm512_maskz_loadu_ps(first(n / 16), s_at + at / 16);
    if (block_of(f) == 32) {
      const __m512 more = _mm512_maskz_loadu_ps(first(n > 256 ? n / 16 - 16 : 0), s_at + at / 16 + 16);
      const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
      s = _mm512_add_ps(_mm512_permutex2var_ps(s, even, more), _mm512_permutex2var_ps(s, odd, more));
    }
    if (has_minima(f)) s = _mm512_shuffle_f32x4(_mm512_setzero_ps(), s, 0x44); /* they lie behind 8 scales */
    if (offset_of(f) > 0) s = _mm512_mul_ps(s, _mm512_set1_ps(offset_of(f)));
    for (int j = 0; j < 4; j++)
      _mm512_store_ps(out->s[i][j], _mm512_permutexvar_ps(order(j, 4 + j, 8 + j, 12 + j), s));
  }
}

/* ---- weights */

INLINE __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }

/* The codes of step `i` of the group at k0, as they lie, n elements of which exist; missing bytes are 0. */
INLINE __m512i codes(int f, const row *w, size_t k0, uint32_t i, uint32_t n) {
  if (is_superblock(f)) {
    const uint8_t *b = w->data + k0 / 256 * bytes_of(f);
    return _mm512_loadu_si512(b + (f == MOI_FORMAT_Q4_K ? 16 : f == MOI_FORMAT_Q5_K ? 48 : 0) + 64 * i);
  }
  if (is_apart(f)) {
    const uint32_t size = bytes_of(f);
    const uint8_t *b = w->data + (k0 / 32 + 4 * i) * size + (f == MOI_FORMAT_MXFP4_GGUF ? 1 : 2);
    __m512i v = _mm512_zextsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)b));
    if (n >= 64) v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(b + size)), 1);
    if (n >= 96) v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(b + 2 * size)), 2);
    if (n >= 128) v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(b + 3 * size)), 3);
    return v;
  }
  if (f == MOI_FORMAT_Q8_0) {
    const uint8_t *b = w->data + (k0 / 32 + 2 * i) * 34 + 2;
    const __m512i v = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)b));
    return n < 64 ? v : _mm512_inserti64x4(v, _mm256_loadu_si256((const __m256i *)(const void *)(b + 34)), 1);
  }
  const uint8_t *p = w->data + k0 / 2 + 64 * i;
  return n >= 128 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(((__mmask64)1 << n / 2) - 1, p);
}

/* Step i of four rows as 8 (Q8_0: 4) vectors of unsigned bytes. top: Q5_K's fifth bits, turned. */
INLINE void unpack(int f, const row w[ROWS], size_t k0, uint32_t i, uint32_t n, const __m512i top[4], __m512i u[8]) {
  __m512i v[4], t[4];
  for (int r = 0; r < ROWS; r++) v[r] = codes(f, &w[r], k0, i, n);
  turn(v);
  if (f == MOI_FORMAT_Q8_0) {
    for (int j = 0; j < 4; j++) u[j] = _mm512_xor_si512(v[j], _mm512_set1_epi8((char)128));
    return;
  }
  for (int j = 0; j < 4; j++) u[j] = low_nibbles(v[j]), u[4 + j] = low_nibbles(_mm512_srli_epi16(v[j], 4));
  if (f == MOI_FORMAT_Q5_K) { /* lanes of a chunk's 32 low and 32 high elements, then of the next one's */
    const int a = (int)(4 * i), b = a + 2;
    const __m512i by = _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b), bit = _mm512_set1_epi8(16);
    for (int j = 0; j < 4; j++) {
      t[j] = _mm512_srlv_epi32(top[j], by);
      u[j] = _mm512_ternarylogic_epi32(u[j], _mm512_slli_epi32(t[j], 4), bit, 0xf8); /* a | (b & c) */
      u[4 + j] = _mm512_ternarylogic_epi32(u[4 + j], _mm512_slli_epi32(t[j], 3), bit, 0xf8);
    }
  }
  if (f == MOI_FORMAT_Q6_K) {
    const __m512i by = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2), two = _mm512_set1_epi8(0x30);
    for (int r = 0; r < ROWS; r++) t[r] = load32x2(w[r].data + k0 / 256 * bytes_of(f) + 128 + 32 * i);
    turn(t);
    for (int j = 0; j < 4; j++) {
      t[j] = _mm512_srlv_epi32(t[j], by);
      u[j] = _mm512_ternarylogic_epi32(u[j], _mm512_slli_epi32(t[j], 4), two, 0xf8);
      u[4 + j] = _mm512_ternarylogic_epi32(u[4 + j], t[j], two, 0xf8);
    }
  }
  if (is_e2m1(f) || f == MOI_FORMAT_IQ4_NL)
    for (int j = 0; j < 8; j++) u[j] = lookup(f, u[j]);
}

/* k_scales of four rows at once, turned: row r's header is in lane r until one permutation puts its words in place. */
INLINE void turned_k_scales(const row w[ROWS], size_t k0, int f, __m512 out[4]) {
  __m512i h = _mm512_setzero_si512();
  for (int r = 0; r < ROWS; r++) {
    const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(w[r].data + k0 / 256 * bytes_of(f)));
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
  switch (l) {
  case 0: return _mm512_shuffle_f32x4(a, b, 0x00);
  case 1: return _mm512_shuffle_f32x4(a, b, 0x55);
  case 2: return _mm512_shuffle_f32x4(a, b, 0xaa);
  default: return _mm512_shuffle_f32x4(a, b, 0xff);
  }
}

/* Out of a group's turned scales those of step i's sums. across: the same with lanes turned too, so that across[l] has the
 * scales 4l, 4l + 1, ... in its lanes. */
INLINE void step_scales(int f, const __m512 turned[4], const __m512 across[4], uint32_t i, __m512 scale[2]) {
  if (f == MOI_FORMAT_Q8_0) {
    scale[0] = i % 2 ? lanes(turned[2], turned[3], i / 2) : lanes(turned[0], turned[1], i / 2);
  } else if (has_minima(f)) {
    scale[0] = lanes(turned[0], turned[2], i);
    scale[1] = lanes(turned[1], turned[3], i);
  } else if (f == MOI_FORMAT_Q6_K) {
    scale[0] = across[2 * i];
    scale[1] = across[2 * i + 1];
  } else if (block_of(f) == 16) {
    scale[0] = _mm512_shuffle_f32x4(across[2 * i], across[2 * i + 1], 0x88);
    scale[1] = _mm512_shuffle_f32x4(across[2 * i], across[2 * i + 1], 0xdd);
  } else {
    scale[0] = across[i];
  }
}

INLINE void turn_lanes(const __m512 v[4], __m512 out[4]) {
  const __m512 a = _mm512_shuffle_f32x4(v[0], v[1], 0x44), b = _mm512_shuffle_f32x4(v[2], v[3], 0x44);
  const __m512 c = _mm512_shuffle_f32x4(v[0], v[1], 0xee), d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  out[0] = _mm512_shuffle_f32x4(a, b, 0x88);
  out[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
  out[2] = _mm512_shuffle_f32x4(c, d, 0x88);
  out[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
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

/* Step i of a group (the step-th of its section), m tokens. */
INLINE void add_step(int f, int digits, uint32_t m, const __m512i u[8], const __m512 scale[2], const spread *x,
                     uint32_t step, __m512 y[TOKENS]) {
  const uint32_t words = step_of(f) / 16, sums = sums_of(f);
  for (uint32_t t = 0; t < m; t++) {
    const uint8_t(*at)[2][64] = x[t].x + words * step;
    for (uint32_t s = 0; s < sums; s++) {
      /* a sum of its own for each digit and, where a token is alone, for every second vector: short chains */
      __m512i q[2][2] = {{_mm512_setzero_si512(), _mm512_setzero_si512()}, {_mm512_setzero_si512(), _mm512_setzero_si512()}};
      const int apart = m == 1 && sums == 1;
#pragma GCC unroll 8
      for (uint32_t i = 0; i < words; i++)
        if (sum_of(f, i) == s)
          for (int digit = 0; digit < digits; digit++) {
            __m512i *sum = &q[apart ? i % 2 : 0][digit];
            *sum = dot(*sum, u[i], at[i][digit]);
          }
      if (apart)
        for (int digit = 0; digit < digits; digit++) q[0][digit] = _mm512_add_epi32(q[0][digit], q[1][digit]);
      __m512i all = q[0][0];
      if (digits == 2) all = _mm512_add_epi32(_mm512_slli_epi32(all, 8), q[0][1]);
      y[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(all), _mm512_load_ps(x[t].d[sums * step + s])), scale[s], y[t]);
      DONE(y[t]);
    }
  }
}

/* The group of scales at k0, `group` of its section, n elements of which exist: all of them if it is whole. */
INLINE void add_group(int f, int digits, const int whole, uint32_t m, const row w[ROWS], const spread *x, size_t k0,
                      uint32_t group, uint32_t n, ahead_state *ahead, __m512 y[TOKENS]) {
  __m512 v[4], of[4], across[4], scale[2];
  __m512i u[8];
  if (has_minima(f)) {
    turned_k_scales(w, k0, f, v);
  } else {
    for (int r = 0; r < ROWS; r++) v[r] = scales_of(f, &w[r], k0, n, &of[r]);
    turn_ps(v);
  }
  if (has_zeros(f)) turn_ps(of);
  for (uint32_t t = 0; t < m; t++) {
    for (int j = 0; j < 4; j++)
      y[t] = _mm512_fnmadd_ps(has_zeros(f) ? of[j] : v[j], _mm512_load_ps(x[t].s[group][j]), y[t]);
    DONE(y[t]);
  }
  if (f != MOI_FORMAT_Q8_0 && !has_minima(f)) turn_lanes(v, across);
  __m512i top[4];
  if (f == MOI_FORMAT_Q5_K) {
    for (int r = 0; r < ROWS; r++) top[r] = load32x2(w[r].data + k0 / 256 * bytes_of(f) + 16);
    turn(top);
  }
  const uint32_t step = step_of(f), steps = group_of(f) / step, before = group * steps;
  if (whole) {
#pragma GCC unroll 8
    for (uint32_t i = 0; i < steps; i++) {
      ahead_fetch(ahead, 1);
      unpack(f, w, k0, i, step, top, u);
      step_scales(f, v, across, i, scale);
      add_step(f, digits, m, u, scale, x, before + i, y);
    }
    return;
  }
#pragma GCC unroll 1
  for (uint32_t i = 0; i * step < n; i++) {
    unpack(f, w, k0, i, n - i * step, top, u);
    step_scales(f, v, across, i, scale);
    add_step(f, digits, m, u, scale, x, before + i, y);
  }
}

/* Rows n..n+3, m tokens, a section of k. */
INLINE void add_section(int f, int digits, uint32_t m, const moi_gemm_tile *g, const strides *stride, uint32_t n,
                        const spread *x, size_t k0, ahead_state *ahead, float sum[TOKENS][16]) {
  const uint32_t k = g->w->k, group = group_of(f);
  row w[ROWS]; /* the last row again rather than a case for fewer */
  for (uint32_t r = 0; r < ROWS; r++) w[r] = row_of(g->w, stride, n + r < g->n1 ? n + r : g->n1 - 1);
  __m512 y[TOKENS];
  for (uint32_t t = 0; t < m; t++) y[t] = k0 ? _mm512_load_ps(sum[t]) : _mm512_setzero_ps();
  for (uint32_t i = 0; i < SECTION / group && k0 < k; i++, k0 += group) {
    if (is_superblock(f) || k - k0 >= group) add_group(f, digits, 1, m, w, x, k0, i, group, ahead, y);
    else add_group(f, digits, 0, m, w, x, k0, i, (uint32_t)(k - k0), ahead, y);
  }
  for (uint32_t t = 0; t < m; t++) _mm512_store_ps(sum[t], y[t]);
}

/* Rows n..n1-1, CALL at most, m tokens from t0 on. */
INLINE void block(int f, int digits, uint32_t m, const moi_gemm_tile *g, const strides *stride, uint32_t n, uint32_t n1,
                  uint32_t t0, ahead_state *ahead) {
  spread x[TOKENS] __attribute__((aligned(64)));
  float sum[CALL / ROWS][TOKENS][16] __attribute__((aligned(64)));
  for (size_t k0 = 0; k0 < g->w->k; k0 += SECTION) {
    for (uint32_t t = 0; t < m; t++) spread_x(f, digits, g->w->k, g->x + g->rows[t0 + t] * g->x_stride, k0, &x[t]);
    for (uint32_t at = n; at < n1; at += ROWS)
      add_section(f, digits, m, g, stride, at, x, k0, ahead, sum[(at - n) / ROWS]);
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

INLINE void gemm(int f, int digits, const moi_gemm_tile *g) {
  const strides stride = strides_of(f, g->w->k);
  const uint64_t steps = (g->w->k + step_of(f) - 1) / step_of(f);
  ahead_state ahead = ahead_of(g, (g->n1 - g->n0 + ROWS - 1) / ROWS * steps * ((g->m + TOKENS - 1) / TOKENS));
  for (uint32_t n = g->n0; n < g->n1; n += CALL) {
    const uint32_t n1 = g->n1 - n < CALL ? g->n1 : n + CALL;
    for (uint32_t t = 0; t < g->m; t += TOKENS) {
      switch (g->m - t) {
      case 1: block(f, digits, 1, g, &stride, n, n1, t, &ahead); break;
      case 2: block(f, digits, 2, g, &stride, n, n1, t, &ahead); break;
      case 3: block(f, digits, 3, g, &stride, n, n1, t, &ahead); break;
      default: block(f, digits, TOKENS, g, &stride, n, n1, t, &ahead); break;
      }
    }
  }
}

#define MOI_GEMM(format, name)                                                                                         \
  void moi_gemm_##name##_lanes_avx512vnni(const moi_gemm_tile *tile);                                                        \
  void moi_gemm_##name##_lanes_avx512vnni(const moi_gemm_tile *tile) { gemm(MOI_FORMAT_##format, 2, tile); }           \
  void moi_gemm_##name##_i8_lanes_avx512vnni(const moi_gemm_tile *tile);                                                     \
  void moi_gemm_##name##_i8_lanes_avx512vnni(const moi_gemm_tile *tile) { gemm(MOI_FORMAT_##format, 1, tile); }

/* The formats for which this is the faster row: of the others int_avx512vnni.c has rows. */
MOI_GEMM(Q4_K, q4_k)

#endif
