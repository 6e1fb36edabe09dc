/* The limits of this CPU, measured: what bench's fractions are fractions of. */
#ifndef MOI_BENCH_PEAK_H
#define MOI_BENCH_PEAK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moi_peak {
  double read_bytes;  /* bytes a second, all threads reading a large buffer in order */
  double block_bytes; /* the same in randomly chosen blocks of the size of an expert's matrices */
  double f32_flops;   /* fused multiply-adds in registers, two operations each */
  double int8_ops;    /* VNNI, on AArch64 SDOT; 0 if absent */
  double i8mm_ops;    /* SMMLA, 0 if absent */
  double bf16_flops;  /* AVX512-BF16, on AArch64 BFMMLA or BFDOT, whichever is more; 0 if absent */
  const char *isa;    /* of the loops */
} moi_peak;

/* memory: bytes that may be used for the buffer; block: bytes of a random block. Takes about two seconds. */
void moi_peak_measure(uint32_t threads, uint64_t memory, uint64_t block, moi_peak *out);

#ifdef __cplusplus
}
#endif
#endif
