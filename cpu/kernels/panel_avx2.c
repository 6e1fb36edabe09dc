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
  PANEL_FILL(format, name, 2)                                                                                          \
  void moi_gemm_##name##_panel_avx2(const moi_gemm_tile *tile);                                                        \
  void moi_gemm_##name##_panel_avx2(const moi_gemm_tile *tile) {                                                       \
    gemm(MOI_FORMAT_##format, 2, fill_##name##_2, tiles_of(MOI_FORMAT_##format), tile);                                \
  }

MOI_INT_FORMATS
MOI_GEMM(FP4_G16, fp4_g16)

TILES(i8_32, Q4_0, 1)
TILES(i8_e2m1_32, MXFP4_GGUF, 1)
TILES(i8_minima, Q4_K, 1)
TILES(i8_q5_k, Q5_K, 1)
TILES(i8_even_odd_32, INT4_G32, 1)
TILES(i8_e2m1_even_odd_32, MXFP4, 1)
TILES(i8_even_odd_16, NVFP4, 1)
TILES(i8_even_odd_zeros, INT4Z_G32, 1)

#define PANEL_I8(format, name, tiles)                                                                                  \
  PANEL_FILL(format, name, 1)                                                                                          \
  void moi_gemm_##name##_i8_panel_avx2(const moi_gemm_tile *tile);                                                     \
  void moi_gemm_##name##_i8_panel_avx2(const moi_gemm_tile *tile) {                                                    \
    gemm(MOI_FORMAT_##format, 1, fill_##name##_1, tiles_i8_##tiles, tile);                                             \
  }

PANEL_I8(Q4_0, q4_0, 32)
PANEL_I8(Q4_K, q4_k, minima)
PANEL_I8(Q5_K, q5_k, q5_k)
PANEL_I8(MXFP4_GGUF, mxfp4_gguf, e2m1_32)
PANEL_I8(MXFP4, mxfp4, e2m1_even_odd_32)
PANEL_I8(NVFP4, nvfp4, even_odd_16)
PANEL_I8(FP4_G16, fp4_g16, even_odd_16)
PANEL_I8(INT4_G32, int4_g32, even_odd_32)
PANEL_I8(INT4_G128, int4_g128, even_odd_32)
PANEL_I8(INT4Z_G32, int4z_g32, even_odd_zeros)
PANEL_I8(INT4Z_G128, int4z_g128, even_odd_zeros)

#endif
