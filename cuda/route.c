/* Routing: the router's product, each token's selection, and the slots sorted by class.
 *
 * Up to 8 tokens the logits come from the hidden states in one launch, of more from rows for the router and its product.
 * From logits on it is one launch:
 *
 *   up to 16 tokens     one block selects and sorts
 *   up to 8192 tokens   a block selects for a part of the tokens and counts as it goes; blocks meet; each sorts its part
 *   more                blocks fill the device and select; they meet; some count; they meet; these sort
 *
 * Blocks meet in a cooperative launch, whose barrier is the driver's: a workspace has no memory that is zero before the first
 * launch. Where a context has none, or a smaller part of the device than its attributes say (a green context), each step is a
 * launch of the same kernel. */
#include <float.h>

#include "cuda/grouped.h"

enum {
  WARP_CLASSES = 1024, /* that a warp selects from; a block where there are more */
  WARP_GROUPS = 64,
  WARPS = 8,         /* tokens of a block of select_256 and select_1024 */
  ANY_BLOCKS = 256,  /* of select_any where each needs keys in the workspace */
  LOGIT_TOKENS = 8,  /* of route_logits, two classes a block */
  LOGIT_CLASSES = 2,
  SORTED_TOKENS = 16,   /* that are selected and sorted in one launch: one multiprocessor works on all of them */
  COUNTED_TOKENS = 8192, /* that are counted by the selection, whose blocks are then no more than these */
  MAX_PARTS = 128,
  MAX_COUNTS = 32768 /* of all parts, which each block of the sort reads */
};
enum { THREADS = 256 };

typedef struct memory {
  float *logits, *rows; /* if hidden > 0 */
  void *room;           /* of the router's product */
  uint32_t *keys;
  uint32_t *counts, *offsets, *histograms;
} memory;

static uint32_t classes_of(const moi_route_desc *d) { return d->n_experts + d->n_identity; }
static int by_warp(const moi_route_desc *d) { return classes_of(d) <= WARP_CLASSES && d->n_group <= WARP_GROUPS; }

/* Parts of the tokens that the selection counts, at least one. Grows with the tokens. */
static uint32_t parts_of(const moi_route_desc *d, uint32_t n_tokens) {
  return moi_cu_min(moi_cu_ceil_div(n_tokens, WARPS), moi_cu_min(MAX_PARTS, MAX_COUNTS / classes_of(d)));
}
uint32_t moi_cu_route_parts(const moi_plan *plan) {
  const moi_route_desc *d = &plan->route;
  return by_warp(d) ? parts_of(d, moi_cu_min(d->max_tokens, COUNTED_TOKENS)) : 0;
}

static memory carve_memory(const moi_plan *plan, moi_carve *c) {
  const moi_route_desc *d = &plan->route;
  size_t t = d->max_tokens, n_class = classes_of(d);
  memory m = {0};
  if (d->hidden) {
    m.logits = moi_take(c, t * n_class, 4);
    m.rows = moi_take(c, t, (size_t)moi_cu_kp(d->hidden) * 4);
    m.room = moi_cu_gemm_room(c, plan, &((const moi_cu_plan *)plan->state)->route.router);
  }
  if (n_class > MOI_CU_SELECT_HELD) m.keys = moi_take(c, moi_cu_min(d->max_tokens, ANY_BLOCKS), n_class * 4);
  if (plan->has_experts) return m; /* which have the others */
  m.counts = moi_take(c, n_class, 4);
  m.offsets = moi_take(c, n_class + 1, 4);
  m.histograms = moi_cu_sort_carve(c, (uint64_t)t * d->top_k, (uint32_t)n_class, moi_cu_route_parts(plan));
  return m;
}

void moi_cu_route_count(const moi_plan *plan, moi_carve *carve) { carve_memory(plan, carve); }

moi_status moi_cu_route_plan(const char *fn, moi_plan *plan, const char *forced, int *found) {
  const moi_route_desc *d = &plan->route;
  moi_cu_route_state *state = &((moi_cu_plan *)plan->state)->route;
  moi_cu_pick pick;
  moi_status status = moi_cu_choose(fn, plan, MOI_OP_ROUTE, "selection", MOI_FORMAT_NONE, forced, found, &pick);
  if (status) return status;
  state->select = pick.many;
  if (d->hidden) {
    status = moi_cu_gemm_choose(fn, plan, "router", d->router_type, 0, forced, found, &state->router);
    if (!status) status = moi_cu_function_get(fn, plan->context, "route", "route_prepare", &state->prepare);
    if (!status) status = moi_cu_function_get(fn, plan->context, "route", "route_logits", &state->logits);
  }
  const char *name = !by_warp(d) ? "select_any" : classes_of(d) <= 256 ? "select_256" : "select_1024";
  return status ? status : moi_cu_steps_get(fn, plan->context, state->select->image, name, &state->steps);
}

/* ---- run */

/* route_logits sums up in an order of its own: not where a token's bits must be those that a forced or batch-invariant row
 * gives it among many. */
static int few_logits(const moi_cu_gemm_state *router, uint32_t n_tokens) {
  return n_tokens <= LOGIT_TOKENS && router->pick.few != router->pick.many;
}

static void run_product(const moi_plan *plan, const moi_run *run, moi_cu_run *r, const memory *m) {
  const moi_route_desc *d = &plan->route;
  const moi_route_args *in = &run->route;
  const moi_cu_route_state *state = &((const moi_cu_plan *)plan->state)->route;
  moi_cu_route_prepare_args a = {.input = moi_view(in->hidden),
                                 .norm_weight = d->flags & MOI_ROUTE_INPUT_NORM ? moi_view(in->norm_weight) : NULL,
                                 .rows = m->rows,
                                 .router = moi_view(in->router),
                                 .logits = m->logits,
                                 .n_tokens_device = moi_view(in->n_tokens_device),
                                 .n_tokens = run->n_tokens,
                                 .k = d->hidden,
                                 .ldx = moi_cu_kp(d->hidden),
                                 .stride = in->hidden_stride,
                                 .input_type = d->input_type,
                                 .router_type = d->router_type,
                                 .n_class = classes_of(d),
                                 .eps = d->norm_eps,
                                 .scale = d->norm_scale};
  if (few_logits(&state->router, run->n_tokens)) {
    moi_cu_launch(r, state->logits, &a, moi_cu_ceil_div(classes_of(d), LOGIT_CLASSES), 1, THREADS);
    return;
  }
  moi_cu_launch(r, state->prepare, &a, moi_cu_fill(r, run->n_tokens), 1, THREADS);
  moi_cu_product product = {.x = m->rows,
                            .w = moi_view(in->router),
                            .y = m->logits,
                            .n_rows_device = a.n_tokens_device,
                            .n_rows = run->n_tokens,
                            .n = classes_of(d),
                            .k = d->hidden,
                            .room = m->room};
  moi_cu_product_run(r, &state->router, &product);
}

/* Softmax over all classes whose weights are divided by their sum is softmax over the chosen ones, which needs no exp
 * of the others. Their sum is at least 1 / n_class where they are the largest: a smaller renorm_eps leaves no trace. */
static int chosen_alone(const moi_route_desc *d) {
  int scored = d->flags & MOI_ROUTE_SELECT_BIAS || (d->n_group > 1 && d->group_score == MOI_GROUP_TOP2_SUM);
  if (d->score != MOI_SCORE_SOFTMAX || scored || d->flags & MOI_ROUTE_HASH) return 0;
  float eps = d->renorm_eps * (float)classes_of(d);
  return (d->renorm == MOI_RENORM_SUM && eps < FLT_EPSILON / 8) || (d->renorm == MOI_RENORM_MAX && eps <= 0.5f);
}

static moi_cu_select_args select_args(const moi_plan *plan, const moi_run *run, const memory *m, int32_t *ids,
                                      float *weights) {
  const moi_route_desc *d = &plan->route;
  const moi_route_args *in = &run->route;
  int alone = chosen_alone(d);
  moi_cu_select_args a = {.input = d->hidden ? m->logits : moi_view(in->logits),
                          .n_tokens_device = moi_view(in->n_tokens_device),
                          .ids = ids,
                          .weights = weights,
                          .logits_out = moi_view(in->logits_out),
                          .keys = m->keys,
                          .n_tokens = run->n_tokens,
                          .top_k = d->top_k,
                          .n_class = classes_of(d),
                          .stride = d->hidden ? classes_of(d) : in->hidden_stride,
                          .input_type = d->hidden ? MOI_FORMAT_F32 : (uint32_t)d->input_type,
                          .bias_type = d->router_type,
                          .logits_type = d->logits_type,
                          .weight_type = d->weight_type,
                          .score = (uint32_t)(alone ? MOI_SCORE_TOPK_SOFTMAX : d->score),
                          .renorm = (uint32_t)(alone ? MOI_RENORM_NONE : d->renorm),
                          .group_score = (uint32_t)d->group_score,
                          .n_group = d->n_group,
                          .topk_group = d->topk_group,
                          .vocab = d->vocab,
                          .renorm_eps = d->renorm_eps,
                          .scale = d->scale,
                          .logit_scale = d->logit_scale,
                          .logit_softcap = d->logit_softcap,
                          .jitter = d->jitter};
  if (d->flags & MOI_ROUTE_BIAS) a.router_bias = moi_view(in->router_bias);
  if (d->flags & MOI_ROUTE_SELECT_BIAS) a.select_bias = moi_view(in->select_bias);
  if (d->flags & MOI_ROUTE_SELECT_BIAS_ALT) {
    a.select_bias_alt = moi_view(in->select_bias_alt);
    a.alt_mask = moi_view(in->alt_mask);
  }
  if (d->flags & MOI_ROUTE_EXPERT_SCALE) a.expert_scale = moi_view(in->expert_scale);
  if (d->flags & MOI_ROUTE_HASH) {
    a.hash_table = moi_view(in->hash_table);
    a.token_ids = moi_view(in->token_ids);
  }
  return a;
}

/* What is sorted, and where to: the engine's arrays where there are any. */
static moi_cu_sort_prepare_args sort_of(const moi_plan *plan, const moi_run *run, const memory *m, const int32_t *ids,
                                        const moi_cu_sort_prepare_args *next) {
  const moi_route_desc *d = &plan->route;
  const moi_route_args *in = &run->route;
  moi_cu_sort_prepare_args a = {.sort = {.ids = ids,
                                         .n_tokens_device = moi_view(in->n_tokens_device),
                                         .counts = m->counts,
                                         .offsets = m->offsets,
                                         .histograms = m->histograms,
                                         .n_tokens = run->n_tokens,
                                         .top_k = d->top_k,
                                         .n_class = classes_of(d)}};
  if (next) a = *next;
  if (in->counts.ptr) a.sort.counts = moi_view(in->counts);
  if (in->offsets.ptr) a.sort.offsets = moi_view(in->offsets);
  if (in->permutation.ptr) a.sort.permutation = moi_view(in->permutation);
  return a;
}

void moi_cu_route_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *carve, int32_t *ids,
                      float *weights, const moi_cu_sort_prepare_args *next) {
  const moi_route_desc *d = &plan->route;
  const moi_route_args *in = &run->route;
  const moi_cu_route_state *route = &((const moi_cu_plan *)plan->state)->route;
  memory m = carve_memory(plan, carve);
  uint32_t t = run->n_tokens;
  if (d->hidden && t) run_product(plan, run, r, &m);
  moi_cu_sort_prepare_args sort = sort_of(plan, run, &m, ids, next);
  moi_cu_select_sort_args a = {.select = select_args(plan, run, &m, ids, weights), .sort = sort.sort, .rows = sort.rows};
  uint32_t *selecting = &a.select.n_blocks, *sorting = &a.sort.n_blocks, work = by_warp(d) ? moi_cu_ceil_div(t, WARPS) : t;
  a.sort.steps = MOI_CU_STEP_SELECT;
  *selecting = moi_cu_fill(r, m.keys ? moi_cu_min(work, ANY_BLOCKS) : work);
  *sorting = 0;
  if (next || in->counts.ptr || in->offsets.ptr || in->permutation.ptr) {
    a.sort.steps |= MOI_CU_STEP_SORT;
    if (by_warp(d) && t <= COUNTED_TOKENS) {
      *selecting = *sorting = t <= SORTED_TOKENS ? 1 : moi_cu_steps_blocks(&route->steps, parts_of(d, t));
      if (*sorting > 1) a.select.histograms = a.sort.histograms;
    } else {
      *selecting = moi_cu_steps_blocks(&route->steps, *selecting);
      *sorting = moi_cu_steps_blocks(&route->steps, moi_cu_sort_blocks((uint64_t)t * d->top_k, classes_of(d)));
      if (*sorting > 1) a.sort.steps |= MOI_CU_STEP_COUNT;
    }
  }
  moi_cu_steps_run(r, &route->steps, &a, &a.sort, &a.rows, *selecting);
}
