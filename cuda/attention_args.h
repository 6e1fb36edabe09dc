/* Arguments of attention's kernels: as args.h. */
#ifndef MOI_CUDA_ATTENTION_ARGS_H
#define MOI_CUDA_ATTENTION_ARGS_H

#include "cuda/args.h"

/* of moi_format, beside the dense types */
enum { MOI_CU_FP8 = 17, MOI_CU_Q8_0 = 64 };

/* A sequence as `prepare` leaves it; one more stands behind the last, for the tiles before it. */
typedef struct moi_cu_seq {
  uint32_t row, rows;
  uint32_t position; /* of the first row: signed */
  uint32_t begin, len;
  uint32_t few, many;                   /* tiles of few, of many rows in the sequences before */
  uint32_t parts;                       /* tiles of few rows, each times its segments, in the sequences before */
  uint32_t origin, segment, n_segments; /* of few rows: segment i is the keys from origin + i * segment on */
  uint32_t reserved;
} moi_cu_seq;

/* Where keys lie. */
typedef struct moi_cu_places {
  const int32_t *places; /* page_size > 0: the page table; else starts, null: s * max_kv */
  uint32_t page_size, page_entries, capacity, max_kv;
} moi_cu_places;

/* Keys, or values, of a cache. */
typedef struct moi_cu_kv {
  const uint8_t *data;
  const float *scale; /* of each KV head; null: 1 */
  uint64_t token, head, page;
  uint32_t format, dim;
  uint32_t vectors, reserved; /* 1: every row begins at a multiple of 16 bytes */
} moi_cu_kv;

/* attention_prepare, attend_*, attention_finish */
typedef struct moi_cu_attention_args {
  const void *q;
  void *y;
  float *lse;
  const float *sinks;
  const int32_t *q_offsets, *kv_lens, *q_start, *kv_begin;
  moi_cu_kv k, v;
  moi_cu_places where;
  moi_cu_seq *seqs;        /* [n_seqs + 1] */
  float *few, *few_sums;   /* [part, KV head, row of the tile, v_head_dim], and 2: maximum, sum; a sequence's parts
                              are [tile, segment] */
  float *many, *many_sums; /* the same without segments; null: tiles of many rows end in y */
  uint32_t n_rows, n_seqs, q_stride, q_head_stride;
  uint32_t y_stride, n_heads, n_kv_heads, reach;       /* reach: keys that a sequence has at most */
  uint32_t input_type, output_type, q_vectors, causal; /* q_vectors: as moi_cu_kv's */
  uint32_t window, chunk, temperature_floor, few_rows; /* few_rows: rows of a sequence that count as few */
  float temperature, scale, softcap;
  uint32_t few_tile, many_tile, y_pairs;      /* y_pairs: rows of y begin at multiples of two elements */
  uint32_t segment, n_segments, many_segment; /* keys that are summed up by themselves; segments there are at most */
  uint32_t adapt; /* 1: segments of few rows go by what the sequence's rows see, and `segment` is the least; 0: all are
                     `segment` keys from key 0 on */
  uint32_t pass;  /* attend_split_*: 0: tiles of few rows, 1: of many */
  uint32_t reserved;
} moi_cu_attention_args;

typedef struct moi_cu_append_side {
  const void *x;
  moi_cu_kv to;
  uint32_t stride, head_stride;
} moi_cu_append_side;

/* kv_append: block y takes sides[y] */
typedef struct moi_cu_append_args {
  moi_cu_append_side sides[2];
  const int32_t *q_offsets, *kv_lens, *q_start;
  moi_cu_places where;
  uint32_t n_rows, n_seqs, n_kv_heads, reach;
  uint32_t input_type, reserved;
} moi_cu_append_args;

/* attention_merge */
typedef struct moi_cu_merge_args {
  const float *parts, *part_lse;
  void *y;
  float *lse;
  uint32_t n_rows, n_parts, n_heads, dim;
  uint32_t y_stride, output_type;
} moi_cu_merge_args;

#endif
