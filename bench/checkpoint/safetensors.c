/* safetensors: an 8-byte length, a JSON header of that length, the data. Alone, or the shards of an index. */
#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/checkpoint/store.h"

/* cJSON itself limits nesting to 1000. MAX_HEADER is the format's own limit. */
enum { MAX_HEADER = 100000000, MAX_CONFIG = 16 << 20, MAX_PATH = 4096, MAX_SHARDS = 4096 };

typedef struct element_type {
  const char *name;
  uint32_t bits;
  moi_format format;
} element_type;
static const element_type element_types[] = {
    {"F64", 64, MOI_FORMAT_NONE},        {"F32", 32, MOI_FORMAT_F32},     {"F16", 16, MOI_FORMAT_F16},
    {"BF16", 16, MOI_FORMAT_BF16},       {"I64", 64, MOI_FORMAT_NONE},    {"I32", 32, MOI_FORMAT_NONE},
    {"I16", 16, MOI_FORMAT_NONE},        {"I8", 8, MOI_FORMAT_NONE},      {"U64", 64, MOI_FORMAT_NONE},
    {"U32", 32, MOI_FORMAT_NONE},        {"U16", 16, MOI_FORMAT_NONE},    {"U8", 8, MOI_FORMAT_NONE},
    {"BOOL", 8, MOI_FORMAT_NONE},        {"F8_E4M3", 8, MOI_FORMAT_NONE}, {"F8_E5M2", 8, MOI_FORMAT_NONE},
    {"F8_E8M0", 8, MOI_FORMAT_NONE},     {"F4", 4, MOI_FORMAT_NONE},      {"F6_E2M3", 6, MOI_FORMAT_NONE},
    {"F6_E3M2", 6, MOI_FORMAT_NONE},     {"C64", 64, MOI_FORMAT_NONE},    {"F8_E4M3FNUZ", 8, MOI_FORMAT_NONE},
    {"F8_E5M2FNUZ", 8, MOI_FORMAT_NONE},
};

/* A JSON number that is a whole one and exact in a double. */
static bool whole(const cJSON *item, uint64_t *out) {
  if (!cJSON_IsNumber(item)) return false;
  double v = item->valuedouble;
  if (!(v >= 0 && v <= 9007199254740992.0) || v != floor(v)) return false;
  *out = (uint64_t)v;
  return true;
}

static bool read_entry(moi_checkpoint *c, const char *path, const cJSON *entry, const uint8_t *data, uint64_t data_size,
                       moi_load_error *error) {
  moi_tensor t = {0};
  const char *key = entry->string;
  if (!key || !*key) return moi_load_fail(error, "%s: a tensor without a name", path);
  const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
  const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
  const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
  if (!cJSON_IsString(dtype) || !cJSON_IsArray(shape) || !cJSON_IsArray(offsets))
    return moi_load_fail(error, "%s: %s: lacks dtype, shape or data_offsets", path, key);
  uint64_t count = 1, begin, end, bits;
  bool empty = false;
  for (const cJSON *dim = shape->child; dim; dim = dim->next) {
    uint64_t d;
    if (t.n_dims == MOI_TENSOR_DIMS || !whole(dim, &d))
      return moi_load_fail(error, "%s: %s: shape: is not up to %d whole numbers", path, key, MOI_TENSOR_DIMS);
    t.dims[t.n_dims++] = d;
    if (!d) empty = true;
    else if (!moi_multiply(count, d, &count)) return moi_load_fail(error, "%s: %s: its shape overflows", path, key);
  }
  if (empty) count = 0;
  const cJSON *first = offsets->child, *second = first ? first->next : NULL;
  if (!whole(first, &begin) || !whole(second, &end) || second->next || begin > end || end > data_size)
    return moi_load_fail(error, "%s: %s: data_offsets: are not two ascending offsets into the file's %" PRIu64 " bytes",
                         path, key, data_size);
  t.size = end - begin;
  for (size_t i = 0; i < sizeof element_types / sizeof *element_types; i++) {
    const element_type *type = &element_types[i];
    if (strcmp(type->name, dtype->valuestring)) continue;
    t.type = type->name;
    t.format = type->format;
    if (!moi_multiply(count, type->bits, &bits) || bits % 8 || bits / 8 != t.size)
      return moi_load_fail(error, "%s: %s: %" PRIu64 " bytes are not %" PRIu64 " elements of %s", path, key, t.size,
                           count, type->name);
  }
  if (!t.type) t.type = moi_store_text(c, dtype->valuestring, strlen(dtype->valuestring));
  t.name = moi_store_text(c, key, strlen(key));
  if (!t.type || !t.name) return moi_load_fail(error, "out of memory");
  t.data = data + begin;
  return moi_store_tensor(c, &t, error);
}

/* A JSON object that fills the bytes but for white space; NULL if they are something else. */
static cJSON *parse_object(const uint8_t *bytes, uint64_t length) {
  const char *text = (const char *)bytes, *end = NULL;
  cJSON *json = length ? cJSON_ParseWithLengthOpts(text, (size_t)length, &end, 0) : NULL;
  bool ok = cJSON_IsObject(json) && end;
  for (; ok && end < text + length; end++) ok = strchr(" \t\r\n", *end) && *end;
  if (ok) return json;
  cJSON_Delete(json);
  return NULL;
}

static bool read_file(moi_checkpoint *c, const char *path, moi_load_error *error) {
  moi_map *map = moi_store_map(c, path, error);
  if (!map) return false;
  const uint8_t *start = map->data;
  uint64_t size = map->size, length = 0;
  if (size < 8) return moi_load_fail(error, "%s: is shorter than the length of its header", path);
  for (int i = 0; i < 8; i++) length |= (uint64_t)start[i] << (8 * i);
  if (length > size - 8 || length > MAX_HEADER)
    return moi_load_fail(error, "%s: a header of %" PRIu64 " bytes in a file of %" PRIu64 " (at most %d)", path, length,
                         size, MAX_HEADER);
  cJSON *header = parse_object(start + 8, length);
  if (!header) return moi_load_fail(error, "%s: its header is no JSON object", path);
  bool ok = true;
  for (const cJSON *entry = header->child; entry && ok; entry = entry->next)
    if (!entry->string || strcmp(entry->string, "__metadata__"))
      ok = read_entry(c, path, entry, start + 8 + length, size - 8 - length, error);
  cJSON_Delete(header);
  return ok;
}

/* A whole JSON file as an object. */
static cJSON *read_json(const char *path, uint64_t limit, moi_load_error *error) {
  moi_map map;
  if (!moi_map_open(path, &map, error)) return NULL;
  cJSON *json = NULL;
  if (map.size > limit) moi_load_fail(error, "%s: %" PRIu64 " bytes; at most %" PRIu64, path, map.size, limit);
  else if (!(json = parse_object(map.data, map.size))) moi_load_fail(error, "%s: is no JSON object", path);
  moi_map_close(&map);
  return json;
}

/* folder of `path`, its length with the last slash */
static size_t folder_length(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? (size_t)(slash - path) + 1 : 0;
}

static bool join(char *out, const char *path, size_t folder, const char *name, moi_load_error *error) {
  int length = snprintf(out, MAX_PATH, "%.*s%s", (int)folder, path, name);
  return (length >= 0 && length < MAX_PATH) || moi_load_fail(error, "%s: the path is too long", name);
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* weight_map: tensor name -> file name beside the index. */
static bool read_index(moi_checkpoint *c, const char *path, moi_load_error *error) {
  cJSON *index = read_json(path, MAX_HEADER, error);
  if (!index) return false;
  const cJSON *weights = cJSON_GetObjectItemCaseSensitive(index, "weight_map");
  const char **files = NULL;
  uint64_t n = 0;
  bool ok = cJSON_IsObject(weights) || moi_load_fail(error, "%s: has no weight_map", path);
  if (ok) {
    for (const cJSON *w = weights->child; w; w = w->next) n++;
    files = malloc((n ? n : 1) * sizeof *files);
    if (!files) ok = moi_load_fail(error, "out of memory");
  }
  n = 0;
  if (ok)
    for (const cJSON *w = weights->child; w && ok; w = w->next) {
      if (!cJSON_IsString(w) || !*w->valuestring || strpbrk(w->valuestring, "/\\") || *w->valuestring == '.')
        ok = moi_load_fail(error, "%s: %s: its file is not a plain name", path, w->string);
      else files[n++] = w->valuestring;
    }
  if (ok && n) qsort(files, n, sizeof *files, by_text);
  uint32_t n_files = 0;
  for (uint64_t i = 0; i < n && ok; i++) {
    if (i && !strcmp(files[i], files[i - 1])) continue;
    char file[MAX_PATH];
    if (++n_files > MAX_SHARDS) ok = moi_load_fail(error, "%s: more than %d files", path, MAX_SHARDS);
    else ok = join(file, path, folder_length(path), files[i], error) && read_file(c, file, error);
  }
  free(files);
  cJSON_Delete(index);
  return ok;
}

bool moi_safetensors_read(moi_checkpoint *c, const char *path, moi_load_error *error) {
  c->kind = MOI_CHECKPOINT_SAFETENSORS;
  char file[MAX_PATH], config[MAX_PATH];
  if (moi_is_folder(path)) {
    char folder[MAX_PATH];
    size_t length = strlen(path);
    if (!join(folder, path, length, length && path[length - 1] == '/' ? "" : "/", error) ||
        !join(file, folder, strlen(folder), "model.safetensors.index.json", error))
      return false;
    if (!moi_is_file(file) && !join(file, folder, strlen(folder), "model.safetensors", error)) return false;
    if (!moi_is_file(file))
      return moi_load_fail(error, "%s: holds neither model.safetensors.index.json nor model.safetensors", path);
  } else if (!join(file, path, strlen(path), "", error)) return false;
  if (!join(config, file, folder_length(file), "config.json", error)) return false;
  size_t length = strlen(file);
  bool is_index = length >= 5 && !strcmp(file + length - 5, ".json");
  if (!(is_index ? read_index(c, file, error) : read_file(c, file, error))) return false;
  if (!moi_is_file(config)) return true; /* tensors can be listed without it; layer inference says that it lacks */
  c->config = read_json(config, MAX_CONFIG, error);
  if (!c->config) return false;
  const cJSON *inner = cJSON_GetObjectItemCaseSensitive(c->config, "text_config");
  c->inner = cJSON_IsObject(inner) ? inner : NULL;
  return true;
}
