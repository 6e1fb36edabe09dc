/* Rows of activations as the grouped GEMMs read them: fp32 or integers, zero behind k, weighted and quantised as the caller
 * says. A workgroup makes a row at a time, 128 k after 128: input and x may be the same. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

#define THREADS 128u
layout(local_size_x = 128) in;

#define EVEN_ODD 4u /* MOI_VK_EVEN_ODD */

/* As moi_vk_prepare_args of grouped.c. */
#define PREPARE_ARGS(P, P2, U, U2, F, M)                                                                               \
  P(input_rows) P(x) P(weights) P(n_rows_device) /* weights: of the rows, multiplied in and rounded; absent: none */   \
  P(gate) P(gate_out) /* a vector, and sigmoid(row . vector) of each row; absent: none */                              \
  U(input_type) U(gate_type) U(input_stride) U(ldx)                                                                    \
  U(k) U(n_rows) U(row_div) U(rows_per_count) /* row r is input row r / row_div */                                     \
  U(act_quant) U(form)
MOI_ARGS(PrepareArgs, PREPARE_ARGS)

layout(push_constant) uniform Push { uvec2 args; };

shared float shares[THREADS];
shared int integers[THREADS];

/* Over `width` invocations side by side, a power of two. */
float reduce_max(uint thread, float v, uint width) {
  shares[thread] = v;
  barrier();
  for (uint step = width / 2u; step > 0u; step /= 2u) {
    if ((thread & (width - 1u)) < step) shares[thread] = max(shares[thread], shares[thread + step]);
    barrier();
  }
  float r = shares[thread & ~(width - 1u)];
  barrier();
  return r;
}

float reduce_sum(uint thread, float v) {
  shares[thread] = v;
  barrier();
  for (uint step = THREADS / 2u; step > 0u; step /= 2u) {
    if (thread < step) shares[thread] += shares[thread + step];
    barrier();
  }
  float r = shares[0];
  barrier();
  return r;
}

/* x / s, rounded as IEEE 754 does: Vulkan's own division may be off. The product that says how far is made of halves of 12
 * bits, exactly: fma may be a multiplication and an addition. */
float divide(float x, float s) {
  precise float plain = x / s;
  int ex = int((floatBitsToUint(x) >> 23) & 255u), es = int((floatBitsToUint(s) >> 23) & 255u);
  if (ex == 0 || ex == 255 || es == 0 || es == 255 || abs(ex - es) > 100) return plain; /* 0, or not to be rescued */
  precise float a = uintBitsToFloat((floatBitsToUint(x) & 0x807fffffu) | 0x3f800000u);
  precise float b = uintBitsToFloat((floatBitsToUint(s) & 0x807fffffu) | 0x3f800000u);
  precise float q = a / b, p = q * b;
  precise float q1 = uintBitsToFloat(floatBitsToUint(q) & 0xfffff000u), q0 = q - q1;
  precise float b1 = uintBitsToFloat(floatBitsToUint(b) & 0xfffff000u), b0 = b - b1;
  precise float low = ((q1 * b1 - p) + q1 * b0 + q0 * b1) + q0 * b0;
  precise float r = (a - p) - low;
  precise float better = (q + r / b) * uintBitsToFloat(uint(ex - es + 127) << 23);
  return better;
}

/* Byte `at` of the digits of 32 k is element: */
uint element_at(uint form, uint at) { return (form & EVEN_ODD) == 0u ? at : (at & 24u) + 2u * (at & 3u) + ((at >> 2) & 1u); }

/* Writes the 32 k from k0 on that this invocation's neighbours and it hold, x = d * q; lane: its number among them. Digits of
 * codes.glsl. */
void store_integers(uint form, uint thread, uvec2 row, uint k0, uint ldx, int q, float d) {
  uint first = thread & ~31u, lane = thread & 31u;
  integers[thread] = q;
  barrier();
  uint word = 0u;
  if (lane < 16u)
    for (uint b = 0u; b < 4u; b++) {
      int v = integers[first + element_at(form, 4u * (lane & 7u) + b)];
      int low = ((v + 128) & 255) - 128;
      uint digit = (form & 2u) == 0u ? uint(v) : lane < 8u ? uint((v - low) >> 8) : uint(low);
      word |= (digit & 255u) << (8u * b);
    }
  else if (lane < 18u)
    for (uint i = 0u; i < 16u; i++) word += uint(integers[first + 16u * (lane - 16u) + i]);
  else if (lane == 18u) word = floatBitsToUint(d);
  if (lane < 19u && k0 < ldx) WORD(row, k0 + lane) = word;
  barrier();
}

void main() {
  PrepareArgs a = MOI_ARGS_AT(PrepareArgs, args);
  uint thread = gl_LocalInvocationIndex, n_rows = a.n_rows;
  uint counted = WORD_OR(a.n_rows_device, 0u, 0xffffffffu);
  n_rows = counted < n_rows / a.rows_per_count ? counted * a.rows_per_count : n_rows;
  for (uint row = gl_WorkGroupID.x; row < n_rows; row += gl_NumWorkGroups.x) {
    uvec2 from = moi_add(a.input_rows, moi_mul(moi_mul(a.input_stride, moi_element_bytes(a.input_type)), row / a.row_div));
    uvec2 to = moi_add(a.x, moi_mul(moi_mul(a.ldx, 4u), row));
    float weight = FLOAT_OR(a.weights, row, 1.0), dot = 0.0;
    for (uint k0 = 0u; k0 < a.ldx; k0 += THREADS) { /* 128: groups of act_quant */
      uint k = k0 + thread;
      float v = 0.0, d = 0.0;
      int q = 0;
      if (k < a.k) {
        v = moi_load(a.input_type, from, k);
        if (moi_has(a.gate)) dot = fma(v, moi_load(a.gate_type, moi_instead(a.gate, args), moi_has(a.gate) ? k : 0u), dot);
        if (moi_has(a.weights)) v = moi_round_to(a.input_type, v * weight);
      }
      if (a.act_quant == 3u) { /* INT8_32 */
        bool finite = (floatBitsToUint(v) & 0x7f800000u) != 0x7f800000u;
        float scale = reduce_max(thread, finite ? abs(v) : MOI_INFINITY, 32u);
        scale = max(divide(scale, 127.0), 1.17549435e-38);
        bool whole = (floatBitsToUint(scale) & 0x7f800000u) != 0x7f800000u;
        v = whole ? roundEven(divide(v, scale)) : 0.0;
        q = int(v);
        d = whole ? scale : uintBitsToFloat(0x7fc00000u);
        v *= d;
      } else if (a.act_quant != 0u) {
        float scale = reduce_max(thread, max(abs(v), 1e-4), THREADS);
        scale = divide(scale, 448.0);
        if (a.act_quant == 2u) { /* 2^ceil(log2 scale), on the bits */
          uint u = floatBitsToUint(scale);
          scale = uintBitsToFloat(((u >> 23) + ((u & 0x7fffffu) != 0u ? 1u : 0u)) << 23);
        }
        v = moi_e4m3_value(moi_e4m3_code(clamp(divide(v, scale), -448.0, 448.0))) * scale;
      }
      if ((a.form & 2u) != 0u) {
        bool finite = (floatBitsToUint(v) & 0x7f800000u) != 0x7f800000u;
        float largest = reduce_max(thread, finite ? abs(v) : MOI_INFINITY, 32u);
        d = largest < MOI_INFINITY ? divide(largest, 32639.0) : uintBitsToFloat(0x7fc00000u);
        if (d > 0.0) q = int(roundEven(clamp(divide(v, d), -32639.0, 32639.0)));
      }
      if (a.form != 0u) store_integers(a.form, thread, to, k0 + (thread & ~31u), a.ldx, q, d);
      else if (k < a.ldx) SET_FLOAT(to, k, v);
    }
    if (moi_has(a.gate)) {
      dot = reduce_sum(thread, dot);
      if (thread == 0u) SET_FLOAT(a.gate_out, row, moi_sigmoid(dot));
    }
  }
}
