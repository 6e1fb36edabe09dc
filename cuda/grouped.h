/* Grouped GEMMs and what stands before them: slots sorted by expert, rows prepared, work items. */
#ifndef MOI_CUDA_GROUPED_H
#define MOI_CUDA_GROUPED_H

#include "cuda/cuda.h"

/* A matrix's addresses out of the views of a run. rows: N; k and format say whether its rows are vectors. */
moi_cu_matrix moi_cu_matrix_of(const moi_weights *w, moi_format format, uint32_t rows, uint32_t k, uint32_t tables);

/* ---- groups: what sort and groups make */

typedef struct moi_cu_groups {
  uint32_t *counts, *offsets, *permutation, *ends, *histograms;
  uint32_t *n_items[2]; /* few, many */
  moi_cu_item *items[2];
  uint64_t max_items[2];
  uint32_t lists, m_max, m_tile[2]; /* lists: 1 if all items are in the first */
} moi_cu_groups;

/* rows: slots, or rows of a bare GEMM. `first` and `second` share the items, which are cut so that both can take them.
 * n_parts: as moi_cu_sort_carve has it. */
void moi_cu_groups_carve(moi_carve *carve, const moi_cu_gemm_state *first, const moi_cu_gemm_state *second, uint64_t rows,
                         uint32_t n_class, uint32_t n_experts, int offsets_given, uint32_t n_parts, moi_cu_groups *out);
/* Where no more than groups->m_max tokens are run, one list has all items: no second launch finds nothing to do. An expert
 * that a token names twice has two items then. */
void moi_cu_groups_few(moi_cu_groups *groups, uint32_t n_tokens);
/* The sort that makes them from ids: all but n_tokens_device, n_blocks, steps and together. */
moi_cu_sort_args moi_cu_groups_args(const moi_cu_groups *groups, const int32_t *ids, uint32_t n_tokens, uint32_t top_k,
                                    uint32_t n_class, uint32_t n_experts);
/* Of rows, from the offsets of their experts. function: groups */
void moi_cu_groups_given(moi_cu_run *r, moi_cu_function function, const moi_cu_groups *groups, const int32_t *offsets,
                         uint32_t rows, uint32_t n_experts);

/* ---- activations in the forms that kernels take */

/* The form that the kernel of a list takes. */
moi_cu_form moi_cu_form_of(const moi_cu_gemm_state *state, uint32_t list);
/* A bit for each form that the kernels of some lists (1: few, 2: many) take. */
uint32_t moi_cu_forms(const moi_cu_gemm_state *state, uint32_t lists);
/* The lists that may have items, of so many slots at most; groups NULL: the one that moi_cu_gemm_run has without. */
uint32_t moi_cu_lists(const moi_cu_gemm_state *state, const moi_cu_groups *groups, uint32_t slots);

/* Rows in every form that some kernel takes; null in the others. */
typedef struct moi_cu_rows {
  float *of[MOI_CU_FORMS], *scales[MOI_CU_FORMS];
  uint32_t n_digits[MOI_CU_FORMS];
  uint32_t y_digits[2]; /* of y, that the kernels of the lists write (a gate and up alone) */
} moi_cu_rows;
void moi_cu_rows_carve(moi_carve *carve, uint32_t forms, size_t rows, uint32_t k, const moi_cu_activations *x,
                       moi_cu_rows *out);

/* One grouped GEMM. args: all but items; groups NULL: one expert, all rows. columns: to fill (ldy of a gate and up, else
 * n). rows: of this run at most. rows_of NULL: x as in args, floats. room: of moi_cu_gemm_room. A row of cuBLAS's has all rows
 * multiplied, whatever groups and n_rows_device say, and leaves the scales of rows and experts and the bias to its caller. */
typedef struct moi_cu_grouped {
  const moi_cu_gemm_state *state;
  moi_cu_gemm_args *args;
  const moi_cu_groups *groups;
  uint32_t columns, rows;
  const moi_cu_rows *rows_of;
  void *room;
} moi_cu_grouped;
void moi_cu_gemm_run(moi_cu_run *r, const moi_cu_grouped *g);
/* Whether the row of its first list can take both products in one launch, and does `second` all by itself. */
int moi_cu_gemm_pairs(const moi_cu_grouped *first, const moi_cu_grouped *second);
/* Both in one launch: where they pair, and groups of the first have one list. */
void moi_cu_gemm_run_pair(moi_cu_run *r, const moi_cu_grouped *first, const moi_cu_grouped *second);

enum { MOI_CU_PREPARE_THREADS = 256, MOI_CU_SORT_THREADS = 256, MOI_CU_COMBINE_THREADS = 64, MOI_CU_STORE_THREADS = 64 };
/* Adds rows to a set, an entry for each form that is no floats, the floats with the first. args: all but x, codes, scales,
 * form and n_digits; forms: those of `to` that are made. Returns how many entries these are. */
uint32_t moi_cu_prepare_add(moi_cu_prepare_set *set, const moi_cu_prepare_args *args, uint32_t forms, const moi_cu_rows *to);
void moi_cu_prepare(moi_cu_run *r, moi_cu_function function, const moi_cu_prepare_set *set);

#endif
