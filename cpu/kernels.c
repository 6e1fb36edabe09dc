/* kernels.def as a table. */
#include "core/choose.h"
#include "cpu/cpu.h"

#define GEMM(name, format, needs, form, m_max, scratch_rows, flags, fn) void fn(const moi_gemm_tile *tile);
#define ROUTE(name, needs, flags, fn) void fn(const moi_select_in *in);
#define ATTENTION(name, needs, form, m_max, flags, fn) void fn(const moi_attend *a);
#define REFERENCE(op)
#include "cpu/kernels.def"
#undef GEMM
#undef ROUTE
#undef ATTENTION
#undef REFERENCE

#define STEADY (MOI_DETERMINISTIC | MOI_BATCH_INVARIANT)
#define FALLBACK MOI_ROW_FALLBACK

const moi_cpu_kernel moi_cpu_kernels[] = {
#define GEMM(name, format, needs, form, m_max, scratch_rows, flags, fn)                                                \
  {name, MOI_OP_GEMM, MOI_FORMAT_##format, MOI_ISA_##needs, MOI_FORM_##form, m_max, scratch_rows, flags,               \
   (void (*)(void))fn},
#define ROUTE(name, needs, flags, fn)                                                                                  \
  {name, MOI_OP_ROUTE, MOI_FORMAT_NONE, MOI_ISA_##needs, MOI_FORM_F32, 0, 0, flags, (void (*)(void))fn},
#define ATTENTION(name, needs, form, m_max, flags, fn)                                                                 \
  {name, MOI_OP_ATTENTION, MOI_FORMAT_NONE, MOI_ISA_##needs, MOI_FORM_##form, m_max, 0, flags, (void (*)(void))fn},
#define REFERENCE(op)                                                                                                  \
  {"ref", MOI_OP_##op, MOI_FORMAT_NONE, MOI_ISA_SCALAR, MOI_FORM_F32, 0, 0,                                            \
   MOI_DETERMINISTIC | MOI_BATCH_INVARIANT | MOI_ROW_FALLBACK | MOI_ROW_REFERENCE, NULL},
#include "cpu/kernels.def"
};
const uint32_t moi_cpu_kernel_count = sizeof moi_cpu_kernels / sizeof moi_cpu_kernels[0];
