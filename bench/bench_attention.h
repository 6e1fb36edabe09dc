/* A row of a measurement of attention: a kind of layer of a preset, over KV caches that are there several times
 * over. */
#ifndef MOI_BENCH_BENCH_ATTENTION_H
#define MOI_BENCH_BENCH_ATTENTION_H

#include <moiety.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moi_bench_attention moi_bench_attention;

typedef struct moi_bench_attention_shape {
  uint32_t sequences;
  uint32_t rows;   /* of each sequence, the last ones of its keys */
  uint32_t kv_len; /* of each sequence */
  uint32_t page_size;
  moi_format kv_format; /* NONE: the preset's own */
} moi_bench_attention_shape;

/* Plans. memory: bytes that the caches may take; MOI_OUT_OF_MEMORY if one copy of them is larger. On failure *error
 * says why. kernel may be NULL. */
moi_status moi_bench_attention_open(const moi_preset *preset, const moi_preset_attention *kind,
                                    const moi_bench_attention_shape *shape, uint64_t memory, moi_context *context,
                                    moi_context *reference, const char *kernel, moi_bench_attention **out, char *error,
                                    size_t error_size);
void moi_bench_attention_free(moi_bench_attention *row);
const char *moi_bench_attention_kernel(const moi_bench_attention *row); /* "a", or "a+b": few rows and many */
const char *moi_bench_attention_serving(const moi_bench_attention *row); /* the one of them that serves this shape */
const char *moi_bench_attention_needs(const moi_bench_attention *row);   /* of that */
/* "FORMAT/PRESET/tokens:N/kind:K/sequences:S/kv_len:L[/page_size:P]", the end of a row's name. */
const char *moi_bench_attention_name(const moi_bench_attention *row);
const moi_bench_attention_shape *moi_bench_attention_shape_of(const moi_bench_attention *row);

/* From now on preparing writes the first copy and its result into a folder that is there (dump.h). */
void moi_bench_attention_dump(moi_bench_attention *row, const char *folder);
/* As moi_bench_row_launch. */
void moi_bench_attention_launch(moi_bench_attention *row);
/* Makes caches and queries, and checks rows of the result against the reference. 0, or 1 and *error. */
int moi_bench_attention_prepare(moi_bench_attention *row, char *error, size_t error_size);
/* How far off they were, the worst of them, and may be: the verdict's error and allowed (rig/tolerance.h). */
void moi_bench_attention_checked(const moi_bench_attention *row, double *error, double *allowed);
moi_status moi_bench_attention_run(moi_bench_attention *row, uint64_t iteration);
/* Of an iteration: the keys and values that any row sees, each once, the queries and the output; and a multiplication
 * and an addition for each element of the keys and of the values that each row and head sees. */
double moi_bench_attention_bytes(const moi_bench_attention *row);
double moi_bench_attention_flops(const moi_bench_attention *row);
void moi_bench_attention_release(moi_bench_attention *row);

#ifdef __cplusplus
}
#endif
#endif
