/* GGUF versions 2 and 3, little-endian, whole or split. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/checkpoint/store.h"

enum {
  TYPE_U8,
  TYPE_I8,
  TYPE_U16,
  TYPE_I16,
  TYPE_U32,
  TYPE_I32,
  TYPE_F32,
  TYPE_BOOL,
  TYPE_STRING,
  TYPE_ARRAY,
  TYPE_U64,
  TYPE_I64,
  TYPE_F64,
  N_TYPES
};
static const uint8_t type_bytes[N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

enum { MAX_ARRAY_DEPTH = 8, MAX_NAME = 65535, MAX_TEXT = 4096, MAX_SHARDS = 4096, GGUF_DIMS = 4 };

/* X(id, name, elements of a block, bytes of a block, moi format): every type of GGUF, so that a tensor of a type that
 * moiety lacks is still listed with its size. */
#define TENSOR_TYPES(X)                                                                                                \
  X(0, F32, 1, 4, F32)                                                                                                 \
  X(1, F16, 1, 2, F16) X(2, Q4_0, 32, 18, Q4_0) X(3, Q4_1, 32, 20, NONE) X(6, Q5_0, 32, 22, NONE)                      \
      X(7, Q5_1, 32, 24, NONE) X(8, Q8_0, 32, 34, Q8_0) X(9, Q8_1, 32, 40, NONE) X(10, Q2_K, 256, 84, NONE)            \
          X(11, Q3_K, 256, 110, NONE) X(12, Q4_K, 256, 144, Q4_K) X(13, Q5_K, 256, 176, Q5_K)                          \
              X(14, Q6_K, 256, 210, Q6_K) X(15, Q8_K, 256, 292, NONE) X(16, IQ2_XXS, 256, 66, NONE)                    \
                  X(17, IQ2_XS, 256, 74, NONE) X(18, IQ3_XXS, 256, 98, NONE) X(19, IQ1_S, 256, 50, NONE)               \
                      X(20, IQ4_NL, 32, 18, IQ4_NL) X(21, IQ3_S, 256, 110, NONE) X(22, IQ2_S, 256, 82, NONE)           \
                          X(23, IQ4_XS, 256, 136, NONE) X(24, I8, 1, 1, NONE) X(25, I16, 1, 2, NONE)                   \
                              X(26, I32, 1, 4, NONE) X(27, I64, 1, 8, NONE) X(28, F64, 1, 8, NONE)                     \
                                  X(29, IQ1_M, 256, 56, NONE) X(30, BF16, 1, 2, BF16) X(34, TQ1_0, 256, 54, NONE)      \
                                      X(35, TQ2_0, 256, 66, NONE) X(39, MXFP4, 32, 17, MXFP4_GGUF)                     \
                                          X(40, NVFP4, 64, 36, NONE) X(41, Q1_0, 128, 18, NONE)

typedef struct tensor_type {
  uint32_t id;
  const char *name;
  uint32_t elements, bytes;
  moi_format format;
} tensor_type;
static const tensor_type tensor_types[] = {
#define X(id, name, elements, bytes, format) {id, #name, elements, bytes, MOI_FORMAT_##format},
    TENSOR_TYPES(X)
#undef X
};

typedef struct cursor {
  const uint8_t *at, *end;
  const char *path;
  moi_load_error *error;
} cursor;

static uint64_t left(const cursor *r) { return (uint64_t)(r->end - r->at); }

static bool take(cursor *r, uint64_t size, const uint8_t **out) {
  if (size > left(r)) {
    moi_load_fail(r->error, "%s: ends in the middle of its header", r->path);
    return false; /* said here, so that compilers see that *out is set on success */
  }
  *out = r->at;
  r->at += size;
  return true;
}

static uint64_t little(const uint8_t *p, uint32_t bytes) {
  uint64_t v = 0;
  for (uint32_t i = 0; i < bytes; i++) v |= (uint64_t)p[i] << (8 * i);
  return v;
}

static bool take_u32(cursor *r, uint32_t *out) {
  const uint8_t *p;
  if (!take(r, 4, &p)) return false;
  *out = (uint32_t)little(p, 4);
  return true;
}

static bool take_u64(cursor *r, uint64_t *out) {
  const uint8_t *p;
  if (!take(r, 8, &p)) return false;
  *out = little(p, 8);
  return true;
}

static bool take_string(cursor *r, const char **text, uint64_t *length) {
  const uint8_t *p;
  if (!take_u64(r, length) || !take(r, *length, &p)) return false;
  *text = (const char *)p;
  return true;
}

static bool take_name(cursor *r, moi_checkpoint *c, const char *what, const char **out) {
  const char *text;
  uint64_t length;
  if (!take_string(r, &text, &length)) return false;
  if (!length || length > MAX_NAME)
    return moi_load_fail(r->error, "%s: a %s of %" PRIu64 " bytes; 1 to %d are allowed", r->path, what, length,
                         MAX_NAME);
  *out = moi_store_text(c, text, length);
  return *out || moi_load_fail(r->error, "%s: a %s holds a zero byte, or no memory is left", r->path, what);
}

/* Passes over an array. `value` is set if its elements are numbers. */
static bool take_array(cursor *r, uint32_t depth, uint32_t *type, uint64_t *count, const uint8_t **value) {
  if (!take_u32(r, type) || !take_u64(r, count)) return false;
  if (*type >= N_TYPES) return moi_load_fail(r->error, "%s: metadata of unknown type %u", r->path, *type);
  if (type_bytes[*type]) {
    uint64_t size;
    if (!moi_multiply(*count, type_bytes[*type], &size))
      return moi_load_fail(r->error, "%s: a metadata array of %" PRIu64 " elements", r->path, *count);
    return take(r, size, value);
  }
  if (depth >= MAX_ARRAY_DEPTH)
    return moi_load_fail(r->error, "%s: metadata arrays nested deeper than %d", r->path, MAX_ARRAY_DEPTH);
  for (uint64_t i = 0; i < *count; i++) { /* every element takes bytes of the file, so the file bounds this */
    if (*type == TYPE_STRING) {
      const char *text;
      uint64_t length;
      if (!take_string(r, &text, &length)) return false;
    } else {
      uint32_t inner_type;
      uint64_t inner_count;
      const uint8_t *inner;
      if (!take_array(r, depth + 1, &inner_type, &inner_count, &inner)) return false;
    }
  }
  return true;
}

static bool read_metadata(cursor *r, moi_checkpoint *c, moi_metadata *m) {
  *m = (moi_metadata){0};
  if (!take_name(r, c, "metadata key", &m->key) || !take_u32(r, &m->type)) return false;
  if (m->type >= N_TYPES)
    return moi_load_fail(r->error, "%s: %s: metadata of unknown type %u", r->path, m->key, m->type);
  if (m->type == TYPE_STRING) {
    const char *text;
    uint64_t length;
    if (!take_string(r, &text, &length)) return false;
    if (length <= MAX_TEXT) m->text = moi_store_text(c, text, length);
  } else if (m->type == TYPE_ARRAY) {
    uint64_t count;
    if (!take_array(r, 1, &m->type, &count, &m->value)) return false;
    m->count = m->value ? count : 0;
  } else {
    m->count = 1;
    if (!take(r, type_bytes[m->type], &m->value)) return false;
  }
  return true;
}

bool moi_gguf_number(const moi_metadata *m, uint32_t index, double *out) {
  if (!m->value || !m->count) return false;
  if (m->count == 1) index = 0;
  if (index >= m->count) return false;
  uint64_t raw = little(m->value + (size_t)index * type_bytes[m->type], type_bytes[m->type]);
  switch (m->type) {
  case TYPE_U8:
  case TYPE_U16:
  case TYPE_U32:
  case TYPE_U64:
    *out = (double)raw;
    return true;
  case TYPE_BOOL:
    *out = raw != 0;
    return true;
  case TYPE_I8:
    *out = (int8_t)(uint8_t)raw;
    return true;
  case TYPE_I16:
    *out = (int16_t)(uint16_t)raw;
    return true;
  case TYPE_I32:
    *out = (int32_t)(uint32_t)raw;
    return true;
  case TYPE_I64:
    *out = (double)(int64_t)raw;
    return true;
  case TYPE_F32: {
    uint32_t bits = (uint32_t)raw;
    float value;
    memcpy(&value, &bits, 4);
    *out = value;
    return isfinite(*out);
  }
  case TYPE_F64:
    memcpy(out, &raw, 8);
    return isfinite(*out);
  default:
    return false;
  }
}

/* `offset` may lie in t, behind the dimensions that GGUF has. */
static bool read_tensor(cursor *r, moi_checkpoint *c, moi_tensor *t, uint64_t *offset) {
  *t = (moi_tensor){0};
  uint32_t id;
  if (!take_name(r, c, "tensor name", &t->name) || !take_u32(r, &t->n_dims)) return false;
  if (!t->n_dims || t->n_dims > GGUF_DIMS)
    return moi_load_fail(r->error, "%s: %s: %u dimensions; 1 to %d are allowed", r->path, t->name, t->n_dims,
                         GGUF_DIMS);
  uint64_t count = 1, overflow;
  for (uint32_t i = 0; i < t->n_dims; i++) {
    uint64_t *dim = &t->dims[t->n_dims - 1 - i];
    if (!take_u64(r, dim)) return false;
    if (*dim > INT64_MAX || !moi_multiply(count, *dim ? *dim : 1, &overflow))
      return moi_load_fail(r->error, "%s: %s: its dimensions overflow", r->path, t->name);
    count = overflow;
  }
  for (uint32_t i = 0; i < t->n_dims; i++)
    if (!t->dims[i]) count = 0;
  if (!take_u32(r, &id) || !take_u64(r, offset)) return false;
  for (size_t i = 0; i < sizeof tensor_types / sizeof *tensor_types; i++) {
    const tensor_type *type = &tensor_types[i];
    if (type->id != id) continue;
    t->type = type->name;
    t->format = type->format;
    if (t->dims[t->n_dims - 1] % type->elements)
      return moi_load_fail(r->error, "%s: %s: rows of %" PRIu64 " elements are not whole blocks of %s", r->path,
                           t->name, t->dims[t->n_dims - 1], type->name);
    if (!moi_multiply(count / type->elements, type->bytes, &t->size))
      return moi_load_fail(r->error, "%s: %s: its dimensions overflow", r->path, t->name);
    return true;
  }
  char name[32];
  int length = snprintf(name, sizeof name, "type %u", id);
  t->type = moi_store_text(c, name, (uint64_t)length);
  return t->type || moi_load_fail(r->error, "out of memory");
}

static bool find_number(const moi_metadata *metadata, uint64_t count, const char *key, double *out) {
  for (uint64_t i = 0; i < count; i++)
    if (!strcmp(metadata[i].key, key)) return moi_gguf_number(&metadata[i], 0, out);
  return false;
}

/* One shard. Its metadata are kept if it is the first. n_shards: split.count, 1 if there is none. */
static bool read_file(moi_checkpoint *c, const char *path, bool first, uint32_t *n_shards, moi_load_error *error) {
  moi_map *map = moi_store_map(c, path, error);
  if (!map) return false;
  const uint8_t *start = map->data;
  uint64_t size = map->size;
  cursor r = {start, start + size, path, error};
  const uint8_t *magic;
  uint32_t version;
  uint64_t n_tensors, n_metadata;
  if (size < 4 || memcmp(start, "GGUF", 4))
    return moi_load_fail(error, "%s: is neither GGUF (no magic) nor named .safetensors", path);
  if (!take(&r, 4, &magic) || !take_u32(&r, &version)) return false;
  if (version == 0x02000000u || version == 0x03000000u)
    return moi_load_fail(error, "%s: is big-endian GGUF, which is not supported", path);
  if (version != 2 && version != 3)
    return moi_load_fail(error, "%s: is GGUF version %u; 2 and 3 are supported", path, version);
  if (!take_u64(&r, &n_tensors) || !take_u64(&r, &n_metadata)) return false;
  /* a key takes 8+1+4+1 bytes at least, a tensor 8+1+4+8+4+8 */
  if (n_metadata > left(&r) / 14 || n_tensors > left(&r) / 33)
    return moi_load_fail(error, "%s: %" PRIu64 " metadata keys and %" PRIu64 " tensors do not fit in %" PRIu64 " bytes",
                         path, n_metadata, n_tensors, size);
  uint64_t metadata_before = c->n_metadata;
  for (uint64_t i = 0; i < n_metadata; i++) {
    moi_metadata m;
    if (!read_metadata(&r, c, &m) || !moi_store_metadata(c, &m, error)) return false;
  }
  const moi_metadata *own = n_metadata ? c->metadata + metadata_before : NULL;
  double number;
  uint64_t alignment = 32;
  if (n_metadata && find_number(own, n_metadata, "general.alignment", &number)) {
    if (!(number >= 1 && number <= 1 << 20) || number != floor(number) || ((uint64_t)number & ((uint64_t)number - 1)))
      return moi_load_fail(error, "%s: general.alignment: %g is not a power of two up to 2^20", path, number);
    alignment = (uint64_t)number;
  }
  *n_shards = 1;
  if (n_metadata && find_number(own, n_metadata, "split.count", &number) && number != 0) {
    if (!(number >= 1 && number <= MAX_SHARDS) || number != floor(number))
      return moi_load_fail(error, "%s: split.count: %g is not in 1..%d", path, number, MAX_SHARDS);
    *n_shards = (uint32_t)number;
  }
  if (!first) c->n_metadata = metadata_before;

  /* Offsets count from the start of the data, which is known after the last tensor: until then they wait in the last,
   * unused, dimension. */
  enum { OFFSET = MOI_TENSOR_DIMS - 1 };
  uint64_t tensors_before = c->n_tensors;
  for (uint64_t i = 0; i < n_tensors; i++) {
    moi_tensor t;
    if (!read_tensor(&r, c, &t, &t.dims[OFFSET]) || !moi_store_tensor(c, &t, error)) return false;
  }
  uint64_t data_start = (uint64_t)(r.at - start);
  data_start += (alignment - data_start % alignment) % alignment;
  uint64_t data_size = data_start < size ? size - data_start : 0;
  for (uint64_t i = tensors_before; i < c->n_tensors; i++) {
    moi_tensor *t = &c->tensors[i];
    uint64_t offset = t->dims[OFFSET];
    t->dims[OFFSET] = 0;
    if (offset % alignment)
      return moi_load_fail(error, "%s: %s: offset %" PRIu64 " is not a multiple of %" PRIu64, path, t->name, offset,
                           alignment);
    if (offset > data_size || t->size > data_size - offset)
      return moi_load_fail(error, "%s: %s: %" PRIu64 " bytes at offset %" PRIu64 " are not in the file", path, t->name,
                           t->size, offset);
    if (t->size) t->data = start + data_start + offset;
  }
  return true;
}

bool moi_gguf_read(moi_checkpoint *c, const char *path, moi_load_error *error) {
  c->kind = MOI_CHECKPOINT_GGUF;
  /* NAME-00002-of-00005.gguf: the metadata of the model are in the first shard */
  char name[4096];
  size_t length = strlen(path);
  unsigned shard = 1, of = 1;
  const size_t suffix = sizeof "-00001-of-00001.gguf" - 1;
  bool split = length > suffix && length < sizeof name &&
               sscanf(path + length - suffix, "-%5u-of-%5u.gguf", &shard, &of) == 2 && of > 1;
  uint32_t n_shards;
  if (!split) {
    if (!read_file(c, path, true, &n_shards, error)) return false;
    return n_shards == 1 || moi_load_fail(error,
                                          "%s: is one of %u shards, but its name does not end in "
                                          "-00001-of-%05u.gguf",
                                          path, n_shards, n_shards);
  }
  if (of > MAX_SHARDS) return moi_load_fail(error, "%s: %u shards; at most %d are allowed", path, of, MAX_SHARDS);
  for (unsigned i = 1; i <= of; i++) {
    snprintf(name, sizeof name, "%.*s-%05u-of-%05u.gguf", (int)(length - suffix), path, i, of);
    if (!read_file(c, name, i == 1, &n_shards, error)) return false;
    if (n_shards != of) return moi_load_fail(error, "%s: split.count: is %u, the name says %u", name, n_shards, of);
  }
  return true;
}
