/* sort: slots by class, with work items, and rows prepared beside it; where tokens are many, in parts that sort_count or
 * the selection has counted before. groups: work items of rows that come sorted, as offsets say. */
#include "cuda/kernels/rows.h"
#include "cuda/kernels/sort.h"

#define THREADS MOI_SORT_THREADS

MOI_KERNEL(sort_count, 256, moi_cu_sort_args) {
  MOI_SHARED(unsigned, counts, MOI_SORT_WORDS / 2u); /* more classes than that are sorted in one part */
  unsigned from, to, n_class = a->n_class;
  moi_part(&from, &to, moi_bounded(a->n_tokens, a->n_tokens_device), moi_block_x(), a->n_blocks);
  from *= a->top_k;
  to *= a->top_k;
  for (unsigned c = moi_thread(); c < n_class; c += THREADS) counts[c] = 0u;
  moi_sync();
  for (unsigned s = from + moi_thread(); s < to; s += THREADS) {
    unsigned id = (unsigned)a->ids[s];
    if (id < n_class) moi_atomic_add(&counts[id], 1u);
  }
  moi_sync();
  for (unsigned c = moi_thread(); c < n_class; c += THREADS) a->histograms[moi_block_x() * n_class + c] = counts[c];
}

MOI_KERNEL(sort, 256, moi_cu_sort_prepare_args) {
  MOI_SHARED(unsigned, words, MOI_SORT_WORDS);
  MOI_SHARED(unsigned, partial, MOI_SORT_PARTIALS);
  MOI_SHARED(float, shares, MOI_ROW_SHARES);
  unsigned n = a->sort.n_blocks;
  if (moi_block_x() < n) moi_sort_slots(&a->sort, words, partial, moi_block_x());
  else moi_prepare_rows(&a->rows, shares, moi_block_x() - n, moi_grid_x() - n);
}

/* ---- groups */

MOI_DEVICE unsigned clamped(int offset, unsigned most) {
  return offset < 0 ? 0u : (unsigned)offset < most ? (unsigned)offset : most;
}

/* Group c is [max over 0..c, max over 0..c+1) of the offsets, cut to the rows there are. */
MOI_KERNEL(groups, 256, moi_cu_sort_args) {
  MOI_SHARED(unsigned, partial, MOI_SORT_PARTIALS);
  unsigned thread = moi_thread(), n_slots = moi_slots_of(a), n_class = a->n_class;
  unsigned each = (n_class + THREADS - 1u) / THREADS, c0 = thread * each;
  unsigned at = 0, end;
  for (unsigned c = c0; c < c0 + each && c < n_class; c++) {
    unsigned from = clamped(a->ids[c], n_slots), to = clamped(a->ids[c + 1u], n_slots), most = from > to ? from : to;
    if (most > at) at = most;
  }
  moi_scan(partial, &at, &end, 1u, 1);
  if (thread == 0u) {
    a->ends[0] = clamped(a->ids[0], n_slots);
    a->ends[1] = end;
  }
  for (unsigned c = c0; c < c0 + each && c < n_class; c++) {
    unsigned from = clamped(a->ids[c], n_slots), to = clamped(a->ids[c + 1u], n_slots);
    if (from < at) from = at;
    at = to > from ? to : from;
    a->offsets[c] = from;
    a->counts[c] = at - from;
  }
  moi_make_all_items(a, a->counts, a->offsets, partial, c0, each);
}
