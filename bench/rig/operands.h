/* From a desc and a seed: every view that a run needs, filled with random data. */
#ifndef MOI_BENCH_RIG_OPERANDS_H
#define MOI_BENCH_RIG_OPERANDS_H

#include "bench/rig/arena.h"

/* Who goes where. */
typedef enum moi_traffic {
  MOI_TRAFFIC_RANDOM = 0, /* distinct experts for each token, identity experts among them */
  MOI_TRAFFIC_ONE,        /* every token to the same experts */
  MOI_TRAFFIC_HOLES,      /* random, with -1, INT32_MIN and ids beyond the last expert between */
  MOI_TRAFFIC_NOWHERE,    /* all -1 */
  MOI_TRAFFIC_SKEWED,     /* half of the experts never, a few most of the time */
  MOI_TRAFFIC_TWICE,      /* a token names the same expert in two slots */
  MOI_TRAFFIC_COUNT
} moi_traffic;

void moi_make_ids(int32_t *ids, uint32_t n_tokens, uint32_t top_k, uint32_t n_experts, uint32_t n_identity,
                  moi_traffic traffic, uint64_t seed);

/* W[n,k] of n_experts experts. With tables, streams are arrays of addresses and every expert has its own buffers. */
typedef struct moi_weights_spec {
  moi_format format, bias_type;
  uint32_t n, k, n_experts;
  int tables;
} moi_weights_spec;

moi_weights moi_make_weights(moi_arena *arena, const moi_weights_spec *spec, uint64_t seed);

typedef struct moi_ffn_weights {
  moi_weights gate, up, down; /* gate only where the layout has one of its own */
} moi_ffn_weights;

void moi_make_ffn_weights(moi_arena *arena, const moi_experts_desc *desc, uint64_t seed, moi_ffn_weights *out);
/* Bytes that they take. */
uint64_t moi_ffn_weights_bytes(const moi_experts_desc *desc);
/* With MOI_EXPERTS_TABLES: makes the entries of an expert null. */
void moi_drop_expert(const moi_experts_desc *desc, moi_ffn_weights *weights, uint32_t expert);

/* Input, ids, weights (of routing), poisoned output; gate, up and down point into `weights`. stride_extra widens the
 * rows of input and output. */
void moi_make_experts(moi_arena *arena, const moi_experts_desc *desc, uint32_t n_tokens, moi_traffic traffic,
                      uint32_t stride_extra, uint64_t seed, const moi_ffn_weights *weights, moi_experts_args *out);
/* Another output for the same operands. */
moi_buffer moi_make_output(moi_arena *arena, moi_format type, uint32_t rows, uint32_t cols, uint32_t stride,
                           uint64_t seed);

/* What is odd about logits. */
typedef enum moi_logits_kind {
  MOI_LOGITS_RANDOM = 0,
  MOI_LOGITS_TIES,    /* few different values: every choice is a tie */
  MOI_LOGITS_EQUAL,   /* one value */
  MOI_LOGITS_NAN,     /* NaN, -inf, +inf among them */
  MOI_LOGITS_NOTHING, /* all NaN or -inf: no expert can be chosen */
  MOI_LOGITS_WIDE,    /* up to +-80, and huge ones */
  MOI_LOGITS_COUNT
} moi_logits_kind;

/* All operands that the desc asks for, and all outputs, poisoned. With hidden > 0, kinds other than RANDOM work through
 * the router's rows: equal rows make ties, NaN in a row makes NaN. */
void moi_make_route(moi_arena *arena, const moi_route_desc *desc, uint32_t n_tokens, moi_logits_kind kind,
                    uint32_t stride_extra, uint64_t seed, moi_route_args *out);
/* Other outputs for the same operands. */
void moi_make_route_outputs(moi_arena *arena, const moi_route_desc *desc, moi_route_args *args);

typedef struct moi_moe_operands {
  moi_route_args route;
  moi_experts_args experts, shared;
  moi_ffn_weights weights, shared_weights;
  moi_moe_args args; /* points at the members above: do not copy */
} moi_moe_operands;

void moi_make_moe(moi_arena *arena, const moi_moe_desc *desc, uint32_t n_tokens, uint32_t stride_extra, uint64_t seed,
                  moi_moe_operands *out);

static inline moi_format moi_or(moi_format type, moi_format fallback) { return type ? type : fallback; }
static inline uint32_t moi_element_bytes(moi_format dense) { return dense == MOI_FORMAT_F32 || !dense ? 4 : 2; }

#endif
