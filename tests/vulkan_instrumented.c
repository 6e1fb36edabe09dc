/* GPU-assisted validation: the layer puts checks of every address into the shaders. The ops of the small layer cause no
 * message, and a read of memory that is no buffer's any more does. Skipped where the layer is not there or too old. */
#include "tests/support.h"

#if defined(MOI_HAVE_VULKAN) && !defined(_WIN32)

#include <stdlib.h>

#include "tests/vulkan.h"

/* Which layer this has been seen to work with (docs/vulkan.md): 1.3.239 makes SPIR-V that is not valid. */
#define OLDEST VK_MAKE_API_VERSION(0, 1, 4, 363)

static engine e;
static moi_context *context;

static int layer_is_new(void) {
  PFN_vkGetInstanceProcAddr get = engine_loader();
  PFN_vkEnumerateInstanceLayerProperties list =
      get ? (PFN_vkEnumerateInstanceLayerProperties)get(NULL, "vkEnumerateInstanceLayerProperties") : NULL;
  VkLayerProperties layers[32];
  uint32_t n = 32;
  if (!list || list(&n, layers) < VK_SUCCESS) return 0;
  for (uint32_t i = 0; i < n; i++)
    if (!strcmp(layers[i].layerName, "VK_LAYER_KHRONOS_validation")) return layers[i].specVersion >= OLDEST;
  return 0;
}

static int open_shared(void **state) {
  (void)state;
  moi_vulkan_device device = engine_handles(&e);
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = MOI_BACKEND_VULKAN;
  desc.next = &device.chain;
  passes(moi_context_create(&desc, &context));
  return 0;
}
static int close_shared(void **state) {
  (void)state;
  moi_context_destroy(context);
  return 0;
}

/* Records and submits; returns how many messages that has caused. */
static int run_op(const layer *l, moi_op op) {
  int before = e.messages;
  moi_plan *plan = NULL;
  passes(layer_plan(l, op, context, &plan));
  size_t align, size = moi_plan_workspace(plan, &align);
  engine_buffer workspace = engine_take(&e, size);
  moi_buffer view = engine_view(&workspace);
  view.size = size;
  engine_commands commands = engine_begin(&e);
  passes(layer_record(l, op, plan, view, &commands));
  engine_end(&e, &commands);
  engine_submit(&e, &commands);
  engine_forget(&e, &commands);
  engine_drop(&e, &workspace);
  moi_plan_destroy(plan);
  return e.messages - before;
}

static void test_ops_cause_no_message(void **state) {
  (void)state;
  static layer host, device;
  engine_buffer memory = engine_take(&e, sizeof(layer));
  for (int i = 0; i < 4; i++) {
    layer_make(&host);
    layer_make(&device);
    layer_to_device(&device, &memory);
    assert_int_equal(run_op(&device, layer_ops[i]), 0);
    agree(layer_ops[i], &host, memory.mapped);
  }
  engine_drop(&e, &memory);
}

static uint64_t address_of(const engine_buffer *b) {
  PFN_vkGetBufferDeviceAddress get = (PFN_vkGetBufferDeviceAddress)e.GetDeviceProcAddr(e.device, "vkGetBufferDeviceAddress");
  VkBufferDeviceAddressInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = b->buffer};
  return get(e.device, &info);
}

/* The view of a matrix names one buffer, and is as far behind it as another is: memory that stays there without the buffer. */
static void test_a_stray_read_is_reported(void **state) {
  (void)state;
  static layer device;
  VkPhysicalDeviceProperties properties;
  e.GetPhysicalDeviceProperties(e.physical, &properties);
  if (properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU) skip(); /* it may lose a GPU */
  engine_buffer memory = engine_take(&e, sizeof(layer)), other = engine_take(&e, sizeof(layer));
  layer_make(&device);
  memcpy(other.mapped, &device, sizeof device);
  layer_to_device(&device, &memory);
  device.up_w.data.offset += address_of(&other) - address_of(&memory);
  assert_int_equal(run_op(&device, MOI_OP_GEMM), 0);
  e.DestroyBuffer(e.device, other.buffer, NULL);
  print_message("messages that are wanted:\n");
  assert_true(run_op(&device, MOI_OP_GEMM) > 0);
  e.FreeMemory(e.device, other.memory, NULL);
  engine_drop(&e, &memory);
}

int main(void) {
  if (!layer_is_new()) return print_message("no validation layer of 1.4.363 or newer on this machine\n"), 77;
  setenv("VK_LAYER_GPUAV_ENABLE", "1", 1);
  setenv("VK_LAYER_VALIDATE_CORE", "0", 1);
  setenv("VK_LAYER_GPUAV_SHARED_MEMORY_DATA_RACE", "0", 1); /* docs/vulkan.md */
  if (!engine_open(&e, 1)) return 77;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_ops_cause_no_message),
      cmocka_unit_test(test_a_stray_read_is_reported),
  };
  int failed = cmocka_run_group_tests(tests, open_shared, close_shared);
  engine_close(&e);
  return failed;
}

#else

int main(void) {
  print_message("this build has no Vulkan backend\n");
  return 77;
}

#endif
