/* Operands of attention: sequences, random q, and a KV cache of any layout that is encoded row by row; of the KV append
 * and of the merge of parts, with the results that they must have. */
#ifndef MOI_BENCH_RIG_ATTENTION_H
#define MOI_BENCH_RIG_ATTENTION_H

#include "bench/rig/arena.h"
#include "bench/rig/tolerance.h"

enum { MOI_RIG_SEQS = 64 };

typedef enum moi_rig_task { MOI_RIG_ATTEND = 0, MOI_RIG_APPEND, MOI_RIG_MERGE } moi_rig_task;

typedef struct moi_sequence {
  uint32_t rows;
  int32_t kv_len;
  int32_t start; /* position of its first row, where the case has q_start */
  int32_t begin; /* where the case has kv_begin */
} moi_sequence;

/* How the cache lies in memory; all 0: contiguous (or, with a page_size, pages in order), [token, head, element]. */
typedef struct moi_kv_layout {
  int shuffled;    /* pages, or the places of the sequences in a contiguous cache */
  int heads_first; /* [page, head, token, element] */
  int one_buffer;  /* k and v of a token and head beside each other */
  uint32_t gap;    /* bytes between everything, a multiple of 4 */
  int tight;       /* the cache holds nothing but what rows see: `start` may be negative */
} moi_kv_layout;

typedef struct moi_attention_operands {
  /* asked for */
  moi_rig_task task;
  moi_attention_desc desc; /* max_rows and max_seqs are set from the sequences; max_kv is the caller's */
  uint32_t n_seqs;
  moi_sequence sequences[MOI_RIG_SEQS];
  moi_kv_layout layout;
  int has_start, has_begin, has_lse, has_scales;
  int strays;     /* a row before the first sequence and one behind the last */
  int hostile;    /* offsets out of order and out of range */
  int holes;      /* some keys that are seen have no place in the cache */
  int nan;        /* a value that only some rows see is NaN */
  uint32_t parts; /* of a merge */
  float logits;   /* standard deviation of the logits, 0: 2 */
  uint64_t seed;
  /* NULL, or made from the same: q and the cache get its bytes, which is quicker than drawing them */
  const struct moi_attention_operands *like;
  /* made */
  uint32_t n_rows, stride_extra; /* elements between rows, and between heads of q */
  moi_attention_args args;
  moi_kv_append_args append;
  moi_attention_merge_args merge;
  moi_kv_cache cache; /* strides resolved */
} moi_attention_operands;

/* What a run writes. */
typedef struct moi_attention_outputs {
  moi_buffer output, lse; /* lse absent where the case has none */
  moi_buffer k, v;        /* the cache, of an append */
} moi_attention_outputs;

/* Makes the operands; `o` must stay where it is. Numbers are drawn by position: the places of a cache that no row sees
 * hold NaN. Caches of many rows are dealt from fewer encoded ones. */
void moi_make_attention(moi_arena *arena, moi_attention_operands *o);
moi_attention_outputs moi_attention_outputs_make(moi_arena *arena, const moi_attention_operands *o);
moi_status moi_attention_operands_plan(const moi_attention_operands *o, moi_context *context, const char *kernel,
                                       uint32_t plan_flags, moi_plan **out);
moi_status moi_attention_operands_run(const moi_attention_operands *o, const moi_plan *plan,
                                      const moi_attention_outputs *outputs, moi_buffer workspace);
/* An append or a merge: fills `outputs` with what they must be. */
void moi_attention_expected(const moi_attention_operands *o, const moi_attention_outputs *outputs);
moi_verdict moi_attention_compare(const moi_attention_operands *o, const char *kernel,
                                  const moi_attention_outputs *result, const moi_attention_outputs *reference);
int moi_attention_same_bits(const moi_attention_outputs *a, const moi_attention_outputs *b);
/* Row `row` alone, as a sequence of its own at its position, over the same cache. 0: it is of no sequence. */
int moi_attention_row(const moi_attention_operands *o, uint32_t row, moi_arena *arena, moi_attention_operands *out);
int moi_attention_same_row(const moi_attention_operands *o, uint32_t row, const moi_attention_outputs *whole,
                           const moi_attention_outputs *single);

/* Rows times the keys that each sees, of all sequences; *read: how many keys any row sees, and *most: the most that one
 * row sees. Either may be NULL. The operands need not be made. */
uint64_t moi_attention_seen(const moi_attention_operands *o, uint64_t *read, uint32_t *most);
/* Bytes of a key and its value, all KV heads. */
uint64_t moi_kv_token_bytes(const moi_attention_desc *desc);

/* Encodes n numbers as the KV append does: x / scale to the format. */
void moi_kv_encode(moi_format format, const float *x, uint32_t n, float scale, uint8_t *out);

#endif
