/* The format table as data. */
#ifndef MOI_CORE_FORMAT_H
#define MOI_CORE_FORMAT_H

#include <moiety.h>

typedef struct moi_format_row {
  moi_format format;
  const char *name;
  int k_major;     /* order K: blocks lie in the transposed order, n contiguous */
  int interleaved; /* order R: blocks of block_n rows, for the CPU alone */
  uint32_t block_n, block_k, block_bytes;
  uint32_t scale_n, scale_k, scale_bytes;
  uint32_t zero_bits;
} moi_format_row;

/* NULL for a value that is no format. */
const moi_format_row *moi_format_find(moi_format format);
/* Bytes of an element of F32, F16 or BF16, 0 for any other. */
uint32_t moi_dense_bytes(moi_format format);
/* Alignment in bytes that the data stream of a format must have; that of scales is their size. */
uint32_t moi_format_align(const moi_format_row *row);

#endif
