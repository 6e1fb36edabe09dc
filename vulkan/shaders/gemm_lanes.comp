/* Grouped GEMM for devices that are CPUs: a lane owns a column and walks its row of W. x is the same for all lanes: where the
 * driver makes one scalar load of that, an operand in memory of the multiplication, it is read so; where it gathers instead,
 * x is loaded a subgroup's width at a time and handed round by broadcasts of constant lanes. No shared memory. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "gemm.glsl"

layout(constant_id = 2) const uint SUBGROUP = 8u;
layout(constant_id = 3) const uint ROWS = 8u; /* m_tile: 1 or 8 */
layout(constant_id = 5) const uint SCALAR = 0u; /* moi_vk_traits.scalar_loads */
layout(local_size_x_id = 2) in;

#define CHUNK 32

/* Before the columns' rows are read 16 bytes here and 16 there, each line a miss that nothing foresees, their lines are asked
 * for all at once. So many k at a time, that first-level caches hold them: a multiple of every block. */
#define AHEAD 1024u

/* Sums of one row that do not wait for each other; several rows do not either. */
const uint PARTS = ROWS == 1u ? 4u : 1u;

void main() {
  GemmArgs a = GemmArgs(args);
  uint n_rows, n_items = item_count(a, n_rows);
  uint j = (gl_WorkGroupID.x + block0) * SUBGROUP + gl_SubgroupInvocationID, column = min(j, a.n - 1u);
  for (uint i = gl_WorkGroupID.y; i < n_items; i += gl_NumWorkGroups.y) {
    Item item = item_at(i, n_rows);
    Streams su = streams_of(a.up, item.expert, a.bias_type), sg = su;
    if (GATE_UP != 0u && a.has_gate != 0u) sg = streams_of(a.gate, item.expert, a.bias_type);
    uint n_up = column * a.up.row_mul + a.up.row_add, n_gate = column * a.gate.row_mul + a.gate.row_add;
    float acc[ROWS * PARTS], acc_gate[ROWS * PARTS];
    uvec2 rows[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS * PARTS; r++) acc[r] = acc_gate[r] = 0.0;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
      uint slot = slot_of(a, item.first + min(r, item.rows - 1u));
      rows[r] = moi_add(a.x, moi_mul(uvec2(a.ldx * 4u, a.ldx >> 30), slot / a.x_div));
    }
    uint k_end = su.there && sg.there ? a.k : 0u;
    uint touched = 0u, k0 = 0u;
    if (k_end != 0u) do { /* loops that end below: lavapipe goes once more through what follows a test above, for no lane */
      uint k1 = min(k0 + AHEAD, k_end);
      touched |= moi_touch(su.d, n_up, k0, k1, a.k);
      if (GATE_UP != 0u && a.has_gate != 0u) touched |= moi_touch(sg.d, n_gate, k0, k1, a.k);
      do {
        float w[CHUNK], g[CHUNK];
        moi_fetch_any(su.d, su.s, su.z, n_up, k0, a.up.rows, a.k, w);
        if (GATE_UP != 0u && a.has_gate != 0u) moi_fetch_any(sg.d, sg.s, sg.z, n_gate, k0, a.gate.rows, a.k, g);
        float v[ROWS * 8u];
        if (SCALAR == 0u)
          [[unroll]] for (uint r = 0u; r < ROWS; r++)
            [[unroll]] for (uint i = 0u; i < (uint(CHUNK) + SUBGROUP - 1u) / SUBGROUP; i++) /* a count, or it stays a loop */
              v[r * 8u + i] = FLOAT(rows[r], k0 + i * SUBGROUP + (gl_SubgroupInvocationID & (uint(CHUNK) - 1u)));
        [[unroll]] for (uint k = 0u; k < uint(CHUNK); k++)
          [[unroll]] for (uint r = 0u; r < ROWS; r++) {
            float xk = SCALAR != 0u ? FLOAT(rows[r], k0 + k) : subgroupBroadcast(v[r * 8u + k / SUBGROUP], k % SUBGROUP);
            uint at = r * PARTS + k % PARTS;
            acc[at] = fma(w[k], xk, acc[at]);
            if (GATE_UP != 0u) acc_gate[at] = fma(g[k], xk, acc_gate[at]);
          }
        k0 += uint(CHUNK);
      } while (k0 < k1);
    } while (k0 < k_end);
    if (PARTS == 4u) {
      acc[0] = (acc[0] + acc[1]) + (acc[2] + acc[3]);
      acc_gate[0] = (acc_gate[0] + acc_gate[1]) + (acc_gate[2] + acc_gate[3]);
    }
    if (touched == 1u && a.n == 0u) SET_FLOAT(a.y, 0, 0.0); /* never: it keeps the reads */
    float u[ROWS], ug[ROWS]; /* what a loop indexes; the sums themselves stay in registers */
    [[unroll]] for (uint r = 0u; r < ROWS; r++) u[r] = acc[r * PARTS], ug[r] = acc_gate[r * PARTS];
    for (uint r = 0u; r < min(ROWS, item.rows); r++) finish(a, su, sg, slot_of(a, item.first + r), j, u[r], ug[r]);
  }
}
