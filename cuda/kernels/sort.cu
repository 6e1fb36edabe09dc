/* sort: slots by class, with work items, and rows prepared beside it. groups: work items of rows that come sorted, as
 * offsets say. */
#include "cuda/kernels/sort.h"

#define THREADS MOI_SORT_THREADS
#define WORDS 8192u

MOI_KERNEL(sort, 256, moi_cu_sort_prepare_args) {
  MOI_SHARED(unsigned, words, WORDS);
  MOI_SHARED(unsigned, partial, MOI_SORT_PARTIALS);
  MOI_SHARED(float, shares, MOI_ROW_SHARES);
  moi_sort_steps(&a->sort, &a->rows, words, WORDS, partial, shares);
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
