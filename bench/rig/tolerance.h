/* When is a result right? The one place that says so.
 *
 * Reference and kernel read the same quantised weights and the same inputs, so the only honest differences are those of
 * arithmetic. Their size, relative to the root mean square of an output row (x and W are random, nothing cancels):
 *
 *   dot product of k    fp32 accumulation   4 sqrt(k) 2^-24    (4: order of summation, zero points)
 *                       int16 activations   2^-15              (a step of the largest of 32; its rms is half of it)
 *                       two bf16 digits     2^-18              (rms: bits behind the second, 2^-18.8; the product of two
 *                                                              low digits, as f16 weights have one too: 2^-18.6)
 *                       14 bits of sums     2^-12              (rms 2^-11: in each of 4 steps of 32 products, 33 numbers
 *                                                              lose up to 2^-13 of the largest of them, which is up to
 *                                                              a sum of 128)
 *   activation          doubles what it gets (a product of two), and adds 2^-20 (exp, tanh)
 *   rounding to a type  both sides round, and where an error e carries a value over the middle of a step u (bf16 2^-8,
 *                       f16 2^-11, E4M3 2^-4) the results lie a step apart: sqrt(e u) on the average, and
 *                       12 u / sqrt(k) where the largest of the k values behind an output (six times their rms) did so
 *
 * With e the sum of the averages up to, but without, the rounding to the output type, and s that of the single steps,
 *   each element    |y - r| <= ulp(r) + (12 e + 3.5 s) max(rms of the row, |r|)    ulp: the output type's, f32 2^-22 r
 *   the whole       sum max(0, |y - r| - ulp(r))^2 <= (16 e^2 + 2 s^2 / rows) sum r^2
 *   16-bit outputs  at most a part 8 e / u of the elements, those of two rows that a single step may move, and 8 more
 *                   differ at all: a kernel that truncates fails here
 * Attention: with logits of standard deviation l, one is off by sqrt(k) l 2^-24 (its dot product) and by 5 l 2^-24 (five
 * deviations are the largest: scaling, times log2 e, minus the maximum); a softcap c adds 2 c 2^-24. What a logit is off
 * by, its weight is off by, relatively; exp adds 2^-23, the sum over n keys sqrt(n) 2^-24. Both sides read the same bytes
 * of the cache, so its format adds nothing. Rows whose name has "bf16" round the weights to it: 2^-10. An element of the
 * output is a mean of values under those weights, so that this is e of its row; 12 e bounds the log-sum-exp. (No factor 4
 * as above: no zero points, and the sums of the kernels here stay below a third of this.)
 *
 * Rows of fewer than 16 elements use the rms of all rows where it is larger. A reference that is NaN or infinite asks
 * for NaN or infinity. The exception, counted as `excused`: a routing may differ at a near tie (moi_compare_route). */
#ifndef MOI_BENCH_RIG_TOLERANCE_H
#define MOI_BENCH_RIG_TOLERANCE_H

#include <moiety.h>

typedef enum moi_accumulator {
  MOI_ACCUMULATE_F32,    /* activations as they are, fp32 sums */
  MOI_ACCUMULATE_BF16X2, /* activations as two bf16 digits, fp32 sums */
  MOI_ACCUMULATE_I16,    /* activations quantised to 16 bits for each 32 */
  MOI_ACCUMULATE_E4M3    /* E4M3 as the model has it, sums of 128 that keep 14 bits; the least exact comes last */
} moi_accumulator;

/* What a backend's kernels of a format are allowed. On the CPU int16, but fp32 for the dense formats and for the kernels
 * 'generic' and 'ref'; elsewhere fp32, but for these rows and plans that may have them: on CUDA those called "-mma" and "-cublas" multiply
 * bf16 or f16 digits, "-mma-fp8" and "-mma-mx" E4M3, "-int8", and plans of formats of blocks, 16 bits; on Vulkan those called "-dot" 16 bits. */
moi_accumulator moi_accumulator_of(moi_backend backend, const char *kernel, moi_format format);

/* e and s of the comment above. */
typedef struct moi_error {
  double e, s;
} moi_error;

moi_error moi_gemm_error(moi_accumulator accumulator, uint32_t k);
moi_error moi_experts_error(moi_accumulator accumulator, const moi_experts_desc *desc);
moi_error moi_moe_error(moi_accumulator accumulator, const moi_moe_desc *desc);
/* logits: their standard deviation without the temperature; keys: the most that a row sees; positions: how many there
 * are. */
moi_error moi_attention_error(const char *kernel, const moi_attention_desc *desc, double logits, uint32_t keys,
                              uint64_t positions);
/* Of a logit, relative to the rms of a token's logits. */
double moi_logit_error(moi_accumulator accumulator, const moi_route_desc *desc);

typedef struct moi_matrix_view {
  moi_format type; /* F32, F16, BF16 */
  const void *data;
  uint32_t rows, cols, stride;
} moi_matrix_view;

typedef struct moi_verdict {
  int ok;
  double nmse;       /* sum (y-r)^2 / sum r^2, for the reader */
  double error, allowed; /* `the whole` above, as the root of sum r^2's factor: of an output; of a routing, the relative
                            error of the weight that is nearest its bound */
  uint32_t excused;  /* near ties of a routing */
  char text[320];    /* what is wrong */
} moi_verdict;

/* Compares a result with the reference. mistrust: a reference that is mostly zeros proves nothing and fails. */
moi_verdict moi_compare(const moi_matrix_view *result, const moi_matrix_view *reference, moi_error error,
                        int mistrust);

/* Compares two routings of the same operands: ids are equal but where the reference's selection values lie nearer to
 * each other than the logits of the two sides differ (counted in `excused`); weights of the same expert are equal up to
 * that; counts, offsets and permutation (where all three are present) are exactly those of the ids beside them. ids,
 * weights and logits_out must be present on both sides. */
moi_verdict moi_compare_route(const moi_route_desc *desc, const moi_route_args *result, const moi_route_args *reference,
                              double e);

#endif
