/* A grouped GEMM's fp32 rows to the engine's output: rows of no group are 0 (or stay, where results are added). */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x = 64) in;

/* As moi_vk_store_args of gemm.c. */
#define STORE_ARGS(P, P2, U, U2, F, M)                                                                                 \
  P(y) P(output_rows) P(ends) /* ends: first and end row of all groups */                                              \
  U(n_rows) U(n) U(ldy) U(output_type)                                                                                 \
  U(output_stride) U(accumulate)
MOI_ARGS(StoreArgs, STORE_ARGS)

layout(push_constant) uniform Push { uvec2 args; };

void main() {
  StoreArgs a = MOI_ARGS_AT(StoreArgs, args);
  uint at = gl_GlobalInvocationID.x * 2u;
  if (at >= a.n) return;
  bool both = at + 1u < a.n;
  uint first = WORD(a.ends, 0), end = WORD(a.ends, 1);
  for (uint r = gl_WorkGroupID.y; r < a.n_rows; r += gl_NumWorkGroups.y) {
    bool inside = r >= first && r < end;
    if (!inside && a.accumulate != 0u) continue;
    vec2 v = vec2(0.0);
    uvec2 from = moi_add(a.y, moi_mul(moi_mul(a.ldy, 4u), r));
    if (inside) v = vec2(FLOAT(from, at), both ? FLOAT(from, at + 1u) : 0.0);
    uvec2 to = moi_add(a.output_rows, moi_mul(moi_mul(a.output_stride, moi_element_bytes(a.output_type)), r));
    if (a.accumulate != 0u)
      v += vec2(moi_load(a.output_type, to, at), both ? moi_load(a.output_type, to, at + 1u) : 0.0);
    moi_store_pair(a.output_type, to, at, v.x, v.y, both);
  }
}
