/* The CUDA backend's own state, and what its files give each other. */
#ifndef MOI_CUDA_CUDA_H
#define MOI_CUDA_CUDA_H

#include <moiety_cuda.h>
#include <string.h>

#include "core/backend.h"
#include "core/workspace.h"
#include "cuda/args.h"
#include "cuda/driver.h"
#include "cuda/kernel.h"

/* What kernels are chosen by. */
typedef struct moi_cu_traits {
  uint32_t sm;            /* 75: compute capability 7.5 */
  uint32_t processors;    /* multiprocessors */
  uint32_t shared_memory; /* bytes that a block may have, if it asks */
  /* cycles of a scheduler for 16 x 8 x 32 products of 16-bit numbers with fp32 sums, of bytes, and for a warp's fp32
   * instruction, by what NVIDIA says of its cards */
  uint32_t cycles_16, cycles_8, cycles_f32;
  uint32_t overlap;       /* 1: a launch may be made ready while the one before it runs */
  uint32_t together;      /* 1: there are launches whose blocks can meet */
} moi_cu_traits;

/* a context's state */
typedef struct moi_cuda {
  const moi_cu_driver *cu;
  moi_cu_device device;
  moi_cu_context context;
  uint32_t retained; /* 1: the device's primary context, ours to release */
  moi_cu_traits traits;
  struct moi_cu_modules *modules;
  struct moi_cublas *cublas; /* cublas.h */
} moi_cuda;

extern const moi_backend_ops moi_cuda_ops;

static inline uint32_t moi_cu_ceil_div(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
static inline uint32_t moi_cu_min(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* ---- device.c */
moi_status moi_cu_device_count(uint32_t *count);
moi_status moi_cu_device_get(uint32_t index, moi_device_info *info);
moi_status moi_cu_open(moi_context *context);
void moi_cu_close(moi_context *context);
/* Makes the context current, and the one before current again. */
moi_status moi_cu_enter(const char *function, const moi_cuda *c);
void moi_cu_leave(const moi_cuda *c);

/* ---- modules.c. An image holds the kernels of one file of cuda/kernels, for all architectures; a file called gemm_* is
 * compiled for each weight format, and its image is <file>_<format>. */
moi_status moi_cu_modules_open(const char *function, moi_context *context);
void moi_cu_modules_close(moi_context *context);
/* A kernel of an image. Loaded once for each context, lives as long as it. The context must be current. */
moi_status moi_cu_function_get(const char *function, const moi_context *context, const char *image, const char *name,
                               moi_cu_function *out);
/* Lets launches of a function ask for `bytes` of shared memory. */
moi_status moi_cu_function_shared(const char *function, const moi_context *context, moi_cu_function f, uint32_t bytes);
/* 1 if the build has this image. */
int moi_cu_image_exists(const char *image);

/* ---- a run (run.c) */
typedef struct moi_cu_run {
  const moi_cuda *c;
  const char *function;
  moi_cu_stream stream;
  uint8_t *workspace; /* on the device */
  moi_status status;  /* of the first launch that failed; those after it are not tried */
  uint32_t n_launches;
} moi_cu_run;

/* One block for each x and y; args: the struct of cuda/args.h that the kernel takes. A dimension of 0 launches nothing. */
void moi_cu_launch(moi_cu_run *r, moi_cu_function function, const void *args, uint32_t x, uint32_t y, uint32_t threads);
/* The same with the bytes of shared memory that the kernel has not by itself. */
void moi_cu_launch_shared(moi_cu_run *r, moi_cu_function function, const void *args, uint32_t x, uint32_t y,
                          uint32_t threads, uint32_t shared);

/* Of blocks that meet, all of which run at once; not overlapped with the launch before. 0: nothing was launched, since
 * they are more than the context's part of the device holds. */
int moi_cu_launch_together(moi_cu_run *r, moi_cu_function function, const void *args, uint32_t x, uint32_t threads);

/* Blocks that fill the device a few times over: for kernels that go through their work in strides. */
static inline uint32_t moi_cu_fill(const moi_cu_run *r, uint64_t work) {
  uint32_t most = r->c->traits.processors * 16;
  return work < most ? (uint32_t)work : most;
}

/* ---- sorting and products, which ops share (grouped.c) */

/* Rows of activations in the workspace are fp32, this many floats apart, zero behind k. */
static inline uint32_t moi_cu_kp(uint32_t k) { return (k + 31) & ~31u; }

/* Slots by class, then by number: moi_route_args' counts, offsets and permutation, the first two there. Slots of tokens
 * from min(n_tokens, *n_tokens_device) on, and ids outside 0..n_class-1, are in no class; the permutation's entries behind
 * the last are -1. By one block for few slots, by several for many, by the host's n_tokens; the result is the same. */

/* A kernel of steps (args.h). most: blocks of its launches that meet, at most; 0: there are no such launches. */
typedef struct moi_cu_steps {
  moi_cu_function function;
  uint32_t most;
} moi_cu_steps;
moi_status moi_cu_steps_get(const char *function, const moi_context *context, const char *image, const char *name,
                            moi_cu_steps *out);
/* sort and rows are members of args. selecting: blocks of the step SELECT. One launch; where blocks must wait for each
 * other and cannot, one for each step. */
void moi_cu_steps_run(moi_cu_run *r, const moi_cu_steps *steps, const void *args, moi_cu_sort_args *sort,
                      const moi_cu_prepare_set *rows, uint32_t selecting);
/* Blocks that share a step, no more than can meet. */
uint32_t moi_cu_steps_blocks(const moi_cu_steps *steps, uint32_t wanted);

/* Blocks that share a sort. */
uint32_t moi_cu_sort_blocks(uint64_t slots, uint32_t n_class);
/* args->histograms for at most so many slots; or for n_parts of the tokens, if those are more */
uint32_t *moi_cu_sort_carve(moi_carve *carve, uint64_t slots, uint32_t n_class, uint32_t n_parts);
/* args->sort: all but n_blocks, steps and together. steps: of the kernel `sort` */
void moi_cu_sort(moi_cu_run *r, const moi_cu_steps *steps, moi_cu_sort_prepare_args *args);

/* y[r, 0..n-1] = x[r] W^T, fp32, for rows 0..min(n_rows, *n_rows_device)-1 and one dense matrix W[n, k] (F32, F16, BF16). */
typedef struct moi_cu_product {
  const float *x; /* rows of moi_cu_kp(k) floats */
  const void *w;
  float *y; /* rows of n floats */
  const uint32_t *n_rows_device;
  uint32_t n_rows, n, k;
  void *room; /* of moi_cu_gemm_room */
} moi_cu_product;
typedef struct moi_cu_gemm_state moi_cu_gemm_state;
void moi_cu_product_run(moi_cu_run *r, const moi_cu_gemm_state *gemm, const moi_cu_product *product);
/* Workspace of rows that want some while they multiply; takes nothing and gives NULL for others. */
void *moi_cu_gemm_room(moi_carve *carve, const moi_plan *plan, const moi_cu_gemm_state *gemm);

/* ---- plans. Every op has: _plan, which chooses rows, gets functions and counts its workspace with `carve`; _run, which
 * launches with the same carve. State is embedded in moi_cu_plan. */

/* The rows of one weight matrix: `few` serves experts with at most few->m_max rows, `many` the others; may be the same. */
typedef struct moi_cu_pick {
  const moi_cu_kernel *few, *many;
} moi_cu_pick;

/* The activations of a GEMM, which its rows may want in a form of their own. type: of their values, before act_quant. */
typedef struct moi_cu_activations {
  moi_format type;
  moi_act_quant act_quant;
} moi_cu_activations;

/* Digits that hold activations in a form; 0 where it has none. */
uint32_t moi_cu_digits_of(moi_cu_form form, const moi_cu_activations *x);

/* Chooses among kernels.def; texts and warnings as the CPU backend's. *found is set if `forced` named one that serves.
 * GEMM rows that take another form than floats are not asked. */
moi_status moi_cu_choose(const char *function, moi_plan *plan, moi_op op, const char *what, moi_format format,
                         const char *forced, int *found, moi_cu_pick *pick);
/* The same, and they are if x is not null. */
moi_status moi_cu_choose_of(const char *function, moi_plan *plan, moi_op op, const char *what, moi_format format,
                            const moi_cu_activations *x, const char *forced, int *found, moi_cu_pick *pick);

struct moi_cu_gemm_state { /* one grouped GEMM */
  moi_cu_pick pick;
  moi_cu_function function[2]; /* few, many */
  uint32_t shared[2], n_digits[2]; /* n_digits: of rows that take digits, else 0 */
};
/* Chooses rows for a weight matrix and gets their kernels. gate_up: 1: two matrices and an activation. Rows of x are
 * floats. */
moi_status moi_cu_gemm_choose(const char *function, moi_plan *plan, const char *what, moi_format format, int gate_up,
                              const char *forced, int *found, moi_cu_gemm_state *out);
/* The same among all rows. */
moi_status moi_cu_gemm_choose_of(const char *function, moi_plan *plan, const char *what, moi_format format, int gate_up,
                                 const moi_cu_activations *x, const char *forced, int *found, moi_cu_gemm_state *out);

typedef struct moi_cu_route_state {
  const moi_cu_kernel *select;
  moi_cu_gemm_state router; /* if hidden > 0 */
  moi_cu_function prepare, logits;
  moi_cu_steps steps;
} moi_cu_route_state;

typedef struct moi_cu_ffn_state {
  moi_cu_gemm_state up, down;
  moi_cu_function combine; /* down and combine in one; null: the row has no such kernel */
} moi_cu_ffn_state;

typedef struct moi_cu_attention_state {
  moi_cu_pick pick;
  moi_cu_function prepare, merge, few, many, finish, append;
  moi_cu_function few_any, many_any;      /* of caches whose rows begin anywhere; split rows alone */
  uint32_t few_rows, few_tile, many_tile; /* rows of a sequence that count as few; query rows of a block */
  uint32_t few_shared, many_shared;       /* memory that launches ask for */
  uint32_t segment, n_segments;           /* keys that are summed up by themselves */
} moi_cu_attention_state;

typedef struct moi_cu_plan {
  moi_cu_route_state route;
  moi_cu_ffn_state ffn[2]; /* routed, shared */
  moi_cu_gemm_state gemm;
  moi_cu_steps sort;
  moi_cu_function groups, prepare, combine, store;
  moi_cu_attention_state attention;
  moi_cu_function pack;
} moi_cu_plan;

/* ids [t, top_k] and weights [t, top_k]: on the device, always written; n_tokens_device as the run says. For experts: what
 * of `next` is not the engine's is theirs, all but n_blocks, steps and together, and rows are prepared; else null. */
moi_status moi_cu_route_plan(const char *function, moi_plan *plan, const char *forced, int *found);
void moi_cu_route_count(const moi_plan *plan, moi_carve *carve);
void moi_cu_route_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *carve, int32_t *ids,
                      float *weights, const moi_cu_sort_prepare_args *next);
/* Parts of the tokens that the selection counts, of any run of the plan at most. */
uint32_t moi_cu_route_parts(const moi_plan *plan);

moi_status moi_cu_ffn_plan(const char *function, moi_plan *plan, const char *forced, int *found);
void moi_cu_ffn_count(const moi_plan *plan, moi_carve *carve);
/* ids and weights: to be routed to, if the plan has a route, else given. */
void moi_cu_ffn_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *carve, int32_t *ids,
                    float *weights);

moi_status moi_cu_gemm_plan(const char *function, moi_plan *plan, const char *forced, int *found);
void moi_cu_gemm_count(const moi_plan *plan, moi_carve *carve);
void moi_cu_bare_gemm_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *carve);

moi_status moi_cu_attention_plan(const char *function, moi_plan *plan, const char *forced, int *found);
/* NULL if a row of kernels.def serves the plan's heads and types, else what it needs. */
const char *moi_cu_attention_refusal(const moi_cu_kernel *row, const moi_plan *plan);
void moi_cu_attention_count(const moi_plan *plan, moi_carve *carve);
void moi_cu_attention_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *carve);

/* No rows to choose from, and no workspace. */
moi_status moi_cu_pack_plan(const char *function, moi_plan *plan);
void moi_cu_pack_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r);

#endif
