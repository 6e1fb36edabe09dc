/* Arguments of peak.cu. */
#ifndef MOI_BENCH_PEAK_ARGS_H
#define MOI_BENCH_PEAK_ARGS_H

#include <stdint.h>

#include "cuda/args.h"

/* What both sides count with: blocks of a multiprocessor at once, and sums of a thread that do not wait for each other. */
#define MOI_PEAK_BLOCKS 4
#define MOI_PEAK_SUMS 8

typedef struct moi_peak_args {
  const void *buffer;
  void *sink;
  uint64_t n_words;
  uint32_t rounds, reserved;
} moi_peak_args;

#endif
