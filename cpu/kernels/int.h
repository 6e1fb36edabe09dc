/* What the integer kernels know of a format: f is a moi_format and a constant wherever these are inlined, so that all
 * of it folds away. */
#ifndef MOI_CPU_KERNELS_INT_H
#define MOI_CPU_KERNELS_INT_H

#include "cpu/kernel.h"

#define INLINE static inline __attribute__((always_inline))

/* Elements of one scale lane. */
INLINE uint32_t block_of(int f) {
  return f == MOI_FORMAT_Q6_K || f == MOI_FORMAT_NVFP4 || f == MOI_FORMAT_FP4_G16 ? 16 : 32;
}
/* Bytes of block_of elements in the data stream; K-quants: of a superblock. */
INLINE uint32_t bytes_of(int f) {
  switch (f) {
  case MOI_FORMAT_Q8_0: return 34;
  case MOI_FORMAT_Q4_0:
  case MOI_FORMAT_IQ4_NL: return 18;
  case MOI_FORMAT_MXFP4_GGUF: return 17;
  case MOI_FORMAT_Q4_K: return 144;
  case MOI_FORMAT_Q5_K: return 176;
  case MOI_FORMAT_Q6_K: return 210;
  case MOI_FORMAT_NVFP4:
  case MOI_FORMAT_FP4_G16: return 8;
  default: return 16;
  }
}
INLINE int is_superblock(int f) { return f == MOI_FORMAT_Q4_K || f == MOI_FORMAT_Q5_K || f == MOI_FORMAT_Q6_K; }
INLINE int is_even_odd(int f) {
  return f == MOI_FORMAT_MXFP4 || f == MOI_FORMAT_NVFP4 || f == MOI_FORMAT_FP4_G16 || f == MOI_FORMAT_INT4_G32 ||
         f == MOI_FORMAT_INT4_G128 || f == MOI_FORMAT_INT4Z_G32 || f == MOI_FORMAT_INT4Z_G128;
}
INLINE int is_e2m1(int f) {
  return f == MOI_FORMAT_MXFP4_GGUF || f == MOI_FORMAT_MXFP4 || f == MOI_FORMAT_NVFP4 || f == MOI_FORMAT_FP4_G16;
}
/* The constant that makes weights unsigned; 0: the format brings its own corrections. */
INLINE float offset_of(int f) {
  switch (f) {
  case MOI_FORMAT_Q8_0:
  case MOI_FORMAT_IQ4_NL: return 128;
  case MOI_FORMAT_Q6_K: return 32;
  case MOI_FORMAT_Q4_0:
  case MOI_FORMAT_INT4_G32:
  case MOI_FORMAT_INT4_G128: return 8;
  case MOI_FORMAT_MXFP4_GGUF:
  case MOI_FORMAT_MXFP4:
  case MOI_FORMAT_NVFP4:
  case MOI_FORMAT_FP4_G16: return 12;
  default: return 0;
  }
}

/* The unsigned weights of the 16 codes: twice the E2M1 value + 12, or IQ4_NL's + 128. */
INLINE const uint8_t *codes_of(int f) {
  static const uint8_t e2m1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
  static const uint8_t iq4_nl[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
  return is_e2m1(f) ? e2m1 : iq4_nl;
}

/* Bytes of 128 elements in the scales stream. */
INLINE uint32_t scale_bytes_of(int f) {
  switch (f) {
  case MOI_FORMAT_MXFP4: return 4;
  case MOI_FORMAT_NVFP4:
  case MOI_FORMAT_FP4_G16:
  case MOI_FORMAT_INT4_G32:
  case MOI_FORMAT_INT4Z_G32: return 8;
  case MOI_FORMAT_INT4_G128:
  case MOI_FORMAT_INT4Z_G128: return 2;
  default: return 0;
  }
}

/* Bytes of a row in each stream. */
typedef struct strides {
  size_t data, scales, zeros;
} strides;
INLINE strides strides_of(int f, size_t k) {
  const size_t data = k / (is_superblock(f) ? 256 : block_of(f)) * bytes_of(f);
  strides out = {data, k * scale_bytes_of(f) / 128, 0};
  if (f == MOI_FORMAT_INT4Z_G32) out.zeros = k / 32;
  if (f == MOI_FORMAT_INT4Z_G128) out.zeros = k / 128;
  return out;
}

/* The streams of one row. */
typedef struct row {
  const uint8_t *data, *scales, *zeros;
} row;

INLINE row row_of(const moi_matrix *w, const strides *stride, uint32_t n) {
  row out = {w->data + n * stride->data, NULL, NULL};
  if (stride->scales) out.scales = w->scales + n * stride->scales;
  if (stride->zeros) out.zeros = w->zeros + n * stride->zeros;
  return out;
}

/* How far ahead of the reading the weights are prefetched: the bytes of so many rows, a multiple of `rows` (those that
 * a kernel reads at once), that at least 4 KiB are under way. The hardware's prefetchers lose a stream that jumps from
 * row to row, and a few cycles of arithmetic for each line leave DRAM idle: without this, a third of its speed is lost.
 */
INLINE uint32_t rows_ahead(const strides *stride, uint32_t rows) {
  size_t bytes = stride->data * rows;
  return (uint32_t)((4096 + bytes - 1) / bytes) * rows;
}

/* Prefetches n bytes at p + distance; may lie outside the matrix, where it does nothing. */
INLINE void prefetch(const uint8_t *p, size_t distance, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 64) __builtin_prefetch((const void *)((uintptr_t)p + distance + i), 0, MOI_AHEAD_INTO);
}

/* The kernels of a file, one for each format: MOI_GEMM(format, name). */
#define MOI_INT_FORMATS                                                                                                \
  MOI_GEMM(Q8_0, q8_0)                                                                                                 \
  MOI_GEMM(Q4_0, q4_0)                                                                                                 \
  MOI_GEMM(Q4_K, q4_k)                                                                                                 \
  MOI_GEMM(Q5_K, q5_k)                                                                                                 \
  MOI_GEMM(Q6_K, q6_k)                                                                                                 \
  MOI_GEMM(MXFP4_GGUF, mxfp4_gguf)                                                                                     \
  MOI_GEMM(IQ4_NL, iq4_nl)                                                                                             \
  MOI_GEMM(MXFP4, mxfp4)                                                                                               \
  MOI_GEMM(NVFP4, nvfp4)                                                                                               \
  MOI_GEMM(INT4_G32, int4_g32)                                                                                         \
  MOI_GEMM(INT4_G128, int4_g128)                                                                                       \
  MOI_GEMM(INT4Z_G32, int4z_g32)                                                                                       \
  MOI_GEMM(INT4Z_G128, int4z_g128)

#endif
