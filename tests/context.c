/* Contexts, devices, kernel lists, the demands on kernels, the log and the engine's threads. */
#include "tests/support.h"

#if defined(_WIN32)
static int setenv(const char *name, const char *value, int overwrite) {
  (void)overwrite;
  return _putenv_s(name, value);
}
static int unsetenv(const char *name) { return _putenv_s(name, ""); }
#endif

static layer l;

static int make_layer(void **state) {
  (void)state;
  layer_make(&l);
  return 0;
}
static int clean_environment(void **state) {
  (void)state;
  return unsetenv("MOI_DEBUG");
}

static void test_backends(void **state) {
  (void)state;
  assert_string_equal(moi_backend_name(MOI_BACKEND_CPU), "cpu");
  assert_string_equal(moi_backend_name(MOI_BACKEND_CUDA), "cuda");
  assert_string_equal(moi_backend_name(MOI_BACKEND_VULKAN), "vulkan");
  assert_null(moi_backend_name(MOI_BACKEND_COUNT));
  assert_null(moi_backend_name((moi_backend)-1));
  static const struct {
    moi_backend backend;
    const char *name;
  } absent[] = {
      {MOI_BACKEND_COUNT, NULL}, /* where all are there */
#if !defined(MOI_HAVE_CUDA)
      {MOI_BACKEND_CUDA, "CUDA"},
#endif
#if !defined(MOI_HAVE_VULKAN)
      {MOI_BACKEND_VULKAN, "Vulkan"},
#endif
  };
  for (size_t i = 1; i < sizeof absent / sizeof absent[0]; i++) {
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.backend = absent[i].backend;
    moi_context *c = (moi_context *)&l;
    refused(moi_context_create(&desc, &c), MOI_UNSUPPORTED, absent[i].name);
    assert_null(c);
    uint32_t count = 77;
    refused(moi_device_count(desc.backend, &count), MOI_UNSUPPORTED, absent[i].name);
    assert_int_equal(count, 0);
    moi_device_info info = MOI_DEVICE_INFO_INIT;
    refused(moi_device_get(desc.backend, 0, &info), MOI_UNSUPPORTED, absent[i].name);
    moi_kernel_info kernel = MOI_KERNEL_INFO_INIT;
    refused(moi_kernel_get(desc.backend, 0, &kernel), MOI_UNSUPPORTED, absent[i].name);
    assert_int_equal(moi_pack_preferred(desc.backend, MOI_FORMAT_BF16_KN), MOI_FORMAT_BF16_KN);
  }
  static const int none[] = {-1, MOI_BACKEND_COUNT, 0x7fffffff};
  for (size_t i = 0; i < 3; i++) {
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.backend = (moi_backend)none[i];
    moi_context *c = (moi_context *)&l;
    refused(moi_context_create(&desc, &c), MOI_INVALID_ARGUMENT, "backend");
    assert_null(c);
    uint32_t count = 77;
    refused(moi_device_count(desc.backend, &count), MOI_INVALID_ARGUMENT, "backend");
    assert_int_equal(count, 0);
  }
}

static void *some_allocate(void *user, size_t size, size_t align) {
  (void)user;
  (void)align;
  return malloc(size);
}
static void some_free(void *user, void *ptr, size_t size) {
  (void)user;
  (void)size;
  free(ptr);
}
static void in_turn(void *user, uint32_t n, void (*body)(void *, uint32_t), void *arg);

static void test_context_desc(void **state) {
  (void)state;
  moi_context *c = (moi_context *)&l;
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.device = 1;
  refused(moi_context_create(&desc, &c), MOI_NO_DEVICE, "device: 1");
  assert_null(c);
  desc = (moi_context_desc)MOI_CONTEXT_DESC_INIT;
  desc.allocate = some_allocate;
  refused(moi_context_create(&desc, &c), MOI_INVALID_ARGUMENT, "both or neither");
  desc.free = some_free;
  passes(moi_context_create(&desc, &c));
  moi_context_destroy(c);
  desc.allocate = NULL;
  refused(moi_context_create(&desc, &c), MOI_INVALID_ARGUMENT, "both or neither");
  desc = (moi_context_desc)MOI_CONTEXT_DESC_INIT;
  desc.n_workers = 1025;
  refused(moi_context_create(&desc, &c), MOI_INVALID_ARGUMENT, "n_workers: 1025");
  desc.n_workers = UINT32_MAX;
  refused(moi_context_create(&desc, &c), MOI_INVALID_ARGUMENT, "n_workers");
  desc.parallel_for = in_turn;
  refused(moi_context_create(&desc, &c), MOI_INVALID_ARGUMENT, "n_workers");
  desc.n_workers = 0;
  refused(moi_context_create(&desc, &c), MOI_INVALID_ARGUMENT, "n_workers: 0");
  assert_null(c);
  desc.n_workers = 1024;
  passes(moi_context_create(&desc, &c));
  moi_context_destroy(c);
  desc = (moi_context_desc)MOI_CONTEXT_DESC_INIT; /* all defaults */
  passes(moi_context_create(&desc, &c));
  moi_context_destroy(c);
}

static void test_devices(void **state) {
  (void)state;
  uint32_t count = 0;
  passes(moi_device_count(MOI_BACKEND_CPU, &count));
  assert_int_equal(count, 1);
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  memset((uint8_t *)&info + sizeof(size_t), 0xaa, sizeof info - sizeof(size_t));
  passes(moi_device_get(MOI_BACKEND_CPU, 0, &info));
  assert_int_equal(info.struct_size, sizeof info);
  assert_int_equal(info.backend, MOI_BACKEND_CPU);
  assert_int_equal(info.index, 0);
  assert_true(info.name[0] && memchr(info.name, 0, sizeof info.name));
  assert_true(info.driver[0] && memchr(info.driver, 0, sizeof info.driver));
  assert_non_null(memchr(info.features, 0, sizeof info.features));
  assert_true(info.n_workers >= 1);
  refused(moi_device_get(MOI_BACKEND_CPU, 1, &info), MOI_NO_DEVICE, "index: 1");
  refused(moi_device_get(MOI_BACKEND_CPU, UINT32_MAX, &info), MOI_NO_DEVICE, "index");
  /* an older caller's struct is not written behind its end, a newer one's tail is zeroed */
  struct {
    moi_device_info info;
    uint64_t tail[2];
  } space;
  memset(&space, 0xaa, sizeof space);
  space.info.struct_size = offsetof(moi_device_info, features);
  passes(moi_device_get(MOI_BACKEND_CPU, 0, &space.info));
  assert_string_equal(space.info.name, info.name);
  assert_int_equal(space.info.struct_size, offsetof(moi_device_info, features));
  for (size_t i = offsetof(moi_device_info, features); i < sizeof space; i++)
    assert_int_equal(((uint8_t *)&space)[i], 0xaa);
  space.info.struct_size = sizeof space;
  passes(moi_device_get(MOI_BACKEND_CPU, 0, &space.info));
  assert_string_equal(space.info.features, info.features);
  assert_true(!space.tail[0] && !space.tail[1]);
  space.info.struct_size = 3;
  refused(moi_device_get(MOI_BACKEND_CPU, 0, &space.info), MOI_INVALID_ARGUMENT, "struct_size");
  refused(moi_device_get(MOI_BACKEND_CPU, 0, (moi_device_info *)((uint8_t *)&space + 1)), MOI_INVALID_ARGUMENT,
          "misaligned");
}

/* Every row can be forced where it runs, and says so; elsewhere it is refused. */
static void test_kernel_list(void **state) {
  (void)state;
  moi_context *context = open_cpu(1);
  moi_kernel_info row = MOI_KERNEL_INFO_INIT;
  uint32_t n = 0, n_ref = 0;
  for (;; n++) {
    moi_status status = moi_kernel_get(MOI_BACKEND_CPU, n, &row);
    if (status == MOI_INVALID_ARGUMENT) break;
    assert_int_equal(status, MOI_OK);
    assert_true(row.name && row.name[0] && row.needs);
    assert_true(row.op == MOI_OP_GEMM || row.op == MOI_OP_ROUTE || row.op == MOI_OP_ATTENTION);
    assert_int_equal(row.plan_flags & ~(MOI_NO_FALLBACK | MOI_DETERMINISTIC | MOI_BATCH_INVARIANT), 0);
    n_ref += !strcmp(row.name, "ref");
    moi_plan *plan = NULL;
    moi_status forced;
    if (row.op == MOI_OP_ROUTE) {
      layer_make(&l);
      l.route.kernel = row.name;
      forced = moi_route_plan(context, &l.route, &plan);
    } else if (row.op == MOI_OP_ATTENTION) {
      moi_attention_desc attention = MOI_ATTENTION_DESC_INIT;
      attention.max_rows = 4;
      attention.max_seqs = 2;
      attention.max_kv = 100;
      attention.n_heads = 8;
      attention.n_kv_heads = 2;
      attention.head_dim = 64;
      attention.scale = 0.125f;
      attention.k_format = attention.input_type = MOI_FORMAT_BF16;
      attention.kernel = row.name;
      forced = moi_attention_plan(context, &attention, &plan);
      for (uint32_t flag = 1; flag <= 4 && !forced; flag *= 2) {
        attention.plan_flags = flag;
        moi_plan *demanding = NULL;
        if (row.plan_flags & flag) passes(moi_attention_plan(context, &attention, &demanding));
        else refused(moi_attention_plan(context, &attention, &demanding), MOI_UNSUPPORTED, row.name);
        moi_plan_destroy(demanding);
      }
    } else {
      moi_gemm_desc gemm = MOI_GEMM_DESC_INIT;
      gemm.max_rows = 4;
      gemm.n = gemm.k = 256;
      gemm.n_experts = 2;
      gemm.format = row.format ? row.format : MOI_FORMAT_Q5_K;
      gemm.input_type = MOI_FORMAT_BF16;
      gemm.kernel = row.name;
      if (row.runs_here && moi_gemm_plan(context, &gemm, &plan)) gemm.act_quant = MOI_ACT_QUANT_INT8_32; /* some need it */
      moi_plan_destroy(plan);
      plan = NULL;
      forced = moi_gemm_plan(context, &gemm, &plan);
      if (!forced && row.format) { /* another format's row is not taken silently */
        moi_plan *other = NULL;
        gemm.format = row.format == MOI_FORMAT_F32 ? MOI_FORMAT_F16 : MOI_FORMAT_F32;
        refused(moi_gemm_plan(context, &gemm, &other), MOI_UNSUPPORTED, row.name);
        assert_null(other);
      }
      /* demands that the row does not meet */
      gemm.format = row.format ? row.format : MOI_FORMAT_Q5_K;
      for (uint32_t flag = 1; flag <= 4 && !forced; flag *= 2) {
        gemm.plan_flags = flag;
        moi_plan *demanding = NULL;
        if (row.plan_flags & flag) passes(moi_gemm_plan(context, &gemm, &demanding));
        else refused(moi_gemm_plan(context, &gemm, &demanding), MOI_UNSUPPORTED, row.name);
        moi_plan_destroy(demanding);
      }
    }
    if (row.runs_here) {
      if (forced) fail_msg("%s: %s", row.name, moi_last_error());
      assert_string_equal(moi_plan_kernel(plan), row.name);
      char text[512];
      moi_plan_describe(plan, text, sizeof text);
      assert_non_null(strstr(text, row.name));
    } else {
      assert_int_equal(forced, MOI_UNSUPPORTED);
      assert_non_null(strstr(moi_last_error(), row.needs));
    }
    moi_plan_destroy(plan);
  }
  assert_true(n >= 4);
  assert_int_equal(n_ref, 3); /* routing, GEMM, attention */
  passes(moi_kernel_get(MOI_BACKEND_CPU, n - 1, &row));
  assert_string_equal(row.name, "ref"); /* the last */
  refused(moi_kernel_get(MOI_BACKEND_CPU, n, &row), MOI_INVALID_ARGUMENT, "index");
  refused(moi_kernel_get(MOI_BACKEND_CPU, UINT32_MAX, &row), MOI_INVALID_ARGUMENT, "index");
  refused(moi_kernel_get((moi_backend)9, 0, &row), MOI_INVALID_ARGUMENT, "backend");

  moi_plan *plan = NULL;
  layer_make(&l);
  l.experts.kernel = l.gemm.kernel = l.route.kernel = "no such kernel";
  refused(moi_experts_plan(context, &l.experts, &plan), MOI_UNSUPPORTED, "no such kernel");
  refused(moi_gemm_plan(context, &l.gemm, &plan), MOI_UNSUPPORTED, "no such kernel");
  refused(moi_route_plan(context, &l.route, &plan), MOI_UNSUPPORTED, "no such kernel");
  moi_attention_desc attention = MOI_ATTENTION_DESC_INIT;
  attention.max_rows = attention.max_seqs = attention.max_kv = attention.n_heads = attention.n_kv_heads = 1;
  attention.head_dim = 64;
  attention.scale = 1;
  attention.kernel = "no such kernel";
  refused(moi_attention_plan(context, &attention, &plan), MOI_UNSUPPORTED, "no such kernel");
  l.moe.kernel = "";
  refused(moi_moe_plan(context, &l.moe, &plan), MOI_UNSUPPORTED, "kernel");
  /* a forced kernel inside a moe desc is not ignored either */
  layer_make(&l);
  l.experts.kernel = "no such kernel";
  refused(moi_moe_plan(context, &l.moe, &plan), MOI_UNSUPPORTED, "no such kernel");
  l.experts.kernel = NULL;
  l.route.kernel = "no such kernel";
  refused(moi_moe_plan(context, &l.moe, &plan), MOI_UNSUPPORTED, "no such kernel");
  l.route.kernel = NULL;
  l.shared.kernel = "no such kernel";
  refused(moi_moe_plan(context, &l.moe, &plan), MOI_UNSUPPORTED, "no such kernel");
  moi_context_destroy(context);
}

typedef struct log_book {
  int warnings, others;
  char text[512];
} log_book;

static void write_log(void *user, moi_log_level level, const char *text) {
  log_book *book = user;
  if (level == MOI_LOG_WARNING) {
    book->warnings++;
    snprintf(book->text, sizeof book->text, "%s", text);
  } else {
    book->others++;
  }
  assert_null(strchr(text, '\n'));
}

static moi_context *open_logged(log_book *book) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.n_workers = 1;
  desc.log = write_log;
  desc.log_user = book;
  moi_context *context = NULL;
  memset(book, 0, sizeof *book);
  passes(moi_context_create(&desc, &context));
  return context;
}

static void test_fallback_warns(void **state) {
  (void)state;
  log_book book;
  assert_int_equal(setenv("MOI_DEBUG", "cpu=scalar", 1), 0);
  moi_context *context = open_logged(&book);
  assert_int_equal(book.warnings, 0);
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  passes(moi_device_get(MOI_BACKEND_CPU, 0, &info));
  assert_string_equal(info.driver, "scalar");
  moi_plan *plan = NULL;
  passes(moi_experts_plan(context, &l.experts, &plan));
  assert_true(book.warnings > 0);
  assert_non_null(strstr(book.text, "generic"));
  assert_string_equal(moi_plan_kernel(plan), "generic");
  moi_plan_destroy(plan);
  for (size_t i = 1; i < 4; i++) { /* all but route: compilers make vectors of the plain selection too */
    layer_make(&l);
    l.route.plan_flags = l.experts.plan_flags = l.gemm.plan_flags = MOI_NO_FALLBACK;
    refused(layer_plan(&l, layer_ops[i], context, &plan), MOI_UNSUPPORTED, "NO_FALLBACK");
    assert_null(plan);
  }
  layer_make(&l);
  l.moe.plan_flags = MOI_NO_FALLBACK;
  refused(layer_plan(&l, MOI_OP_MOE, context, &plan), MOI_UNSUPPORTED, "NO_FALLBACK");
  moi_context_destroy(context);

  static const char *const nonsense[] = {"cpu=mmx", "gpu", "cpu=", "avx2", "cpu=avx2,x", "neon",
#if defined(__aarch64__)
                                         "cpu=avx2",
#else
                                         "cpu=neon",
#endif
  };
  for (size_t i = 0; i < sizeof nonsense / sizeof nonsense[0]; i++) {
    assert_int_equal(setenv("MOI_DEBUG", nonsense[i], 1), 0);
    context = open_logged(&book);
    assert_int_equal(book.warnings, 1);
    assert_non_null(strstr(book.text, "MOI_DEBUG"));
    moi_context_destroy(context);
  }
  unsetenv("MOI_DEBUG");
  context = open_logged(&book);
  passes(moi_device_get(MOI_BACKEND_CPU, 0, &info));
  if (strcmp(info.driver, "scalar") != 0) { /* a machine with fast rows */
    layer_make(&l);
    passes(moi_experts_plan(context, &l.experts, &plan));
    assert_int_equal(book.warnings, 0);
    moi_plan_destroy(plan);
    l.experts.plan_flags = MOI_NO_FALLBACK | MOI_DETERMINISTIC | MOI_BATCH_INVARIANT;
    passes(moi_experts_plan(context, &l.experts, &plan));
    assert_null(strstr(moi_plan_kernel(plan), "generic"));
    moi_plan_destroy(plan);
    l.experts.plan_flags = MOI_NO_FALLBACK;
    l.experts.kernel = "generic"; /* asked for and forbidden */
    refused(moi_experts_plan(context, &l.experts, &plan), MOI_UNSUPPORTED, "generic");
    l.experts.kernel = "ref";
    refused(moi_experts_plan(context, &l.experts, &plan), MOI_UNSUPPORTED, "ref");
  }
  moi_context_destroy(context);
}

/* Each cap of MOI_DEBUG leaves no kernel beyond it. */
static void test_debug_caps(void **state) {
  (void)state;
#if defined(__aarch64__)
  static const char *const caps[] = {"scalar", "neon", "dotprod", "i8mm", "neonbf16"};
#else
  static const char *const caps[] = {"scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16"};
#endif
  uint32_t before = 0;
  for (size_t c = 0; c < sizeof caps / sizeof caps[0]; c++) {
    char value[32];
    snprintf(value, sizeof value, "cpu=%s", caps[c]);
    assert_int_equal(setenv("MOI_DEBUG", value, 1), 0);
    uint32_t running = 0;
    moi_kernel_info row = MOI_KERNEL_INFO_INIT;
    for (uint32_t i = 0; !moi_kernel_get(MOI_BACKEND_CPU, i, &row); i++) {
      running += row.runs_here;
      if (!row.runs_here) continue;
      size_t needs = 0;
      while (row.needs[0] && strcmp(row.needs, caps[needs]) != 0) needs++;
      assert_true(needs <= c);
    }
    assert_true(running >= before && running >= 4);
    before = running;
    moi_context *context = open_cpu(1);
    moi_plan *plan = NULL;
    layer_make(&l);
    passes(moi_moe_plan(context, &l.moe, &plan));
    moi_buffer workspace = take_workspace(plan);
    passes(moi_moe_run(plan, &l.moe_args, workspace, no_queue));
    drop_aligned(workspace.ptr);
    moi_plan_destroy(plan);
    moi_context_destroy(context);
  }
}

/* ---- the engine's threads */

typedef struct threads {
  uint32_t n_workers, calls, largest;
  int backwards;
} threads;

static void in_turn(void *user, uint32_t n, void (*body)(void *, uint32_t), void *arg) {
  threads *t = user;
  t->calls++;
  if (n > t->largest) t->largest = n;
  for (uint32_t i = 0; i < n; i++) body(arg, t->backwards ? n - 1 - i : i);
}

static void test_parallel_for(void **state) {
  (void)state;
  enum { T = 9, H = 320, I = 192, E = 4, K = 2 };
  static float x[T * H], gate[E * I * H], up[E * I * H], down[E * H * I], w[T * K], y[3][T * H];
  static int32_t ids[T * K];
  layer_fill(x, T * H, 1);
  layer_fill(gate, E * I * H, 2);
  layer_fill(up, E * I * H, 3);
  layer_fill(down, E * H * I, 4);
  for (int i = 0; i < T * K; i++) ids[i] = (i * 5 + i / 3) % E, w[i] = 0.5f;
  l.experts.max_tokens = T;
  l.experts.hidden = H;
  l.experts.intermediate = I;
  l.experts.n_experts = E;
  l.experts_args.n_tokens = T;
  l.experts_args.input = VIEW(x);
  l.experts_args.ids = VIEW(ids);
  l.experts_args.weights = VIEW(w);
  l.gate_w.data = VIEW(gate);
  l.up_w.data = VIEW(up);
  l.down_w.data = VIEW(down);
  for (int i = 0; i < 3; i++) {
    threads t = {i ? 5 : 1, 0, 0, i == 2};
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.n_workers = t.n_workers;
    desc.parallel_for = in_turn;
    desc.parallel_for_user = &t;
    moi_context *context = NULL;
    passes(moi_context_create(&desc, &context));
    moi_plan *plan = NULL;
    passes(moi_experts_plan(context, &l.experts, &plan));
    assert_int_equal(t.calls, 0); /* plans do not compute */
    moi_buffer workspace = take_workspace(plan);
    memset(y[i], 0xff, sizeof y[i]);
    l.experts_args.output = VIEW(y[i]);
    passes(moi_experts_run(plan, &l.experts_args, workspace, no_queue));
    if (i) {
      assert_true(t.calls > 0);
      assert_true(t.largest > 1 && t.largest <= t.n_workers);
      assert_memory_equal(y[i], y[0], sizeof y[0]);
    }
    drop_aligned(workspace.ptr);
    moi_plan_destroy(plan);
    moi_context_destroy(context);
  }
  float sum = 0;
  for (int i = 0; i < T * H; i++) sum += y[0][i] * y[0][i];
  assert_true(sum > 0); /* neither NaN nor nothing */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_backends, make_layer, clean_environment),
      cmocka_unit_test_setup_teardown(test_context_desc, make_layer, clean_environment),
      cmocka_unit_test_setup_teardown(test_devices, make_layer, clean_environment),
      cmocka_unit_test_setup_teardown(test_kernel_list, make_layer, clean_environment),
      cmocka_unit_test_setup_teardown(test_fallback_warns, make_layer, clean_environment),
      cmocka_unit_test_setup_teardown(test_debug_caps, make_layer, clean_environment),
      cmocka_unit_test_setup_teardown(test_parallel_for, make_layer, clean_environment),
  };
  return cmocka_run_group_tests(tests, clean_environment, NULL);
}
