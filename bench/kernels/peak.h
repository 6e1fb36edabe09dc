/* Arguments of peak.cu. */
#ifndef MOI_BENCH_PEAK_ARGS_H
#define MOI_BENCH_PEAK_ARGS_H

#include <stdint.h>

#include "cuda/args.h"

typedef struct moi_peak_args {
  const void *buffer;
  void *sink;
  uint64_t n_words;
  uint32_t rounds, reserved;
} moi_peak_args;

#endif
