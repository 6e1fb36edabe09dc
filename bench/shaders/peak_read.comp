/* Reads a buffer once: words side by side, several in flight for each invocation. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x = 256) in;

layout(push_constant) uniform Push {
  uvec2 buffer_, sink;
  uint n_words, rounds;
};

void main() {
  uint step = gl_NumWorkGroups.x * 256u, sum = 0u;
  for (uint i = gl_GlobalInvocationID.x; i < n_words; i += 8u * step) {
    [[unroll]] for (uint j = 0u; j < 8u; j++) {
      uint at = i + j * step;
      sum ^= Words(buffer_).v[at < n_words ? at : i];
    }
  }
  if (sum == 0x5eed5eedu) Words(sink).v[0] = sum; /* it never is: so that the reads are not left out */
}
