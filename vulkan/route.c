#include "vulkan/vulkan.h"
moi_status moi_vk_route_plan(const char *fn, moi_plan *plan, const char *forced, int *found) { (void)plan,(void)forced,(void)found; return moi_fail(MOI_UNSUPPORTED, fn, "route: the Vulkan backend of this build has no routing"); }
void moi_vk_route_count(const moi_plan *plan, moi_carve *carve) { (void)plan,(void)carve; }
void moi_vk_route_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *carve, uint64_t ids, uint64_t weights) { (void)plan,(void)run,(void)r,(void)carve,(void)ids,(void)weights; }
