/* Devices and contexts: the engine's, or the device's primary one. */
#include <stdio.h>

#include "core/structs.h"
#include "cuda/cublas.h"

enum { OLDEST = 75 }; /* Turing */

static moi_status count_of(const char *fn, const moi_cu_driver **cu, uint32_t *count) {
  int n = 0;
  *count = 0;
  moi_status status = moi_cu_load(fn, cu);
  if (status) return status;
  moi_cu_result result = (*cu)->DeviceGetCount(&n);
  if (result) return moi_cu_fail(fn, *cu, "cuDeviceGetCount", result);
  if (n <= 0) return moi_fail(MOI_NO_DEVICE, fn, "NVIDIA's driver finds no device");
  *count = (uint32_t)n;
  return MOI_OK;
}

moi_status moi_cu_device_count(uint32_t *count) {
  const moi_cu_driver *cu;
  return count_of("moi_device_count", &cu, count);
}

static uint32_t attribute(const moi_cu_driver *cu, moi_cu_device device, int which) {
  int value = 0;
  return cu->DeviceGetAttribute(&value, which, device) || value < 0 ? 0 : (uint32_t)value;
}

static uint32_t capability(const moi_cu_driver *cu, moi_cu_device device) {
  return attribute(cu, device, MOI_CU_MAJOR) * 10 + attribute(cu, device, MOI_CU_MINOR);
}

moi_status moi_cu_device_get(uint32_t index, moi_device_info *info) {
  const char *fn = "moi_device_get";
  const moi_cu_driver *cu;
  moi_cu_device device;
  uint32_t count;
  moi_status status = count_of(fn, &cu, &count);
  if (status) return status;
  if (index >= count) return moi_fail(MOI_NO_DEVICE, fn, "index: %u, CUDA has %u devices", index, count);
  moi_cu_result result = cu->DeviceGet(&device, (int)index);
  if (result) return moi_cu_fail(fn, cu, "cuDeviceGet", result);
  size_t memory = 0;
  cu->DeviceTotalMem(&memory, device);
  info->backend = MOI_BACKEND_CUDA;
  info->index = index;
  result = cu->DeviceGetName(info->name, (int)sizeof info->name, device);
  if (result) return moi_cu_fail(fn, cu, "cuDeviceGetName", result);
  uint32_t sm = capability(cu, device);
  snprintf(info->driver, sizeof info->driver, "CUDA %d.%d", cu->version / 1000, cu->version % 1000 / 10);
  snprintf(info->features, sizeof info->features, "%s sm_%u%s%s%s",
           attribute(cu, device, MOI_CU_INTEGRATED) ? "integrated" : "discrete", sm, sm >= 80 ? " bf16 cp.async" : "",
           sm >= 89 ? " fp8" : "", sm < OLDEST ? " unusable:older-than-sm_75" : "");
  info->memory = memory;
  info->cache = attribute(cu, device, MOI_CU_L2_BYTES);
  info->n_workers = attribute(cu, device, MOI_CU_MULTIPROCESSORS);
  return MOI_OK;
}

/* GeForce cards do 16-bit products with fp32 sums at half the rate of others with the same chips. */
static void count_cycles(const moi_cu_driver *cu, moi_cu_device device, moi_cu_traits *t) {
  char name[256] = "";
  int geforce = !cu->DeviceGetName(name, (int)sizeof name, device) && strstr(name, "GeForce");
  switch (t->sm) {
    case 75:
    case 86:
    case 89:
    case 120:
    case 121: t->cycles_16 = geforce ? 64 : 32, t->cycles_8 = 16; break;
    case 80:
    case 87: t->cycles_16 = 16, t->cycles_8 = 8; break;
    default: t->cycles_16 = 8, t->cycles_8 = 4;
  }
  t->cycles_f32 = t->sm <= 80 ? 2 : 1;
}

/* ---- contexts */

moi_status moi_cu_enter(const char *fn, const moi_cuda *c) {
  moi_cu_result result = c->cu->CtxPush(c->context);
  return result ? moi_cu_fail(fn, c->cu, "cuCtxPushCurrent", result) : MOI_OK;
}

void moi_cu_leave(const moi_cuda *c) {
  moi_cu_context mine;
  c->cu->CtxPop(&mine);
}

static moi_status open_engines(const char *fn, moi_cuda *c, const moi_context *context, const moi_cuda_context *e) {
  if (!e->context) return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->next: context is null");
  if (context->desc.device)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->device: %u, but the engine brings its context", context->desc.device);
  c->context = e->context;
  moi_status status = moi_cu_enter(fn, c);
  if (status) return status;
  moi_cu_result result = c->cu->CtxGetDevice(&c->device);
  moi_cu_leave(c);
  return result ? moi_cu_fail(fn, c->cu, "cuCtxGetDevice", result) : MOI_OK;
}

static moi_status open_primary(const char *fn, moi_cuda *c, uint32_t index) {
  uint32_t count;
  moi_status status = count_of(fn, &c->cu, &count);
  if (status) return status;
  if (index >= count) return moi_fail(MOI_NO_DEVICE, fn, "desc->device: %u, CUDA has %u devices", index, count);
  moi_cu_result result = c->cu->DeviceGet(&c->device, (int)index);
  if (result) return moi_cu_fail(fn, c->cu, "cuDeviceGet", result);
  uint32_t sm = capability(c->cu, c->device);
  if (sm < OLDEST)
    return moi_fail(MOI_UNSUPPORTED, fn, "desc->device: is of compute capability %u.%u, 7.5 is needed", sm / 10, sm % 10);
  result = c->cu->PrimaryRetain(&c->context, c->device);
  if (result) return moi_cu_fail(fn, c->cu, "cuDevicePrimaryCtxRetain", result);
  c->retained = 1;
  return MOI_OK;
}

static moi_status open_either(const char *fn, const moi_context *context, moi_cuda *c) {
  moi_status status = moi_cu_load(fn, &c->cu);
  if (status) return status;
  const moi_chain *chain = context->desc.next;
  if (chain && chain->next)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->next: one struct of moiety_cuda.h, and nothing behind it");
  if (chain && chain->type != MOI_CHAIN_CUDA_CONTEXT)
    return moi_fail(MOI_UNSUPPORTED, fn, "desc->next: type 0x%x is not one of moiety_cuda.h", chain->type);
  status = chain ? open_engines(fn, c, context, (const void *)chain) : open_primary(fn, c, context->desc.device);
  if (status) return status;
  c->traits.sm = capability(c->cu, c->device);
  c->traits.processors = attribute(c->cu, c->device, MOI_CU_MULTIPROCESSORS);
  c->traits.shared_memory = attribute(c->cu, c->device, MOI_CU_MAX_SHARED_MEMORY_OPTIN);
  if (!c->traits.processors) c->traits.processors = 1;
  c->traits.together = attribute(c->cu, c->device, MOI_CU_COOPERATIVE);
  count_cycles(c->cu, c->device, &c->traits);
  /* CUDA 12.3 and newer capture such launches into graphs */
  c->traits.overlap = c->traits.sm >= 90 && c->cu->LaunchKernelEx && c->cu->version >= 12030;
  if (c->traits.sm < OLDEST)
    return moi_fail(MOI_UNSUPPORTED, fn, "desc->next: the device is of compute capability %u.%u, 7.5 is needed",
                    c->traits.sm / 10, c->traits.sm % 10);
  return MOI_OK;
}

moi_status moi_cu_open(moi_context *context) {
  const char *fn = "moi_context_create";
  moi_cuda *c = moi_allocate(context, sizeof *c);
  if (!c) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *c);
  memset(c, 0, sizeof *c);
  context->state = c;
  moi_status status = open_either(fn, context, c);
  if (!status) status = moi_cu_modules_open(fn, context);
  if (!status) status = moi_cublas_open(fn, context);
  if (status) moi_cu_close(context);
  return status;
}

void moi_cu_close(moi_context *context) {
  moi_cuda *c = context->state;
  moi_cublas_close(context);
  moi_cu_modules_close(context);
  if (c->retained) c->cu->PrimaryRelease(c->device);
  moi_release(context, c, sizeof *c);
  context->state = NULL;
}

moi_status moi_cuda_handles(const moi_context *context, moi_cuda_handles_out *out) {
  const char *fn = "moi_cuda_handles";
  if (!context || context->ops != &moi_cuda_ops)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "context: is not one of MOI_BACKEND_CUDA");
  const moi_cuda *c = context->state;
  moi_cuda_handles_out h;
  memset(&h, 0, sizeof h);
  h.context = c->context;
  h.device = c->device;
  h.capability = c->traits.sm;
  return moi_struct_out(fn, "out", out, sizeof h, &h);
}
