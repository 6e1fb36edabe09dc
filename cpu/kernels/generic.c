/* The kernel of last resort: any format, by its definition in core/shared/decode.h, in fp32. */
#include "core/shared/decode.h"
#include "cpu/kernel.h"

enum { LANES = 8 }; /* partial sums, so that a compiler may vectorise the dot product */

#define MOI_X(NAME, ...)                                                                                               \
  static void decode_##NAME(const moi_matrix *w, uint32_t n, float *out) {                                             \
    const uint8_t *D = w->data, *S = w->scales, *Z = w->zeros;                                                         \
    const uint32_t N = w->n, K = w->k;                                                                                 \
    (void)D, (void)S, (void)Z, (void)N;                                                                                \
    for (uint32_t k = 0; k < K; k++) out[k] = MOI_AT_##NAME(D, S, Z, n, k, N, K);                                      \
  }
MOI_FORMAT_MAP(MOI_X)
#undef MOI_X

static void decode(const moi_matrix *w, uint32_t n, float *out) {
  switch (w->format) {
#define MOI_X(NAME, ...)                                                                                               \
  case MOI_FORMAT_##NAME: decode_##NAME(w, n, out); break;
    MOI_FORMAT_MAP(MOI_X)
#undef MOI_X
    default: break;
  }
}

/* scratch_rows: 1 */
void moi_gemm_generic(const moi_gemm_tile *tile) {
  const moi_matrix *w = tile->w;
  const size_t kp = MOI_FORM_KP(w->k);
  float *row = tile->scratch;
  for (size_t k = w->k; k < kp; k++) row[k] = 0;
  for (uint32_t n = tile->n0; n < tile->n1; n++) {
    decode(w, n, row);
    for (uint32_t r = 0; r < tile->m; r++) {
      const float *x = (const float *)(tile->x + tile->rows[r] * tile->x_stride);
      float sum[LANES] = {0};
      for (size_t k = 0; k < kp; k += LANES)
        for (int i = 0; i < LANES; i++) sum[i] += x[k + i] * row[k + i];
      tile->c[r * tile->ldc + (n - tile->n0)] =
          w->global * (((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7])));
    }
  }
}
