/* Multiply-adds in registers: 16 sums that do not wait for each other. 2 * 16 operations an invocation and round. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x = 256) in;

layout(push_constant) uniform Push {
  uvec2 buffer_, sink;
  uint n_words, rounds;
};

void main() {
  float a[16], x = 1.0 + float(gl_LocalInvocationIndex) * 1e-9, y = 1e-9 * float(n_words);
  [[unroll]] for (int i = 0; i < 16; i++) a[i] = float(i);
  for (uint r = 0u; r < rounds; r++)
    [[unroll]] for (int i = 0; i < 16; i++) a[i] = fma(a[i], x, y);
  float sum = 0.0;
  [[unroll]] for (int i = 0; i < 16; i++) sum += a[i];
  if (sum == 12345.678) Words(sink).v[0] = 1u;
}
