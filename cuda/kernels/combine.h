/* A token's sum over its experts, in ascending order of expert: what is gathered, and in which order. */
#ifndef MOI_CUDA_COMBINE_H
#define MOI_CUDA_COMBINE_H

#include "cuda/args.h"
#include "cuda/device/convert.h"

#define MOI_SLOTS 64u /* of a token at most */

MOI_DEVICE unsigned moi_tokens_of(const moi_cu_combine_args *a) {
  return a->n_tokens_device && *a->n_tokens_device < a->n_tokens ? *a->n_tokens_device : a->n_tokens;
}

/* By a block of at least MOI_SLOTS threads: order[r] is the slot of token t that comes r-th. ids_of: of slots, n_class for
 * what is no class, which comes last. */
MOI_DEVICE void moi_order_slots(const moi_cu_combine_args *a, unsigned t, unsigned *order, unsigned *ids_of,
                                float *weight_of) {
  unsigned thread = moi_thread(), k = a->top_k;
  moi_sync(); /* those of the token before have been read */
  if (thread < k) {
    unsigned id = (unsigned)a->ids[(uint64_t)t * k + thread];
    ids_of[thread] = id < a->n_class ? id : a->n_class;
    weight_of[thread] = a->weights[(uint64_t)t * k + thread];
  }
  moi_sync();
  if (thread < k) {
    unsigned rank = 0;
    for (unsigned j = 0; j < k; j++)
      if (ids_of[j] < ids_of[thread] || (ids_of[j] == ids_of[thread] && j < thread)) rank++;
    order[rank] = thread;
  }
  moi_sync();
}

MOI_DEVICE float moi_slot_weight(const moi_cu_combine_args *a, unsigned id, float weight) {
  return id < a->n_experts && !a->weighted ? 1.0f : weight;
}
MOI_DEVICE float moi_identity(const moi_cu_combine_args *a, unsigned t, unsigned column) {
  return moi_load(a->input_type, a->input, (uint64_t)t * a->input_stride + column);
}
MOI_DEVICE float moi_shared_gate(const moi_cu_combine_args *a, unsigned t) {
  return a->shared_gate ? a->shared_gate[t] : 1.0f;
}

MOI_DEVICE void moi_put_output(const moi_cu_combine_args *a, unsigned t, unsigned column, float sum) {
  uint64_t at = (uint64_t)t * a->output_stride + column;
  sum *= a->scale;
  if (a->accumulate) sum += moi_load(a->output_type, a->output, at);
  moi_store(a->output_type, a->output, at, sum);
}

#endif
