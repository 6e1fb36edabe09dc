/* What a device gives: bytes read in order, multiply-adds in registers. */
#include "bench/kernels/peak.h"
#include "cuda/device/convert.h"

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
