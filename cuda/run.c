/* Launches of a run on the caller's stream. */
#include "cuda/cuda.h"

void moi_cu_launch_shared(moi_cu_run *r, moi_cu_function function, const void *args, uint32_t x, uint32_t y,
                          uint32_t threads, uint32_t shared) {
  if (!x || !y || r->status) return;
  void *params[1];
  memcpy(&params[0], &args, sizeof args); /* the driver's parameter is not const, and it does not write */
  const moi_cu_driver *cu = r->c->cu;
  moi_cu_result result;
  if (r->n_launches++ && r->c->traits.overlap) { /* what the engine launched before the first is not ours to overlap */
    moi_cu_launch_attribute overlap = {.id = MOI_CU_LAUNCH_PROGRAMMATIC, .value = {.allowed = 1}};
    moi_cu_launch_config config = {x, y, 1, threads, 1, 1, shared, r->stream, &overlap, 1};
    result = cu->LaunchKernelEx(&config, function, params, NULL);
  } else {
    result = cu->LaunchKernel(function, x, y, 1, threads, 1, 1, shared, r->stream, params, NULL);
  }
  if (result) r->status = moi_cu_fail(r->function, cu, "cuLaunchKernel", result);
}

int moi_cu_launch_together(moi_cu_run *r, moi_cu_function function, const void *args, uint32_t x, uint32_t threads) {
  if (!x || r->status) return 1;
  void *params[1];
  memcpy(&params[0], &args, sizeof args);
  const moi_cu_driver *cu = r->c->cu;
  moi_cu_result result = cu->LaunchCooperative(function, x, 1, 1, threads, 1, 1, 0, r->stream, params);
  if (result == MOI_CU_COOPERATIVE_TOO_LARGE) return 0;
  r->n_launches++;
  if (result) r->status = moi_cu_fail(r->function, cu, "cuLaunchCooperativeKernel", result);
  return 1;
}

void moi_cu_launch(moi_cu_run *r, moi_cu_function function, const void *args, uint32_t x, uint32_t y, uint32_t threads) {
  moi_cu_launch_shared(r, function, args, x, y, threads, 0);
}
