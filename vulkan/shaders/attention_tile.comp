/* Attention by tiles: a workgroup takes a tile of query rows (rows x heads of one KV head), so that keys and values are
 * read once for all of them. Scores: keys and queries meet in shared memory, CK dimensions at a time. Values: a thread
 * has DV dimensions of all rows in registers. Nothing depends on the size of a subgroup. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention.glsl"

layout(local_size_x = 128) in;
layout(constant_id = 0) const uint R = 16u; /* rows of a tile, 1 to 16 */
layout(constant_id = 1) const uint DV = 1u; /* v_head_dim / 128, rounded up */
layout(constant_id = 2) const uint K_FORMAT = MOI_F16;
layout(constant_id = 3) const uint V_FORMAT = MOI_F16;
layout(constant_id = 4) const uint SOFTCAP = 0u;
layout(constant_id = 5) const uint MANY = 0u; /* as attention_lanes.comp's */

layout(push_constant) uniform Push {
  uvec2 args;
  uint first_item, pass;
};

const uint T = 128u;
const uint N = 64u;                        /* keys of a step */
const uint CK = 32u;                       /* dimensions of keys at once */
const uint R4 = (R + 3u) / 4u;             /* vectors of four rows */
const uint RT = R > 8u ? 8u : R > 4u ? 4u : R > 2u ? 2u : 1u; /* rows of a thread's scores: two threads have a key */
const uint PARTS = T / 16u;                /* threads that sum up a row */

shared float shared_k[N * (CK + 1u)];      /* the last column keeps rows in different banks */
shared float shared_q[16u * CK];           /* and what threads have found of a row */
shared vec4 shared_p[N * R4];              /* logits, then weights */
shared uvec2 shared_k_row[N], shared_v_row[N];
shared uvec2 shared_q_row[16];
shared float shared_scale[16], shared_most[16], shared_sum[16], shared_keep[16], shared_add[16];
shared uint shared_begin[16], shared_end[16];

/* Element e of a row of the cache. */
float element(uint format, uvec2 row, uint e) {
  if (format == MOI_F32) return Floats(row).v[e];
  Stream s = moi_stream(row);
  if (format == KV_FP8) return moi_e4m3_value(moi_u8(s, e));
  if (format == KV_Q8_0) {
    uint block = 34u * (e / 32u);
    return moi_f16_value(moi_u16(s, block)) * float(int(moi_u8(s, block + 2u + e % 32u) << 24) >> 24);
  }
  uint h = moi_u16(s, 2u * e);
  return format == MOI_F16 ? moi_f16_value(h) : moi_bf16_value(h);
}

float acc[R * DV];

void main() {
  Args a = Args(args);
  uint thread = gl_LocalInvocationID.x, head = gl_WorkGroupID.y, n_seqs = a.n_seqs;
  uvec2 seqs = a.seqs;
  uint item = first_item + gl_WorkGroupID.x, before = MANY != 0u ? SEQ_MANY : SEQ_FEW;
  if (item >= seq_word(seqs, n_seqs, before)) return;

  /* the tile's rows: the sequence's rows by position, then head */
  uint seq = seq_find(seqs, n_seqs, before, item), group = a.n_heads / a.n_kv_heads;
  uint rows = seq_word(seqs, seq, SEQ_ROWS) * group, first = (item - seq_word(seqs, seq, before)) * R;
  uint input_type = a.input_type, dk = a.head_dim, dv = a.v_head_dim;
  if (thread < R) {
    uint r = first + thread, i = min(r, rows - 1u), in_row = i / group, element_bytes = moi_element_bytes(input_type);
    uvec2 q = moi_add(a.q, moi_mul(moi_mul(element_bytes, a.q_stride), seq_word(seqs, seq, SEQ_ROW) + in_row));
    shared_q_row[thread] = moi_add(q, moi_mul(moi_mul(element_bytes, a.q_head_stride), head * group + i % group));
    uint after = position_after(seq_word(seqs, seq, SEQ_POSITION), in_row);
    uvec2 span = visible(after, seq_word(seqs, seq, SEQ_BEGIN), seq_word(seqs, seq, SEQ_LEN), a.causal, a.window,
                         a.chunk);
    if (r >= rows) span = uvec2(0u);
    shared_begin[thread] = span.x;
    shared_end[thread] = span.y;
    float scale = a.scale * temperature_at(a.temperature, a.temperature_floor, after);
    shared_scale[thread] = moi_has(a.k_scale) ? scale * Floats(a.k_scale).v[head] : scale;
  }
  barrier();
  uint begin = 0xffffffffu, end = 0u;
  for (uint r = 0u; r < R; r++) {
    if (shared_begin[r] >= shared_end[r]) continue;
    begin = min(begin, shared_begin[r]);
    end = max(end, shared_end[r]);
  }

  /* segments and passes: as in attention_lanes.comp */
  uint segment_keys = a.segment, pass_keys = a.pass_keys, slot = item, window_begin = pass * pass_keys;
  if (MANY == 0u) {
    uint segment = gl_WorkGroupID.z;
    begin = max(begin, segment * segment_keys);
    end = min(end, (segment + 1u) * segment_keys);
    slot = item * a.n_segments + segment;
    window_begin += segment * segment_keys;
  }
  uint pass_begin = max(begin, window_begin), pass_end = min(end, window_begin + pass_keys);
  if (pass_begin >= pass_end) return;

  uvec2 k_page = a.k_page, k_token = a.k_token, k_base = moi_add(a.k, moi_mul(a.k_head, head));
  uvec2 v_page = a.v_page, v_token = a.v_token, v_base = moi_add(a.v, moi_mul(a.v_head, head)), zeros = a.zeros;
  uvec2 places = a.places;
  uint page_size = a.page_size, page_entries = a.page_entries, capacity = a.capacity, max_kv = a.max_kv;
  float softcap = a.softcap;
  uint stride = a.n_kv_heads * R, out_row = head * R;
  uvec2 out_acc = MANY != 0u ? a.many : a.few, out_sums = MANY != 0u ? a.many_sums : a.few_sums;
  uvec2 now = a.now, now_sums = a.now_sums;
  out_acc = moi_add(moi_add(out_acc, moi_mul(moi_mul(4u * dv, stride), slot)), moi_mul(4u * dv, out_row));
  now = moi_add(moi_add(now, moi_mul(moi_mul(4u * dv, stride), slot)), moi_mul(4u * dv, out_row));
  out_sums = moi_add(moi_add(out_sums, moi_mul(moi_mul(8u, stride), slot)), moi_mul(8u, out_row));
  now_sums = moi_add(moi_add(now_sums, moi_mul(moi_mul(8u, stride), slot)), moi_mul(8u, out_row));

  uint first_segment = begin / segment_keys, key = thread % N, first_row = thread / N * RT;
  for (uint segment = pass_begin / segment_keys; segment * segment_keys < pass_end; segment++) {
    uint segment_begin = max(begin, segment * segment_keys), segment_end = min(end, (segment + 1u) * segment_keys);
    uint from = max(segment_begin, pass_begin), to = min(segment_end, pass_end);
    uvec2 to_acc = segment == first_segment ? out_acc : now, to_sums = segment == first_segment ? out_sums : now_sums;
    bool fresh = from == segment_begin;
    if (thread < R) {
      shared_most[thread] = fresh ? -MOI_INFINITY : Floats(to_sums).v[2u * thread];
      shared_sum[thread] = fresh ? 0.0 : Floats(to_sums).v[2u * thread + 1u];
    }
    [[unroll]] for (uint r = 0u; r < R; r++)
      [[unroll]] for (uint c = 0u; c < DV; c++)
        acc[r * DV + c] = fresh ? 0.0 : Floats(to_acc).v[r * dv + min(c * T + thread, dv - 1u)];

    for (uint step = from / N * N; step < to; step += N) {
      barrier(); /* the last step's weights have been read */
      if (thread < N) {
        uint j = step + thread, page, token;
        uvec2 k_row = zeros, v_row = zeros;
        if (j >= from && j < to && place_of(places, page_size, page_entries, capacity, max_kv, seq, j, page, token)) {
          k_row = row_at(k_base, k_page, k_token, page, token);
          v_row = row_at(v_base, v_page, v_token, page, token);
        }
        shared_k_row[thread] = k_row;
        shared_v_row[thread] = v_row;
      }

      /* scores */
      float score[RT];
      [[unroll]] for (uint i = 0u; i < RT; i++) score[i] = 0.0;
      for (uint c = 0u; c < dk; c += CK) {
        barrier();
        for (uint i = thread; i < N * CK; i += T) {
          uint e = c + i % CK;
          float f = element(K_FORMAT, shared_k_row[i / CK], min(e, dk - 1u));
          shared_k[i / CK * (CK + 1u) + i % CK] = e < dk ? f : 0.0;
        }
        for (uint i = thread; i < R * CK; i += T) {
          uint e = c + i % CK;
          float f = moi_load(input_type, shared_q_row[i / CK], min(e, dk - 1u));
          shared_q[i] = e < dk ? f : 0.0;
        }
        barrier();
        [[dont_unroll]] for (uint e = 0u; e < CK; e += 4u)
          [[unroll]] for (uint k = 0u; k < 4u; k++) {
            float x = shared_k[key * (CK + 1u) + e + k];
            [[unroll]] for (uint i = 0u; i < RT; i++)
              score[i] = fma(x, shared_q[min(first_row + i, R - 1u) * CK + e + k], score[i]);
          }
      }
      [[unroll]] for (uint i = 0u; i < RT; i++) {
        uint r = first_row + i, j = step + key;
        if (r < R) {
          float l = score[i] * shared_scale[r];
          if (SOFTCAP != 0u) l = softcap * moi_tanh(l / softcap);
          bool seen = j >= max(shared_begin[r], from) && j < min(shared_end[r], to);
          shared_p[key * R4 + r / 4u][r % 4u] = seen ? l : -MOI_INFINITY;
        }
      }
      barrier();

      /* weights: PARTS threads have a row, N / PARTS keys each */
      uint row = thread / PARTS, part = thread % PARTS;
      float top = -MOI_INFINITY;
      for (uint k = part; k < N && row < R; k += PARTS) {
        float l = shared_p[k * R4 + row / 4u][row % 4u];
        top = l > top ? l : top;
      }
      shared_q[thread] = top;
      barrier();
      [[unroll]] for (uint k = 0u; k < PARTS; k++) {
        float other = shared_q[row * PARTS + k];
        top = other > top ? other : top;
      }
      float most = row < R ? shared_most[row] : 0.0, sum = row < R ? shared_sum[row] : 0.0, more = 0.0;
      top = top > most ? top : most;
      for (uint k = part; k < N && row < R; k += PARTS) {
        float l = shared_p[k * R4 + row / 4u][row % 4u], p = l == -MOI_INFINITY ? 0.0 : moi_exp(l - top);
        precise float plus = more + p;
        more = plus;
        shared_p[k * R4 + row / 4u][row % 4u] = p;
      }
      barrier();
      shared_q[thread] = more;
      barrier();
      if (part == 0u && row < R) {
        more = 0.0;
        [[unroll]] for (uint k = 0u; k < PARTS; k++) {
          precise float plus = more + shared_q[row * PARTS + k];
          more = plus;
        }
        float keep = sum == 0.0 ? 0.0 : shrink(most, top);
        shared_keep[row] = keep;
        shared_most[row] = top;
        shared_sum[row] = fma(sum, keep, more);
      }
      barrier();

      /* values */
      [[unroll]] for (uint r = 0u; r < R; r++) {
        float keep = shared_keep[r];
        [[unroll]] for (uint c = 0u; c < DV; c++) acc[r * DV + c] *= keep;
      }
      [[dont_unroll]] for (uint k = 0u; k < N; k++) {
        uvec2 v_row = shared_v_row[k];
        vec4 p[R4];
        [[unroll]] for (uint r = 0u; r < R4; r++) p[r] = shared_p[k * R4 + r];
        [[unroll]] for (uint c = 0u; c < DV; c++) {
          float f = element(V_FORMAT, v_row, min(c * T + thread, dv - 1u));
          bool odd = (floatBitsToUint(f) & 0x7f800000u) == 0x7f800000u; /* then what weighs 0 is left out */
          [[unroll]] for (uint r = 0u; r < R; r++) {
            float w = p[r / 4u][r % 4u];
            float more_acc = fma(w, f, acc[r * DV + c]);
            acc[r * DV + c] = odd && w == 0.0 ? acc[r * DV + c] : more_acc;
          }
        }
      }
    }
    barrier();

    /* a segment that is not the first goes to the others once it is whole; a thread reads what it has written itself */
    bool whole = to == segment_end && segment != first_segment;
    if (thread < R) {
      float m = shared_most[thread], s = shared_sum[thread], keep = 0.0, add = 1.0;
      if (whole) {
        float more_m = m, more_s = s;
        m = Floats(out_sums).v[2u * thread];
        s = Floats(out_sums).v[2u * thread + 1u];
        join(m, s, more_m, more_s, keep, add);
      }
      uvec2 sums = whole ? out_sums : to_sums;
      Floats(sums).v[2u * thread] = m;
      Floats(sums).v[2u * thread + 1u] = s;
      shared_keep[thread] = keep;
      shared_add[thread] = add;
    }
    barrier();
    uvec2 target = whole ? out_acc : to_acc;
    [[unroll]] for (uint r = 0u; r < R; r++)
      [[unroll]] for (uint c = 0u; c < DV; c++) {
        uint e = c * T + thread;
        if (e >= dv) continue;
        if (!whole) Floats(target).v[r * dv + e] = acc[r * DV + c];
        else if (shared_add[r] != 0.0)
          Floats(target).v[r * dv + e] =
              fma(Floats(target).v[r * dv + e], shared_keep[r], acc[r * DV + c] * shared_add[r]);
      }
    barrier();
  }
}
