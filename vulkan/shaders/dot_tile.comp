/* gemm_tile with integer dot products: 64 rows x 64 columns a workgroup, 32 k at a time through shared memory as bytes; half
 * of the threads unpack W, the other half fetch x, then each thread has 4 rows x 8 columns. The integer sums of a group of k
 * are exact; scales multiply them, not the codes. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "codes.glsl"

layout(local_size_x = 128) in;

#define M 64
#define N 64
#define CHUNK 32

/* [16 k][column] and [digit][16 k][row]: what threads side by side read lies side by side, 16 bytes each */
shared ivec4 w_tile[2 * N], x_tile[4 * M];
shared float w_scale[2 * N], w_minimum[N], x_scale[M];
shared int w_zero[N], x_sum[2 * M];
shared float out_up[16 * N], out_gate[16 * N];

void stage(Streams s, uint n, uint k0, uint n_all, uint k_all, uint lane) {
  Codes w = moi_codes(s.d, s.s, s.z, n, k0, n_all, k_all);
  w_tile[lane] = w.q[0], w_tile[N + lane] = w.q[1];
  w_scale[lane] = w.scale[0];
  if (GROUPS == 2) w_scale[N + lane] = w.scale[1];
  if (HAS_ZERO) w_zero[lane] = w.zero;
  if (HAS_MINIMUM) w_minimum[lane] = w.minimum;
}

/* acc[r][c] += x rows (ty, ty + 16, ...) times columns (tx, tx + 8, ...) of the tiles */
void multiply(int tx, int ty, inout float acc[32]) {
  for (int g = 0; g < GROUPS; g++) {
    int sum[32];
    [[unroll]] for (int c = 0; c < 32; c++) sum[c] = 0;
    for (int digit = 0; digit < int(DIGITS); digit++) {
      [[unroll]] for (int c = 0; c < 32; c++) sum[c] *= 256;
      for (int i = g; i < g + 3 - GROUPS; i++) {
        ivec4 x[4];
        [[unroll]] for (int r = 0; r < 4; r++) x[r] = x_tile[(digit * 2 + i) * M + ty + 16 * r];
        [[unroll]] for (int c = 0; c < 8; c++) {
          ivec4 w = w_tile[i * N + tx + 8 * c];
          [[unroll]] for (int r = 0; r < 4; r++) sum[r * 8 + c] = moi_dot(x[r], w, sum[r * 8 + c]);
        }
      }
    }
    float d[4];
    int all[4];
    [[unroll]] for (int r = 0; r < 4; r++) d[r] = x_scale[ty + 16 * r], all[r] = x_sum[g * M + ty + 16 * r];
    [[unroll]] for (int c = 0; c < 8; c++) {
      int column = tx + 8 * c;
      float scale = w_scale[g * N + column], minimum = HAS_MINIMUM ? w_minimum[column] : 0.0;
      int zero = HAS_ZERO ? w_zero[column] : 0;
      [[unroll]] for (int r = 0; r < 4; r++)
        acc[r * 8 + c] = moi_scaled(acc[r * 8 + c], sum[r * 8 + c], all[r], scale, minimum, zero, d[r]);
    }
  }
}

void main() {
  GemmArgs a = GemmArgs(args);
  uint n_rows, n_items = item_count(a, n_rows);
  uint thread = gl_LocalInvocationIndex, lane = thread & 63u, j0 = (gl_WorkGroupID.x + block0) * uint(N);
  int tx = int(thread & 7u), ty = int(thread >> 3);
  bool two = GATE_UP != 0u && a.has_gate != 0u;
  for (uint i = gl_WorkGroupID.y; i < n_items; i += gl_NumWorkGroups.y) {
    Item item = item_at(i, n_rows);
    Streams su = streams_of(a.up, item.expert, a.bias_type), sg = su;
    if (two) sg = streams_of(a.gate, item.expert, a.bias_type);
    uint column = min(j0 + lane, a.n - 1u);
    uint n_up = column * a.up.row_mul + a.up.row_add, n_gate = column * a.gate.row_mul + a.gate.row_add;
    uvec2 row = moi_add(a.x, moi_mul(uvec2(a.ldx * 4u, a.ldx >> 30),
                                     slot_of(a, item.first + min(lane, item.rows - 1u)) / a.x_div));
    float acc[32], acc_gate[32];
    [[unroll]] for (int c = 0; c < 32; c++) acc[c] = acc_gate[c] = 0.0;
    uint k_end = su.there && sg.there ? a.k : 0u;
    for (uint k0 = 0u; k0 < k_end; k0 += uint(CHUNK)) {
      if (thread < 64u) {
        stage(su, n_up, k0, a.up.rows, a.k, lane);
      } else {
        Digits x = moi_digits(row, k0);
        for (uint digit = 0u; digit < DIGITS; digit++)
          [[unroll]] for (uint q = 0u; q < 2u; q++) x_tile[(digit * 2u + q) * uint(M) + lane] = x.q[digit][q];
        x_scale[lane] = x.d;
        int first = x.sums[0], second = x.sums[1];
        x_sum[lane] = GROUPS == 1 ? first + second : first;
        x_sum[M + lane] = second;
      }
      barrier();
      multiply(tx, ty, acc);
      barrier();
      if (two) {
        if (thread < 64u) stage(sg, n_gate, k0, a.gate.rows, a.k, lane);
        barrier();
        multiply(tx, ty, acc_gate);
        barrier();
      }
    }
    /* 16 rows at a time through shared memory: threads side by side write columns side by side */
    for (int pass = 0; pass < 4; pass++) {
      [[unroll]] for (int r = 0; r < 4; r++)
        [[unroll]] for (int c = 0; c < 8; c++) {
          if (r != pass) continue;
          out_up[ty * N + tx + 8 * c] = acc[r * 8 + c] * CODE_STEP;
          if (GATE_UP != 0u) out_gate[ty * N + tx + 8 * c] = acc_gate[r * 8 + c] * CODE_STEP;
        }
      barrier();
      for (uint e = thread; e < 16u * uint(N); e += 128u) {
        uint at = e / uint(N) + 16u * uint(pass);
        if (at < item.rows)
          finish(a, su, sg, slot_of(a, item.first + at), j0 + e % uint(N), out_up[e], out_gate[e]);
      }
      barrier();
    }
  }
}
