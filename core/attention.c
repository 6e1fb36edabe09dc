/* Attention: the rules of its desc, its cache and its views, checked once for all backends. */
#include <string.h>

#include "core/check.h"

#define MAX_KV (1u << 28)
#define MAX_HEADS 1024u
#define MAX_HEAD_DIM 1024u
#define MAX_SEQS (1u << 20)
#define MAX_PARTS 4096u
#define MAX_STRIDE ((uint64_t)1 << 40)

static moi_status check_kv_format(const char *fn, const char *member, moi_format format, uint32_t dim) {
  switch (format) {
    case MOI_FORMAT_F32:
    case MOI_FORMAT_F16:
    case MOI_FORMAT_BF16:
    case MOI_FORMAT_FP8: return MOI_OK;
    case MOI_FORMAT_Q8_0:
      if (dim % 32) REFUSE("desc->%s: q8_0 goes with heads of a multiple of 32, not %u", member, dim);
      return MOI_OK;
    default: break;
  }
  const char *name = moi_format_name(format);
  if (!name) REFUSE("desc->%s: %d is no format", member, (int)format);
  return moi_fail(MOI_UNSUPPORTED, fn, "desc->%s: %s; a KV cache is f32, f16, bf16, fp8 or q8_0", member, name);
}

static moi_status check_attention(const char *fn, moi_attention_desc *d, const char *what) {
  RANGE(what, max_rows, 1, MAX_TOKENS);
  RANGE(what, max_seqs, 1, MAX_SEQS);
  RANGE(what, max_kv, 1, MAX_KV);
  RANGE(what, n_kv_heads, 1, MAX_HEADS);
  RANGE(what, n_heads, 1, MAX_HEADS);
  if (d->n_heads % d->n_kv_heads)
    REFUSE("%s->n_heads: %u is no multiple of n_kv_heads = %u", what, d->n_heads, d->n_kv_heads);
  RANGE(what, head_dim, 1, MAX_HEAD_DIM);
  if (!d->v_head_dim) d->v_head_dim = d->head_dim;
  RANGE(what, v_head_dim, 1, MAX_HEAD_DIM);
  FLAGS(what, flags, MOI_ATTENTION_SINKS | MOI_ATTENTION_V_IN_K);
  FLAGS(what, plan_flags, ALL_PLAN_FLAGS);
  ENUM(what, mask, MOI_MASK_NONE);
  FINITE(what, scale);
  FINITE(what, softcap);
  FINITE(what, temperature);
  if (d->softcap < 0) REFUSE("%s->softcap: %g, must be >= 0", what, (double)d->softcap);
  if (d->mask == MOI_MASK_NONE && d->window) REFUSE("%s->window: %u, but mask is MOI_MASK_NONE", what, d->window);
  if (d->temperature != 0 && !d->temperature_floor) REFUSE("%s->temperature_floor: 0 with a temperature", what);
  RANGE(what, page_size, 0, MAX_KV);
  if (!d->k_format) d->k_format = MOI_FORMAT_F32;
  if (!d->v_format) d->v_format = d->k_format;
  TRY(check_kv_format(fn, "k_format", d->k_format, d->head_dim));
  if (d->flags & MOI_ATTENTION_V_IN_K) {
    if (d->v_head_dim > d->head_dim)
      REFUSE("%s->v_head_dim: %u, but V_IN_K has only head_dim = %u", what, d->v_head_dim, d->head_dim);
    if (d->v_format != d->k_format) REFUSE("%s->v_format: differs from k_format, but V_IN_K", what);
  } else {
    TRY(check_kv_format(fn, "v_format", d->v_format, d->v_head_dim));
  }
  DENSE(what, input_type, MOI_FORMAT_F32);
  DENSE(what, output_type, d->input_type);
  if (d->scale == 0) d->scale = 1 / sqrtf((float)d->head_dim);
  return MOI_OK;
}

moi_status moi_attention_plan(moi_context *context, const moi_attention_desc *desc, moi_plan **out) {
  const char *fn = "moi_attention_plan";
  moi_plan draft;
  moi_status status = moi_plan_begin(fn, context, MOI_OP_ATTENTION, &draft, out);
  if (status) return status;
  TAKE(&draft.attention, desc, check_attention);
  draft.plan_flags = draft.attention.plan_flags;
  draft.kernel = draft.attention.kernel;
  return moi_plan_finish(fn, &draft, out);
}

/* ---- runs */

static moi_status begin(const char *fn, const moi_plan *plan, moi_attention_task task, moi_queue queue, moi_run *run) {
  if (!plan) REFUSE("plan: is null");
  if (plan->op != MOI_OP_ATTENTION) REFUSE("plan: is of another op family");
  memset(run, 0, sizeof *run);
  run->queue = queue;
  run->attention_task = task;
  return MOI_OK;
}

/* One of the cache's two buffers: strides resolved, the whole of it inside its view. */
static moi_status check_rows(const char *fn, moi_memory memory, const char *what, const moi_attention_desc *d, uint32_t capacity,
                             moi_buffer view, moi_format format, uint32_t dim, uint64_t *token, uint64_t *head,
                             uint64_t *page, uint64_t *bytes) {
  moi_format_sizes row;
  TRY(moi_format_size(format, 1, dim, &row));
  uint32_t align = moi_format_align(moi_format_find(format));
  if (!*head) *head = row.data;
  if (!*token) *token = *head * d->n_kv_heads;
  if (!*page) *page = *token * (d->page_size ? d->page_size : 1);
  const struct {
    const char *name;
    uint64_t stride;
    int used;
  } strides[] = {{"token", *token, capacity > 1 || d->page_size > 1},
                 {"head", *head, d->n_kv_heads > 1},
                 {"page", *page, d->page_size && capacity > 1}};
  for (int i = 0; i < 3; i++) {
    uint64_t stride = strides[i].stride;
    if (stride >= MAX_STRIDE) REFUSE("%s_%s_stride: is out of range", what, strides[i].name);
    if (stride % align) REFUSE("%s_%s_stride: is not a multiple of %u", what, strides[i].name, align);
    if (strides[i].used && stride < row.data)
      REFUSE("%s_%s_stride: %llu, a row has %llu bytes", what, strides[i].name, (unsigned long long)stride,
             (unsigned long long)row.data);
  }
  *bytes = 0;
  if (!capacity) return MOI_OK;
  uint64_t tokens = d->page_size ? d->page_size : capacity, pages = d->page_size ? capacity : 1;
  uint64_t spans[3][2] = {{pages - 1, *page}, {tokens - 1, *token}, {d->n_kv_heads - 1, *head}};
  uint64_t end = row.data;
  for (int i = 0; i < 3; i++) {
    if (spans[i][0] && spans[i][1] > (INT64_MAX - end) / spans[i][0]) REFUSE("%s: exceeds 2^63 bytes", what);
    end += spans[i][0] * spans[i][1];
  }
  *bytes = end;
  return need(fn, memory, what, view, end, align);
}

typedef struct cache_bytes {
  uint64_t k, v;
} cache_bytes;

static moi_status check_cache(const char *fn, moi_memory memory, const moi_attention_desc *d, uint32_t n_seqs, const moi_kv_cache *in,
                              moi_run *run, cache_bytes *bytes) {
  moi_kv_cache *c = &run->cache;
  TRY(moi_struct_in(fn, "args->cache", c, sizeof *c, in));
  TRY(moi_chain_none(fn, "args->cache", c->next));
  TRY(check_rows(fn, memory, "args->cache->k", d, c->capacity, c->k, d->k_format, d->head_dim, &c->k_token_stride,
                 &c->k_head_stride, &c->k_page_stride, &bytes->k));
  bytes->v = 0;
  if (d->flags & MOI_ATTENTION_V_IN_K) {
    if (moi_has(c->v)) REFUSE("args->cache->v: is there, but the plan has V_IN_K");
    c->v = c->k;
    c->v_token_stride = c->k_token_stride;
    c->v_head_stride = c->k_head_stride;
    c->v_page_stride = c->k_page_stride;
  } else {
    TRY(check_rows(fn, memory, "args->cache->v", d, c->capacity, c->v, d->v_format, d->v_head_dim, &c->v_token_stride,
                   &c->v_head_stride, &c->v_page_stride, &bytes->v));
  }
  run->max_kv = d->max_kv;
  if (d->page_size) {
    uint32_t entries = (d->max_kv - 1) / d->page_size + 1;
    if (!c->page_table_stride) c->page_table_stride = entries;
    if (c->page_table_stride > MAX_KV) REFUSE("args->cache->page_table_stride: %u, too large", c->page_table_stride);
    TRY(need(fn, memory, "args->cache->page_table", c->page_table, (uint64_t)n_seqs * c->page_table_stride * 4, 4));
    uint64_t reach = (uint64_t)c->page_table_stride * d->page_size;
    if (reach < run->max_kv) run->max_kv = (uint32_t)reach;
  } else {
    TRY(need_optional(fn, memory, "args->cache->start", c->start, (uint64_t)n_seqs * 4, 4));
  }
  TRY(need_optional(fn, memory, "args->cache->k_scale", c->k_scale, (uint64_t)d->n_kv_heads * 4, 4));
  return need_optional(fn, memory, "args->cache->v_scale", c->v_scale, (uint64_t)d->n_kv_heads * 4, 4);
}

static moi_status check_counts(const char *fn, moi_memory memory, const moi_attention_desc *d, uint32_t n_rows, uint32_t n_seqs,
                               moi_buffer q_offsets, moi_buffer kv_lens, moi_buffer q_start) {
  if (n_rows > d->max_rows) REFUSE("args->n_rows: %u, the plan's max_rows is %u", n_rows, d->max_rows);
  if (n_seqs > d->max_seqs) REFUSE("args->n_seqs: %u, the plan's max_seqs is %u", n_seqs, d->max_seqs);
  TRY(need(fn, memory, "args->q_offsets", q_offsets, n_seqs ? ((uint64_t)n_seqs + 1) * 4 : 0, 4));
  TRY(need(fn, memory, "args->kv_lens", kv_lens, (uint64_t)n_seqs * 4, 4));
  return need_optional(fn, memory, "args->q_start", q_start, (uint64_t)n_seqs * 4, 4);
}

/* Rows of `heads` heads of `dim` elements: strides resolved, their bytes. */
static moi_status check_heads(const char *fn, const char *what, uint32_t n_rows, uint32_t heads, uint32_t dim,
                              uint32_t *stride, uint32_t *head_stride, uint32_t element, uint64_t *bytes) {
  if (!*head_stride) *head_stride = dim;
  if (heads > 1 && *head_stride < dim) REFUSE("%s_head_stride: %u, heads have %u elements", what, *head_stride, dim);
  uint64_t width = (uint64_t)(heads - 1) * *head_stride + dim;
  if (width > UINT32_MAX) REFUSE("%s_head_stride: %u, rows exceed 2^32 elements", what, *head_stride);
  if (!*stride) {
    uint64_t dense = (uint64_t)heads * *head_stride;
    *stride = dense > UINT32_MAX ? (uint32_t)width : (uint32_t)dense;
  }
  if (n_rows > 1 && *stride < width)
    REFUSE("%s_stride: %u, rows have %llu elements", what, *stride, (unsigned long long)width);
  *bytes = n_rows ? ((uint64_t)(n_rows - 1) * *stride + width) * element : 0;
  return MOI_OK;
}

#define APART(view, bytes, name)                                                                                       \
  do {                                                                                                                 \
    if (overlap(out, out_bytes, view, bytes)) REFUSE("%s: overlaps %s", out_name, name);                               \
  } while (0)

moi_status moi_attention_run(const moi_plan *plan, const moi_attention_args *args, moi_buffer workspace,
                             moi_queue queue) {
  const char *fn = "moi_attention_run";
  moi_run run;
  TRY(moi_run_begin(fn, plan, MOI_OP_ATTENTION, workspace, queue, &run));
  moi_memory memory = moi_memory_of(plan);
  const moi_attention_desc *d = &plan->attention;
  moi_attention_args *a = &run.attention;
  cache_bytes cache;
  TRY(MOI_STRUCT_IN(fn, a, args));
  TRY(moi_chain_none(fn, "args", a->next));
  TRY(check_counts(fn, memory, d, a->n_rows, a->n_seqs, a->q_offsets, a->kv_lens, a->q_start));
  TRY(need_optional(fn, memory, "args->kv_begin", a->kv_begin, (uint64_t)a->n_seqs * 4, 4));
  uint32_t in = moi_dense_bytes(d->input_type), out_element = moi_dense_bytes(d->output_type);
  uint64_t q_bytes, out_bytes;
  TRY(check_heads(fn, "args->q", a->n_rows, d->n_heads, d->head_dim, &a->q_stride, &a->q_head_stride, in, &q_bytes));
  TRY(resolve_stride(fn, "args->output_stride", &a->output_stride, d->n_heads * d->v_head_dim));
  out_bytes = rows_bytes(a->n_rows, a->output_stride, d->n_heads * d->v_head_dim, out_element);
  uint64_t lse_bytes = (uint64_t)a->n_rows * d->n_heads * 4;
  TRY(need(fn, memory, "args->q", a->q, q_bytes, in));
  TRY(need(fn, memory, "args->output", a->output, out_bytes, out_element));
  TRY(need_optional(fn, memory, "args->lse", a->lse, lse_bytes, 4));
  if (d->flags & MOI_ATTENTION_SINKS) TRY(need(fn, memory, "args->sinks", a->sinks, (uint64_t)d->n_heads * 4, 4));
  if (a->n_rows && a->n_seqs) TRY(check_cache(fn, memory, d, a->n_seqs, a->cache, &run, &cache));
  else memset(&cache, 0, sizeof cache);
  const struct {
    moi_buffer view;
    uint64_t bytes;
    const char *name;
  } outs[] = {{a->output, out_bytes, "args->output"}, {a->lse, lse_bytes, "args->lse"}};
  for (int i = 0; i < 2; i++) {
    moi_buffer out = outs[i].view;
    out_bytes = outs[i].bytes;
    const char *out_name = outs[i].name;
    APART(a->q, q_bytes, "args->q");
    APART(a->q_offsets, ((uint64_t)a->n_seqs + 1) * 4, "args->q_offsets");
    APART(a->kv_lens, (uint64_t)a->n_seqs * 4, "args->kv_lens");
    APART(run.cache.k, cache.k, "args->cache->k");
    APART(run.cache.v, cache.v, "args->cache->v");
    if (!i) APART(a->lse, lse_bytes, "args->lse");
  }
  run.n_tokens = a->n_rows;
  return plan->context->ops->run(fn, plan, &run);
}

moi_status moi_kv_append_run(const moi_plan *plan, const moi_kv_append_args *args, moi_queue queue) {
  const char *fn = "moi_kv_append_run";
  moi_run run;
  TRY(begin(fn, plan, MOI_KV_APPEND, queue, &run));
  moi_memory memory = moi_memory_of(plan);
  const moi_attention_desc *d = &plan->attention;
  moi_kv_append_args *a = &run.append;
  TRY(MOI_STRUCT_IN(fn, a, args));
  TRY(moi_chain_none(fn, "args", a->next));
  TRY(check_counts(fn, memory, d, a->n_rows, a->n_seqs, a->q_offsets, a->kv_lens, a->q_start));
  uint32_t element = moi_dense_bytes(d->input_type);
  uint64_t k_bytes, v_bytes = 0;
  TRY(check_heads(fn, "args->k", a->n_rows, d->n_kv_heads, d->head_dim, &a->k_stride, &a->k_head_stride, element,
                  &k_bytes));
  TRY(need(fn, memory, "args->k", a->k, k_bytes, element));
  if (d->flags & MOI_ATTENTION_V_IN_K) {
    if (moi_has(a->v)) REFUSE("args->v: is there, but the plan has V_IN_K");
  } else {
    TRY(check_heads(fn, "args->v", a->n_rows, d->n_kv_heads, d->v_head_dim, &a->v_stride, &a->v_head_stride, element,
                    &v_bytes));
    TRY(need(fn, memory, "args->v", a->v, v_bytes, element));
  }
  if (!a->n_rows || !a->n_seqs) return MOI_OK;
  cache_bytes cache;
  TRY(check_cache(fn, memory, d, a->n_seqs, a->cache, &run, &cache));
  const struct {
    moi_buffer view;
    uint64_t bytes;
    const char *name;
  } outs[] = {{run.cache.k, cache.k, "args->cache->k"}, {run.cache.v, cache.v, "args->cache->v"}};
  for (int i = 0; i < 2; i++) {
    moi_buffer out = outs[i].view;
    uint64_t out_bytes = outs[i].bytes;
    const char *out_name = outs[i].name;
    APART(a->k, k_bytes, "args->k");
    APART(a->v, v_bytes, "args->v");
    APART(a->q_offsets, ((uint64_t)a->n_seqs + 1) * 4, "args->q_offsets");
    APART(a->kv_lens, (uint64_t)a->n_seqs * 4, "args->kv_lens");
  }
  run.n_tokens = a->n_rows;
  return plan->context->ops->run(fn, plan, &run);
}

moi_status moi_attention_merge_run(const moi_plan *plan, const moi_attention_merge_args *args, moi_queue queue) {
  const char *fn = "moi_attention_merge_run";
  moi_run run;
  TRY(begin(fn, plan, MOI_ATTENTION_MERGE, queue, &run));
  moi_memory memory = moi_memory_of(plan);
  const moi_attention_desc *d = &plan->attention;
  moi_attention_merge_args *a = &run.merge;
  TRY(MOI_STRUCT_IN(fn, a, args));
  TRY(moi_chain_none(fn, "args", a->next));
  if (a->n_rows > d->max_rows) REFUSE("args->n_rows: %u, the plan's max_rows is %u", a->n_rows, d->max_rows);
  if (!a->n_parts || a->n_parts > MAX_PARTS) REFUSE("args->n_parts: %u, must be 1..%u", a->n_parts, MAX_PARTS);
  uint32_t width = d->n_heads * d->v_head_dim, element = moi_dense_bytes(d->output_type);
  TRY(resolve_stride(fn, "args->output_stride", &a->output_stride, width));
  uint64_t rows = (uint64_t)a->n_parts * a->n_rows, lse_bytes = (uint64_t)a->n_rows * d->n_heads * 4;
  uint64_t out_bytes = rows_bytes(a->n_rows, a->output_stride, width, element);
  TRY(need(fn, memory, "args->parts", a->parts, rows * width * 4, 4));
  TRY(need(fn, memory, "args->part_lse", a->part_lse, rows * d->n_heads * 4, 4));
  TRY(need(fn, memory, "args->output", a->output, out_bytes, element));
  TRY(need_optional(fn, memory, "args->lse", a->lse, lse_bytes, 4));
  const struct {
    moi_buffer view;
    uint64_t bytes;
    const char *name;
  } outs[] = {{a->output, out_bytes, "args->output"}, {a->lse, lse_bytes, "args->lse"}};
  for (int i = 0; i < 2; i++) {
    moi_buffer out = outs[i].view;
    out_bytes = outs[i].bytes;
    const char *out_name = outs[i].name;
    APART(a->parts, rows * width * 4, "args->parts");
    APART(a->part_lse, rows * d->n_heads * 4, "args->part_lse");
    if (!i) APART(a->lse, lse_bytes, "args->lse");
  }
  run.n_tokens = a->n_rows;
  return plan->context->ops->run(fn, plan, &run);
}
