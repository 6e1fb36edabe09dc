#include "bench/checkpoint/store.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool moi_load_fail(moi_load_error *error, const char *format, ...) {
  if (!error) return false;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->text, sizeof error->text, format, arguments);
  va_end(arguments);
  for (char *c = error->text; *c; c++)
    if (*c < ' ' || *c > '~') *c = '?'; /* names in the file must not reach a terminal as control codes */
  return false;
}

bool moi_multiply(uint64_t a, uint64_t b, uint64_t *out) {
  if (b && a > UINT64_MAX / b) return false;
  *out = a * b;
  return true;
}

moi_map *moi_store_map(moi_checkpoint *c, const char *path, moi_load_error *error) {
  moi_map *maps = realloc(c->maps, (c->n_maps + 1) * sizeof *maps);
  if (!maps) {
    moi_load_fail(error, "out of memory");
    return NULL;
  }
  c->maps = maps;
  if (!moi_map_open(path, &maps[c->n_maps], error)) return NULL;
  return &maps[c->n_maps++];
}

const char *moi_store_text(moi_checkpoint *c, const char *bytes, uint64_t length) {
  enum { BLOCK = 1 << 16 };
  if ((length && memchr(bytes, 0, length)) || length > SIZE_MAX / 2) return NULL;
  size_t need = (size_t)length + 1;
  if (!c->arena || c->arena->size - c->arena->used < need) {
    size_t size = need > BLOCK ? need : BLOCK;
    moi_arena_block *block = malloc(sizeof *block + size);
    if (!block) return NULL;
    block->next = c->arena;
    block->used = 0;
    block->size = size;
    c->arena = block;
  }
  char *text = c->arena->bytes + c->arena->used;
  c->arena->used += need;
  if (length) memcpy(text, bytes, length);
  text[length] = 0;
  return text;
}

/* Room for one more: the arrays grow with what was read, never with a count that the file claims. */
static bool grow(void **array, uint64_t count, uint64_t *size, size_t element) {
  if (count < *size) return true;
  uint64_t larger = *size ? *size * 2 : 64;
  void *moved = larger > SIZE_MAX / element ? NULL : realloc(*array, (size_t)larger * element);
  if (!moved) return false;
  *array = moved;
  *size = larger;
  return true;
}

bool moi_store_tensor(moi_checkpoint *c, const moi_tensor *tensor, moi_load_error *error) {
  void *array = c->tensors;
  bool ok = grow(&array, c->n_tensors, &c->tensors_size, sizeof *tensor);
  c->tensors = array;
  if (!ok) return moi_load_fail(error, "out of memory");
  c->tensors[c->n_tensors++] = *tensor;
  return true;
}

bool moi_store_metadata(moi_checkpoint *c, const moi_metadata *metadata, moi_load_error *error) {
  void *array = c->metadata;
  bool ok = grow(&array, c->n_metadata, &c->metadata_size, sizeof *metadata);
  c->metadata = array;
  if (!ok) return moi_load_fail(error, "out of memory");
  c->metadata[c->n_metadata++] = *metadata;
  return true;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const moi_tensor *)a)->name, ((const moi_tensor *)b)->name);
}

static int by_key(const void *a, const void *b) {
  return strcmp(((const moi_metadata *)a)->key, ((const moi_metadata *)b)->key);
}

static int by_address(const void *a, const void *b) {
  uintptr_t p = (uintptr_t)(*(const moi_tensor *const *)a)->data, q = (uintptr_t)(*(const moi_tensor *const *)b)->data;
  return (p > q) - (p < q);
}

bool moi_store_finish(moi_checkpoint *c, moi_load_error *error) {
  if (c->n_tensors) qsort(c->tensors, c->n_tensors, sizeof *c->tensors, by_name);
  if (c->n_metadata) qsort(c->metadata, c->n_metadata, sizeof *c->metadata, by_key);
  for (uint64_t i = 1; i < c->n_tensors; i++)
    if (!strcmp(c->tensors[i - 1].name, c->tensors[i].name))
      return moi_load_fail(error, "tensor %s: is there twice", c->tensors[i].name);
  for (uint64_t i = 1; i < c->n_metadata; i++)
    if (!strcmp(c->metadata[i - 1].key, c->metadata[i].key))
      return moi_load_fail(error, "metadata key %s: is there twice", c->metadata[i].key);
  if (!c->n_tensors) return true;
  const moi_tensor **order = malloc(c->n_tensors * sizeof *order);
  if (!order) return moi_load_fail(error, "out of memory");
  uint64_t n = 0;
  for (uint64_t i = 0; i < c->n_tensors; i++)
    if (c->tensors[i].data && c->tensors[i].size) order[n++] = &c->tensors[i];
  if (n) qsort(order, n, sizeof *order, by_address);
  bool ok = true;
  for (uint64_t i = 1; i < n && ok; i++)
    if (order[i]->data < order[i - 1]->data + order[i - 1]->size)
      ok = moi_load_fail(error, "tensors %s and %s: share bytes", order[i - 1]->name, order[i]->name);
  free(order);
  return ok;
}

static bool ends_with(const char *text, const char *end) {
  size_t a = strlen(text), b = strlen(end);
  return a >= b && !strcmp(text + a - b, end);
}

moi_checkpoint *moi_checkpoint_open(const char *path, moi_load_error *error) {
  if (error) error->text[0] = 0;
  if (!path) {
    moi_load_fail(error, "path: is null");
    return NULL;
  }
  moi_checkpoint *c = calloc(1, sizeof *c);
  if (!c) {
    moi_load_fail(error, "out of memory");
    return NULL;
  }
  bool ok;
  if (moi_is_folder(path) || ends_with(path, ".safetensors") || ends_with(path, ".json"))
    ok = moi_safetensors_read(c, path, error);
  else ok = moi_gguf_read(c, path, error);
  if (ok && moi_store_finish(c, error)) return c;
  moi_checkpoint_close(c);
  return NULL;
}

void moi_checkpoint_close(moi_checkpoint *c) {
  if (!c) return;
  for (uint32_t i = 0; i < c->n_maps; i++) moi_map_close(&c->maps[i]);
  while (c->arena) {
    moi_arena_block *next = c->arena->next;
    free(c->arena);
    c->arena = next;
  }
  cJSON_Delete(c->config);
  free(c->maps);
  free(c->tensors);
  free(c->metadata);
  free(c);
}

moi_checkpoint_kind moi_checkpoint_get_kind(const moi_checkpoint *c) { return c->kind; }
uint64_t moi_checkpoint_count(const moi_checkpoint *c) { return c->n_tensors; }

const moi_tensor *moi_checkpoint_tensor(const moi_checkpoint *c, uint64_t index) {
  return index < c->n_tensors ? &c->tensors[index] : NULL;
}

const moi_tensor *moi_checkpoint_find(const moi_checkpoint *c, const char *name) {
  moi_tensor key = {.name = name};
  return c->n_tensors ? bsearch(&key, c->tensors, c->n_tensors, sizeof key, by_name) : NULL;
}

static const moi_metadata *find_metadata(const moi_checkpoint *c, const char *name) {
  moi_metadata key = {.key = name};
  return c->n_metadata ? bsearch(&key, c->metadata, c->n_metadata, sizeof key, by_key) : NULL;
}

static const cJSON *find_path(const cJSON *at, const char *path) {
  while (at && path) {
    char step[128];
    size_t length = strcspn(path, ".");
    if (length >= sizeof step || !cJSON_IsObject(at)) return NULL;
    memcpy(step, path, length);
    step[length] = 0;
    at = cJSON_GetObjectItemCaseSensitive(at, step);
    path = path[length] ? path + length + 1 : NULL;
  }
  return cJSON_IsNull(at) ? NULL : at;
}

static const cJSON *find_config(const moi_checkpoint *c, const char *key) {
  const cJSON *item = find_path(c->inner, key);
  return item ? item : find_path(c->config, key);
}

bool moi_checkpoint_number(const moi_checkpoint *c, const char *key, uint32_t index, double *out) {
  if (c->kind == MOI_CHECKPOINT_GGUF) {
    const moi_metadata *m = find_metadata(c, key);
    return m && moi_gguf_number(m, index, out);
  }
  const cJSON *item = find_config(c, key);
  if (cJSON_IsArray(item)) {
    item = item->child;
    for (uint32_t i = 0; item && i < index; i++) item = item->next;
  }
  if (cJSON_IsBool(item)) *out = cJSON_IsTrue(item);
  else if (cJSON_IsNumber(item) && isfinite(item->valuedouble)) *out = item->valuedouble;
  else return false;
  return true;
}

const char *moi_checkpoint_text(const moi_checkpoint *c, const char *key) {
  if (c->kind == MOI_CHECKPOINT_GGUF) {
    const moi_metadata *m = find_metadata(c, key);
    return m ? m->text : NULL;
  }
  const cJSON *item = find_config(c, key);
  return cJSON_IsString(item) ? item->valuestring : NULL;
}
