/* GEMMs on 16 interleaved rows, R16_TOKENS tokens at a time, for instruction sets of few registers. Included behind
 *   r16_tile(f, m, codes, scale_bytes, x, k, y)   y[t] = the 16 rows . x[t], for m tokens */

INLINE void r16_gemm(int f, const moi_gemm_tile *g) {
  const moi_matrix *w = g->w;
  const size_t blocks = w->k / 32;
  float y[R16_TOKENS][16] __attribute__((aligned(32)));
  for (uint32_t n = g->n0; n < g->n1; n += 16) {
    const uint32_t width = g->n1 - n < 16 ? g->n1 - n : 16;
    const uint8_t *codes = w->data + n / 16 * blocks * r16_code_bytes(f);
    const uint8_t *scale_bytes = w->scales + n / 16 * blocks * r16_scale_bytes(f);
    for (uint32_t t = 0; t < g->m; t += R16_TOKENS) {
      const uint32_t m = g->m - t < R16_TOKENS ? g->m - t : R16_TOKENS;
      const uint8_t *x[R16_TOKENS];
      for (uint32_t i = 0; i < m; i++) x[i] = g->x + g->rows[t + i] * g->x_stride;
      switch (m) {
        case 1: r16_tile(f, 1, codes, scale_bytes, x, w->k, y); break;
        case 2: r16_tile(f, 2, codes, scale_bytes, x, w->k, y); break;
        case 3: r16_tile(f, 3, codes, scale_bytes, x, w->k, y); break;
        default: r16_tile(f, R16_TOKENS, codes, scale_bytes, x, w->k, y); break;
      }
      for (uint32_t i = 0; i < m; i++)
        for (uint32_t j = 0; j < width; j++) g->c[(t + i) * g->ldc + (n - g->n0) + j] = y[i][j] * w->global;
    }
  }
}

/* suffix: of the kernels' names */
#define R16_GEMM(format, name, suffix)                                                                                 \
  void moi_gemm_##name##_##suffix(const moi_gemm_tile *g);                                                             \
  void moi_gemm_##name##_##suffix(const moi_gemm_tile *g) { r16_gemm(MOI_FORMAT_##format, g); }
#define R16_GEMMS(suffix)                                                                                              \
  R16_GEMM(Q4_0_R16, q4_0_r16, suffix)                                                                                 \
  R16_GEMM(IQ4_NL_R16, iq4_nl_r16, suffix)                                                                             \
  R16_GEMM(MXFP4_R16, mxfp4_r16, suffix)                                                                               \
  R16_GEMM(Q8_0_R16, q8_0_r16, suffix)
