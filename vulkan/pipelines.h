/* What a plan asks for while it is made. */
#ifndef MOI_VULKAN_PIPELINES_H
#define MOI_VULKAN_PIPELINES_H

#include "vulkan/shaders.h"
#include "vulkan/vulkan.h"

/* A moe plan with a router and a shared expert asks for 26. */
enum { MOI_VK_MAX_WANTS = 32, MOI_VK_MAX_CONSTANTS = 16 };

typedef struct moi_vk_key {
  const moi_vk_shader *shader;
  uint32_t constants[MOI_VK_MAX_CONSTANTS], n;
  uint32_t subgroup; /* the size that it asks for; 0: any */
} moi_vk_key;

typedef struct moi_vk_want {
  moi_vk_key key;
  VkPipeline *out;
} moi_vk_want;

struct moi_vk_wants {
  uint32_t n;
  moi_vk_want list[MOI_VK_MAX_WANTS];
};

#endif
