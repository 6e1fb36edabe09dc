/* The lists of cases of moiety check. */
#include <math.h>
#include <string.h>

#include "bench/check.h"
#include "bench/rig/random.h"
#include "core/format.h"

#define PICK(list, i) (list)[(i) % (sizeof(list) / sizeof *(list))]

static const moi_format dense_types[] = {MOI_FORMAT_F32, MOI_FORMAT_BF16, MOI_FORMAT_F16};

/* What n and k of a format must be multiples of. */
static void multiples(moi_format format, uint32_t *n, uint32_t *k) {
  moi_format_sizes sizes;
  *n = *k = 1;
  while (*n < 256 && moi_format_size(format, *n, 256, &sizes)) *n *= 2;
  while (*k < 256 && moi_format_size(format, 256, *k, &sizes)) *k *= 2;
}

static uint32_t round_to_multiple(uint32_t value, uint32_t multiple) {
  uint32_t rounded = (value + multiple - 1) / multiple * multiple;
  return rounded ? rounded : multiple;
}

static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* A stable choice for the case, apart from the data's seed. */
static uint32_t choose(uint32_t index, uint32_t what, uint32_t n) { return moi_random_below(0xc0de + what, index, n); }

/* ---- bare GEMM */

int moi_check_gemm_case(moi_format format, uint32_t index, uint64_t seed, moi_case *out) {
  static const uint32_t rows[] = {1, 9, 0, 2, 3, 4, 5, 7, 8, 16, 17, 33, 64};
  static const uint32_t widths[] = {64, 48, 17, 1, 33, 16, 15, 80, 31, 65, 47, 130};
  static const uint32_t depths[] = {256, 512, 32, 64, 704, 96, 1408, 63, 576, 100, 2880, 1, 160, 4096};
  static const uint32_t groups[] = {1, 3, 1, 6};
  enum { COUNT = 28, LARGE = 3 };
  if (index >= COUNT + LARGE) return 0;
  uint32_t n_multiple, k_multiple;
  multiples(format, &n_multiple, &k_multiple);
  memset(out, 0, sizeof *out);
  out->op = MOI_OP_GEMM;
  out->seed = seed * 1000 + index;
  out->n_tokens = PICK(rows, index);
  moi_gemm_desc *d = &out->gemm;
  *d = (moi_gemm_desc)MOI_GEMM_DESC_INIT;
  d->format = format;
  d->n = round_to_multiple(PICK(widths, index), n_multiple);
  d->k = round_to_multiple(PICK(depths, index), k_multiple);
  if (d->k >= 2048 && out->n_tokens > 16) d->n = round_to_multiple(17, n_multiple);
  d->n_experts = PICK(groups, index);
  if (index >= COUNT) { /* more rows and columns than a tile of any row has, of every kind of activations */
    out->n_tokens = 150;
    d->n = round_to_multiple(130, n_multiple);
    d->k = round_to_multiple(272, k_multiple);
    d->n_experts = 1;
    d->act_quant = (moi_act_quant)(index - COUNT);
    d->input_type = index == COUNT ? MOI_FORMAT_F32 : MOI_FORMAT_BF16;
    return 1;
  }
  if (index < 2) return 1; /* the plain ones: fp32 in and out */
  d->input_type = PICK(dense_types, index);
  d->output_type = PICK(dense_types, index / 3);
  if (choose(index, 1, 2)) d->bias_type = PICK(dense_types, index / 2);
  if (index % 7 == 3) d->act_quant = (moi_act_quant)(1 + choose(index, 10, 3));
  if (index % 5 == 4) d->flags |= MOI_EXPERTS_ACCUMULATE;
  if (index % 6 == 5) d->flags |= MOI_EXPERTS_TABLES;
  if (index % 4 == 2) out->stride_extra = 5;
  if (index == COUNT - 1) {
    out->hostile_offsets = 1;
    d->n_experts = 6;
  }
  return 1;
}

/* ---- experts */

int moi_check_experts_case(moi_format format, uint32_t index, uint64_t seed, moi_case *out) {
  static const uint32_t tokens[] = {1, 3, 9, 2, 17, 5, 33, 0, 64};
  static const uint32_t hiddens[] = {64, 96, 50, 160, 352, 33, 288, 130};
  static const uint32_t inters[] = {32, 96, 37, 64, 176, 160, 20};
  static const uint32_t experts[] = {8, 4, 16, 1, 33};
  static const uint32_t top_ks[] = {2, 4, 1, 8, 3};
  static const moi_format mixes[] = {MOI_FORMAT_Q6_K, MOI_FORMAT_Q8_0, MOI_FORMAT_BF16, MOI_FORMAT_Q4_K};
  enum { COUNT = 40 };
  if (index >= COUNT) return 0;
  memset(out, 0, sizeof *out);
  out->op = MOI_OP_EXPERTS;
  out->seed = seed * 1000 + 100 + index;
  moi_experts_desc *d = &out->experts;
  *d = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
  d->format = format;
  if (index % 8 == 7) d->down_format = PICK(mixes, index / 8);
  uint32_t n1, k1, n2, k2;
  multiples(format, &n1, &k1);
  multiples(moi_or(d->down_format, format), &n2, &k2);
  d->hidden = round_to_multiple(PICK(hiddens, index), larger(k1, n2));
  d->intermediate = round_to_multiple(PICK(inters, index), larger(k2, n1));
  d->n_experts = PICK(experts, index);
  d->top_k = PICK(top_ks, index);
  if (d->top_k > d->n_experts) d->top_k = d->n_experts;
  out->n_tokens = PICK(tokens, index);
  /* the reference is slow: about 12 million weights for each case */
  while (out->n_tokens > 1 && (uint64_t)out->n_tokens * d->top_k * d->hidden * d->intermediate > 4000000)
    out->n_tokens = (out->n_tokens + 1) / 2;
  d->activation = (moi_activation)(index % 6);
  d->gate_layout = d->activation == MOI_ACT_RELU2 ? MOI_GATE_NONE : (moi_gate_layout)(index / 6 % 3);
  if (index < 2) return 1;
  d->input_type = PICK(dense_types, index);
  if (choose(index, 2, 2)) d->mid_type = PICK(dense_types, choose(index, 3, 3));
  if (choose(index, 4, 2)) d->output_type = PICK(dense_types, choose(index, 5, 3));
  d->weight_on = (moi_weight_on)choose(index, 6, 3);
  if (choose(index, 7, 2)) d->bias_type = PICK(dense_types, choose(index, 8, 3));
  if (choose(index, 9, 5) == 0) d->act_quant = (moi_act_quant)(1 + choose(index, 10, 3));
  if (choose(index, 11, 4) == 0) d->flags |= MOI_EXPERTS_ACCUMULATE;
  if (choose(index, 12, 4) == 0) d->flags |= MOI_EXPERTS_TABLES;
  if (choose(index, 13, 4) == 0) d->n_identity = 3;
  if (choose(index, 14, 3) == 0) d->output_scale = 0.625f;
  if (choose(index, 15, 3) == 0) out->stride_extra = 3;
  if (d->activation == MOI_ACT_SWIGLU && index % 12 == 6) d->act_limit = 1.5f;
  out->traffic = (moi_traffic)(index / 2 % MOI_TRAFFIC_COUNT);
  if (out->traffic == MOI_TRAFFIC_RANDOM && out->n_tokens > 4 && index % 3 == 0) out->device_tokens = out->n_tokens - 2;
  return 1;
}

/* ---- route */

int moi_check_route_case(uint32_t index, uint64_t seed, moi_case *out) {
  static const uint32_t tokens[] = {1, 4, 33, 0, 17, 70};
  static const uint32_t experts[] = {16, 64, 128, 60, 384, 1, 257};
  static const uint32_t hiddens[] = {0, 64, 0, 100, 288};
  static const uint32_t top_ks[] = {1, 2, 8, 4, 6, 22};
  enum { COUNT = 252 };
  if (index >= COUNT) return 0;
  memset(out, 0, sizeof *out);
  out->op = MOI_OP_ROUTE;
  out->seed = seed * 1000 + 200 + index;
  out->n_tokens = PICK(tokens, index / 2);
  moi_route_desc *d = &out->route;
  *d = (moi_route_desc)MOI_ROUTE_DESC_INIT;
  d->score = (moi_score)(index % 6);
  d->renorm = (moi_renorm)(index / 6 % 3);
  out->logits = (moi_logits_kind)(index / 18 % MOI_LOGITS_COUNT);
  d->renorm_eps = d->renorm ? (choose(index, 0, 2) ? 1e-20f : 0.0f) : 0;
  if (d->renorm == MOI_RENORM_MAX && choose(index, 1, 2)) d->renorm_eps = 1e-12f;
  d->n_experts = PICK(experts, choose(index, 2, 7));
  d->hidden = PICK(hiddens, choose(index, 3, 5));
  d->top_k = PICK(top_ks, choose(index, 4, 6));
  if (choose(index, 5, 6) == 0 && d->n_experts > 1) d->n_identity = d->n_experts / 2;
  if (d->score == MOI_SCORE_SPARSEMIXER) {
    if (d->n_experts < 2) d->n_experts = 16;
    d->top_k = 2;
  }
  if (d->top_k > d->n_experts + d->n_identity) d->top_k = d->n_experts + d->n_identity;
  int before = d->score <= MOI_SCORE_SQRT_SOFTPLUS, simple = d->score == MOI_SCORE_SPARSEMIXER;
  if (choose(index, 6, 3) == 0) d->flags |= MOI_ROUTE_BIAS;
  if (!simple && choose(index, 7, 2) == 0) {
    d->flags |= MOI_ROUTE_SELECT_BIAS;
    if (choose(index, 8, 3) == 0) d->flags |= MOI_ROUTE_SELECT_BIAS_ALT;
  }
  if (choose(index, 9, 4) == 0) d->flags |= MOI_ROUTE_EXPERT_SCALE;
  if (d->hidden && choose(index, 10, 3) == 0) {
    d->flags |= MOI_ROUTE_INPUT_NORM;
    d->norm_eps = 1e-6f;
    d->norm_scale = choose(index, 11, 2) ? 1.0f / sqrtf((float)d->hidden) : 0;
  }
  if (before && !d->n_identity && d->n_experts % 16 == 0 && choose(index, 12, 2) == 0) {
    d->n_group = choose(index, 13, 2) ? 8 : 4;
    d->topk_group = 1 + choose(index, 14, d->n_group);
    while (d->n_experts / d->n_group * d->topk_group < d->top_k) d->topk_group++;
    if (d->topk_group > d->n_group) {
      d->topk_group = d->n_group;
      d->top_k = d->n_experts;
    }
    d->group_score = (moi_group_score)choose(index, 15, 2);
  } else if (!simple && !(d->flags & MOI_ROUTE_SELECT_BIAS) && choose(index, 16, 5) == 0) {
    d->flags |= MOI_ROUTE_HASH;
    d->vocab = 50;
  }
  if (choose(index, 17, 3) == 0) d->scale = 2.5f;
  if (choose(index, 18, 5) == 0) d->logit_scale = 0.5f;
  if (choose(index, 19, 5) == 0) d->logit_softcap = 30;
  d->input_type = PICK(dense_types, choose(index, 20, 3));
  d->router_type = PICK(dense_types, choose(index, 21, 3));
  if (choose(index, 22, 3) == 0) d->logits_type = PICK(dense_types, choose(index, 23, 3));
  if (choose(index, 24, 3) == 0) d->weight_type = PICK(dense_types, choose(index, 25, 3));
  if (choose(index, 26, 3) == 0) out->stride_extra = 7;
  if (out->n_tokens > 4 && choose(index, 27, 6) == 0) out->device_tokens = out->n_tokens - 3;
  return 1;
}

/* ---- moe */

/* Narrows an FFN; more, where `slots` of it would keep the reference busy for long. */
static void shrink(moi_experts_desc *d, uint32_t hidden, uint32_t scale, uint32_t slots) {
  uint32_t n1, k1, n2, k2;
  multiples(d->format, &n1, &k1);
  multiples(moi_or(d->down_format, d->format), &n2, &k2);
  d->hidden = hidden;
  d->intermediate = round_to_multiple(d->intermediate / scale, larger(k2, n1));
  while ((uint64_t)slots * hidden * d->intermediate > 2000000 && d->intermediate > 2 * larger(k2, n1))
    d->intermediate = round_to_multiple(d->intermediate / 2, larger(k2, n1));
}

int moi_check_moe_case(const moi_preset *preset, moi_format format, uint32_t index, uint64_t seed, moi_case *out) {
  static const uint32_t tokens[] = {1, 6, 3};
  if (index >= sizeof tokens / sizeof *tokens) return 0;
  moi_case_of_preset(preset, MOI_OP_MOE, format, tokens[index], seed * 1000 + 300 + index, out);
  moi_experts_desc *x = &out->experts;
  uint32_t n, k, hidden_multiple = 1, scale = x->hidden >= 2048 ? 8 : 4;
  const moi_format formats[] = {x->format, moi_or(x->down_format, x->format), out->shared.format};
  for (int i = 0; i < (out->has_shared ? 3 : 2); i++) {
    multiples(formats[i], &n, &k);
    hidden_multiple = larger(hidden_multiple, larger(n, k));
  }
  uint32_t hidden = round_to_multiple(x->hidden / scale, hidden_multiple);
  int same = out->route.hidden == x->hidden;
  shrink(x, hidden, scale, out->n_tokens * x->top_k);
  if (out->has_shared) shrink(&out->shared, hidden, scale, out->n_tokens);
  if (out->route.hidden) out->route.hidden = same ? hidden : out->route.hidden / scale;
  if (out->route.norm_scale != 0) out->route.norm_scale = 1.0f / sqrtf((float)out->route.hidden);
  while (x->n_experts > 128 && x->n_experts % 2 == 0) { /* keep the groups whole */
    if (out->route.n_group > 1 && x->n_experts / 2 / out->route.n_group * out->route.topk_group < x->top_k) break;
    x->n_experts /= 2;
    x->n_identity /= 2;
  }
  out->route.n_experts = x->n_experts;
  out->route.n_identity = x->n_identity;
  if (index == 2) {
    out->stride_extra = 3;
    x->flags |= MOI_EXPERTS_ACCUMULATE;
  }
  return 1;
}
