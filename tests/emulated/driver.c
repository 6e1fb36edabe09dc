/* A libcuda.so.1 whose one device is this machine's CPU, running the kernels that were compiled for it: so that all of the
 * CUDA backend, host and kernels, runs where there is no NVIDIA device. Launches are done when they return. Graphs are
 * lists of launches. Environment:
 *   MOI_EMULATED_SM=89      the compute capability that the device claims
 *   MOI_EMULATED_NAME=text  the name that it has
 *   MOI_EMULATED_FAIL=N     the Nth call that can fail gives out-of-memory; calls are counted from 1 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "machine.h"
#include "races.h"

#define API __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, NOT_FOUND = 500, COOPERATIVE_TOO_LARGE = 720 };
enum { MULTIPROCESSORS = 2, BLOCKS = 16 }; /* at once; more than hardware has, so that many meet */

static _Atomic int countdown, capability, asked; /* asked: by the environment */
static _Atomic int cooperative = 1, resident = MULTIPROCESSORS * BLOCKS;
static const char *device_name = "emulated on the CPU";

/* What the environment says, or a test that finds these with dlsym. nth 0: nothing fails; sm 0: as before,
 * 89 if nothing was said. */
API void moi_emulated_fail(int nth) { countdown = nth; }
API void moi_emulated_sm(int sm) { capability = sm ? sm : asked; }
/* Blocks of a cooperative launch: as many as the device says; fewer, as in a green context; 0: it has no such launches. */
API void moi_emulated_together(int blocks) {
  cooperative = blocks != 0;
  resident = blocks;
}
API void moi_emulated_name(const char *name) { device_name = name ? name : "emulated on the CPU"; }

__attribute__((constructor)) static void read_environment(void) {
  const char *fail = getenv("MOI_EMULATED_FAIL"), *sm = getenv("MOI_EMULATED_SM");
  if (fail) countdown = atoi(fail);
  if (sm) capability = asked = atoi(sm);
  if (getenv("MOI_EMULATED_NAME")) device_name = getenv("MOI_EMULATED_NAME");
}

static int faulty(void) { return countdown > 0 && --countdown == 0; }
#define MAY_FAIL                                                                                                       \
  if (faulty()) return OUT_OF_MEMORY

static struct context {
  int retained;
} primary;
static _Thread_local struct context *stack[16];
static _Thread_local int depth;

/* ---- devices */

API int cuInit(unsigned flags) {
  (void)flags;
  return SUCCESS;
}
API int cuDriverGetVersion(int *version) {
  *version = 13000;
  return SUCCESS;
}
API int cuGetErrorName(int error, const char **text) {
  *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR";
  return SUCCESS;
}
API int cuDeviceGetCount(int *count) {
  *count = 1;
  return SUCCESS;
}
API int cuDeviceGet(int *device, int ordinal) {
  *device = 0;
  return ordinal ? INVALID_DEVICE : SUCCESS;
}
API int cuDeviceGetName(char *name, int size, int device) {
  (void)device;
  snprintf(name, (size_t)size, "%s", device_name);
  return SUCCESS;
}
API int cuDeviceGetUuid(void *uuid, int device) {
  (void)device;
  memset(uuid, 0x5a, 16);
  return SUCCESS;
}
API int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  (void)device;
  *bytes = (size_t)8 << 30;
  return SUCCESS;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  int sm = capability ? capability : 89;
  switch (attribute) {
    case 8: *value = 48 << 10; break;
    case 97: *value = (sm < 80 ? 64 : sm == 80 ? 163 : sm == 90 || sm == 100 ? 227 : 99) << 10; break;
    case 13: *value = 1000000; break;
    case 16: *value = MULTIPROCESSORS; break;
    case 38: *value = 1 << 20; break;
    case 75: *value = sm / 10; break;
    case 76: *value = sm % 10; break;
    case 95: *value = cooperative; break;
    default: *value = 0;
  }
  return SUCCESS;
}

/* ---- contexts */

API int cuDevicePrimaryCtxRetain(struct context **context, int device) {
  (void)device;
  MAY_FAIL;
  __atomic_fetch_add(&primary.retained, 1, __ATOMIC_RELAXED);
  *context = &primary;
  return SUCCESS;
}
API int cuDevicePrimaryCtxRelease_v2(int device) {
  (void)device;
  return __atomic_fetch_sub(&primary.retained, 1, __ATOMIC_RELAXED) > 0 ? SUCCESS : INVALID_CONTEXT;
}
API int cuCtxPushCurrent_v2(struct context *context) {
  if (context != &primary || depth == 16) return INVALID_CONTEXT;
  stack[depth++] = context;
  return SUCCESS;
}
API int cuCtxPopCurrent_v2(struct context **context) {
  if (!depth) return INVALID_CONTEXT;
  depth--;
  if (context) *context = stack[depth];
  return SUCCESS;
}
API int cuCtxGetCurrent(struct context **context) {
  *context = depth ? stack[depth - 1] : NULL;
  return SUCCESS;
}
API int cuCtxGetDevice(int *device) {
  *device = 0;
  return depth ? SUCCESS : INVALID_CONTEXT;
}
#define IN_CONTEXT                                                                                                     \
  if (!depth) return INVALID_CONTEXT

/* ---- modules: all kernels are in all of them */

API int cuModuleLoadData(void **module, const void *image) {
  IN_CONTEXT;
  if (!image) return INVALID_VALUE;
  MAY_FAIL;
  *module = malloc(1);
  return *module ? SUCCESS : OUT_OF_MEMORY;
}
API int cuModuleUnload(void *module) {
  IN_CONTEXT;
  free(module);
  return SUCCESS;
}
API int cuModuleGetFunction(const moi_emulated_kernel **function, void *module, const char *name) {
  (void)module;
  MAY_FAIL;
  *function = moi_emulated_find(name);
  return *function ? SUCCESS : NOT_FOUND;
}
API int cuFuncSetAttribute(const moi_emulated_kernel *function, int attribute, int value) {
  (void)function, (void)attribute, (void)value;
  return SUCCESS;
}

/* ---- streams, graphs, launches */

typedef struct launch {
  const moi_emulated_kernel *kernel;
  unsigned grid_x, grid_y, threads, shared, together;
  void *args;
} launch;

typedef struct graph {
  launch *list;
  size_t n, users;
} graph;

static _Thread_local graph *capture;

/* How many launches there were, captured ones counted once, and how many of them may be made ready while the one before
 * them runs. */
static _Atomic unsigned n_launches, n_programmatic;
API void moi_emulated_launches(unsigned *all, unsigned *programmatic) {
  *all = n_launches;
  *programmatic = n_programmatic;
}

enum { STREAM = 0x57ea3 };
API int cuStreamCreate(unsigned **stream, unsigned flags) {
  (void)flags;
  MAY_FAIL;
  *stream = malloc(sizeof **stream);
  if (!*stream) return OUT_OF_MEMORY;
  **stream = STREAM;
  return SUCCESS;
}
API int cuStreamDestroy_v2(unsigned *stream) {
  if (!stream || *stream != STREAM) return INVALID_HANDLE;
  *stream = 0;
  free(stream);
  return SUCCESS;
}
API int cuStreamGetFlags(const unsigned *stream, unsigned *flags) {
  *flags = 0;
  return !stream || *stream == STREAM ? SUCCESS : INVALID_HANDLE;
}
API int cuStreamSynchronize(void *stream) {
  (void)stream;
  return capture ? 900 : SUCCESS; /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED */
}
API int cuStreamBeginCapture_v2(void *stream, int mode) {
  (void)stream, (void)mode;
  capture = calloc(1, sizeof *capture);
  if (!capture) return OUT_OF_MEMORY;
  capture->users = 1;
  return SUCCESS;
}
API int cuStreamEndCapture(void *stream, void **out) {
  (void)stream;
  if (!capture) return INVALID_VALUE;
  *out = capture;
  capture = NULL;
  return SUCCESS;
}
API int cuGraphInstantiateWithFlags(void **instance, void *g, unsigned long long flags) {
  (void)flags;
  ((graph *)g)->users++;
  *instance = g;
  return SUCCESS;
}
API int cuGraphDestroy(void *p) {
  graph *g = p;
  if (--g->users) return SUCCESS;
  for (size_t i = 0; i < g->n; i++) free(g->list[i].args);
  free(g->list);
  free(g);
  return SUCCESS;
}
API int cuGraphExecDestroy(void *instance) { return cuGraphDestroy(instance); }
static void start(const launch *l) {
  if (l->together) moi_emulated_launch_together(l->kernel, l->args, l->grid_x, l->threads);
  else moi_emulated_launch(l->kernel, l->args, l->grid_x, l->grid_y, l->threads, l->shared);
}
API int cuGraphLaunch(void *instance, void *stream) {
  (void)stream;
  IN_CONTEXT;
  const graph *g = instance;
  for (size_t i = 0; i < g->n; i++) start(&g->list[i]);
  return SUCCESS;
}

static int launch_or_record(const moi_emulated_kernel *k, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                            unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, const void *stream,
                            void *args, unsigned together) {
  unsigned flags;
  IN_CONTEXT;
  if (cuStreamGetFlags(stream, &flags)) return INVALID_HANDLE;
  if (!grid_x || !grid_y || grid_z != 1 || grid_x > 2147483647u || grid_y > 65535u || block_y != 1 || block_z != 1 ||
      block_x != k->threads || k->args_size > 4096) {
    fprintf(stderr, "emulated: a launch of %s that no driver takes: grid %u %u %u, block %u %u %u\n", k->name, grid_x,
            grid_y, grid_z, block_x, block_y, block_z);
    return INVALID_VALUE;
  }
  MAY_FAIL;
  n_launches++;
  launch l = {k, grid_x, grid_y, block_x, shared, together, args};
  if (!capture) {
    start(&l);
    return SUCCESS;
  }
  launch *list = realloc(capture->list, (capture->n + 1) * sizeof *list);
  if (!list) return OUT_OF_MEMORY;
  capture->list = list;
  l.args = malloc(k->args_size);
  if (!l.args) return OUT_OF_MEMORY;
  memcpy(l.args, args, k->args_size);
  list[capture->n++] = l;
  return SUCCESS;
}

API int cuLaunchKernel(const moi_emulated_kernel *k, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **params, void **extra) {
  (void)extra;
  return launch_or_record(k, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, params[0], 0);
}
API int cuLaunchCooperativeKernel(const moi_emulated_kernel *k, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                  unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, void *stream,
                                  void **params) {
  if (!cooperative || shared || grid_y != 1) return INVALID_VALUE;
  if (grid_x > (unsigned)resident) return COOPERATIVE_TOO_LARGE;
  return launch_or_record(k, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, params[0], 1);
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const moi_emulated_kernel *k, int threads, size_t shared) {
  (void)k, (void)threads, (void)shared;
  IN_CONTEXT;
  *blocks = BLOCKS;
  return SUCCESS;
}

typedef struct attribute {
  unsigned id, pad;
  int value;
  unsigned char rest[60];
} attribute;
typedef struct config {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
  void *stream;
  const attribute *attributes;
  unsigned n_attributes;
} config;

API int cuLaunchKernelEx(const config *c, const moi_emulated_kernel *k, void **params, void **extra) {
  for (unsigned i = 0; i < c->n_attributes; i++) {
    if (c->attributes[i].id != 6 || c->attributes[i].value != 1 || (capability ? capability : 89) < 90) return INVALID_VALUE;
    n_programmatic++;
  }
  return cuLaunchKernel(k, c->grid_x, c->grid_y, c->grid_z, c->block_x, c->block_y, c->block_z, c->shared, c->stream,
                        params, extra);
}

/* ---- memory */

API int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
  IN_CONTEXT;
  MAY_FAIL;
  if (!size) return INVALID_VALUE;
  void *p = moi_races_alloc((size + 255) & ~(size_t)255);
  if (!p) return OUT_OF_MEMORY;
  *pointer = (uint64_t)(uintptr_t)p;
  return SUCCESS;
}
API int cuMemFree_v2(uint64_t pointer) {
  moi_races_free((void *)(uintptr_t)pointer);
  return SUCCESS;
}
API int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
  IN_CONTEXT;
  memcpy((void *)(uintptr_t)to, from, size);
  return SUCCESS;
}
API int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
  IN_CONTEXT;
  memcpy(to, (const void *)(uintptr_t)from, size);
  return SUCCESS;
}
API int cuMemsetD32_v2(uint64_t to, unsigned value, size_t count) {
  IN_CONTEXT;
  unsigned *p = (unsigned *)(uintptr_t)to;
  for (size_t i = 0; i < count; i++) p[i] = value;
  return SUCCESS;
}

/* ---- events */

API int cuEventCreate(struct timespec **event, unsigned flags) {
  (void)flags;
  *event = calloc(1, sizeof **event);
  return *event ? SUCCESS : OUT_OF_MEMORY;
}
API int cuEventDestroy_v2(struct timespec *event) {
  free(event);
  return SUCCESS;
}
API int cuEventRecord(struct timespec *event, void *stream) {
  (void)stream;
  clock_gettime(CLOCK_MONOTONIC, event);
  return SUCCESS;
}
API int cuEventElapsedTime(float *ms, const struct timespec *a, const struct timespec *b) {
  *ms = (float)((double)(b->tv_sec - a->tv_sec) * 1e3 + (double)(b->tv_nsec - a->tv_nsec) * 1e-6);
  return SUCCESS;
}
