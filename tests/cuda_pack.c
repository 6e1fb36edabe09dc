/* Weight packing on CUDA's device and on the CPU's workers: the bytes of moi_pack, and no byte beside them. */
#include "tests/support.h"

#if defined(MOI_HAVE_CUDA) && defined(__linux__)

#include <dlfcn.h>
#include <moiety_cuda.h>

#include "cuda/driver.h"

static const moi_cu_driver *cu;
static moi_context *cuda, *cpu;
static const lanes workers = {3, 1};
static void (*fail_at)(int nth); /* of the emulated driver, else NULL */
static void (*launches)(unsigned *all, unsigned *programmatic);

#define CU(call) assert_int_equal(cu->call, 0)

static const moi_format pairs[][2] = {
    {MOI_FORMAT_BF16_KN, MOI_FORMAT_BF16},         {MOI_FORMAT_GPTQ_G32, MOI_FORMAT_INT4Z_G32},
    {MOI_FORMAT_GPTQ_G128, MOI_FORMAT_INT4Z_G128}, {MOI_FORMAT_AWQ_G32, MOI_FORMAT_INT4Z_G32},
    {MOI_FORMAT_AWQ_G128, MOI_FORMAT_INT4Z_G128},  {MOI_FORMAT_MXFP4, MOI_FORMAT_MXFP4_GGUF},
    {MOI_FORMAT_MXFP4_GGUF, MOI_FORMAT_MXFP4}};
enum { PAIRS = sizeof pairs / sizeof pairs[0] };

static int open_contexts(void **state) {
  (void)state;
  moi_cuda_handles_out here = MOI_CUDA_HANDLES_INIT;
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = MOI_BACKEND_CUDA;
  passes(moi_context_create(&desc, &cuda));
  cpu = open_lanes(&workers);
  passes(moi_cuda_handles(cuda, &here));
  CU(CtxPush(here.context));
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *f = dlsym(library, "moi_emulated_fail");
  memcpy(&fail_at, &f, sizeof f);
  f = dlsym(library, "moi_emulated_launches");
  memcpy(&launches, &f, sizeof f);
  return 0;
}
static int close_contexts(void **state) {
  (void)state;
  moi_cu_context popped;
  CU(CtxPop(&popped));
  moi_context_destroy(cuda);
  moi_context_destroy(cpu);
  return 0;
}

/* ---- memory: the streams of one side of a pack, one behind the other with gaps between all of them */

enum { MOST = 1 << 19, GAP = 48 };
typedef struct block {
  uint8_t *host;
  moi_cu_pointer device;
} block;
static block blocks[2]; /* src, dst */

/* shift: bytes by which streams begin behind a multiple of 16; spread: that experts lie apart, 0: dense. Multiples of what
 * the format needs are made of them. */
static moi_weights streams_of(const block *b, moi_format format, const moi_pack_desc *d, uint64_t shift,
                              uint64_t spread) {
  moi_format_sizes sizes;
  passes(moi_format_size(format, d->n, d->k, &sizes));
  int words = format == MOI_FORMAT_GPTQ_G32 || format == MOI_FORMAT_GPTQ_G128 || format == MOI_FORMAT_AWQ_G32 ||
              format == MOI_FORMAT_AWQ_G128;
  int halves = format == MOI_FORMAT_BF16 || format == MOI_FORMAT_BF16_KN;
  int half_scales = words || format == MOI_FORMAT_INT4Z_G32 || format == MOI_FORMAT_INT4Z_G128;
  uint64_t align[3] = {words ? 4 : halves ? 2 : 1, half_scales ? 2 : 1, words ? 4 : 1};
  uint64_t bytes[3] = {sizes.data, sizes.scales, sizes.zeros}, at = GAP;
  moi_weights w = MOI_WEIGHTS_INIT;
  moi_buffer *views[3] = {&w.data, &w.scales, &w.zeros};
  uint64_t *strides[3] = {&w.data_stride, &w.scales_stride, &w.zeros_stride};
  for (int i = 0; i < 3; i++) {
    if (!bytes[i]) continue;
    uint64_t dense = bytes[i] + spread * align[i], size = (d->n_experts - 1) * dense + bytes[i];
    at = (at + 15) / 16 * 16 + shift * align[i];
    if (spread) *strides[i] = dense;
    *views[i] = moi_ptr(b->host, size);
    views[i]->offset = at;
    at += size + GAP;
  }
  assert_true(at <= MOST);
  return w;
}

/* The same streams on the device. */
static moi_weights there(const block *b, moi_weights w) {
  moi_buffer *views[3] = {&w.data, &w.scales, &w.zeros};
  for (int i = 0; i < 3; i++)
    if (views[i]->ptr) views[i]->ptr = (void *)(uintptr_t)b->device;
  return w;
}

static void take_blocks(void) {
  for (int i = 0; i < 2; i++) {
    blocks[i].host = take_aligned(64, MOST);
    assert_non_null(blocks[i].host);
    CU(MemAlloc(&blocks[i].device, MOST));
  }
}
static void drop_blocks(void) {
  for (int i = 0; i < 2; i++) {
    drop_aligned(blocks[i].host);
    CU(MemFree(blocks[i].device));
  }
}
/* All bits of the source are random: there are all codes, and scales and zeros of any kind. */
static void fill(uint32_t seed) {
  for (int i = 0; i < MOST; i++) {
    seed = seed * 1664525u + 1013904223u;
    blocks[0].host[i] = (uint8_t)(seed >> 24);
  }
  memset(blocks[1].host, 0xa5, MOST);
  for (int i = 0; i < 2; i++) CU(MemcpyHtoD(blocks[i].device, blocks[i].host, MOST));
}

/* What is in dst's block on the device is what moi_pack makes of the host's. */
static void agree(const moi_pack_desc *d, const moi_weights *src, const moi_weights *dst, const char *what) {
  static uint8_t result[MOST], by_workers[MOST];
  CU(StreamSynchronize(NULL));
  CU(MemcpyDtoH(result, blocks[1].device, MOST));
  moi_plan *plan = NULL;
  passes(moi_pack_plan(cpu, d, &plan));
  passes(moi_pack_run(plan, src, dst, no_queue));
  moi_plan_destroy(plan);
  memcpy(by_workers, blocks[1].host, MOST);
  memset(blocks[1].host, 0xa5, MOST);
  passes(moi_pack(d, src, dst));
  for (int i = 0; i < MOST; i++) {
    if (result[i] != blocks[1].host[i])
      fail_msg("%s, device: byte %d is %02x, wanted %02x", what, i, result[i], blocks[1].host[i]);
    if (by_workers[i] != blocks[1].host[i]) fail_msg("%s, workers: byte %d", what, i);
  }
}

static moi_pack_desc desc_of(int pair, uint32_t n, uint32_t k, uint32_t n_experts) {
  moi_pack_desc d = MOI_PACK_DESC_INIT;
  d.from = pairs[pair][0], d.to = pairs[pair][1], d.n = n, d.k = k, d.n_experts = n_experts;
  return d;
}

static void test_bytes(void **state) {
  (void)state;
  /* one element, tiles that are whole, and such that are not along n, along k, along both */
  static const uint32_t shapes[][2] = {{1, 1},    {3, 5},    {64, 64},   {65, 63},   {130, 131}, {8, 32},   {8, 128},
                                       {72, 288}, {64, 256}, {136, 384}, {80, 2176}, {1, 32},    {257, 32}, {3, 8192}};
  static const uint64_t layouts[][4] = {/* src shift, spread, dst shift, spread */
                                        {0, 0, 0, 0},
                                        {0, 3, 0, 5},
                                        {1, 0, 1, 0},
                                        {3, 1, 2, 7},
                                        {8, 4, 4, 16}};
  take_blocks();
  for (int p = 0; p < PAIRS; p++) {
    int ran = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
      moi_pack_desc d = desc_of(p, shapes[s][0], shapes[s][1], s % 2 ? 3 : 1);
      moi_format_sizes sizes;
      if (moi_format_size(d.from, d.n, d.k, &sizes) || moi_format_size(d.to, d.n, d.k, &sizes)) continue;
      if ((sizes.data + sizes.scales + sizes.zeros) * d.n_experts > MOST / 2) d.n_experts = 1;
      moi_plan *plan = NULL;
      passes(moi_pack_plan(cuda, &d, &plan));
      assert_int_equal(moi_plan_workspace(plan, NULL), 0);
      for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
        char what[80];
        unsigned before = 0, after = 1, programmatic;
        snprintf(what, sizeof what, "%s, %u x %u, layout %zu", moi_format_name(d.from), d.n, d.k, l);
        fill((uint32_t)(p * 100 + (int)s));
        moi_weights src = streams_of(&blocks[0], d.from, &d, layouts[l][0], layouts[l][1]),
                    on_device = there(&blocks[0], src);
        moi_weights dst = streams_of(&blocks[1], d.to, &d, layouts[l][2], layouts[l][3]),
                    to_device = there(&blocks[1], dst);
        if (launches) launches(&before, &programmatic);
        passes(moi_pack_run(plan, &on_device, &to_device, no_queue));
        if (launches) launches(&after, &programmatic);
        assert_int_equal(after - before, 1);
        agree(&d, &src, &dst, what);
        ran++;
      }
      moi_plan_destroy(plan);
    }
    assert_true(ran >= 4 * 5);
  }
  drop_blocks();
}

/* More experts than a launch has room for. */
static void test_many_experts(void **state) {
  (void)state;
  moi_pack_desc d = desc_of(0, 2, 3, 2049);
  moi_plan *plan = NULL;
  take_blocks();
  fill(3);
  moi_weights src = streams_of(&blocks[0], d.from, &d, 0, 0), on_device = there(&blocks[0], src);
  moi_weights dst = streams_of(&blocks[1], d.to, &d, 0, 1), to_device = there(&blocks[1], dst);
  unsigned before = 0, after = 3, programmatic;
  passes(moi_pack_plan(cuda, &d, &plan));
  if (launches) launches(&before, &programmatic);
  passes(moi_pack_run(plan, &on_device, &to_device, no_queue));
  if (launches) launches(&after, &programmatic);
  assert_int_equal(after - before, 3);
  agree(&d, &src, &dst, "many experts");
  moi_plan_destroy(plan);
  drop_blocks();
}

/* A captured run packs what is in the memory when the graph is launched; the plan is needed no more. */
static void test_a_graph_packs_again(void **state) {
  (void)state;
  if (!cu->StreamBeginCapture || !cu->GraphInstantiate || !cu->GraphLaunch) skip();
  moi_pack_desc d = desc_of(3, 72, 288, 2);
  moi_plan *plan = NULL;
  moi_cu_stream stream;
  void *graph, *instance;
  take_blocks();
  moi_weights src = streams_of(&blocks[0], d.from, &d, 0, 1), on_device = there(&blocks[0], src);
  moi_weights dst = streams_of(&blocks[1], d.to, &d, 0, 1), to_device = there(&blocks[1], dst);
  passes(moi_pack_plan(cuda, &d, &plan));
  CU(StreamCreate(&stream, 1));
  CU(StreamBeginCapture(stream, 0 /* global */));
  passes(moi_pack_run(plan, &on_device, &to_device, (moi_queue){stream}));
  CU(StreamEndCapture(stream, &graph));
  CU(GraphInstantiate(&instance, graph, 0));
  moi_plan_destroy(plan);
  for (uint32_t round = 0; round < 2; round++) {
    fill(50 + round);
    CU(GraphLaunch(instance, stream));
    CU(StreamSynchronize(stream));
    agree(&d, &src, &dst, "a graph");
  }
  CU(GraphExecDestroy(instance));
  CU(GraphDestroy(graph));
  CU(StreamDestroy(stream));
  drop_blocks();
}

/* What is refused is refused before anything is written. */
static void test_refused(void **state) {
  (void)state;
  moi_pack_desc d = desc_of(1, 8, 64, 2), bad;
  moi_context *contexts[2] = {cuda, cpu};
  take_blocks();
  fill(9);
  for (int i = 0; i < 2; i++) {
    moi_plan *plan = NULL;
    bad = d, bad.n_experts = 0;
    refused(moi_pack_plan(contexts[i], &bad, &plan), MOI_INVALID_ARGUMENT, "desc->n_experts: 0");
    assert_null(plan);
    bad = d, bad.n_experts = 65537;
    refused(moi_pack_plan(contexts[i], &bad, &plan), MOI_INVALID_ARGUMENT, "desc->n_experts");
    bad = d, bad.to = MOI_FORMAT_INT4Z_G128;
    refused(moi_pack_plan(contexts[i], &bad, &plan), MOI_UNSUPPORTED, "no packing from gptq_g32 to int4z_g128");
    bad = d, bad.from = MOI_FORMAT_NONE;
    refused(moi_pack_plan(contexts[i], &bad, &plan), MOI_INVALID_ARGUMENT, "no weight format");
    bad = d, bad.k = 48;
    refused(moi_pack_plan(contexts[i], &bad, &plan), MOI_INVALID_ARGUMENT, "desc->n, k");
    bad = d, bad.n = 12;
    refused(moi_pack_plan(contexts[i], &bad, &plan), MOI_INVALID_ARGUMENT, "multiple of 8");
    moi_chain unknown = {0x7777, 0, NULL};
    bad = d, bad.next = &unknown;
    refused(moi_pack_plan(contexts[i], &bad, &plan), MOI_UNSUPPORTED, "desc->next");
    refused(moi_pack_plan(contexts[i], NULL, &plan), MOI_INVALID_ARGUMENT, "desc: is null");
    refused(moi_pack_plan(contexts[i], &d, NULL), MOI_INVALID_ARGUMENT, "out: is null");
    refused(moi_pack_plan(NULL, &d, &plan), MOI_INVALID_ARGUMENT, "context: is null");

    passes(moi_pack_plan(contexts[i], &d, &plan));
    moi_weights src = streams_of(&blocks[0], d.from, &d, 0, 0), dst = streams_of(&blocks[1], d.to, &d, 0, 0), w;
    if (!i) src = there(&blocks[0], src), dst = there(&blocks[1], dst);
    refused(moi_pack_run(NULL, &src, &dst, no_queue), MOI_INVALID_ARGUMENT, "plan: is null");
    refused(moi_pack_run(plan, NULL, &dst, no_queue), MOI_INVALID_ARGUMENT, "src: is null");
    refused(moi_pack_run(plan, &src, NULL, no_queue), MOI_INVALID_ARGUMENT, "dst: is null");
#define BAD_SRC(change, says)                                                                                          \
  w = src, change, refused(moi_pack_run(plan, &w, &dst, no_queue), MOI_INVALID_ARGUMENT, says)
#define BAD_DST(change, says)                                                                                          \
  w = dst, change, refused(moi_pack_run(plan, &src, &w, no_queue), MOI_INVALID_ARGUMENT, says)
    BAD_SRC(w.data = moi_ptr(NULL, 0), "src->data: is absent");
    BAD_SRC(w.scales = moi_ptr(NULL, 0), "src->scales: is absent");
    BAD_SRC(w.zeros = moi_ptr(NULL, 0), "src->zeros: is absent");
    BAD_DST(w.zeros = moi_ptr(NULL, 0), "dst->zeros: is absent");
    BAD_SRC(w.data.size--, "src->data.size");
    BAD_SRC(w.scales.size--, "src->scales.size");
    BAD_DST(w.data.size--, "dst->data.size");
    BAD_DST(w.zeros.size--, "dst->zeros.size");
    BAD_SRC(w.data.offset += 2, "src->data: is not aligned to 4");
    BAD_SRC(w.zeros.offset += 2, "src->zeros: is not aligned to 4");
    BAD_SRC(w.scales.offset++, "src->scales: is not aligned to 2");
    BAD_DST(w.scales.offset++, "dst->scales: is not aligned to 2");
    BAD_SRC(w.data_stride = 8 * 64 / 2 + 2, "src->data_stride: is not a multiple of 4");
    BAD_DST(w.data_stride = 8 * 64 / 2 - 1, "dst->data_stride: 255");
    BAD_DST(w.data_stride = UINT64_MAX, "dst->data_stride");
    BAD_DST(w.data_stride = 8 * 64 / 2 + 1, "dst->data.size"); /* too far for the view */
    BAD_DST((w.data.ptr = NULL, w.data.handle = 1), "dst->data: has a handle");
    BAD_DST(w.data.offset = UINT64_MAX, "dst->data.offset");
    BAD_DST(w.data = src.data, "dst->data: overlaps src->data");
    BAD_DST(w.zeros = src.scales, "dst->zeros: overlaps src->scales");
    moi_gemm_args args = MOI_GEMM_ARGS_INIT;
    refused(moi_gemm_run(plan, &args, moi_ptr(NULL, 0), no_queue), MOI_INVALID_ARGUMENT, "another op family");
    if (i) {
      refused(moi_pack_run(plan, &src, &dst, (moi_queue){&d}), MOI_INVALID_ARGUMENT, "queue.native");
      moi_gemm_desc gemm = MOI_GEMM_DESC_INIT;
      gemm.max_rows = gemm.n_experts = 1, gemm.n = gemm.k = 8, gemm.format = MOI_FORMAT_F32;
      moi_plan *other = NULL;
      passes(moi_gemm_plan(cpu, &gemm, &other));
      refused(moi_pack_run(other, &src, &dst, no_queue), MOI_INVALID_ARGUMENT, "another op family");
      moi_plan_destroy(other);
    }
    moi_plan_destroy(plan);
  }
  static uint8_t result[MOST];
  CU(StreamSynchronize(NULL));
  CU(MemcpyDtoH(result, blocks[1].device, MOST));
  for (int i = 0; i < MOST; i++) assert_true(result[i] == 0xa5 && blocks[1].host[i] == 0xa5);
  drop_blocks();
}

static void test_calls_may_fail(void **state) {
  (void)state;
  if (!fail_at) skip();
  moi_pack_desc d = desc_of(0, 8, 8, 1);
  moi_plan *plan = NULL;
  take_blocks();
  moi_weights src = there(&blocks[0], streams_of(&blocks[0], d.from, &d, 0, 0));
  moi_weights dst = there(&blocks[1], streams_of(&blocks[1], d.to, &d, 0, 0));
  fail_at(1);
  refused(moi_pack_plan(cuda, &d, &plan), MOI_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY");
  assert_null(plan);
  passes(moi_pack_plan(cuda, &d, &plan));
  fail_at(1);
  refused(moi_pack_run(plan, &src, &dst, no_queue), MOI_OUT_OF_MEMORY, "cuLaunchKernel");
  fail_at(0);
  moi_plan_destroy(plan);
  drop_blocks();
}

int main(void) {
  uint32_t count;
  if (moi_device_count(MOI_BACKEND_CUDA, &count)) {
    printf("skipped: %s\n", moi_last_error());
    return 77;
  }
  if (moi_cu_load("the test", &cu)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes), cmocka_unit_test(test_many_experts),
                                     cmocka_unit_test(test_a_graph_packs_again), cmocka_unit_test(test_refused),
                                     cmocka_unit_test(test_calls_may_fail)};
  return cmocka_run_group_tests(tests, open_contexts, close_contexts);
}

#else

int main(void) {
  printf("skipped: this build has no CUDA backend\n");
  return 77;
}

#endif
