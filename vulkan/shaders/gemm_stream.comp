/* Grouped GEMM for few rows on a GPU: a subgroup owns a column, its lanes take 32 consecutive k each, side by side, so that
 * a subgroup reads W as it lies in memory; every weight is decoded once for all rows of the item. How many lanes a subgroup
 * has is counted, and the columns are shared among as many subgroups as there are: gl_SubgroupSize is a bound on some
 * devices, which compile for fewer lanes as they see fit. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "gemm.glsl"

layout(constant_id = 2) const uint THREADS = 128u;
layout(constant_id = 3) const uint ROWS = 8u;    /* m_tile */
layout(constant_id = 4) const uint COLUMNS = 4u; /* n_tile */
layout(local_size_x_id = 2) in;

#define CHUNK 32

void column_of(GemmArgs a, uint n_rows, uint n_items, uint j, uint lane, uint lanes) {
  uint column = min(j, a.n - 1u);
  for (uint i = gl_WorkGroupID.y; i < n_items; i += gl_NumWorkGroups.y) {
    Item item = item_at(i, n_rows);
    Streams su = streams_of(a.up, item.expert, a.bias_type), sg = su;
    if (GATE_UP != 0u && a.has_gate != 0u) sg = streams_of(a.gate, item.expert, a.bias_type);
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
      float w[CHUNK], g[CHUNK];
      moi_fetch_any(su.d, su.s, su.z, n_up, k0, a.up.rows, a.k, w);
      if (GATE_UP != 0u && a.has_gate != 0u) moi_fetch_any(sg.d, sg.s, sg.z, n_gate, k0, a.gate.rows, a.k, g);
      [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        if (r >= item.rows) continue;
        [[unroll]] for (uint q = 0u; q < uint(CHUNK / 4); q++) {
          vec4 x = Vectors(rows[r]).v[(k0 >> 2) + q];
          acc[r] = fma(w[4u * q], x.x, fma(w[4u * q + 1u], x.y, fma(w[4u * q + 2u], x.z, fma(w[4u * q + 3u], x.w, acc[r]))));
          if (GATE_UP != 0u)
            acc_gate[r] = fma(g[4u * q], x.x, fma(g[4u * q + 1u], x.y, fma(g[4u * q + 2u], x.z,
                                                                           fma(g[4u * q + 3u], x.w, acc_gate[r]))));
        }
      }
    }
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
      acc[r] = subgroupAdd(acc[r]);
      if (GATE_UP != 0u) acc_gate[r] = subgroupAdd(acc_gate[r]);
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
