/* gemm_stream with integer dot products: a subgroup owns a column, its lanes take 32 consecutive k each, side by side. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "codes.glsl"

layout(constant_id = 2) const uint THREADS = 128u;
layout(constant_id = 3) const uint ROWS = 8u;    /* m_tile */
layout(constant_id = 4) const uint COLUMNS = 4u; /* n_tile */
layout(local_size_x_id = 2) in;

#define CHUNK 32

float add(Codes w, ivec4 q[4], int first, int second, float d, float acc) {
  int sums[2] = int[2](0, 0);
  for (uint digit = 0u; digit < DIGITS; digit++)
    for (int i = 0; i < 2; i++) sums[i] = moi_dot(q[digit * 2u + uint(i)], w.q[i], 256 * sums[i]);
  if (GROUPS == 1) return moi_scaled(acc, sums[0] + sums[1], first + second, w.scale[0], w.minimum, w.zero, d);
  acc = moi_scaled(acc, sums[0], first, w.scale[0], w.minimum, w.zero, d);
  return moi_scaled(acc, sums[1], second, w.scale[1], w.minimum, w.zero, d);
}

void column_of(GemmArgs a, uint n_rows, uint n_items, uint j, uint lane, uint lanes) {
  uint column = min(j, a.n - 1u);
  bool two = GATE_UP != 0u && a.has_gate != 0u;
  for (uint i = gl_WorkGroupID.y; i < n_items; i += gl_NumWorkGroups.y) {
    Item item = item_at(i, n_rows);
    Streams su = streams_of(a.up, item.expert, a.bias_type), sg = su;
    if (two) sg = streams_of(a.gate, item.expert, a.bias_type);
    uint n_up = column * a.up.row_mul + a.up.row_add, n_gate = column * a.gate.row_mul + a.gate.row_add;
    float acc[ROWS], acc_gate[ROWS];
    uvec2 rows[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
      acc[r] = acc_gate[r] = 0.0;
      uint slot = slot_of(a, item.first + min(r, item.rows - 1u));
      rows[r] = moi_add(a.x, moi_mul(uvec2(a.ldx * 4u, a.ldx >> 30), slot / a.x_div));
    }
    uint k_end = su.there && sg.there ? a.k : 0u;
    for (uint k0 = lane * uint(CHUNK); k0 < k_end; k0 += lanes * uint(CHUNK)) {
      Codes w = moi_codes(su.d, su.s, su.z, n_up, k0, a.up.rows, a.k), g = w;
      if (two) g = moi_codes(sg.d, sg.s, sg.z, n_gate, k0, a.gate.rows, a.k);
      [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        if (r >= item.rows) continue;
        Digits x = moi_digits(rows[r], k0);
        ivec4 q[4] = ivec4[4](x.q[0][0], x.q[0][1], ivec4(0), ivec4(0));
        if (DIGITS > 1u) q[2] = x.q[1][0], q[3] = x.q[1][1];
        int first = x.sums[0], second = x.sums[1];
        float d = x.d;
        acc[r] = add(w, q, first, second, d, acc[r]);
        if (two) acc_gate[r] = add(g, q, first, second, d, acc_gate[r]);
      }
    }
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
      acc[r] = subgroupAdd(acc[r]) * CODE_STEP;
      if (GATE_UP != 0u) acc_gate[r] = subgroupAdd(acc_gate[r]) * CODE_STEP;
    }
    for (uint r0 = 0u; r0 < ROWS; r0 += lanes) { /* a row for each lane */
      uint mine = r0 + lane;
      float u = 0.0, ug = 0.0;
      [[unroll]] for (uint r = 0u; r < ROWS; r++)
        if (r == mine) u = acc[r], ug = acc_gate[r];
      if (mine < min(ROWS, item.rows)) finish(a, su, sg, slot_of(a, item.first + mine), j, u, ug);
    }
  }
}

void main() {
  GemmArgs a = GemmArgs(args);
  uint n_rows, n_items = item_count(a, n_rows);
  uint lanes = subgroupAdd(1u), lane = subgroupExclusiveAdd(1u), end = columns_of(a);
  for (uint c = gl_SubgroupID; c < COLUMNS; c += gl_NumSubgroups) {
    uint j = (gl_WorkGroupID.x + block0) * COLUMNS + c;
    if (j < end) column_of(a, n_rows, n_items, j, lane, lanes);
  }
}
