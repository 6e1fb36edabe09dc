#if defined(__x86_64__)
#define MOI_ELEMENTWISE moi_elementwise_avx2
#include "cpu/kernels/elementwise.h"
#endif
typedef int moi_elementwise_avx2_unit; /* never an empty translation unit */
