/* Compiled as C and as C++: the Vulkan header alone, without Vulkan's own. */
#include <moiety_vulkan.h>

typedef char moi_vulkan_type_is_32_bit[sizeof(moi_vulkan_type) == 4 ? 1 : -1];
typedef char moi_vulkan_device_is_a_chain[offsetof(moi_vulkan_device, chain) == 0 ? 1 : -1];
typedef char moi_vulkan_choice_is_a_chain[offsetof(moi_vulkan_choice, chain) == 0 ? 1 : -1];
typedef char moi_vulkan_requirement_starts_with_its_size[offsetof(moi_vulkan_requirement, struct_size) == 0 ? 1 : -1];
typedef char moi_vulkan_handles_out_starts_with_its_size[offsetof(moi_vulkan_handles_out, struct_size) == 0 ? 1 : -1];

int main(void) {
  moi_vulkan_device device = MOI_VULKAN_DEVICE_INIT;
  moi_vulkan_choice choice = MOI_VULKAN_CHOICE_INIT;
  moi_vulkan_requirement requirement = MOI_VULKAN_REQUIREMENT_INIT;
  moi_vulkan_handles_out handles = MOI_VULKAN_HANDLES_INIT;
  return device.chain.type == choice.chain.type || requirement.struct_size == 0 || handles.struct_size == 0;
}
