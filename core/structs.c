#include "core/structs.h"

#include <string.h>

/* A struct_size beyond this is taken for garbage, not for a future version: its tail is not read. */
#define MOI_STRUCT_MAX 65536

static moi_status check(const char *function, const char *what, const void *p, size_t *size) {
  if (!p) return moi_fail(MOI_INVALID_ARGUMENT, function, "%s: is null", what);
  if ((uintptr_t)p % sizeof(size_t)) return moi_fail(MOI_INVALID_ARGUMENT, function, "%s: is misaligned", what);
  memcpy(size, p, sizeof *size);
  /* no version of a struct ends inside a word: such a size would cut a pointer in two */
  if (*size < 2 * sizeof(void *) || *size > MOI_STRUCT_MAX || *size % sizeof(size_t))
    return moi_fail(MOI_INVALID_ARGUMENT, function, "%s->struct_size: %zu, must be sizeof the struct", what, *size);
  return MOI_OK;
}

moi_status moi_struct_in(const char *function, const char *what, void *dst, size_t size, const void *src) {
  size_t theirs = 0;
  moi_status status = check(function, what, src, &theirs);
  if (status) return status;
  const uint8_t *bytes = src;
  for (size_t i = size; i < theirs; i++)
    if (bytes[i])
      return moi_fail(MOI_VERSION_MISMATCH, function,
                      "%s->struct_size: %zu, this library knows %zu bytes and the rest is not zero", what, theirs, size);
  memset(dst, 0, size);
  memcpy(dst, src, theirs < size ? theirs : size);
  memcpy(dst, &size, sizeof size);
  return MOI_OK;
}

moi_status moi_struct_out(const char *function, const char *what, void *dst, size_t size, const void *src) {
  size_t theirs = 0;
  moi_status status = check(function, what, dst, &theirs);
  if (status) return status;
  size_t n = theirs < size ? theirs : size;
  memcpy((uint8_t *)dst + sizeof(size_t), (const uint8_t *)src + sizeof(size_t), n - sizeof(size_t));
  memset((uint8_t *)dst + n, 0, theirs - n);
  return MOI_OK;
}

moi_status moi_chain_none(const char *function, const char *what, const moi_chain *next) {
  if (!next) return MOI_OK;
  return moi_fail(MOI_UNSUPPORTED, function, "%s->next: this backend takes no chained struct", what);
}
