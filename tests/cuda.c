/* moiety inside an engine's CUDA context: contexts, streams, graphs, and what is refused. The driver is the machine's, or
 * the emulated one of tests/emulated, which LD_LIBRARY_PATH names; faults are made with the emulated one alone. */
#include "tests/support.h"

#if defined(MOI_HAVE_CUDA) && defined(__linux__)

#include <dlfcn.h>
#include <math.h>
#include <moiety_cuda.h>
#include <pthread.h>
#include <stdatomic.h>

#include "cuda/driver.h"

static const moi_cu_driver *cu;
static moi_context *context;      /* on the primary context, for tests that need no other */
static moi_cuda_handles_out here; /* of it */
static void (*fail_at)(int nth);  /* of the emulated driver, else NULL */
static void (*claim)(int sm);
static void (*call_it)(const char *name);
static void (*launches)(unsigned *all, unsigned *programmatic);

static _Atomic int64_t live; /* bytes of contexts and plans */
static void *allocate(void *user, size_t size, size_t align) {
  (void)user;
  void *p = take_aligned(align, size);
  if (p) live += (int64_t)size;
  return p;
}
static void release(void *user, void *p, size_t size) {
  (void)user;
  if (p) live -= (int64_t)size;
  drop_aligned(p);
}

static moi_status open_with(uint32_t device, const moi_chain *chain, moi_context **out) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = MOI_BACKEND_CUDA;
  desc.device = device;
  desc.next = chain;
  desc.allocate = allocate;
  desc.free = release;
  *out = NULL;
  return moi_context_create(&desc, out);
}

#define CU(call) assert_int_equal(cu->call, 0)
static void enter(void) { CU(CtxPush(here.context)); }
static void leave(void) {
  moi_cu_context mine;
  CU(CtxPop(&mine));
}

static int open_shared(void **state) {
  (void)state;
  here = (moi_cuda_handles_out)MOI_CUDA_HANDLES_INIT;
  passes(open_with(0, NULL, &context));
  passes(moi_cuda_handles(context, &here));
  assert_true(here.capability >= 75);
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *f = dlsym(library, "moi_emulated_fail");
  memcpy(&fail_at, &f, sizeof f);
  f = dlsym(library, "moi_emulated_sm");
  memcpy(&claim, &f, sizeof f);
  f = dlsym(library, "moi_emulated_name");
  memcpy(&call_it, &f, sizeof f);
  f = dlsym(library, "moi_emulated_launches");
  memcpy(&launches, &f, sizeof f);
  return 0;
}
static int close_shared(void **state) {
  (void)state;
  moi_context_destroy(context);
  assert_int_equal(live, 0);
  return 0;
}

/* ---- memory of the device, the context being current */

static moi_buffer take(size_t size) {
  moi_cu_pointer p;
  CU(MemAlloc(&p, size ? size : 1));
  return moi_ptr((void *)(uintptr_t)p, size);
}
static void drop(moi_buffer b) { CU(MemFree((moi_cu_pointer)(uintptr_t)b.ptr)); }
static void put(moi_buffer b, const void *from, size_t size) {
  CU(MemcpyHtoD((moi_cu_pointer)(uintptr_t)b.ptr, from, size));
}
static void get(void *to, moi_buffer b, size_t size) { CU(MemcpyDtoH(to, (moi_cu_pointer)(uintptr_t)b.ptr, size)); }

/* Copies the layer's arrays to memory of its size, and translates the views of `l` to it. */
static void to_device(layer *l, moi_buffer memory) {
  moi_buffer *views[LAYER_VIEWS];
  put(memory, l, sizeof *l);
  layer_views(l, views);
  for (size_t i = 0; i < LAYER_VIEWS; i++)
    if (views[i]->ptr) views[i]->ptr = (uint8_t *)memory.ptr + ((uint8_t *)views[i]->ptr - (uint8_t *)l);
}

static moi_buffer take_room(const moi_plan *plan) {
  size_t align;
  return take(moi_plan_workspace(plan, &align));
}

/* ---- results */

static void near(const float *a, const float *b, size_t n, const char *what) {
  for (size_t i = 0; i < n; i++)
    if (!(fabsf(a[i] - b[i]) <= 1e-4f * (1 + fabsf(b[i]))))
      fail_msg("%s[%zu]: %g, the CPU has %g", what, i, a[i], b[i]);
}

/* What the op wrote on the device is what it writes on the CPU; `host` is the same layer there, not yet run. */
static void agree(moi_op op, layer *host, const layer *device) {
  uint32_t t = op == MOI_OP_GEMM ? LAYER_T : host->experts_args.n_tokens;
  moi_context *cpu = open_cpu(1);
  moi_plan *plan = NULL;
  passes(layer_plan(host, op, cpu, &plan));
  moi_buffer workspace = take_workspace(plan);
  passes(layer_run(host, op, plan, workspace));
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
  moi_context_destroy(cpu);
  if (op == MOI_OP_GEMM) near(device->product, host->product, t * LAYER_I, "product");
  if (op == MOI_OP_EXPERTS || op == MOI_OP_MOE) near(device->y, host->y, t * LAYER_H, "y");
  if (op != MOI_OP_ROUTE && op != MOI_OP_MOE) return;
  assert_memory_equal(device->ids, host->ids, t * LAYER_K * 4);
  assert_memory_equal(device->counts, host->counts, sizeof host->counts);
  assert_memory_equal(device->offsets, host->offsets, sizeof host->offsets);
  assert_memory_equal(device->permutation, host->permutation, t * LAYER_K * 4);
  near(device->ids_weights, host->ids_weights, t * LAYER_K, "weights");
  near(device->logits_out, host->logits_out, t * LAYER_E, "logits");
}

static void test_ops_agree_with_the_cpu(void **state) {
  (void)state;
  enter();
  moi_buffer memory = take(sizeof(layer));
  moi_cu_stream stream;
  CU(StreamCreate(&stream, 1));
  for (int i = 0; i < 4; i++) {
    static layer host, device, result;
    layer_make(&host);
    layer_make(&device);
    to_device(&device, memory);
    moi_plan *plan = NULL;
    passes(layer_plan(&device, layer_ops[i], context, &plan));
    moi_buffer room = take_room(plan);
    leave(); /* runs need no context to be current */
    passes(layer_run_on(&device, layer_ops[i], plan, room, (moi_queue){stream}));
    enter();
    CU(StreamSynchronize(stream));
    get(&result, memory, sizeof result);
    agree(layer_ops[i], &host, &result);
    moi_plan_destroy(plan);
    drop(room);
  }
  CU(StreamDestroy(stream));
  drop(memory);
  leave();
}

/* ---- decode: sequences of a token each, split over their keys */

enum { SEQS = 4, GROUP = 8, DIM = 64, MOST = 9000 };
static const int32_t lens[SEQS] = {700, 9000, 1, 3300};

typedef struct decode {
  float q[SEQS][GROUP * DIM], y[SEQS][GROUP * DIM];
  uint16_t q_short[SEQS][GROUP * DIM], k[SEQS][MOST * DIM], v[SEQS][MOST * DIM];
  int32_t offsets[SEQS + 1], lens[SEQS], starts[SEQS];
} decode;

/* Sequences first .. first + n - 1 of memory that lies at `at`. */
static void decode_run(const moi_attention_desc *d, decode *at, int first, int n, moi_buffer room, moi_plan *plan) {
  moi_kv_cache cache = MOI_KV_CACHE_INIT;
  cache.capacity = SEQS * MOST;
  cache.k = moi_ptr(at->k, sizeof at->k);
  cache.v = moi_ptr(at->v, sizeof at->v);
  cache.start = moi_ptr(at->starts + first, 4 * (size_t)n);
  moi_attention_args a = MOI_ATTENTION_ARGS_INIT;
  a.n_rows = a.n_seqs = (uint32_t)n;
  a.q = d->input_type == MOI_FORMAT_F32 ? moi_ptr(at->q[first], (size_t)n * sizeof at->q[0])
                                        : moi_ptr(at->q_short[first], (size_t)n * sizeof at->q_short[0]);
  a.output = moi_ptr(at->y[first], (size_t)n * sizeof at->y[0]);
  a.q_offsets = moi_ptr(at->offsets, 4 * (size_t)(n + 1));
  a.kv_lens = moi_ptr(at->lens + first, 4 * (size_t)n);
  a.cache = &cache;
  passes(moi_attention_run(plan, &a, room, no_queue));
}

/* The bits of a decoded row are those of its sequence alone, whatever else is in the batch, and whether a plan was asked
 * for that or not: segments go by the sequence's own keys. And they are right: many segments are joined. */
static void test_decode_is_alone_in_its_batch(void **state) {
  (void)state;
  static const struct {
    const char *kernel;
    moi_format input, cache;
  } rows[] = {{"flash-split", MOI_FORMAT_F32, MOI_FORMAT_F16}, {"flash-split-bf16", MOI_FORMAT_BF16, MOI_FORMAT_BF16}};
  decode *host = take_aligned(64, sizeof *host), *alone = take_aligned(64, sizeof *alone);
  for (int i = 0; i < (here.capability < 80 ? 1 : 2); i++) {
    moi_attention_desc d = MOI_ATTENTION_DESC_INIT;
    d.max_rows = d.max_seqs = SEQS, d.max_kv = MOST;
    d.n_heads = GROUP, d.n_kv_heads = 1, d.head_dim = DIM;
    d.input_type = rows[i].input, d.output_type = MOI_FORMAT_F32;
    d.k_format = d.v_format = rows[i].cache;
    uint32_t seed = 7;
    memset(host, 0, sizeof *host);
    for (int s = 0; s < SEQS; s++) { /* 16 bits: -1 .. 1 and a bit more, of either type */
      for (int h = 0; h < GROUP * DIM; h++) {
        seed = seed * 1664525u + 1013904223u;
        host->q[s][h] = (float)(int)(seed >> 24) / 64.0f - 2.0f;
        host->q_short[s][h] = (uint16_t)(0x3f00u | (seed >> 16 & 0x807fu));
      }
      for (int e = 0; e < lens[s] * DIM; e++) {
        seed = seed * 1664525u + 1013904223u;
        unsigned base = rows[i].cache == MOI_FORMAT_F16 ? 0x3800u : 0x3f00u;
        host->k[s][e] = (uint16_t)(base | (seed >> 16 & 0x807fu));
        host->v[s][e] = (uint16_t)(base | (seed >> 9 & 0x807fu));
      }
      host->offsets[s + 1] = s + 1;
      host->lens[s] = lens[s];
      host->starts[s] = s * MOST;
    }
    moi_context *cpu = open_cpu(1);
    moi_plan *plan = NULL;
    passes(moi_attention_plan(cpu, &d, &plan));
    moi_buffer workspace = take_workspace(plan);
    decode_run(&d, host, 0, SEQS, workspace, plan);
    drop_aligned(workspace.ptr);
    moi_plan_destroy(plan);
    moi_context_destroy(cpu);

    d.kernel = rows[i].kernel;
    enter();
    passes(moi_attention_plan(context, &d, &plan));
    moi_buffer memory = take(sizeof *host), room = take_room(plan);
    decode *device = memory.ptr;
    put(memory, host, sizeof *host);
    decode_run(&d, device, 0, SEQS, room, plan);
    CU(StreamSynchronize(NULL));
    get(alone, memory, sizeof *alone);
    for (int s = 0; s < SEQS; s++)
      for (int e = 0; e < GROUP * DIM; e++)
        if (!(fabsf(alone->y[s][e] - host->y[s][e]) <= (i ? 4e-3f : 1e-5f)))
          fail_msg("%s: sequence %d, %d: %g, the CPU has %g", rows[i].kernel, s, e, (double)alone->y[s][e],
                   (double)host->y[s][e]);
    memcpy(host->y, alone->y, sizeof host->y);
    for (int s = 0; s < SEQS; s++) {
      decode_run(&d, device, s, 1, room, plan);
      CU(StreamSynchronize(NULL));
      get(alone, memory, sizeof *alone);
      assert_memory_equal(alone->y[s], host->y[s], sizeof host->y[s]);
    }
    moi_plan_destroy(plan);
    drop(room);
    drop(memory);
    leave();
  }
  drop_aligned(host);
  drop_aligned(alone);
}

/* A captured run serves any data and any number of tokens. */
static void test_a_graph_is_launched_again(void **state) {
  (void)state;
  if (!cu->StreamBeginCapture || !cu->GraphInstantiate || !cu->GraphLaunch) skip();
  static layer host, device, result;
  enter();
  moi_buffer memory = take(sizeof(layer)), count = take(4);
  layer_make(&device);
  device.experts.weight_on = MOI_WEIGHT_ON_INPUT; /* one of the launches is cooperative */
  to_device(&device, memory);
  device.route_args.n_tokens_device = device.experts_args.n_tokens_device = count;
  moi_plan *plan = NULL;
  passes(layer_plan(&device, MOI_OP_MOE, context, &plan));
  moi_buffer room = take_room(plan);
  moi_cu_stream stream;
  void *graph, *instance;
  CU(StreamCreate(&stream, 1));
  CU(StreamBeginCapture(stream, 0 /* global */));
  passes(layer_run_on(&device, MOI_OP_MOE, plan, room, (moi_queue){stream}));
  CU(StreamEndCapture(stream, &graph));
  CU(GraphInstantiate(&instance, graph, 0));
  moi_plan_destroy(plan); /* the graph needs it no more: kernels are the context's */
  int32_t before[LAYER_T * LAYER_K] = {0};
  int others = 0;
  for (uint32_t round = 0; round < 4; round++) {
    layer_make(&host);
    host.experts.weight_on = MOI_WEIGHT_ON_INPUT;
    layer_fill(host.x, LAYER_T * LAYER_H, 20 + 7 * round);
    layer_fill(host.router, LAYER_E * LAYER_H, 40 + 3 * round);
    uint32_t n = 1 + round % LAYER_T;
    put(memory, &host, sizeof host);
    put(count, &n, sizeof n);
    CU(GraphLaunch(instance, stream));
    CU(StreamSynchronize(stream));
    get(&result, memory, sizeof result);
    host.route_args.n_tokens = host.experts_args.n_tokens = n;
    agree(MOI_OP_MOE, &host, &result);
    others += memcmp(before, result.ids, sizeof before) != 0;
    memcpy(before, result.ids, sizeof before);
  }
  assert_true(others > 1); /* the routing did change */
  CU(GraphExecDestroy(instance));
  CU(GraphDestroy(graph));
  CU(StreamDestroy(stream));
  drop(room);
  drop(count);
  drop(memory);
  leave();
}

static void test_contexts(void **state) {
  (void)state;
  uint32_t count = 0;
  moi_context *other = NULL;
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  passes(moi_device_count(MOI_BACKEND_CUDA, &count));
  assert_true(count > 0);
  passes(moi_device_get(MOI_BACKEND_CUDA, 0, &info));
  assert_true(info.name[0] && info.n_workers && info.memory && strstr(info.features, "sm_"));
  refused(moi_device_get(MOI_BACKEND_CUDA, count, &info), MOI_NO_DEVICE, "devices");
  refused(open_with(count, NULL, &other), MOI_NO_DEVICE, "desc->device");

  moi_cuda_context engine = MOI_CUDA_CONTEXT_INIT;
  refused(open_with(0, &engine.chain, &other), MOI_INVALID_ARGUMENT, "context is null");
  engine.context = here.context;
  refused(open_with(1, &engine.chain, &other), MOI_INVALID_ARGUMENT, "desc->device");
  moi_chain unknown = {0x7777, 0, NULL};
  refused(open_with(0, &unknown, &other), MOI_UNSUPPORTED, "0x7777");
  engine.chain.next = &unknown;
  refused(open_with(0, &engine.chain, &other), MOI_INVALID_ARGUMENT, "nothing behind it");
  engine.chain.next = NULL;
  passes(open_with(0, &engine.chain, &other));
  moi_cuda_handles_out h = MOI_CUDA_HANDLES_INIT;
  passes(moi_cuda_handles(other, &h));
  assert_ptr_equal(h.context, here.context);
  moi_context_destroy(other);

  moi_context *cpu = open_cpu(1);
  refused(moi_cuda_handles(cpu, &h), MOI_INVALID_ARGUMENT, "MOI_BACKEND_CUDA");
  moi_context_destroy(cpu);
  refused(moi_cuda_handles(NULL, &h), MOI_INVALID_ARGUMENT, "MOI_BACKEND_CUDA");
}

/* What was current is current again: here nothing. */
static void test_the_current_context_stays(void **state) {
  (void)state;
  static layer device;
  moi_cu_context popped;
  enter();
  moi_buffer memory = take(sizeof(layer));
  layer_make(&device);
  to_device(&device, memory);
  leave();
  moi_context *other = NULL;
  moi_plan *plan = NULL;
  passes(open_with(0, NULL, &other));
  assert_true(cu->CtxPop(&popped) != 0);
  passes(layer_plan(&device, MOI_OP_EXPERTS, other, &plan));
  assert_true(cu->CtxPop(&popped) != 0);
  enter();
  moi_buffer room = take_room(plan);
  leave();
  passes(layer_run(&device, MOI_OP_EXPERTS, plan, room));
  assert_true(cu->CtxPop(&popped) != 0);
  enter();
  CU(StreamSynchronize(NULL));
  leave();
  moi_plan_destroy(plan);
  moi_context_destroy(other);
  assert_true(cu->CtxPop(&popped) != 0);
  enter();
  drop(room);
  drop(memory);
  leave();
}

/* Many threads run one plan, each on a stream and memory of its own. */
enum { THREADS = 4, ROUNDS = 5 };
static moi_plan *shared_plan;

static void *run_some(void *arg) {
  layer host, device, result;
  moi_cu_stream stream;
  int *good = arg;
  enter();
  moi_buffer memory = take(sizeof(layer)), room = take_room(shared_plan);
  CU(StreamCreate(&stream, 1));
  for (uint32_t i = 0; i < ROUNDS; i++) {
    layer_make(&host);
    layer_fill(host.x, LAYER_T * LAYER_H, 3 * i + (uint32_t)*good);
    device = host;
    moi_buffer *views[LAYER_VIEWS];
    put(memory, &device, sizeof device);
    layer_views(&device, views);
    for (size_t v = 0; v < LAYER_VIEWS; v++) /* of `host`, whose copy this is */
      if (views[v]->ptr) views[v]->ptr = (uint8_t *)memory.ptr + ((uint8_t *)views[v]->ptr - (uint8_t *)&host);
    passes(layer_run_on(&device, MOI_OP_EXPERTS, shared_plan, room, (moi_queue){stream}));
    CU(StreamSynchronize(stream));
    get(&result, memory, sizeof result);
    agree(MOI_OP_EXPERTS, &host, &result);
  }
  CU(StreamDestroy(stream));
  drop(room);
  drop(memory);
  leave();
  *good = -1;
  return NULL;
}

static void test_threads_run_one_plan(void **state) {
  (void)state;
  static layer l;
  pthread_t threads[THREADS];
  int good[THREADS];
  layer_make(&l);
  passes(layer_plan(&l, MOI_OP_EXPERTS, context, &shared_plan));
  for (int i = 0; i < THREADS; i++) {
    good[i] = 11 * i;
    assert_int_equal(pthread_create(&threads[i], NULL, run_some, &good[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < THREADS; i++) assert_int_equal(good[i], -1);
  moi_plan_destroy(shared_plan);
}

/* Formats of order R are refused by name, with the one to use. */
static void test_rows_of_16(void **state) {
  (void)state;
  refuses_rows_of_16(context);
  moi_plan *plan = NULL;
  moi_pack_desc pack = MOI_PACK_DESC_INIT;
  pack.from = MOI_FORMAT_MXFP4, pack.to = MOI_FORMAT_MXFP4_R16, pack.n = 32, pack.k = 256, pack.n_experts = 1;
  refused(moi_pack_plan(context, &pack, &plan), MOI_UNSUPPORTED, "no CUDA kernel packs mxfp4 to mxfp4_r16");
}

static void test_refused_views(void **state) {
  (void)state;
  static layer device;
  enter();
  moi_buffer memory = take(sizeof(layer));
  layer_make(&device);
  to_device(&device, memory);
  moi_plan *plan = NULL;
  passes(layer_plan(&device, MOI_OP_EXPERTS, context, &plan));
  moi_buffer room = take_room(plan), none = moi_ptr(NULL, 0), small = room, crooked = room;
  small.size--;
  crooked.offset = 4;
  refused(layer_run(&device, MOI_OP_EXPERTS, plan, none), MOI_INVALID_ARGUMENT, "workspace");
  refused(layer_run(&device, MOI_OP_EXPERTS, plan, small), MOI_INVALID_ARGUMENT, "workspace");
  refused(layer_run(&device, MOI_OP_EXPERTS, plan, crooked), MOI_INVALID_ARGUMENT, "aligned");
  moi_buffer kept = device.experts_args.input;
  device.experts_args.input = (moi_buffer){.handle = 1, .size = kept.size};
  refused(layer_run(&device, MOI_OP_EXPERTS, plan, room), MOI_INVALID_ARGUMENT, "reads ptr");
  device.experts_args.input = kept;
  device.experts_args.n_tokens = 0; /* nothing to do is done */
  passes(layer_run(&device, MOI_OP_EXPERTS, plan, room));
  moi_plan_destroy(plan);
  drop(room);
  drop(memory);
  leave();
}

/* Whatever call fails first: a status, a text, and nothing left behind. */
static void test_every_call_may_fail(void **state) {
  (void)state;
  if (!fail_at) skip();
  static layer device;
  enter();
  moi_buffer memory = take(sizeof(layer)), room = {0};
  layer_make(&device);
  to_device(&device, memory);
  int failures = 0, done = 0;
  int64_t before = live;
  for (int nth = 1; !done; nth++) {
    moi_context *other = NULL;
    moi_plan *plan = NULL;
    assert_true(nth < 200);
    fail_at(nth);
    moi_status status = open_with(0, NULL, &other);
    if (!status) status = layer_plan(&device, MOI_OP_MOE, other, &plan);
    if (!status && !room.ptr) {
      fail_at(0);
      room = take_room(plan);
      fail_at(1); /* the first launch */
    }
    if (!status) status = layer_run(&device, MOI_OP_MOE, plan, room);
    fail_at(0);
    if (status) refused(status, MOI_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"), failures++;
    else done = 1;
    moi_plan_destroy(plan);
    moi_context_destroy(other);
    assert_int_equal(live, before);
  }
  assert_true(failures > 10);
  drop(room);
  drop(memory);
  leave();
}

static void test_old_devices(void **state) {
  (void)state;
  if (!claim) skip();
  moi_context *other = NULL;
  claim(70);
  refused(open_with(0, NULL, &other), MOI_UNSUPPORTED, "7.5 is needed");
  moi_cuda_context engine = MOI_CUDA_CONTEXT_INIT;
  engine.context = here.context;
  refused(open_with(0, &engine.chain, &other), MOI_UNSUPPORTED, "7.5 is needed");
  claim(0);
}

/* ---- activations as integers */

/* W[n][k] = 1 where n == k: a product gives the activations as the kernel has them. */
enum { INT_ROWS = 9, INT_K = 64, INT_BLOCK = 34 };

static void run_unit(const char *kernel, moi_act_quant quant, const float *x, float *y) {
  static uint8_t w[INT_K * INT_K / 32 * INT_BLOCK];
  for (int n = 0; n < INT_K; n++)
    for (int b = 0; b < INT_K / 32; b++) {
      uint8_t *block = w + (n * (INT_K / 32) + b) * INT_BLOCK;
      block[0] = 0, block[1] = 0x3c; /* 1 in f16 */
      for (int j = 0; j < 32; j++) block[2 + j] = b * 32 + j == n;
    }
  moi_gemm_desc d = MOI_GEMM_DESC_INIT;
  d.max_rows = INT_ROWS, d.n = d.k = INT_K, d.n_experts = 1, d.format = MOI_FORMAT_Q8_0, d.kernel = kernel;
  d.act_quant = quant;
  moi_plan *plan = NULL;
  passes(moi_gemm_plan(context, &d, &plan));
  assert_string_equal(moi_plan_kernel(plan), kernel);
  enter();
  int32_t offsets[2] = {0, INT_ROWS};
  size_t bytes = INT_ROWS * INT_K * sizeof(float);
  moi_buffer room = take_room(plan), data = take(sizeof w), in = take(bytes), out = take(bytes), at = take(sizeof offsets);
  put(data, w, sizeof w);
  put(in, x, bytes);
  put(at, offsets, sizeof offsets);
  moi_weights weights = MOI_WEIGHTS_INIT;
  weights.data = data;
  weights.data_stride = sizeof w;
  moi_gemm_args a = MOI_GEMM_ARGS_INIT;
  a.n_rows = INT_ROWS, a.input_stride = a.output_stride = INT_K;
  a.input = in, a.offsets = at, a.output = out, a.weights = &weights;
  passes(moi_gemm_run(plan, &a, room, no_queue));
  CU(StreamSynchronize(NULL));
  get(y, out, bytes);
  moi_plan_destroy(plan);
  drop(room), drop(data), drop(in), drop(out), drop(at);
  leave();
}

static void test_integers_hold_activations(void **state) {
  (void)state;
  static float x[INT_ROWS * INT_K], y[INT_ROWS * INT_K];
  /* the largest of a row: about where rounding would need a digit more, at the ends of what is normal, below them */
  static const float largest[INT_ROWS] = {1,        1.9921570f, -1.9921569f, 1.9921875f, -1.9999999f,
                                          0x1p110f, 0x1p-110f,  0x1p-130f,   0};
  for (int r = 0; r < INT_ROWS; r++)
    for (int k = 0; k < INT_K; k++) x[r * INT_K + k] = largest[r] * (k % 32 == 5 ? 1 : sinf((float)(7 * r + k)));
  run_unit("q8_0-mma-int8", MOI_ACT_QUANT_NONE, x, y);
  for (int i = 0; i < INT_ROWS * INT_K; i++) {
    float bound = fmaxf(fabsf(largest[i / INT_K]) * 0x1.02p-15f, 0x1p-127f);
    if (!(fabsf(y[i] - x[i]) <= bound)) fail_msg("row %d: %a became %a", i / INT_K, (double)x[i], (double)y[i]);
  }
  /* bf16 that are not far below the largest stay as they are */
  for (int i = 0; i < INT_ROWS * INT_K; i++)
    x[i] = ldexpf((float)(128 + i % 128), i % 7 + i / INT_K - 40) * (float)(i % 3 - 1);
  run_unit("q8_0-mma-int8", MOI_ACT_QUANT_NONE, x, y);
  for (int i = 0; i < INT_ROWS * INT_K; i++) assert_true(y[i] == x[i]);
  /* 8 bits are what moiety.h defines */
  for (int i = 0; i < INT_ROWS * INT_K; i++) x[i] = sinf((float)i) * (float)(i / 32);
  run_unit("q8_0-mma-int8", MOI_ACT_QUANT_INT8_32, x, y);
  for (int i = 0; i < INT_ROWS * INT_K; i += 32) {
    float a = 0;
    for (int j = i; j < i + 32; j++) a = fmaxf(a, fabsf(x[j]));
    float s = fmaxf(a / 127.0f, 0x1p-126f);
    for (int j = i; j < i + 32; j++) assert_true(y[j] == rintf(x[j] / s) * s);
  }
  /* what is no number reaches its row, and no other */
  for (int quant = 0; quant < 2; quant++) {
    for (int i = 0; i < INT_ROWS * INT_K; i++) x[i] = (float)(i % 5);
    x[2 * INT_K + 40] = NAN;
    x[4 * INT_K + 3] = INFINITY;
    x[7 * INT_K + 63] = -INFINITY;
    run_unit("q8_0-mma-int8", quant ? MOI_ACT_QUANT_INT8_32 : MOI_ACT_QUANT_NONE, x, y);
    for (int i = 0; i < INT_ROWS * INT_K; i++) {
      int r = i / INT_K, no_number = r == 2 || r == 4 || r == 7;
      assert_true(no_number ? isnan(y[i]) : fabsf(y[i] - x[i]) <= 4.0f / 254);
    }
  }
}

/* Which tensor cores multiply 64 rows and more of a plan: kernels.def's reckoning. */
static void test_the_card_decides(void **state) {
  (void)state;
  if (!claim || !call_it) skip();
  static const struct {
    int sm;
    const char *name;
    moi_format input;
    moi_act_quant quant;
    moi_format format;
    const char *kernel;
  } cases[] = {{86, "NVIDIA GeForce RTX 3090", MOI_FORMAT_BF16, MOI_ACT_QUANT_NONE, MOI_FORMAT_Q4_K, "q4_k-mma-int8"},
               {86, "NVIDIA GeForce RTX 3090", MOI_FORMAT_F32, MOI_ACT_QUANT_NONE, MOI_FORMAT_NVFP4, "nvfp4-mma-int8"},
               {86, "NVIDIA GeForce RTX 3090", MOI_FORMAT_F32, MOI_ACT_QUANT_NONE, MOI_FORMAT_FP8, "fp8-mma"},
               {86, "NVIDIA A40", MOI_FORMAT_BF16, MOI_ACT_QUANT_NONE, MOI_FORMAT_Q4_K, "q4_k-mma"},
               {86, "NVIDIA A40", MOI_FORMAT_F32, MOI_ACT_QUANT_NONE, MOI_FORMAT_Q4_K, "q4_k-mma-int8"},
               {86, "NVIDIA A40", MOI_FORMAT_BF16, MOI_ACT_QUANT_INT8_32, MOI_FORMAT_Q4_K, "q4_k-mma-int8"},
               {75, "NVIDIA GeForce RTX 2080 Ti", MOI_FORMAT_BF16, MOI_ACT_QUANT_NONE, MOI_FORMAT_Q4_K, "q4_k-mma-int8"},
               {75, "NVIDIA GeForce RTX 2080 Ti", MOI_FORMAT_BF16, MOI_ACT_QUANT_NONE, MOI_FORMAT_Q6_K, "q6_k-mma-f16"},
               {75, "Tesla T4", MOI_FORMAT_F16, MOI_ACT_QUANT_NONE, MOI_FORMAT_Q4_0, "q4_0-mma-f16"},
               {80, "NVIDIA A100", MOI_FORMAT_F32, MOI_ACT_QUANT_NONE, MOI_FORMAT_Q8_0, "q8_0-mma"},
               {80, "NVIDIA A100", MOI_FORMAT_BF16, MOI_ACT_QUANT_INT8_32, MOI_FORMAT_Q8_0, "q8_0-mma-int8"},
               {80, "NVIDIA A100", MOI_FORMAT_BF16, MOI_ACT_QUANT_INT8_32, MOI_FORMAT_Q4_K, "q4_k-mma"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    moi_context *other;
    claim(cases[i].sm);
    call_it(cases[i].name);
    passes(open_with(0, NULL, &other));
    moi_gemm_desc d = MOI_GEMM_DESC_INIT;
    d.max_rows = 64, d.n = d.k = 256, d.n_experts = 1, d.format = cases[i].format;
    d.input_type = cases[i].input, d.act_quant = cases[i].quant;
    d.plan_flags = MOI_BATCH_INVARIANT; /* one row for all */
    moi_plan *plan = NULL;
    passes(moi_gemm_plan(other, &d, &plan));
    if (strcmp(moi_plan_kernel(plan), cases[i].kernel))
      fail_msg("%s: %s, wanted %s", cases[i].name, moi_plan_kernel(plan), cases[i].kernel);
    moi_plan_destroy(plan);
    moi_context_destroy(other);
  }
  claim(0);
  call_it(NULL);
}

/* The row whose code is for one compute capability, and whose activations are of one kind. */
static void test_the_row_of_sm_120(void **state) {
  (void)state;
  if (!claim) skip();
  static const struct {
    int sm;
    moi_act_quant quant;
    const char *wanted; /* NULL: the row serves */
  } cases[] = {{120, MOI_ACT_QUANT_FP8_128_POW2, NULL},
               {120, MOI_ACT_QUANT_FP8_128, "powers of two"},
               {120, MOI_ACT_QUANT_NONE, "powers of two"},
               {121, MOI_ACT_QUANT_FP8_128_POW2, "sm_120"},
               {100, MOI_ACT_QUANT_FP8_128_POW2, "sm_120"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    moi_context *other;
    moi_plan *plan = NULL;
    claim(cases[i].sm);
    passes(open_with(0, NULL, &other));
    moi_gemm_desc d = MOI_GEMM_DESC_INIT;
    d.max_rows = 64, d.n = d.k = 256, d.n_experts = 1, d.format = MOI_FORMAT_MXFP4, d.act_quant = cases[i].quant;
    d.kernel = "mxfp4-mma-mx";
    if (cases[i].wanted) refused(moi_gemm_plan(other, &d, &plan), MOI_UNSUPPORTED, cases[i].wanted);
    else passes(moi_gemm_plan(other, &d, &plan));
    moi_plan_destroy(plan);
    d.kernel = NULL;
    passes(moi_gemm_plan(other, &d, &plan));
    assert_null(strstr(moi_plan_kernel(plan), "mma-mx"));
    moi_plan_destroy(plan);
    moi_context_destroy(other);
  }
  claim(0);
}

/* As many as docs/cuda.md says; on devices that can, all but the first and cooperative ones are made ready while the one before
 * runs. */
static void test_launches(void **state) {
  (void)state;
  if (!claim || !launches) skip();
  static const struct {
    moi_op op;
    uint32_t tokens;
    enum { ALL, PLAIN, ON_INPUT } how; /* PLAIN: logits instead of hidden states, and no shared expert */
    unsigned n, alone; /* alone: of them, those that are cooperative */
  } runs[] = {{MOI_OP_MOE, 1, ALL, 4},     {MOI_OP_MOE, 2, PLAIN, 3},   {MOI_OP_MOE, 3, ALL, 5},
              {MOI_OP_MOE, 3, PLAIN, 4},   {MOI_OP_ROUTE, 3, ALL, 2},   {MOI_OP_EXPERTS, 1, ALL, 3},
              {MOI_OP_EXPERTS, 3, ALL, 4}, {MOI_OP_GEMM, 3, ALL, 4},    {MOI_OP_MOE, 3, ON_INPUT, 5, 1}};
  static const int devices[] = {75, 89, 90, 120};
  for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) {
    claim(devices[d]);
    moi_context *other = NULL;
    passes(open_with(0, NULL, &other));
    enter();
    moi_buffer memory = take(sizeof(layer));
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
      static layer host, device, result;
      layer *both[2] = {&host, &device};
      unsigned before[2], after[2];
      for (int j = 0; j < 2; j++) {
        layer *l = both[j];
        layer_make(l);
        l->route_args.n_tokens = l->experts_args.n_tokens = runs[i].tokens;
        if (runs[i].how == ON_INPUT) l->experts.weight_on = MOI_WEIGHT_ON_INPUT;
        if (runs[i].how != PLAIN) continue;
        l->route.hidden = 0;
        l->route_args.logits = VIEW(l->router);
        l->moe.shared = NULL;
        l->moe.shared_gate = MOI_SHARED_PLAIN;
        l->moe_args.shared = NULL;
      }
      to_device(&device, memory);
      if (runs[i].how == PLAIN) device.route_args.logits = device.route_args.router;
      moi_plan *plan = NULL;
      passes(layer_plan(&device, runs[i].op, other, &plan));
      moi_buffer room = take_room(plan);
      launches(&before[0], &before[1]);
      passes(layer_run(&device, runs[i].op, plan, room));
      launches(&after[0], &after[1]);
      CU(StreamSynchronize(NULL));
      get(&result, memory, sizeof result);
      if (after[0] - before[0] != runs[i].n) fail_msg("run %zu: %u launches", i, after[0] - before[0]);
      assert_int_equal(after[1] - before[1], devices[d] >= 90 ? runs[i].n - 1 - runs[i].alone : 0);
      agree(runs[i].op, &host, &result);
      moi_plan_destroy(plan);
      drop(room);
    }
    drop(memory);
    leave();
    moi_context_destroy(other);
  }
  claim(0);
}

int main(void) {
  uint32_t count;
  if (moi_device_count(MOI_BACKEND_CUDA, &count)) {
    printf("skipped: %s\n", moi_last_error());
    return 77;
  }
  if (moi_cu_load("the test", &cu)) return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_ops_agree_with_the_cpu),
      cmocka_unit_test(test_decode_is_alone_in_its_batch),
      cmocka_unit_test(test_a_graph_is_launched_again),
      cmocka_unit_test(test_contexts),
      cmocka_unit_test(test_the_current_context_stays),
      cmocka_unit_test(test_threads_run_one_plan),
      cmocka_unit_test(test_rows_of_16),
      cmocka_unit_test(test_refused_views),
      cmocka_unit_test(test_every_call_may_fail),
      cmocka_unit_test(test_old_devices),
      cmocka_unit_test(test_integers_hold_activations),
      cmocka_unit_test(test_the_card_decides),
      cmocka_unit_test(test_the_row_of_sm_120),
      cmocka_unit_test(test_launches),
  };
  return cmocka_run_group_tests(tests, open_shared, close_shared);
}

#else

int main(void) {
  printf("skipped: this build has no CUDA backend\n");
  return 77;
}

#endif
