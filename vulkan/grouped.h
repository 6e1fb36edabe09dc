/* Grouped GEMMs and what stands before them: slots sorted by expert, rows prepared, work items. The structs are those of
 * the shaders of the same names, std430. */
#ifndef MOI_VULKAN_GROUPED_H
#define MOI_VULKAN_GROUPED_H

#include "vulkan/vulkan.h"

/* gemm.glsl: Matrix */
typedef struct moi_vk_matrix {
  uint64_t data, scales, zeros, bias;
  uint64_t data_stride, scales_stride, zeros_stride, bias_stride;
  uint64_t global_scale;
  uint32_t tables, rows, row_mul, row_add;
} moi_vk_matrix;

/* gemm.glsl: GemmArgs */
typedef struct moi_vk_gemm_args {
  moi_vk_matrix up, gate;
  uint64_t x, y, permutation, n_rows_device, weights;
  uint32_t ldx, ldy, n, k;
  uint32_t x_div, n_rows, bias_type, activation;
  uint32_t mid_type, has_gate, rows_per_count, reserved;
  float alpha, limit;
} moi_vk_gemm_args;

/* prepare.comp: PrepareArgs */
typedef struct moi_vk_prepare_args {
  uint64_t input_rows, x, weights, n_rows_device;
  uint64_t gate, gate_out;
  uint32_t input_type, gate_type, input_stride, ldx;
  uint32_t k, n_rows, row_div, rows_per_count;
  uint32_t act_quant;
  moi_vk_form form;
} moi_vk_prepare_args;

/* A matrix's addresses out of the views of a run. rows, k: N, K; bias_type 0: none. *aligned becomes 0 if a stream of an
 * expert may begin inside a word, or K is such that a row of it may. which: 0, then 1 if the GEMM has two; it is bound as
 * moi_vk_gemm's weights[which]. */
moi_vk_matrix moi_vk_matrix_of(const moi_vk_record *r, uint32_t which, const moi_weights *w, uint32_t rows, uint32_t k,
                               uint32_t tables, int *aligned);

/* ---- groups: what sort.comp makes */

/* Dispatches of one GEMM are cut into as many parts along the columns, so that none takes long enough for a desktop's
 * watchdog to take the device away. */
enum { MOI_VK_PARTS = 64 };

typedef struct moi_vk_groups {
  size_t counts, offsets, permutation, cursor, ends;
  size_t items[2];    /* few, many */
  size_t dispatch[2]; /* [2 GEMMs][MOI_VK_PARTS] of x, y, z */
  uint32_t lists, m_max, m_tile[2]; /* lists: 1 if all items are in the first */
} moi_vk_groups;

/* rows: slots, or rows of a bare GEMM. `first` and `second` share the items, which are cut so that both can take them. */
void moi_vk_groups_carve(moi_carve *carve, const moi_vk_gemm_state *first, const moi_vk_gemm_state *second, uint64_t rows,
                         uint32_t n_class, uint32_t n_experts, int offsets_given, moi_vk_groups *out);

/* One grouped GEMM ready to be recorded. */
typedef struct moi_vk_gemm {
  const moi_vk_gemm_state *state;
  uint64_t args;
  const moi_vk_groups *groups; /* NULL: one expert, all rows */
  uint32_t which;              /* 0 or 1: its place in the groups' dispatches */
  uint32_t aligned, columns, n_rows, parts;
  const moi_weights *weights[2]; /* NULL: it has no such matrix; in [0], it is a common view */
} moi_vk_gemm;

/* columns: to fill (moi_vk_gemm_args.ldy of a gate and up, else n); work: multiplications of all rows. */
moi_vk_gemm moi_vk_gemm_make(const moi_vk_record *r, const moi_vk_gemm_state *state, uint64_t args,
                             const moi_vk_groups *groups, uint32_t which, int aligned, uint32_t columns, uint32_t n_rows,
                             double work);
/* Adds the arguments of sort.comp and the dispatches of its GEMMs to a block. n_rows: tokens or rows; returns the
 * arguments' address. */
uint64_t moi_vk_groups_put(const moi_vk_record *r, moi_vk_block *block, const moi_vk_groups *groups, uint64_t ids,
                           uint64_t n_tokens_device, uint32_t n_tokens, uint32_t top_k, uint32_t n_class,
                           uint32_t n_experts);
/* Writes the dispatches of the GEMMs (x and z; sort.comp writes y). Before the barrier. */
void moi_vk_gemm_dispatches(const moi_vk_record *r, const moi_vk_gemm *gemm);
void moi_vk_gemm_record(const moi_vk_record *r, const moi_vk_gemm *gemm);

/* prepare.comp over n_rows rows. */
void moi_vk_prepare(const moi_vk_record *r, VkPipeline pipeline, uint64_t args, uint32_t n_rows);

#endif
