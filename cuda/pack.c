/* Weight packing: one launch for up to 1024 experts. */
#include "core/format.h"
#include "cuda/cuda.h"

enum { THREADS = 256, MOST_EXPERTS = 1024 }; /* of a launch: a grid has room for 65535 */

moi_status moi_cu_pack_plan(const char *fn, moi_plan *plan) {
  moi_cu_plan *state = plan->state;
  const char *kernel;
  if (moi_format_find(plan->pack.from)->interleaved || moi_format_find(plan->pack.to)->interleaved)
    return moi_fail(MOI_UNSUPPORTED, fn, "desc->from, to: no CUDA kernel packs %s to %s", moi_format_name(plan->pack.from),
                    moi_format_name(plan->pack.to));
  switch (plan->pack.from) {
    case MOI_FORMAT_BF16_KN: kernel = "pack_kn"; break;
    case MOI_FORMAT_GPTQ_G32:
    case MOI_FORMAT_GPTQ_G128: kernel = "pack_gptq"; break;
    case MOI_FORMAT_AWQ_G32:
    case MOI_FORMAT_AWQ_G128: kernel = "pack_awq"; break;
    case MOI_FORMAT_MXFP4: kernel = "pack_to_gguf"; break;
    case MOI_FORMAT_MXFP4_GGUF: kernel = "pack_from_gguf"; break;
    default:
      return moi_fail(MOI_UNSUPPORTED, fn, "desc->from: no CUDA kernel packs %s", moi_format_name(plan->pack.from));
  }
  moi_status status = moi_cu_function_get(fn, plan->context, "pack", kernel, &state->pack);
  return status ? status : moi_plan_say(plan, "pack: %s\n", kernel);
}

static moi_cu_pack_side side_of(const moi_weights *w) {
  return (moi_cu_pack_side){moi_view(w->data), moi_view(w->scales), moi_view(w->zeros),
                            w->data_stride,    w->scales_stride,    w->zeros_stride};
}

static void advance(moi_cu_pack_side *side, uint64_t experts) {
  side->data += side->data_stride * experts;
  if (side->scales) side->scales += side->scales_stride * experts;
  if (side->zeros) side->zeros += side->zeros_stride * experts;
}

void moi_cu_pack_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r) {
  const moi_pack_desc *d = &plan->pack;
  const moi_cu_plan *state = plan->state;
  moi_cu_pack_args a = {.src = side_of(&run->pack_src),
                        .dst = side_of(&run->pack_dst),
                        .n = d->n,
                        .k = d->k,
                        .group = moi_format_find(d->from)->scale_k};
  uint32_t tiles;
  switch (d->from) {
    case MOI_FORMAT_BF16_KN:
      a.k_tiles = moi_cu_ceil_div(d->k, MOI_CU_PACK_SIDE);
      tiles = a.data_tiles = a.k_tiles * moi_cu_ceil_div(d->n, MOI_CU_PACK_SIDE);
      break;
    case MOI_FORMAT_MXFP4:
    case MOI_FORMAT_MXFP4_GGUF:
      tiles = a.data_tiles = moi_cu_ceil_div(d->n * d->k, MOI_CU_PACK_CODES); /* less than 2^32 codes */
      break;
    default: /* codes, scales, zeros */
      a.k_tiles = moi_cu_ceil_div(d->k, MOI_CU_PACK_K);
      a.data_tiles = a.k_tiles * moi_cu_ceil_div(d->n, MOI_CU_PACK_N);
      a.group_tiles = moi_cu_ceil_div(d->k / a.group, MOI_CU_PACK_SIDE);
      a.scale_tiles = a.group_tiles * moi_cu_ceil_div(d->n, MOI_CU_PACK_SIDE);
      tiles = a.data_tiles + 2 * a.scale_tiles;
  }
  for (uint32_t left = d->n_experts, n; left; left -= n) {
    n = moi_cu_min(left, MOST_EXPERTS);
    moi_cu_launch(r, state->pack, &a, tiles, n, THREADS);
    advance(&a.src, n);
    advance(&a.dst, n);
  }
}
