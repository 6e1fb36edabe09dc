/* Small steps that the drivers and the reference share: matrices out of weights, slots sorted by expert. */
#ifndef MOI_CPU_OPERANDS_H
#define MOI_CPU_OPERANDS_H

#include <string.h>

#include "core/backend.h"
#include "core/format.h"
#include "cpu/kernel.h"

/* Expert e's matrix; data is NULL if its table holds a null address. */
static inline moi_matrix moi_matrix_of(const moi_weights *w, moi_format format, uint32_t n, uint32_t k, uint32_t e,
                                       int tables) {
  moi_matrix m;
  memset(&m, 0, sizeof m);
  m.format = format;
  m.n = n;
  m.k = k;
  const float *global = moi_view(w->global_scale);
  m.global = global ? global[e] : 1.0f;
  const uint8_t *data = moi_view(w->data), *scales = moi_view(w->scales), *zeros = moi_view(w->zeros);
  if (tables) {
    m.data = (const uint8_t *)(uintptr_t)((const uint64_t *)(const void *)data)[e];
    if (scales) m.scales = (const uint8_t *)(uintptr_t)((const uint64_t *)(const void *)scales)[e];
    if (zeros) m.zeros = (const uint8_t *)(uintptr_t)((const uint64_t *)(const void *)zeros)[e];
    const moi_format_row *row = moi_format_find(format);
    if ((row->scale_bytes && !m.scales) || (row->zero_bits && !m.zeros)) m.data = NULL;
  } else {
    m.data = data + w->data_stride * e;
    m.scales = scales ? scales + w->scales_stride * e : NULL;
    m.zeros = zeros ? zeros + w->zeros_stride * e : NULL;
  }
  return m;
}

/* Says in a tile that rows n0..n1-1 of `next` come after it, where they lie side by side. */
static inline void moi_tile_ahead(moi_gemm_tile *tile, const moi_matrix *next, uint32_t n0, uint32_t n1) {
  const moi_format_row *row = moi_format_find(next->format);
  if (row->k_major || !next->data) return;
  const size_t bytes = (size_t)(next->k / row->block_k) * row->block_bytes / row->block_n;
  n0 -= n0 % row->block_n;
  tile->ahead = next->data + n0 * bytes;
  tile->ahead_bytes = (n1 - n0) * bytes;
  if (!next->scales || row->scale_n != 1) return;
  const size_t scale_bytes = (size_t)(next->k / row->scale_k) * row->scale_bytes;
  tile->ahead_scales = next->scales + n0 * scale_bytes;
  tile->ahead_scales_bytes = (n1 - n0) * scale_bytes;
}

static inline const void *moi_bias_of(const moi_weights *w, uint32_t e, int tables) {
  const uint8_t *bias = moi_view(w->bias);
  return tables ? (const void *)(uintptr_t)((const uint64_t *)(const void *)bias)[e] : bias + w->bias_stride * e;
}

/* Sorts the slots by class, then by number. counts [n_class] and offsets [n_class + 1] are filled; permutation, if not
 * NULL, gets the slots, and -1 behind the last. Ids outside 0..n_class-1 belong to no class. */
static inline void moi_sort_slots(const int32_t *ids, uint32_t n_slots, uint32_t n_class, int32_t *counts,
                                  int32_t *offsets, int32_t *permutation) {
  memset(counts, 0, (size_t)n_class * sizeof *counts);
  for (uint32_t i = 0; i < n_slots; i++)
    if ((uint32_t)ids[i] < n_class) counts[ids[i]]++;
  int32_t sum = 0;
  for (uint32_t e = 0; e < n_class; e++) {
    offsets[e] = sum;
    sum += counts[e];
  }
  offsets[n_class] = sum;
  if (!permutation) return;
  for (uint32_t i = 0; i < n_slots; i++)
    if ((uint32_t)ids[i] < n_class) permutation[offsets[ids[i]]++] = (int32_t)i;
  for (uint32_t e = n_class; e > 0; e--) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
  for (uint32_t i = (uint32_t)sum; i < n_slots; i++) permutation[i] = -1;
}

#endif
