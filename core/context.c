#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/backend.h"
#include "core/structs.h"

#define BACKEND(NAME, symbol) extern const moi_backend_ops symbol;
#define ABSENT(NAME, reason)
#include "core/backends.def"
#undef BACKEND
#undef ABSENT

const moi_backend_ops *moi_backend_find(const char *function, moi_backend backend) {
  switch ((int)backend) {
#define BACKEND(NAME, symbol)                                                                                          \
  case MOI_BACKEND_##NAME: return &symbol;
#define ABSENT(NAME, reason)                                                                                           \
  case MOI_BACKEND_##NAME: moi_fail(MOI_UNSUPPORTED, function, "%s", reason); return NULL;
#include "core/backends.def"
#undef BACKEND
#undef ABSENT
    default: moi_fail(MOI_INVALID_ARGUMENT, function, "backend: %d is none", (int)backend); return NULL;
  }
}

static moi_status backend_missing(moi_backend backend) {
  return (uint32_t)backend < MOI_BACKEND_COUNT ? MOI_UNSUPPORTED : MOI_INVALID_ARGUMENT;
}

const char *moi_backend_name(moi_backend backend) {
  static const char *const names[MOI_BACKEND_COUNT] = {"cpu", "cuda", "vulkan"};
  return (uint32_t)backend < MOI_BACKEND_COUNT ? names[backend] : NULL;
}

moi_status moi_device_count(moi_backend backend, uint32_t *count) {
  const char *fn = "moi_device_count";
  if (!count) return moi_fail(MOI_INVALID_ARGUMENT, fn, "count: is null");
  *count = 0;
  const moi_backend_ops *ops = moi_backend_find(fn, backend);
  return ops ? ops->device_count(count) : backend_missing(backend);
}

moi_status moi_device_get(moi_backend backend, uint32_t index, moi_device_info *info) {
  const char *fn = "moi_device_get";
  const moi_backend_ops *ops = moi_backend_find(fn, backend);
  if (!ops) return backend_missing(backend);
  moi_device_info ours;
  memset(&ours, 0, sizeof ours);
  moi_status status = ops->device_get(index, &ours);
  return status ? status : moi_struct_out(fn, "info", info, sizeof ours, &ours);
}

moi_status moi_kernel_get(moi_backend backend, uint32_t index, moi_kernel_info *info) {
  const char *fn = "moi_kernel_get";
  const moi_backend_ops *ops = moi_backend_find(fn, backend);
  if (!ops) return backend_missing(backend);
  moi_kernel_info ours;
  memset(&ours, 0, sizeof ours);
  moi_status status = ops->kernel_get(index, &ours);
  return status ? status : moi_struct_out(fn, "info", info, sizeof ours, &ours);
}

moi_format moi_pack_preferred(moi_backend backend, moi_format format) {
  const moi_backend_ops *ops = moi_backend_find("moi_pack_preferred", backend);
  return ops ? ops->pack_preferred(format) : format;
}

/* malloc gives 16 bytes of alignment on every platform we build for; objects of core and the backends need no more. */
static void *default_allocate(void *user, size_t size, size_t align) {
  (void)user;
  (void)align;
  return malloc(size);
}
static void default_free(void *user, void *ptr, size_t size) {
  (void)user;
  (void)size;
  free(ptr);
}

void *moi_allocate(const moi_context *context, size_t size) {
  return context->desc.allocate(context->desc.allocator_user, size, 16);
}

void moi_release(const moi_context *context, void *ptr, size_t size) {
  if (ptr) context->desc.free(context->desc.allocator_user, ptr, size);
}

void moi_log_line(const moi_context *context, moi_log_level level, const char *format, ...) {
  if (!context->desc.log) return;
  char text[512];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  context->desc.log(context->desc.log_user, level, text);
}

moi_status moi_context_create(const moi_context_desc *desc, moi_context **out) {
  const char *fn = "moi_context_create";
  if (!out) return moi_fail(MOI_INVALID_ARGUMENT, fn, "out: is null");
  *out = NULL;
  moi_context_desc d;
  moi_status status = MOI_STRUCT_IN(fn, &d, desc);
  if (status) return status;
  const moi_backend_ops *ops = moi_backend_find(fn, d.backend);
  if (!ops) return backend_missing(d.backend);
  if (!d.allocate != !d.free)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->allocate, desc->free: both or neither must be set");
  if (!d.allocate) {
    d.allocate = default_allocate;
    d.free = default_free;
  }
  moi_context *context = d.allocate(d.allocator_user, sizeof *context, 16);
  if (!context)
    return moi_fail(MOI_OUT_OF_MEMORY, fn, "desc->allocate: returned null for %zu bytes", sizeof *context);
  memset(context, 0, sizeof *context);
  context->ops = ops;
  context->desc = d;
  status = ops->open(context);
  if (status) {
    d.free(d.allocator_user, context, sizeof *context);
    return status;
  }
  *out = context;
  return MOI_OK;
}

void moi_context_destroy(moi_context *context) {
  if (!context) return;
  context->ops->close(context);
  context->desc.free(context->desc.allocator_user, context, sizeof *context);
}
