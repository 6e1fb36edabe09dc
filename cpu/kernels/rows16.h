/* 16 interleaved rows (order R of MOI_FORMAT_MAP): what the kernels of every instruction set know of them. Included behind
 * the instruction set's int_*.h. */
#ifndef MOI_CPU_KERNELS_ROWS16_H
#define MOI_CPU_KERNELS_ROWS16_H

/* The format with the same codes. */
INLINE int r16_codes_as(int f) {
  return f == MOI_FORMAT_Q4_0_R16     ? MOI_FORMAT_Q4_0
         : f == MOI_FORMAT_IQ4_NL_R16 ? MOI_FORMAT_IQ4_NL
         : f == MOI_FORMAT_MXFP4_R16  ? MOI_FORMAT_MXFP4
         : f == MOI_FORMAT_Q4_K_R16   ? MOI_FORMAT_Q4_K
                                      : MOI_FORMAT_Q8_0;
}
INLINE int r16_has_table(int f) { return f == MOI_FORMAT_IQ4_NL_R16 || f == MOI_FORMAT_MXFP4_R16; }

/* Bytes of 32 elements of 16 rows: codes, and scales (Q4_K has its before the codes of 256). */
INLINE uint32_t r16_code_bytes(int f) { return f == MOI_FORMAT_Q8_0_R16 ? 512 : 256; }
INLINE uint32_t r16_scale_bytes(int f) { return f == MOI_FORMAT_Q4_K_R16 ? 0 : f == MOI_FORMAT_MXFP4_R16 ? 16 : 32; }

/* What makes the codes unsigned; Q4_K: its minima are subtracted. */
INLINE float r16_offset(int f) {
  return f == MOI_FORMAT_Q4_K_R16 ? 1 : f == MOI_FORMAT_Q4_0_R16 ? 8 : f == MOI_FORMAT_MXFP4_R16 ? 12 : 128;
}

#endif
