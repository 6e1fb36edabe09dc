/* Attention, one query head after another: an online softmax in double over the keys in ascending order. */
#include "core/shared/round.h"
#include "cpu/kv.h"
#include "cpu/ref/ref.h"

typedef struct memory {
  moi_seq *seqs;
  float *q, *row;
  double *acc;
} memory;

static memory carve(const moi_plan *plan, moi_carve *c) {
  const moi_attention_desc *d = &plan->attention;
  memory m;
  m.seqs = moi_take(c, d->max_seqs, sizeof *m.seqs);
  m.q = moi_take(c, d->head_dim, 4);
  m.row = moi_take(c, moi_max_size(d->head_dim, d->v_head_dim), 4);
  m.acc = moi_take(c, d->v_head_dim, 8);
  return m;
}

void moi_ref_attention_count(const moi_plan *plan, moi_carve *c) { carve(plan, c); }

/* Key or value j as fp32; what the cache has not is 0. */
static void load_row(moi_format format, const moi_kv_head *head, uint32_t j, uint32_t n, float *out) {
  moi_matrix w = {format, moi_kv_at(head, j), NULL, NULL, 1, 1, n};
  if (w.data) moi_ref_decode_row(&w, 0, out);
  else memset(out, 0, n * sizeof *out);
}

static void store(const moi_attention_desc *d, const moi_run *run, uint32_t row, uint32_t head, const double *acc,
                  double factor, double lse) {
  const moi_attention_args *a = &run->attention;
  uint8_t *out = (uint8_t *)moi_view(a->output) + ((size_t)row * a->output_stride + (size_t)head * d->v_head_dim) *
                                                      (d->output_type == MOI_FORMAT_F32 ? 4 : 2);
  for (uint32_t i = 0; i < d->v_head_dim; i++)
    moi_dense_store(d->output_type, out, i, factor == 0 ? 0 : (float)(acc[i] * factor));
  float *lses = moi_view(a->lse);
  if (lses) lses[(size_t)row * d->n_heads + head] = (float)lse;
}

static void attend(const moi_plan *plan, const moi_run *run, const memory *m, uint32_t seq, uint32_t row, uint32_t head) {
  const moi_attention_desc *d = &plan->attention;
  const moi_attention_args *a = &run->attention;
  const moi_seq *s = &m->seqs[seq];
  int64_t p = (int64_t)s->position + (row - s->row);
  uint32_t kv_head = head / (d->n_heads / d->n_kv_heads);
  moi_kv_head keys = moi_kv_head_of(d, &run->cache, 0, seq, kv_head);
  moi_kv_head values = moi_kv_head_of(d, &run->cache, 1, seq, kv_head);
  const uint8_t *q = (const uint8_t *)moi_view(a->q) + ((size_t)row * a->q_stride + (size_t)head * a->q_head_stride) *
                                                           (d->input_type == MOI_FORMAT_F32 ? 4 : 2);
  for (uint32_t i = 0; i < d->head_dim; i++) m->q[i] = moi_dense_load(d->input_type, q, i);
  double scale = d->scale * moi_temperature(d, p) * moi_head_scale(run->cache.k_scale, kv_head);
  double most = -INFINITY, sum = 0;
  memset(m->acc, 0, d->v_head_dim * sizeof *m->acc);
  if (d->flags & MOI_ATTENTION_SINKS) {
    most = ((const float *)moi_view(a->sinks))[head];
    sum = most == -INFINITY ? 0 : exp(most - most);
  }
  moi_span span = moi_visible(d, s, p);
  for (uint32_t j = span.begin; j < span.end; j++) {
    load_row(d->k_format, &keys, j, d->head_dim, m->row);
    double l = 0;
    for (uint32_t i = 0; i < d->head_dim; i++) l += (double)m->q[i] * m->row[i];
    l *= scale;
    if (d->softcap > 0) l = d->softcap * tanh(l / d->softcap);
    if (l == -INFINITY) continue; /* weighs nothing */
    if (!(l <= most)) {
      double shrink = most == -INFINITY ? 0 : exp(most - l);
      sum *= shrink;
      for (uint32_t i = 0; i < d->v_head_dim; i++) m->acc[i] *= shrink;
      most = l;
    }
    double weight = exp(l - most);
    sum += weight;
    load_row(d->v_format, &values, j, d->v_head_dim, m->row);
    for (uint32_t i = 0; i < d->v_head_dim; i++) m->acc[i] += weight * m->row[i];
  }
  store(d, run, row, head, m->acc, sum == 0 ? 0 : moi_head_scale(run->cache.v_scale, kv_head) / sum,
        sum == 0 ? -INFINITY : most + log(sum));
}

void moi_ref_attention(const moi_plan *plan, const moi_run *run, moi_carve *c) {
  const moi_attention_desc *d = &plan->attention;
  const moi_attention_args *a = &run->attention;
  memory m = carve(plan, c);
  for (uint32_t row = 0; row < a->n_rows; row++) /* rows of no sequence keep this */
    for (uint32_t head = 0; head < d->n_heads; head++) store(d, run, row, head, m.acc, 0, -INFINITY);
  moi_seqs_of(run, a->n_rows, a->n_seqs, a->q_offsets, a->kv_lens, a->q_start, a->kv_begin, m.seqs);
  for (uint32_t s = 0; s < a->n_seqs; s++)
    for (uint32_t i = 0; i < m.seqs[s].n_rows; i++)
      for (uint32_t head = 0; head < d->n_heads; head++) attend(plan, run, &m, s, m.seqs[s].row + i, head);
}
