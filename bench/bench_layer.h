/* A layer to be measured: its weights, several times over so that they are cold, and the rows of a measurement on it.
 */
#ifndef MOI_BENCH_BENCH_LAYER_H
#define MOI_BENCH_BENCH_LAYER_H

#include <moiety.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moi_bench_layer moi_bench_layer;
typedef struct moi_bench_row moi_bench_row;

/* The name of an online quantisation of activations: "fp8_128", "fp8_128_pow2", "int8_32"; "none". NULL: no such. */
const char *moi_act_quant_name(moi_act_quant quant);

/* memory: bytes that its weights may take: where that is too little for all experts, fewer are there, and routing goes
 * among those. format NONE: the preset's own. Weights are made by the first row that is prepared. NULL: *error says
 * why. */
moi_bench_layer *moi_bench_layer_of_preset(const moi_preset *preset, moi_format format, uint64_t memory, char *error,
                                           size_t error_size);
/* Gives the experts another quantisation of activations than the model's; its name joins the format's. */
void moi_bench_layer_quantise(moi_bench_layer *layer, moi_act_quant quant);
moi_bench_layer *moi_bench_layer_of_file(const char *path, uint32_t index, char *error, size_t error_size);
/* Gives the weights back; a row that is prepared later makes them again. */
void moi_bench_layer_drop(moi_bench_layer *layer);
void moi_bench_layer_free(moi_bench_layer *layer);
/* One line about its size. */
const char *moi_bench_layer_text(const moi_bench_layer *layer);
const char *moi_bench_layer_name(const moi_bench_layer *layer);   /* preset or file, for row names */
const char *moi_bench_layer_format(const moi_bench_layer *layer); /* "q4_k", "q4_k+q6_k", "q4_k:int8_32" */
uint64_t moi_bench_layer_expert_bytes(const moi_bench_layer *layer);

/* Plans; NULL with MOI_UNSUPPORTED or another status and moi_last_error() if there is no kernel. kernel may be NULL.
 * from_logits: a route without the router's product. */
moi_status moi_bench_row_open(moi_bench_layer *layer, moi_op op, int from_logits, uint32_t tokens, moi_context *context,
                              moi_context *reference, const char *kernel, moi_bench_row **out);
void moi_bench_row_free(moi_bench_row *row);
/* What the plan says of its kernels: "a", or "a+b" where few and many tokens have their own. */
const char *moi_bench_row_kernel(const moi_bench_row *row);
/* The one of them that serves an expert of average traffic. */
const char *moi_bench_row_serving(const moi_bench_row *row);
/* What that one needs, as the kernel list says. */
const char *moi_bench_row_needs(const moi_bench_row *row);
/* Of W in a row of MOI_OP_GEMM: one expert's up, with the gate where both are one matrix. */
void moi_bench_row_size(const moi_bench_row *row, uint32_t *n, uint32_t *k);

/* From now on preparing writes what the first iteration works on, and its result, into a folder that is there (dump.h). */
void moi_bench_row_dump(moi_bench_row *row, const char *folder);
/* Runs are launched one by one, and not as CUDA graphs where the device has them. Before it is prepared. */
void moi_bench_row_launch(moi_bench_row *row);
/* Makes weights, inputs and outputs, and checks the result against the reference. 0, or 1 and *error. */
int moi_bench_row_prepare(moi_bench_row *row, char *error, size_t error_size);
/* How far off that result was, and may be: the verdict's error and allowed (rig/tolerance.h). */
void moi_bench_row_checked(const moi_bench_row *row, double *error, double *allowed);
moi_status moi_bench_row_run(moi_bench_row *row, uint64_t iteration);
/* Weight bytes of the experts (and router, shared experts) that this iteration touches, and its activations. */
double moi_bench_row_bytes(const moi_bench_row *row, uint64_t iteration);
double moi_bench_row_flops(const moi_bench_row *row, uint64_t iteration);
/* Frees inputs and outputs; the plan stays. */
void moi_bench_row_release(moi_bench_row *row);

#ifdef __cplusplus
}
#endif
#endif
