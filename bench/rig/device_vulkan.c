/* The rig on Vulkan devices. */
#include "bench/rig/device_kind.h"

#if defined(MOI_HAVE_VULKAN)

#include <moiety_vulkan.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vulkan/shaders.h"

#ifndef VK_NO_PROTOTYPES
#define VK_NO_PROTOTYPES
#endif
#include <vulkan/vulkan_core.h>

#define FUNCTIONS(X)                                                                                                   \
  X(CreateBuffer)                                                                                                      \
  X(DestroyBuffer) X(GetBufferMemoryRequirements) X(AllocateMemory) X(FreeMemory) X(BindBufferMemory) X(MapMemory)     \
      X(GetBufferDeviceAddress) X(CreateCommandPool) X(DestroyCommandPool) X(AllocateCommandBuffers)                   \
          X(ResetCommandPool) X(BeginCommandBuffer) X(EndCommandBuffer) X(CmdPipelineBarrier) X(QueueSubmit)           \
              X(CreateFence) X(DestroyFence) X(WaitForFences) X(ResetFences) X(CreateShaderModule)                     \
                  X(DestroyShaderModule) X(CreatePipelineLayout) X(DestroyPipelineLayout) X(CreateComputePipelines)    \
                      X(DestroyPipeline) X(CmdBindPipeline) X(CmdPushConstants) X(CmdDispatch) X(CmdCopyBuffer)        \
                          X(CmdFillBuffer) X(CreateQueryPool) X(DestroyQueryPool) X(CmdResetQueryPool)                 \
                              X(CmdWriteTimestamp) X(GetQueryPoolResults)

/* A buffer, mapped for good where the host can see it; `own` of a chunk is its memory. */
static VkBuffer buffer_of(const moi_chunk *c) { return (VkBuffer)(uintptr_t)c->handle; }

/* Bytes on their way between a chunk and the staging buffer. */
typedef struct piece {
  moi_chunk *in;
  size_t at, size, staged; /* where in the chunk, and in the staging buffer */
  uint8_t *out;            /* where they go on the host; NULL: they go to the device */
} piece;

enum { MAX_PIECES = 64, STAGING = 32 << 20 };

typedef struct device {
  const moi_context *context;
  moi_vulkan_handles_out handles;
  VkDevice device;
  VkPhysicalDeviceMemoryProperties memory;
#define X(name) PFN_vk##name name;
  FUNCTIONS(X)
#undef X
  VkCommandPool pool;
  VkCommandBuffer commands, transfers;
  VkFence fence;
  VkQueryPool stamps; /* before and after a run; null if the queue has no clock */
  double stamp_seconds;
  moi_chunk *staging; /* where the host's copies pass through if chunks are not mapped; NULL: they are */
  piece pieces[MAX_PIECES];
  size_t n_pieces, staged;
  VkPipelineLayout layout; /* of the two shaders that measure */
  VkPipeline pipelines[2];
  moi_chunk *stretch; /* what is read */
  uint32_t rounds;
} device;

static moi_status failed(const char *what, VkResult result) {
  return moi_fail(result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY ? MOI_OUT_OF_MEMORY
                                                                                                   : MOI_DEVICE_ERROR,
                  "the rig", "%s: VkResult %d", what, (int)result);
}
#define TRY_VK(call, what)                                                                                             \
  do {                                                                                                                 \
    VkResult try_result = (call);                                                                                      \
    if (try_result != VK_SUCCESS) return failed(what, try_result);                                                     \
  } while (0)

/* Whether chunks have to be staged: a card's own memory, which is what runs are to be measured in, is not the host's,
 * and where it can be mapped it is slow to read. */
static int is_card(const device *d) {
  PFN_vkGetInstanceProcAddr get = (PFN_vkGetInstanceProcAddr)d->handles.get_instance_proc_addr;
  PFN_vkGetPhysicalDeviceProperties properties =
      (PFN_vkGetPhysicalDeviceProperties)get(d->handles.instance, "vkGetPhysicalDeviceProperties");
  VkPhysicalDeviceProperties p;
  if (!properties) return 0;
  properties(d->handles.physical_device, &p);
  return p.deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU || p.deviceType == VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU;
}

/* The queue's clock, if it has one. */
static moi_status open_stamps(device *d) {
  PFN_vkGetInstanceProcAddr get = (PFN_vkGetInstanceProcAddr)d->handles.get_instance_proc_addr;
  PFN_vkGetPhysicalDeviceQueueFamilyProperties families = (PFN_vkGetPhysicalDeviceQueueFamilyProperties)get(
      d->handles.instance, "vkGetPhysicalDeviceQueueFamilyProperties");
  PFN_vkGetPhysicalDeviceProperties properties =
      (PFN_vkGetPhysicalDeviceProperties)get(d->handles.instance, "vkGetPhysicalDeviceProperties");
  VkQueueFamilyProperties list[32];
  VkPhysicalDeviceProperties p;
  uint32_t n = 32;
  if (!families || !properties) return MOI_OK;
  families(d->handles.physical_device, &n, list);
  properties(d->handles.physical_device, &p);
  if (d->handles.queue_family >= n || list[d->handles.queue_family].timestampValidBits < 32) return MOI_OK;
  VkQueryPoolCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = 2};
  TRY_VK(d->CreateQueryPool(d->device, &info, NULL, &d->stamps), "vkCreateQueryPool");
  d->stamp_seconds = (double)p.limits.timestampPeriod * 1e-9;
  return MOI_OK;
}

static moi_status stage(void *own);

static moi_status open_device(device *d) {
  d->handles = (moi_vulkan_handles_out)MOI_VULKAN_HANDLES_INIT;
  moi_status status = moi_vulkan_handles(d->context, &d->handles);
  if (status) return status;
  if (!d->handles.queue) return moi_fail(MOI_UNSUPPORTED, "the rig", "context: is on an engine's device");
  d->device = d->handles.device;
  PFN_vkGetInstanceProcAddr get = (PFN_vkGetInstanceProcAddr)d->handles.get_instance_proc_addr;
  PFN_vkGetDeviceProcAddr of = (PFN_vkGetDeviceProcAddr)get(d->handles.instance, "vkGetDeviceProcAddr");
  PFN_vkGetPhysicalDeviceMemoryProperties memory =
      (PFN_vkGetPhysicalDeviceMemoryProperties)get(d->handles.instance, "vkGetPhysicalDeviceMemoryProperties");
  if (!of || !memory) return failed("vkGetInstanceProcAddr", VK_ERROR_INITIALIZATION_FAILED);
  memory(d->handles.physical_device, &d->memory);
#define X(name)                                                                                                        \
  d->name = (PFN_vk##name)of(d->device, "vk" #name);                                                                   \
  if (!d->name) return failed("vk" #name, VK_ERROR_INITIALIZATION_FAILED);
  FUNCTIONS(X)
#undef X
  VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                  .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                  .queueFamilyIndex = d->handles.queue_family};
  TRY_VK(d->CreateCommandPool(d->device, &pool, NULL, &d->pool), "vkCreateCommandPool");
  VkCommandBufferAllocateInfo commands = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                          .commandPool = d->pool,
                                          .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                          .commandBufferCount = 1};
  TRY_VK(d->AllocateCommandBuffers(d->device, &commands, &d->commands), "vkAllocateCommandBuffers");
  TRY_VK(d->AllocateCommandBuffers(d->device, &commands, &d->transfers), "vkAllocateCommandBuffers");
  VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
  TRY_VK(d->CreateFence(d->device, &fence, NULL, &d->fence), "vkCreateFence");
  status = open_stamps(d);
  return status || !is_card(d) ? status : stage(d);
}

static void drop(void *own, moi_chunk *c) {
  device *d = own;
  if (c->handle) d->DestroyBuffer(d->device, buffer_of(c), NULL);
  if (c->own) d->FreeMemory(d->device, c->own, NULL);
}

static void free_chunk(device *d, moi_chunk *c) {
  if (!c) return;
  drop(d, c);
  free(c);
}

static void close_vulkan(void *own) {
  device *d = own;
  for (int i = 0; i < 2; i++)
    if (d->pipelines[i]) d->DestroyPipeline(d->device, d->pipelines[i], NULL);
  if (d->layout) d->DestroyPipelineLayout(d->device, d->layout, NULL);
  free_chunk(d, d->stretch);
  free_chunk(d, d->staging);
  if (d->stamps) d->DestroyQueryPool(d->device, d->stamps, NULL);
  if (d->fence) d->DestroyFence(d->device, d->fence, NULL);
  if (d->pool) d->DestroyCommandPool(d->device, d->pool, NULL);
  free(d);
}

static moi_status open_vulkan(const moi_context *context, void **own) {
  device *d = calloc(1, sizeof *d);
  if (!d) return moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a device");
  d->context = context;
  *own = d;
  return open_device(d);
}

/* ---- memory */

/* The first type that has what is wanted and liked, else one that has what is wanted; UINT32_MAX if none does. */
static uint32_t memory_type(const device *d, uint32_t allowed, VkMemoryPropertyFlags wanted,
                            VkMemoryPropertyFlags liked) {
  uint32_t found = UINT32_MAX;
  for (uint32_t i = 0; i < d->memory.memoryTypeCount; i++) {
    VkMemoryPropertyFlags flags = d->memory.memoryTypes[i].propertyFlags;
    if (!(allowed >> i & 1) || (flags & wanted) != wanted) continue;
    if ((flags & liked) == liked) return i;
    if (found == UINT32_MAX) found = i;
  }
  return found;
}

enum {
  HOST = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
  LOCAL = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
  CACHED = VK_MEMORY_PROPERTY_HOST_CACHED_BIT
};

static moi_status make_chunk(device *d, size_t size, VkMemoryPropertyFlags wanted, VkMemoryPropertyFlags liked,
                             moi_chunk *c) {
  VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                             .size = size,
                             .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT |
                                      VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT};
  if (d->handles.addresses) info.usage |= VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
  VkBuffer buffer;
  VkDeviceMemory memory;
  TRY_VK(d->CreateBuffer(d->device, &info, NULL, &buffer), "vkCreateBuffer");
  c->handle = (uint64_t)(uintptr_t)buffer;
  VkMemoryRequirements needs;
  d->GetBufferMemoryRequirements(d->device, buffer_of(c), &needs);
  VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                     .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
  VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                   .pNext = d->handles.addresses ? &flags : NULL,
                                   .allocationSize = needs.size,
                                   .memoryTypeIndex = memory_type(d, needs.memoryTypeBits, wanted, liked)};
  if (allocate.memoryTypeIndex == UINT32_MAX)
    return moi_fail(MOI_UNSUPPORTED, "the rig", "the device has no memory for storage buffers of the kind 0x%x",
                    wanted);
  TRY_VK(d->AllocateMemory(d->device, &allocate, NULL, &memory), "vkAllocateMemory");
  c->own = memory;
  TRY_VK(d->BindBufferMemory(d->device, buffer_of(c), memory, 0), "vkBindBufferMemory");
  if (wanted & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT) {
    void *mapped;
    TRY_VK(d->MapMemory(d->device, memory, 0, VK_WHOLE_SIZE, 0, &mapped), "vkMapMemory");
    c->mapped = mapped;
  }
  VkBufferDeviceAddressInfo address = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = buffer_of(c)};
  if (d->handles.addresses) c->address = d->GetBufferDeviceAddress(d->device, &address);
  c->size = size;
  return MOI_OK;
}

static moi_status stage(void *own) {
  device *d = own;
  if (d->staging) return MOI_OK;
  moi_chunk *c = calloc(1, sizeof *c);
  if (!c) return moi_fail(MOI_OUT_OF_MEMORY, "the rig", "the staging buffer");
  moi_status status = make_chunk(d, STAGING, HOST, CACHED, c);
  if (status) {
    free_chunk(d, c);
    return status;
  }
  d->staging = c;
  return MOI_OK;
}

static moi_status submit(device *d, VkCommandBuffer commands) {
  VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
  TRY_VK(d->QueueSubmit(d->handles.queue, 1, &info, d->fence), "vkQueueSubmit");
  TRY_VK(d->WaitForFences(d->device, 1, &d->fence, VK_TRUE, UINT64_MAX), "vkWaitForFences");
  TRY_VK(d->ResetFences(d->device, 1, &d->fence), "vkResetFences");
  return MOI_OK;
}

/* The pieces that wait in the staging buffer reach where they go. */
static moi_status flush(void *own) {
  device *d = own;
  if (!d->n_pieces) return MOI_OK;
  VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                    .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
  size_t n = d->n_pieces;
  d->n_pieces = d->staged = 0;
  TRY_VK(d->BeginCommandBuffer(d->transfers, &begin), "vkBeginCommandBuffer");
  VkMemoryBarrier before = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                            .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                            .dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT};
  d->CmdPipelineBarrier(d->transfers, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                        VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 1, &before, 0, NULL, 0, NULL);
  for (size_t i = 0; i < n; i++) {
    const piece *p = &d->pieces[i];
    VkBufferCopy region = {p->out ? p->at : p->staged, p->out ? p->staged : p->at, p->size};
    d->CmdCopyBuffer(d->transfers, p->out ? buffer_of(p->in) : buffer_of(d->staging),
                     p->out ? buffer_of(d->staging) : buffer_of(p->in), 1, &region);
  }
  VkMemoryBarrier after = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                           .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                           .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  d->CmdPipelineBarrier(d->transfers, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &after, 0, NULL,
                        0, NULL);
  TRY_VK(d->EndCommandBuffer(d->transfers), "vkEndCommandBuffer");
  moi_status status = submit(d, d->transfers);
  for (size_t i = 0; i < n && !status; i++)
    if (d->pieces[i].out) memcpy(d->pieces[i].out, d->staging->mapped + d->pieces[i].staged, d->pieces[i].size);
  return status;
}

static moi_status move(void *own, moi_chunk *in, size_t at, const uint8_t *from, uint8_t *out, size_t size) {
  device *d = own;
  if (in->mapped) {
    if (out) memcpy(out, in->mapped + at, size);
    else memcpy(in->mapped + at, from, size);
    return MOI_OK;
  }
  for (size_t done = 0, n; done < size; done += n) {
    if (d->n_pieces == MAX_PIECES || d->staged == STAGING) {
      moi_status status = flush(d);
      if (status) return status;
    }
    n = size - done < STAGING - d->staged ? size - done : STAGING - d->staged;
    if (!out) memcpy(d->staging->mapped + d->staged, from + done, n);
    d->pieces[d->n_pieces++] = (piece){in, at + done, n, d->staged, out ? out + done : NULL};
    d->staged += n;
  }
  return MOI_OK;
}

static moi_status make(void *own, size_t size, moi_chunk *c) {
  device *d = own;
  return d->staging ? make_chunk(d, size, LOCAL, 0, c) : make_chunk(d, size, HOST, LOCAL, c);
}

/* ---- what the device gives */

typedef struct peak_push {
  uint64_t buffer, sink;
  uint32_t n_words, rounds;
} peak_push;

enum { STRETCH = 256 << 20, GROUPS = 1024, THREADS = 256 };

static const moi_vk_shader *shader_of(const char *name) {
  for (uint32_t i = 0; i < moi_bench_shader_count; i++)
    if (!strcmp(moi_bench_shaders[i].name, name)) return &moi_bench_shaders[i];
  return NULL;
}

static moi_status open_peaks(device *d) {
  if (d->stretch) return MOI_OK;
  if (!d->handles.addresses)
    return moi_fail(MOI_UNSUPPORTED, "the rig", "peaks are measured by device addresses, which this device has not");
  VkPushConstantRange range = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = sizeof(peak_push)};
  VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                       .pushConstantRangeCount = 1,
                                       .pPushConstantRanges = &range};
  if (!d->layout) TRY_VK(d->CreatePipelineLayout(d->device, &layout, NULL, &d->layout), "vkCreatePipelineLayout");
  for (int i = 0; i < 2; i++) {
    const moi_vk_shader *shader = shader_of(i ? "peak_fma" : "peak_read");
    VkShaderModuleCreateInfo module = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = shader->n_words * 4, .pCode = shader->words};
    VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                  .pName = "main"},
                                        .layout = d->layout};
    if (d->pipelines[i]) continue;
    TRY_VK(d->CreateShaderModule(d->device, &module, NULL, &info.stage.module), "vkCreateShaderModule");
    VkResult result = d->CreateComputePipelines(d->device, VK_NULL_HANDLE, 1, &info, NULL, &d->pipelines[i]);
    d->DestroyShaderModule(d->device, info.stage.module, NULL);
    TRY_VK(result, "vkCreateComputePipelines");
  }
  moi_status status;
  moi_chunk *c = calloc(1, sizeof *c);
  if (!c) return moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a chunk");
  status = d->staging ? make_chunk(d, STRETCH, LOCAL, 0, c) : make_chunk(d, STRETCH, HOST, LOCAL, c);
  if (status) {
    free_chunk(d, c);
    return status;
  }
  VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  VkResult result = d->BeginCommandBuffer(d->transfers, &begin);
  if (result == VK_SUCCESS) {
    d->CmdFillBuffer(d->transfers, buffer_of(c), 0, STRETCH, 0x5a5a5a5au);
    result = d->EndCommandBuffer(d->transfers);
  }
  status = result == VK_SUCCESS ? submit(d, d->transfers) : failed("vkBeginCommandBuffer", result);
  if (status) {
    free_chunk(d, c);
    return status;
  }
  d->stretch = c;
  d->rounds = 64;
  return MOI_OK;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of one dispatch, from submission to the fence; 0 on failure. */
static double seconds_of(device *d, int which, uint32_t rounds) {
  VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  peak_push push = {d->stretch->address, d->stretch->address, STRETCH / 4, rounds};
  if (d->ResetCommandPool(d->device, d->pool, 0) || d->BeginCommandBuffer(d->commands, &begin)) return 0;
  d->CmdBindPipeline(d->commands, VK_PIPELINE_BIND_POINT_COMPUTE, d->pipelines[which]);
  d->CmdPushConstants(d->commands, d->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof push, &push);
  d->CmdDispatch(d->commands, GROUPS, 1, 1);
  if (d->EndCommandBuffer(d->commands)) return 0;
  double start = now();
  return submit(d, d->commands) ? 0 : now() - start;
}

static double read_rate(void *own) {
  device *d = own;
  double best = 0;
  if (open_peaks(d)) return 0;
  for (int i = 0; i < 3; i++) {
    double seconds = seconds_of(d, 0, 0);
    if (seconds > 0 && STRETCH / seconds > best) best = STRETCH / seconds;
  }
  return best;
}

static double ops_rate(void *own, moi_peak_kind kind) {
  device *d = own;
  double best = 0;
  if (kind != MOI_PEAK_F32 || open_peaks(d)) return 0;
  for (int i = 0; i < 3; i++) {
    double seconds = seconds_of(d, 1, d->rounds), ops = 32.0 * d->rounds * GROUPS * THREADS;
    if (seconds > 0 && ops / seconds > best) best = ops / seconds;
    while (seconds > 0 && seconds < 0.01 && d->rounds < 1u << 20) d->rounds *= 2, seconds *= 2; /* the next is longer */
  }
  return best;
}

/* ---- runs */

static moi_status begin(void *own) {
  device *d = own;
  TRY_VK(d->ResetCommandPool(d->device, d->pool, 0), "vkResetCommandPool");
  VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                   .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
  TRY_VK(d->BeginCommandBuffer(d->commands, &info), "vkBeginCommandBuffer");
  if (d->stamps) {
    d->CmdResetQueryPool(d->commands, d->stamps, 0, 2);
    d->CmdWriteTimestamp(d->commands, VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, d->stamps, 0);
  }
  return MOI_OK;
}

static moi_queue queue(void *own) { return (moi_queue){((device *)own)->commands}; }

static moi_status end(void *own, moi_status status, double *busy) {
  device *d = own;
  VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                             .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                             .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  d->CmdPipelineBarrier(d->commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier,
                        0, NULL, 0, NULL);
  if (d->stamps) d->CmdWriteTimestamp(d->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, d->stamps, 1);
  VkResult result = d->EndCommandBuffer(d->commands);
  if (!status && result != VK_SUCCESS) status = failed("vkEndCommandBuffer", result);
  if (!status) status = flush(d);
  d->n_pieces = d->staged = 0; /* of a run that failed */
  if (!status) status = submit(d, d->commands);
  uint64_t stamps[2];
  *busy = 0;
  if (!status && d->stamps &&
      d->GetQueryPoolResults(d->device, d->stamps, 0, 2, sizeof stamps, stamps, 8, VK_QUERY_RESULT_64_BIT) ==
          VK_SUCCESS)
    *busy = (double)(stamps[1] - stamps[0]) * d->stamp_seconds;
  return status;
}

const moi_device_kind moi_device_vulkan = {
    .open = open_vulkan,
    .close = close_vulkan,
    .stage = stage,
    .make = make,
    .drop = drop,
    .move = move,
    .flush = flush,
    .begin = begin,
    .queue = queue,
    .end = end,
    .read_rate = read_rate,
    .ops_rate = ops_rate,
};

#endif
