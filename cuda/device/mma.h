/* Tensor cores, a warp at a time: all 32 lanes call together. Fragments are those of the PTX ISA's mma.sync, with
 * g = lane / 4, q = lane % 4 and two 16-bit numbers in a register, the lower index in the low half:
 *
 *   m16n8k16  a[0] A[g][2q..]  a[1] A[g + 8][2q..]  a[2] A[g][2q + 8..]  a[3] A[g + 8][2q + 8..]
 *             b[0] B[2q..][g]  b[1] B[2q + 8..][g]
 *   m16n8k8   a[0] A[g][2q..]  a[1] A[g + 8][2q..]  b[0] B[2q..][g]
 *   m16n8k32  of bytes, four in a register: as m16n8k16 with 4q for 2q and 16 for 8
 *   all       d[0] D[g][2q]  d[1] D[g][2q + 1]  d[2] D[g + 8][2q]  d[3] D[g + 8][2q + 1]
 *
 *   moi_mma_bf16_16816(d, a, b)        D += A B, sums in fp32; sm_80
 *   moi_mma_bf16_16816_first(d, a, b)  D = A B
 *   moi_mma_f16_16816(d, a, b)         f16; sm_80
 *   moi_mma_f16_1688(d, a, b)          f16; sm_75
 *   moi_mma_f16_k16(d, a, b)           m16n8k16 of f16, where sm_75 makes it of two m16n8k8
 *   moi_mma_e4m3_16832(d, a, b)        m16n8k32 of E4M3, sums in fp32 of which hardware may keep 14 bits; sm_89
 *   moi_mma_mx_e4m3_e2m1_16832(d, a, b, of_a, of_b)   the same of A of E4M3 and B of E2M1, a code in bits 2 to 5 of its byte, and
 *                                      each row of A and column of B times 2^(e - 127), a NaN where e is 255; sm_120a. e is the
 *                                      lowest byte of what a lane brings: with q 0 and 1 in of_a for rows g and g + 8, with
 *                                      q 0 in of_b for column g; others are not looked at
 *
 * Signed bytes, sums of 32 bits; m16n8k16 of bytes is m16n8k32's a[0], a[1] and b[0], m8n8k16 its a[0], b[0], d[0] and d[1]:
 *   moi_mma_s8_16832(d, a, b, c)       D = A B + c, c the same number everywhere, sums are 32 bits; sm_75, where it is
 *   moi_mma_s8_16816(d, a, b, c)       made of m8n8k16
 *   moi_mma_s8_8816(d, a, b)           D += A B
 *
 *   moi_ldmatrix_x4(r, row)            four matrices of 8 rows of 16 bytes: lane l names row l % 8 of matrix l / 8, and gets
 *                                      in r[i] the q-th word of row g of matrix i
 *   moi_ldmatrix_x4_trans(r, row)      the same, each matrix of 8x8 16-bit numbers transposed
 *
 * Two numbers in a register, rounded to nearest even:
 *   moi_bf16x2_fma(a, b, c)            a * b + c in each half, rounded once; sm_80
 *   moi_f16x2_fma(a, b, c)             the same of f16
 *   moi_bytes(a, b, selector)          byte i of the result is byte (selector >> 4 i) % 8 of b:a */
#ifndef MOI_CUDA_MMA_H
#define MOI_CUDA_MMA_H

#include "cuda/device/convert.h"

#if !defined(MOI_EMULATED) /* else emulated.h has them */

#define MOI_MMA_16816(name, type)                                                                                      \
  MOI_DEVICE void name(float *d, const unsigned *a, const unsigned *b) {                                               \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "   \
        "{%0, %1, %2, %3};"                                                                                            \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                           \
  }
MOI_MMA_16816(moi_mma_bf16_16816, "bf16")
MOI_MMA_16816(moi_mma_f16_16816, "f16")

MOI_DEVICE void moi_mma_bf16_16816_first(float *d, const unsigned *a, const unsigned *b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
}

MOI_DEVICE void moi_mma_f16_1688(float *d, const unsigned *a, const unsigned *b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

MOI_DEVICE void moi_mma_f16_k16(float *d, const unsigned *a, const unsigned *b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  moi_mma_f16_16816(d, a, b);
#else
  moi_mma_f16_1688(d, a, b);
  moi_mma_f16_1688(d, a + 2, b + 1);
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
MOI_DEVICE void moi_mma_e4m3_16832(float *d, const unsigned *a, const unsigned *b) {
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#if defined(__CUDA_ARCH_FEAT_SM120_ALL)
MOI_DEVICE void moi_mma_mx_e4m3_e2m1_16832(float *d, const unsigned *a, const unsigned *b, unsigned of_a, unsigned of_b) {
  asm("mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e2m1.f32.ue8m0 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, 0}, {%11}, {0, 0};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(of_a), "r"(of_b));
}
#endif

MOI_DEVICE void moi_mma_s8_8816(int *d, unsigned a, unsigned b) {
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(a), "r"(b));
}

/* memory: shared memory is written between two loads of one address */
MOI_DEVICE void moi_ldmatrix_x4(unsigned *r, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}
MOI_DEVICE void moi_ldmatrix_x4_trans(unsigned *r, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}

MOI_DEVICE unsigned moi_bf16x2_fma(unsigned a, unsigned b, unsigned c) {
  unsigned d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
MOI_DEVICE unsigned moi_f16x2_fma(unsigned a, unsigned b, unsigned c) {
  unsigned d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
MOI_DEVICE unsigned moi_bytes(unsigned a, unsigned b, unsigned selector) { return __byte_perm(a, b, selector); }

#endif

/* sm_75's: of the rows from g = 0 and from g = 8 on by themselves */
MOI_DEVICE void moi_mma_s8_16816_of_8816(int *d, const unsigned *a, const unsigned *b, int c) {
  d[0] = d[1] = d[2] = d[3] = c;
  moi_mma_s8_8816(d, a[0], b[0]);
  moi_mma_s8_8816(d + 2, a[1], b[0]);
}
MOI_DEVICE void moi_mma_s8_16832_of_8816(int *d, const unsigned *a, const unsigned *b, int c) {
  moi_mma_s8_16816_of_8816(d, a, b, c);
  moi_mma_s8_8816(d, a[2], b[1]);
  moi_mma_s8_8816(d + 2, a[3], b[1]);
}

#if !defined(MOI_EMULATED)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
MOI_DEVICE void moi_mma_s8_16832(int *d, const unsigned *a, const unsigned *b, int c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c));
}
MOI_DEVICE void moi_mma_s8_16816(int *d, const unsigned *a, const unsigned *b, int c) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c));
}
#else
#define moi_mma_s8_16832 moi_mma_s8_16832_of_8816
#define moi_mma_s8_16816 moi_mma_s8_16816_of_8816
#endif
#endif

/* Two floats, rounded, first in the low half. */
MOI_DEVICE unsigned moi_bf16x2(float first, float second) {
#if defined(MOI_EMULATED) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
  return moi_bf16_code(first) | moi_bf16_code(second) << 16;
#else
  unsigned d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(second), "f"(first));
  return d;
#endif
}
/* Two floats that are bf16 already. */
MOI_DEVICE unsigned moi_bf16x2_exact(float first, float second) {
  return moi_bytes(moi_f32_bits(first), moi_f32_bits(second), 0x7632u);
}
/* Two floats as f16, rounded. */
MOI_DEVICE unsigned moi_f16x2(float first, float second) {
#if defined(MOI_EMULATED)
  return moi_f16_code(first) | moi_f16_code(second) << 16;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(second), "f"(first));
  return d;
#else
  unsigned short low, high;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(low) : "f"(first));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(high) : "f"(second));
  return (unsigned)low | (unsigned)high << 16;
#endif
}

#endif
