/* fp32 matrices into every weight format: the counterpart of core/shared/decode.h, one function for each format. */
#ifndef MOI_BENCH_RIG_ENCODE_H
#define MOI_BENCH_RIG_ENCODE_H

#include <moiety.h>

/* Streams of one W[n,k], as moi_format_size says. */
typedef struct moi_streams {
  uint8_t *data, *scales, *zeros;
} moi_streams;

/* Quantises w[n,k] to nearest. Returns the global scale that the dot products are multiplied by (NVFP4; else 1). */
float moi_encode(moi_format format, const float *w, uint32_t n, uint32_t k, moi_streams out);
/* Element (row, col) of an encoded matrix, global scale included. */
float moi_decode(moi_format format, moi_streams in, float global, uint32_t row, uint32_t col, uint32_t n, uint32_t k);
/* Root of the mean squared error, relative to the root mean square of normal weights, that encoding is allowed: the
 * format's step. For tests of the encoders themselves. */
float moi_encode_step(moi_format format);

/* Random weights by the gigabyte: a small encoded matrix whose lines are dealt out at random. */
typedef struct moi_weight_pool {
  moi_format format;
  uint32_t n, k; /* of the matrices that are filled */
  float global;
  moi_streams lines;
  uint64_t line_bytes[3], n_lines[3], pool_lines[3];
} moi_weight_pool;

/* Weights are normal with variance 1/k, so that outputs are about as large as inputs. Small matrices are encoded whole.
 */
void moi_weight_pool_make(moi_weight_pool *pool, moi_format format, uint32_t n, uint32_t k, uint64_t seed);
/* Fills one expert's streams. */
void moi_weight_pool_fill(const moi_weight_pool *pool, moi_streams out, uint64_t seed);
void moi_weight_pool_free(moi_weight_pool *pool);

#endif
