/* moiety inside an engine's Vulkan device: contexts, pipeline caches, recording, and what is refused. */
#include "tests/support.h"

#if defined(MOI_HAVE_VULKAN)

#include <math.h>
#include <pthread.h>
#if !defined(_WIN32)
#include <sys/mman.h>
#endif

#include "tests/vulkan.h"

static engine e;
static moi_context *context; /* on the engine's device, for tests that need no other */

static moi_status open_on(const moi_vulkan_device *device, moi_context **out) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = MOI_BACKEND_VULKAN;
  desc.next = device ? &device->chain : NULL;
  desc.allocate = engine_allocate;
  desc.free = engine_free;
  return moi_context_create(&desc, out);
}

static moi_context *open_engine(void) {
  moi_vulkan_device device = engine_handles(&e);
  moi_context *out = NULL;
  passes(open_on(&device, &out));
  assert_non_null(out);
  return out;
}

static int open_shared(void **state) {
  (void)state;
  context = open_engine();
  return 0;
}
static int close_shared(void **state) {
  (void)state;
  moi_context_destroy(context);
  assert_int_equal(engine_bytes, 0);
  return 0;
}

/* A plan's workspace on the device. */
static engine_buffer take_device_workspace(const moi_plan *plan) {
  size_t align, size = moi_plan_workspace(plan, &align);
  return engine_take(&e, size);
}
static moi_buffer sized(const engine_buffer *b, const moi_plan *plan) {
  size_t align;
  moi_buffer view = engine_view(b);
  view.size = moi_plan_workspace(plan, &align);
  return view;
}

/* ---- results */

static void test_ops_agree_with_the_cpu(void **state) {
  (void)state;
  engine_buffer memory = engine_take(&e, sizeof(layer));
  for (int i = 0; i < 4; i++) {
    static layer host, device;
    layer_make(&host);
    layer_make(&device);
    layer_to_device(&device, &memory);
    moi_plan *plan = NULL;
    passes(layer_plan(&device, layer_ops[i], context, &plan));
    engine_buffer workspace = take_device_workspace(plan);
    engine_commands commands = engine_begin(&e);
    passes(layer_record(&device, layer_ops[i], plan, sized(&workspace, plan), &commands));
    engine_end(&e, &commands);
    moi_plan_destroy(plan); /* what was recorded needs it no more: pipelines are the context's */
    engine_submit(&e, &commands);
    agree(layer_ops[i], &host, memory.mapped);
    engine_forget(&e, &commands);
    engine_drop(&e, &workspace);
  }
  engine_drop(&e, &memory);
}

/* Dispatches follow the routing on the device: one recording serves any data and any number of tokens. */
static void test_a_recording_is_submitted_again(void **state) {
  (void)state;
  static layer host, device;
  engine_buffer memory = engine_take(&e, sizeof(layer)), count = engine_take(&e, 4);
  moi_plan *plan = NULL;
  layer_make(&device);
  layer_to_device(&device, &memory);
  moi_buffer tokens = engine_view(&count);
  tokens.size = 4;
  device.route_args.n_tokens_device = device.experts_args.n_tokens_device = tokens;
  passes(layer_plan(&device, MOI_OP_MOE, context, &plan));
  engine_buffer workspace = take_device_workspace(plan);
  engine_commands commands = engine_begin(&e);
  passes(layer_record(&device, MOI_OP_MOE, plan, sized(&workspace, plan), &commands));
  engine_end(&e, &commands);
  int32_t before[LAYER_T * LAYER_K] = {0};
  int others = 0;
  for (uint32_t round = 0; round < 4; round++) {
    layer_make(&host);
    layer_fill(host.x, LAYER_T * LAYER_H, 20 + 7 * round);
    layer_fill(host.router, LAYER_E * LAYER_H, 40 + 3 * round);
    uint32_t n = 1 + round % LAYER_T;
    memcpy(memory.mapped, &host, sizeof host);
    memcpy(count.mapped, &n, sizeof n);
    engine_submit(&e, &commands);
    const layer *result = memory.mapped;
    host.route_args.n_tokens = host.experts_args.n_tokens = n;
    moi_context *cpu = open_cpu(1);
    moi_plan *truth = NULL;
    passes(layer_plan(&host, MOI_OP_MOE, cpu, &truth));
    moi_buffer room = take_workspace(truth);
    passes(layer_run(&host, MOI_OP_MOE, truth, room));
    drop_aligned(room.ptr);
    moi_plan_destroy(truth);
    moi_context_destroy(cpu);
    near(result->y, host.y, n * LAYER_H, "y");
    assert_memory_equal(result->ids, host.ids, n * LAYER_K * 4);
    if (n < LAYER_T) assert_true(isnan(result->y[n * LAYER_H])); /* beyond *n_tokens_device nothing is written */
    others += round && memcmp(before, result->ids, LAYER_K * 4) != 0;
    memcpy(before, result->ids, sizeof before);
  }
  assert_true(others > 0); /* it did route elsewhere */
  engine_forget(&e, &commands);
  moi_plan_destroy(plan);
  engine_drop(&e, &workspace);
  engine_drop(&e, &count);
  engine_drop(&e, &memory);
}

/* ---- contexts */

static void test_requirements(void **state) {
  (void)state;
  int addresses = 0, version = 0, instead = 0;
  moi_vulkan_requirement r = MOI_VULKAN_REQUIREMENT_INIT;
  uint32_t n = 0;
  for (; !moi_vulkan_requirements(NULL, NULL, NULL, n, &r); n++) {
    assert_true(r.kind[0] && r.name[0] && r.use[0]);
    assert_int_equal(r.supported, 0);
    addresses |= !strcmp(r.name, "bufferDeviceAddress") && !strcmp(r.kind, "feature") && !r.required &&
                 !strcmp(r.of, "VkPhysicalDeviceVulkan12Features");
    instead |= !strcmp(r.name, "VK_KHR_push_descriptor") && !strcmp(r.kind, "extension") && !r.required;
    version |= !strcmp(r.kind, "version") && r.required;
  }
  assert_true(addresses && version && instead);
  refused(moi_vulkan_requirements(NULL, NULL, NULL, n, &r), MOI_INVALID_ARGUMENT, "index");
  moi_vulkan_function get = (moi_vulkan_function)e.get;
  for (uint32_t i = 0; i < n; i++) {
    passes(moi_vulkan_requirements(get, e.instance, e.physical, i, &r));
    assert_true(r.supported || !r.required); /* the other tests run on this device */
  }
  refused(moi_vulkan_requirements(get, e.instance, e.physical, n, &r), MOI_INVALID_ARGUMENT, "index");
  refused(moi_vulkan_requirements(NULL, e.instance, e.physical, 0, &r), MOI_INVALID_ARGUMENT, "get_instance_proc_addr");
  refused(moi_vulkan_requirements(get, NULL, e.physical, 0, &r), MOI_INVALID_ARGUMENT, "instance");
  refused(moi_vulkan_requirements(get, e.instance, NULL, 0, &r), MOI_INVALID_ARGUMENT, "physical_device");
  refused(moi_vulkan_requirements(get, e.instance, e.physical, 0, NULL), MOI_INVALID_ARGUMENT, "out");
}

static void test_a_context_of_its_own(void **state) {
  (void)state;
  uint32_t count = 0;
  passes(moi_device_count(MOI_BACKEND_VULKAN, &count));
  assert_true(count >= 1);
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  passes(moi_device_get(MOI_BACKEND_VULKAN, 0, &info));
  assert_true(info.name[0] && info.driver[0]);
  refused(moi_device_get(MOI_BACKEND_VULKAN, count, &info), MOI_NO_DEVICE, "index");
  moi_context *own = NULL;
  passes(open_on(NULL, &own));
  moi_vulkan_handles_out h = MOI_VULKAN_HANDLES_INIT;
  passes(moi_vulkan_handles(own, &h));
  assert_true(h.instance && h.physical_device && h.device && h.queue && h.get_instance_proc_addr);
  moi_context_destroy(own);
  passes(moi_vulkan_handles(context, &h));
  assert_ptr_equal(h.device, e.device);
  assert_null(h.queue);
  assert_int_equal(h.queue_family, e.family);
  refused(moi_vulkan_handles(context, NULL), MOI_INVALID_ARGUMENT, "out");
  refused(moi_vulkan_handles(NULL, &h), MOI_INVALID_ARGUMENT, "context");
  moi_context *cpu = open_cpu(1);
  refused(moi_vulkan_handles(cpu, &h), MOI_INVALID_ARGUMENT, "context");
  moi_context_destroy(cpu);

  moi_vulkan_choice choice = MOI_VULKAN_CHOICE_INIT;
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = MOI_BACKEND_VULKAN;
  desc.next = &choice.chain;
  choice.name = info.name;
  passes(moi_context_create(&desc, &own));
  moi_context_destroy(own);
  choice.name = "no such device";
  refused(moi_context_create(&desc, &own), MOI_NO_DEVICE, "choice");
  assert_null(own);
  const uint8_t uuid[16] = {1, 2, 3};
  choice.name = NULL;
  choice.uuid = uuid;
  refused(moi_context_create(&desc, &own), MOI_NO_DEVICE, "choice");
  desc.next = NULL;
  desc.device = count;
  refused(moi_context_create(&desc, &own), MOI_NO_DEVICE, "device");
}

static void test_refused_devices(void **state) {
  (void)state;
  moi_context *c = (moi_context *)&e;
  moi_vulkan_device d = engine_handles(&e);
  d.get_instance_proc_addr = NULL;
  refused(open_on(&d, &c), MOI_INVALID_ARGUMENT, "get_instance_proc_addr");
  assert_null(c);
  d = engine_handles(&e), d.instance = NULL;
  refused(open_on(&d, &c), MOI_INVALID_ARGUMENT, "instance");
  d = engine_handles(&e), d.physical_device = NULL;
  refused(open_on(&d, &c), MOI_INVALID_ARGUMENT, "physical_device");
  d = engine_handles(&e), d.device = NULL;
  refused(open_on(&d, &c), MOI_INVALID_ARGUMENT, "device");
  d = engine_handles(&e), d.queue_family = 999;
  refused(open_on(&d, &c), MOI_INVALID_ARGUMENT, "queue_family: 999");
  d = engine_handles(&e), d.n_extensions = 1;
  refused(open_on(&d, &c), MOI_INVALID_ARGUMENT, "extensions");
  d = engine_handles(&e), d.pipeline_cache_size = 8;
  refused(open_on(&d, &c), MOI_INVALID_ARGUMENT, "pipeline_cache");
  /* what the engine did not enable is not there, whatever the physical device could */
  d = engine_handles(&e), d.features = NULL;
  refused(open_on(&d, &c), MOI_UNSUPPORTED, "bufferDeviceAddress");
  VkPhysicalDeviceVulkan12Features off = e.features;
  off.bufferDeviceAddress = VK_FALSE;
  d = engine_handles(&e), d.features = &off;
  refused(open_on(&d, &c), MOI_UNSUPPORTED, "bufferDeviceAddress");
  assert_null(c);
  /* in whatever struct it was enabled, wherever in the chain */
  VkPhysicalDeviceBufferDeviceAddressFeatures alone = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES, .bufferDeviceAddress = VK_TRUE};
  VkPhysicalDeviceFeatures2 two = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &alone};
  d = engine_handles(&e), d.features = &two;
  passes(open_on(&d, &c));
  moi_context_destroy(c);
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  d = engine_handles(&e);
  desc.backend = MOI_BACKEND_VULKAN;
  desc.next = &d.chain;
  desc.device = 1;
  refused(moi_context_create(&desc, &c), MOI_INVALID_ARGUMENT, "device");
}

static void test_chains(void **state) {
  (void)state;
  moi_context *c = NULL;
  moi_vulkan_device d = engine_handles(&e);
  moi_vulkan_choice choice = MOI_VULKAN_CHOICE_INIT;
  d.chain.next = &choice.chain;
  refused(open_on(&d, &c), MOI_INVALID_ARGUMENT, "next");
  d = engine_handles(&e);
  d.chain.type = 0x7777;
  refused(open_on(&d, &c), MOI_UNSUPPORTED, "0x7777");
  d.chain.type = 0;
  refused(open_on(&d, &c), MOI_UNSUPPORTED, "next");
  d = engine_handles(&e);
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT; /* the CPU takes none */
  desc.next = &d.chain;
  assert_int_not_equal(moi_context_create(&desc, &c), MOI_OK);
  assert_null(c);
}

static void count_line(void *user, moi_log_level level, const char *text) {
  if (level == MOI_LOG_WARNING && strstr(text, "pipeline_cache")) ++*(int *)user;
}

static void test_pipeline_cache(void **state) {
  (void)state;
  static layer l;
  layer_make(&l);
  moi_context *first = open_engine(), *second = NULL;
  moi_plan *plan = NULL;
  passes(layer_plan(&l, MOI_OP_MOE, first, &plan));
  moi_plan_destroy(plan);
  uint64_t size = 0, room;
  passes(moi_vulkan_pipeline_cache(first, NULL, &size));
  assert_true(size >= 32);
  uint8_t *data = malloc(size + 16);
  assert_non_null(data);
  memset(data, 0x5a, size + 16);
  room = size - 1;
  refused(moi_vulkan_pipeline_cache(first, data, &room), MOI_INVALID_ARGUMENT, "size");
  assert_int_equal(data[0], 0x5a);
  room = size + 16;
  passes(moi_vulkan_pipeline_cache(first, data, &room));
  assert_true(room <= size);
  assert_int_equal(data[size], 0x5a);
  refused(moi_vulkan_pipeline_cache(first, data, NULL), MOI_INVALID_ARGUMENT, "size");
  refused(moi_vulkan_pipeline_cache(NULL, data, &room), MOI_INVALID_ARGUMENT, "context");
  moi_context *cpu = open_cpu(1);
  refused(moi_vulkan_pipeline_cache(cpu, data, &room), MOI_INVALID_ARGUMENT, "context");
  moi_context_destroy(cpu);
  moi_context_destroy(first);

  int warned = 0;
  moi_vulkan_device d = engine_handles(&e);
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = MOI_BACKEND_VULKAN;
  desc.next = &d.chain;
  desc.log = count_line;
  desc.log_user = &warned;
  d.pipeline_cache = data;
  d.pipeline_cache_size = room;
  passes(moi_context_create(&desc, &second));
  assert_int_equal(warned, 0);
  passes(layer_plan(&l, MOI_OP_MOE, second, &plan));
  moi_plan_destroy(plan);
  moi_context_destroy(second);
  /* of another device, cut short, or no cache at all: ignored with a warning, and everything works */
  uint8_t *other = malloc(room);
  assert_non_null(other);
  for (int kind = 0; kind < 3; kind++) {
    memcpy(other, data, room);
    d.pipeline_cache = other;
    d.pipeline_cache_size = room;
    if (kind == 0) other[16] ^= 0xff; /* the UUID */
    if (kind == 1) d.pipeline_cache_size = 20;
    if (kind == 2) memset(other, 0xa7, room);
    warned = 0;
    passes(moi_context_create(&desc, &second));
    assert_int_equal(warned, 1);
    passes(layer_plan(&l, MOI_OP_ROUTE, second, &plan));
    moi_plan_destroy(plan);
    moi_context_destroy(second);
  }
  free(other);
  free(data);
}

static void test_two_contexts_on_one_device(void **state) {
  (void)state;
  static layer host, device;
  engine_buffer memory = engine_take(&e, sizeof(layer));
  moi_context *both[2] = {open_engine(), open_engine()};
  moi_plan *plans[2] = {NULL, NULL};
  layer_make(&device);
  layer_to_device(&device, &memory);
  for (int i = 0; i < 2; i++) passes(layer_plan(&device, MOI_OP_MOE, both[i], &plans[i]));
  moi_plan_destroy(plans[0]);
  moi_context_destroy(both[0]); /* the other's pipelines, and the device, live on */
  layer_make(&host);
  memcpy(memory.mapped, &host, sizeof host);
  engine_buffer workspace = take_device_workspace(plans[1]);
  engine_commands commands = engine_begin(&e);
  passes(layer_record(&device, MOI_OP_MOE, plans[1], sized(&workspace, plans[1]), &commands));
  engine_end(&e, &commands);
  engine_submit(&e, &commands);
  agree(MOI_OP_MOE, &host, memory.mapped);
  engine_forget(&e, &commands);
  engine_drop(&e, &workspace);
  moi_plan_destroy(plans[1]);
  moi_context_destroy(both[1]);
  engine_drop(&e, &memory);
}

/* ---- threads */

enum { THREADS = 4, ROUNDS = 8 };

typedef struct recorder {
  const moi_plan *plan;
  layer device;
  engine_buffer memory, workspace;
  engine_commands commands;
  int failures;
} recorder;

/* Records the shared plan, and makes and destroys plans of its own beside the others. */
static void *record_many(void *arg) {
  recorder *r = arg;
  for (int i = 0; i < ROUNDS; i++) {
    moi_plan *own = NULL;
    r->failures += layer_record(&r->device, MOI_OP_MOE, r->plan, sized(&r->workspace, r->plan), &r->commands) != MOI_OK;
    r->failures += layer_plan(&r->device, layer_ops[i % 4], context, &own) != MOI_OK;
    moi_plan_destroy(own);
    moi_experts_desc bad = r->device.experts;
    bad.top_k = 1000 + (uint32_t)i;
    r->failures += moi_experts_plan(context, &bad, &own) != MOI_INVALID_ARGUMENT;
  }
  return NULL;
}

static void test_threads_record_one_plan(void **state) {
  (void)state;
  static recorder all[THREADS];
  static layer host;
  moi_plan *plan = NULL;
  layer_make(&host);
  passes(layer_plan(&host, MOI_OP_MOE, context, &plan));
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++) {
    recorder *r = &all[i];
    memset(r, 0, sizeof *r);
    r->plan = plan;
    layer_make(&r->device);
    r->memory = engine_take(&e, sizeof(layer));
    layer_to_device(&r->device, &r->memory);
    r->workspace = take_device_workspace(plan);
    r->commands = engine_begin(&e);
  }
  for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, record_many, &all[i]), 0);
  for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
  for (int i = 0; i < THREADS; i++) {
    recorder *r = &all[i];
    assert_int_equal(r->failures, 0);
    engine_end(&e, &r->commands);
    engine_submit(&e, &r->commands);
    layer_make(&host);
    agree(MOI_OP_MOE, &host, r->memory.mapped);
    engine_forget(&e, &r->commands);
    engine_drop(&e, &r->workspace);
    engine_drop(&e, &r->memory);
  }
  moi_plan_destroy(plan);
}

/* ---- views */

/* What is not there is said. */
static void test_no_packing(void **state) {
  (void)state;
  moi_pack_desc d = MOI_PACK_DESC_INIT;
  d.from = MOI_FORMAT_BF16_KN, d.to = MOI_FORMAT_BF16, d.n = d.k = 8, d.n_experts = 1;
  moi_plan *plan = NULL;
  refused(moi_pack_plan(context, &d, &plan), MOI_UNSUPPORTED, "the Vulkan backend packs no weights");
  assert_null(plan);
}

/* Formats of order R are refused by name, with the one to use. */
static void test_rows_of_16(void **state) {
  (void)state;
  refuses_rows_of_16(context);
}

static void test_refused_views(void **state) {
  (void)state;
  static layer l, fresh;
  engine_buffer memory = engine_take(&e, sizeof(layer));
  layer_make(&fresh);
  layer_to_device(&fresh, &memory);
  moi_plan *plan = NULL;
  passes(layer_plan(&fresh, MOI_OP_MOE, context, &plan));
  engine_buffer workspace = take_device_workspace(plan);
  engine_commands commands = engine_begin(&e);
  const moi_buffer room = sized(&workspace, plan);
  static float host[64];

  refused(layer_record(&fresh, MOI_OP_MOE, plan, room, NULL), MOI_INVALID_ARGUMENT, "queue.native");
  /* l is a copy whose args still point into `fresh`, but for those that are changed */
#define CHANGED(change, says)                                                                                          \
  do {                                                                                                                 \
    l = fresh;                                                                                                         \
    l.moe_args.route = &l.route_args, l.moe_args.experts = &l.experts_args, l.moe_args.shared = &l.shared_args;        \
    l.experts_args.gate = &l.gate_w, l.experts_args.up = &l.up_w, l.experts_args.down = &l.down_w;                     \
    change;                                                                                                            \
    refused(layer_record(&l, MOI_OP_MOE, plan, room, &commands), MOI_INVALID_ARGUMENT, says);                          \
  } while (0)
  CHANGED(l.experts_args.input.size -= 1, "input.size");
  CHANGED(l.experts_args.output.size = 0, "output.size");
  CHANGED(l.up_w.data.size -= 4, "up");
  CHANGED(l.experts_args.input = VIEW(host), "reads handle");
  CHANGED(l.experts_args.output = VIEW(host), "reads handle");
  CHANGED(l.down_w.data = VIEW(host), "reads handle");
  CHANGED(l.route_args.ids = VIEW(host), "reads handle");
  CHANGED(l.experts_args.input.ptr = host, "ptr beside its handle");
  CHANGED(l.experts_args.input.handle = 0, "input");
  CHANGED(l.experts_args.input.offset += 2, "aligned to 4");
  CHANGED(l.route_args.ids.offset += 1, "aligned to 4");
  CHANGED(l.experts_args.output.offset = UINT64_MAX - 3, "offset");
  CHANGED(l.experts_args.output = l.experts_args.input, "overlap");
#undef CHANGED
  moi_buffer bad = room;
  bad.size -= 1;
  refused(layer_record(&fresh, MOI_OP_MOE, plan, bad, &commands), MOI_INVALID_ARGUMENT, "workspace");
  bad = room, bad.offset = 4;
  refused(layer_record(&fresh, MOI_OP_MOE, plan, bad, &commands), MOI_INVALID_ARGUMENT, "workspace");
  refused(layer_record(&fresh, MOI_OP_MOE, plan, VIEW(host), &commands), MOI_INVALID_ARGUMENT, "workspace");
  bad = room, bad.handle = 0;
  refused(layer_record(&fresh, MOI_OP_MOE, plan, bad, &commands), MOI_INVALID_ARGUMENT, "workspace");

  /* the CPU is no better served with handles */
  moi_context *cpu = open_cpu(1);
  moi_plan *other = NULL;
  passes(layer_plan(&fresh, MOI_OP_EXPERTS, cpu, &other));
  moi_buffer own = take_workspace(other);
  refused(layer_run(&fresh, MOI_OP_EXPERTS, other, own), MOI_INVALID_ARGUMENT, "reads ptr");
  drop_aligned(own.ptr);
  moi_plan_destroy(other);
  moi_context_destroy(cpu);

  /* nothing of all that was recorded, and the command buffer is as good as new */
  passes(layer_record(&fresh, MOI_OP_MOE, plan, room, &commands));
  engine_end(&e, &commands);
  engine_submit(&e, &commands);
  layer_make(&l);
  agree(MOI_OP_MOE, &l, memory.mapped);
  engine_forget(&e, &commands);
  moi_plan_destroy(plan);
  engine_drop(&e, &workspace);
  engine_drop(&e, &memory);
}

static void test_no_tokens(void **state) {
  (void)state;
  static layer l;
  engine_buffer memory = engine_take(&e, sizeof(layer));
  layer_make(&l);
  layer_to_device(&l, &memory);
  l.route_args.n_tokens = l.experts_args.n_tokens = l.gemm_args.n_rows = 0;
  for (int i = 0; i < 4; i++) {
    moi_plan *plan = NULL;
    passes(layer_plan(&l, layer_ops[i], context, &plan));
    engine_buffer workspace = take_device_workspace(plan);
    engine_commands commands = engine_begin(&e);
    passes(layer_record(&l, layer_ops[i], plan, sized(&workspace, plan), &commands));
    engine_end(&e, &commands);
    engine_submit(&e, &commands);
    engine_forget(&e, &commands);
    engine_drop(&e, &workspace);
    moi_plan_destroy(plan);
  }
  const layer *result = memory.mapped;
  for (int i = 0; i < LAYER_T * LAYER_H; i++) assert_true(isnan(result->y[i]));
  engine_drop(&e, &memory);
}

/* ---- large memory */

/* One matrix beyond what a storage buffer of a descriptor may have everywhere, 128 MiB. */
static void test_a_large_matrix(void **state) {
  (void)state;
  enum { N = 8200, K = 4128 };
  static const char *const kernels[] = {NULL, "f32-stream", "f32-tile"};
  static float x[K];
  const size_t bytes = (size_t)N * K * 4;
  assert_true(bytes > 128u << 20);
  engine_buffer w = engine_take(&e, bytes), rows = engine_take(&e, (K + N + 2) * 4);
  float *matrix = w.mapped, *row = rows.mapped, *y = row + K;
  int32_t *offsets = (int32_t *)(void *)(y + N);
  memset(matrix, 0, bytes);
  layer_fill(x, K, 3);
  layer_fill(matrix, K, 4);
  layer_fill(matrix + (size_t)(N - 1) * K, K, 5);
  double first = 0, last = 0;
  for (int k = 0; k < K; k++) {
    first += (double)x[k] * matrix[k];
    last += (double)x[k] * matrix[(size_t)(N - 1) * K + k];
  }
  for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
    moi_gemm_desc d = MOI_GEMM_DESC_INIT;
    d.max_rows = 1, d.n = N, d.k = K, d.n_experts = 1, d.format = MOI_FORMAT_F32, d.kernel = kernels[i];
    moi_weights weights = MOI_WEIGHTS_INIT;
    weights.data = engine_view(&w);
    moi_gemm_args a = MOI_GEMM_ARGS_INIT;
    a.n_rows = 1;
    a.weights = &weights;
    a.input = a.output = a.offsets = engine_view(&rows);
    a.input.size = K * 4;
    a.output.offset = K * 4, a.output.size = N * 4;
    a.offsets.offset = (K + N) * 4, a.offsets.size = 8;
    memcpy(row, x, sizeof x);
    memset(y, 0xff, N * 4);
    offsets[0] = 0, offsets[1] = 1;
    moi_plan *plan = NULL;
    passes(moi_gemm_plan(context, &d, &plan));
    engine_buffer workspace = take_device_workspace(plan);
    engine_commands commands = engine_begin(&e);
    passes(moi_gemm_run(plan, &a, sized(&workspace, plan), (moi_queue){commands.buffer}));
    engine_end(&e, &commands);
    engine_submit(&e, &commands);
    assert_true(first != last && fabs(y[0] - first) < 1e-3 && fabs(y[N - 1] - last) < 1e-3);
    for (int n = 1; n < N - 1; n++) assert_true(y[n] == 0);
    engine_forget(&e, &commands);
    engine_drop(&e, &workspace);
    moi_plan_destroy(plan);
  }
  engine_drop(&e, &rows);
  engine_drop(&e, &w);
}

#if !defined(_WIN32)
static void run_once(moi_op op, const layer *l) {
  moi_plan *plan = NULL;
  passes(layer_plan(l, op, context, &plan));
  engine_buffer workspace = take_device_workspace(plan);
  engine_commands commands = engine_begin(&e);
  passes(layer_record(l, op, plan, sized(&workspace, plan), &commands));
  engine_end(&e, &commands);
  engine_submit(&e, &commands);
  engine_forget(&e, &commands);
  engine_drop(&e, &workspace);
  moi_plan_destroy(plan);
}

/* Views and experts more than 4 GiB behind where their buffer begins. No software device has buffers of that size: there
 * an address is the process's own, and what lies behind one buffer is reached from it although it is another. */
static void test_memory_beyond_4_gib(void **state) {
  (void)state;
  const size_t gap = (size_t)9 << 30;
  static layer host, device;
  PFN_vkGetBufferDeviceAddress address_of =
      (PFN_vkGetBufferDeviceAddress)e.GetDeviceProcAddr(e.device, "vkGetBufferDeviceAddress");
  engine_buffer one = engine_take(&e, 64 << 20); /* a mapping of its own */
  void *between = mmap(NULL, gap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  engine_buffer two = engine_take(&e, 64 << 20);
  const engine_buffer *low = one.mapped < two.mapped ? &one : &two, *high = low == &one ? &two : &one;
  uint64_t far = (uint64_t)((uint8_t *)high->mapped - (uint8_t *)low->mapped);
  int direct = 1;
  for (int i = 0; i < 2; i++) {
    const engine_buffer *b = i ? &two : &one;
    VkBufferDeviceAddressInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = b->buffer};
    direct &= address_of(e.device, &info) == (uint64_t)(uintptr_t)b->mapped;
  }
  int there = direct && between != MAP_FAILED && far >= gap && far % 8 == 0;
  if (there) {
    /* every view of a layer lies so far behind the buffer that it names */
    layer_make(&host);
    layer_make(&device);
    engine_buffer behind = *low;
    behind.mapped = high->mapped;
    layer_to_device(&device, &behind);
    moi_buffer *views[] = {&device.route_args.hidden,
                           &device.route_args.router,
                           &device.route_args.ids,
                           &device.route_args.weights,
                           &device.route_args.counts,
                           &device.route_args.offsets,
                           &device.route_args.permutation,
                           &device.gate_w.data,
                           &device.up_w.data,
                           &device.route_args.logits_out,
                           &device.experts_args.input,
                           &device.experts_args.output,
                           &device.down_w.data,
                           &device.shared_gate_w.data,
                           &device.shared_up_w.data,
                           &device.shared_down_w.data,
                           &device.moe_args.shared_gate};
    for (size_t i = 0; i < sizeof views / sizeof *views; i++) views[i]->offset += far;
    run_once(MOI_OP_MOE, &device);
    agree(MOI_OP_MOE, &host, high->mapped);
    /* expert 2 lies so far behind expert 0; 1 has no rows */
    layer_make(&host);
    layer_make(&device);
    layer_to_device(&device, low);
    memcpy((uint8_t *)low->mapped + far + offsetof(layer, up), host.up + 2 * LAYER_I * LAYER_H,
           LAYER_I * LAYER_H * sizeof(float));
    memset(((layer *)low->mapped)->up + LAYER_I * LAYER_H, 0xff, 2 * LAYER_I * LAYER_H * sizeof(float));
    device.up_w.data_stride = far / 2;
    device.up_w.data.size = far + LAYER_I * LAYER_H * sizeof(float);
    run_once(MOI_OP_GEMM, &device);
    agree(MOI_OP_GEMM, &host, low->mapped);
  }
  if (between != MAP_FAILED) munmap(between, gap);
  engine_drop(&e, &one);
  engine_drop(&e, &two);
  if (!there) skip();
}
#endif

int main(void) {
  if (!engine_open(&e, 1)) return 77;
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_ops_agree_with_the_cpu),
    cmocka_unit_test(test_a_recording_is_submitted_again),
    cmocka_unit_test(test_requirements),
    cmocka_unit_test(test_a_context_of_its_own),
    cmocka_unit_test(test_refused_devices),
    cmocka_unit_test(test_chains),
    cmocka_unit_test(test_pipeline_cache),
    cmocka_unit_test(test_two_contexts_on_one_device),
    cmocka_unit_test(test_threads_record_one_plan),
    cmocka_unit_test(test_no_packing),
    cmocka_unit_test(test_rows_of_16),
    cmocka_unit_test(test_refused_views),
    cmocka_unit_test(test_no_tokens),
    cmocka_unit_test(test_a_large_matrix),
#if !defined(_WIN32)
    cmocka_unit_test(test_memory_beyond_4_gib),
#endif
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
