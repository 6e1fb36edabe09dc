/* Carves a workspace: with base NULL it counts, with a base it binds. One function per plan does both, so that the size
 * asked for and the addresses used cannot drift apart. */
#ifndef MOI_CORE_WORKSPACE_H
#define MOI_CORE_WORKSPACE_H

#include <stddef.h>
#include <stdint.h>

#define MOI_WORKSPACE_ALIGN 64

typedef struct moi_carve {
  uint8_t *base;
  size_t used;
  int overflow; /* a size did not fit size_t */
} moi_carve;

/* Where count * bytes lie, 64-byte aligned, from the start of the workspace; 0 on overflow. */
static inline size_t moi_take_at(moi_carve *carve, size_t count, size_t bytes) {
  size_t at = (carve->used + (MOI_WORKSPACE_ALIGN - 1)) & ~(size_t)(MOI_WORKSPACE_ALIGN - 1);
  if (bytes && count > (SIZE_MAX / 2 - at) / bytes) {
    carve->overflow = 1;
    return 0;
  }
  carve->used = at + count * bytes;
  return at;
}

/* The same as an address; NULL while counting. */
static inline void *moi_take(moi_carve *carve, size_t count, size_t bytes) {
  size_t at = moi_take_at(carve, count, bytes);
  return carve->base && !carve->overflow ? carve->base + at : NULL;
}

#endif
