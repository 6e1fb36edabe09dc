/* The part of NVIDIA's driver API that this backend calls, in declarations of our own: no toolkit is needed to compile the
 * host's side, nor a driver to start it. The driver is looked for when the first context or device is asked for. */
#ifndef MOI_CUDA_DRIVER_H
#define MOI_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef int moi_cu_result; /* CUresult */
enum {
  MOI_CU_SUCCESS = 0,
  MOI_CU_INVALID_VALUE = 1,
  MOI_CU_OUT_OF_MEMORY = 2,
  MOI_CU_NO_DEVICE = 100,
  MOI_CU_INVALID_IMAGE = 200,
  MOI_CU_INVALID_CONTEXT = 201,
  MOI_CU_NO_BINARY_FOR_GPU = 209,
  MOI_CU_NOT_FOUND = 500,
  MOI_CU_COOPERATIVE_TOO_LARGE = 720
};

/* CUdevice_attribute */
enum {
  MOI_CU_MAX_SHARED_MEMORY = 8,
  MOI_CU_CLOCK_RATE = 13, /* kHz */
  MOI_CU_MULTIPROCESSORS = 16,
  MOI_CU_INTEGRATED = 18,
  MOI_CU_L2_BYTES = 38,
  MOI_CU_MAJOR = 75,
  MOI_CU_MINOR = 76,
  MOI_CU_COOPERATIVE = 95, /* 1: launches whose blocks can meet */
  MOI_CU_MAX_SHARED_MEMORY_OPTIN = 97
};

enum { MOI_CU_FUNCTION_MAX_DYNAMIC_SHARED = 8 }; /* CUfunction_attribute */

typedef int moi_cu_device;
typedef uint64_t moi_cu_pointer;             /* CUdeviceptr */
typedef struct moi_cu_context_s *moi_cu_context; /* CUcontext */
typedef struct moi_cu_module_s *moi_cu_module;
typedef struct moi_cu_function_s *moi_cu_function;
typedef struct moi_cu_stream_s *moi_cu_stream; /* CUstream, which is cudaStream_t */
typedef struct moi_cu_event_s *moi_cu_event;

/* CUlaunchAttribute, CUlaunchConfig */
enum { MOI_CU_LAUNCH_PROGRAMMATIC = 6 }; /* ..._PROGRAMMATIC_STREAM_SERIALIZATION: its value is 0 or 1 */
typedef struct moi_cu_launch_attribute {
  uint32_t id, pad;
  union {
    int allowed;
    uint64_t words[8];
  } value;
} moi_cu_launch_attribute;
typedef struct moi_cu_launch_config {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
  moi_cu_stream stream;
  const moi_cu_launch_attribute *attributes;
  unsigned n_attributes;
} moi_cu_launch_config;

/* X(result's member, symbol, parameters); the symbols are those of CUDA 11.2 and newer */
#define MOI_CU_FUNCTIONS(X)                                                                                            \
  X(Init, "cuInit", (unsigned flags))                                                                                  \
  X(DriverGetVersion, "cuDriverGetVersion", (int *version))                                                            \
  X(GetErrorName, "cuGetErrorName", (moi_cu_result error, const char **text))                                          \
  X(DeviceGetCount, "cuDeviceGetCount", (int *count))                                                                  \
  X(DeviceGet, "cuDeviceGet", (moi_cu_device *device, int ordinal))                                                    \
  X(DeviceGetName, "cuDeviceGetName", (char *name, int size, moi_cu_device device))                                    \
  X(DeviceGetUuid, "cuDeviceGetUuid", (void *uuid, moi_cu_device device))                                              \
  X(DeviceTotalMem, "cuDeviceTotalMem_v2", (size_t *bytes, moi_cu_device device))                                      \
  X(DeviceGetAttribute, "cuDeviceGetAttribute", (int *value, int attribute, moi_cu_device device))                     \
  X(PrimaryRetain, "cuDevicePrimaryCtxRetain", (moi_cu_context *context, moi_cu_device device))                        \
  X(PrimaryRelease, "cuDevicePrimaryCtxRelease_v2", (moi_cu_device device))                                            \
  X(CtxPush, "cuCtxPushCurrent_v2", (moi_cu_context context))                                                          \
  X(CtxPop, "cuCtxPopCurrent_v2", (moi_cu_context *context))                                                           \
  X(CtxGetDevice, "cuCtxGetDevice", (moi_cu_device *device))                                                           \
  X(ModuleLoadData, "cuModuleLoadData", (moi_cu_module *module, const void *image))                                    \
  X(ModuleUnload, "cuModuleUnload", (moi_cu_module module))                                                            \
  X(ModuleGetFunction, "cuModuleGetFunction", (moi_cu_function *function, moi_cu_module module, const char *name))     \
  X(FuncSetAttribute, "cuFuncSetAttribute", (moi_cu_function function, int attribute, int value))                      \
  X(LaunchKernel, "cuLaunchKernel",                                                                                    \
    (moi_cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,  \
     unsigned block_z, unsigned shared, moi_cu_stream stream, void **params, void **extra))                            \
  X(LaunchCooperative, "cuLaunchCooperativeKernel",                                                                    \
    (moi_cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,  \
     unsigned block_z, unsigned shared, moi_cu_stream stream, void **params))                                          \
  X(Occupancy, "cuOccupancyMaxActiveBlocksPerMultiprocessor",                                                          \
    (int *blocks, moi_cu_function function, int threads, size_t shared))                                               \
  X(MemAlloc, "cuMemAlloc_v2", (moi_cu_pointer *pointer, size_t size))                                                 \
  X(MemFree, "cuMemFree_v2", (moi_cu_pointer pointer))                                                                 \
  X(MemcpyHtoD, "cuMemcpyHtoD_v2", (moi_cu_pointer to, const void *from, size_t size))                                 \
  X(MemcpyDtoH, "cuMemcpyDtoH_v2", (void *to, moi_cu_pointer from, size_t size))                                       \
  X(MemsetD32, "cuMemsetD32_v2", (moi_cu_pointer to, unsigned value, size_t count))                                    \
  X(StreamCreate, "cuStreamCreate", (moi_cu_stream *stream, unsigned flags))                                           \
  X(StreamDestroy, "cuStreamDestroy_v2", (moi_cu_stream stream))                                                       \
  X(StreamSynchronize, "cuStreamSynchronize", (moi_cu_stream stream))                                                  \
  X(EventCreate, "cuEventCreate", (moi_cu_event *event, unsigned flags))                                               \
  X(EventDestroy, "cuEventDestroy_v2", (moi_cu_event event))                                                           \
  X(EventRecord, "cuEventRecord", (moi_cu_event event, moi_cu_stream stream))                                          \
  X(EventElapsedTime, "cuEventElapsedTime", (float *milliseconds, moi_cu_event begin, moi_cu_event end))

/* Where the driver has it: CUDA 11.8. */
#define MOI_CU_NEWER_FUNCTIONS(X)                                                                                      \
  X(LaunchKernelEx, "cuLaunchKernelEx",                                                                                \
    (const moi_cu_launch_config *config, moi_cu_function function, void **params, void **extra))

/* For the program and the tests alone, where the driver has them: CUDA 12's graphs. */
#define MOI_CU_GRAPH_FUNCTIONS(X)                                                                                      \
  X(StreamBeginCapture, "cuStreamBeginCapture_v2", (moi_cu_stream stream, int mode))                                   \
  X(StreamEndCapture, "cuStreamEndCapture", (moi_cu_stream stream, void **graph))                                      \
  X(GraphInstantiate, "cuGraphInstantiateWithFlags", (void **instance, void *graph, unsigned long long flags))         \
  X(GraphLaunch, "cuGraphLaunch", (void *instance, moi_cu_stream stream))                                              \
  X(GraphDestroy, "cuGraphDestroy", (void *graph))                                                                     \
  X(GraphExecDestroy, "cuGraphExecDestroy", (void *instance))

#if defined(_WIN32)
#define MOI_CU_CALL __stdcall
#else
#define MOI_CU_CALL
#endif

typedef struct moi_cu_driver {
#define X(name, symbol, parameters) moi_cu_result(MOI_CU_CALL *name) parameters;
  MOI_CU_FUNCTIONS(X)
  MOI_CU_NEWER_FUNCTIONS(X) /* may be null, as the following */
  MOI_CU_GRAPH_FUNCTIONS(X)
#undef X
  int version; /* 12040: CUDA 12.4 */
} moi_cu_driver;

/* A library of NVIDIA's, which is never closed, and what it exports; NULL if it is not there. */
typedef void (*moi_cu_symbol)(void);
void *moi_cu_library_open(const char *name);
moi_cu_symbol moi_cu_library_find(void *library, const char *name);

/* The driver, loaded and initialised once for the process and never unloaded: MOI_NO_DEVICE with the reason if there is
 * none, or one that is too old. */
moi_status moi_cu_load(const char *function, const moi_cu_driver **out);

/* The moi_status of a result, with the text of what was tried. */
moi_status moi_cu_fail(const char *function, const moi_cu_driver *driver, const char *what, moi_cu_result result);

#endif
