/* What a row of kernels.def is. */
#ifndef MOI_VULKAN_KERNEL_H
#define MOI_VULKAN_KERNEL_H

#include <moiety.h>

/* in flags */
#define MOI_VK_WHOLE 0x1000u  /* its workgroup is one subgroup, whose size must be certain */
#define MOI_VK_DIGITS 0x2000u /* its x is integers (moi_vk_form) */

/* What a row asks of a device beyond what the backend requires. */
typedef enum moi_vk_needs {
  MOI_VK_ANY,
  MOI_VK_CPU, /* chosen for software devices alone; runs on any whose subgroups are right for it */
  MOI_VK_GPU, /* chosen for real ones alone; runs on any */
  MOI_VK_DOT  /* integer dot products must be enabled; chosen for real ones that accelerate them */
} moi_vk_needs;

/* The formats whose elements are integers of 8 bits with scales: those of codes.glsl. */
#define MOI_VK_CODES(X, ...)                                                                                           \
  X(MXFP4, "mxfp4", __VA_ARGS__)                                                                                       \
  X(NVFP4, "nvfp4", __VA_ARGS__)                                                                                       \
  X(FP4_G16, "fp4_g16", __VA_ARGS__)                                                                                   \
  X(INT4_G32, "int4_g32", __VA_ARGS__)                                                                                 \
  X(INT4_G128, "int4_g128", __VA_ARGS__)                                                                               \
  X(INT4Z_G32, "int4z_g32", __VA_ARGS__)                                                                               \
  X(INT4Z_G128, "int4z_g128", __VA_ARGS__)                                                                             \
  X(GPTQ_G32, "gptq_g32", __VA_ARGS__)                                                                                 \
  X(GPTQ_G128, "gptq_g128", __VA_ARGS__)                                                                               \
  X(AWQ_G32, "awq_g32", __VA_ARGS__)                                                                                   \
  X(AWQ_G128, "awq_g128", __VA_ARGS__)                                                                                 \
  X(Q8_0, "q8_0", __VA_ARGS__)                                                                                         \
  X(Q4_0, "q4_0", __VA_ARGS__)                                                                                         \
  X(Q4_K, "q4_k", __VA_ARGS__)                                                                                         \
  X(Q5_K, "q5_k", __VA_ARGS__)                                                                                         \
  X(Q6_K, "q6_k", __VA_ARGS__)                                                                                         \
  X(MXFP4_GGUF, "mxfp4_gguf", __VA_ARGS__)                                                                             \
  X(IQ4_NL, "iq4_nl", __VA_ARGS__)

typedef struct moi_vk_kernel {
  const char *name;
  moi_op op;         /* ROUTE, GEMM, ATTENTION */
  moi_format format; /* NONE: every format */
  moi_vk_needs needs;
  uint32_t m_max;  /* rows of an expert (query rows of a KV head) up to which it is meant; 0: no bound */
  uint32_t m_tile; /* rows of a work item */
  uint32_t n_tile; /* columns of a workgroup */
  uint32_t flags;  /* MOI_DETERMINISTIC | MOI_BATCH_INVARIANT, core's (core/choose.h) and the above */
  const char *shader; /* as moi_vk_shader names it */
} moi_vk_kernel;

extern const moi_vk_kernel moi_vk_kernels[];
extern const uint32_t moi_vk_kernel_count;

#endif
