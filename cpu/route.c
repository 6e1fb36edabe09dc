/* Routing: the router's GEMM, then each token's selection, then the slots sorted by expert. */
#include <math.h>

#include "core/shared/round.h"
#include "cpu/cpu.h"

enum { TOKENS = 64, CLASSES = 64 }; /* a task of the router's GEMM */

typedef struct route_work {
  const moi_plan *plan;
  const moi_run *run;
  const moi_elementwise *ew;
  moi_select_fn select;
  const moi_cpu_kernel *router;
  uint32_t n_tokens, n_class, token_blocks, select_tokens;
  int as_given; /* the caller's logits are those that are selected by */
  /* memory */
  uint8_t *x;     /* [tokens] prepared rows */
  float *logits;  /* [tokens, n_class], the router's */
  float *norm;    /* [h] norm weight in fp32 */
  uint32_t *rows; /* [tokens] identity */
  float *lanes;   /* for each worker: a row of hidden, or scores, keys and a row of logits */
  size_t lane_floats;
  uint8_t *scratch; /* for each worker */
  size_t scratch_bytes;
  int32_t *counts, *offsets;
  int32_t *ids;
  float *weights;
} route_work;

static void carve(const moi_plan *plan, moi_carve *c, route_work *w) {
  const moi_route_desc *d = &plan->route;
  const moi_cpu_plan *state = plan->state;
  size_t workers = plan->context->desc.n_workers, t = d->max_tokens;
  size_t n_class = d->n_experts + d->n_identity, hp = MOI_FORM_KP(d->hidden);
  w->n_class = (uint32_t)n_class;
  w->lane_floats = moi_max_size(hp, MOI_FORM_KP(2 * n_class + MOI_SELECT_KEYS(n_class)));
  w->lanes = moi_take(c, workers * w->lane_floats, 4);
  w->counts = moi_take(c, n_class, 4);
  w->offsets = moi_take(c, n_class + 1, 4);
  if (!d->hidden) return;
  w->router = state->route.router.many;
  w->logits = moi_take(c, t * n_class, 4);
  w->x = moi_take(c, t, moi_form_bytes(w->router->form, d->hidden));
  w->rows = moi_take(c, t, 4);
  w->norm = moi_take(c, hp, 4);
  w->scratch_bytes = MOI_FORM_KP(w->router->scratch_rows * hp * 4);
  w->scratch = moi_take(c, workers, w->scratch_bytes);
}

void moi_cpu_route_count(const moi_plan *plan, moi_carve *c) {
  route_work w;
  carve(plan, c, &w);
}

static void prepare_row(void *arg, uint32_t lane, uint32_t t) {
  const route_work *w = arg;
  const moi_route_desc *d = &w->plan->route;
  float *row = w->lanes + lane * w->lane_floats;
  size_t element = d->input_type == MOI_FORMAT_F32 ? 4 : 2;
  const uint8_t *x = moi_view(w->run->route.hidden);
  w->ew->load(d->input_type, x + (size_t)t * w->run->route.hidden_stride * element, row, d->hidden);
  if (d->flags & MOI_ROUTE_INPUT_NORM) {
    double sum = 0;
    for (uint32_t i = 0; i < d->hidden; i++) sum += (double)row[i] * row[i];
    float scale = (float)(1.0 / sqrt(sum / d->hidden + d->norm_eps));
    for (uint32_t i = 0; i < d->hidden; i++) row[i] = row[i] * scale * w->norm[i] * d->norm_scale;
  }
  const moi_cpu_kernel *k = w->router;
  const moi_cpu *cpu = w->plan->context->state;
  moi_form_prepare(k->form, cpu->isa)(row, d->hidden, w->x + t * moi_form_bytes(k->form, d->hidden));
  w->rows[t] = t;
}

static void router_tile(void *arg, uint32_t lane, uint32_t i) {
  const route_work *w = arg;
  const moi_route_desc *d = &w->plan->route;
  uint32_t t0 = i % w->token_blocks * TOKENS, n0 = i / w->token_blocks * CLASSES;
  moi_matrix m = {.format = d->router_type,
                  .data = moi_view(w->run->route.router),
                  .global = 1.0f,
                  .n = w->n_class,
                  .k = d->hidden};
  moi_gemm_tile tile = {.w = &m,
                        .n0 = n0,
                        .n1 = moi_min_u32(n0 + CLASSES, w->n_class),
                        .m = moi_min_u32(TOKENS, w->n_tokens - t0),
                        .x = w->x,
                        .x_stride = moi_form_bytes(w->router->form, d->hidden),
                        .rows = w->rows + t0,
                        .c = w->logits + (size_t)t0 * w->n_class + n0,
                        .ldc = w->n_class,
                        .scratch = w->scratch + lane * w->scratch_bytes};
  ((moi_gemm_fn)w->router->fn)(&tile);
}

static void select_token(const route_work *w, uint32_t lane, uint32_t t) {
  const moi_route_desc *d = &w->plan->route;
  const moi_route_args *a = &w->run->route;
  uint32_t n = w->n_class, k = d->top_k;
  if (w->as_given && t + 1 < w->n_tokens) { /* the next token's: one token takes less time than they do */
    const float *next = (const float *)moi_view(a->logits) + (size_t)(t + 1) * a->hidden_stride;
    for (uint32_t i = 0; i < n; i += 16) __builtin_prefetch(next + i);
  }
  float *scores = w->lanes + lane * w->lane_floats;
  int32_t *keys = (int32_t *)(scores + n);
  float *l = d->hidden ? w->logits + (size_t)t * n : scores + n + MOI_SELECT_KEYS(n);
  const float *logits = l;
  if (!d->hidden) {
    const uint8_t *in = moi_view(a->logits);
    in += (size_t)t * a->hidden_stride * (d->input_type == MOI_FORMAT_F32 ? 4 : 2);
    if (w->as_given) logits = (const float *)(const void *)in;
    else w->ew->load(d->input_type, in, l, n);
  }
  if (d->flags & MOI_ROUTE_BIAS)
    for (uint32_t i = 0; i < n; i++) l[i] += moi_dense_load(d->router_type, moi_view(a->router_bias), i);
  if (d->logits_type != MOI_FORMAT_F32) {
    w->ew->store(d->logits_type, l, 1.0f, scores, n);
    w->ew->load(d->logits_type, scores, l, n);
  }
  if (d->logit_scale != 1.0f)
    for (uint32_t i = 0; i < n; i++) l[i] *= d->logit_scale;
  if (d->logit_softcap > 0)
    for (uint32_t i = 0; i < n; i++) l[i] = d->logit_softcap * tanhf(l[i] / d->logit_softcap);
  float *out = moi_view(a->logits_out);
  if (out) memcpy(out + (size_t)t * n, logits, n * sizeof *l);
  const uint8_t *alt = d->flags & MOI_ROUTE_SELECT_BIAS_ALT ? moi_view(a->alt_mask) : NULL;
  moi_select_in in = {.desc = d, .logits = logits, .scores = scores, .keys = keys};
  in.ids = w->ids + (size_t)t * k;
  in.weights = w->weights + (size_t)t * k;
  if (d->flags & MOI_ROUTE_SELECT_BIAS) in.select_bias = moi_view(alt && alt[t] ? a->select_bias_alt : a->select_bias);
  if (d->flags & MOI_ROUTE_EXPERT_SCALE) in.expert_scale = moi_view(a->expert_scale);
  if (d->flags & MOI_ROUTE_HASH) {
    uint32_t token = (uint32_t)((const int32_t *)moi_view(a->token_ids))[t];
    if (token >= d->vocab) {
      for (uint32_t j = 0; j < k; j++) in.ids[j] = -1, in.weights[j] = 0;
      return;
    }
    in.hash_row = (const int32_t *)moi_view(a->hash_table) + (size_t)token * k;
  }
  w->select(&in);
}

static void select_tokens(void *arg, uint32_t lane, uint32_t i) {
  const route_work *w = arg;
  for (uint32_t t = i * w->select_tokens; t < w->n_tokens && t < (i + 1) * w->select_tokens; t++)
    select_token(w, lane, t);
}

void moi_cpu_route(const moi_plan *plan, const moi_run *run, moi_carve *c, int32_t *ids, float *weights,
                   uint32_t n_tokens) {
  const moi_route_desc *d = &plan->route;
  const moi_cpu_plan *state = plan->state;
  const moi_cpu *cpu = plan->context->state;
  route_work w = {.plan = plan, .run = run, .ew = moi_elementwise_for(cpu->isa), .n_tokens = n_tokens};
  carve(plan, c, &w);
  w.select = (moi_select_fn)state->route.select->fn;
  w.ids = ids;
  w.weights = weights;
  w.as_given = !d->hidden && d->input_type == MOI_FORMAT_F32 && !(d->flags & MOI_ROUTE_BIAS) &&
               d->logits_type == MOI_FORMAT_F32 && d->logit_scale == 1.0f && !(d->logit_softcap > 0);
  if (d->hidden && n_tokens) {
    if (d->flags & MOI_ROUTE_INPUT_NORM)
      w.ew->load(d->router_type, moi_view(run->route.norm_weight), w.norm, d->hidden);
    w.token_blocks = (n_tokens + TOKENS - 1) / TOKENS;
    moi_pool_run(plan->context, n_tokens, prepare_row, &w);
    moi_pool_run(plan->context, w.token_blocks * ((w.n_class + CLASSES - 1) / CLASSES), router_tile, &w);
  }
  /* a token alone takes less time than handing it out */
  w.select_tokens = moi_min_u32(16, 1 + n_tokens / (4 * plan->context->desc.n_workers));
  moi_pool_run(plan->context, (n_tokens + w.select_tokens - 1) / w.select_tokens, select_tokens, &w);
  const moi_route_args *a = &run->route;
  if (!a->counts.ptr && !a->offsets.ptr && !a->permutation.ptr) return;
  moi_sort_slots(ids, n_tokens * d->top_k, w.n_class, a->counts.ptr ? moi_view(a->counts) : w.counts,
                 a->offsets.ptr ? moi_view(a->offsets) : w.offsets, moi_view(a->permutation));
  int32_t *permutation = moi_view(a->permutation);
  for (uint32_t i = n_tokens * d->top_k; permutation && i < a->n_tokens * d->top_k; i++) permutation[i] = -1;
}
