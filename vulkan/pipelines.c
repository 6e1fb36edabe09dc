/* Pipelines: one layout for all of them, each made once for a context and kept until it is destroyed. */
#include <stdatomic.h>

#include "core/lock.h"
#include "core/threads.h"
#include "vulkan/pipelines.h"
#include "vulkan/shaders.h"

enum { MAX_THREADS = 8 };

struct moi_vk_pipeline {
  moi_vk_pipeline *next;
  moi_vk_key key;
  VkPipeline pipeline;
};

struct moi_vk_pipelines {
  moi_lock lock;
  moi_vk_pipeline *first;
};

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
  moi_lock_open(&v->pipelines->lock);
  VkResult result;
  if (v->traits.sets) {
    VkDescriptorSetLayoutBinding memory = {.descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                           .descriptorCount = MOI_VK_BINDINGS,
                                           .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    VkDescriptorSetLayoutCreateInfo set = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
                                           .flags = VK_DESCRIPTOR_SET_LAYOUT_CREATE_PUSH_DESCRIPTOR_BIT_KHR,
                                           .bindingCount = 1,
                                           .pBindings = &memory};
    result = v->vk.CreateDescriptorSetLayout(v->device, &set, NULL, &v->set);
    if (result != VK_SUCCESS) {
      v->set = VK_NULL_HANDLE;
      return moi_vk_fail(fn, "vkCreateDescriptorSetLayout", result);
    }
  }
  VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = MOI_VK_PUSH_BYTES};
  VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                       .setLayoutCount = v->traits.sets,
                                       .pSetLayouts = &v->set,
                                       .pushConstantRangeCount = 1,
                                       .pPushConstantRanges = &push};
  result = v->vk.CreatePipelineLayout(v->device, &layout, NULL, &v->layout);
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
  if (v->set) v->vk.DestroyDescriptorSetLayout(v->device, v->set, NULL);
  moi_lock_close(&v->pipelines->lock);
  moi_release(context, v->pipelines, sizeof *v->pipelines);
  v->pipelines = NULL;
}

static const moi_vk_shader *shader_find(const moi_vulkan *v, const char *name) {
  for (uint32_t i = 0; i < moi_vk_shader_count; i++)
    if (moi_vk_shaders[i].sets == v->traits.sets && !strcmp(moi_vk_shaders[i].name, name)) return &moi_vk_shaders[i];
  return NULL;
}

int moi_vk_shader_exists(const moi_vulkan *v, const char *shader) { return shader_find(v, shader) != NULL; }

static int same(const moi_vk_key *a, const moi_vk_key *b) {
  return a->shader == b->shader && a->n == b->n && a->subgroup == b->subgroup &&
         !memcmp(a->constants, b->constants, sizeof a->constants);
}

static moi_vk_pipeline *find(const struct moi_vk_pipelines *all, const moi_vk_key *key) {
  for (moi_vk_pipeline *p = all->first; p; p = p->next)
    if (same(&p->key, key)) return p;
  return NULL;
}

/* ---- making: what fails is told by the thread that plans, since the text of an error is a thread's own */

typedef struct job {
  moi_vk_pipeline *p;
  const char *what; /* failed */
  VkResult result;
} job;

typedef struct jobs {
  const moi_vulkan *v;
  job list[MOI_VK_MAX_WANTS];
  uint32_t n;
  atomic_int failed;
} jobs;

static void make(const moi_vulkan *v, job *j) {
  moi_vk_pipeline *p = j->p;
  VkSpecializationMapEntry entries[MOI_VK_MAX_CONSTANTS];
  for (uint32_t i = 0; i < p->key.n; i++) entries[i] = (VkSpecializationMapEntry){i, i * 4, 4};
  VkSpecializationInfo special = {p->key.n, entries, p->key.n * 4, p->key.constants};
  VkShaderModuleCreateInfo module = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                     .codeSize = p->key.shader->n_words * 4,
                                     .pCode = p->key.shader->words};
  VkPipelineShaderStageRequiredSubgroupSizeCreateInfoEXT size = {
      .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO_EXT,
      .requiredSubgroupSize = p->key.subgroup};
  VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                      .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                .pNext = p->key.subgroup ? &size : NULL,
                                                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                .pName = "main",
                                                .pSpecializationInfo = p->key.n ? &special : NULL},
                                      .layout = v->layout};
  j->what = "vkCreateShaderModule";
  j->result = v->vk.CreateShaderModule(v->device, &module, NULL, &info.stage.module);
  if (j->result != VK_SUCCESS) return;
  j->what = "vkCreateComputePipelines";
  j->result = v->vk.CreateComputePipelines(v->device, v->cache, 1, &info, NULL, &p->pipeline);
  if (j->result != VK_SUCCESS) p->pipeline = VK_NULL_HANDLE;
  v->vk.DestroyShaderModule(v->device, info.stage.module, NULL);
}

static void make_one(void *arg, uint32_t i) {
  jobs *all = arg;
  if (atomic_load(&all->failed)) return;
  make(all->v, &all->list[i]);
  if (all->list[i].result != VK_SUCCESS) atomic_store(&all->failed, 1);
}

/* Into the context, if no other plan was faster. */
static void keep(const moi_context *context, moi_vk_pipeline *p) {
  const moi_vulkan *v = context->state;
  moi_lock_take(&v->pipelines->lock);
  int there = find(v->pipelines, &p->key) != NULL;
  if (!there && p->pipeline) {
    p->next = v->pipelines->first;
    v->pipelines->first = p;
  }
  moi_lock_give(&v->pipelines->lock);
  if (!there && p->pipeline) return;
  if (p->pipeline) v->vk.DestroyPipeline(v->device, p->pipeline, NULL);
  moi_release(context, p, sizeof *p);
}

static moi_status want(const char *fn, const moi_plan *plan, const char *name, uint32_t subgroup,
                       const uint32_t *constants, uint32_t n, VkPipeline *out) {
  moi_vk_wants *wants = ((moi_vk_plan *)plan->state)->wants;
  moi_vk_key key = {.shader = shader_find(plan->context->state, name), .n = n, .subgroup = subgroup};
  if (!key.shader || n > MOI_VK_MAX_CONSTANTS) return moi_fail(MOI_INTERNAL, fn, "this build has no shader '%s'", name);
  if (wants->n == MOI_VK_MAX_WANTS) return moi_fail(MOI_INTERNAL, fn, "a plan of more than %u pipelines", wants->n);
  if (n) memcpy(key.constants, constants, n * sizeof *constants);
  wants->list[wants->n++] = (moi_vk_want){key, out};
  return MOI_OK;
}

moi_status moi_vk_pipeline_want(const char *fn, const moi_plan *plan, const char *shader, const uint32_t *constants,
                                uint32_t n, VkPipeline *out) {
  return want(fn, plan, shader, 0, constants, n, out);
}

moi_status moi_vk_row_want(const char *fn, const moi_plan *plan, const moi_vk_kernel *row, const uint32_t *constants,
                           uint32_t n, VkPipeline *out) {
  const moi_vk_traits *t = &((const moi_vulkan *)plan->context->state)->traits;
  return want(fn, plan, row->shader, row->flags & MOI_VK_WHOLE && t->size_control ? t->subgroup : 0, constants, n, out);
}

/* A job for each pipeline that the context has not, once. */
static moi_status list_jobs(const char *fn, const moi_context *context, const moi_vk_wants *wants, jobs *all) {
  for (uint32_t i = 0; i < wants->n; i++) {
    const moi_vk_key *key = &wants->list[i].key;
    uint32_t at = 0;
    while (at < all->n && !same(&all->list[at].p->key, key)) at++;
    moi_lock_take(&all->v->pipelines->lock);
    int there = at < all->n || find(all->v->pipelines, key);
    moi_lock_give(&all->v->pipelines->lock);
    if (there) continue;
    moi_vk_pipeline *p = moi_allocate(context, sizeof *p);
    if (!p) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *p);
    *p = (moi_vk_pipeline){.key = *key};
    all->list[all->n++].p = p;
  }
  return MOI_OK;
}

moi_status moi_vk_pipelines_make(const char *fn, const moi_plan *plan) {
  const moi_context *context = plan->context;
  const moi_vk_wants *wants = ((const moi_vk_plan *)plan->state)->wants;
  jobs all = {.v = context->state};
  moi_status status = list_jobs(fn, context, wants, &all);
  if (!status) moi_threads_run(all.n, MAX_THREADS, make_one, &all);
  for (uint32_t i = 0; i < all.n; i++) {
    if (!status && all.list[i].result != VK_SUCCESS) status = moi_vk_fail(fn, all.list[i].what, all.list[i].result);
    keep(context, all.list[i].p); /* those that were made serve the next try */
  }
  if (status) return status;
  moi_lock_take(&all.v->pipelines->lock);
  for (uint32_t i = 0; i < wants->n; i++) *wants->list[i].out = find(all.v->pipelines, &wants->list[i].key)->pipeline;
  moi_lock_give(&all.v->pipelines->lock);
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
