/* The limits of this CPU, measured: what bench's fractions are fractions of. */
#ifndef MOI_BENCH_PEAK_H
#define MOI_BENCH_PEAK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The arithmetic that a kernel works against. */
typedef enum moi_peak_kind {
  MOI_PEAK_F32,  /* fused multiply-adds in registers, two operations each */
  MOI_PEAK_INT8, /* VNNI, on AArch64 SDOT; on CUDA mma */
  MOI_PEAK_MADDWD,   /* AVX2's vpmaddwd and vpaddd */
  MOI_PEAK_MADDUBSW, /* AVX2's vpmaddubsw and vpaddw */
  MOI_PEAK_I8MM, /* SMMLA */
  MOI_PEAK_BF16, /* AVX512-BF16, on AArch64 BFMMLA or BFDOT, whichever is more; on CUDA mma */
  MOI_PEAK_F16,  /* mma of CUDA, as the next */
  MOI_PEAK_FP8,
  MOI_PEAK_KINDS
} moi_peak_kind;

typedef struct moi_peak {
  double read_bytes;          /* bytes a second, all threads reading a large buffer in order */
  double block_bytes;         /* the same in randomly chosen blocks of the size of an expert's matrices */
  double ops[MOI_PEAK_KINDS]; /* a second; 0 if absent */
  const char *isa;            /* of the loops */
} moi_peak;

/* memory: bytes that may be used for the buffer; block: bytes of a random block. Takes about two seconds. */
void moi_peak_measure(uint32_t threads, uint64_t memory, uint64_t block, moi_peak *out);

/* The same again for some milliseconds, between measurements of something else: on a machine that is shared, or whose
 * clock changes, a fraction of what the machine gives at that moment says more than one of its best. `peak` tells how long
 * to run; memory as above, of which a quarter GiB is used at most. */
typedef struct moi_probe moi_probe;
moi_probe *moi_probe_open(uint32_t threads, uint64_t memory, const moi_peak *peak);
void moi_probe_close(moi_probe *probe);
double moi_probe_read(moi_probe *probe);                     /* bytes a second */
double moi_probe_ops(moi_probe *probe, moi_peak_kind kind); /* operations a second; 0 if absent */

#ifdef __cplusplus
}
#endif
#endif
