#include "cuda/driver.h"

#include <string.h>

#include "core/lock.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

static moi_cu_driver driver;
static enum { FRESH, READY, NO_LIBRARY, NO_SYMBOL, NO_START } state;
static const char *missing;
static moi_cu_result start;

#if defined(_WIN32)
moi_cu_symbol moi_cu_library_find(void *library, const char *name) {
  return (moi_cu_symbol)GetProcAddress(library, name);
}
void *moi_cu_library_open(const char *name) { return LoadLibraryA(name); }
static const char *const names[] = {"nvcuda.dll"};
#else
moi_cu_symbol moi_cu_library_find(void *library, const char *name) {
  void *symbol = dlsym(library, name);
  moi_cu_symbol f;
  memcpy(&f, &symbol, sizeof f);
  return f;
}
void *moi_cu_library_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
static const char *const names[] = {"libcuda.so.1", "libcuda.so"};
#endif

static void load(void) {
  void *library = NULL;
  for (size_t i = 0; !library && i < sizeof names / sizeof names[0]; i++) library = moi_cu_library_open(names[i]);
  if (!library) {
    state = NO_LIBRARY;
    return;
  }
  moi_cu_symbol f;
#define X(name, symbol, parameters)                                                                                    \
  f = moi_cu_library_find(library, symbol);                                                                            \
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

static moi_once once = MOI_ONCE_INIT;

moi_status moi_cu_load(const char *fn, const moi_cu_driver **out) {
  *out = NULL;
  moi_once_do(&once, load);
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
