/* An engine with a Vulkan device of its own: moiety records a layer's experts into the engine's command buffer, the engine
 * submits it, and the CPU backend says whether the result is right. Exit status 77: there is no device to use. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vulkan.h>

#include <moiety_vulkan.h>

enum { TOKENS = 5, HIDDEN = 256, INTER = 128, EXPERTS = 8, TOP_K = 2 };

#define VK(call)                                                                                                       \
  do {                                                                                                                 \
    VkResult vk_result = (call);                                                                                       \
    if (vk_result != VK_SUCCESS) {                                                                                     \
      fprintf(stderr, #call ": VkResult %d\n", (int)vk_result);                                                        \
      exit(1);                                                                                                         \
    }                                                                                                                  \
  } while (0)
#define MOI(call)                                                                                                      \
  do {                                                                                                                 \
    if (call) {                                                                                                        \
      fprintf(stderr, "%s\n", moi_last_error());                                                                       \
      exit(1);                                                                                                         \
    }                                                                                                                  \
  } while (0)

/* ---- the engine */

static VkInstance instance;
static VkPhysicalDevice physical;
static VkDevice device;
static VkQueue queue;
static uint32_t family;
static VkPhysicalDeviceVulkan12Features features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};

/* Whether moiety can work on a device; prints what it asks for. */
static int usable(VkPhysicalDevice candidate) {
  moi_vulkan_requirement r = MOI_VULKAN_REQUIREMENT_INIT;
  int ok = 1;
  for (uint32_t i = 0;
       !moi_vulkan_requirements((moi_vulkan_function)vkGetInstanceProcAddr, instance, candidate, i, &r); i++) {
    printf("  %-9s %-28s %s%s\n", r.kind, r.name, r.supported ? "there" : "missing", r.required ? "" : " (not required)");
    ok &= r.supported || !r.required;
  }
  return ok;
}

static int open_engine(void) {
  VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_2};
  VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
  VkPhysicalDevice devices[16];
  uint32_t n = 16;
  if (vkCreateInstance(&info, NULL, &instance) || vkEnumeratePhysicalDevices(instance, &n, devices) < 0) return 0;
  for (uint32_t i = 0; i < n && !physical; i++) {
    VkPhysicalDeviceProperties p;
    vkGetPhysicalDeviceProperties(devices[i], &p);
    printf("%s\n", p.deviceName);
    if (usable(devices[i])) physical = devices[i];
  }
  if (!physical) return 0;
  VkQueueFamilyProperties families[16];
  uint32_t n_families = 16;
  vkGetPhysicalDeviceQueueFamilyProperties(physical, &n_families, families);
  while (family < n_families && !(families[family].queueFlags & VK_QUEUE_COMPUTE_BIT)) family++;
  if (family == n_families) return 0;
  const float priority = 1;
  VkDeviceQueueCreateInfo queues = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                    .queueFamilyIndex = family,
                                    .queueCount = 1,
                                    .pQueuePriorities = &priority};
  features.bufferDeviceAddress = VK_TRUE;
  VkDeviceCreateInfo create = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &features,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queues};
  VK(vkCreateDevice(physical, &create, NULL, &device));
  vkGetDeviceQueue(device, family, 0, &queue);
  return 1;
}

typedef struct buffer {
  VkBuffer buffer;
  VkDeviceMemory memory;
  void *mapped;
  size_t size;
} buffer;

static buffer make_buffer(size_t size, const void *contents) {
  buffer b = {.size = size};
  VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                             .size = (size + 3) & ~(size_t)3,
                             .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT |
                                      VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
  VK(vkCreateBuffer(device, &info, NULL, &b.buffer));
  VkMemoryRequirements needs;
  VkPhysicalDeviceMemoryProperties types;
  vkGetBufferMemoryRequirements(device, b.buffer, &needs);
  vkGetPhysicalDeviceMemoryProperties(physical, &types);
  const VkMemoryPropertyFlags host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  uint32_t type = 0;
  while (!(needs.memoryTypeBits >> type & 1) || (types.memoryTypes[type].propertyFlags & host) != host) type++;
  VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                     .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
  VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                   .pNext = &flags,
                                   .allocationSize = needs.size,
                                   .memoryTypeIndex = type};
  VK(vkAllocateMemory(device, &allocate, NULL, &b.memory));
  VK(vkBindBufferMemory(device, b.buffer, b.memory, 0));
  VK(vkMapMemory(device, b.memory, 0, VK_WHOLE_SIZE, 0, &b.mapped));
  if (contents) memcpy(b.mapped, contents, size);
  return b;
}

static void free_buffer(buffer *b) {
  vkDestroyBuffer(device, b->buffer, NULL);
  vkFreeMemory(device, b->memory, NULL);
}

static moi_buffer view(const buffer *b) {
  moi_buffer v = {.handle = (uint64_t)(uintptr_t)b->buffer, .size = b->size};
  return v;
}

/* ---- the layer */

static float random_float(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

static float *random_floats(size_t n, float scale, uint32_t seed) {
  float *x = malloc(n * sizeof *x);
  if (!x) exit(1);
  for (size_t i = 0; i < n; i++) x[i] = scale * random_float(&seed);
  return x;
}

int main(void) {
  if (!open_engine()) {
    printf("no Vulkan device that moiety can use\n");
    return 77;
  }
  /* What lies in memory, for both backends. */
  const size_t matrix = (size_t)EXPERTS * INTER * HIDDEN, slots = TOKENS * TOP_K, rows = TOKENS * HIDDEN;
  float *gate = random_floats(matrix, 0.06f, 1), *up = random_floats(matrix, 0.06f, 2), *x = random_floats(rows, 1, 4);
  float *down = random_floats(matrix, 0.09f, 3), *y = malloc(rows * sizeof *y), weights[TOKENS * TOP_K];
  int32_t ids[TOKENS * TOP_K];
  if (!y) exit(1);
  for (int t = 0; t < TOKENS; t++)
    for (int j = 0; j < TOP_K; j++) {
      ids[t * TOP_K + j] = (t * 3 + j * 5) % EXPERTS;
      weights[t * TOP_K + j] = j ? 0.25f : 0.75f;
    }
  moi_experts_desc d = MOI_EXPERTS_DESC_INIT;
  d.max_tokens = TOKENS;
  d.hidden = HIDDEN;
  d.intermediate = INTER;
  d.n_experts = EXPERTS;
  d.top_k = TOP_K;
  d.format = MOI_FORMAT_F32;

  /* moiety on the engine's device */
  moi_vulkan_device mine = MOI_VULKAN_DEVICE_INIT;
  mine.get_instance_proc_addr = (moi_vulkan_function)vkGetInstanceProcAddr;
  mine.instance = instance;
  mine.physical_device = physical;
  mine.device = device;
  mine.queue_family = family;
  mine.features = &features;
  moi_context_desc c = MOI_CONTEXT_DESC_INIT;
  c.backend = MOI_BACKEND_VULKAN;
  c.next = &mine.chain;
  moi_context *context;
  moi_plan *plan;
  MOI(moi_context_create(&c, &context));
  MOI(moi_experts_plan(context, &d, &plan));
  char text[2048];
  moi_plan_describe(plan, text, sizeof text);
  printf("%s", text);

  buffer b[] = {make_buffer(matrix * 4, gate),  make_buffer(matrix * 4, up), make_buffer(matrix * 4, down),
                make_buffer(rows * 4, x),       make_buffer(rows * 4, NULL), make_buffer(slots * 4, ids),
                make_buffer(slots * 4, weights), make_buffer(moi_plan_workspace(plan, NULL), NULL)};
  moi_weights w[3] = {MOI_WEIGHTS_INIT, MOI_WEIGHTS_INIT, MOI_WEIGHTS_INIT};
  for (int i = 0; i < 3; i++) w[i].data = view(&b[i]);
  moi_experts_args a = MOI_EXPERTS_ARGS_INIT;
  a.n_tokens = TOKENS;
  a.gate = &w[0], a.up = &w[1], a.down = &w[2];
  a.input = view(&b[3]), a.output = view(&b[4]), a.ids = view(&b[5]), a.weights = view(&b[6]);

  /* recorded once by moiety, submitted by the engine */
  VkCommandPoolCreateInfo pool_info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .queueFamilyIndex = family};
  VkCommandPool pool;
  VkCommandBuffer commands;
  VK(vkCreateCommandPool(device, &pool_info, NULL, &pool));
  VkCommandBufferAllocateInfo one = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                     .commandPool = pool,
                                     .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                     .commandBufferCount = 1};
  VK(vkAllocateCommandBuffers(device, &one, &commands));
  VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  VK(vkBeginCommandBuffer(commands, &begin));
  MOI(moi_experts_run(plan, &a, view(&b[7]), (moi_queue){commands}));
  VkMemoryBarrier to_host = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                             .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                             .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &to_host, 0, NULL,
                       0, NULL);
  VK(vkEndCommandBuffer(commands));
  VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
  VK(vkQueueSubmit(queue, 1, &submit, VK_NULL_HANDLE));
  VK(vkQueueWaitIdle(queue));

  /* the same on the CPU */
  moi_context_desc cpu = MOI_CONTEXT_DESC_INIT;
  moi_context *host;
  moi_plan *host_plan;
  MOI(moi_context_create(&cpu, &host));
  MOI(moi_experts_plan(host, &d, &host_plan));
  w[0].data = moi_ptr(gate, matrix * 4), w[1].data = moi_ptr(up, matrix * 4), w[2].data = moi_ptr(down, matrix * 4);
  a.input = moi_ptr(x, rows * 4), a.output = moi_ptr(y, rows * 4);
  a.ids = moi_ptr(ids, sizeof ids), a.weights = moi_ptr(weights, sizeof weights);
  size_t size = moi_plan_workspace(host_plan, NULL);
  void *workspace = aligned_alloc(64, (size + 63) / 64 * 64);
  if (!workspace) exit(1);
  MOI(moi_experts_run(host_plan, &a, moi_ptr(workspace, size), (moi_queue){NULL}));

  double error = 0, norm = 0;
  for (size_t i = 0; i < rows; i++) {
    double r = y[i], e = ((const float *)b[4].mapped)[i] - r;
    error += e * e;
    norm += r * r;
  }
  error = sqrt(error / norm);
  printf("relative difference of the backends: %.2g\n", error);

  moi_plan_destroy(host_plan);
  moi_context_destroy(host);
  moi_plan_destroy(plan);
  moi_context_destroy(context); /* the engine's device lives on */
  for (size_t i = 0; i < sizeof b / sizeof b[0]; i++) free_buffer(&b[i]);
  vkDestroyCommandPool(device, pool, NULL);
  vkDestroyDevice(device, NULL);
  vkDestroyInstance(instance, NULL);
  free(workspace), free(gate), free(up), free(down), free(x), free(y);
  return error < 1e-5 ? 0 : 1;
}
