#include "bench/rig/operands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/rig/encode.h"
#include "bench/rig/random.h"
#include "core/format.h"
#include "core/shared/round.h"

enum { MAX_TOP_K = 64 };

/* ---- ids */

void moi_make_ids(int32_t *ids, uint32_t n_tokens, uint32_t top_k, uint32_t n_experts, uint32_t n_identity,
                  moi_traffic traffic, uint64_t seed) {
  uint32_t n = n_experts + n_identity;
  for (uint32_t t = 0; t < n_tokens; t++) {
    int32_t *row = ids + (size_t)t * top_k;
    uint64_t draw = (uint64_t)t << 20;
    for (uint32_t j = 0; j < top_k; j++) {
      uint32_t e = 0;
      for (int taken = 1; taken;) {
        e = moi_random_below(seed, draw++, n);
        if (traffic == MOI_TRAFFIC_ONE) e = (uint32_t)(moi_random_below(seed, 0, n) + j) % n;
        if (traffic == MOI_TRAFFIC_SKEWED && n_experts > 2 && moi_random_below(seed ^ 1, draw, 8) < 7)
          e = moi_random_below(seed ^ 2, draw, top_k + 1 < n_experts ? top_k + 1 : n_experts);
        if (traffic == MOI_TRAFFIC_SKEWED && n >= 2 * top_k + 2) e &= ~1u;
        taken = 0;
        for (uint32_t i = 0; i < j; i++) taken |= row[i] == (int32_t)e;
        if (top_k > n || traffic == MOI_TRAFFIC_ONE) break;
        if (traffic == MOI_TRAFFIC_SKEWED && taken && draw - ((uint64_t)t << 20) > 2000) break;
      }
      row[j] = (int32_t)e;
    }
    if (traffic == MOI_TRAFFIC_NOWHERE)
      for (uint32_t j = 0; j < top_k; j++) row[j] = -1;
    if (traffic == MOI_TRAFFIC_TWICE && top_k > 1) row[top_k - 1] = row[0];
    for (uint32_t j = 0; traffic == MOI_TRAFFIC_HOLES && j < top_k; j++) {
      uint32_t what = moi_random_below(seed ^ 3, (uint64_t)t * top_k + j, 8);
      if (what == 0) row[j] = -1;
      if (what == 1) row[j] = (int32_t)n;
      if (what == 2) row[j] = moi_random_below(seed, j, 2) ? INT32_MIN : INT32_MAX;
    }
  }
}

/* ---- weights */

static moi_buffer stream(moi_arena *arena, uint64_t each, uint32_t n_experts, uint32_t align, int tables,
                         const char *name) {
  if (!each) return (moi_buffer){0};
  if (!tables) return moi_arena_view(arena, (size_t)(each * n_experts), align, name);
  moi_buffer table = moi_arena_view(arena, (size_t)n_experts * 8, 8, "an address table");
  for (uint32_t e = 0; e < n_experts; e++)
    ((uint64_t *)table.ptr)[e] = (uint64_t)(uintptr_t)moi_arena_take(arena, (size_t)each, align, name);
  return table;
}

static uint8_t *expert_of(moi_buffer view, uint64_t each, uint32_t e, int tables) {
  if (!view.ptr) return NULL;
  return tables ? (uint8_t *)(uintptr_t)((uint64_t *)view.ptr)[e] : (uint8_t *)view.ptr + e * each;
}

moi_weights moi_make_weights(moi_arena *arena, const moi_weights_spec *spec, uint64_t seed) {
  moi_weights w = MOI_WEIGHTS_INIT;
  moi_format_sizes sizes;
  moi_weight_pool pool;
  const moi_format_row *row = moi_format_find(spec->format);
  moi_weight_pool_make(&pool, spec->format, spec->n, spec->k, seed);
  if (moi_format_size(spec->format, spec->n, spec->k, &sizes)) exit(3); /* the pool has just accepted them */
  uint32_t element = moi_element_bytes(spec->bias_type);
  uint64_t bias = spec->bias_type ? (uint64_t)spec->n * element : 0;
  uint32_t zero_align = row->zero_bits == 4 ? 4 : 1;
  w.data = stream(arena, sizes.data, spec->n_experts, moi_format_align(row), spec->tables, "weight data");
  w.scales = stream(arena, sizes.scales, spec->n_experts, row->scale_bytes ? row->scale_bytes : 1, spec->tables,
                    "weight scales");
  w.zeros = stream(arena, sizes.zeros, spec->n_experts, zero_align, spec->tables, "weight zeros");
  w.bias = stream(arena, bias, spec->n_experts, element, spec->tables, "bias");
  if (spec->format == MOI_FORMAT_NVFP4)
    w.global_scale = moi_arena_view(arena, (size_t)spec->n_experts * 4, 4, "global scales");
  for (uint32_t e = 0; e < spec->n_experts; e++) {
    moi_streams out = {expert_of(w.data, sizes.data, e, spec->tables),
                       expert_of(w.scales, sizes.scales, e, spec->tables),
                       expert_of(w.zeros, sizes.zeros, e, spec->tables)};
    moi_weight_pool_fill(&pool, out, seed * 65537 + e);
    if (bias) moi_random_dense(spec->bias_type, expert_of(w.bias, bias, e, spec->tables), spec->n, 0.5f, seed + 31 + e);
    if (w.global_scale.ptr)
      ((float *)w.global_scale.ptr)[e] = pool.global * (0.75f + 0.5f * moi_random_uniform(seed ^ 0x99, e));
  }
  moi_weight_pool_free(&pool);
  return w;
}

static int has_both(const moi_experts_desc *d) {
  return d->gate_layout == MOI_GATE_CONCAT || d->gate_layout == MOI_GATE_INTERLEAVED;
}

void moi_make_ffn_weights(moi_arena *arena, const moi_experts_desc *d, uint64_t seed, moi_ffn_weights *out) {
  moi_weights_spec spec = {.format = d->format,
                           .bias_type = d->bias_type,
                           .n = d->intermediate,
                           .k = d->hidden,
                           .n_experts = d->n_experts,
                           .tables = (d->flags & MOI_EXPERTS_TABLES) != 0};
  memset(out, 0, sizeof *out);
  if (d->gate_layout == MOI_GATE_SPLIT) out->gate = moi_make_weights(arena, &spec, seed * 3);
  if (has_both(d)) spec.n *= 2;
  out->up = moi_make_weights(arena, &spec, seed * 3 + 1);
  spec.format = moi_or(d->down_format, d->format);
  spec.n = d->hidden;
  spec.k = d->intermediate;
  out->down = moi_make_weights(arena, &spec, seed * 3 + 2);
}

uint64_t moi_ffn_weights_bytes(const moi_experts_desc *d) {
  moi_format_sizes up, down;
  uint32_t rows = d->gate_layout == MOI_GATE_NONE ? d->intermediate : 2 * d->intermediate;
  uint64_t bias = d->bias_type ? (uint64_t)(rows + d->hidden) * moi_element_bytes(d->bias_type) : 0;
  if (has_both(d) || d->gate_layout == MOI_GATE_NONE) {
    if (moi_format_size(d->format, rows, d->hidden, &up)) return 0;
  } else {
    if (moi_format_size(d->format, d->intermediate, d->hidden, &up)) return 0;
    up.data *= 2;
    up.scales *= 2;
    up.zeros *= 2;
  }
  if (moi_format_size(moi_or(d->down_format, d->format), d->hidden, d->intermediate, &down)) return 0;
  return (up.data + up.scales + up.zeros + down.data + down.scales + down.zeros + bias) * d->n_experts;
}

void moi_drop_expert(const moi_experts_desc *d, moi_ffn_weights *weights, uint32_t expert) {
  if (!(d->flags & MOI_EXPERTS_TABLES)) return;
  moi_weights *w[3] = {&weights->gate, &weights->up, &weights->down};
  for (int i = 0; i < 3; i++) {
    moi_buffer *views[4] = {&w[i]->data, &w[i]->scales, &w[i]->zeros, &w[i]->bias};
    for (int v = 0; v < 4; v++)
      if (views[v]->ptr) ((uint64_t *)views[v]->ptr)[expert] = 0;
  }
}

/* ---- experts */

/* rows of cols elements; what lies between cols and stride is NaN for inputs, so that a kernel that reads it is seen */
static moi_buffer dense_rows(moi_arena *arena, moi_format type, uint32_t rows, uint32_t cols, uint32_t stride,
                             const char *name) {
  size_t element = moi_element_bytes(type), count = rows ? (size_t)(rows - 1) * stride + cols : 0;
  moi_buffer b = moi_arena_view(arena, count * element, element, name);
  if (count) memset(b.ptr, 0xff, count * element);
  return b;
}

static moi_buffer activations(moi_arena *arena, moi_format type, uint32_t rows, uint32_t cols, uint32_t stride,
                              uint64_t seed, const char *name) {
  moi_buffer b = dense_rows(arena, type, rows, cols, stride, name);
  for (uint32_t r = 0; r < rows; r++)
    moi_random_activations(type, (uint8_t *)b.ptr + (size_t)r * stride * moi_element_bytes(type), cols,
                           seed + r * 7919u);
  return b;
}

moi_buffer moi_make_output(moi_arena *arena, moi_format type, uint32_t rows, uint32_t cols, uint32_t stride,
                           uint64_t seed) {
  moi_buffer b = dense_rows(arena, type, rows, cols, stride, "output");
  if (seed) {
    for (uint32_t r = 0; r < rows; r++)
      moi_random_dense(type, (uint8_t *)b.ptr + (size_t)r * stride * moi_element_bytes(type), cols, 1.0f, seed + r);
  } else {
    moi_poison(b);
  }
  return b;
}

void moi_make_experts(moi_arena *arena, const moi_experts_desc *d, uint32_t n_tokens, moi_traffic traffic,
                      uint32_t stride_extra, uint64_t seed, const moi_ffn_weights *weights, moi_experts_args *out) {
  moi_format input = moi_or(d->input_type, MOI_FORMAT_F32), output = moi_or(d->output_type, input);
  uint32_t stride = d->hidden + stride_extra;
  size_t slots = (size_t)n_tokens * d->top_k;
  *out = (moi_experts_args)MOI_EXPERTS_ARGS_INIT;
  out->n_tokens = n_tokens;
  out->input_stride = out->output_stride = stride_extra ? stride : 0;
  out->input = activations(arena, input, n_tokens, d->hidden, stride, seed * 5 + 1, "input");
  out->ids = moi_arena_view(arena, slots * 4, 4, "ids");
  out->weights = moi_arena_view(arena, slots * 4, 4, "routing weights");
  moi_make_ids(out->ids.ptr, n_tokens, d->top_k, d->n_experts, d->n_identity, traffic, seed * 5 + 2);
  for (size_t i = 0; i < slots; i++)
    ((float *)out->weights.ptr)[i] = (0.25f + moi_random_uniform(seed * 5 + 3, i)) / sqrtf((float)d->top_k);
  out->output = moi_make_output(arena, output, n_tokens, d->hidden, stride,
                                d->flags & MOI_EXPERTS_ACCUMULATE ? seed * 5 + 4 : 0);
  out->gate = d->gate_layout == MOI_GATE_SPLIT ? &weights->gate : NULL;
  out->up = &weights->up;
  out->down = &weights->down;
}

/* ---- route */

static float odd_logit(moi_logits_kind kind, uint64_t seed, uint64_t i) {
  uint32_t what = moi_random_below(seed ^ 0x51, i, 8);
  float x = 2.0f * moi_random_normal(seed, i);
  switch (kind) {
    case MOI_LOGITS_TIES: return (float)(int)moi_random_below(seed, i, 3) - 1.0f;
    case MOI_LOGITS_EQUAL: return 0.625f;
    case MOI_LOGITS_NAN: return what == 0 ? NAN : what == 1 ? -INFINITY : what == 2 && i % 5 == 0 ? INFINITY : x;
    case MOI_LOGITS_NOTHING: return what & 1 ? NAN : -INFINITY;
    case MOI_LOGITS_WIDE: return what == 0 ? x * 1e4f : x * 12.0f;
    default: return x;
  }
}

void moi_make_route_outputs(moi_arena *arena, const moi_route_desc *d, moi_route_args *a) {
  size_t n = d->n_experts + d->n_identity, slots = (size_t)a->n_tokens * d->top_k;
  a->ids = moi_arena_view(arena, slots * 4, 4, "ids");
  a->weights = moi_arena_view(arena, slots * 4, 4, "routing weights");
  a->counts = moi_arena_view(arena, n * 4, 4, "counts");
  a->offsets = moi_arena_view(arena, (n + 1) * 4, 4, "offsets");
  a->permutation = moi_arena_view(arena, slots * 4, 4, "permutation");
  a->logits_out = moi_arena_view(arena, a->n_tokens * n * 4, 4, "logits");
  moi_buffer outputs[6] = {a->ids, a->weights, a->counts, a->offsets, a->permutation, a->logits_out};
  for (int i = 0; i < 6; i++) moi_poison(outputs[i]);
}

static moi_buffer f32_vector(moi_arena *arena, size_t n, float offset, float scale, uint64_t seed, const char *name) {
  moi_buffer b = moi_arena_view(arena, n * 4, 4, name);
  for (size_t i = 0; i < n; i++) ((float *)b.ptr)[i] = offset + scale * moi_random_normal(seed, i);
  return b;
}

static moi_buffer dense_vector(moi_arena *arena, moi_format type, size_t n, float scale, uint64_t seed,
                               const char *name) {
  moi_buffer b = moi_arena_view(arena, n * moi_element_bytes(type), moi_element_bytes(type), name);
  moi_random_dense(type, b.ptr, n, scale, seed);
  return b;
}

static void make_router(moi_arena *arena, const moi_route_desc *d, moi_logits_kind kind, uint64_t seed,
                        moi_route_args *out) {
  moi_format type = moi_or(d->router_type, MOI_FORMAT_F32);
  uint32_t n = d->n_experts + d->n_identity, element = moi_element_bytes(type);
  out->router = moi_arena_view(arena, (size_t)n * d->hidden * element, element, "router");
  float sigma = 2.0f / sqrtf((float)d->hidden);
  if (d->flags & MOI_ROUTE_INPUT_NORM && d->norm_scale > 0) sigma /= d->norm_scale;
  for (uint32_t e = 0; e < n; e++) {
    uint8_t *row = (uint8_t *)out->router.ptr + (size_t)e * d->hidden * element;
    uint64_t like = kind == MOI_LOGITS_TIES ? e % 3 : kind == MOI_LOGITS_EQUAL ? 0 : e;
    moi_random_dense(type, row, d->hidden, kind == MOI_LOGITS_WIDE ? 12 * sigma : sigma, seed + 131 * like);
    float odd = odd_logit(kind, seed, e);
    if (!isfinite(odd)) moi_dense_store(type, row, moi_random_below(seed, e, d->hidden), NAN);
  }
}

void moi_make_route(moi_arena *arena, const moi_route_desc *d, uint32_t n_tokens, moi_logits_kind kind,
                    uint32_t stride_extra, uint64_t seed, moi_route_args *out) {
  moi_format input = moi_or(d->input_type, MOI_FORMAT_F32), type = moi_or(d->router_type, MOI_FORMAT_F32);
  uint32_t n = d->n_experts + d->n_identity, width = d->hidden ? d->hidden : n, stride = width + stride_extra;
  *out = (moi_route_args)MOI_ROUTE_ARGS_INIT;
  out->n_tokens = n_tokens;
  out->hidden_stride = stride_extra ? stride : 0;
  if (d->hidden) {
    out->hidden = activations(arena, input, n_tokens, width, stride, seed * 7 + 1, "hidden");
    make_router(arena, d, kind, seed * 7 + 2, out);
  } else {
    out->logits = dense_rows(arena, input, n_tokens, width, stride, "logits");
    for (uint32_t t = 0; t < n_tokens; t++)
      for (uint32_t i = 0; i < n; i++)
        moi_dense_store(input, out->logits.ptr, (size_t)t * stride + i,
                        odd_logit(kind, seed * 7 + 1, (uint64_t)t * n + i));
  }
  int ties = kind == MOI_LOGITS_TIES || kind == MOI_LOGITS_EQUAL;
  if (d->flags & MOI_ROUTE_BIAS)
    out->router_bias = dense_vector(arena, type, n, ties ? 0.0f : 0.5f, seed * 7 + 3, "bias");
  if (d->flags & MOI_ROUTE_SELECT_BIAS)
    out->select_bias = f32_vector(arena, n, 0.125f, ties ? 0.0f : 0.1f, seed * 7 + 4, "selection bias");
  if (d->flags & MOI_ROUTE_SELECT_BIAS_ALT) {
    out->select_bias_alt = f32_vector(arena, n, 0.0f, ties ? 0.0f : 0.3f, seed * 7 + 5, "the other selection bias");
    out->alt_mask = moi_arena_view(arena, n_tokens, 1, "alt mask");
    for (uint32_t t = 0; t < n_tokens; t++) ((uint8_t *)out->alt_mask.ptr)[t] = t % 3 == 1 ? 255 : 0;
  }
  if (d->flags & MOI_ROUTE_EXPERT_SCALE)
    out->expert_scale = f32_vector(arena, n, 1, 0.2f, seed * 7 + 6, "expert scales");
  if (d->flags & MOI_ROUTE_INPUT_NORM) out->norm_weight = dense_vector(arena, type, d->hidden, 1, seed * 7 + 7, "norm");
  if (d->flags & MOI_ROUTE_HASH) {
    out->hash_table = moi_arena_view(arena, (size_t)d->vocab * d->top_k * 4, 4, "hash table");
    out->token_ids = moi_arena_view(arena, (size_t)n_tokens * 4, 4, "token ids");
    moi_make_ids(out->hash_table.ptr, d->vocab, d->top_k, d->n_experts, d->n_identity, MOI_TRAFFIC_RANDOM,
                 seed * 7 + 8);
    for (uint32_t t = 0; t < n_tokens; t++)
      ((int32_t *)out->token_ids.ptr)[t] = t % 5 == 3 ? (t % 2 ? -1 : (int32_t)d->vocab)
                                                      : (int32_t)moi_random_below(seed * 7 + 9, t, d->vocab);
  }
  moi_make_route_outputs(arena, d, out);
}

/* ---- moe */

void moi_make_moe(moi_arena *arena, const moi_moe_desc *d, uint32_t n_tokens, uint32_t stride_extra, uint64_t seed,
                  moi_moe_operands *out) {
  memset(out, 0, sizeof *out);
  moi_make_ffn_weights(arena, d->experts, seed, &out->weights);
  moi_make_experts(arena, d->experts, n_tokens, MOI_TRAFFIC_RANDOM, stride_extra, seed, &out->weights, &out->experts);
  out->args = (moi_moe_args)MOI_MOE_ARGS_INIT;
  out->args.experts = &out->experts;
  if (d->route) {
    moi_make_route(arena, d->route, n_tokens, MOI_LOGITS_RANDOM, stride_extra, seed + 1, &out->route);
    /* models route on what they compute on, where the types allow it */
    if (d->route->hidden == d->experts->hidden &&
        moi_or(d->route->input_type, MOI_FORMAT_F32) == moi_or(d->experts->input_type, MOI_FORMAT_F32))
      out->route.hidden = out->experts.input;
    out->args.route = &out->route;
  }
  if (d->shared) {
    moi_make_ffn_weights(arena, d->shared, seed + 2, &out->shared_weights);
    out->shared = (moi_experts_args)MOI_EXPERTS_ARGS_INIT;
    out->shared.gate = d->shared->gate_layout == MOI_GATE_SPLIT ? &out->shared_weights.gate : NULL;
    out->shared.up = &out->shared_weights.up;
    out->shared.down = &out->shared_weights.down;
    out->args.shared = &out->shared;
  }
  if (d->shared_gate == MOI_SHARED_SIGMOID)
    out->args.shared_gate = dense_vector(arena, moi_or(d->shared_gate_type, MOI_FORMAT_F32), d->experts->hidden,
                                         1.0f / sqrtf((float)d->experts->hidden), seed + 3, "shared gate");
}
