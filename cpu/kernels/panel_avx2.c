#if defined(__x86_64__)

#include "cpu/kernels/panel_avx2.h"

TILES(32, Q8_0, 2)
TILES(16, Q6_K, 2)
TILES(minima, Q4_K, 2)
TILES(even_odd_32, MXFP4, 2)
TILES(even_odd_16, NVFP4, 2)
TILES(even_odd_zeros, INT4Z_G32, 2)

INLINE tiles_fn tiles_of(int f) {
  const layout l = layout_of(f, 2);
  if (l.minima) return l.even_odd ? tiles_even_odd_zeros : tiles_minima;
  if (l.block == 16) return l.even_odd ? tiles_even_odd_16 : tiles_16;
  return l.even_odd ? tiles_even_odd_32 : tiles_32;
}

#define MOI_GEMM(format, name)                                                                                         \
  static __attribute__((noinline)) void fill_##name(const moi_gemm_tile *g, const strides *stride, uint32_t n,         \
                                                    uint32_t v, uint8_t *codes, float *scales, float *minima) {       \
    fill(MOI_FORMAT_##format, 2, g, stride, n, v, codes, scales, minima);                                              \
  }                                                                                                                    \
  void moi_gemm_##name##_panel_avx2(const moi_gemm_tile *tile);                                                        \
  void moi_gemm_##name##_panel_avx2(const moi_gemm_tile *tile) {                                                       \
    gemm(MOI_FORMAT_##format, 2, fill_##name, tiles_of(MOI_FORMAT_##format), tile);                                    \
  }

MOI_INT_FORMATS
MOI_GEMM(FP4_G16, fp4_g16)

#endif
