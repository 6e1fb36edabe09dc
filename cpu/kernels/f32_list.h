/* The kernels of an fp32 file: one for each format, over its decoders. A file may bring a MOI_DENSE(format, bytes of an
 * element) of its own, and leave out the formats of integers (NO_INTEGER_FORMATS). */

/* Bytes of a row of k elements. */
static inline size_t row_bytes(uint32_t k, uint32_t block_k, uint32_t block_bytes) {
  return (size_t)(k / block_k) * block_bytes;
}

#define MOI_DOT(format, block_k, block_bytes)                                                                          \
  void KERNEL_NAME(format)(const moi_gemm_tile *tile);                                                                 \
  void KERNEL_NAME(format)(const moi_gemm_tile *tile) {                                                                \
    gemm_dot(tile, decode_##format, row_bytes(tile->w->k, block_k, block_bytes));                                      \
  }
#define MOI_OUTER(format)                                                                                              \
  void KERNEL_NAME(format)(const moi_gemm_tile *tile);                                                                 \
  void KERNEL_NAME(format)(const moi_gemm_tile *tile) { gemm_outer(tile, decode_##format); }

#ifdef MOI_DENSE
MOI_DENSE(f32, 4)
MOI_DENSE(bf16, 2)
#else
MOI_DOT(f32, 1, 0)
MOI_DOT(bf16, 1, 2)
#endif
MOI_DOT(f16, 1, 2)
MOI_DOT(fp8, 1, 1)
MOI_DOT(fp8_b128, 1, 1)
#ifndef NO_INTEGER_FORMATS
MOI_DOT(mxfp4, 32, 16)
MOI_DOT(nvfp4, 16, 8)
MOI_DOT(fp4_g16, 16, 8)
MOI_DOT(int4_g32, 32, 16)
MOI_DOT(int4_g128, 128, 64)
MOI_DOT(int4z_g32, 32, 16)
MOI_DOT(int4z_g128, 128, 64)
MOI_DOT(q8_0, 32, 34)
MOI_DOT(q4_0, 32, 18)
MOI_DOT(q4_k, 256, 144)
MOI_DOT(q5_k, 256, 176)
MOI_DOT(q6_k, 256, 210)
MOI_DOT(mxfp4_gguf, 32, 17)
MOI_DOT(iq4_nl, 32, 18)
MOI_OUTER(gptq_g32)
MOI_OUTER(gptq_g128)
MOI_OUTER(awq_g32)
MOI_OUTER(awq_g128)
#endif
MOI_OUTER(bf16_kn)
