/* Slots sorted by class, or groups of rows as offsets give them, and the work items of the grouped GEMMs: one block, one
 * launch, whatever the sizes. The permutation is stable: a slot's place follows from its class and its number. */
#include "cuda/args.h"
#include "cuda/device/thread.h"

#define THREADS 256u

/* The sums over the threads before this one of three numbers (largest: the maximum, of the first); returns the totals. */
MOI_DEVICE void scan(unsigned *partial, unsigned v[3], unsigned total[3], int largest) {
  unsigned thread = moi_thread();
  moi_sync();
  for (int i = 0; i < 3; i++) partial[i * THREADS + thread] = v[i];
  moi_sync();
  for (unsigned step = 1u; step < THREADS; step *= 2u) {
    unsigned before[3] = {0u, 0u, 0u};
    for (int i = 0; i < 3; i++)
      if (thread >= step) before[i] = partial[i * THREADS + thread - step];
    moi_sync();
    if (largest) {
      if (before[0] > partial[thread]) partial[thread] = before[0];
    } else {
      for (int i = 0; i < 3; i++) partial[i * THREADS + thread] += before[i];
    }
    moi_sync();
  }
  for (int i = 0; i < 3; i++) {
    v[i] = thread ? partial[i * THREADS + thread - 1u] : 0u;
    total[i] = partial[i * THREADS + THREADS - 1u];
  }
  moi_sync();
}

MOI_DEVICE unsigned clamped(int offset, unsigned most) {
  return offset < 0 ? 0u : (unsigned)offset < most ? (unsigned)offset : most;
}

MOI_DEVICE void make_groups(const moi_cu_sort_args *a, const int offsets_given) {
  MOI_SHARED(unsigned, partial, THREADS * 3u);
  MOI_SHARED(unsigned, ids_of, THREADS);
  unsigned thread = moi_thread(), n_tokens = a->n_tokens, n_class = a->n_class;
  if (a->n_tokens_device && *a->n_tokens_device < n_tokens) n_tokens = *a->n_tokens_device;
  unsigned n_slots = n_tokens * a->top_k, all_slots = a->n_tokens * a->top_k;
  unsigned each = (n_class + THREADS - 1u) / THREADS, c0 = thread * each < n_class ? thread * each : n_class;
  unsigned c1 = c0 + each < n_class ? c0 + each : n_class;

  if (!offsets_given) {
    for (unsigned c = c0; c < c1; c++) a->counts[c] = 0u;
    moi_sync();
    for (unsigned s = thread; s < n_slots; s += THREADS) {
      unsigned id = (unsigned)a->ids[s];
      if (id < n_class) moi_atomic_add(&a->counts[id], 1u);
    }
    moi_sync();
  } else { /* group c is [max over 0..c, max over 0..c+1) of the offsets, cut to the rows there are */
    unsigned sums[3] = {0u, 0u, 0u}, totals[3];
    for (unsigned c = c0; c < c1; c++) {
      unsigned from = clamped(a->ids[c], n_slots), to = clamped(a->ids[c + 1u], n_slots), most = from > to ? from : to;
      if (most > sums[0]) sums[0] = most;
    }
    scan(partial, sums, totals, 1);
    if (thread == 0u) {
      a->ends[0] = clamped(a->ids[0], n_slots);
      a->ends[1] = totals[0];
    }
    unsigned at = sums[0];
    for (unsigned c = c0; c < c1; c++) {
      unsigned from = clamped(a->ids[c], n_slots), to = clamped(a->ids[c + 1u], n_slots);
      if (from < at) from = at;
      at = to > from ? to : from;
      a->offsets[c] = from;
      a->counts[c] = at - from;
    }
    moi_sync();
  }

  /* where each class begins, and its items */
  unsigned sum[3] = {0u, 0u, 0u}, total[3];
  for (unsigned c = c0; c < c1; c++) {
    unsigned n = a->counts[c];
    sum[0] += n;
    if (c < a->n_experts && a->items[0]) {
      if (n <= a->m_max) sum[1] += (n + a->m_tile[0] - 1u) / a->m_tile[0];
      else sum[2] += (n + a->m_tile[1] - 1u) / a->m_tile[1];
    }
  }
  scan(partial, sum, total, 0);
  for (unsigned c = c0; c < c1; c++) {
    unsigned n = a->counts[c], first = sum[0];
    if (offsets_given) first = a->offsets[c];
    else a->offsets[c] = first;
    sum[0] += n;
    if (c >= a->n_experts || !a->items[0]) continue;
    unsigned which = n <= a->m_max ? 0u : 1u, tile = a->m_tile[which];
    for (unsigned row = 0; row < n; row += tile) {
      moi_cu_item *item = &a->items[which][sum[1u + which]++];
      item->expert = c;
      item->first = first + row;
      item->rows = n - row < tile ? n - row : tile;
    }
  }
  if (thread == 0u && !offsets_given) a->offsets[n_class] = total[0];
  if (thread == 0u && a->items[0]) {
    *a->n_items[0] = total[1];
    *a->n_items[1] = total[2];
  }
  if (offsets_given) return;
  moi_sync();

  /* the slots, a block's width at a time, each behind those of its class before it; counts serve as cursors, from the
   * end of the class down to 0, and are made good again */
  for (unsigned s0 = 0; s0 < n_slots; s0 += THREADS) {
    unsigned s = s0 + thread, id = s < n_slots ? (unsigned)a->ids[s] : ~0u;
    if (id >= n_class) id = ~0u;
    ids_of[thread] = id;
    moi_sync();
    unsigned rank = 0, later = 0;
    for (unsigned t = 0; t < THREADS; t++) {
      unsigned same = ids_of[t] == id ? 1u : 0u;
      rank += t < thread ? same : 0u;
      later += t > thread ? same : 0u;
    }
    unsigned place = 0, left = 0;
    if (id != ~0u) {
      left = a->counts[id];
      place = (id + 1u < n_class ? a->offsets[id + 1u] : total[0]) - left + rank;
      a->permutation[place] = s;
    }
    moi_sync();
    if (id != ~0u && later == 0u) a->counts[id] = left - rank - 1u;
    moi_sync();
  }
  for (unsigned s = total[0] + thread; s < all_slots; s += THREADS) a->permutation[s] = ~0u;
  for (unsigned c = c0; c < c1; c++) a->counts[c] = (c + 1u < n_class ? a->offsets[c + 1u] : total[0]) - a->offsets[c];
}

MOI_KERNEL(sort, 256, moi_cu_sort_args) { make_groups(a, 0); }
MOI_KERNEL(groups, 256, moi_cu_sort_args) { make_groups(a, 1); }
