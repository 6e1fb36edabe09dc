/* Attention, the KV append, and the merge of parts.
 *
 *   1 prepare   sequences and keys clamped, tiles of each sequence counted: what the host cannot know
 *   2 few       sequences of few rows (decode): a workgroup for each tile, KV head and segment of the keys
 *     many      the others: a workgroup for each tile and KV head, which joins the segments one after another
 *   3 finish    a row's segments joined, sinks, the division, the output's type
 *
 * 2 goes over the keys in passes of bounded length, dispatched indirectly: those behind the last key are empty.
 *
 * A tile is some of a sequence's rows x query heads of one KV head, by row, then head. Segments lie where
 * core/shared/segment.h says and are joined in ascending order, so that a row's bits are the same in any batch. */
#include "core/format.h"
#include "core/shared/segment.h"
#include "vulkan/vulkan.h"

enum {
  SEGMENT = 512,     /* keys, at least */
  SHORT = 256,       /* of flash-tile: a sequence of few KV heads is to keep many workgroups busy */
  GROUP = 64,        /* keys that a subgroup weighs at once */
  STEP = 512,        /* keys whose weights lie in shared memory, at most */
  ZEROS = 4096,      /* bytes, a row of the cache at most */
  SEQ_BYTES = 32,    /* attention.glsl: SEQ_WORDS */
  FINISH_HEADS = 8,  /* attention_finish.comp: HEADS */
  MAX_GROUPS = 32768 /* of a dimension of a dispatch */
};

/* attention.glsl: Args */
typedef struct arguments {
  uint64_t q, y, lse, sinks, q_offsets, kv_lens, q_start, kv_begin;
  uint64_t k, v, places, k_scale, v_scale;
  uint64_t k_token, k_head, k_page, v_token, v_head, v_page;
  uint64_t zeros, seqs;
  uint64_t few, many, now;
  uint64_t few_sums, many_sums, now_sums;
  uint64_t few_calls, many_calls;
  uint32_t n_rows, n_seqs, q_stride, q_head_stride, y_stride;
  uint32_t n_heads, n_kv_heads, head_dim, v_head_dim;
  uint32_t input_type;
  uint32_t max_kv, reach;
  uint32_t page_size, page_entries, capacity;
  uint32_t causal, window, chunk, temperature_floor;
  float temperature, scale, softcap;
  uint32_t has_sinks;
  uint32_t few_rows, few_tile, many_tile;
  uint32_t segment, n_segments;
  uint32_t pass_keys, few_passes, many_passes;
  uint32_t few_chunk, few_chunks, many_chunk, many_chunks;
} arguments;

typedef struct memory {
  size_t args, zeros, seqs, few_calls, many_calls, few, few_sums, many, many_sums, now, now_sums;
} memory;

#define ALIGNMENTS MOI_VK_CACHE_ALIGNMENTS

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t round_up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }

static uint32_t power_of_two(uint32_t n) {
  uint32_t p = 1;
  while (p < n) p *= 2;
  return p;
}

/* How many tiles there may be for so many rows and sequences. */
static size_t few_tiles(const moi_attention_desc *d, const moi_vk_attention_state *state, uint32_t rows,
                        uint32_t seqs) {
  uint32_t group = d->n_heads / d->n_kv_heads, each = (state->few_rows * group + state->few_tile - 1) / state->few_tile;
  return (size_t)min_u32(rows, seqs) * each;
}

static size_t many_tiles(const moi_attention_desc *d, const moi_vk_attention_state *state, uint32_t rows,
                         uint32_t seqs) {
  if (rows <= state->few_rows) return 0;
  return (size_t)rows * (d->n_heads / d->n_kv_heads) / state->many_tile + min_u32(rows / (state->few_rows + 1), seqs);
}

/* Tiles of a dispatch, and dispatches: short enough for a device with a watchdog, none has more than about 2^37
 * multiply-adds to do unless it has few workgroups. */
typedef struct calls {
  uint32_t chunk, chunks, passes;
} calls;

static calls calls_of(const moi_attention_desc *d, size_t tiles, uint32_t tile, uint32_t keys, uint32_t pass_keys,
                      uint32_t segments) {
  uint32_t now = min_u32(keys, pass_keys);
  double each = (double)tile * now * (d->head_dim + d->v_head_dim) * d->n_kv_heads * segments,
         most = 137438953472.0 / each;
  size_t chunk = most > MAX_GROUPS ? MAX_GROUPS : (size_t)most;
  if (chunk * d->n_kv_heads * segments < 256) chunk = (256 + d->n_kv_heads * segments - 1) / (d->n_kv_heads * segments);
  return (calls){(uint32_t)chunk, (uint32_t)((tiles + chunk - 1) / chunk), (keys + pass_keys - 1) / pass_keys};
}

/* Keys of the longest segment: the last, or the one before. */
static uint32_t longest(const moi_attention_desc *d, const moi_vk_attention_state *s) {
  uint32_t last = s->n_segments - 1, begin = moi_segment_begin(last, s->segment);
  uint32_t before = last ? begin - moi_segment_begin(last - 1, s->segment) : 0, rest = d->max_kv - begin;
  return rest > before ? rest : before;
}

static calls few_calls(const moi_attention_desc *d, const moi_vk_attention_state *s, uint32_t rows, uint32_t seqs) {
  return calls_of(d, few_tiles(d, s, rows, seqs), s->few_tile, longest(d, s), s->pass_keys, s->n_segments);
}

static calls many_calls(const moi_attention_desc *d, const moi_vk_attention_state *s, uint32_t rows, uint32_t seqs) {
  return calls_of(d, many_tiles(d, s, rows, seqs), s->many_tile, d->max_kv, s->pass_keys, 1);
}

static void carve(const moi_plan *plan, moi_carve *c, memory *m) {
  const moi_attention_desc *d = &plan->attention;
  const moi_vk_attention_state *state = &((const moi_vk_plan *)plan->state)->attention;
  size_t few = few_tiles(d, state, d->max_rows, d->max_seqs) * state->n_segments * d->n_kv_heads * state->few_tile;
  size_t many = many_tiles(d, state, d->max_rows, d->max_seqs) * d->n_kv_heads * state->many_tile;
  m->args = moi_take_at(c, sizeof(arguments), 1);
  m->zeros = moi_take_at(c, ZEROS, 1);
  m->seqs = moi_take_at(c, (size_t)d->max_seqs + 1, SEQ_BYTES);
  calls few_all = few_calls(d, state, d->max_rows, d->max_seqs),
        many_all = many_calls(d, state, d->max_rows, d->max_seqs);
  m->few_calls = moi_take_at(c, (size_t)few_all.passes * few_all.chunks, 12);
  m->many_calls = moi_take_at(c, (size_t)many_all.passes * many_all.chunks, 12);
  m->few = moi_take_at(c, few, (size_t)d->v_head_dim * 4);
  m->few_sums = moi_take_at(c, few, 8);
  m->many = moi_take_at(c, many, (size_t)d->v_head_dim * 4);
  m->many_sums = moi_take_at(c, many, 8);
  m->now = moi_take_at(c, state->n_segments > 1 ? many : 0, (size_t)d->v_head_dim * 4);
  m->now_sums = moi_take_at(c, state->n_segments > 1 ? many : 0, 8);
}

void moi_vk_attention_count(const moi_plan *plan, moi_carve *c) {
  memory m;
  carve(plan, c, &m);
}

/* llvmpipe ends all loops of an invocation after 65535 turns. */
enum { TURNS = 50000 };

/* Keys of a lane, and groups of a step: attention_lanes.comp's KT and GROUPS; returns the turns of loops in a step. */
static uint32_t lanes_shape(const moi_vulkan *v, const moi_attention_desc *d, uint32_t tile, uint32_t *keys,
                            uint32_t *groups) {
  uint32_t subgroup = v->traits.subgroup, step = STEP;
  *keys = subgroup >= GROUP ? 1 : subgroup >= GROUP / 8 ? GROUP / subgroup : 8;
  uint32_t k_chunk = subgroup <= 8 ? 8 : subgroup <= 32 ? subgroup : 32, v_chunk = 8 * subgroup;
  uint32_t k_turns = (d->head_dim + k_chunk - 1) / k_chunk * (tile + 1 + k_chunk * *keys) + tile * *keys;
  uint32_t v_turns = (d->v_head_dim + v_chunk - 1) / v_chunk * (*keys * (tile + 1 + 8 * subgroup) + 20 * tile + 8);
  uint32_t turns = k_turns + v_turns + *keys * 66 + 8; /* of a group; 64 lines of a row of values are touched */
  while (step > subgroup * *keys && (tile * step * 4 + step * 8 + 1024 > v->traits.shared_memory ||
                                     (v->traits.is_cpu && step / (subgroup * *keys) * turns > TURNS)))
    step /= 2;
  *groups = step < subgroup * *keys ? 1 : step / (subgroup * *keys);
  return *groups * turns;
}

/* Words of a row's elements; q8_0's scales not counted. */
static uint32_t words_of(moi_format format, uint32_t n) {
  uint32_t each = format == MOI_FORMAT_F32 ? 1 : format == MOI_FORMAT_FP8 || format == MOI_FORMAT_Q8_0 ? 4 : 2;
  return (n + each - 1) / each;
}

/* attention_tile.comp's K_WORDS: a whole key, up to 128 dimensions, if shared memory has room for it. */
static uint32_t tile_key_words(const moi_vulkan *v, const moi_attention_desc *d, uint32_t tile) {
  uint32_t words = words_of(d->k_format, 128), each = 128 / words, rows = round_up(tile, 4);
  if (words > 64) words = 64;
  while (words > 16 && words / 2 * each >= d->head_dim) words /= 2;
  while (words > 16 && 64 * 4 * (words * 34 / 32 + 3) + rows * 4 * (words * each + 64) + 2560 > v->traits.shared_memory)
    words /= 2;
  return words;
}

static int is_lanes(const moi_vk_kernel *row) { return !strcmp(row->shader, "attention_lanes"); }

/* Keys of a pass: software devices bound the turns, others are to end before a watchdog barks. */
static uint32_t pass_keys(const moi_vulkan *v, const moi_attention_desc *d, const moi_vk_kernel *row) {
  uint32_t keys, groups, step, turns;
  if (is_lanes(row)) {
    turns = lanes_shape(v, d, row->m_tile, &keys, &groups);
    step = v->traits.subgroup * keys * groups;
  } else { /* attention_tile.comp: a word of 16, 32 or 64 in a loop, and what goes by threads */
    turns = 4 * ((words_of(d->k_format, d->head_dim) + 63) / 64 * 224 + 320);
    step = 256;
  }
  if (!v->traits.is_cpu) return round_up(16384, step);
  return TURNS / turns > 1 ? TURNS / turns * step : step;
}

/* The pipelines for tiles of `tile` rows. */
static moi_status attend_get(const char *fn, const moi_plan *plan, const moi_vk_kernel *row, uint32_t tile, int many,
                             VkPipeline out[ALIGNMENTS]) {
  const moi_attention_desc *d = &plan->attention;
  const moi_vulkan *v = plan->context->state;
  const moi_vk_attention_state *state = &((const moi_vk_plan *)plan->state)->attention;
  if (!is_lanes(row)) {
    uint32_t units = words_of(d->v_format, d->v_head_dim), phases = units > 64 ? 1 : units > 32 ? 2 : 4;
    moi_status status = MOI_OK;
    for (uint32_t aligned = 0; !status && aligned < ALIGNMENTS; aligned++) {
      uint32_t constants[] = {tile,
                              phases > 1 ? 1 : (units + 127) / 128,
                              phases,
                              tile_key_words(v, d, tile),
                              (uint32_t)d->k_format,
                              (uint32_t)d->v_format,
                              aligned,
                              d->softcap > 0,
                              many != 0};
      status = moi_vk_row_want(fn, plan, row, constants, sizeof constants / sizeof *constants, &out[aligned]);
    }
    return status;
  }
  uint32_t subgroup = v->traits.subgroup, keys, groups;
  lanes_shape(v, d, tile, &keys, &groups);
  for (uint32_t aligned = 0; aligned < ALIGNMENTS; aligned++) { /* to words, or to more, which is no matter here */
    uint32_t constants[] = {subgroup,
                            subgroup,
                            tile,
                            keys,
                            groups,
                            (uint32_t)d->k_format,
                            (uint32_t)d->v_format,
                            aligned > 0,
                            d->softcap > 0,
                            many != 0,
                            many && state->n_segments > 1,
                            v->traits.is_cpu};
    moi_status status = moi_vk_row_want(fn, plan, row, constants, sizeof constants / sizeof *constants, &out[aligned]);
    if (status) return status;
  }
  return MOI_OK;
}

moi_status moi_vk_attention_plan(const char *fn, moi_plan *plan, const char *forced, int *found) {
  const moi_attention_desc *d = &plan->attention;
  const moi_vulkan *v = plan->context->state;
  moi_vk_attention_state *state = &((moi_vk_plan *)plan->state)->attention;
  moi_status status = moi_vk_choose(fn, plan, MOI_OP_ATTENTION, "attention", d->k_format, forced, found, &state->pick);
  if (status) return status;
  uint32_t group = d->n_heads / d->n_kv_heads;
  state->few_tile = min_u32(power_of_two(group), state->pick.few->m_tile);
  state->few_rows = group < state->few_tile ? state->few_tile / group : 1;
  state->many_tile = state->pick.many->m_tile;
  state->pass_keys = min_u32(pass_keys(v, d, state->pick.few), pass_keys(v, d, state->pick.many));
  state->segment = is_lanes(state->pick.few) ? SEGMENT : SHORT;
  state->n_segments = moi_segment_of(d->max_kv - 1, state->segment) + 1;
  uint32_t append[3] = {0, (uint32_t)d->input_type, 0}, output = (uint32_t)d->output_type;
  uint32_t finish[3] = {v->traits.subgroup, output, 0};
  status = moi_vk_pipeline_want(fn, plan, "attention_prepare", NULL, 0, &state->prepare);
  if (!status) status = attend_get(fn, plan, state->pick.few, state->few_tile, 0, state->few);
  if (!status) status = attend_get(fn, plan, state->pick.many, state->many_tile, 1, state->many);
  for (uint32_t words = 0; words < 2; words++) {
    finish[2] = append[2] = words;
    if (!status) status = moi_vk_pipeline_want(fn, plan, "attention_finish", finish, 3, &state->finish[words]);
    append[0] = (uint32_t)d->k_format;
    if (!status) status = moi_vk_pipeline_want(fn, plan, "kv_append", append, 3, &state->append_k[words]);
    append[0] = (uint32_t)d->v_format;
    if (!status) status = moi_vk_pipeline_want(fn, plan, "kv_append", append, 3, &state->append_v[words]);
  }
  if (!status) status = moi_vk_pipeline_want(fn, plan, "attention_merge", &output, 1, &state->merge);
  return status;
}

/* ---- attention */

/* Whether all rows of the cache's k or v begin at a multiple of bytes; q8_0 is read by halves. */
static int begin_at(uint32_t bytes, moi_format format, uint64_t address, uint64_t token, uint64_t head, uint64_t page) {
  return format == MOI_FORMAT_Q8_0 || (address | token | head | page) % bytes == 0;
}

static void dispatch_pass(const moi_vk_record *r, VkPipeline pipeline, uint64_t args, calls c, uint32_t pass,
                          size_t at) {
  struct {
    uint64_t args;
    uint32_t first, pass;
  } push = {args, 0, pass};
  for (uint32_t i = 0; i < c.chunks && pass < c.passes; i++, push.first += c.chunk)
    moi_vk_dispatch_indirect(r, pipeline, &push, sizeof push, at + ((size_t)pass * c.chunks + i) * 12);
}

static void attend(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *c) {
  const moi_attention_desc *d = &plan->attention;
  const moi_vk_attention_state *state = &((const moi_vk_plan *)plan->state)->attention;
  const moi_attention_args *a = &run->attention;
  const moi_kv_cache *cache = &run->cache;
  memory m;
  carve(plan, c, &m);
  if (!a->n_rows) return;
  uint64_t base = r->workspace_address;
  calls few = few_calls(d, state, a->n_rows, a->n_seqs), many = many_calls(d, state, a->n_rows, a->n_seqs);
  many.passes = (run->max_kv + state->pass_keys - 1) / state->pass_keys;
  arguments args = {
      .q = moi_vk_address(r, a->q),
      .y = moi_vk_address(r, a->output),
      .lse = moi_vk_address(r, a->lse),
      .sinks = moi_vk_address(r, a->sinks),
      .q_offsets = moi_vk_address(r, a->q_offsets),
      .kv_lens = moi_vk_address(r, a->kv_lens),
      .q_start = moi_vk_address(r, a->q_start),
      .kv_begin = moi_vk_address(r, a->kv_begin),
      .k = moi_vk_address(r, cache->k),
      .v = moi_vk_address(r, cache->v),
      .places = moi_vk_address(r, d->page_size ? cache->page_table : cache->start),
      .k_scale = moi_vk_address(r, cache->k_scale),
      .v_scale = moi_vk_address(r, cache->v_scale),
      .k_token = cache->k_token_stride,
      .k_head = cache->k_head_stride,
      .k_page = cache->k_page_stride,
      .v_token = cache->v_token_stride,
      .v_head = cache->v_head_stride,
      .v_page = cache->v_page_stride,
      .zeros = base + m.zeros,
      .seqs = base + m.seqs,
      .few = base + m.few,
      .many = base + m.many,
      .now = base + m.now,
      .few_sums = base + m.few_sums,
      .many_sums = base + m.many_sums,
      .now_sums = base + m.now_sums,
      .few_calls = base + m.few_calls,
      .many_calls = base + m.many_calls,
      .n_rows = a->n_rows,
      .n_seqs = a->n_seqs,
      .q_stride = a->q_stride,
      .q_head_stride = a->q_head_stride,
      .y_stride = a->output_stride,
      .n_heads = d->n_heads,
      .n_kv_heads = d->n_kv_heads,
      .head_dim = d->head_dim,
      .v_head_dim = d->v_head_dim,
      .input_type = (uint32_t)d->input_type,
      .max_kv = d->max_kv,
      .reach = run->max_kv,
      .page_size = d->page_size,
      .page_entries = cache->page_table_stride,
      .capacity = cache->capacity,
      .causal = d->mask == MOI_MASK_CAUSAL,
      .window = d->window,
      .chunk = d->chunk,
      .temperature_floor = d->temperature_floor,
      .temperature = d->temperature,
      .scale = d->scale,
      .softcap = d->softcap,
      .has_sinks = (d->flags & MOI_ATTENTION_SINKS) != 0,
      .few_rows = state->few_rows,
      .few_tile = state->few_tile,
      .many_tile = state->many_tile,
      .segment = state->segment,
      .n_segments = state->n_segments,
      .pass_keys = state->pass_keys,
      .few_passes = few.passes,
      .many_passes = many.passes,
      .few_chunk = few.chunk,
      .few_chunks = few.chunks,
      .many_chunk = many.chunk,
      .many_chunks = many.chunks,
  };
  moi_format_sizes k_row;
  moi_format_size(d->k_format, 1, d->head_dim, &k_row);
  int aligned = begin_at(4, d->k_format, args.k, args.k_token, args.k_head, args.k_page) &&
                begin_at(4, d->v_format, args.v, args.v_token, args.v_head, args.v_page);
  if (aligned && k_row.data % 16 == 0 && begin_at(16, d->k_format, args.k, args.k_token, args.k_head, args.k_page))
    aligned = 2;
  struct {
    uint64_t args;
    uint32_t first_row, none;
  } push = {moi_vk_args(r, m.args, &args, sizeof args), 0, 0};
  moi_vk_barrier(r);
  moi_vk_dispatch(r, state->prepare, &push.args, sizeof push.args, 1, 1, 1);
  moi_vk_barrier(r);
  for (uint32_t pass = 0; a->n_seqs && (pass < few.passes || pass < many.passes); pass++) {
    dispatch_pass(r, state->few[aligned], push.args, few, pass, m.few_calls);
    dispatch_pass(r, state->many[aligned], push.args, many, pass, m.many_calls);
    moi_vk_barrier(r);
  }
  int pairs = (args.y | (uint64_t)a->output_stride * 2 | (uint64_t)d->v_head_dim * 2) % 4 == 0;
  uint32_t z = (d->n_heads / d->n_kv_heads + FINISH_HEADS - 1) / FINISH_HEADS;
  for (; push.first_row < a->n_rows; push.first_row += MAX_GROUPS)
    moi_vk_dispatch(r, state->finish[pairs], &push, sizeof push, d->n_kv_heads,
                    min_u32(a->n_rows - push.first_row, MAX_GROUPS), z);
}

/* ---- append */

/* kv_append.comp: Push */
typedef struct append_push {
  uint64_t x, q_offsets, kv_lens, q_start, cache, places, scales;
  uint64_t token_stride, head_stride, page_stride;
  uint32_t n_rows, n_seqs, x_stride, x_head_stride;
  uint32_t heads_dim;
  uint32_t max_kv, reach, page_size, page_entries, capacity;
  uint32_t first_row;
} append_push;

static void append(const moi_plan *plan, const moi_run *run, const moi_vk_record *r) {
  const moi_attention_desc *d = &plan->attention;
  const moi_vk_attention_state *state = &((const moi_vk_plan *)plan->state)->attention;
  const moi_kv_append_args *a = &run->append;
  const moi_kv_cache *c = &run->cache;
  append_push push = {.x = moi_vk_address(r, a->k),
                      .q_offsets = moi_vk_address(r, a->q_offsets),
                      .kv_lens = moi_vk_address(r, a->kv_lens),
                      .q_start = moi_vk_address(r, a->q_start),
                      .cache = moi_vk_address(r, c->k),
                      .places = moi_vk_address(r, d->page_size ? c->page_table : c->start),
                      .scales = moi_vk_address(r, c->k_scale),
                      .token_stride = c->k_token_stride,
                      .head_stride = c->k_head_stride,
                      .page_stride = c->k_page_stride,
                      .n_rows = a->n_rows,
                      .n_seqs = a->n_seqs,
                      .x_stride = a->k_stride,
                      .x_head_stride = a->k_head_stride,
                      .heads_dim = (d->n_kv_heads - 1) << 16 | (d->head_dim - 1),
                      .max_kv = d->max_kv,
                      .reach = run->max_kv,
                      .page_size = d->page_size,
                      .page_entries = c->page_table_stride,
                      .capacity = c->capacity};
  int values = !(d->flags & MOI_ATTENTION_V_IN_K);
  for (int i = 0; i <= values; i++) {
    if (i) {
      push.x = moi_vk_address(r, a->v);
      push.cache = moi_vk_address(r, c->v);
      push.scales = moi_vk_address(r, c->v_scale);
      push.token_stride = c->v_token_stride;
      push.head_stride = c->v_head_stride;
      push.page_stride = c->v_page_stride;
      push.x_stride = a->v_stride;
      push.x_head_stride = a->v_head_stride;
      push.heads_dim = (d->n_kv_heads - 1) << 16 | (d->v_head_dim - 1);
    }
    moi_format_sizes row;
    moi_format_size(i ? d->v_format : d->k_format, 1, i ? d->v_head_dim : d->head_dim, &row);
    int words = (push.cache | push.token_stride | push.head_stride | push.page_stride | row.data) % 4 == 0;
    for (push.first_row = 0; push.first_row < a->n_rows; push.first_row += MAX_GROUPS)
      moi_vk_dispatch(r, i ? state->append_v[words] : state->append_k[words], &push, sizeof push - 4,
                      min_u32(a->n_rows - push.first_row, MAX_GROUPS), 1, 1);
  }
}

/* ---- merge */

/* attention_merge.comp: Push */
typedef struct merge_push {
  uint64_t parts, part_lse, y, lse;
  uint32_t n_rows, n_parts, n_heads, dim, y_stride, first_row;
} merge_push;

static void merge(const moi_plan *plan, const moi_run *run, const moi_vk_record *r) {
  const moi_attention_desc *d = &plan->attention;
  const moi_vk_attention_state *state = &((const moi_vk_plan *)plan->state)->attention;
  const moi_attention_merge_args *a = &run->merge;
  merge_push push = {moi_vk_address(r, a->parts),
                     moi_vk_address(r, a->part_lse),
                     moi_vk_address(r, a->output),
                     moi_vk_address(r, a->lse),
                     a->n_rows,
                     a->n_parts,
                     d->n_heads,
                     d->v_head_dim,
                     a->output_stride,
                     0};
  /* parts x dimensions of a row's heads, 2^30 of them in a dispatch */
  double each = (double)a->n_parts * d->n_heads * d->v_head_dim;
  uint32_t step = each > 1073741824.0 / MAX_GROUPS ? (uint32_t)(1073741824.0 / each) + 1 : MAX_GROUPS;
  for (; push.first_row < a->n_rows; push.first_row += step)
    moi_vk_dispatch(r, state->merge, &push, sizeof push, d->n_heads, min_u32(a->n_rows - push.first_row, step), 1);
}

void moi_vk_attention_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *c) {
  if (run->attention_task == MOI_KV_APPEND) append(plan, run, r);
  else if (run->attention_task == MOI_ATTENTION_MERGE) merge(plan, run, r);
  else attend(plan, run, r, c);
}
