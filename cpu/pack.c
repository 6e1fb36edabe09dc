/* Weight packing: core's loops, shared among the workers. */
#include "cpu/cpu.h"

enum { MAX_PARTS = 64, ROWS = 32 }; /* of an expert; what a part is a multiple of */

typedef struct work {
  const moi_pack_desc *desc;
  const moi_run *run;
  uint32_t n_parts, rows; /* of an expert, of a part */
} work;

static void pack_part(void *arg, uint32_t lane, uint32_t i) {
  (void)lane;
  const work *w = arg;
  uint64_t begin = (uint64_t)(i % w->n_parts) * w->rows, end = begin + w->rows;
  if (begin >= w->desc->n) return;
  moi_pack_rows(w->desc, &w->run->pack_src, &w->run->pack_dst, i / w->n_parts, (uint32_t)begin,
                end < w->desc->n ? (uint32_t)end : w->desc->n);
}

void moi_cpu_pack(const moi_plan *plan, const moi_run *run) {
  const moi_pack_desc *d = &plan->pack;
  uint32_t blocks = (d->n - 1) / ROWS + 1;
  work w = {d, run, moi_min_u32(blocks, MAX_PARTS), 0};
  w.rows = ((blocks - 1) / w.n_parts + 1) * ROWS;
  moi_pool_run_sized(plan->context, (uint64_t)d->n * d->k * d->n_experts, d->n_experts * w.n_parts, pack_part, &w);
}
