/* Reads the checkpoints that people have, GGUF and safetensors, without copying them: every tensor is a pointer into
 * the mapped file.
 *
 * The files come from strangers. Every count, length, offset and product is checked against the file before it is used;
 * a bad file gives NULL and a text, never a crash. What no check can prevent: a file that another process cuts short
 * while it is mapped raises SIGBUS at the next access. */
#ifndef MOI_BENCH_CHECKPOINT_H
#define MOI_BENCH_CHECKPOINT_H

#include <stdbool.h>

#include <moiety.h>

#define MOI_TENSOR_DIMS 8

/* One line, printable ASCII whatever the file's names hold. */
typedef struct moi_load_error {
  char text[512];
} moi_load_error;

typedef enum moi_checkpoint_kind { MOI_CHECKPOINT_GGUF = 1, MOI_CHECKPOINT_SAFETENSORS = 2 } moi_checkpoint_kind;

typedef struct moi_tensor {
  const char *name;
  const char *type;  /* the file's name of the element type: "Q4_K", "F8_E4M3", "type 77" */
  moi_format format; /* what the bytes are on their own; MOI_FORMAT_NONE if no format is made of this tensor alone:
                        unsupported, or (FP8, packed int4, ...) only with a scales tensor beside it: layer.h */
  uint32_t n_dims;
  uint64_t dims[MOI_TENSOR_DIMS]; /* slowest first, for GGUF too */
  const uint8_t *data;            /* NULL if the type is unknown, so that its size is */
  uint64_t size;
} moi_tensor;

typedef struct moi_checkpoint moi_checkpoint;

/* path: a .gguf file (of a split one any shard: all are opened), a .safetensors file, a model.safetensors.index.json,
 * or a folder that holds one of the last two. config.json is read where it lies beside safetensors files. */
moi_checkpoint *moi_checkpoint_open(const char *path, moi_load_error *error);
void moi_checkpoint_close(moi_checkpoint *checkpoint);

moi_checkpoint_kind moi_checkpoint_get_kind(const moi_checkpoint *checkpoint);
/* Tensors in the order of their names; NULL past the last. They live until close. */
uint64_t moi_checkpoint_count(const moi_checkpoint *checkpoint);
const moi_tensor *moi_checkpoint_tensor(const moi_checkpoint *checkpoint, uint64_t index);
const moi_tensor *moi_checkpoint_find(const moi_checkpoint *checkpoint, const char *name);

/* Metadata: a GGUF key, or a path into config.json ("quantization_config.quant_method") that is looked up in its
 * text_config first. false or NULL: absent, or of another type. Booleans are 0 and 1; of an array (one value for each
 * layer) element `index`. */
bool moi_checkpoint_number(const moi_checkpoint *checkpoint, const char *key, uint32_t index, double *out);
const char *moi_checkpoint_text(const moi_checkpoint *checkpoint, const char *key);

#endif
