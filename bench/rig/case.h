/* One op with its desc and operands, whatever the family: what check, bench and the tests run. */
#ifndef MOI_BENCH_RIG_CASE_H
#define MOI_BENCH_RIG_CASE_H

#include "bench/rig/attention.h"
#include "bench/rig/operands.h"
#include "bench/rig/tolerance.h"

typedef struct moi_case {
  moi_op op;
  uint32_t n_tokens;     /* rows of a GEMM; of attention: set by moi_case_make */
  uint32_t stride_extra; /* elements between rows beyond their width */
  uint32_t device_tokens; /* n_tokens_device holds this; 0: the view is absent */
  moi_traffic traffic;
  moi_logits_kind logits;
  uint64_t seed;
  /* set those that the op needs; a moe case with n_class = 0 experts in `route` has no route */
  moi_route_desc route;
  moi_experts_desc experts, shared;
  moi_gemm_desc gemm;
  moi_moe_desc moe; /* its route, experts and shared are set by moi_case_make */
  moi_attention_operands attention; /* its seed and stride_extra are those above */
  int has_route, has_shared, hostile_offsets;
  /* made */
  moi_arena arena;
  moi_moe_operands operands; /* experts and route cases use their members of it */
  moi_weights gemm_weights;
  moi_gemm_args gemm_args;
} moi_case;

/* What a run writes. */
typedef struct moi_outputs {
  moi_buffer output;    /* of experts, gemm and moe */
  moi_route_args route; /* outputs of route and moe, the other members as in the case */
  moi_attention_outputs attention;
} moi_outputs;

/* Makes the operands. `c` must stay where it is. */
void moi_case_make(moi_case *c, uint32_t arena_flags);
void moi_case_free(moi_case *c);

/* Fresh outputs in `arena`, poisoned (with ACCUMULATE: the same random residual every time). */
moi_outputs moi_case_outputs(const moi_case *c, moi_arena *arena);

moi_status moi_case_plan(const moi_case *c, moi_context *context, const char *kernel, uint32_t plan_flags,
                         moi_plan **out);
moi_status moi_case_run(const moi_case *c, const moi_plan *plan, const moi_outputs *outputs, moi_buffer workspace);
/* Runs with a guarded, poisoned workspace of its own. On MOI_INTERNAL `damage` says which guard zone was hit. */
moi_status moi_case_run_guarded(const moi_case *c, const moi_plan *plan, const moi_outputs *outputs, char *damage,
                                size_t damage_size);

/* backend and kernel: those that made the result, which say how far off it may be. */
moi_verdict moi_case_compare(const moi_case *c, moi_backend backend, const char *kernel, const moi_outputs *result,
                             const moi_outputs *reference);
/* 1 if all outputs hold the same bits. */
int moi_case_same_bits(const moi_case *c, const moi_outputs *a, const moi_outputs *b);

/* Fills `outputs` and returns 1 if the rig itself knows what they must be (append and merge of attention). */
int moi_case_known(const moi_case *c, const moi_outputs *outputs);

/* The case reduced to its token `token` (a row of a GEMM or of attention); it shares the operands of `c`, which must
 * outlive it. */
void moi_case_token(const moi_case *c, uint32_t token, moi_case *out);
/* 1 if the only row of `single` has the bits of row `token` of `whole`. */
int moi_case_same_row(const moi_case *c, uint32_t token, const moi_outputs *whole, const moi_outputs *single);

/* A preset's layer as a moe case: its routing, experts and shared expert, unscaled. format: of the weights of experts
 * and shared expert, MOI_FORMAT_NONE: the preset's own. */
void moi_case_of_preset(const moi_preset *preset, moi_op op, moi_format format, uint32_t n_tokens, uint64_t seed,
                        moi_case *out);

#endif
