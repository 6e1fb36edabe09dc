#include "vulkan/grouped.h"

#include <stdio.h>

#include "core/format.h"

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t ceil_div(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }

enum { MAX_GROUPS_Y = 65535 };

/* Columns of a workgroup. */
static uint32_t n_tile(const moi_vulkan *v, const moi_vk_kernel *row) {
  return row->n_tile ? row->n_tile : v->traits.subgroup;
}

/* Nibbles of a word are eight consecutive k. */
static int even_odd(moi_format format) {
  switch (format) {
    case MOI_FORMAT_MXFP4:
    case MOI_FORMAT_NVFP4:
    case MOI_FORMAT_FP4_G16:
    case MOI_FORMAT_INT4_G32:
    case MOI_FORMAT_INT4_G128:
    case MOI_FORMAT_INT4Z_G32:
    case MOI_FORMAT_INT4Z_G128:
    case MOI_FORMAT_GPTQ_G32:
    case MOI_FORMAT_GPTQ_G128: return 1;
    default: return 0;
  }
}

moi_status moi_vk_gemm_choose(const char *fn, moi_plan *plan, const char *what, moi_format format, int gate_up,
                              moi_act_quant act_quant, const char *forced, int *found, moi_vk_gemm_state *out) {
  const moi_vulkan *v = plan->context->state;
  moi_status status = moi_vk_choose(fn, plan, MOI_OP_GEMM, what, format, forced, found, &out->pick);
  if (status) return status;
  uint32_t digits = act_quant == MOI_ACT_QUANT_INT8_32 ? 1 : 2, integers = out->pick.many->flags & MOI_VK_DIGITS;
  if ((out->pick.few->flags & MOI_VK_DIGITS) != integers)
    return moi_fail(MOI_INTERNAL, fn, "%s and %s read x in two forms", out->pick.few->name, out->pick.many->name);
  out->form = integers ? digits | (even_odd(format) ? MOI_VK_EVEN_ODD : 0) : 0;
  for (int which = 0; which < 2 && !status; which++) {
    const moi_vk_kernel *row = which ? out->pick.many : out->pick.few;
    for (uint32_t aligned = 0; aligned < 2 && !status; aligned++) {
      uint32_t threads = min_u32(n_tile(v, row) * v->traits.subgroup, v->traits.max_threads);
      uint32_t whole = (row->flags & MOI_VK_WHOLE) != 0;
      if (whole) threads = v->traits.subgroup;
      uint32_t constants[7] = {aligned, gate_up != 0, threads, row->m_tile, row->n_tile, digits, (uint32_t)format};
      if (whole) constants[5] = v->traits.scalar_loads;
      status = moi_vk_row_want(fn, plan, row, constants, integers ? 7 : whole ? 6 : 5, &out->pipeline[which][aligned]);
    }
  }
  return status;
}

moi_vk_matrix moi_vk_matrix_of(const moi_vk_record *r, uint32_t which, const moi_weights *w, uint32_t rows, uint32_t k,
                               uint32_t tables, int *aligned) {
  moi_vk_matrix m = {.data_stride = w->data_stride,
                     .scales_stride = w->scales_stride,
                     .zeros_stride = w->zeros_stride,
                     .bias_stride = w->bias_stride,
                     .tables = tables,
                     .rows = rows,
                     .row_mul = 1};
  uint64_t none = 0;
  if (!which) moi_vk_first_stream(r);
  m.data = moi_vk_next_stream(r, w->data, &m.data_stride);
  m.scales = moi_vk_next_stream(r, w->scales, &m.scales_stride);
  m.zeros = moi_vk_next_stream(r, w->zeros, &m.zeros_stride);
  m.bias = moi_vk_next_stream(r, w->bias, &m.bias_stride);
  m.global_scale = moi_vk_next_stream(r, w->global_scale, &none);
  if (tables || ((m.data | m.data_stride | k) & 3)) *aligned = 0;
  return m;
}

/* ---- groups */

static uint64_t max_items(uint64_t rows, uint32_t n_experts, uint32_t tile) {
  uint64_t items = rows / tile + n_experts;
  return items < rows ? items : rows;
}

void moi_vk_groups_carve(moi_carve *c, const moi_vk_gemm_state *first, const moi_vk_gemm_state *second, uint64_t rows,
                         uint32_t n_class, uint32_t n_experts, int offsets_given, moi_vk_groups *g) {
  memset(g, 0, sizeof *g);
  const moi_vk_pick *a = &first->pick, *b = &second->pick;
  g->m_max = a->few != a->many ? a->few->m_max : b->few != b->many ? b->few->m_max : UINT32_MAX;
  g->lists = g->m_max == UINT32_MAX ? 1 : 2;
  g->m_tile[0] = min_u32(a->few->m_tile, b->few->m_tile);
  g->m_tile[1] = min_u32(a->many->m_tile, b->many->m_tile);
  g->counts = moi_take_at(c, n_class, 4);
  g->offsets = moi_take_at(c, (size_t)n_class + 1, 4);
  g->cursor = moi_take_at(c, n_class, 4);
  g->ends = moi_take_at(c, 2, 4);
  g->permutation = offsets_given ? 0 : moi_take_at(c, (size_t)rows, 4);
  for (int i = 0; i < 2; i++) {
    g->items[i] = moi_take_at(c, (size_t)max_items(rows, n_experts, g->m_tile[i]) + 1, 12);
    g->dispatch[i] = moi_take_at(c, 2 * MOI_VK_PARTS, 12);
  }
}

/* sort.comp: SortArgs */
typedef struct sort_args {
  uint64_t ids, n_tokens_device, counts, offsets, permutation, cursor;
  uint64_t items[2], dispatch[2], ends;
  uint32_t n_tokens, top_k, n_class, n_experts;
  uint32_t m_max, m_tile[2], n_dispatch;
} sort_args;

uint64_t moi_vk_groups_put(const moi_vk_record *r, moi_vk_block *block, const moi_vk_groups *g, uint64_t ids,
                           uint64_t n_tokens_device, uint32_t n_tokens, uint32_t top_k, uint32_t n_class,
                           uint32_t n_experts) {
  uint64_t base = r->workspace_address;
  sort_args a = {.ids = ids,
                 .n_tokens_device = n_tokens_device,
                 .counts = base + g->counts,
                 .offsets = base + g->offsets,
                 .permutation = base + g->permutation,
                 .cursor = base + g->cursor,
                 .items = {base + g->items[0], base + g->items[1]},
                 .dispatch = {base + g->dispatch[0], base + g->dispatch[1]},
                 .ends = base + g->ends,
                 .n_tokens = n_tokens,
                 .top_k = top_k,
                 .n_class = n_class,
                 .n_experts = n_experts,
                 .m_max = g->m_max,
                 .m_tile = {g->m_tile[0], g->m_tile[1]},
                 .n_dispatch = 2 * MOI_VK_PARTS};
  return moi_vk_put(r, block, &a, sizeof a);
}

/* ---- GEMMs */

moi_vk_gemm moi_vk_gemm_make(const moi_vk_record *r, const moi_vk_gemm_state *state, uint64_t args,
                             const moi_vk_groups *groups, uint32_t which, int aligned, uint32_t columns, uint32_t n_rows,
                             double work) {
  moi_vk_gemm g = {.state = state, .args = args, .groups = groups, .which = which, .aligned = aligned != 0,
                   .columns = columns, .n_rows = n_rows, .parts = 1};
  /* a small GPU makes half a TFLOP/s or more of it; software devices have no watchdog */
  double parts = r->v->traits.is_cpu ? 1 : work / 1e11;
  uint32_t blocks = ceil_div(columns, n_tile(r->v, state->pick.many));
  g.parts = parts > MOI_VK_PARTS ? MOI_VK_PARTS : parts < 1 ? 1 : (uint32_t)parts;
  g.parts = min_u32(g.parts, blocks);
  return g;
}

/* Part p of the blocks of columns: begins at *begin; returns how many. */
static uint32_t part_of(const moi_vk_record *r, const moi_vk_gemm *g, int list, uint32_t p, uint32_t *begin) {
  const moi_vk_kernel *row = list ? g->state->pick.many : g->state->pick.few;
  uint32_t blocks = ceil_div(g->columns, n_tile(r->v, row)), each = ceil_div(blocks, g->parts);
  *begin = min_u32(p * each, blocks);
  return min_u32(each, blocks - *begin);
}

void moi_vk_gemm_dispatches(const moi_vk_record *r, const moi_vk_gemm *g) {
  if (!g->groups) return;
  for (int list = 0; list < (int)g->groups->lists; list++) {
    uint32_t xyz[MOI_VK_PARTS][3], begin;
    for (uint32_t p = 0; p < g->parts; p++) {
      xyz[p][0] = part_of(r, g, list, p, &begin);
      xyz[p][1] = 0;
      xyz[p][2] = 1;
    }
    moi_vk_args(r, g->groups->dispatch[list] + (size_t)g->which * MOI_VK_PARTS * 12, xyz, g->parts * sizeof xyz[0]);
  }
}

/* gemm.glsl: Push */
typedef struct push {
  uint64_t args, items;
  uint32_t m_tile, block0;
} push;

void moi_vk_gemm_record(const moi_vk_record *r, const moi_vk_gemm *g) {
  const moi_vk_pick *pick = &g->state->pick;
  push p = {.args = g->args};
  uint32_t begin;
  moi_vk_bind_streams(r, g->weights);
  if (!g->groups) {
    int list = g->n_rows <= pick->few->m_max ? 0 : 1;
    p.m_tile = list ? pick->many->m_tile : pick->few->m_tile;
    for (uint32_t part = 0; part < g->parts; part++) {
      uint32_t x = part_of(r, g, list, part, &begin);
      p.block0 = begin;
      moi_vk_dispatch(r, g->state->pipeline[list][g->aligned], &p, sizeof p, x,
                      min_u32(ceil_div(g->n_rows, p.m_tile), MAX_GROUPS_Y), 1);
    }
    return;
  }
  for (int list = 0; list < (int)g->groups->lists; list++) {
    p.items = r->workspace_address + g->groups->items[list];
    p.m_tile = g->groups->m_tile[list];
    for (uint32_t part = 0; part < g->parts; part++) {
      part_of(r, g, list, part, &p.block0);
      moi_vk_dispatch_indirect(r, g->state->pipeline[list][g->aligned], &p, sizeof p,
                               g->groups->dispatch[list] + ((size_t)g->which * MOI_VK_PARTS + part) * 12);
    }
  }
}

void moi_vk_prepare(const moi_vk_record *r, VkPipeline pipeline, uint64_t args, uint32_t n_rows) {
  moi_vk_dispatch(r, pipeline, &args, sizeof args, min_u32(n_rows, MAX_GROUPS_Y), 1, 1);
}

/* ---- for other ops */

moi_status moi_vk_sort_plan(const char *fn, const moi_plan *plan, VkPipeline *out) {
  uint32_t offsets_given = 0;
  return moi_vk_pipeline_want(fn, plan, "sort", &offsets_given, 1, out);
}

size_t moi_vk_sort_count(moi_carve *carve, uint32_t n_class) {
  size_t at = moi_take_at(carve, sizeof(sort_args), 1);
  moi_take_at(carve, n_class, 4); /* cursors */
  return at;
}

void moi_vk_sort_record(const moi_vk_record *r, VkPipeline pipeline, size_t at, const moi_vk_sort *s) {
  moi_carve cursor = {NULL, at + sizeof(sort_args), 0};
  sort_args a = {.ids = s->ids,
                 .n_tokens_device = s->n_tokens_device,
                 .counts = s->counts,
                 .offsets = s->offsets,
                 .permutation = s->permutation,
                 .cursor = r->workspace_address + moi_take_at(&cursor, s->n_class, 4),
                 .n_tokens = s->n_tokens,
                 .top_k = s->top_k,
                 .n_class = s->n_class,
                 .m_tile = {1, 1}};
  uint64_t args = moi_vk_args(r, at, &a, sizeof a);
  moi_vk_barrier(r);
  moi_vk_dispatch(r, pipeline, &args, sizeof args, 1, 1, 1);
}

size_t moi_vk_product_count(moi_carve *carve, uint32_t max_rows) {
  (void)max_rows;
  return moi_take_at(carve, sizeof(moi_vk_gemm_args), 1);
}

void moi_vk_product_record(const moi_vk_record *r, const moi_vk_gemm_state *state, size_t at, uint32_t max_rows,
                           const moi_vk_product *p) {
  (void)max_rows;
  moi_vk_gemm_args a = {.x = p->x,
                        .y = p->y,
                        .n_rows_device = p->n_rows_device,
                        .ldx = moi_vk_kp(p->k),
                        .ldy = p->n,
                        .n = p->n,
                        .k = p->k,
                        .x_div = 1,
                        .n_rows = p->n_rows,
                        .rows_per_count = 1};
  a.up.data = p->w;
  a.up.rows = p->n;
  a.up.row_mul = 1;
  uint64_t args = moi_vk_args(r, at, &a, sizeof a);
  moi_vk_barrier(r);
  moi_vk_gemm g = moi_vk_gemm_make(r, state, args, NULL, 0, ((p->w | p->k) & 3) == 0, p->n, p->n_rows,
                                   (double)p->n_rows * p->n * p->k);
  moi_vk_gemm_record(r, &g);
}
