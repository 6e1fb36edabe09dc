/* Routing: rows for the router, its product, each token's selection, then the slots sorted by class. */
#include "core/shared/round.h"
#include "vulkan/vulkan.h"

/* Classes whose keys fit shared memory (those of more lie in the workspace), and what a selection is one subgroup for. */
enum { SHARED_CLASSES = 1024, MAX_GROUPS = 1024, FEW_GROUPS = 64 };

/* Push constants of route_prepare.comp. */
typedef struct prepare_push {
  uint64_t n_tokens_device, x, norm_weight, rows;
  uint32_t n_tokens, hidden, kp, stride;
  float eps, scale;
} prepare_push;

/* Push constants of route_select.comp. They fill the room there is, so that a selection needs no memory for arguments:
 * operands that exclude each other share a place. */
typedef struct select_push {
  uint64_t n_tokens_device, input, router_bias;
  uint64_t select_bias;     /* HASH: hash_table */
  uint64_t select_bias_alt; /* HASH: token_ids */
  uint64_t alt_mask, expert_scale, ids, weights, logits_out, scratch;
  uint32_t top_k, n_class;
  uint32_t groups; /* n_group | topk_group << 16 */
  uint32_t n_tokens, stride;
  uint32_t vocab; /* SPARSEMIXER: bits of 2 * jitter */
  float renorm_eps, scale, logit_scale, logit_softcap;
} select_push;
_Static_assert(sizeof(select_push) == MOI_VK_PUSH_BYTES, "the layout of route_select.comp's push constants");

/* Where a run's memory lies in the workspace. */
typedef struct route_memory {
  size_t logits, rows, product; /* if hidden > 0 */
  size_t scratch;
  size_t counts, offsets, permutation, sort;
} route_memory;

static uint32_t classes_of(const moi_route_desc *d) { return d->n_experts + d->n_identity; }

static route_memory carve_memory(const moi_plan *plan, moi_carve *c) {
  const moi_route_desc *d = &plan->route;
  size_t t = d->max_tokens, n_class = classes_of(d);
  route_memory m = {0};
  if (d->hidden) {
    m.logits = moi_take_at(c, t * n_class, 4);
    m.rows = moi_take_at(c, t, (size_t)moi_vk_kp(d->hidden) * 4);
    m.product = moi_vk_product_count(c, d->max_tokens);
  }
  if (n_class > SHARED_CLASSES) m.scratch = moi_take_at(c, t * 2, n_class * 4);
  m.counts = moi_take_at(c, n_class, 4);
  m.offsets = moi_take_at(c, n_class + 1, 4);
  m.permutation = moi_take_at(c, t * d->top_k, 4);
  m.sort = moi_vk_sort_count(c, (uint32_t)n_class);
  return m;
}

void moi_vk_route_count(const moi_plan *plan, moi_carve *carve) { carve_memory(plan, carve); }

/* ---- plan */

/* Softmax over all classes whose weights are divided by their sum is softmax over the chosen ones, which needs no exp
 * of the others. Their sum is at least 1 / n_class where they are the largest: a smaller renorm_eps leaves no trace. */
static int chosen_alone(const moi_route_desc *d) {
  int scored = d->flags & MOI_ROUTE_SELECT_BIAS || (d->n_group > 1 && d->group_score == MOI_GROUP_TOP2_SUM);
  if (d->score != MOI_SCORE_SOFTMAX || scored || d->flags & MOI_ROUTE_HASH) return 0;
  float eps = d->renorm_eps * (float)classes_of(d);
  return (d->renorm == MOI_RENORM_SUM && eps < 0x1p-26f) || (d->renorm == MOI_RENORM_MAX && eps <= 0.5f);
}

/* What route_select.comp is compiled for; what a plan does not use is 0, so that plans share pipelines. */
static uint32_t rules_of(const moi_route_desc *d) {
  int alone = chosen_alone(d);
  uint32_t score = (uint32_t)(alone ? MOI_SCORE_TOPK_SOFTMAX : d->score);
  uint32_t renorm = (uint32_t)(alone ? MOI_RENORM_NONE : d->renorm);
  uint32_t group_score = d->n_group > 1 ? (uint32_t)d->group_score : 0;
  uint32_t flags = d->flags & ~MOI_ROUTE_INPUT_NORM;
  uint32_t input_type = d->hidden ? MOI_FORMAT_F32 : (uint32_t)d->input_type;
  uint32_t router_type = d->flags & MOI_ROUTE_BIAS ? (uint32_t)d->router_type : 0;
  return score | renorm << 3 | group_score << 5 | flags << 6 | input_type << 12 | router_type << 14 |
         (uint32_t)d->logits_type << 16 | (uint32_t)d->weight_type << 18 | (uint32_t)(d->logit_softcap > 0) << 20;
}

/* Invocations of a selection: one subgroup where that is enough. */
static uint32_t select_size(const moi_vk_traits *traits, const moi_route_desc *d) {
  int few = classes_of(d) <= SHARED_CLASSES && d->n_group <= FEW_GROUPS;
  return few ? traits->subgroup : 128;
}

moi_status moi_vk_route_plan(const char *function, moi_plan *plan, const char *forced, int *found) {
  const moi_route_desc *d = &plan->route;
  const moi_vk_traits *traits = &((const moi_vulkan *)plan->context->state)->traits;
  moi_vk_route_state *state = &((moi_vk_plan *)plan->state)->route;
  uint32_t n_class = classes_of(d);
  moi_vk_pick pick;
  moi_status status = moi_vk_choose(function, plan, MOI_OP_ROUTE, "selection", MOI_FORMAT_NONE, forced, found, &pick);
  state->select = pick.many;
  if (!status && d->hidden) {
    uint32_t prepare[] = {traits->is_cpu && d->hidden <= 1u << 16 ? traits->subgroup : 128, d->input_type,
                          d->flags & MOI_ROUTE_INPUT_NORM ? (uint32_t)d->router_type : 0};
    status = moi_vk_gemm_choose(function, plan, "router", d->router_type, 0, MOI_ACT_QUANT_NONE, forced, found, &state->router);
    if (!status) status = moi_vk_pipeline_want(function, plan, "route_prepare", prepare, 3, &state->prepare);
  }
  /* Less shared memory, more tokens at once; a software device has no such bound. */
  uint32_t size = select_size(traits, d);
  uint32_t constants[] = {size, SHARED_CLASSES, d->n_group > 1 ? MAX_GROUPS : 1, rules_of(d),
                          traits->is_cpu && size == traits->subgroup};
  if (n_class > SHARED_CLASSES) constants[1] = 1;
  else if (!traits->is_cpu && n_class <= SHARED_CLASSES / 2) constants[1] = n_class <= 256 ? 256 : 512;
  if (!traits->is_cpu && d->n_group > 1 && d->n_group <= FEW_GROUPS) constants[2] = FEW_GROUPS;
  if (!status)
    status = moi_vk_pipeline_want(function, plan, state->select->shader, constants, 5, &state->select_pipeline);
  return status ? status : moi_vk_sort_plan(function, plan, &state->sort);
}

/* ---- run */

/* One workgroup for each token. */
static void dispatch_tokens(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size,
                            uint32_t n_tokens) {
  uint32_t x = n_tokens < r->v->traits.max_groups[0] ? n_tokens : r->v->traits.max_groups[0];
  moi_vk_dispatch(r, pipeline, push, size, x, x ? (n_tokens + x - 1) / x : 0, 1);
}

static void record_product(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, const route_memory *m) {
  const moi_route_desc *d = &plan->route;
  const moi_route_args *a = &run->route;
  const moi_vk_plan *state = plan->state;
  prepare_push p = {.n_tokens_device = moi_vk_address(r, a->n_tokens_device),
                    .x = moi_vk_address(r, a->hidden),
                    .rows = r->workspace_address + m->rows,
                    .n_tokens = run->n_tokens,
                    .hidden = d->hidden,
                    .kp = moi_vk_kp(d->hidden),
                    .stride = a->hidden_stride,
                    .eps = d->norm_eps,
                    .scale = d->norm_scale};
  if (d->flags & MOI_ROUTE_INPUT_NORM) p.norm_weight = moi_vk_address(r, a->norm_weight);
  dispatch_tokens(r, state->route.prepare, &p, sizeof p, run->n_tokens);
  moi_vk_product product = {.x = p.rows,
                            .w = moi_vk_address(r, a->router),
                            .y = r->workspace_address + m->logits,
                            .n_rows_device = p.n_tokens_device,
                            .n_rows = run->n_tokens,
                            .n = classes_of(d),
                            .k = d->hidden};
  moi_vk_product_record(r, &state->route.router, m->product, d->max_tokens, &product);
  moi_vk_barrier(r);
}

static void record_select(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, const route_memory *m,
                          uint64_t ids, uint64_t weights) {
  const moi_route_desc *d = &plan->route;
  const moi_route_args *a = &run->route;
  const moi_vk_plan *state = plan->state;
  select_push p = {.n_tokens_device = moi_vk_address(r, a->n_tokens_device),
                   .input = d->hidden ? r->workspace_address + m->logits : moi_vk_address(r, a->logits),
                   .ids = ids,
                   .weights = weights,
                   .logits_out = moi_vk_address(r, a->logits_out),
                   .scratch = r->workspace_address + m->scratch,
                   .top_k = d->top_k,
                   .n_class = classes_of(d),
                   .groups = d->n_group | d->topk_group << 16,
                   .n_tokens = run->n_tokens,
                   .stride = d->hidden ? classes_of(d) : a->hidden_stride,
                   .vocab = d->vocab,
                   .renorm_eps = d->renorm_eps,
                   .scale = d->scale,
                   .logit_scale = d->logit_scale,
                   .logit_softcap = d->logit_softcap};
  if (d->flags & MOI_ROUTE_BIAS) p.router_bias = moi_vk_address(r, a->router_bias);
  if (d->flags & MOI_ROUTE_SELECT_BIAS) p.select_bias = moi_vk_address(r, a->select_bias);
  if (d->flags & MOI_ROUTE_SELECT_BIAS_ALT) {
    p.select_bias_alt = moi_vk_address(r, a->select_bias_alt);
    p.alt_mask = moi_vk_address(r, a->alt_mask);
  }
  if (d->flags & MOI_ROUTE_EXPERT_SCALE) p.expert_scale = moi_vk_address(r, a->expert_scale);
  if (d->flags & MOI_ROUTE_HASH) {
    p.select_bias = moi_vk_address(r, a->hash_table);
    p.select_bias_alt = moi_vk_address(r, a->token_ids);
  }
  if (d->score == MOI_SCORE_SPARSEMIXER) p.vocab = moi_f32_bits(2 * d->jitter);
  dispatch_tokens(r, state->route.select_pipeline, &p, sizeof p, run->n_tokens);
}

void moi_vk_route_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *carve,
                         uint64_t ids, uint64_t weights) {
  const moi_route_desc *d = &plan->route;
  const moi_route_args *a = &run->route;
  const moi_vk_plan *state = plan->state;
  route_memory m = carve_memory(plan, carve);
  if (d->hidden && run->n_tokens) record_product(plan, run, r, &m);
  record_select(plan, run, r, &m, ids, weights);
  uint64_t counts = moi_vk_address(r, a->counts), offsets = moi_vk_address(r, a->offsets);
  uint64_t permutation = moi_vk_address(r, a->permutation);
  if (!counts && !offsets && !permutation) return;
  moi_vk_sort sort = {.ids = ids,
                      .n_tokens_device = moi_vk_address(r, a->n_tokens_device),
                      .counts = counts ? counts : r->workspace_address + m.counts,
                      .offsets = offsets ? offsets : r->workspace_address + m.offsets,
                      .permutation = permutation ? permutation : r->workspace_address + m.permutation,
                      .n_tokens = run->n_tokens,
                      .top_k = d->top_k,
                      .n_class = classes_of(d)};
  moi_vk_sort_record(r, state->route.sort, m.sort, &sort);
}
