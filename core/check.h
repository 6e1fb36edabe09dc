/* The words in which plans and runs say what they demand: checks of desc members and of views, each an error with its
 * text. `fn` is the public function's name, `d` the desc. */
#ifndef MOI_CORE_CHECK_H
#define MOI_CORE_CHECK_H

#include <math.h>
#include <stdint.h>

#include "core/backend.h"
#include "core/format.h"
#include "core/structs.h"

/* ---- plans (core/plan.c) */

/* Clears the draft of a plan and *out. */
moi_status moi_plan_begin(const char *fn, moi_context *context, moi_op op, moi_plan *draft, moi_plan **out);
/* Hands a checked description to the backend; *out is the plan or NULL. */
moi_status moi_plan_finish(const char *fn, const moi_plan *draft, moi_plan **out);

/* ---- runs (core/run.c) */

/* Checks plan and workspace, and clears `run`. */
moi_status moi_run_begin(const char *fn, const moi_plan *plan, moi_op op, moi_buffer workspace, moi_queue queue,
                         moi_run *run);

#define TRY(call)                                                                                                      \
  do {                                                                                                                 \
    moi_status try_status = (call);                                                                                    \
    if (try_status) return try_status;                                                                                 \
  } while (0)

/* ---- descs */

#define MAX_TOKENS (1u << 24)
#define MAX_WIDTH (1u << 20)
#define MAX_EXPERTS 65536u
#define MAX_TOP_K 64u
#define ALL_PLAN_FLAGS (MOI_NO_FALLBACK | MOI_DETERMINISTIC | MOI_BATCH_INVARIANT)

#define REFUSE(...) return moi_fail(MOI_INVALID_ARGUMENT, fn, __VA_ARGS__)
/* what: the desc's name in messages; lo..hi inclusive */
#define RANGE(what, member, lo, hi)                                                                                    \
  do {                                                                                                                 \
    if ((uint64_t)d->member < (uint64_t)(lo) || (uint64_t)d->member > (uint64_t)(hi))                                  \
      REFUSE("%s->" #member ": %u, must be %u..%u", what, (unsigned)d->member, (unsigned)(lo), (unsigned)(hi));        \
  } while (0)
#define ENUM(what, member, last)                                                                                       \
  do {                                                                                                                 \
    if ((uint32_t)d->member > (uint32_t)(last)) REFUSE("%s->" #member ": %d is no such value", what, (int)d->member);  \
  } while (0)
#define FINITE(what, member)                                                                                           \
  do {                                                                                                                 \
    if (!isfinite(d->member)) REFUSE("%s->" #member ": is not finite", what);                                          \
  } while (0)
#define FLAGS(what, member, known)                                                                                     \
  do {                                                                                                                 \
    if (d->member & ~(uint32_t)(known)) REFUSE("%s->" #member ": 0x%x has unknown bits", what, (unsigned)d->member);   \
  } while (0)
/* a dense type with its default */
#define DENSE(what, member, fallback)                                                                                  \
  do {                                                                                                                 \
    if (!d->member) d->member = (fallback);                                                                            \
    if (!moi_dense_bytes(d->member)) REFUSE("%s->" #member ": %d, must be f32, f16 or bf16", what, (int)d->member);    \
  } while (0)

/* Copies and checks one desc of a family. */
#define TAKE(dst, src, check)                                                                                          \
  do {                                                                                                                 \
    status = MOI_STRUCT_IN(fn, dst, src);                                                                              \
    if (!status) status = moi_chain_none(fn, #src, (dst)->next);                                                       \
    if (!status) status = check(fn, dst, #src);                                                                        \
    if (status) return status;                                                                                         \
  } while (0)

/* ---- views */

/* How the backend of a run reaches memory: a view that it cannot read would be a null pointer to it. */
typedef enum moi_memory { MOI_BY_PTR, MOI_BY_HANDLE } moi_memory;

static inline moi_memory moi_memory_of(const moi_plan *plan) {
  return plan->context->ops->by_handle ? MOI_BY_HANDLE : MOI_BY_PTR;
}

static inline int moi_has(moi_buffer b) { return b.ptr || b.handle; }

/* A view must be there, aligned and big enough; needing 0 bytes asks nothing of it. */
static inline moi_status need(const char *fn, moi_memory memory, const char *what, moi_buffer b, uint64_t bytes,
                              uint32_t align) {
  if (!bytes) return MOI_OK;
  if (memory == MOI_BY_PTR ? !b.ptr : !b.handle)
    REFUSE(!moi_has(b)             ? "%s: is absent"
           : memory == MOI_BY_PTR ? "%s: has a handle, but this backend reads ptr"
                                   : "%s: has a ptr, but this backend reads handle",
           what);
  if (memory == MOI_BY_HANDLE && b.ptr) REFUSE("%s: has a ptr beside its handle, and this backend reads handle", what);
  if (b.size < bytes)
    REFUSE("%s.size: %llu bytes, %llu are needed", what, (unsigned long long)b.size, (unsigned long long)bytes);
  if (b.offset > UINT64_MAX - b.size) REFUSE("%s.offset: is out of range", what);
  if (((uintptr_t)b.ptr + b.offset) % align) REFUSE("%s: is not aligned to %u bytes", what, align);
  return MOI_OK;
}

static inline moi_status need_optional(const char *fn, moi_memory memory, const char *what, moi_buffer b, uint64_t bytes,
                                       uint32_t align) {
  return moi_has(b) ? need(fn, memory, what, b, bytes, align) : MOI_OK;
}

/* Two handles may be bound to the same memory; that is not seen. */
static inline int overlap(moi_buffer a, uint64_t a_bytes, moi_buffer b, uint64_t b_bytes) {
  if (!a_bytes || !b_bytes || !moi_has(a) || !moi_has(b) || a.handle != b.handle) return 0;
  uint64_t x = (uintptr_t)a.ptr + a.offset, y = (uintptr_t)b.ptr + b.offset;
  return x < y + b_bytes && y < x + a_bytes;
}

static inline uint64_t rows_bytes(uint32_t rows, uint32_t stride, uint32_t width, uint32_t element) {
  return rows ? ((uint64_t)(rows - 1) * stride + width) * element : 0;
}

static inline moi_status resolve_stride(const char *fn, const char *what, uint32_t *stride, uint32_t width) {
  if (!*stride) *stride = width;
  if (*stride < width) REFUSE("%s: %u, rows have %u elements", what, *stride, width);
  return MOI_OK;
}

#endif
