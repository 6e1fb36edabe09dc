/* What every shader includes first: memory by address, the shared decoders, sub-word loads and stores, exact elementary
 * functions. Needs buffer device addresses and nothing else: no 64-bit integers, no 8- or 16-bit storage.
 *
 * An address is a uvec2 (low, high); (0, 0) is an absent view. Words of 32 bits are what is loaded and stored; a view may
 * begin at any byte that its type allows, so that narrow elements are cut out of the words they lie in. */
#ifndef MOI_COMMON_GLSL
#define MOI_COMMON_GLSL

#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Ints { int v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Floats { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Vectors { vec4 v[]; };

bool moi_has(uvec2 a) { return (a.x | a.y) != 0u; }

uvec2 moi_add(uvec2 a, uvec2 b) {
  uint carry;
  uint low = uaddCarry(a.x, b.x, carry);
  return uvec2(low, a.y + b.y + carry);
}
uvec2 moi_add(uvec2 a, uint b) { return moi_add(a, uvec2(b, 0u)); }
/* stride * i, modulo 2^64 */
uvec2 moi_mul(uvec2 stride, uint i) {
  uint high, low;
  umulExtended(stride.x, i, high, low);
  return uvec2(low, high + stride.y * i);
}
uvec2 moi_mul(uint stride, uint i) { return moi_mul(uvec2(stride, 0u), i); }

/* A stream of bytes that begins anywhere: the words that hold it, and its first byte's place in the first of them. */
struct Stream {
  uvec2 words;
  uint at;
};
Stream moi_stream(uvec2 address) { return Stream(uvec2(address.x & ~3u, address.y), address.x & 3u); }
uint moi_u8(Stream s, uint i) { return (Words(s.words).v[(i + s.at) >> 2] >> (8u * ((i + s.at) & 3u))) & 255u; }
uint moi_u16(Stream s, uint i) { return (Words(s.words).v[(i + s.at) >> 2] >> (8u * ((i + s.at) & 2u))) & 65535u; }
uint moi_u32(Stream s, uint i) { return Words(s.words).v[i >> 2]; } /* streams of words begin at one */
/* four bytes from any byte on */
uint moi_any32(Stream s, uint i) {
  uint at = i + s.at, shift = 8u * (at & 3u), low = Words(s.words).v[at >> 2];
  if (shift == 0u) return low;
  return (low >> shift) | (Words(s.words).v[(at >> 2) + 1u] << (32u - shift));
}

#define MOI_U8(B, i) moi_u8(B, i)
#define MOI_U16(B, i) moi_u16(B, i)
#define MOI_U32(B, i) moi_u32(B, i)
#include "../../core/shared/decode.h"
#include "../../core/shared/segment.h"

/* values of moi_format for dense types */
#define MOI_F32 1u
#define MOI_F16 2u
#define MOI_BF16 3u

uint moi_element_bytes(uint type) { return type == MOI_F32 ? 4u : 2u; }

/* Element i of dense memory that begins at `base`. */
float moi_load(uint type, uvec2 base, uint i) {
  if (type == MOI_F32) return Floats(base).v[i];
  uint h = moi_u16(moi_stream(moi_add(base, moi_mul(2u, i))), 0u);
  return type == MOI_BF16 ? moi_bf16_value(h) : moi_f16_value(h);
}

float moi_round_to(uint type, float f) {
  if (type == MOI_BF16) return moi_bf16_value(moi_bf16_code(f));
  if (type == MOI_F16) return moi_f16_value(moi_f16_code(f));
  return f;
}

/* One byte or one half of a word that others write too: two atomics that touch its bits alone. */
void moi_store_bits(uvec2 address, uint value, uint mask) {
  uvec2 word = uvec2(address.x & ~3u, address.y);
  uint shift = 8u * (address.x & 3u);
  atomicAnd(Words(word).v[0], ~(mask << shift));
  atomicOr(Words(word).v[0], value << shift);
}
/* Element i. For rows, moi_store_pair is cheaper. */
void moi_store(uint type, uvec2 base, uint i, float f) {
  if (type == MOI_F32) Floats(base).v[i] = f;
  else moi_store_bits(moi_add(base, moi_mul(2u, i)), type == MOI_BF16 ? moi_bf16_code(f) : moi_f16_code(f), 65535u);
}
/* Elements i and i + 1 (the second only if `both`): one word where they share one. */
void moi_store_pair(uint type, uvec2 base, uint i, float a, float b, bool both) {
  uvec2 at = moi_add(base, moi_mul(moi_element_bytes(type), i));
  if (type == MOI_F32) {
    Floats(at).v[0] = a;
    if (both) Floats(at).v[1] = b;
    return;
  }
  uint low = type == MOI_BF16 ? moi_bf16_code(a) : moi_f16_code(a), high = type == MOI_BF16 ? moi_bf16_code(b) : moi_f16_code(b);
  if (both && (at.x & 3u) == 0u) {
    Words(at).v[0] = low | (high << 16);
  } else {
    moi_store_bits(at, low, 65535u);
    if (both) moi_store_bits(moi_add(at, 2u), high, 65535u);
  }
}

#define MOI_INFINITY uintBitsToFloat(0x7f800000u)
bool moi_is_nan(float f) { return (floatBitsToUint(f) & 0x7fffffffu) > 0x7f800000u; }

/* Vulkan leaves exp, log, tanh and division to a few units of the last place, or to many; these are within 2 ulp on every
 * device, and give the same bits on all that round as IEEE 754 does. */
float moi_exp(float x) { /* clamped to [-87, 88]; NaN stays NaN */
  precise float c = x > 88.0 ? 88.0 : x;
  c = c < -87.0 ? -87.0 : c;
  precise float shifted = c * 1.44269504 + 12582912.0;
  precise float n = shifted - 12582912.0;
  precise float r = (c - n * 0.693359375) - n * -2.12194440e-4;
  precise float p = 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * uintBitsToFloat((floatBitsToUint(shifted) << 23) + 0x3f800000u);
}
/* ln x for positive normal x, to 2 ulp of max(1, |ln x|) */
float moi_log(float x) {
  uint u = floatBitsToUint(x);
  uint shifted = u - 0x3f3504f3u; /* 1/sqrt 2: the mantissa lies in 0.707..1.414 */
  precise float e = float(int(shifted) >> 23);
  precise float f = uintBitsToFloat((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0;
  precise float s = f / (2.0 + f), z = s * s;
  precise float t = 2.0 / 11.0;
  t = t * z + 2.0 / 9.0;
  t = t * z + 2.0 / 7.0;
  t = t * z + 2.0 / 5.0;
  t = t * z + 2.0 / 3.0;
  precise float log1 = 2.0 * s + s * z * t;
  return e * 0.693359375 + (e * -2.12194440e-4 + log1);
}
float moi_sigmoid(float x) { return 1.0 / (1.0 + moi_exp(-x)); }
float moi_tanh(float x) {
  precise float x2 = x * x;
  precise float small = x * (1.0 + x2 * (-1.0 / 3.0 + x2 * (2.0 / 15.0 + x2 * (-17.0 / 315.0 + x2 * (62.0 / 2835.0)))));
  precise float big = 1.0 - 2.0 / (moi_exp(2.0 * x) + 1.0);
  return x2 < 0.0625 ? small : big;
}

#endif
