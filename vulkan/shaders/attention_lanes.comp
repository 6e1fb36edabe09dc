/* Attention by lanes: a subgroup takes a tile of query rows (rows x heads of one KV head) over keys. Scores: a lane has
 * a key, queries go from lane to lane. Values: a lane has dimensions, weights go from lane to lane. Made for devices
 * where a load costs as much as twenty multiply-adds, whatever it loads: what is loaded serves the whole tile. */
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
layout(constant_id = 11) const uint IN_STEP = 0u; /* software devices: lanes go in step, and a barrier would cost all
                                                     registers */

layout(push_constant) uniform Push {
  uvec2 args;
  uint first_item, pass;
};

const uint GROUP = SG * KT;
const uint STEP = GROUP * GROUPS;
const uint RV = (R + SG - 1u) / SG; /* registers of one number for each row */

shared float shared_p[R * STEP];     /* weights */
shared uvec2 shared_v[STEP];         /* where values begin */
shared float shared_f[RV * SG * GROUPS]; /* what a group shrinks the sums before it by */

/* llvmpipe makes a loop over lanes of each access to memory, and compiles in the square of their number: accesses are
 * few in the text, in loops that are not unrolled, and come and go through an array of any index. The loops over arrays
 * that arithmetic uses must be unrolled wholly (NIR does so for 32 turns at most), else they are memory too. */

/* Two f16 of a word. Software devices convert them by an instruction, which knows subnormals; others may flush them. */
vec2 halves(uint w) {
  return IN_STEP != 0u ? unpackHalf2x16(w) : vec2(moi_f16_value(w & 65535u), moi_f16_value(w >> 16));
}

/* ---- keys: CK dimensions at a time */

const uint CK = SG <= 8u ? 8u : SG <= 32u ? SG : 32u;
const uint QV = (CK + SG - 1u) / SG;
const uint K_BYTES = K_FORMAT == MOI_F32 ? 4u : K_FORMAT == KV_FP8 || K_FORMAT == KV_Q8_0 ? 1u : 2u;
const uint K_WORDS = CK * K_BYTES / 4u;

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
  if (K_FORMAT == KV_Q8_0) { /* n is a multiple of 32, and so is CK a part of it */
    uint block = 34u * (c * CK / 32u) + (row.x & 2u), at = block + 2u + c * CK % 32u;
    bool odd = (at & 2u) != 0u;
    uvec2 base = uvec2(row.x & ~3u, row.y);
    float d = moi_f16_value((Words(base).v[block >> 2] >> (8u * (block & 2u))) & 65535u);
    uint w[K_WORDS + 1u];
    [[unroll]] for (uint i = 0u; i <= K_WORDS; i++) w[i] = Words(base).v[(at + 4u * i - (i == K_WORDS ? 2u : 0u)) >> 2];
    [[unroll]] for (uint i = 0u; i < K_WORDS; i++) {
      uint word = odd ? (w[i] >> 16) | (w[i + 1u] << 16) : w[i];
      [[unroll]] for (uint j = 0u; j < 4u; j++) x[4u * i + j] = d * float(int(word << (24u - 8u * j)) >> 24);
    }
  } else if (WORDS == 0u) {
    Stream s = moi_stream(row);
    [[dont_unroll]] for (uint i = 0u; i < CK; i++) {
      uint e = min(c * CK + i, n - 1u);
      float f = K_FORMAT == KV_FP8    ? moi_e4m3_value(moi_u8(s, e))
                : K_FORMAT == MOI_F32 ? uintBitsToFloat(moi_u32(s, 4u * e))
                : K_FORMAT == MOI_F16 ? moi_f16_value(moi_u16(s, 2u * e))
                                      : moi_bf16_value(moi_u16(s, 2u * e));
      x[i] = c * CK + i < n ? f : 0.0;
    }
  } else {
    [[unroll]] for (uint i = 0u; i < K_WORDS; i++) {
      uint w = Words(row).v[k_at[i]] & k_mask[i];
      if (K_FORMAT == MOI_F32) {
        x[i] = uintBitsToFloat(w);
      } else if (K_FORMAT == KV_FP8) {
        [[unroll]] for (uint j = 0u; j < 4u; j++) x[4u * i + j] = moi_e4m3_value((w >> (8u * j)) & 255u);
      } else if (K_FORMAT == MOI_F16) {
        vec2 both = halves(w);
        x[2u * i] = both.x;
        x[2u * i + 1u] = both.y;
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
const uint VK = SG < 8u ? SG : 8u; /* keys at once */

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
    [[dont_unroll]] for (uint i = 0u; i < NV; i++) {
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
        vec2 both = halves(w);
        value[2u * i] = both.x;
        value[2u * i + 1u] = both.y;
      } else {
        value[2u * i] = uintBitsToFloat(w << 16);
        value[2u * i + 1u] = uintBitsToFloat(w & 0xffff0000u);
      }
    }
  }
}

void wait() {
  subgroupMemoryBarrierShared();
  if (IN_STEP == 0u) subgroupBarrier();
}

/* Steps of 1, 2, 4, ... lanes, counted: loops by powers of two are not unrolled everywhere, nor those around them. */
const uint STEPS = 7u;

float largest(float f) {
  [[unroll]] for (uint i = 0u; i < STEPS; i++) {
    if (1u << i < SG) {
      float other = subgroupShuffleXor(f, 1u << i);
      f = other > f ? other : f;
    }
  }
  return f;
}
float total(float f) {
  [[unroll]] for (uint i = 0u; i < STEPS; i++) {
    if (1u << i < SG) {
      precise float more = f + subgroupShuffleXor(f, 1u << i);
      f = more;
    }
  }
  return f;
}

/* A row's number r of those that lanes have side by side. */
#define OF_ROW(a, r) subgroupShuffle(a[(r) / SG], (r) % SG)

float q[R * QV], score[R * KT], acc[R * NV], weight[R];
/* of the kind with any index: each is read once */
uvec2 key[KT];
float turn[R * (KT > NV ? (KT > QV ? KT : QV) : NV > QV ? NV : QV)];
float most[R], sum[R], row_scale[RV];
uvec2 q_at[RV];
uint row_begin[RV], row_end[RV];

/* The rows' maxima and sums, side by side. */
float sums_m[RV], sums_s[RV];

void load_sums(uvec2 at, bool some) {
  [[unroll]] for (uint v = 0u; v < RV; v++) {
    sums_m[v] = -MOI_INFINITY;
    sums_s[v] = 0.0;
    if (some && v * SG + gl_SubgroupInvocationID < R) {
      sums_m[v] = Floats(at).v[2u * (v * SG + gl_SubgroupInvocationID)];
      sums_s[v] = Floats(at).v[2u * (v * SG + gl_SubgroupInvocationID) + 1u];
    }
  }
  [[unroll]] for (uint r = 0u; r < R; r++) {
    most[r] = OF_ROW(sums_m, r);
    sum[r] = OF_ROW(sums_s, r);
  }
}

void store_sums(uvec2 at, bool some) {
  [[unroll]] for (uint r = 0u; r < R; r++) {
    sums_m[r / SG] = gl_SubgroupInvocationID == r % SG ? most[r] : sums_m[r / SG];
    sums_s[r / SG] = gl_SubgroupInvocationID == r % SG ? sum[r] : sums_s[r / SG];
  }
  [[unroll]] for (uint v = 0u; v < RV; v++)
    if (some && v * SG + gl_SubgroupInvocationID < R) {
      Floats(at).v[2u * (v * SG + gl_SubgroupInvocationID)] = sums_m[v];
      Floats(at).v[2u * (v * SG + gl_SubgroupInvocationID) + 1u] = sums_s[v];
    }
}

void shrink_all(uint g) {
  float keep[RV];
  [[unroll]] for (uint v = 0u; v < RV; v++) keep[v] = shared_f[(g * RV + v) * SG + gl_SubgroupInvocationID];
  [[unroll]] for (uint r = 0u; r < R; r++) {
    float f = OF_ROW(keep, r);
    [[unroll]] for (uint i = 0u; i < NV; i++) acc[r * NV + i] *= f;
  }
}

/* acc += the values of VK keys, which lanes j0, j0 + 1, ... have, under their weights. All values first: a row's sums
 * stay in registers over the keys. */
void add_keys(uvec2 at, uint j0, uint c, uint dv) {
  float several[VK * NV];
  [[unroll]] for (uint j = 0u; j < VK; j++) {
    value_chunk(uvec2(subgroupShuffle(at.x, j0 + j), subgroupShuffle(at.y, j0 + j)), c, dv);
    [[unroll]] for (uint i = 0u; i < NV; i++) several[j * NV + i] = value[i];
  }
  [[unroll]] for (uint r = 0u; r < R; r++)
    [[unroll]] for (uint i = 0u; i < NV; i++)
      [[unroll]] for (uint j = 0u; j < VK; j++)
        acc[r * NV + i] = fma(subgroupShuffle(weight[r], j0 + j), several[j * NV + i], acc[r * NV + i]);
}

void main() {
  Args a = MOI_ARGS_AT(Args, args);
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
  scale *= FLOAT_OR(a.k_scale, head, 1.0);
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
  [[unroll]] for (uint i = 0u; i < STEPS; i++) {
    if (1u << i < SG) {
      begin = min(begin, subgroupShuffleXor(begin, 1u << i));
      end = max(end, subgroupShuffleXor(end, 1u << i));
    }
  }

  /* few rows: one segment of the keys; many: all of them, each joined to those before. In a pass only so many keys,
   * since software devices bound the turns of all loops of an invocation, and others the time of a dispatch. */
  uint unit_keys = a.segment, pass_keys = a.pass_keys, slot = item, window_begin = pass * pass_keys;
  if (MANY == 0u) {
    uint segment = gl_WorkGroupID.z;
    begin = max(begin, moi_segment_begin(segment, unit_keys));
    end = min(end, moi_segment_begin(segment + 1u, unit_keys));
    slot = item * a.n_segments + segment;
    window_begin += moi_segment_begin(segment, unit_keys);
  }
  uint pass_begin = max(begin, window_begin), pass_end = min(end, window_begin + pass_keys);
  if (pass_begin >= pass_end) return;

  uvec2 k_page = a.k_page, k_token = a.k_token, k_base = moi_add(a.k, moi_mul(a.k_head, head));
  uvec2 v_page = a.v_page, v_token = a.v_token, v_base = moi_add(a.v, moi_mul(a.v_head, head)), zeros = a.zeros;
  uvec2 places = a.places;
  uint page_size = a.page_size, page_entries = a.page_entries, capacity = a.capacity, max_kv = a.max_kv;
  uint out_row = head * R;
  uvec2 out_acc = MANY != 0u ? a.many : a.few, out_sums = MANY != 0u ? a.many_sums : a.few_sums;
  uvec2 now = a.now, now_sums = a.now_sums;
  uint stride = a.n_kv_heads * R;
  out_acc = moi_add(moi_add(out_acc, moi_mul(moi_mul(4u * dv, stride), slot)), moi_mul(4u * dv, out_row));
  now = moi_add(moi_add(now, moi_mul(moi_mul(4u * dv, stride), slot)), moi_mul(4u * dv, out_row));
  out_sums = moi_add(moi_add(out_sums, moi_mul(moi_mul(8u, stride), slot)), moi_mul(8u, out_row));
  now_sums = moi_add(moi_add(now_sums, moi_mul(moi_mul(8u, stride), slot)), moi_mul(8u, out_row));

  uint v_words = V_FORMAT == KV_Q8_0 ? dv * 34u / 128u : max(dv * (4u / VE) / 4u, 1u), touched = 0u;
  uint first_segment = moi_segment_of(begin, unit_keys);
  for (uint segment = moi_segment_of(pass_begin, unit_keys); moi_segment_begin(segment, unit_keys) < pass_end; segment++) {
    uint segment_begin = max(begin, moi_segment_begin(segment, unit_keys));
    uint segment_end = min(end, moi_segment_begin(segment + 1u, unit_keys));
    uint from = max(segment_begin, pass_begin), to = min(segment_end, pass_end);
    uvec2 to_acc = segment == first_segment ? out_acc : now, to_sums = segment == first_segment ? out_sums : now_sums;
    bool fresh = from == segment_begin;
    load_sums(to_sums, !fresh);
    for (uint step = from / GROUP * GROUP; step < to; step += STEP, fresh = false) {
      uint n_groups = min(GROUPS, (to - step + GROUP - 1u) / GROUP);

      /* weights of the step's keys */
      for (uint g = 0u; g < n_groups; g++) {
        uint j0 = step + g * GROUP + lane;
        [[dont_unroll]] for (uint t = 0u; t < KT; t++) {
          uint j = j0 + t * SG, page, token;
          uvec2 k_row = zeros, v_row = zeros;
          if (j >= from && j < to && place_of(places, args, page_size, page_entries, capacity, max_kv, seq, j, page, token)) {
            k_row = row_at(k_base, k_page, k_token, page, token);
            v_row = row_at(v_base, v_page, v_token, page, token);
          }
          key[t] = k_row;
          shared_v[g * GROUP + t * SG + lane] = v_row;
          /* The values' rows are read one by one later, each a miss that nothing foresees: here a lane has each. */
          if (IN_STEP != 0u)
            for (uint line = 0u; line < v_words; line += 16u) touched |= Words(v_row).v[line];
        }
        [[unroll]] for (uint r = 0u; r < R; r++)
          [[unroll]] for (uint i = 0u; i < KT; i++) score[r * KT + i] = 0.0;
        for (uint c = 0u; c * CK < dk; c++) {
          [[dont_unroll]] for (uint r = 0u; r < R; r++) {
            uvec2 row = uvec2(0u);
            [[unroll]] for (uint v = 0u; v < RV; v++) {
              uvec2 other = uvec2(subgroupShuffle(q_at[v].x, r % SG), subgroupShuffle(q_at[v].y, r % SG));
              row = r / SG == v ? other : row;
            }
            [[unroll]] for (uint v = 0u; v < QV; v++) {
              uint e = c * CK + v * SG + lane;
              uvec2 at = moi_add(row, min(e, dk - 1u) * q_bytes);
              uint w = Words(uvec2(at.x & ~3u, at.y)).v[0];
              uint h = (at.x & 2u) != 0u ? w >> 16 : w & 65535u;
              float f = input_type == MOI_F16 ? moi_f16_value(h) : moi_bf16_value(h);
              if (input_type == MOI_F32) f = uintBitsToFloat(w);
              turn[r * QV + v] = e < dk && v * SG + lane < CK ? f : 0.0;
            }
          }
          [[unroll]] for (uint r = 0u; r < R; r++)
            [[unroll]] for (uint i = 0u; i < QV; i++) q[r * QV + i] = turn[r * QV + i];
          key_words(c, dk);
          [[unroll]] for (uint t = 0u; t < KT; t++) {
            key_chunk(key[t], c, dk);
            [[unroll]] for (uint r = 0u; r < R; r++)
              [[unroll]] for (uint e = 0u; e < CK; e++)
                score[r * KT + t] = fma(x[e], subgroupShuffle(q[r * QV + e / SG], e % SG), score[r * KT + t]);
          }
        }
        float kept[RV];
        [[unroll]] for (uint v = 0u; v < RV; v++) kept[v] = 0.0;
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
            turn[r * KT + t] = p;
          }
          sum[r] = fma(sum[r], keep, total(more));
          most[r] = top;
          kept[r / SG] = lane == r % SG ? keep : kept[r / SG];
        }
        [[unroll]] for (uint v = 0u; v < RV; v++) shared_f[(g * RV + v) * SG + lane] = kept[v];
        [[dont_unroll]] for (uint i = 0u; i < R * KT; i++)
          shared_p[i / KT * STEP + g * GROUP + i % KT * SG + lane] = turn[i];
      }
      wait();

      /* the values under them */
      for (uint c = 0u; c * CV < dv; c++) {
        float old[R * NV];
        value_units(c, dv);
        for (uint i = fresh ? R * NV : 0u; i < R * NV; i++)
          turn[i] = Floats(to_acc).v[i / NV * dv + min(v_element(c, i % NV), dv - 1u)];
        [[unroll]] for (uint r = 0u; r < R; r++)
          [[unroll]] for (uint i = 0u; i < NV; i++) old[r * NV + i] = fresh ? 0.0 : turn[r * NV + i];
        [[unroll]] for (uint r = 0u; r < R; r++)
          [[unroll]] for (uint i = 0u; i < NV; i++) acc[r * NV + i] = old[r * NV + i];
        for (uint g = 0u; g < n_groups; g++) {
          shrink_all(g);
          for (uint t = 0u; t < KT; t++) {
            uvec2 at = shared_v[g * GROUP + t * SG + lane];
            [[unroll]] for (uint r = 0u; r < R; r++) weight[r] = shared_p[r * STEP + g * GROUP + t * SG + lane];
            if (SG <= VK) { /* lanes known by number are a shuffle that costs nothing */
              add_keys(at, 0u, c, dv);
            } else {
              [[dont_unroll]] for (uint j = 0u; j < SG; j += VK) add_keys(at, j, c, dv);
            }
          }
        }
        /* Something that is not finite: was it weighed by a row that sees it? Again, and what weighs 0 is left out. */
        bool odd = false;
        [[unroll]] for (uint r = 0u; r < R; r++)
          [[unroll]] for (uint i = 0u; i < NV; i++)
            odd = odd || (floatBitsToUint(acc[r * NV + i]) & 0x7f800000u) == 0x7f800000u;
        bool again = subgroupBallot(odd) != uvec4(0u);
        [[unroll]] for (uint r = 0u; r < R; r++)
          [[unroll]] for (uint i = 0u; i < NV; i++) acc[r * NV + i] = again ? old[r * NV + i] : acc[r * NV + i];
        for (uint g = again ? 0u : n_groups; g < n_groups; g++) {
          shrink_all(g);
          for (uint k = g * GROUP; k < (g + 1u) * GROUP; k++) {
            value_chunk(shared_v[k], c, dv);
            float p_of[RV];
            [[unroll]] for (uint v = 0u; v < RV; v++) p_of[v] = shared_p[min(v * SG + lane, R - 1u) * STEP + k];
            [[unroll]] for (uint r = 0u; r < R; r++) {
              float p = OF_ROW(p_of, r);
              [[unroll]] for (uint i = 0u; i < NV; i++)
                acc[r * NV + i] = p == 0.0 ? acc[r * NV + i] : fma(p, value[i], acc[r * NV + i]);
            }
          }
        }
        [[unroll]] for (uint r = 0u; r < R; r++)
          [[unroll]] for (uint i = 0u; i < NV; i++) turn[r * NV + i] = acc[r * NV + i];
        [[dont_unroll]] for (uint i = 0u; i < R * NV; i++)
          if (v_element(c, i % NV) < dv) Floats(to_acc).v[i / NV * dv + v_element(c, i % NV)] = turn[i];
      }
      wait();
    }
    if (CHAIN == 0u) {
      store_sums(out_sums, true);
      continue;
    }
    /* a segment that is not the first goes to the others once it is whole; a lane reads what it has written itself */
    bool whole = to == segment_end && segment != first_segment;
    store_sums(to_sums, !whole);
    float keep[RV], add[RV];
    [[unroll]] for (uint v = 0u; v < RV; v++) {
      float m = sums_m[v], n = sums_s[v];
      uint at = 2u * min(v * SG + lane, R - 1u);
      sums_m[v] = Floats(out_sums).v[at];
      sums_s[v] = Floats(out_sums).v[at + 1u];
      join(sums_m[v], sums_s[v], m, n, keep[v], add[v]);
      if (whole && v * SG + lane < R) {
        Floats(out_sums).v[at] = sums_m[v];
        Floats(out_sums).v[at + 1u] = sums_s[v];
      }
    }
    for (uint r = whole ? 0u : R; r < R; r++) {
      float keep_it = 0.0, add_it = 0.0;
      [[unroll]] for (uint v = 0u; v < RV; v++) {
        float k = subgroupShuffle(keep[v], r % SG), more = subgroupShuffle(add[v], r % SG);
        keep_it = r / SG == v ? k : keep_it;
        add_it = r / SG == v ? more : add_it;
      }
      for (uint i = 0u; i / NV * CV < dv; i++) {
        uint e = v_element(i / NV, i % NV);
        if (e < dv && add_it != 0.0)
          Floats(out_acc).v[r * dv + e] =
              fma(Floats(out_acc).v[r * dv + e], keep_it, Floats(now).v[r * dv + e] * add_it);
      }
    }
  }
  if (IN_STEP != 0u && touched == 1u && dv == 0u) shared_f[0] = 0.0; /* never: it keeps the reads */
}
