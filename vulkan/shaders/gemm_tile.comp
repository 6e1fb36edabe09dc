/* Grouped GEMM for many rows on a GPU: 64 rows x 64 columns a workgroup, 32 k at a time through shared memory; half of the
 * threads decode W, the other half fetch x, then each thread has 4 rows x 8 columns of fp32 sums. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "gemm.glsl"

layout(local_size_x = 128) in;

#define M 64
#define N 64
#define CHUNK 32

/* 16 KiB, which is all that every device has; [k][row / 4]: threads side by side are in different banks */
shared vec4 w_tile[CHUNK * N / 4], x_tile[CHUNK * M / 4];

/* acc[r][c] += x rows 4 ty + r times columns 4 tx + c, and from the fifth on 28 + 4 tx + c, of the tiles: 3 loads of 16 bytes for 32 fma */
#define MULTIPLY(acc)                                                                                                  \
  for (int k = 0; k < CHUNK; k++) {                                                                                    \
    vec4 x = x_tile[k * (M / 4) + ty], w0 = w_tile[k * (N / 4) + tx], w1 = w_tile[k * (N / 4) + 8 + tx];               \
    [[unroll]] for (int r = 0; r < 4; r++)                                                                             \
      [[unroll]] for (int c = 0; c < 4; c++) {                                                                         \
        acc[r * 8 + c] = fma(x[r], w0[c], acc[r * 8 + c]);                                                             \
        acc[r * 8 + 4 + c] = fma(x[r], w1[c], acc[r * 8 + 4 + c]);                                                     \
      }                                                                                                                \
  }

void main() {
  GemmArgs a = MOI_ARGS_AT(GemmArgs, args);
  uint n_rows, n_items = item_count(a, n_rows);
  uint thread = gl_LocalInvocationIndex, lane = thread & 63u, j0 = (gl_WorkGroupID.x + block0) * uint(N);
  int tx = int(thread & 7u), ty = int(thread >> 3), at = int(lane >> 2), part = int(lane & 3u);
  for (uint i = gl_WorkGroupID.y; i < n_items; i += gl_NumWorkGroups.y) {
    Item item = item_at(i, n_rows);
    Streams su = streams_of(a.up, item.expert, a.bias_type), sg = su;
    if (GATE_UP != 0u && a.has_gate != 0u) sg = streams_of(a.gate, item.expert, a.bias_type);
    uint column = min(j0 + lane, a.n - 1u);
    uint n_up = column * a.up.row_mul + a.up.row_add, n_gate = column * a.gate.row_mul + a.gate.row_add;
    uvec2 row = moi_add(a.x, moi_mul(uvec2(a.ldx * 4u, a.ldx >> 30),
                                     slot_of(a, item.first + min(lane, item.rows - 1u)) / a.x_div));
    float acc[32], acc_gate[32];
    [[unroll]] for (int c = 0; c < 32; c++) acc[c] = acc_gate[c] = 0.0;
    uint k_end = su.there && sg.there ? a.k : 0u;
    for (uint k0 = 0u; k0 < k_end; k0 += uint(CHUNK)) {
      if (thread < 64u) {
        float w[CHUNK];
        moi_fetch_any(su.d, su.s, su.z, n_up, k0, a.up.rows, a.k, w);
        [[unroll]] for (int k = 0; k < CHUNK; k++) w_tile[k * (N / 4) + at][part] = w[k];
      } else {
        [[unroll]] for (int q = 0; q < CHUNK / 4; q++) {
          vec4 x = VECTOR(row, (k0 >> 2) + uint(q));
          [[unroll]] for (int k = 0; k < 4; k++) x_tile[(4 * q + k) * (M / 4) + at][part] = x[k];
        }
      }
      barrier();
      MULTIPLY(acc)
      barrier();
      if (GATE_UP != 0u && a.has_gate != 0u) {
        if (thread < 64u) {
          float w[CHUNK];
          moi_fetch_any(sg.d, sg.s, sg.z, n_gate, k0, a.gate.rows, a.k, w);
          [[unroll]] for (int k = 0; k < CHUNK; k++) w_tile[k * (N / 4) + at][part] = w[k];
        }
        barrier();
        MULTIPLY(acc_gate)
        barrier();
      }
    }
    /* 16 rows at a time through shared memory: threads side by side write columns side by side */
    [[unroll]] for (int r = 0; r < 4; r++) {
      [[unroll]] for (int half_of = 0; half_of < 2; half_of++) {
        int c = r * 8 + half_of * 4, to = ty * (N / 4) + half_of * 8 + tx;
        w_tile[to] = vec4(acc[c], acc[c + 1], acc[c + 2], acc[c + 3]);
        if (GATE_UP != 0u) x_tile[to] = vec4(acc_gate[c], acc_gate[c + 1], acc_gate[c + 2], acc_gate[c + 3]);
      }
      barrier();
      for (uint e = thread; e < 16u * uint(N); e += 128u) {
        uint of = e / uint(N) * 4u + uint(r);
        if (of < item.rows)
          finish(a, su, sg, slot_of(a, item.first + of), j0 + e % uint(N), w_tile[e / 4u][e % 4u], x_tile[e / 4u][e % 4u]);
      }
      barrier();
    }
  }
}
