/* The bare grouped GEMM: rows come sorted by expert, results go straight to their rows. */
#include "core/shared/round.h"
#include "cpu/cpu.h"

enum { ROWS = 256, BLOCK = 64 };

typedef struct gemm_work {
  const moi_plan *plan;
  const moi_run *run;
  const moi_elementwise *ew;
  const moi_pick *pick;
  uint32_t isa, n_rows;
  uint32_t *begin, *end, *active, n_active; /* rows of each expert, clamped; experts that have rows */
  uint32_t *self;
  uint8_t *x[2];
  uint8_t *lanes;
  size_t lane_bytes;
} gemm_work;

typedef struct lane {
  float *row, *c;
  void *scratch;
} lane;

static lane lane_carve(const gemm_work *w, moi_carve *c) {
  size_t kp = MOI_FORM_KP(w->plan->gemm.k);
  lane l;
  l.row = moi_take(c, kp, 4);
  l.c = moi_take(c, (size_t)ROWS * BLOCK, 4);
  l.scratch = moi_take(c, moi_max_size(w->pick->few->scratch_rows, w->pick->many->scratch_rows), kp * 4);
  return l;
}

static lane lane_of(const gemm_work *w, uint32_t i) {
  moi_carve c = {w->lanes + i * w->lane_bytes, 0, 0};
  return lane_carve(w, &c);
}

static void carve(const moi_plan *plan, moi_carve *c, gemm_work *w) {
  const moi_cpu_plan *state = plan->state;
  const moi_gemm_desc *d = &plan->gemm;
  w->plan = plan;
  w->pick = &state->gemm.gate;
  w->begin = moi_take(c, d->n_experts, 4);
  w->end = moi_take(c, d->n_experts, 4);
  w->active = moi_take(c, d->n_experts, 4);
  w->self = moi_take(c, d->max_rows, 4);
  w->x[0] = moi_take(c, d->max_rows, moi_form_bytes(w->pick->few->form, d->k));
  w->x[1] = w->pick->many->form == w->pick->few->form
                ? w->x[0]
                : moi_take(c, d->max_rows, moi_form_bytes(w->pick->many->form, d->k));
  moi_carve one = {NULL, 0, 0};
  lane_carve(w, &one);
  c->overflow |= one.overflow;
  w->lane_bytes = (one.used + 63) & ~(size_t)63;
  w->lanes = moi_take(c, plan->context->desc.n_workers, w->lane_bytes);
}

void moi_cpu_gemm_count(const moi_plan *plan, moi_carve *c) {
  gemm_work w;
  memset(&w, 0, sizeof w);
  carve(plan, c, &w);
}

/* Task: an active expert's rows into the form of the kernel that it will use. */
static void prepare(void *arg, uint32_t lane_index, uint32_t i) {
  const gemm_work *w = arg;
  const moi_gemm_desc *d = &w->plan->gemm;
  uint32_t e = w->active[i], m = w->end[e] - w->begin[e];
  const moi_cpu_kernel *kernel = moi_pick_for(w->pick, m);
  uint8_t *out = w->x[kernel == w->pick->few ? 0 : 1];
  lane l = lane_of(w, lane_index);
  size_t element = d->input_type == MOI_FORMAT_F32 ? 4 : 2;
  const uint8_t *x = moi_view(w->run->gemm.input);
  for (uint32_t r = w->begin[e]; r < w->end[e]; r++) {
    w->ew->load(d->input_type, x + (size_t)r * w->run->gemm.input_stride * element, l.row, d->k);
    if (!moi_form_is_int8(kernel->form)) moi_act_quant_row(d->act_quant, l.row, d->k);
    moi_form_prepare(kernel->form, w->isa)(l.row, d->k, out + r * moi_form_bytes(kernel->form, d->k));
    w->self[r] = r;
  }
}

static void multiply(void *arg, uint32_t lane_index, uint32_t i) {
  const gemm_work *w = arg;
  const moi_gemm_desc *d = &w->plan->gemm;
  uint32_t blocks = (d->n + BLOCK - 1) / BLOCK;
  uint32_t e = w->active[i / blocks], n0 = i % blocks * BLOCK, n1 = moi_min_u32(n0 + BLOCK, d->n);
  int tables = (d->flags & MOI_EXPERTS_TABLES) != 0;
  const moi_cpu_kernel *kernel = moi_pick_for(w->pick, w->end[e] - w->begin[e]);
  moi_matrix matrix = moi_matrix_of(&w->run->gemm_weights, d->format, d->n, d->k, e, tables);
  lane l = lane_of(w, lane_index);
  float bias[BLOCK] = {0};
  if (d->bias_type) {
    const uint8_t *b = moi_bias_of(&w->run->gemm_weights, e, tables);
    w->ew->load(d->bias_type, b + (size_t)n0 * (d->bias_type == MOI_FORMAT_F32 ? 4 : 2), bias, n1 - n0);
  }
  size_t element = d->output_type == MOI_FORMAT_F32 ? 4 : 2;
  uint8_t *y = moi_view(w->run->gemm.output);
  moi_matrix next = {.data = NULL};
  const uint32_t following = i + w->plan->context->desc.n_workers, next_n0 = following % blocks * BLOCK; /* taken in turn */
  if (following < w->n_active * blocks)
    next = moi_matrix_of(&w->run->gemm_weights, d->format, d->n, d->k, w->active[following / blocks], tables);
  for (uint32_t r0 = w->begin[e], m; r0 < w->end[e]; r0 += m) {
    const uint32_t left = w->end[e] - r0, calls = (left + ROWS - 1) / ROWS;
    m = (left + calls - 1) / calls;
    moi_gemm_tile tile = {.w = &matrix,
                          .n0 = n0,
                          .n1 = n1,
                          .m = m,
                          .x = w->x[kernel == w->pick->few ? 0 : 1],
                          .x_stride = moi_form_bytes(kernel->form, d->k),
                          .rows = w->self + r0,
                          .c = l.c,
                          .ldc = BLOCK,
                          .scratch = l.scratch};
    if (next.data) moi_tile_ahead(&tile, &next, next_n0, moi_min_u32(next_n0 + BLOCK, d->n));
    ((moi_gemm_fn)kernel->fn)(&tile);
    for (uint32_t r = 0; r < m; r++) {
      uint8_t *out = y + ((size_t)(r0 + r) * w->run->gemm.output_stride + n0) * element;
      for (uint32_t j = 0; j < n1 - n0; j++) {
        float v = l.c[(size_t)r * BLOCK + j] + bias[j];
        if (d->flags & MOI_EXPERTS_ACCUMULATE) v += moi_dense_load(d->output_type, out, j);
        moi_dense_store(d->output_type, out, j, v);
      }
    }
  }
}

void moi_gemm_groups(const moi_gemm_desc *d, const moi_run *run, uint32_t *begin, uint32_t *end) {
  const int32_t *offsets = moi_view(run->gemm.offsets);
  uint32_t n_rows = run->n_tokens, at = 0, covered = 0;
  size_t element = d->output_type == MOI_FORMAT_F32 ? 4 : 2;
  uint8_t *y = moi_view(run->gemm.output);
  for (uint32_t e = 0; e <= d->n_experts; e++) {
    uint32_t next = n_rows;
    if (e < d->n_experts) {
      uint32_t from = offsets[e] < 0 ? 0 : moi_min_u32((uint32_t)offsets[e], n_rows);
      uint32_t to = offsets[e + 1] < 0 ? 0 : moi_min_u32((uint32_t)offsets[e + 1], n_rows);
      begin[e] = from < at ? at : from;
      end[e] = to < begin[e] ? begin[e] : to;
      at = end[e];
      next = begin[e];
    }
    if (!(d->flags & MOI_EXPERTS_ACCUMULATE))
      for (uint32_t r = covered; r < next; r++)
        memset(y + (size_t)r * run->gemm.output_stride * element, 0, d->n * element);
    covered = at > next ? at : next;
  }
}

moi_status moi_cpu_gemm(const char *fn, const moi_plan *plan, const moi_run *run, moi_carve *c) {
  const moi_gemm_desc *d = &plan->gemm;
  const moi_cpu *cpu = plan->context->state;
  if (!run->n_tokens) return MOI_OK;
  gemm_work w;
  memset(&w, 0, sizeof w);
  w.run = run;
  w.isa = cpu->isa;
  w.ew = moi_elementwise_for(cpu->isa);
  carve(plan, c, &w);
  moi_gemm_groups(d, run, w.begin, w.end);
  int tables = (d->flags & MOI_EXPERTS_TABLES) != 0;
  for (uint32_t e = 0; e < d->n_experts; e++) {
    if (w.begin[e] == w.end[e]) continue;
    w.active[w.n_active++] = e;
    if (tables && (!moi_matrix_of(&run->gemm_weights, d->format, d->n, d->k, e, 1).data ||
                   (d->bias_type && !moi_bias_of(&run->gemm_weights, e, 1))))
      return moi_fail(MOI_INVALID_ARGUMENT, fn, "args->weights: expert %u has rows and its table entry is null", e);
  }
  moi_pool_run(plan->context, w.n_active, prepare, &w);
  moi_pool_run(plan->context, w.n_active * ((d->n + BLOCK - 1) / BLOCK), multiply, &w);
  return MOI_OK;
}
