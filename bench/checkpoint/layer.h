/* One MoE layer of a checkpoint: the model's rule out of the file's metadata, and the weights where they lie in the
 * mapping. Nothing is guessed: an architecture that is not in rules.def, or metadata that contradict it, is an error.
 */
#ifndef MOI_BENCH_CHECKPOINT_LAYER_H
#define MOI_BENCH_CHECKPOINT_LAYER_H

#include "bench/checkpoint/checkpoint.h"

/* The descs want only max_tokens, the types of the activations (BF16 or F16 as config.json says, F32 for GGUF) and plan
 * flags. The views are ready for the args. What could not be used as it lies (biases of several types, an fp8 scale in
 * another type than fp32, tables of addresses) is a small copy that the layer owns; weights never are. */
typedef struct moi_layer {
  uint32_t index;
  char architecture[64]; /* general.architecture or model_type */
  const char *note;      /* what the layer leaves to the engine; "" if nothing */
  moi_route_desc route;
  moi_experts_desc experts;
  bool has_shared;
  moi_experts_desc shared;
  moi_shared_gate shared_kind;
  moi_format shared_gate_type;
  float output_scale;
  /* of moi_route_args; absent where the desc's flags say so */
  moi_buffer router, router_bias, select_bias, expert_scale, norm_weight, hash_table;
  /* of moi_experts_args; gate is absent (size 0) unless the layout is MOI_GATE_SPLIT */
  moi_weights gate, up, down;
  moi_weights shared_gate, shared_up, shared_down;
  moi_buffer shared_gate_vector; /* [h] shared_gate_type, with MOI_SHARED_SIGMOID */
  void *owned;
} moi_layer;

/* The checkpoint must stay open as long as the layer. On failure there is nothing to close. */
bool moi_layer_open(const moi_checkpoint *checkpoint, uint32_t index, moi_layer *layer, moi_load_error *error);
void moi_layer_close(moi_layer *layer);

/* The layer has a router: leading layers are often dense. */
bool moi_layer_is_moe(const moi_checkpoint *checkpoint, uint32_t index);

#endif
