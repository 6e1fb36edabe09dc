/* Selection of one token's experts from its logits, fp32: the steps of moi_route_desc's comment, for every model's rule.
 * Written once as plain loops that compilers vectorise; each ISA's file includes this text with its own flags. Contraction
 * is off and sums have one order, so all ISAs give the same bits. MOI_SELECT names the function.
 *
 * What is compared is an integer: bits of a float in an order in which a signed comparison is that of the floats. Blocks of
 * classes know their largest key, so that each of the k rounds looks at those and at one block. */
#include <float.h>
#include <math.h>

#include "core/shared/round.h"
#include "cpu/cpu.h"
#include "cpu/kernels/fast_math.h"

#define REMOVED (-INFINITY)

enum { BLOCK = MOI_SELECT_BLOCK, LANES = 16, NO_KEY = INT32_MIN };

static inline int32_t bits_of(float v) {
  int32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
/* Its own inverse on bits. */
static inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & INT32_MAX); }
/* -infinity and NaN: NO_KEY. + 0.0f: both zeros are one. */
static inline int32_t key_of(float v) { return v > REMOVED ? ordered(bits_of(v + 0.0f)) : NO_KEY; }
static inline float value_of(int32_t key) {
  if (key == NO_KEY) return REMOVED;
  int32_t bits = ordered(key);
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
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

/* Keeps keys only in the best groups, of `size` classes each. */
static inline void limit_groups(const moi_route_desc *d, int32_t *key, uint32_t size) {
  int32_t group_key[1024];
  uint8_t keep[1024];
  for (uint32_t g = 0; g < d->n_group; g++) {
    const int32_t *in = key + (size_t)g * size;
    int32_t first = largest(in, size), second = NO_KEY, equal = 0;
    for (uint32_t i = 0; i < size; i++) {
      int32_t other = in[i] == first ? NO_KEY : in[i];
      equal += in[i] == first;
      second = other > second ? other : second;
    }
    if (equal > 1) second = first;
    int sum = d->group_score == MOI_GROUP_TOP2_SUM && second != NO_KEY;
    group_key[g] = sum ? key_of(value_of(first) + value_of(second)) : first;
    keep[g] = 0;
  }
  for (uint32_t round = 0; round < d->topk_group; round++) {
    int32_t best = NO_KEY;
    uint32_t at = 0;
    for (uint32_t g = 0; g < d->n_group; g++) { /* no branch: which is better is anyone's guess */
      int better = group_key[g] > best;
      best = better ? group_key[g] : best;
      at = better ? g : at;
    }
    if (best == NO_KEY) break;
    keep[at] = 1;
    group_key[at] = NO_KEY;
  }
  for (uint32_t g = 0; g < d->n_group; g++)
    if (!keep[g])
      for (uint32_t i = 0; i < size; i++) key[(size_t)g * size + i] = NO_KEY;
}

/* The k classes of the largest keys, of equal ones the lower; -1 if all are removed. key[n..] up to whole blocks: NO_KEY. */
static void top_k(int32_t *key, uint32_t n, uint32_t k, int32_t *ids) {
  uint32_t n_blocks = (n + BLOCK - 1) / BLOCK;
  int32_t *best_of = key + (size_t)n_blocks * BLOCK;
  for (uint32_t b = 0; b < n_blocks; b++) best_of[b] = largest(key + (size_t)b * BLOCK, BLOCK);
  for (uint32_t j = 0; j < k; j++) {
    int32_t best = NO_KEY;
    uint32_t block = 0;
    for (uint32_t b = 0; b < n_blocks; b++)
      if (best_of[b] > best) {
        best = best_of[b];
        block = b;
      }
    ids[j] = -1;
    if (best == NO_KEY) continue;
    int32_t in[BLOCK], at = BLOCK; /* read once: vectors that hold what was just stored would have to wait for it */
    memcpy(in, key + (size_t)block * BLOCK, sizeof in);
    for (int32_t i = 0; i < BLOCK; i++) {
      int32_t here = in[i] == best ? i : BLOCK;
      at = here < at ? here : at;
    }
    best = NO_KEY;
    for (int32_t i = 0; i < BLOCK; i++) {
      int32_t gone = -(i == at), other = (in[i] & ~gone) | (NO_KEY & gone); /* no branch that keeps it from being a vector's */
      best = other > best ? other : best;
    }
    ids[j] = (int32_t)block * BLOCK + at;
    key[ids[j]] = NO_KEY;
    best_of[block] = best;
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
    int32_t key = ordered(bits_of(l[i]));
    top = key > top ? key : top;
  }
  return value_of(top);
}

/* Returns what exp(l - max) is multiplied by; 0 if all are removed. */
static float softmax(const float *l, float max, float *out, uint32_t n) {
  if (max == REMOVED) {
    memset(out, 0, n * sizeof *out);
    return 0.0f;
  }
  for (uint32_t i = 0; i < n; i++) {
    float e = fast_exp(l[i] - max);
    out[i] = l[i] - max < -87.0f ? 0.0f : e; /* those that are removed too */
  }
  float inverse = 1.0f / sum_of(out, n);
  for (uint32_t i = 0; i < n; i++) out[i] *= inverse;
  return inverse;
}

static void softmax_of_few(float *l, uint32_t n) {
  float max = largest_logit(l, n), sum = 0;
  for (uint32_t i = 0; i < n; i++) sum += l[i] = l[i] == REMOVED ? 0.0f : expf(l[i] - max);
  for (uint32_t i = 0; i < n && sum > 0; i++) l[i] /= sum;
}

/* Phi-3.5-MoE at inference: two rounds of arg max; each weight is a softmax over the logits within 2*jitter of it. */
static void sparsemixer(const moi_select_in *in, uint32_t n) {
  const float *l = in->logits;
  float limit = 2.0f * in->desc->jitter;
  top_k(in->keys, n, 2, in->ids);
  for (int round = 0; round < 2; round++) {
    int32_t e = in->ids[round], before = round ? in->ids[0] : -1;
    in->weights[round] = 0;
    if (e < 0) continue;
    float max = l[e], sum = 0;
    for (uint32_t i = 0; i < n; i++) {
      if (l[i] == REMOVED || (int32_t)i == before) continue;
      float factor = fabsf(l[i]) > max ? fabsf(l[i]) : max;
      if (!((max - l[i]) / factor > limit)) sum += expf(l[i] - max);
    }
    in->weights[round] = 1.0f / sum;
  }
}

static void choose(const moi_select_in *in, uint32_t n) {
  const moi_route_desc *d = in->desc;
  const float *l = in->logits;
  float *s = in->scores, max = 0, inverse = 0;
  int32_t *key = in->keys;
  uint32_t k = d->top_k;
  int after_topk = d->score == MOI_SCORE_TOPK_SOFTMAX || d->score == MOI_SCORE_TOPK_SIGMOID;
  /* Every score is monotone in the logit: where nothing is added to it the logits themselves are compared, so that the
   * choice does not hang on how a backend computes exp. */
  int by_score = !after_topk && (in->select_bias || (d->n_group > 1 && d->group_score == MOI_GROUP_TOP2_SUM));
  if (d->score == MOI_SCORE_SOFTMAX) {
    max = largest_logit(l, n);
    inverse = softmax(l, max, s, n);
  } else if (d->score == MOI_SCORE_SIGMOID && by_score) {
    for (uint32_t i = 0; i < n; i++) s[i] = fast_sigmoid(l[i]);
  } else if (d->score == MOI_SCORE_SQRT_SOFTPLUS && by_score) {
    for (uint32_t i = 0; i < n; i++) s[i] = sqrt_softplus(l[i]);
  }
  const float *from = by_score ? s : l;
  if (in->hash_row) {
    for (uint32_t j = 0; j < k; j++) in->ids[j] = (uint32_t)in->hash_row[j] < n ? in->hash_row[j] : -1;
  } else {
    if (in->select_bias)
      for (uint32_t i = 0; i < n; i++) key[i] = l[i] == REMOVED ? NO_KEY : key_of(from[i] + in->select_bias[i]);
    else
      for (uint32_t i = 0; i < n; i++) key[i] = l[i] == REMOVED ? NO_KEY : key_of(from[i]);
    uint32_t size = d->n_group > 1 ? d->n_experts / d->n_group : 0;
    if (size == BLOCK) limit_groups(d, key, BLOCK); /* DeepSeek's and Ling's: loops of known length */
    else if (size) limit_groups(d, key, size);
    top_k(key, n, k, in->ids);
  }
  for (uint32_t j = 0; j < k; j++) {
    int32_t e = in->ids[j];
    if (e >= 0 && l[e] == REMOVED) e = in->ids[j] = -1; /* a hash table may name one */
    float *w = &in->weights[j];
    if (e < 0) *w = after_topk ? REMOVED : 0.0f;
    else if (after_topk) *w = l[e];
    else if (d->score == MOI_SCORE_SOFTMAX) *w = expf(l[e] - max) * inverse;
    else *w = exact_score(d->score, l[e]);
  }
  if (d->score == MOI_SCORE_TOPK_SOFTMAX) softmax_of_few(in->weights, k);
  if (d->score == MOI_SCORE_TOPK_SIGMOID)
    for (uint32_t j = 0; j < k; j++)
      in->weights[j] = in->ids[j] < 0 ? 0.0f : exact_score(MOI_SCORE_SIGMOID, in->weights[j]);
}

void MOI_SELECT(const moi_select_in *in) {
  const moi_route_desc *d = in->desc;
  uint32_t n = d->n_experts + d->n_identity, k = d->top_k;
  float *l = in->logits;
  for (uint32_t i = 0; i < n; i++) {
    float v = l[i] > FLT_MAX ? FLT_MAX : l[i];
    l[i] = v >= -FLT_MAX ? v : REMOVED; /* NaN too */
  }
  for (uint32_t i = n; i % BLOCK; i++) in->keys[i] = NO_KEY;
  if (d->score == MOI_SCORE_SPARSEMIXER) {
    for (uint32_t i = 0; i < n; i++) in->keys[i] = key_of(l[i]);
    sparsemixer(in, n);
  } else {
    choose(in, n);
  }
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
