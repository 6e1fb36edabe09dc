#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/checkpoint/parts.h"
#include "bench/checkpoint/store.h"

#define SCORE_READ MOI_RULE_SCORE_READ
#define RENORM_READ MOI_RULE_RENORM_READ
#define SELECT_BIAS MOI_RULE_SELECT_BIAS
#define SHARED_SIGMOID MOI_RULE_SHARED_SIGMOID
#define GROUPS MOI_RULE_GROUPS
#define INTERLEAVED MOI_RULE_INTERLEAVED
#define BF16_LOGITS MOI_RULE_BF16_LOGITS
#define BF16_WEIGHTS MOI_RULE_BF16_WEIGHTS
#define WEIGHT_ON_INPUT MOI_RULE_WEIGHT_ON_INPUT
#define WEIGHT_ON_ACTIVATION MOI_RULE_WEIGHT_ON_ACTIVATION
#define HASH MOI_RULE_HASH
#define INPUT_NORM MOI_RULE_INPUT_NORM
#define DENSE_SHARED MOI_RULE_DENSE_SHARED
static const moi_rule rules[] = {
#define RULE(gguf, model_types, score, renorm, eps, activation, flags, note)                                           \
  {gguf, model_types, MOI_SCORE_##score, MOI_RENORM_##renorm, eps, MOI_ACT_##activation, flags, note},
#include "bench/checkpoint/rules.def"
#undef RULE
};

static bool has_word(const char *words, const char *word) {
  size_t length = strlen(word);
  for (const char *at = words; length && *at;) {
    size_t n = strcspn(at, " ");
    if (n == length && !memcmp(at, word, n)) return true;
    at += n + (at[n] == ' ');
  }
  return false;
}

const moi_rule *moi_rule_find(const moi_checkpoint *c, moi_load_error *error, char architecture[64]) {
  bool gguf = moi_checkpoint_get_kind(c) == MOI_CHECKPOINT_GGUF;
  const char *name = moi_checkpoint_text(c, gguf ? "general.architecture" : "model_type");
  if (!name) {
    moi_load_fail(error, gguf ? "general.architecture: is not in the metadata"
                              : "model_type: there is no config.json beside the file, or it does not say");
    return NULL;
  }
  if (strlen(name) >= 64 || strchr(name, ' ')) {
    moi_load_fail(error, "architecture %.80s: is no name of a model", name);
    return NULL;
  }
  strcpy(architecture, name);
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
    if (has_word(gguf ? rules[i].gguf : rules[i].model_types, name)) return &rules[i];
  moi_load_fail(error,
                "architecture %s: its routing rule and activation are not known; a row in bench/checkpoint/rules.def "
                "is needed",
                name);
  return NULL;
}

bool moi_layer_number(const moi_layer_reader *r, const char *keys, double *out) {
  bool gguf = moi_checkpoint_get_kind(r->checkpoint) == MOI_CHECKPOINT_GGUF;
  for (const char *at = keys; *at;) {
    size_t n = strcspn(at, " ");
    char key[192];
    snprintf(key, sizeof key, "%s%s%.*s", gguf ? r->layer->architecture : "", gguf ? "." : "", (int)n, at);
    if (moi_checkpoint_number(r->checkpoint, key, r->layer->index, out)) return true;
    at += n + (at[n] == ' ');
  }
  return false;
}

/* A number of the file as a count; absent: 0. */
static bool count(const moi_layer_reader *r, const char *keys, uint32_t limit, uint32_t *out) {
  double v;
  *out = 0;
  if (!moi_layer_number(r, keys, &v)) return true;
  if (!(v >= 0 && v <= limit) || v != floor(v))
    return moi_load_fail(r->error, "%s: %g is not in 0..%u", keys, v, limit);
  *out = (uint32_t)v;
  return true;
}

static const char *first_text(const moi_checkpoint *c, const char *a, const char *b, const char *d) {
  const char *text = moi_checkpoint_text(c, a);
  if (!text) text = moi_checkpoint_text(c, b);
  return text ? text : moi_checkpoint_text(c, d);
}

static const char *const score_names[] = {"softmax", "sigmoid", "sqrtsoftplus"};

static bool read_score(moi_layer_reader *r, bool gguf) {
  moi_route_desc *d = &r->layer->route;
  d->score = r->rule->score;
  moi_score named;
  double v;
  const char *text = NULL;
  if (gguf) {
    if (!moi_layer_number(r, "expert_gating_func", &v) || v == 0) return true;
    static const moi_score gating[] = {MOI_SCORE_SOFTMAX, MOI_SCORE_SIGMOID, MOI_SCORE_TOPK_SOFTMAX,
                                       MOI_SCORE_SQRT_SOFTPLUS};
    if (!(v >= 1 && v <= 4) || v != floor(v))
      return moi_load_fail(r->error, "%s.expert_gating_func: %g is not known", r->layer->architecture, v);
    named = gating[(int)v - 1];
  } else {
    text = first_text(r->checkpoint, "scoring_func", "moe_router_activation_func", "score_function");
    if (!text) return true;
    uint32_t i = 0;
    while (i < 3 && strcmp(text, score_names[i])) i++;
    if (i == 3) return moi_load_fail(r->error, "scoring_func: %s is not known", text);
    named = (moi_score)i;
  }
  if (r->rule->flags & MOI_RULE_SCORE_READ) {
    d->score = named;
    return true;
  }
  /* what files call softmax or sigmoid is, for these, that function after the choice */
  bool same = named == d->score || (d->score == MOI_SCORE_TOPK_SOFTMAX && named == MOI_SCORE_SOFTMAX) ||
              (d->score == MOI_SCORE_TOPK_SIGMOID && named == MOI_SCORE_SIGMOID) ||
              (d->score == MOI_SCORE_SPARSEMIXER && named == MOI_SCORE_SOFTMAX);
  return same || moi_load_fail(r->error, "gating function %g%s: contradicts the rule of %s", gguf ? v : 0.0,
                               text ? text : "", r->layer->architecture);
}

static bool read_renorm(moi_layer_reader *r) {
  moi_route_desc *d = &r->layer->route;
  d->renorm = r->rule->renorm;
  d->renorm_eps = r->rule->renorm_eps;
  double v;
  /* weights that are a softmax over the chosen already sum to 1 */
  if (d->score == MOI_SCORE_TOPK_SOFTMAX) return true;
  if (moi_layer_number(r, "expert_weights_norm norm_topk_prob moe_renormalize", &v)) {
    bool on = v != 0;
    if (!(r->rule->flags & MOI_RULE_RENORM_READ) && on != (d->renorm != MOI_RENORM_NONE))
      return moi_load_fail(r->error, "renormalisation of the weights (%s): contradicts the rule of %s",
                           on ? "true" : "false", r->layer->architecture);
    if (!on) d->renorm = MOI_RENORM_NONE;
    else if (d->renorm == MOI_RENORM_NONE) d->renorm = MOI_RENORM_SUM;
  }
  if (d->renorm == MOI_RENORM_NONE) d->renorm_eps = 0;
  return true;
}

static bool read_groups(moi_layer_reader *r) {
  moi_route_desc *d = &r->layer->route;
  if (!(r->rule->flags & MOI_RULE_GROUPS)) return true;
  const char *method = moi_checkpoint_text(r->checkpoint, "topk_method");
  if (method && !strcmp(method, "greedy")) return true;
  if (!count(r, "expert_group_count n_group num_expert_group", 1024, &d->n_group) ||
      !count(r, "expert_group_used_count topk_group", 1024, &d->topk_group))
    return false;
  if (d->n_group <= 1) {
    d->n_group = d->topk_group = 0;
    return true;
  }
  if (!d->topk_group || d->topk_group > d->n_group || d->n_experts % d->n_group)
    return moi_load_fail(r->error, "groups: %u of %u groups of %u experts", d->topk_group, d->n_group, d->n_experts);
  /* DeepSeek V2 takes the largest score of a group, V3 the sum of two */
  d->group_score = d->score == MOI_SCORE_SOFTMAX ? MOI_GROUP_MAX : MOI_GROUP_TOP2_SUM;
  return true;
}

static bool read_activation(moi_layer_reader *r) {
  moi_experts_desc *d = &r->layer->experts;
  d->activation = r->rule->activation;
  double v;
  if (moi_layer_number(r, "swiglu_limit", &v)) {
    if (!(v > 0 && v < 1e9)) return moi_load_fail(r->error, "swiglu_limit: %g is not a limit", v);
    d->act_limit = (float)v;
  }
  const char *name = first_text(r->checkpoint, "hidden_activation", "hidden_act", "activation_function");
  if (!name) return true;
  bool gelu = !strncmp(name, "gelu", 4), silu = !strcmp(name, "silu") || !strcmp(name, "swiglu");
  if (d->activation == MOI_ACT_GEGLU_TANH ? gelu : silu) return true;
  return moi_load_fail(r->error, "hidden_act: %s contradicts the rule of %s", name, r->layer->architecture);
}

bool moi_rule_apply(moi_layer_reader *r) {
  moi_layer *l = r->layer;
  const moi_checkpoint *c = r->checkpoint;
  bool gguf = moi_checkpoint_get_kind(c) == MOI_CHECKPOINT_GGUF;
  moi_route_desc *d = &l->route;
  uint32_t flags = r->rule->flags, n;
  double v;
  l->note = r->rule->note;
  if (!count(r, "expert_count num_experts num_local_experts n_routed_experts moe_num_experts", 65536, &n)) return false;
  if (!n) return moi_load_fail(r->error, "%s: the metadata do not say how many experts there are", l->architecture);
  d->n_experts = n;
  if (!count(r, "zero_expert_num", 65536, &d->n_identity) ||
      !count(r, "expert_used_count num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts", 64,
             &d->top_k))
    return false;
  if (!d->top_k || d->top_k > d->n_experts + d->n_identity)
    return moi_load_fail(r->error, "%s: %u experts for a token, of %u (or the metadata do not say)", l->architecture,
                         d->top_k, d->n_experts + d->n_identity);
  if (!read_score(r, gguf) || !read_renorm(r) || !read_groups(r) || !read_activation(r)) return false;
  if (moi_layer_number(r, "expert_weights_scale routed_scaling_factor", &v)) {
    if (!(v >= 0 && v < 1e9)) return moi_load_fail(r->error, "scale of the weights: %g", v);
    d->scale = v == 1 ? 0 : (float)v;
  }
  if (moi_layer_number(r, "router_logit_softcapping", &v)) {
    if (!(v >= 0 && v < 1e9)) return moi_load_fail(r->error, "router_logit_softcapping: %g", v);
    d->logit_softcap = (float)v;
  }
  if (d->score == MOI_SCORE_SPARSEMIXER) {
    if (d->top_k != 2)
      return moi_load_fail(r->error, "sparsemixer: %u experts for a token; it is made for 2", d->top_k);
    if (moi_layer_number(r, "router_jitter_noise", &v) && v > 0 && v < 1) d->jitter = (float)v;
  }
  if (flags & MOI_RULE_INPUT_NORM) {
    d->norm_eps = 1e-6f;
    if (moi_layer_number(r, "attention.layer_norm_rms_epsilon rms_norm_eps", &v) && v > 0 && v < 1)
      d->norm_eps = (float)v;
  }
  if (!gguf && (flags & MOI_RULE_BF16_LOGITS)) d->logits_type = MOI_FORMAT_BF16;
  if (!gguf && (flags & MOI_RULE_BF16_WEIGHTS)) d->weight_type = MOI_FORMAT_BF16;
  const char *type = gguf ? NULL : first_text(c, "torch_dtype", "dtype", "torch_dtype");
  d->input_type = gguf                               ? MOI_FORMAT_F32
                  : type && !strcmp(type, "float16") ? MOI_FORMAT_F16
                  : type && !strcmp(type, "float32") ? MOI_FORMAT_F32
                                                     : MOI_FORMAT_BF16;

  moi_experts_desc *x = &l->experts;
  x->n_experts = d->n_experts;
  x->n_identity = d->n_identity;
  x->top_k = d->top_k;
  x->input_type = d->input_type;
  if (flags & MOI_RULE_WEIGHT_ON_INPUT) x->weight_on = MOI_WEIGHT_ON_INPUT;
  if (flags & MOI_RULE_WEIGHT_ON_ACTIVATION) x->weight_on = MOI_WEIGHT_ON_ACTIVATION;
  l->shared_kind = flags & MOI_RULE_SHARED_SIGMOID ? MOI_SHARED_SIGMOID : MOI_SHARED_PLAIN;
  return true;
}
