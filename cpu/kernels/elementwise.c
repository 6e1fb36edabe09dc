#define MOI_ELEMENTWISE moi_elementwise_scalar
#include "cpu/kernels/elementwise.h"

extern const moi_elementwise moi_elementwise_avx2, moi_elementwise_avx512;

/* AArch64 needs no set of its own: Advanced SIMD is what compilers vectorise this one for. */
const moi_elementwise *moi_elementwise_for(uint32_t isa) {
#if defined(__x86_64__)
  if (isa & MOI_ISA_AVX512) return &moi_elementwise_avx512;
  if (isa & MOI_ISA_AVX2) return &moi_elementwise_avx2;
#endif
  (void)isa;
  return &moi_elementwise_scalar;
}
