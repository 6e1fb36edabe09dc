/* The cases of moiety check that attend, append to the cache, and merge. */
#include <string.h>

#include "bench/check.h"
#include "bench/rig/random.h"

#define PICK(list, i) (list)[(i) % (sizeof(list) / sizeof *(list))]

static const moi_format dense_types[] = {MOI_FORMAT_F32, MOI_FORMAT_BF16, MOI_FORMAT_F16};
static const moi_format kv_formats[] = {MOI_FORMAT_F32, MOI_FORMAT_BF16, MOI_FORMAT_F16, MOI_FORMAT_FP8,
                                        MOI_FORMAT_Q8_0};

/* A stable choice for the case, apart from the data's seed. */
static uint32_t choose(uint32_t index, uint32_t what, uint32_t n) { return moi_random_below(0xa77e + what, index, n); }

/* ---- sequences: {rows, keys}, ends with {0, -1} */

typedef struct lengths {
  uint32_t rows;
  int32_t keys;
} lengths;

static const lengths prefill_17[] = {{17, 17}, {0, -1}};
static const lengths prefill_65[] = {{65, 65}, {0, -1}};
static const lengths prefill_129[] = {{129, 129}, {0, -1}};
static const lengths decode_short[] = {{1, 1}, {1, 2}, {1, 15}, {1, 16}, {1, 17}, {1, 3}, {1, 0}, {0, -1}};
static const lengths decode_tile[] = {{1, 63}, {1, 64}, {1, 65}, {1, 127}, {1, 128}, {1, 129}, {0, -1}};
static const lengths decode_segment[] = {{1, 511}, {1, 512}, {1, 513}, {0, -1}};
static const lengths decode_long[] = {{1, 1500}, {1, 1024}, {1, 700}, {0, -1}};
static const lengths mixed[] = {{9, 9}, {1, 70}, {0, 12}, {5, 23}, {1, 1}, {16, 129}, {0, -1}};
static const lengths chunks[] = {{16, 129}, {33, 64}, {2, 2}, {15, 200}, {0, -1}};
static const lengths chunk_long[] = {{3, 1100}, {9, 530}, {0, -1}};
static const lengths empty[] = {{0, 5}, {0, 0}, {0, 64}, {0, -1}};
static const lengths none[] = {{0, -1}};
static const lengths more_rows[] = {{9, 4}, {3, 0}, {2, 2}, {0, -1}}; /* rows at positions < 0 */
static const lengths two[] = {{2, 2}, {2, 3}, {3, 66}, {0, -1}};
static const lengths many[] = {{1, 9}, {3, 3},   {1, 40},  {1, 33}, {2, 90},  {7, 7},  {1, 1},
                               {0, 3}, {1, 130}, {1, 64},  {4, 20}, {1, 65},  {1, 31}, {1, 2},
                               {0, 0}, {1, 77},  {12, 12}, {1, 5},  {1, 111}, {1, 8},  {0, -1}};
static const lengths *const patterns[] = {
    mixed,      decode_tile, prefill_17, decode_short, chunks, decode_segment, many,        two, decode_long,
    prefill_65, more_rows,   chunk_long, prefill_129,  empty,  mixed,          decode_tile, none};

static void add_sequences(moi_attention_operands *o, const lengths *list) {
  for (; list->keys >= 0; list++) {
    o->sequences[o->n_seqs++] = (moi_sequence){.rows = list->rows, .kv_len = list->keys};
    if ((uint32_t)list->keys > o->desc.max_kv) o->desc.max_kv = (uint32_t)list->keys;
  }
  if (!o->desc.max_kv) o->desc.max_kv = 1;
}

/* ---- shapes: all head sizes of models, and odd ones */

typedef struct shape {
  uint32_t dk, dv, flags;
} shape;

static const shape shapes[] = {
    {128, 128, 0}, {64, 64, 0},
    {256, 256, 0}, {80, 80, 0},
    {192, 128, 0}, {128, 128, 0},
    {96, 96, 0},   {576, 512, MOI_ATTENTION_V_IN_K},
    {512, 512, 0}, {64, 64, 0},
    {128, 128, 0}, {512, 512, MOI_ATTENTION_V_IN_K},
    {32, 32, 0},   {40, 24, 0},
    {128, 64, 0},  {5, 5, 0},
    {17, 130, 0},  {48, 32, MOI_ATTENTION_V_IN_K},
};
typedef struct heads {
  uint32_t q, kv;
} heads;
static const heads head_counts[] = {{8, 2}, {4, 4}, {5, 1}, {8, 1}, {16, 1}, {10, 2}, {16, 2}, {3, 3}, {12, 1}, {2, 2}};
static const uint32_t page_sizes[] = {0, 16, 64, 1, 0, 16, 7};

/* The reference computes rows x heads x keys x dimensions in double. */
static double work(const moi_attention_operands *o) {
  double pairs = 0;
  for (uint32_t s = 0; s < o->n_seqs; s++) pairs += (double)o->sequences[s].rows * o->sequences[s].kv_len;
  return pairs * o->desc.n_heads * (o->desc.head_dim + o->desc.v_head_dim);
}

static void fit(moi_attention_operands *o) {
  moi_attention_desc *d = &o->desc;
  uint32_t ratio = d->n_heads / d->n_kv_heads;
  while (work(o) > 2.5e7 && d->n_kv_heads > 1) {
    d->n_kv_heads--;
    d->n_heads = d->n_kv_heads * ratio;
  }
  while (work(o) > 5e7 && d->n_heads > 1) d->n_heads = d->n_heads / 2 * d->n_kv_heads;
}

static moi_format format_for(uint32_t i, uint32_t dim) {
  moi_format format = PICK(kv_formats, i);
  return format == MOI_FORMAT_Q8_0 && dim % 32 ? MOI_FORMAT_FP8 : format;
}

static void add_layout(moi_attention_operands *o, uint32_t index) {
  moi_attention_desc *d = &o->desc;
  d->page_size = PICK(page_sizes, choose(index, 20, 7));
  if (index % 11 == 7) d->page_size = d->max_kv; /* [sequence, head, token, element] */
  o->layout.shuffled = choose(index, 21, 4) != 0;
  o->layout.heads_first = choose(index, 22, 3) == 0;
  o->layout.tight = choose(index, 25, 4) == 0;
  int fp8 = d->k_format == MOI_FORMAT_FP8 || d->v_format == MOI_FORMAT_FP8;
  int odd =
      (fp8 && (d->head_dim | d->v_head_dim) % 4) || d->k_format == MOI_FORMAT_F32 || d->v_format == MOI_FORMAT_F32;
  if (!(d->flags & MOI_ATTENTION_V_IN_K) && !odd && choose(index, 23, 4) == 0) o->layout.one_buffer = 1;
  if (!odd && choose(index, 24, 5) == 0) o->layout.gap = 12;
}

/* Positions and first keys that the engine says itself: parts of a context, evicted prefixes, rows that see nothing. */
static void add_positions(moi_attention_operands *o, uint32_t index) {
  o->has_start = choose(index, 30, 3) != 0;
  o->has_begin = !o->has_start || choose(index, 31, 2);
  for (uint32_t s = 0; s < o->n_seqs; s++) {
    moi_sequence *q = &o->sequences[s];
    q->start = q->kv_len - (int32_t)q->rows + (int32_t)(s * 7 % 11) - 5;
    q->begin = (int32_t)(s * 13 % 37) * q->kv_len / 40;
    if (s % 4 == 3) q->begin = q->kv_len + 3;
    if (s == 2) q->kv_len = -4;
  }
}

enum { ATTENDING = 210, APPENDING = 24, MERGING = 12, BF16 = 16, LONG = 2 };

static void append_case(uint32_t i, moi_attention_operands *o) {
  moi_attention_desc *d = &o->desc;
  const shape *s = &PICK(shapes, i * 5 + i / 12);
  o->task = MOI_RIG_APPEND;
  *d = (moi_attention_desc)MOI_ATTENTION_DESC_INIT;
  d->head_dim = s->dk;
  d->v_head_dim = s->dv;
  d->flags = s->flags;
  d->n_heads = PICK(head_counts, i).q;
  d->n_kv_heads = PICK(head_counts, i).kv;
  d->k_format = format_for(i, s->dk);
  d->v_format = s->flags ? d->k_format : format_for(i / 2 + i, s->dv);
  d->input_type = PICK(dense_types, i / 2);
  add_sequences(o, i % 3 == 0 ? mixed : i % 3 == 1 ? decode_tile : more_rows);
  o->has_scales = choose(i, 40, 3) == 0;
  add_layout(o, i + 1000);
  o->strays = i % 5 == 4;
  if (i % 4 == 3) { /* some of it before the first place and behind the last */
    o->has_start = 1;
    for (uint32_t q = 0; q < o->n_seqs; q++) o->sequences[q].start = (int32_t)(q * 29 % 80) - 3;
    o->sequences[0].start = (int32_t)d->max_kv - 4;
    o->holes = d->page_size > 0;
  }
}

static void merge_case(uint32_t i, moi_attention_operands *o) {
  static const uint32_t parts[] = {2, 1, 3, 33, 8}, rows[] = {5, 1, 17, 40};
  moi_attention_desc *d = &o->desc;
  const shape *s = &PICK(shapes, i * 7);
  o->task = MOI_RIG_MERGE;
  *d = (moi_attention_desc)MOI_ATTENTION_DESC_INIT;
  d->head_dim = s->dk;
  d->v_head_dim = s->dv;
  d->flags = s->flags;
  d->n_heads = PICK(head_counts, i).q;
  d->n_kv_heads = PICK(head_counts, i).kv;
  d->max_kv = 100;
  d->output_type = PICK(dense_types, i);
  o->n_seqs = 1;
  o->sequences[0] = (moi_sequence){.rows = PICK(rows, i), .kv_len = 100};
  o->parts = PICK(parts, i);
  o->has_lse = i % 2;
}

static void attend_case(uint32_t index, moi_attention_operands *o) {
  moi_attention_desc *d = &o->desc;
  const shape *s = &PICK(shapes, index + index / 18 * 5);
  *d = (moi_attention_desc)MOI_ATTENTION_DESC_INIT;
  d->head_dim = s->dk;
  d->v_head_dim = s->dv;
  d->flags = s->flags;
  d->n_heads = PICK(head_counts, index / 2 + index / 20).q;
  d->n_kv_heads = PICK(head_counts, index / 2 + index / 20).kv;
  add_sequences(o, PICK(patterns, index + index / 17));
  o->has_lse = index % 2;
  if (index < 3) { /* the plain ones: fp32 throughout, causal */
    fit(o);
    return;
  }
  d->k_format = format_for(index, s->dk);
  d->v_format = s->flags ? d->k_format : format_for(index / 5 % 2 ? index / 10 : index, s->dv);
  d->input_type = PICK(dense_types, index / 3);
  if (choose(index, 1, 2)) d->output_type = PICK(dense_types, choose(index, 2, 3));
  static const uint32_t windows[] = {6, 1, 16, 64, 100, 129, 1000}, spans[] = {33, 1, 64, 7, 128, 900};
  switch (choose(index, 3, 8)) {
  case 0:
    d->mask = MOI_MASK_NONE;
    break;
  case 1:
  case 2:
    d->window = PICK(windows, choose(index, 4, 7));
    break;
  case 3:
    d->chunk = PICK(spans, choose(index, 5, 6));
    break;
  case 4:
    d->window = PICK(windows, choose(index, 4, 7));
    d->chunk = PICK(spans, choose(index, 5, 6));
    break;
  case 5:
    if (choose(index, 6, 2)) {
      d->mask = MOI_MASK_NONE;
      d->chunk = PICK(spans, choose(index, 5, 6));
    }
    break;
  default:
    break;
  }
  if (choose(index, 7, 3) == 0) d->flags |= MOI_ATTENTION_SINKS;
  if (choose(index, 8, 5) == 0) d->softcap = choose(index, 9, 2) ? 30.0f : 3.0f;
  if (choose(index, 10, 6) == 0) {
    d->temperature = choose(index, 11, 3) ? 0.1f : -0.2f;
    d->temperature_floor = 8;
  }
  if (choose(index, 12, 4) == 0) d->scale = choose(index, 13, 2) ? 1.0f : -0.03f;
  o->has_scales = choose(index, 14, 3) == 0;
  if (choose(index, 15, 4) == 0) d->max_kv += 1 + choose(index, 16, 900);
  if (choose(index, 17, 12) == 0) d->max_kv = 40000; /* longer segments */
  fit(o);
  if (d->max_kv == 40000 && !d->page_size) d->page_size = 64;
  uint32_t long_pages = d->page_size;
  add_layout(o, index);
  if (long_pages) d->page_size = long_pages;
  if (choose(index, 18, 6) == 0) add_positions(o, index);
  o->strays = choose(index, 19, 6) == 0;
  if (index % 23 == 11) o->logits = 40; /* one key takes all */
  if (index % 13 == 7) o->nan = 1;
  if (index % 31 == 17 && d->page_size) o->holes = 1;
  if (index % 41 == 19) o->hostile = 1;
}

/* What kernels of bf16 serve: long enough that tiles are whole, cut by a mask, and joined from several segments. */
static void bf16_case(uint32_t i, moi_attention_operands *o) {
  static const lengths whole[] = {{150, 600}, {1, 700}, {0, -1}}, cut[] = {{140, 140}, {70, 530}, {3, 300}, {0, -1}},
                       few[] = {{2, 900}, {1, 1030}, {5, 5}, {0, -1}};
  static const shape sizes[] = {{128, 128, 0}, {64, 64, 0}, {192, 128, 0}, {256, 256, 0}, {80, 80, 0}};
  moi_attention_desc *d = &o->desc;
  *d = (moi_attention_desc)MOI_ATTENTION_DESC_INIT;
  d->head_dim = PICK(sizes, i).dk;
  d->v_head_dim = PICK(sizes, i).dv;
  d->n_kv_heads = 1;
  d->n_heads = i % 4 < 2 ? 1 : 4;
  add_sequences(o, i % 3 == 0 ? whole : i % 3 == 1 ? cut : few);
  d->input_type = MOI_FORMAT_BF16;
  d->k_format = i % 4 == 3 ? MOI_FORMAT_FP8 : i % 4 == 1 && d->head_dim % 32 == 0 ? MOI_FORMAT_Q8_0 : MOI_FORMAT_BF16;
  d->v_format = i % 8 == 6 ? MOI_FORMAT_FP8 : i % 8 == 2 && d->v_head_dim % 32 == 0 ? MOI_FORMAT_Q8_0 : d->k_format;
  d->output_type = i % 2 ? MOI_FORMAT_F32 : MOI_FORMAT_BF16;
  d->page_size = PICK(page_sizes, i);
  o->layout.shuffled = 1;
  if (i % 5 == 1) d->window = 200;
  if (i % 5 == 2) d->flags |= MOI_ATTENTION_SINKS;
  if (i % 5 == 3) d->softcap = 30;
  o->has_lse = i % 2;
  o->nan = i % 3 != 2;
}

/* Contexts of several thousand keys: segments of several lengths. */
static void long_case(uint32_t i, moi_attention_operands *o) {
  static const lengths decode[] = {{1, 9000}, {1, 300}, {0, -1}}, both[] = {{1, 20000}, {3, 8200}, {0, -1}};
  moi_attention_desc *d = &o->desc;
  *d = (moi_attention_desc)MOI_ATTENTION_DESC_INIT;
  d->head_dim = d->v_head_dim = 64;
  d->n_kv_heads = 1;
  d->n_heads = 2;
  add_sequences(o, i ? both : decode);
  d->max_kv = i ? 131072 : 20000;
  d->page_size = 64;
  o->layout.shuffled = 1;
  d->input_type = d->k_format = d->v_format = i ? MOI_FORMAT_BF16 : MOI_FORMAT_F16;
  d->output_type = MOI_FORMAT_F32;
  o->has_lse = 1;
}

int moi_check_attention_case(uint32_t index, uint64_t seed, moi_case *out) {
  if (index >= ATTENDING + APPENDING + MERGING + BF16 + LONG) return 0;
  memset(out, 0, sizeof *out);
  out->op = MOI_OP_ATTENTION;
  out->seed = seed * 1000 + 400 + index;
  moi_attention_operands *o = &out->attention;
  if (index < ATTENDING) attend_case(index, o);
  else if (index < ATTENDING + APPENDING) append_case(index - ATTENDING, o);
  else if (index < ATTENDING + APPENDING + MERGING) merge_case(index - ATTENDING - APPENDING, o);
  else if (index < ATTENDING + APPENDING + MERGING + BF16) bf16_case(index - ATTENDING - APPENDING - MERGING, o);
  else long_case(index - ATTENDING - APPENDING - MERGING - BF16, o);
  if (index % 4 == 2) out->stride_extra = 3;
  return 1;
}

/* ---- presets */

static uint32_t shorter(uint32_t length, uint32_t bound) { return length > bound ? bound : length; }

int moi_check_attention_preset_case(const moi_preset *preset, uint32_t index, uint64_t seed, moi_case *out) {
  enum { EACH = 2 };
  static const lengths first[] = {{7, 7}, {1, 130}, {5, 70}, {1, 1}, {0, -1}};
  static const lengths second[] = {{1, 300}, {1, 65}, {12, 40}, {0, -1}};
  if (index >= preset->n_attention * EACH) return 0;
  memset(out, 0, sizeof *out);
  out->op = MOI_OP_ATTENTION;
  out->seed = seed * 1000 + 700 + index;
  moi_attention_operands *o = &out->attention;
  moi_attention_desc *d = &o->desc;
  *d = *preset->attention[index / EACH].desc;
  uint32_t ratio = d->n_heads / d->n_kv_heads, most = ratio > 1 ? 2 : 4;
  d->n_kv_heads = shorter(d->n_kv_heads, most);
  d->n_heads = ratio * d->n_kv_heads;
  d->window = shorter(d->window, 100);
  d->chunk = shorter(d->chunk, 64);
  d->temperature_floor = shorter(d->temperature_floor, 16);
  add_sequences(o, index % EACH ? second : first);
  o->has_lse = index % EACH;
  if (index % EACH == 0) return 1;
  static const moi_format formats[] = {MOI_FORMAT_FP8, MOI_FORMAT_Q8_0, MOI_FORMAT_F16};
  d->k_format = d->v_format = PICK(formats, preset->layers + index / EACH);
  o->has_scales = d->k_format == MOI_FORMAT_FP8;
  d->page_size = 16;
  o->layout.shuffled = 1;
  return 1;
}
