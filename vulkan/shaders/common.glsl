/* What every shader includes first: memory, the shared decoders, sub-word loads and stores, exact elementary functions.
 * Needs no 64-bit integers and no 8- or 16-bit storage.
 *
 * An address is a uvec2; (0, 0) is an absent view. Words of 32 bits are what is loaded and stored; a view may begin at any
 * byte that its type allows, so that narrow elements are cut out of the words they lie in. Memory is reached by WORD, FLOAT
 * and the others alone, since a shader is compiled in two ways:
 *   without MOI_SETS   an address is the device's, (low, high)
 *   with it            for devices without bufferDeviceAddress: (offset in bytes, which of the storage buffers of set 0);
 *                      record.c binds them. Buffer 0 is never named, so that an absent view is a buffer too. All invocations
 *                      of an access name the same buffer: arithmetic on addresses leaves that part alone, and what comes out
 *                      of shared memory takes it from an argument (MOI_IN) */
#ifndef MOI_COMMON_GLSL
#define MOI_COMMON_GLSL

#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require

#ifdef MOI_SETS

#ifndef MOI_COHERENT /* `coherent` where SEEN is used */
#define MOI_COHERENT
#endif
layout(set = 0, binding = 0, std430) MOI_COHERENT buffer Memory { uint v[]; } moi_memory[24]; /* MOI_VK_BINDINGS */

/* element i of those that begin at address a; WORD and SEEN may be written to, the others by SET_ */
#define WORD(a, i) moi_memory[(a).y].v[((a).x >> 2) + (i)]
#define SEEN(a, i) WORD(a, i)
#define INT(a, i) int(WORD(a, i))
#define FLOAT(a, i) uintBitsToFloat(WORD(a, i))
#define SET_INT(a, i, e) WORD(a, i) = uint(e)
#define SET_FLOAT(a, i, e) WORD(a, i) = floatBitsToUint(e)
#define SET_PAIR(a, i, e) moi_set_pair(a, i, e)
#define QUAD(a, i) moi_quad(a, i)
#define VECTOR(a, i) uintBitsToFloat(moi_quad(a, i))
void moi_set_pair(uvec2 a, uint i, vec2 e) {
  SET_FLOAT(a, 2u * i, e.x);
  SET_FLOAT(a, 2u * i + 1u, e.y);
}
uvec4 moi_quad(uvec2 a, uint i) {
  return uvec4(WORD(a, 4u * i), WORD(a, 4u * i + 1u), WORD(a, 4u * i + 2u), WORD(a, 4u * i + 3u));
}

#define MOI_IN(a, of) uvec2((a).x, (of).y)

/* in bytes; sizes and products of them are 32 bits wide here, as is an offset in a storage buffer */
uvec2 moi_add(uvec2 a, uvec2 b) { return uvec2(a.x + b.x, a.y); }
uvec2 moi_mul(uvec2 stride, uint i) { return uvec2(stride.x * i, 0u); }

#define MOI_ARGS(Name, LIST)                                                                                           \
  struct Name {                                                                                                        \
    LIST(MOI_FIELD_P, MOI_FIELD_P2, MOI_FIELD_U, MOI_FIELD_U2, MOI_FIELD_F, MOI_FIELD_M)                               \
  };                                                                                                                   \
  Name moi_args(uvec2 at) {                                                                                            \
    Name a;                                                                                                            \
    uint i = 0u;                                                                                                       \
    LIST(MOI_READ_P, MOI_READ_P2, MOI_READ_U, MOI_READ_U2, MOI_READ_F, MOI_READ_M)                                     \
    return a;                                                                                                          \
  }
#define MOI_READ_P(name) a.name = uvec2(WORD(at, i), WORD(at, i + 1u)), i += 2u;
#define MOI_READ_P2(name) MOI_READ_P(name[0]) MOI_READ_P(name[1])
#define MOI_READ_U(name) a.name = WORD(at, i), i += 1u;
#define MOI_READ_U2(name) MOI_READ_U(name[0]) MOI_READ_U(name[1])
#define MOI_READ_F(name) a.name = FLOAT(at, i), i += 1u;
#define MOI_ARGS_AT(Name, at) moi_args(at)

#else

#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer Seen { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Ints { int v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Floats { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Pairs { vec2 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Vectors { vec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Quads { uvec4 v[]; };

#define WORD(a, i) Words(a).v[i]
#define SEEN(a, i) Seen(a).v[i]
#define INT(a, i) Ints(a).v[i]
#define FLOAT(a, i) Floats(a).v[i]
#define QUAD(a, i) Quads(a).v[i]
#define VECTOR(a, i) Vectors(a).v[i]
#define SET_INT(a, i, e) Ints(a).v[i] = e
#define SET_FLOAT(a, i, e) Floats(a).v[i] = e
#define SET_PAIR(a, i, e) Pairs(a).v[i] = e

#define MOI_IN(a, of) (a)

uvec2 moi_add(uvec2 a, uvec2 b) {
  uint carry;
  uint low = uaddCarry(a.x, b.x, carry);
  return uvec2(low, a.y + b.y + carry);
}
/* stride * i, modulo 2^64 */
uvec2 moi_mul(uvec2 stride, uint i) {
  uint high, low;
  umulExtended(stride.x, i, high, low);
  return uvec2(low, high + stride.y * i);
}

#define MOI_ARGS(Name, LIST)                                                                                           \
  layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Name {                                  \
    LIST(MOI_FIELD_P, MOI_FIELD_P2, MOI_FIELD_U, MOI_FIELD_U2, MOI_FIELD_F, MOI_FIELD_M)                               \
  };
#define MOI_ARGS_AT(Name, at) Name(at)

#endif

/* MOI_ARGS(Name, LIST) declares a shader's arguments in memory; Name a = MOI_ARGS_AT(Name, address). LIST(P, P2, U, U2,
 * F, M) names them in order: addresses and 64-bit strides, pairs of them, uints, pairs, floats, matrices (gemm.glsl). */
#define MOI_FIELD_P(name) uvec2 name;
#define MOI_FIELD_P2(name) uvec2 name[2];
#define MOI_FIELD_U(name) uint name;
#define MOI_FIELD_U2(name) uint name[2];
#define MOI_FIELD_F(name) float name;

bool moi_has(uvec2 a) { return (a.x | a.y) != 0u; }

/* Element i of a view that may be absent, and what stands for it then. MOI_READABLE: an address that may be read in any
 * case. Nothing is read at address 0, not even in vain: lavapipe of Mesa 26 executes a load whose address is the same for all
 * invocations whether they take that branch or not. So it stands outside of any, and what it reads is chosen. */
#ifndef MOI_READABLE
#define MOI_READABLE args
#endif
uvec2 moi_instead(uvec2 a, uvec2 readable) { return moi_has(a) ? a : readable; }
uint moi_word_or(uvec2 a, uvec2 readable, uint i, uint none) {
#ifdef MOI_SETS
  return moi_has(a) ? WORD(a, i) : none;
#else
  uint there = WORD(moi_instead(a, readable), moi_has(a) ? i : 0u);
  return moi_has(a) ? there : none;
#endif
}
#define WORD_OR(a, i, none) moi_word_or(a, MOI_READABLE, i, none)
#define FLOAT_OR(a, i, none) uintBitsToFloat(moi_word_or(a, MOI_READABLE, i, floatBitsToUint(none)))

uvec2 moi_add(uvec2 a, uint b) { return moi_add(a, uvec2(b, 0u)); }
uvec2 moi_mul(uint stride, uint i) { return moi_mul(uvec2(stride, 0u), i); }

/* A stream of bytes that begins anywhere: the words that hold it, and its first byte's place in the first of them. */
struct Stream {
  uvec2 words;
  uint at;
};
Stream moi_stream(uvec2 address) { return Stream(uvec2(address.x & ~3u, address.y), address.x & 3u); }
uint moi_u8(Stream s, uint i) { return (WORD(s.words, (i + s.at) >> 2) >> (8u * ((i + s.at) & 3u))) & 255u; }
uint moi_u16(Stream s, uint i) { return (WORD(s.words, (i + s.at) >> 2) >> (8u * ((i + s.at) & 2u))) & 65535u; }
uint moi_u32(Stream s, uint i) { return WORD(s.words, i >> 2); } /* streams of words begin at one */
/* four bytes from any byte on */
uint moi_any32(Stream s, uint i) {
  uint at = i + s.at, shift = 8u * (at & 3u), low = WORD(s.words, at >> 2);
  if (shift == 0u) return low;
  return (low >> shift) | (WORD(s.words, (at >> 2) + 1u) << (32u - shift));
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
  if (type == MOI_F32) return FLOAT(base, i);
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
  atomicAnd(WORD(word, 0), ~(mask << shift));
  atomicOr(WORD(word, 0), value << shift);
}
/* Element i. For rows, moi_store_pair is cheaper. */
void moi_store(uint type, uvec2 base, uint i, float f) {
  if (type == MOI_F32) SET_FLOAT(base, i, f);
  else moi_store_bits(moi_add(base, moi_mul(2u, i)), type == MOI_BF16 ? moi_bf16_code(f) : moi_f16_code(f), 65535u);
}
/* Elements i and i + 1 (the second only if `both`): one word where they share one. */
void moi_store_pair(uint type, uvec2 base, uint i, float a, float b, bool both) {
  uvec2 at = moi_add(base, moi_mul(moi_element_bytes(type), i));
  if (type == MOI_F32) {
    SET_FLOAT(at, 0, a);
    if (both) SET_FLOAT(at, 1, b);
    return;
  }
  uint low = type == MOI_BF16 ? moi_bf16_code(a) : moi_f16_code(a), high = type == MOI_BF16 ? moi_bf16_code(b) : moi_f16_code(b);
  if (both && (at.x & 3u) == 0u) {
    WORD(at, 0) = low | (high << 16);
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
