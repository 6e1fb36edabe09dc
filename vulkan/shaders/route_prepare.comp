#version 460
/* The rows that the router's product reads: hidden as fp32, normalised where the router has a norm of its own
 * (MOI_ROUTE_INPUT_NORM), zero from hidden to kp. One workgroup for each token. */
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#define MOI_READABLE uvec2(push.x.x & ~3u, push.x.y) /* rows of 16 bits may begin at half a word */
#include "common.glsl"

layout(local_size_x_id = 0) in; /* at most 128 */
layout(constant_id = 1) const uint INPUT_TYPE = 1u;
layout(constant_id = 2) const uint NORM_TYPE = 0u; /* of norm_weight; 0: no norm */

layout(push_constant) uniform Push {
  uvec2 n_tokens_device, x, norm_weight, rows;
  uint n_tokens, hidden, kp, stride;
  float eps, scale;
} push;

shared float parts[128]; /* one for each subgroup */

float sum_of_all(float x) {
  x = subgroupAdd(x);
  if (gl_NumSubgroups == 1u) return x;
  barrier();
  if (subgroupElect()) parts[gl_SubgroupID] = x;
  memoryBarrierShared();
  barrier();
  x = parts[0];
  for (uint s = 1u; s < gl_NumSubgroups; s++) x += parts[s];
  return x;
}

/* Elements i and i + 1 of a row, i even; 0 from `hidden` on. */
vec2 pair(uint type, uvec2 row, uint i) {
  if (i + 1u < push.hidden) {
    if (type == MOI_F32) return vec2(FLOAT(row, i), FLOAT(row, i + 1u));
    if ((row.x & 3u) == 0u) {
      uint word = WORD(row, i >> 1), low = word & 65535u, high = word >> 16;
      return type == MOI_BF16 ? vec2(moi_bf16_value(low), moi_bf16_value(high))
                              : vec2(moi_f16_value(low), moi_f16_value(high));
    }
    return vec2(moi_load(type, row, i), moi_load(type, row, i + 1u));
  }
  return vec2(i < push.hidden ? moi_load(type, row, i) : 0.0, 0.0);
}

/* rsqrt(mean(x^2) + eps) as `before` * `after`: x * before is small enough to be squared, and large enough. */
void normaliser(uvec2 row, out float before, out float after) {
  before = 1.0;
  float sum;
  for (uint attempt = 0u; attempt < 2u; attempt++) {
    sum = 0.0;
    for (uint i = 2u * gl_LocalInvocationID.x; i < push.hidden; i += 2u * gl_WorkGroupSize.x) {
      vec2 x = pair(INPUT_TYPE, row, i) * before;
      sum += x.x * x.x + x.y * x.y;
    }
    sum = sum_of_all(sum);
    bool large = sum > 1e37, small = sum < 1e-25;
    if (before != 1.0 || !(large || small)) break;
    before = large ? 5.421010862427522e-20 : 1.8446744073709552e19; /* 2^-64, 2^64 */
  }
  after = 1.0 / sqrt(sum / float(push.hidden) + push.eps * before * before);
}

void main() {
  uint n_tokens = push.n_tokens, t = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
  n_tokens = min(n_tokens, WORD_OR(push.n_tokens_device, 0u, n_tokens));
  if (t >= n_tokens) return;
  uvec2 row = moi_add(push.x, moi_mul(moi_mul(moi_element_bytes(INPUT_TYPE), push.stride), t));
  uvec2 to = moi_add(push.rows, moi_mul(moi_mul(4u, push.kp), t));
  float before = 1.0, after = 1.0;
  if (NORM_TYPE != 0u) normaliser(row, before, after);
  for (uint i = 2u * gl_LocalInvocationID.x; i < push.kp; i += 2u * gl_WorkGroupSize.x) {
    vec2 x = pair(INPUT_TYPE, row, i);
    if (NORM_TYPE != 0u) x = x * before * after * pair(NORM_TYPE, push.norm_weight, i) * push.scale;
    if (i + 1u >= push.hidden) x = vec2(i < push.hidden ? x.x : 0.0, 0.0); /* 0 * infinity is no zero */
    SET_PAIR(to, i >> 1, x);
  }
}
