/* New keys, or values, into the cache: a workgroup takes a row's heads, a thread what lies in a word (q8_0: a block).
 * The bytes are those of the CPU: divisions are exact, rounding is done in integers. */
#version 460
#extension GL_GOOGLE_include_directive : require
#define MOI_READABLE kv_lens
#include "common.glsl"
#include "attention.glsl"

const uint THREADS = 64u;
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint FORMAT = MOI_F16;
layout(constant_id = 1) const uint INPUT = MOI_F16;
layout(constant_id = 2) const uint WORDS = 0u; /* heads of the cache begin and end at words */

layout(push_constant) uniform Push { /* the mirror of append_push in attention.c */
  uvec2 x, q_offsets, kv_lens, q_start, cache, places, scales;
  uvec2 token_stride, head_stride, page_stride;
  uint n_rows, n_seqs, x_stride, x_head_stride;
  uint heads_dim; /* n_kv_heads - 1, dim - 1: 16 bits each */
  uint max_kv, reach, page_size, page_entries, capacity;
  uint first_row;
};

shared uint shared_seq, shared_row;

uint clamp_to(uint v) { return int(v) < 0 ? 0u : min(v, n_rows); }

/* a / b, rounded to nearest even */
uint divide(uint a, uint b) {
  uint sign = (a ^ b) & 0x80000000u, x = a & 0x7fffffffu, y = b & 0x7fffffffu;
  if (x > 0x7f800000u) return a | 0x400000u;
  if (y > 0x7f800000u) return b | 0x400000u;
  if (x == 0x7f800000u) return y == 0x7f800000u ? 0xffc00000u : sign | x;
  if (y == 0x7f800000u) return sign;
  if (y == 0u) return x == 0u ? 0xffc00000u : sign | 0x7f800000u;
  if (x == 0u) return sign;
  int ex = int(x >> 23), ey = int(y >> 23);
  uint mx = x & 0x7fffffu, my = y & 0x7fffffu;
  int up = 23 - findMSB(mx), down = 23 - findMSB(my);
  if (ex == 0) {
    mx <<= up;
    ex = 1 - up;
  } else {
    mx |= 0x800000u;
  }
  if (ey == 0) {
    my <<= down;
    ey = 1 - down;
  } else {
    my |= 0x800000u;
  }
  int e = ex - ey + 127;
  if (mx < my) {
    mx <<= 1;
    e--;
  }
  uint quotient = 1u, rest = mx - my; /* one bit, then 24 more */
  for (uint i = 0u; i < 3u; i++) {
    rest <<= 8;
    quotient = (quotient << 8) | (rest / my);
    rest = rest % my;
  }
  int drop = e >= 1 ? 1 : 2 - e;
  if (drop > 26) return sign;
  uint kept = quotient >> drop, half_bit = (quotient >> (drop - 1)) & 1u;
  bool sticky = rest != 0u || (quotient & ((1u << (drop - 1)) - 1u)) != 0u;
  kept += half_bit != 0u && (sticky || (kept & 1u) != 0u) ? 1u : 0u;
  uint result = e >= 1 ? (uint(e - 1) << 23) + kept : kept;
  return sign | (e > 254 || result > 0x7f800000u ? 0x7f800000u : result);
}

/* n bytes, 1 to 4, at any address */
void store_bytes(uvec2 address, uint bytes, uint n) {
  uint shift = 8u * (address.x & 3u), mask = n == 4u ? 0xffffffffu : (1u << (8u * n)) - 1u;
  if (mask == 0xffffffffu && shift == 0u) {
    WORD(address, 0) = bytes;
    return;
  }
  moi_store_bits(address, bytes & mask, mask);
  uint fit = (32u - shift) / 8u;
  if (n > fit) moi_store_bits(moi_add(address, fit), (bytes & mask) >> (8u * fit), mask >> (8u * fit));
}

uint input_code(uvec2 row, uint i) {
  if (INPUT == MOI_F32) return WORD(row, i);
  return moi_u16(moi_stream(moi_add(row, 2u * i)), 0u);
}
uint input_bits(uvec2 row, uint i, uint scale) {
  uint code = input_code(row, i);
  if (INPUT == MOI_F16) code = floatBitsToUint(moi_f16_value(code));
  if (INPUT == MOI_BF16) code <<= 16;
  return moi_has(scales) ? divide(code, scale) : code;
}

void store_block(uvec2 row, uint first, uint scale, uvec2 to) {
  /* Read in one loop alone. lavapipe of Mesa 26 goes through loops that no invocation is in; by descriptors it crashes there
   * in a second loop that reads the same buffer: where the buffer lies was found in the first, for none. */
  uint bits[32], most = 0u;
  for (uint i = 0u; i < 32u; i++) {
    bits[i] = input_bits(row, first + i, scale);
    uint magnitude = bits[i] & 0x7fffffffu;
    most = magnitude <= 0x7f800000u ? max(most, magnitude) : most;
  }
  uint d = divide(most, floatBitsToUint(127.0));
  float by = uintBitsToFloat(d == 0u ? 0u : divide(0x3f800000u, d));
  /* 17 halves: d and 16 pairs; one of the two ends is half a word */
  bool odd = (to.x & 2u) != 0u;
  uint before = moi_f16_code(uintBitsToFloat(d)), at = 0u;
  uvec2 words = odd ? moi_add(to, 2u) : to;
  if (odd) moi_store_bits(to, before, 65535u);
  for (uint i = 0u; i < 32u; i += 2u) {
    uint pair = 0u;
    [[unroll]] for (uint j = 0u; j < 2u; j++) {
      precise float f = uintBitsToFloat(bits[i + j]) * by;
      precise float whole = trunc(abs(f)), part = abs(f) - whole;
      int q = int(min(part >= 0.5 ? whole + 1.0 : whole, 127.0));
      pair |= (uint(f < 0.0 ? -q : q) & 255u) << (8u * j);
    }
    bool second = ((i & 2u) != 0u) == odd;
    if (second) WORD(words, at++) = before | (pair << 16);
    before = pair;
  }
  if (!odd) moi_store_bits(moi_add(to, 32u), before, 65535u);
}

void main() {
  uint i = gl_LocalInvocationID.x, row = first_row + gl_WorkGroupID.x;
  uint n_heads = (heads_dim >> 16) + 1u, dim = (heads_dim & 65535u) + 1u;

  /* the first sequence that ends behind the row; it begins where those before it have ended at the latest */
  if (i == 0u) {
    shared_seq = 0xffffffffu;
    shared_row = clamp_to(WORD(q_offsets, 0));
  }
  barrier();
  for (uint s = i; s < n_seqs && s < shared_seq; s += THREADS)
    if (clamp_to(WORD(q_offsets, s + 1u)) > row) atomicMin(shared_seq, s);
  barrier();
  uint seq = shared_seq;
  if (seq == 0xffffffffu) return;
  for (uint s = i; s <= seq; s += THREADS) atomicMax(shared_row, clamp_to(WORD(q_offsets, s)));
  barrier();
  uint first = shared_row, end = clamp_to(WORD(q_offsets, seq + 1u));
  if (row < first) return;
  uint len = min(uint(max(int(WORD(kv_lens, seq)), 0)), reach);
  uint after = position_after(WORD_OR(q_start, seq, len - (end - first)), row - first);
  uint page, token;
  if (after == 0u || after > reach) return;
  if (!place_of(places, kv_lens, page_size, page_entries, capacity, max_kv, seq, after - 1u, page, token)) return;

  uvec2 to = row_at(cache, page_stride, token_stride, page, token);
  uint element = FORMAT == MOI_F32 ? 4u : FORMAT == KV_FP8 ? 1u : 2u, each = 4u / element;
  uint units = FORMAT == KV_Q8_0 ? dim / 32u : (dim + each - 1u) / each;
  uvec2 x_row = moi_add(x, moi_mul(moi_mul(moi_element_bytes(INPUT), x_stride), row));
  bool raw = FORMAT == INPUT && !moi_has(scales);
  for (uint at = i; at < n_heads * units; at += THREADS) {
    uint head = at / units, unit = at - head * units;
    uvec2 from = moi_add(x_row, moi_mul(moi_mul(moi_element_bytes(INPUT), x_head_stride), head));
    uvec2 to_head = moi_add(to, moi_mul(head_stride, head));
    uint scale = WORD_OR(scales, head, 0u);
    if (FORMAT == KV_Q8_0) {
      store_block(from, 32u * unit, scale, moi_add(to_head, 34u * unit));
    } else {
      uint bytes = 0u, n = min(each, dim - unit * each);
      for (uint j = 0u; j < n; j++) {
        uint code;
        if (raw) {
          code = input_code(from, unit * each + j);
        } else {
          code = input_bits(from, unit * each + j, scale);
          if (FORMAT == KV_FP8) code = moi_e4m3_code(uintBitsToFloat(code));
          if (FORMAT == MOI_F16) code = moi_f16_code(uintBitsToFloat(code));
          if (FORMAT == MOI_BF16) code = moi_bf16_code(uintBitsToFloat(code));
        }
        bytes |= code << (8u * element * j);
      }
      if (WORDS != 0u) WORD(to_head, unit) = bytes;
      else store_bytes(moi_add(to_head, 4u * unit), bytes, n * element);
    }
  }
}
