/* Attention, the KV append, and the merge of parts.
 *
 *   1 prepare   sequences and keys clamped, tiles of each sequence counted: what the host cannot know
 *   2 few       sequences of few rows (decode): a block for each tile, KV head and segment of the keys; split rows of
 *               kernels.def launch as many blocks as fill the device, which share the work that there is
 *     many      the others: a block for each tile and KV head
 *   3 finish    segments joined, sinks, the division, the output's type
 *
 * Tiles of many rows end in the output themselves. Where a row's bits may not depend on how many rows its sequence has,
 * they go through the same segments as the few, one after another, and are finished like them. */
#include <stdio.h>

#include "core/format.h"
#include "cuda/attention_args.h"
#include "cuda/cuda.h"

enum {
  MAX_SEGMENTS = 32,
  MAX_SPLIT_SEGMENTS = 256, /* of split rows, */
  RESIDENT = 2,             /* which have so many blocks on a multiprocessor */
  SEGMENT = 256             /* keys, at least; a multiple of every kernel's step */
};

static uint32_t round_up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }

static uint32_t group_of(const moi_attention_desc *d) { return d->n_heads / d->n_kv_heads; }

static int chains(const moi_plan *plan) { return (plan->plan_flags & MOI_BATCH_INVARIANT) != 0; }

/* How many tiles there may be for so many rows and sequences. */
static uint32_t few_tiles(const moi_attention_desc *d, const moi_cu_attention_state *state, uint32_t rows,
                          uint32_t seqs) {
  uint32_t group = group_of(d), tile = state->few_tile, some = moi_cu_min(rows, seqs);
  uint64_t by_seqs = (uint64_t)some * moi_cu_ceil_div(state->few_rows * group, tile);
  uint64_t by_rows = (uint64_t)rows * group / tile + (group % tile ? some : 0);
  return (uint32_t)(by_seqs < by_rows ? by_seqs : by_rows);
}

static uint32_t many_tiles(const moi_attention_desc *d, const moi_cu_attention_state *state, uint32_t rows,
                           uint32_t seqs) {
  if (rows <= state->few_rows) return 0;
  uint64_t whole = (uint64_t)rows * group_of(d) / state->many_tile;
  return (uint32_t)whole + moi_cu_min(rows / (state->few_rows + 1), seqs);
}

typedef struct memory {
  moi_cu_seq *seqs;
  float *few, *few_sums, *many, *many_sums;
} memory;

static void carve(const moi_plan *plan, moi_carve *c, memory *m) {
  const moi_attention_desc *d = &plan->attention;
  const moi_cu_attention_state *state = &((const moi_cu_plan *)plan->state)->attention;
  size_t few =
      (size_t)few_tiles(d, state, d->max_rows, d->max_seqs) * state->few_tile * d->n_kv_heads * state->n_segments;
  size_t many = (size_t)many_tiles(d, state, d->max_rows, d->max_seqs) * state->many_tile * d->n_kv_heads;
  m->seqs = moi_take(c, (size_t)d->max_seqs + 1, sizeof *m->seqs);
  m->few = moi_take(c, few, (size_t)d->v_head_dim * 4);
  m->few_sums = moi_take(c, few, 8);
  m->many = m->many_sums = NULL;
  if (!chains(plan)) return;
  m->many = moi_take(c, many, (size_t)d->v_head_dim * 4);
  m->many_sums = moi_take(c, many, 8);
}

void moi_cu_attention_count(const moi_plan *plan, moi_carve *c) {
  memory m;
  carve(plan, c, &m);
}

/* ---- rows of kernels.def */

static int is_mma(const moi_cu_kernel *row) { return !strcmp(row->image, "attention_mma"); }
static int is_split_mma(const moi_cu_kernel *row) { return !strcmp(row->image, "attention_split_mma"); }
static int is_split(const moi_cu_kernel *row) { return is_split_mma(row) || !strcmp(row->image, "attention_split"); }

/* attention_mma.cu: the sizes of heads that there are kernels for, and the rows of a tile of many. */
typedef struct mma_shape {
  uint32_t k, v, rows;
} mma_shape;

static const mma_shape *mma_shape_of(const moi_attention_desc *d) {
  static const mma_shape shapes[] = {{64, 64, 128}, {128, 128, 64}, {192, 128, 64}, {256, 256, 64}};
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
    if (d->head_dim <= shapes[i].k && d->v_head_dim <= shapes[i].v) return &shapes[i];
  return NULL;
}

/* attention_split_mma.cu: the same, and the rows that a tile has at most. */
static const mma_shape *split_shape_of(const moi_attention_desc *d) {
  static const mma_shape shapes[] = {{64, 64, 16}, {128, 128, 16}, {192, 128, 16}, {256, 256, 8}, {576, 512, 8}};
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
    if (d->head_dim <= shapes[i].k && d->v_head_dim <= shapes[i].v) return &shapes[i];
  return NULL;
}

/* What a launch asks for: queries, keys, values, their rows 16 bytes apart from each other. */
static uint32_t mma_shared(const mma_shape *shape, uint32_t tile) {
  return 2 * ((tile + 64) * (shape->k + 8) + 64 * (shape->v + 8));
}

static int holds_bf16(moi_format format) { return format == MOI_FORMAT_BF16 || format == MOI_FORMAT_FP8; }

const char *moi_cu_attention_refusal(const moi_cu_kernel *row, const moi_plan *plan) {
  const moi_attention_desc *d = &plan->attention;
  const moi_cuda *c = plan->context->state;
  if (is_split_mma(row)) {
    if (d->input_type != MOI_FORMAT_BF16 || !holds_bf16(d->k_format) || d->v_format != d->k_format)
      return "queries that are bf16, and a cache all of bf16 or of fp8";
    if (!split_shape_of(d) || d->head_dim % 8 || d->v_head_dim % 8)
      return "heads of at most 576 and 512, a multiple of 8";
    return NULL;
  }
  if (!is_mma(row)) return NULL;
  if (d->input_type != MOI_FORMAT_BF16 || !holds_bf16(d->k_format) || !holds_bf16(d->v_format))
    return "queries that are bf16, and a cache of bf16 or fp8";
  const mma_shape *shape = mma_shape_of(d);
  if (!shape || d->head_dim % 8 || d->v_head_dim % 8) return "heads of at most 256, a multiple of 8";
  if (mma_shared(shape, shape->rows) + 4096 > c->traits.shared_memory) return "more shared memory of a block";
  return NULL;
}

/* attention_split.cu: a kernel for both, by the cache's type and the size of heads; another where a cache's rows begin
 * anywhere, or its sides are of two types: of as many rows. */
static moi_status split_get(const char *fn, const moi_plan *plan, const moi_cu_kernel *row, moi_cu_function *out,
                            moi_cu_function *any, uint32_t *tile) {
  const moi_attention_desc *d = &plan->attention;
  uint32_t head = d->head_dim > d->v_head_dim ? d->head_dim : d->v_head_dim, size = 64;
  while (size < head && size < 512) size *= 2;
  if (size < head) size = head <= 768 ? 768 : 1024;
  *tile = size > 768 ? 1 : size > 512 ? 2 : 4;
  int typed = size <= 768 && d->k_format == d->v_format &&
              (d->k_format == MOI_FORMAT_Q8_0 || (d->head_dim | d->v_head_dim) % 8 == 0);
  if (typed && size <= 256 && group_of(d) > 4 && d->k_format != MOI_FORMAT_F32) *tile = row->m_tile;
  char name[64];
  snprintf(name, sizeof name, "attend_split_any_%u_%u", size, *tile);
  moi_status status = moi_cu_function_get(fn, plan->context, row->image, name, any);
  *out = *any;
  if (status || !typed) return status;
  snprintf(name, sizeof name, "attend_split_%s_%u_%u", moi_format_name(d->k_format), size, *tile);
  return moi_cu_function_get(fn, plan->context, row->image, name, out);
}

/* The kernel of a row for tiles of few, or many rows: how many rows, and what its launches ask for. */
static moi_status attend_get(const char *fn, const moi_plan *plan, const moi_cu_kernel *row, int many,
                             moi_cu_function *out, moi_cu_function *any, uint32_t *tile, uint32_t *shared) {
  const moi_attention_desc *d = &plan->attention;
  char name[64];
  *shared = 0;
  *any = NULL;
  if (is_split_mma(row)) {
    const mma_shape *shape = split_shape_of(d);
    *tile = group_of(d) > 8 && shape->rows == 16 ? 16 : 8;
    snprintf(name, sizeof name, "attend_split_mma_%s_%u_%u_%u", moi_format_name(d->k_format), shape->k, shape->v,
             *tile);
    moi_status found = moi_cu_function_get(fn, plan->context, row->image, name, out);
    *any = *out;
    return found;
  }
  if (is_split(row)) return split_get(fn, plan, row, out, any, tile);
  if (is_mma(row)) {
    const mma_shape *shape = mma_shape_of(d);
    *tile = many ? shape->rows : 64;
    *shared = mma_shared(shape, *tile);
    snprintf(name, sizeof name, "attend_mma_%s%u_%u", many ? "many_" : "", shape->k, shape->v);
  } else {
    uint32_t columns = 1;
    while (columns * 128 < d->v_head_dim) columns *= 2;
    *tile = columns == 8 ? row->m_tile / 2 : row->m_tile;
    if (!many && group_of(d) <= 4) *tile = 4;
    if (many) snprintf(name, sizeof name, "attend_tile_many_%u", columns);
    else snprintf(name, sizeof name, "attend_tile_%u_%u", *tile, columns);
  }
  moi_status status = moi_cu_function_get(fn, plan->context, row->image, name, out);
  return status || !*shared ? status : moi_cu_function_shared(fn, plan->context, *out, *shared);
}

moi_status moi_cu_attention_plan(const char *fn, moi_plan *plan, const char *forced, int *found) {
  const moi_attention_desc *d = &plan->attention;
  moi_cu_attention_state *state = &((moi_cu_plan *)plan->state)->attention;
  moi_status status = moi_cu_choose(fn, plan, MOI_OP_ATTENTION, "attention", d->k_format, forced, found, &state->pick);
  if (status) return status;
  status = attend_get(fn, plan, state->pick.few, 0, &state->few, &state->few_any, &state->few_tile, &state->few_shared);
  if (!status)
    status = attend_get(fn, plan, state->pick.many, 1, &state->many, &state->many_any, &state->many_tile,
                        &state->many_shared);
  uint32_t group = group_of(d), few = is_split(state->pick.few) ? state->pick.few->m_max : state->few_tile;
  uint32_t most = MAX_SEGMENTS;
  state->few_rows = group < few ? few / group : 1;
  if (is_split(state->pick.few)) { /* one sequence fills the device */
    const moi_cuda *c = plan->context->state;
    most = moi_cu_ceil_div(RESIDENT * c->traits.processors, d->n_kv_heads * moi_cu_ceil_div(group, state->few_tile));
    most = most < 16 ? 16 : moi_cu_min(most, MAX_SPLIT_SEGMENTS);
  }
  state->segment = round_up(moi_cu_ceil_div(d->max_kv, most), SEGMENT);
  state->n_segments = moi_cu_ceil_div(d->max_kv, state->segment);
  const moi_context *c = plan->context;
  if (!status) status = moi_cu_function_get(fn, c, "attention_rows", "attention_prepare", &state->prepare);
  if (!status) status = moi_cu_function_get(fn, c, "attention_rows", "attention_finish", &state->finish);
  if (!status) status = moi_cu_function_get(fn, c, "attention_rows", "attention_merge", &state->merge);
  if (!status) status = moi_cu_function_get(fn, c, "attention_append", "kv_append", &state->append);
  return status;
}

/* ---- attention */

static moi_cu_kv kv_of(const moi_attention_desc *d, const moi_kv_cache *c, int values) {
  moi_cu_kv kv = {.data = moi_view(values ? c->v : c->k),
                  .scale = moi_view(values ? c->v_scale : c->k_scale),
                  .token = values ? c->v_token_stride : c->k_token_stride,
                  .head = values ? c->v_head_stride : c->k_head_stride,
                  .page = values ? c->v_page_stride : c->k_page_stride,
                  .format = values ? d->v_format : d->k_format,
                  .dim = values ? d->v_head_dim : d->head_dim};
  kv.vectors = (((uintptr_t)kv.data | kv.token | kv.head | kv.page) & 15) == 0;
  return kv;
}

static moi_cu_places places_of(const moi_attention_desc *d, const moi_kv_cache *c) {
  return (moi_cu_places){.places = moi_view(d->page_size ? c->page_table : c->start),
                         .page_size = d->page_size,
                         .page_entries = c->page_table_stride,
                         .capacity = c->capacity,
                         .max_kv = d->max_kv};
}

/* Tiles of few rows, or of many (args->pass), so many at most; parts: of a tile. */
static void attend_tiles(const moi_cu_kernel *row, moi_cu_run *r, moi_cu_function f, moi_cu_function any,
                         const moi_cu_attention_args *args, uint32_t tiles, uint32_t parts, uint32_t shared) {
  if (is_split(row)) {
    uint64_t all = (uint64_t)tiles * parts * args->n_kv_heads;
    uint32_t most = r->c->traits.processors * RESIDENT;
    int vectors = args->k.format == MOI_FORMAT_Q8_0 || (args->k.vectors && args->v.vectors);
    moi_cu_launch(r, vectors ? f : any, args, all < most ? (uint32_t)all : most, 1, row->threads);
  } else {
    moi_cu_launch_shared(r, f, args, tiles, args->n_kv_heads * parts, row->threads, shared);
  }
}

static void attend(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *c) {
  const moi_attention_desc *d = &plan->attention;
  const moi_cu_attention_state *state = &((const moi_cu_plan *)plan->state)->attention;
  const moi_attention_args *a = &run->attention;
  memory m;
  carve(plan, c, &m);
  uint32_t element = d->input_type == MOI_FORMAT_F32 ? 4 : 2;
  /* in chunks, a row may see the same keys in sequences of several lengths: chained, its segments must not go by them */
  uint32_t adapt = is_split(state->pick.few) && !chains(plan);
  moi_cu_attention_args args = {
      .q = moi_view(a->q),
      .y = moi_view(a->output),
      .lse = moi_view(a->lse),
      .sinks = d->flags & MOI_ATTENTION_SINKS ? moi_view(a->sinks) : NULL,
      .q_offsets = moi_view(a->q_offsets),
      .kv_lens = moi_view(a->kv_lens),
      .q_start = moi_view(a->q_start),
      .kv_begin = moi_view(a->kv_begin),
      .k = kv_of(d, &run->cache, 0),
      .v = kv_of(d, &run->cache, 1),
      .where = places_of(d, &run->cache),
      .seqs = m.seqs,
      .few = m.few,
      .few_sums = m.few_sums,
      .many = m.many,
      .many_sums = m.many_sums,
      .n_rows = a->n_rows,
      .n_seqs = a->n_seqs,
      .q_stride = a->q_stride,
      .q_head_stride = a->q_head_stride,
      .y_stride = a->output_stride,
      .n_heads = d->n_heads,
      .n_kv_heads = d->n_kv_heads,
      .reach = run->max_kv,
      .input_type = d->input_type,
      .output_type = d->output_type,
      .causal = d->mask == MOI_MASK_CAUSAL,
      .window = d->window,
      .chunk = d->chunk,
      .temperature_floor = d->temperature_floor,
      .few_rows = state->few_rows,
      .temperature = d->temperature,
      .scale = d->scale,
      .softcap = d->softcap,
      .few_tile = state->few_tile,
      .many_tile = state->many_tile,
      .segment = adapt ? SEGMENT : state->segment,
      .n_segments = state->n_segments,
      .adapt = adapt,
      .many_segment = chains(plan) ? state->segment : UINT32_MAX,
  };
  args.q_vectors =
      (((uintptr_t)args.q | (uint64_t)a->q_stride * element | (uint64_t)a->q_head_stride * element) & 15) == 0;
  uint32_t y_element = d->output_type == MOI_FORMAT_F32 ? 4 : 2;
  args.y_pairs = (((uintptr_t)args.y | (uint64_t)a->output_stride * y_element | (uint64_t)d->v_head_dim * y_element) &
                  (2 * y_element - 1)) == 0;
  uint32_t few = 0, many = 0;
  if (!a->n_rows) return;
  if (a->n_seqs) {
    few = few_tiles(d, state, a->n_rows, a->n_seqs);
    many = many_tiles(d, state, a->n_rows, a->n_seqs);
    moi_cu_launch(r, state->prepare, &args, 1, 1, 256);
    attend_tiles(state->pick.few, r, state->few, state->few_any, &args, few, state->n_segments, state->few_shared);
    args.pass = 1;
    attend_tiles(state->pick.many, r, state->many, state->many_any, &args, many, 1, state->many_shared);
  }
  uint64_t rows = few + (chains(plan) ? many : 0), tile = state->few_tile;
  if (chains(plan) && state->many_tile > tile) tile = state->many_tile;
  rows *= tile;
  if (rows < 64) rows = 64; /* rows of no sequence are somebody's too */
  moi_cu_launch(r, state->finish, &args, rows < UINT32_MAX ? (uint32_t)rows : UINT32_MAX, d->n_kv_heads, 128);
}

/* ---- append */

static void append(const moi_plan *plan, const moi_run *run, moi_cu_run *r) {
  const moi_attention_desc *d = &plan->attention;
  const moi_cu_attention_state *state = &((const moi_cu_plan *)plan->state)->attention;
  const moi_kv_append_args *a = &run->append;
  moi_cu_append_args args = {
      .sides = {{moi_view(a->k), kv_of(d, &run->cache, 0), a->k_stride, a->k_head_stride},
                {moi_view(a->v), kv_of(d, &run->cache, 1), a->v_stride, a->v_head_stride}},
      .q_offsets = moi_view(a->q_offsets),
      .kv_lens = moi_view(a->kv_lens),
      .q_start = moi_view(a->q_start),
      .where = places_of(d, &run->cache),
      .n_rows = a->n_rows,
      .n_seqs = a->n_seqs,
      .n_kv_heads = d->n_kv_heads,
      .reach = run->max_kv,
      .input_type = d->input_type,
  };
  moi_cu_launch(r, state->append, &args, a->n_rows, d->flags & MOI_ATTENTION_V_IN_K ? 1 : 2, 64);
}

/* ---- merge */

static void merge(const moi_plan *plan, const moi_run *run, moi_cu_run *r) {
  const moi_attention_desc *d = &plan->attention;
  const moi_cu_attention_state *state = &((const moi_cu_plan *)plan->state)->attention;
  const moi_attention_merge_args *a = &run->merge;
  moi_cu_merge_args args = {.parts = moi_view(a->parts),
                            .part_lse = moi_view(a->part_lse),
                            .y = moi_view(a->output),
                            .lse = moi_view(a->lse),
                            .n_rows = a->n_rows,
                            .n_parts = a->n_parts,
                            .n_heads = d->n_heads,
                            .dim = d->v_head_dim,
                            .y_stride = a->output_stride,
                            .output_type = d->output_type};
  moi_cu_launch(r, state->merge, &args, a->n_rows, d->n_heads, 64);
}

void moi_cu_attention_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *c) {
  if (run->attention_task == MOI_KV_APPEND) append(plan, run, r);
  else if (run->attention_task == MOI_ATTENTION_MERGE) merge(plan, run, r);
  else attend(plan, run, r, c);
}
