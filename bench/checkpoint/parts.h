/* Between the files that make a layer. */
#ifndef MOI_BENCH_CHECKPOINT_PARTS_H
#define MOI_BENCH_CHECKPOINT_PARTS_H

#include "bench/checkpoint/layer.h"
#include "core/status.h"

#define MOI_LAYER_NAME 256

typedef enum moi_rule_flags {
  MOI_RULE_SCORE_READ = 1 << 0,
  MOI_RULE_RENORM_READ = 1 << 1,
  MOI_RULE_SELECT_BIAS = 1 << 2,
  MOI_RULE_SHARED_SIGMOID = 1 << 3,
  MOI_RULE_GROUPS = 1 << 4,
  MOI_RULE_INTERLEAVED = 1 << 5,
  MOI_RULE_BF16_LOGITS = 1 << 6,
  MOI_RULE_BF16_WEIGHTS = 1 << 7,
  MOI_RULE_WEIGHT_ON_INPUT = 1 << 8,
  MOI_RULE_WEIGHT_ON_ACTIVATION = 1 << 9,
  MOI_RULE_HASH = 1 << 10,
  MOI_RULE_INPUT_NORM = 1 << 11,
  MOI_RULE_DENSE_SHARED = 1 << 12
} moi_rule_flags;

typedef struct moi_rule {
  const char *gguf, *model_types;
  moi_score score;
  moi_renorm renorm;
  float renorm_eps;
  moi_activation activation;
  uint32_t flags;
  const char *note;
} moi_rule;

typedef struct moi_layer_reader {
  const moi_checkpoint *checkpoint;
  moi_layer *layer;
  moi_load_error *error;
  const moi_rule *rule;
  char block[MOI_LAYER_NAME]; /* what tensor names of the MoE block begin with: "blk.3.", "model.layers.3.mlp." */
} moi_layer_reader;

typedef enum moi_found { MOI_ABSENT, MOI_FOUND, MOI_BAD } moi_found;

/* One matrix W[n,k], or e of them if the tensor is 3-dimensional. */
typedef struct moi_part {
  moi_format format;
  uint32_t e, n, k;                     /* e 0: one matrix, of a 2-dimensional tensor */
  const uint8_t *data, *scales, *zeros; /* in the mapping; or scales that the layer owns */
  moi_format_sizes sizes;               /* of one matrix */
  float global;                         /* NVFP4 */
  const char *name;                     /* of the data tensor */
} moi_part;

/* rules.c: the descs out of the metadata, all but what the tensors say. */
const moi_rule *moi_rule_find(const moi_checkpoint *checkpoint, moi_load_error *error, char architecture[64]);
bool moi_rule_apply(moi_layer_reader *r);
/* The first key that is there; keys are separated by spaces, for GGUF without the architecture. */
bool moi_layer_number(const moi_layer_reader *r, const char *keys, double *out);

/* part.c: `base` is a name without ".weight"; every layout that MOI_FORMAT_MAP knows is tried. */
moi_found moi_part_find(moi_layer_reader *r, const char *base, moi_part *part);

/* Memory that moi_layer_close frees; NULL and an error if there is none. */
void *moi_layer_own(moi_layer_reader *r, uint64_t count, size_t size);
/* `block` followed by the formatted text. */
const moi_tensor *moi_layer_tensor(const moi_layer_reader *r, const char *format, ...) MOI_PRINTF(2);
bool moi_layer_fail_tensor(const moi_layer_reader *r, const moi_tensor *t, const char *what);
bool moi_is_type(const moi_tensor *t, const char *type);
/* Elements of t; 0 overflows nowhere because the reader has checked it. */
uint64_t moi_tensor_elements(const moi_tensor *t);
/* A view of `count` numbers of the type `want`: the tensor itself, or a copy in `want` = F32. */
bool moi_layer_numbers(moi_layer_reader *r, const moi_tensor *t, uint64_t count, moi_format want, moi_buffer *out);

#endif
