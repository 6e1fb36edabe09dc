/* Results over parts of the keys into one: a workgroup for each row and head. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

const uint THREADS = 64u;
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint OUTPUT = MOI_F32;

layout(push_constant) uniform Push { /* the mirror of merge_push in attention.c */
  uvec2 parts, part_lse, y, lse;
  uint n_rows, n_parts, n_heads, dim, y_stride, first_row;
};

shared float shared_f[THREADS];

void main() {
  uint i = gl_LocalInvocationID.x, head = gl_WorkGroupID.x, row = first_row + gl_WorkGroupID.y;
  uvec2 heads = uvec2(0u); /* of a part: n_rows * n_heads */
  umulExtended(n_rows, n_heads, heads.y, heads.x);
  uvec2 at = moi_add(moi_mul(n_heads, row), head);
  uvec2 lse_step = moi_mul(heads, 4u), lse_at = moi_add(part_lse, moi_mul(at, 4u));

  float most = -MOI_INFINITY;
  for (uint p = i; p < n_parts; p += THREADS) {
    float l = FLOAT(moi_add(lse_at, moi_mul(lse_step, p)), 0);
    most = l > most ? l : most;
  }
  shared_f[i] = most;
  barrier();
  for (uint j = 0u; j < min(THREADS, n_parts); j++) most = shared_f[j] > most ? shared_f[j] : most;
  barrier();
  /* NaN passes: its weight is NaN */
  float sum = 0.0;
  for (uint p = i; p < n_parts; p += THREADS) {
    float l = FLOAT(moi_add(lse_at, moi_mul(lse_step, p)), 0);
    sum += l == -MOI_INFINITY ? 0.0 : l == most ? 1.0 : moi_exp(l - most);
  }
  shared_f[i] = sum;
  barrier();
  sum = 0.0;
  for (uint j = 0u; j < min(THREADS, n_parts); j++) sum += shared_f[j];

  uvec2 to = moi_add(y, moi_mul(moi_mul(moi_element_bytes(OUTPUT), y_stride), row));
  to = moi_add(to, moi_mul(moi_mul(moi_element_bytes(OUTPUT), head), dim));
  uvec2 part_step = moi_mul(lse_step, dim), part_at = moi_add(parts, moi_mul(moi_mul(at, 4u), dim));
  float by = 1.0 / sum;
  for (uint e = 2u * i; e < dim; e += 2u * THREADS) {
    uint e1 = min(e + 1u, dim - 1u);
    float a = 0.0, b = 0.0;
    for (uint p = 0u; p < n_parts; p++) {
      float l = FLOAT(moi_add(lse_at, moi_mul(lse_step, p)), 0);
      if (l == -MOI_INFINITY) continue; /* it may hold anything */
      float w = (l == most ? 1.0 : moi_exp(l - most)) * by;
      uvec2 part = moi_add(part_at, moi_mul(part_step, p));
      a = fma(w, FLOAT(part, e), a);
      b = fma(w, FLOAT(part, e1), b);
    }
    moi_store_pair(OUTPUT, to, e, a, b, e + 1u < dim);
  }
  if (i != 0u || !moi_has(lse)) return;
  SET_FLOAT(moi_add(lse, moi_mul(at, 4u)), 0, sum == 0.0 ? -MOI_INFINITY : moi_is_nan(sum) ? sum : most + moi_log(sum));
}
