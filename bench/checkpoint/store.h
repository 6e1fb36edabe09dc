/* What the readers of both kinds of file fill. */
#ifndef MOI_BENCH_CHECKPOINT_STORE_H
#define MOI_BENCH_CHECKPOINT_STORE_H

#include "bench/checkpoint/checkpoint.h"
#include "core/status.h"

struct cJSON;

typedef struct moi_map {
  const uint8_t *data;
  uint64_t size;
} moi_map;

/* The one place that knows how the system maps a file: read-only, whole, and no empty file. */
bool moi_map_open(const char *path, moi_map *map, moi_load_error *error);
void moi_map_close(moi_map *map);
bool moi_is_folder(const char *path);
bool moi_is_file(const char *path);

typedef struct moi_metadata {
  const char *key;
  const char *text;     /* a string of at most 4096 bytes */
  uint32_t type;        /* GGUF value type of the value or of the elements */
  uint64_t count;       /* 1 for a scalar; 0 for what is not kept (long strings, arrays of strings or arrays) */
  const uint8_t *value; /* in the mapping, not aligned */
} moi_metadata;

typedef struct moi_arena_block {
  struct moi_arena_block *next;
  size_t used, size;
  char bytes[];
} moi_arena_block;

struct moi_checkpoint {
  moi_checkpoint_kind kind;
  moi_map *maps;
  uint32_t n_maps;
  moi_tensor *tensors;
  uint64_t n_tensors, tensors_size;
  moi_metadata *metadata;
  uint64_t n_metadata, metadata_size;
  moi_arena_block *arena;
  struct cJSON *config;      /* NULL if there is no config.json */
  const struct cJSON *inner; /* its text_config, or NULL */
};

/* Sets the text and returns false. error may be NULL. */
bool moi_load_fail(moi_load_error *error, const char *format, ...) MOI_PRINTF(2);

/* Maps one more file. */
moi_map *moi_store_map(moi_checkpoint *c, const char *path, moi_load_error *error);
/* A copy with a final 0, owned by the checkpoint; NULL if there is no memory or the text holds a 0. */
const char *moi_store_text(moi_checkpoint *c, const char *bytes, uint64_t length);
bool moi_store_tensor(moi_checkpoint *c, const moi_tensor *tensor, moi_load_error *error);
bool moi_store_metadata(moi_checkpoint *c, const moi_metadata *metadata, moi_load_error *error);
/* Orders names and keys; refuses duplicates and tensors that share bytes. */
bool moi_store_finish(moi_checkpoint *c, moi_load_error *error);

/* a * b into *out; false if it does not fit. */
bool moi_multiply(uint64_t a, uint64_t b, uint64_t *out);

bool moi_gguf_read(moi_checkpoint *c, const char *path, moi_load_error *error);
bool moi_safetensors_read(moi_checkpoint *c, const char *path, moi_load_error *error);
bool moi_gguf_number(const moi_metadata *metadata, uint32_t index, double *out);

#endif
