/* y[t] = scale * (sum of a token's experts in ascending order + the shared expert) [+ y[t]]: gathered, in one fixed order. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

#define THREADS 64u
layout(local_size_x = 64) in;

/* As moi_vk_combine_args of experts.c. */
#define COMBINE_ARGS(P, P2, U, U2, F, M)                                                                               \
  P(o) P(ids) P(weights) P(input_rows) P(output_rows) P(n_tokens_device)                                               \
  P(shared_o) P(shared_gate) /* absent: none, and a gate of 1 */                                                       \
  U(n_tokens) U(top_k) U(n_experts) U(n_class)                                                                         \
  U(h) U(ldo) U(input_type) U(output_type)                                                                             \
  U(input_stride) U(output_stride) U(weighted) U(accumulate) /* weighted: the weights multiply outputs */              \
  U(shared_ldo) F(scale)
MOI_ARGS(CombineArgs, COMBINE_ARGS)

layout(push_constant) uniform Push { uvec2 args; };

shared uint order[64], ids_of[64];
shared float weight_of[64];

void main() {
  CombineArgs a = MOI_ARGS_AT(CombineArgs, args);
  uint thread = gl_LocalInvocationIndex, n_tokens = a.n_tokens, k = a.top_k;
  n_tokens = min(n_tokens, WORD_OR(a.n_tokens_device, 0u, n_tokens));
  for (uint t = gl_WorkGroupID.y; t < n_tokens; t += gl_NumWorkGroups.y) {
    barrier();
    if (thread < k) {
      ids_of[thread] = min(WORD(a.ids, t * k + thread), a.n_class); /* what is none lies behind all */
      weight_of[thread] = FLOAT(a.weights, t * k + thread);
    }
    barrier();
    if (thread < k) {
      uint rank = 0u;
      for (uint j = 0u; j < k; j++)
        if (ids_of[j] < ids_of[thread] || (ids_of[j] == ids_of[thread] && j < thread)) rank++;
      order[rank] = thread;
    }
    barrier();
    uint at = (gl_WorkGroupID.x * THREADS + thread) * 2u;
    if (at < a.h) {
      bool both = at + 1u < a.h;
      vec2 sum = vec2(0.0);
      for (uint j = 0u; j < k; j++) {
        uint slot = order[j], id = ids_of[slot];
        if (id >= a.n_class) break;
        float w = weight_of[slot];
        vec2 v;
        if (id < a.n_experts) {
          uvec2 row = moi_add(a.o, moi_mul(moi_mul(a.ldo, 4u), t * k + slot));
          v = vec2(FLOAT(row, at), both ? FLOAT(row, at + 1u) : 0.0);
          if (a.weighted == 0u) w = 1.0;
        } else {
          uvec2 row = moi_add(a.input_rows, moi_mul(moi_mul(a.input_stride, moi_element_bytes(a.input_type)), t));
          v = vec2(moi_load(a.input_type, row, at), both ? moi_load(a.input_type, row, at + 1u) : 0.0);
        }
        sum += w * v;
      }
      if (moi_has(a.shared_o)) {
        uvec2 row = moi_add(a.shared_o, moi_mul(moi_mul(a.shared_ldo, 4u), t));
        float gate = FLOAT_OR(a.shared_gate, t, 1.0);
        sum += gate * vec2(FLOAT(row, at), both ? FLOAT(row, at + 1u) : 0.0);
      }
      sum *= a.scale;
      uvec2 row = moi_add(a.output_rows, moi_mul(moi_mul(a.output_stride, moi_element_bytes(a.output_type)), t));
      if (a.accumulate != 0u)
        sum += vec2(moi_load(a.output_type, row, at), both ? moi_load(a.output_type, row, at + 1u) : 0.0);
      moi_store_pair(a.output_type, row, at, sum.x, sum.y, both);
    }
  }
}
