/* Sequences, the KV append, and the merge of parts. */
#include "cpu/kv.h"

#include "core/shared/round.h"
#include "cpu/cpu.h"

static uint32_t clamp_to(int32_t v, uint32_t low, uint32_t high) {
  return v < 0 || (uint32_t)v < low ? low : (uint32_t)v > high ? high : (uint32_t)v;
}

void moi_seqs_of(const moi_run *run, uint32_t n_rows, uint32_t n_seqs, moi_buffer q_offsets, moi_buffer kv_lens,
                 moi_buffer q_start, moi_buffer kv_begin, moi_seq *out) {
  const int32_t *offsets = moi_view(q_offsets), *lens = moi_view(kv_lens), *starts = moi_view(q_start);
  const int32_t *begins = moi_view(kv_begin);
  uint32_t row = n_seqs ? clamp_to(offsets[0], 0, n_rows) : 0;
  for (uint32_t s = 0; s < n_seqs; s++) {
    uint32_t end = clamp_to(offsets[s + 1], row, n_rows);
    out[s].row = row;
    out[s].n_rows = end - row;
    out[s].kv_len = clamp_to(lens[s], 0, run->max_kv);
    out[s].kv_begin = begins ? clamp_to(begins[s], 0, out[s].kv_len) : 0;
    out[s].position = starts ? starts[s] : (int32_t)out[s].kv_len - (int32_t)out[s].n_rows;
    row = end;
  }
}

/* ---- append */

typedef struct work {
  const moi_plan *plan;
  const moi_run *run;
} work;

static void store_q8_0(const float *x, uint32_t n, uint8_t *out) {
  for (uint32_t b = 0; b < n; b += 32, out += 34) {
    float most = 0;
    for (uint32_t i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[b + i]));
    float d = most / 127.0f, to = d != 0 ? 1.0f / d : 0.0f;
    uint16_t half = moi_to_f16(d);
    memcpy(out, &half, 2);
    for (uint32_t i = 0; i < 32; i++) {
      float q = roundf(x[b + i] * to);
      ((int8_t *)out)[2 + i] = (int8_t)(q >= 127 ? 127 : q >= -127 ? (int)q : -127);
    }
  }
}

static void store_row(moi_format format, const float *x, uint32_t n, uint8_t *out) {
  if (format == MOI_FORMAT_Q8_0) {
    store_q8_0(x, n, out);
  } else if (format == MOI_FORMAT_FP8) {
    for (uint32_t i = 0; i < n; i++) {
      float v = x[i] > 448.0f ? 448.0f : x[i] < -448.0f ? -448.0f : x[i];
      out[i] = moi_to_e4m3(v);
    }
  } else {
    for (uint32_t i = 0; i < n; i++) moi_dense_store(format, out, i, x[i]);
  }
}

enum { MAX_DIM = 1024 };

/* One head of one row: element (row * stride + head * head_stride) of src to key j of the cache. */
static void append_one(const moi_attention_desc *d, const moi_run *run, int values, uint32_t seq, uint32_t j,
                       uint32_t row, uint32_t head) {
  const moi_kv_append_args *a = &run->append;
  const moi_kv_cache *c = &run->cache;
  moi_kv_head h = moi_kv_head_of(d, c, values, seq, head);
  uint8_t *to = moi_kv_at(&h, j);
  if (!to) return;
  uint32_t n = values ? d->v_head_dim : d->head_dim;
  size_t at = values ? (size_t)row * a->v_stride + (size_t)head * a->v_head_stride
                     : (size_t)row * a->k_stride + (size_t)head * a->k_head_stride;
  const uint8_t *from = (const uint8_t *)moi_view(values ? a->v : a->k) + at * (d->input_type == MOI_FORMAT_F32 ? 4 : 2);
  moi_buffer scales = values ? c->v_scale : c->k_scale;
  moi_format format = values ? d->v_format : d->k_format;
  if (format == d->input_type && !moi_view(scales)) {
    memcpy(to, from, (size_t)n * (format == MOI_FORMAT_F32 ? 4 : 2));
    return;
  }
  float x[MAX_DIM], scale = moi_head_scale(scales, head);
  for (uint32_t i = 0; i < n; i++) x[i] = moi_dense_load(d->input_type, from, i);
  if (moi_view(scales))
    for (uint32_t i = 0; i < n; i++) x[i] /= scale;
  store_row(format, x, n, to);
}

/* A task is one KV head of all rows. */
static void append_head(void *arg, uint32_t lane, uint32_t head) {
  (void)lane;
  const work *w = arg;
  const moi_attention_desc *d = &w->plan->attention;
  const moi_kv_append_args *a = &w->run->append;
  const int32_t *offsets = moi_view(a->q_offsets), *lens = moi_view(a->kv_lens), *starts = moi_view(a->q_start);
  uint32_t row = clamp_to(offsets[0], 0, a->n_rows);
  for (uint32_t s = 0; s < a->n_seqs; s++) {
    uint32_t end = clamp_to(offsets[s + 1], row, a->n_rows);
    int64_t kv_len = clamp_to(lens[s], 0, w->run->max_kv);
    int64_t position = starts ? starts[s] : kv_len - (int64_t)(end - row);
    for (uint32_t r = row; r < end; r++, position++) {
      if (position < 0 || position >= w->run->max_kv) continue;
      append_one(d, w->run, 0, s, (uint32_t)position, r, head);
      if (!(d->flags & MOI_ATTENTION_V_IN_K)) append_one(d, w->run, 1, s, (uint32_t)position, r, head);
    }
    row = end;
  }
}

void moi_cpu_kv_append(const moi_plan *plan, const moi_run *run) {
  work w = {plan, run};
  const moi_attention_desc *d = &plan->attention;
  uint64_t numbers = (uint64_t)run->append.n_rows * d->n_kv_heads * (d->head_dim + d->v_head_dim);
  moi_pool_run_sized(plan->context, numbers, d->n_kv_heads, append_head, &w);
}

/* ---- merge */

enum { MERGE_ROWS = 16 };

static void merge_head(const moi_plan *plan, const moi_run *run, uint32_t row, uint32_t head) {
  const moi_attention_desc *d = &plan->attention;
  const moi_attention_merge_args *a = &run->merge;
  const float *lse = moi_view(a->part_lse), *parts = moi_view(a->parts);
  size_t at = (size_t)row * d->n_heads + head, step = (size_t)a->n_rows * d->n_heads;
  double most = -INFINITY, sum = 0;
  for (uint32_t i = 0; i < a->n_parts; i++)
    if (!(lse[i * step + at] <= most)) most = lse[i * step + at]; /* NaN stays */
  for (uint32_t i = 0; i < a->n_parts && most != -INFINITY; i++) sum += exp(lse[i * step + at] - most);
  float *out_lse = moi_view(a->lse);
  if (out_lse) out_lse[at] = (float)(most == -INFINITY ? most : most + log(sum));
  uint8_t *out = (uint8_t *)moi_view(a->output) +
                 ((size_t)row * a->output_stride + (size_t)head * d->v_head_dim) * (d->output_type == MOI_FORMAT_F32 ? 4 : 2);
  double acc[64];
  for (uint32_t n0 = 0; n0 < d->v_head_dim; n0 += 64) {
    uint32_t n = d->v_head_dim - n0 < 64 ? d->v_head_dim - n0 : 64;
    for (uint32_t j = 0; j < n; j++) acc[j] = 0;
    for (uint32_t i = 0; i < a->n_parts; i++) {
      if (lse[i * step + at] == -INFINITY) continue;
      double w = exp(lse[i * step + at] - most) / sum;
      const float *part = parts + (i * step + at) * d->v_head_dim + n0;
      for (uint32_t j = 0; j < n; j++) acc[j] += w * part[j];
    }
    for (uint32_t j = 0; j < n; j++) moi_dense_store(d->output_type, out, n0 + j, (float)acc[j]);
  }
}

static void merge_rows(void *arg, uint32_t lane, uint32_t task) {
  (void)lane;
  const work *w = arg;
  uint32_t end = (task + 1) * MERGE_ROWS;
  if (end > w->run->merge.n_rows) end = w->run->merge.n_rows;
  for (uint32_t row = task * MERGE_ROWS; row < end; row++)
    for (uint32_t head = 0; head < w->plan->attention.n_heads; head++) merge_head(w->plan, w->run, row, head);
}

void moi_cpu_merge(const moi_plan *plan, const moi_run *run) {
  work w = {plan, run};
  const moi_attention_desc *d = &plan->attention;
  uint64_t numbers = (uint64_t)run->merge.n_rows * d->n_heads * run->merge.n_parts * d->v_head_dim;
  moi_pool_run_sized(plan->context, numbers, (run->merge.n_rows + MERGE_ROWS - 1) / MERGE_ROWS, merge_rows, &w);
}
