/* Selection of one token's experts from its logits, fp32: the steps of moi_route_desc's comment, for every model's rule.
 * Written once; each ISA's file includes this text with its own flags: plain loops that compilers vectorise, and where they
 * do that badly, their own vectors. Contraction is off and sums have one order, so all ISAs give the same bits. MOI_SELECT
 * names the function.
 *
 * What is compared is an integer: bits of a float in an order in which a signed comparison is that of the floats. Most
 * classes are put aside at once: of 16 columns of classes, the k-th largest of the columns' largest keys is a bound that at
 * least k classes reach, and seldom more than 16. A class's place among those is how many stand before it: comparisons of
 * all pairs wait for nothing, as rounds of arg max would for each other. */
#include <float.h>
#include <math.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/shared/round.h"
#include "cpu/cpu.h"
#include "cpu/kernels/fast_math.h"

#define REMOVED (-INFINITY)

enum { LANES = 16, BLOCK = MOI_SELECT_BLOCK, NO_KEY = INT32_MIN };
enum { FEW = 16, MORE = 32 }; /* keys that are placed by comparing all pairs: for top_k up to half of that */

/* Keys side by side, as many as a register holds, and four. A comparison gives -1 or 0 in each. */
#if defined(__AVX512F__)
enum { PART = 16 };
#elif defined(__AVX2__)
enum { PART = 8 };
#else
enum { PART = 4 };
#endif
enum { SIDE = 4 }; /* vectors that go through exp together */
typedef int32_t part __attribute__((vector_size(PART * 4)));
typedef float floats __attribute__((vector_size(PART * 4)));
typedef int32_t quad __attribute__((vector_size(16)));
#define INLINE static inline __attribute__((always_inline))
#define EITHER(mask, a, b) (((a) & (mask)) | ((b) & ~(mask)))

static inline part splat(int32_t v) { return v - (part){0}; }
static inline part load(const int32_t *p) {
  part v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline floats load_floats(const float *p) {
  floats v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline floats where(part mask, floats a, floats b) { return (floats)EITHER(mask, (part)a, (part)b); }
static inline floats splat_float(float v) { return v - (floats){0}; }
static inline part most(part a, part b) {
#if defined(__AVX512F__)
  return (part)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (part)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
  return EITHER(a > b, a, b);
#endif
}
#if defined(__AVX2__)
#define MOST4(a, b) ((quad)_mm_max_epi32((__m128i)(a), (__m128i)(b)))
#define LEAST4(a, b) ((quad)_mm_min_epi32((__m128i)(a), (__m128i)(b)))
#else
#define MOST4(a, b) EITHER((a) > (b), a, b)
#define LEAST4(a, b) EITHER((a) > (b), b, a)
#endif

static inline int32_t bits_of(float v) {
  int32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
/* Its own inverse on bits. */
static inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & INT32_MAX); }
/* -infinity and NaN: NO_KEY. + 0.0f: both zeros are one. */
static inline int32_t key_of(float v) {
  int32_t key = ordered(bits_of(v + 0.0f));
  return v > REMOVED ? key : NO_KEY;
}
static inline float value_of(int32_t key) {
  if (key == NO_KEY) return REMOVED;
  int32_t bits = ordered(key);
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

/* NaN and -infinity remove a class; +infinity is the largest number. */
static inline float clean(float v) {
  v = v > FLT_MAX ? FLT_MAX : v;
  return v >= -FLT_MAX ? v : REMOVED;
}

static inline floats within(floats x, floats low, floats high) { /* NaN stays NaN */
#if defined(__AVX512F__)
  return (floats)_mm512_max_ps((__m512)low, _mm512_min_ps((__m512)high, (__m512)x));
#elif defined(__AVX2__)
  return (floats)_mm256_max_ps((__m256)low, _mm256_min_ps((__m256)high, (__m256)x));
#else
  x = where(x > high, high, x);
  return where(x < low, low, x);
#endif
}

static inline floats clean_all(floats v) {
  v = where(v > splat_float(FLT_MAX), splat_float(FLT_MAX), v);
  return where(v >= splat_float(-FLT_MAX), v, splat_float(REMOVED));
}

#define EACH for (int u = 0; u < SIDE; u++)

/* fast_exp of SIDE vectors, each step for all of them: a step waits some cycles for the one before it, and of vectors one
 * after another a core does not look ahead far enough to fill those. */
INLINE void exp_all(floats *x) {
  floats n[SIDE], p[SIDE], power[SIDE];
  EACH x[u] = within(x[u], splat_float(-87.0f), splat_float(88.0f));
  EACH power[u] = x[u] * 1.44269504f + 12582912.0f;
  EACH n[u] = power[u] - 12582912.0f;
  EACH x[u] = (x[u] - n[u] * 0.693359375f) - n[u] * -2.12194440e-4f;
  EACH p[u] = x[u] * (1.0f / 5040.0f) + 1.0f / 720.0f;
  EACH p[u] = p[u] * x[u] + 1.0f / 120.0f;
  EACH p[u] = p[u] * x[u] + 1.0f / 24.0f;
  EACH p[u] = p[u] * x[u] + 1.0f / 6.0f;
  EACH p[u] = p[u] * x[u] + 0.5f;
  EACH p[u] = p[u] * x[u] + 1.0f;
  EACH p[u] = p[u] * x[u] + 1.0f;
  EACH x[u] = p[u] * (floats)(((part)power[u] << 23) + 0x3f800000);
}

static inline int32_t largest(const int32_t *key, uint32_t n) {
  int32_t best = NO_KEY;
  for (uint32_t i = 0; i < n; i++) best = key[i] > best ? key[i] : best;
  return best;
}

static float sum_of(const float *v, uint32_t n) {
  float lane[LANES] = {0}, sum = 0;
  uint32_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (uint32_t j = 0; j < LANES; j++) lane[j] += v[i + j];
  for (uint32_t j = 0; j < LANES; j++) sum += lane[j];
  for (; i < n; i++) sum += v[i];
  return sum;
}

/* The same memory, of which the compiler does not know what was just written: a broadcast from there is one instruction, and
 * taking lanes out of the register that it came from are several. */
INLINE const int32_t *as_memory(const int32_t *p) {
  __asm__("" : "+r"(p) : : "memory");
  return p;
}

/* How many of `few` keys stand before each: larger ones, and equal ones of lower index. Those of NO_KEY stand last, all in
 * one place. */
INLINE void places(const int32_t *key, int32_t *place, uint32_t few) {
  static const int32_t after[2 * MORE] = {[MORE] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                          1,          1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  key = as_memory(key);
  for (uint32_t at = 0; at < few; at += PART) {
    part own = most(load(key + at), splat(NO_KEY + 1)), count = {0};
    for (uint32_t i = 0; i < few; i++) count -= splat(key[i]) > own - load(after + MORE - 1 - i + at);
    memcpy(place + at, &count, sizeof count);
  }
}

/* The k-th largest of `few` keys. */
INLINE int32_t kth_largest(const int32_t *key, int32_t k, uint32_t few) {
  int32_t reached[MORE];
  key = as_memory(key);
  for (uint32_t at = 0; at < few; at += PART) {
    part own = load(key + at), count = {0};
    for (uint32_t i = 0; i < few; i++) count -= splat(key[i]) >= own;
    own = EITHER(count >= k, own, splat(NO_KEY));
    memcpy(reached + at, &own, sizeof own);
  }
  return largest(reached, few);
}

/* Bit i: key[i] >= bound, of a block. */
static inline uint64_t at_least(const int32_t *key, int32_t bound) {
  uint64_t less = 0;
#if defined(__AVX512F__)
  for (int i = 0; i < BLOCK; i += PART)
    less |= (uint64_t)_mm512_cmplt_epi32_mask((__m512i)load(key + i), (__m512i)splat(bound)) << i;
#elif defined(__AVX2__)
  for (int i = 0; i < BLOCK; i += PART)
    less |= (uint64_t)_mm256_movemask_ps((__m256)(splat(bound) > load(key + i))) << i;
#else
  for (int i = 0; i < BLOCK; i += 8) {
    uint8_t flags[8];
    uint64_t word;
    for (int j = 0; j < 8; j++) flags[j] = bound > key[i + j];
    memcpy(&word, flags, sizeof word);
    less |= (word * 0x0102040810204080u >> 56) << i; /* the flags side by side */
  }
#endif
  return ~less;
}

/* Gathers the classes of keys >= bound in order, until there are more than few; returns their number. */
INLINE uint32_t gather(const int32_t *key, uint32_t n, int32_t bound, int32_t *at, uint32_t few) {
  uint32_t m = 0;
  for (uint32_t i = 0; i < n && m <= few; i += BLOCK) {
    uint64_t hits = at_least(key + i, bound);
    uint32_t end = m + (uint32_t)__builtin_popcountll(hits);
    for (uint32_t j = 0; j < 4; j++) { /* most blocks have no more: no branch that hangs on how many */
      at[m + j] = (int32_t)i + __builtin_ctzll(hits | 1ull << 63);
      hits &= hits - 1;
    }
    for (m += 4; m < end; m++) {
      at[m] = (int32_t)i + __builtin_ctzll(hits);
      hits &= hits - 1;
    }
    m = end;
  }
  return m;
}

/* NO_KEY where there are none. */
static inline void two_largest(const int32_t *key, uint32_t n, int32_t *first, int32_t *second) {
  quad a = {NO_KEY, NO_KEY, NO_KEY, NO_KEY}, b = a, x, y;
  for (uint32_t i = 0; i < n; i += 4) {
    if (i + 4 <= n) memcpy(&x, key + i, sizeof x);
    else x = (quad){key[i], i + 1 < n ? key[i + 1] : NO_KEY, i + 2 < n ? key[i + 2] : NO_KEY, NO_KEY};
    b = MOST4(b, LEAST4(a, x));
    a = MOST4(a, x);
  }
  x = (quad){a[2], a[3], a[2], a[3]};
  y = (quad){b[2], b[3], b[2], b[3]};
  b = MOST4(MOST4(b, y), LEAST4(a, x));
  a = MOST4(a, x);
  x = (quad){a[1], a[1], a[1], a[1]};
  y = (quad){b[1], b[1], b[1], b[1]};
  b = MOST4(MOST4(b, y), LEAST4(a, x));
  a = MOST4(a, x);
  *first = a[0];
  *second = b[0];
}

/* Keeps keys only in the best groups, of `size` classes each. */
INLINE void limit_groups(const moi_route_desc *d, int32_t *key, uint32_t size) {
  int32_t first[1024], second[1024], place[FEW], keep[1024];
  uint32_t n = d->n_group;
  for (uint32_t g = 0; g < n; g++) two_largest(key + (size_t)g * size, size, &first[g], &second[g]);
  if (d->group_score == MOI_GROUP_TOP2_SUM)
    for (uint32_t g = 0; g < n; g++)
      first[g] = second[g] == NO_KEY ? first[g] : key_of(value_of(first[g]) + value_of(second[g]));
  if (n <= FEW) {
    for (uint32_t g = n; g < FEW; g++) first[g] = NO_KEY;
    places(first, place, FEW);
    for (uint32_t g = 0; g < n; g++) keep[g] = -(first[g] != NO_KEY && (uint32_t)place[g] < d->topk_group);
  } else {
    memset(keep, 0, n * sizeof *keep);
    for (uint32_t round = 0; round < d->topk_group; round++) {
      int32_t best = largest(first, n);
      uint32_t at = 0;
      if (best == NO_KEY) break;
      while (first[at] != best) at++;
      keep[at] = -1;
      first[at] = NO_KEY;
    }
  }
  for (uint32_t g = 0; g < n; g++) /* no branch: which are kept is anyone's guess */
    for (uint32_t i = 0; i < size; i++) key[(size_t)g * size + i] = EITHER(keep[g], key[(size_t)g * size + i], NO_KEY);
}

/* Of `few` columns of classes the k-th largest of their largest keys is a bound that at least k classes reach, and seldom
 * more than twice as many. The k best of those, if they are not more than few. */
INLINE int top_k_of(const int32_t *key, uint32_t n, uint32_t k, int32_t *ids, uint32_t few) {
  int32_t keys[MORE], at[MORE + BLOCK], place[MORE];
  uint8_t placed[MORE + 1]; /* no vector scatters 8 bits: scattering 32 takes longer than one after the other */
  uint32_t m = n;
  if (n <= few) {
    for (uint32_t j = 0; j < few; j++) at[j] = (int32_t)j;
  } else {
    for (uint32_t j = 0; j < few; j += PART) {
      part best = splat(NO_KEY);
      for (uint32_t i = j; i < n; i += few) best = most(load(key + i), best);
      memcpy(keys + j, &best, sizeof best);
    }
    int32_t bound = kth_largest(keys, (int32_t)k, few);
    memset(at, 0, few * sizeof *at);
    m = gather(key, n, bound > NO_KEY ? bound : NO_KEY + 1, at, few);
    if (m > few) return 0;
  }
  for (uint32_t j = 0; j < few; j++) {
    int32_t v = key[at[j]], here = v != NO_KEY && j < m;
    keys[j] = here ? v : NO_KEY;
    at[j] = here ? at[j] : -1;
  }
  at[few] = -1;
  places(keys, place, few);
  memset(placed, (int)few, sizeof placed);
  for (uint32_t j = 0; j < few; j++) placed[place[j]] = (uint8_t)j;
  for (uint32_t j = 0; j < k; j++) ids[j] = at[placed[j]];
  return 1;
}

/* The k classes of the largest keys, of equal ones the lower; -1 if all are removed. key[n..] up to whole blocks: NO_KEY. */
static void top_k(int32_t *key, uint32_t n, uint32_t k, int32_t *ids) {
  int all = n > FEW && n <= 2 * PART; /* two registers of keys take less time than a bound for them */
  if (k <= FEW / 2 && !all && top_k_of(key, n, k, ids, FEW)) return;
  if (k <= MORE / 2 && top_k_of(key, n, k, ids, MORE)) return;
  for (uint32_t j = 0; j < k; j++) {
    int32_t best = largest(key, n), at = 0;
    ids[j] = -1;
    if (best == NO_KEY) continue;
    while (key[at] != best) at++;
    ids[j] = at;
    key[at] = NO_KEY;
  }
}

/* sqrt(log(1 + exp(l))): log1p(y) = 2 artanh(y / (2 + y)), y = exp(-|l|) <= 1. */
static inline float sqrt_softplus(float l) {
  float y = fast_exp(l < 0 ? l : -l), z = y / (2.0f + y), z2 = z * z, p = 1.0f / 15.0f;
  p = p * z2 + 1.0f / 13.0f;
  p = p * z2 + 1.0f / 11.0f;
  p = p * z2 + 1.0f / 9.0f;
  p = p * z2 + 1.0f / 7.0f;
  p = p * z2 + 1.0f / 5.0f;
  p = p * z2 + 1.0f / 3.0f;
  p = p * z2 + 1.0f;
  return sqrtf((l > 0 ? l : 0.0f) + 2.0f * z * p);
}

/* Weights are few: exact exp, for those that are normalised may all be at the end of fp32's range. */
static float exact_score(moi_score score, float l) {
  if (score == MOI_SCORE_SIGMOID) return 1.0f / (1.0f + expf(-l));
  return sqrtf(l > 20.0f ? l : log1pf(expf(l))); /* beyond 20 log1p(exp(l)) is l in fp32 */
}

static float largest_logit(const float *l, uint32_t n) {
  int32_t top = NO_KEY;
  for (uint32_t i = 0; i < n; i++) {
    int32_t key = ordered(bits_of(clean(l[i])));
    top = key > top ? key : top;
  }
  return value_of(top);
}

/* out[i] = exp(l - max), 0 for those that are removed; returns what that is to be multiplied by, 0 if all are removed. */
static float softmax(const float *l, float max, float *restrict out, uint32_t n) {
  if (max == REMOVED) {
    memset(out, 0, n * sizeof *out);
    return 0.0f;
  }
  uint32_t i = 0;
  for (; i + SIDE * PART <= n; i += SIDE * PART) {
    floats x[SIDE], e[SIDE];
    EACH e[u] = x[u] = clean_all(load_floats(l + i + u * PART)) - splat_float(max);
    exp_all(e);
    EACH e[u] = where(x[u] < splat_float(-87.0f), splat_float(0.0f), e[u]); /* those that are removed too */
    memcpy(out + i, e, sizeof e);
  }
  for (; i < n; i++) {
    float x = clean(l[i]) - max;
    out[i] = x < -87.0f ? 0.0f : fast_exp(x);
  }
  return 1.0f / sum_of(out, n);
}

static void softmax_of_few(float *l, uint32_t n) {
  float max = largest_logit(l, n), sum = 0;
  for (uint32_t i = 0; i < n; i++) sum += l[i] = l[i] == REMOVED ? 0.0f : expf(l[i] - max);
  for (uint32_t i = 0; i < n && sum > 0; i++) l[i] /= sum;
}

/* What a key is made of. */
typedef enum base { OF_LOGIT, OF_SIGMOID, OF_SQRT_SOFTPLUS, OF_SCORE } base;

INLINE int32_t key_by(base of, float logit, float score, float bias) {
  float l = clean(logit);
  float v = of == OF_SIGMOID ? fast_sigmoid(l) : of == OF_SQRT_SOFTPLUS ? sqrt_softplus(l) : of == OF_SCORE ? score : l;
  int32_t key = key_of(v + bias);
  return l > REMOVED ? key : NO_KEY;
}

/* key_by of sigmoids, in vectors; returns how many there are. */
static uint32_t sigmoid_keys(const float *logits, const float *bias, int32_t *key, uint32_t n) {
  uint32_t i = 0;
  for (; i + SIDE * PART <= n; i += SIDE * PART) {
    floats l[SIDE], v[SIDE];
    part k[SIDE];
    EACH v[u] = -(l[u] = load_floats(logits + i + u * PART));
    exp_all(v);
    EACH v[u] = 1.0f / (1.0f + v[u]);
    if (bias) EACH v[u] += load_floats(bias + i + u * PART);
    EACH k[u] = (part)v[u]; /* no sum of a sigmoid and anything is -0 */
    EACH k[u] = EITHER((l[u] >= splat_float(-FLT_MAX)) & (v[u] > splat_float(REMOVED)),
                       k[u] ^ ((k[u] >> 31) & INT32_MAX), splat(NO_KEY));
    memcpy(key + i, k, sizeof k);
  }
  return i;
}

INLINE void make_keys(const moi_select_in *in, uint32_t n, base of, float factor) {
  const float *logits = in->logits, *bias = in->select_bias, *s = of == OF_SCORE ? in->scores : logits;
  int32_t *restrict key = in->keys;
  uint32_t i = of == OF_SIGMOID ? sigmoid_keys(logits, bias, key, n) : 0;
  if (bias)
    for (; i < n; i++) key[i] = key_by(of, logits[i], s[i] * factor, bias[i]);
  else
    for (; i < n; i++) key[i] = key_by(of, logits[i], s[i] * factor, 0.0f);
}

/* Phi-3.5-MoE at inference: two rounds of arg max; each weight is a softmax over the logits within 2*jitter of it. */
static void sparsemixer(const moi_select_in *in, uint32_t n) {
  const float *logits = in->logits;
  float limit = 2.0f * in->desc->jitter;
  for (uint32_t i = 0; i < n; i++) in->keys[i] = key_of(clean(logits[i]));
  top_k(in->keys, n, 2, in->ids);
  for (int round = 0; round < 2; round++) {
    int32_t e = in->ids[round], before = round ? in->ids[0] : -1;
    in->weights[round] = 0;
    if (e < 0) continue;
    float max = clean(logits[e]), sum = 0;
    for (uint32_t i = 0; i < n; i++) {
      float l = clean(logits[i]);
      if (l == REMOVED || (int32_t)i == before) continue;
      float factor = fabsf(l) > max ? fabsf(l) : max;
      if (!((max - l) / factor > limit)) sum += expf(l - max);
    }
    in->weights[round] = 1.0f / sum;
  }
}

static void choose(const moi_select_in *in, uint32_t n) {
  const moi_route_desc *d = in->desc;
  float max = 0, inverse = 0;
  uint32_t k = d->top_k;
  int after_topk = d->score == MOI_SCORE_TOPK_SOFTMAX || d->score == MOI_SCORE_TOPK_SIGMOID;
  /* Every score is monotone in the logit: where nothing is added to it the logits themselves are compared, so that the
   * choice does not hang on how a backend computes exp. */
  int by_score = !after_topk && (in->select_bias || (d->n_group > 1 && d->group_score == MOI_GROUP_TOP2_SUM));
  if (d->score == MOI_SCORE_SOFTMAX) {
    max = largest_logit(in->logits, n);
    inverse = softmax(in->logits, max, in->scores, n);
  }
  if (in->hash_row) {
    for (uint32_t j = 0; j < k; j++) in->ids[j] = (uint32_t)in->hash_row[j] < n ? in->hash_row[j] : -1;
  } else {
    if (!by_score) make_keys(in, n, OF_LOGIT, 1.0f);
    else if (d->score == MOI_SCORE_SIGMOID) make_keys(in, n, OF_SIGMOID, 1.0f);
    else if (d->score == MOI_SCORE_SQRT_SOFTPLUS) make_keys(in, n, OF_SQRT_SOFTPLUS, 1.0f);
    else make_keys(in, n, OF_SCORE, inverse);
    uint32_t size = d->n_group > 1 ? d->n_experts / d->n_group : 0;
    if (size == 32) limit_groups(d, in->keys, 32); /* DeepSeek's and Ling's: loops of known length */
    else if (size) limit_groups(d, in->keys, size);
    top_k(in->keys, n, k, in->ids);
  }
  for (uint32_t j = 0; j < k; j++) {
    int32_t e = in->ids[j];
    float l = e < 0 ? REMOVED : clean(in->logits[e]), *w = &in->weights[j];
    if (l == REMOVED) { /* a hash table may name one */
      in->ids[j] = -1;
      *w = after_topk ? REMOVED : 0.0f;
    } else if (after_topk) {
      *w = l;
    } else {
      *w = d->score == MOI_SCORE_SOFTMAX ? expf(l - max) * inverse : exact_score(d->score, l);
    }
  }
  if (d->score == MOI_SCORE_TOPK_SOFTMAX) softmax_of_few(in->weights, k);
  if (d->score == MOI_SCORE_TOPK_SIGMOID)
    for (uint32_t j = 0; j < k; j++)
      in->weights[j] = in->ids[j] < 0 ? 0.0f : exact_score(MOI_SCORE_SIGMOID, in->weights[j]);
}

void MOI_SELECT(const moi_select_in *in) {
  const moi_route_desc *d = in->desc;
  uint32_t n = d->n_experts + d->n_identity, k = d->top_k;
  for (uint32_t i = n; i % BLOCK; i++) in->keys[i] = NO_KEY;
  if (d->score == MOI_SCORE_SPARSEMIXER) sparsemixer(in, n);
  else choose(in, n);
  float sum = 0;
  for (uint32_t j = 0; j < k; j++) sum += in->weights[j];
  float divisor = d->renorm == MOI_RENORM_SUM   ? sum + d->renorm_eps
                  : d->renorm == MOI_RENORM_MAX ? (sum > d->renorm_eps ? sum : d->renorm_eps)
                                                : 1.0f;
  for (uint32_t j = 0; j < k; j++) {
    float w = divisor == 0.0f ? 0.0f : in->weights[j] / divisor;
    w *= d->scale;
    if (in->expert_scale && in->ids[j] >= 0) w *= in->expert_scale[in->ids[j]];
    in->weights[j] = in->ids[j] < 0 ? 0.0f : moi_round_to(d->weight_type, w);
  }
}
