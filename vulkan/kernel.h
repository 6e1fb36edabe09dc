/* What a row of kernels.def is. */
#ifndef MOI_VULKAN_KERNEL_H
#define MOI_VULKAN_KERNEL_H

#include <moiety.h>

#define MOI_VK_WHOLE 0x1000u /* in flags: its workgroup is one subgroup, whose size must be certain */

/* What a row asks of a device beyond what the backend requires. */
typedef enum moi_vk_needs {
  MOI_VK_ANY,
  MOI_VK_CPU, /* chosen for software devices alone; runs on any whose subgroups are right for it */
  MOI_VK_GPU  /* chosen for real ones alone; runs on any */
} moi_vk_needs;

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
