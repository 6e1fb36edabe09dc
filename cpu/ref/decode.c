/* One row of W as fp32, element by element through the definition of its format. */
#include "cpu/ref/ref.h"

#include "core/shared/decode.h"

void moi_ref_decode_row(const moi_matrix *w, uint32_t n, float *out) {
  const uint8_t *D = w->data, *S = w->scales, *Z = w->zeros;
  uint32_t N = w->n, K = w->k;
  (void)N;
  switch (w->format) {
#define MOI_X(NAME, ...)                                                                                               \
  case MOI_FORMAT_##NAME:                                                                                              \
    (void)S, (void)Z;                                                                                                  \
    for (uint32_t k = 0; k < K; k++) out[k] = MOI_AT_##NAME(D, S, Z, n, k, N, K);                                      \
    break;
    MOI_FORMAT_MAP(MOI_X)
#undef MOI_X
    default: break;
  }
}

double moi_ref_dot(const moi_matrix *w, uint32_t n, const float *x, float *row) {
  moi_ref_decode_row(w, n, row);
  double sum = 0;
  for (uint32_t k = 0; k < w->k; k++) sum += (double)row[k] * x[k];
  return sum * w->global;
}
