/* Loader, devices and contexts: the engine's device, or one of our own. */
#include <stdio.h>
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "core/structs.h"
#include "vulkan/vulkan.h"

enum { MAX_DEVICES = 64 };

moi_status moi_vk_fail(const char *fn, const char *what, VkResult result) {
  switch (result) {
    case VK_ERROR_OUT_OF_HOST_MEMORY: return moi_fail(MOI_OUT_OF_MEMORY, fn, "%s: out of host memory", what);
    case VK_ERROR_OUT_OF_DEVICE_MEMORY: return moi_fail(MOI_OUT_OF_MEMORY, fn, "%s: out of device memory", what);
    case VK_ERROR_DEVICE_LOST: return moi_fail(MOI_DEVICE_ERROR, fn, "%s: the device was lost", what);
    case VK_ERROR_INCOMPATIBLE_DRIVER:
      return moi_fail(MOI_NO_DEVICE, fn, "%s: no Vulkan driver was found (VK_ERROR_INCOMPATIBLE_DRIVER)", what);
    default: return moi_fail(MOI_DEVICE_ERROR, fn, "%s: VkResult %d", what, (int)result);
  }
}

/* ---- the system's loader */

/* vkGetInstanceProcAddr of the system's Vulkan loader, NULL if there is none. The library stays loaded: drivers do not
 * survive being unloaded. */
static PFN_vkGetInstanceProcAddr system_loader(void) {
#if defined(_WIN32)
  HMODULE library = LoadLibraryA("vulkan-1.dll");
  return library ? (PFN_vkGetInstanceProcAddr)(void (*)(void))GetProcAddress(library, "vkGetInstanceProcAddr") : NULL;
#else
#if defined(__APPLE__)
  static const char *const names[] = {"libvulkan.1.dylib", "libvulkan.dylib", "libMoltenVK.dylib"};
#else
  static const char *const names[] = {"libvulkan.so.1", "libvulkan.so"};
#endif
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
    PFN_vkGetInstanceProcAddr function;
    memcpy(&function, &symbol, sizeof function);
    if (function) return function;
  }
  return NULL;
#endif
}

static moi_status load_instance(const char *fn, moi_vk_functions *vk, VkInstance instance) {
#define X(name)                                                                                                        \
  vk->name = (PFN_vk##name)vk->GetInstanceProcAddr(instance, "vk" #name);                                              \
  if (!vk->name) return moi_fail(MOI_NO_DEVICE, fn, "get_instance_proc_addr: the instance has no vk" #name);
  MOI_VK_INSTANCE_FUNCTIONS(X)
#undef X
  return MOI_OK;
}

static moi_status load_device(const char *fn, moi_vk_functions *vk, VkDevice device, uint32_t sets) {
#define X(name)                                                                                                        \
  vk->name = (PFN_vk##name)vk->GetDeviceProcAddr(device, "vk" #name);                                                  \
  if (!vk->name) return moi_fail(MOI_NO_DEVICE, fn, "device: has no vk" #name);
  MOI_VK_DEVICE_FUNCTIONS(X)
  if (sets) {
    X(CmdPushDescriptorSetKHR)
  }
#undef X
  return MOI_OK;
}

/* ---- an instance of our own */

static int has_instance_extension(const moi_vk_functions *vk, const char *name) {
  PFN_vkEnumerateInstanceExtensionProperties enumerate =
      (PFN_vkEnumerateInstanceExtensionProperties)vk->GetInstanceProcAddr(NULL, "vkEnumerateInstanceExtensionProperties");
  uint32_t n = 0;
  if (!enumerate || enumerate(NULL, &n, NULL) != VK_SUCCESS || !n) return 0;
  VkExtensionProperties *list = malloc(n * sizeof *list);
  int found = 0;
  if (list && enumerate(NULL, &n, list) >= VK_SUCCESS)
    for (uint32_t i = 0; i < n; i++) found |= !strcmp(list[i].extensionName, name);
  free(list);
  return found;
}

static moi_status make_instance(const char *fn, moi_vk_functions *vk, VkInstance *instance) {
  *instance = VK_NULL_HANDLE;
  memset(vk, 0, sizeof *vk);
  vk->GetInstanceProcAddr = system_loader();
  if (!vk->GetInstanceProcAddr)
    return moi_fail(MOI_NO_DEVICE, fn, "the Vulkan loader (libvulkan.so.1, vulkan-1.dll) is not installed");
  PFN_vkCreateInstance create = (PFN_vkCreateInstance)vk->GetInstanceProcAddr(NULL, "vkCreateInstance");
  PFN_vkEnumerateInstanceVersion version =
      (PFN_vkEnumerateInstanceVersion)vk->GetInstanceProcAddr(NULL, "vkEnumerateInstanceVersion");
  uint32_t api = VK_API_VERSION_1_0;
  if (!create || !version || version(&api) != VK_SUCCESS || api < VK_API_VERSION_1_2)
    return moi_fail(MOI_NO_DEVICE, fn, "the Vulkan loader is older than 1.2");
  VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                   .pEngineName = "moiety",
                                   .engineVersion = MOI_VERSION,
                                   .apiVersion = VK_API_VERSION_1_2};
  VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
  static const char *const portability = "VK_KHR_portability_enumeration"; /* MoltenVK is listed only to who asks */
  if (has_instance_extension(vk, portability)) {
    info.flags = 1; /* VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR */
    info.enabledExtensionCount = 1;
    info.ppEnabledExtensionNames = &portability;
  }
  VkResult result = create(&info, NULL, instance);
  if (result != VK_SUCCESS) {
    *instance = VK_NULL_HANDLE;
    return moi_vk_fail(fn, "vkCreateInstance", result);
  }
  moi_status status = load_instance(fn, vk, *instance);
  if (status) {
    PFN_vkDestroyInstance destroy = (PFN_vkDestroyInstance)vk->GetInstanceProcAddr(*instance, "vkDestroyInstance");
    if (destroy) destroy(*instance, NULL);
  }
  return status;
}

static moi_status list_devices(const char *fn, const moi_vk_functions *vk, VkInstance instance,
                               VkPhysicalDevice devices[MAX_DEVICES], uint32_t *count) {
  *count = MAX_DEVICES;
  VkResult result = vk->EnumeratePhysicalDevices(instance, count, devices);
  if (result < VK_SUCCESS) {
    *count = 0;
    return result == VK_ERROR_INITIALIZATION_FAILED ? MOI_OK : moi_vk_fail(fn, "vkEnumeratePhysicalDevices", result);
  }
  return MOI_OK;
}

/* ---- what a physical device is */

#if defined(VK_KHR_shader_integer_dot_product)
typedef VkPhysicalDeviceShaderIntegerDotProductPropertiesKHR dot_properties;
typedef VkPhysicalDeviceShaderIntegerDotProductFeaturesKHR dot_features;
#else /* headers before 1.2.195 */
typedef struct dot_properties {
  VkStructureType sType;
  void *pNext;
  VkBool32 before[4], integerDotProduct4x8BitPackedSignedAccelerated, behind[25];
} dot_properties;
typedef struct dot_features {
  VkStructureType sType;
  void *pNext;
  VkBool32 shaderIntegerDotProduct;
} dot_features;
#endif
#define DOT_FEATURES ((VkStructureType)1000280000)
#define DOT_PROPERTIES ((VkStructureType)1000280001)

typedef struct identity {
  VkPhysicalDeviceProperties2 properties;
  VkPhysicalDeviceVulkan11Properties v11;
  VkPhysicalDeviceDriverProperties driver;
  VkPhysicalDeviceFeatures2 features;
  VkPhysicalDeviceVulkan12Features v12;
  VkPhysicalDeviceSubgroupSizeControlPropertiesEXT sizes; /* 0 without the extension */
  VkPhysicalDeviceSubgroupSizeControlFeaturesEXT size_control;
  dot_properties dots; /* the same */
  dot_features dot;
  uint32_t push_descriptor; /* the extension is there */
} identity;

/* listed by devices of 1.3 too */
static const char *const size_control_name = "VK_EXT_subgroup_size_control";
static const char *const push_descriptor_name = "VK_KHR_push_descriptor";
static const char *const dot_name = "VK_KHR_shader_integer_dot_product";

static int has_device_extension(const moi_vk_functions *vk, VkPhysicalDevice device, const char *name) {
  uint32_t n = 0;
  if (vk->EnumerateDeviceExtensionProperties(device, NULL, &n, NULL) != VK_SUCCESS || !n) return 0;
  VkExtensionProperties *list = malloc(n * sizeof *list);
  int found = 0;
  if (list && vk->EnumerateDeviceExtensionProperties(device, NULL, &n, list) >= VK_SUCCESS)
    for (uint32_t i = 0; i < n; i++) found |= !strcmp(list[i].extensionName, name);
  free(list);
  return found;
}

/* A device of Vulkan 1.1 or older is asked for its first properties only. */
static void identify(const moi_vk_functions *vk, VkPhysicalDevice device, identity *id) {
  memset(id, 0, sizeof *id);
  vk->GetPhysicalDeviceProperties(device, &id->properties.properties);
  if (id->properties.properties.apiVersion < VK_API_VERSION_1_2) return;
  id->properties.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
  id->properties.pNext = &id->v11;
  id->v11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES;
  id->v11.pNext = &id->driver;
  id->driver.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES;
  id->sizes.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES_EXT;
  id->size_control.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT;
  if (has_device_extension(vk, device, size_control_name)) {
    id->driver.pNext = &id->sizes;
    id->v12.pNext = &id->size_control;
  }
  id->dots.sType = DOT_PROPERTIES;
  id->dot.sType = DOT_FEATURES;
  if (has_device_extension(vk, device, dot_name)) {
    id->dots.pNext = id->driver.pNext;
    id->driver.pNext = &id->dots;
    id->dot.pNext = id->v12.pNext;
    id->v12.pNext = &id->dot;
  }
  id->push_descriptor = (uint32_t)has_device_extension(vk, device, push_descriptor_name);
  vk->GetPhysicalDeviceProperties2(device, &id->properties);
  id->features.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
  id->features.pNext = &id->v12;
  id->v12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES;
  vk->GetPhysicalDeviceFeatures2(device, &id->features);
}

/* ---- requirements */

#define SUBGROUP_OPERATIONS                                                                                            \
  (VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_BALLOT_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT |                  \
   VK_SUBGROUP_FEATURE_ARITHMETIC_BIT)

static uint32_t has_version(const identity *id) { return id->properties.properties.apiVersion >= VK_API_VERSION_1_2; }
static uint32_t has_subgroups(const identity *id) {
  return (id->v11.subgroupSupportedOperations & SUBGROUP_OPERATIONS) == SUBGROUP_OPERATIONS &&
         id->v11.subgroupSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT && id->v11.subgroupSize >= 4 &&
         id->v11.subgroupSize <= 128;
}
static uint32_t has_addresses(const identity *id) { return id->v12.bufferDeviceAddress; }
/* whether pipelines may ask for subgroupSize */
static uint32_t has_size_control(const identity *id) {
  return id->size_control.subgroupSizeControl && id->sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT &&
         id->sizes.minSubgroupSize <= id->v11.subgroupSize && id->v11.subgroupSize <= id->sizes.maxSubgroupSize;
}
/* what takes the place of addresses */
static uint32_t has_push_descriptor(const identity *id) { return id->push_descriptor; }
static uint32_t has_dynamic_indexing(const identity *id) {
  return id->features.features.shaderStorageBufferArrayDynamicIndexing;
}
static uint32_t has_bindings(const identity *id) {
  return id->properties.properties.limits.maxPerStageDescriptorStorageBuffers >= MOI_VK_BINDINGS;
}
static uint32_t has_dot(const identity *id) { return id->dot.shaderIntegerDotProduct; }

enum { WISHED, REQUIRED, INSTEAD /* required where bufferDeviceAddress is not */ };
static const struct {
  const char *kind, *name, *of, *use;
  uint32_t required;
  uint32_t (*has)(const identity *id);
} requirements[] = {
    {"version", "1.2", "", "the instance's and the device's", REQUIRED, has_version},
    {"property", "subgroupSupportedOperations", "VkPhysicalDeviceVulkan11Properties",
     "basic, ballot, shuffle and arithmetic in compute, subgroups of 4 to 128", REQUIRED, has_subgroups},
    {"feature", "bufferDeviceAddress", "VkPhysicalDeviceVulkan12Features",
     "all memory is reached by address: every row, no descriptors, no bound on a buffer's size", WISHED, has_addresses},
    {"extension", "VK_KHR_push_descriptor", "", "memory by descriptors, where bufferDeviceAddress is not", INSTEAD,
     has_push_descriptor},
    {"feature", "shaderStorageBufferArrayDynamicIndexing", "VkPhysicalDeviceFeatures",
     "memory by descriptors, where bufferDeviceAddress is not", INSTEAD, has_dynamic_indexing},
    {"property", "maxPerStageDescriptorStorageBuffers", "VkPhysicalDeviceLimits",
     "24 or more: memory by descriptors, where bufferDeviceAddress is not", INSTEAD, has_bindings},
    {"feature", "subgroupSizeControl", "VkPhysicalDeviceSubgroupSizeControlFeatures",
     "rows that need subgroups of one size, where a device has several; of 1.3 or VK_EXT_subgroup_size_control", WISHED,
     has_size_control},
    {"feature", "shaderIntegerDotProduct", "VkPhysicalDeviceShaderIntegerDotProductFeatures",
     "faster GEMM rows where integerDotProduct4x8BitPackedSignedAccelerated; of 1.3 or VK_KHR_shader_integer_dot_product",
     WISHED, has_dot},
};
enum { N_REQUIREMENTS = sizeof requirements / sizeof requirements[0] };
_Static_assert(MOI_VK_BINDINGS == 24, "maxPerStageDescriptorStorageBuffers in the list above, and common.glsl's moi_memory");

/* NULL, or what the device lacks. */
static const char *missing(const identity *id) {
  for (int i = 0; i < N_REQUIREMENTS; i++)
    if (requirements[i].required == REQUIRED && !requirements[i].has(id)) return requirements[i].name;
  return NULL;
}

/* NULL, or what it lacks to do without bufferDeviceAddress. */
static const char *missing_instead(const identity *id) {
  for (int i = 0; i < N_REQUIREMENTS; i++)
    if (requirements[i].required == INSTEAD && !requirements[i].has(id)) return requirements[i].name;
  return NULL;
}

/* NULL, or what to call a device's lack that makes it unusable. */
static const char *lacks_of(const identity *id) {
  const char *lacks = missing(id);
  return lacks || has_addresses(id) || !missing_instead(id) ? lacks : "bufferDeviceAddress";
}

/* ", and ... in its place" behind a lack of bufferDeviceAddress. */
static const char *beside(const identity *id) {
  if (missing(id) || has_addresses(id)) return "";
  return !has_push_descriptor(id)    ? ", and VK_KHR_push_descriptor in its place"
         : !has_dynamic_indexing(id) ? ", and shaderStorageBufferArrayDynamicIndexing in its place"
         : !has_bindings(id)         ? ", and 24 storage buffers of a stage (maxPerStageDescriptorStorageBuffers) in its place"
                                     : "";
}

moi_status moi_vulkan_requirements(moi_vulkan_function get_instance_proc_addr, void *instance, void *physical_device,
                                   uint32_t index, moi_vulkan_requirement *out) {
  const char *fn = "moi_vulkan_requirements";
  moi_vulkan_requirement r;
  memset(&r, 0, sizeof r);
  if (index >= N_REQUIREMENTS)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "index: %u, there are %d requirements", index, (int)N_REQUIREMENTS);
  r.kind = requirements[index].kind;
  r.name = requirements[index].name;
  r.of = requirements[index].of;
  r.use = requirements[index].use;
  r.required = requirements[index].required == REQUIRED;
  if (instance || physical_device) {
    if (!instance || !physical_device || !get_instance_proc_addr)
      return moi_fail(MOI_INVALID_ARGUMENT, fn,
                      "get_instance_proc_addr, instance, physical_device: all must be there, or neither of the last two");
    moi_vk_functions vk = {.GetInstanceProcAddr = (PFN_vkGetInstanceProcAddr)get_instance_proc_addr};
    moi_status status = load_instance(fn, &vk, instance);
    if (status) return status;
    identity id;
    identify(&vk, physical_device, &id);
    r.supported = requirements[index].has(&id);
    if (requirements[index].required == INSTEAD && has_version(&id)) r.required = !has_addresses(&id);
  }
  return moi_struct_out(fn, "out", out, sizeof r, &r);
}

/* ---- listing */

moi_status moi_vk_device_count(uint32_t *count) {
  const char *fn = "moi_device_count";
  moi_vk_functions vk;
  VkInstance instance;
  VkPhysicalDevice devices[MAX_DEVICES];
  moi_status status = make_instance(fn, &vk, &instance);
  if (status) return status;
  status = list_devices(fn, &vk, instance, devices, count);
  vk.DestroyInstance(instance, NULL);
  if (!status && !*count) status = moi_fail(MOI_NO_DEVICE, fn, "the Vulkan loader is there, but no driver has a device");
  return status;
}

static const char *type_name(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return "cpu";
    default: return "other";
  }
}

static void describe(const moi_vk_functions *vk, VkPhysicalDevice device, moi_device_info *info) {
  identity id;
  identify(vk, device, &id);
  const VkPhysicalDeviceProperties *p = &id.properties.properties;
  VkPhysicalDeviceMemoryProperties memory;
  vk->GetPhysicalDeviceMemoryProperties(device, &memory);
  for (uint32_t i = 0; i < memory.memoryHeapCount; i++)
    if (memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) info->memory += memory.memoryHeaps[i].size;
  info->backend = MOI_BACKEND_VULKAN;
  snprintf(info->name, sizeof info->name, "%.*s", (int)sizeof info->name - 1, p->deviceName);
  snprintf(info->driver, sizeof info->driver, "%.60s%s%.60s", id.driver.driverName, id.driver.driverInfo[0] ? " " : "",
           id.driver.driverInfo);
  const char *lacks = lacks_of(&id);
  snprintf(info->features, sizeof info->features, "%s vulkan%u.%u subgroup%u%s%s%s%s%s", type_name(p->deviceType),
           VK_API_VERSION_MAJOR(p->apiVersion), VK_API_VERSION_MINOR(p->apiVersion), id.v11.subgroupSize,
           id.v12.bufferDeviceAddress ? " address" : "", id.v12.shaderFloat16 ? " f16" : "",
           id.v12.shaderInt8 ? " i8" : "", lacks ? " unusable:lacks-" : "", lacks ? lacks : "");
}

moi_status moi_vk_device_get(uint32_t index, moi_device_info *info) {
  const char *fn = "moi_device_get";
  moi_vk_functions vk;
  VkInstance instance;
  VkPhysicalDevice devices[MAX_DEVICES];
  uint32_t count;
  moi_status status = make_instance(fn, &vk, &instance);
  if (status) return status;
  status = list_devices(fn, &vk, instance, devices, &count);
  if (!status && index >= count)
    status = moi_fail(MOI_NO_DEVICE, fn, "index: %u, Vulkan has %u devices", index, count);
  if (!status) {
    describe(&vk, devices[index], info);
    info->index = index;
  }
  vk.DestroyInstance(instance, NULL);
  return status;
}

/* ---- contexts */

static void read_traits(const identity *id, int addresses, int size_control, int dot, moi_vk_traits *t) {
  const VkPhysicalDeviceProperties *p = &id->properties.properties;
  const VkPhysicalDeviceLimits *limits = &p->limits;
  t->is_cpu = p->deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
  t->subgroup = id->v11.subgroupSize;
  t->size_control = size_control && has_size_control(id);
  t->exact = t->is_cpu || t->size_control ||
             (id->sizes.minSubgroupSize == t->subgroup && id->sizes.maxSubgroupSize == t->subgroup);
  t->dot = dot && has_dot(id);
  t->fast_dot = t->dot && id->dots.integerDotProduct4x8BitPackedSignedAccelerated;
  t->scalar_loads = id->driver.driverID == VK_DRIVER_ID_MESA_LLVMPIPE && VK_VERSION_MAJOR(p->driverVersion) >= 26;
  t->max_threads = limits->maxComputeWorkGroupInvocations < limits->maxComputeWorkGroupSize[0]
                       ? limits->maxComputeWorkGroupInvocations
                       : limits->maxComputeWorkGroupSize[0];
  t->shared_memory = p->limits.maxComputeSharedMemorySize;
  for (int i = 0; i < 3; i++) t->max_groups[i] = p->limits.maxComputeWorkGroupCount[i];
  t->sets = !addresses;
  t->max_range = limits->maxStorageBufferRange;
  t->range_align = limits->minStorageBufferOffsetAlignment > 16 ? limits->minStorageBufferOffsetAlignment : 16;
}

/* Whether a chain of feature structs, as an engine gave it to vkCreateDevice, has buffer device addresses on. */
static int enabled_addresses(const void *features) {
  for (const VkBaseInStructure *s = features; s; s = s->pNext) {
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES &&
        ((const VkPhysicalDeviceVulkan12Features *)(const void *)s)->bufferDeviceAddress)
      return 1;
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES &&
        ((const VkPhysicalDeviceBufferDeviceAddressFeatures *)(const void *)s)->bufferDeviceAddress)
      return 1;
  }
  return 0;
}

/* Whether it has subgroupSizeControl on. */
static int enabled_size_control(const void *features) {
  for (const VkBaseInStructure *s = features; s; s = s->pNext) {
#if defined(VK_API_VERSION_1_3)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES &&
        ((const VkPhysicalDeviceVulkan13Features *)(const void *)s)->subgroupSizeControl)
      return 1;
#endif
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT &&
        ((const VkPhysicalDeviceSubgroupSizeControlFeaturesEXT *)(const void *)s)->subgroupSizeControl)
      return 1;
  }
  return 0;
}

/* Whether it has shaderIntegerDotProduct on. */
static int enabled_dot(const void *features) {
  for (const VkBaseInStructure *s = features; s; s = s->pNext) {
#if defined(VK_API_VERSION_1_3)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES &&
        ((const VkPhysicalDeviceVulkan13Features *)(const void *)s)->shaderIntegerDotProduct)
      return 1;
#endif
    if (s->sType == DOT_FEATURES && ((const dot_features *)(const void *)s)->shaderIntegerDotProduct) return 1;
  }
  return 0;
}

/* NULL, or what of the things that take the place of addresses an engine has not enabled. */
static const char *disabled_instead(const moi_vulkan_device *e) {
  int push = 0, indexing = 0;
  for (uint32_t i = 0; i < e->n_extensions; i++) push |= !strcmp(e->extensions[i], push_descriptor_name);
  for (const VkBaseInStructure *s = e->features; s; s = s->pNext)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2 &&
        ((const VkPhysicalDeviceFeatures2 *)(const void *)s)->features.shaderStorageBufferArrayDynamicIndexing)
      indexing = 1;
  return !push ? push_descriptor_name : !indexing ? "shaderStorageBufferArrayDynamicIndexing" : NULL;
}

static moi_status check_family(const char *fn, const moi_vulkan *v, const char *what, uint32_t family) {
  VkQueueFamilyProperties list[32];
  uint32_t n = 32;
  v->vk.GetPhysicalDeviceQueueFamilyProperties(v->physical, &n, list);
  if (family >= n) return moi_fail(MOI_INVALID_ARGUMENT, fn, "%s: %u, there are %u queue families", what, family, n);
  if (!(list[family].queueFlags & VK_QUEUE_COMPUTE_BIT))
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "%s: %u, this queue family has no compute", what, family);
  return MOI_OK;
}

static moi_status open_engines(const char *fn, moi_vulkan *v, const moi_vulkan_device *e) {
  if (!e->get_instance_proc_addr || !e->instance || !e->physical_device || !e->device)
    return moi_fail(MOI_INVALID_ARGUMENT, fn,
                    "desc->next: get_instance_proc_addr, instance, physical_device and device must all be there");
  if (e->n_extensions && !e->extensions)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->next: extensions is null, n_extensions is %u", e->n_extensions);
  v->vk.GetInstanceProcAddr = (PFN_vkGetInstanceProcAddr)e->get_instance_proc_addr;
  v->instance = e->instance;
  v->physical = e->physical_device;
  v->family = e->queue_family;
  moi_status status = load_instance(fn, &v->vk, v->instance);
  if (status) return status;
  identity id;
  identify(&v->vk, v->physical, &id);
  const char *lacks = lacks_of(&id);
  if (lacks) return moi_fail(MOI_UNSUPPORTED, fn, "desc->next: the physical device lacks %s%s", lacks, beside(&id));
  int addresses = has_addresses(&id) && enabled_addresses(e->features);
  const char *off = addresses ? NULL : missing_instead(&id);
  if (!addresses && !off) off = disabled_instead(e);
  if (off)
    return moi_fail(MOI_UNSUPPORTED, fn,
                    "desc->next: features: bufferDeviceAddress was not enabled on this device, nor is %s there in its "
                    "place (moi_vulkan_requirements lists what to enable)",
                    off);
  read_traits(&id, addresses, enabled_size_control(e->features), enabled_dot(e->features), &v->traits);
  status = check_family(fn, v, "desc->next: queue_family", v->family);
  if (status) return status;
  status = load_device(fn, &v->vk, e->device, v->traits.sets);
  if (!status) v->device = e->device;
  return status;
}

static int agrees(const identity *id, const moi_vulkan_choice *choice) {
  if (!choice) return 1;
  if (choice->name && !strstr(id->properties.properties.deviceName, choice->name)) return 0;
  if (choice->type && (int)choice->type != (int)id->properties.properties.deviceType) return 0;
  return !choice->uuid || !memcmp(choice->uuid, id->v11.deviceUUID, VK_UUID_SIZE);
}

static moi_status make_device(const char *fn, moi_vulkan *v) {
  VkQueueFamilyProperties list[32];
  uint32_t n = 32;
  v->vk.GetPhysicalDeviceQueueFamilyProperties(v->physical, &n, list);
  v->family = n;
  for (uint32_t i = n; i-- > 0;) /* a family of compute alone runs beside graphics; any with compute will do */
    if (list[i].queueFlags & VK_QUEUE_COMPUTE_BIT)
      if (v->family == n || !(list[i].queueFlags & VK_QUEUE_GRAPHICS_BIT)) v->family = i;
  if (v->family == n) return moi_fail(MOI_UNSUPPORTED, fn, "desc->device: has no compute queue");
  const float priority = 1;
  VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                   .queueFamilyIndex = v->family,
                                   .queueCount = 1,
                                   .pQueuePriorities = &priority};
  VkPhysicalDeviceVulkan12Features features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                               .bufferDeviceAddress = !v->traits.sets};
  VkPhysicalDeviceFeatures core = {.shaderStorageBufferArrayDynamicIndexing = v->traits.sets};
  VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                             .pNext = &features,
                             .queueCreateInfoCount = 1,
                             .pQueueCreateInfos = &queue,
                             .pEnabledFeatures = &core};
  VkPhysicalDeviceSubgroupSizeControlFeaturesEXT size_control = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT, .subgroupSizeControl = VK_TRUE};
  static const char *const portability = "VK_KHR_portability_subset"; /* must be enabled where it is */
  dot_features dot = {.sType = DOT_FEATURES, .shaderIntegerDotProduct = VK_TRUE};
  const char *extensions[4];
  info.ppEnabledExtensionNames = extensions;
  if (has_device_extension(&v->vk, v->physical, portability)) extensions[info.enabledExtensionCount++] = portability;
  if (v->traits.sets) extensions[info.enabledExtensionCount++] = push_descriptor_name;
  if (v->traits.size_control) {
    extensions[info.enabledExtensionCount++] = size_control_name;
    features.pNext = &size_control;
  }
  if (v->traits.dot) {
    extensions[info.enabledExtensionCount++] = dot_name;
    dot.pNext = features.pNext;
    features.pNext = &dot;
  }
  PFN_vkDestroyDevice destroy;
  VkResult result = v->vk.CreateDevice(v->physical, &info, NULL, &v->device);
  if (result != VK_SUCCESS) {
    v->device = VK_NULL_HANDLE;
    return moi_vk_fail(fn, "vkCreateDevice", result);
  }
  moi_status status = load_device(fn, &v->vk, v->device, v->traits.sets);
  if (status) {
    destroy = (PFN_vkDestroyDevice)v->vk.GetDeviceProcAddr(v->device, "vkDestroyDevice");
    if (destroy) destroy(v->device, NULL);
    v->device = VK_NULL_HANDLE;
    return status;
  }
  v->vk.GetDeviceQueue(v->device, v->family, 0, &v->queue);
  return MOI_OK;
}

static moi_status open_own(const char *fn, moi_vulkan *v, uint32_t index, const moi_vulkan_choice *choice) {
  VkPhysicalDevice devices[MAX_DEVICES];
  uint32_t count, left = index;
  moi_status status = make_instance(fn, &v->vk, &v->instance);
  if (status) return status;
  v->owns = 1;
  status = list_devices(fn, &v->vk, v->instance, devices, &count);
  if (status) return status;
  for (uint32_t i = 0; i < count; i++) {
    identity id;
    identify(&v->vk, devices[i], &id);
    if (!agrees(&id, choice) || left--) continue;
    const char *debug = getenv("MOI_DEBUG"), *lacks = lacks_of(&id);
    int sets = !has_addresses(&id) || (debug && !strcmp(debug, "vulkan=sets"));
    if (!lacks && sets) lacks = missing_instead(&id);
    if (lacks)
      return moi_fail(MOI_UNSUPPORTED, fn, "desc->device: %s lacks %s%s", id.properties.properties.deviceName, lacks,
                      beside(&id));
    v->physical = devices[i];
    read_traits(&id, !sets, 1, 1, &v->traits);
    return make_device(fn, v);
  }
  return moi_fail(MOI_NO_DEVICE, fn, "desc->device: %u, Vulkan has %u devices%s", index, count,
                  choice ? ", and not so many that agree with the choice in desc->next" : "");
}

static moi_status open_either(const char *fn, const moi_context *context, moi_vulkan *v, const void **cache,
                              uint64_t *cache_size) {
  const moi_chain *chain = context->desc.next;
  if (chain && chain->next)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->next: one struct of moiety_vulkan.h, and nothing behind it");
  if (chain && chain->type == MOI_CHAIN_VULKAN_DEVICE) {
    const moi_vulkan_device *e = (const void *)chain;
    if (context->desc.device)
      return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->device: %u, but the engine brings its device", context->desc.device);
    *cache = e->pipeline_cache;
    *cache_size = e->pipeline_cache_size;
    return open_engines(fn, v, e);
  }
  if (chain && chain->type != MOI_CHAIN_VULKAN_CHOICE)
    return moi_fail(MOI_UNSUPPORTED, fn, "desc->next: type 0x%x is not one of moiety_vulkan.h", chain->type);
  const moi_vulkan_choice *choice = (const void *)chain;
  if (choice) {
    *cache = choice->pipeline_cache;
    *cache_size = choice->pipeline_cache_size;
  }
  return open_own(fn, v, context->desc.device, choice);
}

moi_status moi_vk_open(moi_context *context) {
  const char *fn = "moi_context_create";
  const void *cache = NULL;
  uint64_t cache_size = 0;
  moi_vulkan *v = moi_allocate(context, sizeof *v);
  if (!v) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *v);
  memset(v, 0, sizeof *v);
  context->state = v;
  moi_status status = open_either(fn, context, v, &cache, &cache_size);
  if (!status && cache_size && !cache)
    status = moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->next: pipeline_cache is null, its size is not 0");
  if (!status && v->traits.sets)
    moi_log_line(context, MOI_LOG_WARNING,
                 "%s: without bufferDeviceAddress memory is reached by descriptors: fewer and slower kernels, views of %llu "
                 "bytes at most (maxStorageBufferRange)",
                 fn, (unsigned long long)v->traits.max_range);
  if (!status) status = moi_vk_pipelines_open(fn, context, cache, (size_t)cache_size);
  if (status) moi_vk_close(context);
  return status;
}

void moi_vk_close(moi_context *context) {
  moi_vulkan *v = context->state;
  if (v->device) moi_vk_pipelines_close(context);
  if (v->owns && v->device) v->vk.DestroyDevice(v->device, NULL);
  if (v->owns && v->instance) v->vk.DestroyInstance(v->instance, NULL);
  moi_release(context, v, sizeof *v);
  context->state = NULL;
}

moi_status moi_vulkan_handles(const moi_context *context, moi_vulkan_handles_out *out) {
  const char *fn = "moi_vulkan_handles";
  if (!context || context->ops != &moi_vulkan_ops)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "context: is not one of MOI_BACKEND_VULKAN");
  const moi_vulkan *v = context->state;
  moi_vulkan_handles_out h;
  memset(&h, 0, sizeof h);
  h.get_instance_proc_addr = (moi_vulkan_function)v->vk.GetInstanceProcAddr;
  h.instance = v->instance;
  h.physical_device = v->physical;
  h.device = v->device;
  h.queue = v->queue;
  h.queue_family = v->family;
  h.addresses = !v->traits.sets;
  return moi_struct_out(fn, "out", out, sizeof h, &h);
}
