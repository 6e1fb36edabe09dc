/* moiety inside an engine's Vulkan device without bufferDeviceAddress: memory by descriptors. */
#include "tests/support.h"

#if defined(MOI_HAVE_VULKAN)

#include "tests/vulkan.h"

static engine e;
static moi_context *context;

static moi_status open_on(const moi_vulkan_device *device, moi_context **out) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = MOI_BACKEND_VULKAN;
  desc.next = &device->chain;
  desc.allocate = engine_allocate;
  desc.free = engine_free;
  return moi_context_create(&desc, out);
}

static int open_shared(void **state) {
  (void)state;
  moi_vulkan_device device = engine_handles(&e);
  passes(open_on(&device, &context));
  return 0;
}
static int close_shared(void **state) {
  (void)state;
  moi_context_destroy(context);
  assert_int_equal(engine_bytes, 0);
  return 0;
}

/* Records and submits. The workspace lies far behind its buffer's begin, and there is more of it than is asked for. */
static void run_op(const layer *l, moi_op op) {
  moi_plan *plan = NULL;
  passes(layer_plan(l, op, context, &plan));
  size_t align, size = moi_plan_workspace(plan, &align);
  engine_buffer workspace = engine_take(&e, size + 3 * align);
  moi_buffer view = engine_view(&workspace);
  view.offset = 2 * align, view.size = size + align;
  engine_commands commands = engine_begin(&e);
  passes(layer_record(l, op, plan, view, &commands));
  engine_end(&e, &commands);
  moi_plan_destroy(plan);
  engine_submit(&e, &commands);
  engine_forget(&e, &commands);
  engine_drop(&e, &workspace);
}

/* All views in one buffer. */
static void test_one_buffer(void **state) {
  (void)state;
  static layer host, device;
  engine_buffer memory = engine_take(&e, sizeof(layer));
  for (int i = 0; i < 4; i++) {
    layer_make(&host);
    layer_make(&device);
    layer_to_device(&device, &memory);
    run_op(&device, layer_ops[i]);
    agree(layer_ops[i], &host, memory.mapped);
  }
  engine_drop(&e, &memory);
}

/* Each view in a buffer of its own, behind its begin. */
static void test_a_buffer_for_each_view(void **state) {
  (void)state;
  static layer host, device, result;
  for (int i = 0; i < 4; i++) {
    engine_buffer buffers[LAYER_VIEWS];
    moi_buffer *views[LAYER_VIEWS], was[LAYER_VIEWS];
    layer_make(&host);
    layer_make(&device);
    layer_make(&result);
    layer_views(&device, views);
    for (size_t k = 0; k < LAYER_VIEWS; k++) {
      was[k] = *views[k];
      if (!was[k].ptr) continue;
      buffers[k] = engine_take(&e, was[k].size + 12 * k);
      memcpy((uint8_t *)buffers[k].mapped + 12 * k, (const uint8_t *)was[k].ptr + was[k].offset, was[k].size);
      *views[k] = (moi_buffer){.handle = (uint64_t)(uintptr_t)buffers[k].buffer, .offset = 12 * k, .size = was[k].size};
    }
    run_op(&device, layer_ops[i]);
    for (size_t k = 0; k < LAYER_VIEWS; k++) {
      if (!was[k].ptr) continue;
      const uint8_t *from = (const uint8_t *)buffers[k].mapped + 12 * k;
      uint8_t *to = (uint8_t *)&result + ((const uint8_t *)was[k].ptr + was[k].offset - (const uint8_t *)&device);
      int is_output = views[k] == &device.route_args.ids || views[k] == &device.route_args.weights ||
                      views[k] == &device.route_args.counts || views[k] == &device.route_args.offsets ||
                      views[k] == &device.route_args.permutation || views[k] == &device.route_args.logits_out ||
                      views[k] == &device.experts_args.output || views[k] == &device.gemm_args.output;
      if (is_output) memcpy(to, from, was[k].size);
      engine_drop(&e, &buffers[k]);
    }
    agree(layer_ops[i], &host, &result);
  }
}

/* What a storage buffer cannot be is refused, and nothing is recorded; so are tables of addresses. */
static void test_what_is_refused(void **state) {
  (void)state;
  static layer l;
  moi_plan *plan = NULL;
  VkPhysicalDeviceProperties p;
  e.GetPhysicalDeviceProperties(e.physical, &p);
  uint64_t most = p.limits.maxStorageBufferRange;
  engine_buffer memory = engine_take(&e, sizeof(layer));
  layer_make(&l);
  layer_to_device(&l, &memory);
  passes(layer_plan(&l, MOI_OP_GEMM, context, &plan));
  assert_string_equal(moi_plan_kernel(plan), "f32-tile");
  size_t align, size = moi_plan_workspace(plan, &align);
  engine_buffer workspace = engine_take(&e, size);
  engine_commands commands = engine_begin(&e);
  moi_buffer was = l.up_w.data;
  l.up_w.data.size = 16 * most; /* experts may lie in several, not in so many */
  refused(layer_record(&l, MOI_OP_GEMM, plan, engine_view(&workspace), &commands), MOI_UNSUPPORTED,
          "maxStorageBufferRange");
  l.up_w.data = was;
  was = l.gemm_args.input;
  l.gemm_args.input.size = most + 4;
  refused(layer_record(&l, MOI_OP_GEMM, plan, engine_view(&workspace), &commands), MOI_UNSUPPORTED,
          "maxStorageBufferRange");
  l.gemm_args.input = was;
  engine_end(&e, &commands);
  engine_submit(&e, &commands);
  const layer *untouched = memory.mapped;
  layer_make(&l);
  assert_memory_equal(untouched->product, l.product, sizeof l.product);
  moi_plan_destroy(plan);
  engine_forget(&e, &commands);
  engine_drop(&e, &workspace);
  engine_drop(&e, &memory);

  l.gemm.flags |= MOI_EXPERTS_TABLES;
  refused(layer_plan(&l, MOI_OP_GEMM, context, &plan), MOI_UNSUPPORTED, "MOI_EXPERTS_TABLES");
  l.experts.flags |= MOI_EXPERTS_TABLES;
  refused(layer_plan(&l, MOI_OP_EXPERTS, context, &plan), MOI_UNSUPPORTED, "MOI_EXPERTS_TABLES");
  layer_make(&l);
  l.gemm.kernel = "f32-stream";
  refused(layer_plan(&l, MOI_OP_GEMM, context, &plan), MOI_UNSUPPORTED, "bufferDeviceAddress");
  l.gemm.kernel = NULL;
  l.gemm.n = l.gemm.k = 1u << 14;
  l.gemm.n_experts = 15 * ((uint32_t)(most >> 30) + 1) + 1;
  refused(layer_plan(&l, MOI_OP_GEMM, context, &plan), MOI_UNSUPPORTED, "maxStorageBufferRange");
  layer_make(&l);
  l.gemm.max_rows = 1u << 24, l.gemm.n = l.gemm.k = 256;
  refused(layer_plan(&l, MOI_OP_GEMM, context, &plan), MOI_UNSUPPORTED, "maxStorageBufferRange");
}

/* Experts that one storage buffer has no room for (where it has 2^27 bytes, as is guaranteed), not at its begin. */
static void test_experts_in_several_buffers(void **state) {
  (void)state;
  enum { N = 4096, K = 3840, EXPERTS = 4, BEFORE = 36 };
  const size_t each = (size_t)N * K;
  engine_buffer w = engine_take(&e, BEFORE + EXPERTS * each * 4);
  engine_buffer rows = engine_take(&e, (size_t)EXPERTS * (K + N) * 4), begins = engine_take(&e, (EXPERTS + 1) * 4);
  float *matrix = (float *)(void *)((uint8_t *)w.mapped + BEFORE), *x = rows.mapped, *y = x + EXPERTS * K;
  int32_t *offsets = begins.mapped;
  memset(matrix, 0, EXPERTS * each * 4);
  layer_fill(x, EXPERTS * K, 3);
  for (size_t i = 0; i < EXPERTS; i++) {
    offsets[i] = (int32_t)i;
    for (size_t n = 0; n < N; n++) matrix[i * each + n * K + n % K] = (float)(i + 1);
  }
  offsets[EXPERTS] = EXPERTS;
  moi_gemm_desc d = MOI_GEMM_DESC_INIT;
  d.max_rows = d.n_experts = EXPERTS, d.n = N, d.k = K, d.format = MOI_FORMAT_F32;
  moi_weights weights = MOI_WEIGHTS_INIT;
  weights.data = engine_view(&w);
  weights.data.offset = BEFORE, weights.data.size = EXPERTS * each * 4;
  moi_gemm_args a = MOI_GEMM_ARGS_INIT;
  a.n_rows = EXPERTS;
  a.weights = &weights;
  a.input = a.output = engine_view(&rows);
  a.input.size = EXPERTS * K * 4;
  a.output.offset = a.input.size, a.output.size = EXPERTS * N * 4;
  a.offsets = engine_view(&begins);
  moi_plan *plan = NULL;
  passes(moi_gemm_plan(context, &d, &plan));
  size_t align, size = moi_plan_workspace(plan, &align);
  engine_buffer workspace = engine_take(&e, size);
  engine_commands commands = engine_begin(&e);
  passes(moi_gemm_run(plan, &a, engine_view(&workspace), (moi_queue){commands.buffer}));
  engine_end(&e, &commands);
  engine_submit(&e, &commands);
  for (size_t i = 0; i < EXPERTS; i++)
    for (size_t n = 0; n < N; n++) assert_true(y[i * N + n] == (float)(i + 1) * x[i * K + n % K]);
  engine_forget(&e, &commands);
  moi_plan_destroy(plan);
  engine_drop(&e, &workspace);
  engine_drop(&e, &begins);
  engine_drop(&e, &rows);
  engine_drop(&e, &w);
}

/* An engine that has enabled neither addresses nor what takes their place. */
static void test_refused_devices(void **state) {
  (void)state;
  moi_context *c = NULL;
  moi_vulkan_device d = engine_handles(&e);
  d.n_extensions = 0;
  refused(open_on(&d, &c), MOI_UNSUPPORTED, "VK_KHR_push_descriptor");
  d = engine_handles(&e), d.features = &e.features;
  refused(open_on(&d, &c), MOI_UNSUPPORTED, "shaderStorageBufferArrayDynamicIndexing");
  moi_vulkan_handles_out h = MOI_VULKAN_HANDLES_INIT;
  passes(moi_vulkan_handles(context, &h));
  assert_int_equal(h.addresses, 0);
}

int main(void) {
  if (!engine_open(&e, 0)) return 77;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_one_buffer),
      cmocka_unit_test(test_a_buffer_for_each_view),
      cmocka_unit_test(test_experts_in_several_buffers),
      cmocka_unit_test(test_what_is_refused),
      cmocka_unit_test(test_refused_devices),
  };
  int failed = cmocka_run_group_tests(tests, open_shared, close_shared);
  engine_close(&e);
  print_message("validation: %s\n", !e.validated ? "the layer is not installed"
                                    : e.messages ? "MESSAGES"
                                                 : "no message");
  return failed || e.messages;
}

#else

int main(void) {
  print_message("this build has no Vulkan backend\n");
  return 77;
}

#endif
