/* The operands and the result of a row as files, for programs that compute the same otherwise (bench/peers): each is raw
 * numbers in a file called NAME.TYPE.D0xD1x..., as "input.bf16.4x2048". */
#ifndef MOI_BENCH_DUMP_H
#define MOI_BENCH_DUMP_H

#include <moiety.h>

typedef struct moi_dump {
  const char *folder; /* must be there */
  char *error;
  size_t error_size;
} moi_dump;

/* type: F32, F16, BF16, or NONE for i32. dims: up to three, 0 ends them. An absent view writes nothing. 0, or 1 and *error. */
int moi_dump_write(const moi_dump *dump, const char *name, moi_format type, moi_buffer view, const uint32_t dims[3]);

#endif
