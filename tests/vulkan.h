/* An engine with a Vulkan device, for tests: instance, device, queue, buffers, command buffers; validated where the
 * layer is installed. What the layer says is counted, and no test may have caused any of it. */
#ifndef MOI_TESTS_VULKAN_H
#define MOI_TESTS_VULKAN_H

#include "tests/support.h"

#include <math.h>
#include <stdatomic.h>

#include <moiety_vulkan.h>

#ifndef VK_NO_PROTOTYPES
#define VK_NO_PROTOTYPES
#endif
#include <vulkan/vulkan_core.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#define ENGINE_INSTANCE_FUNCTIONS(X)                                                                                   \
  X(DestroyInstance)                                                                                                   \
  X(EnumeratePhysicalDevices) X(GetPhysicalDeviceProperties) X(GetPhysicalDeviceFeatures2)                             \
      X(GetPhysicalDeviceMemoryProperties) X(GetPhysicalDeviceQueueFamilyProperties) X(CreateDevice)                   \
          X(GetDeviceProcAddr)

#define ENGINE_DEVICE_FUNCTIONS(X)                                                                                     \
  X(DestroyDevice)                                                                                                     \
  X(GetDeviceQueue) X(CreateBuffer) X(DestroyBuffer) X(GetBufferMemoryRequirements) X(AllocateMemory) X(FreeMemory)    \
      X(BindBufferMemory) X(MapMemory) X(CreateCommandPool) X(DestroyCommandPool) X(AllocateCommandBuffers)            \
          X(BeginCommandBuffer) X(EndCommandBuffer) X(CmdPipelineBarrier) X(QueueSubmit) X(QueueWaitIdle)

typedef struct engine {
  PFN_vkGetInstanceProcAddr get;
  VkInstance instance;
  VkPhysicalDevice physical;
  VkDevice device;
  VkQueue queue;
  uint32_t family;
  VkPhysicalDeviceVulkan12Features features; /* as the device was made with */
  VkPhysicalDeviceFeatures2 core;            /* the same, with what takes the place of addresses before them */
#define X(name) PFN_vk##name name;
  ENGINE_INSTANCE_FUNCTIONS(X)
  ENGINE_DEVICE_FUNCTIONS(X)
#undef X
  int validated;
  int messages; /* of the validation layer */
  VkDebugUtilsMessengerEXT messenger;
} engine;

/* Host-visible and mapped. */
typedef struct engine_buffer {
  VkBuffer buffer;
  VkDeviceMemory memory;
  void *mapped;
  size_t size;
} engine_buffer;

/* A command buffer in a pool of its own. */
typedef struct engine_commands {
  VkCommandPool pool;
  VkCommandBuffer buffer;
} engine_commands;

/* Drivers and layers leave memory behind when they are unloaded. What moiety takes is counted instead. */
#if SANITIZED
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }
#endif

static _Atomic int64_t engine_bytes; /* of contexts and plans that live, from these: */
static inline void *engine_allocate(void *user, size_t size, size_t align) {
  (void)user;
  void *p = take_aligned(align, size);
  if (p) engine_bytes += (int64_t)size;
  return p;
}
static inline void engine_free(void *user, void *p, size_t size) {
  (void)user;
  engine_bytes -= (int64_t)size;
  drop_aligned(p);
}

#define vk(call) assert_int_equal(call, VK_SUCCESS)

static inline PFN_vkGetInstanceProcAddr engine_loader(void) {
  PFN_vkGetInstanceProcAddr get = NULL;
#if defined(_WIN32)
  HMODULE library = LoadLibraryA("vulkan-1.dll");
  if (library) get = (PFN_vkGetInstanceProcAddr)(void (*)(void))GetProcAddress(library, "vkGetInstanceProcAddr");
#else
  void *library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
  void *symbol = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
  memcpy(&get, &symbol, sizeof get);
#endif
  return get;
}

static inline VkBool32 engine_hears(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                    VkDebugUtilsMessageTypeFlagsEXT types,
                                    const VkDebugUtilsMessengerCallbackDataEXT *data, void *user) {
  (void)severity;
  (void)types;
  ((engine *)user)->messages++;
  print_error("validation: %s\n", data->pMessage);
  return VK_FALSE;
}

static inline int engine_has_layer(const engine *e, const char *name) {
  PFN_vkEnumerateInstanceLayerProperties list =
      (PFN_vkEnumerateInstanceLayerProperties)e->get(NULL, "vkEnumerateInstanceLayerProperties");
  VkLayerProperties layers[32];
  uint32_t n = 32;
  if (!list || list(&n, layers) < VK_SUCCESS) return 0;
  for (uint32_t i = 0; i < n; i++)
    if (!strcmp(layers[i].layerName, name)) return 1;
  return 0;
}

static const char *const engine_extension = "VK_KHR_push_descriptor";

/* 0, and a line that says why, if there is no device to test on. with_addresses: whether bufferDeviceAddress is
 * enabled; if not, VK_KHR_push_descriptor and shaderStorageBufferArrayDynamicIndexing are. */
static inline int engine_open(engine *e, int with_addresses) {
  static const char *const validation = "VK_LAYER_KHRONOS_validation";
  static const char *const extensions[] = {"VK_EXT_debug_utils", "VK_EXT_validation_features"};
  memset(e, 0, sizeof *e);
  e->get = engine_loader();
  if (!e->get) return print_message("no Vulkan loader on this machine\n"), 0;
  PFN_vkCreateInstance create = (PFN_vkCreateInstance)e->get(NULL, "vkCreateInstance");
  VkDebugUtilsMessengerCreateInfoEXT messenger = {.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
                                                  .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                                                                     VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
                                                  .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT |
                                                                 VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
                                                  .pfnUserCallback = engine_hears,
                                                  .pUserData = e};
  const VkValidationFeatureEnableEXT enable = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
  VkValidationFeaturesEXT features = {.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
                                      .pNext = &messenger,
                                      .enabledValidationFeatureCount = 1,
                                      .pEnabledValidationFeatures = &enable};
  VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_2};
  VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
  e->validated = engine_has_layer(e, validation);
  if (e->validated) {
    info.pNext = &features;
    info.enabledLayerCount = 1;
    info.ppEnabledLayerNames = &validation;
    info.enabledExtensionCount = 2;
    info.ppEnabledExtensionNames = extensions;
  }
  if (!create || create(&info, NULL, &e->instance) != VK_SUCCESS)
    return print_message("no Vulkan 1.2 instance on this machine\n"), 0;
#define X(name)                                                                                                        \
  e->name = (PFN_vk##name)e->get(e->instance, "vk" #name);                                                             \
  assert_non_null(e->name);
  ENGINE_INSTANCE_FUNCTIONS(X)
  if (e->validated) {
    PFN_vkCreateDebugUtilsMessengerEXT listen =
        (PFN_vkCreateDebugUtilsMessengerEXT)e->get(e->instance, "vkCreateDebugUtilsMessengerEXT");
    assert_non_null(listen);
    vk(listen(e->instance, &messenger, NULL, &e->messenger));
  }
  uint32_t n = 1;
  if (e->EnumeratePhysicalDevices(e->instance, &n, &e->physical) < VK_SUCCESS || !n) {
    e->DestroyInstance(e->instance, NULL);
    return print_message("no Vulkan device on this machine\n"), 0;
  }
  VkQueueFamilyProperties families[32];
  n = 32;
  e->GetPhysicalDeviceQueueFamilyProperties(e->physical, &n, families);
  while (e->family < n && !(families[e->family].queueFlags & VK_QUEUE_COMPUTE_BIT)) e->family++;
  assert_true(e->family < n);
  const float priority = 1;
  VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                   .queueFamilyIndex = e->family,
                                   .queueCount = 1,
                                   .pQueuePriorities = &priority};
  e->features.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES;
  e->features.bufferDeviceAddress = with_addresses ? VK_TRUE : VK_FALSE;
  e->core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
  e->core.features.shaderStorageBufferArrayDynamicIndexing = !with_addresses;
  e->core.pNext = &e->features;
  VkDeviceCreateInfo device = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &e->core,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue,
                               .enabledExtensionCount = !with_addresses,
                               .ppEnabledExtensionNames = &engine_extension};
  VkResult made = e->CreateDevice(e->physical, &device, NULL, &e->device);
  if (!with_addresses && (made == VK_ERROR_EXTENSION_NOT_PRESENT || made == VK_ERROR_FEATURE_NOT_PRESENT)) {
    e->DestroyInstance(e->instance, NULL);
    return print_message("the device has no descriptors to push\n"), 0;
  }
  vk(made);
  e->features.pNext = NULL;
#undef X
#define X(name)                                                                                                        \
  e->name = (PFN_vk##name)e->GetDeviceProcAddr(e->device, "vk" #name);                                                 \
  assert_non_null(e->name);
  ENGINE_DEVICE_FUNCTIONS(X)
#undef X
  e->GetDeviceQueue(e->device, e->family, 0, &e->queue);
  return 1;
}

static inline void engine_close(engine *e) {
  e->DestroyDevice(e->device, NULL);
  if (e->messenger) {
    PFN_vkDestroyDebugUtilsMessengerEXT destroy =
        (PFN_vkDestroyDebugUtilsMessengerEXT)e->get(e->instance, "vkDestroyDebugUtilsMessengerEXT");
    destroy(e->instance, e->messenger, NULL);
  }
  e->DestroyInstance(e->instance, NULL);
}

/* What it hands to moiety; points into *e. */
static inline moi_vulkan_device engine_handles(const engine *e) {
  moi_vulkan_device d = MOI_VULKAN_DEVICE_INIT;
  d.get_instance_proc_addr = (moi_vulkan_function)e->get;
  d.instance = e->instance;
  d.physical_device = e->physical;
  d.device = e->device;
  d.queue_family = e->family;
  d.features = &e->features;
  if (!e->features.bufferDeviceAddress) {
    d.features = &e->core;
    d.n_extensions = 1;
    d.extensions = &engine_extension;
  }
  return d;
}

static inline engine_buffer engine_take(const engine *e, size_t size) {
  engine_buffer b = {.size = (size + 3) / 4 * 4 + 4};
  VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                             .size = b.size,
                             .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT |
                                      VK_BUFFER_USAGE_TRANSFER_DST_BIT};
  if (e->features.bufferDeviceAddress) info.usage |= VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
  vk(e->CreateBuffer(e->device, &info, NULL, &b.buffer));
  VkMemoryRequirements needs;
  VkPhysicalDeviceMemoryProperties memory;
  e->GetBufferMemoryRequirements(e->device, b.buffer, &needs);
  e->GetPhysicalDeviceMemoryProperties(e->physical, &memory);
  const VkMemoryPropertyFlags host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  uint32_t type = 0;
  while (type < memory.memoryTypeCount &&
         (!(needs.memoryTypeBits >> type & 1) || (memory.memoryTypes[type].propertyFlags & host) != host))
    type++;
  assert_true(type < memory.memoryTypeCount);
  VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                     .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
  VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                   .pNext = e->features.bufferDeviceAddress ? &flags : NULL,
                                   .allocationSize = needs.size,
                                   .memoryTypeIndex = type};
  vk(e->AllocateMemory(e->device, &allocate, NULL, &b.memory));
  vk(e->BindBufferMemory(e->device, b.buffer, b.memory, 0));
  vk(e->MapMemory(e->device, b.memory, 0, VK_WHOLE_SIZE, 0, &b.mapped));
  memset(b.mapped, 0xff, b.size);
  return b;
}

static inline void engine_drop(const engine *e, engine_buffer *b) {
  e->DestroyBuffer(e->device, b->buffer, NULL);
  e->FreeMemory(e->device, b->memory, NULL);
}

static inline moi_buffer engine_view(const engine_buffer *b) {
  return (moi_buffer){.handle = (uint64_t)(uintptr_t)b->buffer, .size = b->size};
}

static inline engine_commands engine_begin(const engine *e) {
  engine_commands c;
  VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .queueFamilyIndex = e->family};
  vk(e->CreateCommandPool(e->device, &pool, NULL, &c.pool));
  VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                          .commandPool = c.pool,
                                          .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                          .commandBufferCount = 1};
  vk(e->AllocateCommandBuffers(e->device, &allocate, &c.buffer));
  VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  vk(e->BeginCommandBuffer(c.buffer, &begin));
  return c;
}

/* The end of recording: what the host will read is made visible to it. */
static inline void engine_end(const engine *e, const engine_commands *c) {
  VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                             .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                             .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  e->CmdPipelineBarrier(c->buffer, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0,
                        NULL, 0, NULL);
  vk(e->EndCommandBuffer(c->buffer));
}

static inline void engine_submit(const engine *e, const engine_commands *c) {
  VkSubmitInfo submit = {
      .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &c->buffer};
  vk(e->QueueSubmit(e->queue, 1, &submit, VK_NULL_HANDLE));
  vk(e->QueueWaitIdle(e->queue));
}

static inline void engine_forget(const engine *e, engine_commands *c) {
  e->DestroyCommandPool(e->device, c->pool, NULL);
}

/* ---- the small layer of support.h in one buffer: its views by handle, at the offsets that its members have */

static inline moi_buffer at_device(const layer *l, const engine_buffer *b, moi_buffer view) {
  if (!view.ptr) return view;
  return (moi_buffer){.handle = (uint64_t)(uintptr_t)b->buffer,
                      .offset = (uint64_t)((const uint8_t *)view.ptr - (const uint8_t *)l) + view.offset,
                      .size = view.size};
}

/* Copies the layer into the buffer, which then holds its arrays, and translates the views of `l` to it. */
static inline void layer_to_device(layer *l, const engine_buffer *b) {
  assert_true(sizeof *l <= b->size);
  memcpy(b->mapped, l, sizeof *l);
  moi_buffer *views[LAYER_VIEWS];
  layer_views(l, views);
  for (size_t i = 0; i < LAYER_VIEWS; i++) *views[i] = at_device(l, b, *views[i]);
}

static inline moi_status layer_record(const layer *l, moi_op op, const moi_plan *plan, moi_buffer workspace,
                                      const engine_commands *c) {
  const moi_queue queue = {c ? (void *)c->buffer : NULL};
  return layer_run_on(l, op, plan, workspace, queue);
}

/* ---- results */

static inline void near(const float *a, const float *b, size_t n, const char *what) {
  for (size_t i = 0; i < n; i++)
    if (!(fabsf(a[i] - b[i]) <= 1e-4f * (1 + fabsf(b[i]))))
      fail_msg("%s[%zu]: %g, the CPU has %g", what, i, a[i], b[i]);
}

/* What the op wrote on the device is what it writes on the CPU; `host` is the same layer there, not yet run. */
static inline void agree(moi_op op, layer *host, const layer *device) {
  moi_context *cpu = open_cpu(1);
  moi_plan *plan = NULL;
  passes(layer_plan(host, op, cpu, &plan));
  moi_buffer workspace = take_workspace(plan);
  passes(layer_run(host, op, plan, workspace));
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
  moi_context_destroy(cpu);
  if (op == MOI_OP_GEMM) near(device->product, host->product, LAYER_T * LAYER_I, "product");
  if (op == MOI_OP_EXPERTS || op == MOI_OP_MOE) near(device->y, host->y, LAYER_T * LAYER_H, "y");
  if (op != MOI_OP_ROUTE && op != MOI_OP_MOE) return;
  assert_memory_equal(device->ids, host->ids, sizeof host->ids);
  assert_memory_equal(device->counts, host->counts, sizeof host->counts);
  assert_memory_equal(device->offsets, host->offsets, sizeof host->offsets);
  assert_memory_equal(device->permutation, host->permutation, sizeof host->permutation);
  near(device->ids_weights, host->ids_weights, LAYER_T * LAYER_K, "weights");
  near(device->logits_out, host->logits_out, LAYER_T * LAYER_E, "logits");
}

#endif
