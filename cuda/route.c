#include "cuda/cuda.h"
moi_status moi_cu_route_plan(const char *fn, moi_plan *plan, const char *forced, int *found) { (void)plan,(void)forced,(void)found; return moi_fail(MOI_UNSUPPORTED, fn, "no routing yet"); }
void moi_cu_route_count(const moi_plan *plan, moi_carve *carve) { (void)plan,(void)carve; }
void moi_cu_route_run(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *carve, int32_t *ids, float *weights) { (void)plan,(void)run,(void)r,(void)carve,(void)ids,(void)weights; }
