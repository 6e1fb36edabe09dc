/* moi_codes: 32 consecutive k of one row of W as signed bytes for integer dot products, for the formats of small integers
 * and scales (MOI_VK_CODES of kernel.h). k0 is a multiple of 32, and the tail is 0 as in moi_fetch.
 *
 *   w = scale[k / 16] * (code - zero) - minimum
 *
 * One SPIR-V for all of them: the format is a constant of the pipeline. The dot product of four bytes is the instruction
 * itself: GL_EXT_integer_dot_product asks for newer compilers than Debian 12's. */
#include "gemm.glsl"

#extension GL_EXT_spirv_intrinsics : require

/* OpSDot; format 0: four signed bytes */
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int moi_sdot(int a, int b, spirv_literal int format);

layout(constant_id = 5) const uint DIGITS = 2u; /* of x: 2, or 1 of MOI_ACT_QUANT_INT8_32 */
layout(constant_id = 6) const uint FORMAT = 0u; /* a moi_format */

#define MXFP4 32u
#define NVFP4 33u
#define FP4_G16 34u
#define INT4_G32 48u
#define INT4_G128 49u
#define INT4Z_G32 50u
#define INT4Z_G128 51u
#define GPTQ_G32 52u
#define GPTQ_G128 53u
#define AWQ_G32 54u
#define AWQ_G128 55u
#define Q8_0 64u
#define Q4_0 65u
#define Q4_K 66u
#define Q5_K 67u
#define Q6_K 68u
#define MXFP4_GGUF 69u
#define IQ4_NL 70u

const bool HAS_MINIMUM = FORMAT == Q4_K || FORMAT == Q5_K;
const bool HAS_ZERO = FORMAT >= INT4_G32 && FORMAT <= AWQ_G128 || FORMAT == Q4_0 || FORMAT == Q6_K;
const bool E2M1 = FORMAT >= MXFP4 && FORMAT <= FP4_G16 || FORMAT == MXFP4_GGUF;
/* scales of 32 k */
const int GROUPS = FORMAT == NVFP4 || FORMAT == FP4_G16 || FORMAT == Q6_K ? 2 : 1;
/* k that share a scale, of the formats that have others than 16 and 32 */
const uint GROUP = FORMAT == INT4_G32 || FORMAT == INT4Z_G32 || FORMAT == GPTQ_G32 || FORMAT == AWQ_G32 ? 32u : 128u;
/* codes of E2M1 are twice its values; what the sums are multiplied by, since a scale may be as small as floats are */
const float CODE_STEP = E2M1 ? 0.5 : 1.0;

struct Codes {
  ivec4 q[2];
  float scale[2]; /* of the first 16 k and the others; the first is that of all if GROUPS is 1 */
  float minimum;
  int zero;
};

/* Four E2M1 codes in the bytes of each word: twice their values. */
uvec4 moi_e2m1_codes(uvec4 c) {
  const uvec4 ones = uvec4(0x01010101u);
  uvec4 e0 = (c >> 1) & ones, e1 = (c >> 2) & ones;
  uvec4 v = (c & ones) | ((e0 | e1) << 1);
  v += v & (e1 * 255u);
  v += v & ((e0 & e1) * 255u);
  uvec4 sign = ((c >> 3) & ones) * 255u;
  return ((v | uvec4(0x80808080u)) - ((v & sign) << 1)) ^ uvec4(0x80808080u);
}

uint moi_iq4_nl_codes(uint c) {
  uint v = 0u;
  for (uint i = 0u; i < 32u; i += 8u) v |= uint(moi_iq4_nl_code((c >> i) & 15u) & 255) << i;
  return v;
}

uvec4 moi_table(uvec4 c) {
  if (E2M1) return moi_e2m1_codes(c);
  if (FORMAT == IQ4_NL) return uvec4(moi_iq4_nl_codes(c.x), moi_iq4_nl_codes(c.y), moi_iq4_nl_codes(c.z), moi_iq4_nl_codes(c.w));
  return c;
}

/* Words of eight consecutive k each: those of a byte's low nibbles are even, as x comes for these formats (MOI_VK_EVEN_ODD). */
void moi_even_odd(uvec4 q, inout Codes c) {
  uvec4 even = q & uvec4(0x0f0f0f0fu), odd = (q >> 4) & uvec4(0x0f0f0f0fu);
  c.q[0] = ivec4(moi_table(uvec4(even.x, odd.x, even.y, odd.y)));
  c.q[1] = ivec4(moi_table(uvec4(even.z, odd.z, even.w, odd.w)));
}

Codes moi_codes(Stream D, Stream S, Stream Z, uint n, uint k0, uint N, uint K) {
  Codes c;
  c.scale[0] = c.scale[1] = c.minimum = 0.0;
  c.zero = 0;
  if (FORMAT == Q8_0) {
    uint b = (n * (K >> 5) + (k0 >> 5)) * 34u;
    c.q[0] = ivec4(moi_block4(D, b + 2u)), c.q[1] = ivec4(moi_block4(D, b + 18u));
    c.scale[0] = moi_f16_value(moi_u16(D, b));
  } else if (FORMAT == Q4_0 || FORMAT == IQ4_NL || FORMAT == MXFP4_GGUF) {
    uint head = FORMAT == MXFP4_GGUF ? 1u : 2u, b = (n * (K >> 5) + (k0 >> 5)) * (16u + head);
    uvec4 q = moi_block4(D, b + head);
    c.q[0] = ivec4(moi_table(q & uvec4(0x0f0f0f0fu))), c.q[1] = ivec4(moi_table((q >> 4) & uvec4(0x0f0f0f0fu)));
    c.scale[0] = FORMAT == MXFP4_GGUF ? moi_e8m0_value(moi_u8(D, b)) : moi_f16_value(moi_u16(D, b));
    c.zero = 8;
  } else if (FORMAT == Q4_K || FORMAT == Q5_K) {
    uint b = (n * (K >> 8) + (k0 >> 8)) * (FORMAT == Q4_K ? 144u : 176u), sub = (k0 >> 5) & 7u;
    moi_k_scales(D, b, sub, c.scale[0], c.minimum);
    for (uint j = 0u; j < 2u; j++)
      c.q[j] = ivec4(FORMAT == Q4_K ? moi_q4_k_codes(D, b, sub, j) : moi_q5_k_codes(D, b, sub, j));
  } else if (FORMAT == Q6_K) {
    uint b = (n * (K >> 8) + (k0 >> 8)) * 210u, c32 = (k0 >> 5) & 7u;
    float d = moi_f16_value(moi_u16(D, b + 208u));
    for (uint j = 0u; j < 2u; j++) {
      c.scale[j] = d * float(moi_signed8(moi_u8(D, b + 192u + 2u * c32 + j)));
      c.q[j] = ivec4(moi_q6_k_codes(D, b, c32, j));
    }
    c.zero = 32;
  } else if (FORMAT == NVFP4 || FORMAT == FP4_G16) {
    uint at = (n * K + k0) >> 1, group = n * (K >> 4) + (k0 >> 4);
    uint first = moi_u8(S, group), second = 0u;
    uvec4 q;
    if (k0 + 32u > K) { /* the row ends in the middle */
      q = uvec4(moi_any32(D, at), moi_any32(D, at + 4u), 0u, 0u);
    } else {
      q = moi_words4(D, at);
      second = moi_u8(S, group + 1u);
    }
    moi_even_odd(q, c);
    c.scale[0] = FORMAT == NVFP4 ? moi_e4m3_value(first) : moi_e8m0_value(first);
    c.scale[1] = FORMAT == NVFP4 ? moi_e4m3_value(second) : moi_e8m0_value(second);
  } else if (FORMAT == GPTQ_G32 || FORMAT == GPTQ_G128) {
    uint group = k0 / GROUP, at = ((k0 >> 3) * N + n) * 4u, row = N * 4u;
    moi_even_odd(uvec4(moi_u32(D, at), moi_u32(D, at + row), moi_u32(D, at + 2u * row), moi_u32(D, at + 3u * row)), c);
    c.scale[0] = moi_f16_value(moi_u16(S, (group * N + n) * 2u));
    c.zero = int(moi_gptq_zero(moi_u32(Z, (group * (N >> 3) + (n >> 3)) * 4u), n));
  } else if (FORMAT == AWQ_G32 || FORMAT == AWQ_G128) {
    uint group = k0 / GROUP;
    for (uint j = 0u; j < 32u; j++) {
      uint code = moi_awq_nibble(moi_u32(D, ((k0 + j) * (N >> 3) + (n >> 3)) * 4u), n), byte = 8u * (j & 3u);
      int have = byte == 0u ? 0 : c.q[j >> 4][(j >> 2) & 3u];
      c.q[j >> 4][(j >> 2) & 3u] = have | int(code << byte);
    }
    c.scale[0] = moi_f16_value(moi_u16(S, (group * N + n) * 2u));
    c.zero = int(moi_awq_nibble(moi_u32(Z, (group * (N >> 3) + (n >> 3)) * 4u), n));
  } else { /* nibbles in order, scales beside them */
    uint group = n * (K / GROUP) + k0 / GROUP;
    moi_even_odd(moi_words4(D, (n * K + k0) >> 1), c);
    if (FORMAT == MXFP4) {
      c.scale[0] = moi_e8m0_value(moi_u8(S, n * (K >> 5) + (k0 >> 5)));
    } else if (FORMAT == INT4_G32 || FORMAT == INT4_G128) {
      c.scale[0] = moi_bf16_value(moi_u16(S, group * 2u)), c.zero = 8;
    } else {
      c.scale[0] = moi_f16_value(moi_u16(S, group * 2u)), c.zero = int(moi_u8(Z, group));
    }
  }
  return c;
}

/* What prepare.comp makes of 32 k of a row of x, in the place of their floats: x = d * (256 q[0] + q[1]), or d * q[0]. */
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Digits {
  ivec4 q[2][2];
  int sums[2]; /* of the integers of 16 k each */
  float d;
};
Digits moi_digits(uvec2 row, uint k0) { return Digits(moi_add(row, k0 * 4u)); }

int moi_dot(ivec4 a, ivec4 b, int sum) {
  sum += moi_sdot(a.x, b.x, 0), sum += moi_sdot(a.y, b.y, 0);
  sum += moi_sdot(a.z, b.z, 0), sum += moi_sdot(a.w, b.w, 0);
  return sum;
}

/* acc and what a group of k gives: sum, of the products of codes and integers, below 2^31; all: of the integers. */
float moi_scaled(float acc, int sum, int all, float scale, float minimum, int zero, float d) {
  if (HAS_ZERO) sum -= zero * all;
  acc = fma(float(sum) * scale, d, acc);
  if (HAS_MINIMUM) acc = fma(float(all) * -minimum, d, acc);
  return acc;
}
