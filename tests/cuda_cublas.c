/* Rows of cuBLAS's inside an engine: what is refused, streams, graphs, threads, faults; and a machine without cuBLAS, which is a
 * process of its own whose dlopen finds none. The libraries are the machine's or the emulated ones, as in cuda.c. */
#include "tests/support.h"

#if defined(MOI_HAVE_CUDA) && defined(__linux__)

#include <dlfcn.h>
#include <moiety_cuda.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/shared/round.h"
#include "cuda/driver.h"

static const moi_cu_driver *cu;
static moi_context *context;
static moi_cuda_handles_out here;
static void (*fail_at)(int nth);  /* of the emulated driver, else NULL */
static int (*live_handles)(void); /* of the emulated cuBLAS, else NULL */

/* ---- what the library opens: the linker gives it these */

static int absent;             /* 1: there is no cuBLAS; 2: an old one */
static _Atomic int looked_for; /* how often somebody wanted it */
void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags) {
  if (!name || !strstr(name, "libcublas")) return __real_dlopen(name, flags);
  looked_for++;
  return absent == 1 ? NULL : __real_dlopen(name, flags);
}
void *__real_dlsym(void *library, const char *name);
void *__wrap_dlsym(void *library, const char *name);
void *__wrap_dlsym(void *library, const char *name) {
  return absent == 2 && !strcmp(name, "cublasSetWorkspace_v2") ? NULL : __real_dlsym(library, name);
}

static void *symbol(const char *library, const char *name) {
  void *l = __real_dlopen(library, RTLD_NOW | RTLD_LOCAL);
  return l ? __real_dlsym(l, name) : NULL;
}

#define CU(call) assert_int_equal(cu->call, 0)
static void enter(void) { CU(CtxPush(here.context)); }
static void leave(void) {
  moi_cu_context mine;
  CU(CtxPop(&mine));
}

static moi_status open_one(moi_context **out) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = MOI_BACKEND_CUDA;
  *out = NULL;
  return moi_context_create(&desc, out);
}

static int open_shared(void **state) {
  (void)state;
  here = (moi_cuda_handles_out)MOI_CUDA_HANDLES_INIT;
  passes(open_one(&context));
  passes(moi_cuda_handles(context, &here));
  void *f = symbol("libcuda.so.1", "moi_emulated_fail");
  memcpy(&fail_at, &f, sizeof f);
  f = fail_at ? symbol("libcublas.so.13", "moi_emulated_cublas_handles") : NULL;
  memcpy(&live_handles, &f, sizeof f);
  return 0;
}
static int close_shared(void **state) {
  (void)state;
  moi_context_destroy(context);
  if (live_handles) assert_int_equal(live_handles(), 0);
  return 0;
}

/* ---- a product of small whole numbers, which no rounding touches */

enum { ROWS = 9, N = 7, K = 45 };

typedef struct product {
  float x[ROWS * K], y[ROWS * N], bias[N];
  int32_t offsets[2];
  union {
    float f32[N * K];
    uint16_t half[N * K];
  } w;
} product;

static int number(uint32_t i, uint32_t seed) { return (int)((i * 37u + i * i * 5u + seed * 101u) % 7u) - 3; }
static int weight_at(uint32_t n, uint32_t k) { return number(n * K + k, 3); }

static void make(product *p, moi_format format, uint32_t seed) {
  memset(p, 0xff, sizeof *p);
  for (uint32_t i = 0; i < ROWS * K; i++) p->x[i] = (float)number(i, seed);
  for (uint32_t i = 0; i < N; i++) p->bias[i] = (float)number(i, 11);
  p->offsets[0] = 0, p->offsets[1] = ROWS;
  for (uint32_t n = 0; n < N; n++)
    for (uint32_t k = 0; k < K; k++) {
      float v = (float)weight_at(n, k);
      if (format == MOI_FORMAT_F32) p->w.f32[n * K + k] = v;
      else
        p->w.half[format == MOI_FORMAT_BF16_KN ? k * N + n : n * K + k] =
            format == MOI_FORMAT_F16 ? moi_to_f16(v) : moi_to_bf16(v);
    }
}

static int right(const product *p) {
  for (uint32_t r = 0; r < ROWS; r++)
    for (uint32_t n = 0; n < N; n++) {
      float sum = p->bias[n];
      for (uint32_t k = 0; k < K; k++) sum += p->x[r * K + k] * (float)weight_at(n, k);
      if (p->y[r * N + n] != sum) return 0;
    }
  return 1;
}

static moi_gemm_desc desc_of(moi_format format, const char *kernel) {
  moi_gemm_desc d = MOI_GEMM_DESC_INIT;
  d.max_rows = ROWS, d.n = N, d.k = K, d.n_experts = 1, d.format = format, d.bias_type = MOI_FORMAT_F32,
  d.kernel = kernel;
  return d;
}

static moi_status run_on(const moi_plan *plan, product *at, moi_buffer room, moi_cu_stream stream) {
  moi_weights w = MOI_WEIGHTS_INIT;
  w.data = moi_ptr(&at->w, sizeof at->w);
  w.bias = moi_ptr(at->bias, sizeof at->bias);
  moi_gemm_args a = MOI_GEMM_ARGS_INIT;
  a.n_rows = ROWS;
  a.input = moi_ptr(at->x, sizeof at->x);
  a.offsets = moi_ptr(at->offsets, sizeof at->offsets);
  a.output = moi_ptr(at->y, sizeof at->y);
  a.weights = &w;
  return moi_gemm_run(plan, &a, room, (moi_queue){stream});
}

static moi_cu_pointer take(size_t size) {
  moi_cu_pointer p;
  CU(MemAlloc(&p, size));
  return p;
}
static void put(moi_cu_pointer to, const void *from, size_t size) { CU(MemcpyHtoD(to, from, size)); }
static void get(void *to, moi_cu_pointer from, size_t size) { CU(MemcpyDtoH(to, from, size)); }
static moi_buffer room_of(moi_cu_pointer p, const moi_plan *plan) {
  return moi_ptr((void *)(uintptr_t)p, moi_plan_workspace(plan, NULL));
}

/* ---- tests */

static const struct {
  moi_format format;
  const char *kernel;
} rows[] = {{MOI_FORMAT_F32, "f32-cublas"},
            {MOI_FORMAT_F16, "f16-cublas"},
            {MOI_FORMAT_BF16, "bf16-cublas"},
            {MOI_FORMAT_BF16_KN, "bf16_kn-cublas"}};

/* The first test: nobody has asked for cuBLAS yet. */
static void test_by_name_alone(void **state) {
  (void)state;
  moi_plan *plan = NULL;
  for (size_t i = 0; i < 4; i++) {
    moi_gemm_desc d = desc_of(rows[i].format, NULL);
    passes(moi_gemm_plan(context, &d, &plan));
    assert_null(strstr(moi_plan_kernel(plan), "cublas"));
    moi_plan_destroy(plan);
  }
  assert_int_equal(looked_for, 0);
  moi_gemm_desc d = desc_of(MOI_FORMAT_F32, "f32-cublas");
  passes(moi_gemm_plan(context, &d, &plan));
  assert_string_equal(moi_plan_kernel(plan), "f32-cublas");
  assert_true(looked_for > 0);
  moi_plan_destroy(plan);
}

static void test_refusals(void **state) {
  (void)state;
  moi_plan *plan = NULL;
  moi_gemm_desc d = desc_of(MOI_FORMAT_F32, "f32-cublas");
  d.n_experts = 2;
  refused(moi_gemm_plan(context, &d, &plan), MOI_UNSUPPORTED, "f32-cublas for gemm needs a bare GEMM of one expert");
  d.n_experts = 1, d.flags = MOI_EXPERTS_TABLES;
  refused(moi_gemm_plan(context, &d, &plan), MOI_UNSUPPORTED, "no table");
  d.flags = 0, d.plan_flags = MOI_BATCH_INVARIANT;
  refused(moi_gemm_plan(context, &d, &plan), MOI_UNSUPPORTED, "MOI_BATCH_INVARIANT");
  d.plan_flags = MOI_DETERMINISTIC, d.format = MOI_FORMAT_Q8_0, d.k = 64, d.kernel = "q8_0-cublas";
  refused(moi_gemm_plan(context, &d, &plan), MOI_UNSUPPORTED, "is no CUDA kernel");
  static layer l;
  layer_make(&l);
  l.experts.kernel = "f32-cublas";
  refused(layer_plan(&l, MOI_OP_EXPERTS, context, &plan), MOI_UNSUPPORTED, "experts gate and up needs a bare GEMM");
  l.experts.kernel = NULL, l.route.kernel = "f32-cublas"; /* the router alone */
  passes(layer_plan(&l, MOI_OP_MOE, context, &plan));
  char text[2048];
  moi_plan_describe(plan, text, sizeof text);
  assert_non_null(strstr(text, "router (f32): f32-cublas, as asked for"));
  moi_plan_destroy(plan);
}

static void test_products(void **state) {
  (void)state;
  static product p, result;
  moi_cu_context popped;
  for (size_t i = 0; i < 4; i++) {
    moi_gemm_desc d = desc_of(rows[i].format, rows[i].kernel);
    moi_plan *plan = NULL;
    passes(moi_gemm_plan(context, &d, &plan));
    assert_true(cu->CtxPop(&popped) != 0); /* nothing was current, nor is it now */
    enter();
    moi_cu_pointer memory = take(sizeof p), room = take(moi_plan_workspace(plan, NULL));
    moi_cu_stream stream;
    CU(StreamCreate(&stream, 1));
    make(&p, rows[i].format, 5);
    put(memory, &p, sizeof p);
    leave();
    passes(run_on(plan, (product *)(uintptr_t)memory, room_of(room, plan), stream));
    assert_true(cu->CtxPop(&popped) != 0);
    enter();
    CU(StreamSynchronize(stream));
    get(&result, memory, sizeof result);
    if (!right(&result)) fail_msg("%s: other numbers", rows[i].kernel);
    moi_plan_destroy(plan);
    CU(StreamDestroy(stream));
    CU(MemFree(memory));
    CU(MemFree(room));
    leave();
  }
}

static void test_a_graph_is_launched_again(void **state) {
  (void)state;
  if (!cu->StreamBeginCapture || !cu->GraphInstantiate || !cu->GraphLaunch) skip();
  static product p, result;
  moi_gemm_desc d = desc_of(MOI_FORMAT_F16, "f16-cublas");
  moi_plan *plan = NULL;
  passes(moi_gemm_plan(context, &d, &plan));
  enter();
  moi_cu_pointer memory = take(sizeof p), room = take(moi_plan_workspace(plan, NULL));
  moi_cu_stream stream;
  void *graph, *instance;
  CU(StreamCreate(&stream, 1));
  make(&p, d.format, 0);
  put(memory, &p, sizeof p);
  passes(run_on(plan, (product *)(uintptr_t)memory, room_of(room, plan), stream)); /* cuBLAS loads what it needs */
  CU(StreamSynchronize(stream));
  CU(StreamBeginCapture(stream, 0 /* global */));
  passes(run_on(plan, (product *)(uintptr_t)memory, room_of(room, plan), stream));
  CU(StreamEndCapture(stream, &graph));
  CU(GraphInstantiate(&instance, graph, 0));
  for (uint32_t seed = 1; seed < 4; seed++) {
    make(&p, d.format, seed);
    put(memory, &p, sizeof p);
    CU(GraphLaunch(instance, stream));
    CU(StreamSynchronize(stream));
    get(&result, memory, sizeof result);
    assert_true(right(&result));
  }
  CU(GraphExecDestroy(instance));
  CU(GraphDestroy(graph));
  CU(StreamDestroy(stream));
  moi_plan_destroy(plan);
  CU(MemFree(memory));
  CU(MemFree(room));
  leave();
}

/* A handle serves all plans of a context, and all threads: one at a time, or the emulated cuBLAS ends the program. */
enum { THREADS = 4, ROUNDS = 25 };
static void *run_some(void *arg) {
  const moi_plan *plan = arg;
  static _Thread_local product p, result;
  moi_cu_stream stream;
  enter();
  moi_cu_pointer memory = take(sizeof p), room = take(moi_plan_workspace(plan, NULL));
  CU(StreamCreate(&stream, 1));
  for (uint32_t i = 0; i < ROUNDS; i++) {
    make(&p, MOI_FORMAT_BF16, i);
    put(memory, &p, sizeof p);
    passes(run_on(plan, (product *)(uintptr_t)memory, room_of(room, plan), stream));
    CU(StreamSynchronize(stream));
    get(&result, memory, sizeof result);
    assert_true(right(&result));
  }
  CU(StreamDestroy(stream));
  CU(MemFree(memory));
  CU(MemFree(room));
  leave();
  return arg;
}

static void test_threads(void **state) {
  (void)state;
  moi_plan *plans[2] = {NULL, NULL};
  pthread_t threads[THREADS];
  for (int i = 0; i < 2; i++) {
    moi_gemm_desc d = desc_of(MOI_FORMAT_BF16, "bf16-cublas");
    passes(moi_gemm_plan(context, &d, &plans[i]));
  }
  if (live_handles) assert_int_equal(live_handles(), 1);
  for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, run_some, plans[i % 2]), 0);
  for (int i = 0; i < THREADS; i++) {
    void *done = NULL;
    pthread_join(threads[i], &done);
    assert_ptr_equal(done, plans[i % 2]);
  }
  moi_plan_destroy(plans[0]);
  moi_plan_destroy(plans[1]);
}

/* Whatever call fails first: a status, a text, and no handle left behind. */
static void test_every_call_may_fail(void **state) {
  (void)state;
  if (!fail_at) skip();
  static product p;
  moi_gemm_desc d = desc_of(MOI_FORMAT_F32, "f32-cublas");
  moi_plan *plan = NULL;
  passes(moi_gemm_plan(context, &d, &plan));
  enter();
  moi_cu_pointer memory = take(sizeof p), room = take(moi_plan_workspace(plan, NULL));
  make(&p, d.format, 1);
  put(memory, &p, sizeof p);
  moi_plan_destroy(plan);
  int of_create = 0, of_product = 0, handles = live_handles();
  for (int nth = 1, done = 0; !done; nth++) {
    moi_context *other = NULL;
    plan = NULL;
    assert_true(nth < 50);
    fail_at(nth);
    moi_status status = open_one(&other);
    if (!status) status = moi_gemm_plan(other, &d, &plan);
    if (!status) status = run_on(plan, (product *)(uintptr_t)memory, room_of(room, plan), NULL);
    fail_at(0);
    if (!status) done = 1;
    else refused(status, MOI_OUT_OF_MEMORY, "");
    of_create += status && strstr(moi_last_error(), "cublasCreate: cublasStatus_t 3") != NULL;
    of_product += status && strstr(moi_last_error(), "cublasGemmEx: cublasStatus_t 3") != NULL;
    moi_plan_destroy(plan);
    moi_context_destroy(other);
    assert_int_equal(live_handles(), handles);
  }
  assert_int_equal(of_create, 1);
  assert_int_equal(of_product, 1);
  CU(MemFree(memory));
  CU(MemFree(room));
  leave();
}

/* ---- without it: a plan that names the row says what is missing, and the list that it does not run here */

static void test_absent(void **state) {
  (void)state;
  moi_plan *plan = NULL;
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  int seen = 0;
  for (size_t i = 0; i < 4; i++) {
    moi_gemm_desc d = desc_of(rows[i].format, rows[i].kernel);
    refused(moi_gemm_plan(context, &d, &plan), MOI_UNSUPPORTED,
            absent == 1 ? "needs cuBLAS, which is not here (libcublas.so.13, "
                        : "a newer cuBLAS: this one has no cublasSetWorkspace_v2");
    d.kernel = NULL;
    passes(moi_gemm_plan(context, &d, &plan));
    moi_plan_destroy(plan);
    plan = NULL;
  }
  for (uint32_t i = 0; !moi_kernel_get(MOI_BACKEND_CUDA, i, &info); i++) {
    if (!strstr(info.name, "-cublas")) continue;
    seen++;
    assert_int_equal(info.runs_here, 0);
  }
  assert_int_equal(seen, 4);
}

static int start(void) {
  uint32_t count;
  if (moi_device_count(MOI_BACKEND_CUDA, &count)) {
    printf("skipped: %s\n", moi_last_error());
    return 77;
  }
  return moi_cu_load("the test", &cu) ? 1 : 0;
}

int main(void) {
  const struct CMUnitTest without[] = {cmocka_unit_test(test_absent)};
  int failed = 0;
  for (int how = 1; how <= 2; how++) { /* what is looked for once is looked for in a process */
    pid_t child = fork();
    if (child < 0) return 1;
    if (!child) {
      absent = how;
      int status = start();
      if (!status)
        status =
            cmocka_run_group_tests_name(how == 1 ? "no cuBLAS" : "an old cuBLAS", without, open_shared, close_shared);
      fflush(NULL);
      _exit(status);
    }
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 1;
    if (WEXITSTATUS(status) == 77) return 77;
    failed |= WEXITSTATUS(status);
  }
  int status = start();
  if (status) return status;
  static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11"};
  void *library = symbol("libcuda.so.1", "moi_emulated_fail"); /* which comes with a cuBLAS */
  for (int i = 0; i < 3 && !library; i++) library = __real_dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    printf("skipped: this machine has no cuBLAS\n");
    return failed ? 1 : 77;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_by_name_alone), cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_products),      cmocka_unit_test(test_a_graph_is_launched_again),
      cmocka_unit_test(test_threads),       cmocka_unit_test(test_every_call_may_fail),
  };
  return cmocka_run_group_tests(tests, open_shared, close_shared) || failed;
}

#else

int main(void) {
  printf("skipped: this build has no CUDA backend\n");
  return 77;
}

#endif
