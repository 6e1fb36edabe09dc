/* Selection of one token's experts from its logits, fp32: the steps of moi_route_desc's comment, for every model's rule. */
#include <float.h>
#include <math.h>

#include "core/shared/round.h"
#include "cpu/cpu.h"

#define REMOVED (-INFINITY)

static float sigmoid(float l) { return 1.0f / (1.0f + expf(-l)); }

/* sqrt(log(1 + exp(l))); beyond 20 log1p(exp(l)) is l in fp32 */
static float sqrt_softplus(float l) { return sqrtf(l > 20.0f ? l : log1pf(expf(l))); }

static void softmax(const float *l, float *out, uint32_t n) {
  float max = REMOVED, sum = 0;
  for (uint32_t i = 0; i < n; i++)
    if (l[i] > max) max = l[i];
  for (uint32_t i = 0; i < n; i++) {
    out[i] = l[i] == REMOVED ? 0.0f : expf(l[i] - max);
    sum += out[i];
  }
  float inverse = sum > 0 ? 1.0f / sum : 0.0f;
  for (uint32_t i = 0; i < n; i++) out[i] *= inverse;
}

/* Index of the largest value, the lower one in ties; -1 if all are removed. */
static int32_t arg_max(const float *v, uint32_t n) {
  float best = REMOVED;
  int32_t at = -1;
  for (uint32_t i = 0; i < n; i++)
    if (v[i] > best) {
      best = v[i];
      at = (int32_t)i;
    }
  return at;
}

/* Keeps v only in the best groups. */
static void limit_groups(const moi_route_desc *d, float *v) {
  uint32_t size = d->n_experts / d->n_group;
  uint8_t keep[1024 / 8];
  memset(keep, 0, (d->n_group + 7) / 8);
  for (uint32_t round = 0; round < d->topk_group; round++) {
    float best = REMOVED;
    int32_t best_group = -1;
    for (uint32_t g = 0; g < d->n_group; g++) {
      if (keep[g / 8] >> (g % 8) & 1) continue;
      float first = REMOVED, second = REMOVED;
      for (uint32_t i = g * size; i < (g + 1) * size; i++) {
        if (v[i] > first) {
          second = first;
          first = v[i];
        } else if (v[i] > second) {
          second = v[i];
        }
      }
      float score = first;
      if (d->group_score == MOI_GROUP_TOP2_SUM && second != REMOVED) score += second;
      if (score > best) {
        best = score;
        best_group = (int32_t)g;
      }
    }
    if (best_group < 0) break;
    keep[best_group / 8] |= (uint8_t)(1u << (best_group % 8));
  }
  for (uint32_t i = 0; i < d->n_experts; i++)
    if (!(keep[i / size / 8] >> (i / size % 8) & 1)) v[i] = REMOVED;
}

/* Phi-3.5-MoE at inference: two rounds of arg max; each weight is a softmax over the logits within 2*jitter of it. */
static void sparsemixer(const moi_select_in *in, uint32_t n) {
  const float *l = in->logits;
  float *v = in->values, limit = 2.0f * in->desc->jitter;
  memcpy(v, l, n * sizeof *v);
  for (int round = 0; round < 2; round++) {
    int32_t e = arg_max(v, n);
    in->ids[round] = e;
    in->weights[round] = 0;
    if (e < 0) continue;
    float max = v[e], sum = 0;
    for (uint32_t i = 0; i < n; i++) {
      if (v[i] == REMOVED) continue;
      float factor = fabsf(l[i]) > max ? fabsf(l[i]) : max;
      if (!((max - l[i]) / factor > limit)) sum += expf(l[i] - max);
    }
    in->weights[round] = 1.0f / sum;
    v[e] = REMOVED;
  }
}

void moi_select_f32(const moi_select_in *in) {
  const moi_route_desc *d = in->desc;
  uint32_t n = d->n_experts + d->n_identity, k = d->top_k;
  float *l = in->logits, *s = in->scores;
  for (uint32_t i = 0; i < n; i++) {
    float v = l[i];
    l[i] = isnan(v) || v == -INFINITY ? REMOVED : v > FLT_MAX ? FLT_MAX : v;
  }
  int after_topk = d->score == MOI_SCORE_TOPK_SOFTMAX || d->score == MOI_SCORE_TOPK_SIGMOID;
  if (d->score == MOI_SCORE_SPARSEMIXER) {
    sparsemixer(in, n);
  } else {
    if (d->score == MOI_SCORE_SOFTMAX) softmax(l, s, n);
    else if (d->score == MOI_SCORE_SIGMOID)
      for (uint32_t i = 0; i < n; i++) s[i] = sigmoid(l[i]);
    else if (d->score == MOI_SCORE_SQRT_SOFTPLUS)
      for (uint32_t i = 0; i < n; i++) s[i] = sqrt_softplus(l[i]);
    else s = l;
    if (in->hash_row) {
      for (uint32_t j = 0; j < k; j++) in->ids[j] = (uint32_t)in->hash_row[j] < n ? in->hash_row[j] : -1;
    } else {
      /* Every score is monotone in the logit: where nothing is added to it the logits themselves are compared, so that
       * the choice does not hang on how a backend computes exp. */
      float *v = in->values;
      int grouped_sum = d->n_group > 1 && d->group_score == MOI_GROUP_TOP2_SUM;
      if (in->select_bias)
        for (uint32_t i = 0; i < n; i++) {
          float sum = s[i] + in->select_bias[i];
          v[i] = l[i] == REMOVED || isnan(sum) ? REMOVED : sum;
        }
      else
        for (uint32_t i = 0; i < n; i++) v[i] = l[i] == REMOVED ? REMOVED : grouped_sum ? s[i] : l[i];
      if (d->n_group > 1) limit_groups(d, v);
      for (uint32_t j = 0; j < k; j++) {
        int32_t e = arg_max(v, n);
        in->ids[j] = e;
        if (e >= 0) v[e] = REMOVED;
      }
    }
    for (uint32_t j = 0; j < k; j++) {
      int32_t e = in->ids[j];
      if (e >= 0 && l[e] == REMOVED) e = in->ids[j] = -1; /* a hash table may name one */
      in->weights[j] = e < 0 ? after_topk ? REMOVED : 0.0f : s[e];
    }
    if (d->score == MOI_SCORE_TOPK_SOFTMAX) softmax(in->weights, in->weights, k);
    if (d->score == MOI_SCORE_TOPK_SIGMOID)
      for (uint32_t j = 0; j < k; j++) in->weights[j] = in->ids[j] < 0 ? 0.0f : sigmoid(in->weights[j]);
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
