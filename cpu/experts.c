/* The expert FFN: routed experts and, in moe, the shared one beside them.
 *
 *   1 prepare   x rows into the forms that the chosen kernels read
 *   2 gate/up   a task is an expert and a block of its intermediate rows: both GEMMs, bias, activation -> mid
 *   3 prepare   mid rows into the forms of the down kernels (not if they read fp32 as it is)
 *   4 down      a task OWNS a block of output columns: it walks all experts in ascending order and adds w * (D_e a) into
 *               its own accumulators. So the sum has one fixed order, no atomics, no [slots, h] buffer to write and read
 *               again, and every weight is read once. */
#include <math.h>

#include "core/shared/round.h"
#include "cpu/cpu.h"

enum {
  ROWS = 256,        /* token rows in one kernel call: amortises decoding, keeps the tiles in L2 */
  BLOCK_MAX = 64,    /* weight rows in a task */
  BLOCK_MIN = 16,    /* what kernels need n0 to be a multiple of */
  TILE = BLOCK_MAX + BLOCK_MIN, /* width of a result tile: an up block may start up to 15 rows early */
  SLOTS = 16         /* mid rows in a task of step 3 */
};

/* One FFN of a run and its memory. */
typedef struct ffn {
  const moi_experts_desc *d;
  const moi_ffn_state *state;
  const moi_ffn_run *in;
  const int32_t *ids;     /* [slots]; NULL: one expert for every token */
  const float *weights;   /* [slots] */
  uint32_t n_slots;
  int32_t *counts, *offsets, *order; /* order: slots by expert, then number */
  uint32_t *x_row;                   /* [slots] prepared x row of a sorted position */
  uint32_t *self;                    /* [slots] 0, 1, 2, ...: prepared mid row of a sorted position */
  uint32_t *active, n_active;        /* experts that have rows */
  float *own_weights;                /* [t] the shared expert's gate */
  uint8_t *x[2];                     /* prepared x in the forms of gate.few and gate.many */
  uint8_t *mid_form[2];              /* prepared mid in the forms of down.few and down.many */
  float *mid;                        /* [slots, ip] */
  size_t ip;
  int mid_in_place;
  uint32_t uses[2];                  /* whether this run has experts for .few and .many */
  uint32_t block, first_task, n_tasks;
} ffn;

typedef struct ffn_work {
  const moi_plan *plan;
  const moi_run *run;
  const moi_elementwise *ew;
  uint32_t isa, n_tokens, n_ffn;
  ffn ffn[2];
  uint32_t down_block;
  /* each worker's */
  uint8_t *lanes;
  size_t lane_bytes;
} ffn_work;

typedef struct lane {
  float *row;       /* [max(hp, ip)] */
  float *gate, *up; /* [ROWS, 2 * TILE] results */
  float *acc;       /* [t, BLOCK_MAX] */
  void *scratch;    /* the kernels' */
} lane;

static size_t max_width(const moi_plan *plan) {
  size_t w = moi_max_size(plan->experts.hidden, plan->experts.intermediate);
  return MOI_FORM_KP(plan->has_shared ? moi_max_size(w, plan->shared.intermediate) : w);
}

static size_t pick_scratch(const moi_pick *pick, uint32_t k) {
  size_t rows = moi_max_size(pick->few->scratch_rows, pick->many->scratch_rows);
  return rows * MOI_FORM_KP(k) * 4;
}

static lane lane_carve(const ffn_work *w, moi_carve *c) {
  const moi_plan *plan = w->plan;
  const moi_cpu_plan *state = plan->state;
  size_t scratch = 0;
  for (uint32_t i = 0; i < w->n_ffn; i++) {
    const moi_experts_desc *d = w->ffn[i].d;
    scratch = moi_max_size(scratch, pick_scratch(&state->ffn[i].gate, d->hidden));
    scratch = moi_max_size(scratch, pick_scratch(&state->ffn[i].down, d->intermediate));
  }
  lane l;
  l.row = moi_take(c, max_width(plan), 4);
  l.gate = moi_take(c, (size_t)ROWS * 2 * TILE, 4);
  l.up = moi_take(c, (size_t)ROWS * 2 * TILE, 4);
  l.acc = moi_take(c, (size_t)plan->experts.max_tokens * BLOCK_MAX, 4);
  l.scratch = moi_take(c, scratch, 1);
  return l;
}

static lane lane_of(const ffn_work *w, uint32_t i) {
  moi_carve c = {w->lanes + i * w->lane_bytes, 0, 0};
  return lane_carve(w, &c);
}

static void carve_ffn(ffn *f, moi_carve *c) {
  const moi_experts_desc *d = f->d;
  size_t tokens = d->max_tokens, slots = tokens * d->top_k, classes = (size_t)d->n_experts + d->n_identity;
  size_t rows = d->weight_on == MOI_WEIGHT_ON_INPUT ? slots : tokens;
  const moi_pick *g = &f->state->gate, *down = &f->state->down;
  f->ip = MOI_FORM_KP(d->intermediate);
  f->counts = moi_take(c, classes, 4);
  f->offsets = moi_take(c, classes + 1, 4);
  f->order = moi_take(c, slots, 4);
  f->x_row = moi_take(c, slots, 4);
  f->self = moi_take(c, slots, 4);
  f->active = moi_take(c, classes, 4);
  f->own_weights = moi_take(c, tokens, 4);
  f->x[0] = moi_take(c, rows, moi_form_bytes(g->few->form, d->hidden));
  f->x[1] = g->many->form == g->few->form ? f->x[0] : moi_take(c, rows, moi_form_bytes(g->many->form, d->hidden));
  f->mid = moi_take(c, slots, f->ip * 4);
  f->mid_in_place = down->few->form == MOI_FORM_F32 && down->many->form == MOI_FORM_F32 && !d->act_quant;
  if (f->mid_in_place) {
    f->mid_form[0] = f->mid_form[1] = (uint8_t *)f->mid;
    return;
  }
  f->mid_form[0] = moi_take(c, slots, moi_form_bytes(down->few->form, d->intermediate));
  f->mid_form[1] = down->many->form == down->few->form
                       ? f->mid_form[0]
                       : moi_take(c, slots, moi_form_bytes(down->many->form, d->intermediate));
}

static void carve(const moi_plan *plan, moi_carve *c, ffn_work *w) {
  const moi_cpu_plan *state = plan->state;
  w->plan = plan;
  w->n_ffn = 1 + plan->has_shared;
  w->ffn[0].d = &plan->experts;
  w->ffn[1].d = &plan->shared;
  for (uint32_t i = 0; i < w->n_ffn; i++) {
    w->ffn[i].state = &state->ffn[i];
    carve_ffn(&w->ffn[i], c);
  }
  moi_carve one = {NULL, 0, 0};
  lane_carve(w, &one);
  c->overflow |= one.overflow;
  w->lane_bytes = (one.used + 63) & ~(size_t)63;
  w->lanes = moi_take(c, plan->context->desc.n_workers, w->lane_bytes);
}

void moi_cpu_ffn_count(const moi_plan *plan, moi_carve *c) {
  ffn_work w;
  memset(&w, 0, sizeof w);
  carve(plan, c, &w);
}

static int tables(const ffn *f) { return (f->d->flags & MOI_EXPERTS_TABLES) != 0; }
static uint32_t rows_of(const ffn *f) {
  return f->d->gate_layout == MOI_GATE_CONCAT || f->d->gate_layout == MOI_GATE_INTERLEAVED ? 2 * f->d->intermediate
                                                                                            : f->d->intermediate;
}

/* ---- step 1 */

static void prepare_x(void *arg, uint32_t lane_index, uint32_t i) {
  const ffn_work *w = arg;
  uint32_t at = 0;
  const ffn *f = w->ffn;
  uint32_t rows = f->d->weight_on == MOI_WEIGHT_ON_INPUT ? f->n_slots : w->n_tokens;
  if (i >= rows) {
    f = &w->ffn[1];
    at = rows;
  }
  const moi_experts_desc *d = f->d;
  uint32_t row = i - at, token = row, slot = 0;
  if (d->weight_on == MOI_WEIGHT_ON_INPUT) { /* a prepared row for each sorted position */
    if (row >= (uint32_t)f->offsets[d->n_experts]) return;
    slot = (uint32_t)f->order[row];
    token = slot / d->top_k;
  }
  lane l = lane_of(w, lane_index);
  size_t element = d->input_type == MOI_FORMAT_F32 ? 4 : 2;
  const uint8_t *x = moi_view(f->in->args.input);
  w->ew->load(d->input_type, x + (size_t)token * f->in->args.input_stride * element, l.row, d->hidden);
  if (d->weight_on == MOI_WEIGHT_ON_INPUT)
    for (uint32_t j = 0; j < d->hidden; j++) l.row[j] = moi_round_to(d->input_type, l.row[j] * f->weights[slot]);
  if (f == &w->ffn[1] && w->plan->shared_gate == MOI_SHARED_SIGMOID) {
    const void *gate = moi_view(w->run->shared_gate);
    double sum = 0;
    for (uint32_t j = 0; j < d->hidden; j++) sum += (double)l.row[j] * moi_dense_load(w->plan->shared_gate_type, gate, j);
    f->own_weights[token] = (float)(1.0 / (1.0 + exp(-sum)));
  }
  const moi_pick *g = &f->state->gate;
  int quantised = 0;
  for (int turn = 0; turn < 2; turn++) { /* int8 first: it is made of the values before they are quantised */
    const int which = moi_form_is_int8(g->many->form) ? !turn : turn;
    moi_form form = which ? g->many->form : g->few->form;
    if (!f->uses[which] || (which && f->x[1] == f->x[0] && f->uses[0])) continue;
    if (!quantised && !moi_form_is_int8(form)) {
      moi_act_quant_row(d->act_quant, l.row, d->hidden);
      quantised = 1;
    }
    moi_form_prepare(form, w->isa)(l.row, d->hidden, f->x[which] + row * moi_form_bytes(form, d->hidden));
  }
}

/* ---- step 2 */

/* Rows of the next kernel call when `left` are left: calls as even as may be, for each decodes the weights. */
static uint32_t rows_now(uint32_t left) {
  const uint32_t calls = (left + ROWS - 1) / ROWS;
  return (left + calls - 1) / calls;
}

/* Rows n0..n1-1 of a matrix; none if n1 = 0. */
typedef struct span {
  moi_matrix matrix;
  uint32_t n0, n1;
} span;

/* c[r, 0..n1-n0) of rows first..first+m-1 (sorted positions) for W rows n0..n1-1; returns where column n0 starts, as
 * kernels want to begin at a multiple of 16. next: what this thread multiplies after it, if that is known. */
static float *product(const moi_cpu_kernel *kernel, const moi_matrix *matrix, uint32_t n0, uint32_t n1,
                      const uint8_t *x, const uint32_t *rows, uint32_t m, float *c, size_t ldc, void *scratch,
                      const span *next) {
  uint32_t early = n0 % BLOCK_MIN;
  moi_gemm_tile tile = {.w = matrix,
                        .n0 = n0 - early,
                        .n1 = n1,
                        .m = m,
                        .x = x,
                        .x_stride = moi_form_bytes(kernel->form, matrix->k),
                        .rows = rows,
                        .c = c,
                        .ldc = ldc,
                        .scratch = scratch};
  if (next->n1 > next->n0) moi_tile_ahead(&tile, &next->matrix, next->n0, next->n1);
  ((moi_gemm_fn)kernel->fn)(&tile);
  return c + early;
}

static void load_bias(const ffn_work *w, const ffn *f, const moi_weights *weights, uint32_t e, uint32_t n0, uint32_t n,
                      float *out) {
  const uint8_t *bias = moi_bias_of(weights, e, tables(f));
  w->ew->load(f->d->bias_type, bias + (size_t)n0 * (f->d->bias_type == MOI_FORMAT_F32 ? 4 : 2), out, n);
}

/* What task i of gate_up begins with. */
static span first_of(const ffn *f, uint32_t i) {
  const moi_experts_desc *d = f->d;
  span s = {.n1 = 0};
  if (i < f->first_task || i >= f->first_task + f->n_tasks) return s;
  const uint32_t blocks = (d->intermediate + f->block - 1) / f->block, e = f->active[(i - f->first_task) / blocks];
  const int split = d->gate_layout == MOI_GATE_SPLIT, twice = d->gate_layout == MOI_GATE_INTERLEAVED;
  s.n0 = (i - f->first_task) % blocks * f->block;
  s.n1 = moi_min_u32(s.n0 + f->block, d->intermediate);
  s.n0 <<= twice;
  s.n1 <<= twice;
  s.matrix = split ? moi_matrix_of(&f->in->gate, d->format, d->intermediate, d->hidden, e, tables(f))
                   : moi_matrix_of(&f->in->up, d->format, rows_of(f), d->hidden, e, tables(f));
  return s;
}

static void gate_up(void *arg, uint32_t lane_index, uint32_t i) {
  const ffn_work *w = arg;
  const ffn *f = w->n_ffn > 1 && i >= w->ffn[1].first_task ? &w->ffn[1] : &w->ffn[0];
  const moi_experts_desc *d = f->d;
  uint32_t blocks = (d->intermediate + f->block - 1) / f->block;
  uint32_t e = f->active[(i - f->first_task) / blocks], n0 = (i - f->first_task) % blocks * f->block;
  uint32_t n1 = moi_min_u32(n0 + f->block, d->intermediate), n = n1 - n0, inter = d->intermediate;
  uint32_t m = (uint32_t)f->counts[e], first = (uint32_t)f->offsets[e];
  const moi_cpu_kernel *kernel = moi_pick_for(&f->state->gate, m);
  const uint8_t *x = f->x[kernel == f->state->gate.few ? 0 : 1];
  moi_matrix up = moi_matrix_of(&f->in->up, d->format, rows_of(f), d->hidden, e, tables(f)), gate = up;
  if (d->gate_layout == MOI_GATE_SPLIT) gate = moi_matrix_of(&f->in->gate, d->format, inter, d->hidden, e, tables(f));
  lane l = lane_of(w, lane_index);
  float bias_g[2 * TILE], bias_u[TILE], g_row[TILE], u_row[TILE];
  if (d->bias_type) {
    if (d->gate_layout == MOI_GATE_INTERLEAVED) load_bias(w, f, &f->in->up, e, 2 * n0, 2 * n, bias_g);
    else {
      if (d->gate_layout == MOI_GATE_SPLIT) load_bias(w, f, &f->in->gate, e, n0, n, bias_g);
      if (d->gate_layout == MOI_GATE_CONCAT) load_bias(w, f, &f->in->up, e, n0, n, bias_g);
      load_bias(w, f, &f->in->up, e, d->gate_layout == MOI_GATE_CONCAT ? inter + n0 : n0, n, bias_u);
    }
  }
  const span following = first_of(f, i + w->plan->context->desc.n_workers); /* tasks are taken in turn */
  for (uint32_t r0 = 0, mr; r0 < m; r0 += mr) {
    mr = rows_now(m - r0);
    const uint32_t *rows = f->x_row + first + r0;
    const size_t ldc = 2 * TILE;
    const float *g = NULL, *u;
    if (d->gate_layout == MOI_GATE_INTERLEAVED) {
      u = product(kernel, &up, 2 * n0, 2 * n1, x, rows, mr, l.up, ldc, l.scratch, &following);
    } else {
      uint32_t at = d->gate_layout == MOI_GATE_CONCAT ? inter : 0;
      if (d->gate_layout != MOI_GATE_NONE)
        g = product(kernel, &gate, n0, n1, x, rows, mr, l.gate, ldc, l.scratch, &(span){up, at + n0, at + n1});
      u = product(kernel, &up, at + n0, at + n1, x, rows, mr, l.up, ldc, l.scratch, &following);
    }
    for (uint32_t r = 0; r < mr; r++) {
      uint32_t p = first + r0 + r;
      const float *gr = g ? g + r * ldc : NULL, *ur = u + r * ldc;
      if (d->gate_layout == MOI_GATE_INTERLEAVED) {
        for (uint32_t j = 0; j < n; j++) {
          g_row[j] = ur[2 * j] + (d->bias_type ? bias_g[2 * j] : 0.0f);
          u_row[j] = ur[2 * j + 1] + (d->bias_type ? bias_g[2 * j + 1] : 0.0f);
        }
        gr = g_row;
        ur = u_row;
      } else if (d->bias_type) {
        for (uint32_t j = 0; j < n; j++) u_row[j] = ur[j] + bias_u[j];
        for (uint32_t j = 0; gr && j < n; j++) g_row[j] = gr[j] + bias_g[j];
        gr = gr ? g_row : NULL;
        ur = u_row;
      }
      float weight = d->weight_on == MOI_WEIGHT_ON_ACTIVATION ? f->weights[f->order[p]] : 1.0f;
      float *mid = f->mid + p * f->ip;
      w->ew->activate(d->activation, d->act_alpha, d->act_limit, gr, ur, weight, mid + n0, n);
      if (d->mid_type != MOI_FORMAT_F32) {
        uint16_t rounded[BLOCK_MAX];
        w->ew->store(d->mid_type, mid + n0, 1.0f, rounded, n);
        w->ew->load(d->mid_type, rounded, mid + n0, n);
      }
      if (n1 == inter) memset(mid + inter, 0, (f->ip - inter) * 4);
    }
  }
}

/* ---- step 3 */

static void prepare_mid(void *arg, uint32_t lane_index, uint32_t i) {
  const ffn_work *w = arg;
  (void)lane_index;
  uint32_t routed = w->ffn[0].mid_in_place ? 0 : ((uint32_t)w->ffn[0].offsets[w->ffn[0].d->n_experts] + SLOTS - 1) / SLOTS;
  const ffn *f = i < routed ? &w->ffn[0] : &w->ffn[1];
  uint32_t p0 = (i < routed ? i : i - routed) * SLOTS;
  uint32_t p1 = moi_min_u32(p0 + SLOTS, (uint32_t)f->offsets[f->d->n_experts]);
  for (uint32_t p = p0; p < p1; p++) {
    float *mid = f->mid + p * f->ip;
    uint32_t e = f->ids ? (uint32_t)f->ids[f->order[p]] : 0;
    const moi_cpu_kernel *kernel = moi_pick_for(&f->state->down, (uint32_t)f->counts[e]);
    uint8_t *out = f->mid_form[kernel == f->state->down.few ? 0 : 1];
    if (!moi_form_is_int8(kernel->form)) moi_act_quant_row(f->d->act_quant, mid, f->d->intermediate);
    moi_form_prepare(kernel->form, w->isa)(mid, f->d->intermediate, out + p * moi_form_bytes(kernel->form, f->d->intermediate));
  }
}

/* ---- step 4 */

/* What is multiplied after the rows from n0 on of the a-th active expert: the next expert's, or what this thread's next task
 * begins with, as tasks are taken in turn. */
static span after_down(const ffn_work *w, const ffn *f, uint32_t a, uint32_t n0) {
  span s = {.n1 = 0};
  if (++a >= f->n_active) {
    a = 0;
    if (f == w->ffn && w->n_ffn > 1 && w->ffn[1].n_active) {
      f = &w->ffn[1];
    } else {
      n0 += w->plan->context->desc.n_workers * w->down_block;
      f = &w->ffn[w->ffn[0].n_active ? 0 : 1];
    }
  }
  const moi_experts_desc *d = f->d;
  if (a >= f->n_active || n0 >= d->hidden) return s;
  s.matrix = moi_matrix_of(&f->in->down, d->down_format, d->hidden, d->intermediate, f->active[a], tables(f));
  s.n0 = n0;
  s.n1 = moi_min_u32(n0 + w->down_block, d->hidden);
  return s;
}

static void add_experts(const ffn_work *w, const ffn *f, const lane *l, uint32_t n0, uint32_t n1) {
  const moi_experts_desc *d = f->d;
  uint32_t n = n1 - n0;
  float bias[TILE];
  for (uint32_t a = 0; a < f->n_active; a++) {
    uint32_t e = f->active[a], m = (uint32_t)f->counts[e], first = (uint32_t)f->offsets[e];
    const moi_cpu_kernel *kernel = moi_pick_for(&f->state->down, m);
    const uint8_t *x = f->mid_form[kernel == f->state->down.few ? 0 : 1];
    moi_matrix down = moi_matrix_of(&f->in->down, d->down_format, d->hidden, d->intermediate, e, tables(f));
    const span next = after_down(w, f, a, n0);
    if (d->bias_type) load_bias(w, f, &f->in->down, e, n0, n, bias);
    for (uint32_t r0 = 0, mr; r0 < m; r0 += mr) {
      mr = rows_now(m - r0);
      const float *c =
          product(kernel, &down, n0, n1, x, f->self + first + r0, mr, l->gate, BLOCK_MAX, l->scratch, &next);
      for (uint32_t r = 0; r < mr; r++) {
        uint32_t slot = (uint32_t)f->order[first + r0 + r];
        float weight = d->weight_on == MOI_WEIGHT_ON_OUTPUT ? f->weights[slot] : 1.0f;
        w->ew->combine(l->acc + (size_t)(slot / d->top_k) * n, c + (size_t)r * BLOCK_MAX, d->bias_type ? bias : NULL,
                       weight, n);
      }
    }
  }
  /* identity experts sort behind the real ones */
  size_t element = d->input_type == MOI_FORMAT_F32 ? 4 : 2;
  const uint8_t *x = moi_view(f->in->args.input);
  uint32_t end = (uint32_t)f->offsets[d->n_experts + d->n_identity];
  for (uint32_t p = (uint32_t)f->offsets[d->n_experts]; p < end; p++) {
    uint32_t slot = (uint32_t)f->order[p], t = slot / d->top_k;
    w->ew->load(d->input_type, x + ((size_t)t * f->in->args.input_stride + n0) * element, l->row, n);
    w->ew->combine(l->acc + (size_t)t * n, l->row, NULL, f->weights[slot], n);
  }
}

static void down(void *arg, uint32_t lane_index, uint32_t i) {
  const ffn_work *w = arg;
  const moi_experts_desc *d = w->ffn[0].d;
  uint32_t n0 = i * w->down_block, n1 = moi_min_u32(n0 + w->down_block, d->hidden), n = n1 - n0;
  lane l = lane_of(w, lane_index);
  memset(l.acc, 0, (size_t)w->n_tokens * n * 4);
  for (uint32_t j = 0; j < w->n_ffn; j++) add_experts(w, &w->ffn[j], &l, n0, n1);
  const moi_experts_args *a = &w->run->experts.args;
  uint8_t *y = moi_view(a->output);
  size_t element = d->output_type == MOI_FORMAT_F32 ? 4 : 2;
  for (uint32_t t = 0; t < w->n_tokens; t++) {
    uint8_t *out = y + ((size_t)t * a->output_stride + n0) * element;
    const float *acc = l.acc + (size_t)t * n;
    if (!(d->flags & MOI_EXPERTS_ACCUMULATE)) {
      w->ew->store(d->output_type, acc, w->plan->output_scale, out, n);
      continue;
    }
    for (uint32_t j = 0; j < n; j++) {
      float v = acc[j] * w->plan->output_scale + moi_dense_load(d->output_type, out, j);
      moi_dense_store(d->output_type, out, j, v);
    }
  }
}

/* ---- the run */

/* Sorts the slots and finds which kernels this run needs; an active expert without weights is an error. */
static moi_status arrange(const char *fn, const ffn_work *w, ffn *f) {
  const moi_experts_desc *d = f->d;
  f->n_slots = w->n_tokens * d->top_k;
  if (f->ids) {
    moi_sort_slots(f->ids, f->n_slots, d->n_experts + d->n_identity, f->counts, f->offsets, f->order);
  } else {
    f->counts[0] = (int32_t)w->n_tokens;
    f->offsets[0] = 0;
    f->offsets[1] = (int32_t)w->n_tokens;
    for (uint32_t t = 0; t < w->n_tokens; t++) f->order[t] = (int32_t)t;
    if (w->plan->shared_gate == MOI_SHARED_PLAIN)
      for (uint32_t t = 0; t < w->n_tokens; t++) f->own_weights[t] = 1.0f;
    f->weights = f->own_weights;
  }
  uint32_t n_rows = (uint32_t)f->offsets[d->n_experts];
  for (uint32_t p = 0; p < n_rows; p++) {
    f->self[p] = p;
    f->x_row[p] = d->weight_on == MOI_WEIGHT_ON_INPUT ? p : (uint32_t)f->order[p] / d->top_k;
  }
  f->n_active = 0;
  f->uses[0] = f->uses[1] = 0;
  for (uint32_t e = 0; e < d->n_experts; e++) {
    if (!f->counts[e]) continue;
    f->active[f->n_active++] = e;
    f->uses[moi_pick_for(&f->state->gate, (uint32_t)f->counts[e]) != f->state->gate.few] = 1;
    if (!tables(f)) continue;
    int missing = !moi_matrix_of(&f->in->up, d->format, 1, 1, e, 1).data ||
                  !moi_matrix_of(&f->in->down, d->down_format, 1, 1, e, 1).data ||
                  (d->gate_layout == MOI_GATE_SPLIT && !moi_matrix_of(&f->in->gate, d->format, 1, 1, e, 1).data);
    if (!missing && d->bias_type)
      missing = !moi_bias_of(&f->in->up, e, 1) || !moi_bias_of(&f->in->down, e, 1) ||
                (d->gate_layout == MOI_GATE_SPLIT && !moi_bias_of(&f->in->gate, e, 1));
    if (missing)
      return moi_fail(MOI_INVALID_ARGUMENT, fn, "args->gate, up, down: expert %u is used and its table entry is null", e);
  }
  return MOI_OK;
}

/* A block of weight rows for a task: as large as gives every worker some tasks to balance with. */
static uint32_t block_for(const ffn_work *w, uint32_t n, uint32_t n_experts) {
  uint32_t block = BLOCK_MAX, workers = w->plan->context->desc.n_workers;
  while (block > BLOCK_MIN && (uint64_t)((n + block - 1) / block) * n_experts < 8ull * workers) block /= 2;
  return block;
}

moi_status moi_cpu_ffn(const char *fn, const moi_plan *plan, const moi_run *run, moi_carve *c, const int32_t *ids,
                       const float *weights, uint32_t n_tokens) {
  if (!n_tokens) return MOI_OK;
  const moi_cpu *cpu = plan->context->state;
  ffn_work w;
  memset(&w, 0, sizeof w);
  w.run = run;
  w.isa = cpu->isa;
  w.ew = moi_elementwise_for(cpu->isa);
  w.n_tokens = n_tokens;
  carve(plan, c, &w);
  w.ffn[0].in = &run->experts;
  w.ffn[0].ids = ids;
  w.ffn[0].weights = weights;
  w.ffn[1].in = &run->shared;
  uint32_t x_rows = 0, tasks = 0, mid_tasks = 0;
  for (uint32_t i = 0; i < w.n_ffn; i++) {
    ffn *f = &w.ffn[i];
    moi_status status = arrange(fn, &w, f);
    if (status) return status;
    x_rows += f->d->weight_on == MOI_WEIGHT_ON_INPUT ? f->n_slots : n_tokens;
    f->block = block_for(&w, f->d->intermediate, f->n_active);
    f->first_task = tasks;
    f->n_tasks = f->n_active * ((f->d->intermediate + f->block - 1) / f->block);
    tasks += f->n_tasks;
    if (!f->mid_in_place) mid_tasks += ((uint32_t)f->offsets[f->d->n_experts] + SLOTS - 1) / SLOTS;
  }
  w.down_block = block_for(&w, plan->experts.hidden, 1);
  moi_pool_run(plan->context, x_rows, prepare_x, &w);
  moi_pool_run(plan->context, tasks, gate_up, &w);
  moi_pool_run(plan->context, mid_tasks, prepare_mid, &w);
  moi_pool_run(plan->context, (plan->experts.hidden + w.down_block - 1) / w.down_block, down, &w);
  return MOI_OK;
}
