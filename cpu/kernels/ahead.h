/* Fetching what comes next from memory, evenly over a kernel's work. */
#ifndef MOI_CPU_KERNELS_AHEAD_H
#define MOI_CPU_KERNELS_AHEAD_H

#include "cpu/kernel.h"

/* How far it is: scales first, then data. How many bytes for a unit of work, in 256ths, and how many of those are due. */
typedef struct ahead_state {
  const uint8_t *at, *end, *data, *data_end;
  uint32_t bytes, due;
} ahead_state;

/* A page's translation takes as long as many lines, and translations do not wait for each other: the first lines of all
 * pages are fetched at once. */
static inline void ahead_pages(const uint8_t *at, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 4096) __builtin_prefetch(at + i, 0, MOI_AHEAD_INTO);
}

/* work: units of the whole call. */
static inline ahead_state ahead_of(const moi_gemm_tile *g, uint64_t work) {
  ahead_pages(g->ahead_scales, g->ahead_scales_bytes);
  ahead_pages(g->ahead, g->ahead_bytes);
  ahead_state a = {g->ahead_scales, g->ahead_scales, g->ahead, g->ahead, 0, 0};
  if (g->ahead_scales_bytes) a.end += g->ahead_scales_bytes;
  if (g->ahead_bytes) a.data_end += g->ahead_bytes;
  a.bytes = (uint32_t)((((uint64_t)g->ahead_bytes + g->ahead_scales_bytes) * 256 + work - 1) / work);
  return a;
}

static inline __attribute__((always_inline)) void ahead_fetch(ahead_state *a, uint32_t work) {
  for (a->due += a->bytes * work; a->due >= 64 * 256; a->due -= 64 * 256, a->at += 64) {
    if (a->at >= a->end) a->at = a->data, a->end = a->data = a->data_end;
    if (a->at < a->end) __builtin_prefetch(a->at, 0, MOI_AHEAD_INTO);
  }
}

#endif
