/* Slots sorted by class, and the work items of the grouped GEMMs. A slot's place follows from its class and its number:
 * the permutation is stable, whatever the number of blocks and the order of atomics.
 *
 * The tokens are cut into consecutive parts for blocks, and their slots for warps. Each warp's count of a class becomes, summed
 * up over the warps and blocks before it and the classes before it, the place of its next slot of that class: its
 * cursor. A warp goes through its part 32 slots at a time, without a barrier. */
#ifndef MOI_CUDA_SORT_H
#define MOI_CUDA_SORT_H

#include "cuda/device/grid.h"
#include "cuda/kernels/rows.h"

#define MOI_SORT_THREADS 256u
#define MOI_SORT_WARPS (MOI_SORT_THREADS / 32u)
#define MOI_SORT_PARTIALS 16u /* of shared memory, for moi_scan */

/* The sums over the threads before this one, or the largest of them, of n numbers (a constant, at most 2); total: over
 * all threads. */
MOI_DEVICE void moi_scan(unsigned *partial, unsigned *v, unsigned *total, const unsigned n, const int largest) {
  unsigned lane = moi_lane(), warp = moi_warp();
  moi_sync(); /* partial has been read */
  MOI_UNROLL
  for (unsigned i = 0; i < n; i++) {
    MOI_UNROLL
    for (unsigned step = 1u; step < 32u; step *= 2u) {
      unsigned before = moi_from_u32(v[i], lane - step);
      if (lane < step) before = 0u;
      if (largest) v[i] = before > v[i] ? before : v[i];
      else v[i] += before;
    }
    if (lane == 31u) partial[i * MOI_SORT_WARPS + warp] = v[i];
    v[i] = moi_from_u32(v[i], lane - 1u);
    if (lane == 0u) v[i] = 0u;
    total[i] = 0u;
  }
  moi_sync();
  MOI_UNROLL
  for (unsigned i = 0; i < n; i++) {
    for (unsigned w = 0; w < MOI_SORT_WARPS; w++) {
      unsigned other = partial[i * MOI_SORT_WARPS + w];
      if (w < warp) v[i] = largest ? (other > v[i] ? other : v[i]) : v[i] + other;
      total[i] = largest ? (other > total[i] ? other : total[i]) : total[i] + other;
    }
  }
}

MOI_DEVICE unsigned moi_bounded(unsigned n_tokens, const uint32_t *n_tokens_device) {
  return n_tokens_device && *n_tokens_device < n_tokens ? *n_tokens_device : n_tokens;
}
MOI_DEVICE unsigned moi_slots_of(const moi_cu_sort_args *a) {
  return moi_bounded(a->n_tokens, a->n_tokens_device) * a->top_k;
}

/* Part i of n of the tokens. */
MOI_DEVICE void moi_part(unsigned *from, unsigned *to, unsigned n_tokens, unsigned i, unsigned n) {
  unsigned each = (n_tokens + n - 1u) / n;
  *from = i * each < n_tokens ? i * each : n_tokens;
  *to = n_tokens - *from < each ? n_tokens : *from + each;
}

/* Part i of n of the slots from `from` to `to`, in parts of whole warps' strides. */
MOI_DEVICE void moi_cut(unsigned *from, unsigned *to, unsigned i, unsigned n) {
  unsigned all = *to - *from, each = ((all + n - 1u) / n + 31u) & ~31u;
  unsigned begin = i * each < all ? i * each : all;
  *to = *from + (all - begin < each ? all : begin + each);
  *from += begin;
}

/* ---- work items */

MOI_DEVICE void moi_write_items(const moi_cu_sort_args *a, unsigned at, unsigned c, unsigned first, unsigned n,
                                unsigned from, unsigned step) {
  unsigned which = n <= a->m_max ? 0u : 1u, tile = a->m_tile[which], n_items = (n + tile - 1u) / tile;
  for (unsigned i = from; i < n_items; i += step) {
    moi_cu_item *item = &a->items[which][at + i];
    item->expert = c;
    item->first = first + i * tile;
    item->rows = n - i * tile < tile ? n - i * tile : tile;
  }
}

/* The items of class c, by all lanes of a warp, each with a class or with n = 0: lanes together where it has many. */
MOI_DEVICE void moi_make_items(const moi_cu_sort_args *a, unsigned at, unsigned c, unsigned first, unsigned n) {
  unsigned tile = a->m_tile[n <= a->m_max ? 0u : 1u], many = n > 4u * tile;
  if (n && !many) moi_write_items(a, at, c, first, n, 0u, 1u);
  unsigned left = moi_ballot((int)many);
  while (left) {
    unsigned l = moi_bits(~left & (left - 1u)), at_l = moi_from_u32(at, l), c_l = moi_from_u32(c, l);
    unsigned first_l = moi_from_u32(first, l), n_l = moi_from_u32(n, l);
    moi_write_items(a, at_l, c_l, first_l, n_l, moi_lane(), 32u);
    left &= left - 1u;
  }
}

/* All items, by a block whose thread has written counts and offsets of classes c0 .. c0 + each - 1, in any memory. */
MOI_DEVICE void moi_make_all_items(const moi_cu_sort_args *a, const unsigned *counts, const unsigned *offsets,
                                   unsigned *partial, unsigned c0, unsigned each) {
  unsigned sum[2] = {0u, 0u}, total[2], n_experts = a->n_experts;
  for (unsigned c = c0; c < c0 + each && c < n_experts; c++) {
    unsigned n = counts[c], which = n <= a->m_max ? 0u : 1u, n_items = (n + a->m_tile[which] - 1u) / a->m_tile[which];
    sum[0] += which ? 0u : n_items;
    sum[1] += which ? n_items : 0u;
  }
  moi_scan(partial, sum, total, 2u, 0);
  if (moi_thread() == 0u) {
    *a->n_items[0] = total[0];
    *a->n_items[1] = total[1];
  }
  for (unsigned i = 0; i < each; i++) {
    unsigned c = c0 + i, n = c < n_experts ? counts[c] : 0u, first = c < n_experts ? offsets[c] : 0u;
    unsigned which = n <= a->m_max ? 0u : 1u, n_items = (n + a->m_tile[which] - 1u) / a->m_tile[which];
    moi_make_items(a, which ? sum[1] : sum[0], c, first, n);
    sum[0] += which ? 0u : n_items;
    sum[1] += which ? n_items : 0u;
  }
}

/* ---- the sort, by the first n_blocks blocks of a grid. words: of shared memory, for a row of totals and one of cursors for
 * each warp; where there are several blocks, for a row at least. */

MOI_DEVICE void moi_sort_slots(const moi_cu_sort_args *a, unsigned *words, const unsigned n_words, unsigned *partial,
                               unsigned block) {
  unsigned thread = moi_thread(), lane = moi_lane(), warp = moi_warp(), n_class = a->n_class;
  unsigned rows = n_words / n_class, held = rows >= 2u;
  /* too many classes for shared memory: one warp, its cursors where the offsets will be */
  unsigned *totals = held ? words : a->counts, *cursors = held ? words + n_class : a->offsets;
  rows = held ? rows - 1u < MOI_SORT_WARPS ? rows - 1u : MOI_SORT_WARPS : 1u;
  unsigned from, to;
  moi_part(&from, &to, moi_bounded(a->n_tokens, a->n_tokens_device), block, a->n_blocks);
  from *= a->top_k;
  to *= a->top_k;
  moi_cut(&from, &to, warp < rows ? warp : rows, rows); /* nothing for warps without a row */
  unsigned *cursor = cursors + (warp < rows ? warp * n_class : 0u);

  for (unsigned i = thread; i < rows * n_class; i += MOI_SORT_THREADS) cursors[i] = 0u;
  moi_sync();
  for (unsigned s = from + lane; s < to; s += 32u) {
    unsigned id = (unsigned)a->ids[s];
    if (id < n_class) moi_atomic_add(&cursor[id], 1u);
  }
  moi_sync();
  for (unsigned c = thread; c < n_class; c += MOI_SORT_THREADS) {
    unsigned at = 0, all = 0;
    if (a->n_blocks > 1u)
      for (unsigned b = 0; b < a->n_blocks; b += 16u) { /* all asked for before the first is needed */
        unsigned n[16];
        MOI_UNROLL
        for (unsigned q = 0; q < 16u; q++) n[q] = b + q < a->n_blocks ? a->histograms[(b + q) * n_class + c] : 0u;
        MOI_UNROLL
        for (unsigned q = 0; q < 16u; q++) {
          all += n[q];
          if (b + q < block) at += n[q];
        }
      }
    for (unsigned r = 0; r < rows; r++) {
      unsigned n = cursors[r * n_class + c];
      cursors[r * n_class + c] = at;
      at += n;
    }
    totals[c] = a->n_blocks > 1u ? all : at;
  }
  moi_sync();

  /* where each class begins */
  unsigned each = (n_class + MOI_SORT_THREADS - 1u) / MOI_SORT_THREADS, c0 = thread * each, sum = 0, total;
  for (unsigned c = c0; c < c0 + each && c < n_class; c++) sum += totals[c];
  moi_scan(partial, &sum, &total, 1u, 0);
  if (thread == 0u && block == 0u) a->offsets[n_class] = total;
  if (a->permutation)
    for (unsigned s = total + block * MOI_SORT_THREADS + thread; s < a->n_tokens * a->top_k;
         s += a->n_blocks * MOI_SORT_THREADS)
      a->permutation[s] = ~0u;
  for (unsigned c = c0; c < c0 + each && c < n_class; c++) {
    for (unsigned r = 0; r < rows; r++) cursors[r * n_class + c] += sum;
    unsigned n = totals[c];
    if (held && block == 0u) {
      a->offsets[c] = sum;
      a->counts[c] = n;
    }
    sum += n;
  }
  if (a->items[0] && block == 0u) moi_make_all_items(a, totals, cursors, partial, c0, each);
  moi_sync();

  unsigned next = from + lane < to ? (unsigned)a->ids[from + lane] : ~0u, below = (1u << lane) - 1u;
  for (unsigned s0 = from; s0 < to; s0 += 32u) {
    unsigned s = s0 + lane, id = next < n_class ? next : ~0u;
    next = s + 32u < to ? (unsigned)a->ids[s + 32u] : ~0u;
    unsigned same = moi_match(id), place = id != ~0u ? cursor[id] : 0u;
    moi_sync_warp(); /* all have read it */
    if (id != ~0u && (same & below) == 0u) cursor[id] = place + moi_bits(same);
    moi_sync_warp();
    if (id != ~0u && a->permutation) a->permutation[place + moi_bits(same & below)] = s;
  }
  if (held) return;
  moi_sync();
  for (unsigned c = thread; c < n_class; c += MOI_SORT_THREADS) a->offsets[c] -= a->counts[c];
}

/* Slots of each class in the block's part of the tokens. */
MOI_DEVICE void moi_count_slots(const moi_cu_sort_args *a, unsigned *counts, unsigned block) {
  unsigned from, to, n_class = a->n_class;
  moi_part(&from, &to, moi_bounded(a->n_tokens, a->n_tokens_device), block, a->n_blocks);
  from *= a->top_k;
  to *= a->top_k;
  for (unsigned c = moi_thread(); c < n_class; c += MOI_SORT_THREADS) counts[c] = 0u;
  moi_sync();
  for (unsigned s = from + moi_thread(); s < to; s += MOI_SORT_THREADS) {
    unsigned id = (unsigned)a->ids[s];
    if (id < n_class) moi_atomic_add(&counts[id], 1u);
  }
  moi_sync();
  for (unsigned c = moi_thread(); c < n_class; c += MOI_SORT_THREADS) a->histograms[block * n_class + c] = counts[c];
}

/* Between two steps of a launch. */
MOI_DEVICE void moi_meet(const moi_cu_sort_args *a) {
  if (a->together) moi_sync_grid();
  else moi_sync();
}

/* The steps from COUNT on, by all blocks of a grid. Blocks that do not sort are the first to have rows. */
MOI_DEVICE void moi_sort_steps(const moi_cu_sort_args *a, const moi_cu_prepare_set *rows, unsigned *words,
                               const unsigned n_words, unsigned *partial, float *shares) {
  unsigned block = moi_block_x(), n = a->n_blocks, grid = moi_grid_x();
  if (a->steps & MOI_CU_STEP_COUNT) {
    if (block < n) moi_count_slots(a, words, block);
    moi_meet(a);
  }
  if (!(a->steps & MOI_CU_STEP_SORT)) return;
  if (block < n) moi_sort_slots(a, words, n_words, partial, block);
  moi_prepare_rows(rows, shares, block < n ? block + grid - n : block - n, grid);
}

#endif
