/* What a device gives: bytes read in order, multiply-adds and products of tensor cores in registers. */
#include "bench/kernels/peak.h"

#define MOI_BLOCKS MOI_PEAK_BLOCKS
#include "cuda/device/mma.h"

/* Reads a buffer once: 16 bytes side by side, four in flight for each thread. */
MOI_KERNEL(peak_read, 256, moi_peak_args) {
  unsigned long long n = a->n_words / 4u, step = moi_grid_x() * 256ull;
  const moi_u4 *from = (const moi_u4 *)a->buffer;
  unsigned sum = 0;
  for (unsigned long long i = moi_block_x() * 256ull + moi_thread(); i < n; i += 4u * step) {
    MOI_UNROLL
    for (unsigned j = 0; j < 4u; j++) {
      unsigned long long at = i + j * step;
      moi_u4 q = from[at < n ? at : i];
      sum ^= q.x ^ q.y ^ q.z ^ q.w;
    }
  }
  if (sum == 0x5eed5eedu) *(unsigned *)a->sink = sum; /* it never is: so that the reads are not left out */
}

/* 16 sums that do not wait for each other: 2 * 16 operations a thread and round. */
MOI_KERNEL(peak_fma, 256, moi_peak_args) {
  float s[16], x = 1.0f + (float)moi_thread() * 1e-9f, y = 1e-9f * (float)(unsigned)a->n_words, sum = 0.0f;
  MOI_UNROLL
  for (int i = 0; i < 16; i++) s[i] = (float)i;
  for (unsigned r = 0; r < a->rounds; r++) {
    MOI_UNROLL
    for (int i = 0; i < 16; i++) s[i] = fmaf(s[i], x, y);
  }
  MOI_UNROLL
  for (int i = 0; i < 16; i++) sum += s[i];
  if (sum == 12345.678f) *(unsigned *)a->sink = 1u;
}

/* Products of 16 x 8 numbers along `k`, a warp at a time, on numbers as random as weights are: tensor cores draw less power
 * on zeros, and run faster. `one` and `mask` make any 32 bits a few numbers of the type, none of them large. */
MOI_DEVICE unsigned scramble(unsigned x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

#define PEAK_MMA(name, mma, one, mask)                                                                                 \
  MOI_KERNEL(name, 256, moi_peak_args) {                                                                               \
    unsigned x[4], y[2];                                                                                               \
    float s[MOI_PEAK_SUMS][4], sum = 0.0f;                                                                             \
    MOI_UNROLL                                                                                                         \
    for (unsigned i = 0; i < 4u; i++) x[i] = one | (scramble(moi_thread() * 8u + i) & mask);                           \
    MOI_UNROLL                                                                                                         \
    for (unsigned i = 0; i < 2u; i++) y[i] = one | (scramble(moi_thread() * 8u + 4u + i) & mask);                      \
    MOI_UNROLL                                                                                                         \
    for (int i = 0; i < MOI_PEAK_SUMS; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = (float)i;                          \
    for (unsigned r = 0; r < a->rounds; r++) {                                                                         \
      MOI_UNROLL                                                                                                       \
      for (int i = 0; i < MOI_PEAK_SUMS; i++) mma(s[i], x, y);                                                         \
    }                                                                                                                  \
    MOI_UNROLL                                                                                                         \
    for (int i = 0; i < MOI_PEAK_SUMS; i++) sum += s[i][0] + s[i][1] + s[i][2] + s[i][3];                              \
    if (sum == 12345.678f) *(unsigned *)a->sink = 1u;                                                                  \
  }

PEAK_MMA(peak_mma_f16, moi_mma_f16_k16, 0x3c003c00u, 0x83ff83ffu)
#if defined(MOI_EMULATED) || __CUDA_ARCH__ >= 800 || !defined(__CUDA_ARCH__)
PEAK_MMA(peak_mma_bf16, moi_mma_bf16_16816, 0x3f803f80u, 0x807f807fu)
#endif
#if defined(MOI_EMULATED) || __CUDA_ARCH__ >= 890 || !defined(__CUDA_ARCH__)
PEAK_MMA(peak_mma_fp8, moi_mma_e4m3_16832, 0x38383838u, 0x87878787u)
#endif

/* Of bytes: what a product is added to is one of the sums before it. */
MOI_KERNEL(peak_mma_int8, 256, moi_peak_args) {
  unsigned x[4], y[2];
  int s[MOI_PEAK_SUMS][4], sum = 0;
  MOI_UNROLL
  for (unsigned i = 0; i < 4u; i++) x[i] = scramble(moi_thread() * 8u + i);
  MOI_UNROLL
  for (unsigned i = 0; i < 2u; i++) y[i] = scramble(moi_thread() * 8u + 4u + i);
  MOI_UNROLL
  for (int i = 0; i < MOI_PEAK_SUMS; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = i;
  for (unsigned r = 0; r < a->rounds; r++) {
    MOI_UNROLL
    for (int i = 0; i < MOI_PEAK_SUMS; i++) moi_mma_s8_16832(s[i], x, y, s[i][0]);
  }
  MOI_UNROLL
  for (int i = 0; i < MOI_PEAK_SUMS; i++) sum ^= s[i][0] ^ s[i][1] ^ s[i][2] ^ s[i][3];
  if (sum == 12345678) *(int *)a->sink = 1;
}
