#include "bench/rig/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/backend.h"

#if !defined(MOI_HAVE_VULKAN)

moi_device *moi_device_of(const moi_context *context, moi_status *status) {
  (void)context;
  *status = MOI_OK;
  return NULL;
}
void moi_device_forget(const moi_context *context) { (void)context; }
void moi_device_keep(moi_device *device, int keep) { (void)device, (void)keep; }
moi_status moi_device_stage(moi_device *device) {
  (void)device;
  return MOI_UNSUPPORTED;
}
double moi_device_busy(const moi_device *device) {
  (void)device;
  return 0;
}
double moi_device_read_rate(moi_device *device) { return device ? -1 : 0; }
double moi_device_fma_rate(moi_device *device) { return device ? -1 : 0; }
moi_status moi_mirror_begin(moi_device *device, moi_mirror **out) {
  (void)device;
  *out = NULL;
  return MOI_UNSUPPORTED;
}
moi_queue moi_mirror_queue(const moi_mirror *mirror) {
  (void)mirror;
  return (moi_queue){NULL};
}
moi_status moi_mirror_end(moi_mirror *mirror, moi_status recorded) {
  (void)mirror;
  return recorded;
}
moi_buffer moi_mirror_view(moi_mirror *mirror, moi_buffer view) {
  (void)mirror;
  return view;
}

#else

#include <moiety_vulkan.h>
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

/* A buffer that runs take their copies from; mapped for good, or NULL where the host cannot see it. */
typedef struct chunk {
  struct chunk *next;
  VkBuffer buffer;
  VkDeviceMemory memory;
  uint8_t *mapped;
  uint64_t address;
  size_t size, used;
} chunk;

/* A block of an arena on the device. */
typedef struct copy {
  uint8_t *host;
  size_t before, size, at; /* at: of the block's first byte in the chunk; before: guard bytes in front of it */
  chunk *in;
  int is_table; /* of addresses: translated, and not copied back */
} copy;

/* Bytes on their way between a chunk and the staging buffer. */
typedef struct piece {
  chunk *in;
  size_t at, size, staged; /* where in the chunk, and in the staging buffer */
  uint8_t *out;            /* where they go on the host; NULL: they go to the device */
} piece;

enum { ALIGN = 256, CHUNK = 64 << 20, MAX_PIECES = 64, STAGING = 32 << 20 };

/* In ascending order of host, so that a run of many kept blocks finds its own in no time. */
typedef struct copies {
  copy *list;
  size_t n, capacity;
} copies;

struct moi_device {
  moi_device *next;
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
  double stamp_seconds, busy;
  chunk *chunks;
  chunk *staging; /* where the host's copies pass through if chunks are not mapped; NULL: they are */
  piece pieces[MAX_PIECES];
  size_t n_pieces, staged;
  int keep;
  copies kept;
  VkPipelineLayout layout; /* of the two shaders that measure */
  VkPipeline pipelines[2];
  chunk *stretch; /* what is read */
  uint32_t rounds;
};

static moi_device *devices; /* one thread: the program's and the tests' main one */

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
static int is_card(const moi_device *d) {
  PFN_vkGetInstanceProcAddr get = (PFN_vkGetInstanceProcAddr)d->handles.get_instance_proc_addr;
  PFN_vkGetPhysicalDeviceProperties properties =
      (PFN_vkGetPhysicalDeviceProperties)get(d->handles.instance, "vkGetPhysicalDeviceProperties");
  VkPhysicalDeviceProperties p;
  if (!properties) return 0;
  properties(d->handles.physical_device, &p);
  return p.deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU || p.deviceType == VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU;
}

/* The queue's clock, if it has one. */
static moi_status open_stamps(moi_device *d) {
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

static moi_status open_device(moi_device *d) {
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
  return status || !is_card(d) ? status : moi_device_stage(d);
}

static void free_chunk(moi_device *d, chunk *c) {
  if (!c) return;
  if (c->buffer) d->DestroyBuffer(d->device, c->buffer, NULL);
  if (c->memory) d->FreeMemory(d->device, c->memory, NULL);
  free(c);
}

static void close_device(moi_device *d) {
  for (int i = 0; i < 2; i++)
    if (d->pipelines[i]) d->DestroyPipeline(d->device, d->pipelines[i], NULL);
  if (d->layout) d->DestroyPipelineLayout(d->device, d->layout, NULL);
  free_chunk(d, d->stretch);
  free_chunk(d, d->staging);
  if (d->stamps) d->DestroyQueryPool(d->device, d->stamps, NULL);
  if (d->fence) d->DestroyFence(d->device, d->fence, NULL);
  if (d->pool) d->DestroyCommandPool(d->device, d->pool, NULL);
  for (chunk *c = d->chunks, *next; c; c = next) {
    next = c->next;
    free_chunk(d, c);
  }
  free(d->kept.list);
  free(d);
}

moi_device *moi_device_of(const moi_context *context, moi_status *status) {
  *status = MOI_OK;
  if (!context->ops->by_handle) return NULL;
  for (moi_device *d = devices; d; d = d->next)
    if (d->context == context) return d;
  moi_device *d = calloc(1, sizeof *d);
  if (!d) {
    *status = moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a device");
    return NULL;
  }
  d->context = context;
  *status = open_device(d);
  if (*status) {
    close_device(d);
    return NULL;
  }
  d->next = devices;
  devices = d;
  return d;
}

void moi_device_forget(const moi_context *context) {
  for (moi_device **at = &devices; *at; at = &(*at)->next)
    if ((*at)->context == context) {
      moi_device *d = *at;
      *at = d->next;
      close_device(d);
      return;
    }
}

/* ---- memory */

/* The first type that has what is wanted and liked, else one that has what is wanted; UINT32_MAX if none does. */
static uint32_t memory_type(const moi_device *d, uint32_t allowed, VkMemoryPropertyFlags wanted,
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

static moi_status make_chunk(moi_device *d, size_t size, VkMemoryPropertyFlags wanted, VkMemoryPropertyFlags liked,
                             chunk *c) {
  VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                             .size = size,
                             .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT |
                                      VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                                      VK_BUFFER_USAGE_TRANSFER_SRC_BIT};
  TRY_VK(d->CreateBuffer(d->device, &info, NULL, &c->buffer), "vkCreateBuffer");
  VkMemoryRequirements needs;
  d->GetBufferMemoryRequirements(d->device, c->buffer, &needs);
  VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                     .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
  VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                   .pNext = &flags,
                                   .allocationSize = needs.size,
                                   .memoryTypeIndex = memory_type(d, needs.memoryTypeBits, wanted, liked)};
  if (allocate.memoryTypeIndex == UINT32_MAX)
    return moi_fail(MOI_UNSUPPORTED, "the rig", "the device has no memory for storage buffers of the kind 0x%x",
                    wanted);
  TRY_VK(d->AllocateMemory(d->device, &allocate, NULL, &c->memory), "vkAllocateMemory");
  TRY_VK(d->BindBufferMemory(d->device, c->buffer, c->memory, 0), "vkBindBufferMemory");
  if (wanted & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT) {
    void *mapped;
    TRY_VK(d->MapMemory(d->device, c->memory, 0, VK_WHOLE_SIZE, 0, &mapped), "vkMapMemory");
    c->mapped = mapped;
  }
  VkBufferDeviceAddressInfo address = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = c->buffer};
  c->address = d->GetBufferDeviceAddress(d->device, &address);
  c->size = size;
  return MOI_OK;
}

/* A chunk of the kind that runs work in. */
static chunk *take_chunk(moi_device *d, size_t size, moi_status *status) {
  chunk *c = calloc(1, sizeof *c);
  if (!c) {
    *status = moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a chunk");
    return NULL;
  }
  *status = d->staging ? make_chunk(d, size, LOCAL, 0, c) : make_chunk(d, size, HOST, LOCAL, c);
  if (!*status) return c;
  free_chunk(d, c);
  return NULL;
}

moi_status moi_device_stage(moi_device *d) {
  if (d->staging) return MOI_OK;
  chunk *c = calloc(1, sizeof *c);
  if (!c) return moi_fail(MOI_OUT_OF_MEMORY, "the rig", "the staging buffer");
  moi_status status = make_chunk(d, STAGING, HOST, CACHED, c);
  if (status) {
    free_chunk(d, c);
    return status;
  }
  d->staging = c;
  return MOI_OK;
}

static moi_status submit(moi_device *d, VkCommandBuffer commands) {
  VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
  TRY_VK(d->QueueSubmit(d->handles.queue, 1, &info, d->fence), "vkQueueSubmit");
  TRY_VK(d->WaitForFences(d->device, 1, &d->fence, VK_TRUE, UINT64_MAX), "vkWaitForFences");
  TRY_VK(d->ResetFences(d->device, 1, &d->fence), "vkResetFences");
  return MOI_OK;
}

/* The pieces that wait in the staging buffer reach where they go. */
static moi_status flush(moi_device *d) {
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
    d->CmdCopyBuffer(d->transfers, p->out ? p->in->buffer : d->staging->buffer,
                     p->out ? d->staging->buffer : p->in->buffer, 1, &region);
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

/* Bytes of a chunk go to `out`, which must live until the flush, or where that is NULL come from `from`. Between two
 * flushes no byte of a chunk is written twice. */
static moi_status move(moi_device *d, chunk *in, size_t at, const uint8_t *from, uint8_t *out, size_t size) {
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

/* size bytes at an offset that is `phase` modulo 256 */
static moi_status take(moi_device *d, size_t size, size_t phase, chunk **in, size_t *at) {
  for (chunk *c = d->chunks; c; c = c->next) {
    size_t begin = ((c->used + ALIGN - 1) & ~(size_t)(ALIGN - 1)) + phase;
    if (begin > c->size || size > c->size - begin) continue;
    *in = c;
    *at = begin;
    c->used = begin + size;
    return MOI_OK;
  }
  moi_status status;
  chunk *c = take_chunk(d, size + 2 * ALIGN > CHUNK ? (size + 2 * ALIGN + 3) & ~(size_t)3 : CHUNK, &status);
  if (!c) return status;
  c->next = d->chunks;
  d->chunks = c;
  *in = c;
  *at = phase;
  c->used = phase + size;
  return MOI_OK;
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

static moi_status open_peaks(moi_device *d) {
  if (d->stretch) return MOI_OK;
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
  chunk *c = take_chunk(d, STRETCH, &status);
  if (!c) return status;
  VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  VkResult result = d->BeginCommandBuffer(d->transfers, &begin);
  if (result == VK_SUCCESS) {
    d->CmdFillBuffer(d->transfers, c->buffer, 0, STRETCH, 0x5a5a5a5au);
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
static double seconds_of(moi_device *d, int which, uint32_t rounds) {
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

double moi_device_read_rate(moi_device *d) {
  double best = 0;
  if (open_peaks(d)) return 0;
  for (int i = 0; i < 3; i++) {
    double seconds = seconds_of(d, 0, 0);
    if (seconds > 0 && STRETCH / seconds > best) best = STRETCH / seconds;
  }
  return best;
}

double moi_device_fma_rate(moi_device *d) {
  double best = 0;
  if (open_peaks(d)) return 0;
  for (int i = 0; i < 3; i++) {
    double seconds = seconds_of(d, 1, d->rounds), ops = 32.0 * d->rounds * GROUPS * THREADS;
    if (seconds > 0 && ops / seconds > best) best = ops / seconds;
    while (seconds > 0 && seconds < 0.01 && d->rounds < 1u << 20) d->rounds *= 2, seconds *= 2; /* the next is longer */
  }
  return best;
}

/* ---- a run on copies */

struct moi_mirror {
  moi_device *device;
  copies own, *all; /* all: the device's kept ones, or own */
  moi_status status;
  char text[256]; /* why, if it is not MOI_OK */
};

void moi_device_keep(moi_device *d, int keep) {
  for (chunk **at = &d->chunks; *at;) {
    chunk *c = *at;
    c->used = 0;
    if (c->size > CHUNK) { /* made to measure for a block that is gone */
      *at = c->next;
      free_chunk(d, c);
    } else {
      at = &c->next;
    }
  }
  d->kept.n = 0;
  d->keep = keep;
}

moi_status moi_mirror_begin(moi_device *d, moi_mirror **out) {
  *out = NULL;
  for (chunk *c = d->chunks; c && !d->keep; c = c->next) c->used = 0;
  TRY_VK(d->ResetCommandPool(d->device, d->pool, 0), "vkResetCommandPool");
  VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                    .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
  TRY_VK(d->BeginCommandBuffer(d->commands, &begin), "vkBeginCommandBuffer");
  moi_mirror *m = calloc(1, sizeof *m);
  if (!m) return moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a mirror");
  m->device = d;
  m->all = d->keep ? &d->kept : &m->own;
  if (d->stamps) {
    d->CmdResetQueryPool(d->commands, d->stamps, 0, 2);
    d->CmdWriteTimestamp(d->commands, VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, d->stamps, 0);
  }
  *out = m;
  return MOI_OK;
}

moi_queue moi_mirror_queue(const moi_mirror *m) { return (moi_queue){m->device->commands}; }

double moi_device_busy(const moi_device *d) { return d->busy; }

static copy *copy_of(moi_mirror *m, const uint8_t *p);

/* The address of a host pointer's copy; 0 for NULL and on failure. */
static uint64_t translate(moi_mirror *m, uint64_t host) {
  if (!host) return 0;
  copy *c = copy_of(m, (const uint8_t *)(uintptr_t)host);
  return c ? c->in->address + c->at + ((uintptr_t)host - (uintptr_t)c->host) : 0;
}

/* Where the copy of the block that holds p is, or has to be put in: the first whose block ends behind p (an
 * empty one, or the end of one, is told by the arena). */
static size_t place_of(const copies *all, const uint8_t *p) {
  size_t low = 0, high = all->n;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (all->list[middle].host + all->list[middle].size <= p) low = middle + 1;
    else high = middle;
  }
  return low;
}

static copy *copy_of(moi_mirror *m, const uint8_t *p) {
  copies *all = m->all;
  if (m->status) return NULL;
  size_t index = place_of(all, p);
  if (index < all->n && p >= all->list[index].host) return &all->list[index];
  moi_block block;
  if (!moi_arena_find(p, &block)) {
    m->status = moi_fail(MOI_INTERNAL, "the rig", "a view names memory that is in no arena");
    return NULL;
  }
  index = place_of(all, block.ptr);
  for (size_t i = index > 2 ? index - 2 : 0; i < all->n && all->list[i].host <= block.ptr; i++)
    if (all->list[i].host == block.ptr) return &all->list[i];
  if (all->n == all->capacity) {
    all->capacity = all->capacity ? 2 * all->capacity : 32;
    all->list = realloc(all->list, all->capacity * sizeof *all->list);
    if (!all->list) exit(3);
  }
  size_t before = block.guard, whole = before + block.size + block.tail + 3; /* 3: shaders read whole words */
  copy c = {.host = block.ptr,
            .before = before,
            .size = block.size + block.tail,
            .is_table = !strcmp(block.name, "an address table")};
  size_t begin = 0;
  m->status = take(m->device, whole, ((uintptr_t)block.ptr - before) % 256, &c.in, &begin);
  if (m->status) return NULL;
  c.at = begin + before;
  memmove(&all->list[index + 1], &all->list[index], (all->n - index) * sizeof *all->list);
  all->list[index] = c;
  all->n++;
  uint8_t *table = NULL;
  if (c.is_table) {
    table = malloc(before + c.size);
    if (!table) exit(3);
    memcpy(table, block.ptr - before, before + c.size);
    for (size_t i = 0; i < block.size / 8; i++) {
      uint64_t address;
      memcpy(&address, block.ptr + 8 * i, 8);
      address = translate(m, address);
      memcpy(table + before + 8 * i, &address, 8);
    }
  }
  if (!m->status) m->status = move(m->device, c.in, begin, table ? table : block.ptr - before, NULL, before + c.size);
  free(table);
  if (m->status) return NULL;
  for (index = 0; all->list[index].host != block.ptr; index++) continue; /* a table's own copies may have moved it */
  return &all->list[index];
}

moi_buffer moi_mirror_view(moi_mirror *m, moi_buffer view) {
  if (!view.ptr) return view;
  const uint8_t *p = (const uint8_t *)view.ptr + view.offset;
  copy *c = copy_of(m, p);
  moi_buffer out = {.size = view.size};
  if (!c && !m->text[0]) snprintf(m->text, sizeof m->text, "%s", moi_last_error());
  if (!c) return out;
  out.handle = (uint64_t)(uintptr_t)c->in->buffer;
  out.offset = c->at + (size_t)(p - c->host);
  return out;
}

moi_status moi_mirror_end(moi_mirror *m, moi_status recorded) {
  moi_device *d = m->device;
  moi_status status = recorded;
  if (m->status) status = moi_fail(m->status, "the rig", "%s", m->text); /* an absent view is only what came of it */
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
  d->busy = 0;
  if (!status && d->stamps &&
      d->GetQueryPoolResults(d->device, d->stamps, 0, 2, sizeof stamps, stamps, 8, VK_QUERY_RESULT_64_BIT) ==
          VK_SUCCESS)
    d->busy = (double)(stamps[1] - stamps[0]) * d->stamp_seconds;
  for (size_t i = 0; i < m->own.n && !status; i++) {
    const copy *c = &m->own.list[i];
    if (!c->is_table) status = move(d, c->in, c->at - c->before, NULL, c->host - c->before, c->before + c->size);
  }
  if (!status) status = flush(d);
  free(m->own.list);
  free(m);
  return status;
}

#endif

/* ---- args */

#define VIEW(b) b = moi_mirror_view(m, b)

void moi_mirror_weights(moi_mirror *m, moi_weights *w) {
  VIEW(w->data);
  VIEW(w->scales);
  VIEW(w->zeros);
  VIEW(w->global_scale);
  VIEW(w->bias);
}

void moi_mirror_route(moi_mirror *m, moi_route_args *a) {
  moi_buffer *views[] = {&a->n_tokens_device, &a->hidden,          &a->router,    &a->logits,       &a->router_bias,
                         &a->select_bias,     &a->select_bias_alt, &a->alt_mask,  &a->expert_scale, &a->norm_weight,
                         &a->hash_table,      &a->token_ids,       &a->ids,       &a->weights,      &a->counts,
                         &a->offsets,         &a->permutation,     &a->logits_out};
  for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) *views[i] = moi_mirror_view(m, *views[i]);
}

void moi_mirror_experts(moi_mirror *m, moi_experts_args *a, moi_weights weights[3]) {
  VIEW(a->n_tokens_device);
  VIEW(a->input);
  VIEW(a->ids);
  VIEW(a->weights);
  VIEW(a->output);
  const moi_weights **from[3] = {&a->gate, &a->up, &a->down};
  for (int i = 0; i < 3; i++) {
    if (!*from[i]) continue;
    weights[i] = **from[i];
    moi_mirror_weights(m, &weights[i]);
    *from[i] = &weights[i];
  }
}

void moi_mirror_cache(moi_mirror *m, moi_kv_cache *c) {
  VIEW(c->k);
  VIEW(c->v);
  VIEW(c->page_table);
  VIEW(c->start);
  VIEW(c->k_scale);
  VIEW(c->v_scale);
}
