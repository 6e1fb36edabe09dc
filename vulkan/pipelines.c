/* Pipelines: one layout for all of them, each made once for a context and kept until it is destroyed. */
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <pthread.h>
#endif

#include "vulkan/shaders.h"
#include "vulkan/vulkan.h"

enum { MAX_CONSTANTS = 16 };

struct moi_vk_pipeline {
  moi_vk_pipeline *next;
  const moi_vk_shader *shader;
  uint32_t constants[MAX_CONSTANTS], n;
  VkPipeline pipeline;
};

struct moi_vk_pipelines {
#if defined(_WIN32)
  SRWLOCK lock;
#else
  pthread_mutex_t lock;
#endif
  moi_vk_pipeline *first;
};

#if defined(_WIN32)
static void lock_open(struct moi_vk_pipelines *p) { InitializeSRWLock(&p->lock); }
static void lock_close(struct moi_vk_pipelines *p) { (void)p; }
static void lock(struct moi_vk_pipelines *p) { AcquireSRWLockExclusive(&p->lock); }
static void unlock(struct moi_vk_pipelines *p) { ReleaseSRWLockExclusive(&p->lock); }
#else
static void lock_open(struct moi_vk_pipelines *p) { pthread_mutex_init(&p->lock, NULL); }
static void lock_close(struct moi_vk_pipelines *p) { pthread_mutex_destroy(&p->lock); }
static void lock(struct moi_vk_pipelines *p) { pthread_mutex_lock(&p->lock); }
static void unlock(struct moi_vk_pipelines *p) { pthread_mutex_unlock(&p->lock); }
#endif

/* Whether data begins as a pipeline cache of this device does; drivers are to check it, and not all of them do. */
static int is_cache_of(const moi_vulkan *v, const uint8_t *data, size_t size) {
  VkPhysicalDeviceProperties p;
  uint32_t head[4];
  if (size < 16 + VK_UUID_SIZE) return 0;
  v->vk.GetPhysicalDeviceProperties(v->physical, &p);
  memcpy(head, data, sizeof head);
  return head[0] >= 16 + VK_UUID_SIZE && head[0] <= size && head[1] == VK_PIPELINE_CACHE_HEADER_VERSION_ONE &&
         head[2] == p.vendorID && head[3] == p.deviceID && !memcmp(data + 16, p.pipelineCacheUUID, VK_UUID_SIZE);
}

moi_status moi_vk_pipelines_open(const char *fn, moi_context *context, const void *data, size_t size) {
  moi_vulkan *v = context->state;
  v->pipelines = moi_allocate(context, sizeof *v->pipelines);
  if (!v->pipelines) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *v->pipelines);
  memset(v->pipelines, 0, sizeof *v->pipelines);
  lock_open(v->pipelines);
  VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = MOI_VK_PUSH_BYTES};
  VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                       .pushConstantRangeCount = 1,
                                       .pPushConstantRanges = &push};
  VkResult result = v->vk.CreatePipelineLayout(v->device, &layout, NULL, &v->layout);
  if (result != VK_SUCCESS) {
    v->layout = VK_NULL_HANDLE;
    return moi_vk_fail(fn, "vkCreatePipelineLayout", result);
  }
  if (size && !is_cache_of(v, data, size)) {
    moi_log_line(context, MOI_LOG_WARNING, "%s: desc->next: pipeline_cache is not of this device and driver: ignored", fn);
    size = 0;
  }
  VkPipelineCacheCreateInfo cache = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO,
                                     .initialDataSize = size,
                                     .pInitialData = size ? data : NULL};
  result = v->vk.CreatePipelineCache(v->device, &cache, NULL, &v->cache);
  if (result != VK_SUCCESS) {
    v->cache = VK_NULL_HANDLE;
    return moi_vk_fail(fn, "vkCreatePipelineCache", result);
  }
  return MOI_OK;
}

void moi_vk_pipelines_close(moi_context *context) {
  moi_vulkan *v = context->state;
  if (!v->pipelines) return;
  for (moi_vk_pipeline *p = v->pipelines->first, *next; p; p = next) {
    next = p->next;
    v->vk.DestroyPipeline(v->device, p->pipeline, NULL);
    moi_release(context, p, sizeof *p);
  }
  if (v->cache) v->vk.DestroyPipelineCache(v->device, v->cache, NULL);
  if (v->layout) v->vk.DestroyPipelineLayout(v->device, v->layout, NULL);
  lock_close(v->pipelines);
  moi_release(context, v->pipelines, sizeof *v->pipelines);
  v->pipelines = NULL;
}

static const moi_vk_shader *shader_find(const char *name) {
  for (uint32_t i = 0; i < moi_vk_shader_count; i++)
    if (!strcmp(moi_vk_shaders[i].name, name)) return &moi_vk_shaders[i];
  return NULL;
}

int moi_vk_shader_exists(const char *shader) { return shader_find(shader) != NULL; }

static moi_vk_pipeline *find(const struct moi_vk_pipelines *all, const moi_vk_shader *shader, const uint32_t *constants,
                             uint32_t n) {
  for (moi_vk_pipeline *p = all->first; p; p = p->next)
    if (p->shader == shader && p->n == n && (!n || !memcmp(p->constants, constants, n * sizeof *constants))) return p;
  return NULL;
}

static moi_status make(const char *fn, const moi_vulkan *v, moi_vk_pipeline *p) {
  VkSpecializationMapEntry entries[MAX_CONSTANTS];
  for (uint32_t i = 0; i < p->n; i++) entries[i] = (VkSpecializationMapEntry){i, i * 4, 4};
  VkSpecializationInfo special = {p->n, entries, p->n * 4, p->constants};
  VkShaderModuleCreateInfo module = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                     .codeSize = p->shader->n_words * 4,
                                     .pCode = p->shader->words};
  VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                      .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                .pName = "main",
                                                .pSpecializationInfo = p->n ? &special : NULL},
                                      .layout = v->layout};
  VkResult result = v->vk.CreateShaderModule(v->device, &module, NULL, &info.stage.module);
  if (result != VK_SUCCESS) return moi_vk_fail(fn, "vkCreateShaderModule", result);
  result = v->vk.CreateComputePipelines(v->device, v->cache, 1, &info, NULL, &p->pipeline);
  v->vk.DestroyShaderModule(v->device, info.stage.module, NULL);
  return result == VK_SUCCESS ? MOI_OK : moi_vk_fail(fn, "vkCreateComputePipelines", result);
}

moi_status moi_vk_pipeline_get(const char *fn, const moi_context *context, const char *name, const uint32_t *constants,
                               uint32_t n, VkPipeline *out) {
  const moi_vulkan *v = context->state;
  const moi_vk_shader *shader = shader_find(name);
  if (!shader || n > MAX_CONSTANTS) return moi_fail(MOI_INTERNAL, fn, "this build has no shader '%s'", name);
  lock(v->pipelines);
  moi_vk_pipeline *found = find(v->pipelines, shader, constants, n);
  unlock(v->pipelines);
  if (found) {
    *out = found->pipeline;
    return MOI_OK;
  }
  moi_vk_pipeline *p = moi_allocate(context, sizeof *p);
  if (!p) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *p);
  memset(p, 0, sizeof *p);
  p->shader = shader;
  p->n = n;
  if (n) memcpy(p->constants, constants, n * sizeof *constants);
  moi_status status = make(fn, v, p);
  if (status) {
    moi_release(context, p, sizeof *p);
    return status;
  }
  lock(v->pipelines);
  found = find(v->pipelines, shader, constants, n); /* another thread may have been faster */
  if (!found) {
    p->next = v->pipelines->first;
    v->pipelines->first = p;
    *out = p->pipeline;
  }
  unlock(v->pipelines);
  if (found) {
    *out = found->pipeline;
    v->vk.DestroyPipeline(v->device, p->pipeline, NULL);
    moi_release(context, p, sizeof *p);
  }
  return MOI_OK;
}

moi_status moi_vulkan_pipeline_cache(const moi_context *context, void *data, uint64_t *size) {
  const char *fn = "moi_vulkan_pipeline_cache";
  if (!context || context->ops != &moi_vulkan_ops)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "context: is not one of MOI_BACKEND_VULKAN");
  if (!size) return moi_fail(MOI_INVALID_ARGUMENT, fn, "size: is null");
  const moi_vulkan *v = context->state;
  size_t n = 0;
  VkResult result = v->vk.GetPipelineCacheData(v->device, v->cache, &n, NULL);
  if (result != VK_SUCCESS) return moi_vk_fail(fn, "vkGetPipelineCacheData", result);
  if (data && *size < n)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "size: %llu bytes, %zu are needed", (unsigned long long)*size, n);
  if (data) {
    result = v->vk.GetPipelineCacheData(v->device, v->cache, &n, data);
    if (result != VK_SUCCESS) return moi_vk_fail(fn, "vkGetPipelineCacheData", result);
  }
  *size = n;
  return MOI_OK;
}
