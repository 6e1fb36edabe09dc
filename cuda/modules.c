/* Kernels: each image is loaded once for a context, when the first plan needs it, and kept until it is destroyed. */
#include "core/lock.h"
#include "cuda/cuda.h"
#include "cuda/images.h"

struct moi_cu_modules {
  moi_lock lock;
  moi_cu_module loaded[]; /* [moi_cu_image_count], null: not yet */
};

static size_t modules_size(void) { return sizeof(struct moi_cu_modules) + moi_cu_image_count * sizeof(moi_cu_module); }

moi_status moi_cu_modules_open(const char *fn, moi_context *context) {
  moi_cuda *c = context->state;
  c->modules = moi_allocate(context, modules_size());
  if (!c->modules) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", modules_size());
  memset(c->modules, 0, modules_size());
  moi_lock_open(&c->modules->lock);
  return MOI_OK;
}

void moi_cu_modules_close(moi_context *context) {
  moi_cuda *c = context->state;
  if (!c->modules) return;
  if (!c->cu->CtxPush(c->context)) {
    for (uint32_t i = 0; i < moi_cu_image_count; i++)
      if (c->modules->loaded[i]) c->cu->ModuleUnload(c->modules->loaded[i]);
    moi_cu_leave(c);
  }
  moi_lock_close(&c->modules->lock);
  moi_release(context, c->modules, modules_size());
  c->modules = NULL;
}

static uint32_t image_find(const char *name) {
  uint32_t i = 0;
  while (i < moi_cu_image_count && strcmp(moi_cu_images[i].name, name)) i++;
  return i;
}

int moi_cu_image_exists(const char *image) { return image_find(image) < moi_cu_image_count; }

moi_status moi_cu_function_get(const char *fn, const moi_context *context, const char *image, const char *name,
                               moi_cu_function *out) {
  const moi_cuda *c = context->state;
  uint32_t i = image_find(image);
  if (i == moi_cu_image_count) return moi_fail(MOI_UNSUPPORTED, fn, "this build has no kernels of '%s'", image);
  moi_lock_take(&c->modules->lock);
  moi_cu_module *module = &c->modules->loaded[i];
  moi_cu_result result = *module ? MOI_CU_SUCCESS : c->cu->ModuleLoadData(module, moi_cu_images[i].bytes);
  if (result) *module = NULL;
  moi_lock_give(&c->modules->lock);
  if (result == MOI_CU_INVALID_IMAGE)
    return moi_fail(MOI_UNSUPPORTED, fn, "this build has no machine code of its CUDA kernels (it was made without nvcc)");
  if (result) return moi_cu_fail(fn, c->cu, "cuModuleLoadData", result);
  result = c->cu->ModuleGetFunction(out, *module, name);
  return result ? moi_cu_fail(fn, c->cu, name, result) : MOI_OK;
}

moi_status moi_cu_function_shared(const char *fn, const moi_context *context, moi_cu_function f, uint32_t bytes) {
  const moi_cuda *c = context->state;
  moi_cu_result result = c->cu->FuncSetAttribute(f, MOI_CU_FUNCTION_MAX_DYNAMIC_SHARED, (int)bytes);
  return result ? moi_cu_fail(fn, c->cu, "cuFuncSetAttribute", result) : MOI_OK;
}
