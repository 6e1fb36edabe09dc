/* Fetching what comes next from memory, evenly over a kernel's work. */
#ifndef MOI_CPU_KERNELS_AHEAD_H
#define MOI_CPU_KERNELS_AHEAD_H

#include "cpu/kernel.h"

/* How far it is, how many bytes for a unit of work, in 256ths, and how many of those are due. */
typedef struct ahead_state {
  const uint8_t *at, *end;
  uint32_t bytes, due;
} ahead_state;

/* work: units of the whole call. A page's translation takes as long as many lines, and translations do not wait for each
 * other: the first lines of all pages are fetched at once. */
static inline ahead_state ahead_of(const moi_gemm_tile *g, uint64_t work) {
  const uint8_t *end = g->ahead_bytes ? g->ahead + g->ahead_bytes : g->ahead;
  for (size_t i = 0; i < g->ahead_bytes; i += 4096) __builtin_prefetch(g->ahead + i, 0, MOI_AHEAD_INTO);
  return (ahead_state){g->ahead, end, (uint32_t)(((uint64_t)g->ahead_bytes * 256 + work - 1) / work), 0};
}

static inline __attribute__((always_inline)) void ahead_fetch(ahead_state *a, uint32_t work) {
  for (a->due += a->bytes * work; a->due >= 64 * 256; a->due -= 64 * 256, a->at += 64)
    if (a->at < a->end) __builtin_prefetch(a->at, 0, MOI_AHEAD_INTO);
}

#endif
