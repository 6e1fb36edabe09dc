/* What the panel kernels of x86 share. A panel is COLUMNS rows of W turned so that a vector holds the same four bytes of k
 * of as many rows as it has 32-bit lanes, one after another in k: they meet four bytes of a token's x that a load has
 * spread over the lanes, and nothing is left to sum over lanes. */
#ifndef MOI_CPU_KERNELS_PANEL_H
#define MOI_CPU_KERNELS_PANEL_H

#include <immintrin.h>

#include "cpu/kernels/ahead.h"

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

/* What is fetched meanwhile. work: of 64 elements of k for COLUMNS columns. */
static inline ahead_state panel_ahead(const moi_gemm_tile *g, uint32_t work) {
  return ahead_of(g, (uint64_t)((g->n1 - g->n0 + COLUMNS - 1) / COLUMNS) * (MOI_FORM_KP(g->w->k) / 64) * work);
}

#endif
