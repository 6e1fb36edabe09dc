/* Plans: every rule that a desc must keep, checked once for all backends, and every default resolved. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/backend.h"
#include "core/check.h"
#include "core/format.h"
#include "core/structs.h"

static moi_status check_route(const char *fn, moi_route_desc *d, const char *what) {
  RANGE(what, max_tokens, 1, MAX_TOKENS);
  RANGE(what, hidden, 0, MAX_WIDTH);
  RANGE(what, n_experts, 1, MAX_EXPERTS);
  RANGE(what, n_identity, 0, MAX_EXPERTS);
  RANGE(what, top_k, 1, MAX_TOP_K);
  uint32_t n_class = d->n_experts + d->n_identity;
  if (d->top_k > n_class) REFUSE("%s->top_k: %u, there are %u experts", what, d->top_k, n_class);
  if ((uint64_t)d->max_tokens * d->top_k > INT32_MAX || (uint64_t)d->max_tokens * n_class > UINT32_MAX)
    REFUSE("%s->max_tokens: %u, too many slots or logits for 32-bit indices", what, d->max_tokens);
  ENUM(what, score, MOI_SCORE_SPARSEMIXER);
  ENUM(what, group_score, MOI_GROUP_MAX);
  ENUM(what, renorm, MOI_RENORM_MAX);
  FLAGS(what, flags, 0x3f);
  FLAGS(what, plan_flags, ALL_PLAN_FLAGS);
  FINITE(what, renorm_eps);
  FINITE(what, scale);
  FINITE(what, logit_scale);
  FINITE(what, logit_softcap);
  FINITE(what, jitter);
  FINITE(what, norm_eps);
  FINITE(what, norm_scale);
  if (d->renorm_eps < 0) REFUSE("%s->renorm_eps: %g, must be >= 0", what, (double)d->renorm_eps);
  if (d->logit_softcap < 0) REFUSE("%s->logit_softcap: %g, must be >= 0", what, (double)d->logit_softcap);
  if (d->norm_eps < 0) REFUSE("%s->norm_eps: %g, must be >= 0", what, (double)d->norm_eps);
  if (d->jitter < 0) REFUSE("%s->jitter: %g, must be >= 0", what, (double)d->jitter);
  int after_topk = d->score == MOI_SCORE_TOPK_SOFTMAX || d->score == MOI_SCORE_TOPK_SIGMOID;
  if (!d->n_group) d->n_group = 1;
  if (d->n_group > 1) {
    RANGE(what, n_group, 2, 1024);
    if (d->n_experts % d->n_group) REFUSE("%s->n_group: %u does not divide %u experts", what, d->n_group, d->n_experts);
    RANGE(what, topk_group, 1, d->n_group);
    if (d->n_experts / d->n_group * d->topk_group < d->top_k)
      REFUSE("%s->topk_group: %u groups hold fewer than top_k = %u experts", what, d->topk_group, d->top_k);
    if (after_topk || d->score == MOI_SCORE_SPARSEMIXER || d->n_identity || d->flags & MOI_ROUTE_HASH)
      return moi_fail(MOI_UNSUPPORTED, fn, "%s->n_group: groups go with scores made before top-k, without identity "
                                           "experts and hash tables", what);
  } else {
    d->topk_group = 1;
  }
  if (d->score == MOI_SCORE_SPARSEMIXER &&
      (d->top_k != 2 || d->flags & (MOI_ROUTE_HASH | MOI_ROUTE_SELECT_BIAS | MOI_ROUTE_SELECT_BIAS_ALT)))
    return moi_fail(MOI_UNSUPPORTED, fn, "%s->score: sparsemixer goes with top_k = 2 and logits alone", what);
  if ((d->flags & MOI_ROUTE_SELECT_BIAS_ALT) && !(d->flags & MOI_ROUTE_SELECT_BIAS))
    REFUSE("%s->flags: SELECT_BIAS_ALT needs SELECT_BIAS", what);
  if (d->flags & MOI_ROUTE_HASH) {
    RANGE(what, vocab, 1, 1u << 28);
    if (d->flags & MOI_ROUTE_SELECT_BIAS) REFUSE("%s->flags: SELECT_BIAS selects nothing beside HASH", what);
  }
  if ((d->flags & MOI_ROUTE_INPUT_NORM) && !d->hidden) REFUSE("%s->flags: INPUT_NORM needs hidden > 0", what);
  DENSE(what, input_type, MOI_FORMAT_F32);
  DENSE(what, router_type, MOI_FORMAT_F32);
  DENSE(what, logits_type, MOI_FORMAT_F32);
  DENSE(what, weight_type, MOI_FORMAT_F32);
  if (d->hidden) {
    moi_format_sizes sizes;
    moi_status status = moi_format_size(d->router_type, n_class, d->hidden, &sizes);
    if (status) REFUSE("%s->hidden: a router of %u x %u exceeds 4 GiB", what, n_class, d->hidden);
  }
  if (d->scale == 0) d->scale = 1;
  if (d->logit_scale == 0) d->logit_scale = 1;
  if (d->jitter == 0) d->jitter = 0.01f;
  if (d->norm_scale == 0) d->norm_scale = 1;
  return MOI_OK;
}

static moi_status check_experts(const char *fn, moi_experts_desc *d, const char *what) {
  RANGE(what, max_tokens, 1, MAX_TOKENS);
  RANGE(what, hidden, 1, MAX_WIDTH);
  RANGE(what, intermediate, 1, MAX_WIDTH);
  RANGE(what, n_experts, 1, MAX_EXPERTS);
  RANGE(what, n_identity, 0, MAX_EXPERTS);
  RANGE(what, top_k, 1, MAX_TOP_K);
  if ((uint64_t)d->max_tokens * d->top_k > INT32_MAX)
    REFUSE("%s->max_tokens: %u x top_k %u exceeds 2^31 slots", what, d->max_tokens, d->top_k);
  ENUM(what, activation, MOI_ACT_RELU2);
  ENUM(what, gate_layout, MOI_GATE_NONE);
  ENUM(what, weight_on, MOI_WEIGHT_ON_ACTIVATION);
  ENUM(what, act_quant, MOI_ACT_QUANT_INT8_32);
  FLAGS(what, flags, MOI_EXPERTS_ACCUMULATE | MOI_EXPERTS_TABLES);
  FLAGS(what, plan_flags, ALL_PLAN_FLAGS);
  FINITE(what, act_alpha);
  FINITE(what, act_limit);
  FINITE(what, output_scale);
  if (d->act_limit < 0) REFUSE("%s->act_limit: %g, must be >= 0", what, (double)d->act_limit);
  if ((d->activation == MOI_ACT_RELU2) != (d->gate_layout == MOI_GATE_NONE))
    REFUSE("%s->gate_layout: MOI_GATE_NONE goes with MOI_ACT_RELU2 and only with it", what);
  DENSE(what, input_type, MOI_FORMAT_F32);
  DENSE(what, mid_type, d->input_type);
  DENSE(what, output_type, d->input_type);
  if (d->bias_type && !moi_dense_bytes(d->bias_type))
    REFUSE("%s->bias_type: %d, must be 0, f32, f16 or bf16", what, (int)d->bias_type);
  if (!d->down_format) d->down_format = d->format;
  if (!moi_format_find(d->format)) REFUSE("%s->format: %d is no weight format", what, (int)d->format);
  if (!moi_format_find(d->down_format)) REFUSE("%s->down_format: %d is no weight format", what, (int)d->down_format);
  uint32_t rows =
      d->gate_layout == MOI_GATE_CONCAT || d->gate_layout == MOI_GATE_INTERLEAVED ? 2 * d->intermediate : d->intermediate;
  moi_format_sizes sizes;
  moi_status status = moi_format_size(d->format, rows, d->hidden, &sizes);
  if (status) return moi_fail(status, fn, "%s->hidden, intermediate: gate/up: %s", what, moi_last_error());
  status = moi_format_size(d->down_format, d->hidden, d->intermediate, &sizes);
  if (status) return moi_fail(status, fn, "%s->hidden, intermediate: down: %s", what, moi_last_error());
  if (d->activation == MOI_ACT_SWIGLU_OAI) {
    if (d->act_alpha == 0) d->act_alpha = 1.702f;
    if (d->act_limit == 0) d->act_limit = 7;
  } else if (d->activation == MOI_ACT_SITU) {
    if (d->act_alpha == 0) d->act_alpha = 4;
    if (d->act_limit == 0) d->act_limit = 25;
  }
  if (d->output_scale == 0) d->output_scale = 1;
  return MOI_OK;
}

static moi_status check_gemm(const char *fn, moi_gemm_desc *d, const char *what) {
  RANGE(what, max_rows, 1, MAX_TOKENS);
  RANGE(what, n, 1, MAX_WIDTH);
  RANGE(what, k, 1, MAX_WIDTH);
  RANGE(what, n_experts, 1, MAX_EXPERTS);
  ENUM(what, act_quant, MOI_ACT_QUANT_INT8_32);
  FLAGS(what, flags, MOI_EXPERTS_ACCUMULATE | MOI_EXPERTS_TABLES);
  FLAGS(what, plan_flags, ALL_PLAN_FLAGS);
  DENSE(what, input_type, MOI_FORMAT_F32);
  DENSE(what, output_type, d->input_type);
  if (d->bias_type && !moi_dense_bytes(d->bias_type))
    REFUSE("%s->bias_type: %d, must be 0, f32, f16 or bf16", what, (int)d->bias_type);
  moi_format_sizes sizes;
  moi_status status = moi_format_size(d->format, d->n, d->k, &sizes);
  return status ? moi_fail(status, fn, "%s->format, n, k: %s", what, moi_last_error()) : MOI_OK;
}

moi_status moi_plan_say(moi_plan *plan, const char *format, ...) {
  char line[512];
  va_list list;
  va_start(list, format);
  int length = vsnprintf(line, sizeof line, format, list);
  va_end(list);
  if (length < 0) return moi_fail(MOI_INTERNAL, "moi_plan_say", "format: bad");
  size_t n = strlen(line);
  if (plan->text_used + n + 1 > plan->text_size) {
    size_t size = (plan->text_used + n + 1) * 2;
    char *text = moi_allocate(plan->context, size);
    if (!text) return moi_fail(MOI_OUT_OF_MEMORY, "moi_plan_say", "allocate: returned null for %zu bytes", size);
    if (plan->text_used) memcpy(text, plan->text, plan->text_used);
    moi_release(plan->context, plan->text, plan->text_size);
    plan->text = text;
    plan->text_size = size;
  }
  memcpy(plan->text + plan->text_used, line, n + 1);
  plan->text_used += n;
  return MOI_OK;
}

void moi_plan_use(moi_plan *plan, const char *name) {
  size_t used = strlen(plan->kernels), length = strlen(name);
  for (const char *at = plan->kernels; (at = strstr(at, name)); at += length)
    if ((at == plan->kernels || at[-1] == '+') && (at[length] == 0 || at[length] == '+')) return;
  if (used + length + 2 <= sizeof plan->kernels)
    snprintf(plan->kernels + used, sizeof plan->kernels - used, "%s%s", used ? "+" : "", name);
}

const char *moi_plan_kernel(const moi_plan *plan) { return plan ? plan->kernels : ""; }

size_t moi_plan_describe(const moi_plan *plan, char *text, size_t size) {
  size_t length = plan ? plan->text_used : 0;
  if (text && size) {
    size_t n = length < size - 1 ? length : size - 1;
    if (n) memcpy(text, plan->text, n);
    text[n] = 0;
  }
  return length;
}

size_t moi_plan_workspace(const moi_plan *plan, size_t *align) {
  if (align) *align = plan ? plan->workspace_align : 0;
  return plan ? plan->workspace : 0;
}

void moi_plan_destroy(moi_plan *plan) {
  if (!plan) return;
  const moi_context *context = plan->context;
  context->ops->unplan(plan);
  moi_release(context, plan->text, plan->text_size);
  moi_release(context, plan, sizeof *plan);
}

moi_status moi_plan_finish(const char *fn, const moi_plan *draft, moi_plan **out) {
  moi_context *context = draft->context;
  moi_plan *plan = moi_allocate(context, sizeof *plan);
  if (!plan) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *plan);
  *plan = *draft;
  moi_status status = context->ops->plan(fn, plan);
  /* what pointed into the caller's desc is gone after this call */
  plan->kernel = plan->route.kernel = plan->experts.kernel = plan->shared.kernel = plan->gemm.kernel = NULL;
  plan->attention.kernel = NULL;
  if (status) {
    moi_release(context, plan->text, plan->text_size);
    moi_release(context, plan, sizeof *plan);
    return status;
  }
  *out = plan;
  return MOI_OK;
}

moi_status moi_plan_begin(const char *fn, moi_context *context, moi_op op, moi_plan *draft, moi_plan **out) {
  if (!out) REFUSE("out: is null");
  *out = NULL;
  if (!context) REFUSE("context: is null");
  memset(draft, 0, sizeof *draft);
  draft->context = context;
  draft->op = op;
  return MOI_OK;
}

moi_status moi_route_plan(moi_context *context, const moi_route_desc *desc, moi_plan **out) {
  const char *fn = "moi_route_plan";
  moi_plan draft;
  moi_status status = moi_plan_begin(fn, context, MOI_OP_ROUTE, &draft, out);
  if (status) return status;
  TAKE(&draft.route, desc, check_route);
  draft.has_route = 1;
  draft.plan_flags = draft.route.plan_flags;
  draft.kernel = draft.route.kernel;
  return moi_plan_finish(fn, &draft, out);
}

moi_status moi_experts_plan(moi_context *context, const moi_experts_desc *desc, moi_plan **out) {
  const char *fn = "moi_experts_plan";
  moi_plan draft;
  moi_status status = moi_plan_begin(fn, context, MOI_OP_EXPERTS, &draft, out);
  if (status) return status;
  TAKE(&draft.experts, desc, check_experts);
  draft.has_experts = 1;
  draft.output_scale = draft.experts.output_scale;
  draft.plan_flags = draft.experts.plan_flags;
  draft.kernel = draft.experts.kernel;
  return moi_plan_finish(fn, &draft, out);
}

moi_status moi_gemm_plan(moi_context *context, const moi_gemm_desc *desc, moi_plan **out) {
  const char *fn = "moi_gemm_plan";
  moi_plan draft;
  moi_status status = moi_plan_begin(fn, context, MOI_OP_GEMM, &draft, out);
  if (status) return status;
  TAKE(&draft.gemm, desc, check_gemm);
  draft.plan_flags = draft.gemm.plan_flags;
  draft.kernel = draft.gemm.kernel;
  return moi_plan_finish(fn, &draft, out);
}

#define AGREE(a, b, member)                                                                                            \
  do {                                                                                                                 \
    if ((a).member != (b).member)                                                                                      \
      REFUSE("desc->" #a "->" #member ": %u, but desc->" #b " has %u", (a).member, (b).member);                        \
  } while (0)

moi_status moi_moe_plan(moi_context *context, const moi_moe_desc *desc, moi_plan **out) {
  const char *fn = "moi_moe_plan";
  moi_plan draft;
  moi_moe_desc moe, *d = &moe;
  moi_status status = moi_plan_begin(fn, context, MOI_OP_MOE, &draft, out);
  if (!status) status = MOI_STRUCT_IN(fn, d, desc);
  if (!status) status = moi_chain_none(fn, "desc", d->next);
  if (status) return status;
  if (!d->experts) REFUSE("desc->experts: is null");
  TAKE(&draft.experts, d->experts, check_experts);
  draft.has_experts = 1;
  const moi_experts_desc experts = draft.experts;
  if (d->route) {
    TAKE(&draft.route, d->route, check_route);
    draft.has_route = 1;
    const moi_route_desc route = draft.route;
    AGREE(route, experts, max_tokens);
    AGREE(route, experts, n_experts);
    AGREE(route, experts, n_identity);
    AGREE(route, experts, top_k);
  }
  if (d->shared) {
    TAKE(&draft.shared, d->shared, check_experts);
    draft.has_shared = 1;
    const moi_experts_desc shared = draft.shared;
    AGREE(shared, experts, max_tokens);
    AGREE(shared, experts, hidden);
    if (shared.n_experts != 1 || shared.top_k != 1 || shared.n_identity || shared.flags)
      REFUSE("desc->shared: n_experts and top_k must be 1, n_identity and flags 0");
    if (shared.weight_on != MOI_WEIGHT_ON_OUTPUT) REFUSE("desc->shared->weight_on: must be MOI_WEIGHT_ON_OUTPUT");
    if (shared.output_scale != 1) REFUSE("desc->shared->output_scale: must be 0 or 1 here");
  }
  ENUM("desc", shared_gate, MOI_SHARED_SIGMOID);
  if (d->shared_gate && !d->shared) REFUSE("desc->shared_gate: set without desc->shared");
  DENSE("desc", shared_gate_type, MOI_FORMAT_F32);
  FINITE("desc", output_scale);
  FLAGS("desc", plan_flags, ALL_PLAN_FLAGS);
  draft.shared_gate = d->shared_gate;
  draft.shared_gate_type = d->shared_gate_type;
  draft.output_scale = (d->output_scale == 0 ? 1 : d->output_scale) * experts.output_scale;
  draft.plan_flags = d->plan_flags | experts.plan_flags | draft.route.plan_flags | draft.shared.plan_flags;
  draft.kernel = d->kernel;
  return moi_plan_finish(fn, &draft, out);
}
