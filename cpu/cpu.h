/* The CPU backend's own state, and what its files give each other. */
#ifndef MOI_CPU_CPU_H
#define MOI_CPU_CPU_H

#include <string.h>

#include "core/backend.h"
#include "core/workspace.h"
#include "cpu/kernel.h"
#include "cpu/operands.h"
#include "cpu/pool.h"

/* What to call this CPU: its model, or board and cores; "CPU" where the system does not tell. */
void moi_cpu_name(char *name, size_t size);
/* Sets info's memory and cache (third level), where the system tells. */
void moi_cpu_memory(moi_device_info *info);

/* a context's state */
typedef struct moi_cpu {
  uint32_t isa; /* after MOI_DEBUG */
  moi_pool *pool;
} moi_cpu;

/* The kernels of one weight matrix in a plan: `few` serves experts with at most few->m_max rows, `many` the others.
 * They are the same row where only one was chosen. */
typedef struct moi_pick {
  const moi_cpu_kernel *few, *many;
} moi_pick;

static inline const moi_cpu_kernel *moi_pick_for(const moi_pick *pick, uint32_t m) {
  return m <= pick->few->m_max ? pick->few : pick->many;
}

/* Elementwise kernels, one set for each ISA, all with the same bits. */
typedef struct moi_elementwise {
  /* out[i] = act(g[i], u[i]) * weight, fp32. g may be NULL for MOI_ACT_RELU2. */
  void (*activate)(moi_activation activation, float alpha, float limit, const float *g, const float *u, float weight,
                   float *out, uint32_t n);
  /* out[i] = x[i] as fp32 */
  void (*load)(moi_format type, const void *x, float *out, uint32_t n);
  /* acc[i] += w * (c[i] + bias[i]); bias may be NULL */
  void (*combine)(float *acc, const float *c, const float *bias, float w, uint32_t n);
  /* out[i] = x[i] * factor rounded to a dense type */
  void (*store)(moi_format type, const float *x, float factor, void *out, uint32_t n);
  /* x[i] = x[i] * a + y[i] * b */
  void (*blend)(float *x, float a, const float *y, float b, uint32_t n);
} moi_elementwise;
const moi_elementwise *moi_elementwise_for(uint32_t isa);

/* int32s that a selection needs for its keys. */
#define MOI_SELECT_BLOCK 64
#define MOI_SELECT_KEYS(n_class) (((n_class) + MOI_SELECT_BLOCK - 1) / MOI_SELECT_BLOCK * MOI_SELECT_BLOCK)

/* Top-k selection for one token (route.c and kernels.def's ROUTE rows). scores (n_class) and keys (MOI_SELECT_KEYS) are
 * scratch. */
typedef struct moi_select_in {
  const moi_route_desc *desc;
  const float *logits;
  const float *select_bias, *expert_scale; /* [n_class] or NULL */
  const int32_t *hash_row;                 /* [top_k] or NULL */
  float *scores;
  int32_t *keys;
  int32_t *ids;
  float *weights;
} moi_select_in;
typedef void (*moi_select_fn)(const moi_select_in *in);

/* What the route driver keeps in a plan. */
typedef struct moi_route_state {
  const moi_cpu_kernel *select; /* the reference row: cpu/ref runs the op */
  moi_pick router;              /* the router's GEMM, if hidden > 0 */
} moi_route_state;

/* An FFN (routed experts or the shared expert) in a plan. */
typedef struct moi_ffn_state {
  moi_pick gate, down;
  uint32_t reference;
} moi_ffn_state;

/* Attention in a plan: a segment is how many keys one call of a kernel may see, so that long contexts are shared among
 * the workers and every row is summed in the same order whoever computes it. */
typedef struct moi_attention_state {
  moi_pick pick;
  uint32_t segment;    /* keys */
  uint32_t block_rows; /* query rows of a block */
} moi_attention_state;

typedef struct moi_cpu_plan {
  moi_attention_state attention;
  moi_route_state route;
  moi_ffn_state ffn[2]; /* routed, shared */
  moi_ffn_state gemm;   /* gate is the GEMM's */
  uint32_t reference;   /* the whole op runs in cpu/ref */
} moi_cpu_plan;

/* Drivers. Each has a _count that asks the same carve for the memory its run will bind. */
/* routing; ids and weights [t, top_k] are always written */
void moi_cpu_route(const moi_plan *plan, const moi_run *run, moi_carve *carve, int32_t *ids, float *weights,
                   uint32_t n_tokens);
void moi_cpu_route_count(const moi_plan *plan, moi_carve *carve);

/* routed (+ shared) experts of n_tokens tokens */
moi_status moi_cpu_ffn(const char *function, const moi_plan *plan, const moi_run *run, moi_carve *carve,
                       const int32_t *ids, const float *weights, uint32_t n_tokens);
void moi_cpu_ffn_count(const moi_plan *plan, moi_carve *carve);

moi_status moi_cpu_gemm(const char *function, const moi_plan *plan, const moi_run *run, moi_carve *carve);
void moi_cpu_gemm_count(const moi_plan *plan, moi_carve *carve);

/* Row ranges of each expert out of the caller's offsets, clamped and disjoint; rows of no expert are set to 0 (unless
 * ACCUMULATE). */
void moi_gemm_groups(const moi_gemm_desc *desc, const moi_run *run, uint32_t *begin, uint32_t *end);

/* The reference (cpu/ref): the same ops in plain C with double accumulation. Serial. */
void moi_ref_route(const moi_plan *plan, const moi_run *run, moi_carve *carve, int32_t *ids, float *weights,
                   uint32_t n_tokens);
void moi_ref_route_count(const moi_plan *plan, moi_carve *carve);
moi_status moi_ref_ffn(const char *function, const moi_plan *plan, const moi_run *run, moi_carve *carve,
                       const int32_t *ids, const float *weights, uint32_t n_tokens);
void moi_ref_ffn_count(const moi_plan *plan, moi_carve *carve);
moi_status moi_ref_gemm(const char *function, const moi_plan *plan, const moi_run *run, moi_carve *carve);
void moi_ref_gemm_count(const moi_plan *plan, moi_carve *carve);

void moi_cpu_attention(const moi_plan *plan, const moi_run *run, moi_carve *carve);
void moi_cpu_attention_count(const moi_plan *plan, moi_carve *carve);
void moi_ref_attention(const moi_plan *plan, const moi_run *run, moi_carve *carve);
void moi_ref_attention_count(const moi_plan *plan, moi_carve *carve);
/* segment and block_rows, which depend on the desc alone */
void moi_cpu_attention_shape(const moi_plan *plan, moi_attention_state *state);

void moi_cpu_pack(const moi_plan *plan, const moi_run *run);

/* What activations are known to hold: values of bf16; those of MOI_ACT_QUANT_INT8_32. */
enum moi_holds { MOI_HOLDS_BF16 = 1, MOI_HOLDS_INT8 = 2 };

static inline int moi_form_is_int8(moi_form form) { return form == MOI_FORM_I8 || form == MOI_FORM_I8_EO; }

/* Chooses the rows that serve a matrix (a KV cache) of `format` and says so in the plan's text. holds: moi_holds. forced:
 * a row's name or NULL; *found is set if it served. */
moi_status moi_cpu_choose(const char *function, moi_plan *plan, moi_op op, const char *what, moi_format format,
                          int holds, const char *forced, int *found, moi_pick *pick);

static inline uint32_t moi_tokens_of(uint32_t n_tokens, moi_buffer device) {
  const uint32_t *p = moi_view(device);
  return p && *p < n_tokens ? *p : n_tokens;
}

static inline size_t moi_max_size(size_t a, size_t b) { return a > b ? a : b; }
static inline uint32_t moi_min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

#endif
