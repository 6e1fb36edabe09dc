/* Attention by lanes: a subgroup takes a tile of query rows (rows x heads of one KV head) over keys. Scores: a lane has a
 * key, queries go from lane to lane. Values: a lane has dimensions, weights go from lane to lane. Made for devices where a
 * load costs as much as twenty multiply-adds, whatever it loads: what is loaded serves the whole tile. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "attention.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SG = 8u; /* the subgroup's size, which is the workgroup's */
layout(constant_id = 2) const uint R = 8u;  /* rows of a tile */
layout(constant_id = 3) const uint KT = 8u; /* keys of a lane: SG * KT keys are a group */
layout(constant_id = 4) const uint GROUPS = 4u; /* of a step: their weights lie in shared memory */
layout(constant_id = 5) const uint K_FORMAT = MOI_F16;
layout(constant_id = 6) const uint V_FORMAT = MOI_F16;
layout(constant_id = 7) const uint WORDS = 1u; /* rows of the cache begin at words (q8_0: at halves) */
layout(constant_id = 8) const uint SOFTCAP = 0u;
layout(constant_id = 9) const uint MANY = 0u;  /* sequences of many rows: a workgroup takes all segments */
layout(constant_id = 10) const uint CHAIN = 0u; /* ... and there may be several */

layout(push_constant) uniform Push {
  uvec2 args;
  uint first_item;
};

const uint GROUP = SG * KT;
const uint STEP = GROUP * GROUPS;
const uint RV = (R + SG - 1u) / SG; /* registers of one number for each row */

shared float shared_p[R * STEP];     /* weights */
shared uvec2 shared_v[STEP];         /* where values begin */
shared float shared_f[RV * SG * GROUPS]; /* what a group shrinks the sums before it by */

/* ---- keys: CK dimensions at a time */

const uint CK = 32u;
const uint QV = (CK + SG - 1u) / SG;
const uint K_BYTES = K_FORMAT == MOI_F32 ? 4u : K_FORMAT == KV_FP8 || K_FORMAT == KV_Q8_0 ? 1u : 2u;
const uint K_WORDS = K_FORMAT == KV_Q8_0 ? 9u : CK * K_BYTES / 4u;

float x[CK];
uint k_at[K_WORDS], k_mask[K_WORDS];

/* Words of chunk c within a row of n elements; what lies behind the row's end is masked. */
void key_words(uint c, uint n) {
  if (K_FORMAT == KV_Q8_0 || WORDS == 0u) return;
  uint last = (n * K_BYTES - 1u) / 4u;
  [[unroll]] for (uint i = 0u; i < K_WORDS; i++) {
    uint word = c * K_WORDS + i, left = n * K_BYTES > word * 4u ? n * K_BYTES - word * 4u : 0u;
    k_at[i] = min(word, last);
    k_mask[i] = left >= 4u ? 0xffffffffu : (1u << (8u * left)) - 1u;
  }
}

/* x = chunk c of a key */
void key_chunk(uvec2 row, uint c, uint n) {
  if (K_FORMAT == KV_Q8_0) {
    uint at = 34u * c + (row.x & 2u);
    bool odd = (at & 2u) != 0u;
    uvec2 words = moi_add(uvec2(row.x & ~3u, row.y), at & ~3u);
    uint w[9];
    [[unroll]] for (uint i = 0u; i < 9u; i++) w[i] = Words(words).v[i];
    float d = moi_f16_value(odd ? w[0] >> 16 : w[0] & 65535u);
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
      uint word = odd ? w[i + 1u] : (w[i] >> 16) | (w[i + 1u] << 16);
      [[unroll]] for (uint j = 0u; j < 4u; j++) x[4u * i + j] = d * float(int(word << (24u - 8u * j)) >> 24);
    }
  } else if (WORDS == 0u) {
    Stream s = moi_stream(row);
    [[unroll]] for (uint i = 0u; i < CK; i++) {
      uint e = min(c * CK + i, n - 1u);
      float value = K_FORMAT == KV_FP8   ? moi_e4m3_value(moi_u8(s, e))
                    : K_FORMAT == MOI_F32 ? uintBitsToFloat(moi_u32(s, 4u * e))
                    : K_FORMAT == MOI_F16 ? moi_f16_value(moi_u16(s, 2u * e))
                                          : moi_bf16_value(moi_u16(s, 2u * e));
      x[i] = c * CK + i < n ? value : 0.0;
    }
  } else {
    [[unroll]] for (uint i = 0u; i < K_WORDS; i++) {
      uint w = Words(row).v[k_at[i]] & k_mask[i];
      if (K_FORMAT == MOI_F32) {
        x[i] = uintBitsToFloat(w);
      } else if (K_FORMAT == KV_FP8) {
        [[unroll]] for (uint j = 0u; j < 4u; j++) x[4u * i + j] = moi_e4m3_value((w >> (8u * j)) & 255u);
      } else if (K_FORMAT == MOI_F16) {
        x[2u * i] = moi_f16_value(w & 65535u);
        x[2u * i + 1u] = moi_f16_value(w >> 16);
      } else {
        x[2u * i] = uintBitsToFloat(w << 16);
        x[2u * i + 1u] = uintBitsToFloat(w & 0xffff0000u);
      }
    }
  }
}

/* ---- values: NV dimensions of a lane at a time, in units of VE side by side; units of lanes are side by side */

const uint NV = 8u;
const uint VE = V_FORMAT == MOI_F32 ? 1u : V_FORMAT == KV_FP8 || V_FORMAT == KV_Q8_0 ? 4u : 2u;
const uint VU = NV / VE;
const uint CV = NV * SG;

float value[NV];
uint v_at[VU]; /* the lane's units, inside the row */

uint v_unit(uint c, uint i) { return (c * VU + i) * SG + gl_SubgroupInvocationID; }
uint v_element(uint c, uint i) { return v_unit(c, i / VE) * VE + i % VE; }

void value_units(uint c, uint n) {
  [[unroll]] for (uint i = 0u; i < VU; i++) v_at[i] = min(v_unit(c, i), (n - 1u) / VE);
}

/* value = the lane's dimensions of a row of n elements */
void value_chunk(uvec2 row, uint c, uint n) {
  if (V_FORMAT == KV_Q8_0) {
    uvec2 words = uvec2(row.x & ~3u, row.y);
    uint odd = row.x & 2u;
    [[unroll]] for (uint i = 0u; i < VU; i++) {
      uint block = odd + 34u * (v_at[i] >> 3), at = block + 2u + 4u * (v_at[i] & 7u);
      float d = moi_f16_value((Words(words).v[block >> 2] >> (8u * (block & 2u))) & 65535u);
      uint low = Words(words).v[at >> 2], high = Words(words).v[(at + 2u) >> 2]; /* the same word if it is whole */
      uint word = (at & 2u) != 0u ? (low >> 16) | (high << 16) : low;
      [[unroll]] for (uint j = 0u; j < 4u; j++) value[4u * i + j] = d * float(int(word << (24u - 8u * j)) >> 24);
    }
  } else if (WORDS == 0u && V_FORMAT != MOI_F32) {
    Stream s = moi_stream(row);
    [[unroll]] for (uint i = 0u; i < NV; i++) {
      uint e = min(v_element(c, i), n - 1u);
      value[i] = V_FORMAT == KV_FP8    ? moi_e4m3_value(moi_u8(s, e))
                 : V_FORMAT == MOI_F16 ? moi_f16_value(moi_u16(s, 2u * e))
                                       : moi_bf16_value(moi_u16(s, 2u * e));
    }
  } else {
    [[unroll]] for (uint i = 0u; i < VU; i++) {
      uint w = Words(row).v[v_at[i]];
      if (V_FORMAT == MOI_F32) {
        value[i] = uintBitsToFloat(w);
      } else if (V_FORMAT == KV_FP8) {
        [[unroll]] for (uint j = 0u; j < 4u; j++) value[4u * i + j] = moi_e4m3_value((w >> (8u * j)) & 255u);
      } else if (V_FORMAT == MOI_F16) {
        value[2u * i] = moi_f16_value(w & 65535u);
        value[2u * i + 1u] = moi_f16_value(w >> 16);
      } else {
        value[2u * i] = uintBitsToFloat(w << 16);
        value[2u * i + 1u] = uintBitsToFloat(w & 0xffff0000u);
      }
    }
  }
}

float largest(float f) {
  [[unroll]] for (uint step = 1u; step < SG; step <<= 1) {
    float other = subgroupShuffleXor(f, step);
    f = other > f ? other : f;
  }
  return f;
}
float total(float f) {
  [[unroll]] for (uint step = 1u; step < SG; step <<= 1) {
    precise float sum = f + subgroupShuffleXor(f, step);
    f = sum;
  }
  return f;
}

/* A row's number r of those that lanes have side by side. */
#define OF_ROW(a, r) subgroupShuffle(a[(r) / SG], (r) % SG)

float q[R * QV], score[R * KT], acc[R * NV], weight[R];
float most[R], sum[R], row_scale[RV];
uvec2 q_at[RV];
uint row_begin[RV], row_end[RV];

void shrink_all(uint g) {
  float keep[RV];
  [[unroll]] for (uint v = 0u; v < RV; v++) keep[v] = shared_f[(g * RV + v) * SG + gl_SubgroupInvocationID];
  [[unroll]] for (uint r = 0u; r < R; r++) {
    float f = OF_ROW(keep, r);
    [[unroll]] for (uint i = 0u; i < NV; i++) acc[r * NV + i] *= f;
  }
}

void main() {
  Args a = Args(args);
  uint lane = gl_SubgroupInvocationID, head = gl_WorkGroupID.y, n_seqs = a.n_seqs;
  uvec2 seqs = a.seqs;
  uint item = first_item + gl_WorkGroupID.x, before = MANY != 0u ? SEQ_MANY : SEQ_FEW;
  if (item >= seq_word(seqs, n_seqs, before)) return;

  /* the tile's rows: the sequence's rows by position, then head */
  uint seq = seq_find(seqs, n_seqs, before, item), group = a.n_heads / a.n_kv_heads;
  uint rows = seq_word(seqs, seq, SEQ_ROWS) * group, first = (item - seq_word(seqs, seq, before)) * R;
  uint position = seq_word(seqs, seq, SEQ_POSITION), seq_begin = seq_word(seqs, seq, SEQ_BEGIN);
  uint seq_end = seq_word(seqs, seq, SEQ_LEN), seq_row = seq_word(seqs, seq, SEQ_ROW);
  uint input_type = a.input_type, dk = a.head_dim, dv = a.v_head_dim;
  uint causal = a.causal, window = a.window, chunk = a.chunk, temperature_floor = a.temperature_floor;
  float temperature = a.temperature, scale = a.scale, softcap = a.softcap;
  if (moi_has(a.k_scale)) scale *= Floats(a.k_scale).v[head];
  uint q_bytes = moi_element_bytes(input_type);
  uvec2 q_base = a.q, q_row = moi_mul(q_bytes, a.q_stride), q_head = moi_mul(q_bytes, a.q_head_stride);
  uint begin = 0xffffffffu, end = 0u;
  [[unroll]] for (uint v = 0u; v < RV; v++) {
    uint r = first + v * SG + lane, i = min(r, rows - 1u), in_row = i / group;
    q_at[v] = moi_add(moi_add(q_base, moi_mul(q_row, seq_row + in_row)), moi_mul(q_head, head * group + i % group));
    uint after = position_after(position, in_row);
    uvec2 span = visible(after, seq_begin, seq_end, causal, window, chunk);
    if (r >= rows || v * SG + lane >= R) span = uvec2(0u);
    row_begin[v] = span.x;
    row_end[v] = span.y;
    row_scale[v] = scale * temperature_at(temperature, temperature_floor, after);
    if (span.x < span.y) {
      begin = min(begin, span.x);
      end = max(end, span.y);
    }
  }
  [[unroll]] for (uint step = 1u; step < SG; step <<= 1) {
    begin = min(begin, subgroupShuffleXor(begin, step));
    end = max(end, subgroupShuffleXor(end, step));
  }

  /* few rows: one segment of the keys; many: all of them, each joined to those before */
  uint segment_keys = a.segment, n_segments = a.n_segments, slot = item;
  if (MANY == 0u) {
    uint segment = gl_WorkGroupID.z;
    begin = max(begin, segment * segment_keys);
    end = min(end, (segment + 1u) * segment_keys);
    slot = item * n_segments + segment;
  }
  if (begin >= end) return;

  uvec2 k_page = a.k_page, k_token = a.k_token, k_base = moi_add(a.k, moi_mul(a.k_head, head));
  uvec2 v_page = a.v_page, v_token = a.v_token, v_base = moi_add(a.v, moi_mul(a.v_head, head)), zeros = a.zeros;
  uvec2 places = a.places;
  uint page_size = a.page_size, page_entries = a.page_entries, capacity = a.capacity, max_kv = a.max_kv;
  uint out_row = head * R;
  uvec2 out_acc = MANY != 0u ? a.many : a.few, out_sums = MANY != 0u ? a.many_sums : a.few_sums, now = a.now;
  uint stride = a.n_kv_heads * R;
  out_acc = moi_add(moi_add(out_acc, moi_mul(moi_mul(4u * dv, stride), slot)), moi_mul(4u * dv, out_row));
  now = moi_add(moi_add(now, moi_mul(moi_mul(4u * dv, stride), slot)), moi_mul(4u * dv, out_row));
  out_sums = moi_add(moi_add(out_sums, moi_mul(moi_mul(8u, stride), slot)), moi_mul(8u, out_row));

  float chain_most[R], chain_sum[R];
  [[unroll]] for (uint r = 0u; r < R; r++) {
    chain_most[r] = -MOI_INFINITY;
    chain_sum[r] = 0.0;
  }
  uint first_segment = begin / segment_keys, last_segment = (end - 1u) / segment_keys;
  for (uint segment = first_segment; segment <= last_segment; segment++) {
    uint from = max(begin, segment * segment_keys), to = min(end, (segment + 1u) * segment_keys);
    uvec2 to_acc = segment == first_segment ? out_acc : now;
    [[unroll]] for (uint r = 0u; r < R; r++) {
      most[r] = -MOI_INFINITY;
      sum[r] = 0.0;
    }
    bool fresh = true;
    for (uint step = from / GROUP * GROUP; step < to; step += STEP, fresh = false) {
      uint n_groups = min(GROUPS, (to - step + GROUP - 1u) / GROUP);

      /* weights of the step's keys */
      for (uint g = 0u; g < n_groups; g++) {
        uvec2 key[KT];
        uint j0 = step + g * GROUP + lane;
        [[unroll]] for (uint t = 0u; t < KT; t++) {
          uint j = j0 + t * SG, page, token;
          key[t] = zeros;
          uvec2 at = zeros;
          if (j >= from && j < to && place_of(places, page_size, page_entries, capacity, max_kv, seq, j, page, token)) {
            key[t] = row_at(k_base, k_page, k_token, page, token);
            at = row_at(v_base, v_page, v_token, page, token);
          }
          shared_v[g * GROUP + t * SG + lane] = at;
          [[unroll]] for (uint r = 0u; r < R; r++) score[r * KT + t] = 0.0;
        }
        for (uint c = 0u; c * CK < dk; c++) {
          [[unroll]] for (uint r = 0u; r < R; r++) {
            uvec2 row = uvec2(OF_ROW(q_at, r).x, OF_ROW(q_at, r).y);
            [[unroll]] for (uint v = 0u; v < QV; v++) {
              uint e = c * CK + v * SG + lane, inside = min(e, dk - 1u);
              uvec2 at = moi_add(row, inside * q_bytes);
              uint w = Words(uvec2(at.x & ~3u, at.y)).v[0];
              uint h = (at.x & 2u) != 0u ? w >> 16 : w & 65535u;
              float f = input_type == MOI_F32 ? uintBitsToFloat(w) : input_type == MOI_F16 ? moi_f16_value(h) : moi_bf16_value(h);
              q[r * QV + v] = e < dk && v * SG + lane < CK ? f : 0.0;
            }
          }
          key_words(c, dk);
          [[unroll]] for (uint t = 0u; t < KT; t++) {
            key_chunk(key[t], c, dk);
            [[unroll]] for (uint r = 0u; r < R; r++)
              [[unroll]] for (uint e = 0u; e < CK; e++)
                score[r * KT + t] = fma(x[e], subgroupShuffle(q[r * QV + e / SG], e % SG), score[r * KT + t]);
          }
        }
        [[unroll]] for (uint r = 0u; r < R; r++) {
          uint see = OF_ROW(row_begin, r), until = OF_ROW(row_end, r);
          float by = OF_ROW(row_scale, r), top = -MOI_INFINITY;
          [[unroll]] for (uint t = 0u; t < KT; t++) {
            float l = score[r * KT + t] * by;
            if (SOFTCAP != 0u) l = softcap * moi_tanh(l / softcap);
            uint j = j0 + t * SG;
            l = j >= max(see, from) && j < min(until, to) ? l : -MOI_INFINITY;
            top = l > top ? l : top;
            score[r * KT + t] = l;
          }
          top = largest(top);
          top = top > most[r] ? top : most[r];
          float keep = sum[r] == 0.0 ? 0.0 : shrink(most[r], top), more = 0.0;
          [[unroll]] for (uint t = 0u; t < KT; t++) {
            float l = score[r * KT + t], p = l == -MOI_INFINITY ? 0.0 : moi_exp(l - top);
            precise float plus = more + p;
            more = plus;
            shared_p[r * STEP + g * GROUP + t * SG + lane] = p;
          }
          sum[r] = fma(sum[r], keep, total(more));
          most[r] = top;
          if (lane == r % SG) shared_f[(g * RV + r / SG) * SG + lane] = keep;
        }
      }
      subgroupMemoryBarrierShared();
      subgroupBarrier();

      /* the values under them */
      for (uint c = 0u; c * CV < dv; c++) {
        float old[R * NV];
        value_units(c, dv);
        [[unroll]] for (uint i = 0u; i < R * NV; i++) old[i] = 0.0;
        if (!fresh) {
          [[unroll]] for (uint r = 0u; r < R; r++)
            [[unroll]] for (uint i = 0u; i < NV; i++)
              old[r * NV + i] = Floats(to_acc).v[r * dv + min(v_element(c, i), dv - 1u)];
        }
        [[unroll]] for (uint i = 0u; i < R * NV; i++) acc[i] = old[i];
        for (uint g = 0u; g < n_groups; g++) {
          shrink_all(g);
          for (uint t = 0u; t < KT; t++) {
            uvec2 at = shared_v[g * GROUP + t * SG + lane];
            [[unroll]] for (uint r = 0u; r < R; r++) weight[r] = shared_p[r * STEP + g * GROUP + t * SG + lane];
            [[unroll]] for (uint j = 0u; j < SG; j++) {
              value_chunk(uvec2(subgroupShuffle(at.x, j), subgroupShuffle(at.y, j)), c, dv);
              [[unroll]] for (uint r = 0u; r < R; r++) {
                float p = subgroupShuffle(weight[r], j);
                [[unroll]] for (uint i = 0u; i < NV; i++) acc[r * NV + i] = fma(p, value[i], acc[r * NV + i]);
              }
            }
          }
        }
        /* Something that is not finite: was it weighed by a row that sees it? Again, and what weighs 0 is left out. */
        bool odd = false;
        [[unroll]] for (uint i = 0u; i < R * NV; i++) odd = odd || (floatBitsToUint(acc[i]) & 0x7f800000u) == 0x7f800000u;
        bool again = subgroupBallot(odd) != uvec4(0u);
        [[unroll]] for (uint i = 0u; i < R * NV; i++) acc[i] = again ? old[i] : acc[i];
        for (uint g = again ? 0u : n_groups; g < n_groups; g++) {
          shrink_all(g);
          for (uint k = g * GROUP; k < (g + 1u) * GROUP; k++) {
            value_chunk(shared_v[k], c, dv);
            [[unroll]] for (uint r = 0u; r < R; r++) {
              float p = shared_p[r * STEP + k];
              [[unroll]] for (uint i = 0u; i < NV; i++)
                acc[r * NV + i] = p == 0.0 ? acc[r * NV + i] : fma(p, value[i], acc[r * NV + i]);
            }
          }
        }
        [[unroll]] for (uint r = 0u; r < R; r++)
          [[unroll]] for (uint i = 0u; i < NV; i++)
            if (v_element(c, i) < dv) Floats(to_acc).v[r * dv + v_element(c, i)] = acc[r * NV + i];
      }
      subgroupBarrier();
    }
    if (CHAIN != 0u) {
      float keep[R], add[R];
      [[unroll]] for (uint r = 0u; r < R; r++) {
        join(chain_most[r], chain_sum[r], most[r], sum[r], keep[r], add[r]);
        most[r] = chain_most[r];
        sum[r] = chain_sum[r];
      }
      /* a lane reads what it has written itself */
      for (uint c = segment == first_segment ? dv : 0u; c * CV < dv; c++)
        [[unroll]] for (uint r = 0u; r < R; r++)
          [[unroll]] for (uint i = 0u; i < NV; i++) {
            uint e = v_element(c, i);
            if (e < dv && add[r] != 0.0)
              Floats(out_acc).v[r * dv + e] = fma(Floats(out_acc).v[r * dv + e], keep[r], Floats(now).v[r * dv + e] * add[r]);
          }
    }
  }
  [[unroll]] for (uint v = 0u; v < RV; v++) {
    float m = 0.0, s = 0.0;
    [[unroll]] for (uint r = v * SG; r < min(R, (v + 1u) * SG); r++) {
      m = lane == r % SG ? most[r] : m;
      s = lane == r % SG ? sum[r] : s;
    }
    if (v * SG + lane < R) {
      Floats(out_sums).v[2u * (v * SG + lane)] = m;
      Floats(out_sums).v[2u * (v * SG + lane) + 1u] = s;
    }
  }
}
