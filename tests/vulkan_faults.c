/* Vulkan's functions fail, and devices lack things: every failure has its status and text, and nothing is left behind.
 *
 * * A layer of functions lies between moiety and the loader: moiety asks dlsym for vkGetInstanceProcAddr, the linker
 * gives it __wrap_dlsym instead, and from there on every pointer may be one of ours. It fails what it is told to fail,
 * and counts what is made and destroyed. */
#include "tests/support.h"

#if defined(MOI_HAVE_VULKAN) && defined(__linux__)

#include <math.h>

#include "tests/vulkan.h"

/* ---- the layer */

static struct {
  const char *failing; /* the function that fails, after `good` calls that do not */
  VkResult result;
  int good;
  const char *absent; /* the function that the driver has not */
  int no_loader;
  int old_device;   /* the physical device says Vulkan 1.1 */
  int no_addresses; /* and that it has no bufferDeviceAddress */
  int no_sets;      /* the same, nor what takes its place */
  int no_compute;   /* its queue families have no compute */
  int no_subgroups; /* no subgroup operations in compute */
  int several;      /* it is a GPU with subgroups of more sizes than one */
  int dots;         /* it accelerates integer dot products */
  uint32_t told;    /* subgroupSize, whatever it is; 0: as it is */
  uint32_t mesa;    /* it is lavapipe of this version of Mesa */
  /* a plan's pipelines are made by several threads */
  atomic_int live;  /* objects made and not destroyed */
  atomic_int calls; /* of `failing` */
  atomic_int asked; /* for subgroups of a size */
  atomic_int fifth; /* pipelines whose constant 5 is not 0 */
} layered;

static PFN_vkGetInstanceProcAddr below;
static PFN_vkGetDeviceProcAddr below_device;

static int fails(const char *name) {
  if (!layered.failing || strcmp(layered.failing, name)) return 0;
  return atomic_fetch_add(&layered.calls, 1) >= layered.good;
}

/* A pair that makes and destroys an object of a device. */
#define PAIR(Object, Info, Create, Destroy)                                                                            \
  static PFN_vk##Create real_##Create;                                                                                 \
  static PFN_vk##Destroy real_##Destroy;                                                                               \
  static VkResult on_##Create(VkDevice device, const Info *info, const VkAllocationCallbacks *allocator,               \
                              Object *out) {                                                                           \
    if (fails("vk" #Create)) return layered.result;                                                                    \
    VkResult result = real_##Create(device, info, allocator, out);                                                     \
    layered.live += result == VK_SUCCESS;                                                                              \
    return result;                                                                                                     \
  }                                                                                                                    \
  static void on_##Destroy(VkDevice device, Object object, const VkAllocationCallbacks *allocator) {                   \
    layered.live -= object != VK_NULL_HANDLE;                                                                          \
    real_##Destroy(device, object, allocator);                                                                         \
  }
PAIR(VkShaderModule, VkShaderModuleCreateInfo, CreateShaderModule, DestroyShaderModule)
PAIR(VkPipelineLayout, VkPipelineLayoutCreateInfo, CreatePipelineLayout, DestroyPipelineLayout)
PAIR(VkPipelineCache, VkPipelineCacheCreateInfo, CreatePipelineCache, DestroyPipelineCache)
PAIR(VkDescriptorSetLayout, VkDescriptorSetLayoutCreateInfo, CreateDescriptorSetLayout, DestroyDescriptorSetLayout)

static PFN_vkCreateComputePipelines real_CreateComputePipelines;
static PFN_vkDestroyPipeline real_DestroyPipeline;
static VkResult on_CreateComputePipelines(VkDevice device, VkPipelineCache cache, uint32_t n,
                                          const VkComputePipelineCreateInfo *info,
                                          const VkAllocationCallbacks *allocator, VkPipeline *out) {
  if (fails("vkCreateComputePipelines")) {
    for (uint32_t i = 0; i < n; i++) out[i] = VK_NULL_HANDLE; /* as the specification has it */
    return layered.result;
  }
  const VkBaseInStructure *next = info->stage.pNext;
  layered.asked +=
      next && next->sType == VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO_EXT;
  const VkSpecializationInfo *constants = info->stage.pSpecializationInfo;
  for (uint32_t i = 0; constants && i < constants->mapEntryCount; i++) {
    const VkSpecializationMapEntry *entry = &constants->pMapEntries[i];
    uint32_t value;
    if (entry->constantID != 5 || entry->size != sizeof value) continue;
    memcpy(&value, (const char *)constants->pData + entry->offset, sizeof value);
    layered.fifth += value != 0;
  }
  VkResult result = real_CreateComputePipelines(device, cache, n, info, allocator, out);
  layered.live += result == VK_SUCCESS ? (int)n : 0;
  return result;
}
static void on_DestroyPipeline(VkDevice device, VkPipeline pipeline, const VkAllocationCallbacks *allocator) {
  layered.live -= pipeline != VK_NULL_HANDLE;
  real_DestroyPipeline(device, pipeline, allocator);
}

static PFN_vkGetPipelineCacheData real_GetPipelineCacheData;
static VkResult on_GetPipelineCacheData(VkDevice device, VkPipelineCache cache, size_t *size, void *data) {
  return fails("vkGetPipelineCacheData") ? layered.result : real_GetPipelineCacheData(device, cache, size, data);
}

static PFN_vkCreateDevice real_CreateDevice;
static PFN_vkDestroyDevice real_DestroyDevice;
static VkResult on_CreateDevice(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                const VkAllocationCallbacks *allocator, VkDevice *out) {
  if (fails("vkCreateDevice")) return layered.result;
  VkResult result = real_CreateDevice(physical, info, allocator, out);
  layered.live += result == VK_SUCCESS;
  return result;
}
static void on_DestroyDevice(VkDevice device, const VkAllocationCallbacks *allocator) {
  layered.live -= device != NULL;
  real_DestroyDevice(device, allocator);
}

static PFN_vkCreateInstance real_CreateInstance;
static PFN_vkDestroyInstance real_DestroyInstance;
static VkResult on_CreateInstance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *allocator,
                                  VkInstance *out) {
  if (fails("vkCreateInstance")) return layered.result;
  VkResult result = real_CreateInstance(info, allocator, out);
  layered.live += result == VK_SUCCESS;
  return result;
}
static void on_DestroyInstance(VkInstance instance, const VkAllocationCallbacks *allocator) {
  layered.live -= instance != NULL;
  real_DestroyInstance(instance, allocator);
}

static PFN_vkEnumeratePhysicalDevices real_EnumeratePhysicalDevices;
static VkResult on_EnumeratePhysicalDevices(VkInstance instance, uint32_t *n, VkPhysicalDevice *out) {
  return fails("vkEnumeratePhysicalDevices") ? layered.result : real_EnumeratePhysicalDevices(instance, n, out);
}

static PFN_vkGetPhysicalDeviceProperties real_GetPhysicalDeviceProperties;
static void on_GetPhysicalDeviceProperties(VkPhysicalDevice physical, VkPhysicalDeviceProperties *out) {
  real_GetPhysicalDeviceProperties(physical, out);
  if (layered.old_device) out->apiVersion = VK_API_VERSION_1_1;
}

static PFN_vkGetPhysicalDeviceProperties2 real_GetPhysicalDeviceProperties2;
static void on_GetPhysicalDeviceProperties2(VkPhysicalDevice physical, VkPhysicalDeviceProperties2 *out) {
  real_GetPhysicalDeviceProperties2(physical, out);
  for (VkBaseOutStructure *s = out->pNext; s && layered.no_subgroups; s = s->pNext)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES)
      ((VkPhysicalDeviceVulkan11Properties *)(void *)s)->subgroupSupportedOperations = VK_SUBGROUP_FEATURE_BASIC_BIT;
  for (VkBaseOutStructure *s = out->pNext; s && layered.told; s = s->pNext)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES)
      ((VkPhysicalDeviceVulkan11Properties *)(void *)s)->subgroupSize = layered.told;
  for (VkBaseOutStructure *s = out->pNext; s && layered.dots; s = s->pNext)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES_KHR)
      ((VkPhysicalDeviceShaderIntegerDotProductPropertiesKHR *)(void *)s)->integerDotProduct4x8BitPackedSignedAccelerated = 1;
  if (layered.mesa) out->properties.driverVersion = layered.mesa;
  for (VkBaseOutStructure *s = out->pNext; s && layered.mesa; s = s->pNext)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES)
      ((VkPhysicalDeviceDriverProperties *)(void *)s)->driverID = VK_DRIVER_ID_MESA_LLVMPIPE;
  if (!layered.several) return;
  out->properties.deviceType = VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU;
  for (VkBaseOutStructure *s = out->pNext; s; s = s->pNext)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES_EXT) {
      VkPhysicalDeviceSubgroupSizeControlPropertiesEXT *sizes = (void *)s;
      sizes->minSubgroupSize /= 2;
      sizes->maxSubgroupSize *= 2;
    }
}

static PFN_vkGetPhysicalDeviceFeatures2 real_GetPhysicalDeviceFeatures2;
static void on_GetPhysicalDeviceFeatures2(VkPhysicalDevice physical, VkPhysicalDeviceFeatures2 *out) {
  real_GetPhysicalDeviceFeatures2(physical, out);
  if (layered.no_sets) out->features.shaderStorageBufferArrayDynamicIndexing = VK_FALSE;
  for (VkBaseOutStructure *s = out->pNext; s && (layered.no_addresses || layered.no_sets); s = s->pNext)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES)
      ((VkPhysicalDeviceVulkan12Features *)(void *)s)->bufferDeviceAddress = VK_FALSE;
}

static PFN_vkGetPhysicalDeviceQueueFamilyProperties real_GetPhysicalDeviceQueueFamilyProperties;
static void on_GetPhysicalDeviceQueueFamilyProperties(VkPhysicalDevice physical, uint32_t *n,
                                                      VkQueueFamilyProperties *out) {
  real_GetPhysicalDeviceQueueFamilyProperties(physical, n, out);
  for (uint32_t i = 0; out && i < *n && layered.no_compute; i++)
    out[i].queueFlags &= ~(VkQueueFlags)VK_QUEUE_COMPUTE_BIT;
}

static PFN_vkVoidFunction on_GetDeviceProcAddr(VkDevice device, const char *name);

/* Ours for `name`, with the pointer below kept; else the one below. */
static PFN_vkVoidFunction replace(const char *name, PFN_vkVoidFunction function) {
  if (layered.absent && !strcmp(layered.absent, name)) return NULL;
  if (!function) return NULL;
#define OURS(function_name)                                                                                            \
  if (!strcmp(name, "vk" #function_name)) {                                                                            \
    real_##function_name = (PFN_vk##function_name)function;                                                            \
    return (PFN_vkVoidFunction)on_##function_name;                                                                     \
  }
  OURS(CreateShaderModule)
  OURS(DestroyShaderModule)
  OURS(CreatePipelineLayout)
  OURS(DestroyPipelineLayout)
  OURS(CreatePipelineCache)
  OURS(DestroyPipelineCache)
  OURS(CreateDescriptorSetLayout)
  OURS(DestroyDescriptorSetLayout)
  OURS(CreateComputePipelines)
  OURS(DestroyPipeline)
  OURS(GetPipelineCacheData)
  OURS(CreateDevice)
  OURS(DestroyDevice)
  OURS(CreateInstance)
  OURS(DestroyInstance)
  OURS(EnumeratePhysicalDevices)
  OURS(GetPhysicalDeviceProperties)
  OURS(GetPhysicalDeviceProperties2)
  OURS(GetPhysicalDeviceFeatures2)
  OURS(GetPhysicalDeviceQueueFamilyProperties)
#undef OURS
  if (!strcmp(name, "vkGetDeviceProcAddr")) {
    below_device = (PFN_vkGetDeviceProcAddr)function;
    return (PFN_vkVoidFunction)on_GetDeviceProcAddr;
  }
  return function;
}

static PFN_vkVoidFunction on_GetDeviceProcAddr(VkDevice device, const char *name) {
  return replace(name, below_device(device, name));
}
static PFN_vkVoidFunction on_GetInstanceProcAddr(VkInstance instance, const char *name) {
  return replace(name, below(instance, name));
}

/* What moiety calls for dlsym. */
void *__real_dlsym(void *library, const char *name);
void *__wrap_dlsym(void *library, const char *name);
void *__wrap_dlsym(void *library, const char *name) {
  void *symbol = __real_dlsym(library, name);
  if (strcmp(name, "vkGetInstanceProcAddr") || !symbol) return symbol;
  if (layered.no_loader) return NULL;
  memcpy(&below, &symbol, sizeof below);
  PFN_vkGetInstanceProcAddr ours = on_GetInstanceProcAddr;
  memcpy(&symbol, &ours, sizeof symbol);
  return symbol;
}

/* ---- */

static engine e;    /* its pointers come through the layer too */
static int at_rest; /* objects that live while no context does: the engine's */

static moi_status open_context(int on_engine, moi_context **out) {
  static moi_vulkan_device d;
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  d = engine_handles(&e);
  desc.backend = MOI_BACKEND_VULKAN;
  desc.next = on_engine ? &d.chain : NULL;
  desc.allocate = engine_allocate;
  desc.free = engine_free;
  return moi_context_create(&desc, out);
}

static void nothing_is_left(void) {
  assert_int_equal(layered.live, at_rest);
  assert_int_equal(engine_bytes, 0);
}

static int clear(void **state) {
  (void)state;
  int live = layered.live;
  memset(&layered, 0, sizeof layered);
  layered.live = live;
  return 0;
}

static const struct {
  VkResult result;
  moi_status status;
  const char *says;
} results[] = {
    {VK_ERROR_OUT_OF_HOST_MEMORY, MOI_OUT_OF_MEMORY, "host memory"},
    {VK_ERROR_OUT_OF_DEVICE_MEMORY, MOI_OUT_OF_MEMORY, "device memory"},
    {VK_ERROR_DEVICE_LOST, MOI_DEVICE_ERROR, "lost"},
    {VK_ERROR_INITIALIZATION_FAILED, MOI_DEVICE_ERROR, "-3"},
};
enum { N_RESULTS = sizeof results / sizeof results[0] };

static void test_contexts_that_cannot_be_made(void **state) {
  (void)state;
  static const struct {
    const char *function;
    int own_only;
  } functions[] = {
      {"vkCreateInstance", 1}, {"vkCreateDevice", 1}, {"vkCreatePipelineLayout", 0}, {"vkCreatePipelineCache", 0}};
  for (size_t f = 0; f < sizeof functions / sizeof functions[0]; f++)
    for (int i = 0; i < N_RESULTS; i++)
      for (int on_engine = 0; on_engine < 2 - functions[f].own_only; on_engine++) {
        moi_context *c = (moi_context *)&e;
        layered.failing = functions[f].function;
        layered.result = results[i].result;
        moi_status status = open_context(on_engine, &c);
        refused(status, results[i].status, functions[f].function);
        refused(status, results[i].status, results[i].says);
        assert_null(c);
        nothing_is_left();
        clear(state);
        passes(open_context(on_engine, &c)); /* and the next works */
        moi_context_destroy(c);
        nothing_is_left();
      }
}

static void test_listing_fails(void **state) {
  (void)state;
  uint32_t count = 7;
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  moi_context *c = NULL;
  for (int i = 0; i < 3; i++) {
    layered.failing = "vkEnumeratePhysicalDevices";
    layered.result = results[i].result;
    refused(moi_device_count(MOI_BACKEND_VULKAN, &count), results[i].status, results[i].says);
    assert_int_equal(count, 0);
    refused(moi_device_get(MOI_BACKEND_VULKAN, 0, &info), results[i].status, results[i].says);
    refused(open_context(0, &c), results[i].status, results[i].says);
    nothing_is_left();
  }
  layered.failing = "vkCreateInstance";
  layered.result = VK_ERROR_INCOMPATIBLE_DRIVER; /* what a loader without any driver says */
  refused(moi_device_count(MOI_BACKEND_VULKAN, &count), MOI_NO_DEVICE, "driver");
  refused(open_context(0, &c), MOI_NO_DEVICE, "driver");
  nothing_is_left();
  clear(state);
  layered.no_loader = 1;
  refused(moi_device_count(MOI_BACKEND_VULKAN, &count), MOI_NO_DEVICE, "loader");
  refused(moi_device_get(MOI_BACKEND_VULKAN, 0, &info), MOI_NO_DEVICE, "loader");
  refused(open_context(0, &c), MOI_NO_DEVICE, "loader");
  nothing_is_left();
}

/* What is required, and not there, is named. */
static void test_devices_that_lack_something(void **state) {
  (void)state;
  static const struct {
    size_t member;
    const char *name;
  } lacks[] = {{offsetof(__typeof__(layered), old_device), "1.2"},
               {offsetof(__typeof__(layered), no_sets), "bufferDeviceAddress"},
               {offsetof(__typeof__(layered), no_subgroups), "subgroup"}};
  for (size_t i = 0; i < sizeof lacks / sizeof lacks[0]; i++) {
    clear(state);
    *(int *)(void *)((char *)&layered + lacks[i].member) = 1;
    moi_context *c = NULL;
    for (int on_engine = 0; on_engine < 2; on_engine++) {
      refused(open_context(on_engine, &c), MOI_UNSUPPORTED, lacks[i].name);
      assert_null(c);
      nothing_is_left();
    }
    moi_device_info info = MOI_DEVICE_INFO_INIT; /* it is listed all the same, with what it lacks */
    passes(moi_device_get(MOI_BACKEND_VULKAN, 0, &info));
    if (!strstr(info.features, lacks[i].name))
      fail_msg("features \"%s\" say nothing of %s", info.features, lacks[i].name);
    int found = 0;
    moi_vulkan_requirement r = MOI_VULKAN_REQUIREMENT_INIT;
    for (uint32_t k = 0; !moi_vulkan_requirements((moi_vulkan_function)e.get, e.instance, e.physical, k, &r); k++)
      found |= r.required && !r.supported &&
               strstr(r.name, layered.no_sets ? "shaderStorageBufferArrayDynamicIndexing" : lacks[i].name) != NULL;
    assert_true(found);
  }
  clear(state);
  layered.no_compute = 1;
  moi_context *c = NULL;
  refused(open_context(1, &c), MOI_INVALID_ARGUMENT, "no compute");
  refused(open_context(0, &c), MOI_UNSUPPORTED, "compute");
  nothing_is_left();
}

/* Rows that need subgroups of a certain size ask for it, and are refused where that cannot be asked. */
static void test_subgroups_of_several_sizes(void **state) {
  (void)state;
  static layer l;
  moi_vulkan_requirement r = MOI_VULKAN_REQUIREMENT_INIT;
  for (uint32_t k = 0; strcmp(r.name ? r.name : "", "subgroupSizeControl"); k++)
    passes(moi_vulkan_requirements((moi_vulkan_function)e.get, e.instance, e.physical, k, &r));
  if (!r.supported) skip();
  layer_make(&l);
  layered.several = 1;
  for (int on_engine = 0; on_engine < 2; on_engine++) { /* which has not enabled it */
    moi_context *c = NULL;
    moi_plan *plan = NULL;
    passes(open_context(on_engine, &c));
    l.gemm.kernel = "f32-lanes";
    moi_status status = layer_plan(&l, MOI_OP_GEMM, c, &plan);
    if (on_engine) refused(status, MOI_UNSUPPORTED, "subgroupSizeControl");
    else passes(status);
    assert_int_equal(layered.asked, on_engine ? 0 : 2); /* streams at words, and anywhere */
    moi_plan_destroy(plan);
    plan = NULL;
    l.gemm.kernel = NULL;
    l.gemm.format = MOI_FORMAT_BF16; /* of which there are no pipelines yet */
    passes(layer_plan(&l, MOI_OP_GEMM, c, &plan));
    assert_string_equal(moi_plan_kernel(plan), "bf16-stream+bf16-tile");
    assert_int_equal(layered.asked, on_engine ? 0 : 2);
    layered.asked = 0;
    l.gemm.format = MOI_FORMAT_F32;
    moi_plan_destroy(plan);
    moi_context_destroy(c);
    nothing_is_left();
  }
}

/* Rows of integer dot products are chosen where they are accelerated, run where they are enabled, and refused elsewhere. */
static void test_integer_dot_products(void **state) {
  static layer l;
  moi_vulkan_requirement r = MOI_VULKAN_REQUIREMENT_INIT;
  for (uint32_t k = 0; strcmp(r.name ? r.name : "", "shaderIntegerDotProduct"); k++)
    passes(moi_vulkan_requirements((moi_vulkan_function)e.get, e.instance, e.physical, k, &r));
  assert_false(r.required);
  if (!r.supported) skip();
  for (int on_engine = 0; on_engine < 2; on_engine++) /* which has not enabled it */
    for (int dots = 0; dots < 2; dots++) {
      moi_context *c = NULL;
      moi_plan *plan = NULL;
      char text[1024];
      clear(state);
      layered.several = 1;
      layered.dots = dots;
      layer_make(&l);
      l.gemm.format = MOI_FORMAT_Q8_0, l.gemm.k = 32;
      passes(open_context(on_engine, &c));
      passes(layer_plan(&l, MOI_OP_GEMM, c, &plan));
      moi_plan_describe(plan, text, sizeof text);
      if (strstr(text, "q8_0-tile-dot: needs a shader that this build has not")) { /* its glslc cannot */
        moi_plan_destroy(plan);
        moi_context_destroy(c);
        skip();
      }
      const char *why = on_engine ? "q8_0-tile-dot: needs integer dot products (shaderIntegerDotProduct)"
                        : dots    ? NULL
                                  : "q8_0-tile-dot: needs integer dot products that are accelerated";
      if (why && !strstr(text, why)) fail_msg("\"%s\" does not say \"%s\"", text, why);
      assert_string_equal(moi_plan_kernel(plan), why ? "q8_0-stream+q8_0-tile" : "q8_0-stream-dot+q8_0-tile-dot");
      moi_plan_destroy(plan);
      plan = NULL;
      l.gemm.kernel = "q8_0-tile-dot";
      moi_status status = layer_plan(&l, MOI_OP_GEMM, c, &plan);
      if (on_engine) refused(status, MOI_UNSUPPORTED, "shaderIntegerDotProduct");
      else passes(status);
      moi_plan_destroy(plan);
      moi_context_destroy(c);
      nothing_is_left();
    }
}

static void layer_on_host(layer *host) {
  moi_context *cpu = open_cpu(1);
  moi_plan *plan = NULL;
  layer_make(host);
  passes(layer_plan(host, MOI_OP_MOE, cpu, &plan));
  moi_buffer room = take_workspace(plan);
  passes(layer_run(host, MOI_OP_MOE, plan, room));
  drop_aligned(room.ptr);
  moi_plan_destroy(plan);
  moi_context_destroy(cpu);
}

/* The same on the device, as it is layered; what, value: it, for a failure's text. out: y. */
static void layer_on_device(const layer *host, const char *what, uint32_t value, float out[LAYER_T * LAYER_H]) {
  static layer device;
  moi_context *c = NULL;
  moi_plan *plan = NULL;
  engine_buffer memory = engine_take(&e, sizeof(layer));
  layer_make(&device);
  layer_to_device(&device, &memory);
  passes(open_context(1, &c));
  passes(layer_plan(&device, MOI_OP_MOE, c, &plan));
  size_t align, size = moi_plan_workspace(plan, &align);
  engine_buffer workspace = engine_take(&e, size);
  engine_commands commands = engine_begin(&e);
  passes(layer_record(&device, MOI_OP_MOE, plan, engine_view(&workspace), &commands));
  engine_end(&e, &commands);
  engine_submit(&e, &commands);
  const layer *result = memory.mapped;
  assert_memory_equal(result->ids, host->ids, sizeof host->ids);
  for (size_t i = 0; i < LAYER_T * LAYER_H; i++)
    if (!(fabsf(result->y[i] - host->y[i]) <= 1e-4f * (1 + fabsf(host->y[i]))))
      fail_msg("%s %u: y[%zu] is %g, the CPU has %g", what, value, i, result->y[i], host->y[i]);
  memcpy(out, result->y, sizeof result->y);
  engine_forget(&e, &commands);
  engine_drop(&e, &workspace);
  engine_drop(&e, &memory);
  moi_plan_destroy(plan);
  moi_context_destroy(c);
  nothing_is_left();
}

/* The other rows ask nothing of a subgroup's size: not even that it is the one that the device tells. */
static void test_subgroups_of_another_size_than_told(void **state) {
  static layer host;
  float y[LAYER_T * LAYER_H];
  layer_on_host(&host);
  for (uint32_t told = 4; told <= 64; told *= 4) {
    clear(state);
    layered.several = 1;
    layered.told = told;
    layer_on_device(&host, "subgroups of", told, y);
  }
}

/* The rows for software devices read x in two ways, which give the same bits. */
static void test_scalar_loads(void **state) {
  static layer host;
  float gathered[LAYER_T * LAYER_H], scalar[LAYER_T * LAYER_H];
  VkPhysicalDeviceProperties p;
  real_GetPhysicalDeviceProperties(e.physical, &p);
  if (p.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU) skip();
  layer_on_host(&host);
  layered.mesa = VK_MAKE_VERSION(25, 3, 0);
  layer_on_device(&host, "Mesa", 25, gathered);
  assert_int_equal(layered.fifth, 0);
  clear(state);
  layered.mesa = VK_MAKE_VERSION(26, 0, 0);
  layer_on_device(&host, "Mesa", 26, scalar);
  assert_true(layered.fifth > 0);
  assert_memory_equal(gathered, scalar, sizeof scalar);
}

/* A device without addresses reaches memory by descriptors; one that has been made without what they need is refused. */
static void test_devices_without_addresses(void **state) {
  moi_context *c = NULL;
  moi_plan *plan = NULL;
  moi_vulkan_handles_out h = MOI_VULKAN_HANDLES_INIT;
  static layer l;
  layer_make(&l);
  layered.no_addresses = 1;
  uint32_t required = 0;
  moi_vulkan_requirement r = MOI_VULKAN_REQUIREMENT_INIT;
  for (uint32_t k = 0; !moi_vulkan_requirements((moi_vulkan_function)e.get, e.instance, e.physical, k, &r); k++) {
    if (!r.required) continue;
    required += strstr(r.use, "descriptors") != NULL;
    if (!r.supported) skip(); /* it has no descriptors to push either */
  }
  assert_int_equal(required, 3);
  refused(open_context(1, &c), MOI_UNSUPPORTED, "VK_KHR_push_descriptor");
  passes(open_context(0, &c));
  passes(moi_vulkan_handles(c, &h));
  assert_int_equal(h.addresses, 0);
  passes(layer_plan(&l, MOI_OP_GEMM, c, &plan));
  assert_string_equal(moi_plan_kernel(plan), "f32-tile");
  moi_plan_destroy(plan);
  moi_context_destroy(c);
  nothing_is_left();
  layered.absent = "vkCmdPushDescriptorSetKHR";
  refused(open_context(0, &c), MOI_NO_DEVICE, "vkCmdPushDescriptorSetKHR");
  nothing_is_left();
  for (int i = 0; i < N_RESULTS; i++) {
    clear(state);
    layered.no_addresses = 1;
    layered.failing = "vkCreateDescriptorSetLayout";
    layered.result = results[i].result;
    refused(open_context(0, &c), results[i].status, "vkCreateDescriptorSetLayout");
    nothing_is_left();
  }
}

static void test_functions_that_are_not_there(void **state) {
  (void)state;
  static const char *const names[] = {"vkCmdDispatchIndirect", "vkGetBufferDeviceAddress", "vkCreateComputePipelines",
                                      "vkGetPhysicalDeviceFeatures2"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    for (int on_engine = 0; on_engine < 2; on_engine++) {
      moi_context *c = NULL;
      clear(state);
      layered.absent = names[i];
      refused(open_context(on_engine, &c), MOI_NO_DEVICE, names[i]);
      assert_null(c);
      nothing_is_left();
    }
}

/* Every pipeline of a plan in turn is the one that cannot be made. */
static void test_plans_that_cannot_be_made(void **state) {
  (void)state;
  static const char *const functions[] = {"vkCreateShaderModule", "vkCreateComputePipelines"};
  static layer l;
  layer_make(&l);
  for (size_t f = 0; f < 2; f++)
    for (int good = 0;; good++) {
      const int i = good % N_RESULTS;
      moi_context *c = NULL;
      moi_plan *plan = (moi_plan *)&l;
      clear(state);
      passes(open_context(1, &c));
      int live = layered.live;
      layered.failing = functions[f];
      layered.result = results[i].result;
      layered.good = good;
      moi_status status = layer_plan(&l, MOI_OP_MOE, c, &plan);
      if (!status) { /* it has no more pipelines than that */
        assert_true(good > 0);
        moi_plan_destroy(plan);
        moi_context_destroy(c);
        nothing_is_left();
        break;
      }
      refused(status, results[i].status, functions[f]);
      refused(status, results[i].status, results[i].says);
      assert_null(plan);
      /* pipelines that were made before belong to the context; nothing else is there */
      assert_true(layered.live - live <= good);
      clear(state);
      passes(layer_plan(&l, MOI_OP_MOE, c, &plan)); /* the same context, in better times */
      moi_plan_destroy(plan);
      moi_context_destroy(c);
      nothing_is_left();
    }
}

static void test_the_pipeline_cache_cannot_be_read(void **state) {
  (void)state;
  moi_context *c = NULL;
  passes(open_context(1, &c));
  for (int i = 0; i < N_RESULTS; i++)
    for (int good = 0; good < 2; good++) {
      uint8_t data[4096];
      uint64_t size = sizeof data;
      clear(state);
      layered.failing = "vkGetPipelineCacheData";
      layered.result = results[i].result;
      layered.good = good;
      refused(moi_vulkan_pipeline_cache(c, data, &size), results[i].status, "vkGetPipelineCacheData");
    }
  clear(state);
  moi_context_destroy(c);
  nothing_is_left();
}

/* The engine's own allocator says no, at every place in turn. */
static int allocations_left;
static void *take_few(void *user, size_t size, size_t align) {
  return allocations_left-- > 0 ? engine_allocate(user, size, align) : NULL;
}

static void test_the_allocator_says_no(void **state) {
  (void)state;
  static layer l;
  layer_make(&l);
  int done = 0;
  for (int few = 0; !done; few++) {
    moi_vulkan_device d = engine_handles(&e);
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    moi_context *c = NULL;
    moi_plan *plan = NULL;
    desc.backend = MOI_BACKEND_VULKAN;
    desc.next = &d.chain;
    desc.allocate = take_few;
    desc.free = engine_free;
    allocations_left = few;
    moi_status status = moi_context_create(&desc, &c);
    if (!status) status = moi_moe_plan(c, &l.moe, &plan);
    if (status) refused(status, MOI_OUT_OF_MEMORY, "moi_");
    done = !status;
    moi_plan_destroy(plan);
    moi_context_destroy(c);
    nothing_is_left();
    assert_true(few < 200);
  }
}

int main(void) {
  if (!engine_open(&e, 1)) return 77;
  at_rest = layered.live;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_contexts_that_cannot_be_made, clear),
      cmocka_unit_test_setup(test_listing_fails, clear),
      cmocka_unit_test_setup(test_devices_that_lack_something, clear),
      cmocka_unit_test_setup(test_subgroups_of_several_sizes, clear),
      cmocka_unit_test_setup(test_integer_dot_products, clear),
      cmocka_unit_test_setup(test_subgroups_of_another_size_than_told, clear),
      cmocka_unit_test_setup(test_scalar_loads, clear),
      cmocka_unit_test_setup(test_devices_without_addresses, clear),
      cmocka_unit_test_setup(test_functions_that_are_not_there, clear),
      cmocka_unit_test_setup(test_plans_that_cannot_be_made, clear),
      cmocka_unit_test_setup(test_the_pipeline_cache_cannot_be_read, clear),
      cmocka_unit_test_setup(test_the_allocator_says_no, clear),
  };
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  clear(NULL);
  engine_close(&e);
  return failed || e.messages || layered.live;
}

#else

int main(void) {
  print_message("this build has no Vulkan backend, or the linker no --wrap\n");
  return 77;
}

#endif
