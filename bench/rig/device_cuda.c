/* The rig on CUDA devices. */
#include "bench/rig/device_kind.h"

#if defined(MOI_HAVE_CUDA)

#include <moiety_cuda.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels/peak.h"
#include "cuda/driver.h"
#include "cuda/images.h"

/* Arithmetic runs in blocks that all fit at once, the same number on each multiprocessor: a last wave that is not full would
 * be taken for a lower peak. */
enum { STRETCH = 512 << 20, THREADS = 256, READ_BLOCKS = 2048, BLOCKS_EACH = MOI_PEAK_BLOCKS };

/* The kernels of kernels/peak.cu: operations of a thread in a round, and the compute capability that it takes. */
static const struct {
  const char *function;
  double ops;
  int needs;
} arithmetic[MOI_PEAK_KINDS] = {
    [MOI_PEAK_F32] = {"peak_fma", 32, 75},
    [MOI_PEAK_BF16] = {"peak_mma_bf16", MOI_PEAK_SUMS * 2 * 16 * 8 * 16 / 32.0, 80},
    [MOI_PEAK_F16] = {"peak_mma_f16", MOI_PEAK_SUMS * 2 * 16 * 8 * 16 / 32.0, 75},
    [MOI_PEAK_INT8] = {"peak_mma_int8", MOI_PEAK_SUMS * 2 * 16 * 8 * 32 / 32.0, 75},
    [MOI_PEAK_FP8] = {"peak_mma_fp8", MOI_PEAK_SUMS * 2 * 16 * 8 * 32 / 32.0, 89},
};

typedef struct device {
  const moi_cu_driver *cu;
  moi_cuda_handles_out handles;
  moi_cu_stream stream;
  moi_cu_event before, after;
  moi_cu_module peaks;
  moi_cu_function read, arithmetic[MOI_PEAK_KINDS];
  moi_cu_pointer stretch; /* what is read */
  size_t stretch_size;
  uint32_t rounds[MOI_PEAK_KINDS];
  int multiprocessors, capability; /* capability: 90 */
  int inside;                      /* the context is current */
  int recording;
  void **graphs; /* instances */
  uint64_t n_graphs, graphs_capacity;
} device;

#define TRY_CU(call, what)                                                                                             \
  do {                                                                                                                 \
    moi_cu_result try_result = (call);                                                                                 \
    if (try_result) return moi_cu_fail("the rig", d->cu, what, try_result);                                            \
  } while (0)

/* The rig's thread has the context current from open to close: its other calls to the driver need it. */
static moi_status open_cuda(const moi_context *context, void **own) {
  device *d = calloc(1, sizeof *d);
  if (!d) return moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a device");
  *own = d;
  d->handles = (moi_cuda_handles_out)MOI_CUDA_HANDLES_INIT;
  moi_status status = moi_cu_load("the rig", &d->cu);
  if (!status) status = moi_cuda_handles(context, &d->handles);
  if (status) return status;
  TRY_CU(d->cu->CtxPush(d->handles.context), "cuCtxPushCurrent");
  d->inside = 1;
  TRY_CU(d->cu->StreamCreate(&d->stream, 1 /* CU_STREAM_NON_BLOCKING */), "cuStreamCreate");
  TRY_CU(d->cu->EventCreate(&d->before, 0), "cuEventCreate");
  TRY_CU(d->cu->EventCreate(&d->after, 0), "cuEventCreate");
  return MOI_OK;
}

static void unrecord(void *own) {
  device *d = own;
  for (uint64_t i = 0; i < d->n_graphs; i++) d->cu->GraphExecDestroy(d->graphs[i]);
  free(d->graphs);
  d->graphs = NULL;
  d->n_graphs = d->graphs_capacity = 0;
  d->recording = 0;
}

static void close_cuda(void *own) {
  device *d = own;
  moi_cu_context mine;
  unrecord(d);
  if (d->stretch) d->cu->MemFree(d->stretch);
  if (d->peaks) d->cu->ModuleUnload(d->peaks);
  if (d->before) d->cu->EventDestroy(d->before);
  if (d->after) d->cu->EventDestroy(d->after);
  if (d->stream) d->cu->StreamDestroy(d->stream);
  if (d->inside) d->cu->CtxPop(&mine);
  free(d);
}

static moi_status make(void *own, size_t size, moi_chunk *c) {
  device *d = own;
  TRY_CU(d->cu->MemAlloc(&c->address, size), "cuMemAlloc");
  return MOI_OK;
}

static void drop(void *own, moi_chunk *c) {
  device *d = own;
  if (c->address) d->cu->MemFree(c->address);
}

static moi_status move(void *own, moi_chunk *in, size_t at, const uint8_t *from, uint8_t *out, size_t size) {
  device *d = own;
  if (!size) return MOI_OK;
  if (out) TRY_CU(d->cu->MemcpyDtoH(out, in->address + at, size), "cuMemcpyDtoH");
  else TRY_CU(d->cu->MemcpyHtoD(in->address + at, from, size), "cuMemcpyHtoD");
  return MOI_OK;
}

static moi_status flush(void *own) {
  (void)own; /* copies are done when they return */
  return MOI_OK;
}

static moi_queue queue(void *own) { return (moi_queue){((device *)own)->stream}; }

/* Views are translated, and with that copied, between begin and the launches: the clock starts at the first launch only if
 * nothing was left to copy, as it is when bench keeps copies. */
static moi_status begin(void *own) {
  device *d = own;
  if (d->recording) {
    TRY_CU(d->cu->StreamBeginCapture(d->stream, 1 /* CU_STREAM_CAPTURE_MODE_THREAD_LOCAL */), "cuStreamBeginCapture");
    return MOI_OK;
  }
  TRY_CU(d->cu->EventRecord(d->before, d->stream), "cuEventRecord");
  return MOI_OK;
}

/* The stream's capture becomes the last of the graphs. */
static moi_status end_recording(device *d, moi_status status) {
  void *graph = NULL;
  d->recording = 0;
  moi_cu_result result = d->cu->StreamEndCapture(d->stream, &graph);
  if (d->n_graphs == d->graphs_capacity) {
    d->graphs_capacity = d->graphs_capacity ? 2 * d->graphs_capacity : 32;
    d->graphs = realloc(d->graphs, d->graphs_capacity * sizeof *d->graphs);
    if (!d->graphs) exit(3);
  }
  if (!status && !result) result = d->cu->GraphInstantiate(&d->graphs[d->n_graphs], graph, 0);
  if (!status && !result) d->n_graphs++;
  if (graph) d->cu->GraphDestroy(graph);
  if (!status && result) status = moi_cu_fail("the rig", d->cu, "a CUDA graph", result);
  return status;
}

static moi_status end(void *own, moi_status status, double *busy) {
  device *d = own;
  float ms = 0;
  *busy = 0;
  if (d->recording) return end_recording(d, status);
  moi_cu_result result = d->cu->EventRecord(d->after, d->stream);
  moi_cu_result waited = d->cu->StreamSynchronize(d->stream); /* also after a failure: what was launched uses the copies */
  if (!status && !result) result = waited;
  if (!status && !result) result = d->cu->EventElapsedTime(&ms, d->before, d->after);
  if (!status && result) status = moi_cu_fail("the rig", d->cu, "cuStreamSynchronize", result);
  if (!status) *busy = (double)ms * 1e-3;
  return status;
}

static int records(const void *own) {
  const moi_cu_driver *cu = ((const device *)own)->cu;
  return cu->StreamBeginCapture && cu->StreamEndCapture && cu->GraphInstantiate && cu->GraphLaunch && cu->GraphDestroy &&
         cu->GraphExecDestroy;
}

static void record(void *own) { ((device *)own)->recording = 1; }

static moi_status replay(void *own, uint64_t i, double *busy) {
  device *d = own;
  moi_status status = begin(d);
  if (status) return status;
  moi_cu_result result = d->cu->GraphLaunch(d->graphs[i], d->stream);
  return end(d, result ? moi_cu_fail("the rig", d->cu, "cuGraphLaunch", result) : MOI_OK, busy);
}

/* ---- what the device gives */

static moi_status open_peaks(device *d) {
  if (d->stretch) return MOI_OK;
  TRY_CU(d->cu->ModuleLoadData(&d->peaks, moi_bench_images[0].bytes), "cuModuleLoadData");
  TRY_CU(d->cu->ModuleGetFunction(&d->read, d->peaks, "peak_read"), "cuModuleGetFunction");
  moi_cu_device index;
  int major, minor;
  TRY_CU(d->cu->CtxGetDevice(&index), "cuCtxGetDevice");
  TRY_CU(d->cu->DeviceGetAttribute(&d->multiprocessors, MOI_CU_MULTIPROCESSORS, index), "cuDeviceGetAttribute");
  TRY_CU(d->cu->DeviceGetAttribute(&major, MOI_CU_MAJOR, index), "cuDeviceGetAttribute");
  TRY_CU(d->cu->DeviceGetAttribute(&minor, MOI_CU_MINOR, index), "cuDeviceGetAttribute");
  d->capability = 10 * major + minor;
  for (int kind = 0; kind < MOI_PEAK_KINDS; kind++) {
    d->rounds[kind] = 4;
    if (arithmetic[kind].function && arithmetic[kind].needs <= d->capability)
      TRY_CU(d->cu->ModuleGetFunction(&d->arithmetic[kind], d->peaks, arithmetic[kind].function), "cuModuleGetFunction");
  }
  d->stretch_size = STRETCH;
  TRY_CU(d->cu->MemAlloc(&d->stretch, d->stretch_size), "cuMemAlloc");
  TRY_CU(d->cu->MemsetD32(d->stretch, 0x5a5a5a5au, d->stretch_size / 4), "cuMemsetD32");
  return MOI_OK;
}

static double seconds_of(device *d, moi_cu_function function, uint32_t blocks, uint32_t rounds) {
  moi_peak_args args;
  memset(&args, 0, sizeof args);
  args.buffer = args.sink = (void *)(uintptr_t)d->stretch;
  args.n_words = d->stretch_size / 4;
  args.rounds = rounds;
  void *params[1] = {&args};
  float ms = 0;
  if (d->cu->EventRecord(d->before, d->stream) ||
      d->cu->LaunchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, d->stream, params, NULL) ||
      d->cu->EventRecord(d->after, d->stream) || d->cu->StreamSynchronize(d->stream) ||
      d->cu->EventElapsedTime(&ms, d->before, d->after))
    return 0;
  return (double)ms * 1e-3;
}

static double read_rate(void *own) {
  device *d = own;
  double best = 0;
  if (open_peaks(d)) return 0;
  for (int i = 0; i < 5; i++) {
    double seconds = seconds_of(d, d->read, READ_BLOCKS, 0);
    if (seconds > 0 && (double)d->stretch_size / seconds > best) best = (double)d->stretch_size / seconds;
    if (seconds > 0.1) break; /* no card takes so long: once will do */
  }
  return best;
}

static double ops_rate(void *own, moi_peak_kind kind) {
  device *d = own;
  double best = 0;
  if (open_peaks(d) || !d->arithmetic[kind]) return 0;
  const uint32_t blocks = (uint32_t)d->multiprocessors * BLOCKS_EACH;
  for (int i = 0; i < 4; i++) {
    uint32_t *rounds = &d->rounds[kind];
    double seconds = seconds_of(d, d->arithmetic[kind], blocks, *rounds);
    double ops = arithmetic[kind].ops * *rounds * blocks * THREADS;
    if (seconds > 0 && ops / seconds > best) best = ops / seconds;
    if (seconds > 0.1) break;
    while (seconds > 0 && seconds < 0.01 && *rounds < 1u << 20) *rounds *= 2, seconds *= 2; /* the next is longer */
  }
  return best;
}

const moi_device_kind moi_device_cuda = {
    .open = open_cuda,
    .close = close_cuda,
    .make = make,
    .drop = drop,
    .move = move,
    .flush = flush,
    .begin = begin,
    .queue = queue,
    .end = end,
    .records = records,
    .record = record,
    .replay = replay,
    .unrecord = unrecord,
    .read_rate = read_rate,
    .ops_rate = ops_rate,
};

#endif
