/* The rig on CUDA devices. */
#include "bench/rig/device_kind.h"

#if defined(MOI_HAVE_CUDA)

#include <moiety_cuda.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels/peak.h"
#include "cuda/driver.h"
#include "cuda/images.h"

enum { STRETCH = 512 << 20, THREADS = 256, BLOCKS = 2048 };

typedef struct device {
  const moi_cu_driver *cu;
  moi_cuda_handles_out handles;
  moi_cu_stream stream;
  moi_cu_event before, after;
  moi_cu_module peaks;
  moi_cu_function read, fma;
  moi_cu_pointer stretch; /* what is read */
  size_t stretch_size;
  uint32_t rounds;
  int inside; /* the context is current */
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

static void close_cuda(void *own) {
  device *d = own;
  moi_cu_context mine;
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
  TRY_CU(d->cu->EventRecord(d->before, d->stream), "cuEventRecord");
  return MOI_OK;
}

static moi_status end(void *own, moi_status status, double *busy) {
  device *d = own;
  float ms = 0;
  *busy = 0;
  moi_cu_result result = d->cu->EventRecord(d->after, d->stream);
  moi_cu_result waited = d->cu->StreamSynchronize(d->stream); /* also after a failure: what was launched uses the copies */
  if (!status && !result) result = waited;
  if (!status && !result) result = d->cu->EventElapsedTime(&ms, d->before, d->after);
  if (!status && result) status = moi_cu_fail("the rig", d->cu, "cuStreamSynchronize", result);
  if (!status) *busy = (double)ms * 1e-3;
  return status;
}

/* ---- what the device gives */

static moi_status open_peaks(device *d) {
  if (d->stretch) return MOI_OK;
  TRY_CU(d->cu->ModuleLoadData(&d->peaks, moi_bench_images[0].bytes), "cuModuleLoadData");
  TRY_CU(d->cu->ModuleGetFunction(&d->read, d->peaks, "peak_read"), "cuModuleGetFunction");
  TRY_CU(d->cu->ModuleGetFunction(&d->fma, d->peaks, "peak_fma"), "cuModuleGetFunction");
  d->stretch_size = STRETCH;
  TRY_CU(d->cu->MemAlloc(&d->stretch, d->stretch_size), "cuMemAlloc");
  TRY_CU(d->cu->MemsetD32(d->stretch, 0x5a5a5a5au, d->stretch_size / 4), "cuMemsetD32");
  d->rounds = 64;
  return MOI_OK;
}

static double seconds_of(device *d, moi_cu_function function, uint32_t rounds) {
  moi_peak_args args;
  memset(&args, 0, sizeof args);
  args.buffer = args.sink = (void *)(uintptr_t)d->stretch;
  args.n_words = d->stretch_size / 4;
  args.rounds = rounds;
  void *params[1] = {&args};
  float ms = 0;
  if (d->cu->EventRecord(d->before, d->stream) ||
      d->cu->LaunchKernel(function, BLOCKS, 1, 1, THREADS, 1, 1, 0, d->stream, params, NULL) ||
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
    double seconds = seconds_of(d, d->read, 0);
    if (seconds > 0 && (double)d->stretch_size / seconds > best) best = (double)d->stretch_size / seconds;
  }
  return best;
}

static double fma_rate(void *own) {
  device *d = own;
  double best = 0;
  if (open_peaks(d)) return 0;
  for (int i = 0; i < 3; i++) {
    double seconds = seconds_of(d, d->fma, d->rounds), ops = 32.0 * d->rounds * BLOCKS * THREADS;
    if (seconds > 0 && ops / seconds > best) best = ops / seconds;
    while (seconds > 0 && seconds < 0.01 && d->rounds < 1u << 20) d->rounds *= 2, seconds *= 2; /* the next is longer */
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
    .read_rate = read_rate,
    .fma_rate = fma_rate,
};

#endif
