/* Attention by tiles: a workgroup takes a tile of query rows (rows x heads of one KV head), so that keys and values are
 * read once for all of them. Scores: keys lie in shared memory as they do in the cache, a thread has a key and some of
 * the rows. Values: a thread has words of a row, and all rows' sums of their elements in registers; where a row has
 * fewer words than there are threads, PHASES threads share a word and have every PHASES-th key. Many loads are under
 * way at once: a decode waits for nothing else. Nothing depends on the size of a subgroup. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention.glsl"

layout(local_size_x = 128) in;
layout(constant_id = 0) const uint R = 16u;      /* rows of a tile, 1 to 16 */
layout(constant_id = 1) const uint SLOTS = 1u;   /* words of values of a thread */
layout(constant_id = 2) const uint PHASES = 2u;  /* 1 if SLOTS is not */
layout(constant_id = 3) const uint K_WORDS = 64u; /* of a key in shared memory: a multiple of 16 */
layout(constant_id = 4) const uint K_FORMAT = MOI_F16;
layout(constant_id = 5) const uint V_FORMAT = MOI_F16;
/* rows of the cache begin anywhere; at words (q8_0: at halves); and keys at 16 bytes, and are multiples of them */
layout(constant_id = 6) const uint ALIGNED = 1u;
layout(constant_id = 7) const uint SOFTCAP = 0u;
layout(constant_id = 8) const uint MANY = 0u; /* as attention_lanes.comp's */

layout(push_constant) uniform Push {
  uvec2 args;
  uint first_item, pass;
};

const uint T = 128u;
const uint N = 64u;                        /* keys of a step */
const uint R4 = (R + 3u) / 4u;             /* vectors of four rows */
const uint RT = R > 8u ? 8u : R > 4u ? 4u : R > 2u ? 2u : 1u; /* rows of a thread's scores: two threads have a key */
const uint PARTS = T / 16u;                /* threads that sum up a row */

/* keys: CK dimensions at once, KE of a word; KW words, the last one for what does not begin at a word */
const uint KE = K_FORMAT == MOI_F32 ? 1u : K_FORMAT == KV_FP8 || K_FORMAT == KV_Q8_0 ? 4u : 2u;
const uint CK = K_WORDS * KE;
const uint KW = K_FORMAT == KV_Q8_0 ? CK * 34u / 128u + 2u : ALIGNED == 0u ? K_WORDS + 1u : K_WORDS;
const uint KS = KW | 1u; /* rows begin in different banks */
const uint KN = 8u;      /* loads of a thread under way */

/* values */
const uint VE = V_FORMAT == MOI_F32 ? 1u : V_FORMAT == KV_FP8 || V_FORMAT == KV_Q8_0 ? 4u : 2u;
const uint VN = V_FORMAT == KV_Q8_0 ? 8u : 16u; /* keys under way */
const uint UNITS = T / PHASES;
/* rows whose phases are summed up at once, in the keys' memory */
const uint RB = N * KS / (T * VE) > R ? R : N * KS / (T * VE);

shared uint shared_k[N * KS];
shared vec4 shared_q[CK * R4]; /* four rows of a dimension */
shared vec4 shared_p[N * R4];  /* logits, then weights */
shared float shared_part[T];   /* what threads have found of a row */
shared uvec2 shared_k_row[N], shared_v_row[N];
shared uvec2 shared_q_row[16];
shared float shared_scale[16], shared_most[16], shared_sum[16], shared_keep[16], shared_add[16];
shared uint shared_begin[16], shared_end[16];

/* Rows in shared memory: arguments say which buffer they lie in (MOI_IN). A key that is not there has a row of zeros; in a
 * storage buffer of the engine's there is none, and its row is at NOWHERE: the buffer's first is read in its place, and what
 * was read is zeroed. */
uvec2 k_in, v_in, q_in;
#ifdef MOI_SETS
const uint NOWHERE = 0xfffffff0u;
#define FIND(row, first)                                                                                               \
  bool there = row.x != NOWHERE;                                                                                       \
  if (!there) row.x = first.x;
#define ZERO_UNLESS_THERE(w, zero)                                                                                     \
  if (!there) w = zero;
#else
#define FIND(row, first)
#define ZERO_UNLESS_THERE(w, zero)
#endif

/* Elements of a word. */
float element_of(uint format, uint word, uint i) {
  if (format == MOI_F32) return uintBitsToFloat(word);
  if (format == KV_FP8) return moi_e4m3_value((word >> (8u * i)) & 255u);
  uint h = (word >> (16u * i)) & 65535u;
  return format == MOI_F16 ? moi_f16_value(h) : moi_bf16_value(h);
}

/* Element e of a row of the cache that begins anywhere. */
float element(uint format, uvec2 row, uint e) {
  Stream s = moi_stream(row);
  if (format == MOI_F32) return uintBitsToFloat(moi_u32(s, 4u * e));
  if (format == KV_FP8) return moi_e4m3_value(moi_u8(s, e));
  uint h = moi_u16(s, 2u * e);
  return format == MOI_F16 ? moi_f16_value(h) : moi_bf16_value(h);
}

/* Dimensions c, c + 1, ... of the step's keys to shared memory. */
void fetch_keys(uint c, uint dk) {
  uint thread = gl_LocalInvocationID.x;
  if (ALIGNED == 2u && K_FORMAT != KV_Q8_0) {
    const uint QUADS = K_WORDS / 4u, TURNS = N * QUADS / T, TOGETHER = TURNS > KN ? KN : TURNS;
    uint first = c / KE / 4u, last = dk / KE / 4u - 1u;
    [[dont_unroll]] for (uint turn = 0u; turn < TURNS; turn += TOGETHER) {
      uvec4 w[TOGETHER];
      [[unroll]] for (uint n = 0u; n < TOGETHER; n++) {
        uint i = (turn + n) * T + thread;
        uvec2 row = MOI_IN(shared_k_row[i / QUADS], k_in);
        FIND(row, k_in)
        w[n] = QUAD(row, min(first + i % QUADS, last));
        ZERO_UNLESS_THERE(w[n], uvec4(0u))
      }
      [[unroll]] for (uint n = 0u; n < TOGETHER; n++) {
        uint i = (turn + n) * T + thread, at = i / QUADS * KS + 4u * (i % QUADS);
        [[unroll]] for (uint k = 0u; k < 4u; k++) shared_k[at + k] = w[n][k];
      }
    }
  } else {
    uint from = K_FORMAT == KV_Q8_0 ? c / 32u * 34u : c * 4u / KE;
    uint bytes = K_FORMAT == KV_Q8_0 ? dk / 32u * 34u : dk * 4u / KE;
    [[dont_unroll]] for (uint turn = 0u; turn < N * KW; turn += KN * T) {
      uint w[KN];
      [[unroll]] for (uint n = 0u; n < KN; n++) {
        uint i = min(turn + n * T + thread, N * KW - 1u);
        uvec2 row = MOI_IN(shared_k_row[i / KW], k_in);
        FIND(row, k_in)
        Stream s = moi_stream(row);
        w[n] = WORD(s.words, min(((s.at + from) >> 2) + i % KW, (s.at + bytes - 1u) >> 2));
        ZERO_UNLESS_THERE(w[n], 0u)
      }
      [[unroll]] for (uint n = 0u; n < KN; n++) {
        uint i = min(turn + n * T + thread, N * KW - 1u);
        shared_k[i / KW * KS + i % KW] = w[n];
      }
    }
  }
}

/* Word i of key k's CK dimensions, scale: of q8_0's. */
uint key_word(uint k, uint at, uint i, out float scale) {
  uint base = k * KS;
  scale = 1.0;
  if (K_FORMAT == KV_Q8_0) {
    uint block = at + i / 8u * 34u, byte = block + 2u + i % 8u * 4u;
    scale = moi_f16_value((shared_k[base + (block >> 2)] >> (8u * (block & 2u))) & 65535u);
    uint low = shared_k[base + (byte >> 2)], high = shared_k[base + ((byte + 2u) >> 2)];
    return (byte & 2u) != 0u ? (low >> 16) | (high << 16) : low;
  }
  if (ALIGNED != 0u) return shared_k[base + i];
  uint low = shared_k[base + i], high = shared_k[base + i + 1u];
  return at == 0u ? low : (low >> (8u * at)) | (high << (32u - 8u * at));
}

float acc[R * SLOTS * VE];

/* acc += values of keys k0, k0 + PHASES, ... under their weights */
void add_values(uint slot, uint unit, uint k0, uint dv) {
  uint first = slot * UNITS + unit, at = min(first, (dv - 1u) / VE);
  bool words = ALIGNED != 0u || V_FORMAT == KV_Q8_0 || V_FORMAT == MOI_F32;
  uint w[VN], d[VN], more[VN];
  [[unroll]] for (uint n = 0u; n < VN; n++) {
    uvec2 row = MOI_IN(shared_v_row[k0 + n * PHASES], v_in);
    FIND(row, v_in)
    if (V_FORMAT == KV_Q8_0) {
      uvec2 base = uvec2(row.x & ~3u, row.y);
      uint block = (row.x & 2u) + 34u * (at >> 3), byte = block + 2u + 4u * (at & 7u);
      d[n] = WORD(base, block >> 2) >> (8u * (block & 2u));
      w[n] = WORD(base, byte >> 2);
      more[n] = WORD(base, (byte + 2u) >> 2);
      w[n] = (byte & 2u) != 0u ? (w[n] >> 16) | (more[n] << 16) : w[n];
    } else if (words) {
      w[n] = WORD(row, at);
    }
    ZERO_UNLESS_THERE(d[n], 0u)
    ZERO_UNLESS_THERE(w[n], 0u)
  }
  [[unroll]] for (uint n = 0u; n < VN; n++) {
    uint k = k0 + n * PHASES;
    vec4 p[R4];
    [[unroll]] for (uint r = 0u; r < R4; r++) p[r] = shared_p[k * R4 + r];
    [[unroll]] for (uint i = 0u; i < VE; i++) {
      float f = 0.0;
      if (V_FORMAT == KV_Q8_0) f = moi_f16_value(d[n] & 65535u) * float(int(w[n] << (24u - 8u * i)) >> 24);
      else if (words) f = element_of(V_FORMAT, w[n], i);
      else {
        uvec2 row = MOI_IN(shared_v_row[k], v_in);
        FIND(row, v_in)
        f = element(V_FORMAT, row, min(first * VE + i, dv - 1u));
        ZERO_UNLESS_THERE(f, 0.0)
      }
      bool odd = (floatBitsToUint(f) & 0x7f800000u) == 0x7f800000u; /* then what weighs 0 is left out */
      [[unroll]] for (uint r = 0u; r < R; r++) {
        float weight = p[r / 4u][r % 4u];
        uint a = (r * SLOTS + slot) * VE + i;
        float more_acc = fma(weight, f, acc[a]);
        acc[a] = odd && weight == 0.0 ? acc[a] : more_acc;
      }
    }
  }
}

void main() {
  Args a = MOI_ARGS_AT(Args, args);
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
    shared_scale[thread] = scale * FLOAT_OR(a.k_scale, head, 1.0);
  }
  barrier();
  uint begin = 0xffffffffu, end = 0u;
  for (uint r = 0u; r < R; r++) {
    if (shared_begin[r] >= shared_end[r]) continue;
    begin = min(begin, shared_begin[r]);
    end = max(end, shared_end[r]);
  }

  /* segments and passes: as in attention_lanes.comp */
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
  uvec2 v_page = a.v_page, v_token = a.v_token, v_base = moi_add(a.v, moi_mul(a.v_head, head));
#ifdef MOI_SETS
  uvec2 zeros = uvec2(NOWHERE, 0u);
#else
  uvec2 zeros = a.zeros;
#endif
  k_in = a.k, v_in = a.v, q_in = a.q;
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

  uint first_segment = moi_segment_of(begin, unit_keys), key = thread % N, first_row = thread / N * RT;
  uint unit = thread % UNITS, phase = thread / UNITS;
  for (uint segment = moi_segment_of(pass_begin, unit_keys); moi_segment_begin(segment, unit_keys) < pass_end; segment++) {
    uint segment_begin = max(begin, moi_segment_begin(segment, unit_keys));
    uint segment_end = min(end, moi_segment_begin(segment + 1u, unit_keys));
    uint from = max(segment_begin, pass_begin), to = min(segment_end, pass_end);
    uvec2 to_acc = segment == first_segment ? out_acc : now, to_sums = segment == first_segment ? out_sums : now_sums;
    bool fresh = from == segment_begin;
    if (thread < R) {
      shared_most[thread] = fresh ? -MOI_INFINITY : FLOAT(to_sums, 2u * thread);
      shared_sum[thread] = fresh ? 0.0 : FLOAT(to_sums, 2u * thread + 1u);
    }
    [[unroll]] for (uint r = 0u; r < R; r++)
      [[unroll]] for (uint i = 0u; i < SLOTS * VE; i++) {
        uint e = (i / VE * UNITS + unit) * VE + i % VE;
        acc[r * SLOTS * VE + i] = fresh || phase > 0u ? 0.0 : FLOAT(to_acc, r * dv + min(e, dv - 1u));
      }

    uint first_step = from / N * N;
    for (uint step = first_step; step < to; step += N) {
      barrier(); /* the last step's weights have been read */
      if (thread < N) {
        uint j = step + thread, page, token;
        uvec2 k_row = zeros, v_row = zeros;
        if (j >= from && j < to && place_of(places, args, page_size, page_entries, capacity, max_kv, seq, j, page, token)) {
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
        fetch_keys(c, dk);
        if (dk > CK || step == first_step)
          for (uint i = thread; i < R4 * 4u * CK; i += T) {
            uint r = i / CK, e = c + i % CK;
            float f = moi_load(input_type, MOI_IN(shared_q_row[min(r, R - 1u)], q_in), min(e, dk - 1u));
            shared_q[i % CK * R4 + r / 4u][r % 4u] = e < dk && r < R ? f : 0.0;
          }
        barrier();
        uint at = K_FORMAT == KV_Q8_0 ? (shared_k_row[key].x + c / 32u * 34u) & 3u : shared_k_row[key].x & 3u;
        [[dont_unroll]] for (uint i = 0u; i < K_WORDS; i++) {
          float d;
          uint word = key_word(key, at, i, d);
          [[unroll]] for (uint k = 0u; k < KE; k++) {
            float x = K_FORMAT == KV_Q8_0 ? d * float(int(word << (24u - 8u * k)) >> 24)
                                          : element_of(K_FORMAT, word, k);
            uint e = i * KE + k;
            x = c + e < dk ? x : 0.0;
            if (RT >= 4u) {
              [[unroll]] for (uint r = 0u; r < RT / 4u; r++) {
                vec4 q = shared_q[e * R4 + min(first_row / 4u + r, R4 - 1u)];
                [[unroll]] for (uint n = 0u; n < 4u; n++) score[4u * r + n] = fma(x, q[n], score[4u * r + n]);
              }
            } else {
              vec4 q = shared_q[e * R4];
              if (RT == 2u) score[RT - 1u] = fma(x, first_row == 0u ? q.y : q.w, score[RT - 1u]);
              score[0] = fma(x, first_row == 0u ? q.x : RT == 2u ? q.z : q.y, score[0]);
            }
          }
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
      shared_part[thread] = top;
      barrier();
      [[unroll]] for (uint k = 0u; k < PARTS; k++) {
        float other = shared_part[row * PARTS + k];
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
      shared_part[thread] = more;
      barrier();
      if (part == 0u && row < R) {
        more = 0.0;
        [[unroll]] for (uint k = 0u; k < PARTS; k++) {
          precise float plus = more + shared_part[row * PARTS + k];
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
        [[unroll]] for (uint i = 0u; i < SLOTS * VE; i++) acc[r * SLOTS * VE + i] *= keep;
      }
      [[unroll]] for (uint slot = 0u; slot < SLOTS; slot++)
        [[dont_unroll]] for (uint k0 = phase; k0 < N; k0 += PHASES * VN) add_values(slot, unit, k0, dv);
    }

    /* phases: in ascending order */
    if (PHASES > 1u) {
      [[unroll]] for (uint r0 = 0u; r0 < R; r0 += RB) {
        barrier();
        [[unroll]] for (uint r = 0u; r < RB; r++)
          [[unroll]] for (uint i = 0u; i < VE; i++)
            if (r0 + r < R) shared_k[(r * VE + i) * T + thread] = floatBitsToUint(acc[min(r0 + r, R - 1u) * VE + i]);
        barrier();
        if (phase == 0u) {
          [[unroll]] for (uint r = 0u; r < RB; r++)
            [[unroll]] for (uint i = 0u; i < VE; i++)
              [[unroll]] for (uint p = 1u; p < PHASES; p++)
                if (r0 + r < R) acc[min(r0 + r, R - 1u) * VE + i] +=
                    uintBitsToFloat(shared_k[(r * VE + i) * T + p * UNITS + unit]);
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
        m = FLOAT(out_sums, 2u * thread);
        s = FLOAT(out_sums, 2u * thread + 1u);
        join(m, s, more_m, more_s, keep, add);
      }
      uvec2 sums = whole ? out_sums : to_sums;
      SET_FLOAT(sums, 2u * thread, m);
      SET_FLOAT(sums, 2u * thread + 1u, s);
      shared_keep[thread] = keep;
      shared_add[thread] = add;
    }
    barrier();
    uvec2 target = whole ? out_acc : to_acc;
    [[unroll]] for (uint r = 0u; r < R; r++)
      [[unroll]] for (uint i = 0u; i < SLOTS * VE; i++) {
        uint e = (i / VE * UNITS + unit) * VE + i % VE;
        if (e >= dv || phase > 0u) continue;
        if (!whole) SET_FLOAT(target, r * dv + e, acc[r * SLOTS * VE + i]);
        else if (shared_add[r] != 0.0)
          SET_FLOAT(target, r * dv + e, fma(FLOAT(target, r * dv + e), shared_keep[r], acc[r * SLOTS * VE + i] * shared_add[r]));
      }
    barrier();
  }
}
