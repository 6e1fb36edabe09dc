/* moiety on Vulkan, inside the engine's own device.
 *
 * Two ways to a context:
 *   the engine's device   moi_vulkan_device in the context desc's `next` chain: instance, physical device, device, queue
 *                         family, vkGetInstanceProcAddr, and what was enabled when the device was made. moiety creates
 *                         pipelines on it and nothing else: it allocates no device memory, owns no queue, submits nothing.
 *   its own               without that struct the context makes an instance and a device of its own, for tools, tests and
 *                         small programs: `device` of the context desc, or a moi_vulkan_choice in the chain, says which.
 *                         moi_vulkan_handles() gives them out.
 *
 * Views name memory by `handle`, a VkBuffer, and `offset`. Buffers need the usages STORAGE_BUFFER and
 * SHADER_DEVICE_ADDRESS; the workspace INDIRECT_BUFFER and TRANSFER_DST as well. Their memory needs
 * VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT and may be of any type and size: addresses are 64 bits wide, and neither
 * maxStorageBufferRange nor 4 GiB is a bound. A buffer's size must be a multiple of 4: memory is read in words.
 * Tables of MOI_EXPERTS_TABLES hold VkDeviceAddress values; an expert whose entry is 0 adds nothing.
 *
 * Without bufferDeviceAddress, or where an engine has not enabled it, memory is reached by descriptors, which a run pushes:
 * VK_KHR_push_descriptor and shaderStorageBufferArrayDynamicIndexing must be enabled in its place. A context says so in a
 * warning. Every op, format and model runs, by one row for each, which is slower. Buffers need STORAGE_BUFFER, the workspace
 * the two others, and no SHADER_DEVICE_ADDRESS. A view must fit maxStorageBufferRange, counted from its offset rounded down
 * to minStorageBufferOffsetAlignment; so must the workspace; of weights each expert, and those of a GEMM 15 times as much.
 * MOI_UNSUPPORTED, with the figure, where one does not: of a plan whose weights or workspace cannot, of a run for its views,
 * and then nothing of it is recorded. MOI_EXPERTS_TABLES is MOI_UNSUPPORTED.
 *
 * Runs record into the VkCommandBuffer in moi_queue.native: of a queue family with compute, in the recording state,
 * outside a render pass. They allocate nothing, submit nothing and read nothing back: what depends on routing is dispatched
 * indirectly. The command buffer may be submitted any number of times, with new contents in the same buffers each time.
 * The bound compute pipeline and push constants are disturbed; descriptor sets are only without bufferDeviceAddress: those
 * of compute.
 *   entry   a run begins with a barrier from COMPUTE_SHADER and TRANSFER to COMPUTE_SHADER, DRAW_INDIRECT and TRANSFER:
 *           it sees what earlier compute and transfer commands of the queue wrote, and what the host wrote before the
 *           submission. What other stages wrote is the engine's to make visible to COMPUTE_SHADER.
 *           Without bufferDeviceAddress there are more barriers inside a run.
 *   exit    outputs and workspace are written by COMPUTE_SHADER (SHADER_WRITE); no barrier follows. Another run needs none;
 *           every other reader is the engine's to wait for.
 *
 * Threads: contexts and plans as moiety.h says; a VkCommandBuffer, as ever, by one thread at a time. The pipelines of a
 * plan are compiled while it is made, by up to 8 threads that have ended when the call returns; allocator and log are
 * called by the caller's thread alone. */
#ifndef MOIETY_VULKAN_H
#define MOIETY_VULKAN_H

#include <moiety.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Vulkan's types as this header writes them, so that it compiles without Vulkan's: dispatchable handles (VkInstance,
 * VkPhysicalDevice, VkDevice, VkQueue, VkCommandBuffer) and function pointers are void *. */
typedef void (*moi_vulkan_function)(void);

/* `type` of the structs below in a context desc's chain. At most one of the two. */
#define MOI_CHAIN_VULKAN_DEVICE 0x100u
#define MOI_CHAIN_VULKAN_CHOICE 0x101u

/* The engine's device. It outlives the context. */
typedef struct moi_vulkan_device {
  moi_chain chain; /* { MOI_CHAIN_VULKAN_DEVICE, 0, NULL } */
  moi_vulkan_function get_instance_proc_addr; /* PFN_vkGetInstanceProcAddr */
  void *instance;        /* VkInstance, of Vulkan 1.2 or newer */
  void *physical_device; /* VkPhysicalDevice */
  void *device;          /* VkDevice */
  uint32_t queue_family; /* of the command buffers that runs record into; needs VK_QUEUE_COMPUTE_BIT */
  uint32_t n_extensions; /* device extensions that were enabled: VK_KHR_push_descriptor is looked for */
  const char *const *extensions;
  const void *features;  /* VkPhysicalDeviceFeatures2 with its chain, or the first struct of such a chain, as given to
                            vkCreateDevice: what is not found in it counts as not enabled */
  const void *pipeline_cache; /* optional: what moi_vulkan_pipeline_cache gave; data of another device is ignored */
  uint64_t pipeline_cache_size; /* bytes */
} moi_vulkan_device;
#define MOI_VULKAN_DEVICE_INIT { { MOI_CHAIN_VULKAN_DEVICE, 0, NULL } }

typedef enum moi_vulkan_type {
  MOI_VULKAN_ANY = 0,
  MOI_VULKAN_INTEGRATED = 1, /* the values of VkPhysicalDeviceType */
  MOI_VULKAN_DISCRETE = 2,
  MOI_VULKAN_VIRTUAL = 3,
  MOI_VULKAN_CPU = 4,
  MOI_VULKAN_FORCE_32 = 0x7fffffff
} moi_vulkan_type;

/* Which device a context of its own takes: the first that agrees with all that is set here, and then `device` of the
 * context desc counts among those. MOI_NO_DEVICE if there is none. */
typedef struct moi_vulkan_choice {
  moi_chain chain; /* { MOI_CHAIN_VULKAN_CHOICE, 0, NULL } */
  const char *name;      /* part of its name; NULL: any */
  const uint8_t *uuid;   /* [16] deviceUUID; NULL: any */
  moi_vulkan_type type;
  uint32_t reserved;
  const void *pipeline_cache; /* as above */
  uint64_t pipeline_cache_size;
} moi_vulkan_choice;
#define MOI_VULKAN_CHOICE_INIT { { MOI_CHAIN_VULKAN_CHOICE, 0, NULL } }

/* One thing that a physical device should have, for the engine to enable before it makes its device. */
typedef struct moi_vulkan_requirement {
  size_t struct_size;
  const char *kind;   /* "version", "property" (nothing to enable), "feature" or "extension" */
  const char *name;   /* "1.2", "subgroupSupportedOperations", "bufferDeviceAddress", "VK_KHR_..." */
  const char *of;     /* of a property or feature: its struct, "VkPhysicalDeviceVulkan12Features"; else "" */
  const char *use;    /* what it is for */
  uint32_t required;  /* 1: moi_context_create refuses without it; 0: more rows, or faster ones, with it. What takes the
                         place of bufferDeviceAddress is required of a physical device that has not that */
  uint32_t supported; /* 1: this physical device has it */
} moi_vulkan_requirement;
#define MOI_VULKAN_REQUIREMENT_INIT { sizeof(moi_vulkan_requirement) }

/* Requirement `index` for a physical device. MOI_INVALID_ARGUMENT past the last one, or with a null handle. With
 * instance and physical_device both NULL nothing is asked of a device, and `supported` is 0. */
MOI_API moi_status moi_vulkan_requirements(moi_vulkan_function get_instance_proc_addr, void *instance,
                                           void *physical_device, uint32_t index, moi_vulkan_requirement *out);

/* What a context works on, for programs that let it make a device of its own: to allocate buffers and submit. */
typedef struct moi_vulkan_handles_out {
  size_t struct_size;
  moi_vulkan_function get_instance_proc_addr;
  void *instance, *physical_device, *device;
  void *queue; /* VkQueue, of the context's own device, else NULL; its users must agree on turns */
  uint32_t queue_family;
  uint32_t addresses; /* 1: bufferDeviceAddress is enabled; 0: memory by descriptors */
} moi_vulkan_handles_out;
#define MOI_VULKAN_HANDLES_INIT { sizeof(moi_vulkan_handles_out) }

/* MOI_INVALID_ARGUMENT if the context is not of MOI_BACKEND_VULKAN. The handles live as long as the context. */
MOI_API moi_status moi_vulkan_handles(const moi_context *context, moi_vulkan_handles_out *out);

/* The compiled pipelines of a context, for the next start of the program. data NULL: *size becomes the bytes needed.
 * Else *size is the room in data and becomes the bytes written; MOI_INVALID_ARGUMENT if the room is too small. */
MOI_API moi_status moi_vulkan_pipeline_cache(const moi_context *context, void *data, uint64_t *size);

#ifdef __cplusplus
}
#endif

#endif
