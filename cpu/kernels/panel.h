/* What the panel kernels of x86 share. A panel is COLUMNS rows of W turned so that a vector holds the same four bytes of k
 * of as many rows as it has 32-bit lanes, one after another in k: they meet four bytes of a token's x that a load has
 * spread over the lanes, and nothing is left to sum over lanes. */
#ifndef MOI_CPU_KERNELS_PANEL_H
#define MOI_CPU_KERNELS_PANEL_H

#include <immintrin.h>

#include "cpu/kernel.h"

/* A register tile is PANEL_TOKENS tokens by COLUMNS columns, which an including file defines. */
enum { PANEL_TOKENS = 6 };

/* What compilers do worse: a vector is loaded once rather than before each use; sums in memory stay there between blocks,
 * for the registers are full. */
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#define IN_MEMORY() __asm__ volatile("" ::: "memory")

/* Tokens in the tile that begins at t of m: as even as may be, for a tile of one or two waits for its sums. */
static inline uint32_t panel_tokens(uint32_t t, uint32_t m) {
  const uint32_t left = m - t, tiles = (left + PANEL_TOKENS - 1) / PANEL_TOKENS;
  return (left + tiles - 1) / tiles;
}

/* What is to be fetched from memory while products are computed, evenly: so many lines at each stop. */
typedef struct panel_ahead {
  const uint8_t *at, *end;
  uint32_t lines;
} panel_ahead;

/* One stop for each 64 elements of k of each tile of a call. */
static inline panel_ahead panel_next(const moi_gemm_tile *g) {
  const size_t tiles = (size_t)((g->m + PANEL_TOKENS - 1) / PANEL_TOKENS) * ((g->n1 - g->n0 + COLUMNS - 1) / COLUMNS);
  const size_t stops = tiles * (MOI_FORM_KP(g->w->k) / 64);
  const uint8_t *end = g->ahead_bytes ? g->ahead + g->ahead_bytes : g->ahead;
  return (panel_ahead){g->ahead, end, (uint32_t)((g->ahead_bytes / 64 + stops) / stops)};
}

static inline __attribute__((always_inline)) void panel_fetch(panel_ahead *ahead) {
  for (uint32_t i = 0; i < ahead->lines && ahead->at < ahead->end; i++, ahead->at += 64)
    _mm_prefetch((const char *)ahead->at, _MM_HINT_T1);
}

#endif
