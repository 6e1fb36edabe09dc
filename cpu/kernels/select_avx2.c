#if defined(__x86_64__)
#define MOI_SELECT moi_select_avx2
#include "cpu/kernels/select.h"
#endif
typedef int moi_select_avx2_unit; /* never an empty translation unit */
