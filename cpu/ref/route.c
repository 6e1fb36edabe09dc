/* Routing in double, token by token: the steps of moi_route_desc's comment in their order. */
#include <float.h>
#include <math.h>

#include "core/shared/round.h"
#include "cpu/ref/ref.h"

typedef struct memory {
  float *x, *row;
  double *l, *s, *v;
  int32_t *counts, *offsets;
} memory;

static memory carve(const moi_plan *plan, moi_carve *c) {
  size_t n = plan->route.n_experts + plan->route.n_identity;
  memory m;
  m.x = moi_take(c, plan->route.hidden, 4);
  m.row = moi_take(c, plan->route.hidden, 4);
  m.l = moi_take(c, n, 8);
  m.s = moi_take(c, n, 8);
  m.v = moi_take(c, n, 8);
  m.counts = moi_take(c, n, 4);
  m.offsets = moi_take(c, n + 1, 4);
  return m;
}

void moi_ref_route_count(const moi_plan *plan, moi_carve *c) { carve(plan, c); }

static void logits(const moi_route_desc *d, const moi_route_args *a, uint32_t t, memory *m) {
  uint32_t n = d->n_experts + d->n_identity;
  size_t element = d->input_type == MOI_FORMAT_F32 ? 4 : 2;
  const uint8_t *x = (const uint8_t *)moi_view(d->hidden ? a->hidden : a->logits) + (size_t)t * a->hidden_stride * element;
  moi_matrix router = {.format = d->router_type, .data = moi_view(a->router), .global = 1, .n = n, .k = d->hidden};
  double rms = 1;
  if (d->flags & MOI_ROUTE_INPUT_NORM) {
    double sum = 0;
    for (uint32_t i = 0; i < d->hidden; i++) sum += pow(moi_dense_load(d->input_type, x, i), 2);
    rms = 1.0 / sqrt(sum / d->hidden + d->norm_eps);
  }
  for (uint32_t i = 0; i < d->hidden; i++) {
    double v = moi_dense_load(d->input_type, x, i);
    if (d->flags & MOI_ROUTE_INPUT_NORM)
      v = v * rms * moi_dense_load(d->router_type, moi_view(a->norm_weight), i) * d->norm_scale;
    m->x[i] = (float)v;
  }
  for (uint32_t e = 0; e < n; e++) {
    double l = d->hidden ? moi_ref_dot(&router, e, m->x, m->row) : moi_dense_load(d->input_type, x, e);
    if (d->flags & MOI_ROUTE_BIAS) l += moi_dense_load(d->router_type, moi_view(a->router_bias), e);
    l = moi_round_to(d->logits_type, (float)l) * (double)d->logit_scale;
    if (d->logit_softcap > 0) l = d->logit_softcap * tanh(l / d->logit_softcap);
    m->l[e] = (float)l;
  }
}

/* Largest value, lower index in ties; -1 if all are -inf. */
static int32_t arg_max(const double *v, uint32_t n) {
  int32_t at = -1;
  for (uint32_t i = 0; i < n; i++)
    if (v[i] > -INFINITY && (at < 0 || v[i] > v[at])) at = (int32_t)i;
  return at;
}

static void softmax(double *v, uint32_t n) {
  int32_t at = arg_max(v, n);
  double max = at < 0 ? 0 : v[at], sum = 0;
  for (uint32_t i = 0; i < n; i++) sum += v[i] = exp(v[i] - max);
  for (uint32_t i = 0; i < n; i++) v[i] = at < 0 ? 0 : v[i] / sum;
}

static void limit_groups(const moi_route_desc *d, double *v, double *score) {
  uint32_t size = d->n_experts / d->n_group;
  for (uint32_t g = 0; g < d->n_group; g++) {
    double *member = v + (size_t)g * size;
    int32_t first = arg_max(member, size);
    score[g] = first < 0 ? -INFINITY : member[first];
    if (first < 0 || d->group_score == MOI_GROUP_MAX) continue;
    double largest = member[first];
    member[first] = -INFINITY;
    int32_t second = arg_max(member, size);
    if (second >= 0) score[g] += member[second];
    member[first] = largest;
  }
  for (uint32_t round = 0; round < d->topk_group; round++) {
    int32_t g = arg_max(score, d->n_group);
    if (g >= 0) score[g] = NAN; /* chosen */
    else break;
  }
  for (uint32_t i = 0; i < d->n_experts; i++)
    if (!isnan(score[i / size])) v[i] = -INFINITY;
}

static void sparsemixer(const moi_route_desc *d, memory *m, int32_t *ids, double *w) {
  uint32_t n = d->n_experts + d->n_identity;
  memcpy(m->v, m->l, n * sizeof *m->v);
  for (uint32_t j = 0; j < 2; j++) {
    ids[j] = arg_max(m->v, n);
    w[j] = 0;
    if (ids[j] < 0) continue;
    double max = m->v[ids[j]], sum = 0;
    for (uint32_t i = 0; i < n; i++) {
      double factor = fabs(m->l[i]) > max ? fabs(m->l[i]) : max;
      int dropped = (max - m->l[i]) / factor > 2 * (double)d->jitter;
      if (m->v[i] > -INFINITY && !dropped) sum += exp(m->l[i] - max);
    }
    w[j] = 1 / sum;
    m->v[ids[j]] = -INFINITY;
  }
}

static double score_of(moi_score score, double l) {
  if (score == MOI_SCORE_SIGMOID) return 1 / (1 + exp(-l));
  if (score == MOI_SCORE_SQRT_SOFTPLUS) return sqrt(l > 30 ? l : log1p(exp(l)));
  return l;
}

static void choose(const moi_route_desc *d, const moi_route_args *a, uint32_t t, memory *m, int32_t *ids, double *w) {
  uint32_t n = d->n_experts + d->n_identity, k = d->top_k;
  for (uint32_t i = 0; i < n; i++) {
    m->s[i] = score_of(d->score, m->l[i]);
  }
  if (d->score == MOI_SCORE_SOFTMAX) {
    memcpy(m->s, m->l, n * sizeof *m->s);
    softmax(m->s, n);
  }
  const float *bias = NULL;
  if (d->flags & MOI_ROUTE_SELECT_BIAS) {
    const uint8_t *alt = d->flags & MOI_ROUTE_SELECT_BIAS_ALT ? moi_view(a->alt_mask) : NULL;
    bias = moi_view(alt && alt[t] ? a->select_bias_alt : a->select_bias);
  }
  int32_t token = d->flags & MOI_ROUTE_HASH ? ((const int32_t *)moi_view(a->token_ids))[t] : 0;
  if (d->flags & MOI_ROUTE_HASH) {
    const int32_t *table = moi_view(a->hash_table);
    for (uint32_t j = 0; j < k; j++) {
      ids[j] = (uint32_t)token < d->vocab ? table[(size_t)token * k + j] : -1;
      if ((uint32_t)ids[j] >= n || m->l[ids[j]] == -INFINITY) ids[j] = -1;
    }
  } else {
    for (uint32_t i = 0; i < n; i++) {
      /* scores are monotone in the logit: without a bias the logits are compared */
      m->v[i] = bias ? m->s[i] + bias[i]
                     : d->n_group > 1 && d->group_score == MOI_GROUP_TOP2_SUM ? m->s[i] : m->l[i];
      if (m->l[i] == -INFINITY || isnan(m->v[i])) m->v[i] = -INFINITY;
    }
    double group[1024];
    if (d->n_group > 1) limit_groups(d, m->v, group);
    for (uint32_t j = 0; j < k; j++) {
      ids[j] = arg_max(m->v, n);
      if (ids[j] >= 0) m->v[ids[j]] = -INFINITY;
    }
  }
  int after_topk = d->score == MOI_SCORE_TOPK_SOFTMAX || d->score == MOI_SCORE_TOPK_SIGMOID;
  for (uint32_t j = 0; j < k; j++) w[j] = ids[j] >= 0 ? m->s[ids[j]] : after_topk ? -INFINITY : 0;
  if (d->score == MOI_SCORE_TOPK_SOFTMAX) softmax(w, k);
  if (d->score == MOI_SCORE_TOPK_SIGMOID)
    for (uint32_t j = 0; j < k; j++) w[j] = ids[j] < 0 ? 0 : 1 / (1 + exp(-w[j]));
}

void moi_ref_route(const moi_plan *plan, const moi_run *run, moi_carve *c, int32_t *ids, float *weights,
                   uint32_t n_tokens) {
  const moi_route_desc *d = &plan->route;
  const moi_route_args *a = &run->route;
  memory m = carve(plan, c);
  uint32_t n = d->n_experts + d->n_identity, k = d->top_k;
  for (uint32_t t = 0; t < n_tokens; t++) {
    int32_t *id = ids + (size_t)t * k;
    double w[64], sum = 0;
    logits(d, a, t, &m);
    float *out = moi_view(a->logits_out);
    for (uint32_t i = 0; out && i < n; i++) out[(size_t)t * n + i] = (float)m.l[i];
    for (uint32_t i = 0; i < n; i++) m.l[i] = isnan(m.l[i]) ? -INFINITY : m.l[i] > FLT_MAX ? FLT_MAX : m.l[i];
    if (d->score == MOI_SCORE_SPARSEMIXER) sparsemixer(d, &m, id, w);
    else choose(d, a, t, &m, id, w);
    for (uint32_t j = 0; j < k; j++) sum += w[j];
    for (uint32_t j = 0; j < k; j++) {
      double divisor = d->renorm == MOI_RENORM_SUM   ? sum + d->renorm_eps
                       : d->renorm == MOI_RENORM_MAX ? fmax(sum, d->renorm_eps)
                                                     : 1;
      double v = divisor == 0 ? 0 : w[j] / divisor * d->scale;
      if (d->flags & MOI_ROUTE_EXPERT_SCALE && id[j] >= 0) v *= ((const float *)moi_view(a->expert_scale))[id[j]];
      weights[(size_t)t * k + j] = id[j] < 0 ? 0 : moi_round_to(d->weight_type, (float)v);
    }
  }
  moi_sort_slots(ids, n_tokens * k, n, a->counts.ptr ? moi_view(a->counts) : m.counts,
                 a->offsets.ptr ? moi_view(a->offsets) : m.offsets, moi_view(a->permutation));
  int32_t *permutation = moi_view(a->permutation);
  for (uint32_t i = n_tokens * k; permutation && i < a->n_tokens * k; i++) permutation[i] = -1;
}
