/* Segments of a sequence's keys, summed up by themselves: 32 of `unit` keys, then 16 of twice as many, 16 of four times as
 * many, and so on. Where a segment lies depends on nothing but `unit`, so that a row's bits do not depend on its batch nor
 * on how long a plan's contexts may be; a context of 4096 keys has as many segments in a plan for a million keys as in one
 * for itself, and a million has few enough to be joined. */
#ifndef MOI_SHARED_SEGMENT_H
#define MOI_SHARED_SEGMENT_H

#include "prelude.h"

/* The segment of a key; key / unit < 2^24. */
MOI_FN uint moi_segment_of(uint key, uint unit) {
  uint u = key / unit, doubled = u < 32u ? 0u : (moi_f32_bits(MOI_FLOAT(u)) >> 23) - 131u; /* floor(log2 u) - 4 */
  return 16u * doubled + (u >> doubled);
}

/* A segment's first key. */
MOI_FN uint moi_segment_begin(uint segment, uint unit) {
  uint doubled = segment < 32u ? 0u : segment / 16u - 1u;
  return ((segment - 16u * doubled) << doubled) * unit;
}

#endif
