/* moiety check: the lists of cases, and what is demanded of a kernel on each. */
#ifndef MOI_BENCH_CHECK_H
#define MOI_BENCH_CHECK_H

#include "bench/rig/case.h"

/* Case `index` of a list, the same on every machine for all time of a version; 0 past the last one. Nothing is
 * allocated: moi_case_make does that. The cheap ones come first. */
int moi_check_gemm_case(moi_format format, uint32_t index, uint64_t seed, moi_case *out);
int moi_check_experts_case(moi_format format, uint32_t index, uint64_t seed, moi_case *out);
int moi_check_route_case(uint32_t index, uint64_t seed, moi_case *out);
/* A preset scaled down: widths by eight, but no rounder than they were, up to 128 experts. */
int moi_check_moe_case(const moi_preset *preset, moi_format format, uint32_t index, uint64_t seed, moi_case *out);
/* Attention, KV append and merge; and a preset's kinds of attention: fewer heads in the same ratio, shorter windows. */
int moi_check_attention_case(uint32_t index, uint64_t seed, moi_case *out);
int moi_check_attention_preset_case(const moi_preset *preset, uint32_t index, uint64_t seed, moi_case *out);

#endif
