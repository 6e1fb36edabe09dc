#include "bench/rig/encode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/rig/random.h"
#include "core/format.h"
#include "core/shared/round.h"

#define ENCODER(NAME) static float encode_##NAME(const float *w, uint32_t n, uint32_t k, moi_streams out)

static uint32_t clamp_code(float v, int low, int high) {
  long q = lrintf(v);
  return (uint32_t)(q < low ? low : q > high ? high : q);
}

static float largest(const float *w, size_t n) {
  float a = 0;
  for (size_t i = 0; i < n; i++) a = fmaxf(a, fabsf(w[i]));
  return a;
}

/* the element of largest magnitude, with its sign */
static float extreme(const float *w, size_t n) {
  float a = 0;
  for (size_t i = 0; i < n; i++)
    if (fabsf(w[i]) > fabsf(a)) a = w[i];
  return a;
}

static float inverse(float x) { return x == 0 ? 0 : 1.0f / x; }

static void put16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static void or32(uint8_t *p, uint32_t v) {
  uint32_t u;
  memcpy(&u, p, 4);
  u |= v;
  memcpy(p, &u, 4);
}

/* ---- dense */

static float encode_dense(moi_format type, const float *w, size_t count, uint8_t *out) {
  for (size_t i = 0; i < count; i++) moi_dense_store(type, out, i, w[i]);
  return 1;
}
ENCODER(F32) { return encode_dense(MOI_FORMAT_F32, w, (size_t)n * k, out.data); }
ENCODER(F16) { return encode_dense(MOI_FORMAT_F16, w, (size_t)n * k, out.data); }
ENCODER(BF16) { return encode_dense(MOI_FORMAT_BF16, w, (size_t)n * k, out.data); }
ENCODER(BF16_KN) {
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t j = 0; j < k; j++) put16(out.data + ((size_t)j * n + i) * 2, moi_to_bf16(w[(size_t)i * k + j]));
  return 1;
}

ENCODER(FP8) {
  for (size_t i = 0; i < (size_t)n * k; i++) out.data[i] = moi_to_e4m3(w[i]);
  return 1;
}

/* ---- floating point with scales */

ENCODER(FP8_B128) {
  uint32_t tiles_k = (k + 127) / 128;
  for (uint32_t n0 = 0; n0 < n; n0 += 128)
    for (uint32_t k0 = 0; k0 < k; k0 += 128) {
      uint32_t n1 = n0 + 128 < n ? n0 + 128 : n, k1 = k0 + 128 < k ? k0 + 128 : k;
      float a = 0;
      for (uint32_t i = n0; i < n1; i++) a = fmaxf(a, largest(w + (size_t)i * k + k0, k1 - k0));
      float scale = a / 448.0f, to = inverse(scale);
      put32(out.scales + ((size_t)n0 / 128 * tiles_k + k0 / 128) * 4, moi_f32_bits(scale));
      for (uint32_t i = n0; i < n1; i++)
        for (uint32_t j = k0; j < k1; j++) out.data[(size_t)i * k + j] = moi_to_e4m3(w[(size_t)i * k + j] * to);
    }
  return 1;
}

static uint32_t to_e2m1(float v) {
  static const float middle[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  uint32_t code = 0;
  while (code < 7 && fabsf(v) > middle[code]) code++;
  return code | (v < 0 ? 8u : 0u);
}

/* the smallest power of two under which nothing saturates */
static uint32_t e8m0_for(float a) {
  if (a == 0) return 0;
  int exponent = (int)ceilf(log2f(a / 6.0f)) + 127;
  return (uint32_t)(exponent < 0 ? 0 : exponent > 254 ? 254 : exponent);
}

static void pack_even_odd(uint8_t *out, uint32_t j, uint32_t code) {
  if (j & 1) out[j / 2] = (uint8_t)((out[j / 2] & 15) | code << 4);
  else out[j / 2] = (uint8_t)code;
}

ENCODER(MXFP4) {
  for (size_t b = 0; b < (size_t)n * k / 32; b++) {
    uint32_t scale = e8m0_for(largest(w + b * 32, 32));
    float to = inverse(moi_e8m0_value(scale));
    out.scales[b] = (uint8_t)scale;
    for (uint32_t j = 0; j < 32; j++) pack_even_odd(out.data + b * 16, j, to_e2m1(w[b * 32 + j] * to));
  }
  return 1;
}

ENCODER(FP4_G16) {
  for (size_t b = 0; b < (size_t)n * k / 16; b++) {
    uint32_t scale = e8m0_for(largest(w + b * 16, 16));
    float to = inverse(moi_e8m0_value(scale));
    out.scales[b] = (uint8_t)scale;
    for (uint32_t j = 0; j < 16; j++) pack_even_odd(out.data + b * 8, j, to_e2m1(w[b * 16 + j] * to));
  }
  return 1;
}

ENCODER(NVFP4) {
  float global = largest(w, (size_t)n * k) / (6.0f * 448.0f);
  if (global == 0) global = 1;
  for (size_t b = 0; b < (size_t)n * k / 16; b++) {
    uint8_t scale = moi_to_e4m3(largest(w + b * 16, 16) / (6.0f * global));
    float to = inverse(moi_e4m3_value(scale) * global);
    out.scales[b] = scale;
    for (uint32_t j = 0; j < 16; j++) pack_even_odd(out.data + b * 8, j, to_e2m1(w[b * 16 + j] * to));
  }
  return global;
}

ENCODER(MXFP4_GGUF) {
  for (size_t b = 0; b < (size_t)n * k / 32; b++) {
    uint8_t *block = out.data + b * 17;
    uint32_t scale = e8m0_for(largest(w + b * 32, 32));
    float to = inverse(moi_e8m0_value(scale));
    block[0] = (uint8_t)scale;
    for (uint32_t j = 0; j < 16; j++)
      block[1 + j] = (uint8_t)(to_e2m1(w[b * 32 + j] * to) | to_e2m1(w[b * 32 + 16 + j] * to) << 4);
  }
  return 1;
}

/* ---- int4 with scales and zero points beside the data */

static float encode_int4(const float *w, size_t count, uint32_t group, moi_streams out) {
  for (size_t b = 0; b < count / group; b++) {
    uint16_t scale = moi_to_bf16(largest(w + b * group, group) / 7.5f);
    float to = inverse(moi_bf16_value(scale));
    put16(out.scales + b * 2, scale);
    for (uint32_t j = 0; j < group; j++)
      pack_even_odd(out.data + b * group / 2, j, clamp_code(w[b * group + j] * to + 8, 0, 15));
  }
  return 1;
}
ENCODER(INT4_G32) { return encode_int4(w, (size_t)n * k, 32, out); }
ENCODER(INT4_G128) { return encode_int4(w, (size_t)n * k, 128, out); }

typedef struct affine {
  uint16_t scale; /* f16 */
  uint32_t zero;
  float to;
} affine;

static affine affine_for(const float *w, uint32_t group, int zero_low, int zero_high) {
  float low = 0, high = 0;
  for (uint32_t j = 0; j < group; j++) {
    low = fminf(low, w[j]);
    high = fmaxf(high, w[j]);
  }
  affine a;
  a.scale = moi_to_f16((high - low) / 15.0f);
  a.to = inverse(moi_f16_value(a.scale));
  a.zero = clamp_code(-low * a.to, zero_low, zero_high);
  return a;
}
static uint32_t affine_code(affine a, float w) { return clamp_code(w * a.to + (float)a.zero, 0, 15); }

static float encode_int4z(const float *w, size_t count, uint32_t group, moi_streams out) {
  for (size_t b = 0; b < count / group; b++) {
    affine a = affine_for(w + b * group, group, 0, 16);
    put16(out.scales + b * 2, a.scale);
    out.zeros[b] = (uint8_t)a.zero;
    for (uint32_t j = 0; j < group; j++) pack_even_odd(out.data + b * group / 2, j, affine_code(a, w[b * group + j]));
  }
  return 1;
}
ENCODER(INT4Z_G32) { return encode_int4z(w, (size_t)n * k, 32, out); }
ENCODER(INT4Z_G128) { return encode_int4z(w, (size_t)n * k, 128, out); }

static float encode_gptq(const float *w, uint32_t n, uint32_t k, uint32_t group, moi_streams out) {
  memset(out.data, 0, (size_t)n * k / 2);
  memset(out.zeros, 0, (size_t)(k / group) * (n / 8) * 4);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t g = 0; g < k / group; g++) {
      const float *row = w + (size_t)i * k + (size_t)g * group;
      affine a = affine_for(row, group, 1, 16);
      put16(out.scales + ((size_t)g * n + i) * 2, a.scale);
      or32(out.zeros + ((size_t)g * (n / 8) + i / 8) * 4, (a.zero - 1) << 4 * (i & 7));
      for (uint32_t j = 0; j < group; j++) {
        uint32_t at = g * group + j;
        or32(out.data + ((size_t)(at / 8) * n + i) * 4, affine_code(a, row[j]) << 4 * (at & 7));
      }
    }
  return 1;
}
ENCODER(GPTQ_G32) { return encode_gptq(w, n, k, 32, out); }
ENCODER(GPTQ_G128) { return encode_gptq(w, n, k, 128, out); }

static float encode_awq(const float *w, uint32_t n, uint32_t k, uint32_t group, moi_streams out) {
  static const uint32_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* nibble that column c lies in */
  memset(out.data, 0, (size_t)n * k / 2);
  memset(out.zeros, 0, (size_t)(k / group) * (n / 8) * 4);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t g = 0; g < k / group; g++) {
      const float *row = w + (size_t)i * k + (size_t)g * group;
      affine a = affine_for(row, group, 0, 15);
      uint32_t shift = 4 * place[i & 7];
      put16(out.scales + ((size_t)g * n + i) * 2, a.scale);
      or32(out.zeros + ((size_t)g * (n / 8) + i / 8) * 4, a.zero << shift);
      for (uint32_t j = 0; j < group; j++)
        or32(out.data + ((size_t)(g * group + j) * (n / 8) + i / 8) * 4, affine_code(a, row[j]) << shift);
    }
  return 1;
}
ENCODER(AWQ_G32) { return encode_awq(w, n, k, 32, out); }
ENCODER(AWQ_G128) { return encode_awq(w, n, k, 128, out); }

/* ---- GGUF blocks */

ENCODER(Q8_0) {
  for (size_t b = 0; b < (size_t)n * k / 32; b++) {
    uint8_t *block = out.data + b * 34;
    uint16_t d = moi_to_f16(largest(w + b * 32, 32) / 127.0f);
    float to = inverse(moi_f16_value(d));
    put16(block, d);
    for (uint32_t j = 0; j < 32; j++) block[2 + j] = (uint8_t)clamp_code(w[b * 32 + j] * to, -127, 127);
  }
  return 1;
}

ENCODER(Q4_0) {
  for (size_t b = 0; b < (size_t)n * k / 32; b++) {
    uint8_t *block = out.data + b * 18;
    uint16_t d = moi_to_f16(extreme(w + b * 32, 32) / -8.0f);
    float to = inverse(moi_f16_value(d));
    put16(block, d);
    for (uint32_t j = 0; j < 16; j++)
      block[2 + j] = (uint8_t)(clamp_code(w[b * 32 + j] * to + 8, 0, 15) |
                               clamp_code(w[b * 32 + 16 + j] * to + 8, 0, 15) << 4);
  }
  return 1;
}

static uint32_t to_iq4_nl(float v) {
  uint32_t best = 0;
  for (uint32_t q = 1; q < 16; q++)
    if (fabsf(v - (float)moi_iq4_nl_code(q)) < fabsf(v - (float)moi_iq4_nl_code(best))) best = q;
  return best;
}

ENCODER(IQ4_NL) {
  for (size_t b = 0; b < (size_t)n * k / 32; b++) {
    uint8_t *block = out.data + b * 18;
    uint16_t d = moi_to_f16(extreme(w + b * 32, 32) / -127.0f);
    float to = inverse(moi_f16_value(d));
    put16(block, d);
    for (uint32_t j = 0; j < 16; j++)
      block[2 + j] = (uint8_t)(to_iq4_nl(w[b * 32 + j] * to) | to_iq4_nl(w[b * 32 + 16 + j] * to) << 4);
  }
  return 1;
}

/* Q4_K and Q5_K: eight sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum. */
static void encode_k_block(const float *w, uint32_t bits, uint8_t *block) {
  float top = (float)((1u << bits) - 1), scale[8], minimum[8], max_scale = 0, max_minimum = 0;
  uint8_t *high = block + 16, *low = block + (bits == 5 ? 48 : 16);
  for (uint32_t s = 0; s < 8; s++) {
    float least = 0, most = 0;
    for (uint32_t j = 0; j < 32; j++) {
      least = fminf(least, w[s * 32 + j]);
      most = fmaxf(most, w[s * 32 + j]);
    }
    minimum[s] = -least;
    scale[s] = (most - least) / top;
    max_minimum = fmaxf(max_minimum, minimum[s]);
    max_scale = fmaxf(max_scale, scale[s]);
  }
  uint16_t d = moi_to_f16(max_scale / 63.0f), dmin = moi_to_f16(max_minimum / 63.0f);
  memset(block, 0, bits == 5 ? 176 : 144);
  put16(block, d);
  put16(block + 2, dmin);
  for (uint32_t s = 0; s < 8; s++) {
    uint32_t sc = clamp_code(scale[s] * inverse(moi_f16_value(d)), 0, 63);
    uint32_t mn = clamp_code(minimum[s] * inverse(moi_f16_value(dmin)), 0, 63);
    uint8_t *b = block + 4;
    if (s < 4) {
      b[s] |= (uint8_t)sc;
      b[s + 4] |= (uint8_t)mn;
    } else {
      b[s + 4] = (uint8_t)((sc & 15) | (mn & 15) << 4);
      b[s - 4] |= (uint8_t)(sc >> 4 << 6);
      b[s] |= (uint8_t)(mn >> 4 << 6);
    }
    float to = inverse(moi_f16_value(d) * (float)sc), offset = moi_f16_value(dmin) * (float)mn;
    for (uint32_t j = 0; j < 32; j++) {
      uint32_t q = clamp_code((w[s * 32 + j] + offset) * to, 0, (int)top);
      low[s / 2 * 32 + j] |= (uint8_t)((q & 15) << 4 * (s & 1));
      if (bits == 5) high[j] |= (uint8_t)((q >> 4) << s);
    }
  }
}
ENCODER(Q4_K) {
  for (size_t b = 0; b < (size_t)n * k / 256; b++) encode_k_block(w + b * 256, 4, out.data + b * 144);
  return 1;
}
ENCODER(Q5_K) {
  for (size_t b = 0; b < (size_t)n * k / 256; b++) encode_k_block(w + b * 256, 5, out.data + b * 176);
  return 1;
}

ENCODER(Q6_K) {
  for (size_t b = 0; b < (size_t)n * k / 256; b++) {
    const float *x = w + b * 256;
    uint8_t *block = out.data + b * 210;
    float scale[16], most = 0;
    memset(block, 0, 210);
    for (uint32_t s = 0; s < 16; s++) {
      scale[s] = extreme(x + s * 16, 16) / -32.0f;
      most = fmaxf(most, fabsf(scale[s]));
    }
    uint16_t d = moi_to_f16(most / 127.0f);
    put16(block + 208, d);
    for (uint32_t s = 0; s < 16; s++) {
      int32_t sc = (int32_t)clamp_code(scale[s] * inverse(moi_f16_value(d)), -127, 127);
      block[192 + s] = (uint8_t)sc;
      float to = inverse(moi_f16_value(d) * (float)sc);
      for (uint32_t j = 0; j < 16; j++) {
        uint32_t at = s * 16 + j, q = clamp_code(x[at] * to + 32, 0, 63);
        uint32_t half = at >> 7, quarter = (at >> 5) & 3, l = at & 31;
        block[half * 64 + (quarter & 1) * 32 + l] |= (uint8_t)((q & 15) << 4 * (quarter >> 1));
        block[128 + half * 32 + l] |= (uint8_t)((q >> 4) << 2 * quarter);
      }
    }
  }
  return 1;
}

/* ---- order R: GGUF's blocks, `head` bytes of scale before `codes` others, a byte at a time */

typedef float (*encoder)(const float *w, uint32_t n, uint32_t k, moi_streams out);

static float encode_r16(encoder encode, uint32_t elements, uint32_t head, uint32_t codes, const float *w, uint32_t n,
                        uint32_t k, moi_streams out) {
  const uint32_t blocks = k / elements, size = head + codes;
  uint8_t *rows = malloc((size_t)n * blocks * size);
  if (!rows) exit(3);
  encode(w, n, k, (moi_streams){rows, NULL, NULL});
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t b = 0; b < blocks; b++) {
      const uint8_t *block = rows + ((size_t)i * blocks + b) * size;
      const size_t group = (size_t)(i / 16) * blocks + b;
      for (uint32_t j = 0; j < codes; j++)
        out.data[group * 16 * codes + j / 4 * 64 + i % 16 * 4 + j % 4] = block[head + j];
      for (uint32_t j = 0; j < head; j++) out.scales[(group * 16 + i % 16) * head + j] = block[j];
    }
  free(rows);
  return 1;
}
ENCODER(Q4_0_R16) { return encode_r16(encode_Q4_0, 32, 2, 16, w, n, k, out); }
ENCODER(IQ4_NL_R16) { return encode_r16(encode_IQ4_NL, 32, 2, 16, w, n, k, out); }
ENCODER(MXFP4_R16) { return encode_r16(encode_MXFP4_GGUF, 32, 1, 16, w, n, k, out); }
ENCODER(Q8_0_R16) { return encode_r16(encode_Q8_0, 32, 2, 32, w, n, k, out); }
ENCODER(Q4_K_R16) { return encode_r16(encode_Q4_K, 256, 0, 144, w, n, k, out); }

/* ---- by format */

float moi_encode(moi_format format, const float *w, uint32_t n, uint32_t k, moi_streams out) {
  switch (format) {
#define MOI_X(NAME, ...)                                                                                               \
  case MOI_FORMAT_##NAME: return encode_##NAME(w, n, k, out);
    MOI_FORMAT_MAP(MOI_X)
#undef MOI_X
    default: fprintf(stderr, "moiety: no encoder for format %d\n", (int)format); exit(3);
  }
}

float moi_decode(moi_format format, moi_streams in, float global, uint32_t row, uint32_t col, uint32_t n, uint32_t k) {
  (void)n; /* most formats need only one of the two */
  switch (format) {
#define MOI_X(NAME, ...)                                                                                               \
  case MOI_FORMAT_##NAME: return global * MOI_AT_##NAME(in.data, in.scales, in.zeros, row, col, n, k);
    MOI_FORMAT_MAP(MOI_X)
#undef MOI_X
    default: return NAN;
  }
}

float moi_encode_step(moi_format format) {
  switch (format) {
    case MOI_FORMAT_F32: return 0x1p-24f;
    case MOI_FORMAT_F16: return 0x1p-11f;
    case MOI_FORMAT_BF16:
    case MOI_FORMAT_BF16_KN: return 0x1p-8f;
    case MOI_FORMAT_Q8_0:
    case MOI_FORMAT_Q8_0_R16: return 0.01f;
    case MOI_FORMAT_Q6_K: return 0.03f;
    case MOI_FORMAT_FP8:
    case MOI_FORMAT_FP8_B128: return 0.04f;
    case MOI_FORMAT_Q5_K: return 0.06f;
    default: return 0.16f; /* four bits */
  }
}

/* ---- by the gigabyte */

enum { POOL_ELEMENTS = 1 << 19, WHOLE = 1 << 16 };

static void *allocate(uint64_t size) {
  void *p = malloc(size ? (size_t)size : 1);
  if (p) return p;
  fprintf(stderr, "moiety: out of memory: %llu bytes for random weights\n", (unsigned long long)size);
  exit(3);
}

void moi_weight_pool_make(moi_weight_pool *pool, moi_format format, uint32_t n, uint32_t k, uint64_t seed) {
  const moi_format_row *row = moi_format_find(format);
  moi_format_sizes full, part;
  if (!row || moi_format_size(format, n, k, &full)) {
    fprintf(stderr, "moiety: no weights of %u x %u in format %d: %s\n", n, k, (int)format, moi_last_error());
    exit(3);
  }
  memset(pool, 0, sizeof *pool);
  pool->format = format;
  pool->n = n;
  pool->k = k;
  /* lines run along k (or n); fewer of them, in whole tiles of scales, are encoded */
  uint32_t pool_n = n, pool_k = k;
  if ((uint64_t)n * k > WHOLE) {
    uint32_t *across = row->k_major ? &pool_k : &pool_n, along = row->k_major ? n : k;
    uint32_t lines = (POOL_ELEMENTS / along + 127) / 128 * 128;
    if (!lines) lines = 128;
    if (lines < *across) *across = lines;
  }
  moi_status status = moi_format_size(format, pool_n, pool_k, &part);
  if (status) { /* a ragged number of lines: all of them */
    pool_n = n;
    pool_k = k;
    part = full;
  }
  float *w = allocate((uint64_t)pool_n * pool_k * sizeof *w);
  float sigma = 1.0f / sqrtf((float)k);
  for (uint32_t i = 0; i < pool_n; i++) {
    float scale = sigma * (0.6f + 0.8f * moi_random_uniform(seed ^ 0x77, i)); /* rows differ, as rows do */
    for (uint32_t j = 0; j < pool_k; j++)
      w[(size_t)i * pool_k + j] = scale * moi_random_normal(seed, (uint64_t)i * pool_k + j);
  }
  pool->lines.data = allocate(part.data);
  pool->lines.scales = allocate(part.scales);
  pool->lines.zeros = allocate(part.zeros);
  pool->global = moi_encode(format, w, pool_n, pool_k, pool->lines);
  free(w);
  uint64_t bytes[3] = {part.data, part.scales, part.zeros}, total[3] = {full.data, full.scales, full.zeros};
  for (int s = 0; s < 3; s++) {
    uint32_t step = s ? (row->k_major ? row->scale_k : row->scale_n) : row->k_major ? row->block_k : row->block_n;
    if (row->interleaved) step = row->block_n; /* the scales of a block's rows are one line */
    if (!bytes[s]) continue;
    pool->pool_lines[s] = ((row->k_major ? pool_k : pool_n) + step - 1) / step;
    pool->n_lines[s] = ((row->k_major ? k : n) + step - 1) / step;
    pool->line_bytes[s] = bytes[s] / pool->pool_lines[s];
    if (pool->line_bytes[s] * pool->n_lines[s] != total[s]) {
      fprintf(stderr, "moiety: the lines of %s do not make up its streams\n", row->name);
      exit(3);
    }
  }
}

void moi_weight_pool_fill(const moi_weight_pool *pool, moi_streams out, uint64_t seed) {
  uint8_t *to[3] = {out.data, out.scales, out.zeros};
  const uint8_t *from[3] = {pool->lines.data, pool->lines.scales, pool->lines.zeros};
  for (uint64_t s = 0; s < 3; s++) {
    uint64_t bytes = pool->line_bytes[s];
    for (uint64_t i = 0; i < pool->n_lines[s]; i++) {
      uint64_t line = moi_random_below(seed * 3 + s, i, (uint32_t)pool->pool_lines[s]);
      memcpy(to[s] + i * bytes, from[s] + line * bytes, (size_t)bytes);
    }
  }
}

void moi_weight_pool_free(moi_weight_pool *pool) {
  free(pool->lines.data);
  free(pool->lines.scales);
  free(pool->lines.zeros);
  memset(pool, 0, sizeof *pool);
}
