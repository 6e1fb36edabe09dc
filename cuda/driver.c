#include "cuda/driver.h"

#include <string.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#include <pthread.h>
#endif

static moi_cu_driver driver;
static enum { FRESH, READY, NO_LIBRARY, NO_SYMBOL, NO_START } state;
static const char *missing;
static moi_cu_result start;

typedef void (*any_function)(void);

#if defined(_WIN32)
static any_function find(void *library, const char *name) { return (any_function)GetProcAddress(library, name); }
static void *open_library(void) { return LoadLibraryA("nvcuda.dll"); }
#else
static any_function find(void *library, const char *name) {
  void *symbol = dlsym(library, name);
  any_function f;
  memcpy(&f, &symbol, sizeof f);
  return f;
}
static void *open_library(void) {
  static const char *const names[] = {"libcuda.so.1", "libcuda.so"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (library) return library;
  }
  return NULL;
}
#endif

static void load(void) {
  void *library = open_library();
  if (!library) {
    state = NO_LIBRARY;
    return;
  }
  any_function f;
#define X(name, symbol, parameters)                                                                                    \
  f = find(library, symbol);                                                                                           \
  if (!f) missing = symbol;                                                                                            \
  memcpy(&driver.name, &f, sizeof f);
  MOI_CU_FUNCTIONS(X)
  const char *of_all = missing;
  MOI_CU_NEWER_FUNCTIONS(X)
  MOI_CU_GRAPH_FUNCTIONS(X)
#undef X
  missing = of_all;
  state = missing ? NO_SYMBOL : READY;
  if (missing) return;
  start = driver.Init(0);
  if (!start) start = driver.DriverGetVersion(&driver.version);
  if (start) state = NO_START;
}

#if defined(_WIN32)
static INIT_ONCE once = INIT_ONCE_STATIC_INIT;
static BOOL CALLBACK load_once(PINIT_ONCE o, PVOID p, PVOID *c) {
  (void)o, (void)p, (void)c;
  load();
  return TRUE;
}
static void load_for_all(void) { InitOnceExecuteOnce(&once, load_once, NULL, NULL); }
#else
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void load_for_all(void) { pthread_once(&once, load); }
#endif

moi_status moi_cu_load(const char *fn, const moi_cu_driver **out) {
  *out = NULL;
  load_for_all();
  switch (state) {
    case READY: *out = &driver; return MOI_OK;
    case NO_SYMBOL: return moi_fail(MOI_NO_DEVICE, fn, "NVIDIA's driver is too old: it has no %s (CUDA 11.2)", missing);
    case NO_START:
      if (start == MOI_CU_NO_DEVICE) return moi_fail(MOI_NO_DEVICE, fn, "NVIDIA's driver finds no device");
      return moi_fail(MOI_NO_DEVICE, fn, "NVIDIA's driver does not start: cuInit gives %d", start);
    default: return moi_fail(MOI_NO_DEVICE, fn, "NVIDIA's driver (libcuda.so.1, nvcuda.dll) is not installed");
  }
}

moi_status moi_cu_fail(const char *fn, const moi_cu_driver *d, const char *what, moi_cu_result result) {
  const char *name = NULL;
  d->GetErrorName(result, &name);
  moi_status status = result == MOI_CU_OUT_OF_MEMORY       ? MOI_OUT_OF_MEMORY
                      : result == MOI_CU_NO_BINARY_FOR_GPU ? MOI_UNSUPPORTED
                                                           : MOI_DEVICE_ERROR;
  return moi_fail(status, fn, "%s: %s (%d)", what, name ? name : "unknown error", result);
}
