#include "cuda/grouped.h"

#include <stdio.h>

#include "core/format.h"
#include "cuda/cublas.h"

enum { MAX_GRID_Y = 65535 };

enum {
  SORT_ALONE = 4096,   /* slots that one block sorts */
  SORT_PART = 1024,    /* slots of a block, at least, where they are more */
  SORT_CLASSES = 4096, /* more lie outside of shared memory, and are sorted by one block */
  SORT_COUNTS = 32768,
  SORT_BLOCKS = 256
};

uint32_t moi_cu_digits_of(moi_cu_form form, const moi_cu_activations *x) {
  int pow2 = x->act_quant == MOI_ACT_QUANT_FP8_128_POW2;
  switch (form) {
    case MOI_CU_DIGITS: return x->act_quant ? 2u - (uint32_t)pow2 : x->type == MOI_FORMAT_BF16 ? 1 : 2;
    case MOI_CU_DIGITS_F16:
      return x->act_quant ? 2u - (uint32_t)pow2 : x->type == MOI_FORMAT_BF16 || x->type == MOI_FORMAT_F16 ? 1 : 2;
    case MOI_CU_INT8: return x->act_quant == MOI_ACT_QUANT_INT8_32 ? 1 : 2;
    default: return 0;
  }
}

moi_status moi_cu_gemm_choose_of(const char *fn, moi_plan *plan, const char *what, moi_format format, int gate_up,
                                 const moi_cu_activations *x, const char *forced, int *found, moi_cu_gemm_state *out) {
  moi_status status = moi_cu_choose_of(fn, plan, MOI_OP_GEMM, what, format, x, forced, found, &out->pick);
  for (int which = 0; which < 2 && !status; which++) {
    const moi_cu_kernel *row = which ? out->pick.many : out->pick.few;
    uint32_t digits = out->n_digits[which] = x ? moi_cu_digits_of(row->form, x) : 0;
    if (row->flags & MOI_CU_ROW_CUBLAS) {
      status = moi_cublas_start(fn, plan->context);
      continue;
    }
    char name[96];
    snprintf(name, sizeof name, "%s%s%s", row->image, digits == 1 ? "_one" : "", gate_up ? "_up" : "");
    status = moi_cu_function_get(fn, plan->context, row->image, name, &out->function[which]);
    out->shared[which] = row->shared + digits * row->shared_digit;
    if (!status && out->shared[which])
      status = moi_cu_function_shared(fn, plan->context, out->function[which], out->shared[which]);
  }
  return status;
}

moi_status moi_cu_gemm_choose(const char *fn, moi_plan *plan, const char *what, moi_format format, int gate_up,
                              const char *forced, int *found, moi_cu_gemm_state *out) {
  return moi_cu_gemm_choose_of(fn, plan, what, format, gate_up, NULL, forced, found, out);
}

void *moi_cu_gemm_room(moi_carve *c, const moi_plan *plan, const moi_cu_gemm_state *state) {
  const moi_cuda *cuda = plan->context->state;
  return state->pick.many->flags & MOI_CU_ROW_CUBLAS ? moi_take(c, moi_cublas_room(cuda->traits.sm), 1) : NULL;
}

/* ---- forms */

static const moi_cu_kernel *row_at(const moi_cu_gemm_state *state, uint32_t list) {
  return list ? state->pick.many : state->pick.few;
}

/* The list that a run of one expert has. */
static uint32_t list_of(const moi_cu_gemm_state *state, uint32_t rows) {
  return state->pick.few->m_max == 0 || rows <= state->pick.few->m_max ? 0 : 1;
}

moi_cu_form moi_cu_form_of(const moi_cu_gemm_state *state, uint32_t list) {
  return row_at(state, list)->form;
}

uint32_t moi_cu_forms(const moi_cu_gemm_state *state, uint32_t lists) {
  uint32_t forms = 0;
  for (uint32_t list = 0; list < 2; list++)
    if (lists >> list & 1) forms |= 1u << moi_cu_form_of(state, list);
  return forms;
}

uint32_t moi_cu_lists(const moi_cu_gemm_state *state, const moi_cu_groups *g, uint32_t slots) {
  if (!g) return 1u << list_of(state, slots);
  return g->lists == 1 || slots <= g->m_max ? 1 : 3;
}

void moi_cu_rows_carve(moi_carve *c, uint32_t forms, size_t rows, uint32_t k, const moi_cu_activations *x,
                       moi_cu_rows *out) {
  memset(out, 0, sizeof *out);
  for (uint32_t form = 0; form < MOI_CU_FORMS; form++) {
    if (!(forms >> form & 1)) continue;
    size_t bytes = (size_t)moi_cu_kp(k) * 4, n_scales = form == MOI_CU_DIGITS_F16;
    if (form == MOI_CU_E4M3) bytes = MOI_CU_UP128((size_t)k), n_scales = bytes / 128;
    out->of[form] = moi_take(c, rows, bytes);
    if (n_scales) out->scales[form] = moi_take(c, rows, n_scales * 4);
    out->n_digits[form] = moi_cu_digits_of((moi_cu_form)form, x);
  }
}

/* Bytes from a row of W to the next; 0 for formats whose rows are not bytes side by side. */
static uint64_t row_bytes(moi_format format, uint32_t k) {
  const moi_format_row *row = moi_format_find(format);
  return row && !row->k_major ? (uint64_t)k / row->block_k * row->block_bytes : 0;
}

moi_cu_matrix moi_cu_matrix_of(const moi_weights *w, moi_format format, uint32_t rows, uint32_t k, uint32_t tables) {
  moi_cu_matrix m = {.data = moi_view(w->data),
                     .scales = moi_view(w->scales),
                     .zeros = moi_view(w->zeros),
                     .bias = moi_view(w->bias),
                     .data_stride = w->data_stride,
                     .scales_stride = w->scales_stride,
                     .zeros_stride = w->zeros_stride,
                     .bias_stride = w->bias_stride,
                     .global_scale = moi_view(w->global_scale),
                     .tables = tables,
                     .rows = rows,
                     .row_mul = 1};
  m.vectors = !tables && !(((uintptr_t)m.data | m.data_stride | row_bytes(format, k)) & 15);
  return m;
}

/* ---- groups */

static uint64_t max_items(uint64_t rows, uint32_t n_experts, uint32_t tile) {
  uint64_t items = rows / tile + n_experts;
  return items < rows ? items : rows;
}

void moi_cu_groups_carve(moi_carve *c, const moi_cu_gemm_state *first, const moi_cu_gemm_state *second, uint64_t rows,
                         uint32_t n_class, uint32_t n_experts, int offsets_given, uint32_t n_parts, moi_cu_groups *g) {
  memset(g, 0, sizeof *g);
  const moi_cu_pick *a = &first->pick, *b = &second->pick;
  g->m_max = a->few != a->many ? a->few->m_max : b->few != b->many ? b->few->m_max : UINT32_MAX;
  g->lists = g->m_max == UINT32_MAX ? 1 : 2;
  g->m_tile[0] = moi_cu_min(a->few->m_tile, b->few->m_tile);
  g->m_tile[1] = moi_cu_min(a->many->m_tile, b->many->m_tile);
  g->counts = moi_take(c, n_class, 4);
  g->offsets = moi_take(c, (size_t)n_class + 1, 4);
  g->ends = moi_take(c, 2, 4);
  if (!offsets_given) {
    g->permutation = moi_take(c, (size_t)rows, 4);
    g->histograms = moi_cu_sort_carve(c, rows, n_class, n_parts);
  }
  for (int i = 0; i < 2; i++) {
    g->max_items[i] = max_items(rows, n_experts, g->m_tile[i]);
    g->n_items[i] = moi_take(c, 1, 4);
    g->items[i] = moi_take(c, (size_t)g->max_items[i], sizeof(moi_cu_item));
  }
}

void moi_cu_groups_few(moi_cu_groups *g, uint32_t n_tokens) {
  if (n_tokens > g->m_max) return;
  g->lists = 1;
  g->m_max = UINT32_MAX;
}

moi_cu_sort_args moi_cu_groups_args(const moi_cu_groups *g, const int32_t *ids, uint32_t n_tokens, uint32_t top_k,
                                    uint32_t n_class, uint32_t n_experts) {
  return (moi_cu_sort_args){.ids = ids,
                            .counts = g->counts,
                            .offsets = g->offsets,
                            .permutation = g->permutation,
                            .histograms = g->histograms,
                            .n_items = {g->n_items[0], g->n_items[1]},
                            .items = {g->items[0], g->items[1]},
                            .ends = g->ends,
                            .n_tokens = n_tokens,
                            .top_k = top_k,
                            .n_class = n_class,
                            .n_experts = n_experts,
                            .m_max = g->m_max,
                            .m_tile = {g->m_tile[0], g->m_tile[1]}};
}

void moi_cu_groups_given(moi_cu_run *r, moi_cu_function function, const moi_cu_groups *g, const int32_t *offsets,
                         uint32_t rows, uint32_t n_experts) {
  moi_cu_sort_args a = moi_cu_groups_args(g, offsets, rows, 1, n_experts, n_experts);
  moi_cu_launch(r, function, &a, 1, 1, MOI_CU_SORT_THREADS);
}

/* Items, x and the form of y for a list; how many items there may be, 0: the list has nothing. */
static uint32_t set_list(const moi_cu_grouped *g, uint32_t list) {
  moi_cu_gemm_args *a = g->args;
  uint64_t items;
  if (g->groups) {
    if (list >= g->groups->lists) return 0;
    a->n_items = g->groups->n_items[list];
    a->items = g->groups->items[list];
    a->m_tile = g->groups->m_tile[list];
    items = g->rows < g->groups->max_items[list] ? g->rows : g->groups->max_items[list]; /* an item has a row at least */
  } else {
    if (list != list_of(g->state, g->rows)) return 0;
    a->n_items = NULL;
    a->items = NULL;
    a->m_tile = row_at(g->state, list)->m_tile;
    items = moi_cu_ceil_div(g->rows, a->m_tile);
  }
  if (g->rows_of) {
    a->x = g->rows_of->of[moi_cu_form_of(g->state, list)];
    a->x_scales = g->rows_of->scales[moi_cu_form_of(g->state, list)];
    a->y_digits = g->rows_of->y_digits[list];
  }
  return items < MAX_GRID_Y ? (uint32_t)items : MAX_GRID_Y;
}

void moi_cu_gemm_run(moi_cu_run *r, const moi_cu_grouped *g) {
  for (uint32_t list = 0; list < 2; list++) {
    uint32_t y = set_list(g, list);
    const moi_cu_kernel *row = row_at(g->state, list);
    if (row->flags & MOI_CU_ROW_CUBLAS) {
      const moi_cu_gemm_args *a = g->args;
      moi_cublas_product p = {row,  a->x, a->up.data, a->y,   g->room,   y ? g->rows : 0,
                              a->n, a->k, a->ldx,     a->ldy, g->state->n_digits[list]};
      moi_cublas_run(r, &p);
      continue;
    }
    moi_cu_gemm_pair p = {.of = {*g->args}, .first_y = y};
    moi_cu_launch_shared(r, g->state->function[list], &p, moi_cu_ceil_div(g->columns, row->n_tile), y, row->threads,
                         g->state->shared[list]);
  }
}

int moi_cu_gemm_pairs(const moi_cu_grouped *first, const moi_cu_grouped *second) {
  const moi_cu_kernel *row = row_at(first->state, 0);
  return row->flags & MOI_CU_ROW_PAIRS && row == row_at(second->state, list_of(second->state, second->rows));
}

void moi_cu_gemm_run_pair(moi_cu_run *r, const moi_cu_grouped *first, const moi_cu_grouped *second) {
  const moi_cu_kernel *row = row_at(first->state, 0);
  uint32_t y = set_list(first, 0), y2 = set_list(second, list_of(second->state, second->rows));
  uint32_t columns = first->columns > second->columns ? first->columns : second->columns;
  moi_cu_gemm_pair p = {.of = {*first->args, *second->args}, .first_y = y};
  moi_cu_launch_shared(r, first->state->function[0], &p, moi_cu_ceil_div(columns, row->n_tile), y + y2, row->threads,
                       first->state->shared[0]);
}

uint32_t moi_cu_prepare_add(moi_cu_prepare_set *set, const moi_cu_prepare_args *args, uint32_t forms, const moi_cu_rows *to) {
  moi_cu_prepare_args a = *args;
  uint32_t at = 0, n = 0;
  while (at < MOI_CU_PREPARES && set->of[at].n_rows) at++;
  a.x = forms & 1u << MOI_CU_FLOATS ? to->of[MOI_CU_FLOATS] : NULL;
  for (uint32_t form = MOI_CU_FLOATS + 1; form < MOI_CU_FORMS && at + n < MOI_CU_PREPARES; form++) {
    if (!(forms >> form & 1)) continue;
    a.codes = to->of[form];
    a.scales = to->scales[form];
    a.form = form;
    a.n_digits = to->n_digits[form];
    set->of[at + n++] = a;
    a.x = NULL;
    a.gate = NULL;
  }
  if (!n && (a.x || a.gate)) set->of[at + n++] = a;
  return n;
}

static uint32_t prepare_blocks(const moi_cu_run *r, const moi_cu_prepare_set *set) {
  uint64_t rows = 0;
  for (uint32_t i = 0; i < MOI_CU_PREPARES; i++) rows += set->of[i].n_rows;
  return moi_cu_fill(r, rows);
}

void moi_cu_prepare(moi_cu_run *r, moi_cu_function function, const moi_cu_prepare_set *set) {
  moi_cu_launch(r, function, set, prepare_blocks(r, set), 1, MOI_CU_PREPARE_THREADS);
}

/* ---- for other ops */

moi_status moi_cu_steps_get(const char *fn, const moi_context *context, const char *image, const char *name,
                            moi_cu_steps *out) {
  const moi_cuda *c = context->state;
  int blocks = 0;
  out->most = 0;
  moi_status status = moi_cu_function_get(fn, context, image, name, &out->function);
  if (status || !c->traits.together) return status;
  moi_cu_result result = c->cu->Occupancy(&blocks, out->function, MOI_CU_SORT_THREADS, 0);
  if (result) return moi_cu_fail(fn, c->cu, "cuOccupancyMaxActiveBlocksPerMultiprocessor", result);
  /* not all that the device holds: they would wait for every block of other streams to end */
  out->most = (uint32_t)blocks * c->traits.processors * 3 / 4;
  return MOI_OK;
}

uint32_t moi_cu_steps_blocks(const moi_cu_steps *s, uint32_t wanted) {
  return s->most ? moi_cu_min(wanted, s->most) : wanted;
}

void moi_cu_steps_run(moi_cu_run *r, const moi_cu_steps *s, const void *args, moi_cu_sort_args *sort,
                      const moi_cu_prepare_set *rows, uint32_t selecting) {
  uint32_t steps = sort->steps, blocks = sort->n_blocks + prepare_blocks(r, rows);
  int wait = selecting > 1 || sort->n_blocks > 1;
  for (uint32_t i = 0; i < MOI_CU_PREPARES; i++) wait |= selecting && rows->of[i].n_rows && rows->of[i].weights;
  if (selecting > blocks) blocks = selecting;
  sort->together = 0;
  if (!(steps & (steps - 1)) || !wait) { /* one step, or one block whose results no other reads */
    moi_cu_launch(r, s->function, args, blocks, 1, MOI_CU_SORT_THREADS);
    return;
  }
  if (s->most) {
    sort->together = 1;
    if (moi_cu_launch_together(r, s->function, args, moi_cu_min(blocks, s->most), MOI_CU_SORT_THREADS)) return;
    sort->together = 0;
  }
  for (uint32_t step = MOI_CU_STEP_SELECT; step <= MOI_CU_STEP_SORT; step <<= 1) {
    sort->steps = steps & step;
    if (sort->steps) moi_cu_launch(r, s->function, args, blocks, 1, MOI_CU_SORT_THREADS);
  }
}

/* Each reads the counts of all, so that those are bounded. Grows with the slots. */
uint32_t moi_cu_sort_blocks(uint64_t slots, uint32_t n_class) {
  if (slots <= SORT_ALONE || n_class > SORT_CLASSES) return 1;
  uint64_t blocks = (slots + SORT_PART - 1) / SORT_PART, most = SORT_COUNTS / n_class;
  most = most < SORT_BLOCKS ? most : SORT_BLOCKS;
  return (uint32_t)(blocks < most ? blocks : most);
}

uint32_t *moi_cu_sort_carve(moi_carve *c, uint64_t slots, uint32_t n_class, uint32_t n_parts) {
  uint32_t blocks = moi_cu_sort_blocks(slots, n_class);
  if (n_parts > blocks) blocks = n_parts;
  return moi_take(c, blocks > 1 ? (size_t)blocks * n_class : 0, 4);
}

void moi_cu_sort(moi_cu_run *r, const moi_cu_steps *steps, moi_cu_sort_prepare_args *a) {
  uint64_t slots = (uint64_t)a->sort.n_tokens * a->sort.top_k;
  a->sort.n_blocks = moi_cu_steps_blocks(steps, moi_cu_sort_blocks(slots, a->sort.n_class));
  a->sort.steps = MOI_CU_STEP_SORT | (a->sort.n_blocks > 1 ? MOI_CU_STEP_COUNT : 0);
  moi_cu_steps_run(r, steps, a, &a->sort, &a->rows, 0);
}

void moi_cu_product_run(moi_cu_run *r, const moi_cu_gemm_state *state, const moi_cu_product *p) {
  moi_cu_gemm_args a = {.x = p->x,
                        .y = p->y,
                        .n_rows_device = p->n_rows_device,
                        .ldx = moi_cu_kp(p->k),
                        .ldy = p->n,
                        .n = p->n,
                        .k = p->k,
                        .x_div = 1,
                        .n_rows = p->n_rows,
                        .rows_per_count = 1};
  a.up.data = p->w;
  a.up.rows = p->n;
  a.up.row_mul = 1;
  a.up.vectors = !(((uintptr_t)p->w | row_bytes(state->pick.many->format, p->k)) & 15);
  moi_cu_gemm_run(r, &(moi_cu_grouped){.state = state, .args = &a, .columns = p->n, .rows = p->n_rows, .room = p->room});
}
