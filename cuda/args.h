/* Arguments of the kernels, passed by value: one definition for the host's compiler and for the kernels. Pointers are
 * addresses on the device. Names in a struct's first comment are the kernels that take it. */
#ifndef MOI_CUDA_ARGS_H
#define MOI_CUDA_ARGS_H

#include <stdint.h>

/* moi_format's values for dense types */
enum { MOI_CU_F32 = 1, MOI_CU_F16 = 2, MOI_CU_BF16 = 3 };

/* One matrix of every expert: bases with strides in bytes, or tables of addresses. */
typedef struct moi_cu_matrix {
  const void *data, *scales, *zeros, *bias; /* null: absent */
  uint64_t data_stride, scales_stride, zeros_stride, bias_stride;
  const float *global_scale; /* [e] or null */
  uint32_t tables, rows;     /* rows: N of the whole matrix */
  uint32_t row_mul, row_add; /* column j of the result is row j * row_mul + row_add */
  uint32_t vectors, reserved; /* 1: rows of data and the streams of experts begin at multiples of 16 bytes */
} moi_cu_matrix;

/* The forms of rows of activations; ldx: k up to a multiple of 32.
 *
 *   FLOATS       ldx floats.
 *   DIGITS       bf16 digits: x = high + low, high = bf16(x), low = bf16(x - high), off by 2^-17 at most. Such a row lies
 *                where a row of ldx floats would: ldx high digits, then ldx low ones. Where all x are bf16 as they are, one
 *                digit says it all, and there are no low ones.
 *   DIGITS_F16   f16 digits that lie likewise: x = scale * (high + low), one scale for a row, a power of two that brings the
 *                largest of the row to 2^13..2^14: off by 2^-22 of x or 2^-38 of the row's largest. One digit where all x are
 *                f16 or bf16: off by 2^-38 of the row's largest, where that is more than 2^27 times x, or by nothing.
 *   INT8         int8 digits and a scale s for each 32 k: x = s * q, q = 256 * high + low of signed bytes, s a power of two
 *                with |q| <= 32639: off by s / 2, 2^-14.9 of the largest of the 32 at most. One digit, q = high, where
 *                act_quant leaves 8 bits: s is its scale. NaN and infinity give an s that is neither a number. Such a row
 *                lies where a row of ldx floats would: ldx bytes high, ldx low, then for each 32 k two floats: s, and
 *                s * (sum of the 32 q's).
 *   E4M3         what an act_quant of FP8 leaves: a byte for each k up to a multiple of 128, and a scale for each 128. */
typedef enum moi_cu_form {
  MOI_CU_FLOATS,
  MOI_CU_DIGITS,
  MOI_CU_DIGITS_F16,
  MOI_CU_INT8,
  MOI_CU_E4M3,
  MOI_CU_FORMS
} moi_cu_form;

/* k up to whole groups of act_quant */
#define MOI_CU_UP128(k) (((k) + 127u) & ~127u)

/* Shared memory that gemm_mma asks for: two stages of 8 KB for W and for each digit of x. */
#define MOI_CU_MMA_STAGE 8192u
/* gemm_fp8mma: two stages of 16 KB for W and for x. */
#define MOI_CU_E4M3_STAGE 16384u

/* A stage's bytes of W, and of each digit of x, in gemm_int8; and the shared memory that it asks for: two stages with two
 * digits, or 16 rows of 40 floats for each of 16 warps, which are more. */
#define MOI_CU_INT8_PLANE 4096u
#define MOI_CU_INT8_SHARED 40960u

/* A work item: rows of one expert. */
typedef struct moi_cu_item {
  uint32_t expert, first, rows;
} moi_cu_item;

/* gemm_<kernel>_<format>[_up]; gemm_stream in a pair */
typedef struct moi_cu_gemm_args {
  moi_cu_matrix up, gate; /* _up: two matrices and an activation; else only `up` */
  const float *x;         /* rows in the form that the kernel's row says; zeros behind k */
  const float *x_scales;  /* of the form; null where it has none */
  float *y;               /* rows of ldy floats; of DIGITS where y_digits is not 0 (_up alone) */
  const uint32_t *permutation;   /* slot of a sorted position; null: itself */
  const uint32_t *n_rows_device; /* null: n_rows; else it and rows_per_count rows each bound n_rows */
  const float *weights;          /* of a slot, multiplied into the activation; null: none */
  const uint32_t *n_items;       /* null: one expert, all rows */
  const moi_cu_item *items;
  uint32_t ldx, ldy, n, k;
  uint32_t x_div, n_rows, bias_type, activation; /* row of x is slot / x_div */
  uint32_t mid_type, has_gate, rows_per_count, m_tile;
  uint32_t y_digits, reserved;
  float alpha, limit;
} moi_cu_gemm_args;

/* gemm_stream_<format>[_up]: blocks with y from first_y on have the second product. Kernels of one product take this struct
 * for its first member. */
typedef struct moi_cu_gemm_pair {
  moi_cu_gemm_args of[2];
  uint32_t first_y, reserved;
} moi_cu_gemm_pair;

/* What a launch of select_* and sort does, one step after the other. Between them its blocks meet, if they are `together`:
 * a cooperative launch; else each block goes on by itself, which is right where nobody reads what another writes. */
enum { MOI_CU_STEP_SELECT = 1, MOI_CU_STEP_COUNT = 2, MOI_CU_STEP_SORT = 4 }; /* SORT prepares rows too */

/* groups; in others of these structs */
typedef struct moi_cu_sort_args {
  const int32_t *ids;              /* sort: [n_tokens, top_k]; groups: offsets [n_class + 1] */
  const uint32_t *n_tokens_device; /* or null */
  uint32_t *counts, *offsets;      /* [n_class], [n_class + 1] */
  uint32_t *permutation;           /* [n_tokens * top_k]; sort alone; may be null */
  uint32_t *histograms;            /* [n_blocks, n_class]: slots of each class in a part of the tokens; if n_blocks > 1 */
  uint32_t *n_items[2];            /* of few rows, of many; null: none are wanted */
  moi_cu_item *items[2];
  uint32_t *ends; /* groups: first and end row of all groups */
  uint32_t n_tokens, top_k, n_class, n_experts;
  uint32_t m_max, m_tile[2];
  uint32_t n_blocks; /* that share the tokens, a part for each */
  uint32_t steps, together;
} moi_cu_sort_args;

/* prepare: rows, once for each form; in others of these structs */
typedef struct moi_cu_prepare_args {
  const void *input;
  float *x;             /* null: none in fp32 */
  void *codes;          /* in `form`; null: none */
  float *scales;        /* of the form */
  const float *weights; /* of the rows, multiplied in and rounded; null: none */
  const uint32_t *n_rows_device;
  const void *gate; /* a vector, and sigmoid(row . vector) of each row in gate_out; null: none */
  float *gate_out;
  uint32_t input_type, gate_type, input_stride, ldx;
  uint32_t k, n_rows, row_div, rows_per_count; /* row r is input row r / row_div */
  uint32_t act_quant, form, n_digits, reserved;
} moi_cu_prepare_args;
enum { MOI_CU_PREPARES = 3 }; /* forms of two kernels, and of the shared expert's */
typedef struct moi_cu_prepare_set {
  moi_cu_prepare_args of[MOI_CU_PREPARES]; /* n_rows 0: none */
} moi_cu_prepare_set;

/* sort */
typedef struct moi_cu_sort_prepare_args {
  moi_cu_sort_args sort;
  moi_cu_prepare_set rows;
} moi_cu_sort_prepare_args;

/* route_prepare makes rows; route_logits logits of a few tokens, from the same input */
typedef struct moi_cu_route_prepare_args {
  const void *input, *norm_weight; /* norm_weight null: no norm */
  float *rows;                     /* n_tokens rows of ldx floats, zero behind k */
  const void *router;              /* [n_class, k] */
  float *logits;                   /* n_tokens rows of n_class floats */
  const uint32_t *n_tokens_device; /* or null */
  uint32_t n_tokens, k, ldx, stride;
  uint32_t input_type, router_type, n_class, reserved; /* router_type: of norm_weight too */
  float eps, scale;
} moi_cu_route_prepare_args;

/* In moi_cu_select_sort_args. Score, renorm, group_score are moiety.h's values; null: the rule has none. */
typedef struct moi_cu_select_args {
  const void *input; /* logits, rows of `stride` */
  const void *router_bias;
  const float *select_bias, *select_bias_alt;
  const uint8_t *alt_mask;
  const float *expert_scale;
  const int32_t *hash_table, *token_ids;
  const uint32_t *n_tokens_device;
  int32_t *ids;
  float *weights, *logits_out;
  uint32_t *keys; /* select_any: [blocks, n_class] where n_class is more than MOI_CU_SELECT_HELD */
  uint32_t *histograms; /* select_256, select_1024: moi_cu_sort_args', if this counts: n_blocks are the same; or null */
  uint32_t n_tokens, top_k, n_class, stride;
  uint32_t input_type, bias_type, logits_type, weight_type;
  uint32_t score, renorm, group_score, n_group;
  uint32_t topk_group, vocab;
  float renorm_eps, scale, logit_scale, logit_softcap, jitter;
  uint32_t n_blocks; /* that select */
} moi_cu_select_args;

/* Classes whose keys select_any holds in shared memory. */
enum { MOI_CU_SELECT_HELD = 8192 };

/* select_256, select_1024, select_any */
typedef struct moi_cu_select_sort_args {
  moi_cu_select_args select;
  moi_cu_sort_args sort;
  moi_cu_prepare_set rows;
} moi_cu_select_sort_args;

/* combine */
typedef struct moi_cu_combine_args {
  const float *o; /* a row for each slot */
  const int32_t *ids;
  const float *weights;
  const void *input;
  void *output;
  const uint32_t *n_tokens_device;
  const float *shared_o, *shared_gate; /* null: none, and a gate of 1 */
  uint32_t n_tokens, top_k, n_experts, n_class;
  uint32_t h, ldo, input_type, output_type;
  uint32_t input_stride, output_stride, weighted, accumulate; /* weighted: the weights multiply outputs */
  uint32_t shared_ldo;
  float scale;
} moi_cu_combine_args;

/* gemm_stream_<format>_combine: the down product and combine of a few tokens, block y is one */
typedef struct moi_cu_down_args {
  moi_cu_gemm_args down, shared; /* without y and items */
  moi_cu_combine_args combine;   /* without o and shared_o */
  uint32_t has_shared, reserved;
} moi_cu_down_args;

/* store_rows */
typedef struct moi_cu_store_args {
  const float *y;
  void *output;
  const uint32_t *ends;
  const float *row_scales, *global_scale; /* that y is to be multiplied with: of each row, and one for all; null: none */
  const void *bias;                       /* [n], to be added then; null: none */
  uint32_t n_rows, n, ldy, output_type;
  uint32_t output_stride, accumulate, bias_type, reserved;
} moi_cu_store_args;

/* One side of a change of layout: the streams of all experts; null: the format has no such stream. */
typedef struct moi_cu_pack_side {
  uint8_t *data, *scales, *zeros;
  uint64_t data_stride, scales_stride, zeros_stride; /* bytes between experts */
} moi_cu_pack_side;

/* pack_kn, pack_gptq, pack_awq, pack_to_gguf, pack_from_gguf: block x is a tile of an expert's matrix, y the expert */
typedef struct moi_cu_pack_args {
  moi_cu_pack_side src, dst; /* src is not written */
  uint32_t n, k, group;
  /* tiles along k, of the data; those of GPTQ and AWQ are followed by tiles of scales and by as many of zeros */
  uint32_t k_tiles, data_tiles, group_tiles, scale_tiles, reserved; /* group_tiles: along groups, of scales */
} moi_cu_pack_args;

/* Elements of a tile: bf16 or scales along each side; codes along n and k; codes of MXFP4 in the order of memory. */
enum { MOI_CU_PACK_SIDE = 64, MOI_CU_PACK_N = 64, MOI_CU_PACK_K = 256, MOI_CU_PACK_CODES = 256 * 32 };

#endif
