/* Some query heads of one row and KV head: the parts of its keys joined in ascending order, sinks, the division, the
 * output's type. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention.glsl"

const uint MAX_SEGMENTS = 368u; /* of 2^32 keys, units of 256 */
const uint HEADS = 8u; /* of a workgroup */
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint OUTPUT = MOI_F32;
/* pairs of elements are words: software devices go through branches that none takes */
layout(constant_id = 2) const uint WORDS = 0u;
layout(push_constant) uniform Push {
  uvec2 args;
  uint first_row;
};

shared float shared_keep[MAX_SEGMENTS], shared_add[MAX_SEGMENTS];

void main() {
  Args a = MOI_ARGS_AT(Args, args);
  uint lane = gl_LocalInvocationID.x, kv_head = gl_WorkGroupID.x, row = first_row + gl_WorkGroupID.y;
  uint n_seqs = a.n_seqs, n_heads = a.n_heads, group = n_heads / a.n_kv_heads, dv = a.v_head_dim;
  uvec2 seqs = a.seqs, acc = a.many, sums = a.many_sums, lse = a.lse, sinks = a.sinks;
  bool has_sinks = a.has_sinks != 0u;

  bool found = false; /* a sequence */
  uint n_parts = 0u, slot = 0u, tile = a.many_tile, before = 0u, segment = 0u, slots = 1u;
  if (n_seqs > 0u) {
    uint s = seq_find(seqs, n_seqs, SEQ_ROW, row), first = seq_word(seqs, s, SEQ_ROW);
    uint rows = seq_word(seqs, s, SEQ_ROWS);
    if (row >= first && row - first < rows) {
      found = true;
      uvec2 span = visible(position_after(seq_word(seqs, s, SEQ_POSITION), row - first), seq_word(seqs, s, SEQ_BEGIN),
                           seq_word(seqs, s, SEQ_LEN), a.causal, a.window, a.chunk);
      bool few = rows <= a.few_rows;
      if (few) {
        acc = a.few;
        sums = a.few_sums;
        tile = a.few_tile;
        slots = a.n_segments;
      }
      before = (row - first) * group;
      slot = seq_word(seqs, s, few ? SEQ_FEW : SEQ_MANY);
      if (span.x < span.y) {
        n_parts = 1u;
        if (few) {
          segment = moi_segment_of(span.x, a.segment);
          n_parts = moi_segment_of(span.y - 1u, a.segment) - segment + 1u;
        }
      }
    }
  }
  float v_scale = FLOAT_OR(a.v_scale, kv_head, 1.0);
  uvec2 y = moi_add(a.y, moi_mul(moi_mul(moi_element_bytes(OUTPUT), a.y_stride), row));
  y = moi_add(y, moi_mul(moi_element_bytes(OUTPUT), kv_head * group * dv));
  uint step = a.n_kv_heads * tile; /* rows between parts */

  uint first_head = gl_WorkGroupID.z * HEADS;
  for (uint h = first_head; h < min(group, first_head + HEADS); h++) {
    uint at = before + h, head = kv_head * group + h, first_part = kv_head * tile + at % tile;
    uint from_slot = (slot + at / tile) * slots + segment;
    float m = -MOI_INFINITY, s = 0.0;
    [[dont_unroll]] for (uint i = 0u; i < n_parts; i++) { /* a shared array does not say how many there are */
      uvec2 sum = moi_add(sums, moi_mul(moi_mul(8u, step), from_slot + i));
      float keep, add;
      join(m, s, FLOAT(sum, 2u * first_part), FLOAT(sum, 2u * first_part + 1u), keep, add);
      if (lane == 0u) {
        shared_keep[i] = keep;
        shared_add[i] = add;
      }
    }
    barrier();
    float factor = 1.0;
    if (has_sinks && found) {
      float sink = FLOAT(sinks, head), add;
      if (sink != -MOI_INFINITY) join(m, s, sink, 1.0, factor, add);
    }
    bool nothing = n_parts == 0u || s == 0.0;
    factor = nothing ? 0.0 : factor * v_scale / s;
    uvec2 from = moi_add(acc, moi_mul(moi_mul(4u * dv, step), from_slot));
    from = moi_add(from, moi_mul(4u * dv, first_part));
    for (uint e = 2u * lane; e < dv; e += 2u * gl_WorkGroupSize.x) {
      uint e1 = min(e + 1u, dv - 1u);
      float x0 = 0.0, x1 = 0.0;
      [[dont_unroll]] for (uint i = 0u; i < n_parts; i++) { /* a shared array does not say how many there are */
        uvec2 part = moi_add(from, moi_mul(moi_mul(4u * dv, step), i));
        float keep = shared_keep[i], add = shared_add[i];
        if (add != 0.0) { /* NaN is not */
          x0 = fma(x0, keep, FLOAT(part, e) * add);
          x1 = fma(x1, keep, FLOAT(part, e1) * add);
        }
      }
      x0 = nothing ? 0.0 : x0 * factor;
      x1 = nothing ? 0.0 : x1 * factor;
      if (OUTPUT == MOI_F32) {
        SET_FLOAT(y, h * dv + e, x0);
        if (e + 1u < dv) SET_FLOAT(y, h * dv + e + 1u, x1);
      } else if (WORDS != 0u) {
        WORD(y, (h * dv + e) / 2u) = OUTPUT == MOI_BF16 ? moi_bf16_code(x0) | (moi_bf16_code(x1) << 16)
                                                           : moi_f16_code(x0) | (moi_f16_code(x1) << 16);
      } else {
        moi_store_pair(OUTPUT, y, h * dv + e, x0, x1, e + 1u < dv);
      }
    }
    if (lane == 0u && moi_has(lse)) SET_FLOAT(moi_add(lse, moi_mul(moi_mul(4u, n_heads), row)), head, log_sum(m, s));
    barrier();
  }
}
